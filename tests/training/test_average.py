"""The running average of the weights: the published formula, saved as the model, resumed."""

import copy

import pytest
import torch
from torch import nn

from nmt.training.average import WeightAverage
from nmt.training.schedule import Schedule


def weights_after(decay, values):
    """The average after updates to these values, by its definition."""
    average = values[0]
    for step, value in enumerate(values[1:], 1):
        d = min(decay, (1 + step) / (10 + step))
        average = d * average + (1 - d) * value
    return average


@pytest.mark.parametrize("decay", [0.1, 0.5, 0.999])
def test_each_update_moves_the_average_a_little(decay):
    model = nn.Linear(1, 1, bias=False)
    values = [3.0, -1.0, 4.0, 1.5, 9.0, -2.6]
    nn.init.constant_(model.weight, values[0])
    average = WeightAverage(model, decay)
    for step, value in enumerate(values[1:], 1):
        nn.init.constant_(model.weight, value)
        average.update(step)
    with average.in_model():
        assert model.weight.item() == pytest.approx(weights_after(decay, values))
    assert model.weight.item() == pytest.approx(values[-1])


def test_weights_that_are_tied_are_averaged_once():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    nn.init.zeros_(model[0].weight)
    average = WeightAverage(model, 0.5)
    nn.init.ones_(model[0].weight)
    average.update(1000)
    with average.in_model():
        assert model[1].weight is model[0].weight
        torch.testing.assert_close(model[0].weight, torch.full((2, 2), 0.5))


def test_an_error_inside_puts_the_weights_back():
    model = nn.Linear(1, 1)
    average = WeightAverage(model, 0.5)
    nn.init.constant_(model.weight, 7.0)
    with pytest.raises(KeyError), average.in_model():
        raise KeyError
    assert model.weight.item() == 7.0


class Watcher:
    """Hooks that keep the weights they see."""

    def __init__(self, trainer):
        self.trainer, self.validated, self.saved, self.state = trainer, None, None, None

    def on_step(self, report):
        pass

    def validate(self, step):
        self.validated = self.weights()
        return 0.0

    def save(self, step, is_best):
        self.saved = self.weights()
        self.state = copy.deepcopy(self.trainer.state_dict())  # a file would be a copy too

    def should_stop(self):
        return False

    def weights(self):
        return {n: p.detach().clone() for n, p in self.trainer.model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_average_is_validated_and_saved_and_training_goes_on_from_the_weights(
    model_of, batches_of, trainer_of, weights_of
):
    plain = trainer_of(model_of(), batches_of())
    plain.train(4, Watcher(plain))
    averaged = trainer_of(model_of(), batches_of(), ema_decay=0.9, validate_every=2)
    hooks = Watcher(averaged)
    averaged.train(4, hooks)
    assert same(weights_of(averaged.model), weights_of(plain.model))
    assert same(hooks.validated, hooks.saved)
    assert not same(hooks.saved, weights_of(plain.model))
    raw = dict(zip(hooks.saved, hooks.state["trained_weights"], strict=True))
    assert same(raw, weights_of(plain.model))


def test_a_run_may_begin_or_end_to_average_when_it_is_resumed(
    model_of, batches_of, trainer_of, weights_of
):
    first = trainer_of(model_of(), batches_of(), ema_decay=0.9)
    hooks = Watcher(first)
    first.train(2, hooks)
    raw = weights_of(first.model)

    without = trainer_of(model_of(seed=5), batches_of())
    with torch.no_grad():
        for name, parameter in without.model.named_parameters():
            parameter.copy_(hooks.saved[name])
    without.load_state_dict(hooks.state)
    assert same(weights_of(without.model), raw)

    hooks = Watcher(without)
    without.train(3, hooks)
    assert hooks.state["trained_weights"] is None
    again = trainer_of(model_of(seed=5), batches_of(), ema_decay=0.9)
    with torch.no_grad():
        for name, parameter in again.model.named_parameters():
            parameter.copy_(hooks.saved[name])
    again.load_state_dict(hooks.state)
    with again.average.in_model():
        assert same(weights_of(again.model), hooks.saved)
    assert same(weights_of(again.model), hooks.saved)


def test_a_skipped_update_is_no_update_of_the_average(
    model_of, batches_of, trainer_of, monkeypatch
):
    schedule = Schedule("constant", 0.5, warmup_steps=0, max_steps=10)
    trainer = trainer_of(model_of(), batches_of(), ema_decay=0.9, schedule=schedule)
    steps = []
    monkeypatch.setattr(trainer.average, "update", steps.append)
    answers = iter([True, False, False, True])
    monkeypatch.setattr(trainer, "_guard", lambda *_: next(answers))
    trainer.train(2, Watcher(trainer))
    assert steps == [1, 2]
    assert trainer.progress.step == 2
    assert list(answers) == []
