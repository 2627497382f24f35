"""The adapter of the `requests` session: final responses only, not decompressed, and errors of a connection.

`http.client` takes an informational response other than 100, such as `103 Early Hints`, for the final one.
Here it is skipped. An error while the connection is established is marked, because no request was sent then.
"""

from __future__ import annotations

import ssl
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NewConnectionError

if TYPE_CHECKING:
    from urllib3 import PoolManager

SWITCHING_PROTOCOLS = 101


class HandshakeError(ssl.SSLError):
    """The TLS connection could not be established, so no request was sent."""


class _FinalResponse(HTTPResponse):
    """A response that skips the informational ones before it."""

    def begin(self) -> None:
        """Read status and headers of the final response."""
        super().begin()
        while 100 <= self.status < 200 and self.status != SWITCHING_PROTOCOLS:
            self.headers = self.msg = None  # type: ignore[assignment]  # else `begin` reads nothing
            super().begin()


class _HttpConnection(HTTPConnection):
    response_class = _FinalResponse

    def connect(self) -> None:
        """Connect, also through a proxy."""
        try:
            super().connect()
        except OSError as error:  # urllib3's own errors are no OSErrors, and are marked already
            raise NewConnectionError(self, str(error)) from error


class _HttpsConnection(HTTPSConnection):
    response_class = _FinalResponse

    def connect(self) -> None:
        """Connect, also through a proxy's tunnel, and complete the TLS handshake."""
        try:
            super().connect()
        except (ssl.SSLError, ValueError) as error:  # ValueError: the certificate is of another host
            raise HandshakeError(*error.args) from error
        except OSError as error:
            raise NewConnectionError(self, str(error)) from error


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


class BlockingAdapter(HTTPAdapter):
    """An adapter with these connections, directly and through HTTP proxies; SOCKS needs its own."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Create the manager of direct connections."""
        super().init_poolmanager(*args, **kwargs)
        _use_pools(self.poolmanager)

    def build_response(self, req: Any, resp: Any) -> Any:
        """Return the response, whose body urllib3 leaves as it is.

        Some versions of urllib3 decompress without a bound; the reader of the response does it instead, by
        the headers of the response, which are a copy.
        """
        response = super().build_response(req, resp)
        resp.headers.pop("Content-Encoding", None)
        return response

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Return the manager of connections through a proxy."""
        manager = super().proxy_manager_for(*args, **kwargs)
        if isinstance(manager, ProxyManager):
            _use_pools(manager)
        return manager


def _use_pools(manager: PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
