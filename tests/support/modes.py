"""The five ways of waiting for a flow run, each as one task of a real DAG run, and what it told, made comparable.

It asserts nothing; the tests that use it do. The emulator's clock is moved on by the looks themselves, so that each way of
waiting, however often it looks, sees the very same run.
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
OFTEN = {"poll_interval": 0.1, "max_poll_interval": 0.2}
TASK = "wait"
ASIDE = "This Airflow "  # how each line begins that says what an older Airflow lacks

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
class Story:
    """What came of one wait."""

    result: DagResult
    flow_run_id: str
    anew: bool = False
    """Whether each look began anew: then it tells again what the look before has told."""

    @property
    def state(self) -> str | None:
        """The task's state."""
        return self.result.states[TASK]

    @property
    def error(self) -> BaseException | None:
        """The exception that ended the task."""
        return self.result.errors.get(TASK)

    @property
    def returned(self) -> dict[str, Any] | None:
        """What the task returned."""
        return self.result.xcoms.get(TASK, {}).get("return_value")

    @property
    def lines(self) -> list[str]:
        """What the package itself logged, in order, without its ids and numbers that differ from run to run."""
        told = [self.plain(line) for line in own_lines(self.result.log)]
        return list(dict.fromkeys(told)) if self.anew else told

    def plain(self, text: str) -> str:
        """Give a text without what differs from run to run."""
        text = re.sub(r"\S*\b[0-9a-f]{24}\b\S*", lambda found: re.sub(r"[0-9a-f]{24}", "ID", found[0]), text)
        text = re.sub(r"127\.0\.0\.1:\d+", "HOST", text)
        text = re.sub(
            r"at \d+% after \d+ s; expected end: \d\d:\d\d:\d\d UTC", "at N% after N s; expected end: T", text
        )
        return re.sub(r"\(\d+ bytes\)", "(N bytes)", text)


def own_lines(log: str) -> list[str]:
    """Pick what this package's code logged out of a DAG run's log, without time and place, and without `asides`."""
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
        and not row[2].startswith(ASIDE)
    ]


def asides(log: str) -> list[str]:
    """Pick from a DAG run's log, in order, what this Airflow lacks, as far as this package says so."""
    return re.findall(rf"{ASIDE}(.*?) \(3\.\d and later", log)


def bearer(emulator: Emulator) -> dict[str, str]:
    """Give the headers for whoever talks to the emulator's Generio without this package."""
    return {"Authorization": f"Bearer {emulator.key}"}


def start_elsewhere(emulator: Emulator) -> str:
    """Start a flow run as another system would, and give its id."""
    body = {"template": FLOW, "inputs": [{"data": PROMPT}], "parameters": PARAMETERS}
    answer = requests.post(f"{emulator.url}/flows", json=body, headers=bearer(emulator), timeout=10)
    answer.raise_for_status()
    return str(answer.json()["flow_id"])


def is_look(asked: RecordedRequest) -> bool:
    """Tell whether a request is a look at one flow run."""
    return asked.method == "GET" and asked.path.count("/") == 2 and asked.path.startswith("/flows/")


def looks(emulator: Emulator) -> int:
    """Count the looks at flow runs, in whatever way they were answered."""
    return sum(map(is_look, emulator.requests))


@contextmanager
def moving_on(emulator: Emulator, steps: Sequence[float]) -> Iterator[None]:
    """Push the emulator's clock by one of the steps before each look but the first, so that the looks make the run go on."""
    left = iter((0.0, *steps))

    def push(asked: RecordedRequest) -> None:
        if is_look(asked):
            emulator.advance(next(left, 0.0))

    emulator.on_request(push)
    yield
    emulator.on_request(None)


def wait_in(mode: str, emulator: Emulator, steps: Sequence[float] = (), **arguments: Any) -> Story:
    """Run one task that waits in this mode, at an emulator whose clock goes on by `steps`, and tell what came of it.

    :param arguments: more arguments of the operator or sensor.
    """
    with DAG(f"modes_{re.sub(r'[^a-z]+', '_', mode)}", schedule=None) as dag:
        if mode in OPERATORS:
            OPERATORS[mode](task_id=TASK, **{**OFTEN, **arguments})
        else:
            flow_run_id = start_elsewhere(emulator)
            SENSORS[mode](task_id=TASK, flow_run_id=flow_run_id, **{**OFTEN, **arguments})
    with moving_on(emulator, steps):
        result = run_dag(dag)
    anew = mode == "sensor, reschedule" and not has("task state store")
    return Story(result, next(iter(emulator.runs), ""), anew)
