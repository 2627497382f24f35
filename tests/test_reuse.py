"""Tests of `reuse`: when a task returns the outputs of an earlier flow run, and when it starts a new one."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.sdk import ObjectStoragePath
from PIL import Image

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.emulator import Emulator, Plan
from airflow_provider_flows.operators import RunFlowBatchOperator, RunFlowOperator
from airflow_provider_flows.storage.reuse_index import FOLDER_NAME
from airflow_provider_flows.triggers import FlowRunTrigger
from tests.support.batches import (
    CHAIN_FLOW,
    CountingStore,
    Death,
    create_batch,
    create_chain_batch,
    create_chain_items,
    create_items,
    read_lines,
    run_try,
)
from tests.support.bucket import BUCKET, BUCKET_CONN_ID, ObjectServer
from tests.support.modes import FLOW, run_in_mode
from tests.support.task_instances import Store, context
from tests.support.triggers import wait_for_condition

pytestmark = pytest.mark.emulator(run_seconds=0.2)

PROMPT = "A chair that nobody else knows"
IMAGE_FLOW = "model_generate_fromimage"
MONTH = timedelta(days=30)
Change = Callable[[Path], object]


def run_task(output_path: Path | None, /, **arguments: Any) -> dict[str, Any]:
    """Run one task that reuses outputs."""
    defaults: dict[str, Any] = {
        "flow": FLOW,
        "inputs": PROMPT,
        "parameters": {"quality": "low"},
        "flows_conn_id": "generio_default",
        "poll_interval": 0.1,
        "max_poll_interval": 0.2,
        "deferrable": False,
        "reuse": MONTH,
    }
    if output_path is not None:
        defaults["output_path"] = str(output_path)
    operator = RunFlowOperator(task_id="t", **{**defaults, **arguments})
    return operator.execute(context(Store()))


def get_entry(path: Path) -> Path:
    """Return the file of the one entry below a path."""
    (entry,) = (path / FOLDER_NAME).iterdir()
    return entry


def save_picture(path: Path, colour: str) -> None:
    """Save a picture of one colour."""
    Image.new("RGB", (64, 64), colour).save(path)


def test_same_request_is_paid_once(
    emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second task returns the first one's result with `reused`, and sends no request."""
    first = run_task(tmp_path)
    sent = len(emulator.requests)
    with caplog.at_level(logging.INFO):
        second = run_task(tmp_path)
    assert second == {**first, "reused": True}
    assert len(emulator.requests) == sent
    assert len(emulator.paid_runs) == 1
    assert f"No flow run is started: the generio flow run {first['flow_run_id']}" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "is_reused"),
    [
        pytest.param({"parameters": {"quality": "low", "seed": 7}}, False, id="other parameters"),
        pytest.param({"inputs": "Another chair"}, False, id="another prompt"),
        pytest.param({"inputs": [PROMPT, PROMPT]}, False, id="more inputs"),
        pytest.param({"inputs": {"data": PROMPT, "additional": {"sku": 1}}}, False, id="input's metadata"),
        pytest.param({"reuse": False}, False, id="off"),
        pytest.param({"additional": {"day": "2026-11-30"}}, True, id="run's metadata"),
        pytest.param({"reuse": True}, True, id="any age"),
        pytest.param({"delete_after_fetch": True}, True, id="to be deleted after the fetch"),
    ],
)
def test_what_makes_a_request_the_same(
    emulator: Emulator, tmp_path: Path, arguments: dict[str, Any], is_reused: bool
) -> None:
    """Inputs and parameters count; where the outputs go, and what is stored with the run, do not."""
    first = run_task(tmp_path / "a", reuse_path=tmp_path)
    second = run_task(tmp_path / "b", reuse_path=tmp_path, **arguments)
    assert second.get("reused", False) is is_reused
    assert len(emulator.paid_runs) == (1 if is_reused else 2)
    assert first["flow_run_id"] in emulator.runs  # a reused run is left at its service


@pytest.mark.parametrize("is_changed", [False, True])
def test_file_counts_by_its_content(emulator: Emulator, tmp_path: Path, is_changed: bool) -> None:
    """A copy of an input file is the same input; a file whose content has changed is another one."""
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    save_picture(first, "red")
    save_picture(second, "blue" if is_changed else "red")
    arguments: dict[str, Any] = {"flow": IMAGE_FLOW}
    run_task(tmp_path / "models", inputs=first, **arguments)
    result = run_task(tmp_path / "models", inputs=second, **arguments)
    assert result.get("reused", False) is not is_changed
    assert len(emulator.paid_runs) == 1 + is_changed


def change_entry(**changes: Any) -> Change:
    """Return a function that changes fields of the entry below a path."""

    def change(path: Path) -> None:
        entry = get_entry(path)
        entry.write_text(json.dumps({**json.loads(entry.read_text()), **changes}))

    return change


def change_output(**changes: Any) -> Change:
    """Return a function that changes fields of the first output of the entry below a path."""

    def change(path: Path) -> None:
        run = json.loads(get_entry(path).read_text())["run"]
        run["outputs"][0].update(changes)
        change_entry(run=run)(path)

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: next(path.glob("*/*.glb")).unlink(), id="file is gone"),
        pytest.param(lambda path: next(path.glob("*/*.glb")).write_bytes(b"glTF"), id="file of another size"),
        pytest.param(change_entry(saved_at=time.time() - 31 * 86_400), id="too old"),
        pytest.param(change_entry(saved_at=time.time() + 86_400), id="from the future"),
        pytest.param(change_entry(version=2), id="of another version"),
        pytest.param(change_entry(fingerprint="0" * 64), id="of another request"),
        pytest.param(lambda path: get_entry(path).write_text('{"version": 1, "run"'), id="truncated"),
        pytest.param(lambda path: get_entry(path).write_text("[" * 100_000), id="nested"),
        pytest.param(change_output(size="1"), id="size of another type"),
        pytest.param(change_output(sha256=None), id="without a digest"),
        pytest.param(change_output(uri=None, value=None), id="without a file"),
        pytest.param(change_output(warning="It may be unusable"), id="with a warning"),
        pytest.param(lambda path: shutil.rmtree(path / FOLDER_NAME), id="index is gone"),
    ],
)
def test_in_doubt_the_flow_is_run(emulator: Emulator, tmp_path: Path, change: Change) -> None:
    """An entry that is too old, damaged, or whose files are gone is not used, and is replaced."""
    run_task(tmp_path)
    change(tmp_path)
    second = run_task(tmp_path)
    assert "reused" not in second
    assert len(emulator.paid_runs) == 2
    third = run_task(tmp_path)
    assert (third["flow_run_id"], third["reused"]) == (second["flow_run_id"], True)


def test_index_that_cannot_be_used_fails_no_task(
    emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A task whose index can neither be read nor written runs the flow, and logs why."""
    (tmp_path / FOLDER_NAME).write_text("This is no folder.")
    assert run_task(tmp_path)["state"] == "completed"
    assert len(emulator.paid_runs) == 1
    assert "cannot be reused, because the index cannot be written" in caplog.text


def test_index_has_digests_only(emulator: Emulator, tmp_path: Path) -> None:
    """Neither the prompt nor the key of the connection is in the index."""
    run_task(tmp_path, inputs=[PROMPT, {"data": PROMPT}], validate=False)
    content = get_entry(tmp_path).read_text()
    assert PROMPT not in content
    assert emulator.key not in content


def test_two_tasks_that_miss_at_the_same_time(
    emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Both run the flow, and the later one logs that the request was paid for twice."""
    emulator.add_plan(Plan(run_seconds=3600))
    emulator.add_plan(Plan(run_seconds=7200))
    with ThreadPoolExecutor(2) as executor:
        tasks = [executor.submit(run_task, tmp_path) for _ in range(2)]
        asyncio.run(wait_for_condition(lambda: len(emulator.paid_runs) == 2))
        emulator.advance(3601)
        asyncio.run(wait_for_condition(lambda: any(task.done() for task in tasks)))
        emulator.advance(3600)
        results = [task.result() for task in tasks]
    assert not any("reused" in result for result in results)
    assert caplog.text.count("Another task ran the same request at the same time") == 1
    last = json.loads(get_entry(tmp_path).read_text())["run"]["flow_run_id"]
    assert run_task(tmp_path)["flow_run_id"] == last


def test_deferred_task(emulator: Emulator, tmp_path: Path) -> None:
    """A deferred task adds its run to the index afterwards; one that reuses outputs is not deferred."""
    arguments: dict[str, Any] = {"output_path": str(tmp_path), "reuse": True, "max_poll_interval": 0.2}
    first = run_in_mode("deferrable", emulator, (1.0,), **arguments)
    second = run_in_mode("deferrable", emulator, **arguments)
    assert second.return_value == {**(first.return_value or {}), "reused": True}
    assert len(emulator.paid_runs) == 1


def test_fingerprint_survives_a_deferral(emulator: Emulator, tmp_path: Path) -> None:
    """The index is keyed by what was sent, also if the input file has changed while the task was deferred."""
    emulator.run_seconds = 3600
    file = tmp_path / "chair.png"
    save_picture(file, "red")
    arguments: dict[str, Any] = {"flow": IMAGE_FLOW, "inputs": file, "parameters": {"quality": "low"}}
    with pytest.raises(TaskDeferred) as deferred:
        run_task(tmp_path / "models", deferrable=True, **arguments)
    path, trigger_arguments = deferred.value.trigger.serialize()
    assert path == "airflow_provider_flows.triggers.FlowRunTrigger"
    emulator.advance(7200)
    event = asyncio.run(anext(FlowRunTrigger(**trigger_arguments).run())).payload  # type: ignore[arg-type]
    save_picture(file, "blue")
    operator = RunFlowOperator(
        task_id="t",
        output_path=str(tmp_path / "models"),
        flows_conn_id="generio_default",
        reuse=MONTH,
        **arguments,
    )
    operator.execute_complete(context(Store()), event)
    emulator.run_seconds = 0
    assert "reused" not in run_task(tmp_path / "models", **arguments)
    save_picture(file, "red")
    assert run_task(tmp_path / "models", **arguments)["reused"]


CHAIN_ARGUMENTS: dict[str, Any] = {
    "flow": CHAIN_FLOW,
    "inputs": {"color": "red", "item": "ball"},
    "parameters": None,
    "flows_conn_id": "promptchainer_default",
}


def test_texts_are_reused_themselves(emulator: Emulator, tmp_path: Path) -> None:
    """The texts of PromptChainer are in the index, and its pictures in their files."""
    first, sent = run_task(tmp_path, **CHAIN_ARGUMENTS), len(emulator.requests)
    assert any(output["value"] for output in first["outputs"] if "uri" not in output)
    assert run_task(tmp_path, **CHAIN_ARGUMENTS) == {**first, "reused": True}
    assert len(emulator.requests) == sent
    assert "reused" not in run_task(tmp_path, **{**CHAIN_ARGUMENTS, "inputs": {"color": "blue", "item": "x"}})


def test_signed_links_are_not_in_the_index(emulator: Emulator, tmp_path: Path) -> None:
    """A result with a link in place of a file is neither reused nor saved, because the link expires."""
    emulator.run_seconds = 0
    arguments = {**CHAIN_ARGUMENTS, "reuse_path": str(tmp_path)}
    results = [run_task(None, **arguments) for _ in range(2)]
    assert not any("reused" in result for result in results)
    assert not (tmp_path / FOLDER_NAME).exists()
    run_task(tmp_path, **arguments)
    assert "sig=" not in get_entry(tmp_path).read_text()


def test_index_in_an_object_store(bucket: ObjectServer, emulator: Emulator) -> None:
    """In S3 an entry is one object; a file that was deleted there is noticed."""
    emulator.run_seconds = 0
    path = f"s3://{BUCKET}/chairs"
    first = run_task(None, reuse_path=f"{path}/index", output_path=path, output_conn_id=BUCKET_CONN_ID)
    objects = sorted(bucket.objects())
    assert len(objects) == 2
    assert objects[1].startswith(f"chairs/index/{FOLDER_NAME}/")
    arguments: dict[str, Any] = {"reuse_path": f"{path}/index", "output_conn_id": BUCKET_CONN_ID}
    assert run_task(None, output_path=f"{path}/other", **arguments) == {**first, "reused": True}
    ObjectStoragePath(first["outputs"][0]["uri"], conn_id=BUCKET_CONN_ID).unlink()
    assert "reused" not in run_task(None, output_path=path, **arguments)


def test_result_that_is_too_large_is_not_reused(emulator: Emulator, tmp_path: Path) -> None:
    """A task whose max_xcom_bytes is smaller than the earlier result runs the flow."""
    run_task(tmp_path)
    assert "reused" not in run_task(tmp_path, max_xcom_bytes=100)
    assert len(emulator.paid_runs) == 2


@pytest.mark.parametrize("is_deferrable", [False, True])
def test_batch_reuses_each_item(emulator: Emulator, tmp_path: Path, is_deferrable: bool) -> None:
    """A batch takes the outputs of an earlier batch, and runs only the items that are new."""
    arguments: dict[str, Any] = {"reuse": MONTH, "reuse_path": str(tmp_path)}
    run_batch(tmp_path / "monday", create_items(3), is_deferrable=is_deferrable, **arguments)
    result = run_batch(tmp_path / "tuesday", create_items(4), is_deferrable=is_deferrable, **arguments)
    assert (result["total"], result["completed"], result["reused"]) == (4, 4, 3)
    assert len(emulator.paid_runs) == 4
    monday, tuesday = (read_lines(tmp_path / day / "manifest.jsonl") for day in ("monday", "tuesday"))
    assert [line["reused"] for line in tuesday] == [True, True, True, False]
    assert [line["attempts"] for line in tuesday] == [0, 0, 0, 1]
    assert [line["outputs"] for line in tuesday[:3]] == [line["outputs"] for line in monday]


def run_batch(path: Path, items: Any, *, is_deferrable: bool, **arguments: Any) -> dict[str, Any]:
    """Run a batch with as many deferrals as it takes."""
    store, event = Store(), None
    while True:
        batch = create_batch(path, items, deferrable=is_deferrable, **arguments)
        try:
            if event is None:
                return batch.execute(context(store))
            return batch.execute_complete(context(store), event)
        except TaskDeferred as deferred:
            event = asyncio.run(anext(deferred.trigger.run())).payload  # type: ignore[arg-type]


def test_retry_of_a_batch_counts_what_was_reused(emulator: Emulator, tmp_path: Path) -> None:
    """A retry neither runs nor looks up the items that have completed, and still counts the reused ones."""
    arguments: dict[str, Any] = {"reuse": True, "reuse_path": str(tmp_path)}
    run_try(create_batch(tmp_path / "a", create_items(2), **arguments))
    store = Store()
    run_try(create_batch(tmp_path / "b", create_items(2), **arguments), store)
    shutil.rmtree(tmp_path / FOLDER_NAME)
    result = run_try(create_batch(tmp_path / "b", create_items(2), **arguments), store, 2)
    assert (result["completed"], result["reused"]) == (2, 2)
    assert len(emulator.paid_runs) == 2


def test_task_and_batch_share_an_index(emulator: Emulator, tmp_path: Path) -> None:
    """An item is the same request as that of a task with the same inputs and parameters."""
    run_task(tmp_path, parameters={"quality": "low"})
    items = [{"key": "chair", "inputs": PROMPT}]
    result = run_try(create_batch(tmp_path / "batch", items, reuse=MONTH, reuse_path=str(tmp_path)))
    assert result["reused"] == 1
    assert len(emulator.paid_runs) == 1


def test_batch_of_texts(emulator: Emulator, tmp_path: Path) -> None:
    """The items of a second batch of PromptChainer are reused, also from another folder."""
    arguments: dict[str, Any] = {"reuse": True, "reuse_path": str(tmp_path)}
    run_try(create_chain_batch(tmp_path / "a", create_chain_items(3), **arguments))
    sent = len(emulator.requests)
    result = run_try(create_chain_batch(tmp_path / "b", create_chain_items(3), **arguments))
    assert result["reused"] == 3
    assert len(emulator.requests) == sent
    values = [line["outputs"][0]["value"] for line in read_lines(tmp_path / "b" / "manifest.jsonl")]
    assert len(set(values)) == 3


@pytest.mark.parametrize("is_written", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("dies_at", [3, 4, 5])
def test_texts_of_a_batch_that_was_resumed(
    emulator: Emulator, tmp_path: Path, dies_at: int, *, is_written: bool
) -> None:
    """An item whose response was saved before the process ended is in the index as well."""
    arguments: dict[str, Any] = {"reuse": True, "reuse_path": str(tmp_path), "max_active_runs": 1}
    store = CountingStore({}, dies_at, is_written=is_written)
    with suppress(Death):
        run_try(create_chain_batch(tmp_path / "a", create_chain_items(3), **arguments), store)
    result = run_try(create_chain_batch(tmp_path / "a", create_chain_items(3), **arguments), Store(store), 2)
    assert result["completed"] == 3
    sent = len(emulator.requests)
    result = run_try(create_chain_batch(tmp_path / "b", create_chain_items(3), **arguments))
    assert result["reused"] == 3
    assert len(emulator.requests) == sent


INVALID_AGES = [
    (
        "30",
        "reuse must be a timedelta such as timedelta(days=30), True for outputs of any age, or False, not",
    ),
    (30, "reuse must be a timedelta such as timedelta(days=30), True"),
    (timedelta(days=-1), "reuse must be a timedelta of more than 0 seconds"),
    (timedelta(0), "reuse must be a timedelta of more than 0 seconds"),
]


@pytest.mark.parametrize(("reuse", "message"), INVALID_AGES)
@pytest.mark.parametrize(
    ("operator", "inputs"),
    [(RunFlowOperator, {"inputs": "A chair"}), (RunFlowBatchOperator, {"items": ["A chair"]})],
)
def test_invalid_age_when_the_dag_is_parsed(
    operator: type, inputs: dict[str, Any], reuse: Any, message: str
) -> None:
    """An age that cannot be used is an error before any task runs; the message names the argument."""
    with pytest.raises(FlowInputError, match=re.escape(message)):
        operator(task_id="t", flow=FLOW, output_path="/data", reuse=reuse, **inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "reuse needs an output_path or a reuse_path"),
        ({"output_path": "/data", "wait_for_completion": False}, "cannot be combined with wait_for"),
    ],
)
def test_invalid_combination_when_the_dag_is_parsed(arguments: dict[str, Any], message: str) -> None:
    """Without a folder there is no index, and without a wait there are no outputs."""
    with pytest.raises(FlowInputError, match=message):
        RunFlowOperator(task_id="t", flow=FLOW, inputs="A chair", reuse=True, **arguments)


def test_reuse_path_is_checked_before_a_run_is_started(emulator: Emulator, tmp_path: Path) -> None:
    """A reuse_path that cannot be written to is an error that names the argument."""
    with pytest.raises(FlowInputError, match=r"reuse_path .models. cannot be written to: it is a relative"):
        run_task(tmp_path, reuse_path="models")
    assert not emulator.paid_runs
