"""Checks that test_third_service.py runs with the package installed: its flows in all modes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import airflow
import pytest
from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
from airflow.models.connection import Connection
from airflow.providers_manager import ProvidersManager
from airflow.sdk import DAG, task
from brewery_flows.service import Brewery, BreweryHook, parse_brew
from packaging.version import Version

from airflow_provider_flows.cli.parser import Exit
from airflow_provider_flows.core.start_or_resume import RunRecord, resume, start
from airflow_provider_flows.exceptions import (
    FlowInputError,
    FlowNotFound,
    FlowRunFailed,
    FlowServiceError,
)
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor
from airflow_provider_flows.services import (
    Conversation,
    FlowRun,
    FlowState,
    Inputs,
    Request,
    Resend,
    Service,
    request_json,
)
from tests.support.airflow_run import DagResult, run_dag
from tests.support.asset_watchers import run_watcher
from tests.support.brewery_server import FILES, KEY, RECIPES, TOAST_TEXT, Brewhouse, run_brewery
from tests.support.commands import CommandResult, flows_command
from tests.support.task_instances import Store, context
from tests.support.triggers import collect_errors, error_text, run_trigger, wait_for_condition
from tests.support.without_openlineage import is_hidden

OFTEN = {"poll_interval": 0.05, "max_poll_interval": 0.1}
STOUT: dict[str, Any] = {"flow": "stout", "inputs": ["Fuggle", "Golding"], "parameters": {"strength": 4}}
CONTENTS = [content for _, content in FILES.values()]
KINDS = [(name, kind) for name, (kind, _) in FILES.items()]
CONSOLE = "https://pub.example"
AIRFLOW = Version(airflow.__version__)
WITH_FORM_AND_COMMANDS = pytest.mark.skipif(
    Version("3.2") > AIRFLOW, reason="Airflow 3.2 shows fields and has commands"
)
WITH_A_STORE = pytest.mark.skipif(
    Version("3.3") > AIRFLOW, reason="before Airflow 3.3 a retry has no saved state"
)


@pytest.fixture(autouse=True)
def brewery(monkeypatch: pytest.MonkeyPatch) -> Iterator[Brewhouse]:
    """Run a brewery, and name it in the connections `pub` and `flows_default`."""
    with run_brewery() as (brewery, url):
        value = {
            "conn_type": "brewery",
            "host": url,
            "password": KEY,
            "extra": {"console": CONSOLE, "retries": 0},
        }
        for conn_id in ("PUB", "FLOWS_DEFAULT"):
            monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id}", json.dumps(value))
        monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "-1")
        yield brewery


@pytest.fixture
def flows(capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandResult]:
    """Run `airflow flows ... --conn-id pub`."""
    run = flows_command(capsys)
    return lambda line: run(f"{line} --conn-id pub")


@WITH_FORM_AND_COMMANDS
@pytest.mark.filterwarnings(
    "ignore:ProvidersManager.hooks is deprecated"
)  # Airflow's own web server goes that way
def test_airflow_shows_its_connection_form_and_tests_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form comes from the package's metadata, and the Test button sends a request to the brewery."""
    (form,) = [meta for meta in HookMetaService.hook_meta_data() if meta.connection_type == "brewery"]
    assert form.hook_class_name == "brewery_flows.service.BreweryHook"
    assert form.standard_fields is not None
    assert form.standard_fields.password is not None
    assert form.standard_fields.password.title == "Brew token"
    assert form.extra_fields is not None
    assert set(form.extra_fields) == set(BreweryHook.fields) > {"console", "retries"}

    connection = Connection(conn_id="tested", **json.loads(os.environ["AIRFLOW_CONN_PUB"]))
    monkeypatch.setenv("AIRFLOW_CONN_TESTED", connection.get_uri())
    assert connection.test_connection() == (True, "The brewery accepted the API key of Fuggle.")
    connection.password = "another"
    monkeypatch.setenv("AIRFLOW_CONN_TESTED", connection.get_uri())
    done, value = connection.test_connection()
    assert not done
    assert "does not accept the API key" in value


def create_dag(tmp_path: Path) -> DAG:
    """Return a DAG in which every kind of task runs a brew."""
    with DAG("brewed", schedule=None) as dag:
        files = {"output_path": str(tmp_path), "flows_conn_id": "pub"}
        RunFlowOperator(task_id="blocking", **STOUT, additional={"order": 7}, **files, **OFTEN)
        RunFlowOperator(task_id="deferred", **STOUT, deferrable=True, **files, **OFTEN)
        RunFlowOperator(task_id="at_once", **STOUT, durable=False, flows_conn_id="pub", **OFTEN)
        started = RunFlowOperator(task_id="started", **STOUT, wait_for_completion=False, flows_conn_id="pub")
        known = started.output["flow_run_id"]
        FlowRunSensor(task_id="sensed", flow_run_id=known, **files, **OFTEN)
        FlowRunSensor(
            task_id="sensed_deferred", flow_run_id=known, deferrable=True, flows_conn_id="pub", **OFTEN
        )

        @task.flow(flow="stout", parameters={"strength": 1}, flows_conn_id="pub", **OFTEN)
        def decorated() -> list[str]:
            return ["Cascade"]

        @task
        def toast(outputs: list[dict[str, Any]]) -> str:
            return next(output["value"] for output in outputs if output["name"] == "toast")

        toast(decorated()["outputs"])
    return dag


def test_every_operator_runs_its_flows(brewery: Brewhouse, tmp_path: Path) -> None:
    """Operator (three ways), sensor (two) and `@task.flow` run brews and return their outputs."""
    result = run_dag(create_dag(tmp_path))
    assert result.state == "success", result.log
    assert brewery.paid_count == len(brewery.brews) == 5
    assert {brew.stage for brew in brewery.brews.values()} == {"done"}

    for name in ("blocking", "deferred", "sensed"):
        returned = result.xcoms[name]["return_value"]
        assert (returned["service"], returned["flow"], returned["state"]) == ("brewery", "stout", "completed")
        assert int(returned["flow_run_id"]) in brewery.brews
        written = {output["name"]: output for output in returned["outputs"] if "uri" in output}
        assert {name: output["media_type"] for name, output in written.items()} == {
            name: kind for name, (kind, _) in FILES.items()
        }
        assert [
            Path(output["uri"].removeprefix("file://")).read_bytes() for output in written.values()
        ] == CONTENTS
        assert [output["value"] for output in returned["outputs"] if "value" in output] == [
            f"{TOAST_TEXT} Fuggle and Golding"
        ]
        assert result.xcoms[name]["flow_run_link"] == f"{CONSOLE}/brews/{returned['flow_run_id']}"
    assert result.xcoms["toast"]["return_value"] == f"{TOAST_TEXT} Cascade"
    assert brewery.brews[int(result.xcoms["blocking"]["flow_run_id"])].note["order"] == 7


def test_tasks_run_without_openlineage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the openlineage provider and its library, tasks run and import nothing of either."""
    monkeypatch.delenv("AIRFLOW__OPENLINEAGE__DISABLED")  # not disabled either
    with DAG("brewed_without_lineage", schedule=None) as dag:
        RunFlowOperator(
            task_id="brew",
            flow="stout",
            inputs="Saaz",
            parameters={"strength": 1},
            flows_conn_id="pub",
            **OFTEN,
        )
    result = run_dag(dag)
    assert result.state == "success", result.log
    assert result.xcoms["brew"]["flow_run_link"]
    assert not [name for name in ProvidersManager().providers if "openlineage" in name]
    assert not [name for name in sys.modules if is_hidden(name)]


def run_failing_task(**arguments: Any) -> DagResult:
    """Run one operator that fails."""
    with DAG("not_brewed", schedule=None) as dag:
        RunFlowOperator(task_id="brew", flows_conn_id="pub", **OFTEN, **arguments)
    return run_dag(dag)


@pytest.mark.parametrize("deferrable", [False, True])
def test_failed_brew_fails_its_task(deferrable: bool) -> None:
    """A run that fails in the service's own state fails the task in every mode, with the service's reason."""
    error = run_failing_task(flow="sour", inputs="Saaz", deferrable=deferrable).errors["brew"]
    assert isinstance(error, FlowRunFailed)
    assert "Reason given by the service: Wild yeast." in str(error)


def test_arguments_are_validated_before_the_start(brewery: Brewhouse) -> None:
    """Arguments that do not match the recipe or the service are rejected, and no run is created."""
    error = run_failing_task(flow="stout", inputs="Saaz", parameters={"strenght": 12}).errors["brew"]
    assert isinstance(error, FlowInputError)
    assert "parameter 'strenght' is not known (did you mean 'strength'?)" in str(error)
    error = run_failing_task(flow="stuot", inputs="Saaz").errors["brew"]
    assert "brewery has no flow 'stuot' (did you mean 'stout'" in str(error)
    error = run_failing_task(flow="sour", inputs={"hop": "Saaz"}).errors["brew"]
    assert "inputs must be a list of the names of hops" in str(error)
    assert not brewery.brews


def start_brew(hook: FlowsHook) -> str:
    """Start a brew as another system would, and return its number."""
    return hook.start("stout", ["Saaz"], {"strength": 1}).flow_run_id


async def test_triggers_wait_for_its_runs(brewery: Brewhouse) -> None:
    """A trigger waits for a run, an asset watcher reports it, and an unknown run is an error."""
    hook = await FlowsHook.aget_hook("pub")
    async with run_watcher(flows_conn_id="pub", flow="stout") as watcher:
        assert await wait_for_condition(
            lambda: any(seen.path == "/v2/brews" for seen in brewery.requests), max_seconds=30
        )
        number = await asyncio.to_thread(start_brew, hook)
        run = await run_trigger(number, conn_id="pub")
        assert (run.state, run.raw_state, run.service) == (FlowState.COMPLETED, "done", "brewery")
        assert await wait_for_condition(lambda: watcher.ids == [number], max_seconds=30)
    (event,) = watcher.events
    assert (event["service"], event["flow"], event["state"]) == ("brewery", "stout", "completed")
    assert error_text((await collect_errors(["4711"], conn_id="pub"))[0], FlowNotFound)


@WITH_FORM_AND_COMMANDS
def test_the_command_line_supports_it(
    brewery: Brewhouse, flows: Callable[[str], CommandResult], tmp_path: Path
) -> None:
    """Every command supports the service with `--conn-id` alone."""
    assert [row["flow"] for row in flows("list -o json").json] == [*RECIPES]
    assert flows("describe stout -o json").json["parameters"]["strength"]["maximum"] == 9
    missing = flows("describe ale -o json")
    assert (missing.code, "brewery has no flow 'ale'" in missing.err) == (Exit.NOT_FOUND, True)

    run = flows(f"run stout -i Fuggle -p strength=3 --poll-interval 0.05 --output-path {tmp_path} -o json")
    assert run.code == 0, run.err
    number, outputs = run.json["flow_run_id"], run.json["outputs"]
    assert [
        Path(output["uri"].removeprefix("file://")).read_bytes() for output in outputs if "uri" in output
    ] == CONTENTS
    assert flows(f"get {number} -o json").json["state"] == "completed"
    assert flows(f"watch {number} -o json").json["service"] == "brewery"
    assert [row["name"] for row in flows(f"outputs {number} -o json").json] == [*FILES, "toast"]
    wanted = flows(f"download {number} --asset beer.bin --output-path {tmp_path / 'again'} -o json")
    assert [row["size"] for row in wanted.json] == [len(CONTENTS[0])]

    other = flows("run lager -i Saaz --no-wait -o json").json["flow_run_id"]
    assert flows(f"abort {other} -o json").json["state"] == "aborted"
    assert [row["flow_run_id"] for row in flows("runs --state aborted -o json").json] == [other]
    assert flows(f"delete {other} --yes -o json").json["deleted"] is True
    assert [*brewery.brews] == [int(number)]


class OneRequestBrewery(Brewery):
    """The same service with one request that creates and starts a brew, and without abort."""

    staged_start = False
    abort = Service.abort

    def start(
        self,
        flow: str,
        inputs: Inputs,
        parameters: Any,
        additional: Any,
        *,
        before_start: Callable[[], None] = lambda: None,
        expected_outputs: Collection[str] | None = None,  # noqa: ARG002  # a brew takes a while
    ) -> Conversation[FlowRun]:
        """POST /v2/brews with the hops."""
        hops = [item.data for item in self.to_flow_inputs(inputs)]
        body = {"recipe": flow, "knobs": parameters or {}, "note": additional, "hops": hops}
        before_start()
        return (
            yield from request_json(
                Request("POST", "/v2/brews", json=body, resend=Resend.IF_NEVER_ARRIVED), parse_brew
            )
        )


class Complete(Brewery):
    """The same service with a brew that comes with its barrels, so that nothing lists them."""

    list_outputs = Service.list_outputs

    def get_run(self, flow_run_id: str) -> Conversation[FlowRun]:
        """GET the brew, and its barrels when it is done."""
        brew = yield from super().get_run(flow_run_id)
        if not brew.is_completed:
            return brew
        barrels = yield from Brewery.list_outputs(self, flow_run_id)
        return brew.with_outputs(tuple(barrels))


def test_outputs_that_come_with_the_run_arrive_in_every_mode(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A service that has no list of outputs has them in the task's dict, also after a deferral."""
    monkeypatch.setattr(BreweryHook, "create_service", lambda *_: Complete())
    result = run_dag(create_dag(tmp_path))
    assert result.state == "success", result.log
    for name in ("blocking", "deferred", "at_once", "sensed", "sensed_deferred", "decorated"):
        outputs = result.xcoms[name]["return_value"]["outputs"]
        assert [output["name"] for output in outputs] == [*FILES, "toast"], name
    for name in ("blocking", "deferred", "sensed"):
        files = [output for output in result.xcoms[name]["return_value"]["outputs"] if "uri" in output]
        assert [Path(file["uri"].removeprefix("file://")).read_bytes() for file in files] == CONTENTS


@WITH_FORM_AND_COMMANDS
def test_commands_have_the_outputs_that_come_with_the_run(
    monkeypatch: pytest.MonkeyPatch, flows: Callable[[str], CommandResult], tmp_path: Path
) -> None:
    """The commands list and download the outputs of a service that has no list of them."""
    monkeypatch.setattr(BreweryHook, "create_service", lambda *_: Complete())
    number = flows("run stout -i Fuggle -p strength=3 --poll-interval 0.05 -o json").json["flow_run_id"]
    assert [row["name"] for row in flows(f"outputs {number} -o json").json] == [*FILES, "toast"]
    wanted = flows(f"download {number} --asset beer.bin --output-path {tmp_path} -o json")
    assert [row["size"] for row in wanted.json] == [len(CONTENTS[0])]


def test_run_started_in_one_request_is_resumed(brewery: Brewhouse) -> None:
    """A retry resumes the brew of an earlier try, or starts another if that failed or has another request."""
    hook, service, records = FlowsHook.get_hook("pub"), OneRequestBrewery(), list[RunRecord | None]()
    for flow, again in (("stout", True), ("sour", False)):
        run_request = hook.build_request(flow, "Saaz", {"strength": 1}, None)
        create_dag = hook.run(
            start(service, run_request, RunRecord(run_request.fingerprint, 0), records.append)
        )
        record = records[-1]
        assert record is not None
        assert (record.flow_run_id, record.saved_run) == (create_dag.flow_run_id, None)
        found = hook.run(resume(service, run_request.fingerprint, record, 0))
        assert (found is not None and found.state is FlowState.RUNNING) is again
    run_request = hook.build_request("lager", "Saaz", None, None)
    hook.run(start(service, run_request, RunRecord(run_request.fingerprint, 0), records.append))
    assert (
        hook.run(resume(service, run_request.fingerprint, records[-1], 1)) is None
    )  # after a Clear; it cannot be spilt here
    assert [brew.stage for brew in brewery.brews.values()] == ["brewing", "spoilt", "brewing"]


class ForgetfulStore(Store):
    """A store that goes away once a start is recorded."""

    def set(self, key: str, value: Any) -> None:
        """Store the first value only."""
        if self:
            raise RuntimeError("the API server is away")
        super().set(key, value)


def test_store_that_fails_after_the_payment_ends_no_brew(
    brewery: Brewhouse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A try whose brew was paid by its start continues without a record of it, and an error says so."""
    monkeypatch.setattr(BreweryHook, "create_service", lambda *_: OneRequestBrewery())
    returned = RunFlowOperator(task_id="brew", **STOUT, **OFTEN).execute(context(ForgetfulStore(), 1, 3))
    assert (returned["state"], brewery.paid_count) == ("completed", 1)
    assert f"Flow run {returned['flow_run_id']} is paid for, and could not be saved" in caplog.text


@WITH_A_STORE
@pytest.mark.parametrize("service", [Brewery, OneRequestBrewery])
def test_a_retry_is_billed_once(
    brewery: Brewhouse, monkeypatch: pytest.MonkeyPatch, service: type[Brewery]
) -> None:
    """A task whose first try fails after the start resumes the brew, however the service starts one."""
    monkeypatch.setattr(
        BreweryHook, "create_service", lambda *_: service()
    )  # the brewery's own: another version of its package
    brewery.failures_left = 1
    with DAG(f"brewed_again_{service.__name__}", schedule=None) as dag:
        again = {"retries": 1, "retry_delay": timedelta(0)}
        RunFlowOperator(
            task_id="brew", flow="stout", inputs="Saaz", parameters={"strength": 1}, **again, **OFTEN
        )
    result = run_dag(dag)
    assert result.state == "success", result.log
    assert isinstance(result.errors["brew"], FlowServiceError)
    assert (brewery.failures_left, brewery.paid_count) == (0, 1)
