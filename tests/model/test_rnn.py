"""A stack of cells against the equations of the GRU and the LSTM."""

import pytest
import torch

from nmt.model.dropout import Dropout
from nmt.model.rnn import RecurrentStack

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
