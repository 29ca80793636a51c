"""Recurrent decoders with attention, in the order of Bahdanau and in the order of Luong.

`advance` defines the model, step by step. Training runs `unroll`, which computes the same numbers
over a whole target (`nmt.model.unroll`). The weights of step t belong to the token that step t
predicts, in both orders.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nmt.model.attention import Attention, FixedContext, Memory
from nmt.model.dropout import Dropout
from nmt.model.encoder import Encoded
from nmt.model.rnn import Cell, CellState, RecurrentStack
from nmt.model.unroll import unroll_bahdanau, unroll_input_feeding, unroll_luong


@dataclass(frozen=True)
class DecoderState:
    """All that the next step needs. A state is replaced, never changed."""

    layers: tuple[CellState, ...]
    """State of each recurrent layer, tensors of (N, H); the top one is last."""
    attentional: Tensor | None
    """(N, R) last attentional vector, where it is fed to the next step."""
    memory: Memory
    """The B encoded sources; each belongs to N / B neighbouring rows."""

    def select(self, rows: Tensor) -> "DecoderState":
        """Keep, repeat or permute rows inside their sentences; the memory stays as it is."""
        layers = tuple(tuple(tensor[rows] for tensor in layer) for layer in self.layers)
        attentional = None if self.attentional is None else self.attentional[rows]
        return replace(self, layers=layers, attentional=attentional)

    def keep(self, sentences: Tensor) -> "DecoderState":
        """Keep all rows of the given sentences, and drop the other sentences."""
        beam_size = len(self.layers[0][0]) // len(self.memory.states)
        beam = torch.arange(beam_size, device=sentences.device)
        rows = (sentences.unsqueeze(1) * beam_size + beam).flatten()
        return replace(self.select(rows), memory=self.memory.keep(sentences))


@dataclass(frozen=True)
class DecoderSizes:
    """The sizes of a decoder.

    Attributes:
        memory_dim: M, size of the encoder states.
        readout_dim: R, size of the vector from which the next token is predicted.
    """

    hidden_dim: int
    num_layers: int
    memory_dim: int
    readout_dim: int


class Bridge(nn.Module):
    """First decoder state from the final encoder states, layer by layer.

    Layer l starts from encoder layer l, or from the top one if the encoder is less deep.
    Hidden states pass through tanh (Bahdanau et al. 2015, section A.2.2); the memory cell of
    an LSTM is not bounded, so its projection is linear.
    """

    def __init__(self, cell: Cell, sizes: DecoderSizes, num_encoder_layers: int) -> None:
        super().__init__()
        self.sources = [min(i, num_encoder_layers - 1) for i in range(sizes.num_layers)]

        def projections() -> nn.ModuleList:
            return nn.ModuleList(
                nn.Linear(sizes.memory_dim, sizes.hidden_dim) for _ in range(sizes.num_layers)
            )

        self.hidden_layers = projections()
        self.cell_layers = projections() if cell == "lstm" else nn.ModuleList()

    def forward(self, finals: tuple[CellState, ...]) -> tuple[CellState, ...]:
        """Turn (B, M) final states into the (B, H) states before the first target token."""
        state: list[CellState] = [
            (torch.tanh(project(finals[source][0])),)
            for project, source in zip(self.hidden_layers, self.sources, strict=True)
        ]
        for i, project in enumerate(self.cell_layers):
            state[i] = (*state[i], project(finals[self.sources[i]][1]))
        return tuple(state)


class Decoder(nn.Module, ABC):
    """What both orders share. A subclass says in `advance` how one step goes.

    Args:
        output_layer: (R,) to (V,) logits; its weight may be the embedding's.
        input_dim: size of what the recurrent layers read at each step.
        dropout: on embeddings, between layers and on the readout.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        output_layer: nn.Linear,
        attention: Attention | FixedContext,
        *,
        cell: Cell,
        sizes: DecoderSizes,
        input_dim: int,
        num_encoder_layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.output_layer = output_layer
        self.attention = attention
        self.bridge = Bridge(cell, sizes, num_encoder_layers)
        self.rnn = RecurrentStack(cell, input_dim, sizes.hidden_dim, sizes.num_layers, dropout)
        self.dropout = Dropout(dropout)

    def start(self, encoded: Encoded) -> DecoderState:
        """The state before the first target token, one row per sentence."""
        summary = encoded.finals[-1][0]  # (B, M)
        memory = self.attention.remember(encoded.states, encoded.mask, summary)
        return DecoderState(self.bridge(encoded.finals), None, memory)

    @abstractmethod
    def advance(self, embedded: Tensor, state: DecoderState) -> tuple[Tensor, Tensor, DecoderState]:
        """Read one embedded token per row.

        Args:
            embedded: (N, E) the previous target token of each row.

        Returns:
            readout: (N, R) from which `output_layer` predicts the next token.
            weights: (N, S) attention weights; each row sums to 1.
            state: the state after this step.
        """

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, Tensor, DecoderState]:
        """Read one token per row and predict the next.

        Args:
            token_ids: (N,) the previous target token of each row.

        Returns:
            logits: (N, V) unnormalised log-probabilities of the next token.
            weights: (N, S) attention weights of the predicted token.
            state: the state after this step.
        """
        embedded = self.dropout(self.embedding(token_ids))  # (N, E)
        readout, weights, state = self.advance(embedded, state)
        return self.output_layer(self.dropout(readout)), weights, state

    def forward(self, tgt_input: Tensor, state: DecoderState) -> tuple[Tensor, Tensor]:
        """Teacher forcing: all steps over given tokens.

        Args:
            tgt_input: (B, T) token ids, starting with <s>.
            state: what `start` gave.

        Returns:
            readouts: (B, T, R) from which `output_layer` predicts.
            weights: (B, T, S).
        """
        embedded = self.dropout(self.embedding(tgt_input.t()))  # (T, B, E)
        readouts, weights = self.unroll(embedded, state)
        return self.dropout(readouts), weights

    def loop(self, embedded: Tensor, state: DecoderState) -> tuple[Tensor, Tensor]:
        """What `unroll` computes, as it is defined: step by step."""
        readouts, weights = [], []
        for words in embedded:  # (B, E)
            readout, step_weights, state = self.advance(words, state)
            readouts.append(readout)
            weights.append(step_weights)
        return torch.stack(readouts, 1), torch.stack(weights, 1)

    @abstractmethod
    def unroll(self, embedded: Tensor, state: DecoderState) -> tuple[Tensor, Tensor]:
        """What `loop` computes over (T, B, E) embedded tokens, but fast.

        Returns:
            readouts: (B, T, R), without dropout.
            weights: (B, T, S).
        """


class BahdanauDecoder(Decoder):
    """Attend with the previous state, then move on (Bahdanau et al. 2015, section 3.1)."""

    def __init__(
        self,
        embedding: nn.Embedding,
        output_layer: nn.Linear,
        attention: Attention | FixedContext,
        *,
        cell: Cell,
        sizes: DecoderSizes,
        num_encoder_layers: int,
        dropout: float,
    ) -> None:
        embed_dim = embedding.embedding_dim
        super().__init__(
            embedding,
            output_layer,
            attention,
            cell=cell,
            sizes=sizes,
            input_dim=embed_dim + sizes.memory_dim,
            num_encoder_layers=num_encoder_layers,
            dropout=dropout,
        )
        self.readout_layer = nn.Linear(
            sizes.hidden_dim + sizes.memory_dim + embed_dim, sizes.readout_dim
        )

    def advance(self, embedded: Tensor, state: DecoderState) -> tuple[Tensor, Tensor, DecoderState]:
        # 1. The state before this step asks the source: c_t = attention(s_{t-1}, h).
        context, weights = self.attention(state.layers[-1][0], state.memory)  # (N, M), (N, S)
        # 2. The recurrent layers read the last word and the answer: s_t = f(s_{t-1}, y_{t-1}, c_t).
        layers = self.rnn(torch.cat([embedded, context], -1), state.layers)
        # 3. State, context and last word together predict the next word: g(y_{t-1}, s_t, c_t).
        seen = torch.cat([layers[-1][0], context, embedded], -1)  # (N, H + M + E)
        readout = torch.tanh(self.readout_layer(seen))
        return readout, weights, replace(state, layers=layers)

    def unroll(self, embedded: Tensor, state: DecoderState) -> tuple[Tensor, Tensor]:
        return unroll_bahdanau(
            self.rnn, self.attention, self.readout_layer, embedded, state.layers, state.memory
        )


class LuongDecoder(Decoder):
    """Move on, then attend with the new state (Luong et al. 2015, section 3).

    Args:
        input_feeding: give the attentional vector to the next step too (section 3.3).
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        output_layer: nn.Linear,
        attention: Attention | FixedContext,
        *,
        cell: Cell,
        sizes: DecoderSizes,
        num_encoder_layers: int,
        dropout: float,
        input_feeding: bool,
    ) -> None:
        super().__init__(
            embedding,
            output_layer,
            attention,
            cell=cell,
            sizes=sizes,
            input_dim=embedding.embedding_dim + (sizes.readout_dim if input_feeding else 0),
            num_encoder_layers=num_encoder_layers,
            dropout=dropout,
        )
        self.input_feeding = input_feeding
        self.readout_dim = sizes.readout_dim
        self.attentional_layer = nn.Linear(
            sizes.memory_dim + sizes.hidden_dim, sizes.readout_dim, bias=False
        )

    def start(self, encoded: Encoded) -> DecoderState:
        state = super().start(encoded)
        if not self.input_feeding:
            return state
        hidden = state.layers[-1][0]
        return replace(state, attentional=hidden.new_zeros(len(hidden), self.readout_dim))

    def advance(self, embedded: Tensor, state: DecoderState) -> tuple[Tensor, Tensor, DecoderState]:
        # 1. The recurrent layers read the last word (and what was attended to before it).
        inputs = embedded
        if state.attentional is not None:
            inputs = torch.cat([embedded, state.attentional], -1)  # (N, E + R)
        layers = self.rnn(inputs, state.layers)
        # 2. The new state asks the source: c_t = attention(h_t, h).
        context, weights = self.attention(layers[-1][0], state.memory)  # (N, M), (N, S)
        # 3. Context and state together: h~_t = tanh(W [c_t; h_t]), eq. 5.
        attentional = torch.tanh(self.attentional_layer(torch.cat([context, layers[-1][0]], -1)))
        fed = attentional if self.input_feeding else None
        return attentional, weights, replace(state, layers=layers, attentional=fed)

    def unroll(self, embedded: Tensor, state: DecoderState) -> tuple[Tensor, Tensor]:
        unroll = unroll_input_feeding if self.input_feeding else unroll_luong
        return unroll(
            self.rnn, self.attention, self.attentional_layer, embedded, state.layers, state.memory
        )
