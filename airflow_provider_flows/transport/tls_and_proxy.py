"""TLS contexts and proxies for `aiohttp`, found in the way in which `requests` finds them."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi


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


def get_proxy(scheme: str, host: str) -> tuple[str | None, dict[str, str]]:
    """Return the URL of the proxy for a host, and the headers with the proxy's credentials.

    The environment variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY are read, in either case. The
    option `trust_env` of aiohttp would read ~/.netrc as well, whose credentials collide with those of the
    connection.

    :returns: `(None, {})` if the host is reached without a proxy.
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
    return address, {"Authorization": f"Basic {basic}"}  # aiohttp sends it as Proxy-Authorization
