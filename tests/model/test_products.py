"""Products in lower precision against the product itself."""

import pytest
import torch

from nmt.model import onednn, products
from nmt.model.products import FloatProduct, Int8Product, Precision, Sums, TokenProduct


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


@pytest.fixture
def packing(monkeypatch):
    """Weights of any size are packed, on any processor."""
    monkeypatch.setattr(onednn, "SMALLEST_PACKED", 1)
    onednn.replace_products()
    if not onednn.multiplies(torch.zeros(1)):
        pytest.skip("torch has no oneDNN here")


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("num_out", "num_in"), [(1, 1), (5, 3), (64, 17), (192, 512)])
@pytest.mark.parametrize("num_rows", [1, 5, 7])
def test_a_packed_weight_gives_the_product_of_the_plain_one(
    num_out, num_in, biased, num_rows, packing
):
    weight, bias, inputs = random_layer(num_out, num_in, biased=biased)
    for x in (inputs[:num_rows], inputs.repeat(1, 2)[:num_rows, :num_in], inputs.view(7, 1, -1)):
        found = make(torch.float32, weight, bias)(x)
        exact = torch.nn.functional.linear(x.double(), weight.double())
        exact = exact if bias is None else exact + bias
        torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=1e-5)


def kinds_that_onednn_multiplies():
    return [
        dtype
        for dtype in (torch.float32, torch.bfloat16)
        if onednn.multiplies(torch.zeros(1, dtype=dtype))
    ]


def test_a_weight_is_kept_packed_and_nothing_else_of_it(packing):
    """Else products would be right too, but slower."""
    weight, bias, _ = random_layer(12, 9)
    for kind in kinds_that_onednn_multiplies():
        product = make(kind, weight, bias)
        assert product.weight.layout == torch._mkldnn
        matrices = [x for x in vars(product).values() if isinstance(x, torch.Tensor)]
        assert len(matrices) == 2  # with the bias
        assert torch.equal(product.weight.to_dense(), weight.to(kind))


def test_rows_of_a_packed_weight_are_its_rows(packing):
    weight, bias, inputs = random_layer(12, 9)
    chosen = torch.tensor([3, 0, 3, 11])
    for kind in kinds_that_onednn_multiplies():
        rows = make(kind, weight, bias).rows(chosen)
        assert torch.equal(rows.weight, weight[chosen].to(kind))
        expected = make(kind, weight, bias)(inputs)[:, chosen]
        torch.testing.assert_close(rows(inputs), expected, atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
def test_other_types_are_not_packed(kind, packing):
    weight, bias, _ = random_layer(12, 9)
    assert make(kind, weight, bias).weight.layout == torch.strided


def test_a_weight_of_which_only_rows_are_wanted_is_not_packed(packing):
    weight, bias, _ = random_layer(12, 9)
    types = {"compute": torch.float32, "result": torch.float32}
    product = FloatProduct(weight, bias, **types, is_whole=False)
    assert product.weight.layout == torch.strided


def test_only_large_weights_are_packed():
    onednn.replace_products()
    if not onednn.multiplies(torch.zeros(1)):
        pytest.skip("torch has no oneDNN here")
    for num_out, layout in ((255, torch.strided), (256, torch._mkldnn)):
        weight = torch.zeros(num_out, 512)
        assert make(torch.float32, weight, None).weight.layout == layout


# ------------------------------------------------------------------------------- sums and tokens


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("biased", [True, False])
def test_sums_are_the_product_before_it_is_given_its_type(kind, biased):
    weight, bias, inputs = random_layer(12, 9, biased=biased)
    product = make(kind, weight, bias)
    sums, expected = product.sums(inputs), product(inputs)
    assert torch.equal(sums.to(torch.float32), expected)
    torch.testing.assert_close(sums.to(torch.float64), expected.double())
    for size in (1, 5, 11):
        first, others = sums.split(size)
        parts = first.to(torch.float32), others.to(torch.float32)
        assert parts[0].shape == (7, size)
        torch.testing.assert_close(torch.cat(parts, 1), expected)
    first, others = sums.split(12)
    assert torch.equal(first.to(torch.float32), expected)
    assert others is None


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_giving_sums_their_type_changes_nothing_else(scaled, biased):
    numbers, scale = torch.tensor([[2.0, 3.0]]), torch.tensor([0.5, 2.0])
    sums = Sums(numbers, scale if scaled else None, torch.ones(2) if biased else None)
    expected = torch.tensor([[1.0, 6.0]]) if scaled else numbers.clone()
    for _ in range(2):
        assert torch.equal(sums.to(torch.float32), expected + biased)
    assert numbers.tolist() == [[2.0, 3.0]]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int8])
def test_a_product_has_copied_its_weights(kind):
    weight, bias, inputs = random_layer(12, 9)
    product = make(kind, weight, bias)
    expected = product(inputs)
    weight.zero_()
    bias.zero_()
    assert torch.equal(product(inputs), expected)


def test_a_table_is_made_once_as_many_tokens_are_read_as_there_are():
    weight, bias, embeddings = random_layer(12, 9)
    tokens = TokenProduct(embeddings, make(torch.float32, weight, bias))
    exact = torch.nn.functional.linear(embeddings, weight, bias)
    for token_ids in ([3], [6, 6, 0], [2, 1]):
        torch.testing.assert_close(tokens(torch.tensor(token_ids)), exact[token_ids])
        assert tokens.table is None
    torch.testing.assert_close(tokens(torch.tensor([5])), exact[[5]])
    torch.testing.assert_close(tokens.table, exact)
    tokens.table[4] = 7.0
    assert (tokens(torch.tensor([4, 0]))[0] == 7).all()


def test_a_table_that_is_settled_is_made_by_what_is_told_alone():
    weight, bias, embeddings = random_layer(12, 9)
    tokens = TokenProduct(embeddings, make(torch.float32, weight, bias))
    tokens.settle(3)
    tokens(torch.arange(7).repeat(5))
    tokens.settle(3)
    assert tokens.table is None
    tokens.settle(1)
    assert tokens.table is not None


def test_a_table_that_would_be_too_large_is_never_made(monkeypatch):
    weight, bias, embeddings = random_layer(12, 9)
    for most, is_made in ((7 * 12 * 4, True), (7 * 12 * 4 - 1, False)):
        monkeypatch.setattr(products, "TABLE_BYTES", most)
        tokens = TokenProduct(embeddings, make(torch.float32, weight, bias))
        tokens.settle(1000)
        assert (tokens.table is not None) == is_made


def test_a_precision_says_what_is_computed_in_which_type(monkeypatch):
    monkeypatch.setattr(products, "type_beside_int8", lambda: torch.bfloat16)
    fp32, bf16, int8 = torch.float32, torch.bfloat16, torch.int8
    assert Precision.make(None, fp32) == Precision(fp32, fp32, fp32)
    assert Precision.make(None, bf16) == Precision(bf16, bf16, bf16)
    assert Precision.make(bf16, fp32) == Precision(bf16, bf16, fp32)
    assert Precision.make(int8, fp32) == Precision(int8, bf16, fp32)
    weight, bias, inputs = random_layer(12, 9)
    product = Precision.make(int8, fp32).product(weight, bias)
    assert isinstance(product, Int8Product)
    once = Precision.make(int8, fp32).product_once(weight, bias)
    assert once.weight.dtype == bf16
    assert once(inputs).dtype == fp32
    assert Precision.make(bf16, fp32).product(weight).weight.dtype == bf16
