"""FastServe: from raw text to a language model that answers over HTTP.

The verbs are loaded when first used, so that `import fastserve` imports neither torch nor a web framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastserve.api import Model, evaluate, load, serve, train

__all__ = ["Model", "evaluate", "load", "serve", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from fastserve import api

        return getattr(api, name)
    raise AttributeError(f"module 'fastserve' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
