"""Why a worker cannot answer a request, as exceptions inside a worker. Other processes get a `Failure` instead.

RequestRefused            the request can never succeed here; it fails for good, with `kind` and message
  BeyondModel             this tier's model cannot honour an option; another tier's may
RequestCancelled          the answer is no longer wanted; nothing is published
EngineDied                the engine cannot go on; the worker ends, and other workers take over its requests
"""

from schemas.results import FailureKind


class RequestRefused(Exception):
    """The model can never answer the request."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class BeyondModel(RequestRefused):
    """An option that this tier's model or engine cannot honour; the message names it."""

    def __init__(self, message: str) -> None:
        super().__init__(FailureKind.UNSUPPORTED_OPTION, message)


class RequestCancelled(Exception):
    """The request was cancelled while an engine worked on it."""


class EngineDied(Exception):
    """The engine can no longer serve any request."""
