"""Tests of the links on a task instance, as Airflow's server returns them: the run, and the output files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from airflow.models.dagrun import DagRun
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.sdk import DAG
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.emulator import Emulator, Plan, RecordedRequest
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.storage.paths import console_url
from airflow_provider_flows.worker.run_tracking import RUN_LINK_KEY
from tests.support.airflow_run import DagResult, run_dag
from tests.support.modes import FAST_POLLING, MODES, is_poll, run_in_mode
from tests.support.object_stores import attach_bucket_store
from tests.support.tries import CHAIN_ARGUMENTS, CHAIR_ARGUMENTS, RETRY_ARGUMENTS

AIRFLOW = "https://airflow.example/team"
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


def page_url(result: DagResult, task: str) -> str:
    """Return the address of the provider's page of a task instance."""
    with create_session() as session:
        run = session.scalar(select(DagRun).where(DagRun.run_id == result.run_id))
        assert run is not None
        dag_id = run.dag_id
    task_id, _, index = task.rstrip("]").partition("[")
    return f"{AIRFLOW}/flows/task/{dag_id}/{quote(result.run_id, safe='')}/{task_id}/{index or -1}"


def expected_links(result: DagResult, task: str) -> dict[str, str | None]:
    """Return the links of a task without files."""
    return {"Flow run": page_url(result, task), "Outputs": None}


@pytest.fixture(autouse=True)
def airflow_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set Airflow's address, as in a deployment below a path."""
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", f"{AIRFLOW}/")


@pytest.mark.parametrize("mode", MODES)
def test_run_link_exists_in_every_mode(emulator: Emulator, mode: str) -> None:
    """The link is the provider's own page of the run, in every mode; files at the service have no link."""
    waited = run_in_mode(mode, emulator)
    assert waited.state == "success"
    assert links(waited.result) == {"wait": expected_links(waited.result, "wait")}
    assert emulator.key not in json.dumps(waited.result.xcoms)


def read_link_at_first_poll(emulator: Emulator, dag: DAG) -> tuple[Any, Any, DagResult]:
    """Run a DAG of one task; return its link and the link's XCom at the first poll, and the result."""
    found: list[tuple[Any, Any]] = []

    def on_request(request: RecordedRequest) -> None:
        if is_poll(request) and not found:
            with create_session() as session:
                ti = session.scalar(select(TaskInstance).where(TaskInstance.dag_id == dag.dag_id))
                served = SerializedDagModel.get_dag(dag.dag_id, session=session)
                assert ti is not None
                assert served is not None
                link = served.get_task(ti.task_id).get_extra_links(ti, "Flow run")
                is_the_xcom = (XComModel.dag_id == dag.dag_id, XComModel.key == RUN_LINK_KEY)
                found.append((link, session.scalar(select(XComModel.value).where(*is_the_xcom))))

    emulator.set_request_listener(on_request)
    result = run_dag(dag)
    emulator.set_request_listener(None)
    return *found[0], result


class DerivedOperator(RunFlowOperator):
    """An operator of another package, for which Airflow does not ask the plugin."""


DerivedOperator.__module__ = "derived_flows"


@pytest.mark.usefixtures("object_storage_xcoms")
@pytest.mark.parametrize("operator", [RunFlowOperator, DerivedOperator])
def test_run_link_is_available_during_the_wait(emulator: Emulator, operator: type[RunFlowOperator]) -> None:
    """The link exists before the first poll, also if an XCom backend puts every value elsewhere."""
    with DAG(f"links_early_{operator.__name__}", schedule=None) as dag:
        operator(task_id="run", **CHAIR_ARGUMENTS, **FAST_POLLING)
    link, xcom, result = read_link_at_first_poll(emulator, dag)
    assert link == page_url(result, "run")
    assert xcom == (None if operator is RunFlowOperator else link)
    assert links(result)["run"] == expected_links(result, "run")


@pytest.mark.usefixtures("object_storage_xcoms")
def test_run_link_is_the_page_of_a_service_that_has_one(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service's own page of the run is the link, during the wait and after it."""
    monkeypatch.setattr(Generio, "run_url", lambda _, key, _flow: f"https://generio.example/runs/{key}")
    with DAG("links_console", schedule=None) as dag:
        RunFlowOperator(task_id="run", **CHAIR_ARGUMENTS, **FAST_POLLING)
    link, xcom, result = read_link_at_first_poll(emulator, dag)
    assert link == xcom == f"https://generio.example/runs/{next(iter(emulator.runs))}"
    assert links(result)["run"] == {"Flow run": link, "Outputs": None}


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
    assert len(emulator.runs) == 2
    assert links(result) == {task: expected_links(result, task) for task in result.states}


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
    assert links(result) == {task: expected_links(result, task) for task in ids}


@pytest.mark.usefixtures("emulator")
def test_outputs_link(tmp_path: Path) -> None:
    """One file links to its console page, several to their folder, and local files to the provider's page."""
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
        DerivedOperator(task_id="derived", **CHAIR_ARGUMENTS, **FAST_POLLING, output_path=str(tmp_path))
        RunFlowOperator(task_id="chain", **CHAIN_ARGUMENTS, output_path=str(tmp_path))
    result = run_dag(dag)
    assert result.state == "success", result.log
    found = links(result)
    console = "https://console.cloud.google.com/storage/browser"
    (one,) = result.xcoms["one"]["return_value"]["outputs"]
    assert (
        found["one"]["Outputs"]
        == f"{console}/_details/{one['uri'].removeprefix('gs://').replace(' ', '%20')}"
    )
    folder = result.xcoms["two"]["return_value"]["outputs"][0]["uri"].removeprefix("gs://").rpartition("/")[0]
    assert found["two"]["Outputs"] == f"{console}/{folder}"
    assert [found["local"], found["derived"]] == [
        {"Flow run": page_url(result, task), "Outputs": page_url(result, task)}
        for task in ("local", "derived")
    ]
    assert found["chain"]["Flow run"] == page_url(result, "chain")


def test_task_without_run_has_no_links(emulator: Emulator) -> None:
    """A task that failed before it had a run has empty links, and logs no error about them."""
    with DAG("links_none", schedule=None) as dag:
        RunFlowOperator(task_id="run", **{**CHAIR_ARGUMENTS, "inputs": 42})
    result = run_dag(dag)
    assert links(result) == {"run": {"Flow run": None, "Outputs": None}}
    assert "Failed to push an xcom" not in result.log
    assert result.xcoms == {}
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
