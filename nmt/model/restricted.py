"""A decoder that chooses among a few words only: those that its sentence allows.

The vocabulary layer is most of the work of translating. So it is cut to the words that some
sentence of the batch allows, and of these each sentence sees its own: what is found for a sentence
does not depend on the others.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nmt.model.decoder import DecoderState
from nmt.model.encoder import Encoded
from nmt.model.folded import BLOCK, FoldedDecoder
from nmt.model.logits import Logits


@dataclass(frozen=True)
class RestrictedState:
    """The state of a decoder, and what each sentence may say."""

    inner: DecoderState
    barriers: Tensor
    """(B, C) 0 where a sentence allows a word, -inf where it does not."""

    def select(self, rows: Tensor) -> "RestrictedState":
        """Keep, repeat or permute rows inside their sentences."""
        return replace(self, inner=self.inner.select(rows))

    def keep(self, sentences: Tensor) -> "RestrictedState":
        """Keep all rows of the given sentences, and drop the other sentences."""
        return RestrictedState(self.inner.keep(sentences), self.barriers[sentences])


class RestrictedDecoder:
    """Calls the C words that a batch allows by their places in `token_ids`.

    Args:
        allowed: of each sentence the token ids it allows, sorted.

    Attributes:
        token_ids: (C,) ids of all that are allowed, sorted, and then 0 up to a multiple of
            `BLOCK`, which no sentence allows.
        num_words: of them that stand for themselves.
    """

    def __init__(self, decoder: FoldedDecoder, allowed: Sequence[Tensor]) -> None:
        words = torch.unique(torch.cat(list(allowed)))
        self.num_words = len(words)
        self.token_ids = torch.nn.functional.pad(words, (0, -len(words) % BLOCK))
        self.barriers = torch.full(
            (len(allowed), len(self.token_ids)),
            -torch.inf,
            dtype=decoder.dtype,
            device=words.device,
        )
        for barrier, token_ids in zip(self.barriers, allowed, strict=True):
            barrier[self.places(token_ids)] = 0
        self.decoder = copy.copy(decoder)
        self.decoder.output = decoder.output.rows(self.token_ids)

    def places(self, token_ids: Tensor) -> Tensor:
        """Where allowed token ids are in `token_ids`."""
        return torch.searchsorted(self.token_ids[: self.num_words], token_ids)

    def start(self, encoded: Encoded, beam_size: int = 1) -> RestrictedState:
        """The state before the first target token, like `FoldedDecoder.start`."""
        return RestrictedState(self.decoder.start(encoded, beam_size), self.barriers)

    def step(self, places: Tensor, state: RestrictedState) -> tuple[Logits, RestrictedState]:
        """Read one token per row and predict the next.

        Args:
            places: (N,) the previous target token of each row, as a place.

        Returns:
            logits: (N, C) of the next token; -inf where its sentence does not allow it.
            state: the state after this step.
        """
        logits, _, inner = self.decoder.step(self.token_ids[places], state.inner)
        return logits.behind(state.barriers), replace(state, inner=inner)
