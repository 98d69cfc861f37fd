"""An audit: a draft that was kept and that the cloud verifies afterwards, for its label alone."""

from schemas.drafts import Draft
from schemas.message import Wire
from schemas.requests import Message, Probability, Sampling


class Audit(Wire):
    """What the cloud needs to verify a kept draft. Deleted once it has, or with the request."""

    request_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    cache_namespace: str
    #: With the confidence report that it was kept for.
    draft: Draft
    #: The probability with which this draft was drawn.
    drawn: Probability
