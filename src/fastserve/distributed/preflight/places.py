"""The places where a run would meet when the first is lost: each must be a node's, and reached by the others."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence

from fastserve.distributed.network import Endpoint, interface_towards
from fastserve.distributed.preflight import limits
from fastserve.errors import ConfigError

HERE, REACHED = "here", "reached"


class Places:
    """While entered, this node listens at those that are its own."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = endpoints
        self._own: dict[Endpoint, str] = {}
        self._listening = contextlib.ExitStack()

    def __enter__(self) -> Places:
        for endpoint in self.endpoints:
            with contextlib.suppress(ConfigError):  # a name that is unknown here is no name of this node
                if interface_towards(endpoint).owns(endpoint):
                    self._own[endpoint] = self._listen(endpoint)
        return self

    def __exit__(self, *exception: object) -> None:
        self._listening.close()

    def _listen(self, endpoint: Endpoint) -> str:
        try:
            self._listening.enter_context(socket.create_server((endpoint.host, endpoint.port), backlog=256))
        except OSError as error:
            return f"its port is not free: {error.strerror or error}"
        return HERE

    def reached(self) -> dict[str, str]:
        """Of each place: HERE, REACHED, or what is wrong with it. The other nodes listen already."""
        return {str(endpoint): self._own.get(endpoint) or _reach(endpoint) for endpoint in self.endpoints}


def _reach(endpoint: Endpoint) -> str:
    try:
        socket.create_connection((endpoint.host, endpoint.port), limits.CONNECT).close()
    except TimeoutError:
        return f"no answer within {limits.CONNECT:.0f} s"
    except OSError as error:
        return error.strerror or str(error)
    return REACHED
