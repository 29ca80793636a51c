"""The program `nmt`: its commands, and the one place where errors become exit codes."""

import signal
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import nmt
from nmt.cli import (
    attn_dump,
    average,
    check,
    evaluate,
    schema,
    score,
    shortlist,
    tokenizer,
    train,
    translate,
)
from nmt.cli.messages import error
from nmt.cli.termination import Terminated, unwind_when_terminated
from nmt.errors import NMTError, TrainingError
from nmt.text.lines import silence_stdout

EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 130, 141


class Program(TyperGroup):
    """All commands; a user's error is one line on stderr and an exit code of its own."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with unwind_when_terminated():
                return super().invoke(ctx)
        except NMTError as problem:
            error(str(problem))
            raise typer.Exit(problem.exit_code) from None
        except BrokenPipeError:
            # Whoever read our output has gone: nothing more can or need be written.
            silence_stdout()
            raise typer.Exit(EXIT_BROKEN_PIPE) from None
        except KeyboardInterrupt:
            error("interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except Terminated as ended:
            error(str(ended))
            raise typer.Exit(ended.exit_code) from None
        except (RuntimeError, MemoryError) as problem:
            from nmt.memory import is_out_of_memory

            if not is_out_of_memory(problem):
                raise
            reason = str(problem).partition("\n")[0] or "the machine has no more"
            error(f"out of memory: {reason}; use a smaller model or smaller batches")
            raise typer.Exit(TrainingError.exit_code) from None


app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# The short help stands in the list of commands, where the first sentence may be cut off.
app.command("train", short_help="Train a model as a config says.")(train.train)
app.command("translate", short_help="Translate text, line by line.")(translate.translate)
app.command("eval", short_help="Measure BLEU, chrF and TER of translations.")(evaluate.evaluate)
app.command("attn-dump", short_help="Export what a model looks at, as data or pictures.")(
    attn_dump.attn_dump
)
app.command("score", short_help="Give the log-probability of given translations.")(score.score)
app.command("shortlist", short_help="Make translation faster: learn which tokens can be needed.")(
    shortlist.shortlist
)
app.command("average", short_help="Make one model of the last checkpoints of a run.")(
    average.average
)
app.command("check", short_help="Try out a config without training a model.")(check.check)
app.add_typer(tokenizer.app, name="tokenizer")
app.command("schema", short_help="Print the JSON schema of the config.")(schema.schema)


def print_version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        typer.echo(f"nmt {nmt.__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Recurrent sequence-to-sequence translation with every classic attention mechanism.

    One YAML file drives it all:  nmt train --config C,  then  nmt translate --model RUN < text,
    nmt eval --model RUN --src F --ref F,  and  nmt attn-dump --model RUN --src F --html page.html.

    Exit codes: 0 done; 1 a bug of nmt; 2 something named on the command line or in the config;
    3 content of a text file; 4 model or checkpoint; 5 training or output had to stop;
    129 SIGHUP; 130 Ctrl-C; 141 closed pipe; 143 SIGTERM.
    """


def main() -> None:
    """Run the program."""
    try:
        app()
    finally:  # all is done, and Python's own ending has nothing that could be interrupted
        signal.signal(signal.SIGINT, signal.SIG_IGN)
