"""Batches of sentence pairs: which pairs stand together, in which order, as padded tensors.

The order is a pure function of (seed, epoch): nothing of it needs to be saved for a run to go on
exactly where it stopped.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nmt.data.store import Side, TokenStore
from nmt.text.tokenizer import BOS_ID, EOS_ID, PAD_ID

POOL = 1 << 20  # pairs sorted at a time


@dataclass(frozen=True)
class Batch:
    """Padded sentence pairs."""

    src: Tensor
    """(B, S) ending in </s>."""
    src_mask: Tensor
    """(B, S) bool, True at real tokens."""
    tgt_input: Tensor
    """(B, T) `<s> y`."""
    tgt_output: Tensor
    """(B, T) `y </s>`."""
    tgt_mask: Tensor
    """(B, T) bool, True at real tokens."""
    lines: list[int]
    """B 1-based line numbers in the corpus."""
    num_tokens: int
    """Real target tokens, </s> included."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(
            self.src.to(device),
            self.src_mask.to(device),
            self.tgt_input.to(device),
            self.tgt_output.to(device),
            self.tgt_mask.to(device),
            self.lines,
            self.num_tokens,
        )

    def halves(self) -> "list[Batch]":
        """The same pairs in two batches, without columns of nothing but padding.

        A batch of one pair is given back as it is.
        """
        middle = len(self.src) // 2
        if middle == 0:
            return [self]
        return [self._rows(slice(None, middle)), self._rows(slice(middle, None))]

    def _rows(self, rows: slice) -> "Batch":
        src_mask, tgt_mask = self.src_mask[rows], self.tgt_mask[rows]
        src_length, tgt_length = int(src_mask.sum(1).max()), int(tgt_mask.sum(1).max())
        return Batch(
            self.src[rows, :src_length],
            src_mask[:, :src_length],
            self.tgt_input[rows, :tgt_length],
            self.tgt_output[rows, :tgt_length],
            tgt_mask[:, :tgt_length],
            self.lines[rows],
            int(tgt_mask.sum()),
        )


def plan_epoch(
    src_lengths: np.ndarray, tgt_lengths: np.ndarray, batch_tokens: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Cut all pairs into batches of similar target lengths, in random order.

    The steps of a recurrent decoder are the longest target of the batch, so pairs are sorted by
    target length first; among equals by source length, in turns upwards and downwards, so that
    sources are alike too in a batch with targets of two lengths; then at random.

    Args:
        batch_tokens: most target positions of a batch, padding and </s> included. A pair that
            is longer on its own makes a batch of one.

    Returns:
        For each batch the indices of its pairs; every pair is in exactly one batch.
    """
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = random.permutation(len(tgt_lengths))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), POOL):
        pool = order[start : start + POOL]
        src, tgt = src_lengths[pool].astype(np.int64), tgt_lengths[pool]
        pool = pool[np.lexsort((np.where(tgt % 2, -src, src), tgt))]
        positions = tgt_lengths[pool].tolist()
        first = 0
        for i, length in enumerate(positions):
            if i > first and (i - first + 1) * (length + 1) > batch_tokens:
                batches.append(pool[first:i])
                first = i
        batches.append(pool[first:])
    return [batches[i] for i in random.permutation(len(batches))]


Sampler = Callable[[str, int], list[int]]
"""Sentence and seed → token ids of a segmentation drawn at random."""


@dataclass(frozen=True)
class Batches:
    """All batches of a corpus, epoch after epoch.

    Attributes:
        samplers: for each side how to draw a segmentation; None: as stored.
    """

    store: TokenStore
    batch_tokens: int
    seed: int
    samplers: dict[Side, Sampler] | None = None

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch as indices of pairs."""
        return plan_epoch(
            self.store.lengths("src"),
            self.store.lengths("tgt"),
            self.batch_tokens,
            self.seed,
            epoch,
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from the given one on."""
        for indices in self.plan(epoch)[start:]:
            yield self.batch(indices, epoch)

    def largest(self) -> Batch:
        """The batch of the first epoch with the most positions, padding included."""
        src, tgt = self.store.lengths("src"), self.store.lengths("tgt")

        def positions(indices: np.ndarray) -> int:
            return len(indices) * int(src[indices].max() + tgt[indices].max() + 2)

        return self.batch(max(self.plan(0), key=positions), 0)

    def batch(self, indices: np.ndarray, epoch: int) -> Batch:
        """Pad the given pairs into a batch."""
        return make_batch(
            [self._token_ids("src", int(i), epoch) for i in indices],
            [self._token_ids("tgt", int(i), epoch) for i in indices],
            self.store.lines[indices].tolist(),
        )

    def _token_ids(self, side: Side, index: int, epoch: int) -> np.ndarray:
        if self.samplers is None:
            return self.store.token_ids(side, index)
        seed = np.random.SeedSequence([self.seed, epoch, index, side == "tgt"])
        sampled = self.samplers[side](
            self.store.text(side, index), int(seed.generate_state(1)[0] >> 1)
        )
        return np.array(sampled)


def make_batch(
    src: list[np.ndarray], tgt: list[np.ndarray], lines: list[int] | None = None
) -> Batch:
    """Pad sentences of token ids (without special tokens) into a batch."""
    src_ids, src_mask = pad(src, EOS_ID)
    tgt_output, tgt_mask = pad(tgt, EOS_ID)
    tgt_input, _ = pad(tgt, BOS_ID, before=True)
    return Batch(
        src_ids,
        src_mask,
        tgt_input,
        tgt_output,
        tgt_mask,
        lines or [],
        int(tgt_mask.sum()),
    )


def pad(
    sentences: list[np.ndarray], special: int, *, before: bool = False
) -> tuple[Tensor, Tensor]:
    """Put sentences under each other, each with a special token after it, or before it.

    Returns:
        ids: (B, longest + 1).
        mask: (B, longest + 1) bool, True where they are real.
    """
    lengths = np.array([len(ids) for ids in sentences])
    columns = np.arange(lengths.max() + 1)
    ids = np.full((len(sentences), len(columns)), PAD_ID, np.int64)
    room = ids[:, 1:] if before else ids[:, :-1]
    room[columns[:-1] < lengths[:, None]] = np.concatenate(sentences)
    ids[np.arange(len(sentences)), 0 if before else lengths] = special
    return torch.from_numpy(ids), torch.from_numpy(columns <= lengths[:, None])
