"""A trained model on disk → a translator."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nmt.build.data import Tokenizers, load_tokenizers
from nmt.build.model import build_model
from nmt.build.shortlist import load_shortlist
from nmt.build.training import build_device, check_precision
from nmt.config import Config, load_config
from nmt.data.shortlist import Shortlist
from nmt.errors import ConfigError, ModelError, NMTError
from nmt.model.seq2seq import Seq2Seq
from nmt.training.checkpoint import choose_checkpoint, read_weights, verify
from nmt.training.trainer import DTYPES, Precision
from nmt.translator import SearchOptions, Translator

SearchPrecision = Precision | Literal["int8"]
"""Number formats that a model can translate in."""

TYPES = {"fp32": None, "int8": torch.int8, **DTYPES}


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
    precision: SearchPrecision = "fp32",
    options: SearchOptions | None = None,
    shortlist: Shortlist | None = None,
) -> Translator:
    """A translator around a model."""
    return Translator(
        model,
        tokenizers.src,
        tokenizers.tgt,
        max_source_length=config.data.max_length,
        options=options or search_options(config),
        device=device,
        precision=TYPES[precision],
        shortlist=None if shortlist is None else shortlist.allowed,
    )


@dataclass(frozen=True)
class SavedModel:
    """Where the parts of a trained model are."""

    checkpoint: Path
    config: Config
    tokenizers: Tokenizers


def check_search_precision(precision: SearchPrecision, device: torch.device) -> None:
    """Refuse a precision that the device cannot translate in.

    Raises:
        ConfigError: for fp16 on the CPU, and for int8 anywhere else.
    """
    if precision != "int8":
        check_precision(precision, device)
    elif device.type != "cpu":
        raise ConfigError(
            f"precision: int8 is for the CPU, but the device is {device}; use fp16 or bf16, or "
            "choose --device cpu"
        )


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
    path: str | Path,
    *,
    device: str = "auto",
    precision: SearchPrecision = "fp32",
    shortlist: str | Path | None = None,
    **search: Any,
) -> Translator:
    """Load a trained model to translate, score and align with.

    Args:
        path: a run directory (its best checkpoint, else its latest), or one checkpoint.
        device: auto, cpu, cuda or cuda:N.
        precision: number format of the products: fp32, bf16, fp16 on CUDA, or int8 on the CPU,
            which is for translating only.
        shortlist: the file that `nmt shortlist` made for this model; search then chooses from
            the tokens that it allows.
        search: options of `SearchOptions` that shall differ from the model's config.

    Raises:
        ModelError: if there is no model at `path`, or it is damaged.
        ConfigError: if the device or an option is impossible.
    """
    target = build_device(device)
    check_search_precision(precision, target)
    saved = find_model(path)
    options = search_options(saved.config, **search)
    allowed = None if shortlist is None else load_shortlist(shortlist, saved.tokenizers)
    model = build_model(saved.config, len(saved.tokenizers.src), len(saved.tokenizers.tgt))
    load_weights(model, saved.checkpoint)
    return build_translator(
        saved.config, model, saved.tokenizers, target, precision, options, allowed
    )
