"""What does not fit in memory is computed in halves, with the same gradient; else a clear end."""

import math

import numpy as np
import pytest
import torch

from nmt.data.batches import Batches
from nmt.errors import TrainingError
from nmt.training import batch_size
from nmt.training.batch_size import CPU_BATCH_TOKENS, find_batch_tokens

CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate"


class SmallMemory:
    """A network that runs out of memory beyond so many target positions."""

    def __init__(self, monkeypatch, model, positions, error=torch.OutOfMemoryError):
        self.seen = []
        loss = model.loss

        def limited(*batch):
            self.seen.append(tuple(batch[3].shape))
            result = loss(*batch)
            if batch[3].numel() > positions:
                raise error(CPU_MESSAGE)
            return result

        monkeypatch.setattr(model, "loss", limited)


def close(weights, others):
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_that_does_not_fit_is_split_with_the_same_gradient(
    model_of, batches_of, trainer_of, recorder, weights_of, monkeypatch, accumulate, error
):
    pairs = [("abc"[: 1 + i % 3], "fed"[: 1 + i // 3 % 3]) for i in range(9)]
    expected = trainer_of(model_of(), batches_of(24, pairs), accumulate=accumulate)
    expected.train(4, recorder())
    model, hooks = model_of(), recorder()
    memory = SmallMemory(monkeypatch, model, 15, error)
    trainer = trainer_of(model, batches_of(24, pairs), accumulate=accumulate)
    trainer.train(4, hooks)
    close(weights_of(model), weights_of(expected.model))
    assert any(rows * columns > 15 for rows, columns in memory.seen)
    split = [report.is_split for report in hooks.reports]
    assert True in split
    assert (False in split) == (accumulate == 1)


def test_halves_hold_the_same_pairs_without_needless_padding(batches_of):
    batch = batches_of(1000).largest()
    first, second = batch.halves()
    assert first.lines + second.lines == batch.lines
    assert first.num_tokens + second.num_tokens == batch.num_tokens
    for half in (first, second):
        assert half.src_mask.any(0).all()
        assert half.tgt_mask.any(0).all()
    sentences = [
        [
            (row[mask].tolist(), before[seen].tolist(), after[seen].tolist())
            for row, mask, before, after, seen in zip(
                part.src, part.src_mask, part.tgt_input, part.tgt_output, part.tgt_mask, strict=True
            )
        ]
        for part in (batch, first, second)
    ]
    assert sentences[1] + sentences[2] == sentences[0]
    assert first.tgt_output.size(1) < batch.tgt_output.size(1)


def test_a_batch_of_one_pair_is_not_split(batches_of):
    batch = batches_of(1).largest()
    assert batch.halves() == [batch]


def test_the_largest_batch_has_the_most_positions(batches_of):
    batches = batches_of(8)
    sizes = [b.src.numel() + b.tgt_output.numel() for b in batches.epoch(0)]
    largest = batches.largest()
    assert largest.src.numel() + largest.tgt_output.numel() == max(sizes) > min(sizes)


def test_one_long_sentence_makes_a_batch_large(store_of):
    class TwoBatches(Batches):
        def plan(self, epoch):
            return [np.array([0, 1, 2]), np.array([3, 4])]

    pairs = [("ab", "ab")] * 3 + [("abcdefabc", "f"), ("a", "f")]
    largest = TwoBatches(store_of(pairs), 100, seed=1).largest()
    assert largest.lines == [4, 5]


def test_halves_that_do_not_fit_end_training_with_numbers(
    model_of, batches_of, trainer_of, recorder, weights_of, monkeypatch
):
    model = model_of()
    before = weights_of(model)
    SmallMemory(monkeypatch, model, 3)
    trainer = trainer_of(model, batches_of(24))
    with pytest.raises(TrainingError) as caught:
        trainer.train(4, recorder())
    message = str(caught.value)
    assert message.startswith("step 1: out of memory on cpu, also with half of the batch of ")
    assert " MiB" in message
    assert message.endswith("; lower training.batch_tokens or data.max_length")
    assert "\n" not in message
    close(weights_of(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_another_error_is_no_lack_of_memory(
    model_of, batches_of, trainer_of, recorder, monkeypatch
):
    model = model_of()
    monkeypatch.setattr(model, "loss", lambda *_: torch.zeros(2, 3) @ torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trainer_of(model, batches_of()).train(1, recorder())


def test_a_rehearsal_changes_nothing(model_of, batches_of, trainer_of, recorder, weights_of):
    plain = trainer_of(model_of(dropout=0.5), batches_of())
    torch.manual_seed(3)
    plain.train(3, recorder())
    rehearsed = trainer_of(model_of(dropout=0.5), batches_of())
    torch.manual_seed(3)
    assert rehearsed.rehearse() is False
    assert all(parameter.grad is None for parameter in rehearsed.model.parameters())
    rehearsed.train(3, recorder())
    for name, weight in weights_of(plain.model).items():
        assert torch.equal(weight, weights_of(rehearsed.model)[name])


def test_a_rehearsal_says_whether_the_largest_batch_fits(
    model_of, batches_of, trainer_of, monkeypatch
):
    model, batches = model_of(), batches_of(8)
    largest = batches.largest().tgt_output.numel()
    memory = SmallMemory(monkeypatch, model, largest - 1)
    assert trainer_of(model, batches).rehearse() is True
    assert memory.seen[0] == tuple(batches.largest().tgt_output.shape)
    SmallMemory(monkeypatch, model, 0)
    with pytest.raises(TrainingError, match=r"^step 1: out of memory"):
        trainer_of(model, batches).rehearse()


@pytest.fixture
def many_pairs():
    return [("ab", "abcdefa")] * 400  # eight target positions each


@pytest.mark.parametrize(("positions", "expected"), [(10_000, 2048), (1024, 1024), (1023, 512)])
def test_auto_finds_the_largest_size_that_fits(
    model_of, batches_of, trainer_of, monkeypatch, many_pairs, positions, expected
):
    model = model_of()
    SmallMemory(monkeypatch, model, positions)
    trainer = trainer_of(model, batches_of(8, many_pairs))
    assert find_batch_tokens(trainer) == expected == trainer.batches.batch_tokens


def test_auto_leaves_memory_free(model_of, batches_of, trainer_of, monkeypatch, many_pairs):
    shares = iter([0.1, 0.8, 0.81, math.nan])
    monkeypatch.setattr(batch_size, "used_share", lambda device: next(shares))
    trainer = trainer_of(model_of(), batches_of(8, many_pairs))
    assert find_batch_tokens(trainer) == CPU_BATCH_TOKENS[1]
    monkeypatch.setattr(batch_size, "used_share", lambda device: 0.9)
    assert find_batch_tokens(trainer) == CPU_BATCH_TOKENS[0]


def test_auto_ends_clearly_if_nothing_fits(
    model_of, batches_of, trainer_of, monkeypatch, many_pairs
):
    model = model_of()
    SmallMemory(monkeypatch, model, 0)
    with pytest.raises(TrainingError, match=r"out of memory on cpu.*batch_tokens"):
        find_batch_tokens(trainer_of(model, batches_of(8, many_pairs)))


def test_used_memory_is_a_share_of_all():
    assert 0 < batch_size.used_share(torch.device("cpu")) < 1
