"""The Lua scripts that change a request's record. Each is one atomic step, fenced by state and attempt.

Nothing else writes a record, so that two workers that both believe they hold a request cannot both finish it.
All times are Redis's own clock, so that hosts need not agree on theirs. KEYS are a record and its event stream; the
keys that all requests share are named in the prelude, since RQ does not run on Redis Cluster anyway.
"""

from broker import keys

#: Seconds over which the drain rate is averaged.
DRAIN_WINDOW_S = 30
#: Tokens (over weight) by which one owner's turn may run ahead of another's before a job changes hands. Above 0, so
#: that owners with equal shares do not take each other's prefixes away at every turn.
FAIRNESS_SLACK_TOKENS = 2048


def _lua(key: str) -> str:
    """A key as a Lua expression; `@` stands for the Lua variable `name`."""
    return "'" + key.replace("@", "' .. name .. '") + "'"


#: Shared by all scripts. ARGV begins with the request's id; `take` gives the next argument.
_PRELUDE = f"""
local record, stream, id = KEYS[1], KEYS[2], ARGV[1]
local place = 2
local function take() place = place + 1; return ARGV[place - 1] end
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local function precise(number) return string.format('%.6f', number) end

local counters, leases, waiting = {_lua(keys.counters())}, {_lua(keys.leases())}, {_lua(keys.waiting())}
local charges, load, drain = {_lua(keys.charges())}, {_lua(keys.load())}, {_lua(keys.drain())}
local outbox, channel = {_lua(keys.outbox())}, {_lua(keys.notifications())}
local function line(name) return {_lua(keys.line("@"))} end
local function displaced(name) return {_lua(keys.displaced("@"))} end
local function virtual_time(name) return {_lua(keys.virtual_time("@"))} end
local function record_of(name) return {_lua(keys.request("@"))} end
local function gone(name) return {_lua(keys.gone("@"))} end

local function count(name) redis.call('HINCRBY', counters, name, 1); redis.call('EXPIRE', counters, 7776000) end
local function emit(event)
  redis.call('XADD', stream, '*', 'event', event)
  redis.call('PUBLISH', channel, id)
end
local function expire(seconds)
  redis.call('EXPIRE', record, seconds)
  redis.call('EXPIRE', stream, seconds)
end

-- Look at the request again in so many seconds, or when its deadline has come.
local function watch(seconds)
  local deadline = tonumber(redis.call('HGET', record, 'deadline_at') or now)
  redis.call('ZADD', waiting, precise(math.min(now + seconds, math.max(deadline, now))), id)
end

-- The request takes its place in the tier's line: the one that it had, or one after its owner's last.
local function stand_in_line(tier)
  local held = redis.call('HMGET', record, 'owner', 'weight', 'tag_' .. tier)
  local tag = held[3]
  if not tag then
    local clocks = redis.call('HMGET', virtual_time(tier), '*', held[1])
    local start = math.max(tonumber(clocks[1] or 0), tonumber(clocks[2] or 0))
    local cost = tonumber(string.match(redis.call('HGET', charges, id) or '0', '^%d+'))
    tag = precise(start)
    redis.call('HSET', virtual_time(tier), held[1], precise(start + cost / tonumber(held[2])))
    redis.call('EXPIRE', virtual_time(tier), 3600)
    redis.call('HSET', record, 'tag_' .. tier, tag)
  end
  redis.call('ZADD', line(tier), tag, id)
end

local function add_load(field, amount)
  if redis.call('HINCRBY', load, field, amount) <= 0 then redis.call('HDEL', load, field) end
end
local function charge(tokens, owner, sign)
  add_load('requests', sign)
  add_load('tokens', sign * tokens)
  add_load('requests:' .. owner, sign)
  add_load('tokens:' .. owner, sign * tokens)
end
-- The request counts no more. Idempotent.
local function release()
  local tokens, owner = string.match(redis.call('HGET', charges, id) or '', '^(%d+) (.*)$')
  if not tokens then return end
  redis.call('HDEL', charges, id)
  charge(tokens, owner, -1)
  local before = redis.call('HMGET', drain, 'tokens_per_s', 'at')
  local faded = tonumber(before[1] or 0) * math.exp((tonumber(before[2] or now) - now) / {DRAIN_WINDOW_S})
  redis.call('HSET', drain, 'tokens_per_s', precise(faded + tokens / {DRAIN_WINDOW_S}), 'at', precise(now))
  redis.call('EXPIRE', drain, 3600)
end
local function forget()
  redis.call('ZREM', leases, id)
  redis.call('ZREM', waiting, id)
  redis.call('ZREM', line('edge'), id)
  redis.call('ZREM', line('cloud'), id)
end
"""

#: ARGV: id, state, tier, time to live, seconds until someone must look, request, event, owner, weight, tokens,
#: seconds until the deadline, webhook, route, idempotency key (each '' for none), what the key stands for, its time to
#: live. Makes a record. Answers 1, 0 if the id is taken, or what the idempotency key stood for already.
CREATE = (
    _PRELUDE
    + """
local state, tier, ttl, check_in, request, event = take(), take(), take(), take(), take(), take()
local owner, weight, tokens, deadline_s, webhook, route = take(), take(), take(), take(), take(), take()
local idempotency, meaning, idempotency_ttl = take(), take(), take()
if idempotency ~= '' then
  local earlier = redis.call('GET', idempotency)
  if earlier then return earlier end
end
if redis.call('HSETNX', record, 'state', state) == 0 then return 0 end
redis.call('HSET', record, 'attempt', 0, 'request', request, 'owner', owner, 'weight', weight,
  'deadline_at', precise(now + deadline_s), 'at_' .. state, precise(now))
if route ~= '' then redis.call('HSET', record, 'route_' .. tier, route) end
if webhook ~= '' then redis.call('HSET', record, 'webhook', webhook) end
if idempotency ~= '' then redis.call('SET', idempotency, meaning, 'EX', idempotency_ttl) end
emit(event)
expire(ttl)
redis.call('HSET', charges, id, tokens .. ' ' .. owner)
charge(tokens, owner, 1)
watch(tonumber(check_in))
stand_in_line(tier)
count('accepted')
return 1
"""
)

#: ARGV: id of the job's request, tier, state waited in, state worked in, worker, lease seconds, slack in tokens, lost
#: attempts from which on a request must begin alone ('' if the caller is alone), and from which on it stays alone.
#: Takes a waiting request up: the job's own, unless another owner's turn has come, or the job's own was taken up with
#: an earlier job. Answers {attempt, now, id, record...}, {0} where there is none, {-1} where it must be alone.
BEGIN = (
    _PRELUDE
    + """
local tier, waited, working, worker, lease, slack = take(), take(), take(), take(), tonumber(take()), tonumber(take())
local sociable, solitary = take(), tonumber(take())
local function waits(other) return redis.call('HGET', record_of(other), 'state') == waited end
local function owner_of(other) return redis.call('HGET', record_of(other), 'owner') end
local function must_be_alone(other)
  return sociable ~= '' and tonumber(redis.call('HGET', record_of(other), 'num_lost') or 0) >= tonumber(sociable)
end
local chosen = id
if not waits(chosen) then
  repeat chosen = redis.call('LPOP', displaced(tier)) until not chosen or waits(chosen)
  if not chosen then return {0} end
  if must_be_alone(chosen) then
    redis.call('LPUSH', displaced(tier), chosen)
    return {-1}
  end
end
if must_be_alone(chosen) then return {-1} end
local first = redis.call('ZRANGE', line(tier), 0, 0)[1]
if first and first ~= chosen then
  local mine, theirs = redis.call('ZSCORE', line(tier), chosen), redis.call('ZSCORE', line(tier), first)
  if not waits(first) then
    redis.call('ZREM', line(tier), first)
  elseif mine and owner_of(first) == owner_of(chosen) then
    -- The owner's turn is spent on this one; the earlier one keeps its job, and gets the later turn.
    redis.call('ZADD', line(tier), mine, first)
  elseif mine and mine - theirs > slack and not must_be_alone(first) then
    redis.call('RPUSH', displaced(tier), chosen)
    redis.call('EXPIRE', displaced(tier), 86400)
    chosen = first
    count('turns_given')
  end
end
id, record = chosen, record_of(chosen)
local tag = redis.call('ZSCORE', line(tier), id)
local latest = redis.call('HGET', virtual_time(tier), '*')
if tag and tonumber(tag) > tonumber(latest or 0) then
  redis.call('HSET', virtual_time(tier), '*', tag)
  redis.call('EXPIRE', virtual_time(tier), 3600)
end
local attempt = redis.call('HINCRBY', record, 'attempt', 1)
redis.call('HSET', record, 'state', working, 'worker', worker, 'at_' .. working, precise(now))
if sociable == '' and tonumber(redis.call('HGET', record, 'num_lost') or 0) >= solitary then
  redis.call('HSET', record, 'alone', 1)
else
  redis.call('HDEL', record, 'alone')
end
forget()
redis.call('ZADD', leases, precise(now + lease), id)
return {attempt, precise(now), id, redis.call('HGETALL', record)}
"""
)

#: ARGV: id, attempt, state expected, event...
#: Appends events to the stream of a request that the caller still holds. Answers 1, or 0 if it no longer does.
APPEND = (
    _PRELUDE
    + """
local attempt, expected = take(), take()
local held = redis.call('HMGET', record, 'state', 'attempt')
if held[1] ~= expected or held[2] ~= attempt then return 0 end
while place <= #ARGV do redis.call('XADD', stream, '*', 'event', take()) end
redis.call('EXPIRE', stream, math.max(redis.call('TTL', record), 1))
redis.call('PUBLISH', channel, id)
return 1
"""
)

#: ARGV: id, attempt ('' for any), counter of refusals ('' for none), number of states expected, states expected...,
#: state after, tier waited for after ('' when finished), seconds until someone must look, time to live, time that the
#: id is remembered after that, counter ('' for none), number of fields, field, value, ..., event...
#: Moves a request on, to wait or to an end. Answers 1, or 0 if it is not the caller's to move.
COMMIT = (
    _PRELUDE
    + """
local attempt, refusals = take(), take()
local held = redis.call('HMGET', record, 'state', 'attempt', 'owner', 'webhook')
local matches = false
for _ = 1, tonumber(take()) do if take() == held[1] then matches = true end end
if attempt ~= '' and held[2] ~= attempt then matches = false end
if not matches then
  if held[1] and refusals ~= '' then count(refusals) end
  return 0
end
local after, tier, check_in, ttl, remembered, counter = take(), take(), take(), take(), take(), take()
redis.call('HSET', record, 'state', after, 'at_' .. after, precise(now))
for _ = 1, tonumber(take()) do redis.call('HSET', record, take(), take()) end
while place <= #ARGV do emit(take()) end
forget()
if tier ~= '' then
  watch(tonumber(check_in))
  stand_in_line(tier)
else
  release()
  expire(ttl)
  redis.call('SET', gone(id), held[3], 'EX', ttl + remembered)
  if held[4] then redis.call('ZADD', outbox, precise(now), id) end
end
if counter ~= '' then count(counter) end
return 1
"""
)

#: ARGV: id. Forgets a request whose record has expired before it finished.
FORGET = (
    _PRELUDE
    + """
if redis.call('EXISTS', record) == 1 then return 0 end
forget()
release()
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

#: KEYS: a sorted set of times. ARGV: seconds until the next look, how many. Claims what is due, so that only one
#: caller has each.
CLAIM_DUE = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local due = redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, tonumber(ARGV[2]))
for _, id in ipairs(due) do redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]), id) end
return due
"""
