"""deploy/redis: its users can do their work and nothing else, and its server speaks TLS alone."""

import os
import re
import shutil
import socket
import subprocess
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from broker import keys
from broker.connection import connect
from firstdraft.local.embedded import server_binary
from tests.polling import until
from tests.processes import ROOT, free_port, running

FOLDER = ROOT / "deploy" / "redis"
USERS = ("operator", "gateway", "edge", "cloud", "metrics")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("deploy")
    command = [FOLDER / "prepare.sh", folder, "localhost", "127.0.0.1"]
    for _ in range(2):  # what is there already is kept
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def passwords(prepared) -> dict[str, str]:
    return dict(line.split() for line in (prepared / "passwords").read_text().splitlines())


@contextmanager
def serving(command: list[str], folder: Path, answers):
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        try:
            until(lambda: process.poll() is not None or answers(), "the server answers")
            assert process.poll() is None, "the server does not start"
            yield
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def urls(prepared, passwords, tmp_path_factory) -> dict[str, str]:
    """Each user's URL, at a server with the configuration but for TLS, which the packaged server lacks."""
    data = tmp_path_factory.mktemp("acl")
    path = data / "redis.sock"
    lines = (prepared / "redis.conf").read_text().splitlines()
    config = data / "plain.conf"
    config.write_text("\n".join([*(line for line in lines if not line.startswith("tls-")), f"unixsocket {path}"]))
    shutil.copy(prepared / "users.acl", data)
    with serving([server_binary(), str(config)], data, path.exists):
        yield {user: f"unix://{user}:{passwords[user]}@{path}" for user in USERS}


@pytest.fixture(scope="module")
def as_user(urls):
    clients = {user: connect(url) for user, url in urls.items()}
    yield clients
    for client in clients.values():
        client.close()


def test_nobody_comes_in_without_a_name(urls):
    path = urls["gateway"].partition("@")[2]
    for url in (f"unix://{path}", f"unix://gateway:guess@{path}", f"unix://nobody:guess@{path}"):
        with closing(connect(url, retries=0)) as redis, pytest.raises(AuthenticationError):
            redis.ping()


def test_the_system_works_with_these_users_and_touches_nothing_that_it_may_not(urls, as_user, tmp_path):
    port = free_port()
    place = {"FIRSTDRAFT_GATEWAY__PORT": str(port), "XDG_STATE_HOME": str(tmp_path)}
    url = f"http://127.0.0.1:{port}"
    as_user["operator"].acl_log_reset()

    def ready():
        try:
            return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    with (
        running("gateway", log=tmp_path / "gateway", REDIS_URL=urls["gateway"], **place),
        running("tests.fakes.worker", "edge", log=tmp_path / "edge", REDIS_URL=urls["edge"]),
        running("tests.fakes.worker", "cloud", log=tmp_path / "cloud", REDIS_URL=urls["cloud"]),
        httpx.Client(base_url=url, trust_env=False, timeout=30) as client,
    ):
        until(ready, "the system is ready", within_s=30)
        for prompt, tier in (("sure of this", "edge"), ("unsure of this", "cloud")):
            job = client.post("/v1/jobs", json={"prompt": prompt}, headers={"Idempotency-Key": prompt}).json()["id"]
            answer = client.get(f"/v1/jobs/{job}?wait=20").json()
            assert (answer["status"], answer["result"]["tier"]) == ("succeeded", tier)
        assert client.delete(f"/v1/jobs/{job}").status_code == 200
        assert client.get("/v1/stats").json()["counters"]["answered_cloud"] == 1
        as_user["operator"].hset("firstdraft:api_keys", "x", "y")
        assert client.get("/v1/stats", headers={"Authorization": "Bearer fd_z_y"}).status_code == 401
    assert as_user["operator"].acl_log() == []
    as_user["operator"].delete("firstdraft:api_keys")


@pytest.mark.parametrize("user", ["gateway", "edge", "cloud", "metrics"])
@pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("KEYS", "*"),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
        ("SCRIPT", "FLUSH"),
        ("MONITOR",),
        ("REPLICAOF", "NO", "ONE"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("MODULE", "LIST"),
        ("SET", "something-else", "x"),
        ("GET", "something-else"),
        ("HSET", "firstdraft:api_keys", "mine", "x"),
        ("HDEL", "firstdraft:api_keys", "mine"),
        ("PUBLISH", "another-channel", "x"),
        ("EVAL", "return redis.call('GET', 'something-else')", "0"),
        ("EVAL", "return redis.call('FLUSHALL')", "0"),
    ],
    ids=" ".join,
)
def test_no_process_may(as_user, user, command):
    refuses(as_user[user], *command)


@pytest.mark.parametrize(
    ("user", "command"),
    [
        *(
            (user, command)
            for user in ("edge", "cloud", "metrics")
            for command in (
                ("HGETALL", "firstdraft:api_keys"),
                ("GET", "firstdraft:idempotency:alice:0"),
                ("HGETALL", "firstdraft:batch:b"),
                ("SET", "firstdraft:limits/x", "0"),
                ("DEL", "firstdraft:limits/x"),
            )
        ),
        ("gateway", ("SET", "firstdraft:worker:w", "x")),
        ("gateway", ("ZADD", "firstdraft:workers", "1", "w")),
        *(
            ("metrics", command)
            for command in (
                ("HGETALL", "firstdraft:request:r"),
                ("XRANGE", "firstdraft:events:r", "-", "+"),
                ("HSET", "firstdraft:counters", "accepted", "0"),
                ("RPUSH", "rq:queue:edge", "x"),
                ("SUBSCRIBE", "firstdraft:notifications"),
                ("HGETALL", "rq:job:j"),
            )
        ),
    ],
    ids=str,
)
def test_a_process_may_not_do_anothers_work(as_user, user, command):
    refuses(as_user[user], *command)


def refuses(redis: Redis, *command: str) -> None:
    with pytest.raises(ResponseError, match=r"[Nn]o permissions"):  # scripts give it another type
        redis.execute_command(*command)


@pytest.mark.parametrize("described", keys.DESCRIPTIONS, ids=lambda described: described.pattern)
def test_every_process_may_use_the_keys_that_it_is_said_to_use(as_user, described):
    roles = {"gateway": ["gateway"], "worker": ["edge", "cloud"]}
    key = re.sub(r"\{\w+\}", "x", described.pattern)
    for told, command in ((described.writer, "DEL"), (described.reader, "EXISTS")):
        for role in [user for word, users in roles.items() if word in told for user in users]:
            if described.kind != "channel":
                assert as_user["operator"].acl_dryrun(role, command, key) == b"OK", (role, command)


def test_metrics_can_be_read(as_user):
    redis = as_user["metrics"]
    assert redis.info("memory")["maxmemory_policy"] == "noeviction"
    assert isinstance(redis.hgetall("firstdraft:counters"), dict)
    assert redis.llen("rq:queue:edge") == 0


# TLS


@pytest.fixture(scope="module")
def tls_port(prepared, tmp_path_factory):
    binary = os.environ.get("TLS_REDIS_SERVER") or shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        pytest.skip("no server with TLS: apt-get install redis-server, or set TLS_REDIS_SERVER")
    port = free_port()

    def listens():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    folder = tmp_path_factory.mktemp("tls") / "redis"
    shutil.copytree(prepared, folder)
    users = folder / "users.acl"
    users.write_text(users.read_text().replace(" +waitaof", ""))  # a server before 7.2 knows no such command
    with serving([binary, "redis.conf", "--tls-port", str(port)], folder, listens):
        yield port


def test_over_tls_a_server_that_is_who_it_says_is_talked_to(tls_port, prepared, passwords):
    for host in ("localhost", "127.0.0.1"):
        url = f"rediss://gateway:{passwords['gateway']}@{host}:{tls_port}/0?ssl_ca_certs={prepared}/ca.crt"
        with closing(connect(url)) as redis:
            assert redis.ping()


@pytest.mark.parametrize(
    "url",
    [
        "redis://gateway:{password}@localhost:{port}/0",
        "rediss://gateway:{password}@localhost:{port}/0",
        "rediss://gateway:{password}@127.0.0.2:{port}/0?ssl_ca_certs={folder}/ca.crt",
    ],
    ids=["without TLS", "an unknown authority", "another name"],
)
def test_nothing_else_is(tls_port, prepared, passwords, url):
    whole = url.format(password=passwords["gateway"], port=tls_port, folder=prepared)
    with closing(connect(whole, retries=0)) as redis, pytest.raises(RedisConnectionError):
        redis.ping()
