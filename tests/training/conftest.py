"""A corpus, a network and a trainer that are small enough to follow by hand."""

import pytest
import torch
from torch import nn

from nmt.data.batches import Batches
from nmt.data.corpus import Pair, PairFilter
from nmt.data.store import build_store
from nmt.model.attention import AdditiveScore, Attention
from nmt.model.decoder import BahdanauDecoder, DecoderSizes
from nmt.model.encoder import Encoder
from nmt.model.seq2seq import Seq2Seq
from nmt.training.schedule import Schedule
from nmt.training.trainer import Trainer

VOCAB_SIZE = 10  # four special tokens, then a to f
PAIRS = [("ab", "ba"), ("abc", "cba"), ("f", "f"), ("bad", "dab"), ("fed", "def"), ("de", "ed")]


def encode(sentences):
    return [[ord(letter) - ord("a") + 4 for letter in sentence] for sentence in sentences]


def make_store(folder, pairs=PAIRS):
    return build_store(
        folder,
        [Pair(line, src, tgt) for line, (src, tgt) in enumerate(pairs, 1)],
        encode={"src": encode, "tgt": encode},
        vocab_size={"src": VOCAB_SIZE, "tgt": VOCAB_SIZE},
        pair_filter=PairFilter(max_length=50),
        fingerprint="toy",
    )


def make_model(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    encoder = Encoder(
        nn.Embedding(VOCAB_SIZE, 6),
        cell="gru",
        hidden_dim=5,
        num_layers=1,
        bidirectional=True,
        dropout=dropout,
    )
    sizes = DecoderSizes(hidden_dim=7, num_layers=1, memory_dim=10, readout_dim=6)
    decoder = BahdanauDecoder(
        nn.Embedding(VOCAB_SIZE, 6),
        nn.Linear(6, VOCAB_SIZE),
        Attention(AdditiveScore(7, 10, 4)),
        cell="gru",
        sizes=sizes,
        num_encoder_layers=1,
        dropout=dropout,
    )
    return Seq2Seq(encoder, decoder)


def make_trainer(model, batches, *, optimizer=None, schedule=None, **options):
    settings = {
        "device": torch.device("cpu"),
        "precision": "fp32",
        "label_smoothing": 0.1,
        "accumulate": 1,
        "clip_norm": None,
        "validate_every": 1000,
        "patience": None,
        "plateau_patience": 1,
        "max_skipped": 3,
    }
    return Trainer(
        model,
        optimizer or torch.optim.SGD(model.parameters(), lr=1.0),
        schedule or Schedule("constant", 0.5, warmup_steps=0, max_steps=1000),
        batches,
        **(settings | options),
    )


class Recorder:
    """Hooks that write down what the trainer tells them, and answer from a list."""

    def __init__(self, scores=(), stop_at=None, on_step=None):
        self.scores, self.stop_at = list(scores), stop_at
        self.act = on_step
        self.reports, self.validated, self.saved = [], [], []
        self.step = 0

    def on_step(self, report):
        self.reports.append(report)
        self.step = report.step
        if self.act:
            self.act(report)

    def validate(self, step):
        self.validated.append(step)
        return self.scores.pop(0) if self.scores else 0.0

    def save(self, step, is_best):
        self.saved.append((step, is_best))

    def should_stop(self):
        return self.stop_at is not None and self.step >= self.stop_at


@pytest.fixture
def store_of(tmp_path):
    """Builds a token store of pairs of letters, six pairs if not said otherwise."""
    return lambda pairs=PAIRS: make_store(tmp_path / f"store-{len(pairs)}", pairs)


@pytest.fixture
def batches_of(store_of):
    """Builds batches of these pairs."""

    def build(batch_tokens=8, pairs=PAIRS):
        return Batches(store_of(pairs), batch_tokens, seed=1)

    return build


@pytest.fixture
def model_of():
    """Builds a network; the same seed gives the same weights."""
    return make_model


@pytest.fixture
def trainer_of():
    """Builds a trainer: plain gradient descent with learning rate 0.5, unless told otherwise."""
    return make_trainer


@pytest.fixture
def recorder():
    """The class of hooks that write everything down."""
    return Recorder


@pytest.fixture
def weights_of():
    """Copies the weights of a network."""
    return lambda model: {name: p.detach().clone() for name, p in model.named_parameters()}
