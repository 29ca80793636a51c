"""What the benchmarks are run on: models of fixed sizes, and synthetic data like Multi30k's."""

import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from bench_flops import Lengths, Order, Shape

from nmt.build.model import build_model
from nmt.build.saved import SearchPrecision
from nmt.config import Config
from nmt.data.batches import Batches
from nmt.data.corpus import Pair, PairFilter
from nmt.data.store import build_store
from nmt.model.seq2seq import Seq2Seq

Score = Literal["additive", "none"]

ORDERS: tuple[Order, ...] = ("bahdanau", "luong-feeding", "luong")
SHAPES = {
    "tiny": Shape(
        cell="gru",
        embed_dim=16,
        encoder_hidden_dim=16,
        encoder_layers=1,
        hidden_dim=16,
        num_layers=1,
        key_dim=16,
        vocab_size=600,
    ),
    "small": Shape(
        cell="gru",
        embed_dim=256,
        encoder_hidden_dim=512,
        encoder_layers=1,
        hidden_dim=512,
        num_layers=1,
        key_dim=512,
        vocab_size=8000,
    ),
    "base": Shape(
        cell="gru",
        embed_dim=512,
        encoder_hidden_dim=1024,
        encoder_layers=1,
        hidden_dim=1024,
        num_layers=1,
        key_dim=1024,
        vocab_size=16000,
    ),
    "gnmt": Shape(
        cell="lstm",
        embed_dim=1024,
        encoder_hidden_dim=512,
        encoder_layers=4,
        hidden_dim=1024,
        num_layers=4,
        key_dim=1024,
        vocab_size=32000,
    ),
}
SIZE_ORDERS: dict[str, tuple[Order, ...]] = {
    "tiny": ORDERS,
    "small": ORDERS,
    "base": ("bahdanau",),
    "gnmt": ("luong",),
}

# Multi30k, English in 7,800 unigram pieces, as measured: mean 14.1 without </s>, 0.79 words per
# token with it; the German side is 2 % longer.
LOG_LENGTH, LOG_LENGTH_SPREAD = 2.60, 0.31
LOG_RATIO, LOG_RATIO_SPREAD = 0.02, 0.19
SHORTEST, LONGEST = 4, 50
WORDS_PER_TOKEN = 0.79
NUM_PAIRS = 29_000


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    repeats: int
    """Of which the median is taken."""
    num_pairs: int = NUM_PAIRS
    """Of the corpus that training batches are planned on."""
    num_batches: int = 12
    """Training batches of one repetition: enough for their padding to be that of the corpus."""
    batch_tokens: tuple[int, ...] = (1500, 2048)
    """Target positions of a training batch: what is measured in turn."""
    decoding_batches: tuple[int, ...] = (1, 16, 64)
    beam_sizes: tuple[int, ...] = (1, 5)
    num_lines: int = 10_000
    """Of the text that is tokenised."""
    num_translated: int = 256
    """Lines of it that all cores translate."""
    num_commands: int | None = None
    """Of `nmt` that are timed; None: all."""
    gemm_sizes: tuple[int, ...] = (768, 1024, 2048)
    copied_bytes: int = 1 << 28


FULL = Effort(repeats=5)
ON_CUDA = replace(
    FULL,
    num_batches=20,
    batch_tokens=(8192,),
    decoding_batches=(1, 16, 64, 128, 512),
    gemm_sizes=(2048, 4096, 8192),
    copied_bytes=1 << 30,
)
QUICK = Effort(
    repeats=1,
    num_pairs=300,
    num_batches=2,
    batch_tokens=(200,),
    decoding_batches=(2,),
    beam_sizes=(1, 2),
    num_lines=200,
    num_translated=70,
    num_commands=3,
    gemm_sizes=(64,),
    copied_bytes=1 << 16,
)


@dataclass(frozen=True)
class Bench:
    """Where and how everything is measured."""

    device: torch.device
    effort: Effort
    folder: Path
    """For temporary files."""

    def say(self, text: str) -> None:
        """Tell the progress."""
        print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)

    def synchronize(self) -> None:
        """Wait until the device has done all that it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], repeats: int | None = None) -> list[float]:
        """The wall-clock seconds of some work, each time, after once unmeasured."""
        found: list[float] = []
        for _ in range(1 + (self.effort.repeats if repeats is None else repeats)):
            self.synchronize()
            began = time.perf_counter()
            work()
            self.synchronize()
            found.append(time.perf_counter() - began)
        return found[1:]

    def median(self, work: Callable[[], object], repeats: int | None = None) -> float:
        """The median of `seconds`."""
        return statistics.median(self.seconds(work, repeats))

    @property
    def training_precisions(self) -> tuple[Literal["fp32", "bf16"], ...]:
        """The number formats that models are trained in."""
        return ("fp32", "bf16")

    @property
    def decoding_precisions(self) -> tuple[SearchPrecision, ...]:
        """The number formats that models translate in."""
        return ("fp32", "bf16", "int8") if self.device.type == "cpu" else ("fp32", "bf16", "fp16")


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = _cpu_lines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").split("\n") if path.exists() else []


def make_config(
    shape: Shape,
    order: Order,
    *,
    score: Score = "additive",
    precision: str = "fp32",
    run_dir: str = "run",
    batch_tokens: int = FULL.batch_tokens[0],
) -> Config:
    """The experiment file of a model: Adam, clipping, label smoothing 0.1, dropout 0.3."""
    return Config.model_validate(
        {
            "run_dir": run_dir,
            "src_lang": "de",
            "tgt_lang": "en",
            "data": {
                "train": {"src": "train.src", "tgt": "train.tgt"},
                "valid": {"src": "valid.src", "tgt": "valid.tgt"},
                "max_length": 1000,
            },
            "tokenizer": {"vocab_size": shape.vocab_size, "shared": True},
            "model": {
                "cell": shape.cell,
                "embed_dim": shape.embed_dim,
                "encoder": {
                    "num_layers": shape.encoder_layers,
                    "hidden_dim": shape.encoder_hidden_dim,
                },
                "decoder": {
                    "order": "bahdanau" if order == "bahdanau" else "luong",
                    "num_layers": shape.num_layers,
                    "hidden_dim": shape.hidden_dim,
                    "input_feeding": order == "luong-feeding",
                },
                "attention": {"score": score, "key_dim": shape.key_dim},
                "dropout": 0.3,
            },
            "training": {
                "precision": precision,
                "batch_tokens": batch_tokens,
                "optimizer": "adam",
                "learning_rate": 5e-4,
                "clip_norm": 1.0,
                "label_smoothing": 0.1,
            },
            "validation": {"every": 10**9, "beam_size": 1},
        }
    )


def make_model(config: Config, device: torch.device) -> Seq2Seq:
    """The network with its first weights, which are the same every time."""
    torch.manual_seed(1)
    vocab_size = config.tokenizer.vocab_size
    return build_model(config, vocab_size, vocab_size).to(device)


def corpus_lengths(num_pairs: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(num_pairs,) source and target lengths in tokens without `</s>`, spread as in Multi30k."""
    draw = np.random.Generator(np.random.PCG64(seed))
    log_tgt = draw.normal(LOG_LENGTH, LOG_LENGTH_SPREAD, num_pairs)
    log_src = log_tgt + draw.normal(LOG_RATIO, LOG_RATIO_SPREAD, num_pairs)
    src, tgt = (np.exp(log).round().clip(SHORTEST, LONGEST) for log in (log_src, log_tgt))
    return src.astype(np.int64), tgt.astype(np.int64)


def draw_tokens(length: int, vocab_size: int, draw: np.random.Generator) -> list[int]:
    """Token ids that are as unevenly frequent as words are, without special ones."""
    ranks = np.exp(draw.random(length) * np.log(vocab_size - 4)).astype(np.int64)  # Zipf's law
    return (ranks + 3).tolist()


def make_batches(
    folder: Path, src_lengths: np.ndarray, tgt_lengths: np.ndarray, vocab_size: int, tokens: int
) -> Batches:
    """The training batches of a corpus of random tokens with the given lengths."""
    draw = np.random.Generator(np.random.PCG64(2))

    def pairs() -> Iterator[Pair]:
        for line, lengths in enumerate(zip(src_lengths, tgt_lengths, strict=True), 1):
            sides = (" ".join(map(str, draw_tokens(int(n), vocab_size, draw))) for n in lengths)
            yield Pair(line, *sides)

    def encode(texts: object) -> list[list[int]]:
        assert isinstance(texts, list)
        return [[int(token) for token in text.split(" ")] for text in texts]

    store = build_store(
        folder,
        pairs(),
        encode={"src": encode, "tgt": encode},
        vocab_size={"src": vocab_size, "tgt": vocab_size},
        pair_filter=PairFilter(int(max(src_lengths.max(), tgt_lengths.max())), None),
        fingerprint="synthetic",
    )
    return Batches(store, tokens, seed=1)


def mean_lengths(src_lengths: np.ndarray, tgt_lengths: np.ndarray) -> Lengths:
    """What the cost of the pairs depends on; lengths are given without `</s>`."""
    src, tgt = src_lengths + 1, tgt_lengths + 1
    return Lengths(float((src * tgt).sum() / tgt.sum()), float(src.sum() / tgt.sum()))


def make_text(num_lines: int, seed: int = 3) -> list[str]:
    """Sentences of invented words, as long as those of Multi30k and as unevenly frequent."""
    random_state = random.Random(seed)
    syllables = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("", "n", "r", "s")]
    lexicon = list(
        dict.fromkeys(
            "".join(random_state.choices(syllables, k=random_state.choice((1, 2, 2, 3, 3, 4))))
            for _ in range(20_000)
        )
    )
    draw = np.random.Generator(np.random.PCG64(seed))
    _, tgt_lengths = corpus_lengths(num_lines, seed)
    lines = []
    for length in tgt_lengths:
        num_words = max(1, round(float(length) * WORDS_PER_TOKEN))
        ranks = np.exp(draw.random(num_words) * np.log(len(lexicon))).astype(np.int64) - 1
        lines.append(" ".join(lexicon[rank] for rank in ranks) + ".")
    return lines
