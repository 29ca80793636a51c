"""Any bytes are as many lines as their newlines say, and any line goes through a tokenizer."""

import gzip
import io
import os
import re
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nmt.errors import DataError
from nmt.text.lines import decode_lines, json_line, one_line, read_lines
from nmt.text.tokenizer import train_tokenizer

OUTCOMES = Counter()
"""What became of the inputs that were tried."""

EXAMPLES = os.environ.get("NMT_FUZZ_EXAMPLES")  # set by scripts/fuzz.py
fuzz = settings(
    max_examples=int(EXAMPLES or 100),
    derandomize=EXAMPLES is None,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

ODD = [
    b"\n", b"\r", b"\r\n", b"\0", b"\xef\xbb\xbf", b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xa9",
    b"\v", b"\f", b"\x1c", b"\xff", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\xe2\x96\x81", b"a b",
    "한글".encode(), b"<s>", b"</s>", b"<0x0A>", b" ", b"\t",
]  # fmt: skip
BYTES = st.lists(st.sampled_from(ODD) | st.binary(max_size=9), max_size=30).map(b"".join)
TEXT = st.text(max_size=200) | BYTES.map(lambda raw: raw.decode("utf-8", "surrogateescape"))
KINDS = ["unigram", "bpe", "char", "word", "byte fallback"]


def number_of_lines(raw):
    return raw.count(b"\n") + (not raw.endswith(b"\n") and raw != b"")


@fuzz
@given(BYTES)
def test_any_bytes_are_as_many_lines_as_newlines_say(raw):
    invalid = []
    lines = list(decode_lines(io.BytesIO(raw), "x", invalid.append))
    assert len(lines) == number_of_lines(raw)
    assert not any("\n" in line or "\r" in line for line in lines)
    assert all(1 <= number <= len(lines) for number in invalid)
    OUTCOMES["invalid UTF-8" if invalid else "valid UTF-8"] += 1
    strict = decode_lines(io.BytesIO(raw), "x")
    if invalid:
        with pytest.raises(DataError, match=rf"^x:{invalid[0]}: byte \d+ of the line"):
            list(strict)
    else:
        assert list(strict) == lines


@cache
def compressed_file():
    folder = tempfile.TemporaryDirectory(prefix="nmt-fuzz-")
    return folder, Path(folder.name, "text.gz")


@fuzz
@given(BYTES, st.integers(0, 200), st.binary(max_size=3), st.booleans())
def test_a_damaged_gzip_file_is_its_lines_or_one_error(raw, index, other, damaged):
    content = bytearray(gzip.compress(raw))
    if damaged:
        content[index : index + len(other)] = other
    _, path = compressed_file()
    path.write_bytes(content)
    problem, lines = "", []
    try:
        lines = list(read_lines(path, lambda number: None))
    except DataError as error:
        problem = str(error)
    assert damaged or len(lines) == number_of_lines(raw)
    assert re.fullmatch(r"(.*text\.gz:\d+: cannot be read further: .*)?", problem)
    OUTCOMES["cannot be read further" if problem else "reads"] += 1


@fuzz
@given(TEXT)
def test_any_text_is_made_one_line(text):
    for line in (one_line(text), json_line([text, {text: 1}])):
        raw = line.encode("utf-8")
        assert b"\n" not in raw
        assert len(line.splitlines()) <= 1
    OUTCOMES["one line"] += 1


@cache
def tokenizer(kind):
    return train_tokenizer(
        ["der hund sieht die katze", "die maus jagt die kuh", "한글 日本 é", "(a) <b> [c], 3.14"]
        * 9,
        kind="unigram" if kind == "byte fallback" else kind,
        vocab_size=320 if kind == "byte fallback" else 64,
        byte_fallback=kind == "byte fallback",
        size_mode="at_most",
    )


@fuzz
@given(TEXT, st.sampled_from(KINDS))
def test_any_text_is_encoded_and_decoded(text, kind):
    chosen = tokenizer(kind)
    (token_ids,) = chosen.encode([text])
    assert all(0 <= i < len(chosen) for i in token_ids)
    segmented = chosen.segment(text)
    assert len(segmented.tokens) == len(segmented.token_ids) == len(segmented.word_ids)
    for line in (chosen.decode(token_ids), chosen.decode(segmented.token_ids)):
        assert len(line.splitlines()) <= 1
        line.encode("utf-8")
    if kind not in ("char", "word"):
        assert all(0 <= i < len(chosen) for i in chosen.sample(text, 0.1, 1))
    OUTCOMES[kind] += 1


@fuzz
@given(st.lists(st.integers(0, 63), max_size=50), st.sampled_from(KINDS))
def test_any_token_ids_are_decoded_to_one_line(token_ids, kind):
    chosen = tokenizer(kind)
    token_ids = [i % len(chosen) for i in token_ids]
    text = chosen.decode(token_ids)
    assert len(text.splitlines()) <= 1
    assert len(chosen.segment_ids(token_ids).tokens) == len(token_ids)
    OUTCOMES[kind] += 1
