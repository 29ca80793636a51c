"""`nmt tokenizer`: the tokenizer on its own."""

from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import typer

from nmt.cli.messages import say
from nmt.cli.options import ConfigPath, ModelPath, Overrides, input_name

app = typer.Typer(no_args_is_help=True, help="Train, apply and undo the tokenizer of a model.")

Side = Annotated[
    Literal["src", "tgt"], typer.Option(help="Whose tokenizer: the source's or the target's.")
]
Input = Annotated[str, typer.Option("--input", "-i", help="Text or .gz; - is stdin.")]
Output = Annotated[str, typer.Option("--output", "-o", help="File; - is stdout.")]


@app.command()
def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train the tokenizers of a config into its run directory, where `nmt train` finds them."""
    from nmt.build.data import build_tokenizers
    from nmt.config import load_config
    from nmt.training.run_directory import RunDirectory

    settings = load_config(config, overrides or ())
    run = RunDirectory(Path(settings.run_dir), resume=True)
    try:
        build_tokenizers(settings, run.path / "tokenizer", say)
    finally:
        run.close()
    say(f"tokenizers are in {run.path / 'tokenizer'}")


@app.command()
def encode(
    model: ModelPath,
    side: Side,
    input: Input = "-",
    output: Output = "-",
    ids: Annotated[bool, typer.Option("--ids", help="Numbers instead of pieces.")] = False,
) -> None:
    """Cut text into pieces, separated by spaces."""
    from nmt.build.saved import find_model
    from nmt.text.lines import open_output, read_lines

    tokenizer = getattr(find_model(model).tokenizers, side)
    lines = read_lines(input)
    with open_output(output) as out:
        while chunk := list(islice(lines, 1000)):
            for token_ids in tokenizer.encode(chunk):
                shown = token_ids if ids else tokenizer.tokens(token_ids)
                out.write(" ".join(map(str, shown)) + "\n")


@app.command()
def decode(model: ModelPath, side: Side, input: Input = "-", output: Output = "-") -> None:
    """Put numbers of pieces, as `encode --ids` prints them, back into text."""
    from nmt.build.saved import find_model
    from nmt.errors import DataError
    from nmt.text.lines import open_output, read_lines

    tokenizer = getattr(find_model(model).tokenizers, side)
    with open_output(output) as out:
        for number, line in enumerate(read_lines(input), 1):
            try:
                token_ids = [int(word) for word in line.split()]
            except ValueError:
                raise DataError(
                    f"{input_name(input)}:{number}: must hold numbers of pieces; "
                    "`nmt tokenizer encode --ids` makes such lines"
                ) from None
            if any(not 0 <= token_id < len(tokenizer) for token_id in token_ids):
                raise DataError(
                    f"{input_name(input)}:{number}: pieces have the numbers 0 to "
                    f"{len(tokenizer) - 1}; was this made by another tokenizer?"
                )
            out.write(tokenizer.decode(token_ids) + "\n")
