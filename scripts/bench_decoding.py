"""How fast models translate, to a forced length.

In one process, from token ids to token ids, in batches of exactly a size; and on all cores, from
text to text, as `nmt translate` does it.
"""

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
from bench_flops import Lengths, Order, decoding_flops
from bench_setup import (
    SHAPES,
    SIZE_ORDERS,
    WORDS_PER_TOKEN,
    Bench,
    draw_tokens,
    make_config,
    make_model,
    make_text,
)

from nmt.build.data import Tokenizers
from nmt.build.saved import SearchPrecision, build_translator
from nmt.build.training import build_device
from nmt.cli.workers import TASK_LINES, can_fork, share_cores, translate_lines
from nmt.config import Config
from nmt.model.onednn import use_onednn
from nmt.text.tokenizer import Tokenizer
from nmt.translator import SearchOptions, Translator

SRC_LENGTH = 15  # the mean of the training data, with </s>
TGT_LENGTH = 20  # with </s>: 20 steps of every system
NUM_ALONE = 4  # sentences of one repetition where each is a batch


@dataclass(frozen=True)
class Case:
    """What is measured."""

    size: str
    order: Order
    precision: SearchPrecision
    beam: int
    batch: int
    """Sentences."""


@dataclass(frozen=True)
class DecodeRow:
    """The speed of one model in one number format with one beam and batch."""

    size: str
    order: Order
    precision: str
    beam: int
    batch: int
    """Sentences."""
    processes: int
    """0: this process with all its threads, from token ids to token ids. Otherwise workers with a
    thread each, from text to text."""
    tokens_per_second: float
    """Of the translations, `</s>` included."""
    words_per_second: float
    limit_tokens_per_second: float
    """At the GEMM peak of the precision."""
    limit_share: float
    seconds: float
    """Median of the repetitions."""
    tokens: int
    """Of each repetition."""
    peak_bytes: int | None
    """Most device memory that was allocated; None on the CPU."""


def decode_rows(
    bench: Bench, size: str, peaks: dict[str, float], tokenizer: Tokenizer
) -> Iterator[DecodeRow]:
    """All orders, number formats, beams and batches of a size."""
    # A new process, of one thread, may start workers; this one has used all threads.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as helper:
        for order in SIZE_ORDERS[size]:
            config = make_config(SHAPES[size], order)
            for precision in bench.decoding_precisions:
                translator = make_translator(bench.device, config, precision, tokenizer)
                for beam in bench.effort.beam_sizes:
                    for batch in bench.effort.decoding_batches:
                        case = Case(size, order, precision, beam, batch)
                        yield in_this_process(bench, case, translator, peaks[precision])
                    # Text needs a tokenizer of the model's vocabulary, which only one size has.
                    if bench.device.type == "cpu" and len(tokenizer) == SHAPES[size].vocab_size:
                        case = Case(size, order, precision, beam, TASK_LINES)
                        yield on_all_cores(bench, case, helper, peaks[precision], tokenizer)


def finish(
    bench: Bench,
    case: Case,
    peak: float,
    *,
    seconds: float,
    num_sentences: int,
    src_length: float,
    processes: int = 0,
) -> DecodeRow:
    """The speed of a measured case, and its share of the limit."""
    tokens = num_sentences * TGT_LENGTH
    speed = tokens / seconds
    lengths = Lengths(src_length, src_length / TGT_LENGTH)
    limit = peak / decoding_flops(SHAPES[case.size], case.order, lengths, case.beam)
    bench.say(
        f"decoding {case.size} {case.order} {case.precision}, beam {case.beam}, "
        f"batch {case.batch}, {f'{processes} workers' if processes else 'threads'}: "
        f"{speed:,.0f} tokens/s, {speed / limit:.0%} of the limit"
    )
    on_cuda = bench.device.type == "cuda"
    return DecodeRow(
        size=case.size,
        order=case.order,
        precision=case.precision,
        beam=case.beam,
        batch=case.batch,
        processes=processes,
        tokens_per_second=speed,
        words_per_second=speed * WORDS_PER_TOKEN,
        limit_tokens_per_second=limit,
        limit_share=speed / limit,
        seconds=seconds,
        tokens=tokens,
        peak_bytes=torch.cuda.max_memory_allocated(bench.device) if on_cuda else None,
    )


def forced(beam_size: int, tgt_length: int, batch_tokens: int) -> SearchOptions:
    """Search for translations of exactly this many tokens, `</s>` included."""
    return SearchOptions(
        beam_size=beam_size,
        length_penalty=1.0,
        min_length=tgt_length - 1,
        max_length=tgt_length - 1,
        max_length_ratio=float(tgt_length),
        batch_tokens=batch_tokens,
    )


def make_translator(
    device: torch.device,
    config: Config,
    precision: SearchPrecision,
    tokenizer: Tokenizer,
    options: SearchOptions | None = None,
) -> Translator:
    """A translator around a fresh model."""
    tokenizers = Tokenizers(tokenizer, tokenizer)
    model = make_model(config, device)
    if device.type == "cpu" and precision == "fp32":
        use_onednn(model)  # as nmt.load does
    return build_translator(config, model, tokenizers, device, precision, options)


def in_this_process(bench: Bench, case: Case, translator: Translator, peak: float) -> DecodeRow:
    """Translate batches of random tokens with all threads."""
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    seconds = search_seconds(bench, translator, case.beam, case.batch)
    num_sentences = NUM_ALONE if case.batch == 1 else case.batch
    return finish(
        bench, case, peak, seconds=seconds, num_sentences=num_sentences, src_length=SRC_LENGTH
    )


def search_seconds(
    bench: Bench,
    translator: Translator,
    beam_size: int,
    batch: int,
    *,
    src_length: int = SRC_LENGTH,
    tgt_length: int = TGT_LENGTH,
) -> float:
    """The median seconds in which one batch of sentences is translated.

    All sources have the same length, so that the batch is full. Instead of a batch of 1 there are
    `NUM_ALONE`, one after the other. Lengths include `</s>`.
    """
    draw = np.random.Generator(np.random.PCG64(4))
    vocab_size = translator.model.decoder.output_layer.out_features
    num_sentences = NUM_ALONE if batch == 1 else batch
    sources = [draw_tokens(src_length - 1, vocab_size, draw) for _ in range(num_sentences)]
    options = forced(beam_size, tgt_length, batch * src_length)
    calls = [sources[i : i + batch] for i in range(0, num_sentences, batch)]

    def search() -> None:
        for call in calls:
            for hypotheses in translator.search(call, options):
                assert len(hypotheses[0].token_ids) == tgt_length

    return bench.median(search)


def on_all_cores(
    bench: Bench, case: Case, helper: ProcessPoolExecutor, peak: float, tokenizer: Tokenizer
) -> DecodeRow:
    """Translate lines of text with worker processes, which the helper starts."""
    lines, repeats = make_text(bench.effort.num_translated), bench.effort.repeats
    workers = torch.get_num_threads() if can_fork() else 1
    seconds = helper.submit(translate_text, case, tokenizer.model, lines, repeats, workers).result()
    return finish(
        bench,
        case,
        peak,
        seconds=seconds,
        num_sentences=len(lines),
        src_length=sum(len(ids) + 1 for ids in tokenizer.encode(lines)) / len(lines),
        processes=workers,
    )


def translate_text(
    case: Case, tokenizer: bytes, lines: list[str], repeats: int, workers: int
) -> float:
    """The median seconds of translating lines as `nmt translate` does."""
    share_cores(workers)
    config = make_config(SHAPES[case.size], case.order)
    options = forced(case.beam, TGT_LENGTH, config.decoding.batch_tokens)
    device = build_device("cpu")
    translator = make_translator(device, config, case.precision, Tokenizer(tokenizer), options)
    translator.settle(lines * 100)  # as for a long text
    seconds: list[float] = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        found = list(translate_lines(translator, lines, window=len(lines), workers=workers))
        seconds.append(time.perf_counter() - began)
        assert len(found) == len(lines)
    return statistics.median(seconds[1:])
