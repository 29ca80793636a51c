"""Checkpoints of one run → a model whose weights are their mean."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

import nmt
from nmt.build.model import build_model
from nmt.build.saved import SavedModel, find_model, load_weights
from nmt.build.shortlist import shortlist_path
from nmt.config import to_yaml
from nmt.errors import ConfigError, TrainingError
from nmt.text.lines import atomic_write, sync_folder
from nmt.training.checkpoint import (
    FORMAT_VERSION,
    MANIFEST,
    WEIGHTS,
    describe,
    list_checkpoints,
    read_manifest,
    sealed,
    unfinished,
)

FEWEST = 2
"""Checkpoints that have a mean."""


def last_checkpoints(run_dir: Path, count: int) -> list[Path]:
    """The newest checkpoints of a run, oldest first.

    Raises:
        ConfigError: if there are fewer, or they are too few to have a mean.
    """
    if count < FEWEST:
        raise ConfigError(f"--last: must be at least {FEWEST}, but is {count}")
    found = list_checkpoints(run_dir)
    if len(found) < count:
        raise ConfigError(
            f"--last: must be at most the number of checkpoints in {run_dir}, which is "
            f"{len(found)}, but is {count}; training.keep_last says how many a run keeps"
        )
    return found[-count:]


def named_checkpoints(run_dir: Path, names: Sequence[str]) -> list[Path]:
    """Checkpoints of a run, each given by its path, or by its name alone.

    Raises:
        ConfigError: if one is not of this run, or given twice, or they are too few.
    """
    if len(names) < FEWEST:
        raise ConfigError(f"CHECKPOINT: give at least {FEWEST}, not {len(names)}")
    known = {checkpoint.resolve(): checkpoint for checkpoint in list_checkpoints(run_dir)}
    chosen: list[Path] = []
    for name in names:
        by_name, by_path = run_dir / "checkpoints" / name, Path(name)
        checkpoint = known.get((by_name if by_name.exists() else by_path).resolve())
        if checkpoint is None:
            raise ConfigError(
                f"{name}: is not a checkpoint of {run_dir}, and only those of one run have a mean "
                "that means something"
            )
        if checkpoint in chosen:
            raise ConfigError(f"{name}: is given twice; leave one out")
        chosen.append(checkpoint)
    return chosen


def mean_weights(checkpoints: Sequence[Path]) -> tuple[SavedModel, dict[str, Tensor]]:
    """The mean of the weights of checkpoints (Junczys-Dowmunt et al. 2016).

    Sums are held in float64; one checkpoint is in memory at a time.

    Returns:
        saved: where the other parts of the model are.
        weights: by parameter name, in the type that the model trains in; tied ones once.

    Raises:
        ModelError: if a checkpoint is damaged, or its tokenizers or shapes are not the run's.
    """
    for checkpoint in checkpoints:
        read_manifest(checkpoint)  # first: without one it would pass for a run directory
    saved = [find_model(checkpoint) for checkpoint in checkpoints][-1]
    model = build_model(saved.config, len(saved.tokenizers.src), len(saved.tokenizers.tgt))
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    sums = {
        name: torch.zeros_like(value, dtype=torch.float64) for name, value in parameters.items()
    }
    for checkpoint in checkpoints:
        load_weights(model, checkpoint)
        for name, value in parameters.items():
            sums[name] += value
    return saved, {
        name: (sums[name] / len(checkpoints)).to(value.dtype) for name, value in parameters.items()
    }


def average_checkpoints(checkpoints: Sequence[Path], output: Path) -> None:
    """Write a model with the mean of the weights of some checkpoints.

    It holds all that translating needs, but no training state. It is complete or not there:
    everything is written to a folder beside it, synced to the disk, and renamed.

    Args:
        checkpoints: of one run, two or more.
        output: the new model directory, which must not exist.

    Raises:
        ConfigError: if `output` exists, or cannot be created.
        ModelError: if a checkpoint is damaged or does not fit the others.
        TrainingError: if the disk is full.
    """
    if os.path.lexists(output):
        raise ConfigError(f"{output}: exists already; choose another --output")
    if output.resolve().parent.name == "checkpoints":
        raise ConfigError(
            f"{output}: a folder named checkpoints is for those that training writes; choose "
            "another --output"
        )
    temporary = unfinished(output)
    try:
        _remove_interrupted(output)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror}") from None
    try:
        saved, weights = mean_weights(checkpoints)
        about = {
            "step": read_manifest(saved.checkpoint).get("step"),
            "average_of": [checkpoint.name for checkpoint in checkpoints],
        }
        _write_model(temporary, output, saved, weights, about)
        os.rename(temporary, output)
        sync_folder(output.resolve().parent)
    except (OSError, ConfigError, TrainingError) as error:
        reason = str(error).partition("\n")[0]
        raise TrainingError(
            f"{output}: cannot be written ({reason}); free some space and try again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_model(
    folder: Path,
    output: Path,
    saved: SavedModel,
    weights: dict[str, Tensor],
    about: dict[str, Any],
) -> None:
    """Write all parts of a model that will be at `output`, the manifest last."""
    with atomic_write(folder / WEIGHTS) as stream:
        stream.write(safetensors.torch.save(weights, metadata={"format": "pt"}))
    with atomic_write(folder / "config.yaml") as stream:
        # or training as this config says would go on with the run instead
        config = saved.config.model_copy(update={"run_dir": str(output)})
        stream.write(to_yaml(config).encode())
    (folder / "tokenizer").mkdir()
    if saved.config.tokenizer.shared:
        saved.tokenizers.src.save(folder / "tokenizer" / "shared.model")
    else:
        saved.tokenizers.src.save(folder / "tokenizer" / "src.model")
        saved.tokenizers.tgt.save(folder / "tokenizer" / "tgt.model")
    if (shortlist := shortlist_path(saved.checkpoint)).exists():  # its tokens are the same
        with atomic_write(folder / shortlist.name) as stream:
            stream.write(shortlist.read_bytes())
    manifest = {
        "format_version": FORMAT_VERSION,
        "nmt_version": nmt.__version__,
        "torch_version": torch.__version__,
        **about,
        "tokenizers": saved.tokenizers.hashes,
        "files": {WEIGHTS: describe(folder / WEIGHTS)},
    }
    with atomic_write(folder / MANIFEST) as stream:
        stream.write(sealed(manifest))


def _remove_interrupted(output: Path) -> None:
    """Sweep away what a kill in an earlier attempt has left."""
    name = re.compile(re.escape(output.name) + r"\.tmp-\d+")
    if output.parent.is_dir():
        for folder in output.parent.iterdir():
            if name.fullmatch(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
