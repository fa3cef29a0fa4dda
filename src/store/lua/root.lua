-- root: makes the one key that names this meter's state, or gives the one that is there.
-- KEYS[1] root  string  what the state is, as JSON (keys.rs); created once, never changed, never expires
-- ARGV[1] the root to make if there is none
-- Reply   the root that counts
assert(#KEYS == 1 and #ARGV == 1, 'root: wrong arity')

local stored = redis.call('GET', KEYS[1])
if stored then
  return stored
end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
