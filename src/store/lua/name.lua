-- name: gives a shard's state another name. Whoever works under the old one is refused from then on.
-- KEYS[1] shard  hash
-- ARGV    generation that it must have, generation to give
-- Reply   {'named'} {'other_generation', stored, '' = there is none}
assert(#KEYS == 1 and #ARGV == 2, 'name: wrong arity')
local from, to = ARGV[1], ARGV[2]

local stored = redis.call('HGET', KEYS[1], 'generation')
if stored ~= from then
  return { 'other_generation', stored or '' }
end
redis.call('HSET', KEYS[1], 'generation', to)
return { 'named' }
