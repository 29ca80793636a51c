"""The steps of a decoder over a given target, made fast by exact algebra.

`Decoder.step` defines the model. Where one step feeds the next through attention, teacher forcing
has to go step by step too; what can leave the loop leaves it here. The numbers stay the same:

1. A product with something known beforehand is one product for all steps: the embedded words in
   gate space come in as `inputs`.
2. Attention is linear in its values, W (sum_s a_s v_s) = sum_s a_s (W v_s): the values come in
   projected, once per sentence, to where the context is wanted, and no context is ever formed.
3. All that the next step needs of a state (its recurrent gates, its query, its part of the
   attentional vector) is one product with stacked matrices: its *projection*.
4. v . tanh(x) = 2 v . sigmoid(2 x) - sum(v), and softmax drops the constant. Sigmoid is cheaper.
5. Weight gradients are sums over steps, so they are products over all steps after the loop, and
   factors of the gate gradients are computed for all steps before it. Scores, the largest
   tensors, are computed again instead of kept.

With a lower precision only the operands of the recurrent products are rounded to it; states,
gates, scores and all sums over time stay fp32.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmt.model.cell_tape import CellTape, GRUTape, LSTMTape
from nmt.model.rnn import Cell
from nmt.model.score_tape import AdditiveTape, DotTape, ScoreTape, at_least_fp32


class Operands(NamedTuple):
    """What a scan reads. Lists have an entry per layer, or per layer above the first."""

    inputs: Tensor
    """(T, B, G) the embedded words in the gate space of the first layer, biases included."""
    hidden: list[Tensor]
    """(B, H) each, the states before the first step."""
    cells: list[Tensor]
    """(B, H) each, the memory cells before the first step; none of a GRU."""
    projections: list[Tensor]
    """(G, H) each, recurrent matrices; the top one goes on with the query matrix, if there is
    one, and in the order of Luong with the (R, H) part of the attentional layer."""
    projection_biases: list[Tensor]
    """The biases of these, as long as the matrices are high."""
    upper: list[Tensor]
    """(G, H) each, input matrices of the layers above the first."""
    upper_biases: list[Tensor]
    dropout: list[Tensor]
    """(T, B, H) each, what the inputs of the layers above the first are multiplied with; or
    nothing."""
    values: Tensor
    """(B, S, G) encoder states in gate space, or (B, S, R) in that of the attentional vector."""
    keys: Tensor
    """(B, S, A)."""
    energy: Tensor | None
    """(A,) of the additive score; None if a score is the product of query and key."""
    mask: Tensor
    """(B, S) bool, True at real tokens."""
    feeding: Tensor | None
    """(G, R) matrix that reads the last attentional vector; None in the order of Bahdanau."""


@dataclass(frozen=True)
class Shape:
    """How to read the operands.

    Attributes:
        low: precision of the recurrent products, None for that of the operands.
    """

    cell: Cell
    num_layers: int
    low: torch.dtype | None


def scan(cell: Cell, operands: Operands) -> tuple[Tensor, Tensor]:
    """Run all steps. Products have the precision of `operands.inputs`.

    Returns:
        outputs: (T, B, H) states of the top layer; with `feeding`, (T, B, R) attentional vectors.
        weights: (T, B, S) attention weights, at least fp32.
    """
    dtype = operands.inputs.dtype
    low = dtype if dtype in (torch.bfloat16, torch.float16) else None
    shape = Shape(cell, len(operands.hidden), low)
    outputs, weights = _Scan.apply(  # type: ignore[no-untyped-call]
        shape, *_flatten(operands)
    )
    return outputs.to(dtype), weights


def _flatten(operands: Operands) -> Iterator[Tensor | None]:
    for operand in operands:
        yield from operand if isinstance(operand, list) else (operand,)


def _unflatten(shape: Shape, flat: tuple[Any, ...]) -> Operands:
    above = shape.num_layers - 1
    lengths = {
        "hidden": shape.num_layers,
        "cells": shape.num_layers if shape.cell == "lstm" else 0,
        "projections": shape.num_layers,
        "projection_biases": shape.num_layers,
        "upper": above,
        "upper_biases": above,
    }
    lengths["dropout"] = above if len(flat) > 6 + sum(lengths.values()) else 0
    rest = iter(flat)
    fields: dict[str, Any] = {
        name: list(islice(rest, lengths[name])) if name in lengths else next(rest)
        for name in Operands._fields
    }
    return Operands(**fields)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shape: Shape, *flat: Any) -> tuple[Tensor, Tensor]:
        with torch.autocast(flat[0].device.type, enabled=False):
            ctx.dtypes = [None if x is None else x.dtype for x in flat]
            tape = _Tape(shape, _unflatten(shape, _lifted(flat)))
            outputs = tape.forward()
        ctx.tape = tape
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        with torch.autocast(gradients[0].device.type, enabled=False):
            found = _flatten(ctx.tape.backward(*_lifted(gradients)))
        return None, *(
            x if x is None or dtype is None else x.to(dtype)
            for x, dtype in zip(found, ctx.dtypes, strict=True)
        )


def _lifted(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(None if x is None else at_least_fp32(x) for x in tensors)


class _Tape:
    """The loop, forward and backward, and what it keeps in between.

    States have an entry more than steps: entry t is the state before step t. A projection of a
    state is an entry of `projected`; its gates are read by step t, its query by step t in the
    order of Bahdanau, and by step t - 1, which made the state, in that of Luong.
    """

    def __init__(self, shape: Shape, operands: Operands) -> None:
        x = self.x = operands
        self.num_steps, self.batch_size, self.gates = x.inputs.shape
        hidden_dim = x.hidden[0].size(1)
        self.low = shape.low
        tape = LSTMTape if shape.cell == "lstm" else GRUTape
        self.cells: list[CellTape] = [tape(self.num_steps, h) for h in x.hidden]
        self.hidden = [self._buffer(1, hidden_dim) for _ in x.hidden]
        self.projected = [self._buffer(1, len(w)) for w in x.projections]
        self.weights = self._buffer(0, x.keys.size(1))
        self.bias = torch.zeros_like(x.keys[..., 0]).masked_fill_(~x.mask, -torch.inf)  # (B, S)
        self.score: ScoreTape
        if x.energy is None:
            self.score = DotTape(x.keys, self.num_steps)
            self.query = slice(0, 0)  # the state itself
        else:
            self.score = AdditiveTape(x.keys, x.energy)
            self.query = slice(self.gates, self.gates + x.keys.size(2))
        # Operands of the products in the precision of the products, also for the weight gradients.
        self.low_hidden = [self._lowered(h) for h in self.hidden]
        self.low_projections = [self._to_low(w) for w in x.projections]
        self.low_biases = [self._to_low(b) for b in x.projection_biases]
        self.low_upper = [self._to_low(w) for w in x.upper]
        self.upper_inputs = [self._lowered(self._buffer(0, hidden_dim)) for _ in x.upper]
        if x.feeding is not None:
            readout_dim = x.feeding.size(1)
            self.attentional = self._buffer(1, readout_dim)
            self.low_attentional = self._lowered(self.attentional)
            self.low_feeding = self._to_low(x.feeding)
            self.read = slice(len(x.projections[-1]) - readout_dim, None)

    def _buffer(self, extra: int, size: int) -> Tensor:
        return self.x.inputs.new_empty(self.num_steps + extra, self.batch_size, size)

    def _to_low(self, tensor: Tensor) -> Tensor:
        return tensor if self.low is None else tensor.to(self.low)

    def _lowered(self, buffer: Tensor) -> Tensor:
        """The buffer itself, or one like it in the precision of the products."""
        return buffer if self.low is None else torch.empty_like(buffer, dtype=self.low)

    def _lower(self, low_buffer: Tensor, value: Tensor) -> Tensor:
        """The value as an operand of a product; it is kept in `low_buffer`."""
        return value if self.low is None else low_buffer.copy_(value)

    # ------------------------------------------------------------------------------- forward

    def forward(self) -> tuple[Tensor, Tensor]:
        """All steps: what `scan` returns."""
        for layer, hidden in enumerate(self.x.hidden):
            self.hidden[layer][0] = hidden
            self._project(layer, 0)
        for cell, memory in zip(self.cells, self.x.cells, strict=False):
            cell.start(memory)
        if self.x.feeding is None:
            self._forward_bahdanau()
            return self.hidden[-1][1:], self.weights
        self._forward_luong()
        return self.attentional[1:], self.weights

    def _forward_bahdanau(self) -> None:
        for t in range(self.num_steps):
            attended = self._attend(t, t)  # (B, G)
            self._advance(t, attended.add_(self.x.inputs[t]))

    def _forward_luong(self) -> None:
        self.attentional[0] = 0
        for t in range(self.num_steps):
            fed = self._lower(self.low_attentional[t], self.attentional[t])
            self._advance(t, (fed @ self.low_feeding.t()).add(self.x.inputs[t]))
            attended = self._attend(t, t + 1)  # (B, R)
            attended += self.projected[-1][t + 1, :, self.read]
            torch.tanh(attended, out=self.attentional[t + 1])

    def _advance(self, t: int, gates: Tensor) -> None:
        """Move all layers on, the first one reading (B, G) input gates."""
        for layer, cell in enumerate(self.cells):
            if layer:
                read = self.hidden[layer - 1][t + 1]
                if self.x.dropout:
                    read = read * self.x.dropout[layer - 1][t]
                read = self.upper_inputs[layer - 1][t].copy_(read)
                gates = (read @ self.low_upper[layer - 1].t()).add(self.x.upper_biases[layer - 1])
            states = self.hidden[layer]
            cell.forward(t, gates, self.projected[layer][t], states[t], out=states[t + 1])
            self._project(layer, t + 1)

    def _project(self, layer: int, t: int) -> None:
        hidden = self._lower(self.low_hidden[layer][t], self.hidden[layer][t])
        matrix, bias = self.low_projections[layer].t(), self.low_biases[layer]
        if self.low is None:
            torch.addmm(bias, hidden, matrix, out=self.projected[layer][t])
        else:
            self.projected[layer][t] = torch.addmm(bias, hidden, matrix)

    def _attend(self, t: int, asking: int) -> Tensor:
        """Weights of step t for the query in state `asking`, and (B, G or R) what they read."""
        scores = self.score.forward(self._query(asking)).add_(self.bias)  # (B, S)
        torch.softmax(scores, -1, out=self.weights[t])
        return torch.bmm(self.weights[t].unsqueeze(1), self.x.values).squeeze(1)

    def _query(self, t: int) -> Tensor:
        if self.x.energy is None:
            return self.hidden[-1][t]
        return self.projected[-1][t, :, self.query]

    # ------------------------------------------------------------------------------ backward

    def backward(self, d_outputs: Tensor, d_weights: Tensor) -> Operands:
        """Gradients of all operands; None of mask and dropout, for which nothing asks."""
        x = self.x
        self.d_gates = [torch.empty_like(x.inputs) for _ in self.cells]
        self.d_projected = [torch.empty_like(p) for p in self.projected]
        self.low_d_projected = [self._lowered(p) for p in self.d_projected]
        self.low_d_gates = [self._lowered(g) for g in self.d_gates]
        self.d_hidden = [torch.zeros_like(h) for h in x.hidden]
        for cell, states in zip(self.cells, self.hidden, strict=True):
            cell.prepare(states)
        for d_projected in self.d_projected:
            d_projected[self.num_steps, :, : self.gates] = 0  # no step reads the last state
        if x.feeding is None:
            self._backward_bahdanau(d_outputs, d_weights)
        else:
            self._backward_luong(d_outputs, d_weights)
        return self._gradients()

    def _backward_bahdanau(self, d_outputs: Tensor, d_weights: Tensor) -> None:
        for t in reversed(range(self.num_steps)):
            self.d_hidden[-1] += d_outputs[t]
            self._retreat(t, nothing_later=t + 1 == self.num_steps)
            self._unattend(t, t, self.d_gates[0][t], d_weights[t])
        for layer in range(len(self.cells)):
            self._unproject(layer, 0)

    def _backward_luong(self, d_outputs: Tensor, d_weights: Tensor) -> None:
        self.d_read = torch.empty_like(d_outputs)  # before tanh
        slopes = 1 - self.attentional[1:] ** 2
        for t in reversed(range(self.num_steps)):
            d_attentional = d_outputs[t]
            if t + 1 < self.num_steps:
                d_gates = self._lower(self.low_d_gates[0][t + 1], self.d_gates[0][t + 1])
                d_attentional = (d_gates @ self.low_feeding).add(d_attentional)
            d_read = torch.mul(d_attentional, slopes[t], out=self.d_read[t])
            self.d_projected[-1][t + 1, :, self.read] = d_read
            self._unattend(t, t + 1, d_read, d_weights[t])
            self._retreat(t, nothing_later=False)
        self._lower(self.low_d_gates[0][0], self.d_gates[0][0])
        self.d_projected[-1][0, :, self.gates :] = 0  # nobody asks the first state for more
        for layer in range(len(self.cells)):
            self._unproject(layer, 0)

    def _retreat(self, t: int, *, nothing_later: bool) -> None:
        """Move the gradients of all states from after step t to before it."""
        for layer in reversed(range(len(self.cells))):
            if not nothing_later:
                self._unproject(layer, t + 1)
            self.d_hidden[layer] = self.cells[layer].backward(
                t,
                self.d_hidden[layer],
                self.d_gates[layer][t],
                self.d_projected[layer][t, :, : self.gates],
            )
            if layer:
                d_gates = self._lower(self.low_d_gates[layer][t], self.d_gates[layer][t])
                d_read = (d_gates @ self.low_upper[layer - 1]).to(self.d_hidden[0].dtype)
                if self.x.dropout:
                    d_read *= self.x.dropout[layer - 1][t]
                self.d_hidden[layer - 1] += d_read

    def _unproject(self, layer: int, t: int) -> None:
        d_projected = self._lower(self.low_d_projected[layer][t], self.d_projected[layer][t])
        if self.low is None:
            self.d_hidden[layer].addmm_(d_projected, self.low_projections[layer])
        else:
            self.d_hidden[layer] += d_projected @ self.low_projections[layer]

    def _unattend(self, t: int, asking: int, d_attended: Tensor, d_weights: Tensor) -> None:
        """From what step t read to the query of state `asking`."""
        weights = self.weights[t]
        d_weights = torch.bmm(d_attended.unsqueeze(1), self.x.values.mT).squeeze(1) + d_weights
        d_scores = weights * (d_weights - (weights * d_weights).sum(1, keepdim=True))
        d_query = self.score.backward(t, self._query(asking), d_scores)
        if self.x.energy is None:
            self.d_hidden[-1] += d_query
        else:
            self.d_projected[-1][asking, :, self.query] = d_query

    def _gradients(self) -> Operands:
        """Products and sums over all steps at once."""
        x = self.x
        last = self.num_steps if x.feeding is None else None  # whose projection somebody reads

        def product(d_rows: Tensor, rows: Tensor) -> Tensor:
            return d_rows.flatten(0, 1).t() @ rows.flatten(0, 1)

        def total(d_rows: Tensor) -> Tensor:
            return d_rows.flatten(0, 1).sum(0)

        d_attended = self.d_gates[0] if x.feeding is None else self.d_read
        queries = self.hidden[-1][:-1] if x.feeding is None else self.hidden[-1][1:]
        d_keys, d_energy = self.score.gradients(queries)
        return Operands(
            inputs=self.d_gates[0],
            hidden=self.d_hidden,
            cells=[cell.d_memory for cell in self.cells if cell.d_memory is not None],
            projections=[
                product(d[:last], h[:last])
                for d, h in zip(self.low_d_projected, self.low_hidden, strict=True)
            ],
            projection_biases=[total(d[:last]) for d in self.d_projected],
            upper=[
                product(d, read)
                for d, read in zip(self.low_d_gates[1:], self.upper_inputs, strict=True)
            ],
            upper_biases=[total(d) for d in self.d_gates[1:]],
            dropout=[None for _ in x.dropout],  # type: ignore[misc]
            values=torch.bmm(self.weights.permute(1, 2, 0), d_attended.transpose(0, 1)),
            keys=d_keys,
            energy=d_energy,
            mask=None,  # type: ignore[arg-type]
            feeding=None
            if x.feeding is None
            else product(self.low_d_gates[0], self.low_attentional[:-1]),
        )
