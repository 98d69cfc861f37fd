"""Engines without models: one word is one token, with a configurable delay; the prompt decides how they behave.

They pass `tests/engine_contract.py`, as the real engines do. A prompt may ask for behaviour by words of its last
message:

    empty         an answer without text: the end-of-text token alone
    unsure        the edge's confidence is 0.1 instead of 0.95
    mistaken      the cloud's answer begins with another word than the draft
    slow          ten times the delay a token
    forever       a token every delay, until cancelled
    unspeakable   its words hold half of a surrogate pair, which no message can
    refuse        the future fails with `RequestRefused`, as for a prompt that is too long
    unsupported   the future fails with `BeyondModel` on either tier
    beyond        the same at the edge; the cloud answers
    break         the future fails with a RuntimeError
    die           the engine dies, and with it everything in flight
    forget        the engine's cache is empty from then on
    hang          nothing moves any more, in this request or in any other
    kill          the whole process is killed, as by a fault of the engine
"""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import Generic, TypeVar

from schemas.drafts import Draft, TokenFigures
from schemas.events import AcceptedText, CorrectedText, DraftText, WrittenText
from schemas.requests import Message
from schemas.results import DraftStatistics, FailureKind, FinishReason, RivalLogprob, TokenLogprob
from schemas.workers import CacheStatistics, VerificationStatistics
from tests.fakes.death import Death
from workers.cloud.answer_order import AnswerOrder, CloudAnswer
from workers.edge.engine import DraftOrder
from workers.runtime.engine import Listener
from workers.runtime.failures import BeyondModel, EngineDied, RequestCancelled, RequestRefused

OrderT = TypeVar("OrderT", DraftOrder, AnswerOrder)
ProductT = TypeVar("ProductT", Draft, CloudAnswer)

#: Tokens of an answer where `max_tokens` allows more.
NUM_TOKENS = 12
SURE, UNSURE = 0.95, 0.1
#: How many orders an engine remembers.
REMEMBERED = 256
#: Seconds that closing waits for what is in flight; a hung engine never ends it.
CLOSE_S = 2.0


class PrefixMemory:
    """What an engine has read and written, by cache namespace; the last of it only, as a cache."""

    def __init__(self) -> None:
        self._texts: deque[tuple[str, bytes]] = deque(maxlen=REMEMBERED)

    def remember(self, namespace: str, text: bytes) -> None:
        self._texts.append((namespace, text))

    def held(self, namespace: str, text: bytes) -> int:
        """How many of the first bytes something of the namespace begins with."""
        known = [other for owner, other in tuple(self._texts) if owner == namespace]
        return max((len(commonprefix([text, other])) for other in known), default=0)  # noqa: RUF071 - no paths


def words(order: DraftOrder | AnswerOrder) -> list[str]:
    """The words that the edge answers with: the prompt's own, upside down; the cloud shouts every third."""
    if "empty" in order.messages[-1].content:
        return [""]
    if "unspeakable" in order.messages[-1].content:
        return ["\ud800 "] * NUM_TOKENS
    spoken = order.messages[-1].content.split()[::-1] or ["nothing"]
    num = min(order.sampling.max_tokens, NUM_TOKENS)
    return [f"{spoken[place % len(spoken)]} " for place in range(num)]


def logprobs(order: DraftOrder | AnswerOrder, written: Sequence[str]) -> tuple[TokenLogprob, ...]:
    """A token a word, each with the end of text as its only rival."""
    if not order.sampling.logprobs:
        return ()
    rivals = (RivalLogprob(token="<|end|>", bytes=(), token_id=0, logprob=-9.0),)[: order.sampling.top_logprobs]
    return tuple(
        TokenLogprob(token=word, bytes=tuple(word.encode()), token_id=place, logprob=-0.1, top=rivals)
        for place, word in enumerate(written)
    )


@dataclass
class RunningOrder(Generic[OrderT, ProductT]):
    """One order in flight."""

    order: OrderT
    future: "Future[ProductT]" = field(default_factory=Future)
    #: Set once it is to end, with the reason.
    stopped: threading.Event = field(default_factory=threading.Event)
    reason: Exception | None = None
    written: int = 0

    def stop(self, reason: Exception) -> None:
        if not self.stopped.is_set():
            self.reason = reason
            self.stopped.set()


class FakeEngine(Generic[OrderT, ProductT]):
    """What both tiers' stand-ins share: one thread a request, memory of the last orders, death on demand."""

    model_name = "fake"
    engine_name = "fake"
    vocabulary = "fake-words"

    def __init__(self, *, delay_s: float = 0.005, death: Death | None = None) -> None:
        self.delay_s = delay_s
        self.death = death
        #: The orders taken last, in order; all of them would be what grows in a long run.
        self.orders: deque[OrderT] = deque(maxlen=REMEMBERED)
        self._num_orders = 0
        self._memory = PrefixMemory()
        #: The most that were ever in flight.
        self.most_in_flight = 0
        self._flights: dict[str, RunningOrder[OrderT, ProductT]] = {}
        self._lock = threading.Lock()
        self._alive = True
        #: Whether its cache was emptied: by the prompt `forget`.
        self.forgot = False
        self._hangs = False

    def start(self) -> None:
        """Nothing to load."""

    def submit(self, order: OrderT, listener: Listener | None = None) -> "Future[ProductT]":
        flight: RunningOrder[OrderT, ProductT] = RunningOrder(order)
        flight.future.set_running_or_notify_cancel()
        with self._lock:
            if not self._alive:
                flight.future.set_exception(EngineDied("the engine does not run"))
                return flight.future
            if order.request_id in self._flights:
                raise ValueError(f"request {order.request_id} is in flight already")
            self.orders.append(order)
            self._num_orders += 1
            self._flights[order.request_id] = flight
            self.most_in_flight = max(self.most_in_flight, len(self._flights))
        threading.Thread(target=self._run, args=(flight, listener or (lambda _: None)), daemon=True).start()
        return flight.future

    def cancel(self, request_id: str) -> None:
        with self._lock:
            flight = self._flights.get(request_id)
        if flight is not None:
            flight.stop(RequestCancelled(request_id))

    def progress(self, request_id: str) -> int:
        with self._lock:
            flight = self._flights.get(request_id)
        return 0 if flight is None else flight.written

    def cache_statistics(self) -> CacheStatistics:
        return CacheStatistics(enabled=True, entries=self._num_orders)

    def verification_statistics(self) -> VerificationStatistics | None:
        return None

    @property
    def cached_prefixes(self) -> "FakeEngine[OrderT, ProductT]":
        return self

    def prompt_of(self, messages: Sequence[Message]) -> list[int]:
        """A token for each byte, so that tests can compute with them."""
        return [byte for message in messages for byte in message.content.encode()]

    def cached_prefix_tokens(self, token_ids: Sequence[int], namespace: str) -> int:
        """Whatever it has read for the namespace it still holds, until it is told to forget."""
        return 0 if self.forgot else self._memory.held(namespace, bytes(token_ids))

    def cached_words(self, order: OrderT) -> int:
        """How many of the prompt's first words, its tokens, are cached for the order: those that a space ends."""
        prompt = bytes(self.prompt_of(order.messages))
        held = self._memory.held(order.cache_namespace, prompt) if order.use_cache else 0
        return prompt[:held].count(b" ")

    def remember(self, order: OrderT, answer: str) -> None:
        """The order was read and answered, which its namespace's next can build on."""
        if order.use_cache:
            text = bytes(self.prompt_of(order.messages)) + answer.encode()
            self._memory.remember(order.cache_namespace, text)

    @property
    def cache_losses(self) -> int:
        return int(self.forgot)

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    @property
    def alive(self) -> bool:
        return self._alive

    def close(self) -> None:
        self._die("the engine was closed")
        wait([flight.future for flight in tuple(self._flights.values())], CLOSE_S)

    def write(self, flight: RunningOrder[OrderT, ProductT], listener: Listener) -> ProductT:
        """Write all tokens of the order, and call the listener with each."""
        raise NotImplementedError

    def pause(self, flight: RunningOrder[OrderT, ProductT]) -> None:
        """Wait for one token's time. Raises once the order was cancelled or the engine died."""
        behaviour = flight.order.messages[-1].content
        while self._hangs:
            time.sleep(1.0)
        if flight.stopped.wait(self.delay_s * (10 if "slow" in behaviour else 1)):
            assert flight.reason is not None
            raise flight.reason
        flight.written += 1
        if self.death is not None:
            self.death.at("mid_draft", flight.order.request_id)

    def _run(self, flight: RunningOrder[OrderT, ProductT], listener: Listener) -> None:
        behaviour = flight.order.messages[-1].content
        try:
            _fail_where_asked(behaviour)
            if "forget" in behaviour:
                self.forgot = True
            if "die" in behaviour:
                self._die("the fake was told to die")
            if "hang" in behaviour:
                self._hangs = True
            if "kill" in behaviour:
                os.kill(os.getpid(), signal.SIGKILL)
            while "forever" in behaviour:
                self.pause(flight)
            product = self.write(flight, listener)
        except Exception as error:  # noqa: BLE001 - whatever it is goes to whoever waits
            self._leave(flight)
            flight.future.set_exception(error)
        else:
            self._leave(flight)
            flight.future.set_result(product)

    def _leave(self, flight: RunningOrder[OrderT, ProductT]) -> None:
        with self._lock:
            self._flights.pop(flight.order.request_id, None)

    def _die(self, why: str) -> None:
        with self._lock:
            self._alive = False
            for flight in self._flights.values():
                flight.stop(EngineDied(why))


def _fail_where_asked(behaviour: str) -> None:
    if "refuse" in behaviour:
        raise RequestRefused(FailureKind.PROMPT_TOO_LONG, "the fake refuses this prompt")
    if "unsupported" in behaviour:
        raise BeyondModel("the fake does not support this")
    if "break" in behaviour:
        raise RuntimeError("the fake breaks")


class FakeEdge(FakeEngine[DraftOrder, Draft]):
    """Drafts the prompt's words upside down."""

    model_name = "fake-small"

    def write(self, flight: RunningOrder[DraftOrder, Draft], listener: Listener) -> Draft:
        if "beyond" in flight.order.messages[-1].content:
            raise BeyondModel("json_schema: the fake edge keeps none")
        text, cached = "", self.cached_words(flight.order)
        written = words(flight.order)
        for word in written:
            self.pause(flight)
            if word:
                listener(DraftText(position=len(text), text=word))
            text += word
        self.remember(flight.order, text)
        sure = UNSURE if "unsure" in flight.order.messages[-1].content else SURE
        column = (sure,) * len(written)
        return Draft(
            text=text,
            token_ids=tuple(range(len(written))),
            figures=TokenFigures(
                probability=column,
                scaled_probability=column,
                margin=column,
                normalised_entropy=tuple(1.0 - value for value in column),
                top_k_mass=column,
            ),
            finish_reason=FinishReason.LENGTH if text else FinishReason.STOP,
            prompt_tokens=len(flight.order.messages[-1].content.split()) or 1,
            cached_tokens=cached,
            model=self.model_name,
            vocabulary=self.vocabulary,
            logprobs=logprobs(flight.order, written),
        )


class FakeCloud(FakeEngine[AnswerOrder, CloudAnswer]):
    """Answers with the same words, every third in capitals: what the draft had otherwise is accepted."""

    model_name = "fake-large"

    def __init__(self, *, delay_s: float = 0.005, death: Death | None = None) -> None:
        super().__init__(delay_s=delay_s, death=death)
        self._verified = VerificationStatistics()

    def write(self, flight: RunningOrder[AnswerOrder, CloudAnswer], listener: Listener) -> CloudAnswer:
        draft, text, accepted = flight.order.draft, "", 0
        cached = self.cached_words(flight.order)
        written = [word.upper() if place % 3 == 2 else word for place, word in enumerate(words(flight.order))]
        if "mistaken" in flight.order.messages[-1].content:
            written[0] = "rather "
        drafted = words(flight.order) if draft else []
        for place, word in enumerate(written):
            self.pause(flight)
            stands = bool(draft) and drafted[place] == word
            accepted += stands
            kind = (AcceptedText if stands else CorrectedText) if draft else WrittenText
            if word:
                listener(kind(position=len(text), text=word))
            text += word
        self.remember(flight.order, text)
        statistics = self._count(draft, accepted, len(written))
        return CloudAnswer(
            text=text,
            token_ids=tuple(range(len(written))),
            finish_reason=FinishReason.LENGTH if text else FinishReason.STOP,
            prompt_tokens=len(flight.order.messages[-1].content.split()) or 1,
            cached_tokens=cached,
            draft=statistics,
            logprobs=logprobs(flight.order, written),
        )

    def _count(self, draft: Draft | None, accepted: int, num_tokens: int) -> DraftStatistics | None:
        before = self._verified
        drafted = len(draft.token_ids) if draft else 0
        with self._lock:
            self._verified = VerificationStatistics(
                requests=before.requests + 1,
                drafts=before.drafts + bool(draft),
                drafted_tokens=before.drafted_tokens + drafted,
                accepted_tokens=before.accepted_tokens + accepted,
                rewritten_tokens=before.rewritten_tokens + num_tokens - accepted,
            )
        if draft is None:
            return None
        return DraftStatistics(
            drafted_tokens=drafted,
            accepted_tokens=accepted,
            rewritten_tokens=num_tokens - accepted,
            acceptance_rate=accepted / drafted if drafted else None,
            verified=True,
            lossless=True,
        )

    def verification_statistics(self) -> VerificationStatistics:
        return self._verified
