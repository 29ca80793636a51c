"""Segmentations drawn at random, so that training sees each word in several shapes.

SentencePiece can draw them itself, but salts its random numbers anew in every process: a seed
then means something else after a restart, and no run could be resumed exactly.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from random import Random

UNKNOWN_PENALTY = 10.0  # nats that an unknown character is worth less than the worst piece


def sample_unigram(
    text: str, scores: Mapping[str, float], alpha: float, random: Random
) -> list[str]:
    """Draw a segmentation with probability proportional to P(segmentation)^alpha (Kudo 2018).

    Forward filtering, backward sampling: of all segmentations, without listing them.

    Args:
        text: normalised, with `▁` for spaces.
        scores: log-probability of each piece; a character that no piece has stands alone.
        alpha: 0 draws all segmentations alike, a large value only the best.
    """
    longest = max(map(len, scores))
    unknown = min(scores.values()) - UNKNOWN_PENALTY
    totals = [0.0]  # of each prefix: log of the sum over its segmentations
    last: list[list[tuple[float, int]]] = [[]]  # of each prefix: where its last piece may start
    for end in range(1, len(text) + 1):
        found = [
            (totals[start] + alpha * scores[piece], start)
            for start in range(max(0, end - longest), end)
            if (piece := text[start:end]) in scores
        ]
        if text[end - 1] not in scores:
            found.append((totals[end - 1] + alpha * unknown, end - 1))
        best = max(found)[0]
        totals.append(best + math.log(math.fsum(math.exp(value - best) for value, _ in found)))
        last.append(found)
    pieces: list[str] = []
    end = len(text)
    while end:
        weights = [math.exp(value - totals[end]) for value, _ in last[end]]
        (_, start) = random.choices(last[end], weights)[0]
        pieces.append(text[start:end])
        end = start
    return pieces[::-1]


def drop_merges(
    word: str, scores: Mapping[str, float], dropout: float, random: Random
) -> list[str]:
    """Byte pair encoding that leaves out merges at random (Provilkov et al. 2020, algorithm 1).

    Args:
        word: normalised.
        scores: the earlier a piece was learned, the higher.
        dropout: probability to leave a possible merge out at each step.
    """
    pieces = list(word)
    while True:
        merges = [
            (scores[left + right], -i)
            for i, (left, right) in enumerate(pairwise(pieces))
            if left + right in scores and random.random() >= dropout
        ]
        if not merges:
            return pieces
        i = -max(merges)[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
