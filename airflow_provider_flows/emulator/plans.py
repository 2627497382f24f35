"""Plans: how the flow runs that are created next will go.

A plan knows nothing of clocks; the timeline turns it into states.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

OUTCOMES = ("completed", "failed", "aborted")


@dataclass(frozen=True)
class Plan:
    """How the next ``times`` flow runs of Generio's go.

    ``outcome="aborted"``: somebody else aborts it at the end. ``run_seconds=None``: as long as the emulator says.
    ``unknown_state``: a word reported as the state in the middle third of the run. ``partial_outputs``: a failed or
    aborted flow run still has the first half of its outputs, at least one.
    """

    outcome: Literal["completed", "failed", "aborted"] = "completed"
    error: str | None = None
    run_seconds: float | None = None
    unknown_state: str | None = None
    partial_outputs: bool = False
    times: int = 1

    def __post_init__(self) -> None:
        """Refuse a plan that names no known outcome or a time before the start."""
        if self.outcome not in OUTCOMES:
            raise ValueError(f"A plan's outcome is one of {', '.join(OUTCOMES)}, not {self.outcome!r}")
        if self.times < 1 or (self.run_seconds or 0) < 0:
            raise ValueError("A plan's times are at least 1 and its run_seconds at least 0")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Plan:
        """Read a plan as it comes over HTTP."""
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"Not a plan: {error}") from error


class PlanQueue:
    """The plans not yet used up, first come, first served."""

    def __init__(self) -> None:
        self._plans: list[Plan] = []
        self._lock = Lock()

    def add(self, plan: Plan) -> None:
        """Queue a plan, once for each flow run that it is meant for."""
        with self._lock:
            self._plans.extend([plan] * plan.times)

    def pop(self) -> Plan:
        """Return the plan of the flow run that is created now; without one, all goes well."""
        with self._lock:
            return self._plans.pop(0) if self._plans else Plan()

    def clear(self) -> None:
        """Let all flow runs go well again."""
        with self._lock:
            self._plans.clear()
