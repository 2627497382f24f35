"""The service of the file benchmark: it sends models of any size as data URIs in JSON, and takes any body, at next to no cost.

It is no emulator: every id is known to it, and the asset id of an output is the model's size in bytes.
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
_BLOCK = os.urandom(3 * 1024 * 1024)  # a multiple of three: encoded blocks can stand one after the other
_ENCODED = base64.b64encode(_BLOCK)
_TAKEN = bytearray(1024 * 1024)


def model(size: int) -> Iterator[bytes]:
    """Give a GLB of that size: its header, which names its length, and noise."""
    yield b"glTF\x02\x00\x00\x00" + size.to_bytes(4, "little")
    whole, rest = divmod(size - 12, len(_BLOCK))
    for _ in range(whole):
        yield _BLOCK
    yield _BLOCK[:rest]


def encoded(size: int) -> Iterator[bytes]:
    """Give the same in base64."""
    return (_ENCODED if piece is _BLOCK else base64.b64encode(piece) for piece in model(size))


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send a model."""
        size = int(self.path.rpartition("/")[2])
        self._begin(len(HEAD) + 4 * -(-size // 3) + len(TAIL))
        for piece in (HEAD, *encoded(size), TAIL):
            self.wfile.write(piece)

    def do_POST(self) -> None:
        """Take a body, look at none of it, and tell that all is well."""
        left = int(self.headers["Content-Length"])
        while left and (count := self.rfile.readinto(memoryview(_TAKEN)[:left])):
            left -= count
        answer = b'{"flow_id": "r", "asset_id": "a", "state": "created"}'
        self._begin(len(answer))
        self.wfile.write(answer)

    def _begin(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class FileServer(Program):
    """The service as a process of its own, on a free port."""

    def __init__(self, log: Path) -> None:
        """Choose the port."""
        self.port = free_port()
        self.address = f"http://{LOOPBACK}:{self.port}"
        command = [sys.executable, "-m", "benchmarks.file_server", "--port", str(self.port)]
        super().__init__("the file server", command, dict(os.environ), log)

    def start(self) -> None:
        """Start it and wait until it answers."""
        super().start()
        wait_until(self._answers, [self], START_SECONDS, "The start of the file server")

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((LOOPBACK, self.port)) == 0


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.file_server", description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    ThreadingHTTPServer((LOOPBACK, parser.parse_args().port), Handler).serve_forever()


if __name__ == "__main__":
    main()
