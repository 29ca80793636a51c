"""`nmt train` on what a newcomer brings: each mistake is one line, before any work is lost."""

import gzip
import os
import re
from pathlib import Path

import pytest
import torch

from nmt.training.run_directory import RunDirectory

ONE_STEP = ["training.max_steps=1", "training.warmup_steps=0", "validation.every=1"]
ONE_STEP += ["decoding.max_length_ratio=0.1"]


@pytest.fixture
def train(nmt, tiny, write):
    """Trains in ./run on the tiny corpus, with keys of the config replaced."""

    def run(*settings, resume=False):
        options = [arg for setting in settings for arg in ("--set", setting)]
        return nmt("train", "-c", tiny.config, *options, *(["--resume"] if resume else []))

    return run


@pytest.fixture
def corpus(tiny, write):
    """Writes the training files with some lines replaced, and gives the settings to use them."""

    def write_files(src=None, tgt=None, end="\n"):
        settings = []
        for side, suffix, changes in (("src", "ko", src), ("tgt", "en", tgt)):
            lines = tiny.lines(f"train.{suffix}")
            for number, line in (changes or {}).items():
                lines[number - 1] = line
            write(f"my.{suffix}", "".join(line + end for line in lines))
            settings.append(f"data.train.{side}=my.{suffix}")
        return settings

    return write_files


def test_a_run_says_on_stderr_what_it_does_and_nothing_on_stdout(tiny):
    assert (tiny.trained.code, tiny.trained.out) == (0, "")
    lines = tiny.trained.err.split("\n")
    assert lines[:3] == [
        "tokenizer: unigram, 64 pieces, trained and saved as run/tokenizer/shared.model",
        "train data: 200 of 200 pairs kept",
        "valid data: 20 of 20 pairs kept",
    ]
    assert lines[3].startswith("training on ")
    assert any(line.startswith("step 50/200: loss ") for line in lines)
    assert any(line.startswith("step 100: valid loss ") for line in lines)
    assert lines[-2].startswith("200 steps done; best is step-00000")
    names = {path.name for path in Path(tiny.run).iterdir()}
    assert names == {
        *("config.yaml", "tokenizer", "data", "checkpoints", "latest", "best"),
        *("metrics.jsonl", "log.txt", ".lock"),
    }


def test_a_pair_with_an_empty_side_is_dropped_and_counted(train, corpus):
    ended = train(*corpus(src={5: "", 9: " \u3000"}, tgt={7: "\t", 9: ""}), *ONE_STEP)
    assert ended.code == 0, ended.err
    assert (
        "\ntrain data: 197 of 200 pairs kept; dropped 2 with an empty source (first at line 5), 1 "
        "with an empty target (first at line 7)\n"
    ) in ended.err


def test_odd_line_ends_keep_the_pairs_together(train, corpus):
    settings = corpus(
        src={1: "\ufeff어제\u2028나는 밥을 먹었다", 2: "나는\r밥을 먹었다"}, end="\r\n"
    )
    ended = train(*settings, *ONE_STEP, "tokenizer.vocab_size=60")
    assert ended.code == 0, ended.err
    assert "\ntrain data: 200 of 200 pairs kept\n" in ended.err


def test_compressed_files_can_be_trained_on(train, tiny, write):
    for suffix in ("ko", "en"):
        write(f"{suffix}.gz", gzip.compress(Path(tiny.path(f"train.{suffix}")).read_bytes()))
    ended = train("data.train.src=ko.gz", "data.train.tgt=en.gz", *ONE_STEP)
    assert ended.code == 0, ended.err


def test_unequal_numbers_of_lines_are_refused_with_a_hint(train, tiny, write):
    lines = tiny.lines("train.en")
    write("my.en", "\n".join(lines[:90] + lines[91:]) + "\n")
    ended = train("data.train.tgt=my.en")
    assert (ended.code, ended.out) == (3, "")
    match = re.fullmatch(
        re.escape(f"error: {tiny.path('train.ko')} has 200 lines but my.en has 199; ")
        + r"lines look shifted from (\d+) on\n",
        ended.err,
    )
    assert 80 <= int(match[1]) <= 100


@pytest.mark.parametrize("side", ["ko", "en"])
def test_one_missing_last_line_is_refused(train, tiny, write, side):
    write(f"my.{side}", "".join(f"{line}\n" for line in tiny.lines(f"train.{side}")[:-1]))
    ended = train(f"data.train.{'src' if side == 'ko' else 'tgt'}=my.{side}")
    assert ended.code == 3
    assert re.search(r"has 200 lines but .* has 199|has 199 lines but .* has 200", ended.err)


def test_unequal_validation_files_are_refused(train, tiny):
    ended = train(f"data.valid.tgt={tiny.path('test.en')}")
    assert (ended.code, ended.out) == (3, "")
    problem = ended.err.split("\n")[-2]
    assert problem.startswith(f"error: {tiny.path('valid.ko')} has 20 lines but ")


def test_invalid_utf8_is_refused_with_file_and_line(train, corpus, write):
    settings = corpus()
    write(
        "my.en", Path("my.en").read_bytes().replace(b"\n", b"\xe9\n", 17).replace(b"\xe9", b"", 16)
    )
    ended = train(*settings)
    assert (ended.code, ended.out) == (3, "")
    assert re.fullmatch(
        r"error: my.en:17: byte \d+ of the line is not valid UTF-8; convert the file to UTF-8 or "
        r"remove the line on both sides\n",
        ended.err,
    )


def test_an_empty_corpus_is_refused(train, write):
    write("empty", "")
    ended = train("data.train.src=empty", "data.train.tgt=empty")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == (
        "error: empty with empty: has no text for the tokenizer to learn from; is it empty?\n"
    )


def test_a_corpus_of_blank_lines_is_refused(train, write):
    write("blank", "\n \n\u3000\n")
    ended = train("data.train.src=blank", "data.train.tgt=blank")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.endswith("has no text for the tokenizer to learn from; is it empty?\n")


def test_one_empty_file_is_refused(train, write, tiny):
    write("empty", "")
    ended = train("data.train.tgt=empty")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == (
        f"error: {tiny.path('train.ko')} has 200 lines but empty has 0; one of the files is empty\n"
    )


def test_a_corpus_of_which_nothing_is_left_is_refused(train):
    ended = train("data.max_length=1")
    assert (ended.code, ended.out) == (3, "")
    assert "no sentence pair is left: 0 of 200 pairs kept" in ended.err
    assert "dropped 200 too long (first at line 1)" in ended.err


@pytest.mark.parametrize(
    ("size", "rule"),
    [(5000, r"allows at most (\d+) pieces; lower it"), (10, r"needs at least (\d+) pieces for .*")],
)
def test_an_impossible_vocabulary_size_is_refused_with_a_possible_one(train, tiny, size, rule):
    ended = train(f"tokenizer.vocab_size={size}")
    assert (ended.code, ended.out) == (2, "")
    match = re.fullmatch(
        f"error: tokenizer.vocab_size: is {size}, but {tiny.path('train.ko')} with "
        f"{tiny.path('train.en')} {rule}\n",
        ended.err,
    )
    possible = train(f"tokenizer.vocab_size={match[1]}", *ONE_STEP)
    assert possible.code == 0, possible.err


@pytest.mark.parametrize(
    ("settings", "problems"),
    [
        (["model.hiden_dim=3"], ["unknown key 'model.hiden_dim'; did you mean "]),
        (
            ["learning_rate=3"],
            ["unknown key 'learning_rate'; did you mean 'training.learning_rate'?"],
        ),
        (["training.max_steps=many"], ["training.max_steps must be a whole number, but is 'many'"]),
        (
            ["model.cell=gur", "training.precision=fp8", "data.train=x"],
            ["model.cell must be 'gru'", "training.precision must be ", "data.train must be a "],
        ),
        (["training.device=mps"], ["training.device must be auto, cpu, cuda or cuda:N, but is "]),
        (["training"], ["must have the form key=value; e.g. training.max_steps=100"]),
    ],
)
def test_a_wrong_config_is_refused_with_all_its_problems(train, settings, problems):
    ended = train(*settings)
    assert (ended.code, ended.out) == (2, "")
    lines = ended.err.split("\n")[:-1]
    for line, setting, problem in zip(lines, settings, problems, strict=True):
        assert line.startswith(f"error: --set {setting}: {problem}")
    assert not Path("run").exists()


def test_problems_of_the_file_have_its_name_and_line(nmt, write):
    write("c.yaml", "run_dir: run\nsrc_lang: ko\ntgt_lang: en\nseed: one\nsed: 1\n")
    ended = nmt("train", "--config", "c.yaml")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.split("\n") == [
        "error: c.yaml: missing key 'data'; it has no default, so set it",
        "error: c.yaml:4: seed must be a whole number, but is 'one'",
        "error: c.yaml:5: unknown key 'sed'; did you mean 'seed'?",
        "",
    ]


def test_a_missing_config_is_named(nmt, write):
    write("x", "")
    ended = nmt("train", "--config", "none.yaml")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: none.yaml: cannot be read: No such file or directory\n"


@pytest.mark.parametrize("key", ["train.src", "train.tgt", "valid.src", "valid.tgt"])
def test_a_missing_file_is_found_before_any_work(train, key):
    ended = train(f"data.{key}=none.txt")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: none.txt: cannot be read: No such file or directory\n"
    assert not Path("run").exists()


def test_a_finished_run_is_not_overwritten(train, tiny):
    before = {path: path.read_bytes() for path in Path(tiny.run).rglob("*") if path.is_file()}
    ended = train(f"run_dir={tiny.run}")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        f"error: {tiny.run}: holds a run already; continue it with --resume, or choose another "
        "run_dir\n"
    )
    after = {path: path.read_bytes() for path in Path(tiny.run).rglob("*") if path.is_file()}
    assert {path.name for path in before if before[path] != after.get(path)} <= {".lock"}


def test_a_folder_of_something_else_is_not_used(train):
    Path("run").mkdir()
    Path("run/thesis.tex").write_text("precious")
    ended = train()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: run: is not empty and not a run of nmt (it holds thesis.tex); choose another "
        "run_dir\n"
    )
    assert [path.name for path in Path("run").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("command", [["train"], ["train", "--resume"], ["tokenizer", "train"]])
def test_a_folder_in_use_is_left_alone(nmt, tiny, write, command):
    write("x", "")
    run = RunDirectory(Path("run"), resume=False)
    ended = nmt(*command, "-c", tiny.config)
    run.close()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        f"error: run: is in use by another training run (process {os.getpid()} on "
        f"{os.uname().nodename})\n"
    )


@pytest.mark.parametrize("command", [["train"], ["tokenizer", "train"]])
def test_a_folder_that_cannot_be_made_is_found_before_any_work(nmt, tiny, write, command):
    write("file", "")
    ended = nmt(*command, "-c", tiny.config, "--set", "run_dir=file/run")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: file/run: cannot be written: Not a directory\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_found_before_any_work(train):
    ended = train("training.device=cuda")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: device: cuda was asked for, but this machine has no CUDA; use cpu\n"
    )
    assert not Path("run").exists()


def test_fp16_on_the_cpu_is_found_before_any_work(train):
    ended = train("training.device=cpu", "training.precision=fp16")
    assert ended.code == 2
    assert "training.precision fp16 needs a CUDA device" in ended.err
    assert not Path("run").exists()


def test_resume_refuses_another_config(train, tiny):
    ended = train(f"run_dir={tiny.run}", "model.cell=lstm", "seed=2", resume=True)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        f"error: {tiny.run}: the run was begun with another config (seed: 1 -> 2; model.cell: gru "
        "-> lstm); its weights fit no other model.cell: undo the change, or choose another "
        "run_dir\n"
    )
