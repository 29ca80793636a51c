"""F11, F14 and F17: lines and texts that are longer than one would think."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from nmt.text.tokenizer import Tokenizer

SENTENCE, TRANSLATION = "어제 나는 밥을 먹었다", "I ate rice yesterday"
MEBIBYTE = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def set_options(settings):
    return [arg for setting in settings for arg in ("--set", setting)]


@pytest.fixture
def check(nmt, tiny, write):
    write("unused", "")
    return lambda *settings: nmt("check", "-c", tiny.config, *set_options(settings))


@pytest.fixture
def train_tokenizer(nmt, tiny, write):
    """Trains the tokenizer of ./run."""
    write("unused", "")
    return lambda *settings: nmt("tokenizer", "train", "-c", tiny.config, *set_options(settings))


@pytest.fixture
def extended(tiny, write):
    """Writes the training text with a pair more, and gives the settings to use it."""

    def write_files(src, tgt):
        settings = []
        for side, suffix, line in (("src", "ko", src), ("tgt", "en", tgt)):
            write(
                f"my.{suffix}",
                "".join(f"{line}\n" for line in [*tiny.lines(f"train.{suffix}"), line]),
            )
            settings.append(f"data.train.{side}=my.{suffix}")
        return settings

    return write_files


MEASURED = """
import atexit, sys
from nmt.cli import main

@atexit.register
def tell():
    with open("/proc/self/status", "rb") as status:
        [peak] = [line.split()[1] for line in status if line.startswith(b"VmHWM:")]
    print("peak", int(peak), file=sys.stderr)

main()
"""


def peak_memory(*args, stdin=b""):
    """Run a command; its standard output, and the most memory that it had at a time, in bytes."""
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, *args], input=stdin, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout.decode(), int(ended.stderr.split()[-1]) * 1024


def test_f11_a_long_line_is_translated_in_pieces_with_a_warning(nmt, tiny):
    text = f"{SENTENCE}\n{f'{SENTENCE} ' * 300}\n{SENTENCE}\n"
    ended = nmt("translate", "-m", tiny.run, "--beam-size", "1", stdin=text)
    assert ended.code == 0
    assert [ended.lines[0], ended.lines[2]] == [TRANSLATION] * 2
    assert len(ended.lines) == 3
    assert len(ended.lines[1].split()) > 100
    assert ended.err == (
        "warning: standard input: lines with more than 100 tokens: 1 (the first is line 2); they "
        "were translated in pieces\n"
    )


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    "line", [f"{SENTENCE} " * 25_000, "가" * 100_000], ids=["words", "one word"]
)
def test_f11_a_line_of_100_000_tokens_needs_little_memory(tiny, line):
    options = ["translate", "-m", tiny.run, "--beam-size", "1"]
    _, usual = peak_memory(*options, stdin=f"{SENTENCE}\n".encode())
    out, peak = peak_memory(*options, stdin=f"{SENTENCE}\n{line}\n{SENTENCE}\n".encode())
    assert len(out.split("\n")) == 4
    assert out.startswith(f"{TRANSLATION}\n")
    assert out.endswith(f"\n{TRANSLATION}\n")
    assert peak - usual < 200 * MEBIBYTE


def test_f11_a_long_line_is_dropped_from_training_and_counted(check, extended):
    ended = check(*extended("나는 " * 100_000, "I"))
    assert ended.code == 0, ended.err
    assert "train data: 200 of 201 pairs kept; dropped 1 too long (first at line 201)" in ended.err


@linux
@pytest.mark.slow
def test_f14_memory_does_not_grow_with_the_corpus(tiny, write, tmp_path):
    def peak(num_pairs):
        draw = random.Random(1)
        size = 0
        for side in ("ko", "en"):
            lines = tiny.lines(f"train.{side}")
            with open(tmp_path / f"large.{side}", "w", encoding="utf-8") as stream:
                for _ in range(num_pairs):
                    size += stream.write(" ".join(draw.choices(lines, k=5)) + "\n")
        files = [f"data.train.src={tmp_path}/large.ko", f"data.train.tgt={tmp_path}/large.en"]
        settings = set_options([f"run_dir={tiny.run}", "data.max_length=300", *files])
        out, peak = peak_memory("check", "-c", tiny.config, *settings)
        assert f" tokens in {num_pairs:,} sentences, " in out
        return peak, size

    small, small_size = peak(1000)
    large, large_size = peak(150_000)
    assert large_size - small_size > 20_000_000  # characters; their token ids take even more
    assert large - small < 80 * MEBIBYTE


def test_f14_a_tokenizer_learns_from_a_part_of_a_large_corpus(train_tokenizer, tiny, monkeypatch):
    whole = sum(Path(tiny.path(f"train.{suffix}")).stat().st_size for suffix in ("ko", "en"))
    monkeypatch.setattr("nmt.text.tokenizer.TRAINING_BYTES", whole // 2)
    model = Path("run/tokenizer/shared.model")
    ended = train_tokenizer()
    assert ended.code == 0, ended.err
    assert ended.err.startswith(
        f"tokenizer: learns from a random 50.0% of {tiny.path('train.ko')} with "
        f"{tiny.path('train.en')}, which has {whole:,} bytes\n"
    )
    first = model.read_bytes()
    model.unlink()
    train_tokenizer()
    assert model.read_bytes() == first  # the same part every time


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char"])
@pytest.mark.parametrize("rest", [" 나는" * 3000, "가" * 5000], ids=["words", "one word"])
def test_f17_a_long_line_is_learned_from(train_tokenizer, extended, kind, rest):
    letters = "漢字仮名交文"  # SentencePiece would leave out what has more than 4192 bytes
    settings = [f"tokenizer.kind={kind}", "tokenizer.vocab_size=100"]
    ended = train_tokenizer(
        *extended(letters + rest, "x"), *settings, "tokenizer.vocab_size_mode=at_most"
    )
    assert ended.code == 0, ended.err
    tokenizer = Tokenizer.load(Path("run/tokenizer/shared.model"))
    assert 1 not in tokenizer.encode([letters])[0]


def test_f17_no_other_line_is_left_out_either(train_tokenizer, extended):
    # SentencePiece would skip lines with the sign by which it marks unknown characters.
    settings = extended("\u2585 漢 字\0仮 \u2028名 \t交", "x\u2585")
    ended = train_tokenizer(*settings, "tokenizer.kind=char", "tokenizer.vocab_size=999")
    assert ended.code == 0, ended.err
    tokenizer = Tokenizer.load(Path("run/tokenizer/shared.model"))
    assert 1 not in tokenizer.encode(["漢 字 仮 名 交"])[0]
