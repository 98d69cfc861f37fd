"""Gateway, Redis and three edge workers on hosts of their own; one is cut off and healed, and nothing is lost."""

import json
import subprocess
import sys
from contextlib import ExitStack

import pytest

from broker import keys
from broker.api_keys import ApiKeys
from broker.connection import connect
from broker.event_streams import EventHub
from broker.leases import Lifetimes
from broker.presence import Presence
from broker.request_store import RequestStore
from broker.states import FINISHED, State
from firstdraft.local.embedded import server_binary
from schemas.owners import Owner, Scope
from tests.hosts import hosts
from tests.polling import until
from tests.processes import running

EDGES = ["edge1", "edge2", "edge3"]
LEASE_S = 2.0
#: Submits prompts to the gateway from wherever it runs; prints the ids.
SUBMIT = """
import json, sys, httpx
url, key, number, prompt = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
headers = {"Authorization": f"Bearer {key}"}
with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=20) as client:
    bodies = [{"prompt": f"{prompt} {place}", "policy": "edge_only"} for place in range(number)]
    answers = [client.post("/v1/jobs", json=body) for body in bodies]
print(json.dumps([answer.raise_for_status().json()["id"] for answer in answers]))
"""


class System:
    """What the test sees of the hosts."""

    def __init__(self, made, redis):
        self.hosts = made
        self.redis = redis
        self.store = RequestStore(redis, Lifetimes(600, LEASE_S, 3))
        self.presence = Presence(redis, LEASE_S)
        # The gateway is reached by others than its own host, so it asks for a key.
        self._key = ApiKeys(redis).create(Owner(name="tester", scopes=(Scope.SUBMIT,)))

    def live(self):
        return {report.host for report in self.presence.live()}

    def submit(self, number, prompt="why is the sky blue"):
        url = f"http://{self.hosts.addresses['gateway']}:8400"
        command = [*self.hosts.on("redis"), sys.executable, "-c", SUBMIT, url, self._key, str(number), prompt]
        return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)

    def finished(self, ids, within_s):
        def unfinished():
            return [one for one in ids if self.store.state(one) not in FINISHED]

        until(lambda: not unfinished(), "all are answered", within_s=within_s)
        return [self.store.read(one) for one in ids]

    def submit_and_wait(self, number):
        ids = self.submit(number)
        self.finished(ids, within_s=60)
        return ids

    def servers_of(self, ids):
        """The hosts that answered."""
        return {self.redis.hget(keys.request(one), "worker").decode().split("-")[1] for one in ids}

    def outcomes(self, request_id):
        kinds = [streamed.event.type for streamed in EventHub(self.redis).read(request_id)]
        return [kind for kind in kinds if kind in {"done", "failed", "cancelled"}]


@pytest.fixture
def system(tmp_path):
    with ExitStack() as stack:
        made = stack.enter_context(hosts("redis", "gateway", *EDGES))
        socket, address = tmp_path / "redis.sock", made.addresses["redis"]
        options = ["--bind", address, "--port", "6379", "--protected-mode", "no", "--unixsocket", str(socket)]
        command = [*made.on("redis"), server_binary(), *options, "--dir", str(tmp_path), "--save", ""]
        server = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        stack.callback(server.kill)
        until(socket.exists, "Redis listens")
        redis = connect(f"unix://{socket}")
        stack.callback(redis.close)
        environment = {
            "REDIS_URL": f"redis://{address}:6379",
            "FIRSTDRAFT_GATEWAY__HOST": made.addresses["gateway"],
            "FIRSTDRAFT_REQUESTS__LEASE_S": str(LEASE_S),
            "FIRSTDRAFT_EDGE__MAX_IN_FLIGHT": "4",
            "XDG_STATE_HOME": str(tmp_path / "state"),
        }
        worker = ("tests.fakes.worker", "edge", "0.05")
        for name in EDGES:
            log = tmp_path / f"{name}.log"
            stack.enter_context(running(*worker, log=log, inside=made.on(name), **environment))
        gateway = stack.enter_context(
            running("gateway", log=tmp_path / "gateway.log", inside=made.on("gateway"), **environment)
        )
        running_system = System(made, redis)
        until(lambda: running_system.live() == set(EDGES), "three edge workers live", within_s=40)
        until(lambda: gateway.said("gateway_starting"), "the gateway starts", within_s=20)
        until(lambda: _accepts(running_system), "the gateway answers", within_s=20)
        yield running_system


def _accepts(system):
    try:
        return system.submit(1)
    except subprocess.CalledProcessError:
        return []


def test_cutting_one_of_three_edge_hosts_off_and_healing_it_loses_nothing(system):
    first = system.submit(18)
    assert {record.state for record in system.finished(first, within_s=30)} == {State.SUCCEEDED}
    assert system.servers_of(first) == set(EDGES)

    in_the_middle = system.submit(24)
    system.hosts.cut_off("edge1")
    while_cut = system.submit(12)
    assert {record.state for record in system.finished(in_the_middle + while_cut, within_s=60)} == {State.SUCCEEDED}
    assert system.servers_of(while_cut) <= set(EDGES)
    until(lambda: system.live() == {"edge2", "edge3"}, "the cut host's report has lapsed")
    assert system.servers_of(system.submit_and_wait(6)) <= {"edge2", "edge3"}

    system.hosts.heal("edge1")
    # Its connections notice within the seconds that an answer may take.
    until(lambda: "edge1" in system.servers_of(system.submit_and_wait(9)), "the healed host serves", within_s=60)
    everything = [*first, *in_the_middle, *while_cut]
    assert {system.store.state(one) for one in everything} == {State.SUCCEEDED}
    assert all(system.outcomes(one) == ["done"] for one in everything)
