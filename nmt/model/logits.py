"""Logits of a step of search, and the choice of the best extensions from them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nmt.model.compiled import suits
from nmt.model.products import Sums


@dataclass(frozen=True)
class Logits:
    """Unnormalised log-probabilities of the next token, not calculated to the end.

    Attributes:
        sums: (N, V).
        dtype: in which they are wanted.
        barriers: (B, V) what is added to each of the N / B rows of a sentence; None is nothing.
    """

    sums: Sums
    dtype: torch.dtype
    barriers: Tensor | None = None

    def behind(self, barriers: Tensor) -> "Logits":
        """The same with barriers."""
        return replace(self, barriers=barriers)

    def dense(self) -> Tensor:
        """All of them, (N, V)."""
        logits = self.sums.to(self.dtype)
        if self.barriers is None:
            return logits
        by_sentence = logits.view(len(self.barriers), -1, logits.size(1))  # (B, K, V)
        return (by_sentence + self.barriers.unsqueeze(1)).view_as(logits)

    def are_compiled(self) -> bool:
        """Whether there is a compiled loop for `best_extensions`."""
        return self.dtype == torch.float32 and suits(*self.sums, self.barriers)

    def best_extensions(
        self, live: Tensor, banned_ids: Tensor, must_end: Tensor | None, eos_id: int, n: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The n best extensions of each sentence, as `nmt.search.extend` defines them, compiled.

        Args:
            live: (B, K) log-probabilities of the hypotheses so far.
            banned_ids: (X,) tokens that may not come next.
            must_end: (B,) bool, sentences in which only </s> may.

        Returns:
            Log-probabilities, parents and token ids, (B, n) each, best first. Beyond the last
            extension there is, -inf and zeros.
        """
        from nmt.model import kernels

        if not 0 <= eos_id < self.sums.numbers.size(1):
            raise IndexError(f"there is no token {eos_id}")
        num_sentences = len(live)
        only = torch.full((num_sentences, 1), -1, dtype=torch.int32)
        if must_end is not None:
            only.masked_fill_(must_end.unsqueeze(1), eos_id)
        top = live.new_empty(num_sentences, n)
        parents, token_ids = torch.empty(2, num_sentences, n, dtype=torch.int32)
        kernels.best_extensions(
            num_sentences,
            self.sums.numbers.view(*live.shape, -1),
            self.sums.scale,
            self.sums.bias,
            self.barriers,
            live,
            banned_ids.int(),
            only,
            top,
            parents,
            token_ids,
        )
        return top, parents.long(), token_ids.long()
