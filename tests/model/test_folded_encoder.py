"""The encoder of a search gives what the encoder gives."""

import pytest
import torch
from torch import nn

from nmt.model import compiled
from nmt.model.encoder import Encoder
from nmt.model.folded_encoder import FoldedEncoder
from nmt.model.products import Precision

EMBED, HIDDEN, VOCAB = 4, 3, 9


@pytest.fixture(params=[1, 2, 3])
def num_layers(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["bidirectional", "one direction"])
def bidirectional(request):
    return request.param


@pytest.fixture
def encoder(cell, num_layers, bidirectional):
    """Random, in fp64."""
    torch.manual_seed(0)
    encoder = Encoder(
        nn.Embedding(VOCAB, EMBED),
        cell=cell,
        hidden_dim=HIDDEN,
        num_layers=num_layers,
        bidirectional=bidirectional,
        dropout=0.5,
    )
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.7)
    return encoder.double().eval()


def fold(encoder, compute=None):
    return FoldedEncoder(encoder, Precision.make(compute, encoder.embedding.weight.dtype))


def assert_same(found, expected, mask, **tolerance):
    assert torch.equal(found.mask, mask)
    assert found.states.is_contiguous()
    torch.testing.assert_close(found.states[mask], expected.states[mask], **tolerance)
    assert len(found.finals) == len(expected.finals)
    for one, other in zip(found.finals, expected.finals, strict=True):
        assert len(one) == len(other)
        for x, y in zip(one, other, strict=True):
            torch.testing.assert_close(x, y, **tolerance)


@torch.no_grad()
def test_states_and_finals_are_those_of_the_encoder(encoder, batch):
    expected = encoder(batch.src, batch.src_mask)
    found = fold(encoder)(batch.src, batch.src_mask)
    assert_same(found, expected, batch.src_mask, rtol=0, atol=1e-12)


@torch.no_grad()
def test_in_fp32_they_are_compiled(encoder, batch, cell, num_layers, bidirectional, runs_of):
    encoder = encoder.float()
    folded, found = fold(encoder), []
    runs = runs_of(lambda: found.append(folded(batch.src, batch.src_mask)))
    steps = batch.src.size(1) * num_layers * (1 + bidirectional)
    assert runs == {f"{cell}_step": steps}
    expected = encoder(batch.src, batch.src_mask)
    assert_same(found[0], expected, batch.src_mask, rtol=1e-5, atol=1e-5)
    with compiled.torch_only():
        plain = folded(batch.src, batch.src_mask)
    assert_same(plain, expected, batch.src_mask, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("compute", [torch.bfloat16, torch.int8])
def test_rounding_stays_small(encoder, batch, compute):
    encoder = encoder.float()
    expected = encoder(batch.src, batch.src_mask)
    found = fold(encoder, compute)(batch.src, batch.src_mask)
    assert found.states.dtype == torch.float32
    assert_same(found, expected, batch.src_mask, rtol=0.03, atol=0.05)
    assert not torch.equal(found.states, expected.states)


@torch.no_grad()
def test_padding_and_other_sentences_change_nothing(encoder, batch):
    folded = fold(encoder)
    together = folded(batch.src, batch.src_mask)
    for i, length in enumerate(batch.src_lengths):
        src, src_mask, _ = batch.sentence(i)
        alone = folded(src, src_mask)
        torch.testing.assert_close(alone.states[0], together.states[i, :length])
        for one, other in zip(alone.finals, together.finals, strict=True):
            for x, y in zip(one, other, strict=True):
                torch.testing.assert_close(x[0], y[i])


@torch.no_grad()
def test_tables_of_tokens_are_made_when_they_pay(encoder, batch, bidirectional):
    folded = fold(encoder)
    assert len(folded.tokens) == 1 + bidirectional
    before = folded(batch.src[:1, :1], batch.src_mask[:1, :1])
    for product in folded.tokens:
        product.settle(VOCAB - 2)
        assert product.table is None
        product.settle(1)
        assert len(product.table) == VOCAB
    after = folded(batch.src[:1, :1], batch.src_mask[:1, :1])
    torch.testing.assert_close(before.states, after.states)
    assert all(d.of_tokens is None for layer in folded.layers[1:] for d in layer)


@torch.no_grad()
def test_the_weights_are_those_at_the_time_of_folding(encoder, batch):
    folded, before = fold(encoder), encoder(batch.src, batch.src_mask)
    for layer in encoder.layers.parameters():
        layer *= 2
    assert_same(folded(batch.src, batch.src_mask), before, batch.src_mask, rtol=0, atol=1e-12)
