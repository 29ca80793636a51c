"""Each score function learns to copy and to reverse strings of digits it has never seen.

The strings are random and new in every batch, so that there is nothing to learn by heart.
"""

import functools

import numpy as np
import pytest
import torch

from nmt.build.model import build_model
from nmt.build.training import build_trainer
from nmt.config import Config
from nmt.data.batches import make_batch
from nmt.search.beam import beam_search
from nmt.text.tokenizer import BOS_ID, EOS_ID

pytestmark = pytest.mark.slow

VOCAB_SIZE = 14  # four special tokens, then the digits
FEEDING = {"order": "luong", "input_feeding": True}
MODELS = {
    "additive": {"score": "additive"},
    "concat": {"score": "concat"},
    "general": {"score": "general"},
    "dot": {"score": "dot", "encoder_dim": 32},  # 2 x 32 = 64: query and states have one size
    "scaled dot": {"score": "scaled_dot"},  # here the keys are projected
    "general, luong fed": {"score": "general", **FEEDING},
    "dot, luong fed": {"score": "dot", "encoder_dim": 32, **FEEDING},
}


def digits(random, count, lengths, task):
    """A batch of random strings and their copies or mirror images."""
    src = [random.integers(4, VOCAB_SIZE, random.integers(*lengths)) for _ in range(count)]
    return make_batch(src, [string[::-1] if task == "reverse" else string for string in src])


class Strings:
    """Batches without end, in the place of a corpus."""

    def __init__(self, lengths, task):
        self.lengths, self.task = lengths, task

    def epoch(self, epoch, start=0):
        random = np.random.default_rng(epoch)
        while True:
            yield digits(random, 64, self.lengths, self.task)


class Silence:
    """Hooks of a training that nobody watches."""

    def on_step(self, report):
        pass

    def validate(self, step):
        return 0.0

    def save(self, step, is_best):
        pass

    def should_stop(self):
        return False


@functools.cache
def learn(task, *, score, encoder_dim=64, lengths=(3, 9), **decoder):
    """A network after 300 updates.

    Args:
        lengths: shortest string, and one more than the longest.
    """
    pair = {"src": "-", "tgt": "-"}
    config = Config.model_validate(
        {
            "run_dir": "none",
            "src_lang": "digits",
            "tgt_lang": "digits",
            "data": {"train": pair, "valid": pair},
            "model": {
                "embed_dim": 32,
                "encoder": {"hidden_dim": encoder_dim},
                "decoder": {"hidden_dim": 64, **decoder},
                "attention": {"score": score, "key_dim": 64},
                "dropout": 0.0,
            },
            "training": {
                "max_steps": 300,
                "learning_rate": 4e-3,
                "schedule": "linear",
                "warmup_steps": 50,
                "label_smoothing": 0.0,
            },
        }
    )
    torch.manual_seed(1)
    model = build_model(config, VOCAB_SIZE, VOCAB_SIZE)
    trainer = build_trainer(config, model, Strings(lengths, task), torch.device("cpu"))
    trainer.train(300, Silence())
    return model.eval()


@torch.no_grad()
def exact_matches(model, batch):
    """The share of strings that greedy search writes without a mistake."""

    def step(token_ids, state):
        logits, _, state = model.decoder.step(token_ids, state)
        return logits.log_softmax(-1), state

    found = beam_search(
        step,
        model.encode(batch.src, batch.src_mask),
        beam_size=1,
        max_lengths=torch.full((len(batch.src),), 30),
        bos_id=BOS_ID,
        eos_id=EOS_ID,
    )
    right = [row[mask].tolist() for row, mask in zip(batch.tgt_output, batch.tgt_mask, strict=True)]
    hits = [hypotheses[0].token_ids == ids for hypotheses, ids in zip(found, right, strict=True)]
    return sum(hits) / len(hits)


def unseen(task, lengths=(3, 9)):
    """Strings that were not trained on."""
    return digits(np.random.default_rng(1_000_000), 200, lengths, task)


@pytest.mark.parametrize("task", ["copy", "reverse"])
@pytest.mark.parametrize("model", MODELS)
def test_it_learns_to_copy_and_to_reverse(model, task):
    assert exact_matches(learn(task, **MODELS[model]), unseen(task)) > 0.95


@pytest.mark.parametrize("task", ["copy", "reverse"])
def test_attention_stands_on_the_digit_that_is_written(task):
    model, batch = learn(task, **MODELS["additive"]), unseen(task)
    with torch.no_grad():
        _, weights = model(batch.src, batch.src_mask, batch.tgt_input)
    lengths = batch.src_mask.sum(1, keepdim=True) - 1  # digits of each string
    positions = torch.arange(weights.size(1)).expand(weights.shape[:2])
    wanted = positions if task == "copy" else lengths - 1 - positions
    digit = positions < lengths  # not the end of the sentence
    share = (weights.argmax(-1) == wanted)[digit].float().mean()
    assert share > 0.9


def test_one_fixed_vector_is_too_narrow_for_long_strings():
    """With the same budget: what attention was invented for (Bahdanau et al. 2015, section 1)."""
    lengths = (12, 17)
    batch = unseen("reverse", lengths)
    attending = exact_matches(learn("reverse", score="additive", lengths=lengths), batch)
    fixed = exact_matches(learn("reverse", score="none", lengths=lengths), batch)
    assert attending > 0.95
    assert fixed < 0.5
