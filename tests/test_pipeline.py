"""The commands one after the other, as the README tells a newcomer to type them."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from nmt.cli.main import app

README = Path(__file__).parents[1] / "README.md"


def test_from_raw_text_to_an_explained_translation(nmt, tiny, write):
    write("experiment.yaml", Path(tiny.config).read_text(encoding="utf-8"))
    src, ref, gold = tiny.path("test.ko"), tiny.path("test.en"), tiny.path("test.gold")

    checked = nmt("check", "--config", "experiment.yaml")
    assert checked.code == 0, checked.err
    assert not Path("run").exists()

    tokenizer = nmt("tokenizer", "train", "--config", "experiment.yaml")
    assert tokenizer.code == 0, tokenizer.err
    pieces = Path("run/tokenizer/shared.model").read_bytes()

    trained = nmt("train", "--config", "experiment.yaml")
    assert (trained.code, trained.out) == (0, ""), trained.err
    assert "trained and saved" not in trained.err  # the tokenizer was there
    assert Path("run/tokenizer/shared.model").read_bytes() == pieces
    again = nmt("train", "--config", "experiment.yaml", "--resume")
    assert again.code == 0, again.err

    translated = nmt("translate", "--model", "run", "--input", src, "--output", "test.hyp")
    assert (translated.code, translated.out, translated.err) == (0, "", "")
    hypotheses = Path("test.hyp").read_text(encoding="utf-8").split("\n")[:-1]
    right = sum(a == b for a, b in zip(hypotheses, tiny.lines("test.en"), strict=True))
    assert right >= 27  # of 30, none of which was in the training text

    of_file = nmt("eval", "--hyp", "test.hyp", "--src", src, "--ref", ref, "--json")
    of_model = nmt("eval", "--model", "run", "--src", src, "--ref", ref, "--json")
    assert of_file.code == of_model.code == 0
    report, report_of_file = json.loads(of_model.out), json.loads(of_file.out)
    assert report.pop("unknown_tokens") == {src: 0.0, ref: 0.0}
    assert report_of_file.pop("unknown_tokens") == {}  # no tokenizer has read them
    assert report == report_of_file
    assert report["scores"]["BLEU"]["value"] > 80

    scores = nmt("score", "--model", "run", "--src", src, "--tgt", "test.hyp")
    assert [float(line) < 0 for line in scores.lines] == [True] * 30

    dumped = nmt(
        *("attn-dump", "--model", "run", "--src", src, "--tgt", ref, "--level", "word"),
        *("--gold", gold, "--gold-base", "0", "--html", "page.html"),
    )
    assert (dumped.code, dumped.err) == (0, "")
    assert re.match(r"AER \d+\.\d \(precision ", dumped.out)
    assert "지우는" in Path("page.html").read_text(encoding="utf-8")


def commands_in(markdown):
    """The arguments of each `nmt` command in the code blocks of a page."""
    found = []
    for block in re.findall(r"^ *```[^\n]*\n(.*?)^ *```", markdown, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").split("\n"):
            lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            try:
                words = list(lexer)
            except ValueError:  # prose, or another language
                continue
            command: list[str] | None = None
            for before, word in zip(["|", *words], words, strict=False):
                if set(word) <= set("();<>|&"):
                    command = None  # what follows is another command, or a file
                elif set(before) <= set("();|&") and word.rpartition("/")[2] == "nmt":
                    found.append(command := [])
                elif command is not None:
                    command.append(word.strip("[]"))
    return [[word for word in words if word.strip(".…")] for words in found]


def parse(args):
    """Check a command line against the options of its command, without running it.

    Raises:
        typer's UsageError: if an option does not exist, is missing, or has an impossible value.
    """
    command, context, name = get_command(app), None, "nmt"
    while True:
        try:
            context = command.make_context(name, list(args), parent=context)
        except typer.Exit:  # --help and --version end here
            return
        if not hasattr(command, "commands"):
            return
        name, command, args = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )


README_COMMANDS = commands_in(README.read_text(encoding="utf-8"))


@pytest.mark.parametrize("args", README_COMMANDS, ids=" ".join)
def test_every_command_of_the_readme_exists_with_its_options(args):
    parse(args)


def test_the_readme_shows_the_four_commands():
    assert {args[0] for args in README_COMMANDS} >= {"train", "translate", "eval", "attn-dump"}


def test_commands_are_found_in_code_blocks_only():
    page = """\
nmt prose is not a command
```bash
$ nmt train --config c.yaml [--resume]   # comment
nmt translate \\
    --model runs/x < in.txt > out.txt
cat in | .venv/bin/nmt translate -m x | head -3 && nmt schema
nmt.load("x").translate(["it's"])
nmt score …
```
  ```
  nmt --version
  ```
"""
    assert commands_in(page) == [
        ["train", "--config", "c.yaml", "--resume"],
        ["translate", "--model", "runs/x"],
        ["translate", "-m", "x"],
        ["schema"],
        ["score"],
        ["--version"],
    ]


@pytest.mark.parametrize(
    "args",
    [
        ["train"],
        ["train", "--config", "x", "--resum"],
        ["translate", "--model", "x", "--format", "xml"],
        ["tokenizer", "encode", "--model", "x"],
        ["tokenizer", "frob"],
        ["frob"],
        ["eval", "--model", "x", "--ref"],
        ["score", "--model", "x", "--src", "s", "--tgt", "t", "extra"],
    ],
)
def test_a_command_line_that_does_not_parse_is_noticed(args):
    with pytest.raises(typer.BadParameter.__mro__[1]):  # typer's UsageError
        parse(args)


@pytest.mark.parametrize(
    "args",
    [
        ["--version"],
        ["train", "--help"],
        ["train", "-c", "x", "--set", "a=1", "--set", "b=2"],
        ["tokenizer", "decode", "-m", "x", "--side", "tgt"],
    ],
)
def test_a_command_line_that_parses_is_not_run(args):
    parse(args)
