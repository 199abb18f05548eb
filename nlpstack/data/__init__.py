"""Files to batches: readers, splits, token shards, blocks and the order they are seen in."""
