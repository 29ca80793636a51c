"""One update: its gradient is that of the mean loss per token, and nothing not finite passes."""

import math

import pytest
import torch
from torch.nn import functional

from nmt.data.batches import make_batch
from nmt.errors import TrainingError
from nmt.training.schedule import Schedule
from nmt.training.trainer import DTYPES


@pytest.fixture
def fifty_pairs():
    return [("abc"[: 1 + i % 3], "fed"[: 1 + i // 3 % 3]) for i in range(50)]


def mean_loss(model, batch, smoothing):
    """torch's own criterion over the real tokens of a batch."""
    logits, _ = model(batch.src, batch.src_mask, batch.tgt_input)
    return functional.cross_entropy(
        logits[batch.tgt_mask], batch.tgt_output[batch.tgt_mask], label_smoothing=smoothing
    )


def all_in_one(batches):
    """The whole corpus as one batch."""
    store = batches.store
    indices = range(len(store))
    return make_batch(
        [store.token_ids("src", i) for i in indices], [store.token_ids("tgt", i) for i in indices]
    )


def assert_same(weights, others):
    assert weights.keys() == others.keys()
    for name in weights:
        assert torch.equal(weights[name], others[name]), name


def assert_close(weights, others):
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], rtol=1e-5, atol=1e-6)


class TestUpdate:
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_the_gradient_is_that_of_the_mean_loss_per_token(
        self, batches_of, model_of, trainer_of, recorder, weights_of, smoothing
    ):
        batches, model, reference = batches_of(1000), model_of(), model_of()
        before = weights_of(model)
        trainer_of(model, batches, label_smoothing=smoothing).train(1, recorder())
        loss = mean_loss(reference, all_in_one(batches), smoothing)
        loss.backward()
        expected = {
            name: before[name] - 0.5 * parameter.grad
            for name, parameter in reference.named_parameters()
        }
        assert_close(weights_of(model), expected)

    @pytest.mark.parametrize("batch_tokens", [4, 8, 12])
    def test_accumulated_batches_are_one_large_batch(
        self, batches_of, model_of, trainer_of, recorder, weights_of, batch_tokens
    ):
        """Whatever their sizes: each token counts the same."""
        many, one = model_of(), model_of()
        small = batches_of(batch_tokens)
        count = len(small.plan(0))
        sizes = {batch.num_tokens for batch in small.epoch(0)}
        assert count > 1
        assert len(sizes) > 1
        hooks = recorder()
        trainer_of(many, small, accumulate=count).train(1, hooks)
        whole = recorder()
        trainer_of(one, batches_of(1000)).train(1, whole)
        assert_close(weights_of(many), weights_of(one))
        assert hooks.reports[0].loss == pytest.approx(whole.reports[0].loss, rel=1e-6)
        assert hooks.reports[0].tokens == whole.reports[0].tokens

    def test_two_accumulated_updates_are_not_two_updates(
        self, batches_of, model_of, trainer_of, recorder, weights_of
    ):
        """The test above could not fail if gradients were not summed over the group."""
        both, first = model_of(), model_of()
        trainer_of(both, batches_of(8), accumulate=2).train(1, recorder())
        trainer_of(first, batches_of(8)).train(1, recorder())
        weights = weights_of(first)
        assert any(not torch.allclose(w, weights[n]) for n, w in weights_of(both).items())

    def test_the_report_says_what_was_done(self, batches_of, model_of, trainer_of, recorder):
        batches, model, hooks = batches_of(1000), model_of(), recorder()
        trainer = trainer_of(
            model, batches, schedule=Schedule("constant", 0.5, warmup_steps=4, max_steps=10)
        )
        batch = all_in_one(batches)
        with torch.no_grad():
            smoothed, plain = (float(mean_loss(model, batch, e)) for e in (0.1, 0.0))
        trainer.train(2, hooks)
        report = hooks.reports[0]
        assert (report.step, report.tokens) == (1, batch.num_tokens) == (1, 20)
        assert report.loss == pytest.approx(smoothed, rel=1e-6)
        assert report.nll == pytest.approx(plain, rel=1e-6)
        assert [r.learning_rate for r in hooks.reports] == [0.125, 0.25]
        assert report.seconds > 0
        assert trainer.progress.tokens == 40

    def test_the_reported_norm_is_that_of_the_whole_gradient(
        self, batches_of, model_of, trainer_of, recorder
    ):
        batches, model, reference = batches_of(1000), model_of(), model_of()
        hooks = recorder()
        trainer_of(model, batches, clip_norm=1e-3).train(1, hooks)
        mean_loss(reference, all_in_one(batches), 0.1).backward()
        squares = sum(float((p.grad**2).sum()) for p in reference.parameters())
        assert hooks.reports[0].gradient_norm == pytest.approx(math.sqrt(squares), rel=1e-5)

    @pytest.mark.parametrize(("clip_norm", "length"), [(None, 3.0), (4.0, 3.0), (2.0, 2.0)])
    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_the_limit_is_on_the_gradient_of_the_unscaled_loss(
        self, batches_of, model_of, trainer_of, recorder, weights_of, clip_norm, length, precision
    ):
        """A gradient of length 3, in fp16 one of 3 times 65536, and an update of half of it."""
        model = model_of()
        output = model.decoder.output_layer
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name == "decoder.output_layer.bias")
        output.bias.register_hook(lambda gradient: gradient * (3.0 / norm))
        reference = model_of()
        mean_loss(reference, all_in_one(batches_of(1000)), 0.1).backward()
        norm = float(reference.decoder.output_layer.bias.grad.norm())
        before, hooks = weights_of(model), recorder()
        trainer_of(model, batches_of(1000), clip_norm=clip_norm, precision=precision).train(
            1, hooks
        )
        change = output.bias.detach() - before["decoder.output_layer.bias"]
        assert hooks.reports[0].gradient_norm == pytest.approx(3.0, rel=1e-2)
        assert float(change.norm()) == pytest.approx(0.5 * length, rel=1e-2)

    def test_a_long_gradient_is_shortened_to_the_limit_in_its_direction(
        self, batches_of, model_of, trainer_of, recorder, weights_of
    ):
        clipped, free = model_of(), model_of()
        before = weights_of(clipped)
        trainer_of(clipped, batches_of(1000), clip_norm=1e-2).train(1, recorder())
        trainer_of(free, batches_of(1000)).train(1, recorder())

        def change(model):
            after = weights_of(model)
            return torch.cat([(after[name] - before[name]).flatten() for name in before])

        short, long = change(clipped), change(free)
        assert float(short.norm()) == pytest.approx(0.5 * 1e-2, rel=1e-3)
        assert float(functional.cosine_similarity(short, long, dim=0)) == pytest.approx(1, abs=1e-4)

    def test_a_short_gradient_is_not_touched(
        self, batches_of, model_of, trainer_of, recorder, weights_of
    ):
        clipped, free = model_of(), model_of()
        trainer_of(clipped, batches_of(8), clip_norm=100.0).train(3, recorder())
        trainer_of(free, batches_of(8)).train(3, recorder())
        assert_same(weights_of(clipped), weights_of(free))

    def test_the_model_drops_units_in_training_and_not_in_validation(
        self, batches_of, model_of, trainer_of, recorder
    ):
        model, modes = model_of(dropout=0.5), []
        hooks = recorder(on_step=lambda _: modes.append(model.training))
        hooks.validate = lambda _: modes.append(model.training) or 0.0
        trainer_of(model.eval(), batches_of(8), validate_every=2).train(4, hooks)
        assert modes == [True, True, False, True, True, False]

    def test_the_loss_falls(self, batches_of, model_of, trainer_of, recorder):
        model, hooks = model_of(), recorder()
        adam = torch.optim.Adam(model.parameters())
        schedule = Schedule("constant", 0.02, warmup_steps=0, max_steps=60)
        trainer_of(model, batches_of(100), optimizer=adam, schedule=schedule).train(60, hooks)
        assert hooks.reports[0].nll > 2.2
        assert hooks.reports[-1].nll < 0.5

    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    def test_it_falls_in_half_precision_and_the_weights_stay_single(
        self, batches_of, model_of, trainer_of, recorder, precision
    ):
        model, hooks, seen = model_of(), recorder(), set()
        model.decoder.register_forward_hook(lambda _, __, out: seen.add(out[0].dtype))
        adam = torch.optim.Adam(model.parameters())
        schedule = Schedule("constant", 0.02, warmup_steps=0, max_steps=40)
        trainer = trainer_of(
            model, batches_of(100), optimizer=adam, schedule=schedule, precision=precision
        )
        trainer.train(40, hooks)
        assert seen == {DTYPES[precision]}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert hooks.reports[-1].nll < 0.6 * hooks.reports[0].nll
        assert trainer.scaler.is_enabled() is (precision == "fp16")


class TestGuard:
    def trained_until(self, step, break_model, trainer, hooks, weights_of):
        """Train, and break the model just before an update; the error and the weights before."""
        before = {}

        def act(report):
            if report.step == step - 1:
                before.update(weights_of(trainer.model))
                break_model(trainer.model)

        hooks.act = act
        with pytest.raises(TrainingError) as caught:
            trainer.train(10, hooks)
        return str(caught.value), before

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_loss_that_is_not_finite_ends_training_with_the_weights_before_it(
        self, batches_of, model_of, trainer_of, recorder, weights_of, value
    ):
        model, hooks = model_of(), recorder()
        trainer = trainer_of(model, batches_of(1000), accumulate=2)

        def break_model(model):
            model.decoder.register_forward_hook(lambda _, __, out: (out[0] * value, out[1]))

        message, before = self.trained_until(3, break_model, trainer, hooks, weights_of)
        assert message == (
            "step 3: the loss is not finite (loss nan, gradient norm nan) on training lines "
            "1, 2, 3, 4, 5, 6; nothing of it was saved; look at these lines, or "
            "lower training.learning_rate and continue with --resume"
        )
        assert_same(weights_of(model), before)
        assert trainer.progress.step == 2
        assert hooks.saved == []

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_gradient_that_is_not_finite_ends_training_with_the_weights_before_it(
        self, batches_of, model_of, trainer_of, recorder, weights_of, value
    ):
        model, hooks = model_of(), recorder()
        adam = torch.optim.Adam(model.parameters(), fused=True)
        trainer = trainer_of(model, batches_of(4), optimizer=adam, clip_norm=1.0)
        lines = [batch.lines for batch in batches_of(4).epoch(0)][1]

        def break_model(model):
            model.encoder.embedding.weight.register_hook(lambda gradient: gradient * value)

        message, before = self.trained_until(2, break_model, trainer, hooks, weights_of)
        assert message.startswith("step 2: the gradient is not finite (loss ")
        assert f"gradient norm {value if math.isnan(value) else 'nan'})" in message
        assert f"on training lines {', '.join(map(str, sorted(lines)))};" in message
        assert_same(weights_of(model), before)

    def test_of_many_lines_the_first_twenty_are_named(
        self, batches_of, model_of, trainer_of, recorder, fifty_pairs
    ):
        trainer = trainer_of(model_of(), batches_of(1000, fifty_pairs))
        trainer.model.decoder.register_forward_hook(lambda _, __, out: (out[0] * math.nan, out[1]))
        with pytest.raises(TrainingError, match=f"lines {', '.join(map(str, range(1, 21)))}, …;"):
            trainer.train(1, recorder())

    def test_an_infinite_gradient_in_fp16_is_skipped_and_lowers_the_scale(
        self, batches_of, model_of, trainer_of, recorder, weights_of
    ):
        model, weights, scales = model_of(), [], []
        factors = iter([1.0, math.inf, math.inf, 1.0])
        embedding = model.encoder.embedding.weight

        def overflow(gradient):
            weights.append(weights_of(model))
            return gradient * next(factors)

        embedding.register_hook(overflow)
        schedule = Schedule("linear", 0.5, warmup_steps=0, max_steps=4)
        trainer = trainer_of(
            model, batches_of(1000), precision="fp16", clip_norm=1.0, schedule=schedule
        )
        hooks = recorder(on_step=lambda _: scales.append(trainer.scaler.get_scale()))
        trainer.train(2, hooks)
        assert not torch.equal(*(w["decoder.output_layer.weight"] for w in weights[:2]))
        assert_same(weights[1], weights[2])
        assert_same(weights[1], weights[3])
        assert not torch.equal(
            weights[3]["decoder.output_layer.weight"], model.decoder.output_layer.weight
        )
        assert scales == [65536.0, 16384.0]
        assert [report.step for report in hooks.reports] == [1, 2]
        assert [report.learning_rate for report in hooks.reports] == [0.4, 0.3]
        assert (trainer.progress.skipped, trainer.progress.epoch) == (0, 3)
        assert all(weight.isfinite().all() for weight in weights_of(model).values())

    def test_too_many_skipped_updates_end_training(
        self, batches_of, model_of, trainer_of, recorder
    ):
        trainer = trainer_of(model_of(), batches_of(1000), precision="fp16", max_skipped=3)
        trainer.model.encoder.embedding.weight.register_hook(lambda gradient: gradient * math.inf)
        with pytest.raises(TrainingError) as caught:
            trainer.train(10, recorder())
        assert str(caught.value) == (
            "step 1: more than 3 updates in a row overflowed fp16; use training.precision bf16 or "
            "fp32"
        )

    def test_a_loss_that_is_not_finite_is_no_overflow(
        self, batches_of, model_of, trainer_of, recorder
    ):
        trainer = trainer_of(model_of(), batches_of(1000), precision="fp16")
        trainer.model.decoder.register_forward_hook(lambda _, __, out: (out[0] * math.nan, out[1]))
        with pytest.raises(TrainingError, match=r"^step 1: the loss is not finite \(loss nan"):
            trainer.train(10, recorder())
