"""`nmt train`: tokenizer (if missing) → token store → training, in one run directory."""

from typing import Annotated

import typer

from nmt.cli.options import ConfigPath, Overrides
from nmt.errors import ConfigError


def train(
    config: ConfigPath,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run exactly; start it if there is none.")
    ] = False,
    override_resume: Annotated[
        list[str] | None,
        typer.Option(
            "--override-resume",
            metavar="KEY",
            help="With --resume: go on although this key or section has changed; repeatable. "
            "data.train stands for its text too.",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="With --resume: stop if the newest checkpoint is damaged."),
    ] = False,
) -> None:
    """Train a model as a config says.

    SIGTERM and Ctrl-C finish the step, save, and exit with 143 or 130; --resume continues as if
    nothing had happened.
    """
    from nmt.cli.training_run import run_training
    from nmt.config import load_config

    for option, value in (("--override-resume", override_resume), ("--strict", strict)):
        if value and not resume:
            raise ConfigError(f"{option}: means something with --resume only; add it")
    code = run_training(
        load_config(config, overrides or ()),
        resume=resume,
        override=override_resume or (),
        strict=strict,
    )
    raise typer.Exit(code)
