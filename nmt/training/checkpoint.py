"""Checkpoints on disk: complete or not there, verified when read, never overwritten.

    checkpoints/step-00001200/model.safetensors    the weights, readable without running code
    checkpoints/step-00001200/training_state.pt    optimizer, random state, progress
    checkpoints/step-00001200/manifest.json        size and SHA-256 of each file, written last
    latest, best                                   small files that name a checkpoint

A checkpoint is written to a temporary folder, synced to the disk and renamed. A crash at any
moment leaves the checkpoints before it as they were.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

import nmt
from nmt.errors import ConfigError, ModelError, TrainingError
from nmt.text.lines import atomic_write, sync_folder

FORMAT_VERSION = 1
NAME = re.compile(r"step-\d{8,}")
REPLACED = ".replaced"
WEIGHTS, STATE, MANIFEST = "model.safetensors", "training_state.pt", "manifest.json"


def checkpoint_name(step: int) -> str:
    """How the checkpoint after `step` updates is called."""
    return f"step-{step:08d}"


def write_checkpoint(
    run_dir: Path,
    step: int,
    weights: dict[str, Tensor],
    training_state: dict[str, Any],
    about: dict[str, Any],
) -> Path:
    """Write a checkpoint and make it the latest.

    Args:
        weights: by parameter name; tied ones once.
        about: what else the manifest says, such as the hash of the tokenizers.

    Raises:
        TrainingError: if a weight is not finite, or the disk is full; older checkpoints stay.
    """
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise TrainingError(
                f"step {step}: weight {name} is not finite, so no checkpoint was written; go on "
                "from the last one with a lower training.learning_rate"
            )
    final = run_dir / "checkpoints" / checkpoint_name(step)
    temporary = unfinished(final)
    try:
        remove_unfinished(run_dir)
        temporary.mkdir(parents=True)
        contiguous = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
        with atomic_write(temporary / WEIGHTS) as stream:
            stream.write(safetensors.torch.save(contiguous, metadata={"format": "pt"}))
        with atomic_write(temporary / STATE) as stream:
            torch.save(training_state, stream)
        manifest = {
            "format_version": FORMAT_VERSION,
            "nmt_version": nmt.__version__,
            "torch_version": torch.__version__,
            "step": step,
            **about,
            "files": {name: describe(temporary / name) for name in (WEIGHTS, STATE)},
        }
        with atomic_write(temporary / MANIFEST) as stream:
            stream.write(json.dumps(manifest, indent=2).encode() + b"\n")
        if final.exists():  # of a validation that was cut short, or damaged
            os.rename(final, final.with_suffix(REPLACED))
        os.rename(temporary, final)
        sync_folder(final.parent)
        point(run_dir / "latest", final)
    except (OSError, RuntimeError, ConfigError, TrainingError) as error:
        # RuntimeError is how torch.save reports a full disk
        reason = str(error).partition("\n")[0]
        raise TrainingError(
            f"{final}: cannot be written ({reason}); older checkpoints are as they were; free "
            "some space and continue with --resume"
        ) from error
    finally:
        with suppress(OSError):
            remove_unfinished(run_dir)
    return final


def unfinished(checkpoint: Path) -> Path:
    """Where a checkpoint is while it is not complete."""
    return checkpoint.with_name(f"{checkpoint.name}.tmp-{os.getpid()}")


def remove_unfinished(run_dir: Path) -> None:
    """Sweep away what interrupted writes have left, and put back what they had moved away."""
    folder = run_dir / "checkpoints"
    for temporary in folder.glob("step-*.tmp-*"):
        shutil.rmtree(temporary, ignore_errors=True)
    for replaced in folder.glob(f"step-*{REPLACED}"):
        if (final := replaced.with_suffix("")).exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.rename(replaced, final)


def point(pointer: Path, checkpoint: Path) -> None:
    """Make a pointer file name a checkpoint."""
    with atomic_write(pointer) as stream:
        stream.write(f"checkpoints/{checkpoint.name}\n".encode())


def describe(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def list_checkpoints(run_dir: Path) -> list[Path]:
    """All checkpoint folders of a run, oldest first."""
    found = [
        folder for folder in (run_dir / "checkpoints").glob("step-*") if NAME.fullmatch(folder.name)
    ]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("step-")))


def remove_old(run_dir: Path, keep_last: int) -> None:
    """Delete all checkpoints but the last ones, the best and the latest.

    The latest is not among the last where a run goes on from before damaged checkpoints.
    """
    kept = (pointed(run_dir / "best"), pointed(run_dir / "latest"))
    for folder in list_checkpoints(run_dir)[:-keep_last]:
        if folder not in kept:
            shutil.rmtree(folder.rename(unfinished(folder)))


def pointed(pointer: Path) -> Path | None:
    """The checkpoint that a pointer file names, if it is there."""
    try:
        name = pointer.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    target = pointer.parent / "checkpoints" / Path(name).name
    return target if NAME.fullmatch(target.name) and target.is_dir() else None


def verify(checkpoint: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest, and return the manifest.

    Raises:
        ModelError: if something is missing, damaged, or written by a newer `nmt`.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        version, made_by = int(manifest["format_version"]), str(manifest["nmt_version"])
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"{checkpoint}: {MANIFEST} is missing or damaged; use an older checkpoint"
        ) from None
    if version > FORMAT_VERSION:
        raise ModelError(f"{checkpoint}: was made by nmt {made_by}; upgrade nmt to read it")
    for name, expected in files.items():
        path = checkpoint / Path(name).name
        try:
            actual = describe(path)
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
        if actual != expected:
            raise ModelError(
                f"{path}: is damaged (its checksum is not that of {MANIFEST}); "
                "use an older checkpoint"
            )
    return dict(manifest)


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of a verified checkpoint, on the CPU."""
    verify(checkpoint)
    return safetensors.torch.load_file(checkpoint / WEIGHTS)


def read_training_state(checkpoint: Path) -> dict[str, Any]:
    """The training state of a verified checkpoint."""
    verify(checkpoint)
    return dict(torch.load(checkpoint / STATE, map_location="cpu", weights_only=True))


def latest_good(run_dir: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is complete, or None if the run has none at all.

    Args:
        warn: is told about every newer one that is damaged.

    Raises:
        ModelError: if there are checkpoints, but all are damaged.
    """
    checkpoints = list_checkpoints(run_dir)
    for checkpoint in reversed(checkpoints):
        try:
            verify(checkpoint)
        except ModelError as error:
            warn(f"{error}; going on from the checkpoint before it")
        else:
            return checkpoint
    if checkpoints:
        raise ModelError(f"{run_dir}: every checkpoint is damaged; start again in another run_dir")
    return None


def choose_checkpoint(path: Path) -> Path:
    """The checkpoint to use for `--model`: the folder itself, or the run's best, else its latest.

    Raises:
        ModelError: if there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    found = pointed(path / "best") or pointed(path / "latest")
    if found is None and (checkpoints := list_checkpoints(path)):
        found = checkpoints[-1]
    if found is None:
        hint = "no such folder" if not path.is_dir() else "holds no checkpoint of nmt"
        raise ModelError(f"{path}: {hint}; give a run directory or one of its checkpoints")
    return found
