"""What happens to the processes of a soak: signals, a full disk, damaged checkpoints."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from soak_compare import MANIFEST, STATE, WEIGHTS, good_checkpoints

Fault = Literal["SIGTERM", "SIGINT", "SIGINT twice", "SIGKILL", "full disk"]
Phase = Literal["start", "updates", "save"]
Damage = Literal["truncated", "flipped byte", "no manifest"]

FAULTS: tuple[Fault, ...] = ("SIGTERM", "SIGINT", "SIGINT twice", "SIGKILL", "full disk")
DAMAGES: tuple[Damage, ...] = ("truncated", "flipped byte", "no manifest")
EXITS = {
    "SIGTERM": {143, -signal.SIGTERM},  # the latter before there is a handler
    "SIGINT": {130, -signal.SIGINT},
    "SIGINT twice": {130, -signal.SIGINT},
    "SIGKILL": {-signal.SIGKILL},
    "full disk": {5},
}
"""How a process may end that has met a fault, if the fault did not come too late."""

POLL, SECONDS_TO_END = 0.001, 300.0
SECONDS_TO_ORPHANS = 5.0
"""How long workers may outlive who has started them."""


@dataclass(frozen=True)
class Strike:
    """A fault and its moment."""

    fault: Fault
    after: float
    """Seconds after the beginning of the phase."""
    phase: Phase = "start"
    """From the start of the process, from the first update, or from the writing of a checkpoint."""
    run: Path | None = None
    """The run directory in which the phase is seen."""
    size: int = 0
    """Of a full disk: the bytes that a file may still have."""


@dataclass(frozen=True)
class Ended:
    """How a process has ended."""

    code: int
    message: str
    """What it said on stderr."""
    was_struck: bool
    """Whether the fault came while it was running."""
    orphans: int
    """Processes that it has left behind."""

    def is_fine(self, strike: Strike | None) -> bool:
        """Whether it ended as it should: without a bug, and leaving no process."""
        allowed = EXITS[strike.fault] if strike is not None and self.was_struck else set()
        return self.code in allowed | {0} and not self.orphans


def run_nmt(arguments: list[str], folder: Path, strike: Strike | None) -> Ended:
    """Run a command of nmt in a folder, and let a fault meet it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nmt", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,  # a pipe, which no full disk stops
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    try:
        was_struck = strike is not None and _wait_and_strike(process, strike)
        code = process.wait(SECONDS_TO_END)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        orphans = _end_orphans(process.pid)
        with process.stderr:
            message = process.stderr.read().decode("utf-8", "replace")
    return Ended(code, message, was_struck, orphans)


def _wait_and_strike(process: subprocess.Popen[bytes], strike: Strike) -> bool:
    """Let the fault come in its moment; say whether the process was still there."""
    moment = time.monotonic() + strike.after
    before, is_waiting = _signs(strike), strike.phase != "start"
    while is_waiting or time.monotonic() < moment:
        if process.poll() is not None:
            return False
        if is_waiting and _signs(strike) - before:
            is_waiting = False
            moment = time.monotonic() + strike.after
        else:
            time.sleep(POLL)
    if process.poll() is not None:
        return False
    match strike.fault:
        case "full disk":
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (strike.size, strike.size))
        case "SIGINT twice":
            process.send_signal(signal.SIGINT)
            time.sleep(strike.after / 10)
            process.send_signal(signal.SIGINT)
        case _:
            process.send_signal(signal.Signals[strike.fault])
    return True


def _signs(strike: Strike) -> set[object]:
    """What is new when the phase has begun: a temporary folder, or lines of the metrics."""
    if strike.run is None:
        return set()
    if strike.phase == "save":
        return set((strike.run / "checkpoints").glob("*.tmp-*"))
    metrics = strike.run / "metrics.jsonl"
    return {metrics.stat().st_size} if metrics.exists() else set()


def _end_orphans(group: int) -> int:
    """How many processes of a group outlive its leader; they are ended."""
    patience = time.monotonic() + SECONDS_TO_ORPHANS
    while (orphans := _alive(group)) and time.monotonic() < patience:
        time.sleep(0.05)
    for orphan in orphans:
        os.kill(orphan, signal.SIGKILL)
    return len(orphans)


def _alive(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group, *_ = path.read_text(encoding="ascii").rpartition(")")[2].split()
        except (OSError, ValueError):  # it has just gone, or its name is not ASCII
            continue
        if int(its_group) == group and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def damage(run: Path, kind: Damage, draw: random.Random) -> bool:
    """Damage the newest checkpoint of a run, unless it is the only good one; say whether."""
    good = good_checkpoints(run)
    if len(good) < 2:
        return False
    file = good[-1] / draw.choice((WEIGHTS, STATE, MANIFEST))
    match kind:
        case "truncated":
            os.truncate(file, draw.randrange(file.stat().st_size))
        case "flipped byte":
            content = bytearray(file.read_bytes())
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            file.write_bytes(content)
        case "no manifest":
            (good[-1] / MANIFEST).unlink()
    return True
