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
5. Weight gradients are sums over steps, so they are products over all steps after the loop.
   Scores, the largest tensors, are computed again instead of kept.

With a lower precision only the recurrent products, their operands and the gradients of their
outputs are rounded to it; states, gates, scores and all sums over time stay fp32.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmt.model.attention import ScoreFunction
from nmt.model.cell_tape import CellTape, GRUTape, LSTMTape
from nmt.model.product_tape import ProductTape
from nmt.model.rnn import Cell
from nmt.model.score_tape import (
    AdditiveTape,
    AutogradTape,
    DotTape,
    ScoreTape,
    at_least_fp32,
)


class Operands(NamedTuple):
    """What a scan reads. Lists have an entry per layer, or per layer above the first."""

    inputs: Tensor
    """(T, B, G) the embedded words in the gate space of the first layer, biases included."""
    hidden: list[Tensor]
    """(B, H) each, the states before the first step."""
    cells: list[Tensor]
    """(B, H) each, the memory cells before the first step; none of a GRU."""
    projections: list[Tensor]
    """(G, H) each, recurrent matrices, their rows in `state_order`. Above them the top one has the
    query matrix, if there is one, and in the order of Luong the (R, H) part of the attentional
    layer."""
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
    """(A,) of the additive score; None of others, whose query is the state itself."""
    mask: Tensor
    """(B, S) bool, True at real tokens."""
    feeding: Tensor | None
    """(G, R) matrix that reads the last attentional vector; None in the order of Bahdanau."""
    score_parameters: list[Tensor]
    """Those of a score function that is neither additive nor a product."""


@dataclass(frozen=True)
class Shape:
    """How to read the operands.

    Attributes:
        low: precision of the recurrent products, None for that of the operands.
        score: a score function that is neither additive nor a product.
    """

    cell: Cell
    num_layers: int
    low: torch.dtype | None
    score: ScoreFunction | None


def scan(
    cell: Cell, operands: Operands, score: ScoreFunction | None = None
) -> tuple[Tensor, Tensor]:
    """Run all steps. Products have the precision of `operands.inputs`.

    Args:
        score: where it is neither additive nor a product.

    Returns:
        outputs: (T, B, H) states of the top layer; with `feeding`, (T, B, R) attentional vectors.
        weights: (T, B, S) attention weights, at least fp32.
    """
    dtype = operands.inputs.dtype
    low = dtype if dtype in (torch.bfloat16, torch.float16) else None
    shape = Shape(cell, len(operands.hidden), low, score)
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
        "score_parameters": len(list(shape.score.parameters())) if shape.score else 0,
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
            inputs, *others = flat
            tape = _Tape(shape, _unflatten(shape, (inputs, *_lifted(others))))
            outputs = tape.forward()
        ctx.save_for_backward(*(x for x in flat if x is not None))
        ctx.tape = tape
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        _ = ctx.saved_tensors  # raises if one of them has been changed since
        tape, ctx.tape = ctx.tape, None  # what it keeps is used up
        if tape is None:
            raise RuntimeError("scan: a second backward pass would need a second forward pass")
        with torch.autocast(gradients[0].device.type, enabled=False):
            found = _flatten(tape.backward(*_lifted(gradients)))
        return None, *(
            x if x is None or dtype is None else x.to(dtype)
            for x, dtype in zip(found, ctx.dtypes, strict=True)
        )


def _lifted(tensors: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(None if x is None else at_least_fp32(x) for x in tensors)


class _Tape:
    """The loop, forward and backward, and what it keeps in between.

    There is one state more than steps: state t is the one before step t. The projection of a
    state gives the gates of step t; its query is asked by step t in the order of Bahdanau, and by
    step t - 1, which made the state, in that of Luong.
    """

    def __init__(self, shape: Shape, operands: Operands) -> None:
        x = self.x = operands
        self.num_steps, batch_size, self.num_gates = x.inputs.shape
        hidden_dim = x.hidden[0].size(1)

        def buffer(num_entries: int, size: int) -> Tensor:
            return x.hidden[0].new_empty(num_entries, batch_size, size)

        self.cells: list[CellTape]
        if shape.cell == "lstm":
            self.cells = [LSTMTape(self.num_steps, memory) for memory in x.cells]
        else:
            self.cells = [GRUTape(self.num_steps, hidden) for hidden in x.hidden]
        self.hidden = [buffer(self.num_steps + 1, hidden_dim) for _ in x.hidden]
        # Every state but the last is projected; the last one asks, in the order of Luong.
        asking = self.num_steps + (x.feeding is not None)
        num_projected = [*(self.num_steps for _ in x.upper), asking]
        self.project = [
            ProductTape(hidden[:number], matrix, bias, shape.low)
            for hidden, number, matrix, bias in zip(
                self.hidden, num_projected, x.projections, x.projection_biases, strict=True
            )
        ]
        self.read_below = [  # what the layers above the first read
            ProductTape(buffer(self.num_steps, hidden_dim), matrix, bias, shape.low)
            for matrix, bias in zip(x.upper, x.upper_biases, strict=True)
        ]
        self.score: ScoreTape
        if shape.score is not None:
            self.score = AutogradTape(shape.score, x.keys, x.score_parameters)
        elif x.energy is None:
            self.score = DotTape(x.keys, self.num_steps)
        else:
            self.score = AdditiveTape(x.keys, x.energy)
            self.query = slice(x.keys.size(2))
            self.queries = buffer(asking, x.keys.size(2))
        self.bias = torch.zeros_like(x.keys[..., 0]).masked_fill_(~x.mask, -torch.inf)  # (B, S)
        self.weights = buffer(self.num_steps, x.keys.size(1))
        if x.feeding is not None:
            readout_dim = x.feeding.size(1)
            self.attentional = buffer(self.num_steps + 1, readout_dim)
            self.feed = ProductTape(self.attentional[:-1], x.feeding, None, shape.low)
            stop = len(x.projections[-1]) - self.num_gates
            self.read = slice(stop - readout_dim, stop)

    # ------------------------------------------------------------------------------- forward

    def forward(self) -> tuple[Tensor, Tensor]:
        """All steps: what `scan` returns."""
        for layer, hidden in enumerate(self.x.hidden):
            self.hidden[layer][0] = hidden
            self._project(layer, 0)
        if self.x.feeding is None:
            self._forward_bahdanau()
            return self.hidden[-1][1:], self.weights[:]
        self._forward_luong()
        return self.attentional[1:], self.weights[:]

    def _forward_bahdanau(self) -> None:
        for t in range(self.num_steps):
            attended = self._attend(t, asking=t)  # (B, G)
            self._advance(t, attended.add_(self.x.inputs[t]))

    def _forward_luong(self) -> None:
        self.attentional[0] = 0
        for t in range(self.num_steps):
            self._advance(t, self.feed.forward(t).add_(self.x.inputs[t]))
            attended = self._attend(t, asking=t + 1)  # (B, R)
            attended += self.project[-1].output[:, self.read]
            torch.tanh(attended, out=self.attentional[t + 1])

    def _advance(self, t: int, gates: Tensor) -> None:
        """Move all layers on, the first one reading (B, G) input gates."""
        for layer, cell in enumerate(self.cells):
            if layer:
                read = self.read_below[layer - 1]
                read.inputs[t] = self.hidden[layer - 1][t + 1]
                if self.x.dropout:
                    read.inputs[t] *= self.x.dropout[layer - 1][t]
                gates = read.forward(t)
            hidden = self.hidden[layer]
            recurrent = self.project[layer].output[:, -self.num_gates :]
            cell.forward(t, gates, recurrent, hidden[t], out=hidden[t + 1])
            self._project(layer, t + 1)

    def _project(self, layer: int, t: int) -> None:
        """Multiply the state before step t, if anybody asks for it."""
        if t == len(self.project[layer].inputs):
            return
        projected = self.project[layer].forward(t)
        if layer == len(self.cells) - 1 and self.x.energy is not None:
            self.queries[t] = projected[:, self.query]

    def _attend(self, t: int, asking: int) -> Tensor:
        """Weights of step t for the query of state `asking`, and (B, G or R) what they read."""
        scores = self.score.forward(self._query(asking)).add_(self.bias)  # (B, S)
        torch.softmax(scores, -1, out=self.weights[t])
        return torch.bmm(self.weights[t].unsqueeze(1), self.x.values).squeeze(1)

    def _query(self, t: int) -> Tensor:
        if self.x.energy is None:
            return self.hidden[-1][t]
        return self.queries[t]

    # ------------------------------------------------------------------------------ backward

    def backward(self, d_outputs: Tensor, d_weights: Tensor) -> Operands:
        """Gradients of all operands; None of mask and dropout, for which nothing asks."""
        x = self.x
        self.d_hidden = [torch.zeros_like(h) for h in x.hidden]
        # Of the gates: of one step at hand, and of all steps those that the inputs give.
        self.d_gates = [cell.new_gradient(x.hidden[0]) for cell in self.cells]
        self.d_inputs = [
            project.matrix.new_empty(self.num_steps, len(x.hidden[0]), self.num_gates)
            for project in self.project
        ]
        for cell, project in zip(self.cells, self.project, strict=True):
            cell.prepare()
            project.prepare()
        for read, d_inputs in zip(self.read_below, self.d_inputs[1:], strict=True):
            read.prepare(d_inputs)
        if x.feeding is None:
            self._backward_bahdanau(d_outputs, d_weights)
        else:
            self._backward_luong(d_outputs, d_weights)
        return self._gradients()

    def _backward_bahdanau(self, d_outputs: Tensor, d_weights: Tensor) -> None:
        for t in reversed(range(self.num_steps)):
            self.d_hidden[-1] += d_outputs[t]
            self._retreat(t)
            self._unattend(t, t, self.d_gates[0][:, -self.num_gates :], d_weights[t])
        self._retreat_to_start()

    def _backward_luong(self, d_outputs: Tensor, d_weights: Tensor) -> None:
        self.feed.prepare(self.d_inputs[0])
        d_projected = self.project[-1].d_outputs
        d_projected[-1, :, -self.num_gates :] = 0  # no step read the gates of the last state
        d_projected[0, :, : -self.num_gates] = 0  # nobody asked the first one
        self.d_read = d_outputs.clone()  # to become the gradient before tanh
        slopes = 1 - self.attentional[1:] ** 2
        for t in reversed(range(self.num_steps)):
            d_read = self.d_read[t]
            if t + 1 < self.num_steps:
                self.feed.backward(t + 1, d_read)
            d_read *= slopes[t]
            d_projected[t + 1, :, self.read] = d_read
            self._unattend(t, t + 1, d_read, d_weights[t])
            self._retreat(t)
        self._retreat_to_start()

    def _retreat(self, t: int) -> None:
        """Move the gradients of all states from after step t to before it."""
        for layer in reversed(range(len(self.cells))):
            if t + 1 < len(self.project[layer].inputs):
                self.project[layer].backward(t + 1, self.d_hidden[layer])
            d_gates = self.d_gates[layer]
            self.d_hidden[layer] = self.cells[layer].backward(
                t,
                self.d_hidden[layer],
                self.hidden[layer][t],
                d_gates,
            )
            d_recurrent = self.project[layer].d_outputs[t, :, -self.num_gates :]
            d_recurrent.copy_(d_gates[:, : self.num_gates])
            self.d_inputs[layer][t] = d_gates[:, -self.num_gates :]
            if layer:
                d_read = torch.zeros_like(self.d_hidden[layer])
                self.read_below[layer - 1].backward(t, d_read)
                if self.x.dropout:
                    d_read *= self.x.dropout[layer - 1][t]
                self.d_hidden[layer - 1] += d_read

    def _retreat_to_start(self) -> None:
        for project, d_hidden in zip(self.project, self.d_hidden, strict=True):
            project.backward(0, d_hidden)

    def _unattend(self, t: int, asking: int, d_attended: Tensor, d_weights: Tensor) -> None:
        """From what step t read to the query of state `asking`."""
        weights = self.weights[t]
        d_weights = torch.bmm(d_attended.unsqueeze(1), self.x.values.mT).squeeze(1) + d_weights
        d_scores = weights * (d_weights - (weights * d_weights).sum(1, keepdim=True))
        d_query = self.score.backward(t, self._query(asking), d_scores)
        if self.x.energy is None:
            self.d_hidden[-1] += d_query
        else:
            self.project[-1].d_outputs[asking, :, self.query] = d_query

    def _gradients(self) -> Operands:
        """Products and sums over all steps at once."""
        x = self.x
        is_luong = x.feeding is not None
        d_attended = self.d_read if is_luong else self.d_inputs[0]
        attended = self.weights.permute(1, 2, 0).to(d_attended.dtype)  # (B, S, T)
        queries = self.hidden[-1][1:] if is_luong else self.hidden[-1][:-1]
        d_keys, d_energy = self.score.gradients(queries)
        projections, projection_biases = _columns(tape.gradients() for tape in self.project)
        upper, upper_biases = _columns(tape.gradients() for tape in self.read_below)
        return Operands(
            inputs=self.d_inputs[0],
            hidden=self.d_hidden,
            cells=[cell.d_memory for cell in self.cells if cell.d_memory is not None],
            projections=projections,
            projection_biases=projection_biases,
            upper=upper,
            upper_biases=upper_biases,
            dropout=[None for _ in x.dropout],  # type: ignore[misc]
            values=torch.bmm(attended, d_attended.transpose(0, 1)),
            keys=d_keys,
            energy=d_energy,
            mask=None,  # type: ignore[arg-type]
            feeding=self.feed.gradients()[0] if is_luong else None,
            score_parameters=self.score.d_parameters
            if isinstance(self.score, AutogradTape)
            else [],
        )


def _columns(rows: Iterable[tuple[Tensor, Any]]) -> tuple[list[Tensor], list[Any]]:
    pairs = list(rows)
    return [first for first, _ in pairs], [second for _, second in pairs]
