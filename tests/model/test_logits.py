"""The compiled choice of the best extensions, against the one that search defines."""

from dataclasses import replace

import pytest
import torch

from nmt.model import compiled
from nmt.model.logits import Logits
from nmt.model.products import Sums
from nmt.search.extend import Rules, best_extensions

SIZES = [(1, 1, 2), (1, 1, 64), (3, 1, 65), (2, 5, 200), (4, 3, 1000), (2, 2, 8000)]
KINDS = [torch.float32, torch.bfloat16, torch.int32]
EOS = 1


def random_logits(sentences, beam, vocab, kind=torch.float32, *, has_barriers=False, bias=True):
    generator = torch.Generator().manual_seed(vocab)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    numbers = 4 * random(sentences * beam, vocab)
    scale, offset = None, random(vocab) if bias else None
    if kind == torch.int32:
        numbers, scale = (1000 * numbers).round(), random(vocab).abs() / 1000
    barriers = None
    if has_barriers:
        barriers = torch.zeros(sentences, vocab).masked_fill_(random(sentences, vocab) < 0, -9e9)
        barriers[barriers < 0] = -torch.inf
        barriers[:, EOS % vocab] = 0.0
    return Logits(Sums(numbers.to(kind), scale, offset), torch.float32, barriers)


def random_live(sentences, beam):
    return -3 * torch.rand(sentences, beam, generator=torch.Generator().manual_seed(0))


def best_of(logits, live, n, banned=(), must_end=None):
    must_end = None if must_end is None else torch.tensor(must_end)
    return logits.best_extensions(live, torch.tensor(banned, dtype=torch.long), must_end, EOS, n)


def assert_as_defined(logits, live, n, banned=(), must_end=None):
    """The same extensions in the same order, up to those that rounding makes equal."""
    ends = None if must_end is None else torch.tensor(must_end)
    rules = Rules(torch.tensor(banned, dtype=torch.long), ends, EOS)
    expected = best_extensions(logits.dense().double().float(), live, rules, n)
    found = best_of(logits, live, n, banned, must_end)
    size = expected.log_probs.size(1)
    assert found[0].shape == (len(live), n)
    assert found[0][:, size:].isneginf().all()
    torch.testing.assert_close(found[0][:, :size], expected.log_probs, rtol=1e-6, atol=1e-5)
    there = expected.log_probs > -torch.inf
    gaps = expected.log_probs.diff(dim=1).abs() > 1e-4  # where the order is beyond doubt
    sure = torch.ones_like(there)
    sure[:, 1:] &= gaps
    sure[:, :-1] &= gaps
    if size < live.size(1) * logits.sums.numbers.size(1):
        sure[:, -1] = False  # the next one might be as good
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert one.dtype == torch.long
        assert torch.equal(one[:, :size][there & sure], other[there & sure])
    return found


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("has_barriers", [False, True])
def test_they_are_those_that_search_defines(kernels, sizes, kind, has_barriers):
    logits = random_logits(*sizes, kind, has_barriers=has_barriers)
    for n in (1, 2 * sizes[1], 13):
        assert_as_defined(logits, random_live(*sizes[:2]), n)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_product_may_be_without_bias(kernels, kind):
    logits = random_logits(2, 3, 130, kind, bias=False)
    assert_as_defined(logits, random_live(2, 3), 6)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_banned_tokens_and_sentences_that_must_end_are_heeded(kernels, kind):
    logits, live = random_logits(3, 2, 300, kind), random_live(3, 2)
    favourites = sorted(set(best_of(logits, live, 4)[2].flatten().tolist()))
    found = assert_as_defined(logits, live, 4, favourites)
    assert not set(favourites) & set(found[2].flatten().tolist())
    found = assert_as_defined(logits, live, 4, [0], [True, False, True])
    assert (found[0] > -torch.inf).sum(1).tolist() == [2, 4, 2]
    assert found[2][0, :2].tolist() == [EOS, EOS]
    assert best_of(logits, live, 4, [EOS], [True] * 3)[0].isneginf().all()


def test_of_equal_ones_the_better_hypothesis_comes_first_and_then_the_lower_token(kernels):
    zeros = Logits(Sums(torch.zeros(4, 130)), torch.float32)
    _, parents, token_ids = best_of(zeros, torch.zeros(2, 2), 4, [0, 2])
    assert parents.tolist() == [[0] * 4] * 2
    assert token_ids.tolist() == [[1, 3, 4, 5]] * 2
    zeros.sums.numbers[:, 5:] = -1.0
    _, parents, token_ids = best_of(zeros, torch.zeros(2, 2), 6, [0, 2])
    assert parents.tolist() == [[0, 0, 0, 1, 1, 1]] * 2
    assert token_ids.tolist() == [[1, 3, 4, 1, 3, 4]] * 2


@pytest.mark.parametrize("place", [0, 63, 64, 127, 128, 199])
def test_the_best_is_found_wherever_it_is(kernels, place):
    logits = random_logits(2, 2, 200)
    logits.sums.numbers[1, place] = 50.0
    top, parents, token_ids = best_of(logits, torch.zeros(2, 2), 1)
    assert (parents[0, 0], token_ids[0, 0]) == (1, place)
    assert top[0, 0].item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e30])
def test_logits_of_any_size_are_normalised(kernels, size):
    logits = random_logits(2, 2, 100, bias=False)
    logits.sums.numbers.mul_(size).sub_(size)
    assert_as_defined(logits, torch.zeros(2, 2), 5)


def test_what_is_dead_or_knows_no_token_has_no_extension(kernels):
    logits = random_logits(2, 2, 70)
    logits.sums.numbers[1] = -torch.inf
    live = torch.tensor([[0.0, 0.0], [-1.0, -torch.inf]])
    top, parents, _ = best_of(logits, live, 140)
    assert (top > -torch.inf).sum(1).tolist() == [70, 70]
    assert not parents.any()


def test_no_number_wins_nothing(kernels):
    logits = random_logits(2, 2, 70)
    logits.sums.numbers[0, 3] = torch.nan
    top, parents, token_ids = best_of(logits, torch.zeros(2, 2), 5)
    assert not top.isnan().any()
    assert parents[0].tolist() == [1] * 5
    assert (top[1] > -torch.inf).all()
    assert int(token_ids.max()) < 70


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_neither_threads_nor_other_sentences_change_a_bit(kernels, threads, kind):
    logits, live = random_logits(5, 3, 500, kind, has_barriers=True), random_live(5, 3)
    threads(1)
    expected = best_of(logits, live, 6)
    threads(3)
    assert all(map(torch.equal, best_of(logits, live, 6), expected))
    for i in range(5):
        sums = logits.sums._replace(numbers=logits.sums.numbers[3 * i : 3 * i + 3])
        one = replace(logits, sums=sums, barriers=logits.barriers[i : i + 1])
        alone = best_of(one, live[i : i + 1], 6)
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone, expected, strict=True))


def test_live_may_be_part_of_something_larger(kernels):
    logits, live = random_logits(3, 2, 100), random_live(3, 2)
    part = torch.cat([live, live], 1)[:, :2]
    assert not part.is_contiguous()
    assert all(map(torch.equal, best_of(logits, part, 4), best_of(logits, live, 4)))


# ----------------------------------------------------------------------------- when, and whole


def test_they_are_compiled_in_fp32_on_a_cpu_once_kernels_are_loaded(kernels):
    for kind in KINDS:
        assert random_logits(1, 1, 5, kind).are_compiled()
    logits = random_logits(1, 1, 5, has_barriers=True)
    assert logits.are_compiled()
    assert not replace(logits, dtype=torch.bfloat16).are_compiled()
    assert not replace(logits, barriers=logits.barriers.double()).are_compiled()
    double = Logits(Sums(torch.zeros(1, 5, dtype=torch.float64)), torch.float64)
    assert not double.are_compiled()
    with compiled.torch_only():
        assert not logits.are_compiled()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_dense_logits_are_numbers_times_scale_plus_bias_plus_barrier(kind):
    logits = random_logits(2, 3, 7, kind, has_barriers=True)
    numbers, scale, bias = logits.sums
    expected = numbers.double() * (1 if scale is None else scale.double()) + bias.double()
    torch.testing.assert_close(replace(logits, barriers=None).dense().double(), expected)
    expected = expected + logits.barriers.double().repeat_interleave(3, 0)
    before = numbers.clone()
    torch.testing.assert_close(logits.dense().double(), expected)
    assert logits.dense().dtype == torch.float32
    assert torch.equal(logits.dense(), logits.dense())
    assert torch.equal(numbers, before)


@pytest.mark.parametrize("place", [5, 6, 8, 9])
def test_places_and_tokens_must_be_int32(kernels, place):
    """Taken for what they are not, they would be read and written beyond their ends."""
    zeros, one = torch.zeros(1, 1, 64), torch.zeros(1, 1, dtype=torch.int32)
    operands = [zeros, None, None, None, torch.zeros(1, 1), one, one, torch.zeros(1, 1), one, one]
    kernels.best_extensions(1, *operands)
    operands[place] = torch.zeros(1, 1)
    with pytest.raises(TypeError, match=r"^a kernel cannot read torch.float32 on cpu$"):
        kernels.best_extensions(1, *operands)


def test_tokens_that_do_not_exist_are_not_touched(kernels):
    logits, live = random_logits(2, 2, 70), random_live(2, 2)
    assert all(map(torch.equal, best_of(logits, live, 4, [70, 10**6]), best_of(logits, live, 4)))
    for eos_id in (-1, 70):
        with pytest.raises(IndexError, match=rf"^there is no token {eos_id}$"):
            logits.best_extensions(live, torch.zeros(0, dtype=torch.long), None, eos_id, 4)
