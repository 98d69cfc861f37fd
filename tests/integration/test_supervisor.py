import signal
import sys
import time
from pathlib import Path
from threading import Thread

import httpx
import psutil

from firstdraft.local.supervisor import FIRST_DELAY_S, KILL_S, Program, SupervisedProcess, Supervisor, read_procfile
from tests.polling import until
from tests.processes import free_port, running

ANY_PORT = {"FIRSTDRAFT_GATEWAY__PORT": str(free_port())}
COUNTING = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); n = len(p.read_text()) + 1 if p.exists() else 1; "


def counting(file: Path, then: str) -> list[str]:
    """A command that counts its starts in a file, then does something."""
    return [sys.executable, "-c", COUNTING + f"p.write_text('x' * n); {then}", str(file)]


def supervised(command: list[str], **options: bool) -> SupervisedProcess:
    return SupervisedProcess(Program("worker", command, **options))


def test_a_worker_that_ends_badly_is_started_again_until_it_ends_well(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    assert supervised(counting(starts, "sys.exit(0 if n == 3 else 7)")).run() == 0
    assert len(starts.read_text()) == 3


def test_a_worker_that_cannot_start_is_given_up(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    assert supervised(counting(starts, "sys.exit(7)")).run() == 7
    assert len(starts.read_text()) == 5


def test_a_stop_ends_the_worker_and_starts_no_other(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    process = supervised(counting(starts, "import time; time.sleep(60)"))
    statuses: list[int] = []
    thread = Thread(target=lambda: statuses.append(process.run()))
    thread.start()
    until(starts.exists, "a start")
    process.stop()
    thread.join(10)
    assert statuses == [0]
    assert len(starts.read_text()) == 1


def test_a_stop_does_not_wait_for_the_next_start(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    process = supervised(counting(starts, "sys.exit(7)"))
    thread = Thread(target=process.run)
    thread.start()
    until(lambda: starts.exists() and len(starts.read_text()) == 4, "the start before a delay of seconds")
    began = time.monotonic()
    process.stop()
    thread.join(10)
    assert time.monotonic() - began < FIRST_DELAY_S * 2**3 / 2
    assert len(starts.read_text()) == 4


def test_a_process_of_a_procfile_is_not_started_again(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    assert supervised(counting(starts, "sys.exit(7)"), restarts=False).run() == 7
    assert len(starts.read_text()) == 1


def test_a_supervisor_that_is_killed_takes_its_worker_with_it(tmp_path: Path, redis_url: str) -> None:
    with running("firstdraft.cli", "run", "edge", "--restart", log=tmp_path / "log", REDIS_URL=redis_url) as supervisor:
        children = until(lambda: psutil.Process(supervisor.pid).children(), "a worker")
        supervisor.signal(signal.SIGKILL)
        supervisor.wait(5)
        until(lambda: not any(child.is_running() for child in children), "the worker's end")
        assert not any(child.is_running() for child in children)


def _answers(port: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_what_ignores_its_supervisors_death_is_killed(tmp_path: Path) -> None:
    procfile, deaf = tmp_path / "Procfile", tmp_path / "deaf.py"
    deaf.write_text("import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)")
    procfile.write_text(f"deaf: {sys.executable} {deaf}; echo ended")
    environment = {"REDIS_URL": "", "XDG_STATE_HOME": str(tmp_path), "FIRSTDRAFT_EDGE__MODEL__PATH": "stand-in"}
    environment |= ANY_PORT | {"FIRSTDRAFT_CLOUD__MODEL__PATH": "stand-in"}
    with running("firstdraft.cli", "up", "--procfile", str(procfile), log=tmp_path / "log", **environment) as up:
        until(lambda: up.said("| deaf"), "the process", within_s=60)
        started = psutil.Process(up.pid).children(recursive=True)
        up.signal(signal.SIGKILL)
        up.wait(5)
        until(lambda: not any(process.is_running() for process in started), "the end of all", within_s=KILL_S + 5)
        assert not any(process.is_running() for process in started)


def test_run_is_the_process_itself(tmp_path: Path, redis_url: str) -> None:
    with running("firstdraft.cli", "run", "gateway", log=tmp_path / "log", REDIS_URL=redis_url, **ANY_PORT) as gateway:
        until(lambda: _answers(ANY_PORT["FIRSTDRAFT_GATEWAY__PORT"]), "the gateway's start", within_s=60)
        assert "firstdraft.cli" not in " ".join(psutil.Process(gateway.pid).cmdline())
        gateway.signal(signal.SIGTERM)
        assert gateway.wait(10) == 0


def test_lines_have_their_process_before_them_and_keep_their_bytes(tmp_path: Path) -> None:
    printing = ["/bin/sh", "-c", "printf 'one\\n\\377'; exit 3"]
    programs = [Program("a", printing, restarts=False), Program("long", ["sleep", "60"])]
    with (tmp_path / "output").open("wb") as output:
        supervisor = Supervisor(programs, {}, output)
        supervisor.start()
        assert supervisor.wait(10)
        supervisor.stop()
    assert supervisor.failure == "a ended with status 3"
    lines = (tmp_path / "output").read_bytes().splitlines()
    assert [line.partition(b" ")[2] for line in lines] == [b"a    | one", b"a    | \xff"]


def test_what_ignores_a_stop_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    deaf = f"import signal, time, pathlib; signal.signal(15, signal.SIG_IGN); pathlib.Path({str(ready)!r}).touch()"
    with (tmp_path / "output").open("wb") as output:
        supervisor = Supervisor([Program("deaf", [sys.executable, "-c", deaf + "; time.sleep(60)"])], {}, output)
        supervisor.start()
        until(ready.exists, "a start")
        began = time.monotonic()
        supervisor.stop()
    assert KILL_S <= time.monotonic() - began < KILL_S + 2


def test_a_procfile_is_read_as_honcho_reads_it(tmp_path: Path) -> None:
    procfile = tmp_path / "Procfile"
    procfile.write_text("# both tiers\n\ngateway: exit 4 # four\nedge:  A=b:c env; exit 3\n", encoding="utf-8")
    gateway, edge = read_procfile(procfile)
    assert (gateway.name, edge.name) == ("gateway", "edge")
    assert (SupervisedProcess(gateway).run(), SupervisedProcess(edge).run()) == (4, 3)
