"""Guard against server-side request forgery: which hosts an untrusted URL may name.

Public hosts are allowed, hosts inside the worker's network are not. `resolves_to_public` sends DNS
queries; nothing here opens a connection.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_flows.core.http import DEFAULT_PORTS, has_unambiguous_host
from airflow_provider_flows.core.limits import MAX_HOST_LENGTH

INTERNAL_SUFFIXES = frozenset(
    {"arpa", "corp", "home", "internal", "intranet", "lan", "local", "localhost", "private", "svc"}
)
# The standard library's lists differ between Python versions, and a release does not get later entries. These
# are all entries of IANA's registries of special-purpose addresses, reachable or not: none is a web server's.
SPECIAL_IPV4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",  # carriers; 100.100.100.200 is Alibaba Cloud's metadata service
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's WireServer, a public address that is virtual in each network there
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",  # 192.0.0.192 is Oracle Cloud's metadata service
            "192.0.2.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
GLOBAL_IPV6 = IPv6Network("2000::/3")  # the only block from which public addresses are assigned
SPECIAL_IPV6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # with Teredo (2001::/32), ORCHID and benchmarking
            "2001:db8::/32",
            "2002::/16",  # 6to4, which contains an IPv4 address
            "2620:4f:8000::/48",
            "3ffe::/16",
            "3fff::/20",
        ),
    )
)
NAT64 = IPv6Network("64:ff9b::/96")  # contains an IPv4 address; networks without IPv4 reach public ones by it
_NUMERIC_LABEL = re.compile(r"\d+|0x[0-9a-f]*", re.IGNORECASE | re.ASCII)
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_HOST_PATTERN = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})+")

Resolver = Callable[..., Sequence[Sequence[Any]]]


def is_public(link: str) -> bool:
    """Return whether a URL has the scheme https and names a public host, judged by its text only."""
    if not has_unambiguous_host(link):
        return False
    parts = urlsplit(link)
    host = (parts.hostname or "").rstrip(".").lower()
    if parts.scheme != "https" or not host:
        return False
    with suppress(ValueError):
        return _is_public_address(ip_address(host))
    last_label = host.rpartition(".")[2]
    # The C library reads a name that ends in a number as an IPv4 address: 127.1, 2130706433, 0x7f.0.0.1.
    return (
        "." in host and last_label not in INTERNAL_SUFFIXES and _NUMERIC_LABEL.fullmatch(last_label) is None
    )


def parse_host_pattern(text: str) -> str:
    """Return a host name, or a pattern such as `*.example.com` for all hosts below it, in lower case.

    :raises ValueError: the text is neither, or names no public host.
    """
    pattern = text.strip().rstrip(".").lower()
    name = pattern.removeprefix("*.")
    is_name = len(pattern) <= MAX_HOST_LENGTH and _HOST_PATTERN.fullmatch(pattern) is not None
    is_address = _NUMERIC_LABEL.fullmatch(name.rpartition(".")[2]) is not None
    if not is_name or is_address or not is_public(f"https://{name}/"):
        message = f"{text[:MAX_HOST_LENGTH]!r} is not the name of a public host"
        raise ValueError(message)
    return pattern


def matches_host(link: str, patterns: Iterable[str]) -> bool:
    """Return whether a URL's host is one of these names, or below one of these `*.` patterns."""
    host = (urlsplit(link).hostname or "").rstrip(".").lower()
    return any(
        host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern for pattern in patterns
    )


def parse_input_host(text: str) -> str:
    """Return the name, the address or the pattern (`*.lan`) of any host, perhaps with a port, in lower case.

    :raises ValueError: the text is none of these.
    """
    host = text.strip().lower()
    parts = urlsplit(f"http://{host.removeprefix('*.')}")
    if (
        not host
        or parts.netloc != host.removeprefix("*.")
        or not has_unambiguous_host(f"http://{parts.netloc}")
    ):
        message = f"{text[:MAX_HOST_LENGTH]!r} is not the name or the address of a host"
        raise ValueError(message)
    if parts.port is not None and parts.port == 0:  # `port` raises ValueError for one that is too large
        raise ValueError(f"{text[:MAX_HOST_LENGTH]!r} has no valid port")
    return host


def matches_input_host(url: str, patterns: Iterable[str]) -> bool:
    """Return whether a web URL's host, and its port if there is one, are those of one of these patterns."""
    if not has_unambiguous_host(url):
        return False
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    try:
        port = parts.port or DEFAULT_PORTS[parts.scheme]
    except (KeyError, ValueError):  # another scheme, or no valid port
        return False
    return any(_matches_input_host(host, port, pattern) for pattern in patterns)


def _matches_input_host(host: str, port: int, pattern: str) -> bool:
    parts = urlsplit(f"http://{pattern.removeprefix('*.')}")
    name = (parts.hostname or "").rstrip(".")
    is_host = host.endswith(f".{name}") if pattern.startswith("*.") else host == name
    return is_host and parts.port in {None, port}


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
    return all(_is_public_address(ip_address(str(address[4][0]).partition("%")[0])) for address in found)


def _is_public_address(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address is public by the lists above and by those of this Python."""
    if isinstance(address, IPv6Address):
        if address in NAT64:
            return _is_public_address(IPv4Address(int(address) & 0xFFFFFFFF))
        is_special = address not in GLOBAL_IPV6 or any(address in network for network in SPECIAL_IPV6)
    else:
        is_special = any(address in network for network in SPECIAL_IPV4)
    return not is_special and address.is_global
