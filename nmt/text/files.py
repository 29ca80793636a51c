"""Small files that may come from anyone: read no further than they may be long.

What a name in a foreign folder stands for is not known before it is opened: a device without an
end, a pipe into which nobody writes, a sparse file of a terabyte. All these are `OSError`s here,
and so have a text for the user in `strerror`.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

MAX_JSON = 1 << 20
"""Most bytes of a JSON file; those that `nmt` writes have some hundred."""


@contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a file for reading bytes; what is no file is not waited for.

    Raises:
        OSError: if it cannot be opened, or is a folder, a device or a pipe.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as stream:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        yield stream


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a file.

    Args:
        limit: most bytes that it may have.

    Raises:
        OSError: if it cannot be read, or has more bytes.
    """
    with open_regular(path) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, as `parse_json` reads it.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it holds anything else.
    """
    return parse_json(read_file(path, MAX_JSON))


def parse_json(raw: bytes) -> dict[str, Any]:
    """The JSON object that these bytes are: no key twice, and no number that JSON does not have.

    Raises:
        ValueError: if they are anything else.
    """
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of its keys and values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _refuse(name: str) -> NoReturn:
    """NaN and Infinity are no JSON, although Python reads them."""
    raise ValueError(f"{name} is no number")
