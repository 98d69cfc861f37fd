"""The contract of all engines (`tests.engine_contract`), kept by llama.cpp, vLLM and a remote server of vLLM's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import read_settings
from tests.e2e.vllm_server import MODEL, vllm_server
from tests.engine_contract import CloudContract, EdgeContract
from workers.cloud.answer_order import CloudEngine
from workers.cloud.engines import build_engine
from workers.edge.engine import EdgeEngine

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore")]


class TestLlamaCpp(EdgeContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, edge_model_path: Path) -> Iterator[EdgeEngine]:
        engine = EdgeEngine(read_settings(edge={"max_in_flight_tokens": 4096}).edge, edge_model_path)
        engine.start()
        yield engine
        engine.close()


class TestVllm(CloudContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, cloud_model_path: str) -> Iterator[CloudEngine]:
        settings = read_settings(cloud={"model": {"context_tokens": 1024}, "kv_cache": {"max_blocks": 160}}).cloud
        engine = build_engine(settings, cloud_model_path)
        engine.start()
        yield engine
        engine.close()


class TestRemoteServer(CloudContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, tmp_path_factory: pytest.TempPathFactory, cloud_model_path: str) -> Iterator[CloudEngine]:
        with vllm_server(cloud_model_path, tmp_path_factory.mktemp("vllm") / "server.log") as url:
            remote = {"base_url": url, "model": MODEL, "max_retries": 1}
            engine = build_engine(read_settings(cloud={"engine": "openai", "openai": remote}).cloud, "")
            engine.start()
            yield engine
            engine.close()
