"""Cells against the equations of the GRU and the LSTM, and whole sequences against packed ones."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from nmt.model.dropout import Dropout
from nmt.model.rnn import RecurrentStack, advance, recurrent_layer, run, run_padded

INPUT, HIDDEN = 3, 2


def gates(layer, x, h):
    """What the gates get from the input and from the old state."""
    from_input = layer.weight_ih_l0 @ x + layer.bias_ih_l0
    from_state = layer.weight_hh_l0 @ h + layer.bias_hh_l0
    return from_input.split(HIDDEN), from_state.split(HIDDEN)


def gru(layer, x, state):
    """Cho et al. 2014, with the reset gate after the recurrent product."""
    (h,) = state
    (ri, zi, ni), (rh, zh, nh) = gates(layer, x, h)
    r, z = torch.sigmoid(ri + rh), torch.sigmoid(zi + zh)
    return ((1 - z) * torch.tanh(ni + r * nh) + z * h,)


def lstm(layer, x, state):
    """Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000."""
    h, c = state
    i, f, g, o = (a + b for a, b in zip(*gates(layer, x, h), strict=True))
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_each_layer_reads_the_new_state_of_the_layer_below(cell, num_layers):
    torch.manual_seed(0)
    stack = RecurrentStack(cell, INPUT, HIDDEN, num_layers, dropout=0.0).double()
    width = 1 if cell == "gru" else 2
    state = tuple(
        tuple(torch.randn(2, HIDDEN, dtype=torch.float64) for _ in range(width))
        for _ in range(num_layers)
    )
    inputs = torch.randn(2, INPUT, dtype=torch.float64)
    new = stack(inputs, state)
    assert len(new) == num_layers
    for n in range(2):
        x = inputs[n]
        for layer, module in enumerate(stack.layers):
            old = tuple(tensor[n] for tensor in state[layer])
            expected = (gru if cell == "gru" else lstm)(module, x, old)
            assert len(new[layer]) == width
            for tensor, vector in zip(new[layer], expected, strict=True):
                torch.testing.assert_close(tensor[n], vector)
            x = expected[0]


def test_dropout_is_between_layers_and_not_in_the_state(cell, monkeypatch):
    torch.manual_seed(0)
    stack = RecurrentStack(cell, INPUT, HIDDEN, 2, dropout=0.25).double()
    zeros = torch.zeros(1, HIDDEN, dtype=torch.float64)
    start = (zeros,) if cell == "gru" else (zeros, zeros)
    x = torch.randn(1, INPUT, dtype=torch.float64)
    lower = gru if cell == "gru" else lstm
    first = lower(stack.layers[0], x[0], tuple(tensor[0] for tensor in start))
    second = lower(stack.layers[1], 3 * first[0], tuple(tensor[0] for tensor in start))
    seen = []
    monkeypatch.setattr(Dropout, "forward", lambda self, x: seen.append(self.p) or 3 * x)
    bottom, top = stack(x, (start, start))
    assert seen == [0.25]
    torch.testing.assert_close(bottom[0][0], first[0])
    torch.testing.assert_close(top[0][0], second[0])


# ----------------------------------------------------------------------- whole sequences


def test_a_stack_runs_over_a_sequence_as_it_does_step_by_step(cell):
    torch.manual_seed(0)
    stack = RecurrentStack(cell, INPUT, HIDDEN, 3, dropout=0.0).double()
    width = 1 if cell == "gru" else 2
    state = tuple(
        tuple(torch.randn(2, HIDDEN, dtype=torch.float64) for _ in range(width)) for _ in range(3)
    )
    inputs = torch.randn(4, 2, INPUT, dtype=torch.float64)
    whole, steps = stack.run(inputs, state), []
    for x in inputs:
        state = stack(x, state)
        steps.append(state[-1][0])
    torch.testing.assert_close(whole, torch.stack(steps))


LENGTHS = {"ragged": (3, 5, 1, 5, 2), "equal": (3, 3), "one": (4,), "one token": (1, 1)}


@pytest.fixture(params=LENGTHS.values(), ids=LENGTHS)
def sequences(request):
    """(S, B, INPUT) inputs with noise at padding, and their mask."""
    torch.manual_seed(1)
    lengths = torch.tensor(request.param)
    mask = torch.arange(int(lengths.max())).unsqueeze(1) < lengths
    return torch.randn(*mask.shape, INPUT, dtype=torch.float64, requires_grad=True), mask


@pytest.fixture
def layer(cell):
    """One layer with large random weights, which reach all of its gates."""
    torch.manual_seed(0)
    layer = recurrent_layer(cell, INPUT, HIDDEN).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=2.0)
    return layer


def packed(layer, inputs, mask):
    """What torch makes of packed sequences: outputs that are 0 at padding, and the last state."""
    rows = pack_padded_sequence(inputs, mask.sum(0), enforce_sorted=False)
    outputs, final = layer(rows)
    outputs, _ = pad_packed_sequence(outputs, total_length=len(mask))
    return outputs, tuple(x[0] for x in (final if isinstance(final, tuple) else (final,)))


def test_padded_sequences_are_packed_ones(layer, sequences):
    inputs, mask = sequences
    leaves = [inputs, *layer.parameters()]
    results, gradients = [], []
    for read in (packed, run_padded):
        outputs, final = read(layer, inputs, mask)
        real = outputs.masked_fill(~mask.unsqueeze(2), 0.0)
        results.append([real, *final])
        generator = torch.Generator().manual_seed(2)
        objective = sum(
            (x * torch.randn(x.shape, dtype=x.dtype, generator=generator)).sum()
            for x in results[-1]
        )
        gradients.append(torch.autograd.grad(objective, leaves))
    assert len(results[0]) == len(results[1])
    for found in (results, gradients):
        for expected, actual in zip(*found, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert not gradients[1][0][~mask].any()


@pytest.mark.parametrize(
    ("cell", "part"), [*product(["gru", "lstm"], ["outputs", "hidden"]), ("lstm", "cell")]
)
def test_every_derivative_over_padded_sequences_is_a_finite_difference(layer, part):
    torch.manual_seed(1)
    mask = torch.arange(3).unsqueeze(1) < torch.tensor([2, 3, 1])
    inputs = torch.randn(3, 3, INPUT, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():  # nowhere flat
        for parameter in layer.parameters():
            parameter *= 0.3

    def read(inputs, *_):  # the check moves the parameters in place
        outputs, final = run_padded(layer, inputs, mask)
        return outputs[mask] if part == "outputs" else final[part == "cell"]

    assert torch.autograd.gradcheck(read, [inputs, *layer.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("noise", [0.0, 30.0, 300.0])
def test_nothing_at_padding_reaches_the_final_state(layer, sequences, noise, dtype):
    """Bit for bit, however large what the layer reads there is."""
    inputs, mask = sequences
    layer, inputs = layer.to(dtype), inputs.detach().to(dtype)
    noisy = torch.where(mask.unsqueeze(2), inputs, noise * torch.randn_like(inputs))
    expected_outputs, expected_final = run_padded(layer, inputs, mask)
    outputs, final = run_padded(layer, noisy, mask)
    assert torch.equal(outputs[mask], expected_outputs[mask])
    for actual, expected in zip(final, expected_final, strict=True):
        assert actual.dtype == dtype
        assert torch.equal(actual, expected)


def test_the_final_state_is_that_of_each_sequence_alone_in_bf16(layer, sequences):
    """Autocast rounds the input, but padding must not leak into the memory cell."""
    inputs, mask = sequences
    layer, inputs = layer.float(), inputs.detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        outputs, final = run_padded(layer, inputs, mask)
        for b, length in enumerate(mask.sum(0).tolist()):
            alone = mask[:length, b : b + 1]
            own_outputs, own_final = run_padded(layer, inputs[:length, b : b + 1], alone)
            torch.testing.assert_close(outputs[:length, b], own_outputs[:, 0], rtol=0, atol=0.01)
            for actual, expected in zip(final, own_final, strict=True):
                torch.testing.assert_close(actual[b], expected[0], rtol=0.01, atol=0.01)


def test_a_layer_runs_from_any_state_as_it_advances(layer, cell):
    torch.manual_seed(1)
    state = tuple(torch.randn(2, HIDDEN).double() for _ in range(1 if cell == "gru" else 2))
    inputs = torch.randn(4, 2, INPUT).double()
    outputs = run(layer, inputs, state)
    for x, expected in zip(inputs, outputs, strict=True):
        state = advance(layer, x, state)
        torch.testing.assert_close(state[0], expected)
