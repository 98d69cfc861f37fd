"""The Lua scripts through which every request moves. Each is one atomic step, fenced by state and attempt.

Nothing else writes what the queue consists of (broker/request_store.py has the table), so that none of it can disagree
with the rest, and two workers that both believe they have a request cannot both finish it. All times are the Redis
server's own clock. A script takes one argument, a msgpack map, and builds the names of its keys itself: RQ does not run
on Redis Cluster anyway. RQ's keys are written with `pcall`: they show what waits, and whatever somebody else put there
must not keep a request from moving.
"""

from collections.abc import Mapping

from broker import keys, states
from broker.rq_transport import QUEUE_NAMES
from schemas.policy import Tier

#: Seconds over which the drain rate is averaged.
DRAIN_WINDOW_S = 30
#: Seconds in which what was sent to a worker fades to a third.
RECENT_S = 60
#: Tokens (over weight) by which a request in the shared line must be ahead of a worker's own before that worker takes
#: it first. Above 0, so that owners with equal shares do not take each other's cached prefixes away at every turn.
FAIRNESS_SLACK_TOKENS = 2048
#: Fields of the load after which owners' tags are looked through for those that mean nothing any more.
FIELDS_BETWEEN_SWEEPS = 1000
#: Seconds for which counters outlive the last count, and the load the last unfinished request.
COUNTERS_TTL_S = 90 * 86_400
IDLE_LOAD_TTL_S = 3600
#: Seconds after its deadline at which RQ may take a job for abandoned that still counts as started.
ABANDONED_AFTER_S = 60
#: Other workers' lines that an idle worker compares, drawn at random (the power of choices, Mitzenmacher, 2001).
COMPARED_LINES = 8
#: Requests that are moved out of a dead worker's line at once.
RETIRED_AT_ONCE = 500


def _lua(key: str) -> str:
    """A key as a Lua expression; `@` stands for the Lua variable `name`."""
    return "'" + key.replace("@", "' .. name .. '") + "'"


def _by_tier(values: Mapping[Tier, str]) -> str:
    return "{" + ", ".join(f"{tier} = '{value}'" for tier, value in values.items()) + "}"


#: Shared by all scripts: `a` is the script's argument.
_PRELUDE = f"""
local a = cmsgpack.unpack(ARGV[1])
local call = redis.call
local clock = call('TIME')
local now = clock[1] + clock[2] / 1000000
local function exact(number) return string.format('%.17g', number) end
-- A number, or 0 for whatever else a damaged record may have in its place.
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

-- RQ's view: a list and a registry of started jobs for each tier, and a hash for each job.
local QUEUE = {_by_tier(QUEUE_NAMES)}
local function job_id(id, tier) return id .. '-' .. tier end
local function job_key(id, tier) return 'rq:job:' .. job_id(id, tier) end
local function job_list(tier) return 'rq:queue:' .. QUEUE[tier] end
local function started_jobs(tier) return 'rq:wip:' .. QUEUE[tier] end
local show = redis.pcall

local function count(name)
  if call('HINCRBY', COUNTERS, name, 1) % 1000 == 1 then call('EXPIRE', COUNTERS, {COUNTERS_TTL_S}) end
end
local function emit(id, events)
  for _, event in ipairs(events) do call('XADD', stream_key(id), '*', 'event', event) end
  if #events > 0 then call('PUBLISH', {_lua(keys.notifications())}, id) end
end

-- The load: each field is read once, and what has changed is written once, by `write_load`.
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
-- Counts a request, or no longer (`sign`), among what is unfinished in all and of its owner.
local function charge(owner, tokens, sign)
  read_load('requests', 'tokens', 'requests:' .. owner, 'tokens:' .. owner)
  add('requests', sign)
  add('tokens', sign * tokens)
  add('requests:' .. owner, sign)
  add('tokens:' .. owner, sign * tokens)
  if sign < 0 and load.requests <= 0 then call('EXPIRE', LOAD, {IDLE_LOAD_TTL_S}) end
  if sign > 0 and load.requests <= 1 then call('PERSIST', LOAD) end
end
-- Counts work, in tokens, and a job to a line, or no longer.
local function assign(line, work, sign)
  read_load('work:' .. line, 'jobs:' .. line)
  add('work:' .. line, sign * work)
  add('jobs:' .. line, sign)
end

local FIELDS = {{'state', 'attempt', 'owner', 'tokens', 'weight', 'line', 'work', 'deadline_at', 'tag_edge',
  'tag_cloud', 'webhook', 'num_lost'}}
local function read_record(id)
  local record = {{}}
  for i, value in ipairs(call('HMGET', record_key(id), unpack(FIELDS))) do record[FIELDS[i]] = value or nil end
  return record
end

-- An owner whose tag the tier's clock has passed is served like one that has no tag: where there are many fields, the
-- tags of such owners are removed. Called for each owner that gets its first tag.
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
-- The start tag of a request in a tier: its owner's next (start-time fair queuing, Goyal, Vin and Cheng, 1997).
local function fair_tag(tier, record)
  local owners, latest = 'tag:' .. tier .. ':' .. record.owner, 'clock:' .. tier
  read_load(owners, latest)
  if load[owners] == 0 then forget_served(tier) end
  local tag = math.max(load[latest], load[owners])
  set(owners, tag + num(record.tokens) / math.max(num(record.weight), 0.001))
  return tag
end
-- Lets a request wait in a worker's line, or in the one that its tier shares where no living worker is named. Gives the
-- fields that its record gets.
local function enqueue(id, record, tier, worker, work, job, front)
  local line = tier
  if worker and num(call('ZSCORE', workers_key(tier), worker)) > now then line = tier .. '@' .. worker end
  local tag = record['tag_' .. tier] or fair_tag(tier, record)
  call('ZADD', line_key(line), exact(num(tag)), id)
  call('ZADD', DUE, exact(num(record.deadline_at)), id)
  assign(line, work, 1)
  if line ~= tier then
    local recent, at = 'recent:' .. line, 'recent_at:' .. line
    read_load(recent, at)
    set(recent, load[recent] * math.exp((load[at] - now) / {RECENT_S}) + work)
    set(at, now)
  end
  if job then show('HSET', job_key(id, tier), unpack(job)) else show('HSET', job_key(id, tier), 'status', 'queued') end
  show(front and 'LPUSH' or 'RPUSH', job_list(tier), job_id(id, tier))
  show('SADD', 'rq:queues', job_list(tier))
  call('PUBLISH', wake_channel(line), '')
  return 'line', line, 'work', work, 'tag_' .. tier, exact(num(tag))
end
-- Takes a request out of the line that it waits in.
local function dequeue(id, tier, line)
  call('ZREM', line_key(line), id)
  show('LREM', job_list(tier), 1, job_id(id, tier))
end

-- Moves a request on: into the line of `to.tier`, or to its end where there is none.
local function move(id, record, to)
  local tier, line, work = TIER[record.state], record.line or '', num(record.work)
  if WAITS[record.state] then
    dequeue(id, tier, line)
  else
    show('ZREM', started_jobs(tier), job_id(id, tier) .. ':' .. num(record.attempt))
  end
  assign(line, work, -1)
  if to.tier ~= tier then show('DEL', job_key(id, tier)) end
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
    set('rate', load.rate * math.exp((load.rate_at - now) / {DRAIN_WINDOW_S}) + num(record.tokens) / {DRAIN_WINDOW_S})
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
#: tokens, deadline_s, webhook, route. `key`: name, meaning and ttl of an idempotency key. Makes the records, but for
#: ids that are taken. Answers an empty string, or what the idempotency key stands for already; then nothing is made.
CREATE = (
    _PRELUDE
    + """
if a.key then
  local earlier = call('GET', a.key.name)
  if earlier then return earlier end
end
for _, one in ipairs(a.requests) do
  if call('HSETNX', record_key(one.id), 'state', one.state) == 1 then
    local record = {owner = one.owner, tokens = one.tokens, weight = one.weight, deadline_at = now + one.deadline_s}
    charge(one.owner, one.tokens, 1)
    local fields = {'attempt', 0, 'request', one.request, 'owner', one.owner, 'weight', exact(one.weight),
      'tokens', one.tokens, 'deadline_at', exact(record.deadline_at), 'at_' .. one.state, exact(now)}
    if one.route then fields[#fields + 1] = 'route_' .. one.tier; fields[#fields + 1] = one.route end
    if one.webhook then fields[#fields + 1] = 'webhook'; fields[#fields + 1] = one.webhook end
    for _, value in ipairs({enqueue(one.id, record, one.tier, one.worker, one.work, one.job)}) do
      fields[#fields + 1] = value
    end
    call('HSET', record_key(one.id), unpack(fields))
    emit(one.id, {one.event})
    count('accepted')
  end
end
if a.key then call('SET', a.key.name, a.key.meaning, 'EX', a.key.ttl) end
write_load()
return ''
"""
)

#: `tier`, `worker` (its name in the lines), `worker_id`, `room`, `lease_s`, `slack`, `busy` (it has requests in hand),
#: `solitary` (lost attempts from which on a request stays alone).
#: Takes up to `room` waiting requests: of the worker's own line and the shared one by their tags, or, where both are
#: empty, of the longest of some other lines, half of the difference. Answers {now, 1 if the next request must begin
#: alone and the worker is to become empty first, 1 if requests wait in other lines, {id, attempt, line, record}, ...}.
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
-- What may be taken from another worker: the longest line gives half of the difference, so that a request does not
-- go to and fro.
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

local taken, must_wait = {{}}, 0
while #taken < a.room do
  local entry = next_entry()
  if not entry then break end
  local id, record = entry.id, read_record(entry.id)
  local alone = num(record.num_lost) > 0
  if record.state ~= waited then
    dequeue(id, tier, entry.line)
  elseif alone and (a.busy or #taken > 0) then
    if entry.line == tier then -- no other worker is to empty itself for it as well
      call('ZREM', line_key(tier), id)
      call('ZADD', line_key(own), exact(entry.tag), id)
      call('HSET', record_key(id), 'line', own)
      assign(tier, num(record.work), -1)
      assign(own, num(record.work), 1)
    end
    if entry.line == tier or entry.line == own then must_wait = 1 end
    break
  else
    local attempt, working = num(record.attempt) + 1, WORKING[tier]
    dequeue(id, tier, entry.line)
    show('HSET', job_key(id, tier), 'status', 'started', 'worker_name', a.worker, 'started_at', a.started_at)
    local abandoned_at = exact(num(record.deadline_at) + {ABANDONED_AFTER_S})
    show('ZADD', started_jobs(tier), abandoned_at, job_id(id, tier) .. ':' .. attempt)
    call('ZADD', DUE, exact(now + a.lease_s), id)
    call('HSET', record_key(id), 'state', working, 'at_' .. working, exact(now), 'attempt', attempt, 'line', own,
      'worker', a.worker_id, 'alone', alone and num(record.num_lost) >= a.solitary and 1 or 0)
    if entry.line ~= own then
      assign(entry.line, num(record.work), -1)
      assign(own, num(record.work), 1)
    end
    read_load('clock:' .. tier)
    if entry.tag > load['clock:' .. tier] then set('clock:' .. tier, entry.tag) end
    taken[#taken + 1] = {{id, attempt, entry.line, call('HGETALL', record_key(id))}}
    if alone then break end
  end
end
write_load()
return {{exact(now), must_wait, others_wait, unpack(taken)}}
"""
)

#: `batches`: each with id, attempt, state, events. Appends events to the streams of requests that the caller still has
#: a lease on. Answers 1 for each batch, or 0 where the lease is lost.
APPEND = (
    _PRELUDE
    + """
local answer = {}
for i, batch in ipairs(a.batches) do
  local record = call('HMGET', record_key(batch.id), 'state', 'attempt')
  answer[i] = record[1] == batch.state and num(record[2]) == batch.attempt and 1 or 0
  if answer[i] == 1 then emit(batch.id, batch.events) end
end
return answer
"""
)

#: `id`, `attempt` (none: any), `before` (states), `refusals` (the counter of commits that come too late), and where the
#: request moves: after, tier, worker, work, job, front, fields, events, ttl, remembered, counter. Answers 1, or 0 if it
#: is not the caller's to move.
COMMIT = (
    _PRELUDE
    + """
local record, matches = read_record(a.id), false
for _, state in ipairs(a.before) do matches = matches or state == record.state end
if not matches or (a.attempt and num(record.attempt) ~= a.attempt) then
  if record.state and a.refusals then count(a.refusals) end
  return 0
end
move(a.id, record, a)
write_load()
return 1
"""
)

#: `lease_s`, `leases`: each with id, attempt, state. Renews the leases that the caller still has. Answers the places,
#: from 0, of those that it has lost.
RENEW = (
    _PRELUDE
    + """
local lost = {}
for i, lease in ipairs(a.leases) do
  local record = call('HMGET', record_key(lease.id), 'state', 'attempt')
  if record[1] == lease.state and num(record[2]) == lease.attempt then
    call('ZADD', DUE, exact(now + a.lease_s), lease.id)
  else
    lost[#lost + 1] = i - 1
  end
end
return lost
"""
)

#: `most`, `claim_s`, `expired`: for each tier how a request ends whose deadline passed while it waited (see COMMIT).
#: Ends those, and claims for `claim_s` what must be looked at otherwise: requests whose lease has lapsed, and records
#: that cannot be read. Answers {how many were due, {id, state, attempt}, ...}.
EXPIRE = (
    _PRELUDE
    + """
local due = call('ZRANGE', DUE, '-inf', exact(now), 'BYSCORE', 'LIMIT', 0, a.most)
local claimed = {}
for _, id in ipairs(due) do
  local record = read_record(id)
  local tier = TIER[record.state]
  if not record.state or (a.finished[record.state] and not tier) then
    call('ZREM', DUE, id)
  elseif tier and WAITS[record.state] and num(record.deadline_at) > 0 then
    if num(record.deadline_at) <= now then
      move(id, record, a.expired[tier])
    else
      call('ZADD', DUE, exact(num(record.deadline_at)), id)
    end
  else
    call('ZADD', DUE, exact(now + a.claim_s), id)
    claimed[#claimed + 1] = {id, record.state, record.attempt or '0'}
  end
end
write_load()
return {#due, unpack(claimed)}
"""
)

#: Shared by what ends a worker's life: lets some of its waiting requests wait for anybody, and forgets its line once it
#: is empty.
_RETIRE = f"""
local function retire(tier, worker)
  local line = tier .. '@' .. worker
  local flat = call('ZRANGE', line_key(line), 0, {RETIRED_AT_ONCE} - 1, 'WITHSCORES')
  for i = 1, #flat, 2 do
    local id = flat[i]
    local work = num(call('HGET', record_key(id), 'work'))
    call('ZREM', line_key(line), id)
    if call('HEXISTS', record_key(id), 'state') == 1 then
      call('ZADD', line_key(tier), flat[i + 1], id)
      call('HSET', record_key(id), 'line', tier)
      assign(tier, work, 1)
    end
    assign(line, work, -1)
  end
  if #flat > 0 then call('PUBLISH', wake_channel(tier), '') end
  if #flat < {2 * RETIRED_AT_ONCE} then
    call('ZREM', workers_key(tier), worker)
    for _, sum in ipairs({{'work:', 'jobs:', 'recent:', 'recent_at:'}}) do set(sum .. line, 0) end
  end
  return #flat / 2
end
"""

#: `tier`, `worker`, `report`, `report_ms`, `life_s`. Keeps a worker alive: its report for `report_ms`, its line for
#: `life_s`; and retires workers whose lives have ended. Answers {name, requests moved} of each of those.
LIVE = (
    _PRELUDE
    + _RETIRE
    + """
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

#: `tier`, `worker`. Ends a worker's life: what waits for it waits for anybody. Answers how many requests were moved; to
#: be called again while it is not 0.
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

#: KEYS: a sorted set of times. ARGV: seconds until the next look, how many. Claims what is due, so that only one
#: caller has each.
CLAIM_DUE = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local due = redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, tonumber(ARGV[2]))
for _, id in ipairs(due) do redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]), id) end
return due
"""

#: KEYS: a record. Counts one more try to call its webhook. Answers how many there were, or 0 where it has expired.
COUNT_TRY = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('HINCRBY', KEYS[1], 'webhook_tries', 1)
"""

#: KEYS: an idempotency key. ARGV: what it is to stand for, its time to live. Answers what it stands for.
CLAIM_KEY = """
local earlier = redis.call('GET', KEYS[1])
if earlier then return earlier end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return ARGV[1]
"""
