"""What every engine promises (`workers.runtime.engine`), as tests that each of them passes.

A subclass brings a fixture `engine`, of the scope of the class, and the orders that its engine needs for each case.
"""

import itertools
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from schemas.requests import AcceptanceRule, ConfidenceRule, Message, Sampling
from schemas.results import FailureKind, FinishReason
from tests.polling import until
from workers.cloud.answer_order import AnswerOrder
from workers.edge.edge_sequence import DraftOrder
from workers.runtime.failures import EngineDied, RequestCancelled, RequestRefused

#: Seconds for an answer on a busy machine.
ANSWER_S = 60.0


class EngineContract:
    """The last test closes the engine."""

    #: A question that takes a few tokens to answer, and one that takes as many as it may.
    QUESTION = "Name three metals."
    LONG_QUESTION = "Tell me a very long story about a ship."
    #: A question that no context holds.
    TOO_LONG = "much too long " * 2_000
    #: Options that make the first token the end of the text, and that no engine can carry out.
    EMPTY: dict[str, Any] = {"logit_bias": {2: 100.0}}
    UNSUPPORTED: dict[str, Any] = {"logit_bias": {10_000_000: 1.0}}

    _ids = itertools.count()

    def order(self, request_id: str, messages: tuple[Message, ...], **sampling: Any) -> Any:
        """An order of the engine's own kind."""
        raise NotImplementedError

    def asked(self, question: str | None = None, **sampling: Any) -> Any:
        """An order with an id of its own."""
        messages = (Message(role="user", content=question or self.QUESTION),)
        return self.order(f"contract-{next(self._ids)}", messages, **({"max_tokens": 24} | sampling))

    def long(self) -> Any:
        """An order that is written on for long enough to be cancelled."""
        return self.asked(self.LONG_QUESTION, max_tokens=900)

    def empty(self) -> Any:
        """An order whose first token ends the answer."""
        return self.asked(**self.EMPTY)

    def unsupported(self) -> Any:
        """An order with an option that the engine cannot carry out."""
        return self.asked(**self.UNSUPPORTED)

    def test_an_answer_comes_in_pieces_that_make_up_its_text(self, engine: Any) -> None:
        pieces: list[Any] = []
        order = self.asked()
        answer = engine.submit(order, pieces.append).result(ANSWER_S)
        assert answer.text
        assert "".join(piece.text for piece in pieces) == answer.text
        assert [piece.position for piece in pieces] == starts(pieces)
        assert len(answer.token_ids) <= 24
        assert answer.prompt_tokens > 0

    def test_an_answer_whose_first_token_ends_it_has_no_text(self, engine: Any) -> None:
        pieces: list[Any] = []
        answer = engine.submit(self.empty(), pieces.append).result(ANSWER_S)
        assert (answer.text, answer.finish_reason, len(answer.token_ids)) == ("", FinishReason.STOP, 1)
        assert pieces == []

    def test_a_prompt_that_is_too_long_is_refused_while_others_go_on(self, engine: Any) -> None:
        beside = engine.submit(self.asked())
        with pytest.raises(RequestRefused) as refused:
            engine.submit(self.asked(self.TOO_LONG)).result(ANSWER_S)
        assert refused.value.kind is FailureKind.PROMPT_TOO_LONG
        assert str(refused.value)
        assert beside.result(ANSWER_S).text

    def test_an_option_that_cannot_be_carried_out_is_refused(self, engine: Any) -> None:
        with pytest.raises(RequestRefused) as refused:
            engine.submit(self.unsupported()).result(ANSWER_S)
        assert refused.value.kind is FailureKind.UNSUPPORTED_OPTION
        assert engine.alive

    def test_a_request_can_be_cancelled_before_it_has_written_anything(self, engine: Any) -> None:
        for _ in range(5):
            order = self.long()
            future = engine.submit(order)
            engine.cancel(order.request_id)
            with pytest.raises(RequestCancelled):
                future.result(ANSWER_S)
        assert engine.in_flight == 0

    def test_a_request_that_is_cancelled_while_it_writes_writes_no_more(self, engine: Any) -> None:
        order, pieces = self.long(), Pieces()
        future = pieces.watch(engine.submit(order, pieces))
        until(lambda: engine.progress(order.request_id) > 2, "some progress", within_s=ANSWER_S)
        engine.cancel(order.request_id)
        engine.cancel(order.request_id)
        with pytest.raises(RequestCancelled):
            future.result(ANSWER_S)
        assert (engine.in_flight, engine.progress(order.request_id)) == (0, 0)
        engine.submit(self.asked()).result(ANSWER_S)
        assert pieces.num_late == 0

    def test_cancelling_ends_no_other_request(self, engine: Any) -> None:
        order = self.long()
        cancelled, kept = engine.submit(order), engine.submit(self.asked())
        engine.cancel("no such request")
        engine.cancel(order.request_id)
        assert kept.result(ANSWER_S).text
        with pytest.raises(RequestCancelled):
            cancelled.result(ANSWER_S)

    def test_progress_grows_and_ends_with_the_request(self, engine: Any) -> None:
        order, seen = self.long(), [0]
        future = engine.submit(order)
        while len(set(seen)) < 5:
            seen.append(until(lambda: engine.progress(order.request_id), "some progress", within_s=ANSWER_S))
        assert seen == sorted(seen)
        engine.cancel(order.request_id)
        assert isinstance(future.exception(ANSWER_S), RequestCancelled)
        assert engine.progress(order.request_id) == engine.progress("no such request") == 0

    def test_two_requests_are_written_at_once(self, engine: Any) -> None:
        orders = [self.long(), self.long()]
        futures = [engine.submit(order) for order in orders]
        assert engine.in_flight == 2
        for order in orders:
            until(lambda order=order: engine.progress(order.request_id) > 2, "progress of both", within_s=ANSWER_S)
        assert not any(future.done() for future in futures)
        for order in orders:
            engine.cancel(order.request_id)
        assert all(isinstance(future.exception(ANSWER_S), RequestCancelled) for future in futures)

    def test_a_request_has_left_the_engine_and_its_text_has_ended_when_its_future_is_done(self, engine: Any) -> None:
        pieces, left = Pieces(), []
        future = pieces.watch(engine.submit(self.asked(), pieces))
        future.add_done_callback(lambda _: left.append(engine.in_flight))
        assert future.result(ANSWER_S).text
        until(lambda: left, "the callback", within_s=ANSWER_S)
        engine.submit(self.asked()).result(ANSWER_S)
        assert (left, pieces.num_late) == ([0], 0)

    def test_an_id_that_is_in_flight_is_not_taken_again(self, engine: Any) -> None:
        order = self.long()
        future = engine.submit(order)
        with pytest.raises(ValueError, match=order.request_id):
            engine.submit(order)
        assert engine.in_flight == 1
        engine.cancel(order.request_id)
        assert isinstance(future.exception(ANSWER_S), RequestCancelled)

    def test_a_future_is_cancelled_by_the_engine_alone(self, engine: Any) -> None:
        future = engine.submit(self.asked())
        assert not future.cancel()
        assert future.result(ANSWER_S).text

    def test_a_listener_that_raises_fails_its_own_request(self, engine: Any) -> None:
        def broken(_piece: object) -> None:
            raise RuntimeError("a broken listener")

        failed, other = engine.submit(self.asked(), broken), engine.submit(self.asked())
        assert "a broken listener" in str(failed.exception(ANSWER_S))
        assert other.result(ANSWER_S).text
        assert engine.in_flight == 0

    def test_it_says_what_it_is_and_what_its_cache_did(self, engine: Any) -> None:
        assert engine.alive
        assert engine.model_name
        assert engine.engine_name
        assert engine.cache_statistics().enabled
        if cached := engine.cached_prefixes:
            prompt = cached.prompt_of((Message(role="user", content=self.QUESTION),))
            assert 0 <= cached.cached_prefix_tokens(prompt, "owner:nobody") <= len(prompt)
            assert cached.cache_losses >= 0

    def test_closing_fails_what_is_in_flight_and_whatever_comes_later(self, engine: Any) -> None:
        order, pieces = self.long(), Pieces()
        future = pieces.watch(engine.submit(order, pieces))
        until(lambda: engine.progress(order.request_id) > 2, "some progress", within_s=ANSWER_S)
        engine.close()
        assert isinstance(future.exception(timeout=0), EngineDied)
        assert (engine.alive, engine.in_flight) == (False, 0)
        assert isinstance(engine.submit(self.asked()).exception(ANSWER_S), EngineDied)
        engine.cancel(order.request_id)
        assert engine.progress(order.request_id) == 0
        engine.close()
        assert pieces.num_late == 0


class Pieces:
    """A listener that counts what comes after its request has ended."""

    def __init__(self) -> None:
        self.num_late = 0
        self._ended = threading.Event()

    def __call__(self, _piece: object) -> None:
        self.num_late += self._ended.is_set()

    def watch(self, future: "Future[Any]") -> "Future[Any]":
        future.add_done_callback(lambda _: self._ended.set())
        return future


def starts(pieces: list[Any]) -> list[int]:
    """Where each piece must begin."""
    ends = list(itertools.accumulate((len(piece.text) for piece in pieces), initial=0))
    return ends[:-1]


class EdgeContract(EngineContract):
    """The contract of engines that draft."""

    def order(self, request_id: str, messages: tuple[Message, ...], **sampling: Any) -> DraftOrder:
        return DraftOrder(
            request_id,
            messages,
            Sampling(**sampling),
            ConfidenceRule(strategy="max_prob"),
            use_cache=True,
            cache_namespace="owner:alice",
            may_escalate_early=False,
        )


class CloudContract(EngineContract):
    """The contract of engines that verify."""

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
