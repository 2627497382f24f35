"""Tests of the pages with 3D models: the viewer, the models for it, and what a page says of both.

`make test-browser` tests what a browser displays.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from fastapi.testclient import TestClient
from sqlalchemy import event
from sqlalchemy.engine import Engine

from airflow_provider_flows.core.gltf import JSON_CHUNK_TYPE
from airflow_provider_flows.core.start_or_resume import STAMP_KEY
from airflow_provider_flows.decorators import task
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.plugin import get_headers, output_files
from airflow_provider_flows.plugin.cache import RESPONSE_CACHE
from airflow_provider_flows.plugin.html import format_size_change, format_time_left
from airflow_provider_flows.plugin.viewer import load_viewer
from airflow_provider_flows.sensors import FlowRunSensor
from tests.support.airflow_run import DagResult, run_dag
from tests.support.plugin_site import airflow_clients, task_path
from tests.support.tries import CHAIN_ARGUMENTS, CHAIR_ARGUMENTS
from tests.support.versions import needs

pytestmark = [pytest.mark.emulator(run_seconds=0, retries=0), pytest.mark.usefixtures("emulator")]

ROOT = Path(__file__).parents[2]
ARROW = "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"
PACKAGE = "airflow_provider_flows"
NEEDS_VIEWER = pytest.mark.skipif(
    load_viewer() is None, reason="this installation was built without a network, and has no viewer"
)
WITHOUT_VIEWER = """
import asyncio, json
from airflow_provider_flows.plugin import get_headers
from airflow_provider_flows.plugin.html import render_page
from starlette.requests import Request
request = Request({"type": "http", "root_path": "/flows"})
page = asyncio.run(render_page(request, "message.html", title="Title", text="Text"))
print(json.dumps([get_headers(), page.body.decode()]))
"""


@pytest.fixture(scope="module")
def clients(airflow_database: None) -> Iterator[dict[str, TestClient]]:  # noqa: ARG001  # a fixture requests another
    """Yield a client for each user."""
    with airflow_clients() as clients_by_user:
        yield clients_by_user


@pytest.fixture
def client(clients: dict[str, TestClient]) -> TestClient:
    """Return the client of an administrator."""
    return clients["anna"]


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    """Clear the responses that the pages have cached."""
    RESPONSE_CACHE.clear()


def run_task(dag_id: str, **arguments: Any) -> DagResult:
    """Run a DAG of one task."""
    with DAG(dag_id, schedule=None) as dag:
        RunFlowOperator(task_id="run", **{"poll_interval": 0.1, **arguments})
    return run_dag(dag)


def get_page(client: TestClient, dag_id: str, run_id: str, task_id: str = "run") -> str:
    """Return a task's page."""
    response = client.get(f"/flows/{task_path(dag_id, run_id, task_id)}")
    assert response.status_code == 200
    return response.text


def find_attribute(page: str, name: str) -> list[str]:
    """Return the values of an attribute of a page's elements."""
    return [html.unescape(value) for value in re.findall(rf'{name}="([^"]*)"', page)]


@NEEDS_VIEWER
def test_the_viewer_is_one_file_that_a_browser_requests_once(client: TestClient) -> None:
    """Its URL has its version, a browser may cache it for ever, and gets it compressed."""
    path = find_attribute(client.get("/flows/").text or client.get("/flows/x").text, "data-viewer")[0]
    response = client.get(path)
    assert response.status_code == 200
    assert hashlib.sha256(response.content).hexdigest().startswith(path.split("/")[-2])
    assert response.headers["content-encoding"] == "gzip"
    assert response.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert response.headers["content-security-policy"] == get_headers()["content-security-policy"]
    plain = client.get(path, headers={"accept-encoding": "identity"})
    assert plain.content == response.content
    assert plain.headers["content-encoding"] == "identity"
    for other in (
        path.replace("viewer/", "viewer/x"),
        path.replace("model-viewer.js", "model-viewer-LICENSE"),
    ):
        missing = client.get(other)
        assert missing.status_code == 404
        assert missing.headers["cache-control"] == "no-store"


@NEEDS_VIEWER
def test_the_policy_allows_what_the_viewer_needs_and_nothing_else() -> None:
    """Its style is allowed by a hash of the file's text, which both browsers computed; no inline code is."""
    policy = get_headers()["content-security-policy"]
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives["style-src"] == "'self' 'sha256-F7kvx28zBT3UUQL/hTOYst+55RSmqyCY3muSCYmt6A4='"
    assert directives["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert directives["connect-src"] == "'self' blob:"
    assert (directives["default-src"], directives["img-src"]) == ("'none'", "'self'")
    assert not {"'unsafe-inline'", "'unsafe-eval'", "data:", "*", "https:"} & set(policy.split())
    viewer = load_viewer()
    assert viewer is not None
    assert gzip.decompress(viewer.compressed) == viewer.script


def test_an_installation_without_the_viewer_has_the_stricter_policy(tmp_path: Path) -> None:
    """Pages then name no viewer, so the script says so, and the policy is that of pages without one."""
    ignored = shutil.ignore_patterns("viewer", "__pycache__")
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE, ignore=ignored)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_VIEWER],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    headers, page = json.loads(done.stdout.splitlines()[-1])
    assert "blob:" not in headers["content-security-policy"]
    assert "sha256" not in headers["content-security-policy"]
    assert find_attribute(page, "data-viewer") == [""]
    assert "was built without a network" in done.stdout + done.stderr


def test_a_model_is_sent_to_the_viewer_and_cached_under_its_version(
    client: TestClient, tmp_path: Path
) -> None:
    """The browser gets the file inline; it is cached only under the URL of this very file."""
    result = run_task("models_sent", **CHAIR_ARGUMENTS, output_path=str(tmp_path))
    (url,) = find_attribute(get_page(client, "models_sent", result.run_id), "data-model")
    response = client.get(url)
    assert response.content == next(tmp_path.rglob("*.glb")).read_bytes()
    assert response.headers["content-type"] == "model/gltf-binary"
    assert "content-disposition" not in response.headers
    assert response.headers["cache-control"] == "private, max-age=3600"
    again = client.get(url, headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for other in (url.partition("?")[0], f"{url}0"):
        assert client.get(other).headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        ({**CHAIN_ARGUMENTS}, 0),  # a picture or a text
        ({**CHAIN_ARGUMENTS}, 1),
        ({**CHAIR_ARGUMENTS}, 9),  # there is none
    ],
)
def test_nothing_but_a_model_is_sent_to_the_viewer(
    client: TestClient, tmp_path: Path, arguments: dict[str, Any], number: int
) -> None:
    """Any other output is refused, so that nothing else can be framed or executed."""
    result = run_task("models_other", **arguments, output_path=str(tmp_path))
    response = client.get(f"/flows/{task_path('models_other', result.run_id)}/output/{number}/model")
    assert response.status_code == 404
    assert response.headers["content-type"].startswith("text/html")


def test_a_model_above_the_bound_is_not_sent(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser has a whole model in memory, so a huge one is a download only."""
    result = run_task("models_huge", **CHAIR_ARGUMENTS, output_path=str(tmp_path))
    monkeypatch.setattr(output_files, "MAX_MODEL_BYTES", 1000)
    path = f"/flows/{task_path('models_huge', result.run_id)}/output/0"
    assert client.get(f"{path}/model").status_code == 404
    assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("gltf", "compression"),
    [
        ({}, None),
        ({"extensionsUsed": ["KHR_materials_unlit"], "extensionsRequired": "none"}, None),
        ({"extensionsRequired": ["KHR_draco_mesh_compression"]}, "Draco"),
        ({"extensionsUsed": ["KHR_draco_mesh_compression"]}, "Draco"),
        ({"extensionsUsed": ["KHR_texture_basisu"]}, "KTX2"),
        ({"extensionsUsed": [7, "EXT_meshopt_compression"]}, "meshopt"),
        ({"extensionsUsed": {"KHR_texture_basisu": 1}}, None),
    ],
)
def test_a_compressed_model_is_recognised_by_its_header(
    gltf: dict[str, Any], compression: str | None
) -> None:
    """The page names the compression and offers the file for download, in place of a blank stage."""
    chunk = json.dumps(gltf).encode()
    head = struct.pack("<4sIIII", b"glTF", 2, 1000, len(chunk), JSON_CHUNK_TYPE) + chunk
    assert output_files.parse_glb_header(head).compression == compression


@pytest.mark.parametrize(
    ("gltf", "has_other_files"),
    [
        ({"buffers": [{"byteLength": 8}], "images": [{"bufferView": 0}]}, False),
        ({"buffers": {"uri": "x"}, "images": "uri"}, False),
        ({"buffers": [{"uri": "https://other.example/model.bin"}]}, True),
        ({"buffers": [None, {}], "images": [7, {"uri": "../../../connection/flows_default"}]}, True),
    ],
)
def test_a_model_that_refers_to_other_files_is_recognised(
    gltf: dict[str, Any], *, has_other_files: bool
) -> None:
    """The viewer would request them from the host that the model names, or from Airflow."""
    chunk = json.dumps(gltf).encode()
    head = struct.pack("<4sIIII", b"glTF", 2, 1000, len(chunk), JSON_CHUNK_TYPE) + chunk
    assert output_files.parse_glb_header(head).has_other_files is has_other_files


def test_the_size_of_a_model_at_the_service_is_that_of_its_header(client: TestClient) -> None:
    """The script asks before it loads a large one, and nothing but the header is read for that."""
    result = run_task("models_size", **CHAIR_ARGUMENTS)
    path = task_path("models_size", result.run_id)
    info = client.get(f"/flows/json/{path}/output/0/info").json()
    assert info["model"]["triangles"] > 0
    assert info["size"] == len(client.get(f"/flows/{path}/output/0").content)


@pytest.mark.parametrize(
    "content", [b"no model", b"glTF", b"glTF" + bytes(40), b"glTF\x02\0\0\0" + b"\xff" * 40]
)
def test_a_file_that_is_no_model_has_no_facts(client: TestClient, emulator: Emulator, content: bytes) -> None:
    """A damaged header, or none, is no error: the script says that the file can only be downloaded."""
    result = run_task("models_none", **CHAIR_ARGUMENTS)
    body = json.dumps({"data": f"data:model/gltf-binary;base64,{b64encode(content).decode()}"}).encode()
    emulator.add_fault(
        Fault(
            "GET",
            "*/outputs/*",
            times=None,
            status=200,
            body=body,
            headers={"content-type": "application/json"},
        )
    )
    info = client.get(f"/flows/json/{task_path('models_none', result.run_id)}/output/0/info")
    assert info.status_code in {200, 404}
    assert info.json().get("model") is None


def test_a_final_run_leads_with_its_outputs(client: TestClient, tmp_path: Path) -> None:
    """The outputs come first, titled by the prompt; there is no bar, and ids have buttons that copy them."""
    result = run_task("models_first", **CHAIR_ARGUMENTS, output_path=str(tmp_path))
    page = get_page(client, "models_first", result.run_id)
    headings = re.findall(r"<h[123][^>]*>(.*?)</h[123]>", page, re.DOTALL)
    assert headings == ["A chair", "Outputs", "A chair", "Inputs and parameters", "Time and ids"]
    assert "<progress" not in page
    output = result.xcoms["run"]["return_value"]["outputs"][0]
    for value in (output["asset_id"], output["sha256"], result.xcoms["run"]["flow_run_id"]):
        assert f'<code>{value}</code> <button type="button" class="copy" hidden' in page


def test_a_failed_run_says_what_to_do_next(client: TestClient, emulator: Emulator) -> None:
    """The page has the reason and the next step, and no progress."""
    emulator.add_plan(Plan(outcome="failed", error="The mesh has a hole"))
    result = run_task("models_failed", **CHAIR_ARGUMENTS)
    page = get_page(client, "models_failed", result.run_id)
    assert "The mesh has a hole" in page
    assert "clear the task in Airflow" in page
    assert "paid again" in page
    assert "<progress" not in page
    assert "%" not in re.sub(r"%2[0-9A-F]|%3A", "", page)


def run_chain(dag_id: str, folder: Path, **first: Any) -> DagResult:
    """Run a DAG that generates a model, and reduces it in a second task."""
    with DAG(dag_id, schedule=None) as dag:
        make = RunFlowOperator(
            task_id="make", poll_interval=0.1, output_path=str(folder), **{**CHAIR_ARGUMENTS, **first}
        )
        RunFlowOperator(
            task_id="shrink",
            flow="model_optimize",
            inputs=make.output["outputs"],
            poll_interval=0.1,
            output_path=str(folder),
        )
    return run_dag(dag)


def test_an_input_of_the_same_dag_run_is_shown_beside_what_was_made_of_it(
    client: TestClient, emulator: Emulator, tmp_path: Path
) -> None:
    """Before and after have their viewers, titles and sizes, and no request goes to the service."""
    result = run_chain("models_chain", tmp_path)
    request_count = len(emulator.requests)
    page = get_page(client, "models_chain", result.run_id, "shrink")
    before, after = (result.xcoms[name]["return_value"]["outputs"][0] for name in ("make", "shrink"))
    make, shrink = (task_path("models_chain", result.run_id, name) for name in ("make", "shrink"))
    urls = find_attribute(page, "data-model")
    assert [url.partition("/model?")[0] for url in urls] == [
        f"/flows/{make}/output/0",
        f"/flows/{shrink}/output/0",
    ]
    assert [len(client.get(url).content) for url in urls] == [before["size"], after["size"]]
    assert format_size_change(before["size"], after["size"]) in page
    assert find_attribute(page, "data-before") == [f"{make}/output/0"]
    assert f'href="/flows/{make}">A chair</a>, made by make' in page
    assert re.findall(r"<h[13]>(.*?)</h[13]>", page)[:3] == ["A chair"] * 3
    assert len(emulator.requests) == request_count


@pytest.mark.parametrize("where", ["another DAG run", "no DAG run"])
def test_no_other_file_is_shown_as_an_input(client: TestClient, tmp_path: Path, where: str) -> None:
    """A file that no task of this DAG run has made is named, and neither shown nor served."""
    other = run_chain("models_other_run", tmp_path / "other")
    uri = other.xcoms["make"]["return_value"]["outputs"][0]["uri"]
    if where == "no DAG run":
        copied = tmp_path / "chair one.glb"
        shutil.copy(uri.removeprefix("file://"), copied)
        uri = copied.as_uri()
    result = run_task(
        "models_foreign", flow="model_optimize", inputs={"uri": uri}, output_path=str(tmp_path / "own")
    )
    page = get_page(client, "models_foreign", result.run_id)
    assert len(find_attribute(page, "data-model")) == 1
    assert "Before" not in page
    name = "chair one.glb" if where == "no DAG run" else Path(uri).name
    assert f'<dd class="text">{name}<br>' in page


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (143_000, 13_200, "143 → 13.2 kB"),
        (1_430_000, 13_200, "1.4 MB → 13.2 kB"),
        (12, 900, "12 → 900 bytes"),
        (None, 5, ""),
        (5, None, ""),
    ],
)
def test_a_difference_of_sizes_in_words(before: int | None, after: int | None, text: str) -> None:
    """One unit is named once."""
    assert format_size_change(before, after) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.0, "0 s"),
        (11.2, "12 s"),
        (95.0, "2 min"),
        (3599.0, "1 h 00 min"),
        (4000.0, "1 h 07 min"),
    ],
)
def test_the_time_until_the_expected_end_in_words(seconds: float | None, text: str) -> None:
    """It is given to the minute, and to the second only near the end."""
    assert format_time_left(seconds) == text


def test_a_sensors_page_has_the_parameters_that_the_service_has(
    client: TestClient, emulator: Emulator
) -> None:
    """A sensor knows no parameters, so its page requests the run, once a minute."""
    first = run_task("models_seen", **CHAIR_ARGUMENTS)
    with DAG("models_sensor", schedule=None) as dag:
        FlowRunSensor(task_id="run", flow_run_id=first.xcoms["run"]["flow_run_id"], poll_interval=0.1)
    result = run_dag(dag)
    request_count = len(emulator.requests)
    for _ in range(3):
        page = get_page(client, "models_sensor", result.run_id)
        assert "<dt>quality</dt><dd><code>low</code></dd>" in page
    assert len(emulator.requests) == request_count + 1


@needs("task state store")
def test_a_deferred_function_has_its_prompts_on_the_page(client: TestClient, emulator: Emulator) -> None:
    """The beginning of each prompt is there after the deferral; Airflow's log has none of it."""
    emulator.run_seconds = 0.5

    @task.flow(flow="model_generate_fromprompt", deferrable=True, poll_interval=0.1)
    def run() -> list[Any]:
        return ["A chair " * 100, {"data": "A stool"}]

    with DAG("models_deferred", schedule=None) as dag:
        run()
    result = run_dag(dag)
    assert "deferred" in result.log.lower()
    assert "A chair" not in result.log
    page = get_page(client, "models_deferred", result.run_id)
    assert f'<dd class="text">{"A chair " * 25}</dd>' in page
    assert '<dd class="text">A stool</dd>' in page


def list_runs(client: TestClient, query: str = "") -> str:
    """Return the page of a connection's flow runs."""
    RESPONSE_CACHE.clear()
    response = client.get(f"/flows/connection/flows_default{query}")
    assert response.status_code == 200
    return response.text


def count_queries(function: Callable[[], object]) -> int:
    """Return how many queries with XComs a function sends to Airflow's database."""
    statements: list[str] = []

    def on_execute(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "xcom" in statement.lower():
            statements.append(statement)

    event.listen(Engine, "before_cursor_execute", on_execute)
    try:
        function()
    finally:
        event.remove(Engine, "before_cursor_execute", on_execute)
    return len(statements)


def test_the_list_says_what_was_asked_for_and_by_which_task(client: TestClient, emulator: Emulator) -> None:
    """A row leads with the prompt, above task and id; a failed one has its reason; one query finds all."""
    for number in range(3):
        run_task(f"models_row_{number}", **{**CHAIR_ARGUMENTS, "inputs": f"A chair {number}"})
    emulator.add_plan(Plan(outcome="failed", error="The mesh has a hole"))
    failed = run_task("models_row_failed", **CHAIR_ARGUMENTS)
    page = list_runs(client)
    for number in range(3):
        assert re.search(rf'<a href="[^"]+/run/[^"]+">A chair {number}</a>', page)
        assert f"models_row_{number} {ARROW} run</a>" in page
    assert f'href="/flows/{task_path("models_row_failed", failed.run_id)}"' in page
    assert '<span class="soft small">The mesh has a hole</span>' in page
    assert "<progress" not in page
    assert count_queries(lambda: list_runs(client)) == 1
    assert "A chair 1" in list_runs(client, "?search=MODELS_row_1")
    assert "A chair 2" not in list_runs(client, "?search=MODELS_row_1")
    assert "No flow runs match" in list_runs(client, "?search=nothing-like-this")


def test_the_list_names_no_dag_that_the_user_may_not_read(clients: dict[str, TestClient]) -> None:
    """Who may read the connection, but not the DAG or its XComs, sees the run without prompt and task."""
    run_task("models_private", **{**CHAIR_ARGUMENTS, "inputs": "A private chair"})
    assert "A private chair" in list_runs(clients["anna"])
    for name in ("dora", "xena"):
        page = list_runs(clients[name])
        assert "model_generate_fromprompt" in page
        assert "A private chair" not in page
        assert "models_private" not in page


def test_a_forged_stamp_names_no_task(client: TestClient) -> None:
    """A stamp that names a task instance with another flow run, or none at all, is no origin."""
    result = run_task("models_stamped", **{**CHAIR_ARGUMENTS, "inputs": "A stamped chair"})
    key = {"dag_id": "models_stamped", "run_id": result.run_id, "task_id": "run", "map_index": -1}
    stamps = [
        key,
        {**key, "map_index": "x"},
        {**key, "task_id": 7},
        {**key, "region_id": "x", "region_index": 1},
    ]
    for stamp in stamps:
        GenerioHook("flows_default").start(
            "model_generate_fromprompt", ["A forged chair"], additional={STAMP_KEY: stamp}
        )
    assert list_runs(client).count(f"models_stamped {ARROW} run") == 1
