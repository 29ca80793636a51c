"""What `compare_joeynmt.py` has measured, and its table."""

import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TASKS = ("train", "decode")


@dataclass(frozen=True)
class Turn:
    """What a system did while it was its turn."""

    tokens: int
    seconds: float
    cpu_seconds: float
    """Processor time of all threads of its process. With one thread, tokens over these are a
    speed that other processes hardly disturb."""
    steps: int

    @property
    def speed(self) -> float:
        """Tokens/s."""
        return self.tokens / self.seconds


@dataclass
class System:
    """One of those that take turns."""

    name: str
    precision: str
    python: str
    script: str
    tasks: Sequence[str]
    shortlist: bool = False
    """Whether it decodes with a lexical shortlist."""
    about: dict[str, Any] = field(default_factory=dict)
    """Versions, parameters and padding, as the system itself gives them."""
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    """What was measured at each task."""

    def median(self, task: str) -> float | None:
        """Median tokens/s, or None for what it does not do."""
        turns = self.turns.get(task)
        return statistics.median(turn.speed for turn in turns) if turns else None


def rows(systems: Sequence[System]) -> list[dict[str, Any]]:
    """One row per system; ratios are those of the medians, to the first system."""
    base = systems[0]
    found: list[dict[str, Any]] = []
    for system in systems:
        row: dict[str, Any] = {
            "system": system.name + ", shortlist" * system.shortlist,
            "precision": system.precision,
        }
        for task in TASKS:
            speed, reference = system.median(task), base.median(task)
            row[f"{task}_tokens_per_second"] = speed
            row[f"{task}_ratio"] = speed / reference if speed and reference else None
            row[f"{task}_turns"] = [asdict(turn) for turn in system.turns.get(task, [])]
        row["padding"] = system.about.get("padding")
        row["parameters"] = system.about["parameters"]
        row["versions"] = system.about["versions"]
        found.append(row)
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""

    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    lines = [
        "| system | precision | training, tokens/s | × | decoding, tokens/s | × | padding "
        "| parameters |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        cells = [row["system"], row["precision"]]
        for task in TASKS:
            cells.append(cell(row[f"{task}_tokens_per_second"], ",.0f"))
            cells.append(cell(row[f"{task}_ratio"], ".2f"))
        cells += [cell(row["padding"], ".1%"), cell(row["parameters"], ",d")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def processor_name() -> str:
    """The CPU as it calls itself."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").split("\n"):
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
