"""The life cycle of a request: its states, which follow which, and what each tier may take up. Pure data.

    queued ──> drafting ──> succeeded
                  │
                  └──> escalated ──> verifying ──> succeeded

From every unfinished state a request may fail or be cancelled, and what a worker holds may go back to waiting.
A request that no edge may answer starts as `escalated`.
"""

from enum import StrEnum

from schemas.policy import Tier


class State(StrEnum):
    """Where a request is. Also the `status` that the HTTP API shows."""

    #: Waits for an edge worker.
    QUEUED = "queued"
    #: An edge worker writes the draft.
    DRAFTING = "drafting"
    #: Waits for a cloud worker.
    ESCALATED = "escalated"
    #: A cloud worker verifies the draft, or writes its own answer where the policy says so.
    VERIFYING = "verifying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINISHED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

#: What a request waits in for each tier, and what it is in while that tier has it.
WAITING = {Tier.EDGE: State.QUEUED, Tier.CLOUD: State.ESCALATED}
WORKING = {Tier.EDGE: State.DRAFTING, Tier.CLOUD: State.VERIFYING}

TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.DRAFTING, State.FAILED, State.CANCELLED}),
    State.DRAFTING: frozenset({State.SUCCEEDED, State.ESCALATED, State.QUEUED, State.FAILED, State.CANCELLED}),
    State.ESCALATED: frozenset({State.VERIFYING, State.FAILED, State.CANCELLED}),
    State.VERIFYING: frozenset({State.SUCCEEDED, State.ESCALATED, State.FAILED, State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


class ImpossibleTransition(Exception):
    """A programming error: code asked for a change of state that no request may make."""


def check(before: State, after: State) -> None:
    """Raise `ImpossibleTransition` unless `after` may follow `before`."""
    if after not in TRANSITIONS[before]:
        raise ImpossibleTransition(f"a request that is {before} cannot become {after}")
