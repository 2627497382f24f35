"""Tests of `airflow flows run --reuse` and of `airflow flows reuse`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.storage.reuse_index import FOLDER_NAME
from tests.support.commands import PROMPT_FLOW, FlowsCommand, flows_command
from tests.support.versions import needs

pytestmark = [needs("commands of providers"), pytest.mark.emulator(run_seconds=0)]

RUN = f"run {PROMPT_FLOW} --param quality=low --poll-interval 0.1 -o json"


@pytest.fixture
def flows(capsys: pytest.CaptureFixture[str]) -> FlowsCommand:
    """Return the command."""
    return flows_command(capsys)


def test_second_command_starts_no_run(emulator: Emulator, flows: FlowsCommand, tmp_path: Path) -> None:
    """The second command prints the result of the first one, and says so on stderr."""
    options = f"--output-path {tmp_path} --reuse"
    first = flows(f"{RUN} --input Chair {options} 30").json
    second = flows(f"{RUN} --input Chair {options} any")
    assert second.json == {**first, "reused": True}
    assert second.err.strip().endswith("are reused; no flow run is started.")
    assert "reused" not in flows(f"{RUN} --input Table {options} 12h").json
    assert len(emulator.paid_runs) == 2


@pytest.mark.parametrize("age", ["0", "-1", "soon", "12y", "nan", ""])
def test_age_that_is_none(emulator: Emulator, flows: FlowsCommand, tmp_path: Path, age: str) -> None:
    """An age that cannot be used is an error, and nothing is sent."""
    assert flows(f"{RUN} --input Chair --output-path {tmp_path} --reuse='{age}'").code == 2
    assert not emulator.requests


def test_list_and_forget(emulator: Emulator, flows: FlowsCommand, tmp_path: Path) -> None:
    """`list` shows what can be reused; `forget` removes it from the index, and leaves the files."""
    for prompt in ("Chair", "Table"):
        flows(f"{RUN} --input {prompt} --output-path {tmp_path} --reuse any")
    entry = next((tmp_path / FOLDER_NAME).iterdir())
    entry.write_text(json.dumps({**json.loads(entry.read_text()), "saved_at": 1_000_000_000}))
    (tmp_path / FOLDER_NAME / "note.txt").write_text("This is no entry.")
    rows = flows(f"reuse list {tmp_path} -o json").json
    assert {row["flow_run_id"] for row in rows} == set(emulator.runs)
    assert rows[0]["saved_at"] == "2001-09-09T01:46:40+00:00"
    assert [row["outputs"] for row in rows] == [1, 1]
    assert flows(f"reuse list {tmp_path} -o json --flow other").json == []
    assert flows(f"reuse forget {tmp_path}").code == 2  # there is no terminal to ask at
    forgotten = flows(f"reuse forget {tmp_path} --older-than 30 --yes -o json").json
    assert [row["fingerprint"] for row in forgotten] == [entry.stem]
    assert flows(f"reuse list {tmp_path} -o json").json == rows[1:]
    assert len(list(tmp_path.rglob("*.glb"))) == 2
    assert flows(f"reuse forget {tmp_path} --yes -o json").code == 0
    assert flows(f"reuse list {tmp_path} -o json").json == []


def test_folder_without_an_index(emulator: Emulator, flows: FlowsCommand, tmp_path: Path) -> None:
    """A folder without an index has no entries, and a connection that does not exist is an error."""
    assert flows(f"reuse list {tmp_path} -o json").json == []
    missing = flows(f"reuse list {tmp_path} --output-conn-id no_such_connection")
    assert missing.code == 2
    assert "--output-conn-id is 'no_such_connection'" in missing.err
    assert not emulator.requests
