"""Whether the checkpoints of a run will fit on the disk."""

import shutil
from collections.abc import Callable
from pathlib import Path

from nmt.errors import TrainingError
from nmt.training.checkpoint import list_checkpoints

SLACK = 1.2
"""How much larger a checkpoint may be than is known beforehand."""


def refuse_full_disk(
    run_dir: Path, estimate: int, keep_last: int, warn: Callable[[str], None]
) -> None:
    """Find out before training that the disk is too small, instead of hours later.

    This is not asked again before each save: the write itself knows better, of quotas too, and
    where it fails it leaves nothing behind.

    Args:
        estimate: bytes of a checkpoint, where there is none to measure.
        keep_last: number of newest checkpoints that are kept.
        warn: is told if one checkpoint fits, but not all that will be kept.

    Raises:
        TrainingError: if not even one fits.
    """
    checkpoints = list_checkpoints(run_dir)
    sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in checkpoints]
    size = SLACK * max(sizes, default=estimate)
    folder = run_dir / "checkpoints"
    free = shutil.disk_usage(folder if folder.exists() else run_dir).free
    if size > free:
        raise TrainingError(
            f"{run_dir}: a checkpoint takes about {megabytes(size)}, but the disk has only "
            f"{megabytes(free)} free; free some space, or choose another run_dir"
        )
    missing = keep_last + 2 - len(checkpoints)  # with the best one, and one being written
    if missing * size > free:
        warn(
            f"{run_dir}: up to {missing} more checkpoints will take about "
            f"{megabytes(missing * size)}, but the disk has only {megabytes(free)} free; free some "
            "space, or lower training.keep_last"
        )


def megabytes(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / 1e6:,.1f} MB"
