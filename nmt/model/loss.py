"""The training criterion: label-smoothed cross entropy (Szegedy et al. 2016, section 7)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_CHUNK_SIZE = 512
"""Positions whose logits, and the gradient by them, exist at one time, on a CPU."""
_GPU_CHUNK_SIZE = 4096
_PART_SIZE = 512
"""Rows of a product that are added at one time, on a CPU."""


@dataclass(frozen=True)
class Loss:
    """Sums over the real target tokens of a batch, in nats."""

    total: Tensor
    """Smoothed cross entropy: what training minimises."""
    negative_log_likelihood: Tensor
    """Cross entropy without smoothing: its mean is the log of the perplexity."""


def cross_entropy(
    logits: Tensor, tgt_output: Tensor, tgt_mask: Tensor, label_smoothing: float
) -> Loss:
    """Compare predictions with the tokens that should have been predicted.

    With smoothing e the target distribution is (1 - e) on the right token plus e / V on every
    token of the vocabulary.

    Args:
        logits: (B, T, V).
        tgt_output: (B, T) right tokens, ending in </s>.
        tgt_mask: (B, T), True at real tokens; the others do not count.
        label_smoothing: e, in [0, 1).
    """
    log_probs = logits.float().log_softmax(-1)  # (B, T, V)
    right = log_probs.gather(-1, tgt_output.unsqueeze(-1)).squeeze(-1)  # (B, T)
    nll = -right.masked_fill(~tgt_mask, 0.0).sum()
    if not label_smoothing:
        return Loss(nll, nll.detach())
    uniform = -log_probs.mean(-1).masked_fill(~tgt_mask, 0.0).sum()
    return Loss((1 - label_smoothing) * nll + label_smoothing * uniform, nll.detach())


def output_loss(
    readouts: Tensor,
    output_layer: nn.Linear,
    tgt_output: Tensor,
    tgt_mask: Tensor,
    label_smoothing: float,
) -> Loss:
    """Score the tokens that should have been predicted, never holding the logits of all of them.

    The same sums as `cross_entropy(output_layer(readouts), ...)`, and the same gradients, made a
    chunk of positions at a time, on the way forward. In 16 bits (autocast) the logits, their
    softmax and its gradient are rounded once each; all sums, and the gradients of the layer's
    parameters, are in single precision.

    Args:
        readouts: (B, T, R), what the vocabulary layer reads.
        output_layer: the vocabulary layer, from R to V.
        tgt_output: (B, T) right tokens, ending in </s>.
        tgt_mask: (B, T), True at real tokens; the others do not count, but must have finite logits.
        label_smoothing: e, in [0, 1).

    Returns:
        The sums over real tokens. `total` has no second derivatives.
    """
    weight, bias = output_layer.weight, output_layer.bias
    rows, tokens, mask = readouts.flatten(0, -2), tgt_output.flatten(), tgt_mask.flatten()
    if torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (readouts, weight, bias)
    ):
        dtype = _compute_dtype(readouts)
        with torch.autocast(readouts.device.type, enabled=False):
            total, nll = _OutputLoss.apply(  # type: ignore[no-untyped-call]
                rows, weight, bias, tokens, mask, label_smoothing, dtype
            )
        return Loss(total, nll)
    size = _chunk_size(rows)
    losses = [
        cross_entropy(F.linear(chunk, weight, bias), right, real, label_smoothing)
        for chunk, right, real in zip(
            *(torch.split(tensor, size) for tensor in (rows, tokens, mask)), strict=True
        )
    ]
    return Loss(
        torch.stack([loss.total for loss in losses]).sum(),
        torch.stack([loss.negative_log_likelihood for loss in losses]).sum(),
    )


class _OutputLoss(torch.autograd.Function):
    """Vocabulary layer, softmax and smoothed cross entropy, with the gradient made going forward.

    With p = softmax(z), z = W x + b, and o the one-hot right token, the gradient by z is
    p - (1 - e) o - e / V. The last term is the same for all tokens and positions: it adds the
    sum of the rows of W, or of the readouts, to the gradients and never touches the logits. Neither
    does the smoothed part of the loss: the sum of z is (sum of W's rows) x + sum of b.
    """

    @staticmethod
    def forward(
        ctx: Any,
        readouts: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        mask: Tensor,
        label_smoothing: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """Take (N, R), (V, R), (V,), (N,), (N,) and give both sums; multiply in `dtype`."""
        exact = torch.promote_types(dtype, torch.float32)
        vocab_size, num_rows = len(weight), len(readouts)
        x, w = readouts.to(dtype), weight.to(dtype)
        b = w.new_zeros(vocab_size) if bias is None else bias.to(dtype)
        real, num_real = mask.to(dtype), mask.sum(dtype=exact)
        real_x = x * real.unsqueeze(1)  # (N, R), 0 at padding
        uniform, right_share = label_smoothing / vocab_size, 1 - label_smoothing
        x_sum, w_sum = real_x.sum(0, dtype=exact), weight.sum(0, dtype=exact)  # (R,)

        readouts_grad = torch.empty_like(x)
        weight_grad = (-uniform * x_sum).repeat(vocab_size, 1)  # (V, R)
        bias_grad = (-uniform * num_real).repeat(1, vocab_size)
        shift = (-uniform * w_sum).to(dtype)  # (R,)
        normalisers, scores = x.new_empty(2, num_rows, dtype=exact)  # log sum exp z, right z

        size = _chunk_size(x)
        for start in range(0, num_rows, size):
            chunk = slice(start, min(start + size, num_rows))
            z = torch.addmm(b, x[chunk], w.t())
            right = torch.arange(len(z), device=z.device), tokens[chunk]
            scores[chunk], z_max = z[right].to(exact), _row_max(z)
            p = torch.softmax(z, -1, out=z)
            normalisers[chunk] = (z_max.to(exact) - _row_max(p).to(exact).log()).squeeze(1)
            z_grad = p.index_put_(right, (p[right].to(exact) - right_share).to(dtype))
            torch.addmm(shift, z_grad, w, out=readouts_grad[chunk])
            _add_product(weight_grad, z_grad.t(), real_x[chunk])
            _add_product(bias_grad, real[chunk].unsqueeze(0), z_grad)
            del z, p, z_grad  # one memory under three names: the next chunk's shall take its place
        readouts_grad *= real.unsqueeze(1)

        normaliser = normalisers.masked_fill(~mask, 0.0).sum()
        nll = normaliser - scores.masked_fill(~mask, 0.0).sum()
        z_sum = (x_sum * w_sum).sum() + num_real * b.sum(dtype=exact)  # of all logits
        total = right_share * nll + label_smoothing * normaliser - uniform * z_sum
        ctx.save_for_backward(readouts_grad, weight_grad, bias_grad.squeeze(0))
        ctx.dtypes = readouts.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total_grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients made before."""
        grads = (
            None if dtype is None else grad.to(dtype) * total_grad
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *grads, None, None, None, None


def _compute_dtype(readouts: Tensor) -> torch.dtype:
    """Give the type in which `nn.Linear` would multiply here."""
    device = readouts.device.type
    if torch.is_autocast_enabled(device) and readouts.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return readouts.dtype


def _chunk_size(rows: Tensor) -> int:
    """Give the size of about equal chunks, not above the limit of the device of (N, R).

    It is a multiple of 8: products with an odd number of rows are slower.
    """
    limit = _CHUNK_SIZE if rows.device.type == "cpu" else _GPU_CHUNK_SIZE
    num_chunks = max(1, -(-len(rows) // limit))
    size = max(1, -(-len(rows) // num_chunks))
    return min(limit, size + -size % 8)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the product of two matrices to a matrix, whose type may be wider than theirs."""
    if left.is_cuda and left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        total += torch.mm(left, right, out_dtype=total.dtype)
    else:  # piece by piece, since the product should stay in the cache until it is added
        for part, rows in zip(*(torch.split(x, _PART_SIZE) for x in (total, left)), strict=True):
            part += torch.mm(rows, right)


def _row_max(x: Tensor) -> Tensor:
    """Give the (N, 1) greatest numbers of the rows of (N, V)."""
    if x.device.type != "cpu" or x.element_size() != 2:
        return x.amax(-1, keepdim=True)
    # torch does not vectorise this in 16 bits, but does for integers. The bits of numbers >= 0 are
    # ordered as integers are, those of negative numbers the other way round.
    bits = x.view(torch.int16)
    greatest, least = bits.amax(-1, keepdim=True), bits.amin(-1, keepdim=True)
    return torch.where(greatest >= 0, greatest, least).view(x.dtype)
