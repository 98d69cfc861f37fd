"""Calls webhooks: takes those that are due from the outbox, delivers them, and puts back those that failed.

Any number of gateway processes may send; each webhook goes to one of them. A receiver may get one twice, with the same
`webhook-id`: the process may die after the receiver has answered and before the outbox knows.
"""

import json
import logging
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import httpx
from redis.exceptions import RedisError

from broker.background import Loop
from broker.leases import Record
from broker.outbox import BATCH, Outbox
from broker.request_store import RequestStore
from config.settings import WebhookSettings
from gateway.jobs.answers import job_of
from gateway.webhooks.delivery import (
    ForbiddenAddress,
    check_addresses,
    checked_url,
    owners_secret,
    retry_delay_s,
    signed_headers,
)
from gateway.webhooks.queue import DEFAULT_LIMITS, DueWebhook, Limits, WebhookQueue
from schemas.wire import UndecodableMessage

log = logging.getLogger(__name__)

#: Seconds between looks for due webhooks.
LOOK_S = 1.0
#: The most seconds until a webhook for which there was no room is due again. Chosen at random, to spread them.
PUT_OFF_S = 60.0


class NotDelivered(Exception):
    """The receiver did not accept the webhook."""


class WebhookSender:
    """Sends on threads of its own. `secret` is the deployment's; `clock` gives seconds since the epoch."""

    def __init__(
        self,
        outbox: Outbox,
        store: RequestStore,
        settings: WebhookSettings,
        secret: str,
        clock: Callable[[], float],
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._outbox = outbox
        self._store = store
        self._settings = settings
        self._secret = secret
        self._clock = clock
        self._queue = WebhookQueue(limits)
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(limits.in_flight, thread_name_prefix="webhook")
        #: Calls `step`.
        self.loop = Loop("webhook-sender", self._look, every_s=LOOK_S)

    def step(self) -> int:
        """Start calls for due webhooks, and put off those without room. Returns the number of due webhooks.

        Waits for no receiver. Raises Redis's errors.
        """
        with self._changed:
            put_off = self._queue.take_expired(time.monotonic())
        num_taken = 0
        while self._queue.has_room:
            due = self._outbox.take()
            num_taken += len(due)
            with self._changed:
                put_off += [webhook for webhook in due if not self._queue.put(webhook, time.monotonic())]
            self._start_calls()
            if len(due) < BATCH:
                break
        self._outbox.try_again({webhook.request_id: random.uniform(1.0, PUT_OFF_S) for webhook in put_off})  # noqa: S311 - no secret
        return num_taken

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Block until no call is in flight. False after the time-out."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue.num_in_flight, timeout_s)

    def _look(self) -> None:
        self.step()  # its result is dropped: a loop would take it for seconds to wait

    def _start_calls(self) -> None:
        """Start every call that the limits allow."""
        while not self.loop.closing.is_set():
            with self._changed:
                due = self._queue.start_next()
            if due is None:
                return
            self._pool.submit(self._call, due)

    def _call(self, due: DueWebhook) -> None:
        try:
            self._send(due.request_id)
        except RedisError as error:
            log.warning("redis_away error=%s", error)  # it is due again when its claim has lapsed
        finally:
            with self._changed:
                self._queue.ended(due)
            self._start_calls()
            with self._changed:
                self._changed.notify_all()

    def _send(self, request_id: str) -> None:
        try:
            record = self._store.read(request_id)
            if record is None or record.request.webhook is None:
                self._expired(request_id)
                return
            self._deliver(record, record.request.webhook)
        except RedisError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever one receiver does, the others' webhooks go on
            self._put_back(request_id, error)
        else:
            self._outbox.done(request_id)
            self._store.count("webhooks_delivered")

    def _put_back(self, request_id: str, error: Exception) -> None:
        is_lasting = isinstance(error, ForbiddenAddress | UndecodableMessage)
        num_tries = 0 if is_lasting else self._outbox.count_try(request_id)
        if not is_lasting and not num_tries:
            self._expired(request_id)
            return
        delay_s = None if is_lasting else retry_delay_s(num_tries)
        log.warning("webhook_not_delivered request_id=%s again_in_s=%s error=%s", request_id, delay_s, error)
        if delay_s is not None:
            self._outbox.try_again({request_id: delay_s})
            return
        self._outbox.done(request_id)
        self._store.count("webhooks_given_up")

    def _expired(self, request_id: str) -> None:
        """The result has expired, so that there is nothing to send."""
        self._outbox.done(request_id)
        self._store.count("webhooks_expired")

    def _deliver(self, record: Record, url: str) -> None:
        """Raises `ForbiddenAddress`, `NotDelivered`, or an error of the network."""
        target = checked_url(url, allow_http=self._settings.allow_http)
        now_s = int(self._clock())
        message = {
            "type": "job.finished",
            "timestamp": datetime.fromtimestamp(now_s, UTC).isoformat(),
            "data": job_of(record).model_dump(mode="json"),
        }
        body = json.dumps(message).encode()
        secret = owners_secret(self._secret, record.owner)
        headers = {"Content-Type": "application/json", **signed_headers(secret, record.request_id, now_s, body)}
        self._post(target, body, headers)

    def _post(self, url: httpx.URL, body: bytes, headers: dict[str, str]) -> None:
        host = url.raw_host.decode()
        # To the address that was checked, whatever the name resolves to by now. The certificate must be the name's.
        target = url.copy_with(host=self._address(host, url.port or (443 if url.scheme == "https" else 80)))
        with httpx.Client(trust_env=False, follow_redirects=False, timeout=self._settings.timeout_s) as client:
            # The time-out counts for each read; this timer also ends a receiver that answers byte by byte.
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
                response = client.send(request, stream=True)  # the body is not read
                response.close()
            finally:
                guard.cancel()
        if not response.is_success:
            raise NotDelivered(f"the receiver answered {response.status_code}")

    def _address(self, host: str, port: int) -> str:
        resolved = [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        return resolved[0] if self._settings.allow_private_addresses else check_addresses(host, resolved)
