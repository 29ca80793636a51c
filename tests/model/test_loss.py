"""The loss against its definition, token by token."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nmt.model import loss as loss_module
from nmt.model.loss import Loss, cross_entropy, output_loss

B, T, V = 2, 3, 5
MASK = torch.tensor([[True, True, True], [True, False, False]])
RIGHT = torch.tensor([[4, 0, 2], [3, 1, 0]])


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return (3 * torch.randn(B, T, V)).requires_grad_()


def loops(logits, smoothing):
    """Cross entropy with (1 - e) on the right token plus e / V on every token."""
    total = 0.0
    for sentence, right, mask in zip(logits.tolist(), RIGHT.tolist(), MASK.tolist(), strict=True):
        for scores, token, real in zip(sentence, right, mask, strict=True):
            if not real:
                continue
            normaliser = math.log(sum(math.exp(x) for x in scores))
            for v, x in enumerate(scores):
                target = smoothing / V + (1 - smoothing if v == token else 0)
                total -= target * (x - normaliser)
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_loss_is_its_definition(logits, smoothing):
    loss = cross_entropy(logits, RIGHT, MASK, smoothing)
    assert float(loss.total.detach()) == pytest.approx(loops(logits, smoothing), rel=1e-5)
    assert float(loss.negative_log_likelihood) == pytest.approx(loops(logits, 0.0), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_and_its_gradient_are_those_of_torch(logits, smoothing):
    total = cross_entropy(logits, RIGHT, MASK, smoothing).total
    expected = nn.functional.cross_entropy(
        logits.flatten(0, 1),
        RIGHT.masked_fill(~MASK, -100).flatten(),
        label_smoothing=smoothing,
        reduction="sum",
    )
    torch.testing.assert_close(total, expected)
    (ours,), (theirs,) = (torch.autograd.grad(x, [logits]) for x in (total, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_padding_does_not_count_and_gets_no_gradient(logits, smoothing):
    loss = cross_entropy(logits, RIGHT, MASK, smoothing)
    loss.total.backward()
    assert not logits.grad[~MASK].any()
    assert (logits.grad[MASK] != 0).all()
    garbage = torch.where(MASK.unsqueeze(-1), logits, 100 * torch.randn(B, T, V))
    other = cross_entropy(garbage, RIGHT.masked_fill(~MASK, 4), MASK, smoothing)
    torch.testing.assert_close(other.total, loss.total)
    torch.testing.assert_close(other.negative_log_likelihood, loss.negative_log_likelihood)


def test_the_likelihood_does_not_depend_on_smoothing_and_has_no_gradient(logits):
    plain, smoothed = (cross_entropy(logits, RIGHT, MASK, e) for e in (0.0, 0.3))
    assert torch.equal(smoothed.negative_log_likelihood, plain.negative_log_likelihood)
    assert torch.equal(plain.total.detach(), plain.negative_log_likelihood)
    assert not torch.equal(smoothed.total, plain.total)
    for loss in (plain, smoothed):
        assert loss.total.requires_grad
        assert not loss.negative_log_likelihood.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_half_precision_logits_is_summed_in_single_precision(logits, dtype):
    half = logits.detach().to(dtype)
    loss = cross_entropy(half, RIGHT, MASK, 0.1)
    assert loss.total.dtype == loss.negative_log_likelihood.dtype == torch.float32
    exact = cross_entropy(half.float(), RIGHT, MASK, 0.1)
    assert torch.equal(loss.total, exact.total)


MANY = 1101  # positions: three chunks, the last one shorter, each of several blocks


def positions(n, vocab_size, readout_dim, dtype=torch.float64, bias=True, scale=1.0):
    """Random readouts (1, n, R), a layer, right tokens and a mask with holes."""
    torch.manual_seed(0)
    layer = nn.Linear(readout_dim, vocab_size, bias=bias, dtype=dtype)
    readouts = (scale * torch.randn(1, n, readout_dim, dtype=dtype)).requires_grad_()
    mask = torch.rand(1, n) < 0.8
    mask[0, 0] = True
    return readouts, layer, torch.randint(0, vocab_size, (1, n)), mask


def of_torch(readouts, layer, right, mask, smoothing):
    """The same loss by torch, which keeps double precision."""
    logits, right = layer(readouts).flatten(0, 1), right.masked_fill(~mask, -100).flatten()
    total, nll = (
        nn.functional.cross_entropy(logits, right, label_smoothing=e, reduction="sum")
        for e in (smoothing, 0.0)
    )
    return Loss(total, nll.detach())


def gradients(loss, readouts, layer):
    return torch.autograd.grad(0.3 * loss.total, [readouts, *layer.parameters()])


def sizes(run):
    """Shapes of all tensors that `run` makes."""
    made = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            outputs = result if isinstance(result, tuple | list) else [result]
            made.extend(x.shape for x in outputs if isinstance(x, torch.Tensor))
            return result

    with Recorder():
        run()
    return made


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "vocab_size"), [(MANY, 11), (512, 5), (1, 7), (3, 1030)])
def test_the_chunked_loss_is_the_loss_of_the_logits(n, vocab_size, bias, smoothing):
    readouts, layer, *_ = case = positions(n, vocab_size, 6, bias=bias)
    loss, expected = output_loss(*case, smoothing), of_torch(*case, smoothing)
    torch.testing.assert_close(loss.total, expected.total, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        loss.negative_log_likelihood, expected.negative_log_likelihood, rtol=1e-12, atol=0
    )
    for ours, theirs in zip(
        gradients(loss, readouts, layer), gradients(expected, readouts, layer), strict=True
    ):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_chunked_loss_is_the_readable_loss_in_single_precision(smoothing):
    readouts, layer, right, mask = positions(MANY, 50, 16, torch.float32)
    loss = output_loss(readouts, layer, right, mask, smoothing)
    readable = cross_entropy(layer(readouts), right, mask, smoothing)
    torch.testing.assert_close(loss.total, readable.total)
    torch.testing.assert_close(loss.negative_log_likelihood, readable.negative_log_likelihood)
    assert not loss.negative_log_likelihood.requires_grad
    ours, theirs = (gradients(x, readouts, layer) for x in (loss, readable))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not ours[0][~mask].any()


@pytest.mark.parametrize("num_rows", [1, 7, 500, 512, 513, 1025, 1496, 4095])
def test_chunks_are_about_equal_and_multiples_of_8(num_rows):
    size = loss_module._chunk_size(torch.empty(num_rows, 2))
    assert size % 8 == 0
    assert size <= 512
    assert -(-num_rows // size) == -(-num_rows // 512)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_chunked_gradient_is_that_of_finite_differences(smoothing, monkeypatch):
    monkeypatch.setattr(loss_module, "_CHUNK_SIZE", 3)
    readouts, layer, right, mask = positions(5, 4, 3)

    def total(x, weight, bias):
        other = nn.Linear(3, 4, dtype=torch.float64)
        del other.weight, other.bias
        other.weight, other.bias = weight, bias
        return output_loss(x, other, right, mask, smoothing).total

    assert torch.autograd.gradcheck(total, (readouts, layer.weight, layer.bias))


def test_autocast_leaves_double_precision_alone():
    case = positions(5, 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        total = output_loss(*case, 0.1).total
    assert torch.equal(total, output_loss(*case, 0.1).total)


def test_a_tied_matrix_gets_the_gradient_of_both_uses():
    _, layer, right, mask = positions(MANY, 9, 6)
    embedding = nn.Embedding(9, 6, dtype=torch.float64)
    layer.weight = embedding.weight
    ours, theirs = (
        torch.autograd.grad(f(embedding(right).tanh(), layer, right, mask, 0.1).total, layer.weight)
        for f in (output_loss, of_torch)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_gradients_the_chunked_loss_is_the_same_and_makes_none(smoothing):
    readouts, layer, right, mask = positions(MANY, 12, 6, torch.float32)
    with torch.no_grad():
        loss = output_loss(readouts, layer, right, mask, smoothing)
        shapes = sizes(lambda: output_loss(readouts, layer, right, mask, smoothing))
    expected = cross_entropy(layer(readouts), right, mask, smoothing)
    torch.testing.assert_close(loss.total, expected.total.detach())
    torch.testing.assert_close(loss.negative_log_likelihood, expected.negative_log_likelihood)
    assert not loss.total.requires_grad
    assert layer.weight.shape not in shapes
    assert layer.weight.shape in sizes(lambda: output_loss(readouts, layer, right, mask, smoothing))


@pytest.mark.parametrize("grad", [True, False])
def test_the_logits_of_all_positions_never_exist(grad):
    readouts, layer, right, mask = positions(MANY, 200, 6, torch.float32)
    with torch.set_grad_enabled(grad):
        shapes = sizes(lambda: output_loss(readouts, layer, right, mask, 0.1))
    assert max(shape.numel() for shape in shapes) <= 512 * 200 < MANY * 200


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
@pytest.mark.parametrize("half_readouts", [True, False])
def test_autocast_multiplies_in_half_precision_and_sums_in_single(dtype, unit, half_readouts):
    readouts, layer, right, mask = positions(MANY, 300, 32, torch.float32, scale=3.0)
    if half_readouts:
        readouts = readouts.detach().to(dtype).requires_grad_()
    exact = of_torch(readouts.double(), layer.double(), right, mask, 0.1)
    exact_grads = gradients(exact, readouts, layer)
    layer.float()
    with torch.autocast("cpu", dtype):
        loss = output_loss(readouts, layer, right, mask, 0.1)
        readable = cross_entropy(layer(readouts), right, mask, 0.1)
        with torch.no_grad():
            judged = output_loss(readouts, layer, right, mask, 0.1)
    assert loss.total.dtype == loss.negative_log_likelihood.dtype == torch.float32
    torch.testing.assert_close(judged.total, readable.total.detach())

    # Rounding: of readouts, weights, logits (twice: right one and normaliser), greatest p.
    with torch.no_grad():
        largest = layer(readouts.float()).abs().max()
    bound = int(mask.sum()) * unit * (4 * largest + 1)
    assert abs(loss.total - exact.total) < bound
    assert abs(loss.negative_log_likelihood - exact.negative_log_likelihood) < bound

    ours, theirs = (gradients(x, readouts, layer) for x in (loss, readable))
    assert [x.dtype for x in ours] == [readouts.dtype, torch.float32, torch.float32]
    for grad, other, truth in zip(ours, theirs, exact_grads, strict=True):
        error, readable_error = ((x.double() - truth).norm() / truth.norm() for x in (grad, other))
        assert error < 2 * unit
        assert error < 1.2 * readable_error + unit / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_likelihood_of_a_token_whose_probability_underflows_is_exact(dtype):
    layer = nn.Linear(1, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[200.0], [-200.0], [100.0]]))
        layer.bias.zero_()
    readouts = torch.ones(1, 2, 1, requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = output_loss(readouts, layer, torch.tensor([[1, 2]]), MASK[:1, :2], 0.0)
    assert float(loss.negative_log_likelihood) == 400 + 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_greatest_of_a_row_is_that_of_torch(dtype):
    infinity = math.inf
    rows = torch.tensor(
        [[-3, -1, -2], [0, -1, 2], [-0.0, -1, -2], [-1, -infinity, -9], [1, infinity, 0]],
        dtype=dtype,
    )
    for x in (rows, torch.randn(50, 37).to(dtype), torch.randn(50, 37).to(dtype) - 9):
        assert torch.equal(loss_module._row_max(x), x.amax(-1, keepdim=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize(
    ("dtype", "unit"),
    [(torch.float32, 2**-11), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)],  # TF32 allowed
)
def test_on_a_gpu_the_chunked_loss_is_the_same(dtype, unit):
    readouts, layer, right, mask = positions(9000, 300, 32, torch.float32, scale=3.0)
    exact = of_torch(readouts, layer, right, mask, 0.1)
    exact_grads = gradients(exact, readouts, layer)
    on_gpu = readouts.detach().cuda().requires_grad_()
    layer.cuda()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        loss = output_loss(on_gpu, layer, right.cuda(), mask.cuda(), 0.1)
    torch.testing.assert_close(loss.total.cpu(), exact.total, rtol=unit, atol=0)
    for grad, truth in zip(gradients(loss, on_gpu, layer), exact_grads, strict=True):
        assert (grad.cpu() - truth).norm() < 2 * unit * truth.norm()
