"""A trained model on disk → a translator."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nmt.build.data import Tokenizers, load_tokenizers
from nmt.build.model import build_model
from nmt.build.training import build_device, check_precision
from nmt.config import Config, load_config
from nmt.errors import ModelError, NMTError
from nmt.model.seq2seq import Seq2Seq
from nmt.training.checkpoint import choose_checkpoint, read_weights, verify
from nmt.training.trainer import DTYPES, Precision
from nmt.translator import SearchOptions, Translator


def search_options(config: Config, **overrides: Any) -> SearchOptions:
    """How to search by default; an override that is None changes nothing.

    Raises:
        ConfigError: if the options contradict each other.
    """
    decoding = config.decoding
    values = {
        "beam_size": decoding.beam_size,
        "length_penalty": decoding.length_penalty,
        "min_length": decoding.min_length,
        "max_length_ratio": decoding.max_length_ratio,
        "batch_tokens": decoding.batch_tokens,
    }
    chosen = {key: value for key, value in overrides.items() if value is not None}
    return SearchOptions(**{**values, **chosen})


def build_translator(
    config: Config,
    model: Seq2Seq,
    tokenizers: Tokenizers,
    device: torch.device,
    precision: Precision = "fp32",
    options: SearchOptions | None = None,
) -> Translator:
    """A translator around a model."""
    return Translator(
        model,
        tokenizers.src,
        tokenizers.tgt,
        max_source_length=config.data.max_length,
        options=options or search_options(config),
        device=device,
        precision=None if precision == "fp32" else DTYPES[precision],
    )


@dataclass(frozen=True)
class SavedModel:
    """Where the parts of a trained model are."""

    checkpoint: Path
    config: Config
    tokenizers: Tokenizers


def find_model(path: str | Path) -> SavedModel:
    """Find the parts of a model: a run directory, or one of its checkpoints.

    Raises:
        ModelError: if there is no model, it is damaged, or its tokenizer is not its own.
    """
    checkpoint = choose_checkpoint(Path(path))
    folder = checkpoint.resolve().parent  # also of `.`
    home = folder.parent if folder.name == "checkpoints" else checkpoint
    try:
        config = load_config(str(home / "config.yaml"))
    except NMTError as error:
        raise ModelError(str(error)) from None
    tokenizers = load_tokenizers(config, home / "tokenizer")
    if verify(checkpoint).get("tokenizers") != tokenizers.hashes:
        raise ModelError(
            f"{home / 'tokenizer'}: is not the tokenizer that {checkpoint.name} was trained with; "
            "restore the one that was"
        )
    return SavedModel(checkpoint, config, tokenizers)


def load_weights(model: Seq2Seq, checkpoint: Path) -> None:
    """Copy the weights of a checkpoint into a model of the same shape.

    Raises:
        ModelError: if the checkpoint is damaged or belongs to another architecture.
    """
    weights = read_weights(checkpoint)
    parameters = dict(model.named_parameters())
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    if found != expected:
        name = min(
            name for name in found.keys() | expected if found.get(name) != expected.get(name)
        )
        raise ModelError(
            f"{checkpoint}: does not fit its config: {name} has the shape "
            f"{found.get(name, 'of nothing')}, but must have {expected.get(name, 'none')}"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def load(
    path: str | Path, *, device: str = "auto", precision: Precision = "fp32", **search: Any
) -> Translator:
    """Load a trained model to translate, score and align with.

    Args:
        path: a run directory (its best checkpoint, else its latest), or one checkpoint.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, bf16 or fp16 of the forward pass.
        search: options of `SearchOptions` that shall differ from the model's config.

    Raises:
        ModelError: if there is no model at `path`, or it is damaged.
        ConfigError: if the device or an option is impossible.
    """
    target = build_device(device)
    check_precision(precision, target)
    saved = find_model(path)
    options = search_options(saved.config, **search)
    model = build_model(saved.config, len(saved.tokenizers.src), len(saved.tokenizers.tgt))
    load_weights(model, saved.checkpoint)
    return build_translator(saved.config, model, saved.tokenizers, target, precision, options)
