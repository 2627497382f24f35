"""Faults on demand: which request is to go wrong, how, and how often.

It decides only; the gate carries a fault out.
"""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from threading import Lock
from typing import Any, Literal

# What HTTP calls a final answer; 1xx would only announce one.
FINAL_STATUSES = range(200, 600)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the matching requests.

    ``path`` is a shell pattern in which ``*`` also matches ``/``. ``times=None`` means until cleared; ``skip`` lets
    that many matching requests pass first. With ``status`` the work is not done and that answer is given instead;
    without it, ``headers`` and ``body`` change the real answer. ``reset`` closes the connection without an answer,
    ``"before"`` or ``"after"`` the work. ``truncate`` cuts the answer's body after so many bytes, under its full
    Content-Length. ``delay`` holds the answer back; the work is done already when it begins.
    """

    method: str = "*"
    path: str = "*"
    times: int | None = 1
    skip: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    reset: Literal["before", "after"] | None = None
    truncate: int | None = None
    delay: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a fault that could never do what its author means."""
        if self.reset not in {None, "before", "after"}:
            raise ValueError(f"A fault's reset is 'before', 'after' or None, not {self.reset!r}")
        wrong = [name for name in ("skip", "delay", "truncate", "times") if (getattr(self, name) or 0) < 0]
        if wrong:
            raise ValueError(f"A fault's {wrong[0]} cannot be less than zero")
        if self.status is not None and self.status not in FINAL_STATUSES:
            raise ValueError(f"A fault's status is 200 to 599, not {self.status}")

    def matches(self, method: str, path: str) -> bool:
        """Tell whether a request is one of those meant."""
        return self.method.upper() in {"*", method.upper()} and fnmatchcase(path, self.path)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Fault:
        """Read a fault as it comes over HTTP: the body as text, or as ``body_base64``."""
        known = dict(values)
        encoded = known.pop("body_base64", None)
        if encoded is not None:
            known["body"] = base64.b64decode(encoded, validate=True)
        elif isinstance(known.get("body"), str):
            known["body"] = known["body"].encode()
        try:
            return cls(**known)
        except TypeError as error:
            raise ValueError(f"Not a fault: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Return the fault in the form that :meth:`from_json` reads."""
        values = asdict(self)
        body = values.pop("body")
        return values | {"body_base64": None if body is None else base64.b64encode(body).decode()}


@dataclass
class ActiveFault:
    """A fault in force, and how often it has struck."""

    fault: Fault
    skipped_requests: int = 0
    hits: int = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether it will strike no more."""
        return self.fault.times is not None and self.hits >= self.fault.times


class FaultRegistry:
    """The faults in force, in the order in which they were added."""

    def __init__(self) -> None:
        self._active: list[ActiveFault] = []
        self._lock = Lock()

    def add(self, fault: Fault) -> ActiveFault:
        """Put a fault in force."""
        active = ActiveFault(fault)
        with self._lock:
            self._active.append(active)
        return active

    def clear(self) -> None:
        """Let everything go right again."""
        with self._lock:
            self._active.clear()

    def consume(self, method: str, path: str) -> Fault | None:
        """Return the first fault that strikes this request, and count it."""
        with self._lock:
            for active in self._active:
                if active.is_exhausted or not active.fault.matches(method, path):
                    continue
                if active.skipped_requests < active.fault.skip:
                    active.skipped_requests += 1
                    continue
                active.hits += 1
                return active.fault
        return None

    def to_json(self) -> list[dict[str, Any]]:
        """Return the faults with their counts."""
        with self._lock:
            return [active.fault.to_json() | {"struck": active.hits} for active in self._active]
