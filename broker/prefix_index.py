"""Which workers hold the KV cache of which prompt prefixes: block hashes only, never cache contents.

The index is a hint: a missing or wrong entry costs time, but never makes an answer wrong. Its members are workers by
name, which is id and epoch. A restarted worker has a new epoch, so that entries of the old one are ignored at once and
removed by a sweep later. The index may be on a separate Redis server that evicts keys.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

from redis import Redis

from broker import keys

#: Keys that one step of a sweep scans (Redis's COUNT).
SWEEP_BATCH = 2000
#: Seconds between two steps of a sweep, over all processes.
SWEEP_PAUSE_S = 4
#: Seconds for which a prompt that was just routed to a worker counts as cached there, until the worker reports it.
ROUTED_S = 5.0

#: Returns each member that holds the first block, and the length of the prefix that it holds, in blocks. Bisects: the
#: number of blocks read is the number of different lengths times the logarithm of the number of blocks.
#: KEYS: the blocks, first to last.
_LOOK_UP = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local function holders(index)
  local flat, found = redis.call('HGETALL', KEYS[index]), {}
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
  local holding, upper, lower = holders(middle), {}, {}
  for member in pairs(members) do
    if holding[member] then upper[member] = true else lower[member] = true end
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

#: Records for a limited time that a member is expected to hold the blocks. Does not change blocks that it reported.
#: KEYS: blocks. ARGV: member, milliseconds.
_EXPECT = """
local clock = redis.call('TIME')
local until_ms = string.format('%.0f', clock[1] * 1000 + clock[2] / 1000 + ARGV[2])
for _, block in ipairs(KEYS) do
  if redis.call('HGET', block, ARGV[1]) ~= '' then redis.call('HSET', block, ARGV[1], until_ms) end
  if redis.call('PTTL', block) < tonumber(ARGV[2]) then redis.call('PEXPIRE', block, ARGV[2]) end
end
"""


class PrefixIndex:
    """Reads and writes the index. Safe on any thread."""

    def __init__(self, redis: Redis, entry_ttl_s: int) -> None:
        self._redis = redis
        self._entry_ttl_s = entry_ttl_s
        self._look_up = redis.register_script(_LOOK_UP)
        self._expect = redis.register_script(_EXPECT)
        self._cursor = 0

    def update(self, member: str, held: Collection[bytes], gone: Collection[bytes]) -> None:
        """Add the blocks that the member holds, for `entry_ttl_s` seconds, and remove those that it no longer holds."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for block in held:
                key = keys.prefix_block(block.hex())
                pipeline.hset(key, member, "")
                pipeline.expire(key, self._entry_ttl_s)
            for block in gone:
                pipeline.hdel(keys.prefix_block(block.hex()), member)
            pipeline.execute()

    def expect(self, member: str, blocks: Sequence[bytes]) -> None:
        """Count the member as holder of the blocks of a prompt that was routed to it, for `ROUTED_S` seconds."""
        if blocks:
            self._expect(keys=_keys_of(blocks), args=[member, int(ROUTED_S * 1000)])

    def look_up(self, blocks: Sequence[bytes]) -> dict[str, int]:
        """How many of the first blocks each member holds. One round trip. Includes dead members."""
        flat = cast("list[Any]", self._look_up(keys=_keys_of(blocks)))
        return {member.decode(): int(length) for member, length in zip(flat[::2], flat[1::2], strict=True)}

    def sweep(self, living: Callable[[], Collection[str]]) -> int:
        """One step of removing entries of dead members; returns how many it removed.

        Does nothing if any process did a step in the last `SWEEP_PAUSE_S` seconds.
        """
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
    """A worker's name in the index."""
    return f"{worker_id}@{epoch}"


def _keys_of(blocks: Sequence[bytes]) -> list[str]:
    return [keys.prefix_block(block.hex()) for block in blocks]
