"""The encoder rewritten for search on a CPU: the same function of the same weights, at less work.

The lowest layer reads tokens through linear layers only, so its products with all of them are a
table, as in the decoder (`nmt.model.folded`); what is left at each position is the product of the
state. On a GPU, torch's own layers run a whole sequence at once.
"""

from typing import cast

import torch
from torch import Tensor, nn

from nmt.model.encoder import Encoded, Encoder, concatenate, reversal, reverse
from nmt.model.folded_cell import cell_step
from nmt.model.products import Precision, TokenProduct
from nmt.model.rnn import CellState, last_real, weights_of


class FoldedDirection:
    """One layer in one direction, from what its input gives to the gates.

    Args:
        embeddings: (V, E) if the input are tokens; else it is the states of the layer below.
    """

    def __init__(self, layer: nn.Module, embeddings: Tensor | None, precision: Precision) -> None:
        weights = weights_of(layer)
        self.is_lstm = isinstance(layer, nn.LSTM)
        self.recurrent = precision.product(weights.of_state, weights.state_bias)
        self.of_tokens: TokenProduct | None = None
        if embeddings is None:
            self.of_states = precision.product(weights.of_input, weights.input_bias)
        else:
            product = precision.product_once(weights.of_input, weights.input_bias)
            self.of_tokens = TokenProduct(embeddings, product)

    def run(self, inputs: Tensor, mask: Tensor) -> tuple[Tensor, CellState]:
        """Read sequences from zero states, like `nmt.model.rnn.run_padded`.

        Args:
            inputs: (S, B) tokens, or (S, B, M) states.
            mask: (S, B), True at real tokens, which come first.
        """
        read = self.of_states if self.of_tokens is None else self.of_tokens
        gates = read(inputs.flatten(0, 1)).view(*mask.shape, -1)  # (S, B, G)
        zeros = gates.new_zeros(mask.size(1), gates.size(2) // (4 if self.is_lstm else 3))
        state: CellState = (zeros, zeros) if self.is_lstm else (zeros,)
        states = []
        for given in gates:
            state = cell_step(given, None, self.recurrent.sums(state[0]), state)
            states.append(state)
        outputs, *memory = (torch.stack(tensors) for tensors in zip(*states, strict=True))
        return outputs, tuple(last_real(x, mask) for x in (outputs, *memory))


class FoldedEncoder:
    """Gives what an `Encoder` gives without dropout.

    Its weights, but for the embeddings, are copied as they are now.
    """

    def __init__(self, encoder: Encoder, precision: Precision) -> None:
        embeddings = encoder.embedding.weight
        self.layers = [
            [
                FoldedDirection(layer, None if i else embeddings, precision)
                for layer in cast(nn.ModuleList, directions)
            ]
            for i, directions in enumerate(encoder.layers)
        ]

    @property
    def tokens(self) -> list[TokenProduct]:
        """What each direction of the lowest layer reads of a token."""
        return [d.of_tokens for d in self.layers[0] if d.of_tokens is not None]

    def __call__(self, src: Tensor, src_mask: Tensor) -> Encoded:
        """Encode (B, S) token ids, like `Encoder.forward`."""
        mask = src_mask.t()
        states = src.t()  # (S, B) tokens, and above the lowest layer (S, B, M) states
        backwards = reversal(mask)
        finals: list[CellState] = []
        for forward, *backward in self.layers:
            outputs, final = forward.run(states, mask)
            if backward:
                others, other_final = backward[0].run(reverse(states, backwards), mask)
                outputs = torch.cat([outputs, reverse(others, backwards)], 2)
                final = tuple(map(concatenate, final, other_final))
            states = outputs
            finals.append(final)
        return Encoded(states.transpose(0, 1).contiguous(), tuple(finals), src_mask)
