"""Long sources, whose values are packed: the same contexts, and nothing kept twice."""

import pytest
import torch

from nmt.decoding import Searcher, SearchOptions
from nmt.model import folded_attention, onednn
from nmt.model.folded import fold
from nmt.model.folded_attention import FoldedAttention, add_context

OUT = 6  # numbers of a value


@pytest.fixture(autouse=True)
def with_onednn():
    onednn.replace_products()
    if not onednn.multiplies(torch.zeros(1)):
        pytest.skip("torch has no oneDNN here")


@pytest.fixture
def always_packed(monkeypatch):
    """However short the source."""
    monkeypatch.setattr(folded_attention, "SMALLEST_MEAN", 0)


def attention_of(model):
    return fold(model.decoder).attention


def kept(memory):
    """Whether values are packed, of how many sentences, and how many plain ones are left."""
    layouts = {values.layout for values in memory.packed or ()}
    assert layouts <= {torch._mkldnn}
    return len(memory.packed or ()), memory.states.numel()


@pytest.mark.parametrize("beam_size", [1, 5])
def test_values_are_packed_from_the_threshold_on(random_model, variant_of, beam_size, monkeypatch):
    model = random_model(variant_of()).float()
    monkeypatch.setattr(folded_attention, "SMALLEST_MEAN", beam_size * 20 * OUT)
    for length in (19, 20, 21):
        values, mask = (
            torch.randn(3, length, OUT),
            torch.arange(length) < torch.tensor([[length], [length - 7], [1]]),
        )
        states = torch.randn(3, length, 6)
        memory = attention_of(model).memory(values, states, mask, beam_size)
        assert kept(memory) == ((3, 0) if length >= 20 else (0, values.numel()))
        weights = torch.randn(3, beam_size, length)
        weights = weights.masked_fill_(~mask.unsqueeze(1), -torch.inf).softmax(-1)
        rows = torch.randn(3 * beam_size, OUT)
        expected = (rows.double() + (weights.double() @ values.double()).flatten(0, 1)).float()
        torch.testing.assert_close(add_context(rows, weights, memory), expected)
        chosen = torch.tensor([2, 0])
        chosen_rows = rows.view(3, beam_size, OUT)[chosen].flatten(0, 1)
        expected = expected.view(3, beam_size, OUT)[chosen].flatten(0, 1)
        memory = memory.keep(chosen)
        assert kept(memory)[0] == (2 if length >= 20 else 0)
        torch.testing.assert_close(add_context(chosen_rows, weights[chosen], memory), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_are_left_plain(random_model, variant_of, dtype, always_packed):
    attention = attention_of(random_model(variant_of(score="dot")))
    attention.value_type = dtype
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    memory = attention.memory(x, x, x[..., 0] < 9, 1)
    assert memory.packed is None
    assert memory.states is x


def test_values_that_are_let_go_do_not_hold_on_to_their_memory(
    random_model, variant_of, always_packed
):
    x = torch.randn(2, 4, 6)
    memory = attention_of(random_model(variant_of()).float()).memory(x, x, x[..., 0] < 9, 1)
    assert memory.states.shape == (2, 4, 0)
    assert memory.states.untyped_storage().nbytes() == 0


def walk(folded, model, batch, beam_size):
    """Logits of steps with rows repeated, reordered and dropped in between."""
    found = []
    with torch.no_grad():
        state = folded.start(model.encoder(batch.src, batch.src_mask), beam_size)
        for t, sentences in enumerate((3, 3, 2)):
            if t == 1:
                state = state.select(torch.arange(3).repeat_interleave(beam_size))
            if t == 2:
                state = state.keep(torch.tensor([0, 2]))
            rows = len(state.layers[0][0])
            assert rows == sentences * (beam_size if t else 1)
            logits, weights, state = folded.step(torch.arange(rows) % 9 + 1, state)
            found += [logits.dense()[:, :11], weights]
    return found, state.memory


@pytest.mark.parametrize("beam_size", [1, 5])
def test_steps_with_packed_values_are_those_with_plain_ones(model, batch, beam_size, monkeypatch):
    model.float()
    folded = fold(model.decoder)
    expected, memory = walk(folded, model, batch, beam_size)
    assert memory.packed is None
    monkeypatch.setattr(folded_attention, "SMALLEST_MEAN", 0)
    found, memory = walk(folded, model, batch, beam_size)
    assert kept(memory) == (2, 0)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.int8])
def test_values_are_packed_in_the_type_of_their_products(
    random_model, variant_of, order, precision, batch, monkeypatch
):
    if not onednn.multiplies(torch.zeros(1, dtype=torch.bfloat16)):
        pytest.skip("this processor multiplies no bf16")
    model = random_model(variant_of(order=order)).float()
    expected, _ = walk(fold(model.decoder), model, batch, 5)
    monkeypatch.setattr(folded_attention, "SMALLEST_MEAN", 0)
    folded = fold(model.decoder, precision)
    found, memory = walk(folded, model, batch, 5)
    assert {values.dtype for values in memory.packed} == {folded.precision.once}
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.15)  # as in test_folded


def test_a_sentence_alone_is_the_sentence_in_a_batch(
    random_model, variant_of, order, batch, always_packed
):
    model = random_model(variant_of(order=order)).float()
    decoder = fold(model.decoder)
    with torch.no_grad():
        state = decoder.start(model.encoder(batch.src, batch.src_mask))
        together, _, _ = decoder.step(torch.tensor([1, 1, 1]), state)
        for i, logits in enumerate(together.dense()):
            src, src_mask, _ = batch.sentence(i)
            state = decoder.start(model.encoder(src, src_mask))
            alone, _, _ = decoder.step(torch.tensor([1]), state)
            torch.testing.assert_close(alone.dense()[0], logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("is_restricted", [False, True])
def test_translations_are_the_same_with_and_without_packing(
    random_model, variant_of, beam_size, is_restricted, monkeypatch
):
    model = random_model(variant_of(), vocab_size=40).float()
    options = SearchOptions(
        beam_size=beam_size, length_penalty=1.0, min_length=3, max_length_ratio=2, batch_tokens=30
    )
    sources = [[4, 5, 6, 7], [8, 4], [5] * 9, [6, 7, 8], [4, 4, 8, 8, 7]]

    def translate():
        allowed = (lambda src: torch.arange(30).numpy()) if is_restricted else None
        searcher = Searcher(model, torch.device("cpu"), shortlist=allowed)
        layout = searcher.prepare().decoder.output.weight.layout
        return layout, searcher(sources, options)

    made = []
    pack = folded_attention.pack_values
    monkeypatch.setattr(
        folded_attention, "pack_values", lambda values: made.append(1) or pack(values)
    )
    layout, plain = translate()
    assert layout == torch.strided
    assert not made
    monkeypatch.setattr(onednn, "SMALLEST_PACKED", 1)
    monkeypatch.setattr(folded_attention, "SMALLEST_MEAN", 0)
    layout, packed = translate()
    assert layout == (torch.strided if is_restricted else torch._mkldnn)
    assert made
    for a, b in zip(packed, plain, strict=True):
        assert [h.token_ids for h in a] == [h.token_ids for h in b]
        assert [h.score for h in a] == pytest.approx([h.score for h in b], abs=1e-4)


def test_it_knows_how_many_rows_there_will_be(random_model, variant_of, batch, monkeypatch):
    """Search says so before its first step, which has one row per sentence."""
    model = random_model(variant_of()).float()
    asked = []
    memory = FoldedAttention.memory

    def record(self, values, states, mask, beam_size):
        asked.append(beam_size)
        return memory(self, values, states, mask, beam_size)

    monkeypatch.setattr(FoldedAttention, "memory", record)
    options = SearchOptions(
        beam_size=4, length_penalty=1.0, min_length=0, max_length_ratio=1, batch_tokens=30
    )
    Searcher(model, torch.device("cpu"))([[4, 5]], options)
    Searcher(model, torch.device("cpu"), shortlist=lambda src: torch.arange(11).numpy())(
        [[4, 5]], options
    )
    assert asked == [4, 4]
