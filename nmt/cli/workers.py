"""Translation on all cores: worker processes of one thread each, which share the model's memory.

A window of lines is sorted by length and cut into tasks, in the same way however many processes
there are, so that their number changes no bit of the output. A task that is alone is done in this
process: a short text pays nothing. What else pays (`Searcher.settle`) is prepared here, window by
window, and workers that lack it are replaced. They are forked when they are needed, from a process
that has only ever used one thread; they read the same pages of memory, and ignore Ctrl-C, which
this process answers for them. SIGTERM ends a worker at once: it has nothing to clean up.
"""

import json
import signal
import sys
from collections.abc import Generator, Iterable, Sequence
from dataclasses import asdict
from itertools import chain, islice, pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Self

import torch

from nmt.cli.messages import error
from nmt.errors import ConfigError, TrainingError
from nmt.translator import Hypothesis, Translation, Translator

TASK_LINES = 32
"""Most lines of a task: what one core translates fastest, per line."""

ANSWERS = {
    signal.SIGINT: signal.SIG_IGN,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}
"""What a worker does about the signals that the process which started it answers."""

Task = list[int]
"""Indices of lines of a window, longest line first."""


def share_cores(workers: int | None) -> int:
    """Give each process one thread, and say how many processes to use.

    Args:
        workers: what was asked for; None is one for each core that torch would use.

    Raises:
        ConfigError: if that is impossible.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers: must be at least 1, but is {workers}")
    if workers is not None and workers > 1 and not can_fork():
        raise ConfigError(f"--workers: must be 1 on {sys.platform}, but is {workers}")
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    return workers or (cores if can_fork() else 1)


def can_fork() -> bool:
    """Whether a process that has loaded a model can be forked: elsewhere threads are in the way."""
    return sys.platform == "linux"


def translate_lines(
    translator: Translator, lines: Iterable[str], *, window: int, workers: int
) -> Generator[Translation]:
    """Translate a stream of lines, in order.

    Args:
        window: lines that are read before the first of them is translated.
        workers: most processes to use; on a GPU this process does all.

    Raises:
        TrainingError: if a worker was killed.
    """
    if translator.device.type != "cpu":
        yield from translator.stream(lines, window=window)
        return
    source = iter(lines)
    with Workers(translator, workers) as pool:
        while sentences := list(islice(source, window)):
            tasks = plan(translator, sentences)
            done = pool.translate([[sentences[i] for i in task] for task in tasks])
            found = dict(zip(chain(*tasks), chain(*done), strict=True))
            yield from (found[i] for i in range(len(sentences)))


def plan(translator: Translator, sentences: Sequence[str]) -> list[Task]:
    """Cut a window into tasks of at most `TASK_LINES` lines and about the same number of them."""
    lengths = [len(token_ids) for token_ids in translator.src_tokenizer.encode(sentences)]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    num_tasks = -(-len(order) // TASK_LINES)
    bounds = [len(order) * i // num_tasks for i in range(num_tasks + 1)]
    return [order[begin:end] for begin, end in pairwise(bounds)]


class Workers:
    """Processes that translate lists of sentences with one model.

    Args:
        limit: most processes; they are started as tasks need them.
    """

    def __init__(self, translator: Translator, limit: int) -> None:
        self.translator = translator
        self.limit = limit
        self._workers: dict[Connection, Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self._end_all()

    def translate(self, tasks: Sequence[list[str]]) -> list[list[Translation]]:
        """Translate each list of sentences; whoever is free takes the next one.

        Raises:
            TrainingError: if a worker was killed.
        """
        if self.translator.settle([sentence for task in tasks for sentence in task]):
            self._end_all()  # those to come have what has been prepared
        if self.limit == 1 or len(tasks) <= 1:
            return [self.translator.translate(task) for task in tasks]
        while len(self._workers) < min(self.limit, len(tasks)):
            worker = Worker(self.translator, list(self._workers))
            self._workers[worker.connection] = worker
        done: list[list[Translation]] = [[] for _ in tasks]
        doing: dict[Connection, int] = {}
        waiting = iter(range(len(tasks)))
        for connection, task in zip(self._workers, waiting, strict=False):
            self._workers[connection].give(tasks[task])
            doing[connection] = task
        while doing:
            for ready in wait(list(doing)):
                assert isinstance(ready, Connection)
                worker, task = self._workers[ready], doing.pop(ready)
                done[task] = worker.take()
                if (following := next(waiting, None)) is not None:
                    worker.give(tasks[following])
                    doing[ready] = following
        return done

    def _end_all(self) -> None:
        for worker in self._workers.values():
            worker.end()
        self._workers.clear()


class Worker:
    """A process that translates what it is given until this process closes the connection.

    Args:
        siblings: connections to other workers, which the new process must not hold open.
    """

    def __init__(self, translator: Translator, siblings: list[Connection]) -> None:
        context = get_context("fork")
        self.connection, other_end = context.Pipe()
        self.process = context.Process(
            target=serve, args=(translator, other_end, [self.connection, *siblings]), daemon=True
        )
        # Until the new process has its own answers to signals, it must not see any.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ANSWERS)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        other_end.close()

    def give(self, sentences: list[str]) -> None:
        """Hand over a task.

        Raises:
            TrainingError: if the worker was killed.
        """
        try:
            self.connection.send_bytes(json.dumps(sentences).encode())
        except OSError:
            raise self._death() from None

    def take(self) -> list[Translation]:
        """Wait for the translations of the task.

        Raises:
            TrainingError: if the worker was killed, or had to give up.
        """
        try:
            answer = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise self._death() from None
        if isinstance(answer, str):
            raise TrainingError(answer)
        return [
            Translation(src, [Hypothesis(**fields) for fields in hypotheses], num_pieces)
            for src, hypotheses, num_pieces in answer
        ]

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self.connection.close()
        self.process.terminate()
        self.process.join()

    def _death(self) -> BaseException:
        """Why the process is no longer there."""
        self.process.join()
        code = self.process.exitcode or 0
        if code >= 0:  # a bug of ours: the worker has shown where
            error("a worker process failed")
            return SystemExit(1)
        return TrainingError(
            f"a worker process was killed by {signal.Signals(-code).name}; if memory is short, "
            "use --workers 1 or a smaller --batch-tokens"
        )


def serve(translator: Translator, connection: Connection, others: list[Connection]) -> None:
    """What a worker does: answer lists of sentences, all as JSON."""
    for number, handler in ANSWERS.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ANSWERS)
    for other in others:
        other.close()
    while True:
        try:
            sentences = json.loads(connection.recv_bytes())
        except (EOFError, OSError):  # nobody is left who would ask
            return
        try:
            connection.send_bytes(json.dumps(answer(translator, sentences)).encode())
        except OSError:
            return


def answer(translator: Translator, sentences: list[str]) -> Any:
    """Translations as JSON values, or why there are none."""
    try:
        return [
            (found.src, [asdict(hypothesis) for hypothesis in found.hypotheses], found.num_pieces)
            for found in translator.translate(sentences)
        ]
    except TrainingError as problem:
        return str(problem)
