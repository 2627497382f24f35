"""What a test can script: faults, which make requests go wrong, and plans, which decide how flow runs end."""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from threading import Lock
from typing import Any, Literal

# Final responses in HTTP's sense; a 1xx response only announces one.
FINAL_STATUSES = range(200, 600)
OUTCOMES = ("completed", "failed", "aborted")


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the matching requests.

    :param method: HTTP method, in any case; ``"*"`` matches every method.
    :param path: shell pattern for the path; ``*`` also matches ``/``.
    :param times: number of requests that the fault hits; None means until :meth:`Emulator.clear_faults`.
    :param skip: number of matching requests that pass before the first hit.
    :param status: status of a response that replaces the service's; the service does not process the request.
    :param headers: headers of that response, or, without `status`, headers to set on the service's response.
    :param body: body of that response, or, without `status`, the body that replaces the service's.
    :param reset: reset the connection without a response, ``"before"`` or ``"after"`` the service
        processed the request.
    :param truncate: send only so many bytes of the body, although Content-Length states the full length.
    :param delay: seconds to wait before the response is sent; the request has been processed by then.
    :raises ValueError: the combination cannot have an effect, such as a negative `delay`.
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
        """Validate the values."""
        if self.reset not in {None, "before", "after"}:
            raise ValueError(f"A fault's reset is 'before', 'after' or None, not {self.reset!r}")
        wrong = [name for name in ("skip", "delay", "truncate", "times") if (getattr(self, name) or 0) < 0]
        if wrong:
            raise ValueError(f"A fault's {wrong[0]} cannot be less than zero")
        if self.status is not None and self.status not in FINAL_STATUSES:
            raise ValueError(f"A fault's status is 200 to 599, not {self.status}")

    def matches(self, method: str, path: str) -> bool:
        """Return whether the fault is meant for such a request."""
        return self.method.upper() in {"*", method.upper()} and fnmatchcase(path, self.path)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Fault:
        """Parse a fault from the control API, with its body as text in `body` or encoded in `body_base64`.

        :raises ValueError: a name or value is not valid.
        """
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
        """Return the fault in the form that :meth:`from_json` parses."""
        values = asdict(self)
        body = values.pop("body")
        return values | {"body_base64": None if body is None else base64.b64encode(body).decode()}


@dataclass
class ActiveFault:
    """A fault in force, with the number of requests that it let pass and hit."""

    fault: Fault
    skipped_requests: int = 0
    hits: int = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether the fault has hit as many requests as it may."""
        return self.fault.times is not None and self.hits >= self.fault.times


class FaultRegistry:
    """The faults in force, in the order in which they were added; safe to use from several threads."""

    def __init__(self) -> None:
        self._active: list[ActiveFault] = []
        self._lock = Lock()

    def add(self, fault: Fault) -> ActiveFault:
        """Activate a fault."""
        active = ActiveFault(fault)
        with self._lock:
            self._active.append(active)
        return active

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._active.clear()

    def consume(self, method: str, path: str) -> Fault | None:
        """Return the first fault that hits this request, and count the hit."""
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
        """Return the faults for the control API, each with its number of hits in `struck`."""
        with self._lock:
            return [active.fault.to_json() | {"struck": active.hits} for active in self._active]


@dataclass(frozen=True)
class Plan:
    """How the next Generio flow runs end.

    :param outcome: final state; ``"aborted"`` means that another client aborts the run at its end.
    :param error: error message of a failed run.
    :param run_seconds: duration of the run; None means :attr:`Emulator.run_seconds`.
    :param unknown_state: a state name that the service reports in the middle third of the run.
    :param partial_outputs: whether a failed or aborted run has the first half of its outputs, at least one.
    :param times: number of runs that the plan is for.
    :raises ValueError: a value is not valid.
    """

    outcome: Literal["completed", "failed", "aborted"] = "completed"
    error: str | None = None
    run_seconds: float | None = None
    unknown_state: str | None = None
    partial_outputs: bool = False
    times: int = 1

    def __post_init__(self) -> None:
        """Validate the values."""
        if self.outcome not in OUTCOMES:
            raise ValueError(f"A plan's outcome is one of {', '.join(OUTCOMES)}, not {self.outcome!r}")
        if self.times < 1 or (self.run_seconds or 0) < 0:
            raise ValueError("A plan's times are at least 1 and its run_seconds at least 0")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Plan:
        """Parse a plan from the control API.

        :raises ValueError: a name or value is not valid.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"Not a plan: {error}") from error


class PlanQueue:
    """The plans of the next flow runs, first in, first out; safe to use from several threads."""

    def __init__(self) -> None:
        self._plans: list[Plan] = []
        self._lock = Lock()

    def add(self, plan: Plan) -> None:
        """Append a plan, once for each flow run that it is for."""
        with self._lock:
            self._plans.extend([plan] * plan.times)

    def pop(self) -> Plan:
        """Return the plan of the flow run that is being created: the default plan when none is queued."""
        with self._lock:
            return self._plans.pop(0) if self._plans else Plan()

    def clear(self) -> None:
        """Remove all plans."""
        with self._lock:
            self._plans.clear()
