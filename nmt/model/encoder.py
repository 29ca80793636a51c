"""Recurrent encoder: one state per source token (Bahdanau et al. 2015, section 3.2)."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from nmt.model.dropout import Dropout
from nmt.model.rnn import Cell, CellState, recurrent_layer, run_padded


@dataclass(frozen=True)
class Encoded:
    """An encoded batch of sources."""

    states: Tensor
    """(B, S, M) states of the top layer; M is twice the hidden size if bidirectional."""
    finals: tuple[CellState, ...]
    """Of each layer the state after the last token, each tensor (B, M); the backward direction
    has read its last token at the first position."""
    mask: Tensor
    """(B, S) bool, True at real tokens."""


class Encoder(nn.Module):
    """Reads the source in one direction or in both.

    Args:
        hidden_dim: state size of one direction.
        dropout: on embeddings, between layers and on the states that attention reads.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        *,
        cell: Cell,
        hidden_dim: int,
        num_layers: int,
        bidirectional: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.memory_dim = hidden_dim * (2 if bidirectional else 1)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                recurrent_layer(
                    cell, self.memory_dim if layer else embedding.embedding_dim, hidden_dim
                )
                for _ in range(2 if bidirectional else 1)  # forward, backward
            )
            for layer in range(num_layers)
        )
        self.dropout = Dropout(dropout)

    def forward(self, src: Tensor, src_mask: Tensor) -> Encoded:
        """Encode (B, S) token ids; padding changes nothing.

        Args:
            src_mask: (B, S), True at real tokens, which come first in each row.
        """
        mask = src_mask.t()  # all of the encoder is (S, B, ...)
        states = self.dropout(self.embedding(src.t()))  # (S, B, E)
        backwards = reversal(mask)
        finals: list[CellState] = []
        for directions in self.layers:
            forward, *backward = cast(nn.ModuleList, directions)
            outputs, final = run_padded(forward, states, mask)
            if backward:
                others, other_final = run_padded(backward[0], reverse(states, backwards), mask)
                outputs = torch.cat([outputs, reverse(others, backwards)], 2)
                final = tuple(map(concatenate, final, other_final))
            states = self.dropout(outputs)  # (S, B, M)
            finals.append(final)
        return Encoded(states.transpose(0, 1).contiguous(), tuple(finals), src_mask)


def concatenate(forward: Tensor, backward: Tensor) -> Tensor:
    """The states of both directions, as the next layer and attention read them."""
    return torch.cat([forward, backward], -1)


def reversal(mask: Tensor) -> Tensor:
    """(S * B,) row that each row of (S * B, ...) changes places with: real tokens are reversed."""
    num_positions, batch_size = mask.shape
    positions = torch.arange(num_positions, device=mask.device).unsqueeze(1)  # (S, 1)
    mirrored = torch.where(mask, mask.sum(0) - 1 - positions, positions)  # (S, B)
    return (mirrored * batch_size + torch.arange(batch_size, device=mask.device)).flatten()


def reverse(states: Tensor, rows: Tensor) -> Tensor:
    """Let the rows of (S, B, ...) change places, as `reversal` says."""
    reversed_states: Tensor = _Reverse.apply(states, rows)  # type: ignore[no-untyped-call]
    return reversed_states


class _Reverse(torch.autograd.Function):
    """Reverse the real tokens of each sequence; padding stays at the end.

    Reversing twice changes nothing, so the backward pass is the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return states.flatten(0, 1).index_select(0, rows).view_as(states)

    @staticmethod
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return d_states.flatten(0, 1).index_select(0, rows).view_as(d_states), None
