"""The Lua scripts that change a request's record. Each is one atomic step, fenced by state and attempt.

Nothing else writes a record, so that two workers that both believe they hold a request cannot both finish it.
All times are Redis's own clock, so that hosts need not agree on theirs.
"""

#: Shared by all scripts. KEYS: record, event stream, leases, counters. The stream gets what ARGV holds as events.
_PRELUDE = """
local record, stream, leases, counters = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local function count(name) redis.call('HINCRBY', counters, name, 1); redis.call('EXPIRE', counters, 7776000) end
local function emit(id, channel, event)
  redis.call('XADD', stream, '*', 'event', event)
  redis.call('PUBLISH', channel, id)
end
local function expire(seconds)
  redis.call('EXPIRE', record, seconds)
  redis.call('EXPIRE', stream, seconds)
end
"""

#: ARGV: id, channel, state, time to live, seconds until someone must look, request, event.
#: Makes a record. Answers 1, or 0 if the id is taken.
CREATE = (
    _PRELUDE
    + """
local id, channel, state, ttl, check_in, request, event = unpack(ARGV)
if redis.call('HSETNX', record, 'state', state) == 0 then return 0 end
redis.call('HSET', record, 'attempt', 0, 'crashes', 0, 'request', request, 'at_' .. state, string.format('%.6f', now))
emit(id, channel, event)
expire(tonumber(ttl))
redis.call('ZADD', leases, now + tonumber(check_in), id)
count('accepted')
return 1
"""
)

#: ARGV: id, channel, state waited in, state worked in, worker, lease seconds.
#: Takes a waiting request up. Answers {attempt, now, record...} or {0, state}.
BEGIN = (
    _PRELUDE
    + """
local id, channel, waiting, working, worker, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local state = redis.call('HGET', record, 'state')
if state ~= waiting then return {0, state or ''} end
local attempt = redis.call('HINCRBY', record, 'attempt', 1)
redis.call('HSET', record, 'state', working, 'worker', worker, 'at_' .. working, string.format('%.6f', now))
redis.call('ZADD', leases, now + lease, id)
return {attempt, string.format('%.6f', now), redis.call('HGETALL', record)}
"""
)

#: ARGV: id, channel, attempt, state expected, event...
#: Appends events to the stream of a request that the caller still holds. Answers 1, or 0 if it no longer does.
APPEND = (
    _PRELUDE
    + """
local id, channel, attempt, expected = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local held = redis.call('HMGET', record, 'state', 'attempt')
if held[1] ~= expected or held[2] ~= attempt then return 0 end
for i = 5, #ARGV do redis.call('XADD', stream, '*', 'event', ARGV[i]) end
redis.call('EXPIRE', stream, math.max(redis.call('TTL', record), 1))
redis.call('PUBLISH', channel, id)
return 1
"""
)

#: ARGV: id, channel, attempt ('' for any), number of states expected, states expected..., state after,
#: time to live ('' to leave it), seconds until someone must look ('' when finished), counter ('' for none),
#: number of fields, field, value, ..., event...
#: Moves a request on. Answers 1, or 0 if it is not the caller's to move.
COMMIT = (
    _PRELUDE
    + """
local id, channel, attempt = ARGV[1], ARGV[2], ARGV[3]
local at = 4
local function take() at = at + 1; return ARGV[at - 1] end
local held = redis.call('HMGET', record, 'state', 'attempt')
local matches = false
for _ = 1, tonumber(take()) do if take() == held[1] then matches = true end end
if attempt ~= '' and held[2] ~= attempt then matches = false end
if not matches then
  if held[1] and attempt ~= '' then count('stale_commits') end
  return 0
end
local after, ttl, check_in, counter = take(), take(), take(), take()
redis.call('HSET', record, 'state', after, 'at_' .. after, string.format('%.6f', now))
for _ = 1, tonumber(take()) do redis.call('HSET', record, take(), take()) end
while at <= #ARGV do emit(id, channel, take()) end
if check_in == '' then redis.call('ZREM', leases, id) else redis.call('ZADD', leases, now + tonumber(check_in), id) end
if ttl ~= '' then expire(tonumber(ttl)) end
if counter ~= '' then count(counter) end
return 1
"""
)

#: KEYS: leases, record, ... ARGV: lease seconds, then for each record its id, attempt and state expected.
#: Renews the leases of requests that the caller still holds. Answers the places, from 0, of those that it does not.
RENEW = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local lost = {}
for i = 2, #KEYS do
  local id, attempt, expected = unpack(ARGV, 3 * i - 4, 3 * i - 2)
  local held = redis.call('HMGET', KEYS[i], 'state', 'attempt')
  if held[1] == expected and held[2] == attempt then
    redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]), id)
  else
    lost[#lost + 1] = i - 2
  end
end
return lost
"""

#: KEYS: leases. ARGV: seconds until the next look, how many. Claims what is due, so that only one reaper has each.
CLAIM_DUE = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local due = redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, tonumber(ARGV[2]))
for _, id in ipairs(due) do redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]), id) end
return due
"""

#: ARGV: id, channel, state expected, attempt, state to go back to, seconds until the next look.
#: A worker lost its lease: the request waits again. Answers the number of times that this has happened, or 0.
LAPSE = (
    _PRELUDE
    + """
local id, channel, expected, attempt, back = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local held = redis.call('HMGET', record, 'state', 'attempt')
if held[1] ~= expected or held[2] ~= attempt then return 0 end
redis.call('HSET', record, 'state', back, 'at_' .. back, string.format('%.6f', now))
redis.call('ZADD', leases, now + tonumber(ARGV[6]), id)
count('taken_over')
return redis.call('HINCRBY', record, 'crashes', 1)
"""
)
