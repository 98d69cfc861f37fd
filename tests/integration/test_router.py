"""Routing on a real Redis: what the index and the loads say decides, and none of it is ever waited for long."""

import logging

import pytest

from broker import keys
from broker.connection import connect
from broker.prefix_blocks import block_hashes
from broker.prefix_index import PrefixIndex
from broker.presence import Presence
from broker.router import Router
from schemas.policy import Tier
from schemas.routing_decision import RoutingPolicy, RoutingReason
from tests.processes import free_port
from tests.samples import a_request, a_worker_report

SYSTEM = "You answer questions about the sky, the sea and what is in between, briefly and in plain words. " * 10
BLOCK_BYTES = 64


def asked(question: str):
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return a_request(prompt=None, messages=messages, policy="edge_only", max_tokens=16)


@pytest.fixture
def presence(redis_connection):
    return Presence(redis_connection, 30.0)


@pytest.fixture
def index(redis_connection):
    return PrefixIndex(redis_connection, 60)


@pytest.fixture
def make_router(store, presence, index):
    def make(policy=RoutingPolicy.PREFIX, index=index, max_waiting=8):
        return Router(store, presence, index, block_bytes=BLOCK_BYTES, policy=policy, max_waiting=max_waiting)

    return make


@pytest.fixture
def start(presence):
    """Makes workers live, as far as others can tell."""

    def started(*names, **changes):
        for name in names:
            presence.renew(a_worker_report(name, **changes))

    return started


def blocks_of(request, model="m"):
    return block_hashes(request.messages, model=model, namespace=request.cache_namespace, block_bytes=BLOCK_BYTES)


def test_a_request_goes_where_its_prefix_is_and_its_record_and_the_log_say_why(
    start, make_router, index, store, caplog
):
    start("a", "b", "c")
    index.update("b@e1", blocks_of(asked("why is it blue")), ())
    request = asked("why is it grey")
    with caplog.at_level(logging.INFO):
        route = make_router().route(request, Tier.EDGE)
    assert (route.worker, route.reason, route.num_candidates) == ("b@e1", RoutingReason.PREFIX, 3)
    assert 0.8 * route.prompt_tokens < route.cached_tokens < route.prompt_tokens
    assert f"request_routed request_id={request.request_id} tier=edge worker=b@e1 reason=prefix" in caplog.text
    store.create(request, route=route)
    assert store.read(request.request_id).routes == {Tier.EDGE: route}
    load = store.worker_loads(Tier.EDGE, ["b@e1"])["b@e1"]
    assert (load.tokens, load.num_jobs) == (route.work_tokens, 1)


def test_a_burst_of_one_prefix_goes_to_one_place_until_work_has_piled_up_there(start, make_router, store):
    start("a", "b", "c")
    router = make_router()
    workers = []
    for number in range(12):
        request = asked(f"question {number}")
        route = router.route(request, Tier.EDGE)
        store.create(request, route=route)
        workers.append(route.worker)
    assert len(set(workers[:3])) == 1
    assert len(set(workers)) > 1


def test_a_worker_whose_life_has_ended_gets_nothing_while_its_report_still_stands(start, make_router, redis_connection):
    start("a", "b")
    redis_connection.zadd(keys.workers(Tier.EDGE), {"a@e1": 1.0})
    router = make_router()
    assert {router.route(asked(f"{number}"), Tier.EDGE).worker for number in range(20)} == {"b@e1"}


def test_what_an_earlier_life_of_a_worker_held_is_worthless(start, make_router, index):
    start("a", "b", epoch="e2")
    index.update("a@e1", blocks_of(asked("why")), ())
    route = make_router().route(asked("why"), Tier.EDGE)
    assert (route.cached_tokens, route.reason) == (0, RoutingReason.LEAST_LOADED)


def test_what_is_held_for_another_model_does_not_count(start, make_router, index):
    start("a", "b")
    index.update("a@e1", blocks_of(asked("why"), model="another"), ())
    assert make_router().route(asked("why"), Tier.EDGE).cached_tokens == 0


def test_workers_of_the_other_tier_and_those_that_are_not_ready_get_nothing(start, make_router):
    start("a", ready=False)
    start("b", tier=Tier.CLOUD)
    router = make_router()
    assert router.route(asked("why"), Tier.EDGE).reason == RoutingReason.NO_WORKER
    assert router.route(asked("why"), Tier.CLOUD).worker == "b@e1"


def test_full_workers_are_passed_over(start, make_router, store):
    start("a", capacity=1)
    router = make_router(max_waiting=1)
    reasons = []
    for _ in range(3):
        request = asked("why")
        route = router.route(request, Tier.EDGE)
        store.create(request, route=route)
        reasons.append(route.reason)
    assert reasons == [RoutingReason.LEAST_LOADED, RoutingReason.PREFIX, RoutingReason.ALL_FULL]


def test_a_request_that_may_not_use_caches_is_not_sent_after_one(start, make_router, index):
    start("a", "b")
    request = a_request("why is the sky blue " * 40, policy="no_kv_cache")
    index.update("a@e1", blocks_of(request), ())
    assert make_router().route(request, Tier.EDGE).most_cached_tokens == 0


@pytest.mark.parametrize("policy", [RoutingPolicy.LEAST_LOADED, RoutingPolicy.RANDOM])
def test_other_policies_do_not_ask_the_index(start, make_router, policy):
    start("a", "b")
    nowhere = PrefixIndex(connect(f"redis://127.0.0.1:{free_port()}", retries=0), 60)
    route = make_router(policy, nowhere).route(asked("why"), Tier.EDGE)
    assert route.worker in {"a@e1", "b@e1"}


def test_without_an_index_requests_are_routed_by_load_and_it_is_left_alone_for_a_while(start, make_router, caplog):
    start("a", "b")
    nowhere = PrefixIndex(connect(f"redis://127.0.0.1:{free_port()}", retries=0), 60)
    router = make_router(index=nowhere)
    routes = [router.route(asked("why"), Tier.EDGE) for _ in range(5)]
    assert {route.reason for route in routes} == {RoutingReason.LEAST_LOADED}
    assert caplog.text.count("prefix_index_away") == 1
