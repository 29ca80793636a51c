"""Ending a training run politely: finish the step, save, then exit."""

import os
import signal
from contextlib import suppress
from types import FrameType
from typing import Self

STDERR = 2


class StopRequest:
    """While active, SIGTERM, SIGHUP and Ctrl-C ask the run to stop; Ctrl-C again ends it.

    A terminal that is closed sends SIGHUP. Under `nohup` it is ignored, here too.
    Nothing happens inside the handler but taking a note, so a checkpoint that is being written
    is written to its end.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __call__(self) -> bool:
        """Whether the run shall stop."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What a program that died of the signal would have exited with."""
        return 128 + (self.signal or 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            os._exit(128 + number)
        self.signal = number
        again = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
        text = f"{signal.Signals(number).name}: finishing this step and saving{again}\n"
        with suppress(OSError):  # past sys.stderr, which may be in the middle of a line
            os.write(STDERR, text.encode())
