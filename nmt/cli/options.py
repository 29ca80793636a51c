"""Options that several commands share, each described once, and what is refused of them."""

import os
from typing import Annotated, Literal

import typer

from nmt.errors import ConfigError

CONFIG = "[default: the model's config]"  # the only home of defaults

ModelPath = Annotated[
    str,
    typer.Option("--model", "-m", help="Run directory (its best checkpoint), or one checkpoint."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[
    Literal["fp32", "bf16", "fp16", "int8"],
    typer.Option(help="Number format of the products; int8 is for translating on the CPU."),
]
BeamSize = Annotated[
    int | None,
    typer.Option("--beam-size", "--beam", help=f"Hypotheses kept; 1 is greedy. {CONFIG}"),
]
NBest = Annotated[int, typer.Option("--n-best", help="Translations per sentence.")]
LengthPenalty = Annotated[
    float | None,
    typer.Option(help=f"Exponent of the GNMT length penalty; 0 is none. {CONFIG}"),
]
BatchTokens = Annotated[
    int | None, typer.Option(help=f"Source positions decoded together. {CONFIG}")
]
ConfigPath = Annotated[str, typer.Option("--config", "-c", help="The experiment's YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config; repeatable."),
]


def input_name(path: str) -> str:
    """How messages call an input: also where the locale cannot name it, as UTF-8."""
    return "standard input" if path == "-" else os.fsencode(path).decode("utf-8", "replace")


def refuse_shared_stream(stream: str, **paths: str | None) -> None:
    """Refuse two options that are both `-`.

    Args:
        stream: what `-` stands for.
        paths: the value of each option.

    Raises:
        ConfigError: if more than one is `-`.
    """
    names = [f"--{name}" for name, path in paths.items() if path == "-"]
    if len(names) > 1:
        raise ConfigError(f"{' and '.join(names)}: only one can be {stream}; name a file")


def refuse_impossible_beam(beam_size: int | None, n_best: int = 1) -> None:
    """Refuse what no search can do, before the model is read.

    Raises:
        ConfigError: if the beam is empty, or more translations than it holds are asked for.
    """
    if beam_size is None:
        return
    if beam_size < 1:
        raise ConfigError(f"--beam-size: must be at least 1, but is {beam_size}")
    if n_best > beam_size:
        raise ConfigError(
            f"--n-best: must be at most the beam size {beam_size}, but is {n_best}; "
            "raise --beam-size"
        )


def refuse_ignored(without: str, **values: object) -> None:
    """Refuse options that would be read, and then change nothing.

    Args:
        without: the option beside which they mean nothing.
        values: each option and its value; None is not given.

    Raises:
        ConfigError: if one is given.
    """
    for name, value in values.items():
        if value is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')}: says how to translate, but {without} gives "
                "translations; leave one of the two out"
            )
