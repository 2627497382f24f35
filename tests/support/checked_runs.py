"""Tasks whose checks reject the outputs of the first flow runs, and what they leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_flows.checks import CheckedOutput
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.operators import RunFlowOperator
from tests.support.modes import FLOW

TOO_EARLY = "is of an early flow run"


def reject_first(folder: Path, count: int) -> Callable[[CheckedOutput], str | None]:
    """Return a check that rejects the outputs of the first flow runs with files below a folder.

    Each process and each try of a task comes to the same verdict about a run.
    """

    def is_late_enough(output: CheckedOutput) -> str | None:
        run_folders = sorted(
            (path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_ctime_ns
        )
        own = Path(urlparse(output.uri or "").path).parent
        early = [path.name for path in run_folders if any(path.iterdir())][:count]
        return TOO_EARLY if own.name in early else None

    return is_late_enough


def create_task(output_path: Path, **arguments: Any) -> RunFlowOperator:
    """Return the operator of a task that runs the flow once more if its outputs are rejected."""
    defaults: dict[str, Any] = {
        "flow": FLOW,
        "inputs": "A chair",
        "parameters": {"quality": "low"},
        "flows_conn_id": "generio_default",
        "poll_interval": 0.1,
        "max_poll_interval": 0.2,
        "deferrable": False,
        "output_path": str(output_path),
        "check_outputs": reject_first(output_path, 1),
        "on_rejected": "again",
    }
    return RunFlowOperator(task_id="t", **{**defaults, **arguments})


def run_deferred(create: Callable[[], RunFlowOperator], try_context: Any) -> dict[str, Any]:
    """Run one try of a deferrable task, each part with an operator of its own, as in another process."""
    method, event = "execute", ()
    while True:
        try:
            result: dict[str, Any] = getattr(create(), method)(try_context, *event)
        except TaskDeferred as deferral:
            method, event = deferral.method_name, (asyncio.run(get_event(deferral.trigger)),)
        else:
            return result


async def get_event(trigger: Any) -> dict[str, Any]:
    """Run a trigger to its one event, and return that."""
    (event,) = [event async for event in trigger.run()]
    payload: dict[str, Any] = json.loads(json.dumps(event.payload))
    return payload


def get_seeds(emulator: Emulator) -> list[Any]:
    """Return the seeds of the flow runs that were started, None where none was sent."""
    return [run.explicit_parameters.get("seed") for run in emulator.paid_runs]  # type: ignore[union-attr]


def get_run_ids(emulator: Emulator) -> list[str]:
    """Return the ids of the flow runs that were started, oldest first."""
    return [run.flow_run_id for run in emulator.paid_runs]
