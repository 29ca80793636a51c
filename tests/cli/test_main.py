"""The program around the commands: help, version, usage errors, exit codes."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

import nmt as package
from nmt.cli import attn_dump, check, evaluate, messages, score, train, translate
from nmt.cli.main import app
from nmt.errors import ConfigError, DataError, ModelError, NMTError, TrainingError

COMMANDS = {
    ("train",): ["--config", "--set", "--resume"],
    ("translate",): ["--model", "--input", "--output", "--beam-size", "--n-best", "--format"],
    ("eval",): ["--model", "--src", "--ref", "--hyp", "--json", "--tokenize"],
    ("attn-dump",): ["--src", "--tgt", "--level", "--jsonl", "--npz", "--pharaoh", "--html"],
    ("score",): ["--model", "--src", "--tgt", "--format"],
    ("shortlist",): ["--per-token", "--frequent", "--max-pairs"],
    ("average",): ["--model", "--last", "--output", "CHECKPOINT"],
    ("check",): ["--config", "--set"],
    ("schema",): [],
    ("tokenizer",): ["train", "encode", "decode"],
    ("tokenizer", "train"): ["--config", "--set"],
    ("tokenizer", "encode"): ["--model", "--side", "--ids"],
    ("tokenizer", "decode"): ["--model", "--side"],
}


def test_python_m_nmt_is_the_program(nmt_process):
    ended = nmt_process("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"nmt {package.__version__}\n", "")


def test_help_lists_the_commands_and_the_exit_codes(nmt):
    ended = nmt("--help")
    assert (ended.code, ended.err) == (0, "")
    for command, *_ in COMMANDS:
        assert f"\n  {command} " in ended.out
    assert "141 closed pipe; 143 SIGTERM" in ended.out
    _, commands = ended.out.split("Commands:")
    assert "..." not in commands  # no sentence is cut off


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_explains_itself(nmt, command):
    ended = nmt(*command, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == nmt(*command, "-h").out
    for option in COMMANDS[command]:
        assert option in ended.out


def test_the_help_of_a_command_says_where_defaults_come_from(nmt):
    assert "[default: the model's config]" in " ".join(nmt("translate", "--help").out.split())


def test_the_commands_of_this_list_are_all(nmt):
    group = get_command(app)
    names = {(name,) for name in group.commands}
    names |= {("tokenizer", name) for name in group.commands["tokenizer"].commands}
    assert names == set(COMMANDS)


def test_nothing_heavy_is_imported_before_a_command_runs():
    program = (
        "import sys, nmt, nmt.cli; heavy = {'torch', 'numpy', 'sentencepiece', 'sacrebleu', "
        "'pydantic'}; print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_version_is_that_of_the_project():
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert tomllib.loads(project.read_text())["project"]["version"] == package.__version__


def test_without_a_command_the_help_is_shown(nmt):
    ended = nmt()
    assert ended.code == 2
    assert "Commands:" in ended.out + ended.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["frob"], "No such command 'frob'."),
        (["translate"], "Missing option '--model' / '-m'."),
        (["translate", "--beem", "5"], "No such option: --beem"),
        (["translate", "-m", "x", "--n-best", "many"], "Invalid value for '--n-best'"),
        (["translate", "-m", "x", "--format", "xml"], "'xml' is not one of 'text', 'jsonl'"),
        (["eval", "--hyp", "x"], "Missing option '--ref' / '-r'."),
        (["tokenizer", "encode", "-m", "x"], "Missing option '--side'"),
    ],
)
def test_a_wrong_command_line_is_explained_and_exits_with_2(nmt, args, message):
    ended = nmt(*args)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert "Usage: " in ended.err


@pytest.mark.parametrize(
    ("problem", "code"),
    [(ConfigError, 2), (DataError, 3), (ModelError, 4), (TrainingError, 5), (NMTError, 1)],
)
def test_an_error_is_one_line_and_the_exit_code_of_its_class(nmt, monkeypatch, problem, code):
    def fail(*args, **kwargs):
        raise problem("here: this is wrong; do that")

    monkeypatch.setattr("nmt.config.json_schema", fail)
    ended = nmt("schema")
    assert (ended.code, ended.out) == (code, "")
    assert ended.err == "error: here: this is wrong; do that\n"


def test_a_bug_of_ours_keeps_its_traceback(nmt, monkeypatch):
    monkeypatch.setattr("nmt.config.json_schema", lambda: {}["bug"])
    with pytest.raises(KeyError):
        nmt("schema")


def test_ctrl_c_exits_with_130(nmt, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("nmt.config.json_schema", interrupt)
    ended = nmt("schema")
    assert (ended.code, ended.out, ended.err) == (130, "", "error: interrupted\n")


LATE = """
import atexit, os, signal, sys
atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv = ["nmt", "--version"]
from nmt.cli import main
main()
"""


def test_ctrl_c_after_the_end_is_no_traceback():
    ended = subprocess.run([sys.executable, "-c", LATE], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_each_problem_of_a_config_has_its_own_line(nmt, tiny):
    ended = nmt("train", "-c", tiny.config, "--set", "sed=1", "--set", "model.cell=gur")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: --set sed=1: unknown key 'sed'; did you mean 'seed'?\n"
        "error: --set model.cell=gur: model.cell must be 'gru' or 'lstm', but is 'gur'\n"
    )


def test_messages_go_to_stderr(capsys):
    messages.say("a")
    messages.warn("b")
    messages.error("c\nd")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "a\nwarning: b\nerror: c\nerror: d\n"


def test_commands_are_documented():
    for module in (attn_dump, check, evaluate, score, train, translate):
        assert module.__doc__.startswith("`nmt ")


def test_schema_is_the_json_schema_of_the_config(nmt):
    ended = nmt("schema")
    assert (ended.code, ended.err) == (0, "")
    schema = json.loads(ended.out)
    assert list(schema["properties"])[:4] == ["run_dir", "seed", "src_lang", "tgt_lang"]
    assert schema["$defs"]["DecodingConfig"]["properties"]["beam_size"]["default"] == 5
    assert "Popović" in ended.out or "\\u" not in ended.out
