"""Tests of the asset events of a task, read from Airflow's database after real DAG runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from airflow.models.asset import AssetEvent, AssetModel
from airflow.sdk import DAG, Asset, AssetAlias, BaseOperator
from airflow.sdk.execution_time.context import OutletEventAccessors
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun, FlowState
from airflow_provider_flows.emulator import Emulator, Plan
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.worker.finish import MAX_EVENT_FILES, add_asset_event_extra
from tests.support.airflow_run import run_dag
from tests.support.modes import FAST_POLLING, FLOW, MODES, PARAMETERS, PROMPT, run_in_mode

CHAIR: dict[str, Any] = {"flow": FLOW, "inputs": PROMPT, "parameters": PARAMETERS, **FAST_POLLING}

pytestmark = pytest.mark.emulator(run_seconds=0.1)


def load_events(run_id: str) -> dict[str, dict[str, Any]]:
    """Return the extra of each asset event of a DAG run, by the asset's URI and the task's map index."""
    with create_session() as session:
        rows = session.execute(
            select(AssetModel.uri, AssetEvent.source_map_index, AssetEvent.extra)
            .join(AssetModel, AssetModel.id == AssetEvent.asset_id)
            .where(AssetEvent.source_run_id == run_id)
        ).all()
    found = {f"{uri} {index}": extra for uri, index, extra in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("mode", MODES)
def test_event_has_the_flow_run_and_its_files(emulator: Emulator, tmp_path: Path, mode: str) -> None:
    """In every mode the outlet's event has flow, run, service, state, and the files with their sizes."""
    uri = f"x-models://chairs/{mode}"

    wait = run_in_mode(mode, emulator, outlets=[Asset(uri)], output_path=f"file://{tmp_path}")

    assert wait.return_value is not None, wait.result.log
    (output,) = wait.return_value["outputs"]
    (file,) = tmp_path.rglob("*.glb")
    assert load_events(wait.result.run_id) == {
        f"{uri} -1": {
            "flow": FLOW,
            "flow_run_id": wait.flow_run_id,
            "service": "generio",
            "state": "completed",
            "uris": [output["uri"]],
            "sizes": [file.stat().st_size],
        }
    }
    assert output["uri"] == f"file://{file}"


def test_each_mapped_task_emits_its_own_event(emulator: Emulator, tmp_path: Path) -> None:
    """Three mapped tasks emit three events of one asset, each with its own flow run and file."""
    with DAG("assets_mapped", schedule=None) as dag:
        RunFlowOperator.partial(
            task_id="run",
            flow=FLOW,
            parameters=PARAMETERS,
            **FAST_POLLING,
            output_path=f"file://{tmp_path}",
            outlets=[Asset("x-models://mapped")],
        ).expand(inputs=["A chair", "A table", "A lamp"])

    result = run_dag(dag)

    events = load_events(result.run_id)
    assert sorted(events) == [f"x-models://mapped {index}" for index in range(3)]
    for index in range(3):
        returned = result.xcoms[f"run[{index}]"]["return_value"]
        extra = events[f"x-models://mapped {index}"]
        assert extra["flow_run_id"] == returned["flow_run_id"]
        assert extra["uris"] == [output["uri"] for output in returned["outputs"]]
    assert len(emulator.runs) == 3


def test_alias_creates_an_asset_for_each_file(emulator: Emulator, tmp_path: Path) -> None:
    """An alias among the outlets turns each stored file into an asset of its own, with an event."""
    with DAG("assets_alias", schedule=None) as dag:
        RunFlowOperator(
            task_id="run",
            **{**CHAIR, "inputs": ["A chair", "A table"]},
            output_path=f"file://{tmp_path}",
            outlets=[AssetAlias("models"), Asset("x-models://other")],
        )

    result = run_dag(dag)

    returned = result.xcoms["run"]["return_value"]
    events = load_events(result.run_id)
    assert set(events) == {"x-models://other -1", *(f"{output['uri']} -1" for output in returned["outputs"])}
    assert len(returned["outputs"]) >= 2
    for output in returned["outputs"]:
        extra = events[f"{output['uri']} -1"]
        assert extra == {
            "flow": FLOW,
            "flow_run_id": returned["flow_run_id"],
            "service": "generio",
            "state": "completed",
            **{name: output[name] for name in ("uri", "size", "sha256", "media_type")},
        }
    assert next(iter(emulator.runs)) == returned["flow_run_id"]


def test_alias_percent_encodes_non_ascii_uris(emulator: Emulator, tmp_path: Path) -> None:
    """The asset's URI is percent-encoded, because Airflow fails a finished task whose asset is not ASCII."""
    with DAG("assets_not_ascii", schedule=None) as dag:
        RunFlowOperator(
            task_id="run", **CHAIR, output_path=f"file://{tmp_path}/süß %", outlets=[AssetAlias("sweet")]
        )

    result = run_dag(dag)

    assert "Setting the task to failed" not in result.log
    ((uri, extra),) = load_events(result.run_id).items()
    assert "/s%C3%BC%C3%9F %/" in uri
    assert extra["uri"] == result.xcoms["run"]["return_value"]["outputs"][0]["uri"]
    assert Path(extra["uri"].removeprefix("file://")).exists()
    assert len(emulator.runs) == 1


def test_failed_run_emits_no_event(emulator: Emulator) -> None:
    """A task whose flow run failed emits no event."""
    emulator.add_plan(Plan(outcome="failed", error="The mesh has no faces"))
    with DAG("assets_failed", schedule=None) as dag:
        RunFlowOperator(task_id="run", **CHAIR, outlets=[Asset("x-models://failed"), AssetAlias("failed")])

    result = run_dag(dag)

    assert result.state == "failed"
    assert load_events(result.run_id) == {}


def test_task_without_wait_emits_event_of_active_run(emulator: Emulator) -> None:
    """Without waiting, the event has a state that is not final, and no files."""
    emulator.run_seconds = 3600
    with DAG("assets_started", schedule=None) as dag:
        RunFlowOperator(
            task_id="run", **CHAIR, wait_for_completion=False, outlets=[Asset("x-models://started")]
        )

    result = run_dag(dag)

    (extra,) = load_events(result.run_id).values()
    assert extra["flow_run_id"] == next(iter(emulator.runs))
    assert not FlowState.parse(extra["state"]).is_final
    assert (extra["uris"], extra["sizes"]) == ([], [])


def test_extra_of_the_author_takes_precedence(emulator: Emulator) -> None:  # noqa: ARG001  # it sets the connection
    """An extra that the task's author has set remains, and takes precedence over the flow run's."""
    asset = Asset("x-models://authored")

    def set_extra(context: Any) -> None:
        context["outlet_events"][asset].extra = {"by": "me", "state": "checked"}

    with DAG("assets_authored", schedule=None) as dag:
        RunFlowOperator(task_id="run", **CHAIR, outlets=[asset], pre_execute=set_extra)

    (extra,) = load_events(run_dag(dag).run_id).values()
    assert (extra["by"], extra["state"], extra["flow"]) == ("me", "checked", FLOW)


def emit_events(outlets: list[Any], outputs: list[FlowOutput]) -> OutletEventAccessors:
    """Return the events of a task's outlets after a run with these outputs."""
    events = OutletEventAccessors()
    context: Any = {"task": BaseOperator(task_id="run"), "outlet_events": events}
    context["task"].outlets = outlets
    add_asset_event_extra(context, FlowRun("1", "generio", "f", FlowState.COMPLETED, outputs=tuple(outputs)))
    return events


def test_event_lists_a_limited_number_of_files() -> None:
    """An event lists at most a hundred files and counts the others; an alias gets no more assets."""
    outputs = [
        FlowOutput(f"o{number}", uri=f"s3://bucket/{number}.glb", size=number) for number in range(500)
    ]
    asset, alias = Asset("x-models://many"), AssetAlias("many")

    events = emit_events([asset, alias], outputs)

    extra = events[asset].extra
    assert len(extra["uris"]) == len(extra["sizes"]) == MAX_EVENT_FILES
    assert extra["more"] == 500 - MAX_EVENT_FILES
    assert len(events[alias].asset_alias_events) == MAX_EVENT_FILES


def test_event_limits_the_length_of_uris() -> None:
    """An event with long URIs stays small; a URI that is too long for Airflow is skipped, and no other is."""
    long = [FlowOutput("o", uri=f"s3://bucket/{number}/{'x' * 1400}", size=1) for number in range(50)]
    impossible = FlowOutput("o", uri=f"s3://bucket/{'x' * 2000}", size=1)
    asset, alias = Asset("x-models://long"), AssetAlias("long")

    events = emit_events([asset, alias], [impossible, *long])

    extra = events[asset].extra
    assert 10 < len(extra["uris"]) < 30
    assert extra["more"] == 51 - len(extra["uris"])
    assert len(events[alias].asset_alias_events) == len(extra["uris"])


def test_text_outputs_are_not_in_events() -> None:
    """A text output is in no event, and becomes no asset."""
    alias, asset = AssetAlias("texts"), Asset("x-models://texts")

    events = emit_events([asset, alias], [FlowOutput("o", value="A red ball")])

    assert events[asset].extra["uris"] == []
    assert events[alias].asset_alias_events == []


def test_unsupported_outlet_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """An outlet of an unsupported type causes a warning and no error, because the flow run is paid for."""
    asset = Asset("x-models://last")

    with caplog.at_level(logging.WARNING):
        events = emit_events([object(), asset], [])

    assert events[asset].extra["flow_run_id"] == "1"
    assert "has no metadata about the generio flow run 1" in caplog.text
