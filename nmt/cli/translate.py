"""`nmt translate`: text in, translations out, line by line."""

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nmt.cli.messages import InvalidLines, warn
from nmt.cli.options import (
    CONFIG,
    BatchTokens,
    BeamSize,
    Device,
    LengthPenalty,
    ModelPath,
    NBest,
    Precision,
    input_name,
    refuse_impossible_beam,
)

if TYPE_CHECKING:
    from nmt.translator import Translation

WINDOW = 1024  # lines

UseShortlist = Annotated[
    bool,
    typer.Option(
        "--shortlist",
        help="Let a sentence choose from the tokens that may translate its own, which is faster; "
        "needs `nmt shortlist`.",
    ),
]
NumWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        help="Most processes to translate with, of one thread each. [default: one per core, "
        "if there is enough to do]",
    ),
]


def translate(
    model: ModelPath,
    input: Annotated[str, typer.Option("--input", "-i", help="Text or .gz; - is stdin.")] = "-",
    output: Annotated[str, typer.Option("--output", "-o", help="File; - is stdout.")] = "-",
    beam_size: BeamSize = None,
    n_best: NBest = 1,
    length_penalty: LengthPenalty = None,
    min_length: Annotated[
        int | None, typer.Option(help=f"Fewest tokens of a translation. {CONFIG}")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Most tokens of a translation. [default: as many per source token as "
            "max_length_ratio in the model's config says, plus 10]"
        ),
    ] = None,
    batch_tokens: BatchTokens = None,
    buffer: Annotated[
        int,
        typer.Option(help="Lines read, sorted and translated together; 1 answers line by line."),
    ] = WINDOW,
    format: Annotated[
        Literal["text", "jsonl"],
        typer.Option(help="text, or JSON objects with scores and token log-probabilities."),
    ] = "text",
    shortlist: UseShortlist = False,
    workers: NumWorkers = None,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> None:
    """Translate text, line N of the input to line N of the output.

    With --n-best above 1 the text format is `N ||| translation ||| score`, N being the 1-based
    line number. Blank lines stay blank. A line beyond the model's length limit is split,
    translated piece by piece and joined.
    """
    from nmt.build.saved import load
    from nmt.build.shortlist import shortlist_path
    from nmt.cli.workers import share_cores, translate_lines
    from nmt.errors import ConfigError
    from nmt.text.lines import decode_lines, open_input, open_output

    if buffer < 1:
        raise ConfigError(f"--buffer: must be at least 1, but is {buffer}")
    refuse_impossible_beam(beam_size, n_best)
    if sys.stdin.isatty() and input == "-":
        buffer = 1
    invalid, split = InvalidLines(), []
    num_workers = share_cores(workers)
    with open_input(input) as stream:
        translator = load(
            model,
            device=device,
            precision=precision,
            beam_size=beam_size,
            n_best=n_best,
            length_penalty=length_penalty,
            min_length=min_length,
            max_length=max_length,
            batch_tokens=batch_tokens,
            shortlist=shortlist_path(model) if shortlist else None,
        )
        lines = decode_lines(stream, input_name(input), invalid)
        with (
            open_output(output) as out,
            closing(
                translate_lines(translator, lines, window=buffer, workers=num_workers)
            ) as translations,
        ):
            for number, translation in enumerate(translations, 1):
                for record in records(number, translation, n_best, format):
                    out.write(record + "\n")
                if number % buffer == 0:
                    out.flush()
                if translation.num_pieces > 1:
                    split.append(number)
    invalid.report(input_name(input))
    if split:
        warn(
            f"{input_name(input)}: lines with more than {translator.max_source_length} tokens: "
            f"{len(split)} (the first is line {split[0]}); they were translated in pieces"
        )


def records(number: int, translation: "Translation", n_best: int, format: str) -> Iterator[str]:
    """The output lines of one translation."""
    from nmt.text.lines import json_line

    if format == "jsonl":
        yield json_line(
            {
                "line": number,
                "src": translation.src,
                "hypotheses": [
                    {
                        "text": hypothesis.text,
                        "score": hypothesis.score,
                        "log_prob": hypothesis.log_prob,
                        "tokens": hypothesis.tokens,
                        "token_log_probs": hypothesis.token_log_probs,
                    }
                    for hypothesis in translation.hypotheses
                ],
            }
        )
    elif n_best == 1:
        yield translation.text
    else:
        for hypothesis in translation.hypotheses:
            yield f"{number} ||| {hypothesis.text} ||| {hypothesis.score:.6f}"
