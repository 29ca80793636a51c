"""Going on with a run: from which checkpoint, and whether config and data allow it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nmt.build.data import Tokenizers, data_fingerprint
from nmt.build.saved import load_weights
from nmt.cli.messages import warn
from nmt.config import (
    Config,
    can_be_forced,
    forbidden_changes,
    load_config,
    parse_config,
)
from nmt.data.store import TokenStore
from nmt.errors import ConfigError, ModelError
from nmt.training.checkpoint import (
    checkpoint_name,
    latest_good,
    point,
    read_manifest,
    read_training_state,
)
from nmt.training.run_directory import RunDirectory
from nmt.training.trainer import Trainer

OPTION = "--override-resume"
TEXT = "data.train"
"""The key under which another training text is forced: its paths may change freely."""

BATCHES = {"seed", "training.batch_tokens"}
"""What else than the data the batches of an epoch depend on."""


@dataclass(frozen=True)
class Origin:
    """Where a run goes on from.

    Attributes:
        checkpoint: the newest good one, or None if there is none.
        state: its training state.
        begun: the config with which it was written, if that is known.
        changes: by key, what is another now although the weights depend on it, as a text.
        forced: the keys whose change shall be no obstacle.
    """

    checkpoint: Path | None
    state: dict[str, Any]
    begun: Config | None
    changes: dict[str, str]
    forced: frozenset[str]


def find_origin(
    config: Config, run: RunDirectory, forced: frozenset[str] = frozenset(), *, strict: bool = False
) -> Origin:
    """Find where to go on, and compare the config with that of the checkpoint.

    Args:
        forced: the keys whose change shall be no obstacle.
        strict: whether a damaged checkpoint, passed over with a warning else, is an error.

    Raises:
        ConfigError: if another key has changed that the weights depend on.
        ModelError: if no checkpoint is good, or, with `strict`, if the newest is not.
    """
    run.sweep()
    checkpoint = latest_good(run.path, warn, strict=strict)
    state = {} if checkpoint is None else read_training_state(checkpoint)
    begun = None
    if "config" in state:
        begun = parse_config(state["config"], f"{checkpoint}: its config")
    elif run.has_begun() and run.config.exists():
        begun = load_config(str(run.config))
    changes = {} if begun is None else forbidden_changes(begun, config)
    _refuse(run, changes, forced)
    return Origin(checkpoint, state, begun, changes, forced)


def restore(
    origin: Origin,
    run: RunDirectory,
    config: Config,
    trainer: Trainer,
    store: TokenStore,
    tokenizers: Tokenizers,
    note: Callable[[str], None],
) -> None:
    """Put a trainer where the run stood, but for what cannot be kept after a forced change.

    Args:
        note: is told what has changed, and what begins anew because of it.

    Raises:
        ConfigError: if the training text has changed, and this was not forced.
        ModelError: if the tokenizers are not those of the checkpoint.
    """
    checkpoint = origin.checkpoint
    if checkpoint is None:
        run.forget_after(0)
        return
    if read_manifest(checkpoint).get("tokenizers") != tokenizers.hashes:
        raise ModelError(
            f"{run.path / 'tokenizer'}: is not the tokenizer that {checkpoint.name} was trained "
            "with; restore the one that was"
        )
    changes = dict(origin.changes)
    if _text_has_changed(origin, config, store, tokenizers):
        changes[TEXT] = "the training data"
        if TEXT not in origin.forced:
            raise ConfigError(
                f"{run.path}: the training data has changed since the run was begun; restore it, "
                f"go on with the changed data by {OPTION} {TEXT}, or choose another run_dir"
            )
    if changes:
        note(f"going on although this has changed: {'; '.join(changes.values())}")
    load_weights(trainer.model, checkpoint)
    try:
        trainer.load_state_dict(_kept(origin.state["trainer"], changes, trainer, note))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{checkpoint}: its training state is not one of this nmt ({error!r}); continue with "
            "the nmt that wrote it"
        ) from None
    progress = trainer.progress
    run.forget_after(progress.step, validation_due=progress.validation_due)
    point(run.path / "latest", checkpoint)
    if progress.best_step:
        best = run.path / "checkpoints" / checkpoint_name(progress.best_step)
        point(run.path / "best", best)


def _refuse(run: RunDirectory, changes: dict[str, str], forced: frozenset[str]) -> None:
    """Go on only with what was begun, but for what is forced.

    Raises:
        ConfigError: with a list of what has changed.
    """
    fixed = [key for key in changes if not can_be_forced(key)]
    refused = [key for key in changes if key in fixed or key not in forced]
    if not refused:
        return
    options = " ".join(f"{OPTION} {key}" for key in refused)
    way = f"its weights fit no other {', '.join(fixed)}: " if fixed else ""
    force = "" if fixed else f" go on with it by {options},"
    raise ConfigError(
        f"{run.path}: the run was begun with another config "
        f"({'; '.join(changes[key] for key in refused)}); {way}undo the change,{force} or choose "
        "another run_dir"
    )


def _text_has_changed(
    origin: Origin, config: Config, store: TokenStore, tokenizers: Tokenizers
) -> bool:
    """Whether the lines to train on are others, whatever is done with them."""
    saved = origin.state["data_fingerprint"]
    if store.fingerprint == saved:
        return False
    if origin.begun is None:
        return True
    moved = origin.begun.data.model_copy(update={"train": config.data.train})
    begun = origin.begun.model_copy(update={"data": moved})
    return data_fingerprint(begun, "train", tokenizers) != saved


def _kept(
    state: dict[str, Any], changes: dict[str, str], trainer: Trainer, note: Callable[[str], None]
) -> dict[str, Any]:
    """What of a trainer's saved state still has a meaning; the rest is that of a new trainer."""
    state = dict(state)
    progress = state["progress"] = dict(state["progress"])
    if any(key.startswith("data.") or key in BATCHES for key in changes):
        progress["batch"] = 0
        note(f"the batches are others now: epoch {progress['epoch'] + 1} begins anew")
    if "seed" in changes:
        state["random"], state["cuda_random"] = torch.get_rng_state(), []
    new = trainer.optimizer.state_dict()
    if "training.optimizer" in changes:
        state["optimizer"] = new
        note("the optimizer is another now: its state begins anew")
    elif "training.weight_decay" in changes:  # which the saved state would bring back
        state["optimizer"] = state["optimizer"] | {"param_groups": new["param_groups"]}
    if "training.precision" in changes:
        state["scaler"] = trainer.scaler.state_dict()
    if "validation.metric" in changes:
        progress.update(best_score=None, best_step=0, bad_validations=0)
        note("scores are of another metric now: the best checkpoint is that of the next validation")
    return state
