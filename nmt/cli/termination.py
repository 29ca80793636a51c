"""SIGTERM and SIGHUP end a command as Ctrl-C does: what is half written is removed first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

MEANINGS = {signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal was closed"}


class Terminated(BaseException):
    """A signal that asks the program to end, raised wherever the program was."""

    def __init__(self, number: int) -> None:
        super().__init__(MEANINGS[signal.Signals(number)])
        self.exit_code = 128 + number


@contextmanager
def unwind_when_terminated() -> Iterator[None]:
    """Within it, such a signal raises `Terminated`, once: a second one must not stop the cleaning.

    A signal that is ignored stays ignored, as `nohup` wants it. `nmt train` answers SIGTERM
    itself while it trains. Only the main thread can answer signals: elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Terminated(number)

    before = {
        number: handler
        for number in MEANINGS
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    try:
        for number in before:
            signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
