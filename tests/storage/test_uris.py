"""Tests of blanks, percent signs and other characters in the names of files, as inputs and as outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, ObjectStoragePath

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.flow_run import UploadSource
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.storage.inputs import parse_inputs
from airflow_provider_flows.storage.paths import to_object_path
from tests.support.airflow_run import run_dag
from tests.support.bucket import BUCKET, BUCKET_CONN_ID, ObjectServer
from tests.support.modes import FAST_POLLING, FLOW

PNG = b"\x89PNG\r\n\x1a\n....."
NAMES = [
    "my chair.png", "100%.png", "100%25.png", "a%20b.png", "50% off %41.png", "ä ö.png", "a+b.png", "a#b.png",
    "a?b=c.png", "a&b;c.png", "%zz.png", " chair.png ",
]  # fmt: skip


def content(given: Any, conn_id: str | None = None) -> bytes:
    """Return the content of the one file that is given."""
    (read,) = parse_inputs(given, conn_id)
    assert not isinstance(read, str)
    assert isinstance(read.data, UploadSource)
    return b"".join(read.data.chunks())


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_a_local_file_takes_any_name(tmp_path: Path, name: str) -> None:
    """A path, a URI to the letter, and an encoded URI as of `Path.as_uri` name the file."""
    path = tmp_path / "a folder" / name
    path.parent.mkdir()
    path.write_bytes(PNG + name.encode())
    ways = [
        path,
        ObjectStoragePath(f"file://{path}"),
        {"uri": f"file://{path}"},
        {"uri": path.as_uri()},
    ]
    assert [content(way) for way in ways] == [PNG + name.encode()] * len(ways)


def test_uri_of_two_local_files_is_rejected(tmp_path: Path) -> None:
    """A URI that is one file's to the letter, and another's decoded, is an error; a Path is not ambiguous."""
    for name in ("a b.png", "a%20b.png"):
        (tmp_path / name).write_bytes(PNG + name.encode())
    uri = (tmp_path / "a b.png").as_uri()
    with pytest.raises(
        FlowInputError, match=r"inputs\[0\] is ambiguous: both .*a%20b.png and .*a b.png exist.*Path"
    ):
        parse_inputs({"uri": uri})
    assert content(tmp_path / "a b.png") == PNG + b"a b.png"
    assert content({"uri": (tmp_path / "a%20b.png").as_uri()}) == PNG + b"a%20b.png"


@pytest.mark.parametrize("escape", ["%20", "%00", "%2F", "%FF", "%"])
def test_missing_file_is_named_as_it_was_given(tmp_path: Path, escape: str) -> None:
    """An encoded URI of no file is the usual error, with the URI to the letter."""
    uri = f"file://{tmp_path}/a{escape}b.png"
    with pytest.raises(
        FlowInputError, match=rf"inputs\[0\] names a file that cannot be read .*a{escape}b.png"
    ):
        parse_inputs({"uri": uri})


@pytest.mark.parametrize("location", ["chair.png", "./chair.png", "../in/chair.png", "~/chair.png"])
def test_relative_uri_is_below_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    """A path without a scheme is relative to the process's folder, or to the home folder."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "chair.png").write_bytes(PNG)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    assert content({"uri": location}) == PNG


@pytest.mark.parametrize("conn_id", [None, "another_connection"])
def test_connection_in_a_uri_takes_precedence(bucket: ObjectServer, conn_id: str | None) -> None:
    """The connection that a URI names is used, with and without a connection beside the URI."""
    path = to_object_path(f"s3://{BUCKET_CONN_ID}@{BUCKET}/in", conn_id) / "chair.png"
    path.write_bytes(PNG)
    assert bucket.objects() == {"in/chair.png": PNG}


@pytest.mark.parametrize("name", [name for name in NAMES if "?" not in name])
@pytest.mark.usefixtures("bucket")
def test_key_of_an_object_store_takes_any_name(name: str) -> None:
    """A key is to the letter, as in S3's own URIs, also with blanks and percent signs."""
    path = ObjectStoragePath(f"s3://{BUCKET}/a folder/{name}", conn_id=BUCKET_CONN_ID)
    path.write_bytes(PNG + name.encode())
    assert content(path) == PNG + name.encode()
    assert content({"uri": f"s3://{BUCKET}/a folder/{name}"}, BUCKET_CONN_ID) == PNG + name.encode()


@pytest.mark.usefixtures("bucket")
def test_encoded_key_is_read_if_no_object_has_it() -> None:
    """An encoded key is decoded only if there is no object with the key to the letter."""
    folder = ObjectStoragePath(f"s3://{BUCKET}/in", conn_id=BUCKET_CONN_ID)
    encoded = {"uri": f"s3://{BUCKET}/in/My%20Chair.png"}
    (folder / "My Chair.png").write_bytes(PNG + b"decoded")
    assert content(encoded, BUCKET_CONN_ID) == PNG + b"decoded"
    (folder / "My%20Chair.png").write_bytes(PNG + b"letter")
    assert content(encoded, BUCKET_CONN_ID) == PNG + b"letter"
    with pytest.raises(FlowInputError, match="cannot be read"):
        parse_inputs({"uri": f"s3://{BUCKET}/in/Your%20Chair.png"}, BUCKET_CONN_ID)


@pytest.mark.parametrize("store", ["local", "bucket"])
@pytest.mark.usefixtures("bucket")
def test_output_path_may_have_blanks_and_percent_signs(
    flow_emulator: Emulator, tmp_path: Path, store: str
) -> None:
    """Outputs are stored in the folder to the letter, and the next task reads them from there."""
    flow_emulator.run_seconds = 0
    folder = f"file://{tmp_path}" if store == "local" else f"s3://{BUCKET}"
    conn_id = None if store == "local" else BUCKET_CONN_ID
    arguments = {
        "output_path": f"{folder}/my 100%20 chairs", "output_conn_id": conn_id, "input_conn_id": conn_id,
        **FAST_POLLING,
    }  # fmt: skip
    with DAG(f"uris_{store}", schedule=None) as dag:
        first = RunFlowOperator(task_id="first", flow=FLOW, inputs="A chair", **arguments)
        RunFlowOperator(task_id="second", flow="model_optimize", inputs=first.output, **arguments)
    result = run_dag(dag)

    assert result.state == "success", result.log
    for task in ("first", "second"):
        (output,) = result.xcoms[task]["return_value"]["outputs"]
        assert output["uri"].startswith(f"{folder}/my 100%20 chairs/")
        assert len(content({"uri": output["uri"]}, conn_id)) == output["size"]
    assert [one.name for one in ObjectStoragePath(folder, conn_id=conn_id).iterdir()] == ["my 100%20 chairs"]
