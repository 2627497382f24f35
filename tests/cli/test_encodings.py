"""Tests of `airflow flows` on streams that cannot print every character, or that are closed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from airflow_provider_flows.emulator import Emulator, Plan
from tests.support.commands import PROMPT_FLOW, call
from tests.support.servers import ReceivedRequest, StubResponse, StubServer
from tests.support.versions import needs

pytestmark = [needs("commands of providers"), pytest.mark.emulator(run_seconds=0)]

TEXT = "Stühle 木 😀"
ESCAPED = r"St\xfchle \u6728 \U0001f600"
RUN = {"flow_id": "木", "state": "completed", "progress": 1.0, "template": TEXT, "additional": {TEXT: TEXT}}
FAILED = {**RUN, "state": "failed", "error": TEXT}
OUTPUT = {"asset_id": "a木", "name": TEXT, "status": "ready", "data": "data:text/plain,%E6%9C%A8"}
TEMPLATE = {"name": TEXT, "id": TEXT, "description": TEXT}
FORMATS = ("table", "json", "yaml", "plain")


def respond(request: ReceivedRequest) -> StubResponse:
    """Respond to any request of either service with text outside of ASCII."""
    if "/api/flows/" in request.path:
        rows: Any = [{"name": TEXT, "type": "output", "output": TEXT}]
        return StubResponse(body=json.dumps(rows).encode())
    body = {
        **(FAILED if "failed" in request.path else RUN),
        "flows": [RUN, FAILED],
        "outputs": [OUTPUT],
        "templates": [TEMPLATE],
        "data": OUTPUT["data"],
    }
    return StubResponse(body=json.dumps(body).encode())


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubServer]:
    """Serve text outside of ASCII, as both services."""
    with StubServer(respond) as server:
        for kind in ("generio", "promptchainer"):
            connection = {"conn_type": kind, "host": server.url, "password": "key"}
            monkeypatch.setenv(f"AIRFLOW_CONN_{kind.upper()}_DEFAULT", json.dumps(connection))
        yield server


class Ascii(io.StringIO):
    """A stream of ASCII that is no TextIOWrapper."""

    encoding = "ascii"

    def write(self, text: str) -> int:
        """Write, or raise a UnicodeEncodeError."""
        text.encode("ascii")
        return super().write(text)


def read(stream: Any) -> str:
    """Return what was written to a stream."""
    if isinstance(stream, io.TextIOWrapper):
        stream.flush()
        return stream.buffer.getvalue().decode("ascii")
    return str(stream.getvalue())


STREAMS: dict[str, Callable[[], Any]] = {
    "ascii": lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii"),
    "no TextIOWrapper": Ascii,
}
GENERIO = "--conn-id generio_default"
COMMANDS: dict[str, tuple[str, int]] = {
    "list": (f"list {GENERIO}", 0),
    "describe": (f"describe '{TEXT}' {GENERIO}", 0),
    "runs": (f"runs {GENERIO}", 0),
    "get": (f"get failed {GENERIO}", 0),
    "watch": (f"watch failed {GENERIO}", 1),
    "outputs": (f"outputs 木 {GENERIO}", 0),
    "download": (f"download 木 {GENERIO}", 0),
    "abort": (f"abort 木 {GENERIO}", 0),
    "delete": (f"delete 木 --yes {GENERIO}", 0),
    "run": ("run 木 --variable a=b --no-validate --conn-id promptchainer_default", 0),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_with_replacements(
    service: StubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, stream: str
) -> None:
    """What a stream's encoding lacks is printed as an escape, in every format; the exit code stays."""
    line, code = COMMANDS[name]
    words = [word.strip("'") for word in line.replace(f"'{TEXT}'", "TEXT").split()]
    words = ["flows", *(TEXT if word == "TEXT" else word for word in words)]
    if name == "download":
        words += ["--output-path", str(tmp_path)]
    for output in FORMATS:
        out, err = STREAMS[stream](), STREAMS[stream]()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            assert call([*words, "-o", output]) == code, read(err)
        printed = read(out)
        if output == "json":
            assert json.loads(printed)
        elif output == "yaml":
            assert yaml.safe_load(printed)
        else:
            assert "\\u6728" in printed
        assert "Error" not in read(err)
    assert service.requests


def test_paid_text_is_printed_with_its_escapes(service: StubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output of a paid run is printed in full, with escapes, and the run is paid once."""
    out = STREAMS["ascii"]()
    monkeypatch.setattr(sys, "stdout", out)
    assert call(["flows", *COMMANDS["run"][0].split(), "-o", "plain"]) == 0
    assert ESCAPED in read(out)
    assert [request.method for request in service.requests] == ["POST"]


def test_drawing_stays_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture on a stream of ASCII is the same picture: SVG has character references."""
    graph = {
        "nodes": [{"id": "1", "type": "output", "data": {"name": TEXT, "label": TEXT}}],
        "edges": [],
    }
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(graph))
    for form in ("svg", "mermaid"):
        out = STREAMS["ascii"]()
        monkeypatch.setattr(sys, "stdout", out)
        assert call(["flows", "draw", str(file), "--format", form]) == 0
        if form == "svg":
            assert TEXT in "".join(ET.fromstring(read(out)).itertext())  # noqa: S314  # our own picture


ENVIRONMENTS = {
    "ASCII": ({"PYTHONIOENCODING": "ascii:strict"}, ESCAPED.encode()),
    "Latin-1": ({"PYTHONIOENCODING": "latin-1"}, ESCAPED.encode().replace(rb"\xfc", b"\xfc")),
    "LC_ALL=C": ({"LC_ALL": "C"}, TEXT.encode()),  # then Python's streams are UTF-8
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_process_without_utf_8_prints(service: StubServer, name: str) -> None:
    """In a process whose streams are not UTF-8, a paid run ends with 0 and prints its output."""
    more, expected = ENVIRONMENTS[name]
    environment = {key: value for key, value in os.environ.items() if key not in {"LC_ALL", "LANG"}}
    line = COMMANDS["run"][0].replace("木", "f").split()
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "flows", *line, "-o", "plain"],
        env={**environment, **more},
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert len(service.requests) == 1


@pytest.mark.parametrize("redirection", ["| true", ">&-", "2>&-", "2>&1 | true"])
def test_closed_stream_ends_nothing(emulator: Emulator, redirection: str, tmp_path: Path) -> None:
    """A stream that nobody reads changes neither run nor exit code; the other one has the run's id."""
    emulator.add_plan(Plan())
    code = tmp_path / "code"
    command = (
        f"{{ {sys.executable} -m airflow flows run {PROMPT_FLOW} -i 'A chair' --conn-id generio_default "
        f"--poll-interval 0.1 -o json; echo $? > {code}; }} {redirection}"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", command], check=False, capture_output=True, text=True, timeout=300
    )
    assert code.read_text().strip() == "0", done.stderr
    assert len(emulator.paid_runs) == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    (flow_run_id,) = emulator.runs
    if redirection != "2>&1 | true":
        assert flow_run_id in done.stdout + done.stderr
