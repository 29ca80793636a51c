"""The compiled steps of cells and of Luong's vector against torch's operations in fp64.

Both read the same fp32 or bf16 numbers. What they write lies in a buffer that is larger, whose
margin must stay as it is.
"""

from dataclasses import dataclass, replace

import pytest
import torch

from nmt.model import cell_tape, join_tape

MARGIN = 3
SIZES = {"one of all": (1, 1, 1), "odd": (3, 2, 5), "a register": (2, 3, 16), "more": (2, 5, 37)}
CLOSE = {"rtol": 1e-5, "atol": 2e-6}
ROUNDED = {"rtol": 2.0**-8, "atol": 1e-5}


@pytest.fixture(params=SIZES.values(), ids=SIZES)
def sizes(request):
    """Steps, sentences, numbers of a state."""
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def precision(request):
    """Of what the products give and get."""
    return request.param


@pytest.fixture
def tapes(kernels):
    from nmt.model import compiled_tapes

    return compiled_tapes


def inside(*shape, dtype=torch.float32, fill=7.0):
    """Part of a larger buffer, whose last axis alone is contiguous."""
    *rows, last = shape
    return torch.full((*rows, last + 2 * MARGIN), fill, dtype=dtype)[..., MARGIN:-MARGIN]


def margin_is_untouched(part):
    return bool((torch.cat([part._base[..., :MARGIN], part._base[..., -MARGIN:]]) == 7).all())


def filled(*shape, dtype, generator, scale=1.5):
    part = inside(*shape, dtype=dtype)
    return part.copy_(scale * torch.randn(shape, generator=generator))


@dataclass(frozen=True)
class Given:
    """All that the steps of a cell read, forward and backward."""

    inputs: torch.Tensor
    addend: torch.Tensor | None
    recurrent: torch.Tensor
    bias: torch.Tensor | None
    start: torch.Tensor
    memory: torch.Tensor | None
    d_last: torch.Tensor
    d_outputs: torch.Tensor | None
    d_products: torch.Tensor
    low: torch.dtype | None

    def exact(self):
        values = {k: v for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **{k: v.double() for k, v in values.items()}, low=None)


def make_given(cell, sizes, precision, seed=0):
    steps, batch, dim = sizes
    gates = dim * (3 if cell == "gru" else 4)
    options = {"generator": torch.Generator().manual_seed(seed)}
    low = {"dtype": precision} | options
    exact = {"dtype": torch.float32} | options
    return Given(
        inputs=filled(steps, batch, gates, **low),
        addend=filled(steps, batch, gates, **low),
        recurrent=filled(steps, batch, gates, **low),
        bias=filled(gates, **exact),
        start=filled(batch, dim, **exact),
        memory=filled(batch, dim, **exact) if cell == "lstm" else None,
        d_last=filled(batch, dim, **exact),
        d_outputs=filled(steps, batch, dim, **exact),
        d_products=filled(steps, batch, dim, **low),
        low=None if precision == torch.float32 else precision,
    )


def make_tape(tape_of, given, inputs, hidden, rounded=None):
    steps = cell_tape.CellSteps(
        inputs=inputs,
        addend=given.addend,
        recurrent=given.recurrent,
        bias=given.bias,
        hidden=hidden,
        rounded=rounded,
    )
    return tape_of(steps, *(() if given.memory is None else (given.memory,)))


def run(tape_of, given):
    """Go through all steps, forward and backward; give everything that was written, by name."""
    steps, batch, gates = given.inputs.shape
    dim, dtype = given.start.size(1), given.start.dtype
    hidden = inside(steps + 1, batch, dim, dtype=dtype)
    hidden[0] = given.start
    rounded = None if given.low is None else inside(steps + 1, batch, dim, dtype=given.low)
    tape = make_tape(tape_of, given, given.inputs, hidden, rounded)
    for t in range(steps):
        tape.forward(t)
    d_product = torch.full_like(given.d_products[0], torch.nan)  # that of the step at hand
    low = given.inputs.dtype
    written = cell_tape.CellGradients(
        inside(batch, dim, dtype=dtype).copy_(given.d_last),
        given.d_outputs,
        d_product,
        inside(steps, batch, gates, dtype=low),
        inside(steps, batch, gates, dtype=low),
    )
    tape.prepare(written)
    for t in reversed(range(steps)):
        d_product.copy_(given.d_products[t])
        tape.backward(t)
    found = {
        "states": hidden,
        "rounded": rounded,
        "d_start": written.d_hidden,
        "d_inputs": written.d_inputs,
        "d_recurrent": written.d_recurrent,
        "d_memory": tape.d_memory,
    }
    found = {name: tensor for name, tensor in found.items() if tensor is not None}
    for tensor in found.values():
        assert tensor is tape.d_memory or margin_is_untouched(tensor)
    return {name: tensor[1:] if name == "rounded" else tensor for name, tensor in found.items()}


@pytest.fixture(params=["gru", "lstm"])
def cell(request):
    return request.param


@pytest.fixture
def compiled_of(tapes):
    return {"gru": tapes.CompiledGRUTape, "lstm": tapes.CompiledLSTMTape}


PLAIN = {"gru": cell_tape.GRUTape, "lstm": cell_tape.LSTMTape}


def assert_is_exact(found, expected, precision):
    assert found.keys() - {"rounded"} == expected.keys()
    for name, tensor in found.items():
        is_low = name in ("rounded", "d_inputs", "d_recurrent") and precision != torch.float32
        assert tensor.dtype == (precision if is_low else torch.float32)
        exact = expected["states"][1:] if name == "rounded" else expected[name]
        torch.testing.assert_close(
            tensor.double(),
            exact,
            **(ROUNDED if is_low else CLOSE),
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_states_and_gradients_of_a_cell_are_those_of_fp64(compiled_of, cell, sizes, precision):
    given = make_given(cell, sizes, precision)
    found = run(compiled_of[cell], given)
    assert_is_exact(found, run(PLAIN[cell], given.exact()), precision)


def test_what_is_rounded_is_the_state(compiled_of, cell):
    found = run(compiled_of[cell], make_given(cell, (3, 2, 37), torch.bfloat16))
    assert torch.equal(found["rounded"], found["states"][1:].bfloat16())


@pytest.mark.parametrize("left_out", ["addend", "bias", "d_outputs"])
def test_what_is_added_may_be_left_out(compiled_of, cell, left_out):
    given = replace(make_given(cell, (3, 2, 5), torch.float32), **{left_out: None})
    found = run(compiled_of[cell], given)
    assert_is_exact(found, run(PLAIN[cell], given.exact()), torch.float32)


def test_inputs_may_be_a_buffer_that_has_those_of_the_step_at_hand(compiled_of, cell):
    given = make_given(cell, (3, 2, 5), torch.float32)
    buffer, hidden = given.inputs[0].clone(), inside(4, 2, 5)
    hidden[0] = given.start
    tape = make_tape(compiled_of[cell], given, buffer, hidden)
    for t in range(3):
        buffer.copy_(given.inputs[t])
        tape.forward(t)
    assert torch.equal(hidden, run(compiled_of[cell], given)["states"])


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_saturated_gates_are_those_of_fp64(compiled_of, cell, scale):
    given = make_given(cell, (2, 3, 37), torch.float32)
    for tensor in (given.inputs, given.recurrent):
        tensor *= scale
    found, expected = run(compiled_of[cell], given), run(PLAIN[cell], given.exact())
    for name in expected:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("num_threads", [2, 3, 8])
def test_threads_change_no_bit_of_a_cell(compiled_of, cell, precision, threads, num_threads):
    given = make_given(cell, (3, 5, 37), precision)
    threads(1)
    alone = run(compiled_of[cell], given)
    threads(num_threads)
    together = run(compiled_of[cell], given)
    for name, tensor in alone.items():
        assert torch.equal(together[name], tensor), name


def test_a_sentence_of_a_batch_is_the_sentence_alone_bit_for_bit(compiled_of, cell, precision):
    given = make_given(cell, (3, 5, 37), precision)
    together = run(compiled_of[cell], given)
    for b in (0, 3, 4):
        rows = {
            name: tensor[b : b + 1] if tensor.dim() == 2 else tensor[:, b : b + 1]
            for name, tensor in vars(given).items()
            if isinstance(tensor, torch.Tensor) and name != "bias"
        }
        for name, tensor in run(compiled_of[cell], replace(given, **rows)).items():
            whole = together[name]
            mine = whole[b : b + 1] if whole.dim() == 2 else whole[:, b : b + 1]
            assert torch.equal(tensor, mine), name


# ------------------------------------------------------------- numbers that are not finite

READ = ["inputs", "addend", "recurrent", "start", "memory", "d_last", "d_outputs", "d_products"]


@pytest.mark.parametrize("dim", [1, 5, 37])
def test_no_number_in_an_operand_stays_none_and_in_its_sentence(compiled_of, cell, precision, dim):
    """A training that has failed is only noticed by it."""
    for name in READ:
        given = make_given(cell, (2, 3, dim), precision)
        if (spoilt := getattr(given, name)) is None:
            assert (cell, name) == ("gru", "memory")
            continue
        (spoilt if spoilt.dim() == 2 else spoilt[0])[1, -1] = torch.nan
        found, expected = run(compiled_of[cell], given), run(PLAIN[cell], given.exact())
        assert any(tensor.isnan().any() for tensor in expected.values())
        for key, exact in expected.items():
            assert torch.equal(found[key].isnan(), exact.isnan()), (name, key)
            rows = found[key] if exact.dim() == 2 else found[key].transpose(0, 1)
            assert not rows[[0, 2]].isnan().any()


@pytest.mark.parametrize("infinite", [torch.inf, -torch.inf])
@pytest.mark.parametrize("name", READ)
def test_where_infinity_makes_no_number_of_torch_it_makes_none_of_a_kernel(
    compiled_of, cell, name, infinite
):
    given = make_given(cell, (2, 3, 37), torch.float32)
    if (spoilt := getattr(given, name)) is None:
        assert (cell, name) == ("gru", "memory")
        return
    (spoilt if spoilt.dim() == 2 else spoilt[0])[1, ::5] = infinite
    assert_is_as_finite(run(compiled_of[cell], given), run(PLAIN[cell], given))


def assert_is_as_finite(found, plain):
    for key, expected in plain.items():
        assert not found[key][~expected.isfinite()].isfinite().any(), key
        is_finite = expected.isfinite() & found[key].isfinite()
        torch.testing.assert_close(found[key][is_finite], expected[is_finite], rtol=1e-5, atol=1e-5)


def test_infinities_that_cancel_are_no_number(compiled_of, cell):
    given = make_given(cell, (2, 3, 37), torch.float32)
    given.inputs[0, 1, 5] = torch.inf
    given.recurrent[0, 1, 5 + (37 if cell == "gru" else 0)] = -torch.inf  # the same gate
    found, plain = run(compiled_of[cell], given), run(PLAIN[cell], given)
    assert plain["states"][1:, 1, 5].isnan().all()
    assert_is_as_finite(found, plain)


# ------------------------------------------------------------------- Luong's attentional vector


def run_join(tape_of, attended, parts, d_outputs, d_products, low):
    """Forward and backward through all steps: vectors, rounded, d_sums, d_parts."""
    steps, batch, dim = parts.shape
    outputs = inside(steps + 1, batch, dim, dtype=attended.dtype)
    rounded = None if low is None else inside(steps + 1, batch, dim, dtype=low)
    buffer = torch.empty_like(attended[0])
    tape = tape_of(buffer, parts, outputs, rounded)
    for t in range(steps):
        buffer.copy_(attended[t])
        tape.forward(t)
    d_product, d_parts = torch.empty_like(d_products[0]), inside(*parts.shape, dtype=parts.dtype)
    tape.prepare(d_outputs, d_product, d_parts)
    for t in reversed(range(steps)):
        d_product.copy_(d_products[t])
        tape.backward(t)
    assert margin_is_untouched(outputs)
    assert margin_is_untouched(d_parts)
    assert (outputs[0] == 7).all()  # which is not the tape's
    return outputs[1:], None if rounded is None else rounded[1:], tape.d_sums, d_parts


def operands_of_join(sizes, precision):
    generator = torch.Generator().manual_seed(0)
    exact = {"dtype": torch.float32, "generator": generator}
    low = {"dtype": precision, "generator": generator}
    return [filled(*sizes, **options) for options in (exact, low, exact, low)]


def test_attentional_vectors_and_their_gradients_are_those_of_fp64(tapes, sizes, precision):
    operands = operands_of_join(sizes, precision)
    low = None if precision == torch.float32 else precision
    found = run_join(tapes.CompiledJoinTape, *operands, low)
    exact = run_join(join_tape.JoinTape, *(x.double() for x in operands), None)
    outputs, rounded, d_sums, d_parts = found
    torch.testing.assert_close(outputs.double(), exact[0], **CLOSE)
    torch.testing.assert_close(d_sums.double(), exact[2], **CLOSE)
    if low is None:
        assert torch.equal(d_parts, d_sums)
    else:
        assert torch.equal(d_parts, d_sums.bfloat16())
        assert torch.equal(rounded, outputs.bfloat16())


def test_no_number_in_an_attentional_vector_stays_none(tapes, precision):
    for i in range(4):
        operands = operands_of_join((2, 3, 37), precision)
        operands[i][1, 2, 5] = torch.nan
        low = None if precision == torch.float32 else precision
        outputs, _, d_sums, d_parts = run_join(tapes.CompiledJoinTape, *operands, low)
        where = torch.zeros(2, 3, 37, dtype=torch.bool)
        where[1, 2, 5] = True
        assert torch.equal(outputs.isnan(), where & (i < 2))
        assert torch.equal(d_sums.isnan(), where)
        assert torch.equal(d_parts.isnan(), where)


def test_threads_change_no_bit_of_an_attentional_vector(tapes, threads):
    operands = operands_of_join((2, 5, 37), torch.float32)
    results = []
    for num_threads in (1, 2, 3):
        threads(num_threads)
        results.append(run_join(tapes.CompiledJoinTape, *operands, None))
    for other in results[1:]:
        for i in (0, 2, 3):
            assert torch.equal(results[0][i], other[i])
