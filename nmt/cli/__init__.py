"""The command line: one thin module per command. Nothing heavy is imported until a command runs."""

from nmt.cli.main import main

__all__ = ["main"]
