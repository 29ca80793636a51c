"""Options that several commands share, each described once."""

from typing import Annotated, Literal

import typer

ModelPath = Annotated[
    str,
    typer.Option("--model", "-m", help="Run directory (its best checkpoint), or one checkpoint."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[
    Literal["fp32", "bf16", "fp16"], typer.Option(help="Number format of the forward pass.")
]
BeamSize = Annotated[
    int | None,
    typer.Option("--beam-size", "--beam", help="Hypotheses kept; 1 is greedy. [config: 5]"),
]
NBest = Annotated[int, typer.Option("--n-best", help="Translations per sentence.")]
LengthPenalty = Annotated[
    float | None,
    typer.Option(help="Exponent of the GNMT length penalty; 0 is none. [config: 1.0]"),
]
BatchTokens = Annotated[
    int | None, typer.Option(help="Source positions decoded together. [config: 4096]")
]
ConfigPath = Annotated[str, typer.Option("--config", "-c", help="The experiment's YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config; repeatable."),
]
