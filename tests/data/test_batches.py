"""Batches: every pair once per epoch, in an order that is a pure function of (seed, epoch)."""

import itertools
from dataclasses import fields

import numpy as np
import pytest
import torch

import nmt.data.batches
from nmt.data.batches import Batches, make_batch, plan_epoch

RANDOM = np.random.default_rng(1)
SRC_LENGTHS = RANDOM.integers(1, 40, 3000)
TGT_LENGTHS = RANDOM.integers(1, 40, 3000)


def plan(src=SRC_LENGTHS, tgt=TGT_LENGTHS, batch_tokens=400, seed=1, epoch=0):
    return plan_epoch(np.array(src), np.array(tgt), batch_tokens, seed, epoch)


def as_lists(batches):
    return [batch.tolist() for batch in batches]


@pytest.fixture(params=[1 << 20, 700])
def pool(request, monkeypatch):
    """All pairs sorted at once, or a part at a time."""
    monkeypatch.setattr(nmt.data.batches, "POOL", request.param)


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize("batch_tokens", [1, 40, 400, 1_000_000])
def test_every_pair_is_in_exactly_one_batch(batch_tokens):
    batches = plan(batch_tokens=batch_tokens)
    assert sorted(np.concatenate(batches).tolist()) == list(range(3000))
    assert all(len(batch) for batch in batches)


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize("batch_tokens", [40, 400])
def test_no_batch_exceeds_its_budget_of_target_positions(batch_tokens):
    for batch in plan(batch_tokens=batch_tokens):
        assert len(batch) * (TGT_LENGTHS[batch].max() + 1) <= batch_tokens


def test_the_budget_counts_the_end_of_each_sentence_and_is_used_up():
    assert sorted(map(len, plan([1] * 4, [4] * 4, batch_tokens=20))) == [4]
    assert sorted(map(len, plan([1] * 4, [4] * 4, batch_tokens=19))) == [1, 3]
    assert sorted(map(len, plan([1] * 4, [4, 4, 4, 9], batch_tokens=20))) == [1, 3]


def test_a_pair_longer_than_the_budget_is_alone():
    batches = as_lists(plan([5, 5, 5], [3, 100, 3], batch_tokens=50))
    assert sorted(map(sorted, batches)) == [[0, 2], [1]]


def test_targets_of_a_batch_are_of_similar_lengths():
    positions = sum(len(batch) * (TGT_LENGTHS[batch].max() + 1) for batch in plan())
    assert positions < 1.05 * (TGT_LENGTHS + 1).sum()
    ranges = sorted((TGT_LENGTHS[b].min(), TGT_LENGTHS[b].max()) for b in plan())
    assert all(high <= low for (_, high), (low, _) in itertools.pairwise(ranges))


def test_among_equal_targets_sources_are_of_similar_lengths():
    for batch in plan(tgt=[9] * 3000):
        assert np.ptp(SRC_LENGTHS[batch]) <= 2


def test_batches_are_in_random_order():
    lengths = [TGT_LENGTHS[batch].max() for batch in plan()]
    rises = sum(a < b for a, b in itertools.pairwise(lengths))
    assert 0.3 < rises / len(lengths) < 0.7


def test_the_plan_is_a_pure_function_of_seed_and_epoch():
    torch.manual_seed(1)
    np.random.seed(1)
    first = as_lists(plan(seed=3, epoch=2))
    torch.manual_seed(2)
    np.random.seed(2)
    assert as_lists(plan(seed=3, epoch=2)) == first
    others = [as_lists(plan(seed=s, epoch=e)) for s, e in ((3, 1), (3, 3), (2, 3), (2, 2), (4, 2))]
    assert first not in others
    assert len({str(other) for other in others}) == 5


def test_pairs_of_equal_lengths_meet_others_in_every_epoch():
    epochs = [plan([5] * 100, [5] * 100, batch_tokens=60, epoch=epoch) for epoch in (0, 1)]
    first, second = ({frozenset(batch.tolist()) for batch in epoch} for epoch in epochs)
    assert not first & second


def test_an_empty_corpus_has_no_batches():
    assert plan([], []) == []


def ids(*token_ids):
    return np.array(token_ids, np.uint16)


def test_a_batch_is_padded_and_marked():
    batch = make_batch([ids(7, 8), ids(9)], [ids(4), ids(5, 6, 7)], [11, 12])
    assert batch.src.tolist() == [[7, 8, 3], [9, 3, 0]]
    assert batch.src_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.tgt_input.tolist() == [[2, 4, 0, 0], [2, 5, 6, 7]]
    assert batch.tgt_output.tolist() == [[4, 3, 0, 0], [5, 6, 7, 3]]
    assert batch.tgt_mask.tolist() == [[True, True, False, False], [True] * 4]
    assert batch.lines == [11, 12]
    assert batch.num_tokens == 6
    assert {t.dtype for t in (batch.src, batch.tgt_input, batch.tgt_output)} == {torch.int64}
    assert {t.dtype for t in (batch.src_mask, batch.tgt_mask)} == {torch.bool}


def test_a_mask_tells_padding_from_a_real_token_with_its_id():
    batch = make_batch([ids(0, 0), ids(9)], [ids(0), ids(5, 0)])
    assert batch.src_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.num_tokens == 5


def test_a_batch_without_targets_has_only_ends():
    batch = make_batch([ids(7), ids(8)], [np.zeros(0, np.int64)] * 2)
    assert batch.tgt_input.tolist() == [[2], [2]]
    assert batch.tgt_output.tolist() == [[3], [3]]
    assert batch.lines == []


def test_a_batch_moves_as_a_whole():
    batch = make_batch([ids(7, 8), ids(9)], [ids(4), ids(5, 6, 7)], [11, 12])
    moved = batch.to(torch.device("meta"))
    for field in fields(batch):
        old, new = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(old, torch.Tensor):
            assert new.is_meta
            assert new.shape == old.shape
            assert new.dtype == old.dtype
        else:
            assert new == old


TEXTS = [(" ".join(["7"] * (i % 5 + 1)), " ".join([str(4 + i)] * (i % 7 + 1))) for i in range(60)]


def content(batch):
    return (batch.src.tolist(), batch.tgt_output.tolist(), batch.lines, batch.num_tokens)


def test_an_epoch_holds_every_pair_with_its_line(build):
    texts = [("", "4"), *TEXTS]  # so that lines are not indices
    seen = {}
    for batch in Batches(build(texts), 40, seed=1).epoch(0):
        for line, src, tgt in zip(batch.lines, batch.src, batch.tgt_output, strict=True):
            pair = (src[src > 3].tolist(), tgt[tgt > 3].tolist())
            assert line not in seen
            seen[line] = tuple(" ".join(map(str, side)) for side in pair)
    assert [seen[line] for line in range(2, 62)] == TEXTS


def test_starting_later_is_skipping(build):
    batches = Batches(build(TEXTS), 40, seed=1)
    all_of_them = [content(batch) for batch in batches.epoch(3)]
    assert len(all_of_them) > 5
    for start in (0, 1, 4, len(all_of_them)):
        assert [content(b) for b in batches.epoch(3, start)] == all_of_them[start:]


def test_the_seed_and_the_epoch_change_the_order(build):
    store = build(TEXTS)

    def order(seed, epoch):
        return [batch.lines for batch in Batches(store, 40, seed).epoch(epoch)]

    assert order(1, 0) == order(1, 0)
    assert len({str(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def note(calls, side):
    """A sampler that notes what it is asked, and makes tokens of the seed."""

    def sampler(sentence, seed):
        calls.append((side, sentence, seed))
        return [4 + seed % 90, 4 + seed // 90 % 90]

    return sampler


def test_segmentations_are_a_pure_function_of_seed_epoch_and_pair(build):
    store = build(TEXTS, with_text=True)

    def drawn(seed=1, epoch=0, batch_tokens=40, start=0):
        calls = []
        samplers = {"src": note(calls, "src"), "tgt": note(calls, "tgt")}
        tokens = {}
        for batch in Batches(store, batch_tokens, seed, samplers).epoch(epoch, start):
            for line, src, tgt in zip(batch.lines, batch.src, batch.tgt_output, strict=True):
                tokens[line] = (src.tolist(), tgt.tolist())
        return tokens, calls

    tokens, calls = drawn()
    assert sorted(sentence for side, sentence, _ in calls if side == "src") == sorted(
        src for src, _ in TEXTS
    )
    assert sorted(sentence for side, sentence, _ in calls if side == "tgt") == sorted(
        tgt for _, tgt in TEXTS
    )
    assert len({seed for _, _, seed in calls}) == 120
    assert all(0 <= seed < 1 << 31 for _, _, seed in calls)
    assert drawn() == (tokens, calls)
    assert drawn(batch_tokens=7)[0] == tokens
    later, _ = drawn(start=3)
    assert later == {line: tokens[line] for line in later}
    for other in (drawn(seed=2)[0], drawn(epoch=1)[0]):
        assert sum(other[line] == tokens[line] for line in tokens) < 5


def test_a_drawn_batch_is_as_long_as_its_segmentations(build):
    store = build([("7", "8")], with_text=True)
    sampler = {"src": lambda *_: [5, 6, 7], "tgt": lambda *_: [9] * 5}
    [batch] = Batches(store, 40, 1, sampler).epoch(0)
    assert batch.src.tolist() == [[5, 6, 7, 3]]
    assert batch.tgt_input.tolist() == [[2, 9, 9, 9, 9, 9]]


def test_sources_are_alike_in_a_batch_with_targets_of_two_lengths():
    """Source lengths go up and down in turns: the longest meet the longest, not the shortest."""
    src_lengths = [s for _ in range(2) for s in range(1, 11)]
    tgt_lengths = [4] * 10 + [5] * 10
    batches = plan(src_lengths, tgt_lengths, batch_tokens=6 * 4)
    spread = [
        max(sources) - min(sources)
        for sources in ([src_lengths[i] for i in batch] for batch in batches)
    ]
    assert max(spread) <= 4
