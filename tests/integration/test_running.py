"""`firstdraft up` and `firstdraft demo` as a user runs them, around stand-in engines."""

import os
import signal
import socket
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.polling import until
from tests.processes import ROOT, Process, free_port, running

#: What a stop may take, in seconds.
STOP_S = 10.0
START_S = 60.0
PROCFILE = ROOT / "tests" / "fakes" / "Procfile"
#: Deaf to SIGTERM, and so is what it starts in a session of its own, as an engine's processes may be.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) > 2:
    subprocess.Popen([sys.executable, __file__, sys.argv[1]], start_new_session=True)
time.sleep(600)
"""


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def environment(tmp_path: Path, port: int) -> dict[str, str]:
    """A system of the test's own, whose workers need no model."""
    return {
        "REDIS_URL": "",  # as good as unset: the embedded server is part of the test
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "FIRSTDRAFT_GATEWAY__PORT": str(port),
        "FIRSTDRAFT_EDGE__MODEL__PATH": "stand-in",
        "FIRSTDRAFT_CLOUD__MODEL__PATH": "stand-in",
    }


def firstdraft(
    command: str, tmp_path: Path, environment: dict[str, str], procfile: Path = PROCFILE
) -> AbstractContextManager[Process]:
    return running("firstdraft.cli", command, "--procfile", str(procfile), log=tmp_path / "log", **environment)


def family(process: Process) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children(recursive=True)
    commands = [" ".join(one.cmdline()) for one in found]
    for name in ("-m gateway", "worker edge", "worker cloud", "redis.sock"):
        assert any(name in command for command in commands), (name, commands)
    return found


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def ready(process: Process) -> list[psutil.Process]:
    """Wait until the system is ready; all its processes."""
    until(lambda: process.said("ready at"), "the system is ready", within_s=START_S)
    return family(process)


@pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)])
def test_a_stop_ends_every_process_in_time_and_leaves_none(tmp_path, environment, port, signals) -> None:
    with firstdraft("up", tmp_path, environment) as up:
        processes = ready(up)
        assert httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
        for number in signals:
            up.signal(number)
            until(lambda: up.said("stopping"), "the stop's beginning")
        assert up.wait(STOP_S) == 0
        assert alive(processes) == []
        assert "stopped" in up.log.read_text()


def test_what_ignores_the_stop_is_killed_with_all_that_it_started(tmp_path, environment) -> None:
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN)
    procfile = tmp_path / "Procfile"
    procfile.write_text(f"{PROCFILE.read_text()}stubborn: python {script} {tmp_path} again\n")
    with firstdraft("up", tmp_path, environment, procfile) as up:
        processes = ready(up)
        assert len([one for one in processes if str(script) in one.cmdline()]) == 2
        up.signal(signal.SIGTERM)
        assert up.wait(STOP_S) == 0
        assert alive(processes) == []


def test_a_process_that_ends_for_good_takes_the_others_with_it(tmp_path, environment) -> None:
    with firstdraft("up", tmp_path, environment) as up:
        processes = ready(up)
        next(one for one in processes if "edge" in one.cmdline()).kill()  # its shell says 128 + 9
        assert up.wait(STOP_S) == 1
        assert alive(processes) == []
        assert "edge ended with status 137 and took the others with it" in up.log.read_text()


def test_nothing_outlives_a_killed_owner(tmp_path, environment) -> None:
    with firstdraft("up", tmp_path, environment) as up:
        processes = ready(up)
        os.kill(up.pid, signal.SIGKILL)
        until(lambda: not alive(processes), "the end of every process", within_s=STOP_S)
        assert alive(processes) == []


def test_a_process_that_cannot_start_ends_it_all_with_its_words(tmp_path, environment) -> None:
    procfile = tmp_path / "Procfile"
    procfile.write_text('gateway: python -m gateway\nedge: echo "no model here"; exit 3\n')
    with firstdraft("demo", tmp_path, environment, procfile) as demo:
        assert demo.wait(START_S) == 1
        said = demo.log.read_text()
        assert "edge ended with status 3 before all were ready" in said
        assert "no model here" in said
        assert "Traceback" not in said.rpartition("Error:")[2]


def test_a_port_that_is_taken_is_said_before_anything_starts(tmp_path, environment, port) -> None:
    with (
        socket.create_server(("127.0.0.1", port)),
        firstdraft("up", tmp_path, environment) as up,
    ):
        assert up.wait(START_S) == 1
        assert f"cannot listen on 127.0.0.1:{port}" in up.log.read_text()
        assert not (tmp_path / "state" / "firstdraft" / "redis").exists()


def test_a_second_system_on_the_same_data_is_refused(tmp_path, environment) -> None:
    with firstdraft("up", tmp_path, environment) as up:
        ready(up)
        other = {**environment, "FIRSTDRAFT_GATEWAY__PORT": str(free_port())}
        with running("firstdraft.cli", "up", "--procfile", str(PROCFILE), log=tmp_path / "other", **other) as second:
            assert second.wait(START_S) == 1
            assert "another embedded server runs on" in second.log.read_text()
        assert psutil.pid_exists(up.pid)


def test_a_procfile_that_is_not_there_is_a_wrong_command_line(tmp_path, environment) -> None:
    with firstdraft("up", tmp_path, environment, tmp_path / "nowhere") as up:
        assert up.wait(START_S) == 2
        assert "nowhere" in up.log.read_text()


def test_the_demo_shows_every_answer_and_stops(tmp_path, environment) -> None:
    with firstdraft("demo", tmp_path, environment) as demo:
        assert demo.wait(START_S) == 0
        said = demo.log.read_text()
        assert said.count("answered by:") == 5
        assert said.count("verifying") == 5
        assert "answers left from the edge" in said
        assert said.rstrip().endswith("stopped")
