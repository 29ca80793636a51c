"""Products in lower precision against the product itself."""

import pytest
import torch

from nmt.model.products import FloatProduct, Int8Product


def random_layer(num_out, num_in, *, biased=True):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(num_out, num_in, generator=generator)
    bias = torch.randn(num_out, generator=generator) if biased else None
    return weight, bias, torch.rand(7, num_in, generator=generator) * 2 - 1


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("num_out", "num_in"), [(1, 1), (5, 3), (64, 17), (33, 512)])
@pytest.mark.parametrize("num_rows", [1, 2, 7])
def test_int8_is_off_by_the_rounding_of_its_factors(num_out, num_in, biased, num_rows):
    weight, bias, inputs = random_layer(num_out, num_in, biased=biased)
    inputs = inputs[:num_rows]
    exact = torch.nn.functional.linear(inputs, weight, bias)
    found = Int8Product(weight, bias)(inputs)
    unit = weight.abs().amax(1) / 127
    # Each factor is off by half a unit; the sum by what these errors come to at worst.
    bound = unit / 2 * inputs.abs().sum(1, keepdim=True) + weight.abs().sum(1) / 254
    assert ((found - exact).abs() <= bound + num_in * unit / 508 + 1e-5).all()


def test_int8_is_exact_where_nothing_is_rounded():
    weight = torch.tensor([[127.0, -3.0, 1.0], [0.0, 0.0, 0.0], [-127.0, 127.0, 64.0]])
    inputs = torch.tensor([[1.0, -1.0, 0.0], [1 / 127, 5 / 127, -127 / 127]])
    bias = torch.tensor([0.5, 2.0, -1.0])
    expected = inputs @ weight.t() + bias
    torch.testing.assert_close(Int8Product(weight, bias)(inputs), expected)


def test_int8_sums_do_not_overflow():
    weight, inputs = torch.full((2, 3000), -1.0), torch.ones(1, 3000)
    torch.testing.assert_close(Int8Product(weight, None)(inputs), torch.full((1, 2), -3000.0))


def make(kind, weight, bias):
    if kind == torch.int8:
        return Int8Product(weight, bias)
    return FloatProduct(weight, bias, compute=kind, result=torch.float32)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("biased", [True, False])
def test_chosen_rows_are_those_of_the_whole_product(kind, biased):
    weight, bias, inputs = random_layer(12, 9, biased=biased)
    product, chosen = make(kind, weight, bias), torch.tensor([3, 0, 3, 11])
    found = product.rows(chosen)(inputs)
    torch.testing.assert_close(found, product(inputs)[:, chosen])
    assert found.dtype == torch.float32
    assert product(inputs).shape == (7, 12)
