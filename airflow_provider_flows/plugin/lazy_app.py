"""The ASGI app that Airflow mounts.

It imports the pages on the first request and adds security headers to each response.
This module imports nothing but the standard library, because every process that loads plugins imports it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from threading import Lock
from typing import Any

log = logging.getLogger(__name__)

PREFIX = "/flows"
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# The pages load only their own files, can be framed only by Airflow, and are not cached.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "frame-ancestors 'self'; base-uri 'none'; form-action 'self'"
    ),
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_ENCODED_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
_OWN_HEADER_NAMES = {name for name, _ in _ENCODED_HEADERS}
UNAVAILABLE_WARNING = (
    "The Flow runs pages are not available in this version of Airflow: %s. "
    "All other parts of the provider work"
)
UNAVAILABLE_TEXT = (
    "The Flow runs pages are not available in this version of Airflow. "
    "The log of the API server has the reason."
)


class LazyApp:
    """An ASGI app that creates the actual app when the first request arrives."""

    def __init__(self) -> None:
        self._app: App | None = None
        self._lock = Lock()

    def __repr__(self) -> str:
        """Return the name that Airflow's *Plugins* page shows."""
        return f"<{__name__} at {PREFIX}>"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request and set the headers of its response."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                other_headers = [
                    (name, value)
                    for name, value in message.get("headers", ())
                    if name.lower() not in _OWN_HEADER_NAMES
                ]
                message = {**message, "headers": [*other_headers, *_ENCODED_HEADERS]}
            await send(message)

        await self._get_app()(scope, receive, send_with_headers)

    def _get_app(self) -> App:
        with self._lock:
            if self._app is None:
                self._app = _create_app()
            return self._app


def _create_app() -> App:
    try:
        from airflow_provider_flows.plugin.app import create_app
    except ImportError as error:
        log.warning(UNAVAILABLE_WARNING, error)
        return _send_unavailable
    return create_app()


async def _send_unavailable(scope: Message, receive: Receive, send: Send) -> None:  # noqa: ARG001  # an ASGI app
    await send(
        {
            "type": "http.response.start",
            "status": 503,
            "headers": [(b"content-type", b"text/plain; charset=utf-8")],
        }
    )
    await send({"type": "http.response.body", "body": UNAVAILABLE_TEXT.encode()})
