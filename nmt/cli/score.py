"""`nmt score`: how probable given translations are."""

from itertools import islice
from typing import Annotated, Literal

import typer

from nmt.cli.options import Device, ModelPath, Precision, input_name, refuse_shared_stream


def score(
    model: ModelPath,
    src: Annotated[str, typer.Option("--src", "-s", help="Source text.")],
    tgt: Annotated[str, typer.Option("--tgt", "-t", help="Translations to score.")],
    output: Annotated[str, typer.Option("--output", "-o", help="File; - is stdout.")] = "-",
    format: Annotated[
        Literal["text", "jsonl"],
        typer.Option(help="text: the log-probability; jsonl: also of each token."),
    ] = "text",
    device: Device = "auto",
    precision: Precision = "fp32",
) -> None:
    """Give the log-probability (in nats) of each translation under a model, line by line.

    A pair with a blank side has no log-probability: its text line is empty, its JSON null.
    """
    from nmt.build.saved import load
    from nmt.data.corpus import read_pairs
    from nmt.errors import DataError
    from nmt.text.lines import json_line, open_output
    from nmt.translator import FORCED_LIMIT

    refuse_shared_stream("standard input", src=src, tgt=tgt)
    pairs = read_pairs(src, tgt)
    translator = load(model, device=device, precision=precision)
    with open_output(output) as out:
        while chunk := list(islice(pairs, 256)):
            for pair, forced in zip(
                chunk, translator.score([(p.src, p.tgt) for p in chunk]), strict=True
            ):
                if not forced.token_log_probs and forced.src.tokens and forced.tgt.tokens:
                    raise DataError(
                        f"{input_name(src)}:{pair.line}: the pair has more than {FORCED_LIMIT} "
                        "tokens on a side; split it"
                    )
                log_prob = forced.log_prob if forced.token_log_probs else None
                if format == "text":
                    out.write("\n" if log_prob is None else f"{log_prob:.6f}\n")
                    continue
                record = {
                    "line": pair.line,
                    "log_prob": log_prob,
                    "tokens": forced.tgt_tokens if forced.token_log_probs else [],
                    "token_log_probs": forced.token_log_probs,
                }
                out.write(json_line(record) + "\n")
