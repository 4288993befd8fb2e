"""The pages for people. Each is one file that loads nothing from elsewhere."""

from __future__ import annotations

import functools
from importlib import resources

from fastserve.serving.messages import Reply

_HTML = "text/html; charset=utf-8"
_HEADERS = (
    (
        "content-security-policy",
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
)


def labels() -> Reply:
    """Try models that label texts in the browser."""
    return Reply(200, _read("labels.html"), _HTML, _HEADERS)


def write() -> Reply:
    """Try models that write in the browser."""
    return Reply(200, _read("write.html"), _HTML, _HEADERS)


def docs() -> Reply:
    """The OpenAPI document for reading."""
    return Reply(200, _read("docs.html"), _HTML, _HEADERS)


@functools.cache
def _read(name: str) -> bytes:
    return (resources.files("fastserve.serving") / "static" / name).read_bytes()
