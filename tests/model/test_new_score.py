"""A score function of one's own: `project` and `forward` are enough, to train and to search."""

import pytest
import torch
from torch import nn

from nmt.model.attention import Attention, ScoreFunction
from nmt.model.folded import fold


class KernelScore(ScoreFunction):
    """A Gaussian kernel with a width that is learned: neither a product nor a hidden layer."""

    def __init__(self, query_dim, memory_dim):
        super().__init__()
        self.key_layer = nn.Linear(memory_dim, query_dim)
        self.width = nn.Parameter(torch.tensor(0.7))
        self.unused = nn.Parameter(torch.ones(2))

    def project(self, states):
        return torch.tanh(self.key_layer(states))

    def forward(self, queries, keys):
        return -self.width * torch.cdist(queries, keys) ** 2


@pytest.fixture
def model(random_model, variant_of, cell, order):
    model = random_model(variant_of(cell, order, decoder_layers=2))
    torch.manual_seed(2)
    model.decoder.attention = Attention(KernelScore(4, 6).double())
    return model


def unrolled(model, batch, way):
    state = model.encode(batch.src, batch.src_mask)
    embedded = model.decoder.embedding(batch.tgt.t())
    readouts, weights = getattr(model.decoder, way)(embedded, state)
    total = (readouts * torch.arange(8.0)).sum() + (weights**2).sum()
    parameters = list(model.parameters())
    return readouts, weights, torch.autograd.grad(total, parameters, allow_unused=True)


def test_training_with_it_is_the_loop_over_steps(model, batch):
    fast, slow = unrolled(model, batch, "unroll"), unrolled(model, batch, "loop")
    torch.testing.assert_close(fast[:2], slow[:2])
    names = [name for name, _ in model.named_parameters()]
    for name, one, other in zip(names, fast[2], slow[2], strict=True):
        if other is None:
            assert one is None or not one.any(), name
        else:
            torch.testing.assert_close(one, other, msg=name)
    assert "decoder.attention.score.width" in names


def test_training_with_it_by_compiled_loops_is_as_exact(model, order, batch, runs_of):
    """Each step's scores are handed to the loop that makes the weights."""
    expected, found = unrolled(model, batch, "unroll"), []
    runs = runs_of(lambda: found.extend(unrolled(model.float(), batch, "unroll")))
    steps = 0 if order == "luong" else batch.tgt.size(1)
    assert runs.get("attend", 0) == runs.get("attend_backward", 0) == steps
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    for one, other in zip(found[2], expected[2], strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


def test_a_frozen_parameter_gets_no_gradient(model, batch):
    model.decoder.attention.score.width.requires_grad_(False)
    readouts, _ = model.decoder(batch.tgt, model.encode(batch.src, batch.src_mask))
    readouts.sum().backward()
    assert model.decoder.attention.score.width.grad is None
    assert model.decoder.attention.score.key_layer.weight.grad.any()


@torch.no_grad()
def test_search_with_it_steps_like_the_model(model, batch):
    encoded = model.encoder(batch.src, batch.src_mask)
    state, folded = model.decoder.start(encoded), fold(model.decoder)
    other = folded.start(encoded)
    for token_ids in batch.tgt.t():
        logits, weights, state = model.decoder.step(token_ids, state)
        found, found_weights, other = folded.step(token_ids, other)
        torch.testing.assert_close(found.dense()[:, :11], logits)
        torch.testing.assert_close(found_weights, weights)


def test_it_trains_in_bf16(model, batch):
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(
            batch.src, batch.src_mask, batch.tgt, batch.tgt, batch.tgt_mask, label_smoothing=0.1
        )
    loss.total.backward()
    assert torch.isfinite(model.decoder.attention.score.width.grad)
