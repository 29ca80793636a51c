"""`nmt tokenizer`: train, encode, decode."""

from pathlib import Path

import pytest

import nmt as package

SENTENCE, TRANSLATION = "어제 나는 밥을 먹었다", "I ate rice yesterday"


@pytest.fixture
def tokenizer(nmt, tiny):
    def run(command, side, *options, stdin=""):
        args = ["tokenizer", command, "--model", tiny.run, "--side", side, *options]
        return nmt(*args, stdin=stdin)

    return run


@pytest.mark.parametrize("side", ["src", "tgt"])
def test_decode_undoes_encode(tokenizer, tiny, side):
    text = tiny.path("test.ko" if side == "src" else "test.en")
    ids = tokenizer("encode", side, "--input", text, "--ids")
    assert (ids.code, ids.err) == (0, "")
    decoded = tokenizer("decode", side, stdin=ids.out)
    assert (decoded.code, decoded.err) == (0, "")
    assert decoded.out == Path(text).read_text(encoding="utf-8")


def test_pieces_are_those_of_the_model(tokenizer, tiny):
    ended = tokenizer("encode", "tgt", stdin=f"{TRANSLATION}\n\n")
    assert (ended.code, ended.err) == (0, "")
    tokens = package.load(tiny.run).tgt_tokenizer.segment(TRANSLATION).tokens
    assert ended.lines == [" ".join(tokens), ""]


def test_each_side_has_its_own_tokenizer(nmt, tiny, write):
    write("x", "")
    options = ["tokenizer.shared=false", "tokenizer.vocab_size=34", "training.max_steps=1"]
    options += ["training.warmup_steps=0", "validation.every=1", "decoding.max_length_ratio=0.1"]
    trained = nmt("train", "-c", tiny.config, *(arg for o in options for arg in ("--set", o)))
    assert trained.code == 0, trained.err
    found = {
        side: nmt("tokenizer", "encode", "-m", "run", "--side", side, stdin=TRANSLATION).out
        for side in ("src", "tgt")
    }
    assert found["tgt"].replace(" ", "").replace("▁", " ").strip() == TRANSLATION
    assert found["src"] != found["tgt"]


def test_files_are_read_and_written(tokenizer, write, tmp_path):
    write("in", f"\ufeff{SENTENCE}\r\n어제\u2028나는")
    ended = tokenizer("encode", "src", "-i", "in", "-o", "ids", "--ids")
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert tokenizer("decode", "src", "-i", "ids").lines == [SENTENCE, "어제 나는"]


def test_invalid_utf8_is_refused_with_its_line(tokenizer):
    ended = tokenizer("encode", "src", "-o", "-", stdin=b"a\nb\xff\n")
    assert ended.code == 3
    assert ended.err == (
        "error: standard input:2: byte 2 of the line is not valid UTF-8; convert the file to UTF-8 "
        "or remove the line on both sides\n"
    )


@pytest.mark.parametrize("line", ["▁I ate", "1 2.0", "x"])
def test_what_is_no_number_is_refused(tokenizer, line):
    ended = tokenizer("decode", "tgt", stdin=f"4 5\n{line}\n")
    assert ended.code == 3
    assert ended.err == (
        "error: standard input:2: must hold numbers of pieces; `nmt tokenizer encode --ids` makes "
        "such lines\n"
    )


@pytest.mark.parametrize("line", ["64", "-1", "4 9999999999999999999999"])
def test_a_number_without_a_piece_is_refused(tokenizer, write, line):
    write("ids", f"{line}\n")
    ended = tokenizer("decode", "tgt", "-i", "ids")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == (
        "error: ids:1: pieces have the numbers 0 to 63; was this made by another tokenizer?\n"
    )


def test_training_twice_trains_once(nmt, tiny, write, tmp_path):
    write("x", "")
    first = nmt("tokenizer", "train", "--config", tiny.config)
    assert (first.code, first.out) == (0, "")
    assert first.err == (
        "tokenizer: unigram, 64 pieces, trained and saved as run/tokenizer/shared.model\n"
        "tokenizers are in run/tokenizer\n"
    )
    model = (tmp_path / "run/tokenizer/shared.model").read_bytes()
    second = nmt("tokenizer", "train", "--config", tiny.config)
    assert (second.code, second.err) == (0, "tokenizers are in run/tokenizer\n")
    assert (tmp_path / "run/tokenizer/shared.model").read_bytes() == model


def test_a_missing_corpus_is_named(nmt, tiny, write):
    write("x", "")
    ended = nmt("tokenizer", "train", "-c", tiny.config, "--set", "data.train.src=none")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: none: cannot be read: No such file or directory\n"
