"""Whose process is at the other end of a connection that does not leave this machine."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import ClassVar

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


class Peer:
    """The client of one connection. Ports are used again: this is looked up once, while the connection is there."""

    STATE: ClassVar = "segserve.peer"  # in the state of a request

    def __init__(self, client: tuple[str, int] | None, server: tuple[str, int | None] | None) -> None:
        self._client, self._server = client, server

    @cached_property
    def uid(self) -> int | None:
        """The user of its socket, as the kernel says it; None where it does not (another system, no such socket)."""
        if self._client is None or self._server is None or self._server[1] is None:
            return None
        here, there = ((ip_address(host.partition("%")[0]), port or 0) for host, port in (self._client, self._server))
        wanted = {(_spelled(*here, mapped=mapped), _spelled(*there, mapped=mapped)) for mapped in (False, True)}
        for table in _TABLES:
            with suppress(OSError):
                for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                    fields = line.split()
                    if (fields[1], fields[2]) in wanted:
                        return int(fields[7])
        return None


def _spelled(address: IPv4Address | IPv6Address, port: int, *, mapped: bool) -> str:
    """As in the kernel's tables: 32 bits at a time, each in the order of the machine. Who calls an IPv4 address by IPv6
    (`::ffff:127.0.0.1`) stands in the other table.
    """
    packed = address.packed
    if mapped and address.version == 4:
        packed = bytes(10) + b"\xff\xff" + packed
    words = (int.from_bytes(packed[start : start + 4], sys.byteorder) for start in range(0, len(packed), 4))
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"
