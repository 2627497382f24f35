"""How both transports reach a host, and why they did not: TLS, proxies, keep-alive, causes of failures."""

from __future__ import annotations

import base64
import errno
import socket
import ssl
import zlib
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi

from airflow_provider_flows.core.http import DEFAULT_PORTS, to_origin
from airflow_provider_flows.core.limits import MAX_EXPLAINED_ERRORS
from airflow_provider_flows.transport.framing import FramingError, NoResponseError, TlsInsteadError

# Shorter than the time after which load balancers and firewalls forget a silent connection (4 to 6 minutes),
# because a request for a flow run may take longer.
KEEP_ALIVE_IDLE_SECONDS = 60
KEEP_ALIVE_INTERVAL_SECONDS = 30
KEEP_ALIVE_PROBES = 5

HOST_ADVICE = "Check the connection's host and the network."
PROXY_ADVICE = "Check the proxy settings of this machine (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY)."
PLAIN_HTTP_REASONS = frozenset(
    {
        "WRONG_VERSION_NUMBER",
        "HTTP_REQUEST",
        "UNKNOWN_PROTOCOL",
        "PACKET_LENGTH_TOO_LONG",
        "UNEXPECTED_MESSAGE",
    }
)
DECODING_ERRORS = frozenset({"ContentEncodingError", "ContentDecodingError"})  # also those of the libraries
UNREACHABLE_NUMBERS = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})


E = TypeVar("E", bound=BaseException)


class Explanation(NamedTuple):
    """Why a request got no response.

    :param cause: a clause.
    :param advice: what to do, as a sentence.
    :param is_setting: whether the connection must be changed, so that a retry would fail in the same way.
    """

    cause: str
    advice: str
    is_setting: bool = False


def get_keep_alive_options() -> list[tuple[int, int, int]]:
    """Return the socket options that keep a connection alive while a service is silent for long."""
    names = {
        "TCP_KEEPIDLE": KEEP_ALIVE_IDLE_SECONDS,
        "TCP_KEEPALIVE": KEEP_ALIVE_IDLE_SECONDS,  # its name in macOS
        "TCP_KEEPINTVL": KEEP_ALIVE_INTERVAL_SECONDS,
        "TCP_KEEPCNT": KEEP_ALIVE_PROBES,
    }
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    return options + [
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in names.items()
        if hasattr(socket, name)
    ]


def load_tls_context(verify: str | bool) -> ssl.SSLContext | bool:  # noqa: FBT001  # as in Settings
    """Return the TLS context to verify certificates with.

    :param verify: a CA bundle (file or folder), True for the certificates that `requests` trusts, False for
        none.
    :returns: the context, or False if certificates are not verified.
    :raises OSError: the bundle cannot be read.
    """
    if verify is False:
        return False
    bundle = certifi.where() if verify is True else verify
    if Path(bundle).is_dir():
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle)


def get_proxy_url(url: str) -> str | None:
    """Return the URL of the proxy for a URL, with the proxy's credentials; None if no proxy is used.

    The environment variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY are read, in either case. Both
    transports call this: the readings of `requests` and of aiohttp differ.

    :raises ValueError: the URL is invalid.
    """
    parts = urlsplit(url)
    proxies = getproxies()
    proxy_url = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy_url or not parts.hostname or _is_exempt(parts, proxies.get("no", "")):
        return None
    return proxy_url if "://" in proxy_url else f"http://{proxy_url}"


def _is_exempt(parts: SplitResult, no_proxy: str) -> bool:
    """Return whether NO_PROXY, or the system's own list, names the host of a URL.

    An entry of NO_PROXY is a host, also for all hosts below it (`example.com`, `.example.com`,
    `*.example.com`), an address, or a network (`10.0.0.0/8`); each may have a port. `*` is every host.
    """
    host = (parts.hostname or "").rstrip(".").lower()
    port = parts.port or DEFAULT_PORTS.get(parts.scheme)
    entries = no_proxy.replace(",", " ").split()
    return any(_matches(entry.lower(), host, port) for entry in entries) or bool(proxy_bypass(host))


def _matches(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    with suppress(ValueError):  # the entry is no network, or the host no address
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    name, separator, port_text = entry.rpartition(":")
    if separator and port_text.isdecimal() and (":" not in name or name.endswith("]")):
        return int(port_text) == port and _matches(name, host, port)
    name = entry.strip("[]").removeprefix("*").lstrip(".").rstrip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def split_credentials(proxy_url: str) -> tuple[str, dict[str, str]]:
    """Return the URL of a proxy for aiohttp, without its credentials, and the header that contains them.

    :raises ValueError: aiohttp has no support for proxies of this kind, or this is not the URL of one.
    """
    if not _is_valid_proxy(proxy_url):
        message = "a proxy without a host, or with an invalid port"
        raise ValueError(message)
    parts = urlsplit(proxy_url)
    if parts.scheme not in DEFAULT_PORTS:
        message = f"a proxy of the kind {parts.scheme}"
        raise ValueError(message)
    address = _strip_credentials(parts)
    if not parts.username:
        return address, {}
    basic = base64.b64encode(f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()).decode()
    return address, {"Authorization": f"Basic {basic}"}  # aiohttp sends it as Proxy-Authorization


def _strip_credentials(parts: SplitResult) -> str:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _is_valid_proxy(proxy_url: str) -> bool:
    """Return whether the URL of a proxy has a host, and its port is a number."""
    try:
        parts = urlsplit(proxy_url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def explain_failure(error: BaseException, url: str, *, is_connected: bool, is_proxy: bool) -> Explanation:
    """Return why a request to a URL got no response, and what to do.

    The texts of the HTTP libraries are omitted, because they contain the URL, which may be signed.

    :param error: the error of the HTTP library.
    :param is_connected: whether a connection to the service was established.
    :param is_proxy: whether the proxy of the environment has failed, not the service.
    """
    errors = list(_iter_causes(error))
    proxy_url = None
    with suppress(ValueError):  # the URL of the request is invalid
        proxy_url = get_proxy_url(url)
    if proxy_url is not None and not _is_valid_proxy(proxy_url):
        shown = to_origin(proxy_url.rpartition("@")[2])  # without its credentials
        cause = f"the request was not sent, because {shown} is not the address of a proxy"
        return Explanation(cause, f"{PROXY_ADVICE} An example is http://proxy.example.com:3128.")
    proxy = "" if proxy_url is None else to_origin(_strip_credentials(urlsplit(proxy_url)))
    if is_proxy:
        found = _explain_host(errors) or _explain_end(errors, is_connected=False)
        clause = "it refused" if found is None else found.cause
        return Explanation(f"the proxy {proxy} did not connect to it: {clause}", PROXY_ADVICE)
    if proxy.startswith("socks") and not is_connected and _find(errors, ValueError) is not None:
        return Explanation(f"the proxy {proxy} is of a kind that is not supported here", PROXY_ADVICE)
    return _explain(errors, url, is_connected=is_connected)


def _iter_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and all errors that it wraps in any of the ways of the HTTP libraries."""
    queue: list[BaseException] = [error]
    seen: set[int] = set()
    while queue and len(seen) < MAX_EXPLAINED_ERRORS:
        current = queue.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        wrapped = (current.__cause__, current.__context__, getattr(current, "reason", None), *current.args)
        queue += [inner for inner in wrapped if isinstance(inner, BaseException)]


def _explain(errors: list[BaseException], url: str, *, is_connected: bool) -> Explanation:
    return (
        _explain_content(errors, url)
        or _explain_host(errors)
        or (_explain_handshake(errors, url) if url.startswith("https:") and not is_connected else None)
        or _explain_end(errors, is_connected=is_connected)
        or Explanation(f"the HTTP library reports {type(errors[0]).__name__}", HOST_ADVICE)
    )


def _explain_content(errors: list[BaseException], url: str) -> Explanation | None:
    advice = "Check the connection's host, and what is between it and this machine."
    if (framing := _find(errors, FramingError)) is not None:
        if isinstance(framing, TlsInsteadError):
            return Explanation(str(framing), advice, is_setting=True)
        if isinstance(framing, NoResponseError) and url.startswith("http:"):
            advice += " If the service speaks https, set the connection's host to its https:// address."
        return Explanation(str(framing), advice)
    is_decoding = any(type(error).__name__ in DECODING_ERRORS for error in errors)
    if is_decoding or _find(errors, zlib.error) is not None:
        return Explanation("the body of its response is not in the compression that its header names", advice)
    return None


def _explain_host(errors: list[BaseException]) -> Explanation | None:
    if _find(errors, ssl.SSLCertVerificationError) is not None:
        # those of aiohttp do not have the message
        messages = [text for error in errors if (text := getattr(error, "verify_message", None))]
        return Explanation(
            f"its certificate is not trusted ({messages[0] if messages else 'of another host'})",
            "Check the connection's host, and its certificate settings: ca_bundle and verify in its extra.",
            is_setting=True,
        )
    if _find(errors, socket.gaierror) is not None:
        return Explanation("its name cannot be resolved", "Check the connection's host, and the DNS.")
    if _find(errors, ConnectionRefusedError) is not None:
        advice = "Check the host and the port of the connection, and that the service is running."
        return Explanation("nothing listens there (connection refused)", advice)
    if any(isinstance(error, OSError) and error.errno in UNREACHABLE_NUMBERS for error in errors):
        return Explanation("the network has no route to it", HOST_ADVICE)
    return None


def _explain_handshake(errors: list[BaseException], url: str) -> Explanation | None:
    reasons = {str(getattr(error, "reason", "")) for error in errors if isinstance(error, ssl.SSLError)} - {
        ""
    }
    plain_url = to_origin(url).replace("https:", "http:", 1)
    advice = f"If the service speaks plain http, set the connection's host to {plain_url}."
    if reasons & PLAIN_HTTP_REASONS:
        return Explanation("it does not speak TLS there", advice, is_setting=True)
    is_broken = _find(errors, ConnectionError) is not None and _find(errors, TimeoutError) is None
    if not is_broken and _find(errors, ssl.SSLError) is None:
        return None
    detail = f" ({min(reasons).lower().replace('_', ' ')})" if reasons else ""
    return Explanation(f"the TLS handshake failed{detail}", f"{advice} Else check its certificate settings.")


def _explain_end(errors: list[BaseException], *, is_connected: bool) -> Explanation | None:
    if _find(errors, ssl.SSLError) is not None:
        return Explanation("the TLS connection broke", HOST_ADVICE)
    if _find(errors, TimeoutError) is not None or "Timeout" in type(errors[0]).__name__:
        if is_connected:
            return Explanation("it sent nothing for the connection's read_timeout", HOST_ADVICE)
        return Explanation("it accepted no connection within the connection's connect_timeout", HOST_ADVICE)
    if _find(errors, ConnectionError) is not None:
        return Explanation("it closed the connection", HOST_ADVICE)
    if not is_connected and _find(errors, ValueError) is not None:
        return Explanation("its address is invalid, or of a kind that is not supported", HOST_ADVICE)
    return None


def _find(errors: list[BaseException], kind: type[E]) -> E | None:
    """Return the first error of a kind."""
    return next((error for error in errors if isinstance(error, kind)), None)
