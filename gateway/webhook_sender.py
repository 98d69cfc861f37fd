"""Calls webhooks: takes what is due out of the queue, delivers it, puts back what failed.

Any number of gateway processes may send; each webhook goes to one of them. A webhook may come twice (`webhook-id` is
then the same), for a sender may die between the receiver's answer and its own note of it.
"""

import json
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import httpx
from redis.exceptions import RedisError

from broker.holds import Record
from broker.outbox import BATCH, Outbox
from broker.records import RequestStore
from config.settings import WebhookSettings
from gateway.reports import described
from gateway.webhooks import (
    ForbiddenAddress,
    check_addresses,
    checked_url,
    owners_secret,
    retry_delay_s,
    signed_headers,
)
from schemas.wire import UndecodableMessage

log = logging.getLogger(__name__)

#: Seconds between looks for what is due.
LOOK_S = 1.0


class NotDelivered(Exception):
    """The receiver did not take it."""


class WebhookSender:
    """Sends on threads of its own. `secret` is the deployment's; `clock` tells seconds since the epoch."""

    def __init__(
        self,
        outbox: Outbox,
        store: RequestStore,
        settings: WebhookSettings,
        secret: str,
        clock: Callable[[], float],
    ) -> None:
        self._outbox = outbox
        self._store = store
        self._settings = settings
        self._secret = secret
        self._clock = clock
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(BATCH, thread_name_prefix="webhook")
        self._thread = threading.Thread(target=self._run, name="webhook-sender", daemon=True)

    def start(self) -> None:
        """Send for ever."""
        self._thread.start()

    def close(self) -> None:
        """Take nothing more up. Blocks until what is under way has ended."""
        self._ended.set()
        self._thread.join()
        self._pool.shutdown()

    def send_due(self) -> int:
        """Try everything that is due; how many that was. Blocks until the last has ended."""
        due = self._outbox.take()
        for _ in self._pool.map(self._send, due):
            pass
        return len(due)

    def _run(self) -> None:
        while not self._ended.wait(LOOK_S):
            try:
                while self.send_due() == BATCH:
                    pass
            except RedisError as error:
                log.warning("redis_away error=%s", error)

    def _send(self, request_id: str) -> None:
        try:
            record = self._store.read(request_id)
            if record is None or record.request.webhook is None:
                self._outbox.done(request_id)
                self._store.count("webhooks_expired")
                return
            self._deliver(record, record.request.webhook)
        except RedisError:
            raise
        except Exception as error:  # noqa: BLE001 - one receiver's oddity must not end the others' webhooks
            self._put_back(request_id, error)
        else:
            self._outbox.done(request_id)
            self._store.count("webhooks_delivered")

    def _put_back(self, request_id: str, error: Exception) -> None:
        is_lasting = isinstance(error, ForbiddenAddress | UndecodableMessage)
        delay_s = None if is_lasting else retry_delay_s(self._outbox.count_try(request_id))
        log.warning("webhook_not_delivered request_id=%s again_in_s=%s error=%s", request_id, delay_s, error)
        if delay_s is not None:
            self._outbox.try_again(request_id, delay_s)
            return
        self._outbox.done(request_id)
        self._store.count("webhooks_given_up")

    def _deliver(self, record: Record, url: str) -> None:
        """Raises `ForbiddenAddress`, `NotDelivered`, or what the network does."""
        target = checked_url(url, allow_http=self._settings.allow_http)
        now_s = int(self._clock())
        told = {
            "type": "job.finished",
            "timestamp": datetime.fromtimestamp(now_s, UTC).isoformat(),
            "data": described(record).model_dump(mode="json"),
        }
        body = json.dumps(told).encode()
        secret = owners_secret(self._secret, record.owner)
        headers = {"Content-Type": "application/json", **signed_headers(secret, record.request_id, now_s, body)}
        self._post(target, body, headers)

    def _post(self, url: httpx.URL, body: bytes, headers: dict[str, str]) -> None:
        host = url.raw_host.decode()
        # To the address that was checked, whatever the name resolves to by now; the certificate is still the name's.
        target = url.copy_with(host=self._address(host, url.port or (443 if url.scheme == "https" else 80)))
        with httpx.Client(trust_env=False, follow_redirects=False, timeout=self._settings.timeout_s) as client:
            # The time-out is for each read: a receiver that trickles its answer would hold the thread for ever.
            guard = threading.Timer(2 * self._settings.timeout_s, client.close)
            guard.start()
            try:
                request = client.build_request(
                    "POST",
                    target,
                    content=body,
                    headers={**headers, "Host": url.netloc.decode()},
                    extensions={"sni_hostname": host},
                )
                response = client.send(request, stream=True)  # what it answers is not read
                response.close()
            finally:
                guard.cancel()
        if not response.is_success:
            raise NotDelivered(f"the receiver answered {response.status_code}")

    def _address(self, host: str, port: int) -> str:
        resolved = [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        return resolved[0] if self._settings.allow_private_addresses else check_addresses(host, resolved)
