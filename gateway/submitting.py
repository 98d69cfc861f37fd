"""From a body to a stored request: what every route that takes prompts does."""

import logging
import uuid

from gateway.services import Services
from schemas.requests import AcceptedRequest, JobRequest

log = logging.getLogger(__name__)


def submit(services: Services, body: JobRequest, *, request_id: str | None = None, note: str = "") -> AcceptedRequest:
    """Accept the request, store it and put its job on a queue. Raises `Refused`.

    `request_id`: a new one if None; one that was stored before is left as it is. `note`: see `AcceptedRequest.note`.
    """
    accepted = services.admission.accept(body, request_id or uuid.uuid4().hex, services.clock())
    if note:
        accepted = accepted.model_copy(update={"note": note})
    services.store.create(accepted, services.router.route(accepted, accepted.policy.first_tier))
    log.info("request_accepted request_id=%s policy=%s", accepted.request_id, accepted.policy.name)
    return accepted
