"""What the machine says of TLS and proxies, for the transport whose library leaves it to us (`requests` asks by itself).

It sends nothing; which certificates a connection names instead stands in its settings.
"""

from __future__ import annotations

import base64
import ssl
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi


def tls(verify: str | bool) -> ssl.SSLContext | bool:  # noqa: FBT001  # as Settings has it
    """Give what to check certificates with: a bundle, what `requests` trusts, or False for nothing.

    :raises OSError: the bundle cannot be read.
    """
    if verify is False:
        return False
    bundle = certifi.where() if verify is True else verify
    if Path(bundle).is_dir():
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle)


def proxy(scheme: str, host: str) -> tuple[str | None, dict[str, str]]:
    """Give the proxy for a host, by HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, and the header with its credentials.

    aiohttp's own `trust_env` would do it, but would read ~/.netrc too, whose credentials collide with the connection's.
    """
    proxies = getproxies()
    proxy_url = None if proxy_bypass(host) else proxies.get(scheme) or proxies.get("all")
    if not proxy_url:
        return None, {}
    parts = urlsplit(proxy_url if "://" in proxy_url else f"http://{proxy_url}")
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    if not parts.username:
        return address, {}
    basic = base64.b64encode(f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()).decode()
    return address, {"Authorization": f"Basic {basic}"}  # aiohttp makes it a Proxy-Authorization
