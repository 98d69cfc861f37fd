"""The engines without models keep the contract of the real ones, so that what is tested with them holds."""

from collections.abc import Iterator
from typing import Any

import pytest

from schemas.requests import AcceptanceRule, ConfidenceRule, Message, Sampling
from tests.engine_contract import EngineContract
from tests.fakes.engine import FakeCloud, FakeEdge
from workers.cloud.answer_order import AnswerOrder
from workers.edge.edge_sequence import DraftOrder


class FakeContract(EngineContract):
    LONG_QUESTION = "forever"
    TOO_LONG = "refuse"

    def empty(self) -> Any:
        return self.asked("empty")

    def unsupported(self) -> Any:
        return self.asked("unsupported")


class TestFakeEdge(FakeContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Iterator[FakeEdge]:
        engine = FakeEdge()
        yield engine
        engine.close()

    def order(self, request_id: str, messages: tuple[Message, ...], **sampling: Any) -> DraftOrder:
        return DraftOrder(
            request_id,
            messages,
            Sampling(**sampling),
            ConfidenceRule(),
            use_cache=True,
            cache_namespace="owner:alice",
            may_escalate_early=False,
        )


class TestFakeCloud(FakeContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Iterator[FakeCloud]:
        engine = FakeCloud()
        yield engine
        engine.close()

    def order(self, request_id: str, messages: tuple[Message, ...], **sampling: Any) -> AnswerOrder:
        return AnswerOrder(
            request_id,
            messages,
            Sampling(**sampling),
            draft=None,
            acceptance=AcceptanceRule(),
            use_cache=True,
            cache_namespace="owner:alice",
        )
