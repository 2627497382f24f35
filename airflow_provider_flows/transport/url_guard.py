"""Guard against server-side request forgery: which hosts an untrusted URL may name.

Public hosts are allowed, hosts inside the worker's network are not. `resolves_to_public` sends DNS
queries; nothing here opens a connection.
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
# Excludes what libraries parse in different ways: user names, backslashes and characters outside ASCII.
_HOST_AND_PORT = re.compile(r"(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?", re.IGNORECASE | re.ASCII)
_NUMERIC_LABEL = re.compile(r"\d+|0x[0-9a-f]*", re.IGNORECASE | re.ASCII)

Resolver = Callable[..., Sequence[Sequence[Any]]]


def has_unambiguous_host(link: str) -> bool:
    """Return whether every library finds the same host in a URL."""
    try:
        return _HOST_AND_PORT.fullmatch(urlsplit(link).netloc) is not None
    except ValueError:
        return False


def is_public(link: str) -> bool:
    """Return whether a URL has the scheme https and names a public host, judged by its text only."""
    if not has_unambiguous_host(link):
        return False
    parts = urlsplit(link)
    host = (parts.hostname or "").rstrip(".").lower()
    if parts.scheme != "https" or not host:
        return False
    with suppress(ValueError):
        return _is_global(ip_address(host))
    last_label = host.rpartition(".")[2]
    # The C library reads a name that ends in a number as an IPv4 address: 127.1, 2130706433, 0x7f.0.0.1.
    return (
        "." in host and last_label not in INTERNAL_SUFFIXES and _NUMERIC_LABEL.fullmatch(last_label) is None
    )


def resolves_to_public(link: str, resolve: Resolver | None = None) -> bool:
    """Return whether the host of a URL has public addresses only.

    A name that cannot be resolved here is allowed: a proxy may resolve it, or the connection fails. The
    connection resolves the name a second time, so a malicious name server can return another address then.

    :param resolve: is called like `socket.getaddrinfo`, which is the default.
    """
    parts = urlsplit(link)
    try:
        found = (resolve or socket.getaddrinfo)(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return True
    return all(_is_global(ip_address(str(address[4][0]).partition("%")[0])) for address in found)


def _is_global(address: IPv4Address | IPv6Address) -> bool:
    embedded = _embedded_addresses(address) if isinstance(address, IPv6Address) else []
    return all(one.is_global and not one.is_multicast for one in embedded or [address])


def _embedded_addresses(address: IPv6Address) -> list[IPv4Address | IPv6Address]:
    """Return the IPv4 addresses in an IPv6 address to which a network may forward packets."""
    last_bits = IPv4Address(int(address) & 0xFFFFFFFF)
    if address in IPV4_COMPATIBLE or address.is_site_local:
        return [IPv4Address("127.0.0.1")]  # both kinds are obsolete; reject them like the local host
    if any(address in network for network in NAT64) or address.ipv4_mapped:
        return [last_bits]
    found = [address.sixtofour, *(address.teredo or ())]
    return [one for one in found if one is not None]
