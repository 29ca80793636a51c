"""Tensors from files that anyone may have written: looked at before anything is allocated."""

import math
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from nmt.errors import ModelError
from nmt.text.files import open_regular, parse_json

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each weight, by parameter name."""

PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")
MAX_HEADER = 1 << 22
"""Most bytes of the header of safetensors: names and shapes of some 30,000 weights."""
STATE_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    torch.serialization.pickle.UnpicklingError,  # type: ignore[attr-defined]
)
"""What torch and its restricted reader raise where a file is not what they expect."""


def may_fit(path: Path, shapes: Shapes) -> bool:
    """Whether a file is not too long for fp32 weights of these shapes; if it is missing, too."""
    try:
        size = path.stat().st_size
    except OSError:
        return True
    return size <= 8 + MAX_HEADER + _num_bytes(shapes)


def read_weights_file(path: Path, shapes: Shapes | None = None) -> dict[str, Tensor]:
    """The fp32 tensors in a safetensors file, on the CPU, by name.

    The header is compared with what must be there and with the size of the file before anything
    of that size is allocated.

    Args:
        shapes: all weights that must be there; None takes what there is.

    Raises:
        ModelError: if the file is damaged, has other weights, or some are not finite.
    """
    weights: dict[str, Tensor] = {}
    try:
        found, length = _read_header(path)
        if shapes is not None:
            _compare(path.parent, found, shapes)
        if length != path.stat().st_size:
            raise ValueError("length")
        with safetensors.safe_open(path, framework="pt") as file:
            for name in sorted(found):
                # A copy: the file may change later, and its tensors are not aligned.
                weights[name] = file.get_tensor(name).clone()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"{path}: is not a file of fp32 weights as nmt writes it; use another model"
        ) from None
    for name, weight in weights.items():
        if not weight.sum().isfinite() and not weight.isfinite().all():  # a sum may overflow
            raise ModelError(f"{path}: {_shown(name)} is not finite; use an older checkpoint")
    return weights


def _read_header(path: Path) -> tuple[Shapes, int]:
    """What the header of safetensors says that there is.

    Returns:
        shapes: of each weight.
        length: how long the file is if that is true, in bytes.

    Raises:
        OSError: if the file cannot be read.
        ValueError, KeyError, TypeError: if it has no such header, or not for fp32 alone.
    """
    with open_regular(path) as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > MAX_HEADER:
            raise ValueError("header")
        entries = parse_json(stream.read(size))
    entries.pop("__metadata__", None)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, entry in entries.items():
        shape = tuple(entry["shape"])
        if entry["dtype"] != "F32" or not all(type(axis) is int and axis >= 0 for axis in shape):
            raise ValueError(name)
        shapes[name] = shape
    return shapes, 8 + size + _num_bytes(shapes)


def _num_bytes(shapes: Shapes) -> int:
    """The bytes of fp32 weights of these shapes."""
    return 4 * sum(map(math.prod, shapes.values()))


def _compare(folder: Path, found: Shapes, expected: Shapes) -> None:
    """Name the first weight that the architecture does not have, or has in another shape.

    Raises:
        ModelError: if there is one.
    """
    if found == expected:
        return
    name = min(name for name in found.keys() | expected if found.get(name) != expected.get(name))
    raise ModelError(
        f"{folder}: does not fit its config: {_shown(name)} has the shape "
        f"{str(found.get(name, 'of nothing'))[:80]}, but must have {expected.get(name, 'none')}"
    )


def _shown(name: str) -> str:
    """A name from a file as it may stand in a message."""
    return name if PLAIN_NAME.fullmatch(name) else ascii(name[:40])


def read_state_file(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote of a dictionary, by the reader of torch that runs no code.

    Raises:
        ModelError: if it holds anything but tensors, numbers, texts and collections of them.
    """
    try:
        with open_regular(path) as stream:
            starts_as_zip = stream.read(4) == b"PK\x03\x04"
        with zipfile.ZipFile(path) as archive:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.filelist)
        if packed or not starts_as_zip:  # torch.save writes neither
            raise ValueError
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError
    except STATE_ERRORS:
        raise ModelError(
            f"{path}: is not a training state that can be read with weights_only=True; use an "
            "older checkpoint"
        ) from None
    return state
