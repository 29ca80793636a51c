"""Configs that say something else than was meant, and devices that are not there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SENTENCE, TRANSLATION = "어제 나는 밥을 먹었다", "I ate rice yesterday"


@pytest.fixture
def config(tiny, write):
    """Writes the tiny config with pieces of its text replaced; the run would be in `run`."""

    def change(*changes, more=""):
        text = Path(tiny.config).read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1
            text = text.replace(old, new)
        return write("config.yaml", text + more)

    return change


def place(text):
    """File and line of the one line of the config that holds a text."""
    lines = Path("config.yaml").read_text(encoding="utf-8").split("\n")
    [number] = [number for number, line in enumerate(lines, 1) if text in line]
    return f"config.yaml:{number}"


def assert_refused(nmt, problems, *options):
    """`train` and `check` both end with exactly these problems, and nothing is begun."""
    for command in ("train", "check"):
        ended = nmt(command, "--config", "config.yaml", *options)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err == "".join(f"error: {problem}\n" for problem in problems)
    assert not Path("run").exists()


def test_f30_misspelt_keys_are_refused_with_the_nearest_ones(nmt, config):
    config(("learning_rate: 1e-2", "learning_rte: 1e-2"), ("  dropout: 0", "  dropuot: 0"))
    problems = [
        f"{place('dropuot')}: unknown key 'model.dropuot'; did you mean 'dropout'?",
        f"{place('learning_rte')}: unknown key 'training.learning_rte'; "
        "did you mean 'learning_rate'?",
    ]
    assert_refused(nmt, problems)


def test_f30_a_key_in_the_wrong_section_is_told_its_section(nmt, config):
    config(more="warmup_steps: 1\n")
    *_, where = Path("config.yaml").read_text(encoding="utf-8").split("\n")[:-1]
    assert where == "warmup_steps: 1"
    number = Path("config.yaml").read_text(encoding="utf-8").count("\n")
    problem = f"config.yaml:{number}: unknown key 'warmup_steps'; "
    assert_refused(nmt, [f"{problem}did you mean 'training.warmup_steps'?"])


def test_f30_a_misspelt_key_on_the_command_line_is_refused(nmt, config):
    config()
    setting = "training.max_step=3"
    problem = f"--set {setting}: unknown key 'training.max_step'; did you mean 'max_steps'?"
    assert_refused(nmt, [problem], "--set", setting)


def test_f31_what_looks_like_text_or_a_number_is_that(nmt, config):
    """`no` is Norwegian, `1e-2` a number, and a language may look like a number or a date."""
    config(("src_lang: ko", "src_lang: no"), ("tgt_lang: en", "tgt_lang: 010"))
    ended = nmt("check", "--config", "config.yaml")
    assert ended.code == 0, ended.err
    for line in ("src_lang: 'no'", "tgt_lang: '010'", "  learning_rate: 0.01"):
        assert f"\n{line}\n" in ended.out


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("010", "must be a whole number, but is '010'; write it without quotes, "),
        ("1_000", "must be a whole number, but is '1_000'; write it without quotes, "),
        ("12:30", "must be a whole number, but is '12:30'"),
        ("5.0", "must be a whole number, but is 5.0"),
        ("'5'", "must be a whole number, but is '5'; write it without quotes, "),
        ("true", "must be a whole number, but is true"),
        ("yes", "must be a whole number, but is 'yes'"),
        ("2001-01-01", "must be a whole number, but is '2001-01-01'"),
        ("0x10", "must be a whole number, but is '0x10'"),
        ("", "must be a whole number, but is empty"),
        ("[5]", "must be a whole number, but is a list"),
    ],
)
def test_f31_what_is_no_whole_number_is_not_made_one(nmt, config, value, message):
    config(("max_steps: 200", f"max_steps: {value}"))
    ended = nmt("train", "--config", "config.yaml")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {place('max_steps')}: training.max_steps {message}")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (".nan", "must be a number, but is '.nan'"),
        (".inf", "must be a number, but is '.inf'"),
        ("1e999", "must be a finite number, but is inf"),
        ("'1e-3'", "must be a number, but is '1e-3'; write it without quotes, "),
        ("no", "must be a number, but is 'no'"),
    ],
)
def test_f31_what_is_no_number_is_not_made_one(nmt, config, value, message):
    config(("learning_rate: 1e-2", f"learning_rate: {value}"))
    ended = nmt("train", "--config", "config.yaml")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(
        f"error: {place('learning_rate')}: training.learning_rate {message}"
    )


def test_f31_a_key_that_is_there_twice_is_refused_at_its_second_line(nmt, config):
    config(("  warmup_steps: 20", "  warmup_steps: 20\n  learning_rate: 7"))
    assert_refused(
        nmt,
        [
            f"{place('learning_rate: 7')}: duplicate key 'training.learning_rate', first set on "
            f"line {place('learning_rate: 1e-2').rpartition(':')[2]}; remove one"
        ],
    )


def test_f32_rules_between_keys_are_all_reported_at_once_with_their_lines(nmt, config):
    config(
        ("tokenizer: {vocab_size: 64}", "tokenizer: {vocab_size: 64, shared: false}"),
        ("  embed_dim: 32", "  embed_dim: 32\n  tie_embeddings: all"),
        ("  warmup_steps: 20", "  warmup_steps: 200\n  device: cpu\n  precision: fp16"),
        more="decoding: {beam_size: 0}\n",
    )
    problems = [
        f"{place('tie_embeddings')}: model.tie_embeddings all needs tokenizer.shared true, but it "
        "is false; share the tokenizer or set tie_embeddings to decoder",
        f"{place('warmup_steps')}: training.warmup_steps must be < training.max_steps (200), but "
        "is 200; lower it",
        f"{place('precision')}: training.precision fp16 needs a CUDA device, but training.device "
        "is cpu; use bf16 or fp32 on the CPU",
        f"{place('decoding')}: decoding.beam_size must be >= 1, but is 0",
    ]
    assert_refused(nmt, problems)


def test_f32_rules_inside_the_model_are_all_reported_at_once(nmt, config):
    config(
        ("tokenizer: {vocab_size: 64}", "tokenizer: {vocab_size: 64, kind: word, sampling: 0.1}"),
        ("  decoder: {hidden_dim: 32}", "  decoder: {hidden_dim: 32, input_feeding: true}"),
    )
    problems = [
        f"{place('sampling')}: tokenizer.sampling needs tokenizer.kind unigram or bpe, but it is "
        "word; set tokenizer.sampling to 0",
        f"{place('input_feeding')}: model.decoder.input_feeding needs model.decoder.order luong, "
        "but it is bahdanau, where the context already enters the next step; set input_feeding "
        "to false",
    ]
    assert_refused(nmt, problems)


def test_f32_check_builds_the_model_and_a_batch_and_leaves_nothing(nmt, config):
    config()
    ended = nmt("check", "--config", "config.yaml")
    assert ended.code == 0, ended.err
    for line in ("\nmodel: ", "\nfirst batch: src (", "\nline "):
        assert line in ended.out
    assert [path.name for path in Path().iterdir()] == ["config.yaml"]


def test_f32_a_beam_larger_than_the_vocabulary_finds_what_there_is(nmt, tiny):
    """It is no error: the first step has that many hypotheses at most, and later ones fill it."""
    ended = nmt("translate", "--model", tiny.run, "--beam-size", "100", stdin=SENTENCE)
    assert (ended.code, ended.out, ended.err) == (0, f"{TRANSLATION}\n", "")


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


COMMANDS = {
    "translate": ["--device"],
    "score": ["--src", "s", "--tgt", "t", "--device"],
    "attn-dump": ["--src", "s", "--device"],
    "eval": ["--src", "s", "--ref", "t", "--device"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_f34_cuda_that_is_not_there_is_an_error_and_not_the_cpu(nmt, tiny, write, no_cuda, command):
    write("s", f"{SENTENCE}\n")
    write("t", f"{TRANSLATION}\n")
    ended = nmt(command, "--model", tiny.run, *COMMANDS[command], "cuda", stdin=SENTENCE)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: device: cuda was asked for, but this machine has no CUDA; use cpu\n"
    )


def test_f34_training_on_cuda_that_is_not_there_is_an_error(nmt, config, no_cuda):
    config()
    message = "device: cuda:0 was asked for, but this machine has no CUDA; use cpu"
    assert_refused(nmt, [message], "--set", "training.device=cuda:0")


def test_f34_a_gpu_beyond_the_last_one_is_an_error(nmt, tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    ended = nmt("translate", "--model", tiny.run, "--device", "cuda:3", stdin=SENTENCE)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: device: cuda:3 was asked for, but there are only 2 CUDA devices, counted from 0\n"
    )


def test_f34_auto_is_the_cpu_where_there_is_nothing_else(nmt, tiny, no_cuda):
    ended = nmt("translate", "--model", tiny.run, "--device", "auto", stdin=SENTENCE)
    assert (ended.code, ended.out, ended.err) == (0, f"{TRANSLATION}\n", "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_f34_a_run_of_the_gpu_translates_and_goes_on_where_there_is_none(nmt_process, config):
    config()

    def train(steps, device, hidden):
        options = (f"training.device={device}", f"training.max_steps={steps}")
        options += ("training.schedule=constant",)
        return nmt_process(
            *("train", "-c", "config.yaml", "--resume"),
            *(word for option in options for word in ("--set", option)),
            env=os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if hidden else {}),
        )

    assert train(100, "cuda", hidden=False).code == 0
    resumed = train(120, "cpu", hidden=True)
    assert resumed.code == 0, resumed.err
    assert "from step 100 to 120" in resumed.err
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ended = nmt_process("translate", "-m", "run", stdin=SENTENCE.encode(), env=hidden)
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.slow
def test_f38_of_the_processes_that_torchrun_would_start_one_trains_and_one_is_refused(
    nmt_process, config, tmp_path
):
    """There is no training by several processes: the second must not touch the run, or hang."""
    config()
    command = ("train", "--config", "config.yaml", "--set", "training.max_steps=1000000")
    environments = [
        os.environ | {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": "29500"}
        for rank in ("0", "1")
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "nmt", *command], stderr=subprocess.PIPE, env=environments[0]
    ) as first:
        try:
            metrics = tmp_path / "run/metrics.jsonl"
            deadline = time.monotonic() + 60
            while not metrics.exists():
                assert first.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            second = nmt_process(*command, env=environments[1])
            assert (second.code, second.out) == (2, "")
            assert second.err == (
                "error: run: is in use by another training run (process "
                f"{first.pid} on {os.uname().nodename})\n"
            )
            assert first.poll() is None
            first.send_signal(signal.SIGTERM)
            assert first.wait(timeout=60) == 143
            assert b"continue with --resume" in first.stderr.read()
        finally:
            first.kill()
