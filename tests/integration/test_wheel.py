"""The wheel as it is installed: in an environment of its own, beside packages with names like ours."""

import json
import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.polling import until
from tests.processes import ROOT, free_port

pytest.importorskip("hatchling", reason="what builds wheels is not installed")

CLIENT = """
import asyncio, sys, config, schemas
from firstdraft import AsyncClient, Client, InvalidRequest
from firstdraft.messages import Decision, Done

assert schemas.whose == config.whose == "somebody else's"
with Client(sys.argv[1]) as client:
    print(client.infer("unsure beta", max_tokens=4).text)
    events = list(client.stream("unsure beta", max_tokens=4))
    assert isinstance(events[-1], Done)
    assert any(isinstance(event, Decision) for event in events)
    try:
        client.infer("x", max_tokens=-1)
    except InvalidRequest as refusal:
        print(refusal.problem.errors[0].field)

async def ask():
    async with AsyncClient(sys.argv[1]) as client:
        return (await client.infer("one two", max_tokens=2)).text

print(asyncio.run(ask()))
files = {name: str(getattr(module, "__file__", "")) for name, module in sys.modules.items()}
ours = {name.partition(".")[0] for name, file in files.items() if "/firstdraft/" in file}
print(ours - {"firstdraft"})
"""


class Installed:
    """The wheel in a virtual environment with what an extra brings, and a folder with somebody else's packages."""

    def __init__(self, wheel: Path, folder: Path, *extras: str) -> None:
        self.folder = folder
        environment = folder / "environment"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=60)
        self.python = environment / "bin" / "python"
        (self.packages,) = environment.glob("lib/python*/site-packages")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.packages)
        self.names = {path.name for path in self.packages.iterdir()}
        for requirement in needed(self.packages, extras):
            self._link(requirement)
        for place in (folder, self.packages):
            (place / "schemas.py").write_text('whose = "somebody else\'s"\n')
            (place / "config").mkdir()
            (place / "config" / "__init__.py").write_text('whose = "somebody else\'s"\n')

    def _link(self, name: str) -> None:
        for file in distribution(name).files or []:
            top = file.parts[0]
            if top not in {"..", "__pycache__"} and not (self.packages / top).exists():
                (self.packages / top).symlink_to(file.locate().parents[len(file.parts) - 1] / top)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, *arguments],
            cwd=self.folder,
            env=self.environment(environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def environment(self, changes: dict[str, str]) -> dict[str, str]:
        ours = {"PYTHONPATH", "REDIS_URL"}
        return {name: value for name, value in os.environ.items() if name not in ours} | changes


def needed(packages: Path, extras: tuple[str, ...]) -> set[str]:
    """Names of the distributions that the wheel needs with these extras, and of those that they need."""
    (metadata,) = packages.glob("firstdraft-*.dist-info/METADATA")
    own = re.findall(r"^Requires-Dist: (.*)$", metadata.read_text(encoding="utf-8"), re.MULTILINE)
    found: set[str] = set()
    pending = [(Requirement(text), extras) for text in own]
    while pending:
        requirement, wanted = pending.pop()
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
            continue
        if requirement.name not in found:
            found.add(requirement.name)
            inner = distribution(requirement.name).requires or []
            pending += [(Requirement(text), tuple(requirement.extras)) for text in inner]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def client(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(wheel, tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def server(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(wheel, tmp_path_factory.mktemp("server"), "server")


@pytest.fixture(scope="module")
def quality(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(wheel, tmp_path_factory.mktemp("quality"), "quality")


def test_only_firstdraft_is_installed(client):
    assert {name for name in client.names if not name.endswith(".dist-info")} == {"firstdraft"}
    assert not any("experiments" in name or "tests" in name for name in client.names)


def test_a_client_needs_no_server_and_works_beside_packages_of_the_same_names(client, system):
    used = client.run("-c", CLIENT, system.url)
    assert used.stdout.splitlines() == ["beta unsure BETA unsure ", "max_tokens", "two one ", "set()"], used.stderr


@pytest.mark.parametrize("command", ["ask", "submit", "stats", "workers", "bench", "batch", "chat", "completion"])
def test_the_clients_commands_need_no_server(client, command):
    shown = client.run("-m", "firstdraft.cli", command, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")


def test_a_prompt_is_asked_with_the_client_alone(client, system):
    asked = client.run("-m", "firstdraft.cli", "ask", "one two", "--max-tokens", "2", FIRSTDRAFT_URL=system.url)
    assert (asked.returncode, asked.stdout) == (0, "two one \n"), asked.stderr
    nowhere = client.run("-m", "firstdraft.cli", "workers")
    assert "Traceback" not in nowhere.stderr


@pytest.mark.parametrize(
    "command", [["up"], ["keys", "create", "alice", "--scope", "read"], ["run", "edge"], ["doctor"]]
)
def test_a_command_of_the_server_says_in_one_line_what_to_install(client, command):
    refused = client.run("-m", "firstdraft.cli", *command)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"Error: firstdraft {command[0]} needs the server (No module named ")
    assert refused.stderr.endswith("pip install 'firstdraft[server]'\n")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["calibrate", "calibration"])
def test_calibrations_name_their_extra_and_run_with_it(client, server, quality, system, command):
    for without in (client, server):
        refused = without.run("-m", "firstdraft.cli", command)
        assert refused.returncode == 1
        assert refused.stderr.endswith("pip install 'firstdraft[quality]'\n")
    shown = quality.run("-m", "firstdraft.cli", command, "--help", REDIS_URL=system.redis_url)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "Needs the server" not in shown.stdout


def test_the_servers_commands_use_its_own_packages(server, system):
    made = server.run("-m", "firstdraft.cli", "keys", "create", "alice", REDIS_URL=system.redis_url)
    assert made.returncode == 0, made.stderr
    listed = server.run("-m", "firstdraft.cli", "keys", "list", "--json", REDIS_URL=system.redis_url)
    assert "alice" in {key["owner"]["name"] for key in json.loads(listed.stdout)}
    findings = server.run("-m", "firstdraft.cli", "doctor", "--json", REDIS_URL=system.redis_url).stdout
    assert next(found for found in json.loads(findings)["findings"] if found["name"] == "Redis")["fine"]


def test_the_gateway_runs_from_a_folder_with_packages_of_the_same_names(server, client, system, tmp_path):
    port = str(free_port())
    environment = server.environment({"REDIS_URL": system.redis_url, "FIRSTDRAFT_GATEWAY__PORT": port})
    with (tmp_path / "log").open("wb") as log:
        gateway = subprocess.Popen(
            [server.python, "-m", "firstdraft.cli", "run", "gateway"],
            cwd=server.folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        answered = until(lambda: _answer(client, url), "an answer", within_s=60)
        assert answered == "two one \n", (tmp_path / "log").read_text()
    finally:
        gateway.terminate()
        gateway.wait(20)


def _answer(client, url):
    return client.run("-m", "firstdraft.cli", "ask", "one two", "--max-tokens", "2", "--url", url).stdout
