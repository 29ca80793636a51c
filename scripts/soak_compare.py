"""What a disturbed run has lost, byte by byte, against one that nothing has disturbed.

Files are read without `nmt` and without torch: what is judged does not judge itself.
"""

import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

WEIGHTS, STATE, MANIFEST = "model.safetensors", "training_state.pt", "manifest.json"
TIMES = {"time", "seconds", "tokens_per_second"}
"""What no two runs have in common."""


@dataclass
class Loss:
    """What is not as it would be had nothing happened."""

    num_bytes: int = 0
    """Of weights and training state that differ."""
    lines_lost: int = 0
    """Lines of the metrics that the undisturbed run has, and the disturbed one has not."""
    lines_doubled: int = 0
    """Lines of the metrics that the disturbed run has too many."""
    where: list[str] = field(default_factory=list)
    """Names of what differs."""


def compare_runs(found: Path, expected: Path) -> Loss:
    """Compare the newest and the best checkpoint of two finished runs, and their metrics."""
    loss = Loss()
    for pointer in ("latest", "best"):
        names = [(run / pointer).read_text(encoding="utf-8").strip() for run in (found, expected)]
        if names[0] != names[1]:
            loss.where.append(f"{pointer}: {names[0]} instead of {names[1]}")
        _compare_checkpoints(found / names[0], expected / names[1], pointer, loss)
    lines, expected_lines = metrics(found), metrics(expected)
    loss.lines_lost = (expected_lines - lines).total()
    loss.lines_doubled = (lines - expected_lines).total()
    loss.where += [f"metrics lost: {line}" for line in expected_lines - lines]
    loss.where += [f"metrics doubled: {line}" for line in lines - expected_lines]
    return loss


def _compare_checkpoints(found: Path, expected: Path, name: str, loss: Loss) -> None:
    for file, read in ((WEIGHTS, read_weights), (STATE, read_state)):
        for path, a, b in differences(read(found / file), read(expected / file)):
            loss.num_bytes += different_bytes(a, b)
            loss.where.append(f"{name}: {path}")


def differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves of two nested values that are not the same, with their path."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys(), key=str):
            yield from differences(a.get(key), b.get(key), f"{path}/{key}")
    elif isinstance(a, list | tuple) and type(a) is type(b):
        for i, (x, y) in enumerate(zip_longest(a, b)):
            yield from differences(x, y, f"{path}/{i}")
    elif type(a) is not type(b) or a != b:
        yield path, a, b


def different_bytes(a: Any, b: Any) -> int:
    """How many bytes of two leaves differ; what is no tensor counts as one."""
    if not (isinstance(a, bytes) and isinstance(b, bytes)):
        return 1
    return sum(x != y for x, y in zip_longest(a, b))


def read_weights(path: Path) -> dict[str, Any]:
    """The bytes of each tensor of a safetensors file, with its type and shape."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    header.pop("__metadata__", None)
    return {
        name: (about["dtype"], about["shape"], content[begin + first : begin + last])
        for name, about in header.items()
        for first, last in [about["data_offsets"]]
    }


def read_state(path: Path) -> Any:
    """The values that `torch.save` wrote, a tensor as the bytes of its storage and its shape."""
    with ZipFile(path) as archive:
        [values] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        with archive.open(values) as stream:
            return _StateReader(stream, archive, values.removesuffix("data.pkl")).load()


class _StateReader(pickle.Unpickler):
    """Builds plain values, and calls nothing that the file names."""

    def __init__(self, stream: IO[bytes], archive: ZipFile, root: str) -> None:
        super().__init__(stream)
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        return lambda *arguments: (f"{module}.{name}", *arguments)

    def persistent_load(self, pid: Any) -> bytes:
        _, _, key, *_ = pid
        return self.archive.read(f"{self.root}data/{key}")


def metrics(run: Path) -> Counter[str]:
    """The lines of a run's metrics without times, each with the number of times it is there."""
    found: Counter[str] = Counter()
    for line in (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1]:
        try:
            event = json.loads(line)
        except ValueError:
            found[f"not JSON: {line!r}"] += 1
            continue
        kept = {key: value for key, value in event.items() if key not in TIMES}
        found[json.dumps(kept, sort_keys=True)] += 1
    return found


def is_good(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint is what its manifest says."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_bytes())["files"]
        return all(
            hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() == about["sha256"]
            for name, about in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def good_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(filter(is_good, (run / "checkpoints").glob("step-" + "[0-9]" * 8)))


def stray_files(folder: Path) -> list[Path]:
    """What only an interrupted process leaves lying: temporary files and folders."""
    return [
        path
        for path in folder.rglob("*")
        if ".tmp-" in path.name
        or path.suffix == ".replaced"
        or (path.name.startswith(".") and path.name != ".lock")
    ]
