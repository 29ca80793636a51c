"""A step of a cell of a search: the compiled loop, torch's operations and torch's cells agree."""

import pytest
import torch
from torch import nn

from nmt.model import compiled
from nmt.model.folded_cell import cell_step
from nmt.model.products import Sums

KINDS = [torch.float32, torch.bfloat16, torch.int32]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def random_sums(rows, size, kind, seed=0, *, bias=True):
    numbers, scale, offset = random(rows, size, seed=seed), None, random(size, seed=seed)
    if kind == torch.int32:
        numbers, scale = (1000 * numbers).round(), random(size, seed=seed + 1).abs() / 1000
    return Sums(numbers.to(kind), scale, offset if bias else None)


def random_state(cell, rows, dim, dtype=torch.float32):
    states = random(rows, dim).tanh(), random(rows, dim, seed=5)
    return tuple(x.to(dtype) for x in (states if cell == "lstm" else states[:1]))


def gates_of(cell):
    return 4 if cell == "lstm" else 3


def by_torchs_cell(cell, x, h, state):
    """Gates that are given, as if they had been products with identity matrices."""
    dim = state[0].size(1)
    module = (nn.LSTMCell if cell == "lstm" else nn.GRUCell)(x.size(1), dim).double()
    found = []
    with torch.no_grad():
        module.weight_ih.copy_(torch.eye(x.size(1)))
        module.weight_hh.zero_()
        module.bias_ih.zero_()
        for row in range(len(x)):
            module.bias_hh.copy_(h[row])
            old = tuple(s[row : row + 1].double() for s in state)
            new = module(x[row : row + 1], old if cell == "lstm" else old[0])
            found.append(new if cell == "lstm" else (new,))
    return tuple(torch.cat(tensors) for tensors in zip(*found, strict=True))


@pytest.mark.parametrize("sizes", [(1, 1), (3, 7), (5, 16), (2, 37)], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("given", ["inputs", "product", "both"])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_step_of_torchs_cell(way, cell, sizes, kind, given, bias):
    rows, dim = sizes
    size = gates_of(cell) * dim
    inputs = None if given == "product" else random(rows, size, seed=3)
    product = None if given == "inputs" else random_sums(rows, size, kind, 4, bias=bias)
    recurrent = random_sums(rows, size, kind, 6, bias=bias)
    state = random_state(cell, rows, dim)
    with way():
        found = cell_step(inputs, product, recurrent, state)
    x = torch.zeros(rows, size, dtype=torch.float64)
    x += 0 if inputs is None else inputs
    x += 0 if product is None else product.to(torch.float64)
    expected = by_torchs_cell(cell, x, recurrent.to(torch.float64), state)
    assert len(found) == len(state)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, **CLOSE)


def operands_of(cell, rows=5, dim=9, kind=torch.float32, dtype=torch.float32):
    size = gates_of(cell) * dim
    product = Sums(*(x if x is None else x.to(dtype) for x in random_sums(rows, size, kind, 4)))
    return random(rows, size).to(dtype), product, product, random_state(cell, rows, dim, dtype)


def test_it_is_compiled_where_it_can_be(runs_of, cell):
    def runs(*operands):
        return runs_of(lambda: cell_step(*operands))

    assert runs(*operands_of(cell)) == {f"{cell}_step": 1}
    assert runs(*operands_of(cell, dtype=torch.float64)) == {}
    assert runs(*operands_of(cell, dtype=torch.bfloat16)) == {}
    with compiled.torch_only():
        assert runs(*operands_of(cell)) == {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_states_keep_their_type(way, cell, dtype):
    with way():
        assert {x.dtype for x in cell_step(*operands_of(cell, dtype=dtype))} == {dtype}


def test_operands_may_be_parts_of_others_and_are_left_as_they_are(way, cell):
    inputs, product, recurrent, state = operands_of(cell)
    with way():
        expected = cell_step(inputs, product, recurrent, state)
        apart = torch.cat([inputs, inputs], 1)[:, : inputs.size(1)]
        wide = Sums(torch.cat([recurrent.numbers, recurrent.numbers], 1), None, recurrent.bias)
        narrow = Sums(wide.numbers[:, : inputs.size(1)], None, wide.bias)
        before = [x.clone() for x in (apart, wide.numbers, *state)]
        found = cell_step(apart, product, narrow, state)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert all(map(torch.equal, (apart, wide.numbers, *state), before))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_neither_threads_nor_other_rows_change_a_bit(kernels, threads, cell, kind):
    inputs, product, recurrent, state = operands_of(cell, kind=kind)
    threads(1)
    expected = cell_step(inputs, product, recurrent, state)
    threads(3)
    assert all(map(torch.equal, cell_step(inputs, product, recurrent, state), expected))
    alone = cell_step(
        inputs[2:3],
        product._replace(numbers=product.numbers[2:3]),
        recurrent._replace(numbers=recurrent.numbers[2:3]),
        tuple(x[2:3] for x in state),
    )
    assert all(torch.equal(a[0], b[2]) for a, b in zip(alone, expected, strict=True))


def test_no_number_stays_none(way, cell):
    inputs, product, recurrent, state = operands_of(cell)
    inputs[1, 0] = torch.nan
    with way():
        found = cell_step(inputs, product, recurrent, state)
    assert found[0][1, 0].isnan()
    assert found[0].isnan().sum() == 1
