"""The n largest of many numbers, with ties broken from left to right.

They lie in the n blocks with the largest maxima, so `largest` looks for these blocks first, and
then only inside them. It is exact: it gives what `largest_plainly` gives.
"""

import torch
from torch import Tensor, nn

BLOCK = 64


def largest(values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n largest numbers of each row, largest first; of equal ones the leftmost first.

    Args:
        values: (B, L) fp32, without nan.
        n: at most L.

    Returns:
        The numbers and their places in the row, (B, n) each.
    """
    num_rows, length = values.shape
    if length < 4 * n * BLOCK:  # most blocks would be looked into
        return _largest(values, n)
    if missing := -length % BLOCK:
        values = nn.functional.pad(values, (0, missing), value=-torch.inf)
    blocks = values.view(num_rows, -1, BLOCK)
    _, best_blocks = _largest(blocks.amax(2), n)  # (B, n)
    best_blocks = best_blocks.sort(1)[0]  # left to right, so that the leftmost stays leftmost
    inside = blocks.gather(1, best_blocks.unsqueeze(2).expand(-1, -1, BLOCK)).flatten(1)
    largest_values, places = _largest(inside, n)
    return largest_values, best_blocks.gather(1, places // BLOCK) * BLOCK + places % BLOCK


def largest_plainly(values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The definition of `largest`."""
    ordered, places = values.sort(dim=1, descending=True, stable=True)
    return ordered[:, :n], places[:, :n]


def _largest(values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """`largest` in one go.

    Few numbers are sorted. `topk`, for many, breaks ties as it likes. So it gets integers, all
    different, in the order that is wanted: the number in the upper half of 64 bits, and below it
    the distance to the right end.
    """
    if values.size(1) <= BLOCK:
        return largest_plainly(values, n)
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes -0.0 to 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the fp32 numbers
    last = values.size(1) - 1
    left = torch.arange(last, -1, -1, device=values.device)
    keys = (ordered.long() << 32) | left
    places = last - (keys.topk(n, 1)[0] & 0xFFFFFFFF)
    return values.gather(1, places), places
