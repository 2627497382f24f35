"""Tests of the pages in Airflow's own API server: permissions, content and downloads.

`make test-browser` tests them in a browser.
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from airflow.sdk import DAG
from fastapi.testclient import TestClient

from airflow_provider_flows.checks import CheckedOutput, GlbCheck
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.plugin import get_headers
from airflow_provider_flows.plugin.cache import RESPONSE_CACHE
from airflow_provider_flows.plugin.output_files import NoFileError, open_output
from airflow_provider_flows.plugin.present import to_output_schemas
from airflow_provider_flows.plugin.routes import create_app
from airflow_provider_flows.plugin.run_view import PAGE_POLL_SECONDS, RunView
from airflow_provider_flows.plugin.task_data import parse_outputs
from tests.support.airflow_run import DagResult, run_dag
from tests.support.hostile.texts import SPELLINGS, find_key
from tests.support.plugin_rights import CARLS_CONNECTION, DORAS_DAG
from tests.support.plugin_site import airflow_clients, save_connections, task_path
from tests.support.stores import UNSAFE_TEXTS, assert_storable
from tests.support.tries import CHAIN_ARGUMENTS, CHAIR_ARGUMENTS, run_with_retries
from tests.support.versions import needs

pytestmark = pytest.mark.emulator(run_seconds=0, retries=0)

KEY = "the-key-that-no-browser-may-ever-see"
HOSTILE = '<img src=x onerror="alert(1)">'
GRAPHS = Path(__file__).parents[2] / "airflow_provider_flows" / "emulator" / "graphs"
Clients = dict[str, TestClient]


@pytest.fixture(scope="module")
def clients(airflow_database: None) -> Iterator[Clients]:  # noqa: ARG001  # a fixture requests another
    """Yield a client for each user, of one app for all tests here."""
    with airflow_clients() as clients_by_user:
        yield clients_by_user


@pytest.fixture(scope="module")
def flow_emulator_server() -> Iterator[Emulator]:
    """Run an emulator with a key that can be found in a page."""
    with Emulator(key=KEY) as emulator:
        yield emulator


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    """Clear the responses that the pages have cached."""
    RESPONSE_CACHE.clear()


def get(client: TestClient, path: str, status: int = 200) -> Any:
    """Request a page; assert its status, its security headers and that it does not contain the API key."""
    response = client.get(f"/flows/{path}")
    assert response.status_code == status, response.text
    assert KEY not in response.text + str(response.headers)
    assert {name: response.headers[name] for name in get_headers()} == get_headers()
    return response


def run_task(dag_id: str, **arguments: Any) -> DagResult:
    """Run a DAG of one task."""
    with DAG(dag_id, schedule=None) as dag:
        RunFlowOperator(task_id="run", **{"poll_interval": 0.1, **arguments})
    return run_dag(dag)


def count_polls(emulator: Emulator, flow_run_id: str) -> int:
    """Return how often a run was polled."""
    path = f"/flows/{flow_run_id}"
    return sum(request.method == "GET" and request.path == path for request in emulator.requests)


def route_paths() -> list[str]:
    """Return the path of every route, with its parameters filled in."""
    values = {"connection_id": "flows_default", "number": "0", "map_index": "-1", "name": "flows.css"}
    routes: list[Any] = [route for route in create_app().routes if getattr(route, "methods", None)]
    assert all(route.methods <= {"GET", "HEAD"} for route in routes)
    return [
        route.path.format_map({**dict.fromkeys(route.param_convertors, "x"), **values}).lstrip("/")
        for route in routes
    ]


def test_every_route_requires_a_login_and_those_of_connections_read_access(
    clients: Clients, emulator: Emulator
) -> None:
    """Anonymous users get nothing; a viewer, who may not read connections, gets no page of a connection."""
    paths = route_paths()
    assert len(paths) >= 13
    for path in paths:
        get(clients["anonymous"], path, 401)
        if "connection/" in path:
            get(clients["vera"], path, 403)
    assert not emulator.requests


def test_access_is_checked_per_dag_its_xcoms_and_per_connection(clients: Clients, emulator: Emulator) -> None:
    """Access to one DAG or connection gives none to others; without access to XComs the tab is denied."""
    paths = [path for path in route_paths() if "task/" in path]
    assert len(paths) == 18
    result = run_task(DORAS_DAG, **CHAIR_ARGUMENTS, wait_for_completion=False)
    own_path = task_path(DORAS_DAG, result.run_id)
    request_count = len(emulator.requests)
    for path in paths:
        get(clients["dora"], path, 403)
        get(clients["xena"], path, 403)
    for path in (own_path, f"json/{own_path}", f"{own_path}/output/0", f"json/{own_path}/output/0/info"):
        get(clients["xena"], path, 403)
    for path in (path for path in route_paths() if "connection/" in path):
        get(clients["carl"], path.replace("flows_default", "generio_default"), 403)
    assert len(emulator.requests) == request_count
    assert get(clients["dora"], f"json/{own_path}").json()["run"]["state"] == "completed"
    save_connections({name: {"conn_type": "generio"} for name in ("a_first", CARLS_CONNECTION)})
    try:
        assert get(clients["carl"], "", 303).headers["location"] == f"/flows/connection/{CARLS_CONNECTION}"
        page = get(clients["carl"], f"connection/{CARLS_CONNECTION}").text
        assert "a_first" not in page
        assert "a_first" in get(clients["anna"], f"connection/{CARLS_CONNECTION}").text
    finally:
        save_connections({})


@needs("task state store")
def test_the_flow_runs_of_earlier_tries_are_shown(clients: Clients, emulator: Emulator) -> None:
    """The tab shows the run of the latest try, whose XComs Airflow still has, and links to earlier ones."""
    emulator.add_plan(Plan(outcome="failed", error="The mesh has a hole"))
    task_result = run_with_retries("pages_tries", **CHAIR_ARGUMENTS)
    assert (task_result.state, task_result.tries) == ("success", 2)
    path = task_path("pages_tries", task_result.result.run_id)
    page = get(clients["vera"], f"json/{path}").json()
    assert (page["run"]["state"], page["try_number"]) == ("completed", 2)
    (previous,) = page["previous_runs"]
    assert previous["last_try"] == 1
    assert previous["flow_run_id"] != page["run"]["flow_run_id"]
    previous_path = f"{path}/previous/{previous['flow_run_id']}"
    assert f'href="/flows/{previous_path}"' in get(clients["vera"], path).text
    previous_page = get(clients["vera"], f"json/{previous_path}").json()
    assert (previous_page["run"]["state"], previous_page["run"]["error"]) == ("failed", "The mesh has a hole")
    assert f'href="/flows/{path}"' in get(clients["vera"], previous_path).text
    other = FlowsHook.get_hook("flows_default").start("model_generate_fromprompt", ["A stool"]).flow_run_id
    get(clients["vera"], f"json/{path}/previous/{other}", 404)


def test_the_run_of_a_finished_task_is_shown_without_the_service(
    clients: Clients, emulator: Emulator, tmp_path: Path
) -> None:
    """What a task returned is shown after the service has deleted it; its stored file can be downloaded."""
    result = run_task("pages_whole", **CHAIR_ARGUMENTS, output_path=tmp_path.as_uri())
    path = task_path("pages_whole", result.run_id)
    emulator.reset()
    page = get(clients["vera"], f"json/{path}").json()
    returned = result.xcoms["run"]["return_value"]
    assert page["run"] == {
        **page["run"],
        "flow_run_id": returned["flow_run_id"],
        "state": "completed",
        "progress": 1.0,
    }
    assert (page["inputs"], page["parameters"]) == (
        [{"name": "1", "text": "A chair", "file_name": None}],
        {"quality": "low"},
    )
    assert page["refresh_after"] is None
    output, returned_output = page["outputs"][0], returned["outputs"][0]
    assert (output["location"], output["size"], output["sha256"]) == (
        returned_output["uri"],
        returned_output["size"],
        returned_output["sha256"],
    )
    file = get(clients["vera"], f"{path}/output/0")
    written = next(tmp_path.rglob("*.glb"))
    assert file.content == written.read_bytes()
    assert file.headers["content-disposition"] == f'attachment; filename="{written.name}"'
    info = get(clients["vera"], f"json/{path}/output/0/info").json()
    assert info["model"]["triangles"] > 0
    assert returned_output["uri"] in get(clients["vera"], path).text
    get(clients["vera"], f"{path}/output/1", 404)
    get(clients["vera"], f"{path}/output/0/image", 404)
    assert not emulator.requests


def test_twenty_tabs_poll_an_active_run_once(clients: Clients, emulator: Emulator) -> None:
    """Requests of twenty tabs at the same time cost the service one poll, or one per interval if slow."""
    emulator.run_seconds = 100
    result = run_task("pages_twenty", **CHAIR_ARGUMENTS, wait_for_completion=False)
    flow_run_id = result.xcoms["run"]["flow_run_id"]
    emulator.advance(40)
    polls_before = count_polls(emulator, flow_run_id)
    path = task_path("pages_twenty", result.run_id, map_index="{MAP_INDEX}")
    start = time.monotonic()
    with ThreadPoolExecutor(20) as tabs:
        pages = list(tabs.map(lambda _: get(clients["vera"], f"json/{path}").json(), range(20)))
    polls = count_polls(emulator, flow_run_id) - polls_before
    assert 1 <= polls <= 1 + (time.monotonic() - start) / PAGE_POLL_SECONDS
    assert {page["run"]["state"] for page in pages} == {"running"}
    assert all(
        0.3 < page["run"]["progress"] < 0.6 and page["run"]["expected_end"] and page["refresh_after"]
        for page in pages
    )


@pytest.mark.usefixtures("emulator")
def test_outputs_of_a_task_that_does_not_wait(clients: Clients) -> None:
    """A task that does not wait returns no outputs; they come from the service once the run is final."""
    result = run_task("pages_left", **CHAIR_ARGUMENTS, wait_for_completion=False)
    path = task_path("pages_left", result.run_id)
    assert get(clients["anna"], f"json/{path}").json()["outputs"][0]["kind"] == "inspectable"
    assert get(clients["anna"], f"json/{path}/output/0/info").json()["media_type"] == "model/gltf-binary"
    hook = FlowsHook.get_hook("generio_default")
    run = result.xcoms["run"]["flow_run_id"]
    assert (
        get(clients["anna"], f"{path}/output/0").content
        == hook.download_output(run, hook.list_outputs(run)[0].asset_id).data
    )


def test_page_shows_the_warning_about_a_file(clients: Clients, emulator: Emulator, tmp_path: Path) -> None:
    """An output that contradicts its header is shown as ready, with its warning."""
    model = b"glTF\x02\x00\x00\x00" + (20).to_bytes(4, "little") + bytes(9)
    emulator.add_fault(Fault("GET", "*/outputs/*", times=None, body=model))
    result = run_task("pages_doubtful", **CHAIR_ARGUMENTS, output_path=str(tmp_path))
    path = task_path("pages_doubtful", result.run_id)
    (output,) = get(clients["vera"], f"json/{path}").json()["outputs"]
    assert (output["status"], output["size"]) == ("ready", 21)
    assert "longer than its header says" in output["warning"]
    page = get(clients["vera"], path).text
    assert "This file may be unusable: it is a model/gltf-binary that is longer than its header says" in page


@pytest.mark.parametrize("is_accepted", [True, False])
def test_page_shows_the_verdict_of_the_checks(
    clients: Clients, emulator: Emulator, tmp_path: Path, is_accepted: bool
) -> None:
    """The card of an output says whether the task's checks accept it, and why not, without HTML of theirs."""

    def check(_: CheckedOutput) -> str | None:
        return None if is_accepted else f"is {HOSTILE}"

    dag_id = f"pages_verdict_{is_accepted}"
    arguments = {**CHAIR_ARGUMENTS, "check_outputs": [GlbCheck(), check], "output_path": str(tmp_path)}
    path = task_path(dag_id, run_task(dag_id, **arguments).run_id)
    (output,) = get(clients["vera"], f"json/{path}").json()["outputs"]
    assert output["verdict"]["is_accepted"] is is_accepted
    assert output["verdict"]["facts"][0].startswith("triangles: ")
    page = get(clients["vera"], path).text
    assert ("Accepted by the checks" in page) is is_accepted
    assert ("Rejected by the checks" in page) is not is_accepted
    assert HOSTILE not in page
    assert len(emulator.paid_runs) == 1


@pytest.mark.parametrize(
    "verdict",
    [
        5,
        {},
        {"accepted": "yes"},
        {"accepted": True, "problems": {"a": 1}, "facts": [1]},
        {
            "accepted": False,
            "problems": [1, None, "\x1b[2J" + "x" * 9000] * 900,
            "facts": {"a": [], "b": 10**400},
        },
    ],
)
def test_forged_verdict_is_bounded(verdict: Any) -> None:
    """An XCom may have anything in place of a verdict."""
    (schema,) = to_output_schemas(parse_outputs([{"name": "a", "verdict": verdict}]), is_at_service=False)
    assert_storable(schema.model_dump())
    assert len(schema.model_dump_json()) < 50_000


def test_untrusted_texts_are_escaped(clients: Clients, emulator: Emulator, tmp_path: Path) -> None:
    """A flow's name, a prompt and an output that contain HTML are escaped."""
    emulator.add_graph(HOSTILE, json.loads((GRAPHS / f"{CHAIN_ARGUMENTS['flow']}.json").read_text()))
    arguments = {
        **CHAIN_ARGUMENTS,
        "flow": HOSTILE,
        "inputs": {"color": "red", "item": HOSTILE},
        "output_path": tmp_path.as_uri(),
    }
    result = run_task("pages_hostile", **arguments)
    path = task_path("pages_hostile", result.run_id)
    page = get(clients["vera"], path).text
    assert HOSTILE not in page
    assert page.count(html.escape(HOSTILE, quote=False).replace('"', "&#34;")) >= 3
    outputs = get(clients["vera"], f"json/{path}").json()["outputs"]
    image, text = (next(output for output in outputs if output["kind"] == kind) for kind in ("image", "text"))
    assert HOSTILE in text["text"]
    response = get(clients["vera"], f"{path}/output/{image['number']}/image")
    assert response.headers["content-type"] == "image/png"
    assert response.content == next(tmp_path.rglob("*.png")).read_bytes()
    assert get(clients["vera"], f"{path}/output/{text['number']}").text == text["text"]


def test_runs_are_filtered_sorted_and_paged(clients: Clients, emulator: Emulator) -> None:
    """The page of a connection's runs applies filters, order and page, and lists the values to filter by."""
    emulator.add_plan(Plan(outcome="failed", error=HOSTILE))
    hook = FlowsHook.get_hook("flows_default")
    runs = [
        hook.start("model_generate_fromprompt", ["A chair"], {"quality": "low"}).flow_run_id
        for _ in range(27)
    ]
    first = get(clients["anna"], "json/connection/flows_default").json()
    assert (first["total"], first["pages"], len(first["runs"])) == (27, 2, 25)
    assert first["states"] == {"completed": 26, "failed": 1}
    rest = get(clients["anna"], "json/connection/flows_default?page=2&sort=created").json()["runs"]
    assert {run["flow_run_id"] for run in rest} <= set(runs)
    failed = get(clients["anna"], "json/connection/flows_default?state=failed").json()
    assert [run["flow_run_id"] for run in failed["runs"]] == runs[:1]
    assert failed["runs"][0]["error"] == HOSTILE
    none = get(clients["anna"], "connection/flows_default?flow=another").text
    assert "No flow runs match the filters" in none
    assert HOSTILE not in get(clients["anna"], f"connection/flows_default/run/{runs[0]}").text
    assert sum(request.path == "/flows" and request.method == "GET" for request in emulator.requests) == 1
    assert "Invalid URL parameter: page" in get(clients["anna"], "connection/flows_default?page=0", 422).text
    get(clients["anna"], "json/connection/flows_default?page=0", 422)


def test_errors_have_helpful_messages(
    clients: Clients, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An invalid key, an unreachable service, a missing run and a wrong type have a message each."""
    connection = {"conn_type": "generio", "host": emulator.url, "password": "wrong", "extra": {"retries": 0}}
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", json.dumps(connection))
    monkeypatch.setenv("AIRFLOW_CONN_AWAY", json.dumps({**connection, "host": "http://127.0.0.1:9"}))
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({"conn_type": "http"}))
    assert "rejected the API key" in get(clients["anna"], "connection/wrong").text
    assert "could not be fetched from the service" in get(clients["anna"], "connection/away").text
    assert "not a flow service" in get(clients["anna"], "connection/other", 404).text
    assert "does not exist" in get(clients["anna"], "connection/nowhere", 404).text
    gone = get(clients["anna"], f"connection/flows_default/run/{'0' * 24}").text
    assert "flow run was not found at the service" in gone
    assert get(clients["anna"], "json/connection/away/run/x").json()["refresh_after"]


def test_the_host_is_shown_only_to_users_who_may_read_the_connection(
    clients: Clients, emulator: Emulator
) -> None:
    """Errors contain the host, which users who may see the DAG but not its connection do not get."""
    result = run_task("pages_host", **CHAIR_ARGUMENTS, wait_for_completion=False)
    emulator.add_fault(Fault(path="/flows/*", times=None, status=500))
    path = task_path("pages_host", result.run_id)
    page = get(clients["vera"], f"json/{path}")
    assert "could not be fetched" not in page.text  # the task returned the run
    assert "The Flow runs page shows the error" in page.json()["note"]
    assert emulator.url not in page.text
    run = result.xcoms["run"]["flow_run_id"]
    assert emulator.url in get(clients["anna"], f"json/connection/flows_default/run/{run}").json()["note"]
    emulator.clear_faults()


def test_a_key_that_cannot_be_sent_is_not_shown(
    clients: Clients, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An HTTP library that cannot encode the key in a header would quote it in its error."""
    connection = {
        "conn_type": "generio",
        "host": emulator.url,
        "password": f"{KEY}\n{KEY}",
        "extra": {"retries": 0},
    }
    monkeypatch.setenv("AIRFLOW_CONN_BROKEN", json.dumps(connection))
    for path, status in (
        ("connection/broken", 404),
        ("json/connection/broken", 404),
        ("connection/broken/run/x", 200),
    ):
        assert "password field" in get(clients["anna"], path, status).text


def test_a_malformed_response_cannot_break_a_page(clients: Clients, emulator: Emulator) -> None:
    """Lone surrogates, long names, wrong types and absurd numbers in runs do not prevent a page."""
    odd = [
        {"flow_id": "half", "template": "\ud800<b>", "state": "\udfff", "progress": 1e-300, "started_at": 1},
        {"flow_id": "../../x?y#z/%00", "template": "x" * 100_000, "state": "dreaming", "progress": "NaN"},
        {
            "flow_id": 7,
            "template": ["no"],
            "state": {"no": "word"},
            "started_at": "0001-01-01T00:00:00Z",
            "finished_at": 9e99,
        },
        {"flow_id": "fine", "template": "fine", "state": "failed", "error": {"deep": ["\ud800"] * 5000}},
    ]
    emulator.add_fault(
        Fault(method="GET", path="/flows", times=None, status=200, body=json.dumps({"flows": odd}).encode())
    )
    page = get(clients["anna"], "connection/flows_default").text
    assert len(page) < 200_000
    assert "<b>" not in page
    assert get(clients["anna"], "json/connection/flows_default").json()["total"] == len(odd)
    for one in odd:
        body = json.dumps({**one, "parameters": {"half": "\ud800"}}).encode()
        emulator.add_fault(Fault(method="GET", path="/flows/*", status=200, body=body))
        address = f"connection/flows_default/run/{quote(str(one['flow_id']).replace('/', ''), safe='')}"
        assert "<html" in get(clients["anna"], address).text
    emulator.clear_faults()


def test_pages_have_texts_that_can_be_stored(clients: Clients, emulator: Emulator) -> None:
    """NUL and lone surrogates in any text of a run and its outputs are replaced in the pages' JSON."""
    unsafe = "".join(UNSAFE_TEXTS.values())
    row = {"flow_id": "r", "state": "failed", "error": f"boom {unsafe}", "parameters": {unsafe: unsafe}}
    outputs = [{"asset_id": "a", "name": unsafe, "media_type": f"text/{unsafe}", "data": unsafe}]
    for path, value in (("/flows", {"flows": [row]}), ("*/outputs", {"outputs": outputs}), ("/flows/r", row)):
        body = json.dumps(value).encode()
        emulator.add_fault(Fault(method="GET", path=path, times=None, status=200, body=body))
    for path in ("json/connection/flows_default", "json/connection/flows_default/run/r"):
        page = get(clients["anna"], path).json()
        assert "boom \ufffd" in json.dumps(page, ensure_ascii=False)
        assert_storable(page)
    emulator.clear_faults()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_repeated_key_is_not_shown(clients: Clients, emulator: Emulator, spelling: str) -> None:
    """A key that the service repeats is in no page, no JSON and no message, in whichever spelling."""
    key = SPELLINGS[spelling](KEY)
    fields = f'"error": "no {key}", "template": "t {key}", "parameters": {{"k": "{key}"}}'
    run = f'{{"flow_id": "r", "state": "failed", {fields}}}'
    outputs = f'[{{"asset_id": "a", "name": "n {key}", "media_type": "text/{key}", "data": "x {key}"}}]'
    bodies = {"/flows": f'{{"flows": [{run}]}}', "*/outputs": outputs, "/flows/r": run}
    for path, body in bodies.items():
        emulator.add_fault(Fault(method="GET", path=path, times=None, status=200, body=body.encode()))
    names = ("connection/flows_default", "connection/flows_default/run/r")
    texts = [get(clients["anna"], f"{start}{name}").text for name in names for start in ("", "json/")]
    assert all("***" in text for text in texts)
    emulator.clear_faults()
    RESPONSE_CACHE.clear()
    rejection = f'{{"detail": "{"x" * 150}{key}"}}'.encode()
    emulator.add_fault(Fault(method="GET", path="/flows*", times=None, status=403, body=rejection))
    texts += [get(clients["anna"], name).text for name in names]
    texts.append(FlowsHook.get_hook("flows_default").test_connection()[1])
    emulator.clear_faults()
    assert [text for text in texts if find_key(text, KEY) is not None] == []


def test_a_download_above_the_maximum_is_rejected(emulator: Emulator) -> None:
    """A download is spooled on the API server's disk, which a service cannot fill."""
    hook = FlowsHook.get_hook("flows_default")
    run = hook.start("model_generate_fromprompt", ["A chair"], {"quality": "low"})
    view = RunView(
        run.flow_run_id,
        "flows_default",
        hook.get_run(run.flow_run_id),
        tuple(hook.list_outputs(run.flow_run_id)),
    )
    with pytest.raises(NoFileError, match=r"maximum of 1000 bytes .* Set output_path"):
        open_output(view, 0, 1000)
    assert len(b"".join(open_output(view, 0).iter_chunks())) > 1000
    assert emulator.requests


def test_flows_of_a_service_without_runs(
    clients: Clients, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PromptChainer lists no runs; the flows with exported graphs are listed, each with its own page."""
    connection = {
        "conn_type": "promptchainer",
        "host": emulator.url,
        "password": KEY,
        "extra": {"graphs": GRAPHS.as_uri()},
    }
    monkeypatch.setenv("AIRFLOW_CONN_CHAINS", json.dumps(connection))
    page = get(clients["anna"], "connection/chains").text
    assert "does not list flow runs" in page
    assert f"/flows/connection/chains/flow/{CHAIN_ARGUMENTS['flow']}" in page
    monkeypatch.setenv(
        "AIRFLOW_CONN_LOST", json.dumps({**connection, "extra": {"graphs": "file:///no/such/folder"}})
    )
    assert "The folder of flow graphs" in get(clients["anna"], "connection/lost").text
    flow = get(clients["anna"], f"connection/chains/flow/{CHAIN_ARGUMENTS['flow']}").text
    assert "<svg" in flow
    assert all(f"<code>{name}</code>" in flow for name in ("color", "item", "image", "text"))


def test_the_default_connection_is_a_readable_one_of_a_flow_service(
    clients: Clients, emulator: Emulator
) -> None:
    """The page redirects to a connection in Airflow's database, or states that there is none to read."""
    fields = {"host": emulator.url, "password": KEY}
    save_connections({"a_web": {"conn_type": "http"}, "b_flows": {"conn_type": "generio", **fields}})
    try:
        assert get(clients["anna"], "", 303).headers["location"] == "/flows/connection/b_flows"
        assert "a_web" not in get(clients["anna"], "connection/flows_default").text
        assert "No connections" in get(clients["vera"], "").text
    finally:
        save_connections({})


@pytest.mark.usefixtures("emulator")
def test_a_task_without_a_flow_run_has_a_message(clients: Clients) -> None:
    """Airflow shows the tab on every task; the tab of a missing task instance is not found."""
    with DAG("pages_none", schedule=None) as dag:

        @dag.task
        def run() -> None:
            """Run no flow."""

        run()
    path = task_path("pages_none", run_dag(dag).run_id)
    page = get(clients["vera"], f"json/{path}").json()
    assert (page["run"], page["refresh_after"]) == (None, None)
    assert "has no flow run" in page["note"]
    get(clients["vera"], task_path("pages_none", "no-such-run"), 404)


def test_pages_are_read_only(clients: Clients, emulator: Emulator) -> None:
    """The pages accept GET and nothing else."""
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert clients["anna"].request(method, "/flows/connection/flows_default").status_code == 405
    assert not emulator.requests
