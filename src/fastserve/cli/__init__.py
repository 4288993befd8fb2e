"""The command line: parse words, call one function, show what it gives. Nothing else is done here."""

from __future__ import annotations

import gc
import sys

__all__ = ["main"]


def main() -> None:
    """The `fastserve` command."""
    from fastserve.cli.main import run

    code = run(sys.argv[1:])
    gc.freeze()  # else the interpreter looks through all objects once more at its end: 0.3 s where torch was imported
    sys.exit(code)
