"""The service of the file benchmark: it sends models of any size as data URIs in JSON, and accepts any body.

Every flow run id exists, and the asset id of an output is the model's size in bytes.
"""

from __future__ import annotations

import argparse
import base64
import os
import socket
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tools.processes import LOOPBACK, Program, free_port, wait_until

HEAD, TAIL = b'{"data": "data:model/gltf-binary;base64,', b'"}'
START_SECONDS = 30
_NOISE_BLOCK = os.urandom(3 * 1024 * 1024)  # a multiple of three, so that encoded blocks can be concatenated
_ENCODED = base64.b64encode(_NOISE_BLOCK)
_DISCARD_BUFFER = bytearray(1024 * 1024)


def glb_chunks(size: int) -> Iterator[bytes]:
    """Yield a GLB of that size: its header with the length, and noise."""
    yield b"glTF\x02\x00\x00\x00" + size.to_bytes(4, "little")
    full_blocks, rest = divmod(size - 12, len(_NOISE_BLOCK))
    for _ in range(full_blocks):
        yield _NOISE_BLOCK
    yield _NOISE_BLOCK[:rest]


def encoded_chunks(size: int) -> Iterator[bytes]:
    """Return the same GLB in base64."""
    return (_ENCODED if chunk is _NOISE_BLOCK else base64.b64encode(chunk) for chunk in glb_chunks(size))


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send a model."""
        size = int(self.path.rpartition("/")[2])
        self._send_head(len(HEAD) + 4 * -(-size // 3) + len(TAIL))
        for chunk in (HEAD, *encoded_chunks(size), TAIL):
            self.wfile.write(chunk)

    def do_POST(self) -> None:
        """Read a body, discard it, and respond with success."""
        remaining = int(self.headers["Content-Length"])
        while remaining and (count := self.rfile.readinto(memoryview(_DISCARD_BUFFER)[:remaining])):
            remaining -= count
        response = b'{"flow_id": "r", "asset_id": "a", "state": "created"}'
        self._send_head(len(response))
        self.wfile.write(response)

    def _send_head(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class FileServer(Program):
    """The service as a process, on a free port."""

    def __init__(self, log: Path) -> None:
        """Select a port."""
        self.port = free_port()
        self.address = f"http://{LOOPBACK}:{self.port}"
        command = [sys.executable, "-m", "benchmarks.file_server", "--port", str(self.port)]
        super().__init__("the file server", command, dict(os.environ), log)

    def start(self) -> None:
        """Start it, and wait until it responds."""
        super().start()
        wait_until(self._is_ready, [self], START_SECONDS, "The start of the file server")

    def _is_ready(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((LOOPBACK, self.port)) == 0


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.file_server", description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    ThreadingHTTPServer((LOOPBACK, parser.parse_args().port), Handler).serve_forever()


if __name__ == "__main__":
    main()
