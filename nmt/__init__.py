"""Recurrent sequence-to-sequence neural machine translation, from raw text to explained output."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nmt.build.saved import load as load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import `load` (and with it torch) only when it is used, so that `nmt --help` is instant."""
    if name == "load":
        from nmt.build.saved import load

        return load
    raise AttributeError(f"module 'nmt' has no attribute {name!r}")
