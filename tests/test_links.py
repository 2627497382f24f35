"""Tests of the links on a task instance, as Airflow's server returns them: the run, and the output files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.sdk import DAG
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.links import OUTPUTS_LINK_KEY
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor
from airflow_provider_flows.storage.paths import console_url
from airflow_provider_flows.worker.run_tracking import RUN_LINK_KEY
from tests.support.airflow_run import DagResult, run_dag
from tests.support.modes import FAST_POLLING, MODES, count_polls, run_in_mode
from tests.support.object_stores import attach_bucket_store
from tests.support.tries import CHAIN_ARGUMENTS, CHAIR_ARGUMENTS, RETRY_ARGUMENTS

Links = dict[str, dict[str, str | None]]

pytestmark = pytest.mark.emulator(run_seconds=0.3)


def links(result: DagResult) -> Links:
    """Return each task instance's links as Airflow's API does, from the serialized DAG."""
    found: Links = {}
    with create_session() as session:
        instances = list(session.scalars(select(TaskInstance).where(TaskInstance.run_id == result.run_id)))
        served = SerializedDagModel.get_dag(instances[0].dag_id, session=session)
        assert served is not None
        for ti in instances:
            task = served.get_task(ti.task_id)
            name = ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]"
            found[name] = {link: task.get_extra_links(ti, link) or None for link in task.extra_links}
    return found


def expected_links(emulator: Emulator, flow_run_id: str) -> dict[str, str | None]:
    """Return the links of a task whose files have none."""
    return {"Flow run": f"{emulator.url}/flows/{flow_run_id}", "Outputs": None}


@pytest.mark.parametrize("mode", MODES)
def test_run_link_exists_in_every_mode(emulator: Emulator, mode: str) -> None:
    """The link is the run's URL at the API, in every mode; files at the service have no link."""
    waited = run_in_mode(mode, emulator)
    assert waited.state == "success"
    assert links(waited.result) == {"wait": expected_links(emulator, waited.flow_run_id)}
    assert emulator.key not in json.dumps(waited.result.xcoms)


def test_run_link_is_available_during_the_wait(emulator: Emulator) -> None:
    """The link is in XCom before the first poll has returned."""
    emulator.add_fault(Fault(method="GET", path="/flows/*", delay=0.5))
    found: list[Any] = []

    def read_link() -> None:
        while not count_polls(emulator):
            time.sleep(0.01)
        with create_session() as session:
            is_the_link = (XComModel.dag_id == "links_early", XComModel.key == RUN_LINK_KEY)
            found.extend(
                XComModel.deserialize_value(row)
                for row in session.scalars(select(XComModel).where(*is_the_link))
            )

    thread = Thread(target=read_link)
    thread.start()
    with DAG("links_early", schedule=None) as dag:
        RunFlowOperator(task_id="run", **CHAIR_ARGUMENTS, **FAST_POLLING)
    run_dag(dag)
    thread.join()
    assert found == [f"{emulator.url}/flows/{next(iter(emulator.runs))}"]


@pytest.mark.parametrize("deferrable", [False, True])
def test_run_link_exists_after_failure_and_timeout(emulator: Emulator, *, deferrable: bool) -> None:
    """A task whose run failed, or whose deadline passed, has a link to the run."""
    emulator.add_plan(Plan(outcome="failed"))
    emulator.add_plan(Plan(run_seconds=60))
    with DAG(
        f"links_failed_{deferrable}", schedule=None, default_args={"deferrable": deferrable, **FAST_POLLING}
    ) as dag:
        failed = RunFlowOperator(task_id="failed", **CHAIR_ARGUMENTS)
        late = RunFlowOperator(
            task_id="late", **CHAIR_ARGUMENTS, timeout=0.2, abort_on_kill=False, trigger_rule="all_done"
        )
        waited = FlowRunSensor(
            task_id="waited",
            flow_run_id=late.output["flow_run_id"],
            timeout=0.1,
            mode="poke",
            trigger_rule="all_done",
        )
        failed >> late >> waited
    result = run_dag(dag)
    assert result.states == {"failed": "failed", "late": "failed", "waited": "failed"}
    first, second = emulator.runs
    assert links(result) == {
        "failed": expected_links(emulator, first),
        "late": expected_links(emulator, second),
        "waited": expected_links(emulator, second),
    }


def test_each_try_and_mapped_task_has_its_own_links(emulator: Emulator) -> None:
    """A retry links to its own run, each mapped task to its own, and a task that does not wait has a link."""
    emulator.add_plan(Plan(outcome="failed"))
    with DAG("links_each", schedule=None, default_args=RETRY_ARGUMENTS) as dag:
        retried = RunFlowOperator(task_id="retried", **CHAIR_ARGUMENTS)
        several = {name: value for name, value in CHAIR_ARGUMENTS.items() if name != "inputs"}
        mapped = RunFlowOperator.partial(task_id="mapped", deferrable=True, **several).expand(
            inputs=["A chair", "A table"]
        )
        retried >> mapped >> RunFlowOperator(task_id="started", wait_for_completion=False, **CHAIR_ARGUMENTS)
    result = run_dag(dag)
    assert result.state == "success", result.log
    assert len(emulator.runs) == 5
    tasks = ["retried", "mapped[0]", "mapped[1]", "started"]
    ids = {task: result.xcoms[task]["return_value"]["flow_run_id"] for task in tasks}
    assert len({*ids.values()} & emulator.runs.keys()) == 4
    assert links(result) == {task: expected_links(emulator, found) for task, found in ids.items()}


@pytest.mark.usefixtures("emulator")
def test_outputs_link_exists_if_storage_has_a_console(tmp_path: Path) -> None:
    """One file links to its page, several to their folder; local files have no link."""
    attach_bucket_store()
    with DAG("links_files", schedule=None) as dag:
        RunFlowOperator(
            task_id="one",
            **CHAIR_ARGUMENTS,
            **FAST_POLLING,
            output_path="gs://bucket/my models",
            deferrable=True,
        )
        RunFlowOperator(
            task_id="two",
            **{**CHAIR_ARGUMENTS, "inputs": ["A chair", "A table"]},
            **FAST_POLLING,
            output_path="gs://bucket/models",
        )
        RunFlowOperator(task_id="local", **CHAIR_ARGUMENTS, **FAST_POLLING, output_path=str(tmp_path))
        RunFlowOperator(task_id="chain", **CHAIN_ARGUMENTS, output_path=str(tmp_path))
    result = run_dag(dag)
    assert result.state == "success", result.log
    found = links(result)
    console = "https://console.cloud.google.com/storage/browser"
    (one,) = result.xcoms["one"]["outputs"]
    assert (
        found["one"]["Outputs"]
        == f"{console}/_details/{one['uri'].removeprefix('gs://').replace(' ', '%20')}"
    )
    folder = result.xcoms["two"]["outputs"][0]["uri"].removeprefix("gs://").rpartition("/")[0]
    assert found["two"]["Outputs"] == f"{console}/{folder}"
    assert found["local"]["Outputs"] is None
    assert found["chain"] == {"Flow run": None, "Outputs": None}


def test_task_without_run_has_no_links(emulator: Emulator) -> None:
    """A task that failed before it had a run has empty links, and logs no error about them."""
    with DAG("links_none", schedule=None) as dag:
        RunFlowOperator(task_id="run", **{**CHAIR_ARGUMENTS, "inputs": 42})
    result = run_dag(dag)
    assert links(result) == {"run": {"Flow run": None, "Outputs": None}}
    assert "Failed to push an xcom" not in result.log
    assert result.xcoms["run"] == {RUN_LINK_KEY: "", OUTPUTS_LINK_KEY: ""}
    assert emulator.runs == {}


AMAZON = "https://console.aws.amazon.com/s3"
CONSOLE_URLS: list[tuple[list[str], str | None, str | None]] = [
    (["s3://b/f/a b#1.glb"], None, f"{AMAZON}/object/b?prefix=f/a%20b%231.glb"),
    (
        ["s3://conn@b/f/a.glb", "s3a://b/f/c.glb"],
        "https://s3.eu-central-1.amazonaws.com",
        f"{AMAZON}/buckets/b?prefix=f/",
    ),
    (
        ["s3://b/a.glb"],
        "https://s3.cn-north-1.amazonaws.com.cn",
        "https://console.amazonaws.cn/s3/object/b?prefix=a.glb",
    ),
    (
        ["s3://b/a.glb"],
        "https://s3.us-gov-west-1.amazonaws.com",
        "https://console.amazonaws-us-gov.com/s3/object/b?prefix=a.glb",
    ),
    (["s3://b/a.glb"], "https://minio.example:9000", None),
    (["s3://b/a.glb"], "https://amazonaws.com.example", None),
    (["https://key:secret@files.example/a%20b.glb?sig=secret#x"], None, "https://files.example/a%20b.glb"),
    (["https://files.example/a.glb", "https://files.example/b.glb"], None, None),
    (["file:///tmp/a.glb"], None, None),
    (["abfs://c@account.dfs.core.windows.net/a.glb"], None, None),
    (["s3://b/a.glb", "gs://b/a.glb"], None, None),
    (["javascript:alert(1)"], None, None),
    ([], None, None),
]


@pytest.mark.parametrize(("uris", "endpoint", "address"), CONSOLE_URLS)
def test_console_url(uris: list[str], endpoint: str | None, address: str | None) -> None:
    """The console's URL has no credentials, and is None for a storage without a console."""
    assert console_url(uris, endpoint) == address
