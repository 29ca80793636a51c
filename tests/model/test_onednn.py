"""oneDNN instead of torch's products: equal up to the order of sums, for all that we multiply."""

import functools
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from nmt.model import onednn

N, K, M = 24, 40, 16


@pytest.fixture(autouse=True)
def all_products(monkeypatch):
    """However small, on whatever processor."""
    monkeypatch.setattr(onednn, "_SMALLEST", 1)
    onednn.replace_products()


def layouts(rows: int, columns: int) -> dict[str, Tensor]:
    """The same kind of matrix as it may lie in memory."""
    return {
        "rows": torch.randn(rows, columns),
        "columns": torch.randn(columns, rows).t(),
        "some of the columns": torch.randn(rows, columns + 3)[:, 2:-1],
        "columns, some of the rows": torch.randn(columns, rows + 3)[:, 2:-1].t(),
        "every second row": torch.randn(2 * rows, columns)[::2],
        "one row, repeated": torch.randn(1, columns).expand(rows, columns),
    }


def calls(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes that oneDNN has multiplied."""
    seen = []
    multiply = onednn.product

    def record(a, b, bias=None):
        seen.append((*a.shape, b.size(1)))
        return multiply(a, b, bias)

    monkeypatch.setattr(onednn, "product", record)
    return seen


@pytest.mark.parametrize("left", layouts(1, 1))
@pytest.mark.parametrize("right", layouts(1, 1))
def test_products_equal_those_in_fp64_in_every_layout(left, right, monkeypatch):
    a, b, c, row = layouts(N, K)[left], layouts(K, M)[right], torch.randn(N, M), torch.randn(M)
    seen = calls(monkeypatch)
    exact = (a.double() @ b.double()).float()
    found = {
        "mm": (a @ b, exact),
        "mm.out": (torch.mm(a, b, out=torch.empty(N, M)), exact),
        "addmm": (torch.addmm(c, a, b), exact + c),
        "addmm of a row": (torch.addmm(row, a, b), exact + row),
        "addmm of half a row": (torch.addmm(row.repeat(2)[::2], a, b), exact + row.repeat(2)[::2]),
        "addmm of one number": (torch.addmm(row[:1], a, b), exact + row[0]),
        "addmm.out": (torch.addmm(row, a, b, out=torch.empty(N, M)), exact + row),
        "addmm.out into columns": (
            torch.addmm(c, a, b, out=torch.empty(M, N).t()),
            exact + c,
        ),
        "addmm_": (c.clone().addmm_(a, b), exact + c),
    }
    assert len(seen) == len(found)
    for name, (result, right_one) in found.items():
        torch.testing.assert_close(result, right_one, atol=2e-5, rtol=2e-5, msg=name)


@pytest.mark.parametrize("right", layouts(1, 1))
def test_onednn_gets_no_slice_of_a_matrix(right, monkeypatch):
    """It multiplies slices rightly too, but hundreds of times as slowly."""
    seen = []
    multiply = torch.ops.mkldnn._linear_pointwise

    def record(a, weight, *rest):
        seen.append(weight)
        return multiply(a, weight, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", record)
    _ = torch.randn(N, K) @ layouts(K, M)[right]
    assert [weight.is_contiguous() or weight.t().is_contiguous() for weight in seen] == [True]


def test_results_land_where_they_were_asked_for():
    a, b, target = torch.randn(N, K), torch.randn(K, M), torch.zeros(N, 2 * M)
    out = target[:, :M]
    assert torch.mm(a, b, out=out) is out
    torch.testing.assert_close(target[:, :M], a @ b)
    assert not target[:, M:].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_other_numbers_are_multiplied_by_torch(dtype, monkeypatch):
    seen = calls(monkeypatch)
    a, b, c = (torch.randint(5, (4, 4)).to(dtype) for _ in range(3))
    exact = (a.double() @ b.double()).to(dtype)
    assert torch.equal(a @ b, exact)
    assert torch.equal(torch.mm(a, b, out=torch.empty_like(a)), exact)
    assert torch.equal(torch.addmm(c, a, b), exact + c)
    assert torch.equal(torch.addmm(c, a, b, out=torch.empty_like(a)), exact + c)
    assert torch.equal(c.clone().addmm_(a, b), exact + c)
    assert not seen


def test_scaled_sums_and_empty_matrices_are_torchs_own(monkeypatch):
    seen = calls(monkeypatch)
    a, b, c = torch.randn(N, K), torch.randn(K, M), torch.randn(N, M)
    exact = 3 * (a.double() @ b.double()).float() + 2 * c
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(torch.addmm(c, a, b, beta=2, alpha=3), exact, **close)
    out = torch.empty(N, M)
    torch.testing.assert_close(torch.addmm(c, a, b, beta=2, alpha=3, out=out), exact, **close)
    torch.testing.assert_close(c.clone().addmm_(a, b, beta=2, alpha=3), exact, **close)
    assert torch.equal(torch.zeros(3, 0) @ torch.zeros(0, 2), torch.zeros(3, 2))
    assert (torch.zeros(0, 3) @ torch.zeros(3, 2)).shape == (0, 2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        torch.randn(2, 3) @ torch.randn(4, 5)
    assert torch.mm(a, b, out=torch.empty(0)).shape == (N, M)
    assert not seen


def test_small_products_and_those_without_onednn_are_torchs_own(monkeypatch):
    monkeypatch.setattr(onednn, "_SMALLEST", N * K * M + 1)
    seen = calls(monkeypatch)
    _ = torch.randn(N, K) @ torch.randn(K, M)
    assert not seen
    _ = torch.randn(N + 1, K) @ torch.randn(K, M)
    assert seen == [(N + 1, K, M)]
    with onednn.torch_products():
        _ = torch.randn(N + 1, K) @ torch.randn(K, M)
    assert len(seen) == 1


@pytest.mark.parametrize("layer", [nn.GRU(6, 5), nn.Linear(6, 5), nn.Linear(6, 5, bias=False)])
def test_layers_of_torch_and_their_gradients_go_through_onednn(layer, monkeypatch):
    def run():
        inputs = torch.linspace(-1, 1, 4 * 3 * 6).view(4, 3, 6).requires_grad_()
        outputs = layer(inputs)
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        return [outputs, *torch.autograd.grad(outputs.sum(), [inputs, *layer.parameters()])]

    with onednn.torch_products():
        expected = run()
    seen = calls(monkeypatch)
    found = run()
    assert len(seen) >= 3  # forward, gradients of input and weight
    for result, right in zip(found, expected, strict=True):
        torch.testing.assert_close(result, right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("amd", "avx512"), list(product([True, False], repeat=2)))
def test_onednn_suits_amd_processors_with_avx512_only(amd, avx512, monkeypatch):
    monkeypatch.setattr(onednn, "_is_amd", lambda: amd)
    capability = "AVX512" if avx512 else "AVX2"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert onednn.suits_processor.__wrapped__() == (amd and avx512)


@pytest.mark.parametrize(("rows", "suits"), list(product([1999, 2000], [True, False])))
def test_only_large_models_take_the_detour(rows, suits, monkeypatch):
    replaced = []
    monkeypatch.setattr(onednn, "suits_processor", lambda: suits)
    monkeypatch.setattr(onednn, "replace_products", lambda: replaced.append(1))
    with torch.device("meta"):
        model = nn.Linear(1000, rows, bias=False)
    assert onednn.use_onednn(model) == (rows == 2000 and suits)
    assert len(replaced) == (rows == 2000 and suits)


def test_fp32_is_packed_only_where_onednn_multiplies_it(monkeypatch):
    fp32, fp64 = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    assert onednn.multiplies(fp32)
    assert not onednn.multiplies(fp64)
    assert not onednn.multiplies(fp64.half())
    assert not onednn.multiplies(fp32.to("meta"))
    with onednn.torch_products():
        assert not onednn.multiplies(fp32)
    monkeypatch.setattr(onednn, "replace_products", functools.cache(lambda: None))
    assert not onednn.multiplies(fp32)


@pytest.mark.parametrize("supported", [True, False])
def test_bf16_is_packed_where_the_processor_multiplies_it(supported, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    assert onednn.multiplies(torch.zeros(1, dtype=torch.bfloat16)) == supported
    assert not onednn.multiplies(torch.zeros(1, dtype=torch.bfloat16, device="meta"))


def test_nothing_is_packed_without_onednn(monkeypatch):
    monkeypatch.setattr(onednn, "_is_available", lambda: False)
    assert not onednn.multiplies(torch.zeros(1))
    assert not onednn.multiplies(torch.zeros(1, dtype=torch.bfloat16))
