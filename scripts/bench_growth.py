"""How the cost of a target token grows with one size at a time, all else being that of `small`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from bench_decoding import NUM_ALONE, TGT_LENGTH, make_translator, search_seconds
from bench_flops import Shape
from bench_setup import SHAPES, Bench, make_config
from bench_training import training_seconds_per_token

from nmt.text.tokenizer import Tokenizer

PARAMETERS = {
    "length": "sentence length, tokens",
    "vocabulary": "vocabulary",
    "hidden": "hidden size",
    "batch": "batch, sentences",
    "beam": "beam size",
    "threads": "threads",
}
LENGTH = 15  # with </s>, both sides in training


@dataclass(frozen=True)
class Setting:
    """One point of the space of sizes."""

    shape: Shape
    length: int | None = None
    """Of both sides, with `</s>`; None: 15, and 20 for a translation."""
    training_batch: int = 100
    """Sentences; fewer where they are long, as a batch is limited in tokens."""
    decoding_batch: int = 16
    beam_size: int = 5
    threads: int | None = None


@dataclass(frozen=True)
class Point:
    """The cost of a target token at one value of one parameter."""

    parameter: str
    """A key of `PARAMETERS`."""
    value: int
    training: float | None
    """Seconds per target token; None where the parameter does not matter."""
    decoding: float
    """The same of beam search, per token of the translation."""
    training_attention: float | None = None
    """Share of attention: what is saved without it, the decoder seeing one fixed vector."""
    decoding_attention: float | None = None


def settings(shape: Shape, quick: bool) -> Iterator[tuple[str, int, Setting]]:
    """All points: parameter, value, and what is measured there."""
    start = Setting(shape)
    for length in (10, 20) if quick else (10, 20, 50, 100, 200, 400):
        yield "length", length, replace(start, length=length)
    for size in (600,) if quick else (2000, 4000, 8000, 16000, 32000):
        yield "vocabulary", size, replace(start, shape=replace(shape, vocab_size=size))
    for size in (16,) if quick else (128, 256, 512, 1024):
        sized = replace(shape, hidden_dim=size, key_dim=size, encoder_hidden_dim=size)
        yield "hidden", size, replace(start, shape=sized)
    for batch in (2,) if quick else (1, 4, 16, 64, 256):
        yield "batch", batch, replace(start, training_batch=batch, decoding_batch=batch)
    for beam in (2,) if quick else (1, 2, 5, 10):
        yield "beam", beam, replace(start, beam_size=beam)
    most = torch.get_num_threads()
    for threads in sorted({1, most, *(2**i for i in range(most.bit_length()) if 2**i < most)}):
        yield "threads", threads, replace(start, threads=threads)


def growth(bench: Bench, size: str, tokenizer: Tokenizer, *, quick: bool) -> list[Point]:
    """Measure all points; attention is told apart where the length grows."""
    points = []
    threads = torch.get_num_threads()
    for parameter, value, setting in settings(SHAPES[size], quick):
        torch.set_num_threads(setting.threads or threads)
        training = None if parameter == "beam" else training_cost(bench, setting)
        decoding = decoding_cost(bench, setting, tokenizer)
        point = Point(parameter, value, training, decoding)
        if parameter == "length" and training is not None:
            fixed = training_cost(bench, setting, without_attention=True)
            searched = decoding_cost(bench, setting, tokenizer, without_attention=True)
            point = replace(
                point,
                training_attention=1 - fixed / training,
                decoding_attention=1 - searched / decoding,
            )
        bench.say(f"growth: {PARAMETERS[parameter]} {value}: {describe(point)}")
        points.append(point)
    torch.set_num_threads(threads)
    return points


def training_cost(bench: Bench, setting: Setting, *, without_attention: bool = False) -> float:
    """Seconds per target token of whole updates in fp32."""
    length = setting.length or LENGTH
    config = make_config(
        setting.shape,
        "bahdanau",
        score="none" if without_attention else "additive",
        batch_tokens=max(length, setting.training_batch * LENGTH),
    )
    return training_seconds_per_token(bench, config, src_length=length, tgt_length=length)


def decoding_cost(
    bench: Bench, setting: Setting, tokenizer: Tokenizer, *, without_attention: bool = False
) -> float:
    """Seconds per token of a translation in fp32."""
    config = make_config(
        setting.shape, "bahdanau", score="none" if without_attention else "additive"
    )
    src_length, tgt_length = setting.length or LENGTH, setting.length or TGT_LENGTH
    seconds = search_seconds(
        bench,
        make_translator(bench.device, config, "fp32", tokenizer),
        setting.beam_size,
        setting.decoding_batch,
        src_length=src_length,
        tgt_length=tgt_length,
    )
    num_sentences = NUM_ALONE if setting.decoding_batch == 1 else setting.decoding_batch
    return seconds / (num_sentences * tgt_length)


def describe(point: Point) -> str:
    """One line."""
    training = "" if point.training is None else f"training {point.training * 1e6:,.0f} µs, "
    return f"{training}decoding {point.decoding * 1e6:,.0f} µs per target token"
