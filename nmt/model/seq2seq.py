"""Encoder and decoder together: p(target | source)."""

import torch
from torch import Tensor, nn

from nmt.model.decoder import Decoder, DecoderState
from nmt.model.encoder import Encoder
from nmt.model.loss import Loss, output_loss


class Seq2Seq(nn.Module):
    """A recurrent translation model."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.initialize()

    def encode(self, src: Tensor, src_mask: Tensor) -> DecoderState:
        """Read (B, S) source ids: the decoder state before the first target token."""
        return self.decoder.start(self.encoder(src, src_mask))

    def forward(self, src: Tensor, src_mask: Tensor, tgt_input: Tensor) -> tuple[Tensor, Tensor]:
        """Predict every token of given translations from the tokens before it.

        Args:
            src: (B, S) source ids, ending in </s>.
            src_mask: (B, S), True at real tokens.
            tgt_input: (B, T) target ids, starting with <s>.

        Returns:
            logits: (B, T, V).
            weights: (B, T, S); row t belongs to the token that position t predicts.
        """
        readouts, weights = self.decoder(tgt_input, self.encode(src, src_mask))
        return self.decoder.output_layer(readouts), weights

    def loss(
        self,
        src: Tensor,
        src_mask: Tensor,
        tgt_input: Tensor,
        tgt_output: Tensor,
        tgt_mask: Tensor,
        label_smoothing: float,
    ) -> Loss:
        """How well given translations are predicted, without ever holding all (B, T, V) logits.

        Args:
            tgt_output: (B, T) the tokens to predict, ending in </s>.
            tgt_mask: (B, T), True at real tokens; the others do not count.
            label_smoothing: probability that is spread over the vocabulary.
        """
        readouts, _ = self.decoder(tgt_input, self.encode(src, src_mask))
        return output_loss(
            readouts, self.decoder.output_layer, tgt_output, tgt_mask, label_smoothing
        )

    @torch.no_grad()
    def initialize(self) -> None:
        """Set all weights at random.

        Embeddings have rows of expected length 1, so that tied logits start small; matrices are
        Glorot-uniform; recurrent matrices are orthogonal, gate by gate; biases are 0, but 1 for
        the forget gate of an LSTM (Jozefowicz et al. 2015).
        """
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
            elif isinstance(module, nn.Linear):
                if module.weight is not self.decoder.embedding.weight:
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.RNNBase):
                _initialize_rnn(module)


def _initialize_rnn(rnn: nn.RNNBase) -> None:
    for name, parameter in rnn.named_parameters():
        if "bias" in name:
            nn.init.zeros_(parameter)
            if isinstance(rnn, nn.LSTM) and "ih" in name:
                parameter[rnn.hidden_size : 2 * rnn.hidden_size] = 1.0  # gates are i, f, g, o
            continue
        for gate in parameter.view(-1, rnn.hidden_size, parameter.size(1)):  # one matrix per gate
            (nn.init.orthogonal_ if "hh" in name else nn.init.xavier_uniform_)(gate)
