"""Beam search against a search that cannot be wrong, and against its own rule in plain lists."""

import itertools
import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from nmt.search.beam import beam_search, length_penalty

BOS, EOS = 0, 1


@dataclass(frozen=True)
class Prefix:
    """A state that is the whole history, so that a wrong row order shows at once."""

    ids: torch.Tensor  # (N, 2 + length): place in the batch, sentence, <s>, tokens

    def select(self, rows):
        num_sentences = len(self.ids[:, 0].unique())
        assert len(rows) % num_sentences == 0
        ids = self.ids[rows]
        owners = self.ids[:, 0].unique().repeat_interleave(len(rows) // num_sentences)
        assert torch.equal(ids[:, 0], owners), "a row has moved to another sentence"
        return Prefix(ids)

    def keep(self, sentences):
        places = self.ids[:, 0].unique()[sentences]
        return Prefix(self.ids[torch.isin(self.ids[:, 0], places)])


@cache
def next_log_probs(sentence, prefix, vocab_size):
    """An arbitrary but fixed language model: depends on the sentence and on all tokens so far."""
    seed = 1 + sum((token + 1) * 31**i for i, token in enumerate((sentence, *prefix)))
    generator = torch.Generator().manual_seed(seed % 2**31)
    return (1.5 * torch.randn(vocab_size, generator=generator)).log_softmax(-1)


def log_probs_of(sentence, token_ids, vocab_size):
    """The model's log-probability of each token of a sequence."""
    return [
        next_log_probs(sentence, tuple(token_ids[:i]), vocab_size)[token].item()
        for i, token in enumerate(token_ids)
    ]


class Model:
    """The step function of the language model; remembers what it was asked and what it said."""

    def __init__(self, vocab_size, dtype=torch.float32):
        self.vocab_size, self.dtype = vocab_size, dtype
        self.rows, self.returned = [], []

    def __call__(self, token_ids, state):
        ids = torch.cat([state.ids, token_ids.unsqueeze(1)], 1)
        rows = ids.tolist()
        assert all(row[2] == BOS for row in rows)
        log_probs = torch.stack([next_log_probs(r[1], tuple(r[3:]), self.vocab_size) for r in rows])
        self.rows.append([row[0] for row in rows])
        self.returned.append((log_probs, log_probs.clone()))
        return log_probs.to(self.dtype), Prefix(ids)


def search(sentences, *, vocab_size=8, max_length=4, model=None, **options):
    """`max_length`: of all, or one for each sentence."""
    lengths = [max_length] * len(sentences) if isinstance(max_length, int) else max_length
    return beam_search(
        model or Model(vocab_size),
        Prefix(torch.tensor(list(enumerate(sentences)))),
        max_lengths=torch.tensor(lengths),
        bos_id=BOS,
        eos_id=EOS,
        **{"forbidden_ids": [BOS], **options},
    )


def penalty(length, alpha):
    return ((5 + length) / 6) ** alpha


def plain_search(
    sentence,
    *,
    beam_size,
    n_best=1,
    max_length=4,
    min_length=0,
    alpha=0.0,
    vocab_size=8,
    forbidden_ids=(BOS,),
    stop_early=True,
):
    """The rule of `beam_search` for one sentence in lists: its n best, and the steps it took."""
    live, finished = [(0.0, ())], []
    for length in range(1, max_length + 2):
        allowed = set(range(vocab_size)) - set(forbidden_ids)
        if length <= min_length:
            allowed.discard(EOS)
        if length > max_length:
            allowed &= {EOS}
        best = sorted(
            (
                (log_prob + next_log_probs(sentence, ids, vocab_size)[token].item(), (*ids, token))
                for log_prob, ids in live
                for token in allowed
            ),
            reverse=True,
        )[: 2 * beam_size]
        finished += [
            (log_prob / penalty(length, alpha), ids)
            for log_prob, ids in best[:beam_size]
            if ids[-1] == EOS
        ]
        finished = sorted(finished, reverse=True)[:n_best]
        live = [(log_prob, ids) for log_prob, ids in best if ids[-1] != EOS][:beam_size]
        if not live or (beam_size == 1 and finished):
            break
        bound = live[0][0] / penalty(max_length + 1, alpha)
        if stop_early and len(finished) == n_best and bound <= finished[-1][0]:
            break
    return finished, length


def ids_of(found):
    return [[tuple(hypothesis.token_ids) for hypothesis in sentence] for sentence in found]


def every_sequence(sentence, max_length, min_length, alpha, vocab_size):
    """All sequences that end in </s>, best first."""
    found = []
    for length in range(min_length, max_length + 1):
        for body in itertools.product(range(2, vocab_size), repeat=length):
            ids = (*body, EOS)
            log_prob = math.fsum(log_probs_of(sentence, ids, vocab_size))
            found.append((log_prob / penalty(len(ids), alpha), ids))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize(("max_length", "min_length"), [(0, 0), (1, 0), (3, 0), (3, 2), (4, 4)])
def test_a_beam_wide_enough_finds_every_sequence_in_order(alpha, max_length, min_length):
    expected = every_sequence(7, max_length, min_length, alpha, vocab_size=4)
    [found] = search(
        [7],
        vocab_size=4,
        beam_size=16,
        n_best=16,
        max_length=max_length,
        min_length=min_length,
        alpha=alpha,
    )
    assert [tuple(h.token_ids) for h in found] == [ids for _, ids in expected]
    assert [h.score for h in found] == pytest.approx([score for score, _ in expected], rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_a_beam_of_one_is_greedy_and_ends_at_the_first_end(alpha):
    sentences, max_length, found = range(40), 6, []
    for sentence in sentences:
        ids = ()
        while EOS not in ids:
            log_probs = next_log_probs(sentence, ids, 8).clone()
            log_probs[BOS] = -math.inf
            ids = (*ids, EOS if len(ids) == max_length else log_probs.argmax().item())
        found.append([ids])
    assert len({len(ids) for [ids] in found}) > 3
    assert ids_of(search(sentences, beam_size=1, max_length=6, alpha=alpha)) == found


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("vocab_size", [4, 12])
@pytest.mark.parametrize(
    ("beam_size", "n_best"),
    [(k, n) for k in range(1, 6) for n in range(1, k + 1)],
)
def test_batched_search_is_plain_search(alpha, vocab_size, beam_size, n_best):
    sentences = [100 * beam_size + 10 * n_best + i for i in range(8)]
    options = {"beam_size": beam_size, "n_best": n_best, "alpha": alpha, "vocab_size": vocab_size}
    max_length = [5, 1, 3, 6, 0, 4, 6, 2]
    found = search(sentences, max_length=max_length, **options)
    for sentence, limit, hypotheses in zip(sentences, max_length, found, strict=True):
        expected, _ = plain_search(sentence, max_length=limit, **options)
        assert [tuple(h.token_ids) for h in hypotheses] == [ids for _, ids in expected]
        scores = [score for score, _ in expected]
        assert [h.score for h in hypotheses] == pytest.approx(scores, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize(("beam_size", "n_best"), [(2, 1), (2, 2), (3, 1), (4, 2), (5, 5)])
def test_stopping_early_loses_nothing(alpha, beam_size, n_best):
    sentences, saved = range(30), 0
    options = {"beam_size": beam_size, "n_best": n_best, "alpha": alpha, "max_length": 7}
    found = ids_of(search(sentences, **options))
    for sentence in sentences:
        to_the_end, _ = plain_search(sentence, **options, stop_early=False)
        assert found[sentence] == [ids for _, ids in to_the_end]
        saved += 8 - plain_search(sentence, **options)[1]
    assert saved > 0 or alpha == 2.0  # where a long hypothesis may still win, it is waited for


@pytest.mark.parametrize("beam_size", [1, 2, 3, 5])
def test_a_finished_sentence_leaves_the_batch(beam_size):
    sentences, model = range(12), Model(12)
    options = {"beam_size": beam_size, "alpha": 0.6, "vocab_size": 12}
    search(sentences, model=model, max_length=6, **options)
    steps = [plain_search(sentence, max_length=6, **options)[1] for sentence in sentences]
    assert len(set(steps)) > 2
    expected = [
        [place for place, took in enumerate(steps) if took >= t for _ in range(beam_size)]
        for t in range(1, max(steps) + 1)
    ]
    expected[0] = list(sentences)  # at first each sentence has one row
    assert model.rows == expected


@pytest.mark.parametrize("beam_size", [1, 2, 4])
def test_a_batch_is_its_sentences(beam_size):
    sentences, lengths = list(range(12)), [i % 5 + 1 for i in range(12)]
    options = {"beam_size": beam_size, "n_best": beam_size, "alpha": 0.6}
    assert search(sentences, max_length=lengths, **options) == [
        search([sentence], max_length=[length], **options)[0]
        for sentence, length in zip(sentences, lengths, strict=True)
    ]


def test_the_order_of_a_batch_does_not_matter():
    sentences, order = list(range(12)), [7, 0, 11, 3, 1, 10, 4, 2, 9, 5, 8, 6]
    lengths = [i % 5 + 1 for i in sentences]
    found = search(sentences, max_length=lengths, beam_size=3, n_best=2, alpha=1.0)
    shuffled = search(
        order, max_length=[lengths[i] for i in order], beam_size=3, n_best=2, alpha=1.0
    )
    assert shuffled == [found[i] for i in order]


@pytest.mark.parametrize("beam_size", [2, 3, 5])
def test_the_best_is_the_same_whatever_n_is(beam_size):
    sentences = range(30)
    all_found = search(sentences, beam_size=beam_size, n_best=beam_size, alpha=1.0, max_length=6)
    for n_best in range(1, beam_size):
        found = search(sentences, beam_size=beam_size, n_best=n_best, alpha=1.0, max_length=6)
        assert found == [hypotheses[:n_best] for hypotheses in all_found]


@pytest.mark.parametrize("vocab_size", [3, 4, 12])
def test_hypotheses_are_sorted_distinct_end_once_and_are_possible(vocab_size):
    found = search(range(20), vocab_size=vocab_size, beam_size=5, n_best=5, alpha=0.6)
    for hypotheses in found:
        scores = [h.score for h in hypotheses]
        assert len(hypotheses) == 5
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(h.token_ids) for h in hypotheses}) == len(hypotheses)
        assert all(h.token_ids.index(EOS) == len(h.token_ids) - 1 for h in hypotheses)
        assert all(math.isfinite(h.score) and BOS not in h.token_ids for h in hypotheses)


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_scores_are_those_of_the_model(alpha):
    for sentence, hypotheses in enumerate(search(range(20), beam_size=4, n_best=4, alpha=alpha)):
        for h in hypotheses:
            expected = log_probs_of(sentence, h.token_ids, 8)
            assert h.token_log_probs == pytest.approx(expected, abs=1e-5)
            assert math.fsum(h.token_log_probs) == pytest.approx(h.log_prob, abs=1e-5)
            formula = h.log_prob / ((5 + len(h.token_ids)) / 6) ** alpha
            assert h.score == pytest.approx(formula, rel=1e-6)


def test_the_length_penalty_is_that_of_the_paper():
    assert length_penalty(1, 0.6) == 1.0
    assert length_penalty(7, 1.0) == 2.0
    assert length_penalty(19, 0.5) == 2.0
    assert length_penalty(100, 0.0) == 1.0
    assert torch.equal(length_penalty(torch.tensor([1, 7]), 2.0), torch.tensor([1.0, 4.0]))


@pytest.mark.parametrize("min_length", [1, 2, 4])
@pytest.mark.parametrize("beam_size", [1, 3])
def test_no_hypothesis_is_shorter_than_the_least_or_longer_than_the_limit(min_length, beam_size):
    options = {"beam_size": beam_size, "min_length": min_length, "max_length": 4, "alpha": 1.0}
    found = ids_of(search(range(60), **options))
    assert {len(ids) - 1 for [ids] in found} <= set(range(min_length, 5))
    assert min(len(ids) - 1 for [ids] in found) == min_length
    for sentence, hypotheses in enumerate(found):
        assert hypotheses == [ids for _, ids in plain_search(sentence, **options)[0]]


@pytest.mark.parametrize("forbidden_ids", [(BOS,), (BOS, 3), (BOS, 2, 4, 6)])
def test_forbidden_tokens_never_appear(forbidden_ids):
    options = {"beam_size": 3, "n_best": 3, "forbidden_ids": forbidden_ids, "max_length": 5}
    found = ids_of(search(range(20), **options))
    seen = {token for hypotheses in found for ids in hypotheses for token in ids}
    assert seen == set(range(8)) - set(forbidden_ids)
    for sentence, hypotheses in enumerate(found):
        assert hypotheses == [ids for _, ids in plain_search(sentence, **options)[0]]


def test_without_forbidden_tokens_every_token_can_appear():
    found = ids_of(search(range(30), beam_size=2, forbidden_ids=(), max_length=6))
    assert {token for [ids] in found for token in ids} == set(range(8))


def test_fewer_than_n_come_back_only_if_there_are_no_more():
    [found] = search([1], vocab_size=3, beam_size=5, n_best=5, max_length=2, forbidden_ids=[BOS])
    assert sorted(len(h.token_ids) for h in found) == [1, 2, 3]  # </s>, 2 </s>, 2 2 </s>


def test_a_token_the_model_rules_out_is_never_part_of_a_hypothesis():
    def step(token_ids, state):
        """After <s> only 2, after 2 only </s>."""
        log_probs = torch.full((len(token_ids), 8), -math.inf)
        log_probs[token_ids == BOS, 2] = 0.0
        log_probs[token_ids == 2, EOS] = 0.0
        return log_probs, state

    found = search([0, 1], model=step, beam_size=3, n_best=3)
    assert ids_of(found) == [[(2, EOS)]] * 2
    assert found[0][0].log_prob == found[0][0].score == 0.0


def test_what_the_step_returned_is_not_modified():
    model = Model(8)
    search(range(4), model=model, beam_size=3, min_length=2, max_length=[2, 3, 4, 5])
    assert all(torch.equal(returned, copy) for returned, copy in model.returned)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_sums_are_fp32_whatever_the_step_returns(dtype):
    found = search(range(4), model=Model(8, dtype), beam_size=3, n_best=3)
    for sentence, hypotheses in enumerate(found):
        for h in hypotheses:
            expected = [
                next_log_probs(sentence, tuple(h.token_ids[:i]), 8)
                .to(dtype)
                .float()
                .log_softmax(-1)[token]
                for i, token in enumerate(h.token_ids)
            ]
            assert h.token_log_probs == pytest.approx(torch.stack(expected).tolist(), abs=1e-6)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_logits_are_normalised(beam_size):
    def step(token_ids, state):
        log_probs, state = model(token_ids, state)
        return log_probs + torch.arange(len(token_ids)).unsqueeze(1) - 7, state

    model = Model(8)
    options = {"beam_size": beam_size, "n_best": beam_size, "alpha": 1.0}
    found, expected = (search(range(10), model=m, **options) for m in (step, Model(8)))
    assert ids_of(found) == ids_of(expected)
    for hypotheses, true_hypotheses in zip(found, expected, strict=True):
        for h, true in zip(hypotheses, true_hypotheses, strict=True):
            assert h.token_log_probs == pytest.approx(true.token_log_probs, abs=1e-5)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_of_equal_tokens_the_first_is_taken(beam_size):
    def step(token_ids, state):
        return torch.zeros(len(token_ids), 8), state

    found = search([0, 1], model=step, beam_size=beam_size, max_length=2, min_length=2)
    assert ids_of(found) == [[(2, 2, EOS)]] * 2
