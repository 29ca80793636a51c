"""Decoders rewritten for search: the same function of the same weights, at less work per step.

The model is `nmt.model.decoder`; nothing here is trained. What does not change from step to step
is multiplied out beforehand, which the distributive law allows:

once per model      The last token enters through linear layers only: its products with all of them
                    are a row of a table.
once per sentence   W_c c = W_c (sum of w_s h_s) = sum of w_s (W_c h_s): the encoder states are kept
                    already multiplied with the weights that would read the context, which itself
                    is never formed (`Memory.states` holds these products).
once per step       All that reads one state is one product with stacked weights.

Since tanh(x) = 2 sigmoid(2x) - 1, an additive score v . tanh(x) is 2v . sigmoid(2x) - sum(v), where
softmax removes the constant; a sigmoid is computed several times faster than a tanh.
`nmt.model.folded_attention` is the attention of these decoders.
"""

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor, nn

from nmt.model.attention import FixedContext
from nmt.model.decoder import BahdanauDecoder, Decoder, DecoderState, LuongDecoder
from nmt.model.encoder import Encoded
from nmt.model.folded_attention import FoldedAttention, add_context
from nmt.model.products import FloatProduct, Int8Product, Product
from nmt.model.rnn import CellState, weights_of

TABLE_BYTES = 256 * 2**20  # a larger table of tokens is not made: its rows are computed when needed
BLOCK = 64  # the number of logits is a multiple of it


class FoldedDecoder(ABC):
    """What both orders share; `fold` makes one. Search needs `start` and `step`.

    Args:
        decoder: left as it is; its weights are copied as they are now.
        compute: type of the products, a float type or int8; states and softmax are in the type of
            the decoder's weights. With int8, what is done once is done in `once`.
        once: type of the products that are done once per model or sentence.
        is_restricted: whether only some rows of `output` are wanted, each time others.
    """

    values: Product
    """From encoder states to what the step reads of the context: (B, S, M) to (B, S, out)."""

    def __init__(
        self,
        decoder: Decoder,
        compute: torch.dtype,
        once: torch.dtype,
        is_restricted: bool = False,
    ) -> None:
        self.decoder = decoder
        self.compute, self.once = compute, once
        self.dtype = decoder.output_layer.weight.dtype
        self.layers = [weights_of(layer) for layer in decoder.rnn.layers]
        self.gates_dim = len(self.layers[0].of_state)
        self.attention = FoldedAttention(
            decoder.attention, self._product_once, dtype=self.dtype, value_type=once
        )
        self.output = self._product(*_padded(decoder.output_layer), is_whole=not is_restricted)
        self.from_below = [
            self._product(layer.of_input, layer.input_bias) for layer in self.layers[1:]
        ]
        self.recurrent = [self._product(layer.of_state, layer.state_bias) for layer in self.layers]

    def start(self, encoded: Encoded, beam_size: int = 1) -> DecoderState:
        """The state before the first target token, one row per sentence, like `Decoder.start`.

        Args:
            beam_size: rows that each sentence will have; any number of them works.
        """
        finals = tuple(tuple(x.to(self.dtype) for x in layer) for layer in encoded.finals)
        states, mask = encoded.states.contiguous(), encoded.mask  # for values and keys
        if isinstance(self.decoder.attention, FixedContext):
            states, mask = finals[-1][0].unsqueeze(1), torch.ones_like(mask[:, :1])
        memory = self.attention.memory(self.values(states), states, mask, beam_size)
        return DecoderState(self.decoder.bridge(finals), None, memory)

    @abstractmethod
    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, Tensor, DecoderState]:
        """Read one token per row and predict the next, like `Decoder.step`.

        Args:
            token_ids: (N,) the previous target token of each row.

        Returns:
            logits: (N, V'), V' being V rounded up to a multiple of `BLOCK`; -inf beyond V.
            weights: (N, S) attention weights of the predicted token.
            state: the state after this step.
        """

    def _product(
        self, weight: Tensor, bias: Tensor | None = None, is_whole: bool = True
    ) -> Product:
        """A product of each step."""
        if self.compute == torch.int8:
            return Int8Product(weight, bias)  # all states are within -1 and 1
        return FloatProduct(
            weight, bias, compute=self.compute, result=self.dtype, is_whole=is_whole
        )

    def _product_once(self, weight: Tensor, bias: Tensor | None = None) -> Product:
        """A product of each sentence, or of the whole model."""
        return FloatProduct(weight, bias, compute=self.once, result=self.dtype)

    def _read_tokens(self, weight: Tensor, bias: Tensor) -> None:
        """Multiply out what (out, E) weights make of every token."""
        embeddings = self.decoder.embedding.weight
        size = len(embeddings) * len(weight) * self.dtype.itemsize
        self.embeddings = embeddings.detach()
        self.from_token = self._product_once(weight, bias)
        self.table = self.from_token(self.embeddings) if size <= TABLE_BYTES else None

    def _tokens(self, token_ids: Tensor) -> Tensor:
        """What the (N,) tokens add: (N, out)."""
        if self.table is not None:
            return self.table.index_select(0, token_ids)
        return self.from_token(self.embeddings.index_select(0, token_ids))

    def _advance(
        self, inputs: Tensor, layers: tuple[CellState, ...], top_gates: Tensor | None = None
    ) -> tuple[CellState, ...]:
        """Run the recurrent layers.

        Args:
            inputs: (N, gH) what the lowest layer reads, already multiplied with its weights.
            top_gates: (N, gH) the product of the top state with its recurrent weights, if known.
        """
        new: list[CellState] = []
        for i, state in enumerate(layers):
            if i:
                inputs = self.from_below[i - 1](new[-1][0])
            gates = top_gates if i == len(layers) - 1 else None
            if gates is None:
                gates = self.recurrent[i](state[0])
            new.append((_lstm if len(state) == 2 else _gru)(inputs, gates, state))
        return tuple(new)


class FoldedBahdanau(FoldedDecoder):
    """`BahdanauDecoder`: attend with the previous state, then move on."""

    def __init__(
        self,
        decoder: BahdanauDecoder,
        compute: torch.dtype,
        once: torch.dtype,
        is_restricted: bool = False,
    ) -> None:
        super().__init__(decoder, compute, once, is_restricted)
        lowest, top = self.layers[0], self.layers[-1]
        embed_dim, hidden_dim = decoder.embedding.embedding_dim, top.of_state.size(1)
        gates_token, gates_context = lowest.of_input.tensor_split([embed_dim], 1)
        readout_hidden, readout_context, readout_token = decoder.readout_layer.weight.tensor_split(
            [hidden_dim, hidden_dim + gates_context.size(1)], 1
        )
        self._read_tokens(
            torch.cat([gates_token, readout_token]),
            torch.cat([lowest.input_bias, decoder.readout_layer.bias]),
        )
        self.values = self._product_once(torch.cat([gates_context, readout_context]))
        self.from_top = self._product(*self.attention.below(top.of_state, top.state_bias))
        self.readout = self._product(readout_hidden)

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, Tensor, DecoderState]:
        # 1. The state before this step asks the source, and is read by its own recurrent layer.
        hidden = state.layers[-1][0]
        gates, query = self.from_top(hidden).tensor_split([self.gates_dim], 1)
        weights = self.attention.weights(query if query.size(1) else hidden, state.memory)
        # 2. Last word and answer, as layers and readout see them: (N, gH + R).
        seen = add_context(self._tokens(token_ids), weights, state.memory)
        layers = self._advance(seen[:, : self.gates_dim], state.layers, gates)
        # 3. State, context and last word together predict the next word.
        readout = _tanh(seen[:, self.gates_dim :] + self.readout(layers[-1][0]))
        return self.output(readout), weights.flatten(0, 1), replace(state, layers=layers)


class FoldedLuong(FoldedDecoder):
    """`LuongDecoder`: move on, then attend with the new state."""

    def __init__(
        self,
        decoder: LuongDecoder,
        compute: torch.dtype,
        once: torch.dtype,
        is_restricted: bool = False,
    ) -> None:
        super().__init__(decoder, compute, once, is_restricted)
        lowest, hidden_dim = self.layers[0], self.layers[-1].of_state.size(1)
        token, fed = lowest.of_input.tensor_split([decoder.embedding.embedding_dim], 1)
        self._read_tokens(token, lowest.input_bias)
        self.from_attentional = self._product(fed) if decoder.input_feeding else None
        self.readout_dim = decoder.readout_dim
        context, hidden = decoder.attentional_layer.weight.tensor_split([-hidden_dim], 1)
        self.values = self._product_once(context)
        self.from_top = self._product(*self.attention.below(hidden, None))

    def start(self, encoded: Encoded, beam_size: int = 1) -> DecoderState:
        state = super().start(encoded, beam_size)
        if self.from_attentional is None:
            return state
        hidden = state.layers[-1][0]
        return replace(state, attentional=hidden.new_zeros(len(hidden), self.readout_dim))

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, Tensor, DecoderState]:
        # 1. The recurrent layers read the last word (and what was attended to before it).
        inputs = self._tokens(token_ids)
        if self.from_attentional is not None and state.attentional is not None:
            inputs = inputs + self.from_attentional(state.attentional)
        layers = self._advance(inputs, state.layers)
        # 2. The new state asks the source.
        hidden = layers[-1][0]
        part, query = self.from_top(hidden).tensor_split([self.readout_dim], 1)
        weights = self.attention.weights(query if query.size(1) else hidden, state.memory)
        # 3. Context and state together.
        attentional = _tanh(add_context(part, weights, state.memory))
        fed = None if self.from_attentional is None else attentional
        state = replace(state, layers=layers, attentional=fed)
        return self.output(attentional), weights.flatten(0, 1), state


def fold(
    decoder: Decoder, compute: torch.dtype | None = None, *, is_restricted: bool = False
) -> FoldedDecoder:
    """Rewrite a decoder for search.

    Args:
        compute: type of the products: a float type, int8 (on the CPU), or None for that of the
            decoder's weights, in which the result is the decoder's but for rounding.
        is_restricted: whether it is for `RestrictedDecoder` only.

    Raises:
        TypeError: for an order without a folded form.
    """
    compute = compute or decoder.output_layer.weight.dtype
    once = type_beside_int8() if compute == torch.int8 else compute
    with torch.no_grad():
        if isinstance(decoder, BahdanauDecoder):
            return FoldedBahdanau(decoder, compute, once, is_restricted)
        if isinstance(decoder, LuongDecoder):
            return FoldedLuong(decoder, compute, once, is_restricted)
    raise TypeError(f"{type(decoder).__name__} has no folded form")


def _gru(inputs: Tensor, gates: Tensor, state: CellState) -> CellState:
    """One step of a GRU from (N, 3H) products with its input and with its state."""
    (hidden,) = state
    size = 2 * hidden.size(1)
    reset, update = (inputs[:, :size] + gates[:, :size]).sigmoid_().chunk(2, 1)
    proposal = _tanh(torch.addcmul(inputs[:, size:], reset, gates[:, size:]))
    return (torch.lerp(proposal, hidden, update),)


def _lstm(inputs: Tensor, gates: Tensor, state: CellState) -> CellState:
    """One step of an LSTM from (N, 4H) products with its input and with its state."""
    _, memory_cell = state
    enter, forget, proposal, leave = (inputs + gates).chunk(4, 1)
    memory_cell = forget.sigmoid() * memory_cell + enter.sigmoid() * _tanh(proposal)
    return leave.sigmoid() * _tanh(memory_cell), memory_cell


def _tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent as a sigmoid, which torch computes faster."""
    return (2 * x).sigmoid_().mul_(2).sub_(1)


def _padded(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias with rows added up to a multiple of `BLOCK`, which give -inf."""
    missing = -layer.out_features % BLOCK
    weight = nn.functional.pad(layer.weight, (0, 0, 0, missing))
    return weight, nn.functional.pad(layer.bias, (0, missing), value=-torch.inf)


def type_beside_int8() -> torch.dtype:
    """The type of what is not worth 8 bits: bf16 where the processor can multiply it."""
    fast = "AVX512" in torch.backends.cpu.get_cpu_capability()
    return torch.bfloat16 if fast else torch.float32
