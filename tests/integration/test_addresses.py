"""Hosts of both families: the gateway, its health, and everything that finds it by its settings."""

import contextlib
import json
import socket

import httpx
import pytest
from click.testing import CliRunner

from config.settings import read_settings
from firstdraft.cli import main
from tests.polling import until
from tests.processes import ROOT, free_port, running


def ipv6_is_here():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


NEEDS_IPV6 = pytest.mark.skipif(not ipv6_is_here(), reason="this machine has no ::1")


def status(url):
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, trust_env=False, timeout=5).status_code
    return None


@pytest.mark.parametrize(
    ("host", "reached_at"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("localhost", ["localhost"]),
        ("0.0.0.0", ["127.0.0.1"]),
        pytest.param("::1", ["[::1]"], marks=NEEDS_IPV6),
        pytest.param("[::1]", ["[::1]"], marks=NEEDS_IPV6),
        pytest.param("::", ["[::1]", "127.0.0.1"], marks=NEEDS_IPV6),
    ],
)
def test_the_gateway_and_its_health_are_where_the_settings_say_and_commands_find_them(
    host, reached_at, redis_url, tmp_path
):
    port, health = free_port(), free_port()
    environment = {
        "REDIS_URL": redis_url,
        "XDG_STATE_HOME": str(tmp_path),
        "FIRSTDRAFT_GATEWAY__HOST": host,
        "FIRSTDRAFT_GATEWAY__PORT": str(port),
        "FIRSTDRAFT_GATEWAY__HEALTH_PORT": str(health),
    }
    with running("gateway", log=tmp_path / "log", **environment) as gateway:
        for name in reached_at:
            for number in (port, health):
                url = f"http://{name}:{number}/healthz"
                until(lambda url=url: not gateway.has_ended() and status(url) == 200, f"{url} answers", within_s=20)
        shown = CliRunner().invoke(main, ["doctor", "--json"], env=environment)
        found = next(one for one in json.loads(shown.output)["findings"] if one["name"] == "gateway")
        assert "no live edge worker" in found["advice"] or "worker" in found["advice"], found
        listed = CliRunner().invoke(main, ["workers"], env=environment)
        # Beyond the loopback it asks for a key, which it can only do once it was found.
        assert "no live worker" in listed.output or "401" in listed.output, listed.output


@NEEDS_IPV6
def test_everything_runs_on_the_ipv6_loopback(tmp_path):
    environment = {
        "REDIS_URL": "",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "FIRSTDRAFT_GATEWAY__HOST": "::1",
        "FIRSTDRAFT_GATEWAY__PORT": str(free_port()),
        "FIRSTDRAFT_EDGE__MODEL__PATH": "stand-in",
        "FIRSTDRAFT_CLOUD__MODEL__PATH": "stand-in",
    }
    procfile = str(ROOT / "tests" / "fakes" / "Procfile")
    with running("firstdraft.cli", "up", "--procfile", procfile, log=tmp_path / "log", **environment) as up:
        until(lambda: up.said("ready at http://[::1]:"), "the system is ready", within_s=60)
        asked = CliRunner().invoke(main, ["ask", "one two", "--max-tokens", "2"], env=environment)
        assert asked.output == "two one \n"


@NEEDS_IPV6
def test_a_port_that_is_taken_on_the_ipv6_loopback_is_said_before_anything_starts():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        environment = {"FIRSTDRAFT_GATEWAY__HOST": "::1", "FIRSTDRAFT_GATEWAY__PORT": str(port)}
        refused = CliRunner().invoke(main, ["up"], env=environment)
    assert refused.exit_code == 1
    assert f"the gateway cannot listen on [::1]:{port} (Address already in use" in refused.output


@pytest.mark.parametrize("url", ["http://::1:8400", "http://[::1:8400", "http://host:port", "localhost:8400"])
@pytest.mark.parametrize("command", [["workers"], ["ask", "x"], ["ablate", __file__]])
def test_a_gateways_address_that_is_none_is_one_line(command, url):
    refused = CliRunner().invoke(main, [*command, "--url", url])
    assert refused.exit_code != 0
    assert isinstance(refused.exception, SystemExit)
    assert url in refused.output
    assert refused.output.count("\n") == 1


def test_an_address_in_brackets_is_read_without_them():
    gateway = read_settings(gateway={"host": "[::1]", "port": 80}).gateway
    assert (gateway.host, gateway.authority, gateway.local_url) == ("::1", "[::1]:80", "http://[::1]:80")
