"""Settings as typed values: `default.yaml`, then a profile, then the user's file, then the environment.

Everything is validated when it is read: an invalid value stops the process with an error that names it. Secrets stay
in the environment; no setting holds one (`redis.url` may contain a password and hides it in its repr).
"""

import os
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from limits import parse_many
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

Share = Annotated[float, Field(ge=0.0, le=1.0)]
TierName = Literal["edge", "cloud"]

#: Prefix of environment variables that are settings.
ENV_PREFIX = "FIRSTDRAFT_"
#: Variables that choose files and are not settings themselves.
PROFILE_VARIABLE, FILE_VARIABLE = f"{ENV_PREFIX}PROFILE", f"{ENV_PREFIX}CONFIG"
#: Variables for clients: the gateway's URL and their API key. They are not settings.
URL_VARIABLE, API_KEY_VARIABLE = f"{ENV_PREFIX}URL", f"{ENV_PREFIX}API_KEY"
#: URL schemes of a Redis server: plain, over TLS, on a Unix socket.
REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
#: Wildcard addresses to listen on, and the address by which the machine itself reaches them.
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - looked up, not listened on


class InvalidSettings(Exception):
    """A setting is invalid; the process that reads it must not start. The message names the setting."""


class Section(BaseModel):
    """A section of the settings: frozen, without infinities, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RedisSettings(Section):
    """The Redis servers."""

    url: SecretStr | None
    #: The prefix index's server; None for the same.
    index_url: SecretStr | None
    unsuitable: Literal["warn", "refuse"]

    @field_validator("url", "index_url")
    @classmethod
    def _is_an_address(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(REDIS_SCHEMES):
            raise ValueError(f"it must start with one of {', '.join(REDIS_SCHEMES)}")
        return value


class GatewaySettings(Section):
    """The gateway."""

    host: str
    port: int = Field(ge=0, le=65535)
    health_port: int | None = Field(ge=1, le=65535)
    processes: int = Field(ge=1)
    threads: int = Field(ge=2)
    max_wait_s: float = Field(gt=0)
    max_streams: int = Field(ge=1)
    max_transfers: int = Field(ge=1)
    max_connections: int = Field(ge=2)
    keep_alive_s: int = Field(ge=1)
    request_s: float = Field(gt=0)
    max_body_bytes: int = Field(ge=1024)
    require_api_keys: bool
    rate_limit: str

    @field_validator("host")
    @classmethod
    def _is_an_address_without_brackets(cls, value: str) -> str:
        return value[1:-1] if value.startswith("[") and value.endswith("]") else value

    @field_validator("rate_limit")
    @classmethod
    def _is_a_rate(cls, value: str) -> str:
        parse_many(value)
        return value

    max_answer_s: float = Field(gt=0)
    status_s: float = Field(ge=0)
    model_aliases: dict[str, str]
    files_path: Path | None
    max_file_bytes: int = Field(ge=1024)
    owner_max_files: int = Field(ge=1)
    owner_max_file_bytes: int = Field(ge=1024)
    file_ttl_s: int = Field(ge=60)
    owner_max_batches: int = Field(ge=1)
    batch_in_flight: int = Field(ge=1)

    @model_validator(mode="after")
    def _leaves_threads_for_health(self) -> Self:
        if self.max_streams + self.max_transfers >= self.threads:
            raise ValueError(
                f"max_streams ({self.max_streams}) and max_transfers ({self.max_transfers}) together must be below"
                f" threads ({self.threads})"
            )
        if self.threads >= self.max_connections:
            raise ValueError(f"threads ({self.threads}) must be below max_connections ({self.max_connections})")
        return self

    @property
    def authority(self) -> str:
        """Host and port as in a URL: an IPv6 address in brackets."""
        return _authority(self.host, self.port)

    @property
    def local_url(self) -> str:
        """The gateway's URL on this machine."""
        return f"http://{_authority(EVERY_ADDRESS.get(self.host, self.host), self.port)}"


class RequestSettings(Section):
    """Defaults and limits of requests."""

    policy: str
    result_ttl_s: int = Field(ge=1)
    gone_ttl_s: int = Field(ge=1)
    deadline_s: float = Field(gt=0, le=31_622_400)
    max_attempts: int = Field(ge=1)
    quarantine_s: int = Field(ge=1)
    lease_s: float = Field(ge=2)
    stall_s: float = Field(gt=0)
    stop_grace_s: float = Field(ge=0)
    durability: Literal["redis", "fsync"]
    cache_sharing: Literal["owner", "all"]
    max_prompt_bytes: int = Field(ge=1)


class BackpressureSettings(Section):
    """How much may be unfinished before new requests are refused."""

    max_requests: int = Field(ge=1)
    max_tokens: int = Field(ge=1)
    owner_max_requests: int = Field(ge=1)
    owner_max_tokens: int = Field(ge=1)
    longest_retry_after_s: int = Field(ge=1)


class WebhookSettings(Section):
    """HTTP calls to users' servers when their jobs have finished."""

    secret_env: str
    allow_http: bool
    allow_private_addresses: bool
    timeout_s: float = Field(gt=0, le=20)


class RoutingSettings(Section):
    """Which worker a request goes to."""

    policy: Literal["prefix", "least_loaded", "random"]
    max_waiting: int = Field(ge=1)


class EdgeModelSettings(Section):
    """The small model."""

    path: str = Field(min_length=1)
    context_tokens: int = Field(ge=64)
    threads: int = Field(ge=0)
    gpu_layers: int = Field(ge=-1)


class ConfidenceSettings(Section):
    """When a draft's confidence makes it the answer."""

    enabled: bool
    strategy: str
    threshold: Share
    weights: dict[str, Annotated[float, Field(ge=0)]]
    pooling: Literal["mean", "log_mean", "quantile", "minimum"]
    quantile: float = Field(gt=0, lt=1)
    temperature: float = Field(gt=0)
    top_k: int = Field(ge=1)


class EarlyEscalationSettings(Section):
    """When a draft is escalated before it is complete."""

    enabled: bool
    min_tokens: int = Field(ge=1)
    window_tokens: int = Field(ge=1)
    collapse_share: Share


class EdgeCacheSettings(Section):
    """The edge's prefix cache."""

    enabled: bool
    max_size: int = Field(ge=256)
    save_path: Path | None


class EdgeSettings(Section):
    """The edge tier."""

    model: EdgeModelSettings
    #: llama.cpp supports 256 sequences, and the prefix cache uses one.
    max_in_flight: int = Field(ge=1, le=255)
    max_in_flight_tokens: int = Field(ge=256)
    step_tokens: int = Field(ge=32)
    confidence: ConfidenceSettings
    early_escalation: EarlyEscalationSettings
    kv_cache: EdgeCacheSettings

    @model_validator(mode="after")
    def _step_holds_the_batch(self) -> Self:
        if self.step_tokens <= self.max_in_flight:
            raise ValueError(f"step_tokens ({self.step_tokens}) must be above max_in_flight ({self.max_in_flight})")
        return self


class CloudModelSettings(Section):
    """The large model, as vLLM loads it."""

    path: str = Field(min_length=1)
    context_tokens: int = Field(ge=64)
    dtype: Literal["auto", "float32", "float16", "bfloat16"]
    eager: bool
    tensor_parallel: int = Field(ge=1)
    engine_args: dict[str, Any]


class RemoteCloudSettings(Section):
    """A remote OpenAI-compatible server as the cloud tier."""

    base_url: str | None
    model: str | None
    api_key_env: str
    timeout_s: float = Field(gt=0)
    max_retries: int = Field(ge=0)
    cache_salt: bool


class VerifierSettings(Section):
    """How the cloud verifies drafts."""

    enabled: bool
    mode: Literal["exact", "threshold"]
    acceptance_threshold: Share
    max_proposed: int = Field(ge=1, le=64)
    rejoin: bool
    adapt: bool
    min_edge_probability: Share


class CloudCacheSettings(Section):
    """vLLM's KV blocks and prefix caching."""

    enabled: bool
    max_blocks: int | None = Field(ge=8)
    block_size: int = Field(ge=1)
    cpu_gib: int = Field(ge=1)


class CloudSettings(Section):
    """The cloud tier."""

    engine: Literal["vllm", "openai"]
    model: CloudModelSettings
    max_in_flight: int = Field(ge=1, le=1024)
    niceness: int = Field(ge=0, le=19)
    openai: RemoteCloudSettings
    draft_verifier: VerifierSettings
    kv_cache: CloudCacheSettings

    @model_validator(mode="after")
    def _remote_is_named(self) -> Self:
        if self.engine == "openai" and not (self.openai.base_url and self.openai.model):
            raise ValueError("engine is openai, so openai.base_url and openai.model must be set")
        return self


class PolicySettings(Section):
    """One policy; its name is its key."""

    description: str
    tiers: tuple[TierName, ...] = Field(min_length=1, max_length=2)
    confidence_decides: bool
    verify_draft: bool
    kv_caches: bool


class AblationSettings(Section):
    """One configuration that `firstdraft ablate` compares."""

    name: str = Field(min_length=1)
    description: str
    config_overrides: dict[str, Any]


class ExperimentSettings(Section):
    """What experiments compare."""

    ablations: tuple[AblationSettings, ...]


class ModelStoreSettings(Section):
    """Where prepared models are kept."""

    cache_path: Path | None


class AuditSettings(Section):
    """Kept drafts that the cloud verifies afterwards."""

    share: Share
    max_busy: int = Field(ge=0)
    at_once: int = Field(ge=1)
    keep_s: int = Field(ge=60)


class QualitySettings(Section):
    """How calibrations are watched in service."""

    audits: AuditSettings


class PrefixIndexSettings(Section):
    """The index of which worker has which prefix cached."""

    enabled: bool
    block_bytes: int = Field(ge=16, le=65536)
    entry_ttl_s: int = Field(ge=10)
    max_conversations: int = Field(ge=1)


class Settings(BaseSettings):
    """All settings. `read_settings` makes one; nothing else reads the environment or a settings file."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    redis: RedisSettings
    gateway: GatewaySettings
    requests: RequestSettings
    routing: RoutingSettings
    backpressure: BackpressureSettings
    webhooks: WebhookSettings
    edge: EdgeSettings
    cloud: CloudSettings
    quality: QualitySettings
    prefix_index: PrefixIndexSettings
    policies: dict[str, PolicySettings]
    experiments: ExperimentSettings
    models: ModelStoreSettings
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"]

    @field_validator("log_level", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _default_policy_exists(self) -> Self:
        if self.requests.policy not in self.policies:
            known = ", ".join(sorted(self.policies))
            raise ValueError(f"requests.policy is {self.requests.policy!r}; known policies are {known}")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """See pydantic-settings: earlier sources win."""
        layers = YamlConfigSettingsSource(
            settings_cls, yaml_file=_yaml_files(), yaml_file_encoding="utf-8", deep_merge=True
        )
        return init_settings, env_settings, layers


def _yaml_files() -> list[Path | Traversable]:
    here = files("config")
    layers: list[Path | Traversable] = [here / "default.yaml"]
    if profile := os.environ.get(PROFILE_VARIABLE):
        chosen = here / "profiles" / f"{profile}.yaml"
        if not chosen.is_file():
            known = ", ".join(sorted(p.name.removesuffix(".yaml") for p in (here / "profiles").iterdir()))
            raise InvalidSettings(f"{PROFILE_VARIABLE} is {profile!r}; known profiles are {known}")
        layers.append(chosen)
    if user_file := os.environ.get(FILE_VARIABLE):
        layers.append(_checked(Path(user_file)))
    return layers


def _checked(path: Path) -> Path:
    """The user's file, if it is a YAML mapping. Raises `InvalidSettings`."""
    if not path.is_file():
        raise InvalidSettings(f"{FILE_VARIABLE} is {str(path)!r}, which is not a file")
    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise InvalidSettings(f"{FILE_VARIABLE} is {str(path)!r}, which is not YAML: {error}") from error
    if not isinstance(content, dict | None):
        raise InvalidSettings(f"{FILE_VARIABLE} is {str(path)!r}, which holds no sections")
    return path


def _refuse_unknown_variables() -> None:
    """Raise `InvalidSettings` for a variable whose section is unknown; pydantic refuses unknown keys only."""
    known = sorted(Settings.model_fields)
    for variable in sorted(os.environ):
        section = variable.upper().removeprefix(ENV_PREFIX).split("__")[0].lower()
        if not variable.upper().startswith(ENV_PREFIX) or variable in {
            PROFILE_VARIABLE,
            FILE_VARIABLE,
            URL_VARIABLE,
            API_KEY_VARIABLE,
        }:
            continue
        if section not in known:
            raise InvalidSettings(f"{variable} names no section of the settings; sections are {', '.join(known)}")


def read_settings(**overrides: object) -> Settings:
    """Read and check all settings. Raises `InvalidSettings`, which names each bad setting and its value.

    `overrides` are sections as mappings and win over everything. `REDIS_URL` stands for `redis.url` and
    `REDIS_INDEX_URL` for `redis.index_url`; empty, they count as unset.
    """
    _refuse_unknown_variables()
    if "redis" not in overrides:
        overrides["redis"] = _redis_variables()
    try:
        return Settings(**overrides)  # type: ignore[arg-type] # sections are validated, not typed, here
    except ValidationError as error:
        complaints = "; ".join(_complaint(problem) for problem in error.errors(include_url=False))
        raise InvalidSettings(f"invalid settings: {complaints}") from None
    except SettingsError as error:  # a variable that should be JSON and is not; the message names its section
        raise InvalidSettings(f"invalid settings: {error}") from error


def _redis_variables() -> dict[str, str]:
    """The servers' URLs from the short variable names, where the long ones are not set."""
    short = {"url": "REDIS_URL", "index_url": "REDIS_INDEX_URL"}
    return {
        field: os.environ[variable]
        for field, variable in short.items()
        if os.environ.get(variable) and f"{ENV_PREFIX}REDIS__{field.upper()}" not in os.environ
    }


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_secret(name: str) -> str | None:
    """The value of an environment variable that a setting names; no setting holds a secret itself."""
    return os.environ.get(name) or None


def _complaint(problem: ErrorDetails) -> str:
    """One invalid setting in words, with its value unless that may be a secret or is in the message already."""
    location = ".".join(str(part) for part in problem["loc"]) or "settings"
    shows_value = problem["type"] not in {"missing", "value_error"} and problem["loc"][:1] != ("redis",)
    return f"{location}: {problem['msg']}" + (f" (it is {problem['input']!r})" if shows_value else "")


@cache
def cache_folder() -> Path:
    """The folder for prepared models and other reproducible files, by the XDG convention."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "firstdraft"


@cache
def state_folder() -> Path:
    """The folder for the embedded server's data, by the XDG convention."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "firstdraft"
