"""Tests of texts that no store accepts, from the response to tasks, events, watchers and commands."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from airflow.models.asset import AssetEvent
from airflow.sdk import Asset
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.core.exceptions import FlowAuthError, FlowRunFailed
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.triggers import FlowRunTrigger
from tests.support.asset_watchers import run_watcher
from tests.support.commands import flows_command
from tests.support.hostile.texts import IS_NO_LINE, NO_LINES, SPELLINGS, find_key
from tests.support.modes import FLOW, MODES, run_in_mode, start_external_run
from tests.support.stores import UNSAFE_TEXTS, assert_storable
from tests.support.tries import CHAIN_ARGUMENTS, run_with_retries
from tests.support.versions import needs

UNSAFE = "".join(f"{text}." for text in UNSAFE_TEXTS.values())
SAFE = "\ufffd." * len(UNSAFE_TEXTS)
FAILED_RUN = {"state": "failed", "error": f"boom {UNSAFE}", "template": FLOW}
OUTPUTS = [
    {
        "asset_id": "a",
        "name": f"n {UNSAFE}",
        "status": "ready",
        "media_type": f"text/{UNSAFE}",
        "data": f"x {UNSAFE}",
        "additional": {UNSAFE: [UNSAFE]},
    },
    {"asset_id": "b", "name": "b", "status": "error", "error": UNSAFE},
]
LONG_KEY = "a+key/that=must&not<be>shown"
REJECTIONS = {"UTF-16": "No entry".encode("utf-16"), "gzip": gzip.compress(b"No entry"), "JSON": b""}
REJECTIONS["JSON"] = json.dumps({"detail": f"No entry {UNSAFE}"}).encode()

pytestmark = pytest.mark.emulator(run_seconds=0.1, retries=0)


def respond(emulator: Emulator, path: str, value: Any, method: str = "GET", **more: Any) -> None:
    """Replace the bodies of the responses to such requests."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    emulator.add_fault(Fault(method, path, body=body, times=None, **more))


@pytest.mark.parametrize("mode", MODES)
def test_reason_of_a_failure_is_reported(emulator: Emulator, mode: str) -> None:
    """In every mode the task fails with a reason that can be stored and read."""
    respond(emulator, "/flows/*", FAILED_RUN)
    waited = run_in_mode(mode, emulator, timeout=30)
    assert isinstance(waited.error, FlowRunFailed), waited.result.log
    assert f"boom {SAFE}" in str(waited.error)
    assert_storable(waited.error, waited.result.xcoms, waited.result.log)


@pytest.mark.parametrize("mode", MODES)
def test_outputs_are_returned(emulator: Emulator, mode: str, tmp_path: Path) -> None:
    """In every mode XComs and asset events have outputs that can be stored, and the task succeeds."""
    respond(emulator, "*/outputs", {"outputs": OUTPUTS})
    respond(emulator, "*/outputs/a", {"data": f"x {UNSAFE}"}, status=200)
    uri = f"x-models://unsafe/{mode}"
    waited = run_in_mode(
        mode,
        emulator,
        outlets=[Asset(uri)],
        **({"output_path": f"file://{tmp_path}"} if "sensor" in mode else {}),
    )
    assert waited.return_value is not None, waited.result.log
    first, second = waited.return_value["outputs"]
    assert (first["name"], second["error"]) == (f"n {SAFE}", SAFE)
    assert first["additional"] == {SAFE: [SAFE]}
    with create_session() as session:
        extras = session.scalars(
            select(AssetEvent.extra).where(AssetEvent.source_run_id == waited.result.run_id)
        ).all()
    assert len(extras) == 1
    assert_storable(waited.result.xcoms, waited.result.log, extras)


METADATA = {
    "reserved keys": {"__classname__": "a", "nested": [{"__id__": "b"}]},
    "class to create": {"__type": "airflow.sdk.definitions.asset.Asset", "__var": {"uri": "x"}},
    "large integers": {"seeds": [2**64, -(2**63) - 1]},
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("mode", MODES)
def test_metadata_that_airflow_would_not_accept_is_returned(emulator: Emulator, mode: str, name: str) -> None:
    """Metadata with Airflow's own keys, or with integers beyond 64 bits, fails no task whose run is paid."""
    respond(emulator, "*/outputs", {"outputs": [OUTPUTS[1] | {"additional": METADATA[name]}]})
    waited = run_in_mode(mode, emulator)
    assert waited.return_value is not None, waited.result.log
    metadata = waited.return_value["outputs"][0]["additional"]
    assert_storable(waited.result.xcoms)
    assert json.dumps(METADATA[name]) == json.dumps(metadata).replace('"___', '"__').replace(
        '"18446744073709551616", "-9223372036854775809"', "18446744073709551616, -9223372036854775809"
    )


@pytest.mark.parametrize("name", REJECTIONS)
@pytest.mark.parametrize("mode", ["blocking", "deferrable", "sensor, poke"])
def test_rejection_of_a_gateway_is_reported(emulator: Emulator, mode: str, name: str) -> None:
    """A rejection with any body is an error that can be stored, from a worker and from the triggerer."""
    respond(emulator, "/flows/*", REJECTIONS[name], status=403, skip=mode == "deferrable")
    waited = run_in_mode(mode, emulator, timeout=30)
    assert isinstance(waited.error, FlowAuthError), waited.result.log
    assert ("No entry" in str(waited.error)) == (name != "gzip")
    assert_storable(waited.error, waited.result.log)


async def test_event_of_a_trigger_can_be_stored(emulator: Emulator) -> None:
    """The triggerer packs each event; one that it cannot pack would end it."""
    run_id = start_external_run(emulator)
    respond(emulator, "/flows/*", FAILED_RUN)
    trigger = FlowRunTrigger("generio_default", run_id, 0.1, 0.1)
    (event,) = [event async for event in trigger.run()]
    assert f"boom {SAFE}" in json.dumps(event.payload, ensure_ascii=False)
    assert_storable(event.payload)


async def test_event_of_a_watcher_can_be_stored(emulator: Emulator) -> None:
    """An asset event of a run with unsafe texts, also in its id, can be stored."""
    async with run_watcher(flows_conn_id="generio_default", states=["failed"]) as watcher:
        row = {
            **FAILED_RUN,
            "flow_id": f"r{UNSAFE}",
            "template": f"t{UNSAFE}",
            "finished_at": "2999-01-01T00:00:00Z",
        }
        respond(emulator, "/flows", {"flows": [row]}, skip=2)
        assert await watcher.wait_for_events(f"r{SAFE}")
    assert_storable(watcher.events)


@pytest.mark.parametrize("unsafe", UNSAFE_TEXTS.values(), ids=UNSAFE_TEXTS)
def test_paid_text_is_returned_at_the_first_try(emulator: Emulator, unsafe: str) -> None:
    """A PromptChainer output with an unsafe text is paid once, and its task succeeds."""
    rows = [{"name": f"n{unsafe}", "type": "output", "output": f"x {unsafe}"}]
    respond(emulator, "/api/flows/run/*", rows, method="POST")
    done = run_with_retries("unsafe_chain", **CHAIN_ARGUMENTS, retries=2, validate=False)
    assert (done.state, done.tries, emulator.started_count) == ("success", 1, 1)
    assert (done.outputs[0]["name"], done.outputs[0]["value"]) == ("n\ufffd", "x \ufffd")
    assert_storable(done.result.xcoms, done.record, done.result.log)


@needs("commands of providers")
@pytest.mark.parametrize("output", ["json", "yaml", "table", "plain"])
def test_command_prints_what_is_readable(
    emulator: Emulator, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    """`airflow flows` prints runs with unsafe texts on a terminal in UTF-8."""
    respond(emulator, "/flows", {"flows": [{**FAILED_RUN, "flow_id": "r", "template": f"t{UNSAFE}"}]})
    result = flows_command(capsys)(f"runs -o {output}")
    assert result.code == 0
    assert_storable(result.out, result.err)


@needs("commands of providers")
@pytest.mark.parametrize("output", ["json", "yaml", "table", "plain"])
def test_command_does_not_print_a_repeated_key(
    emulator: Emulator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """`airflow flows` prints neither data nor errors with the key, in whichever spelling."""
    monkeypatch.setenv("COLUMNS", "2000")
    connection = {"conn_type": "generio", "host": emulator.url, "password": LONG_KEY}
    monkeypatch.setenv("AIRFLOW_CONN_REPEATING", json.dumps(connection))
    flows = flows_command(capsys)
    for spell in SPELLINGS.values():
        key = spell(LONG_KEY)
        run = f'{{"flow_id": "r", "state": "failed", "error": "no {key}", "template": "t {key}"}}'
        outputs = f'[{{"asset_id": "a", "name": "n {key}", "status": "error", "error": "{key}"}}]'
        for path, body in {"/flows": f'{{"flows": [{run}]}}', "*/outputs": outputs, "/flows/r": run}.items():
            respond(emulator, path, body.encode(), status=200)
        results = [
            flows(f"{words} --conn-id repeating -o {output}") for words in ("runs", "get r", "outputs r")
        ]
        emulator.clear_faults()
        respond(emulator, "/flows*", f'{{"detail": "{key}"}}'.encode(), status=403)
        results.append(flows(f"get r --conn-id repeating -o {output}"))
        emulator.clear_faults()
        assert [result.code for result in results[:3]] == [0] * 3
        assert all("***" in result.out for result in (results[0], results[2]))
        assert [result for result in results if find_key(result.out + result.err, LONG_KEY)] == []


@pytest.mark.parametrize("mode", MODES)
def test_no_text_of_a_service_forges_a_line_of_the_log(
    emulator: Emulator, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    """In every mode the names and errors of a run are part of one line each, without control characters."""
    text = "".join(NO_LINES.values())
    respond(emulator, "/flows/*", {**FAILED_RUN, "error": text, "template": text})
    outputs = [
        {"asset_id": "a", "name": text, "status": "error", "error": text},
        {"asset_id": text, "name": text},
    ]
    respond(emulator, "*/outputs", {"outputs": outputs})
    more = {} if "sensor" in mode else {"fetch_partial_outputs": True}
    waited = run_in_mode(mode, emulator, timeout=30, **more)
    assert isinstance(waited.error, FlowRunFailed), waited.result.log
    assert "forged" in str(waited.error)
    assert IS_NO_LINE.search(str(waited.error)) is None
    messages = [record.getMessage() for record in caplog.records if "forged" in record.getMessage()]
    lines = [line for line in waited.result.log.splitlines() if "forged" in line]
    assert messages or lines
    colours = re.compile(r"\x1b\[[0-9;]*m")  # of Airflow's own renderer
    assert [one for one in (*messages, *lines) if IS_NO_LINE.search(colours.sub("", one))] == []
    assert [line for line in lines if colours.sub("", line).startswith("forged")] == []
