"""Validation measures the model as it is, and changes nothing of it or of the training run."""

import math
import random

import numpy as np
import pytest
import sacrebleu
import torch

from nmt.build.model import build_model
from nmt.config import Config
from nmt.data.batches import Batches
from nmt.data.corpus import Pair, PairFilter
from nmt.data.store import build_store
from nmt.text.tokenizer import train_tokenizer
from nmt.translator import SearchOptions, Translator
from nmt.validation import Validation, Validator

WORDS = ["ba", "de", "ki", "mo", "lu", "ra", "su", "ti"]
SOURCES = [" ".join(WORDS[i * k % 8] for k in range(1, i % 6 + 2)) for i in range(30)]
REFERENCES = [" ".join(reversed(source.split())) for source in SOURCES]
SOURCES[4] = REFERENCES[7] = ""  # two pairs that have no loss, but must be translated
CONFIG = {
    "run_dir": "none",
    "src_lang": "xx",
    "tgt_lang": "yy",
    "data": {"train": {"src": "none", "tgt": "none"}, "valid": {"src": "none", "tgt": "none"}},
    "model": {
        "embed_dim": 8,
        "dropout": 0.8,
        "encoder": {"hidden_dim": 6},
        "decoder": {"hidden_dim": 7},
        "attention": {"key_dim": 5},
    },
}

COMMON = {
    "length_penalty": 1.0,
    "min_length": 1,
    "max_length_ratio": 2.0,
    "batch_tokens": 4096,
}


@pytest.fixture
def validator(tmp_path):
    tokenizer = train_tokenizer(SOURCES, kind="word", vocab_size=12)
    torch.manual_seed(1)
    model = build_model(Config.model_validate(CONFIG), 12, 12)
    with torch.no_grad():
        model.decoder.output_layer.weight *= 4
    store = build_store(
        tmp_path / "valid",
        [
            Pair(i, src, tgt)
            for i, (src, tgt) in enumerate(zip(SOURCES, REFERENCES, strict=True), 1)
        ],
        encode={"src": tokenizer.encode, "tgt": tokenizer.encode},
        vocab_size={"src": 12, "tgt": 12},
        pair_filter=PairFilter(100),
        fingerprint="",
    )
    options = SearchOptions(**COMMON, beam_size=2, max_length=5)
    translator = Translator(
        model,
        tokenizer,
        tokenizer,
        max_source_length=100,
        options=SearchOptions(**COMMON, beam_size=1),
        device=torch.device("cpu"),
    )
    return Validator(translator, Batches(store, 24, seed=1), SOURCES, REFERENCES, options)


def test_the_loss_is_the_mean_over_target_tokens(validator):
    total, num_tokens = 0.0, 0
    for source, reference in zip(SOURCES, REFERENCES, strict=True):
        [forced] = validator.translator.score([(source, reference)])
        total -= sum(forced.token_log_probs)
        num_tokens += len(forced.token_log_probs)
    assert num_tokens == sum(len(tgt.split()) + 1 for tgt in REFERENCES) - 1 - (4 % 6 + 2)
    assert validator().loss == pytest.approx(total / num_tokens, rel=1e-5)


def test_bleu_and_chrf_are_those_of_all_translations(validator):
    validation = validator()
    hypotheses = [
        translation.text
        for translation in validator.translator.translate(SOURCES, validator.options)
    ]
    assert hypotheses[4] == ""
    assert validation.bleu.value == sacrebleu.corpus_bleu(hypotheses, [REFERENCES]).score > 0
    assert validation.chrf.value == sacrebleu.corpus_chrf(hypotheses, [REFERENCES]).score > 0


def test_perplexity_is_the_exponential_of_the_loss(validator):
    validation = validator()
    assert validation.perplexity == pytest.approx(math.exp(validation.loss))
    hopeless = Validation(1e6, validation.bleu, validation.chrf)
    assert math.isfinite(hopeless.perplexity)


def test_validating_uses_up_no_randomness_and_repeats_itself(validator):
    torch_state, numpy_state, state = (
        torch.get_rng_state(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
    )
    first = validator()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state
    assert random.getstate() == state
    assert validator() == first


def test_validating_computes_no_gradients(validator):
    with_gradients = []
    validator.translator.model.decoder.register_forward_hook(
        lambda *_: with_gradients.append(torch.is_grad_enabled())
    )
    validator()
    assert set(with_gradients) == {False}
    assert all(parameter.grad is None for parameter in validator.translator.model.parameters())
    assert not validator.translator.model.training


def test_a_request_to_stop_ends_a_validation_without_a_result(validator):
    polls = []

    def never():
        polls.append(None)
        return False

    assert validator(never) is not None
    num_batches = len(validator.batches.plan(0))
    assert num_batches > 3
    assert len(polls) == num_batches + len(SOURCES)
    for last in range(len(polls)):
        asked = iter([False] * last + [True])
        assert validator(lambda asked=asked: next(asked)) is None
        assert next(asked, None) is None


def test_nothing_is_translated_after_a_request_to_stop(validator):
    def translate(sentences, options=None):
        raise AssertionError("translated")

    validator.translator._translate_window = translate
    assert validator(lambda: True) is None
