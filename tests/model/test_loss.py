"""The loss against its definition, token by token."""

import math

import pytest
import torch
from torch import nn

from nmt.model.loss import cross_entropy

B, T, V = 2, 3, 5
MASK = torch.tensor([[True, True, True], [True, False, False]])
RIGHT = torch.tensor([[4, 0, 2], [3, 1, 0]])


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return (3 * torch.randn(B, T, V)).requires_grad_()


def loops(logits, smoothing):
    """Cross entropy with (1 - e) on the right token plus e / V on every token."""
    total = 0.0
    for sentence, right, mask in zip(logits.tolist(), RIGHT.tolist(), MASK.tolist(), strict=True):
        for scores, token, real in zip(sentence, right, mask, strict=True):
            if not real:
                continue
            normaliser = math.log(sum(math.exp(x) for x in scores))
            for v, x in enumerate(scores):
                target = smoothing / V + (1 - smoothing if v == token else 0)
                total -= target * (x - normaliser)
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_loss_is_its_definition(logits, smoothing):
    loss = cross_entropy(logits, RIGHT, MASK, smoothing)
    assert float(loss.total.detach()) == pytest.approx(loops(logits, smoothing), rel=1e-5)
    assert float(loss.negative_log_likelihood) == pytest.approx(loops(logits, 0.0), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_and_its_gradient_are_those_of_torch(logits, smoothing):
    total = cross_entropy(logits, RIGHT, MASK, smoothing).total
    expected = nn.functional.cross_entropy(
        logits.flatten(0, 1),
        RIGHT.masked_fill(~MASK, -100).flatten(),
        label_smoothing=smoothing,
        reduction="sum",
    )
    torch.testing.assert_close(total, expected)
    (ours,), (theirs,) = (torch.autograd.grad(x, [logits]) for x in (total, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_padding_does_not_count_and_gets_no_gradient(logits, smoothing):
    loss = cross_entropy(logits, RIGHT, MASK, smoothing)
    loss.total.backward()
    assert not logits.grad[~MASK].any()
    assert (logits.grad[MASK] != 0).all()
    garbage = torch.where(MASK.unsqueeze(-1), logits, 100 * torch.randn(B, T, V))
    other = cross_entropy(garbage, RIGHT.masked_fill(~MASK, 4), MASK, smoothing)
    torch.testing.assert_close(other.total, loss.total)
    torch.testing.assert_close(other.negative_log_likelihood, loss.negative_log_likelihood)


def test_the_likelihood_does_not_depend_on_smoothing_and_has_no_gradient(logits):
    plain, smoothed = (cross_entropy(logits, RIGHT, MASK, e) for e in (0.0, 0.3))
    assert torch.equal(smoothed.negative_log_likelihood, plain.negative_log_likelihood)
    assert torch.equal(plain.total.detach(), plain.negative_log_likelihood)
    assert not torch.equal(smoothed.total, plain.total)
    for loss in (plain, smoothed):
        assert loss.total.requires_grad
        assert not loss.negative_log_likelihood.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_half_precision_logits_is_summed_in_single_precision(logits, dtype):
    half = logits.detach().to(dtype)
    loss = cross_entropy(half, RIGHT, MASK, 0.1)
    assert loss.total.dtype == loss.negative_log_likelihood.dtype == torch.float32
    exact = cross_entropy(half.float(), RIGHT, MASK, 0.1)
    assert torch.equal(loss.total, exact.total)
