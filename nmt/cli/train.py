"""`nmt train`: tokenizer (if missing) → token store → training, in one run directory."""

from typing import Annotated

import typer

from nmt.cli.options import ConfigPath, Overrides


def train(
    config: ConfigPath,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run exactly; start it if there is none.")
    ] = False,
) -> None:
    """Train a model as a config says.

    SIGTERM and Ctrl-C finish the step, save, and exit with 143 or 130; --resume continues as if
    nothing had happened.
    """
    from nmt.cli.training_run import run_training
    from nmt.config import load_config

    raise typer.Exit(run_training(load_config(config, overrides or ()), resume=resume))
