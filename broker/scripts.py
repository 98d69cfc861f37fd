"""The Lua scripts that change requests. Each is one atomic step; changes by workers are fenced by state and attempt.

Nothing else writes the structures of the queue (listed in broker/request_store.py), so that they always agree, and two
workers that both believe they have a request cannot both finish it. All times are those of the Redis server's clock. A
script takes one argument, a msgpack map, and builds the names of its keys itself, since RQ does not support Redis
Cluster anyway. RQ's keys are written with `pcall`: they are for display only, and an error in keys that others may have
changed must not keep a request from moving.

While Redis is out of memory, CREATE and APPEND fail as a whole, since their first write is a command that Redis then
refuses. The first write of the others is one that it accepts, after which it lets a script finish. So no new requests
are accepted, and those that were accepted can finish.
"""

from collections.abc import Mapping
from typing import Any

import msgpack

from broker import keys, states
from broker.rq_transport import QUEUE_NAMES
from schemas.policy import Tier

#: Time constant, in seconds, of the average rate at which tokens finish.
DRAIN_WINDOW_S = 30
#: Time constant, in seconds, of the decaying sum of work that was sent to a worker.
RECENT_S = 60
#: A worker takes from the shared line first only if the tag there is lower than in its own line by more than this
#: (tokens over weight). Above 0, so that owners with equal shares do not evict each other's cached prefixes all the
#: time.
FAIRNESS_SLACK_TOKENS = 2048
#: Owners' outdated tags are removed whenever the load's number of fields is a multiple of this.
FIELDS_BETWEEN_SWEEPS = 1000
#: Seconds for which counters are kept after the last increment, and the load after the last unfinished request.
COUNTERS_TTL_S = 90 * 86_400
IDLE_LOAD_TTL_S = 3600
#: Seconds after its request's deadline at which RQ may treat a started job as abandoned.
ABANDONED_AFTER_S = 60
#: Other workers' lines that an idle worker compares, drawn at random (the power of choices, Mitzenmacher, 2001).
COMPARED_LINES = 8
#: The most requests that one call moves out of a dead worker's line.
RETIRED_AT_ONCE = 500


def _lua(key: str) -> str:
    """A key as a Lua expression; `@` stands for the Lua variable `name`."""
    return "'" + key.replace("@", "' .. name .. '") + "'"


def packed(arguments: Mapping[str, Any]) -> list[bytes]:
    """A script's one argument. Those that are None are left out, so that they are nil in Lua."""
    given = {name: value for name, value in arguments.items() if value is not None}
    return [msgpack.packb(given, use_bin_type=False)]


def _by_tier(values: Mapping[Tier, str]) -> str:
    return "{" + ", ".join(f"{tier} = '{value}'" for tier, value in values.items()) + "}"


#: Shared by all scripts: `a` is the script's argument.
_PRELUDE = f"""
local a = cmsgpack.unpack(ARGV[1])
local call = redis.call
local clock = call('TIME')
local now = clock[1] + clock[2] / 1000000
local function exact(number) return string.format('%.17g', number) end
-- The value as a number; 0 if it is none, as in a damaged record.
local function num(value)
  local number = tonumber(value)
  return number and number > -2 ^ 53 and number < 2 ^ 53 and number or 0
end

local LOAD, DUE = {_lua(keys.load())}, {_lua(keys.due())}
local OUTBOX, COUNTERS = {_lua(keys.outbox())}, {_lua(keys.counters())}
local function record_key(name) return {_lua(keys.request("@"))} end
local function stream_key(name) return {_lua(keys.events("@"))} end
local function line_key(name) return {_lua(keys.line("@"))} end
local function workers_key(name) return {_lua(keys.workers("@"))} end
local function report_key(name) return {_lua(keys.worker_report("@"))} end
local function gone_key(name) return {_lua(keys.gone("@"))} end
local function wake_channel(name) return {_lua(keys.wake("@"))} end
local WAITING, WORKING = {_by_tier(states.WAITING)}, {_by_tier(states.WORKING)}
local TIER, WAITS = {{}}, {{}}
for tier, state in pairs(WAITING) do TIER[state] = tier; WAITS[state] = true end
for tier, state in pairs(WORKING) do TIER[state] = tier end

-- RQ's keys: a list and a registry of started jobs for each tier, and a hash for each job.
local QUEUE = {_by_tier(QUEUE_NAMES)}
local function job_id(id, tier) return id .. '-' .. tier end
local function job_key(id, tier) return 'rq:job:' .. job_id(id, tier) end
local function job_list(tier) return 'rq:queue:' .. QUEUE[tier] end
local function started_jobs(tier) return 'rq:wip:' .. QUEUE[tier] end
local rq_call = redis.pcall

-- A full Redis refuses a script whose first write needs memory, and lets one finish that has begun to write.
local function write_although_full() call('ZREM', DUE, '') end
-- What is counted is told to operators only: whatever is in its place keeps no request from moving.
local function count(name)
  redis.pcall('HINCRBY', COUNTERS, name, 1)
  redis.pcall('EXPIRE', COUNTERS, {COUNTERS_TTL_S})
end
-- What is left, after some time, of a value that fades to a third in `period_s`.
local function faded(value, at, period_s) return value * math.exp(math.min(0, at - now) / period_s) end
local function emit(id, events)
  for _, event in ipairs(events) do call('XADD', stream_key(id), '*', 'event', event) end
  if #events > 0 then call('PUBLISH', {_lua(keys.notifications())}, id) end
end

-- The load: a script reads each field once, and writes all changed fields once, with `write_load`.
local load, changed = {{}}, {{}}
local function read_load(...)
  local missing = {{}}
  for _, field in ipairs({{...}}) do if load[field] == nil then missing[#missing + 1] = field end end
  if #missing == 0 then return end
  local values = call('HMGET', LOAD, unpack(missing))
  for i, field in ipairs(missing) do load[field] = num(values[i]) end
end
local function set(field, value) load[field] = value; changed[field] = true end
local function add(field, amount) read_load(field); set(field, load[field] + amount) end
local function write_load()
  local written, gone = {{}}, {{}}
  for field in pairs(changed) do
    if load[field] > 0 then
      written[#written + 1] = field
      written[#written + 1] = exact(load[field])
    else
      gone[#gone + 1] = field
    end
  end
  if #written > 0 then call('HSET', LOAD, unpack(written)) end
  if #gone > 0 then call('HDEL', LOAD, unpack(gone)) end
end
local function let_load_expire() call('EXPIRE', LOAD, {IDLE_LOAD_TTL_S}) end
-- Adds a request to the sums of unfinished requests, in total and of its owner, or subtracts it (`sign` 1 or -1).
local function charge(owner, tokens, sign)
  read_load('requests', 'tokens', 'requests:' .. owner, 'tokens:' .. owner)
  add('requests', sign)
  add('tokens', sign * tokens)
  add('requests:' .. owner, sign)
  add('tokens:' .. owner, sign * tokens)
  if sign < 0 and load.requests <= 0 then let_load_expire() end
  if sign > 0 and load.requests <= 1 then call('PERSIST', LOAD) end
end
-- Adds a job and its work, in tokens, to the sums of a line, or subtracts them.
local function assign(line, work, sign)
  read_load('work:' .. line, 'jobs:' .. line)
  add('work:' .. line, sign * work)
  add('jobs:' .. line, sign)
end

local FIELDS = {{'state', 'attempt', 'taken_at', 'owner', 'tokens', 'weight', 'line', 'work', 'deadline_at', 'tag_edge',
  'tag_cloud', 'webhook', 'num_lost'}}
local FENCE = {{'state', 'attempt', 'taken_at'}}
-- A record's fields, by default all that `move` needs; none for a key of another type.
local function read_record(id, fields)
  fields = fields or FIELDS
  local record = {{}}
  for i, value in ipairs(redis.pcall('HMGET', record_key(id), unpack(fields))) do record[fields[i]] = value or nil end
  return record
end
-- Whether a lease is still the one on the request. `taken_at` tells it from another of the same attempt, made after
-- Redis was restored to a state before the first.
local function is_held(record, lease)
  return record.state == lease.state and num(record.attempt) == lease.attempt
    and (not lease.taken_at or record.taken_at == lease.taken_at)
end

-- Removes the tags of owners that the tier's clock has passed, if there are many fields: without a tag an owner is
-- served the same. Called whenever an owner gets its first tag.
local function forget_served(tier)
  local fields = call('HLEN', LOAD)
  if fields == 0 or fields % {FIELDS_BETWEEN_SWEEPS} ~= 0 then return end
  local flat, prefix = call('HGETALL', LOAD), 'tag:' .. tier .. ':'
  for i = 1, #flat, 2 do
    if string.sub(flat[i], 1, #prefix) == prefix and num(flat[i + 1]) <= load['clock:' .. tier] then
      call('HDEL', LOAD, flat[i])
    end
  end
end
-- The start tag of an owner's next request in a line (start-time fair queuing, Goyal, Vin and Cheng, 1997). It is not
-- later than the line's first, since lines advance at the speeds of their workers.
local function fair_tag(tier, record, line)
  local owner_tag, clock_tag = 'tag:' .. tier .. ':' .. record.owner, 'clock:' .. tier
  read_load(owner_tag, clock_tag)
  if load[owner_tag] == 0 then forget_served(tier) end
  local start, first = load[clock_tag], call('ZRANGE', line_key(line), 0, 0, 'WITHSCORES')
  if first[2] then start = math.min(start, num(first[2])) end
  local tag = math.max(start, load[owner_tag])
  set(owner_tag, tag + num(record.tokens) / math.max(num(record.weight), 0.001))
  return tag
end
-- Puts a request into the line of `worker`, or into the tier's shared line if that is nil or not alive. Returns the
-- fields to set in its record.
local function enqueue(id, record, tier, worker, work, job, front)
  local line = tier
  if worker and num(call('ZSCORE', workers_key(tier), worker)) > now then line = tier .. '@' .. worker end
  local tag = record['tag_' .. tier] or fair_tag(tier, record, line)
  call('ZADD', line_key(line), exact(num(tag)), id)
  call('ZADD', DUE, exact(num(record.deadline_at)), id)
  assign(line, work, 1)
  if line ~= tier then
    local recent, at = 'recent:' .. line, 'recent_at:' .. line
    read_load(recent, at)
    set(recent, faded(load[recent], load[at], {RECENT_S}) + work)
    set(at, now)
  end
  rq_call('HSET', job_key(id, tier), unpack(job or {{'status', 'queued'}}))
  rq_call(front and 'LPUSH' or 'RPUSH', job_list(tier), job_id(id, tier))
  rq_call('SADD', 'rq:queues', job_list(tier))
  call('PUBLISH', wake_channel(line), '')
  return 'line', line, 'work', work, 'tag_' .. tier, exact(num(tag))
end
-- Removes a request from the line that it waits in.
local function dequeue(id, tier, line)
  call('ZREM', line_key(line), id)
  rq_call('LREM', job_list(tier), 1, job_id(id, tier))
end

-- Moves a request to the state `to.after`: into a line of the tier `to.tier`, or if that is nil, to its end.
local function move(id, record, to)
  local tier, line, work = TIER[record.state], record.line or '', num(record.work)
  if WAITS[record.state] then
    dequeue(id, tier, line)
  else
    rq_call('ZREM', started_jobs(tier), job_id(id, tier) .. ':' .. num(record.attempt))
  end
  assign(line, work, -1)
  if to.tier ~= tier then rq_call('DEL', job_key(id, tier)) end
  local fields = {{'state', to.after, 'at_' .. to.after, exact(now), unpack(to.fields)}}
  if to.tier then
    local placed = {{enqueue(id, record, to.tier, to.worker, to.work or work, to.job, to.front)}}
    for _, value in ipairs(placed) do fields[#fields + 1] = value end
  end
  call('HSET', record_key(id), unpack(fields))
  emit(id, to.events)
  if not to.tier then
    call('ZREM', DUE, id)
    charge(record.owner or '', num(record.tokens), -1)
    read_load('rate', 'rate_at')
    set('rate', faded(load.rate, load.rate_at, {DRAIN_WINDOW_S}) + num(record.tokens) / {DRAIN_WINDOW_S})
    set('rate_at', now)
    call('EXPIRE', record_key(id), to.ttl)
    call('EXPIRE', stream_key(id), to.ttl)
    call('SET', gone_key(id), record.owner or '', 'EX', to.ttl + to.remembered)
    if record.webhook then call('ZADD', OUTBOX, exact(now), id) end
  end
  count(to.counter)
end
"""

#: `requests`: each with id, state, tier, worker, work, job (fields of RQ's hash), request, event, owner, weight,
#: tokens, deadline_s, webhook, route. `key`: name, meaning (value) and ttl of an idempotency key. Creates the requests,
#: except those whose id exists. Returns {'', id of each that was created, ...}, or {the idempotency key's value} if it
#: exists already; then nothing is created.
CREATE = (
    _PRELUDE
    + """
if a.key then
  local earlier = call('GET', a.key.name)
  if earlier then return {earlier} end
end
local created = {''}
for _, new in ipairs(a.requests) do
  if call('HSETNX', record_key(new.id), 'state', new.state) == 1 then
    local record = {owner = new.owner, tokens = new.tokens, weight = new.weight, deadline_at = now + new.deadline_s}
    charge(new.owner, new.tokens, 1)
    local fields = {'attempt', 0, 'request', new.request, 'owner', new.owner, 'weight', exact(new.weight),
      'tokens', new.tokens, 'deadline_at', exact(record.deadline_at), 'at_' .. new.state, exact(now)}
    if new.route then fields[#fields + 1] = 'route_' .. new.tier; fields[#fields + 1] = new.route end
    if new.webhook then fields[#fields + 1] = 'webhook'; fields[#fields + 1] = new.webhook end
    for _, value in ipairs({enqueue(new.id, record, new.tier, new.worker, new.work, new.job)}) do
      fields[#fields + 1] = value
    end
    call('HSET', record_key(new.id), unpack(fields))
    emit(new.id, {new.event})
    count('accepted')
    created[#created + 1] = new.id
  end
end
if a.key then call('SET', a.key.name, a.key.meaning, 'EX', a.key.ttl) end
write_load()
return created
"""
)

#: `tier`, `worker` (name), `room`, `lease_s`, `slack` (FAIRNESS_SLACK_TOKENS), `busy` (the worker has
#: requests), `solitary` (number of lost attempts from which on a request stays alone until its end), `started_at`.
#: Takes up to `room` waiting requests: from the worker's own line and the shared one, in the order of their tags; if
#: both are empty, it steals half of the difference from the longest of some other lines. Returns {now, 1 if the next
#: request must start alone and the worker is not idle, 1 if requests wait in other lines, {id, attempt, line, record},
#: ...}.
TAKE = (
    _PRELUDE
    + f"""
local tier, own, waited = a.tier, a.tier .. '@' .. a.worker, WAITING[a.tier]
local function head(line, most, newest)
  local flat = newest and call('ZRANGE', line_key(line), 0, most - 1, 'REV', 'WITHSCORES')
    or call('ZRANGE', line_key(line), 0, most - 1, 'WITHSCORES')
  local entries = {{}}
  for i = 1, #flat, 2 do entries[#entries + 1] = {{id = flat[i], tag = tonumber(flat[i + 1]), line = line}} end
  return entries
end
local others_wait = 0
-- The requests to steal from the longest of the compared lines: half of the difference, so that they are not stolen
-- back.
local function of_others()
  local longest, most = nil, 0
  for _, other in ipairs(call('ZRANDMEMBER', workers_key(tier), {COMPARED_LINES})) do
    if other ~= a.worker then
      local waiting = call('ZCARD', line_key(tier .. '@' .. other))
      if waiting > most then longest, most = tier .. '@' .. other, waiting end
    end
  end
  if not longest then return {{}} end
  others_wait = 1
  read_load('jobs:' .. longest, 'jobs:' .. own)
  local few = math.min(a.room, most, math.floor((load['jobs:' .. longest] - load['jobs:' .. own]) / 2))
  return few > 0 and head(longest, few, true) or {{}}
end

local mine, shared = head(own, a.room), head(tier, a.room)
if #mine + #shared == 0 then shared = of_others() end
local function next_entry()
  local first, other = mine[1], shared[1]
  if other and (not first or other.tag < first.tag - a.slack) then return table.remove(shared, 1) end
  return first and table.remove(mine, 1)
end

local taken, must_empty = {{}}, 0
while #taken < a.room do
  local entry = next_entry()
  if not entry then break end
  local id, record = entry.id, read_record(entry.id)
  local alone = num(record.num_lost) > 0
  if record.state ~= waited then
    dequeue(id, tier, entry.line)
  elseif alone and (a.busy or #taken > 0) then
    -- In its own line, so that no other worker stops taking requests for it too.
    if entry.line == tier and num(call('ZSCORE', workers_key(tier), a.worker)) > now then
      call('ZREM', line_key(tier), id)
      call('ZADD', line_key(own), exact(entry.tag), id)
      call('HSET', record_key(id), 'line', own)
      assign(tier, num(record.work), -1)
      assign(own, num(record.work), 1)
    end
    if entry.line == tier or entry.line == own then must_empty = 1 end
    break
  else
    local attempt, working, taken_at = num(record.attempt) + 1, WORKING[tier], exact(now)
    dequeue(id, tier, entry.line)
    rq_call('HSET', job_key(id, tier), 'status', 'started', 'worker_name', a.worker, 'started_at', a.started_at)
    local abandoned_at = exact(num(record.deadline_at) + {ABANDONED_AFTER_S})
    rq_call('ZADD', started_jobs(tier), abandoned_at, job_id(id, tier) .. ':' .. attempt)
    call('ZADD', DUE, exact(now + a.lease_s), id)
    call('HSET', record_key(id), 'state', working, 'at_' .. working, taken_at, 'taken_at', taken_at, 'attempt', attempt,
      'line', own, 'worker', string.match(a.worker, '^[^@]*'),
      'alone', alone and num(record.num_lost) >= a.solitary and 1 or 0)
    if entry.line ~= own then
      assign(entry.line, num(record.work), -1)
      assign(own, num(record.work), 1)
    end
    read_load('clock:' .. tier)
    local is_stolen = entry.line ~= own and entry.line ~= tier -- the newest of its line, whose tag is far ahead
    if not is_stolen and entry.tag > load['clock:' .. tier] then set('clock:' .. tier, entry.tag) end
    taken[#taken + 1] = {{id, attempt, entry.line, call('HGETALL', record_key(id))}}
    if alone then break end
  end
end
write_load()
return {{exact(now), must_empty, others_wait, unpack(taken)}}
"""
)

#: `batches`: each with id, attempt, taken_at, state, events. Appends the events to the requests' streams. Returns for
#: each batch 1, or 0 if its lease is lost; then nothing is appended.
APPEND = (
    _PRELUDE
    + """
local answer = {}
for i, batch in ipairs(a.batches) do
  answer[i] = is_held(read_record(batch.id, FENCE), batch) and 1 or 0
  if answer[i] == 1 then emit(batch.id, batch.events) end
end
return answer
"""
)

#: `id`, `attempt` and `taken_at` (nil: any), `before` (allowed states), `refusals` (the counter of refused commits),
#: and how the request moves: after (the new state), tier, worker, work, job, front, fields, events, ttl, remembered,
#: counter. Returns 1, or 0 if the commit is refused since the request is in another state or attempt.
COMMIT = (
    _PRELUDE
    + """
local record, matches = read_record(a.id), false
for _, state in ipairs(a.before) do matches = matches or state == record.state end
if not matches or (a.attempt and not is_held(record, a)) then
  if record.state and a.refusals then count(a.refusals) end
  return 0
end
move(a.id, record, a)
write_load()
return 1
"""
)

#: `lease_s`, `leases`: each with id, attempt, taken_at, state. Renews the leases. Returns the indices, from 0, of those
#: that are lost.
RENEW = (
    _PRELUDE
    + """
local lost = {}
write_although_full()
for i, lease in ipairs(a.leases) do
  if is_held(read_record(lease.id, FENCE), lease) then
    call('ZADD', DUE, exact(now + a.lease_s), lease.id)
  else
    lost[#lost + 1] = i - 1
  end
end
return lost
"""
)

#: `most`, `claim_s`, `finished` (states), `expired`: for each tier the move (see COMMIT) of a request whose deadline
#: passed while it waited, `unreadable`: the move of one whose state is none. Makes those moves, removes what is left of
#: a request whose record is gone, and claims for `claim_s` the requests whose lease has lapsed. Returns {number of
#: requests that were due, {id, state, attempt} of each claimed one, ...}.
EXPIRE = (
    _PRELUDE
    + """
local due = call('ZRANGE', DUE, '-inf', exact(now), 'BYSCORE', 'LIMIT', 0, a.most)
local claimed, is_gone = {}, false
if #due > 0 then write_although_full() end
for _, id in ipairs(due) do
  local record = read_record(id)
  local tier = TIER[record.state]
  if not record.state then
    is_gone = true
    call('ZREM', DUE, id)
    call('DEL', stream_key(id))
    for each in pairs(WAITING) do rq_call('DEL', job_key(id, each)) end
  elseif a.finished[record.state] then
    call('ZREM', DUE, id)
  elseif not tier then
    record.state = WAITING.edge -- for what `move` is to undo
    move(id, record, a.unreadable)
  elseif WAITS[record.state] then
    if num(record.deadline_at) <= now then
      move(id, record, a.expired[tier])
    else
      call('ZADD', DUE, exact(num(record.deadline_at)), id)
    end
  else
    call('ZADD', DUE, exact(now + a.claim_s), id)
    claimed[#claimed + 1] = {id, record.state, num(record.attempt)}
  end
end
write_load()
if is_gone and call('EXISTS', DUE) == 0 then -- nothing is unfinished: what a lost record was charged for is dropped
  for _, field in ipairs(call('HKEYS', LOAD)) do
    local sum = string.match(field, '^%a+')
    if sum == 'requests' or sum == 'tokens' or sum == 'work' or sum == 'jobs' then call('HDEL', LOAD, field) end
  end
  let_load_expire()
end
return {#due, unpack(claimed)}
"""
)

#: Shared by LIVE and LEAVE: moves up to RETIRED_AT_ONCE requests from a worker's line to the shared one, and removes
#: the worker once its line is empty; the requests that it had in hand leave its sums when they move. Returns the number
#: of moved requests.
_RETIRE = f"""
local function retire(tier, worker)
  local line = tier .. '@' .. worker
  local flat = call('ZRANGE', line_key(line), 0, {RETIRED_AT_ONCE} - 1, 'WITHSCORES')
  for i = 1, #flat, 2 do
    local id, record = flat[i], read_record(flat[i])
    call('ZREM', line_key(line), id)
    if record.state then
      call('ZADD', line_key(tier), flat[i + 1], id)
      call('HSET', record_key(id), 'line', tier)
      assign(tier, num(record.work), 1)
      assign(line, num(record.work), -1)
    end
  end
  if #flat > 0 then call('PUBLISH', wake_channel(tier), '') end
  if #flat < {2 * RETIRED_AT_ONCE} then
    call('ZREM', workers_key(tier), worker)
    set('recent:' .. line, 0)
    set('recent_at:' .. line, 0)
  end
  return #flat / 2
end
"""

#: `tier`, `worker`, `report`, `report_ms`, `life_s`. Renews a worker's report for `report_ms` and its line for
#: `life_s`, and retires dead workers of its tier. Returns {name, number of moved requests} of each of those.
LIVE = (
    _PRELUDE
    + _RETIRE
    + """
write_although_full()
call('SET', report_key(a.worker), a.report, 'PX', a.report_ms)
call('ZADD', workers_key(a.tier), exact(now + a.life_s), a.worker)
local retired = {}
for _, dead in ipairs(call('ZRANGE', workers_key(a.tier), '-inf', exact(now), 'BYSCORE', 'LIMIT', 0, 8)) do
  retired[#retired + 1] = {dead, retire(a.tier, dead)}
end
write_load()
return retired
"""
)

#: `tier`, `worker`. Removes a worker's report and retires the worker. Returns the number of moved requests; call it
#: again until that is 0.
LEAVE = (
    _PRELUDE
    + _RETIRE
    + """
call('DEL', report_key(a.worker))
local moved = retire(a.tier, a.worker)
write_load()
return moved
"""
)

#: KEYS: a sorted set by time. ARGV: seconds for which members are claimed, the most members. Returns members that are
#: due, each to one caller only until its claim ends.
CLAIM_DUE = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local due = redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, tonumber(ARGV[2]))
for _, id in ipairs(due) do redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]), id) end
return due
"""

#: KEYS: a record. Counts a try to call its webhook. Returns the number of tries, or 0 if the record has expired.
COUNT_TRY = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('HINCRBY', KEYS[1], 'webhook_tries', 1)
"""

#: KEYS: an idempotency key. ARGV: a value, its time to live. Stores the value unless there is one. Returns the key's
#: value.
CLAIM_KEY = """
local earlier = redis.call('GET', KEYS[1])
if earlier then return earlier end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return ARGV[1]
"""
