"""Tests of the view of one flow run: when its page polls, and how stored values of any kind are parsed."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_flows.core.exceptions import FlowNotFound, FlowUnreachable
from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun, FlowState
from airflow_provider_flows.core.limits import MAX_RUN_LIST_BYTES, MIB
from airflow_provider_flows.core.start_or_resume import STAMP_KEY
from airflow_provider_flows.plugin import html
from airflow_provider_flows.plugin.cache import RESPONSE_CACHE
from airflow_provider_flows.plugin.connection_view import TRUNCATED_NOTE, ListQuery, get_run_list
from airflow_provider_flows.plugin.present import RunListSchema
from airflow_provider_flows.plugin.run_view import (
    RunView,
    get_service_run_view,
    get_task_run_view,
)
from airflow_provider_flows.plugin.task_data import TaskInstanceData, parse_outputs
from tests.support.servers import ReceivedRequest, StubResponse, StubServer

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
    context = {
        "run_page": run_page,
        "run_path": "task/x",
        "graph": None,
        "back": None,
        "back_label": "",
        "sources": (),
    }
    response = asyncio.run(html.render_page(request, "run.html", **context))
    assert b"<main" in response.body


LARGE = 12 * MIB  # characters of a hostile service's text


@pytest.mark.parametrize(
    "fields",
    [
        lambda: {"parameters": {"a": "x" * LARGE}},
        lambda: {"parameters": {f"{number}": "x" * 100 for number in range(LARGE // 100)}},
        lambda: {"parameters": {"x" * LARGE: 1}},
        lambda: {"additional": {"a": ["x" * 1000] * (LARGE // 1000)}},
        lambda: {"additional": {STAMP_KEY: {"dag_id": "x" * LARGE}}},
        lambda: {"error": "x" * LARGE},
        lambda: {"template": "x" * LARGE},
        lambda: {"unknown": "x" * LARGE},
        lambda: {"state": "x" * LARGE},
        lambda: {"outputs": [{"asset_id": "a", "name": "n", "data": "x" * LARGE}]},
    ],
    ids=[
        "parameter",
        "parameters",
        "name of a parameter",
        "additional",
        "stamp",
        "error",
        "flow",
        "unknown",
        "state",
        "output",
    ],
)
def test_large_runs_do_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch, fields: Callable[[], dict[str, Any]]
) -> None:
    """The cache keeps only what the page shows of a run, whichever of its fields is large."""
    RESPONSE_CACHE.clear()
    row = {"flow_id": "r", "template": "t", "state": "completed", **fields()}
    body = json.dumps(row).encode()
    outputs = json.dumps({"outputs": row.pop("outputs", [])}).encode()
    del row

    def reply(request: ReceivedRequest) -> StubResponse:
        return StubResponse(body=outputs if request.path.endswith("/outputs") else body)

    async def get_views() -> None:
        for number in range(3):
            await get_service_run_view("large", f"r{number}")

    with StubServer(reply) as server:
        connection = {"conn_type": "generio", "host": server.url, "password": "the-key"}
        monkeypatch.setenv("AIRFLOW_CONN_LARGE", json.dumps(connection))
        asyncio.run(get_service_run_view("large", "r"))  # what is allocated once
        tracemalloc.start()
        try:
            asyncio.run(get_views())
            while any(thread.name == "flows-pages" for thread in threading.enumerate()):
                time.sleep(0.01)
            gc.collect()
            used = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    assert len(server.requests) >= 4
    assert RESPONSE_CACHE.size < MIB
    assert used < 8 * MIB


def test_a_cached_run_has_the_stamp_and_safe_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose run it is, is not lost with the other metadata; parameters are as on the page."""
    stamp = {"dag_id": "d", "token": "t"}
    row = {
        "flow_id": "r",
        "state": "running",
        "parameters": {"quality": "low", "password": "hidden"},
        "additional": {STAMP_KEY: stamp, "mine": 1},
    }
    RESPONSE_CACHE.clear()
    with StubServer(lambda _: StubResponse(body=json.dumps(row).encode())) as server:
        connection = {"conn_type": "generio", "host": server.url, "password": "the-key"}
        monkeypatch.setenv("AIRFLOW_CONN_STAMPED", json.dumps(connection))
        view = asyncio.run(get_service_run_view("stamped", "r"))
    assert view.run is not None
    assert view.run.additional == {STAMP_KEY: stamp}
    assert view.run.parameters == view.to_page().parameters == {"quality": "low", "password": "***"}


def test_a_long_list_keeps_the_runs_that_were_created_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list beyond its bound has a note with both numbers; the cache keeps its bound."""
    rows = [
        {
            "flow_id": f"r{n}",
            "state": "failed",
            "template": "t" * 250,
            "error": "x" * 200,
            "created_at": n + 1e9,
        }
        for n in range(20_000)
    ]
    RESPONSE_CACHE.clear()
    with StubServer(lambda _: StubResponse(body=json.dumps({"flows": rows}).encode())) as server:
        connection = {"conn_type": "generio", "host": server.url, "password": "the-key"}
        monkeypatch.setenv("AIRFLOW_CONN_LONG", json.dumps(connection))
        run_list = asyncio.run(get_loaded_run_list("long"))
    assert run_list.runs[0].flow_run_id == "r19999"
    assert 1000 < run_list.total < 20_000
    assert run_list.note == TRUNCATED_NOTE.format(total=20_000, count=run_list.total)
    assert not run_list.is_error
    assert RESPONSE_CACHE.size < 1.1 * MAX_RUN_LIST_BYTES


async def get_loaded_run_list(conn_id: str) -> RunListSchema:
    """Ask again, as the page does, until the service's response is in the cache."""
    while True:
        run_list = await get_run_list(conn_id, ListQuery())
        if not run_list.is_error:
            return run_list
        await asyncio.sleep(1)


@pytest.mark.parametrize(
    "value", [None, "text", [1, None, {}], [{"name": 5, "size": -1, "uri": ["x"]}], {"name": "x"}]
)
def test_outputs_in_an_xcom_have_valid_types_only(value: Any) -> None:
    """Whatever an XCom contains, outputs consist of texts and sizes."""
    for output in parse_outputs(value):
        assert (output.uri, output.size, output.asset_id) == (None, None, None)
        assert output.name
