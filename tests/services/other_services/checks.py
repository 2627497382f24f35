"""Checks that test_other_services.py runs with the package installed: both services in all modes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from airflow.sdk import DAG
from fastapi.testclient import TestClient

from airflow_provider_flows.exceptions import FlowInputError, FlowRunFailed, FlowServiceError
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor
from tests.support.airflow_run import run_dag
from tests.support.commands import CommandResult, flows_command
from tests.support.other_services_server import (
    BROKEN_MODEL,
    FILES,
    KEY,
    MODEL,
    PAGE_SIZE,
    SLOW_MODEL,
    OtherServices,
    run_other_services,
)
from tests.support.plugin_site import airflow_clients, save_connections
from tests.support.versions import needs

OFTEN = {"poll_interval": 0.05, "max_poll_interval": 0.1}
INPUTS = {"prompt": "a chair", "scale": "4", "tags": ["wood", "red"]}
ANY_SERVICE = pytest.mark.parametrize("conn_id", ["predictions", "queue"])


@pytest.fixture(autouse=True)
def services(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtherServices]:
    """Run both services, and name them in the connections `predictions` and `queue`."""
    with run_other_services() as services:
        for name in ("predictions", "queue"):
            value = {"conn_type": name, "host": services.url, "password": KEY}
            monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(value))
        monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "-1")
        yield services


@pytest.fixture
def flows(capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandResult]:
    """Run `airflow flows ...`."""
    return flows_command(capsys)


@ANY_SERVICE
def test_every_mode_runs_it_once_and_stores_its_files(
    services: OtherServices, tmp_path: Path, conn_id: str
) -> None:
    """Operator and sensor, waiting and deferred, start each run once and store the files behind its links."""
    files = {"output_path": str(tmp_path), "flows_conn_id": conn_id, **OFTEN}
    with DAG(f"modes_of_{conn_id}", schedule=None) as dag:
        arguments = {"flow": MODEL, "inputs": INPUTS}
        RunFlowOperator(task_id="blocking", **arguments, **files)
        RunFlowOperator(task_id="deferred", **arguments, deferrable=True, **files)
        RunFlowOperator(task_id="at_once", **arguments, durable=False, **files)
        started = RunFlowOperator(
            task_id="started", **arguments, wait_for_completion=False, flows_conn_id=conn_id
        )
        known = started.output["flow_run_id"]
        FlowRunSensor(task_id="sensed", flow_run_id=known, **files)
        FlowRunSensor(task_id="sensed_deferred", flow_run_id=known, deferrable=True, **files)
    result = run_dag(dag)
    assert result.state == "success", result.log
    assert len(services.jobs) == 4
    for task in ("blocking", "deferred", "at_once", "sensed", "sensed_deferred"):
        returned = result.xcoms[task]["return_value"]
        assert (returned["service"], returned["flow"], returned["state"]) == (conn_id, MODEL, "completed")
        paths = [Path(output["uri"].removeprefix("file://")) for output in returned["outputs"]]
        assert [path.read_bytes() for path in paths] == [content for _, content in FILES.values()], task
        assert [output["media_type"] for output in returned["outputs"]] == [
            kind for kind, _ in FILES.values()
        ]


@ANY_SERVICE
def test_a_lost_response_starts_no_second_run(services: OtherServices, conn_id: str) -> None:
    """If the response to the start is lost, the run is found by its key, or the start is an error."""
    services.lost_responses = 1
    hook = FlowsHook.get_hook(conn_id)
    if conn_id == "predictions":
        assert hook.start(MODEL, INPUTS).flow_run_id == "p00001"
        keys = [one.headers["idempotency-key"] for one in services.requests if one.method == "POST"]
        assert (len(keys), len(set(keys))) == (2, 1)
    else:
        with pytest.raises(FlowServiceError, match="503"):
            hook.start(MODEL, INPUTS)
    assert len(services.jobs) == 1


@ANY_SERVICE
def test_a_failed_run_fails_with_its_reason(conn_id: str) -> None:
    """A run that failed at the service fails its task, with the service's reason."""
    with DAG(f"failure_of_{conn_id}", schedule=None) as dag:
        RunFlowOperator(task_id="run", flow=BROKEN_MODEL, inputs=INPUTS, flows_conn_id=conn_id, **OFTEN)
    error = run_dag(dag).errors["run"]
    assert isinstance(error, FlowRunFailed)
    assert "The picture is too dark." in str(error)


@ANY_SERVICE
def test_a_run_is_aborted(services: OtherServices, conn_id: str) -> None:
    """A run is aborted in the service's own way, and then it is final."""
    hook = FlowsHook.get_hook(conn_id)
    flow_run_id = hook.start(SLOW_MODEL, INPUTS).flow_run_id
    if conn_id == "queue":
        assert hook.get_run(flow_run_id).raw_state == "IN_QUEUE, position 3"
    assert hook.abort(flow_run_id)
    assert hook.get_run(flow_run_id).state == "aborted"
    assert [job.state for job in services.jobs.values()] == ["canceled"]
    assert not hook.abort(flow_run_id)


@needs("commands of providers")
def test_a_list_ends_with_the_page_that_has_enough(
    services: OtherServices, flows: Callable[[str], CommandResult]
) -> None:
    """`flows runs` follows the cursors no further than needed; all runs, and those of a state, are found."""
    hook = FlowsHook.get_hook("predictions")
    ids = [hook.start(MODEL, {"prompt": str(number)}).flow_run_id for number in range(8)]
    hook.abort(ids[0])

    def list_runs(options: str) -> tuple[list[str], int]:
        before = len(services.requests)
        result = flows(f"runs --conn-id predictions -o json {options}")
        assert result.code == 0, result.err
        return [row["flow_run_id"] for row in result.json], len(services.requests) - before

    assert list_runs("--limit 2") == (ids[:-3:-1], 1)
    assert list_runs(f"--limit {PAGE_SIZE + 1}") == (ids[: -PAGE_SIZE - 2 : -1], 2)
    assert list_runs("--limit 0") == (ids[::-1], 3)
    assert list_runs("--state aborted --limit 1") == (ids[:1], 3)
    assert [run.flow_run_id for run in hook.list_runs()] == ids[::-1]
    error = flows("runs --conn-id queue")
    assert "The service queue cannot list flow runs" in error.err


def test_variables_have_types(services: OtherServices) -> None:
    """Variables are converted to their types; all that do not match are told, and optional ones may lack."""
    hook = FlowsHook.get_hook("predictions")
    hook.start(MODEL, {"prompt": 7 * "a", "scale": " 4 ", "fast": "True", "tags": ["a"], "image": None})
    assert services.jobs["p00001"].body == {
        "input": {"prompt": "aaaaaaa", "scale": 4, "fast": True, "tags": ["a"]}
    }
    with pytest.raises(FlowInputError) as caught:
        hook.start(MODEL, {"promt": "a", "scale": 9, "tags": "wood", "fast": 3})
    for part in (
        "variable 'promt' is not known (did you mean 'prompt'?)",
        "inputs['scale'] must be 1 or more and 8 or less, not 9",
        "inputs['tags'] must be of type array, not 'wood'",
        "inputs['fast'] must be of type boolean, not 3",
        "The flow takes prompt (string), scale (integer, 1 or more and 8 or less), image (string)",
    ):
        assert part in str(caught.value)
    assert len(services.jobs) == 1


@ANY_SERVICE
def test_a_file_may_be_in_a_variable(services: OtherServices, tmp_path: Path, conn_id: str) -> None:
    """A path, or a dict with `uri`, in a variable or its list is sent: a text as it is, else a data URI."""
    picture, text = tmp_path / "a.bin.obj", tmp_path / "a.txt"
    picture.write_bytes(b"# a mesh\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    text.write_text("a wooden chair")
    FlowsHook.get_hook(conn_id).start(
        MODEL, {"prompt": {"uri": f"file://{text}"}, "image": picture, "tags": [text, picture, "c"]}
    )
    body = services.jobs["p00001"].body
    sent = body.get("input", body)
    assert sent["prompt"] == sent["tags"][0] == "a wooden chair"
    assert sent["image"] == sent["tags"][1]
    assert sent["image"].startswith("data:model/obj;base64,")
    assert sent["tags"][2] == "c"


def test_a_link_to_a_foreign_host_is_not_followed(
    services: OtherServices, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A link to a host that is not the service's own is returned as it is, and nothing is sent there."""
    hook = FlowsHook.get_hook("predictions")
    run = hook.start(MODEL, INPUTS)
    services.url = services.url.replace("127.0.0.1", "localhost")
    with DAG("foreign_links", schedule=None) as dag:
        FlowRunSensor(
            task_id="wait",
            flow_run_id=run.flow_run_id,
            flows_conn_id="predictions",
            output_path=str(tmp_path),
            **OFTEN,
        )
    result = run_dag(dag)
    outputs = result.xcoms["wait"]["return_value"]["outputs"]
    assert [output["value"].startswith("http://localhost:") for output in outputs] == [True, True, True]
    assert not [one for one in services.requests if one.path.startswith("/files/")]
    assert not list(tmp_path.rglob("*.obj"))
    assert "picture_hosts" in result.log + caplog.text


@needs("commands of providers")
@ANY_SERVICE
def test_the_pages_show_its_runs(services: OtherServices, conn_id: str, airflow_database: None) -> None:  # noqa: ARG001  # a fixture requests another
    """The page of a run is found by its id, which may have slashes, and lists the outputs."""
    hook = FlowsHook.get_hook(conn_id)
    run = hook.wait(hook.start(MODEL, INPUTS).flow_run_id, 0.05, 0.1)
    with airflow_clients() as clients:
        save_connections({conn_id: {"conn_type": conn_id, "host": services.url, "password": KEY}})
        anna: TestClient = clients["anna"]
        page = anna.get(f"/flows/connection/{conn_id}/run/{quote(run.flow_run_id, safe='')}")
        assert (page.status_code, run.flow_run_id in page.text) == (200, True)
        assert "completed" in page.text
        listed = anna.get(f"/flows/connection/{conn_id}").text
        assert (run.flow_run_id in listed) is (conn_id == "predictions")
