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
    #: Whether the key as a whole never expires: only its members leave, or somebody deletes it.
    permanent: bool = False


DESCRIPTIONS: list[KeyDescription] = []

KeyFunction = Callable[..., str]


def _described(
    kind: str, content: str, lifetime: str, writer: str, reader: str, *, permanent: bool = False
) -> Callable[[KeyFunction], KeyFunction]:
    def note(function: KeyFunction) -> KeyFunction:
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        pattern = function(*(f"{{{name}}}" for name in names))
        DESCRIPTIONS.append(KeyDescription(pattern, kind, content, lifetime, writer, reader, permanent))
        return function

    return note


@_described(
    kind="hash",
    content="A request's record: `state`, `attempt` (counts up each time a worker takes it, and fences commits), "
    "`owner`, `weight`, `tokens` (at most), `deadline_at`, `line` (where it waits, or that of its "
    "worker), `work` (the tokens that it counts for there), `worker`, `route_edge` and `route_cloud` "
    "(RoutingDecision), `request` (AcceptedRequest), `draft` (Draft), `result` (Result), `failure` (Failure), "
    "`lost` and `num_lost` (LostAttempts), its start tags in the tiers' lines, `tag_*`, and the times of its states, "
    "`at_*`, in seconds of Redis's clock.",
    lifetime="until it has finished (its deadline sees to that), then `requests.result_ttl_s`",
    writer="gateway (creation, cancellation), workers (all else), by the scripts in broker/scripts.py only",
    reader="gateway, workers",
    permanent=True,
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
    permanent=True,
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
    content="Ids of the requests that wait in one line by their start tag, which gives each owner a fair share "
    "(start-time fair queuing, in tokens over weight). `edge` and `cloud` are the lines that all workers of a tier "
    "share, `edge@…` and `cloud@…` those of single workers.",
    lifetime="members leave with their request's state; the key goes with the last",
    writer="gateway, workers",
    reader="workers",
    permanent=True,
)
def line(name: str) -> str:
    """Requests that wait, the next one first."""
    return f"{PREFIX}:line:{name}"


@_described(
    kind="sorted set",
    content="Ids of all unfinished requests by the time, in Redis's clock, at which somebody must act: the deadline of "
    "one that waits, the end of the lease of one that a worker has.",
    lifetime="members leave when their request finishes; the key goes with the last",
    writer="gateway, workers",
    reader="gateway, workers (the reaper)",
    permanent=True,
)
def due() -> str:
    """Deadlines and leases."""
    return f"{PREFIX}:due"


@_described(
    kind="channel",
    content="An empty message whenever a request begins to wait in the line. A hint to look, nothing more.",
    lifetime="none (publish and subscribe)",
    writer="gateway, workers",
    reader="workers",
)
def wake(name: str) -> str:
    """Where idle workers learn that there is work in a line."""
    return f"{PREFIX}:wake:{name}"


@_described(
    kind="hash",
    content="What is unfinished, in sums: `requests` and `tokens` in all, `requests:OWNER` and `tokens:OWNER`; "
    "`jobs:LINE` and `work:LINE`, what waits in a line or is in its worker's hands, `recent:LINE`, tokens of work ever "
    "sent there, fading over a minute, as of `recent_at:LINE`; `rate` and `rate_at`, how many tokens a second finish; "
    "`tag:TIER:OWNER`, the start tag of an owner's next request, and `clock:TIER`, that of the latest one taken.",
    lifetime="fields leave at 0; the key an hour after the last unfinished request",
    writer="gateway, workers",
    reader="gateway, workers",
    permanent=True,
)
def load() -> str:
    """How much is unfinished."""
    return f"{PREFIX}:load"


@_described(
    kind="string",
    content="The owner of a finished request, kept when its record has expired.",
    lifetime="`requests.gone_ttl_s` after its record",
    writer="gateway, workers",
    reader="gateway",
)
def gone(request_id: str) -> str:
    """Whose result it was."""
    return f"{PREFIX}:gone:{request_id}"


@_described(
    kind="string",
    content="What an owner's `Idempotency-Key` (here its SHA-256) stands for: the SHA-256 of route and body, and the "
    "id of what was made: a request, a file or a batch.",
    lifetime="24 hours",
    writer="gateway",
    reader="gateway",
)
def idempotency(owner: str, digest: str) -> str:
    """What a key was first used for."""
    return f"{PREFIX}:idempotency:{owner}:{digest}"


@_described(
    kind="string",
    content="The id of the owner's request whose prompt (here its SHA-256) a worker ended on that did nothing else.",
    lifetime="`requests.quarantine_s`; delete it to let the prompt in again",
    writer="gateway, workers",
    reader="gateway",
)
def quarantine(owner: str, digest: str) -> str:
    """A prompt that is not accepted again from this owner."""
    return f"{PREFIX}:quarantine:{owner}:{digest}"


@_described(
    kind="sorted set",
    content="Ids of finished requests whose webhook is to be called, by the time of the next try, in Redis's clock.",
    lifetime="members leave when they are delivered or given up; the key goes with the last",
    writer="gateway, workers",
    reader="gateway",
    permanent=True,
)
def outbox() -> str:
    """Webhooks to call."""
    return f"{PREFIX}:outbox"


@_described(
    kind="hash",
    content="Counters since the deployment began (docs/operations.md says what each counts).",
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
def worker_report(worker: str) -> str:
    """What one live worker says about itself."""
    return f"{PREFIX}:worker:{worker}"


@_described(
    kind="sorted set",
    content="Names of a tier's workers, each in one of its lives (`id@epoch`), by the time in seconds of Redis's clock "
    "until which it counts as alive: requests are let wait in its line until then.",
    lifetime="members leave with their worker, or when another finds them dead; the key goes with the last",
    writer="workers",
    reader="gateway, workers",
    permanent=True,
)
def workers(tier: str) -> str:
    """Which workers there are."""
    return f"{PREFIX}:workers:{tier}"


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
    lifetime="4 seconds",
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
    content="Ids of everybody's batches by the second in which they were made.",
    lifetime="60 days after the last was made or written; members leave 60 days after they were made",
    writer="gateway",
    reader="gateway",
)
def batches() -> str:
    """All batches."""
    return f"{PREFIX}:batches"


@_described(
    kind="sorted set",
    content="Ids of an owner's batches by the second in which they were made.",
    lifetime="60 days after the last was made or written; members leave 60 days after they were made",
    writer="gateway",
    reader="gateway",
)
def batches_of(owner: str) -> str:
    """One owner's batches."""
    return f"{PREFIX}:batches:{owner}"


@_described(
    kind="set",
    content="Ids of batches that have not ended.",
    lifetime="30 days after the last was made or written; members leave when their batch ends or has expired",
    writer="gateway",
    reader="gateway",
)
def unfinished_batches() -> str:
    """Batches that someone must run."""
    return f"{PREFIX}:unfinished-batches"


@_described(
    kind="set",
    content="Ids of an owner's batches that have not ended.",
    lifetime="30 days after the last was made or written; members leave when their batch ends or has expired",
    writer="gateway",
    reader="gateway",
)
def unfinished_batches_of(owner: str) -> str:
    """How many of one owner's batches wait or run."""
    return f"{PREFIX}:unfinished-batches:{owner}"


@_described(
    kind="hash",
    content="API keys by their id (ApiKey): hashes of their secrets, owners, scopes.",
    lifetime="until they are revoked",
    writer="`firstdraft keys`",
    reader="gateway",
    permanent=True,
)
def api_keys() -> str:
    """Who may come in."""
    return f"{PREFIX}:api_keys"


@_described(
    kind="string",
    content="Counts of API keys' requests; Flask-Limiter's own, whose names go on from here.",
    lifetime="as long as the window that they count in",
    writer="gateway",
    reader="gateway",
)
def rate_limits() -> str:
    """How often each key came."""
    return f"{PREFIX}:limits"


def markdown() -> str:
    """docs/redis-keys.md, whole."""
    rows = [
        f"| `{d.pattern}` | {d.kind} | {d.content} | {_lifetime(d)} | {d.writer} | {d.reader} |" for d in DESCRIPTIONS
    ]
    return "\n".join(
        [
            "# Redis keys",
            "",
            "Made from `broker/keys.py` by `python -m broker.keys > docs/redis-keys.md`; a test compares the two.",
            "RQ keeps its queues, jobs, registries and workers under `rq:*`: see RQ's own documentation. The queues",
            "are `edge` and `verify`; an RQ job holds a function's name from a fixed table and a request's id. They",
            "show what waits and what is worked on; which request is next, the lines alone say.",
            "",
            "| key | type | content | lifetime | written by | read by |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _lifetime(described: KeyDescription) -> str:
    return f"no expiry: {described.lifetime}" if described.permanent else described.lifetime


if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201 - this is its output
