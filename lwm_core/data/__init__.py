"""From examples to batches: weighted tokens, packed; a batch is a function of its number."""
