"""A signal asks a run to stop; a second Ctrl-C does not ask."""

import io
import os
import signal
import sys

import pytest

from nmt.cli.signals import StopRequest


def exit_status(action):
    """Run in a forked process; its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_without_a_signal_nothing_is_asked():
    with StopRequest() as stop:
        assert not stop()
    assert stop.exit_code == 128


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 143, "SIGTERM: finishing this step and saving\n"),
        (signal.SIGHUP, 129, "SIGHUP: finishing this step and saving\n"),
        (
            signal.SIGINT,
            130,
            "SIGINT: finishing this step and saving; Ctrl-C again ends at once\n",
        ),
    ],
)
def test_a_signal_is_noted_and_answered(capfd, number, code, said):
    before = signal.signal(number, signal.SIG_DFL)  # under nohup a closed terminal is ignored
    with StopRequest() as stop:
        signal.raise_signal(number)
        assert stop()
    signal.signal(number, before)
    assert stop()
    assert stop.exit_code == code
    assert capfd.readouterr().err == said


def test_a_closed_terminal_stays_ignored_where_it_was():
    """As under nohup."""

    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            os._exit(8 if stop() else 7)

    assert exit_status(ignore) == 7


def test_a_signal_in_the_middle_of_a_line_is_answered_too(monkeypatch, capfd):
    """Python's streams cannot be entered again by a handler: they would raise RuntimeError."""
    with open(os.dup(2), "wb") as raw:

        class Interrupted(io.RawIOBase):
            def writable(self):
                return True

            def write(self, data):
                signal.raise_signal(signal.SIGTERM)
                return raw.write(data)

        stream = io.TextIOWrapper(io.BufferedWriter(Interrupted()), write_through=True)
        monkeypatch.setattr(sys, "stderr", stream)
        with StopRequest() as stop:
            print("a line", file=sys.stderr, flush=True)
        monkeypatch.undo()
        assert stop()
    assert capfd.readouterr().err.split("\n")[0] == "SIGTERM: finishing this step and saving"


def test_without_stderr_a_signal_is_still_noted():
    def signals():
        os.close(2)
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGTERM)
            os._exit(7 if stop() else 8)

    assert exit_status(signals) == 7


def test_a_second_ctrl_c_ends_the_process_at_once():
    def press_twice():
        with StopRequest():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    assert exit_status(press_twice) == 130


def test_ctrl_c_after_sigterm_ends_the_process_at_once():
    def signals():
        with StopRequest():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)

    assert exit_status(signals) == 130


def test_a_second_sigterm_waits_for_the_checkpoint():
    def signals():
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            os._exit(7 if stop.exit_code == 143 else 8)

    assert exit_status(signals) == 7


def test_the_handlers_before_it_are_put_back():
    seen = []
    old = signal.signal(signal.SIGTERM, lambda *_: seen.append("mine"))
    try:
        with StopRequest() as stop:
            assert signal.getsignal(signal.SIGTERM) == stop._note
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, old)
    assert seen == ["mine"]
    assert not stop()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
