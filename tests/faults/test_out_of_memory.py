"""Too little memory to decode: smaller batches with the same result, then one clear line."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from nmt.decoding import run_batches
from nmt.errors import TrainingError

SENTENCE, TRANSLATION = "어제 나는 밥을 먹었다", "I ate rice yesterday"


@pytest.fixture
def scarce(monkeypatch):
    """Lets the encoder of every model fail for more than some sentences, and says what it did."""
    from nmt.model.encoder import Encoder
    from nmt.model.folded_encoder import FoldedEncoder

    sizes = []

    def limit(kind, name, num_sentences, error):
        encode = getattr(kind, name)

        def limited(self, src, src_mask):
            sizes.append(len(src))
            if len(src) > num_sentences:
                raise error
            return encode(self, src, src_mask)

        monkeypatch.setattr(kind, name, limited)

    def limit_to(num_sentences, error):
        limit(Encoder, "forward", num_sentences, error)  # of given translations
        limit(FoldedEncoder, "__call__", num_sentences, error)  # of a search
        return sizes

    return limit_to


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("limit", [1, 3, 10])
def test_f35_translate_halves_its_batches_and_finds_the_same(nmt, tiny, scarce, limit, error):
    arguments = ("translate", "--model", tiny.run, "--input", tiny.path("test.ko"))
    arguments += ("--workers", "1", "--format", "jsonl")
    usual = nmt(*arguments)
    sizes = scarce(limit, error)
    ended = nmt(*arguments)
    assert (ended.code, ended.err) == (0, "")
    assert sizes[0] > 10
    assert sizes[-1] <= limit
    assert sum(size for size in sizes if size <= limit) == 30
    assert sum(size > limit for size in sizes) <= 8  # what fits is found by halving, and kept
    for one, other in zip(ended.lines, usual.lines, strict=True):
        one, other = json.loads(one), json.loads(other)
        assert one["src"] == other["src"]
        for found, expected in zip(one["hypotheses"], other["hypotheses"], strict=True):
            assert found["tokens"] == expected["tokens"]
            assert found["score"] == pytest.approx(expected["score"], abs=1e-5)


@pytest.mark.parametrize("command", ["score", "attn-dump"])
def test_f35_given_translations_are_halved_too(nmt, tiny, scarce, command):
    arguments = (command, "--model", tiny.run, "--src", tiny.path("test.ko"))
    arguments += ("--tgt", tiny.path("test.en"))
    usual = nmt(*arguments)
    sizes = scarce(4, ERRORS[0])
    ended = nmt(*arguments)
    assert (ended.code, ended.err) == (0, "")
    assert max(sizes) > 4
    assert len(ended.lines) == len(usual.lines) == 30
    if command == "score":
        assert list(map(float, ended.lines)) == pytest.approx(
            list(map(float, usual.lines)), abs=1e-5
        )


def test_f35_one_sentence_that_does_not_fit_ends_with_one_clear_line(nmt, tiny, scarce):
    scarce(0, ERRORS[0])
    ended = nmt("translate", "--model", tiny.run, "--beam-size", "7", stdin=SENTENCE)
    assert (ended.code, ended.out) == (5, "")
    assert ended.err.startswith("error: out of memory: a source of ")
    assert " tokens cannot be translated with a beam of 7 (" in ended.err
    assert ended.err.endswith(" MiB are in use here); use a smaller beam or fewer --workers\n")
    assert ended.err.count("\n") == 1


def test_f35_one_pair_that_does_not_fit_ends_with_one_clear_line(nmt, tiny, write, scarce):
    write("s", f"{SENTENCE}\n")
    write("t", f"{TRANSLATION}\n")
    scarce(0, ERRORS[1])
    ended = nmt("score", "--model", tiny.run, "--src", "s", "--tgt", "t")
    assert ended.code == 5
    assert ended.err.startswith("error: out of memory: a pair of ")
    assert ended.err.endswith(" MiB are in use here); split it\n")


def test_f35_a_validation_is_halved_too(nmt, tiny, scarce, write):
    """The loss of held-out pairs does not depend on how many are measured at a time."""
    from nmt.build.saved import load
    from nmt.data.batches import Batches
    from nmt.data.store import TokenStore
    from nmt.validation import Validator

    translator = load(tiny.run)
    batches = Batches(TokenStore(tiny.folder / "run/data/valid"), 300, 1)
    validator = Validator(translator, batches, [], [], translator.options)
    usual = validator.loss(lambda: False)
    sizes = scarce(4, ERRORS[1])
    assert validator.loss(lambda: False) == pytest.approx(usual, abs=1e-6)
    assert max(sizes) > 4
    scarce(0, ERRORS[1])
    with pytest.raises(TrainingError, match=r"^out of memory: line \d+ of the validation text, of"):
        validator.loss(lambda: False)


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_f35_each_index_is_done_once_and_longest_first(limit):
    lengths = np.array([3, 9, 1, 7, 7, 2, 5, 4, 8, 6])
    done = []

    def run(batch):
        if len(batch) > limit:
            raise MemoryError
        done.extend(batch)

    run_batches(run, lengths, 10**6, torch.device("cpu"), str)
    assert sorted(done) == list(range(10))
    assert [lengths[i] for i in done] == sorted(lengths, reverse=True)


def test_f35_a_bug_is_no_lack_of_memory():
    def run(batch):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_batches(run, np.array([1, 2]), 10, torch.device("cpu"), str)


LIMITED = """
import resource, sys
from nmt.cli.main import app
from nmt.model.folded_encoder import FoldedEncoder

encode = FoldedEncoder.__call__

def limit_and_encode(self, src, src_mask):
    FoldedEncoder.__call__ = encode
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + {mebibytes} * 2**20,) * 2)
    return encode(self, src, src_mask)

FoldedEncoder.__call__ = limit_and_encode
app(sys.argv[1:])
"""
"""A process that may have so much more memory than it has when it first translates."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space by /proc")
@pytest.mark.parametrize(("mebibytes", "beam_size"), [(100, 2000), (50, 30_000)])
def test_f35_under_a_real_limit_a_batch_is_halved_or_refused(nmt, tiny, mebibytes, beam_size):
    """30 sentences with a beam of 2,000 take more, so they are halved; one with 30,000 does too.

    Even one of 2,000 may not find room between what the C library has not given back.
    """
    options = ["--beam-size", str(beam_size), "--batch-tokens", "100000", "--workers", "1"]
    arguments = ["translate", "-m", tiny.run, "-i", tiny.path("test.ko"), *options]
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED.format(mebibytes=mebibytes), *arguments],
        capture_output=True,
        check=False,
        timeout=100,
    )
    if ended.returncode == 0 and beam_size == 2000:
        assert ended.stderr == b""
        assert ended.stdout.decode() == nmt(*arguments).out
        return
    assert ended.returncode == 5, ended.stderr.decode()[-2000:]
    assert ended.stderr.startswith(b"error: out of memory: a source of ")
    assert f" cannot be translated with a beam of {beam_size} (".encode() in ended.stderr
    assert b"the process may have" in ended.stderr
    assert ended.stderr.count(b"\n") == 1
    assert ended.stdout == b""
