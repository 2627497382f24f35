"""Tests of the tracking of a flow run in a task: the run's web address, and its XCom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.models.xcom import XComModel
from airflow.sdk import DAG
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.core.flow_run import FlowRun
from airflow_provider_flows.emulator import Emulator, Fault, RecordedRequest
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.worker.run_tracking import RUN_ID_KEY, get_run_url
from tests.support.airflow_run import run_dag
from tests.support.modes import FAST_POLLING, SENSORS, TASK_ID, is_poll, start_external_run
from tests.support.task_instances import Store, context
from tests.support.tries import BOTH_MODES, CHAIN_ARGUMENTS, CHAIR_ARGUMENTS, run_with_retries
from tests.support.versions import needs


class ThirdServiceHook(GenerioHook):
    """The hook of a third service with a console, or with an invalid URL."""

    def __init__(self, url_template: Any) -> None:
        super().__init__("generio_default")
        self._url_template = url_template

    def create_service(self, extra: Mapping[str, Any]) -> Any:
        """Return a service that has URLs of its runs."""
        service: Any = super().create_service(extra)
        template = self._url_template
        return type("Third", (type(service),), {"run_url": lambda _, key, flow: template.format(key, flow)})()


@pytest.mark.parametrize(
    ("url_template", "url"),
    [
        ("https://third.example/runs/{}?flow={}", "https://third.example/runs/r/1?flow=f"),
        ("javascript:alert('{}{}')", ""),
        ("/runs/{}", ""),  # a path in the API
        ("{}{}{}", ""),  # raises IndexError
        (None, ""),
    ],
)
@pytest.mark.usefixtures("flow_emulator")
def test_run_url_of_third_service(url_template: Any, url: str) -> None:
    """A service may return the URL of its console; an error or a URL that is not HTTP results in no link."""
    assert get_run_url(ThirdServiceHook(url_template), FlowRun("r/1", "third", "f")) == url


def test_service_without_pages_has_no_run_url(flow_emulator: Emulator) -> None:  # noqa: ARG001  # its connection
    """The address of a run at Generio's API is no page: a browser has no key."""
    assert get_run_url(GenerioHook("generio_default"), FlowRun("r1", "generio")) == ""


def test_failed_push_of_run_link_does_not_fail_the_task(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of Airflow's API server at the push of a service's own link does not end the task."""
    emulator.run_seconds = 0
    monkeypatch.setattr(Generio, "run_url", lambda *_: "https://generio.example/runs/r")
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1)
    # there is no supervisor to send it to
    assert operator.execute(context(Store()))["state"] == "completed"
    assert "The link to the flow run could not be pushed" in caplog.text


@contextmanager
def read_ids_at_polls(emulator: Emulator, dag_id: str) -> Iterator[list[list[Any]]]:
    """Yield a list to which each poll adds the ids that are in XCom before its response."""
    seen: list[list[Any]] = []

    def on_request(request: RecordedRequest) -> None:
        if is_poll(request):
            with create_session() as session:
                rows = session.scalars(select(XComModel).filter_by(dag_id=dag_id, key=RUN_ID_KEY))
                seen.append([XComModel.deserialize_value(row) for row in rows])

    emulator.set_request_listener(on_request)
    yield seen
    emulator.set_request_listener(None)


@needs("task state store")
@pytest.mark.emulator(run_seconds=2, abort="instant", retries=0)
@BOTH_MODES
def test_retry_pushes_the_id_of_the_resumed_run_before_the_wait(
    emulator: Emulator, *, deferrable: bool
) -> None:
    """A retry that resumes a run has its id in XCom while it waits, in a worker and in the triggerer."""
    emulator.add_fault(Fault("GET", "/flows/*", skip=1, status=402, times=3))
    dag_id = f"tracked_{deferrable}"
    with read_ids_at_polls(emulator, dag_id) as seen:
        task_result = run_with_retries(dag_id, **CHAIR_ARGUMENTS, deferrable=deferrable)
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "success", 1)
    assert [] in seen[1:]  # the second try looked its run up, after Airflow had emptied XCom
    assert seen[-1] == [next(iter(emulator.runs))]


@needs("task state store")
@pytest.mark.emulator(run_seconds=60, abort="instant", retries=0)
def test_retry_that_does_not_wait_pushes_the_id(emulator: Emulator) -> None:
    """A retry that resumes a run without waiting for it has its id in XCom."""
    emulator.add_fault(Fault("PATCH", "*", reset="after"))
    emulator.add_fault(Fault("GET", "/flows/*", status=402))
    task_result = run_with_retries("tracked_no_wait", **CHAIR_ARGUMENTS, wait_for_completion=False)
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "success", 1)
    assert task_result.result.xcoms["run"][RUN_ID_KEY] == next(iter(emulator.runs))


@needs("task state store")
@pytest.mark.emulator(run_seconds=0, retries=0)
def test_retry_with_saved_response_pushes_its_id(emulator: Emulator, tmp_path: Path) -> None:
    """A retry that uses a saved response has the generated id of its run in XCom."""
    emulator.add_fault(Fault("GET", "*.png", status=500))
    task_result = run_with_retries("tracked_saved", **CHAIN_ARGUMENTS, output_path=str(tmp_path))
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "success", 1)
    xcoms = task_result.result.xcoms["run"]
    assert xcoms[RUN_ID_KEY] == xcoms["return_value"]["flow_run_id"]


@pytest.mark.emulator(run_seconds=1)
@pytest.mark.parametrize("mode", SENSORS)
def test_sensor_pushes_the_id_before_the_wait(emulator: Emulator, mode: str) -> None:
    """The id is in XCom at each poll of a sensor, as it is for the operator."""
    flow_run_id = start_external_run(emulator)
    with DAG(f"tracked_{mode.replace(', ', '_')}", schedule=None) as dag:
        SENSORS[mode](task_id=TASK_ID, flow_run_id=flow_run_id, **FAST_POLLING)
    with read_ids_at_polls(emulator, dag.dag_id) as seen:
        assert run_dag(dag).state == "success"
    assert len(seen) > 1
    assert seen == [[flow_run_id]] * len(seen)


@pytest.mark.emulator(run_seconds=0, retries=0)
def test_failed_push_of_the_id_does_not_fail_the_task(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """An XCom backend that rejects the id does not end a task whose run is paid for."""
    try_context = context(Store())

    def push(key: str, _: Any) -> None:
        if key == RUN_ID_KEY:
            raise RuntimeError(key)

    try_context["ti"].xcom_push = push
    operator = RunFlowOperator(task_id="t", **CHAIN_ARGUMENTS)
    assert operator.execute(try_context)["state"] == "completed"
    assert emulator.started_count == 1
    assert "could not be pushed to XCom" in caplog.text
