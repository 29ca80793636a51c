"""The compiled mean under weights against torch's operations in fp64, forward and backward."""

import pytest
import torch

from nmt.model.attention_tape import AttentionTape
from nmt.model.score_tape import ScoreTape

SIZES = {
    "one of all": (1, (1,), 1),
    "one position": (2, (1, 1), 3),
    "one step": (1, (2, 5), 5),
    "ragged": (3, (4, 1, 3), 16),
    "more": (2, (19, 40, 33), 37),
}


class GivenScores(ScoreTape):
    """Scores that do not depend on any query."""

    def __init__(self, scores):
        self.given = scores

    def forward(self, t):
        return self.given[t]

    def backward(self, t):
        pass

    def gradients(self):
        return torch.zeros_like(self.keys), None


@pytest.fixture(params=SIZES.values(), ids=SIZES)
def sizes(request):
    """Steps, lengths of the sources, numbers of a value."""
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def precision(request):
    return request.param


@pytest.fixture
def compiled_tape(kernels):
    from nmt.model.compiled_tapes import CompiledAttentionTape

    return CompiledAttentionTape


def operands_of(sizes, precision=torch.float32, scale=2.0):
    """Scores, values, mask, d_attended, d_weights."""
    steps, lengths, dim = sizes
    batch, longest = len(lengths), max(lengths)
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    return [
        scale * random(steps, batch, longest),
        random(batch, longest, dim).to(precision),
        torch.arange(longest) < torch.tensor(lengths).unsqueeze(1),
        random(steps, batch, dim).to(precision),
        random(steps, batch, longest),
    ]


def run(tape_of, scores, values, mask, d_attended, d_weights):
    """All steps, forward and backward: weights, attended of each step, d_scores, d_values."""
    tape = tape_of(GivenScores(scores), values, mask, len(scores))
    attended = []
    for t in range(len(scores)):
        tape.forward(t)
        attended.append(tape.attended.clone())
    tape.prepare(d_attended, d_weights, torch.empty(0))
    for t in reversed(range(len(scores))):
        tape.backward(t)
    return {
        "weights": tape.weights,
        "attended": torch.stack(attended),
        "d_scores": tape.d_scores,
        "d_values": tape.d_values(),
    }


def exact(operands):
    return [x if x.dtype == torch.bool else x.double() for x in operands]


def assert_is_exact(found, expected, names=("weights", "attended", "d_scores")):
    for name in names:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(
            found[name].double(),
            expected[name],
            rtol=1e-5,
            atol=1e-6,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_weights_means_and_gradients_are_those_of_fp64(compiled_tape, sizes, precision):
    operands = operands_of(sizes, precision)
    found, expected = run(compiled_tape, *operands), run(AttentionTape, *exact(operands))
    assert_is_exact(found, expected)
    assert found["d_values"].dtype == precision
    tolerance = 1e-5 if precision == torch.float32 else 2.0**-7
    torch.testing.assert_close(
        found["d_values"].double(), expected["d_values"], rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("scale", [0.0, 30.0, 1000.0, 1e30])
def test_scores_may_have_any_size(compiled_tape, scale):
    operands = operands_of((3, (4, 1, 3), 5), scale=scale)
    assert_is_exact(run(compiled_tape, *operands), run(AttentionTape, *exact(operands)))


def test_weights_sum_to_1_and_are_exactly_0_at_padding(compiled_tape):
    scores, values, mask, *gradients = operands_of((2, (19, 40, 33), 5))
    scores[:, ~mask] = 500.0  # what is there does not matter
    found = run(compiled_tape, scores, values, mask, *gradients)
    torch.testing.assert_close(found["weights"].sum(-1), torch.ones(2, 3), rtol=1e-6, atol=0)
    for name in ("weights", "d_scores"):
        assert not found[name][:, ~mask].any()
        assert found[name][:, mask].all()
    assert not found["d_values"][~mask].any()


@pytest.mark.parametrize("score", [-30.0, 500.0])
def test_padding_changes_nothing(compiled_tape, score):
    scores, values, mask, d_attended, d_weights = operands_of((2, (4, 2, 3), 5))
    found = run(compiled_tape, scores, values, mask, d_attended, d_weights)
    scores[:, ~mask], values[~mask], d_weights[:, ~mask] = score, 1e30, 7.0
    again = run(compiled_tape, scores, values, mask, d_attended, d_weights)
    for name in found:
        assert torch.equal(again[name], found[name])


def test_values_may_lie_in_memory_in_any_order(compiled_tape):
    operands = operands_of((2, (4, 2, 3), 5))
    expected = run(compiled_tape, *operands)
    operands[1] = operands[1].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    found = run(compiled_tape, *operands)
    for name in found:
        assert torch.equal(found[name], expected[name])


@pytest.mark.parametrize("num_threads", [2, 3])
def test_threads_change_no_bit_of_attention(compiled_tape, precision, threads, num_threads):
    operands = operands_of((2, (19, 40, 33, 1, 7), 37), precision)
    threads(1)
    alone = run(compiled_tape, *operands)
    threads(num_threads)
    together = run(compiled_tape, *operands)
    for name in ("weights", "attended", "d_scores"):
        assert torch.equal(together[name], alone[name])


def test_a_sentence_of_a_batch_is_the_sentence_alone_bit_for_bit(compiled_tape, precision):
    scores, values, mask, d_attended, d_weights = operands_of((2, (7, 9, 4), 37), precision)
    together = run(compiled_tape, scores, values, mask, d_attended, d_weights)
    for b in range(3):
        one = slice(b, b + 1)
        alone = run(
            compiled_tape,
            scores[:, one],
            values[one],
            mask[one],
            d_attended[:, one],
            d_weights[:, one],
        )
        for name in ("weights", "attended", "d_scores"):
            assert torch.equal(alone[name], together[name][:, one])


# ------------------------------------------------------------- numbers that are not finite


def spoil(operands, i, number):
    """Put a number into the second of three sentences, at a real position of the first step."""
    places = [(0, 1, 2), (1, 2, 3), None, (0, 1, 4), (0, 1, 2)]
    operands[i][places[i]] = number
    return operands


@pytest.mark.parametrize("i", [0, 1, 3, 4], ids=["scores", "values", "d_attended", "d_weights"])
def test_no_number_stays_none_and_in_its_sentence(compiled_tape, precision, i):
    operands = spoil(operands_of((2, (4, 3, 2), 5), precision), i, torch.nan)
    found, expected = run(compiled_tape, *operands), run(AttentionTape, *exact(operands))
    mask = operands[2]
    assert any(tensor.isnan().any() for tensor in expected.values())
    for name in ("weights", "attended", "d_scores"):
        what = slice(None) if name == "attended" else mask.expand(2, -1, -1)
        assert torch.equal(found[name][what].isnan(), expected[name][what].isnan())
        assert not found[name][:, [0, 2]].isnan().any()


@pytest.mark.parametrize("number", [torch.inf, -torch.inf])
@pytest.mark.parametrize("i", [0, 1, 3, 4], ids=["scores", "values", "d_attended", "d_weights"])
def test_where_infinity_makes_no_number_of_torch_it_makes_none_of_a_kernel(
    compiled_tape, i, number
):
    operands = spoil(operands_of((2, (4, 3, 2), 5)), i, number)
    assert_is_as_finite(run(compiled_tape, *operands), run(AttentionTape, *operands), operands[2])


def assert_is_as_finite(found, plain, mask):
    for name in ("weights", "attended", "d_scores"):
        is_lost = ~plain[name].isfinite()
        if name != "attended":
            is_lost &= mask
        assert not found[name][is_lost].isfinite().any()
        is_finite = plain[name].isfinite() & found[name].isfinite()
        torch.testing.assert_close(
            found[name][is_finite], plain[name][is_finite], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
def test_scores_of_which_none_is_finite_make_no_weights(compiled_tape, number):
    operands = operands_of((2, (4, 3, 2), 5))
    operands[0][0, 1, :3] = number
    plain = run(AttentionTape, *operands)
    assert plain["weights"][0, 1, :3].isnan().all()
    assert_is_as_finite(run(compiled_tape, *operands), plain, operands[2])


def test_a_sentence_of_padding_alone_has_no_mean(compiled_tape):
    operands = operands_of((1, (4, 3), 5))
    operands[2][1] = False
    found = run(compiled_tape, *operands)
    assert found["attended"][0, 1].isnan().all()
    assert found["attended"][0, 0].isfinite().all()
