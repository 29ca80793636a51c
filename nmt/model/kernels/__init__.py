"""What a CPU does fastest in one loop, as the loop that it is, compiled by Numba.

torch has fast operations, but each one reads and writes memory, and a recurrent cell takes a dozen
of them. Here a cell, an attention step, or its gradient is one pass over numbers that stay in the
processor's registers. `nmt.model.compiled` says when kernels are used, and runs them.

A kernel does the same for many rows, of which each thread gets its share. Nothing depends on how
many threads there are, nor on what is in other rows.
"""

from nmt.model.kernels.attention import (
    LARGEST,
    add_context,
    additive_backward,
    additive_gradients,
    additive_scores,
    attend,
    attend_backward,
    join_step,
)
from nmt.model.kernels.cells import (
    gru_backward,
    gru_forward,
    gru_step,
    join,
    join_backward,
    lstm_backward,
    lstm_forward,
    lstm_step,
)
from nmt.model.kernels.extensions import best_extensions

OF_SEARCH = (add_context, additive_scores, best_extensions, gru_step, join_step, lstm_step)
"""What a search runs; all others are of training."""

__all__ = [
    "LARGEST",
    "OF_SEARCH",
    "add_context",
    "additive_backward",
    "additive_gradients",
    "additive_scores",
    "attend",
    "attend_backward",
    "best_extensions",
    "gru_backward",
    "gru_forward",
    "gru_step",
    "join",
    "join_backward",
    "join_step",
    "lstm_backward",
    "lstm_forward",
    "lstm_step",
]
