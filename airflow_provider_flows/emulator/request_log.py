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
MOST_BODY = 256 * 1024
MOST_RECORDS = 100_000


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

    def as_json(self) -> dict[str, Any]:
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


def without_secrets(headers: dict[str, str]) -> dict[str, str]:
    """Return the headers, by lower-case name, with keys blanked."""
    return {name: "***" if name in SECRET_HEADERS else value for name, value in headers.items()}


class Records:
    """The latest requests, oldest first."""

    def __init__(self) -> None:
        self._kept: deque[RecordedRequest] = deque(maxlen=MOST_RECORDS)
        self._lock = Lock()

    def add(self, record: RecordedRequest) -> None:
        """Keep a record."""
        with self._lock:
            self._kept.append(record)

    def all(self) -> tuple[RecordedRequest, ...]:
        """Return what is kept."""
        with self._lock:
            return tuple(self._kept)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()
