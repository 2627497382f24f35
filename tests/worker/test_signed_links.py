"""Tests of where the signed link to a picture may stand, however its download ends.

The signature must stand nowhere but in the link that is fetched. It is searched in Airflow's task state
store, XComs, logs and errors, in OpenLineage's facets, and in the files.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.core.exceptions import FlowError, FlowNotFound
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.worker.saved_run import SEALED, open_links, seal_links
from tests.support.disk_store import DiskStore, run_try, start_first_try
from tests.support.downloads import kill, list_files
from tests.support.task_instances import Store, context
from tests.support.tries import CHAIN_ARGUMENTS, TaskResult, run_with_retries
from tests.support.versions import needs

pytestmark = [pytest.mark.emulator(run_seconds=0, retries=0), needs("task state store")]

PICTURES = "*.png"
OUTCOMES: dict[str, tuple[Fault | None, int, tuple[str, int]]] = {
    "fetched": (None, 1, ("success", 1)),
    "fetched by a retry": (Fault("GET", PICTURES, status=500), 1, ("success", 2)),
    "failed without a retry": (Fault("GET", PICTURES, status=500, times=None), 0, ("failed", 1)),
    "failed with every retry": (Fault("GET", PICTURES, status=500, times=None), 2, ("failed", 3)),
    "no picture": (Fault("GET", PICTURES, body=b"<html>", times=None), 1, ("success", 1)),
    "expired": (Fault("GET", PICTURES, status=403, times=None), 2, ("failed", 1)),
}


def stored_texts(run_id: str) -> Iterator[str]:
    """Yield the values in Airflow's task state store."""
    from airflow.models.task_state_store import TaskStateStoreModel

    with create_session() as session:
        yield from session.scalars(select(TaskStateStoreModel.value).filter_by(run_id=run_id))


def signatures(emulator: Emulator) -> set[str]:
    """Return the signatures of the pictures in the responses of the emulated service."""
    text = json.dumps([run.outputs for run in emulator.paid_runs], default=str)
    found = set(re.findall(r"sig=([^&\"]+)", text))
    assert found
    return found


def assert_no_signature(emulator: Emulator, *texts: str) -> None:
    """Assert that no text has a signature, or a part of one that is long enough to be one."""
    for text in texts:
        assert "sig=" not in text
        for signature in signatures(emulator):
            assert signature not in text
            assert signature[:12] not in text


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("size", [10, 200_000])
def test_signature_is_nowhere_after_the_task(
    emulator: Emulator, tmp_path: Path, outcome: str, size: int
) -> None:
    """Whether the picture was fetched or not, its signature is in no store, XCom, log, error or file."""
    fault, retries, expected = OUTCOMES[outcome]
    if fault is not None:
        emulator.add_fault(fault)
    inputs = {"color": "red" * size, "item": "ball"}
    arguments = {**CHAIN_ARGUMENTS, "inputs": inputs, "output_path": str(tmp_path), "retries": retries}
    result = run_with_retries(f"signed_{outcome.replace(' ', '_')}_{size}", **arguments)

    assert ((result.state, result.tries), emulator.started_count) == (expected, 1)
    files = [(tmp_path / name).read_bytes() for name in list_files(tmp_path)]
    xcoms = json.dumps(result.result.xcoms) if outcome != "no picture" else ""  # the link is the output then
    errors = [str(error) + repr(vars(error)) for error in result.result.errors.values()]
    texts = [*stored_texts(result.result.run_id), *errors, *(file.decode("latin-1") for file in files)]
    assert_no_signature(emulator, xcoms, result.result.log, *texts)
    assert bool(result.record and result.record["saved_run"]) == (result.state == "failed")
    if outcome.startswith("fetched"):
        assert_picture(result)


def assert_picture(result: TaskResult) -> None:
    """Assert that a task has stored the picture."""
    (path,) = (output["uri"] for output in result.outputs if output["media_type"] == "image/png")
    assert Path(path.removeprefix("file://")).read_bytes()[:4] == b"\x89PNG"


def test_signature_is_sealed_between_two_tries(emulator: Emulator, tmp_path: Path) -> None:
    """After a failed try neither store nor lineage has a signature; the next try fetches the picture."""
    emulator.add_fault(Fault("GET", PICTURES, status=500, times=None))
    store = Store()
    operator = RunFlowOperator(task_id="t", **CHAIN_ARGUMENTS, output_path=str(tmp_path))
    with pytest.raises(FlowError) as caught:
        operator.execute(context(store, 1, 1))
    lineage = str(operator.get_openlineage_facets_on_failure(context(store)["ti"]))
    assert SEALED in json.dumps(store)
    assert_no_signature(emulator, json.dumps(store), str(caught.value), lineage)

    emulator.clear_faults()
    result = RunFlowOperator(task_id="t", **CHAIN_ARGUMENTS, output_path=str(tmp_path)).execute(
        context(store, 2, 1)
    )
    assert emulator.started_count == 1
    assert [output["media_type"] for output in result["outputs"] if "uri" in output] == ["image/png"]
    assert_no_signature(emulator, json.dumps(store), json.dumps(result))


def test_signature_is_sealed_when_the_worker_dies(emulator: Emulator, tmp_path: Path) -> None:
    """After SIGKILL during the download nothing on disk has the signature, and the next try goes on."""
    store, folder = tmp_path / "store.json", tmp_path / "files"
    arguments = {**CHAIN_ARGUMENTS, "output_path": str(folder)}
    emulator.add_fault(Fault("GET", PICTURES, delay=30))
    first = start_first_try(store, arguments)
    wait_until(lambda: any(seen.path.endswith(".png") for seen in emulator.requests))
    kill(first)
    on_disk = [(folder / name).read_bytes().decode("latin-1") for name in list_files(folder)]
    assert_no_signature(emulator, json.dumps(DiskStore(store)), *on_disk)

    result = run_try(str(store), 2, arguments)
    assert emulator.started_count == 1
    assert [output["media_type"] for output in result["outputs"] if "uri" in output] == ["image/png"]


def wait_until(is_reached: Callable[[], object]) -> None:
    """Wait until a condition is met."""
    until = time.monotonic() + 60
    while not is_reached():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_signature_of_another_key_is_given_up(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the key was changed between two tries, the picture is lost with a reason, and texts are not."""
    emulator.add_fault(Fault("GET", PICTURES, status=500, times=None))
    store = Store()
    operator = RunFlowOperator(task_id="t", **CHAIN_ARGUMENTS, output_path=str(tmp_path))
    with pytest.raises(FlowError):
        operator.execute(context(store, 1, 1))
    emulator.clear_faults()
    monkeypatch.setenv(
        "AIRFLOW_CONN_PROMPTCHAINER_DEFAULT",
        json.dumps({"conn_type": "promptchainer", "host": emulator.url, "password": "another-key"}),
    )
    try_context, pushed = context(store, 2, 1), dict[str, Any]()
    try_context["ti"].xcom_push = pushed.__setitem__
    with pytest.raises(FlowNotFound, match="Run the flow again"):
        RunFlowOperator(task_id="t", **CHAIN_ARGUMENTS, output_path=str(tmp_path)).execute(try_context)
    assert "saved with another API key" in caplog.text
    assert [output["status"] for output in pushed["outputs"]].count("ready") == 1
    assert emulator.started_count == 1


LINKS = [
    "https://h.example/a.png?se=2026&sig=c0ffee%2Bc0ffee",
    "https://h.example/a.png?sealed=gAAAAA",
    "https://h.example/a.png?a=\ud800\u00fc?b#c",
    "https://h.example/a.png?",
    "https://h.example/a.png",
]


@pytest.mark.parametrize("link", LINKS)
def test_links_are_opened_as_they_were_sealed(link: str) -> None:
    """Any query of a link is sealed and opened unchanged; a text is not touched; another key opens none."""
    text = {"name": "t", "value": "Is it?sig=c0ffee", "is_url": False}
    run = {"flow_run_id": "r", "outputs": [{"name": "p", "value": link, "is_url": True}, text]}
    sealed = seal_links(run, ("key",))
    assert "c0ffee" not in sealed["outputs"][0]["value"]
    assert sealed["outputs"][1] == text
    assert open_links(sealed, ("key",)) == run
    assert open_links(sealed, ("other",))["outputs"][0]["value"] in {link, link.partition("?")[0]}
