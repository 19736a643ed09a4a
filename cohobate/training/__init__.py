"""Training a causal language model: batches, updates, checkpoints to go on from, workers."""
