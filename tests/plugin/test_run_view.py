"""Tests of the view of one flow run: when its page polls, and how stored values of any kind are parsed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_flows.core.exceptions import FlowNotFound, FlowUnreachable
from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun, FlowState
from airflow_provider_flows.plugin import html
from airflow_provider_flows.plugin.airflow_internals import TaskInstanceData
from airflow_provider_flows.plugin.run_view import RunView, get_task_run_view, parse_outputs

RUNNING, COMPLETED = (
    FlowRun("r", "generio", state=state) for state in (FlowState.RUNNING, FlowState.COMPLETED)
)
PENDING_OUTPUT = FlowOutput("model", "a", status="pending")


@pytest.mark.parametrize(
    ("view", "polls"),
    [
        (RunView("r", "c", RUNNING), True),
        (RunView("r", "c", COMPLETED), False),
        (RunView("r", "c", COMPLETED, task_state="running"), True),  # its files are being stored
        (RunView("r", "c", COMPLETED, task_state="up_for_retry"), True),  # a retry may start another run
        (RunView("r", "c", COMPLETED, task_state="success"), False),
        (RunView("r", "c", COMPLETED, (PENDING_OUTPUT,), task_state="success"), True),
        (RunView("r", None, RUNNING, task_state="success"), False),  # no connection to poll
        (RunView("r", "c", RUNNING, error=FlowNotFound("gone", status=404), task_state="failed"), False),
        (RunView("r", "c", error=FlowUnreachable("away")), True),
        (RunView(task_state="queued"), True),
        (RunView(task_state="success"), False),
    ],
)
def test_a_page_polls_while_something_can_change(view: RunView, polls: bool) -> None:
    """It stops when the run is final and its task has finished, and when there is no service to poll."""
    assert (view.to_page().refresh_after is not None) is polls


TEXTS = st.text(st.characters(), max_size=20)  # with lone surrogates
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**300, 10**310) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "flow",
    "state",
    "progress",
    "created_at",
    "started_at",
    "finished_at",
    "error",
    "name",
    "asset_id",
    "status",
    "media_type",
    "value",
    "uri",
    "size",
    "sha256",
)
ODD_FIELDS = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, ANYTHING))
RESULTS = st.builds(
    lambda fields, outputs, ids: {**fields, **ids, "outputs": outputs},
    ODD_FIELDS,
    st.lists(ODD_FIELDS, max_size=3) | ANYTHING,
    st.fixed_dictionaries({"flow_run_id": TEXTS}, optional={"service": TEXTS | ANYTHING}),
)


@given(
    result=RESULTS | ANYTHING,
    outputs=st.lists(ODD_FIELDS, max_size=3) | ANYTHING,
    previous_runs=ANYTHING,
    inputs=ANYTHING | TEXTS,
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_xcom_gives_a_page(result: Any, outputs: Any, previous_runs: Any, inputs: Any) -> None:
    """Any task and any user may write any XCom: the tab shows what can be shown, and never fails."""
    ti_data = TaskInstanceData(
        "success", 2, {"inputs": inputs, "parameters": inputs}, previous_runs, result, outputs=outputs
    )
    run_page = asyncio.run(get_task_run_view(ti_data)).to_page()
    assert json.loads(run_page.model_dump_json())["version"]
    request = Request({"type": "http", "root_path": "/flows"})
    context = {"run_page": run_page, "run_path": "task/x", "graph": None, "back": None, "back_label": ""}
    response = asyncio.run(html.render_page(request, "run.html", **context))
    assert b"<main" in response.body


@pytest.mark.parametrize(
    "value", [None, "text", [1, None, {}], [{"name": 5, "size": -1, "uri": ["x"]}], {"name": "x"}]
)
def test_outputs_in_an_xcom_have_valid_types_only(value: Any) -> None:
    """Whatever an XCom contains, outputs consist of texts and sizes."""
    for output in parse_outputs(value):
        assert (output.uri, output.size, output.asset_id) == (None, None, None)
        assert output.name
