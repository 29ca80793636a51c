"""The folder of one training run: who may write to it, and the log of what was measured."""

import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from nmt.errors import ConfigError, TrainingError
from nmt.text.lines import atomic_write
from nmt.training.checkpoint import MANIFEST, list_checkpoints, remove_unfinished

FOLDERS = ("tokenizer", "data", "checkpoints")
OURS = {"config.yaml", "metrics.jsonl", "log.txt", "latest", "best", ".lock", *FOLDERS}
UNFINISHED = re.compile(r"\.(.+\.model|config\.yaml|metrics\.jsonl|latest|best)\.[0-9a-f]{8}")
"""What `atomic_write` calls a file of ours that is not complete."""


class RunDirectory:
    """A run directory, opened for training by this process alone.

    Args:
        resume: whether a run that has begun may be continued.

    Raises:
        ConfigError: if the folder cannot be written, holds something else, holds a run that has
            begun (without `resume`), or is in use by another process.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        try:
            if path.exists() and not path.is_dir():
                raise ConfigError(f"{path}: is a file, but must be a folder; choose another")
            path.mkdir(parents=True, exist_ok=True)
            foreign = sorted(
                entry.name
                for entry in path.iterdir()
                if entry.name not in OURS and not entry.name.startswith(".")
            )
            if foreign and not (path / "config.yaml").exists():
                raise ConfigError(
                    f"{path}: is not empty and not a run of nmt (it holds {foreign[0]}); "
                    "choose another run_dir"
                )
            if (path / MANIFEST).exists():
                raise ConfigError(
                    f"{path}: is a model without its training state, such as `nmt average` makes, "
                    "and cannot be trained further; choose another run_dir"
                )
            for folder in (path, *(path / name for name in FOLDERS)):
                if folder.is_dir():
                    tempfile.TemporaryFile(dir=folder).close()  # better to know it now than later
            self._lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(self._lock, 100).decode("utf-8", "replace").strip()
            os.close(self._lock)
            raise ConfigError(f"{path}: is in use by another training run ({owner})") from None
        os.ftruncate(self._lock, 0)
        os.write(self._lock, f"process {os.getpid()} on {os.uname().nodename}".encode())
        if self.has_begun() and not resume:
            self.close()
            raise ConfigError(
                f"{path}: holds a run already; continue it with --resume, or choose another run_dir"
            )

    def sweep(self) -> None:
        """Delete what killed processes have left behind; only the owner of the lock may."""
        for folder in (self.path, self.path / "tokenizer"):
            for file in folder.glob(".*"):
                if UNFINISHED.fullmatch(file.name):
                    file.unlink(missing_ok=True)
        for folder in (self.path / "data").glob("*.tmp-*"):
            shutil.rmtree(folder, ignore_errors=True)
        remove_unfinished(self.path)

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object per line: what was measured, and when."""
        return self.path / "metrics.jsonl"

    def has_begun(self) -> bool:
        """Whether there is a run to continue."""
        return bool(list_checkpoints(self.path)) or self.metrics.exists()

    def close(self) -> None:
        """Let other processes train here."""
        os.close(self._lock)

    def record(self, event: str, **values: Any) -> None:
        """Append an event to the metrics and force it out of our memory."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values})
        _append(self.metrics, line)

    def forget_after(self, step: int, *, validation_due: bool = False) -> None:
        """Drop events of later steps, which a resumed run will measure again.

        Args:
            validation_due: whether it will also validate after this very step.
        """
        if not self.metrics.exists():
            return
        kept: list[bytes] = []
        with open(self.metrics, "rb") as stream:
            for line in stream:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # cut short by a crash
                again = (
                    {"end", "valid"} if validation_due and event.get("step") == step else {"end"}
                )
                if event.get("step", 0) <= step and event.get("event") not in again:
                    kept.append(line.removesuffix(b"\n") + b"\n")
        with atomic_write(self.metrics) as output:
            output.writelines(kept)

    def log(self, message: str) -> None:
        """Append a line to the human-readable log."""
        _append(self.path / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}")


def _append(path: Path, line: str) -> None:
    try:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")
    except OSError as error:
        raise TrainingError(
            f"{path}: cannot be written: {error.strerror}; free some space and continue with "
            "--resume"
        ) from error
