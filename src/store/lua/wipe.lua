-- wipe: deletes keys of a shard that is to be rebuilt from the log. Its fence goes first, so that no call fits any more.
-- KEYS    some keys of one shard
-- Reply   {'wiped', how many there were}
assert(#KEYS > 0 and #ARGV == 0, 'wipe: wrong arity')
return { 'wiped', tostring(redis.call('UNLINK', unpack(KEYS))) }
