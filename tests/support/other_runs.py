"""The flow runs of the independent server: their states, their outputs, and which of them were billed."""

from __future__ import annotations

import json
import secrets
import struct
import time
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

FLOW = "make_something"
BINARY_BYTES = 200_000  # more than one packet


class HttpError(Exception):
    """A response with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class RunPlan:
    """How long a flow run takes, and the error that it fails with, if any."""

    seconds: float
    error: str | None = None


@dataclass
class Run:
    """One flow run."""

    flow_id: str
    additional: Any
    parameters: Any
    plan: RunPlan
    created_at: float
    inputs: list[dict[str, Any]] = field(default_factory=list)
    started_at: float | None = None
    aborted_at: float | None = None

    def state(self, now: float) -> str:
        """Return the state; a run changes from `created` to `running`, and from there to its final state."""
        if self.aborted_at is not None:
            return "aborted"
        if self.started_at is None:
            return "created"
        if now < self.started_at + self.plan.seconds:
            return "running"
        return "failed" if self.plan.error else "completed"

    def finished_at(self, now: float) -> float | None:
        """Return the time of the end, None before it."""
        if self.started_at is None or self.state(now) == "running":
            return None
        return self.aborted_at or self.started_at + self.plan.seconds

    def files(self, now: float) -> dict[str, dict[str, Any]]:
        """Return the outputs by asset id: a model for each input and, if there are several, one for all."""
        if self.state(now) != "completed":
            return {}
        prompts = [str(item["data"]) for item in self.inputs]
        models = [(data, item.get("additional")) for data, item in zip(prompts, self.inputs, strict=True)]
        models += [(" and ".join(prompts), None)] if len(prompts) > 1 else []
        return {
            f"{self.flow_id[:20]}{number:04x}": {"content": model(data), "additional": additional}
            for number, (data, additional) in enumerate(models)
        }


def model(prompt: str) -> bytes:
    """Return a valid GLB, a different one for each prompt."""
    gltf = {
        "asset": {"version": "2.0", "extras": {"prompt": prompt}},
        "buffers": [{"byteLength": BINARY_BYTES}],
    }
    text = json.dumps(gltf).encode()
    text += b" " * (-len(text) % 4)
    chunks = (
        struct.pack("<I4s", len(text), b"JSON")
        + text
        + struct.pack("<I4s", BINARY_BYTES, b"BIN\0")
        + bytes(BINARY_BYTES)
    )
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


class Ledger:
    """All flow runs of the server, its clock, and the billed runs."""

    def __init__(self, seconds: float) -> None:
        """Create an empty ledger.

        :param seconds: the time that a flow run takes without a plan.
        """
        self.lock = RLock()
        self.payments: list[Any] = []
        """Of each started run what its caller sent: `additional`, or a chain's variables."""
        self._default_plan = RunPlan(seconds)
        self._plans: list[RunPlan] = []
        self._runs: dict[str, Run] = {}
        self._clock_offset = 0.0

    def now(self) -> float:
        """Return the server's time, in epoch seconds."""
        return time.time() + self._clock_offset

    def advance(self, seconds: float) -> None:
        """Advance the clock."""
        with self.lock:
            self._clock_offset += seconds

    def plan_next(self, plan: RunPlan) -> None:
        """Plan the flow run that is created next."""
        with self.lock:
            self._plans.append(plan)

    def list_runs(self) -> list[Run]:
        """Return all runs, oldest first."""
        return list(self._runs.values())

    def get_run(self, flow_id: str) -> Run:
        """Return a run.

        :raises HttpError: There is no such run.
        """
        if flow_id not in self._runs:
            raise HttpError(404, "no such flow")
        return self._runs[flow_id]

    def create(self, body: dict[str, Any]) -> Run:
        """Create a run; one with inputs starts immediately."""
        if body.get("template") != FLOW:
            raise HttpError(422, "unknown template")
        plan = self._plans.pop(0) if self._plans else self._default_plan
        run = Run(secrets.token_hex(12), body.get("additional"), body.get("parameters"), plan, self.now())
        self._runs[run.flow_id] = run
        for item in body.get("inputs") or []:
            self.add_input(run, item)
        if run.inputs:
            self.start(run)
        return run

    def add_input(self, run: Run, item: dict[str, Any]) -> int:
        """Add an input, and return its number."""
        self._require_state(run, "created")
        if not isinstance(item.get("data"), str):
            raise HttpError(422, "an input needs data")
        run.inputs.append(item)
        return len(run.inputs)

    def start(self, run: Run) -> None:
        """Start a run, and bill it."""
        self._require_state(run, "created")
        run.started_at = self.now()
        self.payments.append(run.additional)

    def abort(self, run: Run) -> None:
        """Abort a run; it ends immediately."""
        self._require_state(run, "running")
        run.aborted_at = self.now()

    def delete(self, run: Run) -> None:
        """Delete a run."""
        self._require_state(run, "created", "completed", "failed", "aborted")
        del self._runs[run.flow_id]

    def _require_state(self, run: Run, *states: str) -> None:
        state = run.state(self.now())
        if state not in states:
            raise HttpError(400, f"not possible while {state}")
