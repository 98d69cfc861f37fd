"""From a body to a stored request: what every route that takes prompts does."""

import hashlib
import logging
import uuid

from broker.idempotency import Idempotency
from broker.load import Overload, overload
from gateway.admission import Refused
from gateway.authentication import asking_owner
from gateway.services import Services
from schemas.owners import NOBODY, Owner
from schemas.requests import AcceptedRequest, JobRequest

log = logging.getLogger(__name__)


class Overloaded(Exception):
    """There is no room for the request now."""

    def __init__(self, overload: Overload) -> None:
        whose = "Your" if overload.is_owners else "All"
        super().__init__(f"{whose} unfinished jobs reach backpressure.{overload.limit}.")
        self.overload = overload


def submit(
    services: Services,
    body: JobRequest,
    *,
    owner: Owner | None = None,
    request_id: str | None = None,
    note: str = "",
    key: Idempotency | None = None,
) -> AcceptedRequest:
    """Accept the request, store it and put its job on a queue.

    Raises `Refused`, `Overloaded`, `IdempotencyConflict`, `NotOnDisk` or Redis's own error; then nothing was accepted.
    `owner`: who asks, if None. `request_id`: a new one if None; one that was stored before is left as it is. `note`:
    see `AcceptedRequest.note`. `key`: where it stands for an earlier request, that one's id is answered.

    The load is looked at before the request is stored: it may pass a limit by as many as are submitted at one moment.
    """
    store = services.store
    owner = owner or asking_owner() or NOBODY
    accepted = services.admission.accept(body, request_id or uuid.uuid4().hex, services.clock(), owner)
    if note:
        accepted = accepted.model_copy(update={"note": note})
    if key is not None and (earlier := store.idempotent(key)):
        return accepted.model_copy(update={"request_id": earlier})
    if culprit := store.quarantined(accepted):
        reason = f"it is quarantined: a worker that did nothing else ended on it, in your job {culprit}"
        raise Refused("messages", "a prompt that was tried before", reason)
    full = overload(store.load(owner.name), accepted.num_tokens_at_most, services.backpressure)
    if full is not None:
        raise Overloaded(full)
    stored = store.create(accepted, key, services.router.route(accepted, accepted.policy.first_tier))
    log.info("request_accepted request_id=%s policy=%s", stored, accepted.policy.name)
    return accepted.model_copy(update={"request_id": stored})


def idempotency(key: str, body: JobRequest) -> Idempotency:
    """What the key of who asks stands for: the body, whatever its spelling."""
    owner = asking_owner() or NOBODY
    return Idempotency(owner.name, key, hashlib.sha256(body.model_dump_json().encode()).hexdigest())
