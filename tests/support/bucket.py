"""A local S3 server (moto's), access to its bucket without an S3 library, and a proxy that fails.

Airflow reaches it through the amazon provider's real file system and a real `aws` connection.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self
from urllib.parse import quote

import requests

from tests.support.servers import HttpHandler, HttpServer, TcpServer
from tools.processes import LOOPBACK, Program, free_port, wait_until

BUCKET = "models"
BUCKET_CONN_ID = "bucket_of_tests"  # Airflow caches the file system of an id for the whole process
SECRET = "a-storage-key-that-nobody-else-may-read"
_START_TIMEOUT = 60
# moto accepts any access key, and checks no signature
_AUTHORIZATION = (
    "AWS4-HMAC-SHA256 Credential=tests/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
)


class ObjectServer(Program):
    """The server as a process of its own, on a free port, with one bucket in it."""

    def __init__(self, log: Path) -> None:
        """Choose the port."""
        self.port = free_port()
        self.url = f"http://{LOOPBACK}:{self.port}"
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy of the machine has no say on the loopback
        self._session.headers["Authorization"] = _AUTHORIZATION
        command = [sys.executable, "-m", "moto.server", "--host", LOOPBACK, "--port", str(self.port)]
        super().__init__("moto's server", command, os.environ, log)

    def __enter__(self) -> Self:
        """Start the server, wait until it responds, and create the bucket."""
        self.start()
        wait_until(self._is_ready, [self], _START_TIMEOUT, "The start of moto's server")
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._session.close()
        self.stop()

    def clear(self) -> None:
        """Forget every bucket, and make the one that the tests use."""
        self._session.post(f"{self.url}/moto-api/reset", timeout=10).raise_for_status()
        self._session.put(f"{self.url}/{BUCKET}", timeout=10).raise_for_status()

    def buckets(self) -> list[str]:
        """Name all buckets."""
        return re.findall(r"<Name>(.*?)</Name>", self._get("/").text)

    def objects(self) -> dict[str, bytes]:
        """Return every object of the bucket by its name."""
        names = re.findall(r"<Key>(.*?)</Key>", self._get(f"/{BUCKET}?list-type=2").text)
        return {name: self._get(f"/{BUCKET}/{quote(name)}").content for name in names}

    def incomplete_uploads(self) -> list[str]:
        """Name what was begun in parts and neither finished nor given up: no list shows it, and it costs."""
        return re.findall(r"<Upload>.*?<Key>(.*?)</Key>", self._get(f"/{BUCKET}?uploads").text, re.DOTALL)

    def _get(self, path: str) -> requests.Response:
        response = self._session.get(self.url + path, timeout=10)
        response.raise_for_status()
        return response

    def _is_ready(self) -> bool:
        try:
            return self._session.get(f"{self.url}/moto-api/", timeout=5).ok
        except requests.ConnectionError:
            return False


def connection_json(url: str) -> str:
    """Return the Airflow connection to a store as JSON, without retries."""
    extra = {
        "endpoint_url": url,
        "region_name": "us-east-1",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    return json.dumps({"conn_type": "aws", "login": "tests", "password": SECRET, "extra": extra})


class CuttingProxy(TcpServer):
    """A TCP proxy of a server that disconnects for good after a number of bytes to the server."""

    def __init__(self, port: int, max_bytes: int) -> None:
        super().__init__(self._forward_both_ways)
        self._target, self._remaining = (LOOPBACK, port), max_bytes
        self.cut = threading.Event()

    def _forward_both_ways(self, client: socket.socket) -> None:
        with socket.create_connection(self._target) as server:
            threading.Thread(target=self._forward, args=(server, client), daemon=True).start()
            self._forward(client, server, counted=True)

    def _forward(self, source: socket.socket, target: socket.socket, *, counted: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._remaining -= len(data) * counted
                if self._remaining < 0:
                    self.cut.set()
                    self.stop()
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class RestrictedStore(HttpServer):
    """A proxy of a server that responds 403 to all requests that are not permitted.

    :param is_forbidden: returns whether a request is forbidden, by its method and its path with the query.
    """

    def __init__(self, port: int, is_forbidden: Callable[[str, str], bool]) -> None:
        super().__init__(_RestrictingHandler)
        self.port = port
        self.is_forbidden = is_forbidden
        self.forbidden: list[str] = []


class _RestrictingHandler(HttpHandler):
    server: RestrictedStore

    def do_PUT(self) -> None:  # noqa: N802  # the names are http.server's
        """Respond."""
        self.respond()

    do_HEAD = do_PUT  # noqa: N815  # the names are http.server's

    def respond(self) -> None:
        """Forward a request, or reject it."""
        body = self.read_body()
        if self.server.is_forbidden(self.command, self.path):
            self.server.forbidden.append(f"{self.command} {self.path}")
            status, headers = 403, {"Content-Type": "application/xml"}
            content = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        else:
            status, headers, content = self._forward(body)
        length = int(headers.pop("content-length", len(content)))
        self.send_head(status, headers, length)
        if self.command != "HEAD":
            self.wfile.write(content)

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(LOOPBACK, self.server.port, timeout=30)
        with contextlib.closing(connection):
            dropped = {"transfer-encoding", "content-length", "connection", "expect"}
            headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            dropped = {"date", "connection", "transfer-encoding"}
            received = {name.lower(): value for name, value in response.getheaders()}
            return response.status, {k: v for k, v in received.items() if k not in dropped}, response.read()
