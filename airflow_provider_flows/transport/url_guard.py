"""Which hosts a stranger's link may make a worker ask: public ones, and none inside its network.

It opens no connection; it may look a name up.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit

INTERNAL_SUFFIXES = frozenset(
    {"arpa", "corp", "home", "internal", "intranet", "lan", "local", "localhost", "private", "svc"}
)
NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
IPV4_COMPATIBLE = IPv6Network("::/96")
# nothing that one library reads as a host and another as something else: no user, no backslash, no sign beyond ASCII
_HOST_AND_PORT = re.compile(r"(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?", re.IGNORECASE | re.ASCII)
_NUMERIC_LABEL = re.compile(r"\d+|0x[0-9a-f]*", re.IGNORECASE | re.ASCII)

Resolver = Callable[..., Sequence[Sequence[Any]]]


def has_unambiguous_host(link: str) -> bool:
    """Whether a link names its host so that nobody can read it in two ways."""
    try:
        return _HOST_AND_PORT.fullmatch(urlsplit(link).netloc) is not None
    except ValueError:
        return False


def is_public(link: str) -> bool:
    """Whether a link leads by https to what is, by its name, a public host."""
    if not has_unambiguous_host(link):
        return False
    parts = urlsplit(link)
    host = (parts.hostname or "").rstrip(".").lower()
    if parts.scheme != "https" or not host:
        return False
    with suppress(ValueError):
        return _is_global(ip_address(host))
    last = host.rpartition(".")[2]
    # a name that ends in a number is an address to the C library: 127.1, 2130706433, 0x7f.0.0.1
    return "." in host and last not in INTERNAL_SUFFIXES and _NUMERIC_LABEL.fullmatch(last) is None


def resolves_to_public(link: str, resolve: Resolver | None = None) -> bool:
    """Whether a link's host has public addresses only; a name that is not known here is left to the connection, or its proxy.

    It is one look: the connection looks the name up again, and a name server that means harm can answer otherwise then.
    """
    parts = urlsplit(link)
    try:
        found = (resolve or socket.getaddrinfo)(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return True
    return all(_is_global(ip_address(str(address[4][0]).partition("%")[0])) for address in found)


def _is_global(address: IPv4Address | IPv6Address) -> bool:
    inner = _embedded_addresses(address) if isinstance(address, IPv6Address) else []
    return all(one.is_global and not one.is_multicast for one in inner or [address])


def _embedded_addresses(address: IPv6Address) -> list[IPv4Address | IPv6Address]:
    """Give the IPv4 addresses in an IPv6 address, which the network may send a packet on to."""
    last = IPv4Address(int(address) & 0xFFFFFFFF)
    if address in IPV4_COMPATIBLE or address.is_site_local:
        return [IPv4Address("127.0.0.1")]  # no use for it is left
    if any(address in network for network in NAT64) or address.ipv4_mapped:
        return [last]
    found = [address.sixtofour, *(address.teredo or ())]
    return [one for one in found if one is not None]
