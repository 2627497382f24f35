"""The door to the pages: an ASGI app that imports them when the first request comes, and puts the same headers on every answer.

What is behind it stands in site.py; whoever loads plugins and serves nothing pays for this module only.
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

# Nothing but our own files, shown nowhere but in Airflow, kept by nobody.
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
UNAVAILABLE_WARNING = "The pages of flow runs need parts of Airflow that this version does not have: %s. Everything else of the provider works"


class LazyApp:
    """The ASGI app that Airflow mounts."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._app: App | None = None
        self._lock = Lock()

    def __repr__(self) -> str:
        """Airflow's page of plugins shows it."""
        return f"<{__name__} at {PREFIX}>"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let one request in."""

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
                self._app = _build_app()
            return self._app


def _build_app() -> App:
    try:
        from airflow_provider_flows.plugin.app import create_app
    except ImportError as error:
        log.warning(UNAVAILABLE_WARNING, error)
        return _send_unavailable
    return create_app()


async def _send_unavailable(scope: Message, receive: Receive, send: Send) -> None:  # noqa: ARG001  # the signature of an ASGI app
    text = b"This version of Airflow does not have what the pages of flow runs need. The log of the API server names it."
    await send(
        {
            "type": "http.response.start",
            "status": 503,
            "headers": [(b"content-type", b"text/plain; charset=utf-8")],
        }
    )
    await send({"type": "http.response.body", "body": text})
