import pickle
from collections.abc import Callable

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from rq.exceptions import DeserializationError
from rq.job import Job

from broker.rq_transport import FUNCTION_NAMES, ForbiddenFunction, MsgpackSerializer, TransportJob, job_class
from schemas.policy import Tier

#: Plain data, lists of four among it, which is what a job holds.
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary()
PLAIN = st.recursive(LEAVES, lambda inner: st.lists(inner, min_size=4, max_size=4) | st.dictionaries(st.text(), inner))
DRAFT = FUNCTION_NAMES[Tier.EDGE]


def remember(request_id: str) -> None:
    raise AssertionError(f"{request_id} was run")


def job(payload: object, functions: dict[str, Callable[[str], None]] | None = None) -> Job:
    made = job_class(functions or {})(id="job", connection=Redis(), serializer=MsgpackSerializer)
    made.data = payload if isinstance(payload, bytes) else msgpack.packb(payload)
    return made


def test_a_job_performs_the_function_of_the_workers_table():
    ran = []
    made = job([DRAFT, None, ["r1"], {}], {DRAFT: ran.append})
    made._execute()
    assert ran == ["r1"]


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "workers.edge.drafting.draft.__globals__", "", DRAFT + "x"]
)
def test_a_name_that_is_not_in_the_table_is_refused(name):
    with pytest.raises(ForbiddenFunction):
        _ = job([name, None, ["r1"], {}], {DRAFT: remember}).func


def test_a_method_of_an_instance_is_refused():
    with pytest.raises(ForbiddenFunction):
        _ = job([DRAFT, {"an": "instance"}, [], {}], {DRAFT: remember}).func


def test_a_name_that_is_no_name_is_refused():
    with pytest.raises(ForbiddenFunction):
        _ = job([["os", "system"], None, [], {}], {DRAFT: remember}).func


def test_a_pickle_is_not_unpickled():
    payload = pickle.dumps(("os.getcwd", None, (), {}))
    with pytest.raises(DeserializationError):
        _ = job(payload, {DRAFT: remember}).func


@given(st.binary() | PLAIN.map(msgpack.packb))
def test_whatever_the_bytes_nothing_is_run(payload):
    with pytest.raises((ForbiddenFunction, DeserializationError)):
        _ = job(payload, {DRAFT: remember}).func


def test_without_a_table_a_job_can_only_be_looked_at():
    made = TransportJob(id="job", connection=Redis(), serializer=MsgpackSerializer)
    made.data = msgpack.packb([DRAFT, None, ["r1"], {}])
    assert made.args == ["r1"]
    with pytest.raises(ForbiddenFunction):
        _ = made.func


@pytest.mark.parametrize("callback", ["success_callback", "failure_callback", "stopped_callback"])
def test_callbacks_are_never_imported(callback):
    made = job([DRAFT, None, ["r1"], {}], {DRAFT: remember})
    setattr(made, f"_{callback}_name", "os.getcwd")
    assert getattr(made, callback) is None


def test_webhooks_are_never_called():
    made = job([DRAFT, None, ["r1"], {}], {DRAFT: remember})
    made.webhooks = [object()]
    assert made.send_webhooks() is None


def test_only_plain_data_is_packed():
    with pytest.raises(TypeError):
        MsgpackSerializer.dumps(object())
    assert MsgpackSerializer.loads(MsgpackSerializer.dumps(["a", 1, None])) == ["a", 1, None]
