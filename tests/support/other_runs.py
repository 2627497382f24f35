"""What the other server knows of flow runs: how each of them goes, what it has made, and what was paid for.

It knows no HTTP (tests/support/other_server.py does), and nothing of the package or of its emulator.
"""

from __future__ import annotations

import json
import secrets
import struct
import time
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

FLOW = "make_something"
BINARY = 200_000  # bytes; a file that takes more than one packet


class Refused(Exception):
    """A request that is not granted."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class Course:
    """How a flow run goes: how long it takes, and the error that it ends with, if any."""

    seconds: float
    error: str | None = None


@dataclass
class Run:
    """One flow run."""

    flow_id: str
    additional: Any
    parameters: Any
    course: Course
    made: float
    inputs: list[dict[str, Any]] = field(default_factory=list)
    begun: float | None = None
    aborted: float | None = None

    def state(self, now: float) -> str:
        """Tell the state; a run goes straight from `created` to `running`, and from there to its end."""
        if self.aborted is not None:
            return "aborted"
        if self.begun is None:
            return "created"
        if now < self.begun + self.course.seconds:
            return "running"
        return "failed" if self.course.error else "completed"

    def finished(self, now: float) -> float | None:
        """Tell the moment of the end, None before it."""
        if self.begun is None or self.state(now) == "running":
            return None
        return self.aborted or self.begun + self.course.seconds

    def files(self, now: float) -> dict[str, dict[str, Any]]:
        """Give what it has made, by asset id: a model of each input and, if there are several, one of them all."""
        if self.state(now) != "completed":
            return {}
        prompts = [str(item["data"]) for item in self.inputs]
        made = [(data, item.get("additional")) for data, item in zip(prompts, self.inputs, strict=True)]
        made += [(" and ".join(prompts), None)] if len(prompts) > 1 else []
        return {
            f"{self.flow_id[:20]}{number:04x}": {"content": model(data), "additional": additional}
            for number, (data, additional) in enumerate(made)
        }


def model(prompt: str) -> bytes:
    """Make a GLB that is whole, and another one for each prompt."""
    told = {"asset": {"version": "2.0", "extras": {"prompt": prompt}}, "buffers": [{"byteLength": BINARY}]}
    text = json.dumps(told).encode()
    text += b" " * (-len(text) % 4)
    chunks = (
        struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", BINARY, b"BIN\0") + bytes(BINARY)
    )
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


class Ledger:
    """All flow runs of the server, its clock, and its account of what was paid."""

    def __init__(self, seconds: float) -> None:
        """Keep how long a run takes of which nothing else is said."""
        self.lock = RLock()
        self.paid: list[Any] = []
        """What the caller had said with each run that was started: `additional`, or a chain's variables."""
        self._usual = Course(seconds)
        self._courses: list[Course] = []
        self._runs: dict[str, Run] = {}
        self._ahead = 0.0

    def now(self) -> float:
        """Tell the time."""
        return time.time() + self._ahead

    def advance(self, seconds: float) -> None:
        """Push the clock forward."""
        with self.lock:
            self._ahead += seconds

    def expect(self, course: Course) -> None:
        """Say how the flow run goes that is made next."""
        with self.lock:
            self._courses.append(course)

    def everything(self) -> list[Run]:
        """Give all runs, the oldest first."""
        return list(self._runs.values())

    def run(self, flow_id: str) -> Run:
        """Find a run."""
        if flow_id not in self._runs:
            raise Refused(404, "no such flow")
        return self._runs[flow_id]

    def make(self, body: dict[str, Any]) -> Run:
        """Make a run; one that is given inputs begins at once."""
        if body.get("template") != FLOW:
            raise Refused(422, "unknown template")
        course = self._courses.pop(0) if self._courses else self._usual
        run = Run(secrets.token_hex(12), body.get("additional"), body.get("parameters"), course, self.now())
        self._runs[run.flow_id] = run
        for item in body.get("inputs") or []:
            self.feed(run, item)
        if run.inputs:
            self.begin(run)
        return run

    def feed(self, run: Run, item: dict[str, Any]) -> int:
        """Add an input, and tell its number."""
        self._only_in(run, "created")
        if not isinstance(item.get("data"), str):
            raise Refused(422, "an input needs data")
        run.inputs.append(item)
        return len(run.inputs)

    def begin(self, run: Run) -> None:
        """Start a run, and take the money for it."""
        self._only_in(run, "created")
        run.begun = self.now()
        self.paid.append(run.additional)

    def abort(self, run: Run) -> None:
        """Stop a run; it is over at once."""
        self._only_in(run, "running")
        run.aborted = self.now()

    def forget(self, run: Run) -> None:
        """Delete a run."""
        self._only_in(run, "created", "completed", "failed", "aborted")
        del self._runs[run.flow_id]

    def _only_in(self, run: Run, *states: str) -> None:
        state = run.state(self.now())
        if state not in states:
            raise Refused(400, f"not possible while {state}")
