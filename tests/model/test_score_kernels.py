"""Compiled additive scores, with and without factors, against torch's operations in fp64."""

import math

import pytest
import torch

from nmt.model.score_tape import AdditiveTape

SIZES = {
    "one of all": (1, 1, 1, 1),
    "one position": (2, 3, 1, 5),
    "one step": (1, 2, 5, 3),
    "a register": (3, 2, 4, 16),
    "more": (2, 3, 19, 37),
}
FP32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(params=SIZES.values(), ids=SIZES)
def sizes(request):
    """Steps, sentences, positions, numbers of a query."""
    return request.param


@pytest.fixture(params=[FP32, BF16], ids=["fp32", "bf16"])
def precision(request):
    return request.param


@pytest.fixture
def compiled_tape(kernels):
    from nmt.model.compiled_tapes import CompiledAdditiveTape

    return CompiledAdditiveTape


@pytest.fixture
def largest(kernels):
    return float(kernels.LARGEST)


@pytest.fixture(params=["step by step", "all at once"])
def at_once(request):
    return request.param == "all at once"


def operands_of(sizes, precision=FP32, scale=2.0):
    """Queries, part of a larger buffer, keys, energy and gradients of the scores."""
    steps, batch, positions, dim = sizes
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    queries = (scale * random(steps, batch, dim + 5)).to(precision)[..., 2 : 2 + dim]
    keys = (scale * random(batch, positions, dim)).to(precision)
    return [queries, keys, random(dim), random(steps, batch, positions)]


def run(tape_of, queries, keys, energy, d_scores, at_once=True):
    """Forward and backward through all steps."""
    tape = tape_of(queries, keys, energy)
    steps = range(len(queries))
    scores = tape.forward_all() if at_once else torch.stack([tape.forward(t) + 0 for t in steps])
    around = torch.full((*queries.shape[:2], queries.size(2) + 5), 7.0).to(queries.dtype)
    d_queries = around[..., 2:-3]
    tape.prepare(d_scores, d_queries)
    if at_once:
        tape.backward_all()
    else:
        for t in reversed(steps):
            tape.backward(t)
    assert (torch.cat([around[..., :2], around[..., -3:]], -1) == 7).all()
    d_keys, d_energy = tape.gradients()
    return {"scores": scores, "d_queries": d_queries, "d_keys": d_keys, "d_energy": d_energy}


def assert_is_exact(found, operands, at_once=True, atol=2e-6):
    expected = run(AdditiveTape, *(x.double() for x in operands), at_once)
    for name, tensor in found.items():
        is_low = name == "d_queries" and operands[0].dtype == BF16
        assert tensor.dtype == (BF16 if is_low else FP32)
        torch.testing.assert_close(
            tensor.double(),
            expected[name],
            rtol=2.0**-8 if is_low else 1e-5,
            atol=atol * math.sqrt(tensor.numel() if name == "d_energy" else 1) + 1e-5 * is_low,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_scores_and_gradients_are_those_of_fp64(compiled_tape, sizes, precision, at_once):
    operands = operands_of(sizes, precision)
    assert_is_exact(run(compiled_tape, *operands, at_once), operands, at_once, atol=1e-5)


@pytest.mark.parametrize("precisions", [(FP32, BF16), (BF16, FP32)])
def test_queries_and_keys_may_have_different_precisions(compiled_tape, precisions, at_once):
    queries, keys, *others = operands_of((2, 3, 4, 5))
    operands = [queries.to(precisions[0]), keys.to(precisions[1]), *others]
    assert_is_exact(run(compiled_tape, *operands, at_once), operands, at_once)


def test_keys_may_lie_in_memory_in_any_order(compiled_tape):
    queries, keys, *others = operands_of((2, 3, 4, 5))
    turned = keys.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    expected = run(compiled_tape, queries, keys, *others)
    for name, tensor in run(compiled_tape, queries, turned, *others).items():
        assert torch.equal(tensor, expected[name])


def test_positions_without_a_gradient_get_and_give_none(compiled_tape, at_once):
    """Such as padding, whatever its keys are."""
    operands = operands_of((3, 2, 4, 5))
    operands[3][:, 1, 2:] = 0
    found = run(compiled_tape, *operands, at_once)
    assert_is_exact(found, operands, at_once)
    assert not found["d_keys"][1, 2:].any()
    assert found["d_keys"][0].all()
    operands[1][1, 2:] = 3.0
    again = run(compiled_tape, *operands, at_once)
    for name in ("d_queries", "d_keys", "d_energy"):
        assert torch.equal(again[name], found[name])


# ------------------------------------------------------------------------------ large numbers


def test_keys_have_factors_as_long_as_all_are_in_range(compiled_tape, largest):
    beyond = math.nextafter(largest, math.inf) + 1e-5
    queries, keys, energy, _ = operands_of((1, 2, 3, 4))
    for number, is_in_range in (
        (largest, True),
        (-largest, True),
        (beyond, False),
        (-beyond, False),
        (math.inf, False),
        (-math.inf, False),
        (math.nan, False),
    ):
        keys[1, 2, 3] = number
        factors = compiled_tape(queries, keys, energy).factors
        assert (factors is not None) == is_in_range
        if is_in_range:
            torch.testing.assert_close(factors, torch.exp(-keys))


def test_a_product_of_factors_in_range_is_no_overflow(compiled_tape, largest):
    extremes = torch.tensor([largest, -largest])
    factors = compiled_tape(extremes.view(2, 1, 1), extremes.view(1, 2, 1), torch.ones(1)).factors
    products = torch.exp(-extremes) * factors.view(2, 1)
    assert products.isfinite().all()
    assert (products > torch.finfo(torch.float32).tiny).all()


@pytest.mark.parametrize("outside", ["queries", "keys", "both", "neither"])
@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_out_of_range_which_may_cancel_are_as_exact(
    compiled_tape, largest, outside, sign, at_once
):
    """Sums of halves and quarters are exact, so that only what comes after them is at stake."""
    operands = [(x * 4).round() / 4 for x in operands_of((3, 2, 5, 37))]
    far = sign * torch.tensor([300.0, 0.25, largest + 0.25, 150, 81, 1, 120])
    far = far if outside != "neither" else far.clamp(-largest, largest)
    if outside != "keys":
        operands[0][1, 0, :7] = far  # one query of many
    if outside != "queries":
        operands[1][0, 3, :7] = -far + 0.5
        operands[1][1, 1, 7:14] = -far
    assert_is_exact(run(compiled_tape, *operands, at_once), operands, at_once, atol=1e-5)


@pytest.mark.parametrize("v", [1.0, -1.0, 3e-4, -2e5, 5e-25, 1e-42, 0.0])
@pytest.mark.parametrize("has_factors", [True, False])
def test_a_score_is_v_times_the_sigmoid_whatever_v_is(compiled_tape, largest, v, has_factors):
    q = torch.tensor([0.0, 1.5, -3.0, 20.0, -20.0, largest, -largest]).view(-1, 1, 1)
    k = torch.tensor([0.0, -1.5, 2.5, 19.0, -21.0, largest, -largest, 1e-6])
    if not has_factors:
        k = torch.cat([k, torch.tensor([largest + 1])])
    k, energy = k.view(1, -1, 1), torch.tensor([v])
    scores = compiled_tape(q, k, energy).forward_all()
    hidden = torch.sigmoid(q.double() + k.double().squeeze(2))
    exact = energy.double() * hidden
    tolerance = abs(v) * 1e-34 + 2e-45  # sigmoid(-80), and the smallest number
    torch.testing.assert_close(scores.double(), exact, rtol=1e-5, atol=tolerance)


def test_the_smallest_slopes_reach_the_gradients(compiled_tape, largest):
    for q in (largest / 2, -largest / 2, 30.0):
        operands = operands_of((1, 1, 2, 3))
        operands[0][:] = q
        operands[1][:] = torch.tensor([0.5, 2.0, -3.0])
        found = run(compiled_tape, *operands)
        exact = run(AdditiveTape, *(x.double() for x in operands))
        if q < 0:  # at the other end 1 - sigmoid is lost in fp32, as it is with torch
            for name in ("d_queries", "d_keys"):
                torch.testing.assert_close(found[name].double(), exact[name], rtol=1e-4, atol=0)
        else:
            for name in ("d_queries", "d_keys"):
                torch.testing.assert_close(found[name].double(), exact[name], rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------- invariances


@pytest.mark.parametrize("num_threads", [2, 3])
@pytest.mark.parametrize("scale", [2.0, 30.0])
def test_threads_change_no_bit_of_scores(
    compiled_tape, precision, threads, num_threads, scale, at_once
):
    operands = operands_of((2, 5, 7, 37), precision, scale)
    threads(1)
    alone = run(compiled_tape, *operands, at_once)
    threads(num_threads)
    for name, tensor in run(compiled_tape, *operands, at_once).items():
        assert torch.equal(tensor, alone[name]), name


def test_all_at_once_is_step_by_step_bit_for_bit(compiled_tape, precision):
    operands = operands_of((3, 2, 5, 37), precision)
    expected = run(compiled_tape, *operands, at_once=False)
    for name, tensor in run(compiled_tape, *operands, at_once=True).items():
        assert torch.equal(tensor, expected[name]), name


def test_a_sentence_is_itself_in_any_batch_and_any_order_bit_for_bit(compiled_tape, at_once):
    queries, keys, energy, d_scores = operands_of((2, 4, 5, 37))
    together = run(compiled_tape, queries, keys, energy, d_scores, at_once)
    for rows in ([2], [3, 1, 0, 2], [1, 3]):
        some = run(compiled_tape, queries[:, rows], keys[rows], energy, d_scores[:, rows], at_once)
        assert torch.equal(some["scores"], together["scores"][:, rows])
        assert torch.equal(some["d_queries"], together["d_queries"][:, rows])
        assert torch.equal(some["d_keys"], together["d_keys"][rows])


# ------------------------------------------------------------- numbers that are not finite

NAMES = ["queries", "keys", "energy", "d_scores"]
PLACES = [(0, 1, 4), (1, 2, 4), (4,), (0, 1, 2)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_no_number_stays_none(compiled_tape, precision, name, scale, at_once):
    operands = operands_of((2, 3, 4, 5), precision, scale)
    i = NAMES.index(name)
    operands[i][PLACES[i]] = torch.nan
    found = run(compiled_tape, *operands, at_once)
    expected = run(AdditiveTape, *(x.double() for x in operands), at_once)
    assert any(tensor.isnan().any() for tensor in expected.values())
    for key, tensor in found.items():
        assert torch.equal(tensor.isnan(), expected[key].isnan()), key


@pytest.mark.parametrize("number", [torch.inf, -torch.inf])
@pytest.mark.parametrize("name", NAMES)
def test_where_infinity_makes_no_number_of_torch_it_makes_none_of_a_kernel(
    compiled_tape, name, number, at_once
):
    operands = operands_of((2, 3, 4, 5))
    i = NAMES.index(name)
    operands[i][PLACES[i]] = number
    assert_is_as_finite(compiled_tape, operands, at_once)


def test_infinities_that_cancel_are_no_number(compiled_tape, at_once):
    operands = operands_of((2, 3, 4, 5))
    operands[0][0, 1, 4], operands[1][1, 2, 4] = torch.inf, -torch.inf
    found = assert_is_as_finite(compiled_tape, operands, at_once)
    assert found["scores"][0, 1, 2].isnan()
    assert found["d_queries"][0, 1, 4].isnan()
    assert found["d_keys"][1, 2, 4].isnan()


def assert_is_as_finite(compiled_tape, operands, at_once):
    found, plain = run(compiled_tape, *operands, at_once), run(AdditiveTape, *operands, at_once)
    for key, expected in plain.items():
        assert not found[key][~expected.isfinite()].isfinite().any(), key
        is_finite = expected.isfinite() & found[key].isfinite()
        torch.testing.assert_close(found[key][is_finite], expected[is_finite], rtol=1e-5, atol=1e-5)
    return found
