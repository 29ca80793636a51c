"""Whole models in training: with compiled loops the loss and its gradients are torch's in fp64."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch

from nmt.model import compiled, scan

SCORES = ["additive", "concat", "general", "dot", "none"]
LENGTHS = {  # of the source sentences, of the target sentences
    "ragged": ((2, 9, 1, 5), (3, 7, 1, 6)),
    "one step": ((2, 3), (1, 1)),
    "one source token": ((1, 1), (3, 2)),
    "one sentence": ((6,), (5,)),
}


@pytest.fixture(params=SCORES)
def score(request):
    return request.param


@pytest.fixture
def problem(random_model, variant_of, cell, order, score, kernels):
    """A random model of two layers in double precision."""
    return random_model(variant_of(cell, order, score, 2, 2)).train()


def batch_of(shape):
    """Arguments of `Seq2Seq.loss`."""
    lengths = [torch.tensor(side).unsqueeze(1) for side in LENGTHS[shape]]
    generator = torch.Generator().manual_seed(1)
    src_mask, tgt_mask = (torch.arange(int(side.max())) < side for side in lengths)

    def tokens(mask, size):
        return torch.randint(1, size, mask.shape, generator=generator) * mask

    return tokens(src_mask, 9), src_mask, tokens(tgt_mask, 11), tokens(tgt_mask, 11), tgt_mask, 0.1


def loss_and_gradients(model, batch, context=None):
    model.zero_grad()
    with context or nullcontext():
        total = model.loss(*batch).total
    total.backward()
    found = {"loss": total.detach()}
    found |= {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


def errors(found, expected):
    """The difference of each gradient, as a share of its length.

    Of one that is nearly 0 beside the others, as a share of the mean length.
    """
    assert found.keys() == expected.keys()
    lengths = {name: float(tensor.double().norm()) for name, tensor in expected.items()}
    least = 0.01 * sum(lengths.values()) / len(lengths)
    return {
        name: float((found[name].double() - exact.double()).norm()) / max(lengths[name], least)
        for name, exact in expected.items()
    }


def mean(shares):
    return sum(shares.values()) / len(shares)


@pytest.mark.parametrize("shape", LENGTHS)
def test_the_loss_and_all_gradients_are_those_of_torch_in_fp64(problem, shape):
    batch = batch_of(shape)
    expected = loss_and_gradients(problem, batch)
    found = loss_and_gradients(problem.float(), batch)
    assert max(errors(found, expected).values()) < 5e-5


def test_in_bf16_they_are_as_near_to_fp64_as_those_of_torch(problem):
    """A number of 8 significant bits is off by up to 0.4 %, and so are many of which it is made."""
    batch = batch_of("ragged")
    expected = loss_and_gradients(problem, batch)
    problem.float()
    found = loss_and_gradients(problem, batch, bf16())
    with compiled.torch_only():
        plain = loss_and_gradients(problem, batch, bf16())
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    with_kernels, with_torch = errors(found, expected), errors(plain, expected)
    assert max(with_kernels.values()) < 0.08
    assert mean(with_kernels) < min(0.015, 2 * mean(with_torch))


def test_threads_change_only_what_they_change_of_products(problem, threads):
    batch = batch_of("ragged")
    problem.float()
    threads(1)
    expected = loss_and_gradients(problem, batch)
    threads(2)
    assert max(errors(loss_and_gradients(problem, batch), expected).values()) < 1e-6


def test_a_parameter_that_is_no_number_makes_the_loss_none(problem):
    """Wherever it does so with torch's operations."""
    batch = batch_of("ragged")
    problem.float()
    for name, parameter in problem.named_parameters():
        number = parameter.view(-1)[-1].item()
        with torch.no_grad():
            parameter.view(-1)[-1] = torch.nan
        total = problem.loss(*batch).total
        with compiled.torch_only():
            plain = problem.loss(*batch).total
        with torch.no_grad():
            parameter.view(-1)[-1] = number
        assert total.isnan() == plain.isnan(), name


@pytest.mark.parametrize("score", ["additive"])
@pytest.mark.parametrize("order", ["bahdanau", "luong with feeding"])
@pytest.mark.parametrize("backward", [True, False])
def test_what_the_steps_keep_is_freed_with_the_graph(problem, backward, monkeypatch):
    """At once, not when the garbage collector happens to look for cycles."""
    tapes, make = [], scan._Tape

    def make_and_watch(*args):
        tape = make(*args)
        tapes.append(weakref.ref(tape))
        tapes.append(weakref.ref(tape.attention.weights))
        return tape

    monkeypatch.setattr(scan, "_Tape", make_and_watch)
    problem.float()
    gc.disable()
    try:
        total = problem.loss(*batch_of("ragged")).total
        if backward:
            total.backward()
        del total
        assert [tape() for tape in tapes] == [None, None]
    finally:
        gc.enable()
