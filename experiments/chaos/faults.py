"""The faults: each is done to a system that is busy with the requests of its phase."""

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from redis.exceptions import RedisError

from experiments.chaos.system import Cable, Fate, System
from experiments.waiting import until

#: Seconds for which a stopped process sleeps: past its lease.
SLEEP_S = 14.0
#: Seconds for which the network is cut, Redis is gone, and Redis is full.
CUT_S, GONE_S, FULL_S = 6.0, 3.0, 4.0
#: Seconds in which Redis must listen to us, and in which a worker must come to the step at which its fate waits.
AWAY_S, STRUCK_S = 30.0, 60.0
#: Kills of the phases that kill at random.
NUM_KILLS = 4
#: Seconds between them.
PAUSE_S = 1.5


def nothing(_system: System) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Fault:
    """`prepare` is called before requests come in, `disturb` while they do, `settle` when they have been submitted."""

    name: str
    disturb: Callable[[System], None] = nothing
    prepare: Callable[[System], None] = nothing
    settle: Callable[[System], None] = nothing
    #: Words that begin prompts of the phase that no worker survives: those requests must fail.
    poison: tuple[str, ...] = ()
    #: The figure that is more than zero if the fault has struck.
    shows: str | None = None


def killed_at(tier: str, step: str, countdown: int) -> Fault:
    """A worker of the tier kills itself at the step, for the first job or token for which it is told to."""
    name = f"{tier}-mortal"

    def prepare(system: System) -> None:
        system.add_worker(name, tier, fate=Fate(step, countdown))
        system.wait_until_ready()

    def disturb(system: System) -> None:
        until(lambda: system.members[name].deaths, f"{tier} comes to {step}", STRUCK_S)

    def settle(system: System) -> None:
        system.remove(name)

    return Fault(f"{tier}_{step}", disturb, prepare, settle, shows=None if step == "after_commit" else "recoveries")


def kill(prefix: str, times: int = NUM_KILLS) -> Callable[[System], None]:
    """SIGKILL of one of these processes, chosen at random, again and again."""

    def disturb(system: System) -> None:
        for _ in range(times):
            time.sleep(PAUSE_S)
            names = [name for name in system.members if name.startswith(prefix)]
            system.members[random.choice(names)].signal(signal.SIGKILL)

    return disturb


def slept_past_lease() -> Fault:
    """A worker of each tier stops before a commit until others have what it held; awake, it commits at once."""
    sleepers = {tier: f"{tier}-sleeper" for tier in ("edge", "cloud")}

    def prepare(system: System) -> None:
        for tier, name in sleepers.items():
            system.add_worker(name, tier, fate=Fate("before_commit", 5, signal.SIGSTOP))
        system.wait_until_ready()

    def disturb(system: System) -> None:
        stopped = len(system.fates())
        until(lambda: len(system.fates()) >= stopped + len(sleepers), "both sleep", STRUCK_S)
        time.sleep(SLEEP_S)
        for name in sleepers.values():
            system.members[name].signal(signal.SIGCONT)

    def settle(system: System) -> None:
        for name in sleepers.values():
            system.remove(name)

    return Fault("slept_past_lease", disturb, prepare, settle, shows="stale_refused")


def kill_redis(system: System) -> None:
    """SIGKILL of Redis, which comes back with what its append-only file holds."""
    time.sleep(PAUSE_S)
    redis = system.members["redis"]
    for _ in range(2):
        redis.signal(signal.SIGKILL)
        time.sleep(GONE_S)


def network_cut() -> Fault:
    """Workers whose road to Redis is cut and mended: for less than a lease, and for more."""
    cables: list[Cable] = []

    def prepare(system: System) -> None:
        cables.append(Cable(system.socket))
        for tier in ("edge", "cloud"):
            system.add_worker(f"{tier}-far", tier, REDIS_URL=f"redis://127.0.0.1:{cables[0].port}")
        system.wait_until_ready()

    def disturb(_system: System) -> None:
        for seconds in (CUT_S, SLEEP_S):
            time.sleep(0.5)
            cables[0].cut()
            time.sleep(seconds)
            cables[0].mend()

    def settle(system: System) -> None:
        for tier in ("edge", "cloud"):
            system.remove(f"{tier}-far")
        cables[0].close()

    return Fault("network_cut", disturb, prepare, settle)


def fill_redis(system: System) -> None:
    """Redis takes nothing more for a while."""
    time.sleep(0.5)
    system.redis.config_set("maxmemory", 1)
    time.sleep(FULL_S)
    until(partial(_holds_as_much_as_it_likes, system), "Redis takes data again", AWAY_S)


def _holds_as_much_as_it_likes(system: System) -> bool:
    with suppress(RedisError):
        return bool(system.redis.config_set("maxmemory", 0))
    return False


FAULTS = (
    Fault("none"),
    *(
        killed_at(tier, step, countdown)
        for tier in ("edge", "cloud")
        for step, countdown in (
            ("popped", 5),
            ("before_start", 5),
            ("mid_draft", 40),
            ("before_commit", 5),
            ("after_commit", 5),
        )
    ),
    Fault("edge_killed", kill("edge"), shows="recoveries"),
    Fault("cloud_killed", kill("cloud"), shows="recoveries"),
    Fault("gateway_killed", kill("gateway")),
    Fault("redis_killed", kill_redis),
    slept_past_lease(),
    network_cut(),
    Fault("poison_prompt", poison=("kill",), shows="recoveries"),
    Fault("redis_full", fill_redis),
)
