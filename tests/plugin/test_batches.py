"""Tests of a batch's tab in Airflow's own API server: its counts, its items, and other manifests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow.models.taskinstance import TaskInstance
from airflow.sdk import DAG
from airflow.utils.session import create_session
from fastapi.testclient import TestClient
from sqlalchemy import update

from airflow_provider_flows.core.flow_run import FlowState
from airflow_provider_flows.emulator import Emulator, Plan
from airflow_provider_flows.operators import RunFlowBatchOperator
from airflow_provider_flows.plugin import batches, get_headers
from airflow_provider_flows.plugin.batches import ITEMS_PER_PAGE
from airflow_provider_flows.plugin.cache import RESPONSE_CACHE
from tests.support.airflow_run import run_dag
from tests.support.batches import read_lines
from tests.support.modes import FLOW
from tests.support.plugin_rights import DORAS_DAG
from tests.support.plugin_site import airflow_clients, task_path
from tests.support.stored_xcoms import set_xcom
from tests.support.versions import lacks, needs

pytestmark = pytest.mark.emulator(run_seconds=0, retries=0)

ITEM_COUNT = ITEMS_PER_PAGE + 10
FAILURE = "The mesh has a <b>hole</b>"
INVALID_KEY = "odd"
Clients = dict[str, TestClient]


@dataclass
class Site:
    """A finished batch, its folder and the users of the pages."""

    clients: Clients
    run_id: str
    result: dict[str, Any]
    folder: Path

    @property
    def path(self) -> str:
        """The path of the tab."""
        return task_path(DORAS_DAG, self.run_id)

    @property
    def manifest(self) -> Path:
        """The path of the manifest."""
        return self.folder / "manifest.jsonl"

    def get(self, path: str = "", status: int = 200, user: str = "dora") -> Any:
        """Request a page below the tab; assert its status and its security headers."""
        response = self.clients[user].get(f"/flows/{self.path}{path}")
        assert response.status_code == status, response.text
        assert {name: response.headers[name] for name in get_headers()} == get_headers()
        return response

    def get_json(self, query: str = "") -> Any:
        """Return the data of the tab, as it is now."""
        RESPONSE_CACHE.clear()
        response = self.clients["dora"].get(f"/flows/json/{self.path}{query}")
        assert response.status_code == 200, response.text
        return response.json()

    def set_state(self, state: str) -> None:
        """Change the state of the task instance in Airflow's database."""
        with create_session() as session:
            session.execute(
                update(TaskInstance).where(TaskInstance.run_id == self.run_id).values(state=state)
            )


@pytest.fixture(scope="module")
def flow_emulator_server() -> Iterator[Emulator]:
    """Run one emulator for all tests here."""
    with Emulator() as emulator:
        yield emulator


@pytest.fixture(scope="module")
def finished(
    airflow_database: None,  # noqa: ARG001  # a fixture requests another
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Any]]:
    """Yield clients, and what the tests here share."""
    with airflow_clients() as clients:
        yield {"clients": clients, "folder": tmp_path_factory.mktemp("batch")}


@pytest.fixture
def site(finished: dict[str, Any], emulator: Emulator) -> Iterator[Site]:
    """Yield the batch, which is run once; what a test changes is restored."""
    RESPONSE_CACHE.clear()
    if "site" not in finished:
        finished["site"] = _run_batch(finished["clients"], finished["folder"], emulator)
    one: Site = finished["site"]
    lines = one.manifest.read_bytes()
    yield one
    one.manifest.unlink(missing_ok=True)
    one.manifest.write_bytes(lines)
    set_xcom(one.run_id, "return_value", one.result)
    one.set_state("success")


def _run_batch(clients: Clients, folder: Path, emulator: Emulator) -> Site:
    emulator.add_plan(Plan("failed", error=FAILURE))
    items = [{"key": f"chair-{number}", "inputs": f"Chair {number}"} for number in range(1, ITEM_COUNT)]
    items.append({"key": INVALID_KEY, "inputs": "Chair", "parameters": {"quality": "odd"}})  # type: ignore[dict-item]  # mixed
    with DAG(DORAS_DAG, schedule=None) as dag:
        RunFlowBatchOperator(
            task_id="run",
            flow=FLOW,
            items=items,
            parameters={"quality": "low"},
            output_path=f"{folder}/{{{{ dag.dag_id }}}}",
            max_active_runs=1,  # so that the first item fails
            min_success_ratio=0,
            validate="skip",
            poll_interval=0.1,
            max_poll_interval=0.2,
            flows_conn_id="generio_default",
        )
    result = run_dag(dag)
    assert result.state == "success", result.log
    return Site(clients, result.run_id, result.xcoms["run"]["return_value"], folder / DORAS_DAG)


def test_a_finished_batch(site: Site) -> None:
    """The page has counts as a picture with a text, the items, their errors escaped, and links to files."""
    page = site.get_json()
    counts = {"completed": ITEM_COUNT - 2, "failed": 1, "invalid": 1}
    assert (page["counts"], page["total"], page["ended"]) == (counts, ITEM_COUNT, ITEM_COUNT)
    assert (page["state"], page["task_state"], page["refresh_after"]) == ("completed", "success", None)
    assert (page["flow"], page["service"], page["note"]) == (FLOW, "generio", None)
    assert page["duration"] == site.result["duration"]
    assert page["manifest"] == site.manifest.as_uri()
    first, second = page["items"][:2]
    assert (first["key"], first["state"], first["attempts"], first["outputs"]) == ("chair-1", "failed", 1, [])
    assert FAILURE in first["error"]
    assert (second["key"], second["state"], second["error"]) == ("chair-2", "completed", None)
    assert second["outputs"][0]["media_type"] == "model/gltf-binary"
    html = site.get().text
    assert f'aria-label="{ITEM_COUNT - 2} completed, 1 failed, 1 invalid"' in html
    assert html.count("<rect") == len(counts)
    assert "style=" not in html  # the content security policy forbids it
    assert FAILURE not in html
    assert "&lt;b&gt;hole" in html
    assert f'href="/flows/{site.path}/item/chair-2/output/0" download' in html


@pytest.mark.parametrize(
    ("query", "keys", "matches"),
    [
        ("?state=failed", ["chair-1"], 1),
        ("?state=invalid", [INVALID_KEY], 1),
        ("?key=CHAIR-1", ["chair-1", *[f"chair-{number}" for number in range(10, 20)]], 11),
        ("?key=chair-1&state=failed", ["chair-1"], 1),
        ("?page=2", [*[f"chair-{number}" for number in range(51, ITEM_COUNT)], INVALID_KEY], ITEM_COUNT),
        ("?page=77", [*[f"chair-{number}" for number in range(51, ITEM_COUNT)], INVALID_KEY], ITEM_COUNT),
        ("?state=aborted", [], 0),
        ("?key=%0a", [f"chair-{number}" for number in range(1, ITEMS_PER_PAGE + 1)], ITEM_COUNT),
        ("?key=%22%3E%3Cb%3E", [], 0),
    ],
)
def test_filters_and_pages(site: Site, query: str, keys: list[str], matches: int) -> None:
    """Items are selected by state and by a part of the key; a page beyond the last one is the last one."""
    page = site.get_json(query)
    assert [item["key"] for item in page["items"]] == keys
    assert page["matches"] == matches
    assert page["note"] == (None if keys else batches.NO_MATCH_NOTE)
    assert sum(page["states"].values()) == ITEM_COUNT
    html = site.get(query).text
    assert "<b>" not in html
    assert ("Page 2 of 2" in html) is ("page=" in query)


@pytest.mark.parametrize("query", ["?page=0", "?page=x", f"?key={'k' * 101}", f"?state={'s' * 31}"])
def test_invalid_parameters(site: Site, query: str) -> None:
    """Parameters out of their bounds have an error page."""
    site.get(query, 422)


def test_the_page_of_an_item(site: Site) -> None:
    """An item has the page of its run, and its files can be downloaded as those of a single run."""
    line = next(line for line in read_lines(site.manifest) if line["key"] == "chair-2")
    page = site.get("/item/chair-2").text
    assert line["flow_run_id"] in page
    assert "← Batch" in page
    stored = Path(line["outputs"][0]["uri"].removeprefix("file://"))
    response = site.get("/item/chair-2/output/0")
    assert response.content == stored.read_bytes()
    assert response.headers["content-disposition"] == f'attachment; filename="{stored.name}"'
    response = site.clients["dora"].get(f"/flows/json/{site.path}/item/chair-2/output/0/info")
    assert response.json()["model"]["triangles"] > 0
    response = site.clients["dora"].get(f"/flows/json/{site.path}/item/chair-1")
    assert response.json()["run"]["state"] == FlowState.FAILED
    assert FAILURE in response.json()["run"]["error"]


@pytest.mark.parametrize("key", ["chair-999", INVALID_KEY, "..%2F..%2Fetc", "chair", "%ff"])
def test_items_without_a_page(site: Site, key: str) -> None:
    """Only an item of the manifest with a flow run has one."""
    site.get(f"/item/{key}", 404)
    site.get(f"/item/{key}/output/0", 404)


def test_access(site: Site) -> None:
    """The pages of a batch require what the tab requires: the DAG's task instances and XComs."""
    for path in ("", "/item/chair-2", "/item/chair-2/output/0"):
        site.get(path, 403, user="xena")
        site.get(path, 401, user="anonymous")


@needs("task state store")
def test_a_running_batch(site: Site) -> None:
    """The counts are those of the records, newer than the manifest; what is not started yet is pending."""
    lines = site.manifest.read_bytes().splitlines(keepends=True)
    site.manifest.write_bytes(b"".join(lines[:20]))
    set_xcom(site.run_id, "return_value", None)
    site.set_state("running")
    page = site.get_json()
    assert page["counts"] == {"completed": ITEM_COUNT - 2, "failed": 1, "invalid": 1}
    assert (page["total"], page["states"]) == (ITEM_COUNT, {"completed": 19, "failed": 1})
    assert (page["state"], page["refresh_after"]) == ("running", batches.PAGE_POLL_SECONDS)
    assert page["rate"] > 0
    version = page["version"]
    assert site.get_json()["version"] == version
    site.manifest.write_bytes(b"".join(lines))
    assert site.get_json()["version"] != version


@needs("task state store")
@pytest.mark.parametrize("state", ["running", "failed"])
def test_the_manifest_of_another_batch_is_not_shown(site: Site, state: str) -> None:
    """A line whose flow run the batch has not recorded is left out, and so is a manifest of such lines."""
    set_xcom(site.run_id, "return_value", None)
    site.set_state(state)
    lines = read_lines(site.manifest)
    lines[1] |= {"flow_run_id": lines[2]["flow_run_id"]}  # that of another item
    site.manifest.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert [item["key"] for item in site.get_json()["items"]][:2] == ["chair-1", "chair-3"]
    site.get("/item/chair-2", 404)
    foreign = [{**line, "flow_run_id": line["flow_run_id"] and "f" * 24} for line in lines]
    site.manifest.write_text("".join(f"{json.dumps(line)}\n" for line in foreign))
    page = site.get_json()
    assert page["items"] == []
    expected = batches.NO_ITEMS_YET_NOTE if state == "running" else batches.NO_MANIFEST_NOTE
    assert page["note"] == expected
    site.get("/item/chair-3", 404)


@needs("task state store")
def test_a_failed_batch_has_no_result(site: Site) -> None:
    """The records name the batch then."""
    set_xcom(site.run_id, "return_value", None)
    site.set_state("failed")
    page = site.get_json()
    assert (page["state"], page["total"], len(page["items"])) == ("failed", ITEM_COUNT, ITEMS_PER_PAGE)


@lacks("task state store")
def test_without_records_the_result_names_the_manifest(site: Site) -> None:
    """A batch without a result has a message on an Airflow without records."""
    set_xcom(site.run_id, "return_value", None)
    site.set_state("failed")
    page = site.get_json()
    assert (page["items"], page["note"]) == ([], batches.NO_RECORD_NOTE)


def test_a_forged_result_selects_no_other_file(site: Site, tmp_path: Path) -> None:
    """A user who may write XComs cannot have the API server read another file."""
    other = tmp_path / "manifest.jsonl"
    other.write_bytes(site.manifest.read_bytes())
    for uri in (other.as_uri(), f"{site.folder.as_uri()}/../{site.folder.name}/manifest.jsonl", "x"):
        set_xcom(site.run_id, "return_value", {**site.result, "manifest": uri})
        page = site.get_json()
        assert (page["items"], page["is_error"]) == ([], True)
        assert page["note"] == batches.OTHER_MANIFEST_NOTE
        assert page["total"] == ITEM_COUNT


@pytest.mark.parametrize("kind", ["missing", "link", "folder", "pipe", "no JSON", "nested", "other values"])
def test_manifests_that_cannot_be_read(site: Site, tmp_path: Path, kind: str) -> None:
    """The page has a message, and the counts that Airflow has."""
    content = site.manifest.read_bytes()
    site.manifest.unlink()
    if kind == "link":
        (tmp_path / "target").write_bytes(content)
        site.manifest.symlink_to(tmp_path / "target")
    elif kind == "folder":
        site.manifest.mkdir()
    elif kind == "pipe":
        os.mkfifo(site.manifest)
    elif kind != "missing":
        lines = {"no JSON": b"{", "nested": b"[" * 100_000, "other values": b'{"key": 1, "state": 2}'}
        site.manifest.write_bytes(lines[kind] + b"\n")
    try:
        page = site.get_json()
        site.get()
        site.get("/item/chair-2", 404)
    finally:
        if kind == "folder":
            site.manifest.rmdir()
    assert page["items"] == []
    assert page["is_error"] is (kind != "missing")
    assert page["total"] == ITEM_COUNT
    assert page["counts"]["completed"] == ITEM_COUNT - 2


def test_odd_values_in_a_line(site: Site) -> None:
    """Another program may have written any value; the page shows what can be shown."""
    line = read_lines(site.manifest)[1]
    odd = {"outputs": {"a": 1}, "error": ["x"], "attempts": "many", "started_at": 5, "finished_at": "soon"}
    texts = {"outputs": [{"name": "t", "value": "<i>" * 999}], "error": "<i>", "attempts": 10**99}
    lines = [{**line, **odd}, {**line, **texts}, {"key": line["key"], "state": None}]
    site.manifest.write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    first, second, third = site.get_json()["items"]
    assert (first["outputs"], first["error"], first["attempts"]) == ([], None, 0)
    assert len(second["outputs"][0]["text"]) == 200
    assert (third["state"], third["flow_run_id"]) == ("unknown", None)
    assert "<i>" not in site.get().text.replace("<i aria-hidden", "")


@needs("task state store")
def test_a_batch_that_was_stopped_counts_what_it_has_skipped(site: Site) -> None:
    """Without a complete manifest, the records tell which items were never started."""
    set_xcom(site.run_id, "return_value", None)
    site.set_state("failed")
    site.manifest.unlink()
    page = site.get_json()
    assert page["counts"] == {"completed": ITEM_COUNT - 2, "failed": 1, "invalid": 1}
    assert page["note"] == batches.NO_MANIFEST_NOTE
