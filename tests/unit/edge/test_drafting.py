"""How often a draft is assessed, and what becomes of one that cannot be."""

from concurrent.futures import Future

import pytest
from redis.exceptions import ConnectionError as RedisAway

from broker.leases import Lease, LeasedRequest
from schemas.policy import Tier
from schemas.requests import ConfidenceRule
from schemas.results import FailureKind
from tests.own_strategies import own_strategies
from tests.samples import a_draft, a_request
from workers.edge.drafting import Drafting, Quality
from workers.runtime.failures import RequestRefused


class MemoryStore:
    """Keeps what is committed. The first `num_away` commits meet a Redis that is away."""

    def __init__(self, num_away=0):
        self.num_away, self.committed = num_away, []

    def _commit(self, outcome, value):
        if self.num_away:
            self.num_away -= 1
            raise RedisAway
        self.committed.append((outcome, value))
        return True

    def succeed(self, _lease, result, _events):
        return self._commit("succeeded", result)

    def escalate(self, _lease, draft, _events, _route):
        return self._commit("escalated", draft)


class FinishedEngine:
    """Has written every draft as soon as it is asked for."""

    model_name = "small"

    def submit(self, _order, _listener):
        drafted = Future()
        drafted.set_result(a_draft())
        return drafted


class NoEvents:
    def publish(self, _lease, _event):
        """Nobody listens."""

    def unpublished(self, _lease):
        return []


class NoCalibrations:
    def find(self, _edge_model, _strategy, _traffic_class):
        return None


class NoRouting:
    def route(self, _request, _tier):
        return None


@pytest.fixture
def calls(tmp_path):
    with own_strategies(tmp_path) as calls:
        yield calls


def concluded(store, strategy):
    """What the draft's conclusion is: how to commit it."""
    drafting = Drafting(
        FinishedEngine(),
        store,
        NoEvents(),
        NoRouting(),
        served=lambda *_: None,
        quality=Quality(NoCalibrations(), None, 0.02, lambda: 1.0),
        early_escalation=True,
    )
    rule = ConfidenceRule(strategy=strategy, threshold=0.2)
    request = a_request().model_copy(update={"confidence": rule})
    taken = LeasedRequest(Lease("r", Tier.EDGE, 1, "w"), request, None, 1.0, 0.1, 0.0, 0.0, 60.0)
    return drafting.conclude(taken, drafting.submit(taken).result(0), 0.5)


@pytest.mark.parametrize("num_away", [0, 2])
def test_a_draft_is_assessed_once_however_often_its_commit_is_tried(calls, num_away):
    store = MemoryStore(num_away)
    commit = concluded(store, "counted")
    for _ in range(num_away):
        with pytest.raises(RedisAway):
            commit()
    assert commit()
    ((outcome, result),) = store.committed
    assert (outcome, result.confidence.value) == ("succeeded", 0.25)
    assert calls.read_text() == "called\n"


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("strategy", ["broken", "missing", "wordy"])
def test_a_draft_that_cannot_be_assessed_fails_its_request_with_the_reason(strategy):
    with pytest.raises(RequestRefused, match=f"^confidence strategy '{strategy}' failed: ") as failed:
        concluded(MemoryStore(), strategy)
    assert failed.value.kind == FailureKind.ENGINE_ERROR


@pytest.mark.usefixtures("calls")
def test_an_unsure_draft_escalates_with_its_assessment():
    store = MemoryStore()
    assert concluded(store, "cautious")()
    ((outcome, draft),) = store.committed
    assert (outcome, draft.confidence.value, draft.confidence.sure) == ("escalated", 0.125, False)
