"""What a CPU does fastest in one loop, as the loop that it is, compiled by Numba.

torch has fast operations, but each one reads and writes memory, and a recurrent cell takes a dozen
of them. Here a cell, an attention step, or its gradient is one pass over numbers that stay in the
processor's registers. `nmt.model.compiled` says when kernels are used, and runs them.

A kernel does the same for many rows, of which each thread gets its share. Nothing depends on how
many threads there are, nor on what is in other rows.
"""

from nmt.model.kernels.attention import (
    LARGEST,
    additive_backward,
    additive_gradients,
    additive_scores,
    attend,
    attend_backward,
)
from nmt.model.kernels.cells import (
    gru_backward,
    gru_forward,
    join,
    join_backward,
    lstm_backward,
    lstm_forward,
)

__all__ = [
    "LARGEST",
    "additive_backward",
    "additive_gradients",
    "additive_scores",
    "attend",
    "attend_backward",
    "gru_backward",
    "gru_forward",
    "join",
    "join_backward",
    "lstm_backward",
    "lstm_forward",
]
