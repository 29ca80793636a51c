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

What remains in the loop are products, cells and attention: the *tapes*, each of which goes forward
and backward step by step, keeps what it needs for that, and has a faster form on a CPU
(`nmt.model.compiled_tapes`). All of them read and write buffers that are there for all steps.

With a lower precision only the products, what they read and give, and the gradients of that are
rounded to it; states, gates, scores and all sums over time stay fp32.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmt.model.attention import ScoreFunction
from nmt.model.attention_tape import attention_tape
from nmt.model.cell_tape import CellGradients, CellSteps, cell_tape
from nmt.model.compiled import suits
from nmt.model.join_tape import join_tape
from nmt.model.product_tape import ProductTape
from nmt.model.rnn import Cell
from nmt.model.score_tape import (
    AutogradTape,
    DotTape,
    ScoreTape,
    additive_tape,
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
    """(G,) each, the biases of the gates among these."""
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
            tape = _Tape(shape, _unflatten(shape, flat))
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
            found = _flatten(tape.backward(*(at_least_fp32(d.contiguous()) for d in gradients)))
        return None, *(
            x if x is None or dtype is None else x.to(dtype)
            for x, dtype in zip(found, ctx.dtypes, strict=True)
        )


class _Tape:
    """The loop, forward and backward, and what it keeps in between.

    There is one state more than steps: state t is the one before step t. The projection of a
    state gives the gates of step t; its query is asked by step t in the order of Bahdanau, and by
    step t - 1, which made the state, in that of Luong.
    """

    def __init__(self, shape: Shape, operands: Operands) -> None:
        x = self.x = operands
        self.num_steps, batch_size, self.num_gates = x.inputs.shape
        self.is_luong = x.feeding is not None
        dtype = torch.promote_types(x.inputs.dtype, torch.float32)  # of the states

        def states(size: int) -> tuple[Tensor, Tensor | None]:
            exact = x.inputs.new_empty(self.num_steps + 1, batch_size, size, dtype=dtype)
            return exact, None if shape.low is None else torch.empty_like(exact, dtype=shape.low)

        hidden_dim = x.hidden[0].size(1)
        self.hidden, self.rounded = _columns(states(hidden_dim) for _ in x.hidden)
        for start, *both in zip(x.hidden, self.hidden, self.rounded, strict=True):
            _begin(start, *both)
        self.is_compiled = suits(self.hidden[0], x.inputs)
        # Every state but the last is projected; the last one asks, in the order of Luong.
        num_projected = [*(self.num_steps for _ in x.upper), self.num_steps + self.is_luong]
        self.project = [
            ProductTape(
                (hidden if rounded is None else rounded)[:number],
                matrix,
                bias,
                adds_bias=not self.is_compiled,
            )
            for hidden, rounded, number, matrix, bias in zip(
                self.hidden,
                self.rounded,
                num_projected,
                x.projections,
                x.projection_biases,
                strict=True,
            )
        ]
        self.read_below = [  # what the layers above the first read
            ProductTape(x.inputs.new_empty(self.num_steps, batch_size, hidden_dim), matrix, bias)
            for matrix, bias in zip(x.upper, x.upper_biases, strict=True)
        ]
        self.query = slice(0 if x.energy is None else x.keys.size(2))
        self.attention = attention_tape(self._score_tape(shape), x.values, x.mask, self.num_steps)
        if x.feeding is not None:
            self.read = slice(self.query.stop, len(x.projections[-1]) - self.num_gates)
            attentional, rounded = states(x.feeding.size(1))
            _begin(torch.zeros_like(attentional[0]), attentional, rounded)
            fed = attentional if rounded is None else rounded
            self.feed = ProductTape(fed[:-1], x.feeding, None)
            parts = self.project[-1].outputs[1:, :, self.read]
            self.join = join_tape(self.attention.attended, parts, attentional, rounded)
        self.cells = [
            cell_tape(self._steps(layer), at_least_fp32(x.cells[layer]) if x.cells else None)
            for layer in range(shape.num_layers)
        ]

    def _score_tape(self, shape: Shape) -> ScoreTape:
        x, asking = self.x, slice(1, None) if self.is_luong else slice(self.num_steps)
        if x.energy is not None:
            queries = self.project[-1].outputs[asking, :, self.query]
            return additive_tape(queries, x.keys, at_least_fp32(x.energy))
        queries = self.hidden[-1][asking]
        if shape.score is not None:
            return AutogradTape(queries, x.keys, shape.score, x.score_parameters)
        return DotTape(queries, x.keys)

    def _steps(self, layer: int) -> CellSteps:
        """What a layer reads: the gates of the words, and of what is attended to or fed."""
        if layer:
            inputs, addend = self.read_below[layer - 1].outputs, None
        else:
            inputs = self.feed.outputs if self.is_luong else self.attention.attended
            addend = self.x.inputs
        recurrent = self.project[layer].outputs[..., -self.num_gates :]
        bias = at_least_fp32(self.x.projection_biases[layer]) if self.is_compiled else None
        return CellSteps(inputs, addend, recurrent, bias, self.hidden[layer], self.rounded[layer])

    # ------------------------------------------------------------------------------- forward

    def forward(self) -> tuple[Tensor, Tensor]:
        """All steps: what `scan` returns."""
        for project in self.project:
            project.forward(0)
        for t in range(self.num_steps):
            if self.is_luong:
                self.feed.forward(t)
                self._advance(t)
                self.attention.forward(t)
                self.join.forward(t)
            else:
                self.attention.forward(t)
                self._advance(t)
        outputs = self.join.outputs if self.is_luong else self.hidden[-1]
        return outputs[1:], self.attention.weights[:]

    def _advance(self, t: int) -> None:
        """Move all layers on."""
        for layer, cell in enumerate(self.cells):
            if layer:
                read = self.read_below[layer - 1]
                read.inputs[t] = self.hidden[layer - 1][t + 1]
                if self.x.dropout:
                    read.inputs[t] *= self.x.dropout[layer - 1][t]
                read.forward(t)
            cell.forward(t)
            if t + 1 < len(self.project[layer].inputs):
                self.project[layer].forward(t + 1)

    # ------------------------------------------------------------------------------ backward

    def backward(self, d_outputs: Tensor, d_weights: Tensor) -> Operands:
        """Gradients of all operands; None of mask and dropout, for which nothing asks."""
        self._prepare(d_outputs, d_weights)
        for t in reversed(range(self.num_steps)):
            if self.is_luong:
                self.join.backward(t)
                self._unattend(t)
                self._retreat(t)
                self.feed.backward(t)
            else:
                self._retreat(t)
                self._unattend(t)
        for project, d_hidden in zip(self.project, self.d_hidden, strict=True):
            project.backward(0)
            d_hidden += project.d_input
        return self._gradients()

    def _prepare(self, d_outputs: Tensor, d_weights: Tensor) -> None:
        """Make room for the gradients of all steps."""
        self.d_hidden = [torch.zeros_like(hidden[0]) for hidden in self.hidden]
        self.d_inputs = [torch.empty_like(self.x.inputs) for _ in self.hidden]
        for project in self.project:
            project.prepare()
        for read, d_inputs in zip(self.read_below, self.d_inputs[1:], strict=True):
            read.prepare(d_inputs)
        d_projected = self.project[-1].d_outputs
        if self.is_luong:
            self.feed.prepare(self.d_inputs[0])
            d_projected[-1, :, -self.num_gates :] = 0  # no step read the gates of the last state
            d_projected[0, :, : -self.num_gates] = 0  # nobody asked the first one
            self.join.prepare(d_outputs, self.feed.d_input, d_projected[1:, :, self.read])
        for layer, cell in enumerate(self.cells):
            is_output = layer == len(self.cells) - 1 and not self.is_luong
            cell.prepare(
                CellGradients(
                    self.d_hidden[layer],
                    d_outputs if is_output else None,
                    self.project[layer].d_input,
                    self.d_inputs[layer],
                    self.project[layer].d_outputs[..., -self.num_gates :],
                )
            )
        if self.x.energy is None:
            self.d_queries = torch.empty_like(self.hidden[-1][1:])
        else:
            self.d_queries = d_projected[int(self.is_luong) :, :, self.query]
        d_attended = self.join.d_sums if self.is_luong else self.d_inputs[0]
        self.attention.prepare(d_attended, d_weights, self.d_queries)

    def _retreat(self, t: int) -> None:
        """Move the gradients of all states from after step t to before it."""
        for layer in reversed(range(len(self.cells))):
            if t + 1 < len(self.project[layer].inputs):
                self.project[layer].backward(t + 1)
            self.cells[layer].backward(t)
            if layer:
                read = self.read_below[layer - 1]
                read.backward(t)
                d_read = read.d_input
                if self.x.dropout:
                    d_read = d_read * self.x.dropout[layer - 1][t]
                self.d_hidden[layer - 1] += d_read

    def _unattend(self, t: int) -> None:
        """From what step t attended to, to the state that asked."""
        self.attention.backward(t)
        if self.x.energy is None:
            self.d_hidden[-1] += self.d_queries[t]

    def _gradients(self) -> Operands:
        """Products and sums over all steps at once."""
        x, score = self.x, self.attention.score
        d_keys, d_energy = score.gradients()
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
            values=self.attention.d_values(),
            keys=d_keys,
            energy=d_energy,
            mask=None,  # type: ignore[arg-type]
            feeding=self.feed.gradients()[0] if self.is_luong else None,
            score_parameters=score.d_parameters if isinstance(score, AutogradTape) else [],
        )


def _begin(start: Tensor, *states: Tensor | None) -> None:
    """Put the first one in front of the states."""
    for buffer in states:
        if buffer is not None:
            buffer[0] = start


def _columns(rows: Iterable[tuple[Tensor, Any]]) -> tuple[list[Tensor], list[Any]]:
    pairs = list(rows)
    return [first for first, _ in pairs], [second for _, second in pairs]
