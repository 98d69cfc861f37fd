"""Which workers hold the KV cache of which prompt prefixes: hashes only, never the bytes of a cache.

A hint, not a truth: an entry that is missing or wrong costs time, never an answer. A member is a worker in one of its
lives (its id and epoch), so that what a worker published before it died is worthless as soon as its epoch is not among
the living, without a scan; what is left of it is swept away later. May live on a server of its own that evicts.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

from redis import Redis

from broker import keys

#: Keys looked at in one step of a sweep.
SWEEP_BATCH = 2000
#: Seconds between two steps of a sweep, whoever does it.
SWEEP_PAUSE_S = 4
#: Seconds for which a prompt that was just sent to a worker counts as held there, before the worker has said so.
ROUTED_S = 5.0

#: KEYS: the blocks, first to last. Answers each member that holds the first block, and how many it holds in a row.
#: Members are told apart by bisection: as many blocks are read as there are different lengths, times a logarithm.
_LOOK_UP = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local function holders(place)
  local flat, found = redis.call('HGETALL', KEYS[place]), {}
  for i = 1, #flat, 2 do
    if flat[i + 1] == '' or tonumber(flat[i + 1]) > now then found[flat[i]] = true end
  end
  return found
end
local answer = {}
local function bisect(least, most, members)
  if least == most then
    for member in pairs(members) do answer[#answer + 1] = member; answer[#answer + 1] = least end
    return
  end
  local middle = math.ceil((least + most) / 2)
  local there, upper, lower = holders(middle), {}, {}
  for member in pairs(members) do
    if there[member] then upper[member] = true else lower[member] = true end
  end
  if next(upper) then bisect(middle, most, upper) end
  if next(lower) then bisect(least, middle - 1, lower) end
end
if #KEYS > 0 then
  local first = holders(1)
  if next(first) then bisect(1, #KEYS, first) end
end
return answer
"""

#: KEYS: blocks. ARGV: member, milliseconds from now until which it counts.
#: Notes what a member will hold; what it holds already stays as it is.
_EXPECT = """
local clock = redis.call('TIME')
local until_ms = string.format('%.0f', clock[1] * 1000 + clock[2] / 1000 + ARGV[2])
for _, block in ipairs(KEYS) do
  if redis.call('HGET', block, ARGV[1]) ~= '' then redis.call('HSET', block, ARGV[1], until_ms) end
  if redis.call('PTTL', block) < tonumber(ARGV[2]) then redis.call('PEXPIRE', block, ARGV[2]) end
end
"""


class PrefixIndex:
    """Safe to share between threads."""

    def __init__(self, redis: Redis, entry_ttl_s: int) -> None:
        self._redis = redis
        self._entry_ttl_s = entry_ttl_s
        self._look_up = redis.register_script(_LOOK_UP)
        self._expect = redis.register_script(_EXPECT)
        self._cursor = 0

    def update(self, member: str, held: Collection[bytes], gone: Collection[bytes]) -> None:
        """Note what the member holds from now on, for one lifetime of an entry, and what it no longer does."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for block in held:
                key = keys.prefix_block(block.hex())
                pipeline.hset(key, member, "")
                pipeline.expire(key, self._entry_ttl_s)
            for block in gone:
                pipeline.hdel(keys.prefix_block(block.hex()), member)
            pipeline.execute()

    def expect(self, member: str, blocks: Sequence[bytes]) -> None:
        """A prompt of these blocks was sent to the member: for a few seconds they count as held."""
        if blocks:
            self._expect(keys=_keys_of(blocks), args=[member, int(ROUTED_S * 1000)])

    def look_up(self, blocks: Sequence[bytes]) -> dict[str, int]:
        """How many of the blocks, from the first on, each member holds; one round trip. Dead members are among them."""
        flat = cast("list[Any]", self._look_up(keys=_keys_of(blocks)))
        return {member.decode(): int(length) for member, length in zip(flat[::2], flat[1::2], strict=True)}

    def sweep(self, living: Callable[[], Collection[str]]) -> int:
        """One step of removing what dead members left; how many entries went. At most one process does it in `SWEEP_PAUSE_S`."""
        if not self._redis.set(keys.prefix_sweep(), "", nx=True, ex=SWEEP_PAUSE_S):
            return 0
        alive = living()
        pattern = keys.prefix_block("*")
        self._cursor, found = cast("Any", self._redis.scan(self._cursor, match=pattern, count=SWEEP_BATCH))
        with self._redis.pipeline(transaction=False) as pipeline:
            for key in found:
                pipeline.hkeys(key)
            members = pipeline.execute()
            gone = 0
            for key, names in zip(found, members, strict=True):
                dead = [name for name in names if name.decode() not in alive]
                if dead:
                    gone += len(dead)
                    pipeline.hdel(key, *dead)
            pipeline.execute()
        return gone


def member_name(worker_id: str, epoch: str) -> str:
    """A worker in one of its lives, as the index names it."""
    return f"{worker_id}@{epoch}"


def _keys_of(blocks: Sequence[bytes]) -> list[str]:
    return [keys.prefix_block(block.hex()) for block in blocks]
