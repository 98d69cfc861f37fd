"""A queue for each worker beside the one that its tier shares, and the account of what was sent where.

A worker's own queue is a Redis list; what is taken off it goes to the tier's own intermediate list, as RQ does with
its queue, so that to RQ every job is of the tier's queue. The account says for each job whose queue it was put on and
for how much work it counts. A queue lives as long as its lease: nothing is put on one whose lease has ended, and what
waits there is anybody's. Every change is one atomic script.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from redis import Redis
from redis.client import Pipeline

from broker import keys
from broker.routing import Neighbour
from schemas.policy import Tier

#: The queue that all workers of a tier share.
QUEUE_NAMES = {Tier.EDGE: "edge", Tier.CLOUD: "verify"}
#: Seconds for which a queue lives that its worker has not renewed.
QUEUE_LEASE_S = 5.0
#: Seconds in which what was sent to a worker fades to a third.
RECENT_S = 60.0
#: Other workers' queues that are looked at in one survey, by lot.
SURVEYED = 8
#: Seconds for which the account outlives its last change.
ACCOUNT_TTL_S = 86_400
#: Where RQ keeps the keys of all queues, which `rq info` shows.
RQ_QUEUES = "rq:queues"


def list_of(queue: str) -> str:
    """The Redis list of the queue of this name, as RQ names it."""
    return f"rq:queue:{queue}"


def own_queue(tier: Tier, worker: str) -> str:
    """The name of a worker's own queue; the worker is in one of its lives."""
    return f"{QUEUE_NAMES[tier]}@{worker}"


_PRELUDE = f"""
local placements, loads = '{keys.placements()}', '{keys.loads()}'
local function list_of(queue) return '{list_of("")}' .. queue end
local function lives(queue) return redis.call('EXISTS', '{keys.queue_lease("")}' .. queue) == 1 end
local function add(field, amount)
  if redis.call('HINCRBY', loads, field, amount) <= 0 then redis.call('HDEL', loads, field) end
end
local function tokens_of(job)
  local tokens, queue = string.match(redis.call('HGET', placements, job) or '', '^(%d+) (.*)$')
  return tonumber(tokens or 0), queue
end
local function drop(job)
  local tokens, queue = tokens_of(job)
  if not queue then return 0 end
  redis.call('HDEL', placements, job)
  add('tokens:' .. queue, -tokens)
  add('jobs:' .. queue, -1)
  return tokens
end
local function place(job, queue, tokens)
  drop(job)
  redis.call('HSET', placements, job, string.format('%d %s', tokens, queue))
  add('tokens:' .. queue, tokens)
  add('jobs:' .. queue, 1)
  redis.call('EXPIRE', placements, {ACCOUNT_TTL_S})
  redis.call('EXPIRE', loads, {ACCOUNT_TTL_S})
end
"""

#: ARGV: job, queue wanted, shared queue, tokens of work, 1 to go to the front. Pushes the job.
_PUSH = (
    _PRELUDE
    + f"""
local job, queue, shared, tokens, front = unpack(ARGV)
if not lives(queue) then queue = shared end
redis.call(front == '1' and 'LPUSH' or 'RPUSH', list_of(queue), job)
place(job, queue, tonumber(tokens))
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local before, at = string.match(redis.call('HGET', loads, 'recent:' .. queue) or '0 0', '^(%S+) (%S+)$')
local faded = before * math.exp((at - now) / {RECENT_S})
redis.call('HSET', loads, 'recent:' .. queue, string.format('%.1f %.3f', faded + tokens, now))
return queue
"""
)

#: ARGV: queue to take from, queue to put on, how many, LEFT for the oldest or RIGHT for the newest. Keeps their order.
_MOVE = (
    _PRELUDE
    + """
local source, target, most, from = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local moved = {}
while #moved < most do
  local job = redis.call('LMOVE', list_of(source), list_of(target), from, from == 'LEFT' and 'RIGHT' or 'LEFT')
  if not job then break end
  place(job, target, tokens_of(job))
  moved[#moved + 1] = job
end
return moved
"""
)

#: ARGV: job. Takes it out of the account. Answers the tokens that it counted for.
_DROP = _PRELUDE + "return drop(ARGV[1])"

#: ARGV: job, queue. The job was moved to the queue by other means.
_ASSIGN = _PRELUDE + "place(ARGV[1], ARGV[2], tokens_of(ARGV[1]))"

#: KEYS: the tier's queues. ARGV: own queue, lease in milliseconds, how many queues to look at, shared queue.
#: Renews the own queue, and answers {own jobs in hand or waiting, jobs on the shared queue,
#: {queue, jobs that wait on it, those and the ones in hand, 1 if it lives}, ...}.
_SURVEY = (
    _PRELUDE
    + f"""
local own, lease_ms, most, shared = unpack(ARGV)
local function jobs(queue) return tonumber(redis.call('HGET', loads, 'jobs:' .. queue) or 0) end
redis.call('SET', '{keys.queue_lease("")}' .. own, '', 'PX', lease_ms)
redis.call('SADD', KEYS[1], own)
redis.call('SADD', '{RQ_QUEUES}', list_of(own))
local answer = {{jobs(own), redis.call('LLEN', list_of(shared))}}
for _, queue in ipairs(redis.call('SRANDMEMBER', KEYS[1], most)) do
  if queue ~= own then
    answer[#answer + 1] = {{queue, redis.call('LLEN', list_of(queue)), jobs(queue), lives(queue) and 1 or 0}}
  end
end
return answer
"""
)

#: KEYS: the tier's queues. ARGV: queue. Forgets a queue that is dead and empty; answers whether it did.
_BURY = (
    _PRELUDE
    + f"""
local queue = ARGV[1]
if lives(queue) or redis.call('LLEN', list_of(queue)) > 0 then return 0 end
redis.call('HDEL', loads, 'tokens:' .. queue, 'jobs:' .. queue, 'recent:' .. queue)
redis.call('SREM', '{RQ_QUEUES}', list_of(queue))
return redis.call('SREM', KEYS[1], queue)
"""
)


@dataclass(frozen=True)
class Load:
    """What was sent to a worker and is not done."""

    tokens: int = 0
    num_jobs: int = 0
    #: Tokens of work that were sent there at any time, faded since.
    recent_tokens: float = 0.0
    #: Whether its queue lives.
    alive: bool = False


@dataclass(frozen=True)
class Survey:
    """What a worker sees when it looks around."""

    #: Jobs of its own, in hand or waiting.
    num_own: int
    #: Jobs on the queue that all share.
    num_shared: int
    neighbours: tuple[Neighbour, ...]


class RunQueues:
    """One tier's queues, the shared one and the workers' own. Safe to share between threads."""

    def __init__(self, redis: Redis, tier: Tier) -> None:
        self._redis = redis
        self._tier = tier
        self.shared = QUEUE_NAMES[tier]
        self._push = redis.register_script(_PUSH)
        self._move = redis.register_script(_MOVE)
        self._drop = redis.register_script(_DROP)
        self._assign = redis.register_script(_ASSIGN)
        self._survey = redis.register_script(_SURVEY)
        self._bury = redis.register_script(_BURY)

    def push(
        self, job_id: str, worker: str | None, tokens: int, *, at_front: bool = False, pipeline: Pipeline | None = None
    ) -> None:
        """Put the job on the worker's own queue while that lives, else on the shared one."""
        queue = self.shared if worker is None else own_queue(self._tier, worker)
        self._push(args=[job_id, queue, self.shared, tokens, int(at_front)], client=pipeline)

    def wait_for_shared(self, queue: str, timeout_s: float) -> str | None:
        """Move the oldest job of the shared queue to this one; blocks until there is one, or for so long."""
        job = cast("bytes | None", self._redis.blmove(list_of(self.shared), list_of(queue), timeout_s))  # type: ignore[arg-type]
        if job is None:
            return None
        self._assign(args=[job, queue])
        return _text(job)

    def move(self, source: str, target: str, most: int, *, newest: bool = False) -> list[str]:
        """Move so many jobs between queues, the oldest first or the newest; which went."""
        moved = self._move(args=[source, target, most, "RIGHT" if newest else "LEFT"])
        return [_text(job) for job in cast("list[bytes]", moved)]

    def done(self, job_id: str | bytes) -> int:
        """The job is no longer anybody's work. The tokens that it counted for. Idempotent."""
        return int(cast("int", self._drop(args=[job_id])))

    def done_in(self, pipeline: Pipeline, job_id: str) -> None:
        """As `done`, as a part of the pipeline; its answer there is the tokens."""
        self._drop(args=[job_id], client=pipeline)

    def survey(self, queue: str) -> Survey:
        """Renew this queue's lease, and look at some of the others by lot."""
        arguments: list[str | int] = [queue, int(QUEUE_LEASE_S * 1000), SURVEYED, self.shared]
        num_own, num_shared, *others = self._survey(keys=[keys.run_queues(self._tier)], args=arguments)
        neighbours = tuple(Neighbour(_text(name), waiting, jobs, bool(alive)) for name, waiting, jobs, alive in others)
        return Survey(num_own, num_shared, neighbours)

    def bury(self, queue: str) -> bool:
        """Forget a queue that is dead and empty, and what was in its worker's hands. False where it is not."""
        if not self._bury(keys=[keys.run_queues(self._tier)], args=[queue]):
            return False
        ending = f" {queue}".encode()
        for job, entry in self._redis.hscan_iter(keys.placements(), count=1000):
            if entry.endswith(ending):
                self.done(job)
        return True

    def leave(self, queue: str) -> None:
        """End this queue's life; what waits there goes to the shared queue, before what waits there already."""
        self._redis.delete(keys.queue_lease(queue))
        while self.move(queue, self.shared, 1000, newest=True):
            pass
        self.bury(queue)

    def loads(self, workers: Sequence[str]) -> dict[str, Load]:
        """The load of each of these workers, in one round trip."""
        if not workers:
            return {}
        queues = [own_queue(self._tier, worker) for worker in workers]
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.time()
            for queue in queues:
                pipeline.exists(keys.queue_lease(queue))
            pipeline.hmget(
                keys.loads(), [f"{what}:{queue}" for queue in queues for what in ("tokens", "jobs", "recent")]
            )
            (seconds, microseconds), *alive, values = pipeline.execute()
        now_s = seconds + microseconds / 1e6
        sums = zip(values[::3], values[1::3], values[2::3], strict=True)
        return {
            worker: Load(int(tokens or 0), int(jobs or 0), _faded(recent, now_s), bool(lives))
            for worker, lives, (tokens, jobs, recent) in zip(workers, alive, sums, strict=True)
        }

    def holds(self, job_id: str) -> bool:
        """Whether the job waits on the queue that it was put on."""
        raw = cast("bytes | None", self._redis.hget(keys.placements(), job_id))
        queue = self.shared if raw is None else raw.decode().split(" ", 1)[1]
        return self._redis.lpos(list_of(queue), job_id) is not None

    def num_waiting(self) -> int:
        """Jobs that wait for the tier, on all of its queues."""
        own = cast("set[bytes]", self._redis.smembers(keys.run_queues(self._tier)))
        queues = [self.shared, *(_text(raw) for raw in own)]
        with self._redis.pipeline(transaction=False) as pipeline:
            for queue in queues:
                pipeline.llen(list_of(queue))
            return sum(pipeline.execute())


def _text(name: bytes) -> str:
    """The name of a job or queue; what somebody else wrote there may be no text, and is still to be moved on."""
    return name.decode(errors="backslashreplace")


def _faded(recent: bytes | None, now_s: float) -> float:
    """What is left of the tokens that were noted at a time."""
    if recent is None:
        return 0.0
    tokens, at_s = map(float, recent.split())
    return tokens * math.exp((at_s - now_s) / RECENT_S)
