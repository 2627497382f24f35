"""The five ways of waiting for a flow run, each as one task of a real DAG run, with comparable results.

Each poll advances the emulator's clock, so that each way of waiting observes the same run, however often it
polls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import requests
from airflow.sdk import DAG, BaseOperator

from airflow_provider_flows.emulator import Emulator, RecordedRequest
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor
from tests.support.airflow_run import DagResult, run_dag
from tests.support.versions import has

FLOW = "model_generate_fromprompt"
PROMPT = "A modern office chair"
PARAMETERS = {"quality": "low", "seed": 7}
FAST_POLLING = {"poll_interval": 0.1, "max_poll_interval": 0.2}
TASK_ID = "wait"
# each line that says what an older Airflow lacks, with the name of the missing feature
COMPAT_NOTICE = re.compile(r"([A-Z][\w ]*?) requires? Airflow 3\.\d or later\. On this version")

OPERATORS: dict[str, Callable[..., BaseOperator]] = {
    "blocking": partial(RunFlowOperator, flow=FLOW, inputs=PROMPT, parameters=PARAMETERS, deferrable=False),
    "deferrable": partial(RunFlowOperator, flow=FLOW, inputs=PROMPT, parameters=PARAMETERS, deferrable=True),
}
SENSORS: dict[str, Callable[..., BaseOperator]] = {
    "sensor, reschedule": FlowRunSensor,
    "sensor, poke": partial(FlowRunSensor, mode="poke"),
    "sensor, deferrable": partial(FlowRunSensor, deferrable=True),
}
MODES = [*OPERATORS, *SENSORS]


@dataclass
class WaitResult:
    """The result of one wait."""

    result: DagResult
    flow_run_id: str
    restarts_each_poll: bool = False
    """Whether each poll starts without state, and so logs again what the one before logged."""

    @property
    def state(self) -> str | None:
        """The task's state."""
        return self.result.states[TASK_ID]

    @property
    def error(self) -> BaseException | None:
        """The exception that ended the task."""
        return self.result.errors.get(TASK_ID)

    @property
    def return_value(self) -> dict[str, Any] | None:
        """What the task returned."""
        return self.result.xcoms.get(TASK_ID, {}).get("return_value")

    @property
    def lines(self) -> list[str]:
        """The lines that the package logged, without ids and numbers that differ from run to run."""
        messages = [self.normalize(line) for line in package_log_lines(self.result.log)]
        return list(dict.fromkeys(messages)) if self.restarts_each_poll else messages

    def normalize(self, text: str) -> str:
        """Return a text without what differs from run to run."""
        text = re.sub(r"\S*\b[0-9a-f]{24}\b\S*", lambda found: re.sub(r"[0-9a-f]{24}", "ID", found[0]), text)
        text = re.sub(r"\.\.\.[0-9a-f]{6} ", "...ID ", text)
        text = re.sub(r"127\.0\.0\.1:\d+", "HOST", text)
        text = re.sub(
            r"at \d+% after \d+ s; expected end: \d\d:\d\d:\d\d UTC", "at N% after N s; expected end: T", text
        )
        return re.sub(r"\(\d+ bytes\)", "(N bytes)", text)


def package_log_lines(log: str) -> list[str]:
    """Return this package's lines in a DAG run's log, without time, source and compatibility notices."""
    rows = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in log.splitlines()]
    found = [
        re.match(r"\S+ \[(\w+)\s*\] (.*?)\s+\[(\S*airflow_provider_flows\.[\w.]+)\]", row) for row in rows
    ]
    return [
        f"{row[1]}: {row[2]}"
        for row in found
        if row
        and "emulator" not in row[3]
        and row[2] != "Success criteria met. Exiting."
        and not COMPAT_NOTICE.match(row[2])
    ]


def compat_notices(log: str) -> list[str]:
    """Return the compatibility notices in a DAG run's log: what this Airflow lacks."""
    return COMPAT_NOTICE.findall(log)


def auth_headers(emulator: Emulator) -> dict[str, str]:
    """Return the headers for requests to the emulator's Generio without this package."""
    return {"Authorization": f"Bearer {emulator.key}"}


def start_external_run(emulator: Emulator) -> str:
    """Start a flow run as another system would, and return its id."""
    body = {"template": FLOW, "inputs": [{"data": PROMPT}], "parameters": PARAMETERS}
    response = requests.post(f"{emulator.url}/flows", json=body, headers=auth_headers(emulator), timeout=10)
    response.raise_for_status()
    return str(response.json()["flow_id"])


def is_poll(request: RecordedRequest) -> bool:
    """Return whether a request polls one flow run."""
    return request.method == "GET" and request.path.count("/") == 2 and request.path.startswith("/flows/")


def count_polls(emulator: Emulator) -> int:
    """Return the number of polls, whatever their responses."""
    return sum(map(is_poll, emulator.requests))


@contextmanager
def advance_on_poll(emulator: Emulator, steps: Sequence[float]) -> Iterator[None]:
    """Advance the emulator's clock by one of the steps before each poll but the first."""
    remaining = iter((0.0, *steps))

    def on_request(request: RecordedRequest) -> None:
        if is_poll(request):
            emulator.advance(next(remaining, 0.0))

    emulator.set_request_listener(on_request)
    yield
    emulator.set_request_listener(None)


def run_in_mode(mode: str, emulator: Emulator, steps: Sequence[float] = (), **arguments: Any) -> WaitResult:
    """Run one task that waits in this mode, at an emulator whose clock advances by `steps`.

    :param arguments: more arguments of the operator or sensor.
    """
    with DAG(f"modes_{re.sub(r'[^a-z]+', '_', mode)}", schedule=None) as dag:
        if mode in OPERATORS:
            OPERATORS[mode](task_id=TASK_ID, **{**FAST_POLLING, **arguments})
        else:
            flow_run_id = start_external_run(emulator)
            SENSORS[mode](task_id=TASK_ID, flow_run_id=flow_run_id, **{**FAST_POLLING, **arguments})
    with advance_on_poll(emulator, steps):
        result = run_dag(dag)
    restarts = mode == "sensor, reschedule" and not has("task state store")
    return WaitResult(result, next(iter(emulator.runs), ""), restarts)
