"""`training.batch_tokens: auto`: the most target positions per batch that memory allows."""

from dataclasses import replace

import torch

from nmt.errors import TrainingError
from nmt.memory import machine_memory, peak_memory
from nmt.training.trainer import Trainer

CPU_BATCH_TOKENS = (256, 512, 1024, 2048)
"""What is tried. Larger batches are no faster on a CPU."""
GPU_BATCH_TOKENS = (1024, 2048, 4096, 8192, 16384)
"""What is tried. Still larger batches make too few updates of a usual corpus."""
SAFE_SHARE = 0.8
"""Of all memory: sampled segmentations may be longer, and memory is never used up evenly."""


def find_batch_tokens(trainer: Trainer) -> int:
    """The most target positions per batch of which the largest batch leaves memory free.

    The trainer's batches are of that size from then on.

    Raises:
        TrainingError: if not even the smallest size fits in memory.
    """
    sizes = CPU_BATCH_TOKENS if trainer.device.type == "cpu" else GPU_BATCH_TOKENS
    batches, chosen = trainer.batches, 0
    for size in sizes:
        trainer.batches = replace(batches, batch_tokens=size)
        try:
            fits = not trainer.rehearse() and used_share(trainer.device) <= SAFE_SHARE
        except TrainingError:
            if not chosen:
                raise
            fits = False
        if not fits:
            break
        chosen = size
    chosen = chosen or sizes[0]
    trainer.batches = replace(batches, batch_tokens=chosen)
    return chosen


def used_share(device: torch.device) -> float:
    """The largest share of all memory that this process has had until now."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return torch.cuda.max_memory_reserved(device) / total
    return peak_memory() / machine_memory()
