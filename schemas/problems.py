"""Errors of the HTTP API: problem documents (RFC 9457)."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class FieldProblem(BaseModel):
    """One field at fault."""

    field: str
    #: The value that was given, cut if it is long.
    value: Any = None
    reason: str


class Problem(BaseModel):
    """A problem document. Readers must expect members that are not listed here."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    #: The fields at fault, where there are any.
    errors: tuple[FieldProblem, ...] | None = None
