"""Fixtures that every test may use: a private Redis server, settings, prepared models."""

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from redis import Redis

from broker.connection import connect
from config.settings import Settings, read_settings
from firstdraft.local.embedded import embedded_server
from firstdraft.local.model_store import prepare_configured_models
from workers.runtime.model_paths import cloud_model_path as resolve_cloud_model
from workers.runtime.model_paths import edge_model_path as resolve_edge_model

# How long one example takes says more about the machine than about us.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def redis_connection(redis_url: str) -> Iterator[Redis]:
    connection = connect(redis_url)
    connection.flushall()
    yield connection
    connection.close()


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return read_settings(redis={"url": redis_url})


@pytest.fixture(scope="session")
def settings_with_models() -> Settings:
    """The settings, after making the models that they name; in seconds where they are there already."""
    settings = read_settings()
    prepare_configured_models(settings, print)
    return settings


@pytest.fixture(scope="session")
def edge_model_path(settings_with_models: Settings) -> Path:
    return resolve_edge_model(settings_with_models)


@pytest.fixture(scope="session")
def cloud_model_path(settings_with_models: Settings) -> str:
    return resolve_cloud_model(settings_with_models)
