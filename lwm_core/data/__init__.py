"""From examples to batches: tokens with weights, packed; every batch is a function of its number."""
