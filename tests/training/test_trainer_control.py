"""When the trainer validates, saves, lowers the rate and ends; and how it goes on."""

import copy
import math

import pytest
import torch

from nmt.training.schedule import Schedule
from nmt.training.trainer import Progress, StepReport


@pytest.fixture
def trainer(batches_of, model_of, trainer_of):
    """Builds a trainer of the toy model on 6 batches of one pair each."""
    return lambda **options: trainer_of(model_of(dropout=0.3), batches_of(4), **options)


class TestEnd:
    def test_training_ends_after_max_steps(self, trainer, recorder):
        hooks = recorder()
        assert trainer().train(5, hooks) == "5 steps done"
        assert [report.step for report in hooks.reports] == [1, 2, 3, 4, 5]

    def test_the_last_step_is_validated_and_saved_whatever_the_interval(self, trainer, recorder):
        hooks = recorder(scores=[1.0, 2.0, 1.5])
        trainer(validate_every=2).train(5, hooks)
        assert hooks.validated == [2, 4, 5]
        assert hooks.saved == [(2, True), (4, True), (5, False)]

    def test_a_last_step_on_the_interval_is_validated_once(self, trainer, recorder):
        hooks = recorder()
        trainer(validate_every=2).train(4, hooks)
        assert hooks.validated == [2, 4]

    def test_a_finished_run_does_nothing_more(self, trainer, recorder):
        finished = trainer()
        finished.train(3, recorder())
        hooks = recorder()
        assert finished.train(3, hooks) == "3 steps done"
        assert (hooks.reports, hooks.validated, hooks.saved) == ([], [], [])

    def test_patience_counts_validations_since_the_best(self, trainer, recorder):
        hooks = recorder(scores=[1.0, 0.5, 2.0, 2.0, 1.9, 1.8, 9.9])
        reason = trainer(validate_every=1, patience=3).train(100, hooks)
        assert reason == "no improvement in 3 validations"
        assert hooks.validated == [1, 2, 3, 4, 5, 6]
        assert [is_best for _, is_best in hooks.saved] == [True, False, True, False, False, False]

    def test_without_patience_it_never_gives_up(self, trainer, recorder):
        hooks = recorder(scores=[3.0] + [1.0] * 30)
        assert trainer(validate_every=1, patience=None).train(20, hooks) == "20 steps done"

    def test_an_equal_score_is_no_improvement(self, trainer, recorder):
        impatient = trainer(validate_every=1, patience=1)
        impatient.train(9, recorder(scores=[1.0, 1.0]))
        assert (impatient.progress.best_step, impatient.progress.step) == (1, 2)

    def test_a_score_that_is_not_finite_is_never_the_best(self, trainer, recorder):
        hooks = recorder(scores=[math.nan, -7.0, math.inf, math.nan])
        ran = trainer(validate_every=1)
        ran.train(4, hooks)
        assert hooks.saved == [(1, False), (2, True), (3, False), (4, False)]
        assert (ran.progress.best_score, ran.progress.best_step) == (-7.0, 2)
        assert ran.progress.bad_validations == 2


class TestPlateau:
    def test_the_rate_is_halved_each_time_the_patience_is_used_up(self, trainer, recorder):
        hooks = recorder(scores=[1.0, 0.9, 0.9, 0.9, 0.9, 2.0, 0.9, 0.9, 0.9])
        plateau = Schedule("plateau", 0.8, warmup_steps=0, max_steps=100, plateau_factor=0.5)
        trainer(validate_every=1, plateau_patience=2, schedule=plateau).train(9, hooks)
        rates = [report.learning_rate for report in hooks.reports]
        assert rates == [0.8, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.2, 0.1]

    def test_a_constant_rate_stays_when_validation_does_not_improve(self, trainer, recorder):
        hooks = recorder(scores=[1.0] * 9)
        trainer(validate_every=1).train(6, hooks)
        assert {report.learning_rate for report in hooks.reports} == {0.5}


class TestStop:
    @pytest.mark.parametrize("step", [1, 3])
    def test_a_stop_request_finishes_the_step_and_saves(self, trainer, recorder, step):
        hooks = recorder(stop_at=step)
        stopped = trainer(validate_every=100)
        assert stopped.train(10, hooks) == "stopped"
        assert hooks.saved == [(step, False)]
        assert stopped.progress.step == step
        assert not stopped.progress.validation_due

    def test_a_stop_after_a_whole_validation_saves_once_and_keeps_its_score(
        self, trainer, recorder
    ):
        hooks = recorder(scores=[5.0], stop_at=2)
        stopped = trainer(validate_every=2)
        assert stopped.train(10, hooks) == "stopped"
        assert hooks.saved == [(2, True)]
        assert stopped.progress.best_score == 5.0
        assert not stopped.progress.validation_due

    def test_an_interrupted_validation_is_saved_as_due(self, trainer, recorder):
        hooks = recorder(scores=[1.0, None], stop_at=4)
        stopped = trainer(validate_every=2)
        assert stopped.train(10, hooks) == "stopped"
        assert hooks.saved == [(2, True), (4, False)]
        assert stopped.progress == Progress(
            step=4, batch=4, tokens=stopped.progress.tokens, best_score=1.0, best_step=2,
            validation_due=True,
        )  # fmt: skip

    def test_a_due_validation_comes_before_the_next_step(self, trainer, recorder):
        stopped = trainer(validate_every=2)
        stopped.train(10, recorder(scores=[None], stop_at=2))
        hooks = recorder(scores=[4.0])
        events = []
        hooks.on_step = lambda report: events.append(f"step {report.step}")
        validate = hooks.validate
        hooks.validate = lambda step: events.append(f"validation {step}") or validate(step)
        stopped.train(4, hooks)
        assert events == ["validation 2", "step 3", "step 4", "validation 4"]
        assert hooks.saved[0] == (2, True)
        assert not stopped.progress.validation_due

    def test_a_due_validation_can_be_interrupted_again(self, trainer, recorder):
        stopped = trainer(validate_every=2)
        stopped.train(10, recorder(scores=[None], stop_at=2))
        hooks = recorder(scores=[None])
        assert stopped.train(10, hooks) == "stopped"
        assert hooks.saved == [(2, False)]
        assert stopped.progress.validation_due
        assert hooks.reports == []

    def test_a_due_validation_at_the_very_end_is_made_up_for(self, trainer, recorder):
        stopped = trainer()
        stopped.train(3, recorder(scores=[None], stop_at=3))
        hooks = recorder(scores=[4.0])
        assert stopped.train(3, hooks) == "3 steps done"
        assert hooks.saved == [(3, True)]


class TestPosition:
    def lines_of(self, trainer, hooks, steps=12):
        """The lines of each update of a trainer that only pretends to make them."""
        seen = []

        def pretend(group):
            seen.append([line for batch in group for line in batch.lines])
            return StepReport(trainer.progress.step + 1, 1.0, 1.0, 1, 0.1, 0.1, 1.0)

        trainer._update = pretend
        trainer.train(steps, hooks)
        return seen

    @pytest.mark.parametrize("accumulate", [1, 2, 4, 7])
    def test_every_epoch_uses_every_line_once(self, trainer, recorder, accumulate):
        groups = self.lines_of(trainer(accumulate=accumulate), recorder())
        lines = [line for group in groups for line in group]
        for start in range(0, len(lines) - 5, 6):
            assert sorted(lines[start : start + 6]) == [1, 2, 3, 4, 5, 6]
        assert lines[:6] != lines[6:12]
        assert {len(group) for group in groups} == {accumulate}

    @pytest.mark.parametrize("accumulate", [1, 2, 4, 7])
    def test_a_new_trainer_goes_on_with_the_next_batch(self, trainer, recorder, accumulate):
        """Also where a group of batches reaches over the end of an epoch."""
        expected = self.lines_of(trainer(accumulate=accumulate), recorder())
        for step in range(1, 12):
            first, second = trainer(accumulate=accumulate), trainer(accumulate=accumulate)
            self.lines_of(first, recorder(stop_at=step))
            second.load_state_dict(copy.deepcopy(first.state_dict()))
            assert self.lines_of(second, recorder()) == expected[step:]

    def test_progress_counts_epochs_and_batches(self, trainer, recorder):
        ran, positions = trainer(accumulate=4), []
        ran.train(
            4,
            recorder(on_step=lambda _: positions.append((ran.progress.epoch, ran.progress.batch))),
        )
        assert positions == [(0, 4), (1, 2), (1, 6), (2, 4)]


class TestState:
    @pytest.mark.parametrize("step", [1, 5, 6, 7])
    def test_n_resumed_steps_are_bit_for_bit_n_steps(
        self, batches_of, model_of, trainer_of, recorder, weights_of, step
    ):
        """With dropout and Adam: stopped, and gone on in new objects."""

        def new(seed):
            model = model_of(seed=seed, dropout=0.3)
            adam = torch.optim.Adam(model.parameters(), fused=True)
            rate = Schedule("inverse_sqrt", 0.02, warmup_steps=3, max_steps=100)
            return trainer_of(model, batches_of(4), optimizer=adam, schedule=rate, clip_norm=1.0)

        straight = new(seed=1)
        straight.train(12, recorder())
        first = new(seed=1)
        first.train(12, recorder(stop_at=step))
        weights, state = weights_of(first.model), copy.deepcopy(first.state_dict())
        torch.manual_seed(99)
        second = new(seed=2)
        second.model.load_state_dict(weights)
        second.load_state_dict(state)
        second.train(12, recorder())
        expected, found = weights_of(straight.model), weights_of(second.model)
        for name in expected:
            assert torch.equal(expected[name], found[name]), name

    def test_the_state_of_fp16_holds_the_scale(self, trainer, recorder):
        first = trainer(precision="fp16")
        first.train(1, recorder())
        first.scaler.update(512.0)
        second = trainer(precision="fp16")
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert second.scaler.get_scale() == 512.0
