"""Addresses: where machines meet, and by which of its interfaces this machine gets there."""

from __future__ import annotations

import fcntl
import socket
import struct
from dataclasses import dataclass

from fastserve.errors import ConfigError

SIOCGIFADDR = 0x8915
"""linux/sockios.h: the address of an interface."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """`HOST:PORT`; ConfigError for anything else."""
        host, separator, port = text.strip().rpartition(":")
        if not separator or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"distributed.rendezvous '{text}' is no address: expected HOST:PORT, as in node1:29400")
        return cls(host, int(port))

    @classmethod
    def parse_all(cls, text: str) -> list[Endpoint]:
        """`HOST:PORT,HOST:PORT,...`"""
        return [cls.parse(part) for part in text.split(",")]


@dataclass(frozen=True, slots=True)
class Interface:
    """One of this machine's."""

    name: str
    address: str

    def owns(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint's host is this machine."""
        addresses = {self.address, *(each.address for each in interfaces())}
        return bool(addresses & set(resolve(endpoint)))


def resolve(endpoint: Endpoint) -> list[str]:
    """IPv4 addresses of the host; ConfigError where the name is unknown."""
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"distributed.rendezvous: the host of '{endpoint}' is unknown here: {error}") from None
    return [str(address[4][0]) for address in found]


def interfaces() -> list[Interface]:
    """Those of this machine that have an IPv4 address."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it has none
            found.append(Interface(name, socket.inet_ntoa(answer[20:24])))
    return found


def interface_towards(endpoint: Endpoint) -> Interface:
    """The interface that leads to the endpoint: its own one where the host is this machine."""
    target = resolve(endpoint)[0]
    known = {each.address: each for each in interfaces()}
    if target in known:
        return known[target]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, endpoint.port))  # sends nothing: it only asks for the route
        except OSError as error:
            raise ConfigError(f"distributed.rendezvous: no way leads to '{endpoint}': {error}") from None
        address = probe.getsockname()[0]
    return known.get(address, Interface("", address))
