"""The numbers that kernels calculate with, against fp64, and how they are rounded to bf16."""

import numba
import numpy as np
import pytest
import torch

UNIT = 2.0**-23  # from 1 to the next fp32 number


@pytest.fixture
def each(kernels):
    """Applies a function of the language of kernels to each number, compiled as they are."""
    from nmt.model.kernels import language

    def apply(name, numbers, dtype=np.float32):
        function = getattr(language, name)

        @numba.njit(**language.OPTIONS)
        def loop(x, out):
            for i in range(x.size):
                out[i] = function(x[i])

        out = np.empty(numbers.shape, dtype)
        loop(numbers, out)
        return out

    return apply


def between(low, high):
    return np.linspace(low, high, 400_001).astype(np.float32)


def test_the_exponential_is_one_up_to_three_units(each):
    x = between(-80, 80)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(each("exp", x) - exact) < 3 * UNIT * exact).all()


def test_the_exponential_stays_at_its_ends(each):
    x = np.array([80.0, 80.1, 1e30, np.inf, -80.0, -80.1, -1e30, -np.inf], np.float32)
    found = each("exp", x)
    assert (found[:4] == found[0]).all()
    assert (found[4:] == found[4]).all()
    np.testing.assert_allclose(found[[0, 4]], np.exp([80.0, -80.0]), rtol=3 * UNIT)


def test_the_sigmoid_is_one_up_to_three_units_down_to_its_smallest(each):
    x = between(-79, 79)
    exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    assert (np.abs(each("sigmoid", x) - exact) < 3 * UNIT * exact).all()


def test_the_hyperbolic_tangent_is_one_up_to_two_units_of_1(each):
    x = np.concatenate([between(-0.1, 0.1), between(-45, 45)])
    exact = np.tanh(x.astype(np.float64))
    assert (np.abs(each("tanh", x) - exact) < 2 * UNIT).all()


def test_no_number_stays_none(each):
    nan = np.full(37, np.nan, np.float32)
    nan[5] = -np.float32(np.nan)
    for name in ("exp", "sigmoid", "tanh"):
        assert np.isnan(each(name, nan)).all()


def test_far_out_all_of_them_are_saturated(each):
    x = np.array([50.0, 200.0, 1e38, np.inf], np.float32)
    np.testing.assert_allclose(each("sigmoid", x), 1, rtol=UNIT)
    np.testing.assert_allclose(each("tanh", x), 1, rtol=UNIT)
    np.testing.assert_allclose(each("sigmoid", -x), 0, atol=1e-20)
    np.testing.assert_allclose(each("tanh", -x), -1, rtol=UNIT)


# ------------------------------------------------------------------------------------- bf16


def fp32_of_bits(bits):
    return torch.from_numpy(bits.astype(np.uint32).view(np.float32))


@pytest.fixture
def around_every_bf16_number():
    """Each bf16 number, what is next to it, and the ties: signs, subnormals, inf and nan too."""
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    return fp32_of_bits(((np.arange(1 << 16, dtype=np.uint32) << 16)[:, None] | low).ravel())


def assert_same_bits(found, expected):
    """Of two bf16 tensors; one nan is as good as another."""
    assert torch.equal(found.isnan(), expected.isnan())
    found, expected = (x[~expected.isnan()].view(torch.int16) for x in (found, expected))
    assert torch.equal(found, expected)


def test_bf16_numbers_are_rounded_as_torch_rounds_them(each, around_every_bf16_number):
    x = around_every_bf16_number
    found = torch.from_numpy(each("narrow", x.numpy(), np.uint16).view(np.int16))
    assert_same_bits(found.view(torch.bfloat16), x.bfloat16())


def test_a_kernel_writes_bf16_numbers_as_torch_does(kernels, around_every_bf16_number):
    x = around_every_bf16_number.view(6, -1)
    zeros, exact, rounded = torch.zeros_like(x), torch.empty_like(x), x.bfloat16()
    rounded.fill_(7)
    kernels.join_backward(len(x), x, None, zeros, exact, rounded)  # x (1 - 0²)
    assert torch.equal(exact.nan_to_num(3, 5, -5), x.nan_to_num(3, 5, -5))
    assert_same_bits(rounded.flatten(), x.bfloat16().flatten())


def test_a_bf16_number_is_read_as_it_is(each):
    bits = np.arange(1 << 16, dtype=np.uint16)
    found = torch.from_numpy(each("wide", bits))
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float()
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))
