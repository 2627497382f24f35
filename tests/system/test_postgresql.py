"""Tests in a real Airflow whose metadata database is PostgreSQL, with texts that no database stores.

All DAG runs start together, because most of the time is waiting; each test then checks its own.
"""

from __future__ import annotations

import gzip
import json
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest

from airflow_provider_flows.emulator import Emulator, Fault
from tests.support.postgresql import PostgreSQL
from tests.support.tries import CHAIN_ARGUMENTS
from tools.airflow_stack import Stack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

MAX_WAIT_SECONDS = 150.0
FAILED_RUN = '{"state": "failed", "error": "%s"}'
# The services' responses about a run in progress, and what the log has of them. JSON has escapes, because
# the texts cannot be encoded.
RESPONSES: dict[str, tuple[Fault, str]] = {
    "nul": (Fault(body=(FAILED_RUN % r"boom \u0000 end").encode()), "service: boom \ufffd end."),
    "surrogate": (Fault(body=(FAILED_RUN % r"boom \ud83d").encode()), "service: boom \ufffd."),
    "utf_16": (Fault(status=403, body="No entry".encode("utf-16")), "service: No entry."),
    "gzip": (Fault(status=403, body=gzip.compress(b"No entry")), "HTTP 403"),
}
OUTPUT = rb'[{"name": "text", "type": "output", "output": "x \ud83d and \u0000"}]'
CHAIN = CHAIN_ARGUMENTS | {"flows_conn_id": "chain"}
DAGS = f"""
from datetime import timedelta
from airflow.sdk import DAG
from airflow_provider_flows.operators import RunFlowOperator

for name in {(*RESPONSES, "good")}:
    with DAG(name, schedule=None) as dag:
        RunFlowOperator(
            task_id="run", flow="model_generate_fromprompt", inputs="A chair", flows_conn_id=name,
            parameters={{"quality": "low"}}, deferrable=True, poll_interval=1, max_poll_interval=1,
        )
    globals()[name] = dag
with DAG("chain", schedule=None) as chain:
    RunFlowOperator(task_id="run", retries=2, retry_delay=timedelta(seconds=1), **{CHAIN})
"""


@dataclass
class PostgreSQLRuns:
    """The Airflow, the service of each DAG, and the DAG runs."""

    airflow: Stack
    emulators: dict[str, Emulator]
    runs: dict[str, str]

    def wait_for_end(self, dag_id: str) -> str:
        """Wait for the end of a DAG's run, and return its state."""
        return self.airflow.wait(dag_id, self.runs[dag_id], MAX_WAIT_SECONDS)

    def log(self, dag_id: str) -> str:
        """Return the log of the DAG's task, as in the UI."""
        return self.airflow.log(dag_id, self.runs[dag_id], "run")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, postgresql: PostgreSQL) -> Iterator[PostgreSQLRuns]:
    """Start Airflow and a service for each DAG, and all DAG runs."""
    home = tmp_path_factory.mktemp("postgresql")
    dags = home / "dags"
    dags.mkdir()
    (dags / "texts.py").write_text(textwrap.dedent(DAGS))
    with ExitStack() as exits:
        names = (*RESPONSES, "good", "chain")
        emulators = {name: exits.enter_context(Emulator(run_seconds=6)) for name in names}
        for name, (fault, _) in RESPONSES.items():
            # the worker's own poll is fine, so that the triggerer gets the text
            emulators[name].add_fault(replace(fault, method="GET", path="/flows/*", skip=1, times=None))
        emulators["chain"].add_fault(Fault("POST", "/api/flows/run/*", body=OUTPUT))
        connections = {
            f"AIRFLOW_CONN_{name.upper()}": emulator.connections[
                f"AIRFLOW_CONN_{'PROMPTCHAINER' if name == 'chain' else 'GENERIO'}_DEFAULT"
            ]
            for name, emulator in emulators.items()
        }
        database = postgresql.create_database()
        airflow = Stack(home, dags, environment=connections, tuned=True, database_url=database)
        exits.enter_context(airflow)
        yield PostgreSQLRuns(airflow, emulators, {name: airflow.trigger(name) for name in names})


@pytest.mark.parametrize("dag_id", RESPONSES)
def test_deferred_task_fails_with_a_readable_text(stack: PostgreSQLRuns, dag_id: str) -> None:
    """A text that neither PostgreSQL nor an event can hold is reported as far as it is readable."""
    assert stack.wait_for_end(dag_id) == "failed"
    assert RESPONSES[dag_id][1] in "".join(
        json.dumps(json.loads(line), ensure_ascii=False) for line in stack.log(dag_id).splitlines()
    )


def test_triggerer_survives(stack: PostgreSQLRuns) -> None:
    """The triggerer that got these texts is alive, and a task that was deferred with the others succeeds."""
    for dag_id in (*RESPONSES, "good"):
        stack.wait_for_end(dag_id)
    assert stack.airflow.run_state("good", stack.runs["good"]) == "success", stack.log("good")
    stack.airflow.check()


def test_paid_output_succeeds_at_the_first_try(stack: PostgreSQLRuns) -> None:
    """A text output that no database stores is paid once, and returned as far as it is readable."""
    assert stack.wait_for_end("chain") == "success", stack.log("chain")
    (instance,) = stack.airflow.task_instances("chain", stack.runs["chain"])
    assert (stack.emulators["chain"].started_count, instance["try_number"]) == (1, 1)
    outputs = stack.airflow.xcom("chain", stack.runs["chain"], "run")["outputs"]
    assert "x \ufffd and \ufffd" in [output.get("value") for output in outputs]
