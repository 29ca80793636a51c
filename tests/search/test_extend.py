"""The choice of the best extensions, against its rule in plain lists."""

import math

import pytest
import torch

from nmt.search.extend import Rules, best_extensions


def rules_of(banned=(), must_end=None, eos_id=1):
    must_end = None if must_end is None else torch.tensor(must_end)
    return Rules(torch.tensor(list(banned), dtype=torch.long), must_end, eos_id)


def plainly(logits, live, rules, n):
    """All extensions of each sentence, sorted; those that are impossible left out."""
    log_probs = torch.log_softmax(logits.double(), 1).view(*live.shape, -1).tolist()
    best = []
    for b, sentence in enumerate(log_probs):
        ends = rules.must_end is not None and bool(rules.must_end[b])
        possible = [
            (live[b, k].item() + log_prob, -k, -token)
            for k, row in enumerate(sentence)
            for token, log_prob in enumerate(row)
            if token not in rules.banned_ids.tolist() and (token == rules.eos_id or not ends)
        ]
        possible = sorted((x for x in possible if x[0] > -math.inf), reverse=True)[:n]
        best.append([(log_prob, -k, -token) for log_prob, k, token in possible])
    return best


def assert_best(found, expected):
    for row, best in enumerate(expected):
        num_found = int((found.log_probs[row] > -torch.inf).sum())
        assert num_found == len(best)
        for i, (log_prob, parent, token_id) in enumerate(best):
            assert found.log_probs[row, i].item() == pytest.approx(log_prob, abs=1e-5)
            assert (found.parents[row, i], found.token_ids[row, i]) == (parent, token_id)


@pytest.mark.parametrize(("sentences", "beam", "vocab"), [(1, 1, 2), (3, 1, 7), (2, 4, 90)])
@pytest.mark.parametrize("n", [1, 2, 8])
def test_they_are_the_best_of_all(sentences, beam, vocab, n):
    torch.manual_seed(0)
    logits, live = 3 * torch.randn(sentences * beam, vocab), -torch.rand(sentences, beam)
    found = best_extensions(logits, live, rules_of(), n)
    assert found.log_probs.shape == (sentences, min(n, beam * vocab))
    assert_best(found, plainly(logits, live, rules_of(), n))


def test_of_equal_ones_the_better_hypothesis_comes_first_and_then_the_lower_token():
    found = best_extensions(torch.zeros(4, 3), torch.zeros(2, 2), rules_of([0]), 4)
    assert found.parents.tolist() == [[0, 0, 1, 1]] * 2
    assert found.token_ids.tolist() == [[1, 2, 1, 2]] * 2


def test_banned_tokens_keep_their_probability_but_do_not_come():
    torch.manual_seed(0)
    logits, live = torch.randn(4, 9), torch.zeros(2, 2)
    rules = rules_of([0, 5], eos_id=5)
    found = best_extensions(logits, live, rules, 12)
    assert_best(found, plainly(logits, live, rules, 12))
    assert not {0, 5} & set(found.token_ids.flatten().tolist())


def test_where_a_sentence_must_end_nothing_else_comes():
    torch.manual_seed(0)
    logits, live = torch.randn(6, 9), -torch.rand(3, 2)
    rules = rules_of([0], [False, True, False], eos_id=4)
    assert_best(best_extensions(logits, live, rules, 5), plainly(logits, live, rules, 5))
    rules = rules_of([0, 4], [True] * 3, eos_id=4)  # and may not
    assert best_extensions(logits, live, rules, 5).log_probs.isneginf().all()


def test_what_is_dead_or_knows_no_token_has_no_extension():
    logits = torch.zeros(4, 5)
    logits[1] = -torch.inf
    live = torch.tensor([[0.0, 0.0], [-1.0, -torch.inf]])
    found = best_extensions(logits, live, rules_of(), 10)
    assert (found.log_probs > -torch.inf).sum(1).tolist() == [5, 5]
    assert not found.parents[found.log_probs > -torch.inf].any()


def test_logits_are_left_as_they_are():
    logits, live = torch.randn(4, 5), torch.zeros(2, 2)
    before = logits.clone(), live.clone()
    best_extensions(logits, live, rules_of([1], [True, False]), 3)
    assert torch.equal(logits, before[0])
    assert torch.equal(live, before[1])
