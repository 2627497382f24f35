"""An HTTP server in a thread of its own: begins, tells where it is, ends.

What it serves is handed in.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import uvicorn

START_TIMEOUT_SECONDS = 15
FindConnection = Callable[[MutableMapping[str, Any]], asyncio.Transport | None]
# A client that polls every few seconds keeps its connection.
KEEP_ALIVE_SECONDS = 75


class PortTakenError(OSError):
    """Somebody else listens at that address, or it is not ours to listen at."""

    def __str__(self) -> str:
        """Say it without the number, which helps nobody."""
        return self.strerror or "Cannot listen"


class Server:
    """uvicorn, serving one application until it is stopped."""

    def __init__(self, create_app: Callable[[FindConnection], Any]) -> None:
        config = uvicorn.Config(
            create_app(self.find_connection),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            # With it the address of a client would be what the client says, and no connection found by it.
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def start(self, host: str, port: int) -> tuple[str, int]:
        """Begin to serve; return the address."""
        listening = _open_listening_socket(host, port)
        address = listening.getsockname()
        self._thread = threading.Thread(
            target=self._uvicorn.run, kwargs={"sockets": [listening]}, name="flow-emulator", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._uvicorn.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                listening.close()
                raise RuntimeError(f"The emulator did not start at {host}:{port}")
            time.sleep(0.005)
        return address[0], address[1]

    def stop(self) -> None:
        """End, and wait for the end."""
        self._uvicorn.should_exit = True
        if self._thread is not None:
            self._thread.join(START_TIMEOUT_SECONDS)
            self._thread = None

    def find_connection(self, scope: MutableMapping[str, Any]) -> asyncio.Transport | None:
        """Return the connection that a request came by, unless it is gone."""
        client = tuple(scope["client"])
        for protocol in list(self._uvicorn.server_state.connections):
            transport = protocol.transport
            if tuple(transport.get_extra_info("peername")[:2]) == client:
                return transport
        return None


def _open_listening_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle's delay (40 ms an answer) off only where it is.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # Only for addresses that are still winding down; a port in use is refused all the same.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        message = (
            f"Cannot listen at {host}:{port}: {error.strerror}. Choose another port, or 0 for any free one"
        )
        raise PortTakenError(error.errno, message) from error
    return listening
