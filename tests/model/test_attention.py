"""Score functions against the papers' formulas, and what attention promises for all of them."""

import math

import pytest
import torch

from nmt.model.attention import (
    AdditiveScore,
    Attention,
    ConcatScore,
    DotScore,
    FixedContext,
    GeneralScore,
    Memory,
)

QUERY_DIM, MEMORY_DIM, KEY_DIM = 3, 4, 5
SCORES = {
    "additive": lambda: AdditiveScore(QUERY_DIM, MEMORY_DIM, KEY_DIM),
    "concat": lambda: ConcatScore(QUERY_DIM, MEMORY_DIM, KEY_DIM),
    "general": lambda: GeneralScore(QUERY_DIM, MEMORY_DIM),
    "dot, sizes differ": lambda: DotScore(QUERY_DIM, MEMORY_DIM),
    "dot": lambda: DotScore(MEMORY_DIM, MEMORY_DIM),
    "scaled dot": lambda: DotScore(MEMORY_DIM, MEMORY_DIM, scaled=True),
    "scaled dot, sizes differ": lambda: DotScore(QUERY_DIM, MEMORY_DIM, scaled=True),
}


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def times(matrix, vector):
    return [dot(row, vector) for row in matrix]


def additive(score, q, h):
    W, U = score.query_layer.weight.tolist(), score.key_layer.weight.tolist()
    v = score.energy_layer.weight[0].tolist()
    return dot(v, [math.tanh(a + b) for a, b in zip(times(W, q), times(U, h), strict=True)])


def concat(score, q, h):
    W, v = score.concat_layer.weight.tolist(), score.energy_layer.weight[0].tolist()
    return dot(v, [math.tanh(a) for a in times(W, q + h)])


def general(score, q, h):
    return dot(q, times(score.key_layer.weight.tolist(), h))


FORMULAS = {
    "additive": additive,
    "concat": concat,
    "general": general,
    "dot, sizes differ": general,  # q . W h: the states projected to the query size
    "dot": lambda score, q, h: dot(q, h),
    "scaled dot": lambda score, q, h: dot(q, h) / math.sqrt(MEMORY_DIM),
    "scaled dot, sizes differ": lambda score, q, h: general(score, q, h) / math.sqrt(QUERY_DIM),
}


def query_dim_of(kind):
    return MEMORY_DIM if kind in ("dot", "scaled dot") else QUERY_DIM


@pytest.fixture(params=SCORES)
def kind(request):
    return request.param


@pytest.fixture
def score(kind):
    torch.manual_seed(0)
    return SCORES[kind]().double()


@pytest.fixture
def query_dim(kind):
    return query_dim_of(kind)


@pytest.fixture(params=[*SCORES, "none"])
def mechanism(request):
    """An attention, or the lack of it, and the size of its queries."""
    torch.manual_seed(0)
    if request.param == "none":
        return FixedContext(), QUERY_DIM
    return Attention(SCORES[request.param]()).double(), query_dim_of(request.param)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def mask_of(*lengths):
    return torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)


def test_a_score_is_the_formula_of_its_paper(kind, score, query_dim):
    queries, states = random(2, 3, query_dim), random(2, 4, MEMORY_DIM)
    expected = [
        [[FORMULAS[kind](score, q, h) for h in sentence] for q in asked]
        for asked, sentence in zip(queries.tolist(), states.tolist(), strict=True)
    ]
    scores = score(queries, score.project(states))
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))


def test_weights_are_the_softmax_of_scores_and_context_their_mean(kind, score, query_dim):
    queries, states = random(2, query_dim), random(2, 3, MEMORY_DIM)
    attention = Attention(score)
    context, weights = attention(queries, attention.remember(states, mask_of(3, 3), states[:, 0]))
    for n, (q, sentence) in enumerate(zip(queries.tolist(), states.tolist(), strict=True)):
        exponentials = [math.exp(FORMULAS[kind](score, q, h)) for h in sentence]
        expected = [e / sum(exponentials) for e in exponentials]
        mean = [dot(expected, column) for column in zip(*sentence, strict=True)]
        assert weights[n].tolist() == pytest.approx(expected)
        assert context[n].tolist() == pytest.approx(mean)


def test_concat_is_additive_with_the_matrices_side_by_side():
    additive, concat = (
        SCORES["additive"]().double(),
        SCORES["concat"]().double(),
    )
    with torch.no_grad():
        W, U = additive.query_layer.weight, additive.key_layer.weight
        concat.concat_layer.weight.copy_(torch.cat([W, U], 1))
        concat.energy_layer.weight.copy_(additive.energy_layer.weight)
    queries, states = random(2, 3, QUERY_DIM), random(2, 4, MEMORY_DIM)
    torch.testing.assert_close(
        concat(queries, concat.project(states)), additive(queries, additive.project(states))
    )


def test_a_dot_of_one_size_has_no_parameters_and_of_two_sizes_one_matrix():
    assert not list(DotScore(4, 4).parameters())
    assert [tuple(p.shape) for p in DotScore(3, 4).parameters()] == [(3, 4)]


def test_weights_are_a_distribution_over_real_tokens(score, query_dim):
    attention = Attention(score)
    mask = mask_of(3, 1, 2)
    states = 30 * random(3, 3, MEMORY_DIM)  # scores far apart
    memory = attention.remember(states, mask, states[:, 0])
    _, weights = attention(random(6, query_dim), memory)
    real = mask.repeat_interleave(2, 0)  # (N, S)
    torch.testing.assert_close(weights.sum(1), torch.ones(6, dtype=torch.float64))
    assert (weights >= 0).all()
    assert (weights[~real] == 0).all()
    assert (weights[2:4] == torch.tensor([1, 0, 0])).all()  # a sentence of one token


def test_equal_states_share_the_weight(score, query_dim):
    attention = Attention(score)
    states = random(1, 1, MEMORY_DIM).expand(1, 4, MEMORY_DIM)
    context, weights = attention(
        random(1, query_dim), attention.remember(states, mask_of(4), states[:, 0])
    )
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 4))
    torch.testing.assert_close(context, states[:, 0])


def test_padding_changes_nothing(mechanism):
    attention, query_dim = mechanism
    query, states, summary = random(2, query_dim), random(2, 3, MEMORY_DIM), random(2, MEMORY_DIM)
    context, weights = attention(query, attention.remember(states, mask_of(3, 3), summary))
    padded = torch.cat([states, 100 * random(2, 2, MEMORY_DIM)], 1)
    mask = torch.cat([mask_of(3, 3), mask_of(1, 1).new_zeros(2, 2)], 1)
    padded_context, padded_weights = attention(query, attention.remember(padded, mask, summary))
    torch.testing.assert_close(padded_context, context)
    torch.testing.assert_close(padded_weights[:, : weights.size(1)], weights)


def test_rows_side_by_side_attend_like_each_row_alone(mechanism):
    attention, query_dim = mechanism
    K, mask = 3, mask_of(2, 4)
    query, states, summary = (
        random(2 * K, query_dim),
        random(2, 4, MEMORY_DIM),
        random(2, MEMORY_DIM),
    )
    contexts, weights = attention(query, attention.remember(states, mask, summary))
    assert len(contexts) == len(weights) == 2 * K
    for n in range(2 * K):
        b = n // K
        alone = attention.remember(states[b : b + 1], mask[b : b + 1], summary[b : b + 1])
        context, row = attention(query[n : n + 1], alone)
        torch.testing.assert_close(contexts[n], context[0])
        torch.testing.assert_close(weights[n], row[0])


def test_rows_share_the_keys_of_their_sentence(kind, score, query_dim, monkeypatch):
    states = random(2, 4, MEMORY_DIM)
    attention = Attention(score)
    memory = attention.remember(states, mask_of(2, 4), states[:, 0])
    seen, forward = [], score.forward
    monkeypatch.setattr(
        score, "forward", lambda queries, keys: seen.append(keys) or forward(queries, keys)
    )
    attention(random(6, query_dim), memory)
    assert len(seen) == 1
    assert seen[0] is memory.keys  # never tiled
    assert memory.states is states


def test_without_attention_the_summary_is_the_context_of_every_row():
    attention, summary = FixedContext(), random(2, MEMORY_DIM)
    memory = attention.remember(random(2, 5, MEMORY_DIM), mask_of(5, 2), summary)
    context, weights = attention(random(6, QUERY_DIM), memory)
    assert torch.equal(context, summary[[0, 0, 0, 1, 1, 1]])
    assert torch.equal(weights, torch.ones(6, 1, dtype=torch.float64))
    assert memory.mask.tolist() == [[True], [True]]
    assert not list(attention.parameters())


def test_a_memory_keeps_the_given_sentences_in_the_given_order():
    memory = Memory(random(3, 2, 4), random(3, 2, 5), mask_of(1, 2, 2))
    kept = memory.keep(torch.tensor([2, 0]))
    for name in ("states", "keys", "mask"):
        old, new = getattr(memory, name), getattr(kept, name)
        assert torch.equal(new, torch.stack([old[2], old[0]]))
