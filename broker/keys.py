"""Every Redis key that Firstdraft itself writes, one function each, with its type, content, lifetime, writer, reader.

RQ's own keys (`rq:*`) are RQ's. docs/redis-keys.md is made from this file by `python -m broker.keys`.
"""

from collections.abc import Callable
from dataclasses import dataclass

#: All keys and channels start with this, so that an ACL rule can name them.
PREFIX = "firstdraft"
#: The prefix index's keys start with this: a cache, which may be on a server of its own that evicts.
INDEX_PREFIX = "firstdraft-index"


@dataclass(frozen=True)
class KeyDescription:
    """What a reader of docs/redis-keys.md is told."""

    pattern: str
    kind: str
    content: str
    lifetime: str
    writer: str
    reader: str


DESCRIPTIONS: list[KeyDescription] = []

KeyFunction = Callable[..., str]


def _described(
    kind: str, content: str, lifetime: str, writer: str, reader: str
) -> Callable[[KeyFunction], KeyFunction]:
    def note(function: KeyFunction) -> KeyFunction:
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        pattern = function(*(f"{{{name}}}" for name in names))
        DESCRIPTIONS.append(KeyDescription(pattern, kind, content, lifetime, writer, reader))
        return function

    return note


@_described(
    kind="hash",
    content="A request's record: `state`, `attempt` (counts up each time a worker takes it, and fences commits), "
    "`crashes`, `worker`, `route_edge` and `route_cloud` (Route), `request` (AcceptedRequest), "
    "`draft` (Draft), `result` (Result), `failure` (Failure), and "
    "the times of its states, `at_*`, in seconds of Redis's clock.",
    lifetime="`requests.unfinished_ttl_s` until finished, `requests.result_ttl_s` after",
    writer="gateway (creation, cancellation), workers (all else), by the scripts in broker/scripts.py only",
    reader="gateway, workers",
)
def request(request_id: str) -> str:
    """The record of one request."""
    return f"{PREFIX}:request:{request_id}"


@_described(
    kind="stream",
    content="A request's events in order, one msgpack message (schemas/events.py) an entry, field `event`.",
    lifetime="as its record",
    writer="gateway, workers",
    reader="gateway",
)
def events(request_id: str) -> str:
    """The event stream of one request."""
    return f"{PREFIX}:events:{request_id}"


@_described(
    kind="channel",
    content="The id of each request that got an event. A hint to read its stream, nothing more.",
    lifetime="none (publish and subscribe)",
    writer="gateway, workers",
    reader="gateway",
)
def notifications() -> str:
    """Where readers learn that there is something to read."""
    return f"{PREFIX}:notifications"


@_described(
    kind="sorted set",
    content="Ids of all unfinished requests by the time, in Redis's clock, at which someone must look after them: "
    "for one in a worker's hands the end of its lease, for a waiting one the next check that it still has a job.",
    lifetime="members leave when their request finishes; the key goes with the last",
    writer="gateway, workers",
    reader="workers (the reaper)",
)
def leases() -> str:
    """Who is looking after what, and until when."""
    return f"{PREFIX}:leases"


@_described(
    kind="hash",
    content="Counters since the deployment began: requests accepted, answered by each tier, failed, cancelled, "
    "escalated, taken over, stale commits refused.",
    lifetime="90 days after the last count",
    writer="gateway, workers",
    reader="gateway",
)
def counters() -> str:
    """What was counted."""
    return f"{PREFIX}:counters"


@_described(
    kind="string",
    content="A worker's report (schemas/workers.py), msgpack.",
    lifetime="`requests.lease_s` after the worker last renewed it",
    writer="that worker",
    reader="gateway",
)
def worker_report(worker_id: str) -> str:
    """What one live worker says about itself."""
    return f"{PREFIX}:worker:{worker_id}"


@_described(
    kind="sorted set",
    content="Ids of workers by the time, in seconds of the worker's clock, at which their report expires.",
    lifetime="one day after the last report; members that have lapsed are removed by the next report",
    writer="workers",
    reader="gateway",
)
def workers() -> str:
    """Which workers there are."""
    return f"{PREFIX}:workers"


@_described(
    kind="hash",
    content="Who holds the KV cache of a prefix that ends with this block (broker/prefix_blocks.py): a field for each "
    "worker in one of its lives, `id@epoch`; empty where the worker said so, else the time in milliseconds until "
    "which it is only expected. On the index's server (`redis.index_url`).",
    lifetime="`prefix_index.entry_ttl_s` after a worker last said so; fields of dead workers are swept away",
    writer="workers, gateway",
    reader="gateway",
)
def prefix_block(block: str) -> str:
    """One block of the prefix index."""
    return f"{INDEX_PREFIX}:block:{block}"


@_described(
    kind="string",
    content="There while nobody need sweep the index. On the index's server.",
    lifetime="a second",
    writer="workers",
    reader="workers",
)
def prefix_sweep() -> str:
    """Keeps two workers from sweeping at once."""
    return f"{INDEX_PREFIX}:sweep"


@_described(
    kind="hash",
    content="A batch (schemas/openai_files.py): `batch`, msgpack; `cancelling_at` once somebody asked to cancel it.",
    lifetime="30 days after its last change",
    writer="gateway: the process that runs it; `cancelling_at` by any",
    reader="gateway",
)
def batch(batch_id: str) -> str:
    """One batch."""
    return f"{PREFIX}:batch:{batch_id}"


@_described(
    kind="sorted set",
    content="Ids of batches by the second in which they were made.",
    lifetime="for ever, a few bytes each",
    writer="gateway",
    reader="gateway",
)
def batches() -> str:
    """All batches."""
    return f"{PREFIX}:batches"


@_described(
    kind="set",
    content="Ids of batches that have not ended.",
    lifetime="members leave when their batch ends",
    writer="gateway",
    reader="gateway",
)
def unfinished_batches() -> str:
    """Batches that someone must run."""
    return f"{PREFIX}:unfinished-batches"


@_described(
    kind="set",
    content="Names of the queues that workers of the tier have of their own, `edge@…` and `verify@…`; each is a list "
    "of RQ's, `rq:queue:…`.",
    lifetime="members leave when their worker does, or when another finds it dead and its queue empty",
    writer="workers",
    reader="gateway, workers",
)
def run_queues(tier: str) -> str:
    """Which queues there are beside the shared one."""
    return f"{PREFIX}:run_queues:{tier}"


@_described(
    kind="string",
    content="There while the worker of this queue lives: nothing is put on a queue without it, and what waits there is "
    "anybody's.",
    lifetime="5 seconds after the worker last renewed it",
    writer="that worker",
    reader="gateway, workers",
)
def queue_lease(queue: str) -> str:
    """Whether the queue's worker lives."""
    return f"{PREFIX}:queue_lease:{queue}"


@_described(
    kind="hash",
    content="For each job that waits or is worked on, the tokens of work that it counts for and its queue, as "
    "`tokens queue`.",
    lifetime="fields leave when their job is done, or with the queue of a dead worker; a day after the last change",
    writer="gateway, workers",
    reader="gateway, workers",
)
def placements() -> str:
    """What was sent where."""
    return f"{PREFIX}:placements"


@_described(
    kind="hash",
    content="Sums of the placements by queue, `tokens:QUEUE` and `jobs:QUEUE`, and of all tokens ever sent there, "
    "fading over a minute, `recent:QUEUE`, with the time in seconds of Redis's clock at which they were noted.",
    lifetime="fields leave at 0, or with the queue of a dead worker; a day after the last change",
    writer="gateway, workers",
    reader="gateway, workers",
)
def loads() -> str:
    """How much each worker has to do."""
    return f"{PREFIX}:loads"


def markdown() -> str:
    """docs/redis-keys.md, whole."""
    rows = [
        f"| `{d.pattern}` | {d.kind} | {d.content} | {d.lifetime} | {d.writer} | {d.reader} |" for d in DESCRIPTIONS
    ]
    return "\n".join(
        [
            "# Redis keys",
            "",
            "Made from `broker/keys.py` by `python -m broker.keys > docs/redis-keys.md`; a test compares the two.",
            "RQ keeps its queues, jobs, registries and workers under `rq:*`: see RQ's own documentation. The queues",
            "are `edge` and `verify`, and for each worker one of its own; an RQ job holds a function's name from a",
            "fixed table and a request's id.",
            "",
            "| key | type | content | lifetime | written by | read by |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201 - this is its output
