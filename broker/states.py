"""The life cycle of a request: its states, the transitions between them, and each tier's states. Pure data.

    queued ──> drafting ──> succeeded
                  │
                  └──> escalated ──> verifying ──> succeeded

From every unfinished state a request may fail or be cancelled, and a request that a worker has may be requeued.
A request whose policy has no edge tier starts as `escalated`.
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
    #: A cloud worker verifies the draft, or writes the answer without one if the policy says so.
    VERIFYING = "verifying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINISHED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

#: A request's state while it waits for a worker of each tier, and while such a worker has it.
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
    """A programming error: a change of state that is not in `TRANSITIONS`."""


def check(before: State, after: State) -> None:
    """Raise `ImpossibleTransition` unless `after` may follow `before`."""
    if after not in TRANSITIONS[before]:
        raise ImpossibleTransition(f"a request that is {before} cannot become {after}")
