"""Additive scores of search: the compiled loop, torch's operations and fp64 say the same."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from nmt.model import compiled, folded_attention
from nmt.model.folded import fold
from nmt.model.folded_attention import FoldedMemory, additive_scores
from nmt.model.score_tape import additive_scores as additive_scores_of_training

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def exact_scores(queries, keys, energy):
    """(B, K, S), in fp64."""
    hidden = torch.sigmoid(queries.double().unsqueeze(2) + keys.double().unsqueeze(1))
    return hidden @ energy.double()


def memory_of(keys, *, has_factors=True):
    mask = torch.ones(keys.shape[:2], dtype=torch.bool)
    return FoldedMemory(keys, keys, mask, torch.exp(-keys) if has_factors else None, None)


def random_operands(sentences, beam_size, positions, dim):
    torch.manual_seed(1)
    sizes = (sentences, beam_size, dim), (sentences, positions, dim), (dim,)
    return [2 * torch.randn(size) for size in sizes]


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 5, 4, 7), (2, 1, 9, 16), (2, 3, 40, 37)])
@pytest.mark.parametrize("has_factors", [True, False])
def test_scores_are_those_of_the_formula(way, sizes, has_factors):
    queries, keys, energy = random_operands(*sizes)
    with way():
        found = additive_scores(queries, memory_of(keys, has_factors=has_factors), energy)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact_scores(queries, keys, energy), **CLOSE)


@pytest.mark.parametrize("largest", [1.0, 55.0, 300.0])
@pytest.mark.parametrize("large_keys", [False, True])
def test_scores_are_exact_for_queries_and_keys_of_any_size(
    way, random_model, variant_of, largest, large_keys
):
    """As the memory prepares them."""
    attention = fold(random_model(variant_of()).float().decoder).attention
    queries, keys, _ = random_operands(3, 2, 4, len(attention.energy))
    (keys if large_keys else queries)[0, 0] *= largest
    (queries if large_keys else keys)[0, 0, :2] = -largest  # which may cancel
    with way():
        attention.from_states = lambda states: keys
        memory = attention.memory(keys, keys, keys[..., 0] < torch.inf, 2)
        assert (memory.factors is not None) == (
            way is nullcontext and float(keys.abs().max()) <= 40
        )
        found = additive_scores(queries, memory, attention.energy)
    exact = exact_scores(queries, keys, attention.energy)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=5e-5)


def test_scores_of_search_are_those_of_training(kernels):
    queries, keys, energy = random_operands(3, 5, 4, 37)
    found = additive_scores(queries, memory_of(keys), energy)
    of_training = additive_scores_of_training(queries.transpose(0, 1), keys, energy)
    torch.testing.assert_close(found.transpose(0, 1), of_training, rtol=1e-6, atol=1e-6)


def test_scores_of_fp64_are_torchs(kernels, runs_of):
    queries, keys, energy = (x.double() for x in random_operands(3, 5, 4, 7))
    found = []
    memory = memory_of(keys, has_factors=False)
    assert runs_of(lambda: found.append(additive_scores(queries, memory, energy))) == {}
    torch.testing.assert_close(found[0], exact_scores(queries, keys, energy), rtol=1e-12, atol=0)


def test_an_energy_of_zeros_scores_zero(way):
    x = torch.randn(1, 2, 5)
    with way():
        assert not additive_scores(x, memory_of(x), torch.zeros(5)).any()


def test_scores_are_the_same_however_many_sentences_torch_takes_at_a_time(kernels, monkeypatch):
    queries, keys, energy = random_operands(5, 2, 4, 3)
    with compiled.torch_only():
        expected = additive_scores(queries, memory_of(keys), energy)
        for sentences in (1, 2, 4, 5, 6):
            chunk = sentences * queries.size(1) * keys[0].numel() // torch.get_num_threads()
            monkeypatch.setattr(folded_attention, "SCORE_CHUNK", chunk)
            found = additive_scores(queries, memory_of(keys), energy)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_threads", [2, 3])
def test_neither_threads_nor_other_sentences_change_a_bit(kernels, threads, num_threads):
    queries, keys, energy = random_operands(5, 3, 7, 37)
    queries[2, 1, 5], memory = 50.0, memory_of(keys)
    threads(1)
    expected = additive_scores(queries, memory, energy)
    alone = [
        additive_scores(queries[i : i + 1], memory.keep(torch.tensor([i])), energy)
        for i in range(5)
    ]
    assert torch.equal(torch.cat(alone), expected)
    threads(num_threads)
    assert torch.equal(additive_scores(queries, memory, energy), expected)


def test_no_number_stays_none_and_in_its_score(way):
    for i, place in enumerate([(1, 2, 6), (1, 3, 6), (6,)]):
        operands = random_operands(2, 3, 4, 7)
        has_factors = i != 1
        operands[i][place] = torch.nan
        queries, keys, energy = operands
        with way():
            found = additive_scores(queries, memory_of(keys, has_factors=has_factors), energy)
        assert torch.equal(found.isnan(), exact_scores(*operands).isnan())
        assert found.isnan().any()


# ----------------------------------------------------------------------------------- factors


def memory_of_model(random_model, variant_of, score="additive", dtype=torch.float32):
    attention = fold(random_model(variant_of(score=score)).to(dtype).decoder).attention
    torch.manual_seed(0)
    states = torch.randn(4, 5, 6).to(dtype)
    return attention.memory(torch.randn(4, 5, 2).to(dtype), states, states[..., 0] < 9, 2)


def test_factors_are_made_for_the_compiled_loop_alone(kernels, random_model, variant_of):
    memory = memory_of_model(random_model, variant_of)
    torch.testing.assert_close(memory.factors, torch.exp(-memory.keys))
    assert memory_of_model(random_model, variant_of, "concat").factors is not None
    for score in ("general", "dot", "none"):
        assert memory_of_model(random_model, variant_of, score).factors is None
    assert memory_of_model(random_model, variant_of, dtype=torch.float64).factors is None
    with compiled.torch_only():
        assert memory_of_model(random_model, variant_of).factors is None


def test_the_compiled_loop_reads_factors_where_there_are_some(kernels):
    queries, keys, energy = random_operands(2, 3, 4, 7)
    memory = replace(memory_of(keys), factors=torch.zeros_like(keys))  # sigmoid(inf)
    found = additive_scores(queries, memory, energy)
    torch.testing.assert_close(found, energy.sum().expand_as(found))


def test_the_factors_that_stay_are_those_of_the_sentences_that_stay(
    kernels, random_model, variant_of
):
    memory = memory_of_model(random_model, variant_of)
    for chosen in ([2, 0], [3], [0, 1, 2, 3], [1, 1, 3]):
        kept = memory.keep(torch.tensor(chosen))
        assert torch.equal(kept.factors, memory.factors[chosen])
        assert torch.equal(kept.keys, memory.keys[chosen])
    assert memory_of_model(random_model, variant_of, "dot").keep(torch.tensor([1])).factors is None


def test_a_memory_made_before_the_kernels_were_loaded_is_still_read(
    kernels, random_model, variant_of
):
    queries, energy = torch.randn(4, 2, 7), torch.randn(7)
    memory = memory_of_model(random_model, variant_of)
    with compiled.torch_only():
        plain = memory_of_model(random_model, variant_of)
    torch.testing.assert_close(
        additive_scores(queries, plain, energy), additive_scores(queries, memory, energy), **CLOSE
    )


def test_steps_of_a_decoder_are_those_of_torch(kernels, runs_of, random_model, variant_of, batch):
    for order in ("bahdanau", "luong", "luong with feeding"):
        model = random_model(variant_of(order=order)).float()
        folded = fold(model.decoder)

        def walk(folded=folded, model=model):
            found = []
            with torch.no_grad():
                state = folded.start(model.encoder(batch.src, batch.src_mask), 2)
                state = state.select(torch.arange(3).repeat_interleave(2))
                for rows in (6, 6, 4):
                    if rows == 4:
                        state = state.keep(torch.tensor([2, 0]))
                    logits, weights, state = folded.step(torch.arange(rows) % 9 + 1, state)
                    found += [logits.dense()[:, :11], weights]
            return found

        found = []
        runs = runs_of(lambda walk=walk, found=found: found.extend(walk()))
        assert runs.pop("add_context", 0) == (3 if order == "bahdanau" else 0)
        assert runs == {"additive_scores": 3, "gru_step": 3, "join_step": 3}
        with compiled.torch_only():
            expected = walk()
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)
