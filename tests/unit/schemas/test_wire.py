from datetime import UTC, datetime

import hypothesis.strategies as st
import msgpack
import pytest
from hypothesis import given, settings

from schemas import calibration, drafts, drift, events, jobs, policy, requests, results, wire, workers
from schemas.drafts import Draft, TokenFigures
from schemas.events import FINAL_KINDS, EventKind, event_adapter
from schemas.policy import Policy, Tier
from schemas.requests import AcceptedRequest, Message, Sampling
from schemas.wire import UndecodableMessage, Wire

FINITE = st.floats(allow_nan=False)
SHARE = st.floats(0.0, 1.0)
PRICE = st.floats(0.0, 1e9)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FINITE_PLAIN = PLAIN.filter(lambda value: "inf" not in repr(value))


@st.composite
def figures(draw: st.DrawFn) -> TokenFigures:
    size = draw(st.integers(0, 8))
    column = st.lists(SHARE, min_size=size, max_size=size).map(tuple)
    return TokenFigures(**{name: draw(column) for name in TokenFigures.model_fields})


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    tiers = draw(st.permutations(list(Tier)).map(tuple) | st.sampled_from([(Tier.EDGE,), (Tier.CLOUD,)]))
    flag = st.booleans() if len(tiers) == 2 else st.just(False)
    return Policy(
        name=draw(st.text()),
        tiers=tiers,
        confidence_decides=draw(flag),
        verify_draft=draw(flag),
        kv_caches=draw(st.booleans()),
    )


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    grammar = draw(st.none() | st.text(min_size=1))
    schema = None if grammar else draw(st.none() | st.dictionaries(st.text(), FINITE_PLAIN, max_size=3))
    logprobs = draw(st.booleans())
    return Sampling(
        max_tokens=draw(st.integers(1, 32_768)),
        temperature=draw(st.floats(0.0, 2.0)),
        seed=draw(st.none() | st.integers(0, 2**31 - 1)),
        stop=tuple(draw(st.lists(st.text(min_size=1, max_size=256), max_size=16))),
        logit_bias=draw(st.dictionaries(st.integers(0, 2**31 - 1), st.floats(-100.0, 100.0), max_size=5)),
        logprobs=logprobs,
        top_logprobs=draw(st.integers(0, 20)) if logprobs else 0,
        grammar=grammar,
        json_schema=schema,
    )


st.register_type_strategy(TokenFigures, figures())
st.register_type_strategy(Policy, policies())
st.register_type_strategy(Sampling, samplings())
st.register_type_strategy(float, FINITE)

#: As many as a token has.
BYTES = st.binary(max_size=8).map(tuple)
RIVALS = st.builds(results.RivalLogprob, bytes=BYTES)

WITH_RULES = {
    results.RivalLogprob: RIVALS,
    results.TokenLogprob: st.builds(results.TokenLogprob, bytes=BYTES, top=st.lists(RIVALS, max_size=3).map(tuple)),
    Message: st.builds(Message, content=st.text(min_size=1)),
    requests.ConfidenceRule: st.builds(
        requests.ConfidenceRule,
        strategy=st.text(min_size=1),
        threshold=SHARE,
        weights=st.dictionaries(st.text(), st.floats(0.0, 1e6), max_size=4),
        quantile=st.floats(0.0, 1.0, exclude_min=True, exclude_max=True),
    ),
    calibration.Calibrator: st.builds(
        calibration.Calibrator,
        kind=st.just(calibration.CalibratorKind.LOGISTIC),
        slope=st.floats(0.0, 1e6),
        labels=st.integers(0, 2**31),
    ),
    calibration.Label: st.builds(
        calibration.Label, score=SHARE, worth=SHARE, drawn=st.floats(0.0, 1.0, exclude_min=True)
    ),
    calibration.Prices: st.builds(
        calibration.Prices, edge=PRICE, cloud=PRICE, worse=PRICE, per=st.sampled_from(["token", "second"])
    ),
    calibration.Goal: st.builds(
        calibration.Goal,
        max_risk=st.none() | SHARE,
        certainty=st.floats(0.0, 1.0, exclude_min=True, exclude_max=True),
        cloud_share=st.none() | SHARE,
    ),
    calibration.Scope: st.builds(calibration.Scope, traffic_class=st.none() | st.just("code")),
    calibration.Calibration: st.builds(
        calibration.Calibration,
        version=st.integers(0, 2**31),
        weights=st.dictionaries(st.text(), st.floats(0.0, 1e6), max_size=4),
        quantile=st.floats(0.0, 1.0, exclude_min=True, exclude_max=True),
    ),
    drift.DriftState: st.builds(drift.DriftState, audit_share=SHARE, burst_left=st.integers(0, 9)),
    requests.AcceptanceRule: st.builds(requests.AcceptanceRule, threshold=SHARE),
    AcceptedRequest: st.builds(
        AcceptedRequest,
        deadline_s=st.floats(0.0, 1e9, exclude_min=True),
        # The default is made of the owner, which hypothesis cannot see.
        cache_namespace=st.text(min_size=1),
        **dict.fromkeys(("owner", "note", "weight", "webhook"), ...),
    ),
    results.Failure: st.builds(results.Failure, message=st.text(min_size=1)),
    Draft: st.builds(Draft, prompt_tokens=st.integers(1), cached_tokens=st.integers(0)),
}
for kind, strategy in WITH_RULES.items():
    st.register_type_strategy(kind, strategy)


def _messages() -> list[type[Wire]]:
    modules = (calibration, drafts, drift, events, jobs, policy, requests, results, workers)
    found = {
        item
        for module in modules
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Wire) and item is not Wire
    }
    return sorted(found - {requests.JobRequest}, key=lambda item: item.__name__)


def _fits_msgpack(message: Wire) -> bool:
    """Counts of a strategy may be beyond what any counter reaches."""
    try:
        wire.encode(message)
    except OverflowError:
        return False
    return True


@pytest.mark.parametrize("expected", _messages(), ids=lambda item: item.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_every_message_is_the_same_after_its_way_over_the_wire(expected: type[Wire], data: st.DataObject):
    message = data.draw(st.from_type(expected).filter(_fits_msgpack))
    assert wire.decode(expected, wire.encode(message)) == message


@pytest.mark.parametrize("expected", _messages(), ids=lambda item: item.__name__)
@settings(max_examples=25)
@given(raw=st.binary() | PLAIN.map(msgpack.packb))
def test_bytes_that_are_no_message_are_undecodable_and_nothing_else(expected: type[Wire], raw: bytes):
    outcome = _decoded_or_refused(expected, raw)
    if isinstance(outcome, UndecodableMessage):
        assert (outcome.raw, outcome.expected) == (raw, expected.__name__)
    else:
        assert isinstance(outcome, expected)


def _decoded_or_refused(expected: type[Wire], raw: bytes) -> Wire | UndecodableMessage:
    try:
        return wire.decode(expected, raw)
    except UndecodableMessage as refusal:
        return refusal


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xc1", b"\x81\x90\x01", b"\x91" * 5000, b"\xdf\xff\xff\xff\xff", b"\x80\x80", b"\x80\x04\x95", b"\xa1\xff"],
    ids=["empty", "reserved", "list as a key", "too deep", "too long", "two values", "a pickle", "no UTF-8"],
)
def test_broken_msgpack_is_undecodable_and_keeps_its_bytes(raw: bytes):
    with pytest.raises(UndecodableMessage) as refusal:
        wire.decode(AcceptedRequest, raw)
    assert refusal.value.raw == raw


def test_a_field_of_another_version_is_refused():
    with pytest.raises(UndecodableMessage, match="colour"):
        wire.decode(Message, msgpack.packb({"role": "user", "content": "hello", "colour": "blue"}))


def test_what_could_not_be_decoded_is_not_repeated_in_the_error():
    raw = msgpack.packb({"role": "nobody", "content": "a secret prompt"})
    with pytest.raises(UndecodableMessage) as refusal:
        wire.decode(Message, raw)
    assert "secret" not in f"{refusal.value} {refusal.value.__cause__}"


def test_an_impossible_token_keeps_its_infinite_logprob():
    message = results.TokenLogprob(token="a", bytes=(97,), token_id=1, logprob=float("-inf"))
    assert wire.decode(results.TokenLogprob, wire.encode(message)) == message


def test_messages_do_not_change():
    message = Message(role="user", content="hello")
    with pytest.raises(ValueError, match="frozen"):
        message.content = "good-bye"


def test_figures_are_a_table():
    with pytest.raises(ValueError, match="differ in length"):
        TokenFigures(probability=(0.5,), margin=(0.1, 0.2))


@pytest.mark.parametrize("kind", list(EventKind))
def test_every_kind_of_event_is_told_apart_by_its_type(kind: EventKind):
    classes = {item.model_fields["type"].default: item for item in _messages() if "type" in item.model_fields}
    assert set(classes) == set(EventKind)
    with pytest.raises(ValueError, match=kind):
        event_adapter.validate_python({"type": kind, "neither": "this"})


def test_nothing_follows_an_outcome():
    assert {EventKind.DONE, EventKind.FAILED, EventKind.CANCELLED} == FINAL_KINDS


@pytest.mark.parametrize("raw", [b"", b"a", b"\xf0\x9f", b"\x00\xff"])
def test_a_part_of_a_character_keeps_its_bytes(raw: bytes):
    message = results.TokenLogprob(
        token=raw.decode(errors="replace"),
        bytes=tuple(raw),
        token_id=1,
        logprob=-0.5,
        top=(results.RivalLogprob(token="", bytes=tuple(raw), token_id=2, logprob=-1.0),),
    )
    decoded = wire.decode(results.TokenLogprob, wire.encode(message))
    assert (bytes(decoded.bytes), bytes(decoded.top[0].bytes)) == (raw, raw)


def test_a_time_is_no_plain_value():
    with pytest.raises(ValueError, match="datetime"):
        Sampling(json_schema={"since": datetime(2026, 1, 1, tzinfo=UTC)})
