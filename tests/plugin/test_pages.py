"""Tests of the pages of flow runs behind Airflow's own API server: who may see what, what is told, which bytes may be had.

What a browser makes of it is shown by `make test-browser`.
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
from airflow.models.xcom import XComModel
from airflow.sdk import DAG
from airflow.utils.session import create_session
from fastapi.testclient import TestClient
from sqlalchemy import update

from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.emulator.faults import Fault
from airflow_provider_flows.emulator.plans import Plan
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.plugin.app import create_app as pages
from airflow_provider_flows.plugin.lazy_app import HEADERS
from airflow_provider_flows.plugin.output_files import NoFileError, open_output
from airflow_provider_flows.plugin.run_view import PAGE_POLL_SECONDS, RESPONSE_CACHE, RunView
from tests.support.airflow_run import DagResult, run_dag
from tests.support.plugin_rights import CARLS_CONNECTION, DORAS_DAG
from tests.support.plugin_site import airflow_clients, save_connections, task_path
from tests.support.tries import CHAIN_ARGUMENTS, CHAIR_ARGUMENTS, run_with_retries
from tests.support.versions import needs

KEY = "the-key-that-no-browser-may-ever-see"
HOSTILE = '<img src=x onerror="alert(1)">'
GRAPHS = Path(__file__).parents[2] / "airflow_provider_flows" / "emulator" / "graphs"
Site = dict[str, TestClient]


@pytest.fixture(scope="module")
def clients(airflow_database: None) -> Iterator[Site]:  # noqa: ARG001  # a fixture asks for another one so
    """Give a client for each user; the app is made once for all tests here."""
    with airflow_clients() as made:
        yield made


@pytest.fixture(scope="module")
def server() -> Iterator[Emulator]:
    """Run an emulator with a key that can be told from other words."""
    with Emulator(key=KEY, run_seconds=0) as emulator:
        yield emulator


@pytest.fixture
def service(server: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """Give the emulator, reset; tasks and pages have their connections to it."""
    server.reset()
    server.run_seconds = 0
    RESPONSE_CACHE.clear()
    for name, told in server.connections.items():
        monkeypatch.setenv(name, json.dumps({**json.loads(told), "extra": {"retries": 0}}))
    return server


def got(client: TestClient, path: str, status: int = 200) -> Any:
    """Ask for a page, whose answer must be one that a browser may be given."""
    answer = client.get(f"/flows/{path}")
    assert answer.status_code == status, answer.text
    assert KEY not in answer.text + str(answer.headers)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    return answer


def ran(dag_id: str, **given: Any) -> DagResult:
    """Run one task to its end."""
    with DAG(dag_id, schedule=None) as dag:
        RunFlowOperator(task_id="run", **{"poll_interval": 0.1, **given})
    return run_dag(dag)


def looks(service: Emulator, flow_run_id: str) -> int:
    """Count how often the service was asked for a run."""
    return sum(asked.method == "GET" and asked.path == f"/flows/{flow_run_id}" for asked in service.requests)


def routes() -> list[str]:
    """Give the address of every route, with something in the place of what is variable."""
    given = {"connection_id": "flows_default", "number": "0", "map_index": "-1", "name": "flows.css"}
    found = [route for route in pages().routes if getattr(route, "methods", None)]
    assert all(route.methods <= {"GET", "HEAD"} for route in found)  # type: ignore[attr-defined]
    return [
        route.path.format_map({**dict.fromkeys(route.param_convertors, "x"), **given}).lstrip("/")
        for route in found
    ]  # type: ignore[attr-defined]


def test_every_route_demands_a_user_and_those_of_connections_the_right_to_read_them(
    clients: Site, service: Emulator
) -> None:
    """Who is not logged in gets nothing at all; a viewer, who may not read connections, gets nothing of theirs."""
    every = routes()
    assert len(every) >= 13
    for path in every:
        got(clients["nobody"], path, 401)
        if "connection/" in path:
            got(clients["vera"], path, 403)
    assert not service.requests


def test_rights_are_asked_of_each_dag_its_xcoms_and_each_connection(clients: Site, service: Emulator) -> None:
    """Who may see one DAG, or one connection, sees no other; who may see no XComs sees nothing of what stands in them."""
    paths = [path for path in routes() if "task/" in path]
    assert len(paths) == 10
    result = ran(DORAS_DAG, **CHAIR_ARGUMENTS, wait_for_completion=False)
    ours = task_path(DORAS_DAG, result.run_id)
    asked = len(service.requests)
    for path in paths:
        got(clients["dora"], path, 403)
        got(clients["xena"], path, 403)
    for path in (ours, f"json/{ours}", f"{ours}/output/0", f"json/{ours}/output/0/about"):
        got(clients["xena"], path, 403)
    for path in (path for path in routes() if "connection/" in path):
        got(clients["carl"], path.replace("flows_default", "generio_default"), 403)
    assert len(service.requests) == asked
    assert got(clients["dora"], f"json/{ours}").json()["run"]["state"] == "completed"
    save_connections({name: {"conn_type": "generio"} for name in ("a_first", CARLS_CONNECTION)})
    try:
        assert got(clients["carl"], "", 303).headers["location"] == f"/flows/connection/{CARLS_CONNECTION}"
        page = got(clients["carl"], f"connection/{CARLS_CONNECTION}").text
        assert "a_first" not in page
        assert "a_first" in got(clients["anna"], f"connection/{CARLS_CONNECTION}").text
    finally:
        save_connections({})


@needs("task state store")
def test_the_flow_runs_of_earlier_tries_are_shown(clients: Site, service: Emulator) -> None:
    """Airflow forgets a try's XComs when the next begins; the tab tells of the last try and leads to what those before had."""
    service.add_plan(Plan(outcome="failed", error="The mesh has a hole"))
    ended = run_with_retries("pages_tries", **CHAIR_ARGUMENTS)
    assert (ended.state, ended.tries) == ("success", 2)
    path = task_path("pages_tries", ended.result.run_id)
    told = got(clients["vera"], f"json/{path}").json()
    assert (told["run"]["state"], told["try_number"]) == ("completed", 2)
    (before,) = told["previous_runs"]
    assert before["last_try"] == 1
    assert before["flow_run_id"] != told["run"]["flow_run_id"]
    earlier = f"{path}/before/{before['flow_run_id']}"
    assert f'href="/flows/{earlier}"' in got(clients["vera"], path).text
    shown = got(clients["vera"], f"json/{earlier}").json()
    assert (shown["run"]["state"], shown["run"]["error"]) == ("failed", "The mesh has a hole")
    assert f'href="/flows/{path}"' in got(clients["vera"], earlier).text
    other = FlowsHook.get_hook("flows_default").start("model_generate_fromprompt", ["A stool"]).flow_run_id
    got(clients["vera"], f"json/{path}/before/{other}", 404)


def test_the_run_of_a_task_is_told_without_asking_the_service(
    clients: Site, service: Emulator, tmp_path: Path
) -> None:
    """What a task has returned is shown when its service has forgotten everything; its file comes down as it was written."""
    result = ran("pages_whole", **CHAIR_ARGUMENTS, output_path=tmp_path.as_uri())
    path = task_path("pages_whole", result.run_id)
    service.reset()
    told = got(clients["vera"], f"json/{path}").json()
    returned = result.xcoms["run"]["return_value"]
    assert told["run"] == {
        **told["run"],
        "flow_run_id": returned["flow_run_id"],
        "state": "completed",
        "progress": 1.0,
    }
    assert (told["inputs"], told["parameters"]) == ([{"name": "1", "text": "A chair"}], {"quality": "low"})
    assert told["refresh_after"] is None
    output, made = told["outputs"][0], returned["outputs"][0]
    assert (output["location"], output["size"], output["sha256"]) == (
        made["uri"],
        made["size"],
        made["sha256"],
    )
    file = got(clients["vera"], f"{path}/output/0")
    written = next(tmp_path.rglob("*.glb"))
    assert file.content == written.read_bytes()
    assert file.headers["content-disposition"] == f'attachment; filename="{written.name}"'
    about = got(clients["vera"], f"json/{path}/output/0/about").json()
    assert about["model"]["triangles"] > 0
    assert made["uri"] in got(clients["vera"], path).text
    got(clients["vera"], f"{path}/output/1", 404)
    got(clients["vera"], f"{path}/output/0/image", 404)
    assert not service.requests


def test_a_run_under_way_is_asked_for_once_by_twenty_tabs(clients: Site, service: Emulator) -> None:
    """Twenty tabs that look at the same moment cost the service one request, or one in each interval if they take long."""
    service.run_seconds = 100
    result = ran("pages_twenty", **CHAIR_ARGUMENTS, wait_for_completion=False)
    flow_run_id = result.xcoms["run"]["flow_run_id"]
    service.advance(40)
    before, path = (
        looks(service, flow_run_id),
        task_path("pages_twenty", result.run_id, map_index="{MAP_INDEX}"),
    )
    began = time.monotonic()
    with ThreadPoolExecutor(20) as tabs:
        told = list(tabs.map(lambda _: got(clients["vera"], f"json/{path}").json(), range(20)))
    assert 1 <= looks(service, flow_run_id) - before <= 1 + (time.monotonic() - began) / PAGE_POLL_SECONDS
    assert {one["run"]["state"] for one in told} == {"running"}
    assert all(
        0.3 < one["run"]["progress"] < 0.6 and one["run"]["expected_end"] and one["refresh_after"]
        for one in told
    )


@pytest.mark.usefixtures("service")
def test_outputs_that_stay_at_the_service_come_from_there(clients: Site) -> None:
    """A task that waits for nothing has no outputs; once its run is final they are told, looked into and sent."""
    result = ran("pages_left", **CHAIR_ARGUMENTS, wait_for_completion=False)
    path = task_path("pages_left", result.run_id)
    assert got(clients["anna"], f"json/{path}").json()["outputs"][0]["kind"] == "inspectable"
    assert got(clients["anna"], f"json/{path}/output/0/about").json()["media_type"] == "model/gltf-binary"
    hook = FlowsHook.get_hook("generio_default")
    run = result.xcoms["run"]["flow_run_id"]
    assert (
        got(clients["anna"], f"{path}/output/0").content
        == hook.download_output(run, hook.list_outputs(run)[0].asset_id).data
    )  # type: ignore[arg-type]


def test_what_others_have_written_is_shown_as_text(clients: Site, service: Emulator, tmp_path: Path) -> None:
    """A flow's name, a prompt and an answer that are HTML stay what they are: letters."""
    service.add_graph(HOSTILE, json.loads((GRAPHS / f"{CHAIN_ARGUMENTS['flow']}.json").read_text()))
    given = {
        **CHAIN_ARGUMENTS,
        "flow": HOSTILE,
        "inputs": {"color": "red", "item": HOSTILE},
        "output_path": tmp_path.as_uri(),
    }
    result = ran("pages_hostile", **given)
    path = task_path("pages_hostile", result.run_id)
    page = got(clients["vera"], path).text
    assert HOSTILE not in page
    assert page.count(html.escape(HOSTILE, quote=False).replace('"', "&#34;")) >= 3
    outputs = got(clients["vera"], f"json/{path}").json()["outputs"]
    image, text = (next(output for output in outputs if output["kind"] == kind) for kind in ("image", "text"))
    assert HOSTILE in text["text"]
    shown = got(clients["vera"], f"{path}/output/{image['number']}/image")
    assert shown.headers["content-type"] == "image/png"
    assert shown.content == next(tmp_path.rglob("*.png")).read_bytes()
    assert got(clients["vera"], f"{path}/output/{text['number']}").text == text["text"]


@pytest.mark.parametrize(
    "where", ["file:///etc/hostname", "{folder}/../../secret.glb", "{folder}/..", "{outside}/secret.glb"]
)
@pytest.mark.usefixtures("service")
def test_no_other_file_can_be_downloaded(clients: Site, tmp_path: Path, where: str) -> None:
    """An XCom that names another file than one of the run's own folder opens nothing: its writer may be anybody."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    (outside / "secret.glb").write_bytes(b"glTF secret")
    result = ran("pages_forged", **CHAIR_ARGUMENTS, output_path=inside.as_uri())
    returned = result.xcoms["run"]["return_value"]
    uri = where.format(folder=(inside / returned["flow_run_id"]).as_uri(), outside=outside.as_uri())
    forged = {**returned, "outputs": [{**returned["outputs"][0], "uri": uri, "asset_id": None}]}
    with create_session() as session:
        mine = (XComModel.run_id == result.run_id, XComModel.key == "return_value")
        session.execute(update(XComModel).where(*mine).values(value=forged))
    path = task_path("pages_forged", result.run_id)
    assert got(clients["anna"], f"json/{path}").json()["outputs"][0]["location"]
    for rest in ("", "/image"):
        assert "secret" not in got(clients["anna"], f"{path}/output/0{rest}", 404).text
    got(clients["anna"], f"json/{path}/output/0/about", 404)


def test_runs_are_filtered_sorted_and_paged(clients: Site, service: Emulator) -> None:
    """The page of a connection's runs gives what is asked for, and the words to choose from."""
    service.add_plan(Plan(outcome="failed", error=HOSTILE))
    hook = FlowsHook.get_hook("flows_default")
    runs = [
        hook.start("model_generate_fromprompt", ["A chair"], {"quality": "low"}).flow_run_id
        for _ in range(27)
    ]
    first = got(clients["anna"], "json/connection/flows_default").json()
    assert (first["total"], first["pages"], len(first["runs"])) == (27, 2, 25)
    assert first["states"] == {"completed": 26, "failed": 1}
    rest = got(clients["anna"], "json/connection/flows_default?page=2&sort=created").json()["runs"]
    assert {run["flow_run_id"] for run in rest} <= set(runs)
    failed = got(clients["anna"], "json/connection/flows_default?state=failed").json()
    assert [run["flow_run_id"] for run in failed["runs"]] == runs[:1]
    assert failed["runs"][0]["error"] == HOSTILE
    none = got(clients["anna"], "connection/flows_default?flow=another").text
    assert "No flow run fits these filters" in none
    assert HOSTILE not in got(clients["anna"], f"connection/flows_default/run/{runs[0]}").text
    assert sum(asked.path == "/flows" and asked.method == "GET" for asked in service.requests) == 1
    assert "page is wrong" in got(clients["anna"], "connection/flows_default?page=0", 422).text
    got(clients["anna"], "json/connection/flows_default?page=0", 422)


def test_trouble_is_told_with_what_to_do(
    clients: Site, service: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong key, a service that is away, a run that is gone and a connection that runs no flows each have their words."""
    told = {"conn_type": "generio", "host": service.url, "password": "wrong", "extra": {"retries": 0}}
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", json.dumps(told))
    monkeypatch.setenv("AIRFLOW_CONN_AWAY", json.dumps({**told, "host": "http://127.0.0.1:9"}))
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({"conn_type": "http"}))
    assert "refuses the key" in got(clients["anna"], "connection/wrong").text
    assert "could not be asked" in got(clients["anna"], "connection/away").text
    assert "runs no flows here" in got(clients["anna"], "connection/other", 404).text
    assert "There is no connection" in got(clients["anna"], "connection/nowhere", 404).text
    assert (
        "does not know this flow run" in got(clients["anna"], f"connection/flows_default/run/{'0' * 24}").text
    )
    assert got(clients["anna"], "json/connection/away/run/x").json()["refresh_after"]


def test_where_the_service_is_is_told_to_those_only_who_may_read_the_connection(
    clients: Site, service: Emulator
) -> None:
    """Errors name the host; a tab shows them to people who may see the DAG and not its connection."""
    result = ran("pages_host", **CHAIR_ARGUMENTS, wait_for_completion=False)
    service.add_fault(Fault(path="/flows/*", times=None, status=500))
    path = task_path("pages_host", result.run_id)
    told = got(clients["vera"], f"json/{path}")
    assert "could not be asked" not in told.text  # what was returned is known
    assert "The page Flow runs tells more" in told.json()["note"]
    assert service.url not in told.text
    run = result.xcoms["run"]["flow_run_id"]
    assert service.url in got(clients["anna"], f"json/connection/flows_default/run/{run}").json()["note"]
    service.clear_faults()


def test_a_key_that_cannot_be_sent_is_told_to_nobody(
    clients: Site, service: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that could not put the key into a header would quote it in its error."""
    told = {"conn_type": "generio", "host": service.url, "password": f"{KEY}\n{KEY}", "extra": {"retries": 0}}
    monkeypatch.setenv("AIRFLOW_CONN_BROKEN", json.dumps(told))
    for path, status in (
        ("connection/broken", 404),
        ("json/connection/broken", 404),
        ("connection/broken/run/x", 200),
    ):
        assert "password field" in got(clients["anna"], path, status).text


def test_what_the_service_says_cannot_break_a_page(clients: Site, service: Emulator) -> None:
    """Halves of characters, endless names, other types and absurd numbers in a list of runs and in a run are shown somehow."""
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
    service.add_fault(
        Fault(method="GET", path="/flows", times=None, status=200, body=json.dumps({"flows": odd}).encode())
    )
    page = got(clients["anna"], "connection/flows_default").text
    assert len(page) < 200_000
    assert "<b>" not in page
    assert got(clients["anna"], "json/connection/flows_default").json()["total"] == len(odd)
    for one in odd:
        body = json.dumps({**one, "parameters": {"half": "\ud800"}}).encode()
        service.add_fault(Fault(method="GET", path="/flows/*", status=200, body=body))
        address = f"connection/flows_default/run/{quote(str(one['flow_id']).replace('/', ''), safe='')}"
        assert "<html" in got(clients["anna"], address).text
    service.clear_faults()


def test_a_file_that_is_too_large_for_here_is_refused(service: Emulator) -> None:
    """What a service sends lies on the API server's disk for a while; it cannot be filled so."""
    hook = FlowsHook.get_hook("flows_default")
    run = hook.start("model_generate_fromprompt", ["A chair"], {"quality": "low"})
    sight = RunView(
        run.flow_run_id,
        "flows_default",
        hook.get_run(run.flow_run_id),
        tuple(hook.list_outputs(run.flow_run_id)),
    )
    with pytest.raises(NoFileError, match=r"larger than the 1000 bytes .* Set output_path"):
        open_output(sight, 0, 1000)
    assert len(b"".join(open_output(sight, 0).iter_chunks())) > 1000
    assert service.requests


def test_flows_of_a_service_without_runs(
    clients: Site, service: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PromptChainer lists no runs; the flows with exported graphs are listed, with what they take, give, and a picture."""
    told = {
        "conn_type": "promptchainer",
        "host": service.url,
        "password": KEY,
        "extra": {"graphs": GRAPHS.as_uri()},
    }
    monkeypatch.setenv("AIRFLOW_CONN_CHAINS", json.dumps(told))
    page = got(clients["anna"], "connection/chains").text
    assert "keeps no list of flow runs" in page
    assert f"/flows/connection/chains/flow/{CHAIN_ARGUMENTS['flow']}" in page
    monkeypatch.setenv(
        "AIRFLOW_CONN_LOST", json.dumps({**told, "extra": {"graphs": "file:///no/such/folder"}})
    )
    assert "The folder of flow graphs" in got(clients["anna"], "connection/lost").text
    flow = got(clients["anna"], f"connection/chains/flow/{CHAIN_ARGUMENTS['flow']}").text
    assert "<svg" in flow
    assert all(f"<code>{name}</code>" in flow for name in ("color", "item", "image", "text"))


def test_the_first_connection_is_one_that_the_user_may_read_and_that_runs_flows(
    clients: Site, service: Emulator
) -> None:
    """The page leads to a connection in Airflow's database; who may read none is told so."""
    given = {"host": service.url, "password": KEY}
    save_connections({"a_web": {"conn_type": "http"}, "b_flows": {"conn_type": "generio", **given}})
    try:
        assert got(clients["anna"], "", 303).headers["location"] == "/flows/connection/b_flows"
        assert "a_web" not in got(clients["anna"], "connection/flows_default").text
        assert "No connection" in got(clients["vera"], "").text
    finally:
        save_connections({})


@pytest.mark.usefixtures("service")
def test_a_task_without_a_flow_run_says_so(clients: Site) -> None:
    """Airflow shows the tab on every task; one that is not there at all is not found."""
    with DAG("pages_none", schedule=None) as dag:

        @dag.task
        def run() -> None:
            """Run no flow."""

        run()
    path = task_path("pages_none", run_dag(dag).run_id)
    told = got(clients["vera"], f"json/{path}").json()
    assert (told["run"], told["refresh_after"]) == (None, None)
    assert "has no flow run" in told["note"]
    got(clients["vera"], task_path("pages_none", "no-such-run"), 404)


def test_nothing_can_be_changed(clients: Site, service: Emulator) -> None:
    """The pages answer GET and nothing else."""
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert clients["anna"].request(method, "/flows/connection/flows_default").status_code == 405
    assert not service.requests
