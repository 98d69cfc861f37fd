"""The engines without models keep the contract of the real ones, so that what is tested with them holds."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine_contract import CloudContract, EdgeContract, EngineContract
from tests.fakes.engine import FakeCloud, FakeEdge


class FakeContract(EngineContract):
    LONG_QUESTION = "forever"
    TOO_LONG = "refuse"

    def empty(self) -> Any:
        return self.asked("empty")

    def unsupported(self) -> Any:
        return self.asked("unsupported")


class TestFakeEdge(FakeContract, EdgeContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Iterator[FakeEdge]:
        engine = FakeEdge()
        yield engine
        engine.close()


class TestFakeCloud(FakeContract, CloudContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Iterator[FakeCloud]:
        engine = FakeCloud()
        yield engine
        engine.close()
