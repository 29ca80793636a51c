"""Steps of recurrent cells: of training, forward and backward, and of search.

One row per sentence, or hypothesis. The order of gates is torch's, but in training, for what the
state of a GRU gives: n, r, z (`nmt.model.cell_tape`). Operands that are added may be left out.
Luong's attentional vector, which is fed to a cell, is here too.
"""

from typing import Any

import numpy as np
from numba import njit

from nmt.model.kernels.language import (
    ONE,
    OPTIONS,
    ZERO,
    add,
    floats,
    kernel,
    load,
    load_sums,
    share,
    sigmoid,
    size,
    store,
    tanh,
    words_of,
)


@kernel(0, 1, 2, 3, 7)
def gru_forward(address: Any) -> None:
    """From inputs, addend, recurrent, its bias (3H), hidden to gates (3H), next, next rounded."""
    task = words_of(address)
    dim = size(task, 4)
    x, u = np.empty(3 * dim, np.float32), np.empty(3 * dim, np.float32)
    first, last = share(task)
    for b in range(first, last):
        load(task, 0, b, 0, x)
        add(task, 1, b, x)
        load(task, 2, b, 0, u)
        add(task, 3, 0, u)
        hidden, gates, following = floats(task, 4, b), floats(task, 5, b), floats(task, 6, b)
        for i in range(dim):
            reset = sigmoid(x[i] + u[dim + i])
            update = sigmoid(x[dim + i] + u[2 * dim + i])
            new = tanh(x[2 * dim + i] + reset * u[i])
            gates[i], gates[dim + i], gates[2 * dim + i] = reset, update, new
            following[i] = new + update * (hidden[i] - new)
        store(task, 7, b, 0, following)


@kernel(1, 2, 4, 5, 7, 8)
def gru_backward(address: Any) -> None:
    """From d_hidden, d_output, d_product, gates, recurrent, bias (3H), hidden to d_gates (3H).

    The gradients of both parts, that of the input first. d_hidden becomes that before the step.
    """
    task = words_of(address)
    dim = size(task, 0)
    u = np.empty(3 * dim, np.float32)
    d_x, d_u = np.empty(3 * dim, np.float32), np.empty(3 * dim, np.float32)
    first, last = share(task)
    for b in range(first, last):
        d_hidden, gates, hidden = floats(task, 0, b), floats(task, 3, b), floats(task, 6, b)
        add(task, 1, b, d_hidden)
        add(task, 2, b, d_hidden)
        load(task, 4, b, 0, u)
        add(task, 5, 0, u)
        for i in range(dim):
            reset, update, new = gates[i], gates[dim + i], gates[2 * dim + i]
            kept = d_hidden[i] * update
            passed = d_hidden[i] - kept
            d_new = passed * (ONE - new * new)
            d_reset = d_new * u[i] * reset * (ONE - reset)
            d_update = passed * update * (hidden[i] - new)
            d_x[i], d_x[dim + i], d_x[2 * dim + i] = d_reset, d_update, d_new
            d_u[i], d_u[dim + i], d_u[2 * dim + i] = d_new * reset, d_reset, d_update
            d_hidden[i] = kept
        store(task, 7, b, 0, d_x)
        store(task, 8, b, 0, d_u)


@kernel(0, 1, 2, 3, 9)
def lstm_forward(address: Any) -> None:
    """From inputs, addend, recurrent, its bias (4H), memory to gates (4H) and states.

    The states are the next memory, its tanh, the next one, the same rounded.
    """
    task = words_of(address)
    dim = size(task, 4)
    x = np.empty(4 * dim, np.float32)
    first, last = share(task)
    for b in range(first, last):
        load(task, 0, b, 0, x)
        add(task, 1, b, x)
        add(task, 2, b, x)
        add(task, 3, 0, x)
        memory, gates = floats(task, 4, b), floats(task, 5, b)
        next_memory, shown, following = floats(task, 6, b), floats(task, 7, b), floats(task, 8, b)
        for i in range(dim):
            enter, forget = sigmoid(x[i]), sigmoid(x[dim + i])
            new, leave = tanh(x[2 * dim + i]), sigmoid(x[3 * dim + i])
            gates[i], gates[dim + i] = enter, forget
            gates[2 * dim + i], gates[3 * dim + i] = new, leave
            cell = forget * memory[i] + enter * new
            next_memory[i], shown[i] = cell, tanh(cell)
            following[i] = leave * tanh(cell)
        store(task, 9, b, 0, following)


@kernel(2, 3, 7, 8)
def lstm_backward(address: Any) -> None:
    """From d_hidden, d_memory, d_output, d_product, gates (4H), memory, tanh to both d_gates (4H).

    d_hidden and d_memory become those before the step.
    """
    task = words_of(address)
    dim = size(task, 0)
    d_gates = np.empty(4 * dim, np.float32)
    first, last = share(task)
    for b in range(first, last):
        d_hidden, d_memory = floats(task, 0, b), floats(task, 1, b)
        gates, memory, shown = floats(task, 4, b), floats(task, 5, b), floats(task, 6, b)
        add(task, 2, b, d_hidden)
        add(task, 3, b, d_hidden)
        for i in range(dim):
            enter, forget = gates[i], gates[dim + i]
            new, leave = gates[2 * dim + i], gates[3 * dim + i]
            d_cell = d_memory[i] + d_hidden[i] * leave * (ONE - shown[i] * shown[i])
            d_gates[i] = d_cell * new * enter * (ONE - enter)
            d_gates[dim + i] = d_cell * memory[i] * forget * (ONE - forget)
            d_gates[2 * dim + i] = d_cell * enter * (ONE - new * new)
            d_gates[3 * dim + i] = d_hidden[i] * shown[i] * leave * (ONE - leave)
            d_memory[i] = d_cell * forget
            d_hidden[i] = ZERO
        store(task, 7, b, 0, d_gates)
        store(task, 8, b, 0, d_gates)


@kernel(0, 1, 3)
def join(address: Any) -> None:
    """From attended and part to the tanh of their sum, the same rounded: an attentional vector."""
    task = words_of(address)
    first, last = share(task)
    for b in range(first, last):
        out = floats(task, 2, b)
        load(task, 0, b, 0, out)
        add(task, 1, b, out)
        for i in range(out.size):
            out[i] = tanh(out[i])
        store(task, 3, b, 0, out)


@kernel(0, 1, 4)
def join_backward(address: Any) -> None:
    """From d_output, d_product, output to the gradient of the sum, the same rounded."""
    task = words_of(address)
    first, last = share(task)
    for b in range(first, last):
        output, d_sum = floats(task, 2, b), floats(task, 3, b)
        load(task, 0, b, 0, d_sum)
        add(task, 1, b, d_sum)
        for i in range(d_sum.size):
            d_sum[i] *= ONE - output[i] * output[i]
        store(task, 4, b, 0, d_sum)


@njit(**OPTIONS)
def _load_gates(task: Any, b: Any, gates: Any) -> None:
    """Read what the inputs of a step of search give: operand 0, and the product at operand 1."""
    if size(task, 1):
        load_sums(task, 1, b, 0, gates)
    else:
        gates[:] = ZERO
    add(task, 0, b, gates)


@kernel(sums=(1, 4))
def gru_step(address: Any) -> None:
    """From inputs (3H), two products (3H), of inputs and of the state, hidden to next.

    A product is numbers, scale, bias.
    """
    task = words_of(address)
    dim = size(task, 7)
    x, u = np.empty(3 * dim, np.float32), np.empty(3 * dim, np.float32)
    first, last = share(task)
    for b in range(first, last):
        _load_gates(task, b, x)
        load_sums(task, 4, b, 0, u)
        hidden, following = floats(task, 7, b), floats(task, 8, b)
        for i in range(dim):
            reset, update = sigmoid(x[i] + u[i]), sigmoid(x[dim + i] + u[dim + i])
            new = tanh(x[2 * dim + i] + reset * u[2 * dim + i])
            following[i] = new + update * (hidden[i] - new)


@kernel(sums=(1, 4))
def lstm_step(address: Any) -> None:
    """From inputs (4H), two products (4H), of inputs and of the state, memory to next, next memory.

    A product is numbers, scale, bias.
    """
    task = words_of(address)
    dim = size(task, 7)
    x, u = np.empty(4 * dim, np.float32), np.empty(4 * dim, np.float32)
    first, last = share(task)
    for b in range(first, last):
        _load_gates(task, b, x)
        load_sums(task, 4, b, 0, u)
        memory, following, next_memory = floats(task, 7, b), floats(task, 8, b), floats(task, 9, b)
        for i in range(dim):
            enter, forget = sigmoid(x[i] + u[i]), sigmoid(x[dim + i] + u[dim + i])
            new = tanh(x[2 * dim + i] + u[2 * dim + i])
            leave = sigmoid(x[3 * dim + i] + u[3 * dim + i])
            next_memory[i] = forget * memory[i] + enter * new
            following[i] = leave * tanh(next_memory[i])
