"""Recurrent encoder: one state per source token (Bahdanau et al. 2015, section 3.2)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from nmt.model.rnn import Cell, CellState


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
        rnn_type = nn.GRU if cell == "gru" else nn.LSTM
        self.layers = nn.ModuleList(
            rnn_type(
                self.memory_dim if layer else embedding.embedding_dim,
                hidden_dim,
                batch_first=True,
                bidirectional=bidirectional,
            )
            for layer in range(num_layers)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, src: Tensor, src_mask: Tensor) -> Encoded:
        """Encode (B, S) token ids; padding changes nothing.

        Args:
            src_mask: (B, S), True at real tokens, which come first in each row.
        """
        states = self.dropout(self.embedding(src))  # (B, S, E)
        lengths = src_mask.sum(1).cpu()
        finals: list[CellState] = []
        for layer in self.layers:
            packed = pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
            output, final = layer(packed)
            states, _ = pad_packed_sequence(output, batch_first=True, total_length=src.size(1))
            states = self.dropout(states)  # (B, S, M)
            finals.append(
                tuple(
                    torch.cat(directions.unbind(0), -1)  # (directions, B, hidden) -> (B, M)
                    for directions in (final if isinstance(final, tuple) else (final,))
                )
            )
        return Encoded(states, tuple(finals), src_mask)
