"""Where a connection may go: names are resolved first, and every address that they have is looked at.

How an address is written does not matter (`127.1`, `0x7f000001`, `017700000001`, full-width digits): the resolver reads
all of them, and what it says is checked. Addresses that carry another one inside (IPv4-mapped, NAT64, 6to4, Teredo) are
judged by that one, too.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from queue import Empty, SimpleQueue

from segserve.errors import UsageError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# The special-purpose registries of IANA, and multicast:
# https://www.iana.org/assignments/iana-ipv4-special-registry, …/iana-ipv6-special-registry
_SPECIAL: tuple[tuple[str, str], ...] = (
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared by a provider's customers"),
    ("127.0.0.0/8", "this machine"),
    ("169.254.0.0/16", "link-local, where clouds keep their metadata"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "reserved"),
    ("192.0.2.0/24", "documentation"),
    ("192.88.99.0/24", "a relay of 6to4"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "benchmarks"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/96", "IPv4-compatible, this machine, or nothing"),
    ("100::/64", "discarded"),
    ("2001::/23", "reserved"),
    ("2001:db8::/32", "documentation"),
    ("3fff::/20", "documentation"),
    ("5f00::/16", "segment routing"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "private (site-local)"),
    ("ff00::/8", "multicast"),
)
_FORBIDDEN: tuple[tuple[Network, str], ...] = tuple((ip_network(text), why) for text, why in _SPECIAL)
_UNICAST = ip_network("2000::/3")  # the only part of IPv6 that is given out to anybody
_NAT64 = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"))


class AddressRefused(UsageError):
    """A connection that would not go to the public internet, and that nobody has allowed."""

    http_status = 403


class NoSuchHost(UsageError):
    """The name has no address."""


@dataclass(frozen=True)
class Policy:
    """What may be reached. `allow` has hosts, addresses and networks that may be although they are not public, on any
    port. `only`, if there is any, are the hosts and networks beside which nothing is reached. `ports` are those of all
    others.
    """

    allow: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    ports: frozenset[int] = frozenset({80, 443})

    def addresses(self, host: str, port: int, patience_s: float) -> list[Address]:
        """The addresses of a host, all of which may be connected to.

        Raises:
            AddressRefused: one of them may not.
            NoSuchHost: there is none, or nobody says so within `patience_s` seconds.
        """
        found = _resolve(host, port, patience_s)
        for address in found:
            why = self.refusal(host, port, address)
            if why:
                raise AddressRefused(
                    f"'{host}' is not fetched from: {why}.",
                    hint="The admin can allow it: `fetch.allow` in config.toml.",
                )
        return found

    def refusal(self, host: str, port: int, address: Address) -> str:
        """Why a connection is refused; "" when it is not."""
        if self.only and not _named(self._only, self.only, host, address):
            return "it is not among the hosts that `fetch.only` names"
        if _named(self._allowed, self.allow, host, address):
            return ""
        if port not in self.ports:
            return f"port {port} is none of {', '.join(str(one) for one in sorted(self.ports))}"
        return special(address)

    @cached_property
    def _allowed(self) -> tuple[Network, ...]:
        return tuple(networks(self.allow))

    @cached_property
    def _only(self) -> tuple[Network, ...]:
        return tuple(networks(self.only))


def networks(entries: tuple[str, ...]) -> Iterator[Network]:
    """Those of the entries that are addresses or networks."""
    for entry in entries:
        try:
            yield ip_network(entry, strict=False)
        except ValueError:
            continue


def special(address: Address) -> str:
    """What is special about an address ("it is private"); "" for one of the public internet."""
    for one in (address, *_inside(address)):
        for network, why in _FORBIDDEN:
            if one in network:
                return f"its address {address} is special ({why})"
    if isinstance(address, IPv6Address) and not _inside(address) and address not in _UNICAST:
        return f"its address {address} is special (not given out)"
    return ""


def _inside(address: Address) -> list[Address]:
    """The IPv4 addresses that an IPv6 address stands for."""
    if isinstance(address, IPv4Address):
        return []
    found: list[Address] = [one for one in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())) if one]
    if any(address in network for network in _NAT64):
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return found


def _named(listed: tuple[Network, ...], entries: tuple[str, ...], host: str, address: Address) -> bool:
    if host.lower().rstrip(".") in {entry.lower() for entry in entries}:
        return True
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return any((mapped or address) in network for network in listed)


def _resolve(host: str, port: int, patience_s: float) -> list[Address]:
    """All addresses of a host. The resolver knows no time limit, so it is asked in a thread."""
    if "%" in host:
        raise AddressRefused(f"'{host}' is not fetched from: it names a network interface of this machine.")
    answers: SimpleQueue[list[Address] | OSError | UnicodeError] = SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(ip_address(str(one[4][0])) for one in found)))
        except (OSError, UnicodeError) as error:  # a label that is empty or too long is a UnicodeError
            answers.put(error)
        except ValueError:  # an address with a scope
            answers.put(OSError("its address has a scope"))

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=max(0.0, patience_s))
    except Empty:
        raise NoSuchHost(f"Nobody says where '{host}' is.", hint="The name server does not answer.") from None
    if isinstance(answer, Exception) or not answer:
        raise NoSuchHost(f"There is no host '{host}'.", hint="Check the address.") from None
    return answer
