"""Teacher forcing over a whole target: `Decoder.loop`, with all that can leave the loop outside.

Each function computes what its decoder's `advance` defines, and gives (B, T, R) readouts and
(B, T, S) weights. Encoder states are projected to where contexts are wanted, the gates and the
readout, once per source position; so no context is ever formed (`nmt.model.scan`).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.model.attention import Attention, FixedContext, Memory
from nmt.model.cell_tape import state_order
from nmt.model.rnn import CellState, RecurrentStack, weights_of
from nmt.model.scan import Operands, scan
from nmt.model.score_tape import additive_scores


def unroll_bahdanau(
    rnn: RecurrentStack,
    attention: Attention | FixedContext,
    readout_layer: nn.Linear,
    embedded: Tensor,
    layers: tuple[CellState, ...],
    memory: Memory,
) -> tuple[Tensor, Tensor]:
    """Attend with the previous state, then move on (Bahdanau et al. 2015).

    Args:
        embedded: (T, B, E).
        layers: states before the first step.
    """
    embed_dim, memory_dim = embedded.size(2), memory.states.size(2)
    first = weights_of(rnn.layers[0])
    gates_of_word, gates_of_context = columns(first.of_input, embed_dim, memory_dim)
    read_state, read_context, read_word = columns(
        readout_layer.weight, rnn.hidden_dim, memory_dim, embed_dim
    )
    if isinstance(attention, FixedContext):
        page = memory.states[:, 0].expand(len(embedded), -1, -1)  # (T, B, M)
        hidden = rnn.run(torch.cat([embedded, page], 2), layers)
        weights = _of_one_page(hidden)
    else:
        inputs = F.linear(embedded, gates_of_word, first.input_bias)  # (T, B, G)
        values = F.linear(memory.states, gates_of_context)  # (B, S, G)
        hidden, weights = _scan(rnn, attention, inputs, values, layers, memory)
    seen = F.linear(hidden, read_state) + F.linear(embedded, read_word, readout_layer.bias)
    return _read(seen, weights, F.linear(memory.states, read_context))


def unroll_input_feeding(
    rnn: RecurrentStack,
    attention: Attention | FixedContext,
    attentional_layer: nn.Linear,
    embedded: Tensor,
    layers: tuple[CellState, ...],
    memory: Memory,
) -> tuple[Tensor, Tensor]:
    """Move on, then attend, and feed the attentional vector (Luong et al. 2015, section 3.3)."""
    first = weights_of(rnn.layers[0])
    gates_of_word, feeding = columns(
        first.of_input, embedded.size(2), attentional_layer.out_features
    )
    read_context, read_state = columns(
        attentional_layer.weight, memory.states.size(2), rnn.hidden_dim
    )
    inputs = F.linear(embedded, gates_of_word, first.input_bias)  # (T, B, G)
    values = F.linear(memory.states, read_context)  # (B, S, R)
    readouts, weights = _scan(
        rnn, attention, inputs, values, layers, memory, read_state=read_state, feeding=feeding
    )
    return readouts.transpose(0, 1), weights.transpose(0, 1)


def unroll_luong(
    rnn: RecurrentStack,
    attention: Attention | FixedContext,
    attentional_layer: nn.Linear,
    embedded: Tensor,
    layers: tuple[CellState, ...],
    memory: Memory,
) -> tuple[Tensor, Tensor]:
    """Move on, then attend, feeding nothing: all of it runs over the whole target at once."""
    read_context, read_state = columns(
        attentional_layer.weight, memory.states.size(2), rnn.hidden_dim
    )
    hidden = rnn.run(embedded, layers)  # (T, B, H)
    weights = _attend(attention, hidden, memory)
    return _read(F.linear(hidden, read_state), weights, F.linear(memory.states, read_context))


def columns(matrix: Tensor, *widths: int) -> tuple[Tensor, ...]:
    """The parts of a matrix that read the parts of a concatenated vector."""
    return torch.split_with_sizes(matrix, widths, 1)


def _read(seen: Tensor, weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Readouts of what (T, B, R) the steps saw, and of (B, S, R) values under their weights."""
    weights = weights.transpose(0, 1)  # (B, T, S)
    readouts = torch.baddbmm(seen.transpose(0, 1), weights.to(values.dtype), values)
    return torch.tanh(readouts), weights


def _of_one_page(hidden: Tensor) -> Tensor:
    return hidden.new_ones(*hidden.shape[:2], 1)


def _attend(attention: Attention | FixedContext, hidden: Tensor, memory: Memory) -> Tensor:
    """Weights of all steps at once, (T, B, S), from (T, B, H) states."""
    if isinstance(attention, FixedContext):
        return _of_one_page(hidden)
    score = attention.score
    if hidden_layer := score.hidden_layer():
        queries = 2 * F.linear(hidden, hidden_layer.query_matrix)
        scores = additive_scores(queries, 2 * memory.keys, 2 * hidden_layer.energy)
    else:
        scores = score(hidden.transpose(0, 1), memory.keys).transpose(0, 1)  # (T, B, S)
    return scores.masked_fill(~memory.mask, -torch.inf).softmax(-1)


def _scan(
    rnn: RecurrentStack,
    attention: Attention | FixedContext,
    inputs: Tensor,
    values: Tensor,
    layers: tuple[CellState, ...],
    memory: Memory,
    *,
    read_state: Tensor | None = None,
    feeding: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All steps of recurrence and attention, (T, B, ·) each; see `Operands`.

    Args:
        read_state: (R, H) part of the attentional layer that reads the state.
        feeding: (G, R) part of the input matrix that reads the last attentional vector.
    """
    weights = [weights_of(layer) for layer in rnn.layers]
    recurrent = [state_order(layer.of_state, rnn.hidden_dim) for layer in weights]
    stacked: list[Tensor] = []
    keys, energy, score = memory.keys, None, None
    if isinstance(attention, FixedContext):
        keys = keys.new_zeros(*keys.shape[:2], rnn.hidden_dim)  # one page: any score gives it 1
    elif hidden_layer := attention.score.hidden_layer():
        keys, energy = 2 * keys, 2 * hidden_layer.energy
        stacked.append(2 * hidden_layer.query_matrix)
    elif not attention.score.is_product:
        score = attention.score
    if read_state is not None:
        stacked.append(read_state)
    projection = torch.cat([*stacked, recurrent[-1]])
    return scan(
        rnn.cell,
        Operands(
            inputs=inputs,
            hidden=[layer[0] for layer in layers],
            cells=[layer[1] for layer in layers if len(layer) == 2],
            projections=[*recurrent[:-1], projection],
            projection_biases=[state_order(x.state_bias, rnn.hidden_dim) for x in weights],
            upper=[layer.of_input for layer in weights[1:]],
            upper_biases=[layer.input_bias for layer in weights[1:]],
            dropout=rnn.dropout_masks(inputs),
            values=values,
            keys=keys,
            energy=energy,
            mask=memory.mask,
            feeding=feeding,
            score_parameters=list(score.parameters()) if score else [],
        ),
        score,
    )
