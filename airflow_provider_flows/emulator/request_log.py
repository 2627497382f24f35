"""The record of the requests that came in, for tests to ask about.

It keeps no key: those headers are blanked before a record is made.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

SECRET_HEADERS = frozenset({"authorization", "x-api-key", "proxy-authorization", "cookie"})
MAX_LOGGED_BODY_BYTES = 256 * 1024
MAX_LOGGED_REQUESTS = 100_000


@dataclass
class RecordedRequest:
    """One request as it came in, and the status it was answered with (None: no answer yet, or none at all)."""

    method: str
    path: str
    query: dict[str, str] = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    body_size: int
    at: float
    status: int | None = None

    @property
    def json(self) -> Any:
        """The body read as JSON; None if it is none, or was too long to keep."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def to_json(self) -> dict[str, Any]:
        """Return the record in the form that goes over HTTP."""
        return {
            "method": self.method,
            "path": self.path,
            "query": self.query,
            "headers": self.headers,
            "body": self.body.decode(errors="replace"),
            "body_size": self.body_size,
            "json": self.json,
            "at": self.at,
            "status": self.status,
        }


def redact_headers(headers: dict[str, str]) -> dict[str, str]:
    """Return the headers, by lower-case name, with keys blanked."""
    return {name: "***" if name in SECRET_HEADERS else value for name, value in headers.items()}


class RequestLog:
    """The latest requests, oldest first."""

    def __init__(self) -> None:
        self._requests: deque[RecordedRequest] = deque(maxlen=MAX_LOGGED_REQUESTS)
        self._lock = Lock()

    def add(self, record: RecordedRequest) -> None:
        """Keep a record."""
        with self._lock:
            self._requests.append(record)

    def all(self) -> tuple[RecordedRequest, ...]:
        """Return what is kept."""
        with self._lock:
            return tuple(self._requests)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._requests.clear()
