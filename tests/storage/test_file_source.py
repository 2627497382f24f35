"""Tests of files as inputs: the connection that opens them, their names, and files that are rejected.

Files are real ones, on disk and in fsspec's memory.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, ObjectStoragePath
from PIL import Image

from airflow_provider_flows.core.exceptions import FlowInputError, error_from_dict
from airflow_provider_flows.core.flow_run import UploadSource
from airflow_provider_flows.core.start_or_resume import RunRequest
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.storage.file_source import INPUT_CHUNK_BYTES, MAX_TEXT_INPUT_BYTES
from airflow_provider_flows.storage.graph_files import load_graph
from airflow_provider_flows.storage.inputs import parse_inputs
from airflow_provider_flows.storage.output_options import OutputOptions
from tests.support.airflow_run import run_dag
from tests.support.object_stores import ConnectionFileSystem, attach_for_connection, attach_store
from tests.support.versions import needs

PNG = b"\x89PNG\r\n\x1a\n"
CONN, OTHER_CONN = "lager", "another"


def picture() -> bytes:
    """Draw a PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> ConnectionFileSystem:
    """Return a store of the connection `lager`; the one without a connection is empty."""
    for conn_id in (CONN, OTHER_CONN):
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", "generic://")
    attach_store("memory")
    return attach_for_connection(CONN)


def parse_source(inputs: Any, conn_id: str | None = None) -> UploadSource:
    """Parse one input that is a file."""
    (read,) = parse_inputs(inputs, conn_id)
    data = read.data
    assert isinstance(data, UploadSource)
    return data


def test_file_has_size_and_digest_and_is_read_each_time(tmp_path: Path) -> None:
    """A parsed input has a file's size and digest; its bytes are read each time."""
    content = PNG + os.urandom(3 * INPUT_CHUNK_BYTES)
    (tmp_path / "a.png").write_bytes(content)
    read = parse_source(tmp_path / "a.png")
    assert (read.media_type, read.size, read.digest) == (
        "image/png",
        len(content),
        hashlib.sha256(content).hexdigest(),
    )
    assert b"".join(read.chunks()) == b"".join(read.chunks()) == content
    assert max(map(len, read.chunks())) <= INPUT_CHUNK_BYTES


NAMES = [
    "a b.png", "ä ö.png", "#.png", "a#b?c=d.png", "a?.png", "%41.png", "a@b.png", "-rf.png", ".png",
    "..png", "a::b.png",
    "'\"`$(x).png", "a\nb.png", "a\tb.png", "s3:x.png", "file:", "a;b&c|d.png", "\\.png", "~",
    "{{ x }}.png", "n" * 250 + ".png",
    "con.png", "\udcff.png",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_path_may_have_any_name(tmp_path: Path, name: str) -> None:
    """A pathlib.Path is used literally, without the rules of a URI or a shell."""
    (tmp_path / name).write_bytes(PNG + name.encode(errors="surrogateescape"))
    (tmp_path / "ab.png").write_bytes(PNG + b"another file, which a name with a line feed must not become")
    read = parse_source(tmp_path / name)
    assert b"".join(read.chunks()) == PNG + name.encode(errors="surrogateescape")


def test_path_with_nul_is_rejected(tmp_path: Path) -> None:
    """A name that no file can have is a FlowInputError."""
    with pytest.raises(FlowInputError, match=r"inputs\[0\] names a file that cannot be read"):
        parse_inputs(tmp_path / "a\0.png")


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    """The error about a file that cannot be opened, or a loop of links, has its name."""
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(FlowInputError, match=r"inputs\[1\] names a file that cannot be read \(.*loop\.png\)"):
        parse_inputs(["a chair", tmp_path / "loop.png"])


def test_connection_opens_the_store(store: ConnectionFileSystem, tmp_path: Path) -> None:
    """`input_conn_id` opens the files of URIs, except for those with their own connection and local ones."""
    store.pipe("/box/a.png", PNG + b"kept")
    (tmp_path / "l.png").write_bytes(PNG + b"local")
    attach_store("memory").pipe("/open/a.png", PNG + b"open")
    for inputs in (
        {"uri": "memory://box/a.png"},
        ObjectStoragePath("memory://box/a.png"),
    ):
        assert b"".join(parse_source(inputs, CONN).chunks()) == PNG + b"kept"
        with pytest.raises(FlowInputError, match="cannot be read"):
            parse_inputs(inputs)
    for inputs in (
        {"uri": f"memory://{CONN}@box/a.png"},
        ObjectStoragePath("memory://box/a.png", conn_id=CONN),
    ):
        assert b"".join(parse_source(inputs, OTHER_CONN).chunks()) == PNG + b"kept"
        assert b"".join(parse_source(inputs).chunks()) == PNG + b"kept"
    for local in (
        tmp_path / "l.png",
        {"uri": f"file://{tmp_path}/l.png"},
        ObjectStoragePath(f"file://{tmp_path}/l.png"),
    ):
        assert b"".join(parse_source(local, OTHER_CONN).chunks()) == PNG + b"local"


UNKNOWN_CONN = "no_such_connection"
# what the inputs are, and what the message calls the unknown connection
UNKNOWN_CONNECTIONS: dict[str, tuple[Any, str | None, str]] = {
    "a file of S3": ({"uri": "s3://box/a.png"}, UNKNOWN_CONN, "input_conn_id is"),
    "a local URI": ({"uri": "file:///box/a.png"}, UNKNOWN_CONN, "input_conn_id is"),
    "a local path": (Path("/box/a.png"), UNKNOWN_CONN, "input_conn_id is"),
    "a prompt": ("a chair", UNKNOWN_CONN, "input_conn_id is"),
    "variables": ({"color": "red"}, UNKNOWN_CONN, "input_conn_id is"),
    "no inputs": (None, UNKNOWN_CONN, "input_conn_id is"),
    "a URI with a connection": (
        {"uri": f"s3://{UNKNOWN_CONN}@box/a.png"},
        None,
        r"inputs\[0\] names a file .*the connection in its URI is",
    ),
    "an ObjectStoragePath with a connection": (
        ObjectStoragePath("memory://box/a.png", conn_id=UNKNOWN_CONN),
        None,
        r"inputs\[0\] names a file .*the connection in its URI is",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN_CONNECTIONS)
def test_unknown_connection_is_an_error(store: ConnectionFileSystem, case: str) -> None:
    """An undefined connection is a permanent error, whatever the inputs are."""
    store.pipe("/box/a.png", PNG)
    inputs, conn_id, subject = UNKNOWN_CONNECTIONS[case]
    with pytest.raises(FlowInputError, match=f"{subject} '{UNKNOWN_CONN}', and there is no such") as caught:
        parse_inputs(inputs, conn_id)
    assert caught.value.is_permanent


PACKAGES = {
    "gs": "Install apache-airflow-providers-google on each worker",
    "gcs": "Install apache-airflow-providers-google on each worker",
    "abfs": "Install apache-airflow-providers-microsoft-azure on each worker",
    "abfss": "Install apache-airflow-providers-microsoft-azure on each worker",
    "adl": "Install apache-airflow-providers-microsoft-azure on each worker",
    "sftp": "Install apache-airflow-providers-sftp[sshfs] on each worker",
    "nosuch": "Airflow knows no file system for nosuch://, but for example for file://, s3://",
}


@pytest.fixture
def no_attached_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Airflow know no store that another test has attached or has looked for."""
    monkeypatch.setattr("airflow.sdk.io.store._STORE_CACHE", {})


@pytest.mark.usefixtures("no_attached_stores")
@pytest.mark.parametrize("scheme", PACKAGES)
def test_missing_file_system_is_an_error_that_names_its_package(scheme: str) -> None:
    """A store without a file system, for an input, for outputs and for graphs, says what to install."""
    uri = f"{scheme}://bucket/flows"
    actions: tuple[Callable[[], object], ...] = (
        lambda: parse_inputs({"uri": f"{uri}/a.png"}),
        lambda: OutputOptions(uri).validate(Generio()),
        lambda: load_graph(uri, "f", "c"),
    )
    for action in actions:
        with pytest.raises(FlowInputError, match=re.escape(PACKAGES[scheme])):
            action()


@pytest.mark.usefixtures("no_attached_stores")
def test_amazon_without_its_extra_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The amazon provider alone is not enough for S3, which needs its extra s3fs."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(FlowInputError, match=r"Install apache-airflow-providers-amazon\[s3fs\]"):
        parse_inputs({"uri": "s3://new-bucket/a.png"})


def test_output_path_on_the_web_is_an_error() -> None:
    """A web address is no store of files."""
    with pytest.raises(FlowInputError, match="it is the address of a web server"):
        OutputOptions("https://example.com/x").validate(Generio())


def test_hook_passes_the_connection_on(store: ConnectionFileSystem, flow_emulator: Emulator) -> None:
    """The hook's start and add_input take the connection, too."""
    store.pipe("/box/a.png", picture())
    flow_emulator.run_seconds = 60
    hook = GenerioHook("generio_default")
    run = hook.create("model_generate_fromimage")
    hook.add_input(run.flow_run_id, {"uri": "memory://box/a.png"}, input_conn_id=CONN)
    started = hook.start("model_generate_fromimage", {"uri": "memory://box/a.png"}, input_conn_id=CONN)
    assert [len(hook.list_inputs(created.flow_run_id)) for created in (run, started)] == [1, 1]


@pytest.mark.usefixtures("airflow_database")
def test_operator_passes_the_connection_on(store: ConnectionFileSystem, flow_emulator: Emulator) -> None:
    """The operator's `input_conn_id` is templated, and opens the file."""
    store.pipe("/box/a.png", picture())
    flow_emulator.run_seconds = 0.1
    with DAG("upload_connection", schedule=None, params={"store": CONN}) as dag:
        RunFlowOperator(
            task_id="run",
            flow="model_generate_fromimage",
            inputs={"uri": "memory://box/a.png"},
            input_conn_id="{{ params.store }}",
            flows_conn_id="generio_default",
            poll_interval=0.1,
        )
    result = run_dag(dag)
    assert result.state == "success", result.log
    assert "input_conn_id" in RunFlowOperator.template_fields


def test_error_about_an_unavailable_store_has_no_key(store: ConnectionFileSystem) -> None:
    """A failed read is an error that names the file: permanent at the start, transient later."""
    store.pipe("/box/a.png", PNG + bytes(3 * INPUT_CHUNK_BYTES))
    read = parse_source({"uri": "memory://box/a.png"}, CONN)
    store.faulty = True
    with pytest.raises(
        FlowInputError, match=r"inputs\[0\] names a file that cannot be read .*went away"
    ) as caught:
        list(read.chunks())
    assert not caught.value.is_permanent
    assert "s3cret" not in str(caught.value)
    with pytest.raises(FlowInputError, match="went away") as caught:
        parse_inputs({"uri": "memory://box/a.png"}, CONN)
    assert caught.value.is_permanent


@pytest.mark.parametrize(
    "named",
    ["s3://key:s3cret@box/a.png", "https://example.test/a.png?sig=s3cret", "nosuch://u:s3cret@h/a.png"],
)
def test_secrets_of_a_uri_are_redacted(named: str) -> None:
    """Credentials and a signature in a URI are in no error, nor in what led to it."""
    with pytest.raises(FlowInputError, match="cannot be read") as caught:
        parse_inputs({"uri": named})
    assert "s3cret" not in str(caught.value)
    assert "a.png" in str(caught.value)
    assert caught.value.__suppress_context__


def test_text_file_beyond_the_limit_is_rejected(tmp_path: Path) -> None:
    """A prompt from a file has a maximum size; a text of that size is sent completely."""
    (tmp_path / "a.txt").write_bytes(b"a" * MAX_TEXT_INPUT_BYTES)
    (read,) = parse_inputs(tmp_path / "a.txt")
    assert read.data == "a" * MAX_TEXT_INPUT_BYTES
    with (tmp_path / "a.txt").open("ab") as file:
        file.truncate(200_000_000)
    tracemalloc.start()
    with pytest.raises(FlowInputError, match=r"inputs\[0\] names a text file of more than 1048576 bytes"):
        parse_inputs(tmp_path / "a.txt")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 8 * MAX_TEXT_INPUT_BYTES  # it is not read to its end


def test_fingerprint_is_that_of_the_content(tmp_path: Path, store: ConnectionFileSystem) -> None:
    """The same content has the same fingerprint anywhere; another content or media type has another one."""
    path = tmp_path / "a.png"
    path.write_bytes(PNG + b"1")
    store.pipe("/box/b.png", PNG + b"1")

    def fingerprint(inputs: Any) -> str:
        return RunRequest("f", parse_inputs(inputs, CONN)).fingerprint

    first = fingerprint([path])
    path.write_bytes(PNG + b"1")
    os.utime(path, (1, 1))
    assert first == fingerprint([path]) == fingerprint([{"uri": "memory://box/b.png"}])
    path.write_bytes(PNG + b"2")
    assert fingerprint([path]) != first
    (tmp_path / "a.pdf").write_bytes(b"\0")
    (tmp_path / "a.stl").write_bytes(b"\0")
    assert fingerprint([tmp_path / "a.pdf"]) != fingerprint([tmp_path / "a.stl"])
    assert fingerprint([{"uri": f"file://{path}", "additional": 1}]) != fingerprint([path])


KEPT_BEFORE = [
    (
        RunRequest(
            "model_generate_fromprompt",
            parse_inputs(["a chair", {"data": "ein grüner Stuhl", "additional": {"n": 2}}]),
            {"quality": "low"},
            {"order": 17},
        ),
        "cbd2191222487ab3b3992d137395a8eb026bcb8b3400e08e7ca33bbe20bd0a14",
    ),
    (
        RunRequest("model_generate_fromimage", parse_inputs({"data": "data:image/jpg;base64,_9j_"})),
        "4f7404761ed5fcb241ab05b9b8fbd856117dd15dd3022128ba65a93cc0b99e0d",
    ),
    (
        RunRequest("chain", parse_inputs({"color": "red", "n": 3})),
        "1814567df524ae6990a3c75cd4b67c6ce4efb20aba5135763df458a49b1edc8d",
    ),
]


@pytest.mark.parametrize(
    ("run_request", "fingerprint"), KEPT_BEFORE, ids=lambda value: getattr(value, "flow", "")
)
def test_fingerprint_of_texts_is_stable(run_request: RunRequest, fingerprint: str) -> None:
    """The fingerprints of texts and variables do not change, because task states contain them."""
    assert run_request.fingerprint == fingerprint


@needs("retry policies")
def test_transient_error_is_retried() -> None:
    """A file that changed is worth another try of the task, a file that is not there is not."""
    from airflow_provider_flows.retry_policy import FlowsRetryPolicy

    decide = FlowsRetryPolicy().evaluate
    assert decide(FlowInputError("changed", is_permanent=False), 1, 3) != decide(
        FlowInputError("not there"), 1, 3
    )
    assert type(error_from_dict(FlowInputError("x").to_dict())) is FlowInputError
