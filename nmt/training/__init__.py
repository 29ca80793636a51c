"""Batches + model → a better model: schedule, loop, checkpoints."""
