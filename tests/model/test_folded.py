"""The decoder rewritten for search is the decoder."""

import pytest
import torch

from nmt.model import folded_attention
from nmt.model.folded import BLOCK, fold

BEAM = torch.tensor([0, 0, 1, 1, 2, 2])  # two rows for each of three sentences
REORDERED = torch.tensor([1, 0, 2, 2, 5, 4])


def walk(decoder, model, batch):
    """Logits and weights of steps with rows repeated, reordered and dropped in between."""
    between = [
        lambda state: state.select(BEAM),
        lambda state: state.select(REORDERED),
        lambda state: state.keep(torch.tensor([0, 2])),
    ]
    found = []
    with torch.no_grad():
        state = decoder.start(model.encoder(batch.src, batch.src_mask))
        for t, num_rows in enumerate([3, 6, 6, 4]):
            if t:
                state = between[t - 1](state)
            logits, weights, state = decoder.step(torch.arange(num_rows) + t, state)
            found.append((dense(logits), weights))
    return found


def dense(logits):
    """Those of a model, or of its rewritten form."""
    return logits if isinstance(logits, torch.Tensor) else logits.dense()


def assert_same_steps(found, expected, **tolerance):
    for (logits, weights), (true_logits, true_weights) in zip(found, expected, strict=True):
        vocab_size = true_logits.size(1)
        torch.testing.assert_close(logits[:, :vocab_size], true_logits, **tolerance)
        torch.testing.assert_close(weights, true_weights, **tolerance)
        assert logits.size(1) % BLOCK == 0
        assert logits[:, vocab_size:].isneginf().all()


def test_a_folded_step_is_the_step(model, batch):
    expected = walk(model.decoder, model, batch)
    assert_same_steps(walk(fold(model.decoder), model, batch), expected, rtol=0, atol=1e-12)


def test_ties_change_nothing(random_model, variant_of, order, batch):
    model = random_model(variant_of(order=order), tied=True)
    expected = walk(model.decoder, model, batch)
    assert_same_steps(walk(fold(model.decoder), model, batch), expected, rtol=0, atol=1e-12)


def test_a_step_is_the_same_with_and_without_a_table_of_tokens(
    random_model, additive_variant, batch, monkeypatch
):
    model = random_model(additive_variant)
    folded = fold(model.decoder)
    expected = walk(model.decoder, model, batch)
    folded.tokens.settle(0)
    assert_same_steps(walk(folded, model, batch), expected, rtol=0, atol=1e-12)
    assert folded.tokens.table is None
    folded.tokens.settle(2000)
    assert_same_steps(walk(folded, model, batch), expected, rtol=0, atol=1e-12)
    assert folded.tokens.table is not None


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.int8])
def test_rounding_stays_small(random_model, variant_of, cell, order, precision, batch):
    model = random_model(variant_of(cell=cell, order=order, decoder_layers=2)).float()
    expected = walk(model.decoder, model, batch)
    found = walk(fold(model.decoder, precision), model, batch)
    assert_same_steps(found, expected, rtol=0.02, atol=0.15)  # bf16 has 8 bits, int8 has 7
    assert any(not torch.equal(a[0][:, :11], b[0]) for a, b in zip(found, expected, strict=True))
    assert all(x.dtype == torch.float32 for step in found for x in step)


@pytest.mark.parametrize("precision", [None, torch.int8])
def test_a_sentence_alone_is_the_sentence_in_a_batch(
    random_model, variant_of, order, precision, batch
):
    model = random_model(variant_of(order=order))
    if precision:
        model.float()
    decoder = fold(model.decoder, precision)
    with torch.no_grad():
        state = decoder.start(model.encoder(batch.src, batch.src_mask))
        together, _, _ = decoder.step(torch.tensor([1, 1, 1]), state)
        for i, logits in enumerate(together.dense()):
            src, src_mask, _ = batch.sentence(i)
            alone, _, _ = decoder.step(
                torch.tensor([1]), decoder.start(model.encoder(src, src_mask))
            )
            torch.testing.assert_close(
                alone.dense()[0], logits, rtol=0, atol=2e-2 if precision else 1e-12
            )


def test_the_weights_are_those_at_the_time_of_folding(random_model, variant_of, batch, order):
    model = random_model(variant_of(order=order, decoder_layers=2))
    folded = fold(model.decoder)
    before = walk(folded, model, batch)
    with torch.no_grad():
        for parameter in model.decoder.rnn.parameters():
            parameter *= 2
    assert_same_steps(walk(folded, model, batch), [(x[:, :11], w) for x, w in before])
    expected = walk(model.decoder, model, batch)
    assert_same_steps(walk(fold(model.decoder), model, batch), expected, rtol=0, atol=1e-12)


def test_an_order_without_a_folded_form_is_refused(random_model, variant_of):
    decoder = random_model(variant_of()).decoder
    decoder.__class__ = type("NewDecoder", (type(decoder).__base__,), {})
    with pytest.raises(TypeError, match="NewDecoder has no folded form"):
        fold(decoder)


@pytest.mark.parametrize("score", ["additive", "concat"])
def test_scores_of_long_sources_are_made_a_few_sentences_at_a_time(
    random_model, variant_of, batch, score, monkeypatch
):
    model = random_model(variant_of(score=score))
    expected = walk(model.decoder, model, batch)
    for chunk in (1, 4 * 7, 2 * 2 * 4 * 7):  # S is 4 and A is 7
        monkeypatch.setattr(folded_attention, "SCORE_CHUNK", chunk)
        found = walk(fold(model.decoder), model, batch)
        assert_same_steps(found, expected, rtol=0, atol=1e-12)
