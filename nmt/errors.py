"""Errors that a user can cause and can fix. Anything else that is raised is a bug in `nmt`.

A message is one line: `<where>: <what is wrong>; <what to do>`. `nmt.cli` prints it without a
traceback and exits with the code of its class.
"""

from typing import ClassVar


class NMTError(Exception):
    """Base of all errors a user can cause."""

    exit_code: ClassVar[int] = 1


class ConfigError(NMTError):
    """Something named on the command line or in the config is wrong or does not exist."""

    exit_code: ClassVar[int] = 2


class DataError(NMTError):
    """The content of a text file is wrong."""

    exit_code: ClassVar[int] = 3


class ModelError(NMTError):
    """A model directory or a checkpoint is missing, foreign or damaged."""

    exit_code: ClassVar[int] = 4


class TrainingError(NMTError):
    """Training or writing output had to stop: not finite, out of memory, disk full."""

    exit_code: ClassVar[int] = 5
