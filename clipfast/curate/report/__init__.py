"""One page of what was chosen: queries before and after, by rank, by source and by shard."""
