"""How fast models train: whole updates of the real trainer, and where the time of one goes."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from bench_flops import Order, training_flops
from bench_setup import (
    SHAPES,
    SIZE_ORDERS,
    Bench,
    corpus_lengths,
    make_batches,
    make_config,
    make_model,
    mean_lengths,
)
from torch import nn

from nmt.build.training import build_trainer
from nmt.config import Config
from nmt.data.batches import Batches
from nmt.model.loss import output_loss
from nmt.training.trainer import StepReport, Trainer

STAGES = ("data", "encoder", "decoder loop", "vocabulary+loss", "backward", "optimizer")


@dataclass(frozen=True)
class TrainRow:
    """The speed of one model in one number format."""

    size: str
    order: Order
    precision: str
    beam: None
    """There is none in training."""
    batch: int
    """Target positions."""
    tokens_per_second: float
    """Real target tokens, `</s>` included, per second of whole updates."""
    limit_tokens_per_second: float
    """At the GEMM peak."""
    limit_share: float
    seconds: list[float]
    """Of each repetition."""
    tokens: int
    """Of each repetition."""
    padding: float
    """Share of the target positions of an epoch."""
    src_padding: float
    stages: dict[str, float]
    """Share of an update's time that each stage takes."""
    peak_bytes: int | None
    """Most device memory that was allocated; None on the CPU."""


@dataclass(frozen=True)
class FixedBatches(Batches):
    """The same few batches, epoch after epoch."""

    chosen: tuple[np.ndarray, ...] = ()

    def plan(self, epoch: int) -> list[np.ndarray]:
        return list(self.chosen)


class NoHooks:
    """Nothing is reported, validated or saved."""

    def on_step(self, report: StepReport) -> None:
        """Nothing."""

    def validate(self, step: int) -> float | None:
        return 0.0

    def save(self, step: int, is_best: bool) -> None:
        """Nothing."""

    def should_stop(self) -> bool:
        return False


def train_rows(bench: Bench, size: str, peaks: dict[str, float]) -> Iterator[TrainRow]:
    """All batch sizes, orders and number formats of a size, in turn on the same batches."""
    effort, shape = bench.effort, SHAPES[size]
    src_lengths, tgt_lengths = corpus_lengths(effort.num_pairs)
    for batch_tokens in effort.batch_tokens:
        batches = make_batches(
            bench.folder / f"store-{size}-{batch_tokens}",
            src_lengths,
            tgt_lengths,
            shape.vocab_size,
            batch_tokens,
        )
        plan = batches.plan(0)
        chosen = typical(plan, tgt_lengths, effort.num_batches)
        fixed = FixedBatches(batches.store, batch_tokens, batches.seed, None, chosen)
        measured = np.concatenate(chosen)
        lengths = mean_lengths(src_lengths[measured], tgt_lengths[measured])
        for order, precision in product(SIZE_ORDERS[size], bench.training_precisions):
            limit = peaks[precision] / training_flops(shape, order, lengths)
            config = make_config(shape, order, precision=precision, batch_tokens=batch_tokens)
            seconds, stages, peak_bytes = measure(bench, config, fixed)
            tokens = int((tgt_lengths[measured] + 1).sum())
            speed = tokens / statistics.median(seconds)
            bench.say(
                f"training {size} {order} {precision}, {batch_tokens:,} positions: "
                f"{speed:,.0f} tokens/s, {speed / limit:.0%} of the limit"
            )
            yield TrainRow(
                size=size,
                order=order,
                precision=precision,
                beam=None,
                batch=batch_tokens,
                tokens_per_second=speed,
                limit_tokens_per_second=limit,
                limit_share=speed / limit,
                seconds=seconds,
                tokens=tokens,
                padding=padding(plan, tgt_lengths),
                src_padding=padding(plan, src_lengths),
                stages=stages,
                peak_bytes=peak_bytes,
            )


def typical(
    plan: list[np.ndarray], tgt_lengths: np.ndarray, num_batches: int
) -> tuple[np.ndarray, ...]:
    """Batches from all over an epoch: the middle one of each part when sorted by length."""
    ordered = sorted(plan, key=lambda indices: int(tgt_lengths[indices].max()))
    middles = (np.arange(num_batches) + 0.5) * len(ordered) / num_batches
    return tuple(ordered[int(middle)] for middle in middles)


def padding(plan: list[np.ndarray], lengths: np.ndarray) -> float:
    """The share of an epoch's positions, `</s>` being real, that hold no token."""
    positions = sum(len(indices) * (int(lengths[indices].max()) + 1) for indices in plan)
    return 1 - float((lengths + 1).sum()) / positions


def measure(
    bench: Bench, config: Config, batches: FixedBatches
) -> tuple[list[float], dict[str, float], int | None]:
    """Seconds of each pass over the batches, share of each stage, most memory."""
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
    trainer = build_trainer(config, make_model(config, bench.device), batches, bench.device)
    steps = len(batches.chosen)

    def one_pass() -> None:
        trainer.train(trainer.progress.step + steps, NoHooks())

    seconds = bench.seconds(one_pass)
    on_cuda = bench.device.type == "cuda"
    peak_bytes = torch.cuda.max_memory_allocated(bench.device) if on_cuda else None
    return seconds, stage_shares(bench, trainer, batches), peak_bytes


def stage_shares(bench: Bench, trainer: Trainer, batches: FixedBatches) -> dict[str, float]:
    """Where the time of an update goes, the device being waited for after each stage."""
    split_update(bench, trainer, batches, batches.chosen[0])
    total: dict[str, float] = defaultdict(float)
    for indices in batches.chosen:
        for stage, seconds in split_update(bench, trainer, batches, indices).items():
            total[stage] += seconds
    return {stage: total[stage] / sum(total.values()) for stage in STAGES}


def split_update(
    bench: Bench, trainer: Trainer, batches: Batches, indices: np.ndarray
) -> dict[str, float]:
    """The seconds of each stage of one update, which does what the trainer's own does."""
    model, optimizer = trainer.model, trainer.optimizer
    times: list[float] = []

    def lap() -> None:
        bench.synchronize()
        times.append(time.perf_counter())

    model.train()
    lap()
    batch = batches.batch(indices, 0).to(bench.device)
    lap()
    with trainer.autocast():
        state = model.encode(batch.src, batch.src_mask)
        lap()
        readouts, _ = model.decoder(batch.tgt_input, state)
        lap()
        loss = output_loss(
            readouts,
            model.decoder.output_layer,
            batch.tgt_output,
            batch.tgt_mask,
            trainer.label_smoothing,
        )
    lap()
    torch.autograd.backward(loss.total / batch.num_tokens)
    lap()
    nn.utils.clip_grad_norm_(model.parameters(), trainer.clip_norm or float("inf"))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    lap()
    return {stage: times[i + 1] - times[i] for i, stage in enumerate(STAGES)}


def training_seconds_per_token(
    bench: Bench,
    config: Config,
    *,
    src_length: int,
    tgt_length: int,
) -> float:
    """Seconds per target token, `</s>` included, where all sentences are equally long.

    Lengths include `</s>`.
    """
    tokens = int(config.training.batch_tokens)
    num_sentences = max(1, tokens // tgt_length)
    lengths = np.full(num_sentences, src_length - 1), np.full(num_sentences, tgt_length - 1)
    batches = make_batches(
        bench.folder / "store-growth", *lengths, config.tokenizer.vocab_size, tokens + tgt_length
    )
    fixed = FixedBatches(
        batches.store, tokens + tgt_length, batches.seed, None, (np.arange(num_sentences),)
    )
    trainer = build_trainer(config, make_model(config, bench.device), fixed, bench.device)

    def update() -> None:
        trainer.train(trainer.progress.step + 1, NoHooks())

    return bench.median(update) / (num_sentences * tgt_length)
