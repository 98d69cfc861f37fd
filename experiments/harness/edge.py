"""An edge engine in this process, and requests to it without the rest of the system."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from config.settings import read_settings
from schemas.drafts import Draft
from schemas.events import DraftText
from schemas.requests import ConfidenceRule, Message, Sampling
from workers.edge.engine import DraftOrder, EdgeEngine
from workers.runtime.model_paths import edge_model_path

_ids = count()


def start_edge(gguf: Path | None = None, **edge_settings: Any) -> EdgeEngine:
    """A started engine on the GGUF file (None: the configured one), with these changes of the `edge` settings."""
    settings = read_settings(edge=edge_settings)
    engine = EdgeEngine(settings.edge, gguf or edge_model_path(settings))
    engine.start()
    return engine


@contextmanager
def running_edge(gguf: Path | None = None, **edge_settings: Any) -> Iterator[EdgeEngine]:
    """As `start_edge`, while the block runs."""
    engine = start_edge(gguf, **edge_settings)
    try:
        yield engine
    finally:
        engine.close()


def submit(
    engine: EdgeEngine,
    messages: tuple[Message, ...],
    max_tokens: int,
    *,
    use_cache: bool = True,
    escalates_early: bool = False,
    logit_bias: Mapping[int, float] | None = None,
    listener: Callable[[DraftText], None] | None = None,
) -> "Future[Draft]":
    """Submit a greedy request with the configured confidence threshold. The listener gets each piece of text."""
    confidence = read_settings().edge.confidence
    order = DraftOrder(
        request_id=f"request-{next(_ids)}",
        messages=messages,
        sampling=Sampling(max_tokens=max_tokens, logit_bias=dict(logit_bias or {})),
        rule=ConfidenceRule(threshold=confidence.threshold, weights=confidence.weights),
        use_cache=use_cache,
        cache_namespace="experiment",
        may_escalate_early=escalates_early,
    )
    return engine.submit(order, listener)


def user_message(content: str) -> tuple[Message, ...]:
    """A conversation of one user message."""
    return (Message(role="user", content=content),)
