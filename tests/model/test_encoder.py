"""The encoder against plain loops over cells, and what it promises about padding and order."""

import pytest
import torch
from torch import nn

from nmt.model.dropout import Dropout
from nmt.model.encoder import Encoder

EMBED, HIDDEN, VOCAB = 4, 3, 9


def make_encoder(cell, *, num_layers=1, bidirectional=True, dropout=0.0):
    torch.manual_seed(0)
    return Encoder(
        nn.Embedding(VOCAB, EMBED),
        cell=cell,
        hidden_dim=HIDDEN,
        num_layers=num_layers,
        bidirectional=bidirectional,
        dropout=dropout,
    ).double()


def cell_like(layer):
    """One cell with the weights of a recurrent layer."""
    kind = nn.GRUCell if isinstance(layer, nn.GRU) else nn.LSTMCell
    cell = kind(layer.input_size, layer.hidden_size).double()
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    cell.load_state_dict({name: getattr(layer, f"{name}_l0") for name in names})
    return cell


def read(cell, inputs):
    """Read one sentence: the state after each token, as (hidden,) or (hidden, cell)."""
    state, states = None, []
    for x in inputs:
        state = cell(x, state)
        states.append(state if isinstance(state, tuple) else (state,))
    return states


def encode(encoder, token_ids, bidirectional, drop=lambda x: x):
    """States and finals of one sentence, written from the paper."""
    inputs, finals = list(drop(encoder.embedding.weight[token_ids])), []
    for directions in encoder.layers:
        assert len(directions) == 1 + bidirectional
        forward = read(cell_like(directions[0]), inputs)
        sides = [forward]
        ends = [forward[-1]]
        if bidirectional:
            backward = read(cell_like(directions[1]), inputs[::-1])
            sides.append(backward[::-1])
            ends.append(backward[-1])
        finals.append(tuple(torch.cat(tensors) for tensors in zip(*ends, strict=True)))
        inputs = [
            drop(torch.cat([state[0] for state in states])) for states in zip(*sides, strict=True)
        ]
    return torch.stack(inputs), finals


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_each_state_is_a_loop_over_cells(cell, num_layers, bidirectional, batch):
    encoder = make_encoder(cell, num_layers=num_layers, bidirectional=bidirectional)
    encoded = encoder(batch.src, batch.src_mask)
    memory_dim = HIDDEN * (1 + bidirectional)
    assert encoder.memory_dim == memory_dim
    assert encoded.states.shape == (3, 4, memory_dim)
    assert torch.equal(encoded.mask, batch.src_mask)
    assert len(encoded.finals) == num_layers
    for i, length in enumerate(batch.src_lengths):
        states, finals = encode(encoder, batch.src[i, :length], bidirectional)
        torch.testing.assert_close(encoded.states[i, :length], states)
        for layer, expected in zip(encoded.finals, finals, strict=True):
            assert len(layer) == (1 if cell == "gru" else 2)
            for tensor, vector in zip(layer, expected, strict=True):
                assert tensor.shape == (3, memory_dim)
                torch.testing.assert_close(tensor[i], vector)


def test_padding_changes_nothing(cell, batch):
    encoder = make_encoder(cell, num_layers=2)
    encoded = encoder(batch.src, batch.src_mask)
    garbage = torch.where(batch.src_mask, batch.src, 7)
    more = torch.full((3, 2), 5)
    padded = encoder(torch.cat([garbage, more], 1), torch.cat([batch.src_mask, more == 0], 1))
    for i, length in enumerate(batch.src_lengths):
        assert torch.equal(padded.states[i, :length], encoded.states[i, :length])
    for old, new in zip(encoded.finals, padded.finals, strict=True):
        for a, b in zip(old, new, strict=True):
            assert torch.equal(a, b)


def test_the_order_of_the_batch_does_not_matter(cell, batch):
    encoder, order = make_encoder(cell, num_layers=2), [2, 0, 1]
    encoded = encoder(batch.src, batch.src_mask)
    other = encoder(batch.src[order], batch.src_mask[order])
    torch.testing.assert_close(other.states, encoded.states[order])
    for old, new in zip(encoded.finals, other.finals, strict=True):
        for a, b in zip(old, new, strict=True):
            torch.testing.assert_close(b, a[order])


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_dropout_is_on_embeddings_between_layers_and_on_states_in_training(
    cell, training, batch, monkeypatch
):
    encoder = make_encoder(cell, num_layers=2, dropout=0.25).train(training)
    monkeypatch.setattr(  # a dropout that can be foreseen
        Dropout, "forward", lambda self, x: x * (1 + self.p) if self.training else x
    )
    encoded = encoder(batch.src, batch.src_mask)
    factor = 1.25 if training else 1
    for i, length in enumerate(batch.src_lengths):
        states, finals = encode(encoder, batch.src[i, :length], True, lambda x: factor * x)
        torch.testing.assert_close(encoded.states[i, :length], states)
        for layer, expected in zip(encoded.finals, finals, strict=True):
            for tensor, vector in zip(layer, expected, strict=True):
                torch.testing.assert_close(tensor[i], vector)
