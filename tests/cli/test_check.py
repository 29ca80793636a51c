"""`nmt check`: what a config would do."""

import re
from pathlib import Path

import pytest

from nmt.config import load_config


@pytest.fixture
def check(nmt, tiny, write):
    def run(*settings):
        options = [arg for setting in settings for arg in ("--set", setting)]
        return nmt("check", "--config", tiny.config, *options)

    write("unused", "")
    return run


def test_sizes_and_a_batch_are_printed_and_nothing_is_written(check):
    ended = check()
    assert ended.code == 0
    for line in (
        r"vocabulary: 64 source, 64 target",
        r"encoder: [\d,]+ parameters",
        r"decoder: [\d,]+ parameters",
        r"model: [\d,]+ parameters, shared ones counted once",
        r"src: [\d,]+ tokens in 200 sentences, median \d+, longest \d+",
        r"tgt: [\d,]+ tokens in 200 sentences, median \d+, longest \d+",
        r"epoch: \d+ batches, \d+\.\d% of the target positions are padding",
        r"first batch: src \(\d+, \d+\), tgt \(\d+, \d+\), logits \(\d+, \d+, 64\)",
    ):
        assert re.search(f"^{line}$", ended.out, re.MULTILINE), line
    assert "train data: 200 of 200 pairs kept\nvalid data: 20 of 20 pairs kept\n" in ended.err
    assert {path.name for path in Path().iterdir()} == {"unused"}


def test_the_shown_sentences_are_a_pair_of_the_corpus(check, tiny):
    shown = dict(re.findall(r"^(line \d+ (?:src|tgt)): (.*)$", check().out, re.MULTILINE))
    (line,) = {int(name.split()[1]) for name in shown}
    for side, suffix in (("src", "ko"), ("tgt", "en")):
        pieces = shown[f"line {line} {side}"].split(" ")
        assert pieces.pop() == "</s>"
        text = "".join(pieces).replace("▁", " ").strip()
        assert text == tiny.lines(f"train.{suffix}")[line - 1]


def test_the_printed_config_can_be_loaded(check, tiny):
    ended = check("seed=7", "model.attention.score=general")
    config, _ = ended.out.split("device: cpu\n") if "device: cpu" in ended.out else ("", "")
    Path("printed.yaml").write_text(config, encoding="utf-8")
    loaded = load_config("printed.yaml")
    assert loaded == load_config(tiny.config, ["seed=7", "model.attention.score=general"])


def test_the_tokenizer_of_the_run_is_used(check, tiny):
    ended = check(f"run_dir={tiny.run}")
    assert ended.code == 0
    assert "tokenizer: " not in ended.err
    wrong = check(f"run_dir={tiny.run}", "tokenizer.vocab_size=60")
    assert wrong.code == 2
    assert wrong.err == (
        f"error: {tiny.run}/tokenizer/shared.model: has 64 pieces, but tokenizer.vocab_size is 60; "
        "delete the file to train it anew, or change the key\n"
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.train.src=none", "none: cannot be read: No such file or directory"),
        ("data.valid.tgt=none", "none: cannot be read: No such file or directory"),
        ("seed=x", "--set seed=x: seed must be a whole number, but is 'x'"),
    ],
)
def test_a_mistake_is_found_before_any_work(check, setting, message):
    ended = check(setting)
    assert (ended.code, ended.out, ended.err) == (2, "", f"error: {message}\n")


def test_wrong_text_is_found(check, tiny):
    ended = check(f"data.train.tgt={tiny.path('valid.en')}")
    assert (ended.code, ended.out) == (3, "")
    assert "has 200 lines but " in ended.err
