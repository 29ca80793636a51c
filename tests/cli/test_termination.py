"""SIGTERM and SIGHUP unwind a command, so that what it has half written is removed."""

import signal
import threading

import pytest

from nmt.cli.signals import StopRequest
from nmt.cli.termination import MEANINGS, Terminated, unwind_when_terminated


@pytest.fixture(autouse=True)
def default_handlers():
    """As in a program that nobody has told to ignore anything."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in MEANINGS}
    yield
    for number, handler in before.items():
        assert signal.getsignal(number) is signal.SIG_DFL  # each test leaves them as they were
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "the terminal was closed")],
)
def test_a_signal_is_raised_where_the_program_is(number, code, text):
    cleaned = []

    @unwind_when_terminated()
    def work():
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(True)

    with pytest.raises(Terminated, match=text) as caught:
        work()
    assert cleaned == [True]
    assert caught.value.exit_code == code


def test_it_is_no_error_that_an_ordinary_handler_would_swallow():
    assert not issubclass(Terminated, Exception)


def test_a_second_signal_does_not_stop_the_cleaning():
    cleaned = []

    @unwind_when_terminated()
    def work():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            cleaned.append(True)

    with pytest.raises(Terminated, match="terminated"):
        work()
    assert cleaned == [True]


def test_what_nohup_ignores_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with unwind_when_terminated():
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_training_answers_sigterm_itself_while_it_trains(capfd):
    with unwind_when_terminated():
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop()
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
    assert "SIGTERM: finishing this step" in capfd.readouterr().err


def test_another_thread_than_the_main_one_changes_nothing():
    entered = []

    def work():
        with unwind_when_terminated():
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [signal.SIG_DFL]


def test_a_command_that_is_terminated_exits_with_143_and_one_line(nmt, monkeypatch):
    monkeypatch.setattr("nmt.config.json_schema", lambda: signal.raise_signal(signal.SIGTERM) or {})
    ended = nmt("schema")
    assert (ended.code, ended.out, ended.err) == (143, "", "error: terminated\n")


@pytest.mark.parametrize("problem", [MemoryError(), RuntimeError("std::bad_alloc")], ids=repr)
def test_a_command_without_memory_exits_with_5_and_one_line(nmt, monkeypatch, problem):
    def fail():
        raise problem

    monkeypatch.setattr("nmt.config.json_schema", fail)
    ended = nmt("schema")
    assert (ended.code, ended.out) == (5, "")
    reason = str(problem) or "the machine has no more"
    assert ended.err == (
        f"error: out of memory: {reason}; use a smaller model or smaller batches\n"
    )


def test_another_runtime_error_is_a_bug_of_ours(nmt, monkeypatch):
    def fail():
        raise RuntimeError("a bug")

    monkeypatch.setattr("nmt.config.json_schema", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        nmt("schema")
