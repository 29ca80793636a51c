"""What both systems under comparison do in their own process: obey commands, count, take the time.

Commands come in and answers go out as one JSON object per line. This file needs neither nmt nor
JoeyNMT, since each runs in an environment without the other.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

Clock = Callable[[], float]


def open_channel() -> TextIO:
    """The way to the parent: what was standard output. Prints of any library go to the log."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def restrict_to(num_threads: int) -> None:
    """Let this process and its workers use as many processors as it has threads, where we can."""
    if sys.platform == "linux":
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[:num_threads])


class Meter:
    """Counts a system's training steps from within its own training loop.

    The loop calls `tick` once per step, always at the same place. Time is taken from tick to tick,
    so that it holds everything that the loop does: data, forward, backward, optimizer. While the
    parent is silent, the loop stands still inside `tick`.

    Args:
        decode: translates once and gives the number of tokens found.
        about: what the first answer says of the system.
        warm_up: steps before the first answer.
    """

    REST = 1  # steps that are not counted after the loop has stood still

    def __init__(
        self,
        decode: Callable[[], int],
        about: dict[str, Any],
        *,
        warm_up: int,
        commands: TextIO,
        answers: TextIO,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.decode = decode
        self.about = about
        self.commands = commands
        self.answers = answers
        self.clock = clock
        self.rest = warm_up
        self.ready = False
        self.seconds = 0.0
        self._restart()

    def _restart(self) -> None:
        self.began, self.cpu_began = self.clock(), time.process_time()
        self.tokens = self.steps = 0

    def tick(self, tokens: int) -> None:
        """Note that a step has ended.

        Args:
            tokens: its real target tokens, </s> included.
        """
        if self.rest:
            self.rest -= 1
            if self.rest == 0:
                if not self.ready:
                    self.introduce()
                self._restart()
            return
        self.tokens += tokens
        self.steps += 1
        if self.clock() - self.began >= self.seconds:
            self._report()
            self._obey()

    def introduce(self) -> None:
        """Warm the search up, say what system this is, and wait to be told to train."""
        self.ready = True
        self.decode()
        self._tell(self.about)
        self._obey()

    def _obey(self) -> None:
        """Carry out commands until one of them is to go on training."""
        while command := self.commands.readline():
            order = json.loads(command)
            self.seconds = order["seconds"]
            if order["task"] == "train":
                self.rest = self.REST
                return
            self._restart()
            while not self.steps or self.clock() - self.began < self.seconds:
                self.tokens += self.decode()
                self.steps += 1
            self._report()
        self.answers.close()
        os._exit(0)  # leave the loop without its last checkpoint

    def _report(self) -> None:
        self._tell(
            {
                "seconds": self.clock() - self.began,
                "cpu_seconds": time.process_time() - self.cpu_began,
                "tokens": self.tokens,
                "steps": self.steps,
            }
        )

    def _tell(self, answer: dict[str, Any]) -> None:
        self.answers.write(json.dumps(answer) + "\n")
        self.answers.flush()
