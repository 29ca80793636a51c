"""The tapes of training on a CPU: each step of a cell, and of attention, is one compiled loop.

They give what the tapes that they extend give in fp32, but for the order of sums.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nmt.model import kernels
from nmt.model.attention_tape import AttentionTape
from nmt.model.cell_tape import CellGradients, CellSteps, GRUTape, LSTMTape
from nmt.model.compiled import Each, Operand
from nmt.model.join_tape import JoinTape
from nmt.model.score_tape import ScoreTape


class CompiledGRUTape(GRUTape):
    """`GRUTape`, a loop each way."""

    def __init__(self, steps: CellSteps) -> None:
        super().__init__(steps)
        self._forward = kernels.gru_forward.bind(
            steps.hidden.size(1),
            *_inputs(steps),
            Each(steps.hidden),
            Each(self.gates),
            Each(steps.hidden[1:]),
            _rounded(steps),
        )

    def forward(self, t: int) -> None:
        self._forward(t)

    def prepare(self, gradients: CellGradients) -> None:
        super().prepare(gradients)
        self._backward = kernels.gru_backward.bind(
            len(gradients.d_hidden),
            gradients.d_hidden,
            *_more(gradients),
            Each(self.gates),
            Each(self.steps.recurrent),
            _bias(self.steps),
            Each(self.steps.hidden),
            Each(gradients.d_inputs),
            Each(gradients.d_recurrent),
        )

    def backward(self, t: int) -> None:
        self._backward(t)


class CompiledLSTMTape(LSTMTape):
    """`LSTMTape`, a loop each way."""

    def __init__(self, steps: CellSteps, memory: Tensor) -> None:
        super().__init__(steps, memory)
        self._forward = kernels.lstm_forward.bind(
            len(memory),
            *_inputs(steps),
            Each(self.memory),
            Each(self.gates.flatten(2)),
            Each(self.memory[1:]),
            Each(self.shown),
            Each(steps.hidden[1:]),
            _rounded(steps),
        )

    def forward(self, t: int) -> None:
        self._forward(t)

    def prepare(self, gradients: CellGradients) -> None:
        self.gradients = gradients
        self.d_memory = torch.zeros_like(self.memory[0])
        self._backward = kernels.lstm_backward.bind(
            len(self.d_memory),
            gradients.d_hidden,
            self.d_memory,
            *_more(gradients),
            Each(self.gates.flatten(2)),
            Each(self.memory),
            Each(self.shown),
            Each(gradients.d_inputs),
            Each(gradients.d_recurrent),
        )

    def backward(self, t: int) -> None:
        self._backward(t)


def _inputs(steps: CellSteps) -> tuple[Operand, Operand, Operand, Operand]:
    inputs = steps.inputs if steps.inputs.dim() == 2 else Each(steps.inputs)
    addend = None if steps.addend is None else Each(steps.addend)
    return inputs, addend, Each(steps.recurrent), _bias(steps)


def _bias(steps: CellSteps) -> Operand:
    return None if steps.bias is None else steps.bias.unsqueeze(0)


def _rounded(steps: CellSteps) -> Operand:
    return None if steps.rounded is None else Each(steps.rounded[1:])


def _more(gradients: CellGradients) -> tuple[Operand, Operand]:
    outside = gradients.d_outputs
    return None if outside is None else Each(outside), gradients.d_product


class CompiledAdditiveTape(ScoreTape):
    """`AdditiveTape`; a pair of a query and a key mostly takes no exponential."""

    def __init__(self, queries: Tensor, keys: Tensor, energy: Tensor) -> None:
        super().__init__(queries, keys.contiguous())
        self.energy = energy.unsqueeze(0)
        self.factors = make_factors(self.keys)
        self.scores = self.energy.new_empty(keys.shape[:2])  # (B, S), of one step
        self._forward = self._bind_scores(Each(queries.unsqueeze(2)), self.scores.unsqueeze(1))

    def _bind_scores(self, queries: Operand, scores: Tensor) -> Callable[[int], None]:
        num_rows = self.keys.size(0) * self.keys.size(1)
        return kernels.additive_scores.bind(
            num_rows, queries, self.keys, self.factors, self.energy, scores
        )

    def forward(self, t: int) -> Tensor:
        self._forward(t)
        return self.scores

    def forward_all(self) -> Tensor:
        scores = self.scores.new_empty(len(self.queries), *self.scores.shape)
        self._bind_scores(self.queries.transpose(0, 1), scores.transpose(0, 1))(0)
        return scores

    def prepare(self, d_scores: Tensor, d_queries: Tensor) -> None:
        super().prepare(d_scores, d_queries)
        self._backward = kernels.additive_backward.bind(
            len(self.keys),
            Each(self.queries.unsqueeze(2)),
            self.keys,
            self.factors,
            self.energy,
            Each(self.d_scores.unsqueeze(2)),
            Each(d_queries.unsqueeze(2)),
        )

    def backward(self, t: int) -> None:
        self._backward(t)

    def backward_all(self) -> None:
        kernels.additive_backward(
            self.queries.size(0) * self.queries.size(1),
            self.queries.transpose(0, 1),
            self.keys,
            self.factors,
            self.energy,
            self.d_scores.transpose(0, 1),
            self.d_queries.transpose(0, 1),
        )

    def gradients(self) -> tuple[Tensor, Tensor]:
        d_keys = self.keys.new_empty(self.keys.shape, dtype=torch.float32)
        d_energies = d_keys.new_empty(len(d_keys), d_keys.size(2))
        kernels.additive_gradients(
            len(d_keys),
            self.queries.transpose(0, 1),
            self.keys,
            self.factors,
            self.energy,
            self.d_scores.transpose(0, 1),
            d_keys,
            d_energies,
        )
        return d_keys, d_energies.sum(0)


def make_factors(keys: Tensor) -> Tensor | None:
    """e^-k in fp32, if all numbers of the keys are in the range for which kernels take factors."""
    if not keys.abs().amax() <= float(kernels.LARGEST):
        return None
    return torch.exp(-keys.float())


class CompiledAttentionTape(AttentionTape):
    """`AttentionTape`, a loop each way."""

    def __init__(self, score: ScoreTape, values: Tensor, mask: Tensor, num_steps: int) -> None:
        super().__init__(score, values, mask, num_steps)
        self.scores = (  # of the step at hand
            score.scores
            if isinstance(score, CompiledAdditiveTape)
            else self.weights.new_empty(mask.shape)
        )
        self._forward = kernels.attend.bind(
            len(values),
            self.scores,
            mask.to(self.scores.dtype),
            self.values,
            Each(self.weights),
            self.attended,
        )

    def readable(self, values: Tensor) -> Tensor:
        return values.contiguous()

    def forward(self, t: int) -> None:
        scores = self.score.forward(t)
        if scores is not self.scores:
            self.scores.copy_(scores)
        self._forward(t)

    def prepare(self, d_attended: Tensor, d_weights: Tensor, d_queries: Tensor) -> None:
        super().prepare(d_attended, d_weights, d_queries)
        self._backward = kernels.attend_backward.bind(
            len(self.values),
            Each(d_attended),
            self.values,
            Each(self.weights),
            Each(d_weights),
            Each(self.d_scores),
        )

    def backward(self, t: int) -> None:
        self._backward(t)
        self.score.backward(t)


class CompiledJoinTape(JoinTape):
    """`JoinTape`, a loop each way."""

    def __init__(
        self, attended: Tensor, parts: Tensor, outputs: Tensor, rounded: Tensor | None
    ) -> None:
        super().__init__(attended, parts, outputs, rounded)
        self._forward = kernels.join.bind(
            len(attended),
            attended,
            Each(parts),
            Each(outputs[1:]),
            None if rounded is None else Each(rounded[1:]),
        )

    def forward(self, t: int) -> None:
        self._forward(t)

    def prepare(self, d_outputs: Tensor, d_product: Tensor, d_parts: Tensor) -> None:
        super().prepare(d_outputs, d_product, d_parts)
        self._backward = kernels.join_backward.bind(
            len(d_product),
            Each(d_outputs),
            d_product,
            Each(self.outputs[1:]),
            Each(self.d_sums),
            Each(d_parts),
        )

    def backward(self, t: int) -> None:
        self._backward(t)
