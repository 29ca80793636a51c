"""What the commands say: always on stderr, so that stdout holds data only."""

import sys
from contextlib import suppress


def say(message: str) -> None:
    """Print a line for people; where nobody can be told, because a disk is full, go on."""
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Print a warning."""
    say(f"warning: {message}")


def error(message: str) -> None:
    """Print why the command ends; each line of the message is a problem of its own."""
    for problem in message.split("\n"):
        say(f"error: {problem}")


class InvalidLines:
    """Counts lines that were not valid UTF-8, and warns of them once."""

    def __init__(self) -> None:
        self.lines: list[int] = []

    def __call__(self, number: int) -> None:
        """Note a 1-based line number."""
        self.lines.append(number)

    def report(self, name: str) -> None:
        """Warn if there were any."""
        if self.lines:
            warn(
                f"{name}: lines that are not valid UTF-8: {len(self.lines)} (the first is line "
                f"{self.lines[0]}); their bad bytes were read as U+FFFD"
            )
