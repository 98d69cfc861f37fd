"""The faults, each injected into a system that is processing requests."""

import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from signal import SIGCONT, SIGKILL, SIGSTOP

from redis.exceptions import RedisError

from experiments.harness.redis_proxy import RedisProxy
from experiments.harness.system import SelfSignal, System
from experiments.waiting import until
from schemas.policy import Tier

#: Seconds for which a process is stopped: longer than its lease.
PAST_LEASE_S = 14.0
#: Seconds for which the network is cut, Redis is gone, and Redis is full.
CUT_S, GONE_S, FULL_S = 6.0, 3.0, 4.0
#: Seconds in which Redis must answer again, and in which a worker must reach the step at which it signals itself.
AWAY_S, STRUCK_S = 30.0, 60.0
#: Kills of the faults that kill at random, and seconds between them.
NUM_KILLS, PAUSE_S = 4, 1.5
#: Seconds until a worker on a real engine is disturbed, which by then has requests in flight.
ENGINE_AFTER_S = 3.0


def nothing(_system: System) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Fault:
    """`set_up` runs before requests are submitted, `inject` meanwhile, `clean_up` when all have been submitted."""

    name: str
    inject: Callable[[System], None] = nothing
    set_up: Callable[[System], None] = nothing
    clean_up: Callable[[System], None] = nothing
    #: The first words of as many prompts, none of which any worker survives: those requests must fail.
    poison: tuple[str, ...] = ()
    #: The figure that is more than zero if the fault had an effect.
    shows: str | None = None


def killed_at(tier: Tier, step: str, countdown: int) -> Fault:
    """A worker of the tier kills itself when it reaches the step for the `countdown`-th job, or token."""
    name = f"{tier}-mortal"

    def set_up(system: System) -> None:
        system.add_fake_worker(name, tier, self_signal=SelfSignal(step, countdown))
        system.wait_until_ready()

    def inject(system: System) -> None:
        until(lambda: system.processes[name].deaths, f"the {tier} worker reaches {step}", STRUCK_S)

    shows = None if step == "after_commit" else "recoveries"
    return Fault(f"{tier}_{step}", inject, set_up, lambda system: system.remove(name), shows=shows)


def kill(prefix: str) -> Callable[[System], None]:
    """SIGKILL of a random process of those whose names begin so, again and again."""

    def inject(system: System) -> None:
        for _ in range(NUM_KILLS):
            time.sleep(PAUSE_S)
            names = [name for name in system.processes if name.startswith(prefix)]
            system.processes[random.choice(names)].send_signal(SIGKILL)

    return inject


def slept_past_lease() -> Fault:
    """A worker of each tier stops before a commit until others have its leases; continued, it commits at once."""
    names = [f"{tier}-sleeper" for tier in Tier]

    def set_up(system: System) -> None:
        for tier, name in zip(Tier, names, strict=True):
            system.add_fake_worker(name, tier, self_signal=SelfSignal("before_commit", 5, SIGSTOP))
        system.wait_until_ready()

    def inject(system: System) -> None:
        num_before = len(system.self_signals())
        until(lambda: len(system.self_signals()) >= num_before + len(names), "both have stopped", STRUCK_S)
        time.sleep(PAST_LEASE_S)
        for name in names:
            system.processes[name].send_signal(SIGCONT)

    return Fault("slept_past_lease", inject, set_up, lambda system: _remove(system, names), shows="stale_refused")


def kill_redis(system: System) -> None:
    """SIGKILL of Redis, which comes back with what its append-only file holds."""
    time.sleep(PAUSE_S)
    for _ in range(2):
        system.processes["redis"].send_signal(SIGKILL)
        time.sleep(GONE_S)


def network_cut() -> Fault:
    """Workers whose connections to Redis are cut: for less than a lease, and for more."""
    proxies: list[RedisProxy] = []
    names = [f"{tier}-far" for tier in Tier]

    def set_up(system: System) -> None:
        proxies.append(RedisProxy(system.redis_url))
        for tier, name in zip(Tier, names, strict=True):
            system.add_fake_worker(name, tier, environment={"REDIS_URL": proxies[0].url})
        system.wait_until_ready()

    def inject(_system: System) -> None:
        for seconds in (CUT_S, PAST_LEASE_S):
            time.sleep(0.5)
            proxies[0].cut()
            time.sleep(seconds)
            proxies[0].restore()

    def clean_up(system: System) -> None:
        _remove(system, names)
        proxies[0].close()

    return Fault("network_cut", inject, set_up, clean_up)


def fill_redis(system: System) -> None:
    """Redis takes no more data for a while."""

    def takes_data_again() -> bool:
        with suppress(RedisError):
            return bool(system.redis.config_set("maxmemory", 0))
        return False

    time.sleep(0.5)
    system.redis.config_set("maxmemory", 1)
    time.sleep(FULL_S)
    until(takes_data_again, "Redis takes data again", AWAY_S)


def engine_killed(tier: Tier) -> Fault:
    """SIGKILL of the tier's only worker, which is on a real engine."""

    def inject(system: System) -> None:
        time.sleep(ENGINE_AFTER_S)
        system.processes[f"{tier}-engine"].send_signal(SIGKILL)

    return Fault(f"engine_{tier}_killed", inject)


def engine_slept(tier: Tier) -> Fault:
    """The tier's only worker, which is on a real engine, stops for longer than its leases."""

    def inject(system: System) -> None:
        time.sleep(ENGINE_AFTER_S)
        worker = system.processes[f"{tier}-engine"]
        worker.send_signal(SIGSTOP)
        time.sleep(PAST_LEASE_S)
        worker.send_signal(SIGCONT)

    return Fault(f"engine_{tier}_slept", inject)


def _remove(system: System, names: Sequence[str]) -> None:
    for name in names:
        system.remove(name)


FAULTS = (
    Fault("none"),
    *(
        killed_at(tier, step, countdown=40 if step == "mid_draft" else 5)
        for tier in Tier
        for step in ("before_start", "mid_draft", "before_commit", "after_commit")
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
ENGINE_FAULTS = (engine_killed(Tier.EDGE), engine_killed(Tier.CLOUD), engine_slept(Tier.EDGE))
