"""Tests of what the tab serves when XComs are forged: no other file, and no other flow run.

A user may write a DAG's XComs without permission to read its connection or the files of other DAGs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from airflow.sdk import DAG
from airflow.utils.session import create_session
from fastapi.testclient import TestClient
from sqlalchemy import delete

from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun, FlowState
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.plugin.cache import RESPONSE_CACHE
from airflow_provider_flows.plugin.output_files import (
    NoFileError,
    load_output_info,
    open_image,
    open_output,
)
from airflow_provider_flows.plugin.run_view import RunView
from airflow_provider_flows.services import Service
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.services.promptchainer import PromptChainer
from airflow_provider_flows.storage.output_options import OutputOptions
from tests.support.airflow_run import run_dag
from tests.support.bucket import BUCKET, BUCKET_CONN_ID, ObjectServer
from tests.support.plugin_site import airflow_clients, task_path
from tests.support.stored_xcoms import delete_xcom, set_xcom
from tests.support.tries import CHAIR_ARGUMENTS
from tests.support.versions import has, needs

pytestmark = pytest.mark.emulator(run_seconds=0, retries=0)

SECRET = b"glTF" + b"the salaries of the year 2026" * 3
OTHER_ID = "6b0d67cb2a069088a90c5fdc"  # in the form of Generio's ids
ROUTES = ("{path}/output/0", "{path}/output/0/image", "json/{path}/output/0/info")


@pytest.fixture(scope="module")
def viewer(airflow_database: None) -> Iterator[TestClient]:  # noqa: ARG001  # a fixture requests another
    """Yield the client of a user who may read DAGs and XComs, and nothing else."""
    with airflow_clients() as clients:
        yield clients["vera"]


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    """Clear the responses that the pages have cached."""
    RESPONSE_CACHE.clear()


@dataclass
class Task:
    """A task that has stored its file, and its XComs, which can be forged."""

    dag_id: str
    run_id: str
    returned: dict[str, Any]
    folder: Path

    @property
    def path(self) -> str:
        """The path of its tab."""
        return task_path(self.dag_id, self.run_id)

    @property
    def flow_run_id(self) -> str:
        """The flow run that it really has."""
        return str(self.returned["flow_run_id"])

    @property
    def file(self) -> Path:
        """The file that it has stored."""
        (file,) = (self.folder / self.flow_run_id).glob("*.glb")
        return file

    def forge(self, flow_run_id: str | None = None, **output: Any) -> None:
        """Replace the id and fields of the output in its XComs."""
        forged_id = self.flow_run_id if flow_run_id is None else flow_run_id
        own = next(iter(self.returned["outputs"]), {})
        outputs = [{**own, "asset_id": None, **output}]
        values = {
            "return_value": {**self.returned, "flow_run_id": forged_id, "outputs": outputs},
            "flow_run_id": forged_id,
            "outputs": outputs,
        }
        for key, value in values.items():
            set_xcom(self.run_id, key, value)

    def delete_records(self) -> None:
        """Delete what it has recorded, as on an Airflow without a task state store."""
        if has("task state store"):
            from airflow.models.task_state_store import TaskStateStoreModel

            with create_session() as session:
                session.execute(delete(TaskStateStoreModel).where(TaskStateStoreModel.run_id == self.run_id))


def run_task(dag_id: str, folder: Path | None, **arguments: Any) -> Task:
    """Run a DAG of one task, which stores its file in a folder."""
    with DAG(dag_id, schedule=None) as dag:
        output_path = None if folder is None else folder.as_uri()
        defaults = {**CHAIR_ARGUMENTS, "poll_interval": 0.1, "output_path": output_path}
        RunFlowOperator(task_id="run", **{**defaults, **arguments})
    result = run_dag(dag)
    returned = result.xcoms["run"].get("return_value") or {"outputs": [{}]}
    return Task(dag_id, result.run_id, returned, folder or Path("/"))


def facts(content: bytes) -> dict[str, Any]:
    """Return size and digest of a file, which an attacker may know."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def get_statuses(viewer: TestClient, task: Task) -> set[int]:
    """Request the output with each route, and return the statuses; the secret is in no response."""
    statuses = set()
    for route in ROUTES:
        response = viewer.get("/flows/" + route.format(path=task.path))
        assert b"salaries" not in response.content
        statuses.add(response.status_code)
    return statuses


def forge_run_id(flow_run_id: str) -> Callable[[Task], tuple[str, str]]:
    """Return the id and the URI of the secret in the folder that this id names."""
    return lambda task: (flow_run_id, f"{task.folder.as_uri()}/{flow_run_id}/2026.glb")


def forge_uri(uri: str) -> Callable[[Task], tuple[str, str]]:
    """Return the task's own id, and another URI."""
    names = {"OUTSIDE": lambda task: task.folder.parent.as_uri(), "INSIDE": lambda task: task.folder.as_uri()}

    def forge(task: Task) -> tuple[str, str]:
        text = uri.replace("ID", task.flow_run_id)
        for name, get in names.items():
            text = text.replace(name, get(task))
        return task.flow_run_id, text

    return forge


BAD_FORMS = {
    "a folder beside": "../payroll",
    "the folder itself": ".",
    "the folder above": "..",
    "a name": "payroll",
    "a name of hex digits": "facade",
    "a year": "2026",
    "a name with a digit": "payroll1",
    "a hidden folder": ".flows",
    "an absolute path": "/etc",
    "an encoded separator": "..%2Fpayroll",
    "a doubly encoded separator": "..%252Fpayroll",
    "a backslash": "..\\payroll",
    "NUL": f"{OTHER_ID}\x00",
    "a line break": f"{OTHER_ID}\n",
    "a folder below": f"{OTHER_ID}/more",
    "a wide full stop": "\uff0e\uff0e",
    "wide digits": OTHER_ID.replace("6", "\uff16"),
    "a query": f"{OTHER_ID}?x",
    "a wildcard": "*",
    "a very long id": "0" * 1000,
}
FORGED_IDS = {name: forge_run_id(flow_run_id) for name, flow_run_id in BAD_FORMS.items()}
FORGED_URIS = {
    name: forge_uri(uri)
    for name, uri in {
        "a file of the system": "file:///etc/hostname",
        "a file above the run's folder": "INSIDE/ID/../../secret.glb",
        "the folder above": "INSIDE/ID/..",
        "another folder": "OUTSIDE/secret.glb",
        "a file above, encoded": "INSIDE/ID/%2e%2e%2f%2e%2e%2fsecret.glb",
        "a file beside": "INSIDE/ID/../payroll/2026.glb",
        "another folder below output_path": "INSIDE/payroll/2026.glb",
        "a folder in the run's folder": "INSIDE/ID/more/2026.glb",
        "a symbolic link": "INSIDE/ID/link.glb",
        "a pipe": "INSIDE/ID/pipe.glb",
        "a hidden file": "INSIDE/ID/.hidden.glb",
        "another file of the run": "INSIDE/ID/other.glb",
        "another bucket": "s3://other/ID/2026.glb",
        "another scheme": "memory://INSIDE/ID/2026.glb",
        "another host": "file://other/ID/2026.glb",
        "a chain of file systems": "simplecache::INSIDE/ID/2026.glb",
        "a path": "/etc/hostname",
        "a relative path": "2026.glb",
        "nothing": "",
    }.items()
}


def write_secrets(task: Task) -> None:
    """Write the secret wherever a forged XCom may lead to."""
    run_folder = task.file.parent
    names = [name for name in BAD_FORMS.values() if "\x00" not in name and len(name) < 200 and name != "/etc"]
    folders = [task.folder / name for name in (*names, "payroll", OTHER_ID)]
    for folder in (*folders, task.folder.parent, run_folder / "more"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "2026.glb").write_bytes(SECRET)
    for path in (task.folder.parent / "secret.glb", task.folder / "secret.glb"):
        path.write_bytes(SECRET)
    for name in (".hidden.glb", "other.glb"):
        (run_folder / name).write_bytes(SECRET)
    (run_folder / "link.glb").symlink_to(task.folder / "secret.glb")
    os.mkfifo(run_folder / "pipe.glb")


@pytest.mark.parametrize("is_recorded", [pytest.param(True, marks=needs("task state store")), False])
@pytest.mark.usefixtures("emulator")
def test_forged_xcom_opens_no_other_file(viewer: TestClient, tmp_path: Path, is_recorded: bool) -> None:
    """An id or a URI of something else opens nothing, also if its size and digest are known.

    One exception is documented: without records, a file of a run's folder whose digest is known.
    """
    task = run_task("forged_everywhere", tmp_path / "files")
    write_secrets(task)
    if not is_recorded:
        task.delete_records()
    for name, forge in {**FORGED_IDS, **FORGED_URIS}.items():
        flow_run_id, uri = forge(task)
        known = facts(SECRET)
        if name == "another file of the run" and not is_recorded:
            known["sha256"] = "0" * 64
        task.forge(flow_run_id, uri=uri, **known)
        assert get_statuses(viewer, task) == {404}, name


@needs("task state store")
@pytest.mark.usefixtures("emulator")
def test_file_of_another_task_is_not_served(viewer: TestClient, tmp_path: Path) -> None:
    """A task's tab does not serve the file of another DAG's run, although its XComs have all its facts."""
    other = run_task("forged_other", tmp_path)
    task = run_task("forged_own", tmp_path)
    task.forge(other.flow_run_id, **{**other.returned["outputs"][0], "asset_id": None})
    assert get_statuses(viewer, task) == {404}
    task.forge(other.flow_run_id, **other.returned["outputs"][0])  # nor does it come from the service
    assert get_statuses(viewer, task) == {404}


@pytest.mark.parametrize(
    "forged",
    [
        {"sha256": "0" * 64},
        {"sha256": None},
        {"sha256": ""},
        {"sha256": ["0"]},
        {"size": 1},
        {"size": 0},
        {"size": None},
        {"size": -1},
        {"size": True},
        {"size": "all"},
    ],
)
@pytest.mark.usefixtures("emulator")
def test_file_without_record_needs_size_and_digest(
    viewer: TestClient, tmp_path: Path, forged: dict[str, Any]
) -> None:
    """Without records, both must match before anything is sent; then the file is served."""
    task = run_task("forged_facts", tmp_path)
    task.delete_records()
    task.forge()
    response = viewer.get(f"/flows/{task.path}/output/0")
    assert response.content == task.file.read_bytes()
    assert viewer.get(f"/flows/json/{task.path}/output/0/info").json()["model"]["triangles"] > 0
    task.forge(**forged)
    assert get_statuses(viewer, task) == {404}


@pytest.mark.parametrize("is_recorded", [pytest.param(True, marks=needs("task state store")), False])
@pytest.mark.usefixtures("emulator")
def test_changed_file_is_not_served(viewer: TestClient, tmp_path: Path, is_recorded: bool) -> None:
    """A file that is not the one that the task has stored is not sent, also with the same size."""
    task = run_task("forged_changed", tmp_path)
    if not is_recorded:
        task.delete_records()
    task.forge()
    content = task.file.read_bytes()
    task.file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert viewer.get(f"/flows/{task.path}/output/0").status_code == 404


@pytest.mark.parametrize("replaced", ["file", "folder"])
@pytest.mark.usefixtures("emulator")
def test_symbolic_link_in_place_of_the_file_is_not_followed(
    viewer: TestClient, tmp_path: Path, replaced: str
) -> None:
    """A link in place of the recorded file or its folder opens nothing, also with the same bytes behind."""
    task = run_task("forged_links", tmp_path / "files")
    task.forge()
    target = task.file if replaced == "file" else task.file.parent
    target.rename(tmp_path / "moved")
    target.symlink_to(tmp_path / "moved")
    assert get_statuses(viewer, task) == {404}


@pytest.mark.usefixtures("emulator")
def test_output_path_may_be_behind_a_symbolic_link(viewer: TestClient, tmp_path: Path) -> None:
    """An administrator may move the folder of all files, and leave a link."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "files").symlink_to(tmp_path / "disk")
    task = run_task("forged_disk", tmp_path / "files")
    task.forge()
    assert viewer.get(f"/flows/{task.path}/output/0").content == task.file.read_bytes()


@pytest.mark.parametrize("is_recorded", [pytest.param(True, marks=needs("task state store")), False])
@pytest.mark.usefixtures("emulator")
def test_file_in_a_bucket_is_served(viewer: TestClient, bucket: ObjectServer, is_recorded: bool) -> None:
    """The same holds for an object store, which has no symbolic links."""
    location = {"output_path": f"s3://{BUCKET}/flows", "output_conn_id": BUCKET_CONN_ID}
    task = run_task("forged_bucket", None, **location)
    if not is_recorded:
        task.delete_records()
    task.forge()
    (content,) = bucket.objects().values()
    assert viewer.get(f"/flows/{task.path}/output/0").content == content
    assert viewer.get(f"/flows/json/{task.path}/output/0/info").json()["model"]["triangles"] > 0
    task.forge(sha256="0" * 64, uri=f"s3://{BUCKET}/flows/{OTHER_ID}/chair.glb")
    assert get_statuses(viewer, task) == {404}


@pytest.mark.parametrize("has_record", [pytest.param(True, marks=needs("task state store")), False])
def test_other_run_of_the_account_shows_its_state_only(
    viewer: TestClient, emulator: Emulator, has_record: bool
) -> None:
    """An id in an XCom shows neither the outputs nor the parameters of another task's flow run."""
    other = run_task("forged_other_run", None, parameters={"quality": "high"})
    task = run_task("forged_run", None, wait_for_completion=False, parameters=None)
    if not has_record:
        task.delete_records()
    own = viewer.get(f"/flows/json/{task.path}").json()
    assert own["outputs"]
    assert viewer.get(f"/flows/{task.path}/output/0").status_code == 200
    delete_xcom(task.run_id, "return_value")
    set_xcom(task.run_id, "flow_run_id", other.flow_run_id)
    page = viewer.get(f"/flows/json/{task.path}").json()
    assert page["run"]["state"] == "completed"
    assert (page["run"]["flow"], page["outputs"], page["parameters"]) == (None, [], {})
    assert "no record" in page["note"].replace("has a record", "no record")
    assert not page["is_error"]
    task.forge(other.flow_run_id, **other.returned["outputs"][0])
    requests_before = len(emulator.requests)
    assert get_statuses(viewer, task) == {404}
    assert not any("/outputs/" in request.path for request in emulator.requests[requests_before:])


@pytest.mark.parametrize("output_path", ["/", "file:///", "//", "/etc/..", "file:///./"])
@pytest.mark.parametrize("flow_run_id", ["etc", ".", "", "/", "etc/.", "./etc", "proc", "dev"])
@pytest.mark.parametrize("flows_conn_id", [None, "flows_default"])
@pytest.mark.usefixtures("emulator")
def test_root_as_output_path_opens_no_system_file(
    output_path: str, flow_run_id: str, flows_conn_id: str | None
) -> None:
    """No folder of the system has a run id for a name, also with its connection deleted."""
    content = Path("/etc/passwd").read_bytes()
    outputs = tuple(
        FlowOutput("passwd", uri=uri, **facts(content))
        for uri in ("file:///etc/passwd", f"file:///{flow_run_id}/passwd", f"{output_path}/etc/passwd")
    )
    run = FlowRun(flow_run_id, "generio", state=FlowState.COMPLETED)
    options = OutputOptions(output_path)
    view = RunView(flow_run_id, flows_conn_id, run, outputs, output_options=options)
    for number in range(len(outputs)):
        for read in (open_output, open_image, load_output_info):
            with pytest.raises(NoFileError):
                read(view, number)


@pytest.mark.parametrize("service", [Generio, PromptChainer, Service])
def test_no_run_id_is_a_path(service: type[Service]) -> None:
    """No service's pattern matches a separator, a dot or another unsafe character, wherever it stands."""
    valid = {Generio: OTHER_ID, PromptChainer: "0" * 32, Service: "brew-17"}[service]
    assert service.run_id_pattern.fullmatch(valid)
    for name, text in BAD_FORMS.items():
        is_default_id = service is Service and name in {"a year", "a name with a digit"}
        assert bool(service.run_id_pattern.fullmatch(text)) is is_default_id, name
    for character in "/\\.%?#*:@ \t\n\x00\u2215\u00e9":
        for text in (character + valid, valid + character, valid[:4] + character + valid[4:]):
            assert not service.run_id_pattern.fullmatch(text)
            assert not service.run_id_pattern.fullmatch(quote(text, safe="")) or text.isalnum()
