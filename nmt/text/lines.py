"""The one home of line reading and writing.

A line ends at `\\n` and nowhere else: U+2028, U+0085, a vertical tab or a lone `\\r` inside a line
never split it, because parallel files must keep line N beside line N. One `\\r` before the `\\n`
and one byte order mark at the start of the file are dropped; any other `\\r` reads as a space.
"""

import gzip
import json
import os
import re
import secrets
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from nmt.errors import ConfigError, DataError, TrainingError

BOM = b"\xef\xbb\xbf"
LINE_BREAKS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")
# What some program takes for a line end, other control characters, and what UTF-8 cannot hold
UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@contextmanager
def open_input(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for reading bytes: `-` is stdin, a name that ends in `.gz` is decompressed.

    Raises:
        ConfigError: if there is no such file, or it cannot be read.
    """
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = (gzip.open if str(path).endswith(".gz") else open)(path, "rb")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    with stream:
        yield cast(BinaryIO, stream)


def decode_lines(
    stream: Iterable[bytes],
    name: str,
    on_invalid: Callable[[int], None] | None = None,
    on_return: Callable[[int], None] | None = None,
) -> Iterator[str]:
    """Decode a stream of bytes into lines without their line ends.

    Args:
        stream: chunks that end in `\\n`, as iterating over a binary file gives.
        name: how errors call the stream.
        on_invalid: if given, invalid UTF-8 is replaced by U+FFFD and this is called with the
            1-based line number, before the line is given; if not, it is an error.
        on_return: is called with the number of each line that has a `\\r` inside.

    Raises:
        DataError: for invalid UTF-8 (unless `on_invalid` is given), or broken gzip data.
    """
    lines = iter(stream)
    number = 0
    while True:
        try:
            raw = next(lines)
        except StopIteration:
            return
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{name}:{number + 1}: cannot be read further: {error}") from None
        number += 1
        if number == 1:
            raw = raw.removeprefix(BOM)
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            if on_invalid is None:
                raise DataError(
                    f"{name}:{number}: byte {error.start + 1} of the line is not valid UTF-8; "
                    "convert the file to UTF-8 or remove the line on both sides"
                ) from None
            on_invalid(number)
            line = raw.decode("utf-8", "replace")
        if "\r" in line:
            if on_return is not None:
                on_return(number)
            line = line.replace("\r", " ")
        yield line


def read_lines(
    path: str | os.PathLike[str],
    on_invalid: Callable[[int], None] | None = None,
    on_return: Callable[[int], None] | None = None,
) -> Iterator[str]:
    """Read the lines of a UTF-8 text file, plain or `.gz`; `-` is stdin.

    Args:
        on_invalid, on_return: as `decode_lines` takes them.

    Raises:
        ConfigError: if the file cannot be opened.
        DataError: if a line is not valid UTF-8, unless `on_invalid` is given.
    """
    name = "standard input" if str(path) == "-" else str(path)
    with open_input(path) as stream:
        yield from decode_lines(stream, name, on_invalid, on_return)


def one_line(text: str) -> str:
    """The text with every character that some program takes for a line end made a space.

    A byte-fallback piece may decode to a newline: line N of the output must stay line N.
    """
    return LINE_BREAKS.sub(" ", text).encode("utf-8", "replace").decode("utf-8")


def json_line(value: Any) -> str:
    """The value as JSON on one line, whatever the reader takes for a line end."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


@contextmanager
def open_output(path: str | os.PathLike[str] | None) -> Iterator[TextIO]:
    """Open a UTF-8 text output with `\\n` line ends; `None` and `-` are stdout.

    A file appears under its name only when it is complete: if the body raises, what was at
    `path` before is still there, untouched.

    Raises:
        ConfigError: if the file cannot be created.
        TrainingError: if writing fails, e.g. because the disk is full.
    """
    if path is None or str(path) == "-":
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
        try:
            yield sys.stdout
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            silence_stdout()
            raise TrainingError(f"standard output: cannot be written: {error.strerror}") from error
        return
    with (
        atomic_write(path) as binary,
        open(binary.fileno(), "w", encoding="utf-8", newline="\n", closefd=False) as text,
    ):
        yield text


def silence_stdout() -> None:
    """Send what is still buffered for stdout nowhere, so that no later flush fails again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file so that `path` holds either its old content or all of the new.

    The bytes are on the disk (fsync) before the name appears. A symbolic link is written
    through; permissions are those of any new file under the process's umask.

    Raises:
        ConfigError: if the folder does not exist or may not be written to.
        TrainingError: if writing fails, e.g. because the disk is full.
    """
    if os.path.isdir(path):
        raise ConfigError(f"{path}: is a folder, but must be a file")
    if os.path.exists(path) and not os.path.isfile(path):
        yield from write_device(path)
        return
    target = Path(os.path.realpath(path))
    # Named before it is made: a signal that arrives in between finds something to remove.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
        with open(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise TrainingError(f"{path}: cannot be written: {error.strerror}") from error
        raise
    sync_folder(target.parent)


def write_device(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write to what has no content to keep: a device or a pipe, such as `/dev/stdout`.

    It is opened by its own name: the real path of a pipe is not a name that can be opened.

    Raises:
        ConfigError: if it may not be written to.
        TrainingError: if writing fails, e.g. because the device is full.
    """
    try:
        handle = os.open(path, os.O_WRONLY)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with open(handle, "wb") as device:
            yield device
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise TrainingError(f"{path}: cannot be written: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
