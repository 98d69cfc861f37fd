"""Which batches a gateway's process runs, on a real Redis and a real disk; no worker answers anything."""

import gc
import io
import json
import threading
import tracemalloc
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from broker import keys
from broker.batches import NotListed, TooManyBatches
from broker.idempotency import Idempotency
from gateway.batches.files import Quota
from gateway.batches.run import BatchRun
from gateway.batches.runner import MAX_RUNNING, BatchRunner
from gateway.batches.sweeper import FileSweeper
from schemas.openai_files import Batch, StoredFile
from schemas.owners import Owner
from tests.polling import until
from tests.samples import a_request

PLENTY = Quota(1000, 1 << 30)


@pytest.fixture
def services(make_services):
    return make_services()


@pytest.fixture
def make_batch(services):
    """A batch of one line, or of so many."""

    def make(batch_id, owner="alice", num=1, **changes):
        line = {"custom_id": "c", "method": "POST", "url": "/v1/jobs", "body": {"prompt": "why"}}
        raw = b"".join(json.dumps(line | {"custom_id": f"c{place}"}).encode() + b"\n" for place in range(num))
        file_id = f"file-of-{batch_id}"
        with services.files.receiving(io.BytesIO(raw)) as received:
            described = {"id": file_id, "bytes": 0, "created_at": 1, "filename": "x", "purpose": "batch"}
            services.files.keep(received, StoredFile(**described, owner=owner), PLENTY)
        batch = Batch(
            id=batch_id,
            endpoint="/v1/jobs",
            input_file_id=file_id,
            completion_window="24h",
            created_at=12,
            expires_at=100_000,
            owner=Owner(name=owner),
            **changes,
        )
        services.batches.create(batch, most=1000)
        return batch_id

    return make


@pytest.fixture
def running(services):
    """Runs batches, and sees to it that none runs on after the test."""
    with ExitStack() as ends:

        @contextmanager
        def runner(**options):
            made = BatchRunner(services, **options)
            try:
                yield made
            finally:
                for batch_id in services.batches.unfinished():
                    services.batches.ask_to_cancel(batch_id, 13.0)
                until(lambda: made.step() or not services.batches.unfinished(), "all batches end", within_s=30)

        yield lambda **options: ends.enter_context(runner(**options))


def is_running(services, batch_id):
    return services.batches.read(batch_id).status == "in_progress"


def test_batches_that_other_processes_hold_do_not_hide_the_one_that_nobody_runs(services, make_batch, running):
    names = [make_batch(f"batch_{number}") for number in range(MAX_RUNNING + 3)]
    runner = running()
    with ExitStack() as locks:
        for name in names[:-1]:
            locks.enter_context(services.files.lock(name))
        runner.step()
        until(lambda: is_running(services, names[-1]), "the last batch runs")
        assert not any(is_running(services, name) for name in names[:-1])


def test_an_owners_many_batches_leave_a_place_to_anothers_single_one(services, make_batch, running):
    alices = [make_batch(f"batch_a{number}") for number in range(MAX_RUNNING * 2)]
    make_batch("batch_b", "bob")
    running().step()
    until(lambda: is_running(services, "batch_b"), "bob's batch runs")
    until(lambda: sum(is_running(services, one) for one in alices) == MAX_RUNNING - 1, "alice has the other places")


def test_a_batch_that_has_had_its_time_makes_way_for_one_that_nobody_runs(services, make_batch, running):
    alices = [make_batch(f"batch_a{number}") for number in range(MAX_RUNNING)]
    runner = running(slice_s=0.1, drain_s=0.1)
    runner.step()
    until(lambda: all(is_running(services, one) for one in alices), "alice has all places")
    make_batch("batch_b", "bob")
    until(lambda: runner.step() or is_running(services, "batch_b"), "bob's batch has its turn")
    assert services.all_requests.counters()["accepted"] == MAX_RUNNING + 1, "what was begun goes on as it was"


def test_where_nobody_waits_no_run_is_ended(services, make_batch, running):
    make_batch("batch_a")
    held = [make_batch(f"batch_h{number}") for number in range(MAX_RUNNING)]
    runner = running(slice_s=0.0, drain_s=0.0)
    with ExitStack() as locks:
        for name in held:
            locks.enter_context(services.files.lock(name))
        runner.step()
        until(lambda: is_running(services, "batch_a"), "it runs")
        threads = {thread.ident for thread in threading.enumerate() if thread.name == "batch_a"}
        for _ in range(5):
            runner.step()
        assert {thread.ident for thread in threading.enumerate() if thread.name == "batch_a"} == threads != set()


def test_a_batch_that_is_not_remembered_is_not_looked_for_for_ever(services, make_batch, running, redis_connection):
    make_batch("batch_a")
    redis_connection.delete(keys.batch("batch_a"))
    running().step()
    assert services.batches.unfinished() == []


def test_what_cannot_be_read_keeps_no_other_batch_from_being_run_listed_or_swept(
    services, make_batch, running, redis_connection, tmp_path
):
    for name in ("batch_a", "batch_b"):
        make_batch(name)
    raw = redis_connection.hget(keys.batch("batch_a"), "batch")
    redis_connection.hset(keys.batch("batch_a"), "batch", b"of another version")
    (tmp_path / "files" / "file-torn.json").write_text("{")
    with services.files.lock("batch_a"):
        pass
    FileSweeper(services).step()
    assert (tmp_path / "files" / "locks" / "batch_a").exists()
    running().step()
    until(lambda: is_running(services, "batch_b"), "the other runs")
    assert [batch.id for batch in services.batches.listed(None, 9, "alice")[0]] == ["batch_b"]
    assert len(services.files.listed(None, None)) == 2
    assert services.batches.unfinished() == ["batch_a", "batch_b"]
    redis_connection.hset(keys.batch("batch_a"), "batch", raw)  # so that it can end


class CountingSubscription:
    """Is notified of nothing, at once; remembers how much memory was in use after so many waits."""

    def __init__(self, *measured_at):
        self.num_waits = 0
        self.in_use = dict.fromkeys(measured_at, 0)

    def wait(self, _timeout_s):
        self.num_waits += 1
        if self.num_waits in self.in_use:
            gc.collect()
            self.in_use[self.num_waits] = tracemalloc.get_traced_memory()[0]
        return set()

    def add(self, _request_id):
        """Nothing is ever notified."""

    notify = discard = add


class ImpatientHub:
    """A hub whose readers never wait."""

    def __init__(self, subscription):
        self.subscription = subscription

    @contextmanager
    def subscribe(self):
        yield self.subscription

    def endings(self, _request_ids):
        return {}


def test_a_batch_that_finds_no_room_does_not_grow_however_often_it_looks(make_services, make_batch, store):
    store.create(a_request())
    subscription = CountingSubscription(500, 3000)
    services = replace(make_services(backpressure={"max_requests": 1}), hub=ImpatientHub(subscription))
    batch = services.batches.read(make_batch("batch_a", num=3))
    run = BatchRun(services, batch)
    thread = threading.Thread(target=run.run)
    tracemalloc.start()
    try:
        thread.start()
        until(lambda: subscription.num_waits > 3000, "it has looked for long", within_s=120)
    finally:
        tracemalloc.stop()
        services.batches.ask_to_cancel("batch_a", 13.0)
        thread.join(30)
    assert subscription.in_use[3000] - subscription.in_use[500] < 100_000
    ended = services.batches.read("batch_a")
    assert (ended.status, ended.request_counts.total, ended.request_counts.failed) == ("cancelled", 3, 3)


def test_batches_are_listed_by_owner_and_in_pages(services, make_batch):
    for number in range(450):
        make_batch(f"batch_{number:03}", "bob" if number % 3 == 0 else "alice", num=0)
    everybodys, more = services.batches.listed(None, 1000, None)
    assert (len(everybodys), more) == (450, False)
    bobs, more = services.batches.listed(None, 100, "bob")
    assert (len(bobs), more, {one.owner.name for one in bobs}) == (100, True, {"bob"})
    rest, more = services.batches.listed(bobs[-1].id, 100, "bob")
    assert (len(rest), more) == (50, False)
    assert len({one.id for one in (*bobs, *rest)}) == 150
    oldest, more = services.batches.listed(None, 120, "bob", newest_first=False)
    later, still_more = services.batches.listed(oldest[-1].id, 120, "bob", newest_first=False)
    assert (*oldest, *later) == (*bobs, *rest)[::-1]
    assert (more, still_more) == (True, False)


def test_no_page_begins_after_what_is_not_in_the_list(services, make_batch):
    make_batch("batch_a", "alice", num=0)
    for owner, after in ((None, "batch_x"), ("bob", "batch_a")):
        with pytest.raises(NotListed, match=after):
            services.batches.listed(after, 9, owner)


def test_the_list_forgets_batches_that_are_not_remembered_any_more(make_batch, redis_connection):
    make_batch("batch_old")
    for index in (keys.batches(), keys.batches_of("alice")):
        redis_connection.zadd(index, {"batch_old": -90 * 86_400})
    make_batch("batch_new")
    assert redis_connection.zrange(keys.batches(), 0, -1) == [b"batch_new"]
    assert redis_connection.zrange(keys.batches_of("alice"), 0, -1) == [b"batch_new"]


def test_batches_of_an_earlier_version_come_to_their_owners_list(services, make_batch, redis_connection):
    make_batch("batch_a")
    redis_connection.delete(keys.batches_of("alice"))
    redis_connection.persist(keys.batches())
    redis_connection.persist(keys.unfinished_batches())
    FileSweeper(services).step()
    assert [one.id for one in services.batches.listed(None, 9, "alice")[0]] == ["batch_a"]
    assert redis_connection.ttl(keys.batches()) > 0
    assert redis_connection.ttl(keys.unfinished_batches()) > 0


def test_the_sweeper_removes_what_ended_batches_left_and_spares_what_is_read(make_services, make_batch, tmp_path):
    services = make_services(file_ttl_s=60)
    ended = services.batches.read(make_batch("batch_ended"))
    make_batch("batch_waits")
    services.batches.write(ended.model_copy(update={"status": "completed"}))
    for batch_id in ("batch_ended", "batch_waits"):
        part = services.files.part(f"{batch_id}-output")
        part.append(b"x\n")
        part.close()
        with services.files.lock(batch_id):
            pass
    services = make_services(file_ttl_s=5)  # both inputs were made at 1 s, and it is 12.5 s
    FileSweeper(services).step()
    left = {path.name for path in (tmp_path / "files").rglob("*") if path.is_file()}
    assert {name for name in left if "ended" in name} == set()
    assert {"batch_waits", "batch_waits-output", "file-of-batch_waits.data", "file-of-batch_waits.json"} <= left


def test_one_key_makes_one_batch_and_ended_ones_leave_room(services, make_batch):
    batch = services.batches.read(make_batch("batch_a"))
    key = Idempotency("alice", "key", "digest")
    assert services.batches.create(batch.model_copy(update={"id": "batch_b"}), 2, key) == "batch_b"
    assert services.batches.create(batch.model_copy(update={"id": "batch_c"}), 2, key) == "batch_b"
    assert services.batches.read("batch_c") is None
    with pytest.raises(TooManyBatches, match="2 batches that have not ended"):
        services.batches.create(batch.model_copy(update={"id": "batch_c"}), 2)
    services.batches.write(batch.model_copy(update={"status": "failed"}))
    assert services.batches.create(batch.model_copy(update={"id": "batch_c"}), 2) == "batch_c"
