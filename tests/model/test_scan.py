"""The hand-written derivatives against finite differences, and sums over time in low precision."""

from itertools import product

import pytest
import torch

from nmt.model.scan import Operands, scan
from nmt.model.score_tape import additive_scores

KINDS = list(product(["gru", "lstm"], ["bahdanau", "luong"], ["additive", "dot"]))
STEPS, BATCH, POSITIONS, HIDDEN, READOUT, KEY = 3, 2, 3, 2, 3, 4
LISTS = (
    "hidden",
    "cells",
    "projections",
    "projection_biases",
    "upper",
    "upper_biases",
    "score_parameters",
)


@pytest.fixture
def operands_of():
    """Random operands of two layers, in double precision; lists as long as the cell wants them."""

    def build(cell, order, score, num_steps=STEPS):
        torch.manual_seed(0)
        gates = HIDDEN * (3 if cell == "gru" else 4)
        key = KEY if score == "additive" else HIDDEN
        stacked = gates + (key if score == "additive" else 0)
        stacked += READOUT if order == "luong" else 0

        def random(*sizes):
            return torch.randn(*sizes, dtype=torch.float64)

        return Operands(
            inputs=random(num_steps, BATCH, gates),
            hidden=[random(BATCH, HIDDEN) for _ in range(2)],
            cells=[random(BATCH, HIDDEN) for _ in range(2 if cell == "lstm" else 0)],
            projections=[random(gates, HIDDEN), random(stacked, HIDDEN)],
            projection_biases=[random(gates), random(stacked)[-gates:]],
            upper=[random(gates, HIDDEN)],
            upper_biases=[random(gates)],
            dropout=[2.0 * torch.randint(2, (num_steps, BATCH, HIDDEN)).double()],
            values=random(BATCH, POSITIONS, gates if order == "bahdanau" else READOUT),
            keys=random(BATCH, POSITIONS, key),
            energy=random(key) if score == "additive" else None,
            mask=torch.arange(POSITIONS) < torch.tensor([[3], [2]]),
            feeding=None if order == "bahdanau" else random(gates, READOUT),
            score_parameters=[],
        )

    return build


def trainable(operands):
    """The tensors that have gradients, in order, and what puts them back into operands."""
    names = [name for name in Operands._fields if name not in ("mask", "dropout")]
    names = [name for name in names if getattr(operands, name) is not None]
    flat = []
    for name in names:
        flat += getattr(operands, name) if name in LISTS else [getattr(operands, name)]

    def put_back(*tensors):
        rest, changed = list(tensors), {}
        for name in names:
            count = len(getattr(operands, name)) if name in LISTS else 1
            taken, rest = rest[:count], rest[count:]
            changed[name] = taken if name in LISTS else taken[0]
        return operands._replace(**changed)

    return flat, put_back


class Repeated(torch.autograd.Function):
    """A scan that is made anew for each of the many backward passes of a gradient check."""

    @staticmethod
    def forward(ctx, function, *tensors):
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    def backward(ctx, *gradients):
        tensors = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            outputs = ctx.function(*tensors)
        return None, *torch.autograd.grad(outputs, tensors, gradients)


@pytest.mark.parametrize(("cell", "order", "score"), KINDS)
def test_every_derivative_of_a_scan_is_a_finite_difference(operands_of, cell, order, score):
    flat, put_back = trainable(operands_of(cell, order, score))
    assert torch.autograd.gradcheck(
        lambda *tensors: Repeated.apply(lambda *x: scan(cell, put_back(*x)), *tensors),
        [tensor.requires_grad_() for tensor in flat],
    )


def test_every_derivative_of_many_additive_scores_is_a_finite_difference():
    torch.manual_seed(0)
    sizes = (3, 2, KEY), (2, 5, KEY), (KEY,)
    tensors = [torch.randn(size, dtype=torch.float64).requires_grad_() for size in sizes]
    assert torch.autograd.gradcheck(additive_scores, tensors)


def test_many_additive_scores_are_those_of_each_query():
    torch.manual_seed(0)
    queries, keys, energy = torch.randn(3, 2, KEY), torch.randn(2, 5, KEY), torch.randn(KEY)
    scores = additive_scores(queries, keys, energy)
    assert scores.shape == (3, 2, 5)
    for t, b, s in product(range(3), range(2), range(5)):
        expected = energy @ torch.sigmoid(queries[t, b] + keys[b, s])
        torch.testing.assert_close(scores[t, b, s], expected)


@pytest.mark.parametrize(("cell", "order", "score"), KINDS)
def test_weights_of_each_step_sum_to_1_and_are_0_at_padding(operands_of, cell, order, score):
    _, weights = scan(cell, operands_of(cell, order, score))
    assert weights.shape == (STEPS, BATCH, POSITIONS)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert not weights[:, 1, 2].any()


@pytest.mark.parametrize(("cell", "order", "score"), KINDS)
def test_padding_has_no_gradient(operands_of, cell, order, score):
    operands = operands_of(cell, order, score)
    for tensor in (operands.keys, operands.values):
        tensor.requires_grad_()
    outputs, weights = scan(cell, operands)
    (outputs.square().sum() + weights.square().sum()).backward()
    for tensor in (operands.keys, operands.values):
        assert not tensor.grad[1, 2].any()
        assert tensor.grad[1, 1].all()
        assert tensor.grad[0].all()


# ------------------------------------------------------------------------- sums over time


def relative(actual, expected):
    """Length of the difference, as a share of the length."""
    return float((actual.double() - expected).norm() / expected.norm())


def long_and_steady(operands):
    """The same word at all steps, small enough for the states to settle: equal gradients, whose
    sum a number of 8 significant bits would stop following after 256 of them."""
    flat, put_back = trainable(operands)
    with torch.no_grad():
        for tensor in flat:
            tensor.mul_(0.3)
        operands.inputs[:] = operands.inputs[0]
        operands.keys.abs_()
    return flat, put_back


@pytest.mark.parametrize(("cell", "order", "score"), KINDS)
def test_sums_over_time_do_not_stop_growing_in_bf16(operands_of, cell, order, score, way):
    operands = operands_of(cell, order, score, num_steps=600)._replace(dropout=[])
    flat, put_back = long_and_steady(operands)
    rounded = [tensor.bfloat16() for tensor in flat]
    torch.manual_seed(1)
    directions = torch.randn(BATCH, HIDDEN if order == "bahdanau" else READOUT).double()
    towards = torch.randn(BATCH, POSITIONS).double()

    def gradients(tensors):
        tensors = [tensor.detach().requires_grad_() for tensor in tensors]
        outputs, weights = scan(cell, put_back(*tensors))
        assert outputs.dtype == tensors[0].dtype
        objective = (outputs * directions).sum() + (weights * towards).sum()
        return torch.autograd.grad(objective, tensors)

    expected = gradients([tensor.double() for tensor in rounded])
    with way():
        actual = gradients(rounded)
    for exact, low in zip(expected, actual, strict=True):
        assert low.dtype == torch.bfloat16
        assert relative(low, exact) < 0.02


def test_sums_of_many_additive_scores_do_not_stop_growing_in_bf16(way):
    queries, keys, energy = torch.zeros(1000, 1, 2), torch.zeros(1, 3, 2), torch.ones(2)
    tensors = [x.bfloat16().requires_grad_() for x in (queries, keys, energy)]
    with way():
        scores = additive_scores(*tensors)
        assert scores.dtype == torch.float32
        d_queries, d_keys, d_energy = torch.autograd.grad(scores.sum(), tensors)
    torch.testing.assert_close(d_queries.float(), torch.full((1000, 1, 2), 0.75))  # 3 of 1/4
    torch.testing.assert_close(d_keys.float(), torch.full((1, 3, 2), 250.0))
    torch.testing.assert_close(d_energy.float(), torch.full((2,), 1504.0))  # 1500, rounded
