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
    "`owner`, `deadline_at`, `weight`, `worker`, `route_edge` and `route_cloud` (RoutingDecision), `request` "
    "(AcceptedRequest), `draft` (Draft), `result` (Result), `failure` (Failure), `lost` and `num_lost` (LostAttempts), "
    "its places in the lines of the tiers, `tag_*`, and the times of its states, `at_*`, in seconds of Redis's clock.",
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
    content="Ids of the requests in workers' hands by the end of their lease, in Redis's clock.",
    lifetime="members leave with their request's state; the key goes with the last",
    writer="gateway, workers",
    reader="gateway, workers (the reaper)",
    permanent=True,
)
def leases() -> str:
    """Who is looking after what, and until when."""
    return f"{PREFIX}:leases"


@_described(
    kind="sorted set",
    content="Ids of the requests that wait for a worker by the time, in Redis's clock, of the next check that they "
    "still have a job and a future. Apart from the leases, so that a long queue never delays a takeover.",
    lifetime="members leave with their request's state; the key goes with the last",
    writer="gateway, workers",
    reader="gateway, workers (the reaper)",
    permanent=True,
)
def waiting() -> str:
    """What waits, and when to look at it."""
    return f"{PREFIX}:waiting"


@_described(
    kind="sorted set",
    content="Ids of the requests that wait for a tier by their start tag: the owners' fair shares in one line "
    "(start-time fair queuing, in tokens over weight).",
    lifetime="members leave with their request's state; the key goes with the last",
    writer="gateway, workers",
    reader="workers",
    permanent=True,
)
def line(tier: str) -> str:
    """Whose turn it is."""
    return f"{PREFIX}:line:{tier}"


@_described(
    kind="list",
    content="Ids of waiting requests whose job was spent on another owner's request, whose turn it was. The other's "
    "job, when it is taken, is theirs.",
    lifetime="one day after the last",
    writer="workers",
    reader="workers",
)
def displaced(tier: str) -> str:
    """Who gave way."""
    return f"{PREFIX}:displaced:{tier}"


@_described(
    kind="hash",
    content="Of each owner the tag at which its next request stands in the tier's line; `*` is the tag of the latest "
    "request taken up.",
    lifetime="one hour after the last change",
    writer="gateway, workers",
    reader="gateway, workers",
)
def virtual_time(tier: str) -> str:
    """How much each owner has been served."""
    return f"{PREFIX}:virtual_time:{tier}"


@_described(
    kind="hash",
    content="Of each unfinished request the tokens that it counts for and its owner, as `tokens owner`.",
    lifetime="fields leave when their request finishes; the key goes with the last",
    writer="gateway, workers",
    reader="gateway, workers",
    permanent=True,
)
def charges() -> str:
    """What each unfinished request is counted for in the load."""
    return f"{PREFIX}:charges"


@_described(
    kind="hash",
    content="Sums of the charges: `requests` and `tokens` in all, `requests:OWNER` and `tokens:OWNER` of each owner.",
    lifetime="fields leave at 0; the key goes with the last",
    writer="gateway, workers",
    reader="gateway",
    permanent=True,
)
def load() -> str:
    """How much is unfinished."""
    return f"{PREFIX}:load"


@_described(
    kind="hash",
    content="How fast requests finish: `tokens_per_s`, an exponentially weighted rate, and when it was last changed, "
    "`at`, in seconds of Redis's clock.",
    lifetime="one hour after the last request finished",
    writer="gateway, workers",
    reader="gateway",
)
def drain() -> str:
    """How fast the load is worked off."""
    return f"{PREFIX}:drain"


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
def worker_report(worker_id: str) -> str:
    """What one live worker says about itself."""
    return f"{PREFIX}:worker:{worker_id}"


@_described(
    kind="sorted set",
    content="Ids of workers by the time, in seconds of Redis's clock, at which their report expires.",
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
    kind="set",
    content="Names of the queues that workers of the tier have of their own, `edge@…` and `verify@…`; each is a list "
    "of RQ's, `rq:queue:…`.",
    lifetime="members leave when their worker does, or when another finds it dead and its queue empty",
    writer="workers",
    reader="gateway, workers",
    permanent=True,
)
def run_queues(tier: str) -> str:
    """Which queues there are beside the shared one."""
    return f"{PREFIX}:run_queues:{tier}"


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
            "are `edge` and `verify`, and for each worker one of its own; an RQ job holds a function's name from a",
            "fixed table and a request's id.",
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
