"""Fixtures that every test may use: a private Redis server, settings, prepared models."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from broker.connection import connect
from config.settings import Settings, read_settings
from firstdraft.embedded import embedded_server
from workers.model_paths import cloud_model_path as resolve_cloud_model
from workers.model_paths import edge_model_path as resolve_edge_model


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
def edge_model_path() -> Path:
    return resolve_edge_model(read_settings())


@pytest.fixture(scope="session")
def cloud_model_path() -> str:
    return resolve_cloud_model(read_settings())
