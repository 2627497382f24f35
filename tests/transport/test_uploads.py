"""Tests of uploads over real sockets: content, Content-Length, resending and memory.

Each test runs with `requests` and with `aiohttp`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_flows.core.exceptions import FlowInputError, FlowInvalid, FlowUnreachable
from airflow_provider_flows.core.flow_run import UploadSource
from airflow_provider_flows.core.http import Body, Request, Resend, to_body
from airflow_provider_flows.core.payload.data_uri import iter_base64
from airflow_provider_flows.core.responses import raise_for_status
from airflow_provider_flows.core.retry import Retry, with_retries
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.storage.file_source import INPUT_CHUNK_BYTES
from airflow_provider_flows.storage.inputs import parse_inputs
from tests.support.drivers import DRIVERS, Driver, settings_for, single_request
from tests.support.run_requests import RECORD
from tests.support.servers import MisbehavingServer, reset
from tests.support.upload_server import UploadServer

PNG = b"\x89PNG\r\n\x1a\n"
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("no_proxy")


@dataclass
class ChunkedSource:
    """A source with chosen chunks, which records the threads that read them."""

    content: list[bytes]
    media_type: str = "image/png"
    threads: set[int] = field(default_factory=set)
    pause: float = 0.0

    @property
    def size(self) -> int:
        """The number of bytes."""
        return sum(map(len, self.content))

    @property
    def digest(self) -> str:
        """The digest of the bytes."""
        return hashlib.sha256(b"".join(self.content)).hexdigest()

    def chunks(self) -> Iterator[bytes]:
        """Yield the chunks."""
        for chunk in self.content:
            self.threads.add(threading.get_ident())
            time.sleep(self.pause)
            yield chunk


def write_source(tmp_path: Path, content: bytes, name: str = "a.png") -> UploadSource:
    """Write a file and read it as an input."""
    path = tmp_path / name
    path.write_bytes(content)
    inputs = parse_inputs(path)
    assert isinstance(inputs, list)
    assert isinstance(inputs[0].data, UploadSource)
    return inputs[0].data


def uri(content: bytes, media_type: str = "image/png") -> str:
    """Return a data URI as documented."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@given(st.lists(st.binary(max_size=9)), st.lists(st.integers(0, 40)))
def test_base64_is_the_same_for_any_chunks(chunks: list[bytes], cuts: list[int]) -> None:
    """The base64 of a content does not depend on where its chunks end."""
    content = b"".join(chunks)
    parts = [content[low:high] for low, high in zip([0, *sorted(cuts)], [*sorted(cuts), None], strict=True)]
    assert b"".join(iter_base64(chunks)) == b"".join(iter_base64(parts)) == base64.b64encode(content)


@settings(deadline=None)
@given(
    st.recursive(
        st.none()
        | st.integers()
        | st.text()
        | st.lists(st.binary(min_size=1), min_size=1).map(ChunkedSource),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=8,
    )
)
def test_body_is_the_json_with_data_uris_in_it(value: Any) -> None:
    """Files at any depth are data URIs in the JSON; the stated length is right, on each pass."""
    plain = json.loads(json.dumps(value, default=lambda source: uri(b"".join(source.content))))
    body = to_body(value)
    first, second = (b"".join(body) if isinstance(body, Body) else body for _ in range(2))
    assert json.loads(first) == plain
    assert first == second
    assert len(body) == len(first)


def test_body_without_files_is_bytes() -> None:
    """Without files, a body is plain JSON."""
    assert Request("POST", "/x", json={"data": "für"}).body == b'{"data": "f\\u00fcr"}'
    assert Request("GET", "/x").body is None
    with pytest.raises(TypeError, match="set cannot be sent as JSON"):
        to_body({"a": {1}})


class TestTransfer:
    """What the service receives of a request with files."""

    @pytest.mark.parametrize(
        "size", [8, 9, 10, INPUT_CHUNK_BYTES - 1, INPUT_CHUNK_BYTES, INPUT_CHUNK_BYTES + 1, 2_000_000]
    )
    def test_content_length_is_correct(self, driver: Driver, tmp_path: Path, size: int) -> None:
        """Content-Length is right, there is no Transfer-Encoding, and the bytes are those of the file."""
        content = PNG + os.urandom(size - 8)
        request = Request("POST", "/flows", json={"n": ["ü", {"data": write_source(tmp_path, content)}]})
        with UploadServer() as server:
            assert driver(settings_for(server.url), single_request(request)).is_success
        (upload,) = server.uploads
        expected = json.dumps({"n": ["ü", {"data": uri(content)}]}).encode()
        assert upload.headers["content-length"] == str(len(expected))
        assert "transfer-encoding" not in upload.headers
        assert upload.headers["content-type"] == "application/json"
        assert (upload.size, upload.digest.hexdigest()) == (
            len(expected),
            hashlib.sha256(expected).hexdigest(),
        )

    def test_connection_is_used_again_after_an_upload(self, driver: Driver, tmp_path: Path) -> None:
        """Consecutive requests, with and without files, do not disturb each other."""
        source = write_source(tmp_path, PNG)

        def several() -> Any:
            for data in (source, "text", source):
                yield Request("POST", "/flows", json={"data": data})

        with UploadServer() as server:
            driver(settings_for(server.url), several())
        assert [json.loads(upload.body)["data"] for upload in server.uploads] == [uri(PNG), "text", uri(PNG)]

    def test_resend_sends_the_complete_file_again(self, driver: Driver, tmp_path: Path) -> None:
        """A request that ended within the file cannot have been parsed: it is sent again from its start."""
        content = PNG + os.urandom(1000) * 30_000  # more than the sockets on both sides take in by themselves
        request = Request(
            "POST", "/flows", json={"data": write_source(tmp_path, content)}, resend=Resend.IF_NEVER_ARRIVED
        )
        with UploadServer(100_000, 100_000) as server:
            assert driver(settings_for(server.url), with_retries(single_request(request), Retry())).is_success
        expected = hashlib.sha256(json.dumps({"data": uri(content)}).encode()).hexdigest()
        assert [upload.is_complete for upload in server.uploads] == [False, False, True]
        assert server.uploads[-1].digest.hexdigest() == expected

    def test_completely_sent_request_may_have_arrived(self, driver: Driver, tmp_path: Path) -> None:
        """If only the response is lost, the request may have arrived, and is not sent again."""
        request = Request(
            "POST", "/flows", json={"data": write_source(tmp_path, PNG)}, resend=Resend.IF_NEVER_ARRIVED
        )
        with MisbehavingServer(reset) as misbehaving:
            with pytest.raises(FlowUnreachable) as caught:
                driver(settings_for(misbehaving.url), with_retries(single_request(request), Retry()))
            assert caught.value.may_have_arrived
            assert [json.loads(body)["data"] for body in misbehaving.bodies] == [uri(PNG)]

    def test_early_rejection_is_received(self, driver: Driver, tmp_path: Path) -> None:
        """The error of a service that rejects a file before it has read it is reported."""
        too_large = (
            b'HTTP/1.1 413 No\r\nConnection: close\r\nContent-Length: 20\r\n\r\n{"detail": "too big"}'[:-1]
        )
        request = Request("POST", "/flows", json={"data": write_source(tmp_path, PNG + bytes(20_000_000))})
        with UploadServer((100_000, too_large)) as server:
            response = driver(settings_for(server.url), single_request(request))
        with pytest.raises(FlowInvalid, match="larger than the service accepts"):
            raise_for_status(request, response)


@pytest.mark.parametrize("driver", DRIVERS)
def test_file_is_read_outside_the_event_loop(driver: str) -> None:
    """With aiohttp, files are read in other threads, so that a slow store cannot block the event loop."""
    source = ChunkedSource([PNG, *[b"x" * 30_000] * 5], pause=0.02)
    with UploadServer() as server:
        DRIVERS[driver](
            settings_for(server.url), single_request(Request("POST", "/flows", json={"data": source}))
        )
    assert server.uploads[0].is_complete
    assert (threading.get_ident() in source.threads) is (driver == "requests")


class TestChangedFile:
    """A file that has changed since the inputs were read."""

    CONTENT = PNG + bytes(range(256)) * 4000  # more than a few chunks

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda content: content + b"x", "changed since the start"),
            (lambda content: content * 2, "changed since the start"),
            (lambda content: content[:-1], "changed since the start"),
            (lambda content: content[:10], "changed since the start"),
            (lambda _: b"", "changed since the start"),
            (lambda content: content[:-1] + b"x", "changed since the start"),
            (lambda content: b"x" + content[1:], "changed since the start"),
            (None, "cannot be read"),
        ],
        ids=[
            "grows",
            "doubles",
            "shrinks",
            "is cut",
            "is emptied",
            "ends otherwise",
            "begins otherwise",
            "is gone",
        ],
    )
    def test_changed_file_is_detected_before_the_request_is_complete(
        self, driver: Driver, tmp_path: Path, change: Any, problem: str
    ) -> None:
        """No complete request arrives; the error names argument and file, and is not permanent."""
        source = write_source(tmp_path, self.CONTENT)
        path = tmp_path / "a.png"
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change(self.CONTENT))
        with UploadServer() as server:
            with pytest.raises(
                FlowInputError, match=rf"inputs\[0\] names a file that {problem}.*a\.png"
            ) as caught:
                driver(
                    settings_for(server.url),
                    with_retries(single_request(Request("POST", "/flows", json={"data": source})), Retry()),
                )
            server.wait_until_finished()
        assert not caught.value.is_permanent
        assert [upload.is_complete for upload in server.uploads] in (
            [False],
            [],
        )  # and it was not tried again

    def test_touched_file_is_sent(self, driver: Driver, tmp_path: Path) -> None:
        """Only content counts: a file that was rewritten with the same bytes is sent."""
        source = write_source(tmp_path, self.CONTENT)
        (tmp_path / "a.png").write_bytes(self.CONTENT)
        os.utime(tmp_path / "a.png", (1, 1))
        with UploadServer() as server:
            assert driver(
                settings_for(server.url), single_request(Request("POST", "/flows", json={"data": source}))
            ).is_success

    @pytest.mark.parametrize("durable", [True, False])
    def test_changed_file_leaves_no_run(
        self, flow_emulator: Emulator, tmp_path: Path, *, durable: bool
    ) -> None:
        """The run that was created for it is deleted; in one request, none is created. Nothing is billed."""
        hook = GenerioHook("generio_default")
        (tmp_path / "a.png").write_bytes(self.CONTENT)
        run_request = hook.build_request(
            "model_generate_fromimage", [{"uri": f"file://{tmp_path}/a.png"}], None, None
        )
        (tmp_path / "a.png").write_bytes(self.CONTENT[:-1])
        records: list[Any] = []
        with pytest.raises(FlowInputError, match=r"inputs\[0\].*changed since the start.*Run the task again"):
            hook.start_from_request(
                run_request, record=RECORD if durable else None, save=records.append if durable else None
            )
        assert (flow_emulator.runs, flow_emulator.started_count) == ({}, 0)
        if durable:
            assert [request.method for request in flow_emulator.requests if request.method == "DELETE"] == [
                "DELETE"
            ]
            assert [record.flow_run_id is None for record in records] == [True, False]


@pytest.mark.parametrize("inputs", ["steps", "one"])
def test_emulator_receives_the_same_bytes(flow_emulator: Emulator, tmp_path: Path, inputs: str) -> None:
    """The service stores the file, byte by byte, with its media type and the caller's metadata."""
    flow_emulator.run_seconds = 60
    hook = GenerioHook("generio_default")
    content = PNG + os.urandom(5_000_001)
    (tmp_path / "a.png").write_bytes(content)
    item = {"uri": f"file://{tmp_path}/a.png", "additional": {"n": 1}}
    if inputs == "steps":
        run = hook.create("model_generate_fromimage")
        hook.add_input(run.flow_run_id, item)
    else:
        run = hook.start("model_generate_fromimage", [item, tmp_path / "a.png"])
    first, *_ = hook.list_inputs(run.flow_run_id)
    assert first.additional == {"n": 1}
    assert first.asset_id is not None
    got = hook.get_input(run.flow_run_id, first.asset_id)
    assert (got.media_type, got.data == content) == ("image/png", True)


def test_fallback_path_of_an_input_sends_the_file_again(flow_emulator: Emulator, tmp_path: Path) -> None:
    """Without /inputs, the file is sent again, to /input as `file_data` (vendor_notes.md, G-09)."""
    flow_emulator.switches.update({"input_path": "input"})
    hook = GenerioHook("generio_default")
    (tmp_path / "a.png").write_bytes(PNG + b"x")
    run = hook.create("model_generate_fromimage")
    hook.add_input(run.flow_run_id, tmp_path / "a.png")
    assert flow_emulator.requests[-1].json == {"file_data": uri(PNG + b"x")}
    assert [request.status for request in flow_emulator.requests] == [200, 405, 200]


MEASURE = """
import asyncio, sys
from pathlib import Path
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.storage.inputs import parse_inputs

def kib(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

def upload(path):
    hook = GenerioHook("measured")
    adding = Generio().add_input("r", parse_inputs(path)[0])
    asyncio.run(hook.arun(adding)) if sys.argv[3] == "aiohttp" else hook.run(adding)

upload(Path(sys.argv[1]))  # imports, and creates what is created once
open("/proc/self/clear_refs", "w").write("5")
before = kib("VmRSS")
upload(Path(sys.argv[2]))
print((kib("VmHWM") - before) // 1024)
"""


@pytest.mark.parametrize("name", DRIVERS)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    """200 MB are read for the digest and sent, with less than 32 MiB more memory than a small file."""
    size = 200_000_000
    (tmp_path / "small.png").write_bytes(PNG)
    with (tmp_path / "large.png").open("wb") as large:
        large.write(PNG)
        large.truncate(size)
    expected = hashlib.sha256(b'{"data": "data:image/png;base64,')
    with (tmp_path / "large.png").open("rb") as large:
        while chunk := large.read(3 << 20):
            expected.update(base64.b64encode(chunk))
    expected.update(b'"}')
    with UploadServer() as server:
        env = {
            **os.environ,
            "AIRFLOW_CONN_MEASURED": json.dumps(
                {"conn_type": "generio", "host": server.url, "password": "k"}
            ),
        }
        arguments = [
            sys.executable,
            "-c",
            MEASURE,
            str(tmp_path / "small.png"),
            str(tmp_path / "large.png"),
            name,
        ]
        done = subprocess.run(
            arguments, capture_output=True, text=True, check=False, timeout=110, env=env, cwd=ROOT
        )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 32
    assert server.uploads[-1].size == len(b'{"data": "data:image/png;base64,"}') + 4 * -(-size // 3)
    assert server.uploads[-1].digest.hexdigest() == expected.hexdigest()
