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

import safetensors.torch
import torch
from torch import Tensor

import nmt
from nmt.errors import ConfigError, ModelError, TrainingError
from nmt.text.files import open_regular, read_file, read_json
from nmt.text.lines import atomic_write, sync_folder
from nmt.training.untrusted import Shapes, may_fit, read_state_file, read_weights_file

FORMAT_VERSION = 1
NAME = re.compile(r"step-[0-9]{8,18}")
MAX_POINTER = 4096
REPLACED = ".replaced"
SEAL = "manifest_sha256"
WEIGHTS, STATE, MANIFEST = "model.safetensors", "training_state.pt", "manifest.json"


class NewerFormatError(ModelError):
    """A checkpoint is complete, but was written by a version of `nmt` after this one."""


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
            stream.write(sealed(manifest))
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
    """Size and SHA-256 of a file.

    Raises:
        OSError: if it cannot be read, or is not a regular file.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"size": size, "sha256": digest}


def sealed(manifest: dict[str, Any]) -> bytes:
    """A manifest as it stands in its file, with a checksum of what it says."""
    return json.dumps(manifest | {SEAL: checksum(manifest)}, indent=2).encode() + b"\n"


def checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 of what a manifest says, but for its own checksum."""
    rest = {name: value for name, value in manifest.items() if name != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def list_checkpoints(run_dir: Path) -> list[Path]:
    """All checkpoint folders of a run, oldest first."""
    found = [
        folder for folder in (run_dir / "checkpoints").glob("step-*") if NAME.fullmatch(folder.name)
    ]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("step-")))


def remove_old(run_dir: Path, keep_last: int) -> None:
    """Delete all checkpoints but the last ones up to the latest, and the best.

    Those after the latest are damaged ones that a run was continued from before: they stay until
    they are written again, and do not count.
    """
    checkpoints = list_checkpoints(run_dir)
    best, latest = pointed(run_dir / "best"), pointed(run_dir / "latest")
    if latest in checkpoints:
        checkpoints = checkpoints[: checkpoints.index(latest) + 1]
    for folder in checkpoints[:-keep_last]:
        if folder != best:
            shutil.rmtree(folder.rename(unfinished(folder)))


def pointed(pointer: Path) -> Path | None:
    """The checkpoint that a pointer file names, if it is there; never one of another run."""
    try:
        name = read_file(pointer, MAX_POINTER).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    target = pointer.parent / "checkpoints" / Path(name).name
    return target if NAME.fullmatch(target.name) and target.is_dir() else None


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """What the manifest of a checkpoint says, before anything else of it is looked at.

    Raises:
        ModelError: if it is missing, damaged, or written by a newer `nmt`.
    """
    try:
        manifest = read_json(checkpoint / MANIFEST)
        version, made_by = manifest["format_version"], manifest["nmt_version"]
        if type(version) is not int or version < 1:
            raise ValueError
        if version <= FORMAT_VERSION and not isinstance(manifest["files"], dict):
            raise ValueError
        if not re.fullmatch(r"[\w.+-]{1,40}", made_by):
            raise ValueError
        if version <= FORMAT_VERSION and manifest.get(SEAL, seal := checksum(manifest)) != seal:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"{checkpoint}: {MANIFEST} is missing or damaged; use an older checkpoint"
        ) from None
    if version > FORMAT_VERSION:
        raise NewerFormatError(f"{checkpoint}: was made by nmt {made_by}; upgrade nmt to read it")
    return manifest


def verify(checkpoint: Path, *names: str) -> dict[str, Any]:
    """Check files of a checkpoint against its manifest, and return the manifest.

    Args:
        names: the files that will be read; none is all that the manifest lists.

    Raises:
        ModelError: if something is missing, damaged, or written by a newer `nmt`.
    """
    manifest = read_manifest(checkpoint)
    files = manifest["files"]
    for name in names or files:
        path = checkpoint / Path(name).name
        expected = files.get(name)
        try:
            # The size first: hashing takes as long as the file is.
            claimed = expected.get("size") if isinstance(expected, dict) else None
            is_whole = path.stat().st_size == claimed and describe(path) == expected
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
        except ValueError:  # a name with a NUL
            is_whole = False
        if not is_whole:
            raise ModelError(
                f"{path}: is damaged (its checksum is not that of {MANIFEST}); "
                "use an older checkpoint"
            )
    return manifest


def read_weights(checkpoint: Path, shapes: Shapes | None = None) -> dict[str, Tensor]:
    """The weights of a verified checkpoint, on the CPU, by parameter name.

    Args:
        shapes: all weights that must be there, each as fp32; None takes what there is.

    Raises:
        ModelError: if the file is damaged, has other weights, or some are not finite.
    """
    if shapes is None or may_fit(checkpoint / WEIGHTS, shapes):
        verify(checkpoint, WEIGHTS)
    else:  # it is not hashed, however long it is: that it does not fit is told by its header
        read_manifest(checkpoint)
    return read_weights_file(checkpoint / WEIGHTS, shapes)


def read_training_state(checkpoint: Path) -> dict[str, Any]:
    """The training state of a verified checkpoint.

    Raises:
        ModelError: if it is damaged, or holds anything but tensors, numbers and texts.
    """
    verify(checkpoint, STATE)
    return read_state_file(checkpoint / STATE)


def latest_good(run_dir: Path, warn: Callable[[str], None], *, strict: bool = False) -> Path | None:
    """The newest checkpoint that is complete, or None if the run has none at all.

    Args:
        warn: is told about every newer one that is damaged.
        strict: whether a damaged one is an error instead.

    Raises:
        ModelError: if there are checkpoints, but all are damaged, or, with `strict`, the newest
            is; or if one was written by a newer `nmt`, which an older one must not undo.
    """
    checkpoints = list_checkpoints(run_dir)
    for checkpoint in reversed(checkpoints):
        try:
            verify(checkpoint)
        except NewerFormatError:
            raise
        except ModelError as error:
            if strict:
                raise ModelError(
                    f"{error}; leave out --strict to go on from the one before it"
                ) from None
            warn(f"{error}; going on from the checkpoint before it")
        else:
            return checkpoint
    if checkpoints:
        raise ModelError(f"{run_dir}: every checkpoint is damaged; start again in another run_dir")
    return None


def choose_checkpoint(path: Path) -> Path:
    """The checkpoint to use for `--model`: the folder itself, or the run's best, else its latest.

    Raises:
        ModelError: if there is none, or the folder cannot be read.
    """
    try:
        if (path / MANIFEST).is_file():
            return path
        found = pointed(path / "best") or pointed(path / "latest")
        if found is None and (checkpoints := list_checkpoints(path)):
            found = checkpoints[-1]
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    if found is None:
        hint = "no such folder" if not path.is_dir() else "holds no checkpoint of nmt"
        raise ModelError(f"{path}: {hint}; give a run directory or one of its checkpoints")
    return found
