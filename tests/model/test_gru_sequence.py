"""The GRU of training on a CPU against torch's own, and against finite differences."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nmt.model import rnn
from nmt.model.cell_tape import state_order, tanh_
from nmt.model.gru_sequence import gru_sequence

STEPS, BATCH, INPUT, HIDDEN = 4, 3, 2, 5


def operands(num_steps=STEPS):
    torch.manual_seed(0)
    sizes = (num_steps, BATCH, 3 * HIDDEN), (BATCH, HIDDEN), (3 * HIDDEN, HIDDEN), (3 * HIDDEN,)
    return [torch.randn(size, dtype=torch.float64).requires_grad_() for size in sizes]


def test_every_derivative_is_a_finite_difference():
    assert torch.autograd.gradcheck(gru_sequence, operands())


def test_states_and_gradients_are_those_of_torch():
    inputs, start, matrix, bias = operands()
    identity, zeros = torch.eye(3 * HIDDEN).double(), torch.zeros(3 * HIDDEN).double()
    expected, _ = torch.gru(
        inputs,
        start.unsqueeze(0),
        [identity, matrix, zeros, bias],
        has_biases=True,
        num_layers=1,
        dropout=0.0,
        train=True,
        bidirectional=False,
        batch_first=False,
    )
    states = gru_sequence(inputs, start, matrix, bias)
    torch.testing.assert_close(states, expected, rtol=1e-12, atol=1e-12)
    towards = torch.randn_like(states)
    leaves = [inputs, start, matrix, bias]
    ours, theirs = (torch.autograd.grad((x * towards).sum(), leaves) for x in (states, expected))
    for actual, gradient in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-11, atol=1e-11)


def test_states_before_the_first_are_only_the_start():
    inputs, start, matrix, bias = operands(1)
    states = gru_sequence(inputs, start, matrix, bias)
    expected = torch.gru_cell(
        inputs[0], start, torch.eye(3 * HIDDEN).double(), matrix, torch.zeros_like(bias), bias
    )
    torch.testing.assert_close(states[0], expected)


def test_states_changed_between_forward_and_backward_are_noticed():
    states = gru_sequence(*operands())
    total = states.sum()
    with torch.no_grad():
        states.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_the_order_of_the_state_is_n_r_z():
    rows = torch.arange(6)
    assert state_order(rows, 2).tolist() == [4, 5, 0, 1, 2, 3]
    assert state_order(torch.arange(8), 2).tolist() == list(range(8))  # an LSTM's stays


def test_the_hyperbolic_tangent_is_one():
    x = torch.tensor([-800.0, -20.0, -1.0, 0.0, 1e-3, 0.5, 3.0, 800.0], dtype=torch.float64)
    torch.testing.assert_close(tanh_(x.clone()), torch.tanh(x), rtol=1e-12, atol=1e-15)


def test_sums_over_time_do_not_stop_growing_in_bf16(way):
    """The same input at all steps: equal gradients, which 8 bits would stop adding up at 256."""
    inputs, start, matrix, bias = (x.detach() * 0.3 for x in operands(800))
    inputs = inputs[:1].expand(800, -1, -1)
    rounded = [x.bfloat16() for x in (inputs, start, matrix, bias)]
    towards = torch.randn(BATCH, HIDDEN)

    def gradients(tensors):
        tensors = [x.detach().requires_grad_() for x in tensors]
        states = gru_sequence(*tensors)
        assert states.dtype == tensors[0].dtype
        return torch.autograd.grad((states * towards.to(states.dtype)).sum(), tensors)

    expected = gradients([x.double() for x in rounded])
    with way():
        actual = gradients(rounded)
    for exact, low in zip(expected, actual, strict=True):
        assert low.dtype == torch.bfloat16
        assert (low.double() - exact).norm() < 0.02 * exact.norm()


class MatrixGradients(TorchDispatchMode):
    """Counts the products that are as large as the recurrent matrix."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.name() in ("aten::mm", "aten::addmm") and result.shape == (3 * HIDDEN, HIDDEN):
            self.count += 1
        return result


def test_its_weight_gradient_is_one_product_and_that_of_torch_one_a_step():
    layer = rnn.recurrent_layer("gru", INPUT, HIDDEN)
    inputs, start = torch.randn(STEPS, BATCH, INPUT), torch.randn(BATCH, HIDDEN)
    for run, count in (
        (lambda: rnn.run(layer, inputs, (start,)), 1),
        (lambda: layer(inputs, start.unsqueeze(0))[0], STEPS),
    ):
        with MatrixGradients() as products:
            run().sum().backward()
        assert products.count == count


def test_training_takes_it_and_translating_takes_torchs(monkeypatch):
    layer = rnn.recurrent_layer("gru", INPUT, HIDDEN)
    inputs, start = torch.randn(STEPS, BATCH, INPUT), torch.randn(BATCH, HIDDEN)
    calls = []
    monkeypatch.setattr(
        rnn, "gru_sequence", lambda *args: calls.append(args) or gru_sequence(*args)
    )
    trained = rnn.run(layer, inputs, (start,))
    assert len(calls) == 1
    with torch.no_grad():
        translated = rnn.run(layer, inputs, (start,))
    assert len(calls) == 1
    torch.testing.assert_close(trained.detach(), translated)
    rnn.run(nn.LSTM(INPUT, HIDDEN), inputs, (start, start))
    assert len(calls) == 1


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_in_16_bits_states_differ_by_rounding_only(precision, way):
    tensors = operands()
    exact = gru_sequence(*tensors)
    inputs, *others = (x.detach().float() for x in tensors)
    with way():
        low = gru_sequence(inputs.to(precision), *others)
    assert low.dtype == precision
    unit = torch.finfo(precision).eps
    torch.testing.assert_close(low.double(), exact.detach(), rtol=0, atol=8 * unit)
