"""Which server has read the beginning of a prompt before, and which one is to take a request."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import orjson

BLOCK = 256
"""Characters of a prompt that are looked at together."""
MOST_BLOCKS = 64
"""Of one prompt."""
REMEMBERED = 65_536
"""Blocks of which it is known who read them."""
MARGIN = 2048
"""Tokens of work that a server may have more than another before a prompt that it knows goes elsewhere."""
_ANSWER_TOKENS = 128
"""Where a request does not say how many it wants."""


class Load(Protocol):
    """A server as far as choosing one needs it. name: its own; work: tokens that it was asked for and owes."""

    @property
    def name(self) -> str: ...

    @property
    def work(self) -> int: ...


Server = TypeVar("Server", bound=Load)


def prompt_of(content: Mapping[str, Any]) -> str:
    """What a request of the OpenAI API begins with, as one string; "" where it has no prompt."""
    for field in ("messages", "prompt", "input"):
        if field in content:
            found = content[field]
            return found if isinstance(found, str) else orjson.dumps(found).decode("utf-8", "replace")
    return ""


def work_of(content: Mapping[str, Any], prompt: str) -> int:
    """Tokens that a request may cost, roughly: a token is about three characters."""
    asked = content.get("max_completion_tokens") or content.get("max_tokens") or _ANSWER_TOKENS
    copies = content.get("n") or 1
    whole = isinstance(asked, int) and isinstance(copies, int)
    return len(prompt) // 3 + (max(asked, 1) * max(copies, 1) if whole else _ANSWER_TOKENS)


def blocks_of(prompt: str, model: str) -> list[bytes]:
    """A hash of each whole block, over all before it."""
    found = []
    last = model.encode("utf-8")
    for start in range(0, min(len(prompt) - BLOCK + 1, BLOCK * MOST_BLOCKS), BLOCK):
        block = prompt[start : start + BLOCK].encode("utf-8", "surrogatepass")
        last = hashlib.blake2b(last + block, digest_size=12).digest()
        found.append(last)
    return found


class Affinity:
    """Remembers who read what, the latest `REMEMBERED` blocks."""

    def __init__(self, margin: int = MARGIN) -> None:
        self.margin = margin
        self._reader: OrderedDict[bytes, str] = OrderedDict()

    def choose(self, blocks: Sequence[bytes], servers: Sequence[Server]) -> Server:
        """Of `servers` (at least one) the one that has read most of the prompt, unless it is too busy for that."""
        least = min(servers, key=lambda server: server.work)
        by_name = {server.name: server for server in servers}
        for block in reversed(blocks):
            known = by_name.get(self._reader.get(block, ""))
            if known is not None:
                return known if known.work <= least.work + self.margin else least
        return least

    def note(self, blocks: Sequence[bytes], server: str) -> None:
        """The server reads this prompt now."""
        for block in blocks:
            self._reader[block] = server
            self._reader.move_to_end(block)
        while len(self._reader) > REMEMBERED:
            self._reader.popitem(last=False)

    def forget(self, server: str) -> None:
        """The server is gone, and what it remembered with it."""
        for block in [block for block, reader in self._reader.items() if reader == server]:
            del self._reader[block]
