"""Every Redis key that Firstdraft itself writes, one function each, with its type, content, lifetime, writer, reader.

RQ's own keys (`rq:*`) are RQ's. docs/redis-keys.md is made from this file by `python -m broker.keys`.
"""

from collections.abc import Callable
from dataclasses import dataclass

#: All keys and channels start with this, so that an ACL rule can name them.
PREFIX = "firstdraft"
#: The prefix index's keys start with this. The index is a cache and may be on a separate server that evicts keys.
INDEX_PREFIX = "firstdraft-index"


@dataclass(frozen=True)
class KeyDescription:
    """A key's row in docs/redis-keys.md."""

    pattern: str
    kind: str
    content: str
    lifetime: str
    writer: str
    reader: str
    #: Whether the key itself has no time to live: it ends when its last member is removed or when it is deleted.
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
    content="A request's record: `state`, `attempt` (incremented each time a worker takes it; fences commits), "
    "`owner`, `weight`, `tokens` (the most that it can cost), `deadline_at`, `line` (the line it waits in, or that of "
    "the worker that has it), `work` (its estimated tokens of work there), `worker`, `route_edge` and `route_cloud` "
    "(RoutingDecision), `request` (AcceptedRequest), `draft` (Draft), `result` (Result), `failure` (Failure), "
    "`lost` and `num_lost` (LostAttempts), `alone` (1: this attempt runs alone), `webhook` (URL) and `webhook_tries`, "
    "`tag_edge` and `tag_cloud` (start tags in the tiers' lines), and `at_STATE` (when it entered each state, in "
    "seconds of Redis's clock).",
    lifetime="until the request finishes, at its deadline at the latest, and then `requests.result_ttl_s`",
    writer="gateway (creation, cancellation), workers (all other changes), only by the scripts in broker/scripts.py",
    reader="gateway, workers",
    permanent=True,
)
def request(request_id: str) -> str:
    """The record of one request."""
    return f"{PREFIX}:request:{request_id}"


@_described(
    kind="stream",
    content="A request's events in order: one msgpack message (schemas/events.py) per entry, in the field `event`.",
    lifetime="as long as the request's record",
    writer="gateway, workers",
    reader="gateway",
    permanent=True,
)
def events(request_id: str) -> str:
    """The event stream of one request."""
    return f"{PREFIX}:events:{request_id}"


@_described(
    kind="channel",
    content="The id of each request that got an event. Only a hint to read its stream.",
    lifetime="none (publish and subscribe)",
    writer="gateway, workers",
    reader="gateway",
)
def notifications() -> str:
    """Notifications about new events."""
    return f"{PREFIX}:notifications"


@_described(
    kind="sorted set",
    content="Ids of the requests that wait in one line, by start tag, which gives each owner a fair share (start-time "
    "fair queuing, in tokens over weight). `edge` and `cloud` are the lines that all workers of a tier share; "
    "`edge@WORKER` and `cloud@WORKER` are those of single workers.",
    lifetime="members are removed when their request no longer waits; the key ends with its last member",
    writer="gateway, workers",
    reader="workers",
    permanent=True,
)
def line(name: str) -> str:
    """One line of waiting requests, the next to be taken first."""
    return f"{PREFIX}:line:{name}"


@_described(
    kind="sorted set",
    content="Ids of all unfinished requests by the time, in Redis's clock, at which they need action: a waiting "
    "request's deadline, or the end of the lease on a request that a worker has.",
    lifetime="members are removed when their request finishes; the key ends with its last member",
    writer="gateway, workers",
    reader="gateway, workers (the reaper)",
    permanent=True,
)
def due() -> str:
    """Deadlines and leases."""
    return f"{PREFIX}:due"


@_described(
    kind="channel",
    content="An empty message whenever a request is put into the line. Only a hint to look.",
    lifetime="none (publish and subscribe)",
    writer="gateway, workers",
    reader="workers",
)
def wake(name: str) -> str:
    """Notifications to idle workers about work in a line."""
    return f"{PREFIX}:wake:{name}"


@_described(
    kind="hash",
    content="Sums over unfinished requests: `requests` and `tokens` in total, `requests:OWNER` and `tokens:OWNER` by "
    "owner; `jobs:LINE` and `work:LINE` (tokens of work) of the requests that wait in a line or that its worker has; "
    "`recent:LINE`, tokens of work sent to a line, decayed over a minute as of `recent_at:LINE`; `rate` as of "
    "`rate_at`, tokens of requests that finish per second; `tag:TIER:OWNER`, the start tag of an owner's next request; "
    "`clock:TIER`, the highest start tag taken so far (the virtual time).",
    lifetime="fields are removed at 0; the key an hour after the last unfinished request",
    writer="gateway, workers",
    reader="gateway, workers",
    permanent=True,
)
def load() -> str:
    """The load: sums over unfinished requests."""
    return f"{PREFIX}:load"


@_described(
    kind="string",
    content="The owner of a finished request. Outlives its record, to distinguish expired requests from unknown ones.",
    lifetime="`requests.gone_ttl_s` after its record",
    writer="gateway, workers",
    reader="gateway",
)
def gone(request_id: str) -> str:
    """The owner of a request whose record has expired."""
    return f"{PREFIX}:gone:{request_id}"


@_described(
    kind="string",
    content="What an owner's `Idempotency-Key` (here its SHA-256) maps to: the SHA-256 of route and body, and the id "
    "of the request, file or batch that was created.",
    lifetime="24 hours",
    writer="gateway",
    reader="gateway",
)
def idempotency(owner: str, digest: str) -> str:
    """What an idempotency key was first used for."""
    return f"{PREFIX}:idempotency:{owner}:{digest}"


@_described(
    kind="string",
    content="The id of the owner's request whose prompt (here its SHA-256) ended a worker that ran nothing else.",
    lifetime="`requests.quarantine_s`; delete it to accept the prompt again",
    writer="gateway, workers",
    reader="gateway",
)
def quarantine(owner: str, digest: str) -> str:
    """A prompt that is no longer accepted from this owner."""
    return f"{PREFIX}:quarantine:{owner}:{digest}"


@_described(
    kind="sorted set",
    content="Ids of finished requests whose webhook is to be called, by the time of the next try, in Redis's clock.",
    lifetime="members are removed when delivered or given up; the key ends with its last member",
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
    """The counters."""
    return f"{PREFIX}:counters"


@_described(
    kind="string",
    content="A worker's report (schemas/workers.py), msgpack.",
    lifetime="`requests.lease_s` after the worker last renewed it",
    writer="that worker",
    reader="gateway",
)
def worker_report(worker: str) -> str:
    """One live worker's report."""
    return f"{PREFIX}:worker:{worker}"


@_described(
    kind="sorted set",
    content="Names of a tier's workers (`id@epoch`, a new epoch for each start) by the time, in seconds of Redis's "
    "clock, until which they count as alive and requests may be put into their lines.",
    lifetime="members are removed when their worker stops, or when another worker finds it dead; the key ends with its "
    "last member",
    writer="workers",
    reader="gateway, workers",
    permanent=True,
)
def workers(tier: str) -> str:
    """A tier's live workers."""
    return f"{PREFIX}:workers:{tier}"


@_described(
    kind="hash",
    content="The workers whose KV caches hold the prefix that ends with this block (broker/prefix_blocks.py): a field "
    "for each worker, `id@epoch`. Its value is empty if the worker reported the block; if the block is only expected "
    "there, it is the time in milliseconds until which that counts. On the index's server (`redis.index_url`).",
    lifetime="`prefix_index.entry_ttl_s` after a worker last reported the block; fields of dead workers are swept",
    writer="workers, gateway",
    reader="gateway",
)
def prefix_block(block: str) -> str:
    """One block of the prefix index."""
    return f"{INDEX_PREFIX}:block:{block}"


@_described(
    kind="string",
    content="Exists for a while after a step of sweeping the index: until then no worker does the next. On the index's "
    "server.",
    lifetime="4 seconds",
    writer="workers",
    reader="workers",
)
def prefix_sweep() -> str:
    """Spaces out the steps of sweeping the prefix index."""
    return f"{INDEX_PREFIX}:sweep"


@_described(
    kind="hash",
    content="A batch (schemas/openai_files.py): `batch`, msgpack; `cancelling_at`, when cancellation was requested.",
    lifetime="30 days after its last change",
    writer="gateway: the process that runs the batch; `cancelling_at` by any gateway process",
    reader="gateway",
)
def batch(batch_id: str) -> str:
    """One batch."""
    return f"{PREFIX}:batch:{batch_id}"


@_described(
    kind="sorted set",
    content="Ids of all owners' batches by the second in which they were created.",
    lifetime="60 days after the last write of a batch; members are removed 60 days after their creation",
    writer="gateway",
    reader="gateway",
)
def batches() -> str:
    """All batches."""
    return f"{PREFIX}:batches"


@_described(
    kind="sorted set",
    content="Ids of an owner's batches by the second in which they were created.",
    lifetime="60 days after the last write of a batch; members are removed 60 days after their creation",
    writer="gateway",
    reader="gateway",
)
def batches_of(owner: str) -> str:
    """One owner's batches."""
    return f"{PREFIX}:batches:{owner}"


@_described(
    kind="set",
    content="Ids of batches that have not ended.",
    lifetime="30 days after the last write of a batch; members are removed when their batch ends or has expired",
    writer="gateway",
    reader="gateway",
)
def unfinished_batches() -> str:
    """Batches that have to be run."""
    return f"{PREFIX}:unfinished-batches"


@_described(
    kind="set",
    content="Ids of an owner's batches that have not ended.",
    lifetime="30 days after the last write of a batch; members are removed when their batch ends or has expired",
    writer="gateway",
    reader="gateway",
)
def unfinished_batches_of(owner: str) -> str:
    """One owner's batches that wait or run, which are limited in number."""
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
    """API keys."""
    return f"{PREFIX}:api_keys"


@_described(
    kind="string",
    content="Numbers of requests by API key. Flask-Limiter's own keys, which start with this.",
    lifetime="as long as the window that they count in",
    writer="gateway",
    reader="gateway",
)
def rate_limits() -> str:
    """Counters of the rate limits."""
    return f"{PREFIX}:limits"


@_described(
    kind="hash",
    content="The version of the active calibration of each scope (schemas/calibration.py), by the scope's digest.",
    lifetime="until an operator deletes it",
    writer="`firstdraft calibration`, `firstdraft calibrate`, workers (refits)",
    reader="gateway, workers",
    permanent=True,
)
def calibrations() -> str:
    """Which calibrations are active."""
    return f"{PREFIX}:calibrations"


@_described(
    kind="string",
    content="A calibration (schemas/calibration.py), msgpack: scores and labels, no text.",
    lifetime="until it is no longer among the latest 200 changes and not active",
    writer="`firstdraft calibration`, `firstdraft calibrate`, workers (refits)",
    reader="gateway, workers",
    permanent=True,
)
def calibration(version: str) -> str:
    """One version of a calibration."""
    return f"{PREFIX}:calibration:{version}"


@_described(
    kind="string",
    content="The last version number that was assigned.",
    lifetime="until an operator deletes it",
    writer="`firstdraft calibration`, `firstdraft calibrate`, workers (refits)",
    reader="the same",
    permanent=True,
)
def calibration_version() -> str:
    """The number of calibrations so far."""
    return f"{PREFIX}:calibration-version"


@_described(
    kind="list",
    content="Changes of the active calibrations (HistoryEntry, msgpack), the latest first.",
    lifetime="the latest 200",
    writer="`firstdraft calibration`, `firstdraft calibrate`, workers (refits)",
    reader="`firstdraft calibration`",
    permanent=True,
)
def calibration_history() -> str:
    """The history of calibrations."""
    return f"{PREFIX}:calibration-history"


@_described(
    kind="stream",
    content="What happened to the drafts that a scope's calibration decided: labels (`label`: Label) and counts "
    "(`tally`: Tally), msgpack, as they became known. No text.",
    lifetime="about the latest 10,000 entries; 90 days after the last",
    writer="workers",
    reader="workers",
)
def labels(scope: str) -> str:
    """The labels of one scope."""
    return f"{PREFIX}:labels:{scope}"


@_described(
    kind="hash",
    content="What watching a scope's calibration has found: `state` (DriftState, msgpack), and `position`, the last "
    "entry of its labels that is in it.",
    lifetime="90 days after the last change; until a new calibration of the scope is activated",
    writer="workers (one at a time)",
    reader="gateway, workers",
)
def drift(scope: str) -> str:
    """The drift monitor's state of one scope."""
    return f"{PREFIX}:drift:{scope}"


@_described(
    kind="string",
    content="The worker that watches all calibrations at present.",
    lifetime="10 seconds after its last renewal",
    writer="workers",
    reader="workers",
)
def drift_keeper() -> str:
    """Elects one worker to watch the calibrations."""
    return f"{PREFIX}:drift-keeper"


@_described(
    kind="sorted set",
    content="Ids of requests whose kept drafts are to be audited, by the second in which they were drawn.",
    lifetime="`quality.audits.keep_s` after the last was drawn; members are removed when a cloud worker takes them",
    writer="workers",
    reader="workers",
)
def audits() -> str:
    """Audits that wait until the cloud has room."""
    return f"{PREFIX}:audits"


@_described(
    kind="string",
    content="An audit (schemas/audits.py), msgpack: the prompt and the kept draft.",
    lifetime="until it is verified, or the request deleted; `quality.audits.keep_s` at most",
    writer="workers",
    reader="workers",
)
def audit(request_id: str) -> str:
    """One audit."""
    return f"{PREFIX}:audit:{request_id}"


def markdown() -> str:
    """The whole of docs/redis-keys.md."""
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
            "show how much waits and is worked on. Only the lines decide which request is taken next.",
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
