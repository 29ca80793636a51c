"""The view of a run: means per token, one line now and then, or a bar on a terminal."""

import math
import time

import pytest

from nmt.cli import progress
from nmt.cli.progress import TrainingBar, Window
from nmt.training.trainer import StepReport


def report(loss, nll, tokens, step=1):
    return StepReport(step, loss, nll, tokens, 0.1, 1e-3, 1.0)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def terminal(monkeypatch):
    """Decides whether stderr is a terminal."""
    return lambda live: monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: live, False)


VALUES = {
    "loss": 2.34567,
    "perplexity": 9.876,
    "tokens_per_second": 12345.6,
    "learning_rate": 5e-4,
}


class TestWindow:
    def test_means_are_weighted_by_tokens(self, clock):
        window = Window()
        window.add(report(loss=3.0, nll=2.0, tokens=10))
        window.add(report(loss=1.0, nll=0.5, tokens=30))
        clock.now += 4.0
        assert window.values() == {
            "loss": 1.5,
            "perplexity": round(math.exp((2.0 * 10 + 0.5 * 30) / 40), 4),
            "tokens_per_second": 10.0,
        }

    def test_perplexity_is_that_of_the_loss_without_smoothing(self, clock):
        window = Window()
        window.add(report(loss=9.0, nll=math.log(7.0), tokens=3))
        clock.now += 1.0
        assert window.values()["perplexity"] == 7.0

    def test_a_huge_loss_is_no_overflow(self, clock):
        window = Window()
        window.add(report(loss=1e6, nll=1e6, tokens=1))
        clock.now += 1.0
        assert math.isfinite(window.values()["perplexity"])


class TestWithoutTerminal:
    def test_there_is_one_line_per_report(self, clock, terminal, capsys):
        terminal(False)
        bar = TrainingBar(step=0, max_steps=2000)
        for _ in range(500):
            bar.advance()
        clock.now += 60.0
        bar.show(500, VALUES)
        bar.close()
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err == (
            "step 500/2,000: loss 2.346, ppl 9.88, 12,346 tok/s, lr 5.00e-04, 03:00 left\n"
        )

    def test_a_resumed_run_counts_its_own_steps_for_the_time_left(self, clock, terminal, capsys):
        terminal(False)
        bar = TrainingBar(step=900, max_steps=1000)
        clock.now += 10.0
        bar.show(950, VALUES)
        assert capsys.readouterr().err.endswith(", 00:10 left\n")

    def test_the_last_validation_score_is_shown_too(self, clock, terminal, capsys):
        terminal(False)
        bar = TrainingBar(step=0, max_steps=10)
        bar.score = ", BLEU 12.34"
        bar.show(10, VALUES)
        assert "lr 5.00e-04, BLEU 12.34, 00:00 left" in capsys.readouterr().err

    def test_a_message_is_a_line(self, terminal, capsys):
        terminal(False)
        TrainingBar(step=0, max_steps=10).say("step 5: valid loss 1.0")
        assert capsys.readouterr().err == "step 5: valid loss 1.0\n"


class TestOnATerminal:
    def test_there_is_a_bar_with_the_numbers_and_messages_above_it(self, terminal, capsys):
        terminal(True)
        bar = TrainingBar(step=3, max_steps=10)
        bar.advance()
        bar.show(4, VALUES)
        bar.say("step 4: valid loss 1.0")
        bar.bar.refresh()
        bar.close()
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "step 4: valid loss 1.0\n" in captured.err
        assert "4/10" in captured.err
        assert "loss 2.346, ppl 9.88, 12,346 tok/s, lr 5.00e-04" in captured.err
