"""A trained model on disk → a translator."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import nmt
from nmt.build.data import Tokenizers, load_tokenizers, tokenizer_hashes
from nmt.build.model import check_memory, outline_model
from nmt.build.shortlist import load_shortlist
from nmt.build.training import build_device, check_precision
from nmt.config import Config, load_config
from nmt.data.shortlist import Shortlist
from nmt.errors import ConfigError, ModelError, NMTError
from nmt.model.onednn import use_onednn
from nmt.model.seq2seq import Seq2Seq
from nmt.training.checkpoint import (
    WEIGHTS,
    choose_checkpoint,
    read_manifest,
    read_weights,
    verify,
)
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


def find_model(path: str | Path, *, is_verified: bool = True) -> SavedModel:
    """Find the parts of a model: a run directory, or one of its checkpoints.

    Args:
        is_verified: whether to compare the weights with their hash; who reads them does so anyway.

    Raises:
        ModelError: if there is no model, it is damaged, or its tokenizer is not its own.
    """
    checkpoint = choose_checkpoint(Path(path))
    # The folder of checkpoints may be a link, or the checkpoint itself, or it is called `.`
    folders = (Path(os.path.abspath(checkpoint)).parent, checkpoint.resolve().parent)
    home = next((path.parent for path in folders if path.name == "checkpoints"), checkpoint)
    manifest = read_manifest(checkpoint)  # first: a newer nmt may have written anything else
    try:
        if os.path.lexists(home / "config.yaml") and not (home / "config.yaml").is_file():
            raise ModelError(f"{home / 'config.yaml'}: is not a regular file")
        config = load_config(str(home / "config.yaml"))
    except NMTError as error:
        message = str(error)
        if (made_by := manifest["nmt_version"]) != nmt.__version__:
            message += (
                f"\n{checkpoint}: was made by nmt {made_by}, but this is nmt {nmt.__version__}; "
                "use that version"
            )
        raise ModelError(message) from None
    # Known by its hash before it is parsed: what was damaged by accident is never parsed.
    if manifest.get("tokenizers") != tokenizer_hashes(config, home / "tokenizer"):
        raise ModelError(
            f"{home / 'tokenizer'}: is not the tokenizer that {checkpoint.name} was trained with; "
            "restore the one that was"
        )
    if is_verified:
        verify(checkpoint, WEIGHTS)
    return SavedModel(checkpoint, config, load_tokenizers(config, home / "tokenizer"))


def load_weights(model: Seq2Seq, checkpoint: Path) -> None:
    """Give a model of the same shape the weights of a checkpoint.

    Args:
        model: as `build_model` or `outline_model` gives it.

    Raises:
        ModelError: if the checkpoint is damaged or belongs to another architecture.
    """
    parameters = dict(model.named_parameters())
    weights = read_weights(checkpoint, {name: tuple(p.shape) for name, p in parameters.items()})
    if all(parameter.is_meta for parameter in parameters.values()):
        loaded = {id(p): torch.nn.Parameter(weights[name]) for name, p in parameters.items()}
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, loaded[id(parameter)])  # tied ones stay one
        return
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
    saved = find_model(path, is_verified=False)
    options = search_options(saved.config, **search)
    allowed = None if shortlist is None else load_shortlist(shortlist, saved.tokenizers)
    model = outline_model(saved.config, len(saved.tokenizers.src), len(saved.tokenizers.tgt))
    try:
        check_memory(model)
    except ConfigError as error:
        raise ModelError(f"{saved.checkpoint}: {error}") from None
    load_weights(model, saved.checkpoint)
    if target.type == "cpu" and precision == "fp32":
        use_onednn(model)
    return build_translator(
        saved.config, model, saved.tokenizers, target, precision, options, allowed
    )
