"""A machine whose home is not that of the others tells the one that keeps the meeting, which would wait for it in vain.

It finds the place where they meet and nothing that is said of it on the storage: so it cannot take part, and leaves
its name in the store of the place.
"""

from __future__ import annotations

import contextlib
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

from fastserve.distributed.network import Endpoint
from fastserve.distributed.preflight import limits

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

KEY = "fastserve/stranger"
SECONDS = 5.0
"""How long the store may take to answer."""


def tell(endpoint: Endpoint) -> None:
    """Leave this machine's name at the place, if it is one."""
    with contextlib.suppress(TimeoutError, RuntimeError):  # another program may have that port
        limits.within(SECONDS, lambda: _store(endpoint).set(KEY, socket.gethostname()))


class Strangers:
    """Those that told of themselves, for the machine that keeps the place."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._connection: TCPStore | None = None

    def heard(self) -> str | None:
        """The name of one; None where nobody did, or the store does not answer."""
        try:
            return limits.within(SECONDS, self._ask)
        except (TimeoutError, RuntimeError):
            return None

    def _ask(self) -> str | None:
        if self._connection is None:
            self._connection = _store(self.endpoint)
        return self._connection.get(KEY).decode() if self._connection.check([KEY]) else None


def _store(endpoint: Endpoint) -> TCPStore:
    from torch._C._distributed_c10d import TCPStore

    limit = timedelta(seconds=SECONDS)
    return TCPStore(endpoint.host, endpoint.port, is_master=False, timeout=limit, wait_for_workers=False)
