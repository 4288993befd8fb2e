"""What can go wrong, and whose turn it is to act.

    FastServeError
    ├── UserError               the words or the file were wrong: exit code 2
    │   ├── ConfigError         a key, a value or an override of the configuration
    │   ├── DataError           a file, a column or a row of the user's data
    │   ├── NotFoundError       a model, version, alias, network or other name that does not exist
    │   └── MissingExtraError   an optional part of FastServe that is not installed
    └── WorkError               the work failed: exit code 1
        ├── BundleError         a model folder that is incomplete, damaged or from another format
        ├── StorageError        the disk: full, read-only, or taken by another process
        ├── TrainingError       a run that cannot go on (a loss that is not a number, a dead worker)
        └── ServingError        a server that cannot start or go on
            └── Overloaded      more is asked at once than is taken; it says when to ask again

Every message says what happened, where, what was expected and how to fix it.
The command line prints the message alone; a traceback is for defects of FastServe.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FastServeError(Exception):
    """Root of everything that FastServe raises on purpose."""

    exit_code = 1


class UserError(FastServeError):
    """The words or the file were wrong; the user can mend it."""

    exit_code = 2


class ConfigError(UserError):
    """A key, a value or an override of the configuration."""


class DataError(UserError):
    """A file, a column or a row of the user's data."""


class NotFoundError(UserError):
    """A name that does not exist."""


class MissingExtraError(UserError):
    """An optional part of FastServe that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra '{extra}': pip install 'fastserve-lm[{extra}]'")


class WorkError(FastServeError):
    """The work failed although the words were right."""


class BundleError(WorkError):
    """A model folder that is incomplete, damaged or of another format."""


class StorageError(WorkError):
    """The disk is full, read-only, or held by another process."""


class TrainingError(WorkError):
    """A training run that cannot go on."""


class ServingError(WorkError):
    """A server that cannot start or cannot go on."""


class Overloaded(ServingError):
    """More is asked at once than is taken. retry_after: seconds after which it is worth asking again."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def choices(word: str, available: Iterable[str], *, most: int = 20) -> str:
    """The end of an error message: the nearest spelling of `word`, and what there is to choose from."""
    names = sorted(available)
    nearest = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    shown = ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
    return f"{hint}available: {shown or 'none'}"
