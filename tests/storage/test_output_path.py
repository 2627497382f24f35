"""Tests of output_path: what no file can be stored at is an error before a run is created.

The stores are folders, fsspec's memory, and an S3 server that permits only some requests.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.storage.file_source import unreadable_error
from tests.storage.test_outputs import small_disk
from tests.support.bucket import BUCKET, BUCKET_CONN_ID, ObjectServer, RestrictedStore, connection_json
from tests.support.object_stores import attach_store
from tests.support.task_instances import Store, context
from tests.support.tries import CHAIN_ARGUMENTS, CHAIR_ARGUMENTS
from tests.support.versions import AIRFLOW

pytestmark = pytest.mark.emulator(run_seconds=0, retries=0)


def run_task(output_path: Any, **arguments: Any) -> list[dict[str, Any]]:
    """Run a task as in a worker, and return its outputs."""
    task = RunFlowOperator(
        task_id="t", **{**CHAIR_ARGUMENTS, "output_path": output_path, "poll_interval": 0.1, **arguments}
    )
    return task.execute(context(Store()))["outputs"]


@pytest.mark.parametrize("kind", [str, Path, ObjectStoragePath])
@pytest.mark.usefixtures("emulator")
def test_path_objects_are_paths(tmp_path: Path, kind: Callable[[str], Any]) -> None:
    """A path in any of Airflow's and Python's types is accepted, as among the inputs."""
    (output,) = run_task(kind(str(tmp_path / "flows")))
    assert Path(output["uri"].removeprefix("file://")).is_relative_to(tmp_path / "flows")


# by name: what is wrong with them does not depend on any store
NAMES = {
    "": "it is empty",
    "  ": "it is empty",
    "\n": "it is empty",
    "None": "it is a relative path",
    "flows": "it is a relative path",
    "./flows": "it is a relative path",
    "../flows": "it is a relative path",
    " /tmp/flows": "it is a relative path",
    "file:flows": "it is a relative path",
    "local:flows": "it is a relative path",
    "~": "it starts with ~",
    "~/flows": "it starts with ~",
    "~root/flows": "it starts with ~",
    "file://~/flows": "it starts with ~",
    "file://tmp/x": "it names a host, 'tmp'; the URI of a local folder has three slashes: file:///tmp/x",
    "FILE://tmp/x": "it names a host, 'tmp'",
    "local://tmp/x": "it names a host, 'tmp'",
    "file://localhost/tmp/x": "it names a host, 'localhost'",
    "file://": "it names a host",
    "file:////tmp/x": "too many slashes",
    "//tmp/x": "too many slashes",
    "nonsense://box/x": "nonsense",
    # the reason is the path library's, whose versions word it differently
    "C:\\flows": "cannot be written to",
    **({"s3:/models/x": "cannot be written to"} if AIRFLOW >= (3, 3) else {}),  # an older one tries again
}


# the path library of an older Airflow rejects them
UPPER_CASE_SCHEMES = ["FILE://"] if AIRFLOW >= (3, 3) else []


@pytest.mark.parametrize("output_path", NAMES)
def test_wrong_name_is_an_error_before_a_run_is_created(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_path: str
) -> None:
    """A path that is no absolute path and no URI is named in the error; nothing is created, here or there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FlowInputError) as caught:
        run_task(output_path)
    assert f"output_path {output_path!r} cannot be written to" in str(caught.value)
    assert NAMES[output_path] in str(caught.value)
    assert "No flow run was created" in str(caught.value)
    assert caught.value.is_permanent
    assert (list(emulator.runs), emulator.started_count) == ([], 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output_path", ["", "None", "~/flows", "file://tmp/x"])
def test_wrong_name_is_an_error_before_a_chain_is_run(flow_emulator: Emulator, output_path: str) -> None:
    """A chain, whose only request is billed, is not run either."""
    with pytest.raises(FlowInputError, match="cannot be written to"):
        run_task(output_path, **CHAIN_ARGUMENTS)
    assert flow_emulator.started_count == 0


def create_file(folder: Path) -> str:
    """Return a path that is a file."""
    (folder / "taken").write_text("content")
    return str(folder / "taken")


def create_read_only(folder: Path) -> str:
    """Return a folder that permits no new file, unless the user may write everywhere."""
    if os.getuid() == 0:
        return "/sys/kernel"  # a folder of the system in which not even root creates files
    (folder / "read-only").mkdir(mode=0o500)
    return str(folder / "read-only")


# what the error says of them, besides the text of the operating system
FOLDER_PROBLEMS = {
    "a file": "it, or a folder above it, is a file. Set it to a folder",
    "below a file": "it, or a folder above it, is a file. Set it to a folder",
    "read-only": "is not permitted to write there. Set it to a folder",
    "cannot be created": "it does not exist and cannot be created. Set it to a folder",
    "a name that is too long": "Check its URI, its connection (output_conn_id) and its permissions",
}
FOLDERS: dict[str, Callable[[Path], str]] = {
    "a file": create_file,
    "below a file": lambda folder: f"file://{create_file(folder)}/x/y",
    "read-only": create_read_only,
    "cannot be created": lambda _: "/proc/flows",
    "a name that is too long": lambda folder: str(folder / ("x" * 300)),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_unwritable_folder_is_an_error_before_a_run_is_created(
    emulator: Emulator, tmp_path: Path, name: str
) -> None:
    """A folder in which no file can be written is an error that a retry would have too."""
    output_path = FOLDERS[name](tmp_path)
    with pytest.raises(FlowInputError) as caught:
        run_task(output_path)
    assert f"output_path {output_path!r} cannot be written to: " in str(caught.value)
    assert FOLDER_PROBLEMS[name] in str(caught.value)
    assert caught.value.is_permanent
    assert (list(emulator.runs), emulator.started_count) == ([], 0)


def test_full_disk_is_an_error_before_a_run_is_created(emulator: Emulator, tmp_path: Path) -> None:
    """A folder that exists and takes no bytes is an error, and a retry may succeed."""
    with small_disk(10), pytest.raises(FlowInputError, match="cannot be written to") as caught:
        run_task(str(tmp_path))
    assert not caught.value.is_permanent
    assert getattr(caught.value.__cause__, "errno", errno.EFBIG) == errno.EFBIG
    assert (list(emulator.runs), list(tmp_path.iterdir())) == ([], [])


@pytest.mark.parametrize("store", ["fragile", "closing", "forgetful"])
def test_failing_store_is_an_error_before_a_run_is_created(emulator: Emulator, store: str) -> None:
    """A store that fails during a write or at the close, or that stores less, is an error without a file."""
    files = attach_store(store)
    with pytest.raises(
        FlowInputError, match=rf"output_path '{store}://bucket' cannot be written to"
    ) as caught:
        run_task(f"{store}://bucket")
    assert not caught.value.is_permanent
    assert (list(emulator.runs), list(files.store)) == ([], [])


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("scheme", ["", "file://", "file:", *UPPER_CASE_SCHEMES, "local://"])
@pytest.mark.parametrize("name", ["my models", "100%", "a%20b", "~", "a#b?c=d", "x:y", "größe/deep", "None"])
def test_files_can_be_read_by_the_returned_uri(tmp_path: Path, scheme: str, name: str) -> None:
    """A folder of any name has exactly the files of the run, which their URIs find."""
    folder = tmp_path / name
    (output,) = run_task(f"{scheme}{folder}")
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert path.parent.parent == folder
    assert ObjectStoragePath(output["uri"]).read_bytes() == path.read_bytes()
    assert len(path.read_bytes()) == output["size"]


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("name", ["my models", "100%", "a%20b", "~"])
def test_objects_can_be_read_by_the_returned_uri(bucket: ObjectServer, name: str) -> None:
    """A prefix of any name has exactly the objects of the run, which their URIs find."""
    (output,) = run_task(f"s3://{BUCKET}/{name}", output_conn_id=BUCKET_CONN_ID)
    path = ObjectStoragePath(output["uri"], conn_id=BUCKET_CONN_ID)
    assert len(path.read_bytes()) == output["size"]
    (key,) = bucket.objects()
    assert key.startswith(f"{name}/")
    assert key.endswith(path.name)


def test_store_without_a_connection_names_the_missing_one(
    emulator: Emulator, bucket: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that rejects the credentials of the machine, or that has none, asks for a connection."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{bucket.port}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    operator = RunFlowOperator(
        task_id="t",
        **{**CHAIR_ARGUMENTS, "output_path": "s3://shop/x"},
    )
    with pytest.raises(FlowInputError) as caught:
        operator.execute(context(Store()))
    assert "Set output_conn_id to the Airflow connection of the store" in str(caught.value)
    assert "Errno" not in str(caught.value)
    assert emulator.runs == {}
    error = unreadable_error("inputs[0]", "s3://shop/chair.png", PermissionError("Forbidden"))
    assert "Forbidden. No connection is named" in str(error)
    assert "Set input_conn_id to the Airflow connection of the store" in str(error)


def test_missing_bucket_is_an_error_before_a_run_is_created(emulator: Emulator, bucket: ObjectServer) -> None:
    """A misspelt bucket is named, and not created."""
    with pytest.raises(
        FlowInputError, match=r"output_path 's3://modles/x' cannot be written to.*bucket"
    ) as caught:
        run_task("s3://modles/x", output_conn_id=BUCKET_CONN_ID)
    assert caught.value.is_permanent
    assert (list(emulator.runs), bucket.buckets()) == ([], [BUCKET])


# what a store forbids, and whether the task succeeds
RIGHTS: dict[str, tuple[Callable[[str, str], bool], bool]] = {
    "write": (lambda method, _: method in {"PUT", "POST"}, False),
    "copy, which needs to read": (lambda method, _: method in {"GET", "HEAD"}, False),
    "delete": (lambda method, path: method == "DELETE" or "?delete" in path, True),
    "list": (lambda method, path: method == "GET" and "list-type" in path, True),
    "delete and list": (
        lambda method, path: method == "DELETE" or "?delete" in path or "list-type" in path or path == "/",
        True,
    ),
}


@pytest.mark.parametrize("name", RIGHTS)
def test_only_the_right_to_write_into_a_bucket_is_required(
    emulator: Emulator,
    bucket: ObjectServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    """Without the right to write no run is created; without those to delete and to list the task succeeds."""
    is_forbidden, succeeds = RIGHTS[name]
    conn_id = "rights_" + "".join(filter(str.isalpha, name))
    with RestrictedStore(bucket.port, is_forbidden) as store, caplog.at_level(logging.WARNING):
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", connection_json(store.url))
        if not succeeds:
            with pytest.raises(
                FlowInputError, match=rf"output_path 's3://{BUCKET}/x' cannot be written to"
            ) as caught:
                run_task(f"s3://{BUCKET}/x", output_conn_id=conn_id)
            assert caught.value.is_permanent
            assert store.forbidden
            assert list(emulator.runs) == []
            return
        (output,) = run_task(f"s3://{BUCKET}/x", output_conn_id=conn_id)
    objects = bucket.objects()
    assert len(objects[output["uri"].removeprefix(f"s3://{BUCKET}/")]) == output["size"]
    if "delete" in name:
        assert store.forbidden
        assert "could not be removed (PermissionError). Remove it yourself" in caplog.text
    else:
        assert (len(objects), caplog.text) == (1, "")


def test_writing_a_test_file_costs_few_requests(emulator: Emulator, bucket: ObjectServer) -> None:
    """A task try writes one test file, and leaves nothing of it."""
    seen: list[str] = []
    with RestrictedStore(
        bucket.port, lambda method, path: seen.append(f"{method} {path}") is not None
    ) as store:
        os.environ["AIRFLOW_CONN_COUNTED_STORE"] = connection_json(store.url)
        try:
            run_task(f"s3://{BUCKET}/x", output_conn_id="counted_store")
        finally:
            del os.environ["AIRFLOW_CONN_COUNTED_STORE"]
    tests = [request for request in seen if "write-test" in request]
    assert len(tests) <= 8, tests
    assert sum(request.startswith("PUT") for request in tests) == 2  # written, and copied to its name
    assert len(emulator.runs) == len(bucket.objects()) == 1


UNKNOWN_CONN = "no_such_connection"
# output_path, output_conn_id, and what the message calls the connection
UNKNOWN_CONNECTIONS: dict[str, tuple[str | None, str | None, str]] = {
    "a path": ("{tmp_path}", UNKNOWN_CONN, "output_conn_id is"),
    "a local URI": ("file://{tmp_path}", UNKNOWN_CONN, "output_conn_id is"),
    "a bucket": (f"s3://{BUCKET}/x", UNKNOWN_CONN, "output_conn_id is"),
    "nowhere": (None, UNKNOWN_CONN, "output_conn_id is"),
    "a connection in the URI": (
        f"s3://{UNKNOWN_CONN}@{BUCKET}/x",
        None,
        "the connection in the URI of output_path is",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN_CONNECTIONS)
def test_unknown_connection_is_an_error_before_a_run_is_created(
    emulator: Emulator, tmp_path: Path, case: str
) -> None:
    """An undefined output_conn_id is a permanent error, also where files are local or stay at the service."""
    path, conn_id, subject = UNKNOWN_CONNECTIONS[case]
    output_path = None if path is None else path.format(tmp_path=tmp_path)
    with pytest.raises(FlowInputError, match=f"{subject} '{UNKNOWN_CONN}', and there is no such") as caught:
        run_task(output_path, output_conn_id=conn_id)
    assert caught.value.is_permanent
    assert not emulator.runs
    assert not list(tmp_path.iterdir())
