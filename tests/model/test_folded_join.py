"""Contexts and readouts of a search: compiled loops, torch's operations and the formula agree."""

from dataclasses import replace

import pytest
import torch

from nmt.model import compiled, folded_attention
from nmt.model.folded_attention import FoldedMemory, add_context, join, join_context
from nmt.model.products import Sums

SIZES = [(1, 1, 1, 1), (3, 2, 4, 7), (2, 5, 5, 16), (2, 1, 6, 37), (4, 3, 7, 9), (2, 2, 40, 64)]
KINDS = [torch.float32, torch.bfloat16, torch.int32]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def random_memory(sentences, positions, dim):
    values = random(sentences, positions, dim)
    mask = torch.ones(sentences, positions, dtype=torch.bool)
    return FoldedMemory(values, values, mask, None, None)


def random_weights(sentences, beam, positions):
    return random(sentences, beam, positions, seed=1).softmax(-1)


def random_sums(rows, dim, kind, *, bias=True):
    numbers, scale = random(rows, dim, seed=2), None
    if kind == torch.int32:
        numbers, scale = (1000 * numbers).round(), random(dim, seed=3).abs() / 1000
    return Sums(numbers.to(kind), scale, random(dim, seed=4) if bias else None)


def exact_contexts(weights, memory):
    """(N, out) in fp64."""
    return torch.einsum("bks,bso->bko", weights.double(), memory.states.double()).flatten(0, 1)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_contexts_are_means_under_the_weights(way, sizes):
    sentences, beam, positions, dim = sizes
    memory = random_memory(sentences, positions, dim)
    weights, rows = random_weights(sentences, beam, positions), random(sentences * beam, dim)
    before = rows.clone()
    with way():
        found = add_context(rows, weights, memory)
    torch.testing.assert_close(found.double(), rows + exact_contexts(weights, memory), **CLOSE)
    assert torch.equal(rows, before)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_an_attentional_vector_is_the_tanh_of_product_and_context(way, sizes, kind, bias):
    sentences, beam, positions, dim = sizes
    memory, weights = random_memory(sentences, positions, dim), random_weights(*sizes[:3])
    wide = random_sums(sentences * beam, dim + 3, kind, bias=bias)
    product, _ = wide.split(dim)
    with way():
        found = join_context(product, weights, memory)
    exact = torch.tanh(product.to(torch.float64) + exact_contexts(weights, memory))
    torch.testing.assert_close(found.double(), exact, **CLOSE)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("sizes", [(1, 1), (3, 7), (4, 64)], ids=str)
def test_a_readout_is_the_tanh_of_rows_and_product(way, sizes, kind):
    rows, dim = sizes
    seen, product = random(rows, dim + 2)[:, 2:], random_sums(rows, dim, kind)
    with way():
        found = join(seen, product)
    exact = torch.tanh(seen.double() + product.to(torch.float64))
    torch.testing.assert_close(found.double(), exact, **CLOSE)


def test_they_are_compiled_where_they_can_be(runs_of):
    memory, weights = random_memory(3, 4, 7), random_weights(3, 2, 4)
    product, rows = random_sums(6, 7, torch.int32), random(6, 7)

    def do():
        add_context(rows, weights, memory)
        join_context(product, weights, memory)
        join(rows, product)

    assert runs_of(do) == {"add_context": 1, "join_step": 2}
    with compiled.torch_only():
        assert runs_of(do) == {}
    memory, weights, rows = replace(memory, states=memory.states.double()), weights.double(), rows
    product, rows = random_sums(6, 7, torch.float32, bias=False), rows.double()
    product = product._replace(numbers=product.numbers.double())
    assert runs_of(do) == {}


def test_packed_values_are_read_as_they_are(way, monkeypatch):
    """Here by torch, since not every processor packs."""
    memory, weights = random_memory(3, 4, 7), random_weights(3, 2, 4)
    product, rows = random_sums(6, 7, torch.float32), random(6, 7)
    packed = replace(
        memory, states=memory.states[..., :0], packed=tuple(x.t() for x in memory.states)
    )
    linear = torch.nn.functional.linear
    monkeypatch.setattr(folded_attention.onednn, "linear", linear)
    for function, first in ((add_context, rows), (join_context, product)):
        with way():
            found = function(first, weights, packed)
            expected = function(first, weights, memory)
        torch.testing.assert_close(found, expected, **CLOSE)


def test_neither_threads_nor_other_sentences_change_a_bit(kernels, threads):
    memory, weights = random_memory(5, 9, 37), random_weights(5, 3, 9)
    product = random_sums(15, 37, torch.int32)
    threads(1)
    expected = join_context(product, weights, memory)
    threads(3)
    assert torch.equal(join_context(product, weights, memory), expected)
    alone = join_context(
        product._replace(numbers=product.numbers[6:9]),
        weights[2:3],
        memory.keep(torch.tensor([2])),
    )
    assert torch.equal(alone, expected[6:9])


def test_no_number_stays_none(way):
    memory, weights = random_memory(2, 5, 7), random_weights(2, 2, 5)
    memory.states[1, 4, 3] = torch.nan
    product = random_sums(4, 7, torch.float32)
    with way():
        found = join_context(product, weights, memory)
    assert found.isnan().nonzero().tolist() == [[2, 3], [3, 3]]
