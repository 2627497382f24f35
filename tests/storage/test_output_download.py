"""Tests of downloads that fail: broken, wrong, stalled and killed ones, in parallel, and retried.

The servers, the files and the killed processes are real.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from threading import Event, Lock

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_flows.core.exceptions import FlowMalformed, FlowServiceError, FlowUnreachable
from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun
from airflow_provider_flows.core.limits import MAX_METADATA_BYTES
from airflow_provider_flows.storage import outputs as outputs_module
from airflow_provider_flows.storage.atomic_file import Cancellation, CancelledWriteError
from airflow_provider_flows.storage.output_options import OutputOptions
from airflow_provider_flows.storage.outputs import MAX_PARALLEL_DOWNLOADS, fetch_outputs
from airflow_provider_flows.storage.paths import safe_name
from benchmarks.file_server import FileServer
from tests.storage.test_outputs import HOSTILE, small_disk
from tests.support.downloads import (
    ActionSequence,
    FileRecords,
    KilledError,
    data_uri_body,
    fetch_or_raise,
    glb,
    hook_to,
    kill,
    list_files,
    raise_after,
    run_of,
    send_and_stall,
    send_body,
    start_fetch_process,
)
from tests.support.hostile import HostileServer
from tests.support.object_stores import attach_store
from tests.support.servers import MisbehavingServer, ReceivedRequest, StubResponse, StubServer, reset

CONTENT = glb(300_000)
WHOLE = data_uri_body(CONTENT)
LARGE = glb(2_000_000)  # several of the chunks that a transport reads
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 2_000_000 + PNG_END

pytestmark = pytest.mark.usefixtures("no_proxy")


BROKEN = {
    "broken off": send_body(WHOLE, part=100_000),
    "reset": reset,
    "cut short": send_body(WHOLE[:200_000]),
    "cut before the end": send_body(WHOLE[:-1]),
    "wrong base64": send_body(WHOLE.replace(WHOLE[5_000:5_004], b"!!!!")),
    "wrong length": send_body(data_uri_body(CONTENT[:-3])),
    "a proxy's page": send_body(b"<html>try later</html>"),
    "nothing": send_body(b""),
}


@pytest.mark.parametrize("act", BROKEN.values(), ids=BROKEN)
def test_malformed_body_is_downloaded_again(tmp_path: Path, act: object) -> None:
    """A broken or wrong body is requested again, also if the connection allows no retries."""
    acts = ActionSequence(act, send_body(WHOLE))
    with MisbehavingServer(acts) as misbehaving:
        (output,) = fetch_or_raise(
            hook_to(misbehaving.url, retries=0), run_of("chair"), OutputOptions(str(tmp_path))
        ).outputs
    assert acts.calls == 2
    assert list_files(tmp_path) == ["r/chair.glb"]
    assert (tmp_path / "r/chair.glb").read_bytes() == CONTENT
    assert (output.size, output.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.mark.parametrize("act", [BROKEN[name] for name in ("broken off", "cut short", "wrong base64")])
def test_body_that_remains_malformed_is_an_error_and_no_file(tmp_path: Path, act: object) -> None:
    """After three attempts it is an error, nothing is left, and what was there before is as it was."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r/chair.glb").write_bytes(b"old")
    acts = ActionSequence(act)
    with MisbehavingServer(acts) as misbehaving, pytest.raises((FlowMalformed, FlowUnreachable)):
        fetch_or_raise(hook_to(misbehaving.url, retries=0), run_of("chair"), OutputOptions(str(tmp_path)))
    assert acts.calls == 3
    assert list_files(tmp_path) == ["r/chair.glb"]
    assert (tmp_path / "r/chair.glb").read_bytes() == b"old"


def test_full_disk_ends_the_download_at_once(tmp_path: Path) -> None:
    """A full disk raises its own error, is not retried, and leaves no file."""
    acts = ActionSequence(send_body(WHOLE))
    with (
        MisbehavingServer(acts) as misbehaving,
        small_disk(100_000),
        pytest.raises(OSError, match="too large"),
    ):
        fetch_or_raise(hook_to(misbehaving.url), run_of("chair"), OutputOptions(str(tmp_path)))
    assert acts.calls == 1
    assert list_files(tmp_path) == []


@pytest.mark.parametrize("store", ["fragile", "closing", "forgetful"])
def test_failed_store_has_no_file(store: str) -> None:
    """A store that fails during a write, at the close, or that stores too little: an error, and no file."""
    files = attach_store(store)
    with (
        MisbehavingServer(send_body(WHOLE)) as misbehaving,
        pytest.raises(OSError, match=r"No space left|bytes after"),
    ):
        fetch_or_raise(hook_to(misbehaving.url), run_of("chair"), OutputOptions(f"{store}://bucket"))
    assert list(files.store) == []


def by_name(seen: ReceivedRequest) -> StubResponse:
    """Respond with a file that is another for each id."""
    return StubResponse(body=data_uri_body(glb(1_000 + len(seen.path))), delay=0.05)


def test_parallel_downloads_return_in_order(tmp_path: Path) -> None:
    """Outputs are downloaded in parallel, a few at a time, each into its own file, and returned in order."""
    now, most, lock = Counter[str](), [0], Lock()

    def counted(seen: ReceivedRequest) -> StubResponse:
        with lock:
            now["here"] += 1
            most[0] = max(most[0], now["here"])
        time.sleep(0.1)
        with lock:
            now["here"] -= 1
        return by_name(seen)

    names = ["x" * number for number in range(12, 0, -1)]
    with StubServer(counted) as stub:
        outputs = fetch_or_raise(hook_to(stub.url), run_of(*names), OutputOptions(str(tmp_path))).outputs
    assert [output.name for output in outputs] == names
    assert [output.size for output in outputs] == [
        1_000 + len(f"/flows/r/outputs/id-{name}") for name in names
    ]
    assert list_files(tmp_path) == sorted(f"r/{name}.glb" for name in names)
    assert 2 <= most[0] <= MAX_PARALLEL_DOWNLOADS


def test_stored_files_remain_when_another_download_fails(tmp_path: Path) -> None:
    """A failed output is an error; other files are recorded, and the next try fetches only the rest."""
    broken = [True]

    def reply(seen: ReceivedRequest) -> StubResponse:
        return StubResponse(500) if broken[0] and seen.path.endswith("id-c") else by_name(seen)

    memory = FileRecords()
    with StubServer(reply) as stub:
        with pytest.raises(FlowServiceError, match="id-c"):
            fetch_or_raise(hook_to(stub.url), run_of("a", "b", "c"), OutputOptions(str(tmp_path)), memory)
        assert list_files(tmp_path) == ["r/a.glb", "r/b.glb"]
        assert sorted(memory.records) == ["id-a", "id-b"]
        broken[0] = False
        stub.requests.clear()
        again = fetch_or_raise(hook_to(stub.url), run_of("a", "b", "c"), OutputOptions(str(tmp_path)), memory)
        assert [seen.path for seen in stub.requests] == ["/flows/r/outputs/id-c"]
        stub.requests.clear()
        assert (
            fetch_or_raise(
                hook_to(stub.url), run_of("a", "b", "c"), OutputOptions(str(tmp_path)), memory
            ).to_dict()
            == again.to_dict()
        )
        assert stub.requests == []
        fresh = fetch_or_raise(hook_to(stub.url), run_of("a", "b", "c"), OutputOptions(str(tmp_path)))
    assert fresh.to_dict() == again.to_dict()


def test_failed_download_does_not_prevent_others(tmp_path: Path) -> None:
    """All others are fetched although more outputs fail than threads exist; each states its error."""
    names = [f"bad{number}" for number in range(6)] + ["a", "b"]
    memory = FileRecords()
    with StubServer(lambda seen: StubResponse(500) if "bad" in seen.path else by_name(seen)) as stub:
        run, error = fetch_outputs(hook_to(stub.url), run_of(*names), OutputOptions(str(tmp_path)), memory)
    assert isinstance(error, FlowServiceError)
    assert "bad" in str(error)
    assert list_files(tmp_path) == ["r/a.glb", "r/b.glb"]
    assert [(output.status, bool(output.error)) for output in run.outputs] == [("error", True)] * 6 + [
        ("ready", False)
    ] * 2
    assert sorted(memory.records) == ["id-a", "id-b"]


def test_cancel_between_two_downloads_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If outputs are left because of a cancel that no download noticed, that is no success."""
    monkeypatch.setattr(outputs_module, "MAX_PARALLEL_DOWNLOADS", 1)
    cancellation, records = Cancellation(), FileRecords()

    class CancelAfterFirstFile(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "is stored in" in record.getMessage():
                cancellation.cancel()

    handler = CancelAfterFirstFile()
    logging.getLogger().addHandler(handler)
    try:
        with StubServer(by_name) as stub, pytest.raises(CancelledWriteError):
            fetch_outputs(
                hook_to(stub.url), run_of("a", "b"), OutputOptions(str(tmp_path)), records, cancellation
            )
    finally:
        logging.getLogger().removeHandler(handler)
    assert list_files(tmp_path) == ["r/a.glb"]
    assert sorted(records.records) == ["id-a"]


def test_hostile_names_remain_in_their_folder(tmp_path: Path) -> None:
    """Each output of any name is a file of the run's folder, and the same one in a next try."""
    names = [*HOSTILE, "chair", "chair", "CHAIR", "chair-2"]
    outputs = tuple(FlowOutput(name, asset_id=str(number) * 9) for number, name in enumerate(names))
    run = FlowRun("../../up", "generio", outputs=outputs)
    with StubServer(lambda seen: StubResponse(body=data_uri_body(glb(1_000 + int(seen.path[-1]))))) as stub:
        created = [
            fetch_or_raise(hook_to(stub.url), run, OutputOptions(str(tmp_path / "in"))).outputs
            for _ in range(2)
        ]
    assert created[0] == created[1]
    files = [ObjectStoragePath(str(output.uri)) for output in created[0]]
    assert [file.stat().st_size for file in files] == [1_000 + number % 10 for number in range(len(names))]
    found = list_files(tmp_path)
    assert len({name.lower() for name in found}) == len(found) == len(names)
    assert {str(Path(name).parent) for name in found} == {f"in/{safe_name(run.flow_run_id)}"}
    assert all(len(Path(name).name) <= 120 for name in found)


@pytest.mark.parametrize("corrupt", ["gone", "cut", "changed", "elsewhere", "nonsense"])
def test_missing_or_incomplete_file_is_downloaded_again(tmp_path: Path, corrupt: str) -> None:
    """What is known of a file counts only if it is there, with its size and digest, where it is to be."""
    memory, acts, folder = FileRecords(), ActionSequence(send_body(WHOLE)), tmp_path / "one"
    with MisbehavingServer(acts) as misbehaving:
        fetch_or_raise(hook_to(misbehaving.url), run_of("chair"), OutputOptions(str(folder)), memory)
        file = folder / "r/chair.glb"
        if corrupt == "gone":
            file.unlink()
        elif corrupt == "cut":
            file.write_bytes(CONTENT[:-1])
        elif corrupt == "changed":
            file.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
        elif corrupt == "elsewhere":
            folder = tmp_path / "two"
            (folder / "r").mkdir(parents=True)
            (folder / "r/chair.glb").write_bytes(bytes(len(CONTENT)))  # another file of the same size
        else:
            memory.records["id-chair"] = {"uri": 5, "size": "x", "media_type": []}
        (output,) = fetch_or_raise(
            hook_to(misbehaving.url), run_of("chair"), OutputOptions(str(folder)), memory
        ).outputs
    assert acts.calls == 2
    assert ObjectStoragePath(str(output.uri)).read_bytes() == CONTENT
    is_elsewhere = corrupt == "elsewhere"  # what is not the task's own file is not replaced
    name = f"chair--{hashlib.sha256(CONTENT).hexdigest()[:12]}.glb" if is_elsewhere else "chair.glb"
    assert memory.records["id-chair"]["uri"] == f"file://{folder}/r/{name}"
    assert not is_elsewhere or (folder / "r/chair.glb").read_bytes() == bytes(len(CONTENT))


def test_retry_after_sigkill(tmp_path: Path) -> None:
    """A process killed during a download leaves no file; the next one completes and cleans up."""
    over = Event()
    with MisbehavingServer(
        ActionSequence(send_and_stall(data_uri_body(LARGE), 1_500_000, over), send_body(data_uri_body(LARGE)))
    ) as misbehaving:
        first = start_fetch_process(misbehaving.url, tmp_path)
        until = time.monotonic() + 60
        while not any(path.stat().st_size > 500_000 for path in tmp_path.rglob("*.part")):
            assert first.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        kill(first)
        (left,) = list_files(tmp_path)
        assert left.endswith(".part")
        assert start_fetch_process(misbehaving.url, tmp_path).wait(60) == 0
        over.set()
    assert list_files(tmp_path) == ["r/chair.glb"]
    assert (tmp_path / "r/chair.glb").read_bytes() == LARGE


def test_signal_ends_the_download_and_removes_temporary_files(tmp_path: Path) -> None:
    """A signal that raises in the main thread ends stalled downloads before their timeout, and cleans up."""
    over, before, began = Event(), set(threading.enumerate()), time.monotonic()
    hanging = send_and_stall(data_uri_body(LARGE), 1_500_000, over)
    with MisbehavingServer(ActionSequence(hanging, hanging, hanging, send_body(WHOLE))) as misbehaving:
        with raise_after(1.0), pytest.raises(KilledError):
            fetch_or_raise(hook_to(misbehaving.url), run_of("a", "b", "c"), OutputOptions(str(tmp_path)))
        assert list_files(tmp_path) == []
        assert time.monotonic() - began < 30
        over.set()  # a thread that still hangs there continues now, and must do nothing more
        for thread in set(threading.enumerate()) - before:
            if "_accept" not in thread.name:  # the server's own thread continues
                thread.join(30)
    assert list_files(tmp_path) == []


def chain_with(url: str) -> FlowRun:
    """Return a run with one output that is a link."""
    return FlowRun("r", "promptchainer", outputs=(FlowOutput("pic", value=url, is_url=True),))


def test_link_without_a_picture_leaves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The content at a link is checked before it is stored: a page declared as a picture is none."""
    page = StubResponse(headers={"Content-Type": "image/png"}, body=b"<html>" * 1_000)
    with StubServer(lambda _: page) as stub, caplog.at_level(logging.WARNING):
        url = f"{stub.url}/pic.png?sig=secret"
        (output,) = fetch_or_raise(hook_to(stub.url), chain_with(url), OutputOptions(str(tmp_path))).outputs
    assert (output.value, output.uri) == (url, None)
    assert list_files(tmp_path) == []
    assert "does not lead to an image" in caplog.text


def test_picture_of_another_kind_has_its_declared_content_type(tmp_path: Path) -> None:
    """A picture with unknown first bytes has its declared type."""
    avif = b"\x00\x00\x00\x1cftypavif" + b"\x01" * 5_000
    with StubServer(lambda _: StubResponse(headers={"Content-Type": "image/avif"}, body=avif)) as stub:
        (output,) = fetch_or_raise(
            hook_to(stub.url), chain_with(f"{stub.url}/made?sig=secret"), OutputOptions(str(tmp_path))
        ).outputs
    (name,) = list_files(tmp_path)
    assert ((tmp_path / name).read_bytes(), name[-5:]) == (avif, ".avif")
    assert (output.media_type, output.value) == ("image/avif", f"{stub.url}/made")


def test_size_of_a_linked_picture_is_bounded(tmp_path: Path) -> None:
    """A picture of a stranger that does not end is no reason to fill a disk."""
    with StubServer(lambda _: StubResponse(body=PNG)) as stub:
        with pytest.raises(FlowMalformed, match="max_response_mib"):
            fetch_or_raise(
                hook_to(stub.url, max_response_mib=1),
                chain_with(f"{stub.url}/pic.png"),
                OutputOptions(str(tmp_path)),
            )
        assert list_files(tmp_path) == []
        (output,) = fetch_or_raise(
            hook_to(stub.url), chain_with(f"{stub.url}/pic.png"), OutputOptions(str(tmp_path))
        ).outputs
    assert (output.media_type, output.size) == ("image/png", len(PNG))


def test_download_into_memory_is_the_same(tmp_path: Path) -> None:
    """`download_output` returns the bytes that would be written, with the same retries."""
    acts = ActionSequence(send_body(WHOLE, part=1_000), send_body(WHOLE[:1_000]), send_body(WHOLE))
    with MisbehavingServer(acts) as misbehaving:
        content = hook_to(misbehaving.url, retries=0).download_output("r", "a")
    assert (content.data, content.media_type) == (CONTENT, "model/gltf-binary")
    assert list_files(tmp_path) == []


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file of 100 MB costs a process less than 32 MiB."""
    server = FileServer(tmp_path / "server.log")
    server.start()
    given = {
        "what": "download",
        "way": "provider",
        "address": server.address,
        "size": 100_000_000,
        "folder": tmp_path,
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    command = [
        sys.executable,
        "-m",
        "benchmarks.file_process",
        *words,
        "--into",
        str(tmp_path / "figures.json"),
    ]
    try:
        subprocess.run(command, env=dict(os.environ), check=True, timeout=110, stdout=subprocess.DEVNULL)
    finally:
        server.stop()
    assert (tmp_path / "r/model.glb").stat().st_size == 100_000_000
    assert json.loads((tmp_path / "figures.json").read_text())["memory"] < 32


@pytest.mark.parametrize("name", ["an endless PNG", "an endless raw GLB", "an endless file in a data URI"])
def test_endless_file_leaves_nothing(tmp_path: Path, name: str) -> None:
    """A file without an end is downloaded once up to `max_output_mib`, and nothing of it remains."""
    options = OutputOptions(str(tmp_path))
    with HostileServer(name) as server, pytest.raises(FlowMalformed, match=r"1 MiB.*max_output_mib"):
        fetch_or_raise(hook_to(server.url, max_output_mib=1), run_of("chair"), options)
    assert len(server.bodies) == 1
    assert list_files(tmp_path) == []


def test_metadata_of_all_outputs_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """The metadata of very many outputs does not fill XCom; the log names those that lack it."""
    outputs = tuple(
        FlowOutput(f"output {number}", value="text", additional={"note": "x" * 10_000})
        for number in range(500)
    )
    run, _ = fetch_outputs(
        hook_to("http://127.0.0.1:1"),
        FlowRun("r", "generio", outputs=outputs),
        OutputOptions(max_xcom_bytes=None),
    )
    assert len(json.dumps(run.to_dict())) < MAX_METADATA_BYTES + 200_000
    assert run.outputs[0].additional is not None
    assert run.outputs[-1].additional is None
    assert "Output output 499: its metadata" in caplog.text
