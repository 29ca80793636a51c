"""`nmt average`: some checkpoints of a run in, one model out."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_LAST = 5


def average(
    model: Annotated[str, typer.Option("--model", "-m", help="Run directory.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder of the new model; must not exist.")
    ],
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CHECKPOINT]...", help="Names or paths; instead of --last."),
    ] = None,
    last: Annotated[
        int | None, typer.Option(help=f"Newest checkpoints to take. [default: {DEFAULT_LAST}]")
    ] = None,
) -> None:
    """Make a model whose weights are the mean of those of several checkpoints.

    The last checkpoints of a run differ by noise, which the mean takes away: often a gain in
    BLEU, and no cost in speed. The new model is used like any other, but cannot be trained
    further.
    """
    from nmt.build.average import average_checkpoints, last_checkpoints, named_checkpoints
    from nmt.cli.messages import say
    from nmt.errors import ConfigError
    from nmt.training.checkpoint import choose_checkpoint

    if checkpoints and last is not None:
        raise ConfigError("--last: is another way to choose than CHECKPOINT; leave one of them out")
    run_dir = Path(model)
    choose_checkpoint(run_dir)  # or say that there is no run
    if checkpoints:
        chosen = named_checkpoints(run_dir, checkpoints)
    else:
        chosen = last_checkpoints(run_dir, DEFAULT_LAST if last is None else last)
    average_checkpoints(chosen, Path(output))
    say(f"{output}: the mean of {', '.join(checkpoint.name for checkpoint in chosen)}")
