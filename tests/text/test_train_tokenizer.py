"""Learning a vocabulary: deterministic, interruptible, and clear about impossible sizes."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from nmt.errors import ConfigError, DataError
from nmt.text.tokenizer import learnable, train_tokenizer


@pytest.mark.parametrize(("kind", "size"), [("unigram", 100), ("bpe", 99), ("word", 98)])
def test_a_vocabulary_has_the_size_that_was_asked_for(corpus, kind, size):
    assert len(train_tokenizer(corpus, kind=kind, vocab_size=size)) == size


def test_a_character_vocabulary_is_as_large_as_there_are_characters(corpus):
    sentences = [sentence for sentence in corpus if sentence.isascii()]
    characters = {"▁", *"".join(sentences)} - {" "}
    assert len(train_tokenizer(sentences, kind="char", vocab_size=999)) == 4 + len(characters)


@pytest.mark.parametrize("byte_fallback", [False, True])
@pytest.mark.parametrize("kind", ["unigram", "bpe", "word", "char"])
def test_the_same_text_trains_the_same_bytes(corpus, kind, byte_fallback):
    options = {"kind": kind, "vocab_size": 320 if byte_fallback else 60}
    options["byte_fallback"] = byte_fallback
    tokenizer = train_tokenizer(corpus, **options)
    again = train_tokenizer(iter(corpus), **options)
    other = train_tokenizer(corpus[50:], **options)
    assert again.model == tokenizer.model != other.model
    assert again.sha256 == tokenizer.sha256 != other.sha256


@pytest.mark.parametrize("sentences", [None, ["a b"], ["가나다", "가"]])
@pytest.mark.parametrize("kind", ["unigram", "bpe", "word"])
def test_too_large_a_vocabulary_names_the_largest_possible(corpus, kind, sentences):
    sentences = sentences or corpus
    with pytest.raises(ConfigError) as error:
        train_tokenizer(sentences, kind=kind, vocab_size=99_999)
    [largest] = re.findall(r"at most (\d+)", str(error.value))
    assert str(error.value) == (
        f"tokenizer.vocab_size: is 99999, but this corpus allows at most {largest} pieces; lower it"
    )
    assert len(train_tokenizer(sentences, kind=kind, vocab_size=int(largest))) == int(largest)
    with pytest.raises(ConfigError, match=f"allows at most {largest} pieces"):
        train_tokenizer(sentences, kind=kind, vocab_size=int(largest) + 1)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_too_small_a_vocabulary_names_the_smallest_possible(corpus, kind):
    with pytest.raises(ConfigError) as error:
        train_tokenizer(corpus, kind=kind, vocab_size=12)
    [smallest] = re.findall(r"at least (\d+)", str(error.value))
    assert str(error.value) == (
        f"tokenizer.vocab_size: is 12, but this corpus needs at least {smallest} pieces for its "
        "characters; raise it, or lower tokenizer.character_coverage"
    )
    assert len(train_tokenizer(corpus, kind=kind, vocab_size=int(smallest))) == int(smallest)


@pytest.mark.parametrize("kind", ["word", "char"])
def test_a_vocabulary_too_small_for_all_bytes_says_so(corpus, kind):
    with pytest.raises(ConfigError) as error:
        train_tokenizer(corpus, kind=kind, vocab_size=259, byte_fallback=True)
    assert str(error.value) == (
        "tokenizer.vocab_size: is 259, but 256 bytes and 4 special pieces need at least 260; "
        "raise it, or turn tokenizer.byte_fallback off"
    )
    assert len(train_tokenizer(corpus, kind=kind, vocab_size=260, byte_fallback=True)) == 260


def test_what_the_trainer_says_besides_is_passed_on(corpus):
    with pytest.raises(ConfigError, match=r"^tokenizer: training failed: .*eos_id\(\).*$"):
        train_tokenizer(corpus, kind="unigram", vocab_size=3)


@pytest.mark.parametrize("sentences", [[], [""], ["", " \t", "\u3000", "\0"], ["\u200b"]])
def test_a_corpus_without_text_is_an_error(sentences):
    with pytest.raises(DataError) as error:
        train_tokenizer(sentences, kind="bpe", vocab_size=50)
    assert str(error.value) == (
        "this corpus: has no text for the tokenizer to learn from; is it empty?"
    )


def test_character_coverage_leaves_rare_characters_unknown():
    corpus = ["a b c d e f g h"] * 100 + ["z"]
    everything = train_tokenizer(corpus, kind="char", vocab_size=50)
    most = train_tokenizer(corpus, kind="char", vocab_size=50, character_coverage=0.99)
    assert "z" in everything.tokens(range(len(everything)))
    assert "z" not in most.tokens(range(len(most)))


def test_one_very_long_sentence_is_learnt_from_too():
    tokenizer = train_tokenizer(["a" * 9, "나는 " * 30_000], kind="char", vocab_size=20)
    assert {"a", "나", "는"} <= set(tokenizer.tokens(range(len(tokenizer))))


SLOW_TRAINING = """
import random
import subprocess
from nmt.text.tokenizer import train_tokenizer

def sentences():
    letters = random.Random(1)
    for _ in range(40_000):
        yield "".join(letters.choices("abcdefghijklmnopqrstuvwxyz ", k=100))
    print("training", flush=True)

class Recorded(subprocess.Popen):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        global learner
        learner = self

subprocess.Popen = Recorded
try:
    train_tokenizer(sentences(), kind="unigram", vocab_size=8000)
except KeyboardInterrupt:
    print("interrupted, and the learner died of signal", -learner.wait(5))
"""


def test_ctrl_c_ends_training_at_once_and_leaves_no_process(tmp_path):
    program = subprocess.Popen(
        [sys.executable, "-c", SLOW_TRAINING],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert program.stdout.readline() == "training\n"
    time.sleep(0.5)
    began = time.monotonic()
    program.send_signal(signal.SIGINT)
    output, _ = program.communicate(timeout=20)
    assert time.monotonic() - began < 3
    assert output == f"interrupted, and the learner died of signal {signal.SIGKILL:d}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["unigram", "bpe", "word"])
def test_at_most_takes_the_largest_possible_vocabulary(corpus, kind):
    with pytest.raises(ConfigError) as error:
        train_tokenizer(corpus, kind=kind, vocab_size=99_999)
    [largest] = re.findall(r"at most (\d+)", str(error.value))
    exact = train_tokenizer(corpus, kind=kind, vocab_size=int(largest))
    at_most = train_tokenizer(corpus, kind=kind, vocab_size=99_999, size_mode="at_most")
    assert at_most.model == exact.model
    for size in (60, 70):
        assert len(train_tokenizer(corpus, kind=kind, vocab_size=size, size_mode="at_most")) == size


def test_a_long_sentence_is_learned_in_parts_that_are_cut_between_words(monkeypatch):
    monkeypatch.setattr("nmt.text.tokenizer.PART_LENGTH", 10)
    assert list(learnable("")) == [""]
    assert list(learnable("0123456789")) == ["0123456789"]
    assert list(learnable("0123456789 abc")) == ["0123456789", " abc"]
    assert list(learnable("0123 56789abc defghijklmno")) == [
        *("0123", " 56789abc", " defghijkl", "mno")
    ]


@pytest.mark.parametrize("sentence", ["나는 " * 30_000, "나" * 60_000], ids=["words", "one word"])
def test_time_does_not_grow_with_the_square_of_a_sentence(sentence):
    began = time.monotonic()
    train_tokenizer(["a b c", sentence], kind="unigram", vocab_size=50, size_mode="at_most")
    assert time.monotonic() - began < 10
