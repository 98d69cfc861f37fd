import os
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from config.settings import InvalidSettings, Settings, read_settings

PROFILES = sorted(path.name.removesuffix(".yaml") for path in (files("config") / "profiles").iterdir())

#: The keys that users know from the field, as the design lists them.
DESIGN_KEYS = [
    "edge.model.path",
    "edge.confidence.strategy",
    "edge.confidence.threshold",
    "edge.kv_cache.enabled",
    "edge.kv_cache.max_size",
    "cloud.model.path",
    "cloud.draft_verifier.acceptance_threshold",
    "cloud.kv_cache.enabled",
    "cloud.kv_cache.max_blocks",
]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):

    for name in list(os.environ):
        if name.upper().startswith("FIRSTDRAFT_") or name == "REDIS_URL":
            monkeypatch.delenv(name)


@pytest.fixture
def user_file(tmp_path, monkeypatch):
    def write(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        monkeypatch.setenv("FIRSTDRAFT_CONFIG", str(path))
        return path

    return write


def at(settings: Settings, key: str) -> object:
    value: object = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def test_the_defaults_can_be_used():
    settings = read_settings()
    assert settings.requests.policy in settings.policies
    assert settings.redis.url is None


@pytest.mark.parametrize("key", DESIGN_KEYS)
def test_every_key_of_the_design_is_a_setting(key):
    default = yaml.safe_load((files("config") / "default.yaml").read_text())
    for part in key.split("."):
        assert part in default
        default = default[part]
    assert at(read_settings(), key) == default


def test_ablations_are_named_and_override_settings():
    for ablation in read_settings().experiments.ablations:
        assert ablation.name
        assert ablation.description
        assert ablation.config_overrides


def test_the_six_policies_are_those_of_the_design():
    rows = {
        name: (policy.tiers, policy.confidence_decides, policy.verify_draft, policy.kv_caches)
        for name, policy in read_settings().policies.items()
    }
    assert rows == {
        "baseline": (("edge", "cloud"), True, True, True),
        "no_confidence": (("edge", "cloud"), False, True, True),
        "no_draft_verify": (("edge", "cloud"), True, False, True),
        "no_kv_cache": (("edge", "cloud"), True, True, False),
        "edge_only": (("edge",), False, False, True),
        "cloud_only": (("cloud",), False, False, True),
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_can_be_used(profile, monkeypatch):
    monkeypatch.setenv("FIRSTDRAFT_PROFILE", profile)
    assert read_settings() != Settings.model_construct()


def test_the_gpu_profile_uses_the_gpu(monkeypatch):
    monkeypatch.setenv("FIRSTDRAFT_PROFILE", "gpu")
    settings = read_settings()
    assert (settings.cloud.model.eager, settings.cloud.model.dtype) == (False, "auto")
    assert settings.edge.model.gpu_layers == -1


def test_the_compiled_profile_only_compiles(monkeypatch):
    default = read_settings()
    monkeypatch.setenv("FIRSTDRAFT_PROFILE", "cpu-compiled")
    compiled = read_settings()
    assert not compiled.cloud.model.eager
    assert compiled.edge == default.edge


def test_the_environment_wins_over_the_file_the_file_over_the_profile_the_profile_over_the_defaults(
    monkeypatch, user_file
):
    default = read_settings()
    assert default.edge.max_in_flight != 64
    monkeypatch.setenv("FIRSTDRAFT_PROFILE", "gpu")
    assert read_settings().edge.max_in_flight == 64
    user_file("edge: {max_in_flight: 8, confidence: {threshold: 0.7}}")
    assert read_settings().edge.max_in_flight == 8
    monkeypatch.setenv("FIRSTDRAFT_EDGE__MAX_IN_FLIGHT", "4")
    settings = read_settings()
    assert settings.edge.max_in_flight == 4
    assert settings.edge.confidence.threshold == 0.7
    assert settings.edge.model.gpu_layers == -1
    assert settings.gateway == default.gateway


def test_the_callers_own_values_win_over_everything(monkeypatch):
    monkeypatch.setenv("FIRSTDRAFT_REQUESTS__LEASE_S", "20")
    settings = read_settings(requests={"lease_s": 5})
    assert settings.requests.lease_s == 5
    assert settings.requests.max_attempts == read_settings().requests.max_attempts


def test_redis_url_stands_for_the_setting_and_the_setting_wins(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://one")
    assert read_settings().redis.url.get_secret_value() == "redis://one"
    monkeypatch.setenv("FIRSTDRAFT_REDIS__URL", "redis://two")
    assert read_settings().redis.url.get_secret_value() == "redis://two"


def test_an_empty_redis_url_counts_as_unset(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "")
    assert read_settings().redis.url is None


def test_the_password_of_redis_is_shown_nowhere(monkeypatch):
    monkeypatch.setenv("FIRSTDRAFT_REDIS__URL", "redis://:hunter2@host")
    settings = read_settings()
    assert "hunter2" not in f"{settings!r} {settings} {settings.redis!r} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FIRSTDRAFT_REDIS", "redis://:hunter2@host"),
        ("FIRSTDRAFT_REDIS__ULR", "redis://:hunter2@host"),
        ("FIRSTDRAFT_REDIS__URL", "http://:secret@host"),
        ("REDIS_URL", ":secret@host"),
    ],
)
def test_the_password_of_redis_is_not_in_complaints(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidSettings, match="redis") as refusal:
        read_settings()
    assert "secret" not in str(refusal.value)


#: A variable, its bad value, and what the complaint must say.
BAD_VARIABLES = [
    ("FIRSTDRAFT_EDGE__CONFIDENCE__THRESHOLD", "1.5", r"edge\.confidence\.threshold.*1\.5"),
    ("FIRSTDRAFT_EDGE__CONFIDENCE__THRESHOLD", "nan", r"edge\.confidence\.threshold.*nan"),
    ("FIRSTDRAFT_EDGE__CONFIDENCE__WEIGHTS", "margin=1", "edge"),
    ("FIRSTDRAFT_EDGE__CONFIDENCE__POOLING", "median", r"edge\.confidence\.pooling.*median"),
    ("FIRSTDRAFT_EDGE__MODEL__PATH", "", r"edge\.model\.path"),
    ("FIRSTDRAFT_EDGE__STEP_TOKENS", "8", r"edge.*step_tokens"),
    ("FIRSTDRAFT_EDGE__STEP_TOKENS", "32.5", r"edge\.step_tokens.*32\.5"),
    ("FIRSTDRAFT_CLOUD__ENGINE", "magic", r"cloud\.engine.*magic"),
    ("FIRSTDRAFT_CLOUD__ENGINE", "openai", r"cloud.*openai\.base_url"),
    ("FIRSTDRAFT_CLOUD__KV_CACHE__MAX_BLOCKS", "2", r"cloud\.kv_cache\.max_blocks.*2"),
    (
        "FIRSTDRAFT_CLOUD__DRAFT_VERIFIER__ACCEPTANCE_THRESHOLD",
        "-1",
        r"cloud\.draft_verifier\.acceptance_threshold.*-1",
    ),
    ("FIRSTDRAFT_GATEWAY__PORT", "70000", r"gateway\.port.*70000"),
    ("FIRSTDRAFT_GATEWAY__MAX_STREAMS", "256", r"gateway.*max_streams \(256\)"),
    ("FIRSTDRAFT_REQUESTS__POLICY", "bold", r"requests\.policy is 'bold'.*baseline"),
    ("FIRSTDRAFT_REQUESTS__LEASE_S", "inf", r"requests\.lease_s.*inf"),
    ("FIRSTDRAFT_REQUESTS__MAX_ATTEMPTS", "0", r"requests\.max_attempts.*0"),
    ("FIRSTDRAFT_POLICIES__MINE__TIERS", "[]", r"policies\.mine\.tiers"),
    ("FIRSTDRAFT_LOG_LEVEL", "loud", r"log_level.*LOUD"),
    ("FIRSTDRAFT_PROFILE", "quantum", r"FIRSTDRAFT_PROFILE is 'quantum'.*gpu"),
    ("FIRSTDRAFT_CONFIG", "/nowhere.yaml", r"FIRSTDRAFT_CONFIG is '/nowhere\.yaml'"),
    ("FIRSTDRAFT_EDGE__CONFIDENCE__TRESHOLD", "0.5", r"edge\.confidence\.treshold"),
    ("FIRSTDRAFT_EGDE__CONFIDENCE__THRESHOLD", "0.5", "FIRSTDRAFT_EGDE__CONFIDENCE__THRESHOLD names no section.*edge"),
    ("FIRSTDRAFT_LOGLEVEL", "INFO", "FIRSTDRAFT_LOGLEVEL names no section.*log_level"),
    ("firstdraft_egde__x", "1", "firstdraft_egde__x names no section"),
]


@pytest.mark.parametrize(("variable", "value", "complaint"), BAD_VARIABLES)
def test_a_bad_value_in_the_environment_names_itself(monkeypatch, variable, value, complaint):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidSettings, match=complaint):
        read_settings()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("edge: {confidence: {treshold: 0.5}}", r"edge\.confidence\.treshold"),
        ("egde: {}", "egde"),
        ("edge: null", "edge"),
        ("edge: {model: 5}", r"edge\.model.*5"),
        ("requests: {lease_s: soon}", r"requests\.lease_s.*soon"),
        ("policies: {mine: {tiers: [moon], description: ''}}", r"policies\.mine\.tiers\.0.*moon"),
        ("- edge\n- cloud", "mine.yaml.*no sections"),
        ("a: [", "mine.yaml.*not YAML"),
    ],
)
def test_a_bad_file_names_what_is_bad_in_it(user_file, text, complaint):
    user_file(text)
    with pytest.raises(InvalidSettings, match=complaint):
        read_settings()


def test_an_empty_file_changes_nothing(user_file):
    default = read_settings()
    user_file("# nothing yet\n")
    assert read_settings() == default


def test_all_that_is_wrong_is_said_at_once(user_file):
    user_file("edge: {max_in_flight: 0}\ngateway: {port: -1}")
    with pytest.raises(
        InvalidSettings, match=r"(?s)edge\.max_in_flight.*gateway\.port|gateway\.port.*edge\.max_in_flight"
    ):
        read_settings()


def test_a_user_may_add_a_policy(user_file):
    user_file(
        "policies: {mine: {description: x, tiers: [edge, cloud], confidence_decides: true, verify_draft: false,"
        " kv_caches: false}}\nrequests: {policy: mine}"
    )
    settings = read_settings()
    assert settings.policies["mine"].tiers == ("edge", "cloud")
    assert "baseline" in settings.policies


def test_settings_do_not_change():
    settings = read_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.edge.max_in_flight = 5


def test_the_log_level_may_be_written_in_any_case(monkeypatch):
    monkeypatch.setenv("FIRSTDRAFT_LOG_LEVEL", "debug")
    assert read_settings().log_level == "DEBUG"
