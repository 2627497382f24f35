"""Tests of object storage with the amazon provider's file system, an `aws` connection and an S3 server.

Tests of behaviour that is the same on every store are in the other modules of this folder.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.flow_run import UploadSource
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.storage.atomic_file import PartialFile
from airflow_provider_flows.storage.inputs import parse_inputs
from airflow_provider_flows.storage.output_options import OutputOptions
from airflow_provider_flows.storage.outputs import MAX_PARALLEL_OBJECT_STORE_WRITES
from tests.support.airflow_run import load_dags, run_dag
from tests.support.bucket import BUCKET, BUCKET_CONN_ID, SECRET, CuttingProxy, ObjectServer, connection_json
from tests.support.downloads import FileRecords, data_uri_body, fetch_or_raise, glb, hook_to, run_of
from tests.support.servers import ReceivedRequest, StubResponse, StubServer
from tools.glb import count_triangles

EXAMPLE_DAG = Path(__file__).parents[2] / "example_dags" / "models_in_a_bucket.py"
TOKEN = "a-token-in-no-other-text"
pytestmark = pytest.mark.emulator(run_seconds=0)

MIB = 1024 * 1024
CONTENT = glb(20 * MIB)  # more than two of the parts that S3 is sent
CHUNK = 96 * 1024


@pytest.fixture(scope="module")
def flow_emulator_server() -> Iterator[Emulator]:
    """Run an emulator whose key occurs in no other text, so that a test can search for it."""
    with Emulator(key=TOKEN) as emulator:
        yield emulator


def write_in_chunks(part: PartialFile, content: bytes) -> None:
    """Write to a file as a download does, a chunk at a time."""
    part.restart()
    for start in range(0, len(content), CHUNK):
        part.write(content[start : start + CHUNK])


def test_example_dag_with_a_bucket(bucket: ObjectServer, emulator: Emulator, tmp_path: Path) -> None:
    """The lesson stores an image and two models in the bucket; the second task sends the first model."""
    (dag,) = load_dags(EXAMPLE_DAG).values()
    result = run_dag(dag, conf={"output_path": f"s3://{BUCKET}/lesson", "storage_conn_id": BUCKET_CONN_ID})
    assert result.state == "success", result.log

    created = [result.xcoms[task]["return_value"] for task in ("make_model", "optimize_model")]
    outputs = [output for run in created for output in run["outputs"]]
    objects = bucket.objects()
    model, smaller = (ObjectStoragePath(output["uri"]).key for output in outputs)
    assert set(objects) == {"lesson/chair.png", model, smaller}
    triangles = []
    for output, name in zip(outputs, (model, smaller), strict=True):
        file, data = tmp_path / output["name"], objects[name]
        assert (output["size"], output["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        file.write_bytes(data)
        triangles.append(count_triangles(file))  # raises an error if the file is incomplete
    assert triangles[1] < triangles[0]
    assert triangles[1] <= 800

    (first,), (second,) = (emulator.runs[run["flow_run_id"]].inputs for run in created)
    assert data_uri.decode(first.data).data == objects["lesson/chair.png"]
    assert data_uri.decode(second.data).data == objects[model]
    assert bucket.incomplete_uploads() == []
    # Amazon's console does not show a store that is not Amazon's, so the link leads to the provider's page
    assert result.xcoms["make_model"]["flow_outputs_link"].startswith("/flows/task/models_in_a_bucket/")
    for secret in (TOKEN, SECRET):
        assert secret not in "".join(objects)
        assert secret not in result.log
        assert secret not in repr(result.xcoms)


def test_multipart_file_is_complete(bucket: ObjectServer) -> None:
    """A file uploaded in several parts has its final name once it is complete, and is a valid input."""
    folder = ObjectStoragePath(f"s3://{BUCKET}/run", conn_id=BUCKET_CONN_ID)
    part = PartialFile(folder, "large")
    write_in_chunks(part, CONTENT)
    assert not any(name.endswith(".glb") for name in bucket.objects())
    part.commit(folder / "large.glb")

    assert bucket.objects() == {"run/large.glb": CONTENT}
    assert bucket.incomplete_uploads() == []
    assert (part.size, part.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    (one,) = parse_inputs({"uri": f"s3://{BUCKET}/run/large.glb"}, BUCKET_CONN_ID)
    assert not isinstance(one, str)
    assert isinstance(one.data, UploadSource)
    assert (one.data.size, one.data.digest) == (part.size, part.sha256)
    assert b"".join(one.data.chunks()) == CONTENT


def test_cancelled_download_leaves_nothing(bucket: ObjectServer) -> None:
    """A discarded file leaves no object and no incomplete upload; the object with the final name stays."""
    folder = ObjectStoragePath(f"s3://{BUCKET}/run", conn_id=BUCKET_CONN_ID)
    (folder / "large.glb").write_bytes(b"old")
    part = PartialFile(folder, "large")
    write_in_chunks(part, CONTENT)
    part.discard()
    assert bucket.objects() == {"run/large.glb": b"old"}
    assert bucket.incomplete_uploads() == []


def test_discarded_file_is_never_completed(bucket: ObjectServer) -> None:
    """A discarded file is never completed as an object: a bucket with versions has no version of it."""
    given = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    bucket._session.put(f"{bucket.url}/{BUCKET}?versioning", data=given, timeout=10).raise_for_status()
    part = PartialFile(ObjectStoragePath(f"s3://{BUCKET}/run", conn_id=BUCKET_CONN_ID), "large")
    write_in_chunks(part, CONTENT)
    assert bucket.incomplete_uploads() != []
    part.discard()
    assert bucket.incomplete_uploads() == []
    assert "<Key>" not in bucket._get(f"/{BUCKET}?versions").text


def test_parallel_downloads_into_a_bucket_are_verified(bucket: ObjectServer) -> None:
    """A bucket takes two files at once, not four; a file counts by its digest there too."""
    now, most, lock = Counter[str](), [0], Lock()

    def reply(seen: ReceivedRequest) -> StubResponse:
        with lock:
            now["here"] += 1
            most[0] = max(most[0], now["here"])
        time.sleep(0.1)
        with lock:
            now["here"] -= 1
        return StubResponse(body=data_uri_body(glb(1_000 + len(seen.path))))

    memory, delivery = FileRecords(), OutputOptions(f"s3://{BUCKET}/x", BUCKET_CONN_ID)
    with StubServer(reply) as stub:
        first = fetch_or_raise(hook_to(stub.url), run_of("a", "b", "c", "d"), delivery, memory)
        assert most[0] == MAX_PARALLEL_OBJECT_STORE_WRITES == 2
        corrupted = ObjectStoragePath(str(first.outputs[0].uri), conn_id=BUCKET_CONN_ID)
        corrupted.write_bytes(bytes(int(first.outputs[0].size or 0)))
        stub.requests.clear()
        assert fetch_or_raise(hook_to(stub.url), run_of("a", "b", "c", "d"), delivery, memory) == first
        assert [seen.path for seen in stub.requests] == ["/flows/r/outputs/id-a"]
    assert hashlib.sha256(bucket.objects()["x/r/a.glb"]).hexdigest() == first.outputs[0].sha256


def test_object_that_changed_is_not_sent(bucket: ObjectServer) -> None:
    """An object that was replaced after the inputs were read is an error, before its last bytes are sent."""
    image = ObjectStoragePath(f"s3://{BUCKET}/chair.png", conn_id=BUCKET_CONN_ID)
    image.write_bytes(b"\x89PNG\r\n\x1a\n" + b"1" * CHUNK)
    (one,) = parse_inputs({"uri": f"s3://{BUCKET}/chair.png"}, BUCKET_CONN_ID)
    image.write_bytes(b"\x89PNG\r\n\x1a\n" + b"2" * CHUNK)
    assert not isinstance(one, str)
    assert isinstance(one.data, UploadSource)
    sent: list[bytes] = []
    with pytest.raises(
        FlowInputError, match=rf"inputs\[0\].*changed since the start.*s3://{BUCKET}/chair.png"
    ):
        sent.extend(one.data.chunks())
    assert sum(map(len, sent)) < one.data.size
    assert bucket.buckets() == [BUCKET]


@pytest.mark.usefixtures("emulator")
def test_missing_bucket_is_an_error_and_is_not_created(bucket: ObjectServer) -> None:
    """A misspelt bucket is named in an OSError, and is not created."""
    hook = GenerioHook("generio_default")
    run = hook.get_run(hook.start("model_generate_fromprompt", "a chair", {"quality": "low"}).flow_run_id)
    with pytest.raises(OSError, match=r"bucket") as caught:
        fetch_or_raise(hook, run, OutputOptions("s3://modles/x", BUCKET_CONN_ID))
    assert SECRET not in str(caught.value)
    assert bucket.buckets() == [BUCKET]
    with pytest.raises(
        FlowInputError, match=r"inputs\[0\] names a file that cannot be read \(s3://modles/chair.png\)"
    ):
        parse_inputs({"uri": "s3://modles/chair.png"}, BUCKET_CONN_ID)


def test_store_that_fails_in_the_middle(bucket: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that fails after ten MiB raises an OSError that names the file, and has no object."""
    with CuttingProxy(bucket.port, 10 * MIB) as line:
        monkeypatch.setenv("AIRFLOW_CONN_CUT_LINE", connection_json(line.url))
        part = PartialFile(ObjectStoragePath(f"s3://{BUCKET}/run", conn_id="cut_line"), "large")
        try:
            with pytest.raises(OSError, match=rf"{BUCKET}/run/\.large") as caught:
                write_in_chunks(part, CONTENT)
        finally:
            part.discard()
        assert line.cut.is_set()
    assert SECRET not in str(caught.value)
    assert bucket.objects() == {}
