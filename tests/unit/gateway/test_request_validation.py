import pytest
from pydantic import ValidationError

from config.settings import InvalidSettings, Settings, read_settings
from gateway.jobs.request_validation import Admission, Refused
from schemas.owners import Owner
from schemas.policy import Tier
from schemas.requests import (
    ANONYMOUS,
    EVERYBODYS_NAMESPACE,
    AcceptanceMode,
    AcceptanceRule,
    AcceptedRequest,
    ConfidenceRule,
    JobRequest,
    Pooling,
    owners_namespace,
)

#: The design's table: tiers, confidence decides, draft verified, caches on.
ROWS = {
    "baseline": (("edge", "cloud"), True, True, True),
    "no_confidence": (("edge", "cloud"), False, True, True),
    "no_draft_verify": (("edge", "cloud"), True, False, True),
    "no_kv_cache": (("edge", "cloud"), True, True, False),
    "edge_only": (("edge",), False, False, True),
    "cloud_only": (("cloud",), False, False, True),
}


@pytest.fixture
def settings() -> Settings:
    return read_settings(redis={"url": None})


def accept(settings, **body):
    return Admission(settings).accept(JobRequest(prompt="hello", **body), "r1", 12.5)


@pytest.mark.parametrize("name", list(ROWS))
def test_each_policy_is_as_in_the_designs_table(settings, name):
    policy = accept(settings, policy=name).policy
    assert (policy.tiers, policy.confidence_decides, policy.verify_draft, policy.kv_caches) == ROWS[name]
    assert policy.name == name


def test_the_designs_table_has_all_policies(settings):
    assert set(Admission(settings).policies) == set(ROWS)


@pytest.mark.parametrize("grammar", ["root ::= (", 'start: "lark"', "root ::= " + "(" * 32_700])
def test_what_is_no_grammar_is_refused_before_it_is_stored(settings, grammar):
    with pytest.raises(Refused, match="the grammar is no GBNF") as refusal:
        accept(settings, grammar=grammar)
    assert refusal.value.field == "grammar"


def test_a_request_that_leaves_everything_out_gets_the_settings(settings):
    request = accept(settings)
    confidence = settings.edge.confidence
    assert request.policy.name == settings.requests.policy
    assert request.confidence == ConfidenceRule(
        strategy=confidence.strategy,
        threshold=confidence.threshold,
        weights=confidence.weights,
        pooling=Pooling(confidence.pooling),
        quantile=confidence.quantile,
    )
    verifier = settings.cloud.draft_verifier
    assert request.acceptance == AcceptanceRule(mode=verifier.mode, threshold=verifier.acceptance_threshold)
    assert (request.request_id, request.accepted_at_s) == ("r1", 12.5)


def test_a_request_may_change_one_part_of_the_rule_and_keeps_the_rest(settings):
    default = accept(settings).confidence
    changed = accept(settings, confidence={"threshold": 0.91}).confidence
    assert changed == default.model_copy(update={"threshold": 0.91, "stated": ("threshold",)})


def test_a_request_may_change_every_part_of_the_rules(settings):
    request = accept(
        settings,
        policy="no_confidence",
        confidence={
            "strategy": "margin",
            "threshold": 0.0,
            "weights": {"entropy": 2.0},
            "pooling": "quantile",
            "quantile": 0.25,
        },
        acceptance={"mode": "threshold", "threshold": 0.0},
    )
    assert request.confidence == ConfidenceRule(
        strategy="margin",
        threshold=0.0,
        weights={"entropy": 2.0},
        pooling=Pooling.QUANTILE,
        quantile=0.25,
        stated=("strategy", "threshold", "weights", "pooling", "quantile"),
    )
    assert request.acceptance == AcceptanceRule(mode=AcceptanceMode.THRESHOLD, threshold=0.0)
    assert request.policy.name == "no_confidence"


@pytest.mark.parametrize("strategy", ["max_prob", "entropy", "temperature", "top_k_agg", "margin", "ensemble"])
def test_every_strategy_of_the_design_is_accepted(settings, strategy):
    assert accept(settings, confidence={"strategy": strategy}).confidence.strategy == strategy


@pytest.mark.parametrize(
    ("body", "field", "value", "reason"),
    [
        ({"policy": "bold"}, "policy", "bold", "baseline"),
        ({"confidence": {"strategy": "hunch"}}, "confidence.strategy", "hunch", "max_prob"),
        ({"confidence": {"weights": {"hunch": 1}}}, "confidence.weights", "hunch", "margin"),
        ({"confidence": {"weights": {"margin:best": 1}}}, "confidence.weights", "margin:best", "minimum"),
        ({"confidence": {"weights": {"ensemble": 1}}}, "confidence.weights", "ensemble", "without ensemble"),
        ({"confidence": {"weights": {"margin": 0}}}, "confidence.weights", {"margin": 0.0}, "above 0"),
    ],
)
def test_what_is_not_there_is_refused_with_its_field_its_value_and_what_there_is(settings, body, field, value, reason):
    with pytest.raises(Refused) as refusal:
        accept(settings, **body)
    assert (refusal.value.field, refusal.value.value) == (field, value)
    assert reason in refusal.value.reason
    assert repr(value) in str(refusal.value)


def test_without_confidence_no_draft_is_trusted():
    settings = read_settings(edge={"confidence": {"enabled": False}})
    assert not accept(settings, policy="baseline").policy.confidence_decides


def test_without_a_verifier_the_cloud_writes_from_nothing():
    settings = read_settings(cloud={"draft_verifier": {"enabled": False}})
    assert not any(policy.verify_draft for policy in Admission(settings).policies.values())
    assert accept(settings, policy="baseline").policy.confidence_decides


@pytest.mark.parametrize(
    ("confidence", "named"),
    [
        ({"strategy": "hunch"}, r"edge\.confidence\.strategy.*hunch"),
        ({"weights": {"hunch": 1}}, r"edge\.confidence\.weights.*hunch"),
    ],
)
def test_settings_that_name_what_is_not_there_stop_the_start(confidence, named):
    with pytest.raises(ValueError, match=named):
        Admission(read_settings(edge={"confidence": confidence}))


def test_a_configured_policy_that_is_impossible_stops_the_start():
    mine = {
        "description": "",
        "tiers": ["edge"],
        "confidence_decides": True,
        "verify_draft": False,
        "kv_caches": True,
    }
    with pytest.raises((ValueError, InvalidSettings), match="mine"):
        Admission(read_settings(policies={"mine": mine}))


@pytest.mark.parametrize(
    ("sharing", "owner", "namespace"),
    [
        ("owner", {"name": "alice"}, "owner:alice"),
        ("owner", {"name": "alice", "cache_group": "team"}, "group:team"),
        ("owner", {"name": "team"}, "owner:team"),
        ("owner", {"name": ANONYMOUS}, owners_namespace(ANONYMOUS)),
        ("all", {"name": "alice", "cache_group": "team"}, EVERYBODYS_NAMESPACE),
    ],
)
def test_whose_cached_prefixes_a_request_shares_is_the_settings_and_the_keys_to_say(sharing, owner, namespace):
    settings = read_settings(requests={"cache_sharing": sharing})
    request = Admission(settings).accept(JobRequest(prompt="hello"), "r1", 12.5, Owner(**owner))
    assert request.cache_namespace == namespace


def test_a_record_from_before_there_were_namespaces_is_its_owners_own(settings):
    old = accept(settings).model_copy(update={"owner": "alice"}).model_dump(exclude={"cache_namespace"})
    assert AcceptedRequest.model_validate(old).cache_namespace == "owner:alice"


def test_no_name_of_an_owner_or_a_group_is_anothers_namespace():
    for name in ("owner:alice", "group:team", "a b", ""):
        with pytest.raises(ValidationError):
            Owner(name=name)
        with pytest.raises(ValidationError):
            Owner(name="alice", cache_group=name)


def test_the_request_keeps_its_own_policy_when_the_default_is_another():
    settings = read_settings(requests={"policy": "edge_only"})
    assert Admission(settings).default_policy.tiers == (Tier.EDGE,)
    assert accept(settings, policy="cloud_only").policy.tiers == (Tier.CLOUD,)
