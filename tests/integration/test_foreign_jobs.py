"""What somebody who can write to Redis puts where the workers look: nothing of it is run, and no worker ends of it."""

import pickle

import msgpack
import pytest
from rq.registry import FailedJobRegistry

from broker import keys
from broker.request_store import line_of
from broker.rq_transport import FUNCTION_NAMES, QUEUE_NAMES, queue
from broker.states import State
from gateway.app import create_app
from schemas.policy import Tier
from tests.polling import until
from tests.samples import a_request

#: What a job of ours holds, of a request that is not there.
GOOD = [FUNCTION_NAMES[Tier.EDGE], None, ["nobody"], {}]
#: RQ's list of jobs.
LISTED = f"rq:queue:{QUEUE_NAMES[Tier.EDGE]}"
#: What no id of RQ's is: its text and its bytes.
NO_IDS = ["two words", "../up", "new\nline", "*", b"\xff\xfe"]


@pytest.fixture
def still_answers(worker_store):
    """That a request is answered, after whatever else is on the queue."""

    def check() -> None:
        request = a_request()
        worker_store.create(request)
        until(lambda: worker_store.state(request.request_id) == State.SUCCEEDED, "a request is answered", within_s=20)

    return check


@pytest.fixture
def refused(make_services):
    """That so many jobs are counted as refused, for everybody who looks at the statistics."""
    client = create_app(make_services()).test_client()

    def check(number: int) -> None:
        def counted() -> bool:
            return client.get("/v1/stats").json["counters"].get("jobs_refused", 0) >= number

        until(counted, f"{number} refusals")
        assert client.get("/v1/stats").json["counters"]["jobs_refused"] == number

    return check


@pytest.fixture
def put(redis_connection):
    """Puts a job on the edge's queue as someone would who can write to Redis."""

    def put_by_hand(job_id: str, data: bytes, **fields: object) -> None:
        job = {"data": data, "status": "queued", "origin": QUEUE_NAMES[Tier.EDGE], "timeout": 60, **fields}
        redis_connection.hset(f"rq:job:{job_id}", mapping=job)
        redis_connection.rpush(LISTED, job_id)

    return put_by_hand


def test_jobs_that_would_run_code_run_nothing_and_are_counted(
    put, still_answers, refused, start_worker, redis_connection, tmp_path
):
    marker = tmp_path / "it-was-run"
    touch = f"touch {marker}"

    class Bomb:
        def __reduce__(self):
            import os  # noqa: PLC0415 - what a pickle would do

            return os.system, (touch,)

    payloads = {
        "pickle": pickle.dumps(("os.system", None, (touch,), {})),
        "bomb": pickle.dumps(Bomb()),
        "packed-bomb": msgpack.packb([GOOD[0], pickle.dumps(Bomb()), ["nobody"], {}]),
        "system": msgpack.packb(["os.system", None, [touch], {}]),
        "eval": msgpack.packb(["builtins.eval", None, [f"open({str(marker)!r}, 'w')"], {}]),
        "method": msgpack.packb(["system", "os", [touch], {}]),
        "list": msgpack.packb([["os", "system"], None, [touch], {}]),
        "unknown": msgpack.packb(["workers.edge.drafting.redraft", None, ["nobody"], {}]),
        "other-tier": msgpack.packb([FUNCTION_NAMES[Tier.CLOUD], None, ["nobody"], {}]),
        "nothing": b"",
    }
    callbacks = {f"{kind}_callback_name": "os.system" for kind in ("success", "failure", "stopped")}
    for name, data in payloads.items():
        put(name, data)
    for kind, name in callbacks.items():
        put(kind, msgpack.packb(GOOD), **{kind: name})
    put("failing", payloads["system"], **callbacks)
    put("retried", payloads["system"], retries_left=1000, retry_intervals="[0]")
    start_worker("edge")
    still_answers()
    failed = {*payloads, *callbacks, "failing", "retried"}
    registry = FailedJobRegistry(queue=queue(redis_connection, Tier.EDGE))
    until(lambda: not failed - set(registry.get_job_ids(cleanup=False)), f"{failed} have failed")
    refused(len(failed))
    assert not marker.exists()


def test_jobs_of_the_table_with_other_arguments_are_refused_and_counted(put, still_answers, refused, start_worker):
    arguments = [([], {}), (["a", "b"], {}), ([["a"]], {}), (["a"], {"b": 1}), (5, {}), ({"a": 1}, {}), ("a", {})]
    for number, (given, named) in enumerate(arguments):
        put(f"job-{number}", msgpack.packb([GOOD[0], None, given, named]))
    start_worker("edge")
    still_answers()
    refused(len(arguments))


def test_jobs_that_cannot_be_read_are_counted_and_end_no_worker(
    put, still_answers, refused, start_worker, redis_connection
):
    put("times", msgpack.packb(GOOD), created_at="never", timeout="long")
    put("bearer", msgpack.packb(GOOD), worker_name=b"\xff")
    redis_connection.set("rq:job:no-hash", "x")
    redis_connection.rpush(LISTED, "no-hash", "", "not-there", *NO_IDS)  # a job without a record is no one's
    start_worker("edge")
    still_answers()
    refused(3 + len(NO_IDS))
    until(lambda: redis_connection.llen(LISTED) == 0, "nothing of it is shown any more")


def test_what_is_no_text_among_workers_lines_and_commands_ends_no_worker(
    still_answers, start_worker, redis_connection, make_services
):
    dead = keys.line(line_of(Tier.EDGE, "dead@1"))
    redis_connection.zadd(keys.workers(Tier.EDGE), {b"\xff\xff": 1.0, "dead@1": 1.0})
    redis_connection.zadd(dead, {b"\xfe\xff": 1.0, "nobody": 2.0})
    redis_connection.zadd(keys.line("edge"), {b"\xfd\xff": 1.0})
    redis_connection.zadd(keys.due(), {b"\xfc\xff": 1.0})
    worker = start_worker("edge")
    (channel,) = until(lambda: redis_connection.pubsub_channels("rq:pubsub:*"), "the worker hears commands")
    for message in (b"\xff", b"{", b"[]", b'{"command": "unknown"}'):
        redis_connection.publish(channel, message)
    still_answers()
    until(lambda: redis_connection.exists(dead) == 0, "the dead worker's line is emptied")
    until(lambda: redis_connection.exists(keys.line("edge")) == 0, "what stands for no request is dropped")
    still_answers()
    until(lambda: worker.log.read_text().count("command_refused") == 3, "what is no command is refused")
    assert create_app(make_services()).test_client().get("/v1/stats").status_code == 200


@pytest.mark.parametrize("name", ["rq:queue:edge", "rq:wip:edge", "rq:queues", "rq:suspended:x"])
def test_a_key_of_rqs_that_is_of_another_type_ends_no_worker(name, still_answers, start_worker, redis_connection):
    redis_connection.set(name, "x")
    worker = start_worker("edge")
    still_answers()
    until(lambda: name != "rq:queue:edge" or worker.said("maintenance_broke_off"), "it is said")
    still_answers()
    assert not worker.has_ended()
