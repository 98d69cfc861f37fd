"""From a body to a stored request, for every route that takes prompts."""

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from broker.backpressure import Overload, overload
from broker.idempotency import Idempotency
from gateway.http.authentication import asking_owner
from gateway.jobs.request_validation import Refused
from gateway.services import Services
from schemas.owners import NOBODY, Owner
from schemas.requests import AcceptedRequest, JobRequest

log = logging.getLogger(__name__)


class Overloaded(Exception):
    """The request would exceed a limit on unfinished work now."""

    def __init__(self, overload: Overload) -> None:
        jobs = "Your unfinished jobs" if overload.is_owners else "All unfinished jobs"
        super().__init__(f"{jobs} reach backpressure.{overload.limit}.")
        self.overload = overload


class ResultExpired(Exception):
    """An `Idempotency-Key` maps to a request whose result has expired. Nothing was submitted."""


@dataclass(frozen=True)
class Submitted:
    """Stored requests, in the order of their bodies."""

    requests: Sequence[AcceptedRequest]
    #: Whether they came with an `Idempotency-Key`, so that the client may submit them again.
    keyed: bool = False
    #: Whether they were submitted earlier with the same key; they may have finished.
    replayed: bool = False


def submit(
    services: Services,
    body: JobRequest,
    *,
    owner: Owner | None = None,
    request_id: str | None = None,
    note: str = "",
    key: Idempotency | None = None,
) -> AcceptedRequest:
    """As `submit_all`, for one body."""
    return submit_all(services, [body], owner=owner, request_ids=[request_id], note=note, key=key).requests[0]


def submit_all(
    services: Services,
    bodies: Sequence[JobRequest],
    *,
    owner: Owner | None = None,
    request_ids: Sequence[str | None] = (),
    note: str = "",
    key: Idempotency | None = None,
) -> Submitted:
    """Accept the requests and queue them for a worker, all or none. Three round trips to Redis.

    Raises `Refused`, `Overloaded`, `IdempotencyConflict`, `ResultExpired`, `NotOnDisk` or Redis's own error; then
    nothing was accepted. `owner`: if None, that of the HTTP request. `request_ids`: new ids where None; an id that is
    stored already is left unchanged. `note`: see `AcceptedRequest.note`. `key`: if it maps to earlier requests, those
    are returned.

    Limits are checked before the requests are stored, so that requests submitted at the same moment may exceed them.
    """
    store = services.store
    owner = owner or asking_owner() or NOBODY
    ids = _ids(len(bodies), request_ids)
    try:
        accepted = [_accepted(services, body, new_id, owner, note) for body, new_id in zip(bodies, ids, strict=True)]
    except Refused:  # earlier, under other settings, the same body may have been accepted
        if (earlier := submitted_before(services, key, len(bodies))) is not None:
            return earlier
        raise
    tier = accepted[0].policy.first_tier
    survey = store.survey(accepted, tier, services.router.to_survey(tier), key)
    if survey.earlier is not None:
        return _replayed(services, survey.earlier, len(bodies))
    for culprit in filter(None, survey.quarantined):
        reason = f"it is quarantined: it ended a worker that ran nothing else, in your job {culprit}"
        raise Refused("messages", "a prompt that was tried before", reason)
    num_tokens = sum(request.num_tokens_at_most for request in accepted)
    full = overload(survey.load, num_tokens, services.backpressure, num_requests=len(accepted))
    if full is not None:
        raise Overloaded(full)
    routed = [
        (request, services.router.route(request, request.policy.first_tier, survey.workers)) for request in accepted
    ]
    stored = store.create_all(routed, key)
    if stored != ids[0]:
        return _replayed(services, stored, len(bodies))
    for request in accepted:
        log.info("request_accepted request_id=%s policy=%s", request.request_id, request.policy.name)
    return Submitted(accepted, keyed=key is not None)


def submitted_before(services: Services, key: Idempotency | None, num: int) -> Submitted | None:
    """The `num` requests of one body to which the key maps; None if the key is new.

    Raises `IdempotencyConflict`, `ResultExpired` or `NotOnDisk`.
    """
    first_id = None if key is None else services.store.idempotent(key)
    return None if first_id is None else _replayed(services, first_id, num)


def _replayed(services: Services, first_id: str, num: int) -> Submitted:
    records = [services.store.read(request_id) for request_id in _siblings(first_id, num)]
    requests = [record.request for record in records if record is not None]
    if len(requests) < num:
        raise ResultExpired(f"The Idempotency-Key maps to job {first_id!r}, whose result has expired.")
    log.info("request_replayed request_id=%s", first_id)
    return Submitted(requests, keyed=True, replayed=True)


def _accepted(services: Services, body: JobRequest, request_id: str, owner: Owner, note: str) -> AcceptedRequest:
    accepted = services.admission.accept(body, request_id, services.clock(), owner)
    return accepted.model_copy(update={"note": note}) if note else accepted


def _ids(num: int, chosen: Sequence[str | None]) -> list[str]:
    """The chosen ids, or new ones where None."""
    new = _siblings(uuid.uuid4().hex, num)
    return [given or made for given, made in zip(chosen or [None] * num, new, strict=True)]


def _siblings(first_id: str, num: int) -> list[str]:
    """The ids of the `num` requests of one body, all of which derive from the first."""
    return [first_id, *(uuid.uuid5(uuid.NAMESPACE_URL, f"{first_id}/{index}").hex for index in range(1, num))]
