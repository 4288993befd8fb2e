"""The command line: parse words, call one function, show what it gives. Nothing else is done here."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """The `fastserve` command."""
    from fastserve.cli.main import run

    sys.exit(run(sys.argv[1:]))
