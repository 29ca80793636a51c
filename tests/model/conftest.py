"""Tiny models of every kind, in double precision, and a ragged batch for them.

All sizes differ, so that a matrix in the wrong place cannot fit by chance; all parameters are
random, so that no bias is zero.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import nn

from nmt.model import compiled
from nmt.model.attention import (
    AdditiveScore,
    Attention,
    ConcatScore,
    DotScore,
    FixedContext,
    GeneralScore,
)
from nmt.model.decoder import BahdanauDecoder, DecoderSizes, LuongDecoder
from nmt.model.encoder import Encoder
from nmt.model.seq2seq import Seq2Seq

SRC_VOCAB, TGT_VOCAB, EMBED, HIDDEN, KEY, READOUT = 9, 11, 5, 4, 7, 8
SCORES = ["additive", "concat", "general", "dot", "scaled dot", "none"]
ORDERS = ["bahdanau", "luong", "luong with feeding"]
DEPTHS = [(1, 1), (2, 2), (1, 2), (2, 1)]


@dataclass(frozen=True)
class Variant:
    """What tells one model from another."""

    cell: str = "gru"
    order: str = "bahdanau"
    score: str = "additive"
    encoder_layers: int = 1
    decoder_layers: int = 1


VARIANTS = [
    Variant(cell, order, score, *depths)
    for cell, order, score, depths in product(["gru", "lstm"], ORDERS, SCORES, DEPTHS)
]


def name_of(variant):
    depths = f"{variant.encoder_layers}+{variant.decoder_layers} layers"
    return f"{variant.cell}, {variant.order}, {variant.score}, {depths}"


@dataclass(frozen=True)
class Batch:
    """Three sentence pairs of different lengths, longest not first."""

    src: torch.Tensor
    src_lengths: tuple[int, ...]
    tgt: torch.Tensor
    tgt_lengths: tuple[int, ...]

    @property
    def src_mask(self):
        return torch.arange(self.src.size(1)) < torch.tensor(self.src_lengths).unsqueeze(1)

    @property
    def tgt_mask(self):
        return torch.arange(self.tgt.size(1)) < torch.tensor(self.tgt_lengths).unsqueeze(1)

    def sentence(self, i):
        """One pair alone, without padding: src, src_mask, tgt."""
        src = self.src[i : i + 1, : self.src_lengths[i]]
        return src, torch.ones_like(src, dtype=torch.bool), self.tgt[i : i + 1]


def build_attention(score, query_dim, memory_dim):
    match score:
        case "additive":
            return Attention(AdditiveScore(query_dim, memory_dim, KEY))
        case "concat":
            return Attention(ConcatScore(query_dim, memory_dim, KEY))
        case "general":
            return Attention(GeneralScore(query_dim, memory_dim))
        case "dot":
            return Attention(DotScore(query_dim, memory_dim))
        case "scaled dot":
            return Attention(DotScore(query_dim, memory_dim, scaled=True))
        case "none":
            return FixedContext()


def randomize(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)


def build_fresh_model(
    variant, *, dropout=0.0, tied=False, embed_dim=EMBED, vocab_size=TGT_VOCAB, bidirectional=True
):
    tgt_embedding = nn.Embedding(vocab_size, embed_dim)
    encoder = Encoder(
        tgt_embedding if tied else nn.Embedding(SRC_VOCAB, embed_dim),
        cell=variant.cell,
        hidden_dim=3,
        num_layers=variant.encoder_layers,
        bidirectional=bidirectional,
        dropout=dropout,
    )
    readout_dim = embed_dim if tied else READOUT
    output_layer = nn.Linear(readout_dim, vocab_size)
    if tied:
        output_layer.weight = tgt_embedding.weight
    parts = (
        tgt_embedding,
        output_layer,
        build_attention(variant.score, HIDDEN, encoder.memory_dim),
    )
    options = {
        "cell": variant.cell,
        "sizes": DecoderSizes(HIDDEN, variant.decoder_layers, encoder.memory_dim, readout_dim),
        "num_encoder_layers": variant.encoder_layers,
        "dropout": dropout,
    }
    if variant.order == "bahdanau":
        decoder = BahdanauDecoder(*parts, **options)
    else:
        feeding = variant.order == "luong with feeding"
        decoder = LuongDecoder(*parts, **options, input_feeding=feeding)
    return Seq2Seq(encoder, decoder)


def build_random_model(variant, **options):
    model = build_fresh_model(variant, **options).double()
    randomize(model)
    return model.eval()


@pytest.fixture(params=VARIANTS, ids=name_of)
def variant(request):
    """Each kind of model in turn: cell, order, score function, depths."""
    return request.param


@pytest.fixture(
    params=[v for v in VARIANTS if (v.score, v.decoder_layers) == ("additive", 2)], ids=name_of
)
def additive_variant(request):
    """Where the score function makes no difference: each cell, order and encoder depth in turn."""
    return request.param


@pytest.fixture(params=ORDERS)
def order(request):
    """Each decoder order in turn."""
    return request.param


@pytest.fixture(params=["gru", "lstm"])
def cell(request):
    """Each recurrent cell in turn."""
    return request.param


@pytest.fixture(params=["compiled", "torch"])
def way(request, kernels):
    """Within it one computes by compiled loops where they suit, or by torch's operations."""
    return compiled.torch_only if request.param == "torch" else nullcontext


@pytest.fixture
def variant_of():
    """Names a certain kind of model."""
    return Variant


@pytest.fixture
def fresh_model():
    """Builds a model as `Seq2Seq` initialises it."""
    return build_fresh_model


@pytest.fixture
def random_model():
    """Builds a model of a variant with random parameters, in double precision."""
    return build_random_model


@pytest.fixture
def model(variant):
    """A model of each variant."""
    return build_random_model(variant)


@pytest.fixture
def batch():
    return Batch(
        src=torch.tensor([[4, 5, 0, 0], [6, 4, 7, 2], [8, 0, 0, 0]]),
        src_lengths=(2, 4, 1),
        tgt=torch.tensor([[1, 9, 4], [1, 10, 0], [1, 3, 5]]),
        tgt_lengths=(3, 2, 3),
    )
