-- name: gives a shard's state another name. Whoever works under the old one is refused from then on.
-- KEYS[1] shard  hash
-- ARGV    generation that it must have, generation to give, in seconds since 1970 when it was counted anew ('': it was not)
-- Reply   {'named'} {'other_generation', stored, '' = there is none}
assert(#KEYS == 1 and #ARGV == 3, 'name: wrong arity')
local from, to, rebuilt = ARGV[1], ARGV[2], ARGV[3]

local stored = redis.call('HGET', KEYS[1], 'generation')
if stored ~= from then
  return { 'other_generation', stored or '' }
end
if rebuilt ~= '' then
  redis.call('HSET', KEYS[1], 'generation', to, 'rebuilt', rebuilt)
else
  redis.call('HSET', KEYS[1], 'generation', to)
end
return { 'named' }
