-- day_usage: an account's usage of a day, all at one moment. Writes nothing.
-- KEYS[1] usage    hash
-- KEYS[2] journal  string
-- Reply   the journal, then n x (field, value) of the hash
local reply = redis.call('HGETALL', KEYS[1])
table.insert(reply, 1, redis.call('GET', KEYS[2]) or '')
return reply
