"""Tests of checks in a batch: a rejected item has failed with its verdict, or is run again, once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from airflow_provider_flows.checks import CheckedOutput, GlbCheck, TextCheck
from airflow_provider_flows.core.exceptions import FlowInputError, FlowOutputRejected, FlowRunFailed
from airflow_provider_flows.core.start_or_resume import get_stamp
from airflow_provider_flows.emulator import Emulator, Plan
from tests.support.batches import (
    CountingStore,
    Death,
    count_paid_runs,
    create_batch,
    create_chain_batch,
    create_chain_items,
    create_items,
    die_at_request,
    read_lines,
    read_manifest_states,
    run_try,
)
from tests.support.checked_runs import get_event, get_seeds
from tests.support.task_instances import AIRFLOW_KINDS, Store, context

pytestmark = [
    pytest.mark.emulator(run_seconds=0.1, abort="instant", retries=0),
    pytest.mark.usefixtures("short_search"),
]
ODD = {"item-1", "item-3"}


def reject_runs(emulator: Emulator, count: int, keys: set[str]) -> Callable[[CheckedOutput], str | None]:
    """Return a check that rejects the outputs of the first flow runs of some items, in each process."""

    def check(output: CheckedOutput) -> str | None:
        key = Path(urlparse(output.uri or "").path).parent.name
        if key not in keys:
            return None
        runs = [run for run in emulator.paid_runs if get_stamp(run)["batch_key"] == key]  # type: ignore[arg-type]
        return "is early" if len(runs) <= count else None

    return check


def test_rejected_item_has_failed_with_its_verdict(emulator: Emulator, tmp_path: Path) -> None:
    """The manifest and the file of failed items have the verdict; the result counts what was paid."""
    operator = create_batch(
        tmp_path,
        create_items(4),
        check_outputs=[GlbCheck(max_triangles=100_000), reject_runs(emulator, 9, ODD)],
        min_success_ratio=0.5,
    )
    result = run_try(operator)
    assert (result["completed"], result["failed"], result["rejected"], result["paid_runs"]) == (2, 2, 2, 4)
    lines = {line["key"]: line for line in read_lines(tmp_path / "manifest.jsonl")}
    for key, line in lines.items():
        is_rejected = key in ODD
        assert line["state"] == ("failed" if is_rejected else "completed")
        assert line["verdict"]["accepted"] is not is_rejected
        (output,) = line["outputs"]
        assert Path(urlparse(output["uri"]).path).stat().st_size == output["size"]
        assert output["verdict"]["facts"]["triangles"] > 0
    assert "do not satisfy check_outputs" in lines["item-1"]["error"]
    failed = read_lines(tmp_path / "failed.jsonl")
    assert {line["key"] for line in failed} == ODD
    assert all("is early" in line["verdict"]["problems"][0] for line in failed)
    assert len(emulator.paid_runs) == 4


def test_failed_items_with_verdicts_are_the_items_of_another_batch(
    emulator: Emulator, tmp_path: Path
) -> None:
    """The file of items that failed can be run as it is."""
    first, second = tmp_path / "first", tmp_path / "second"
    checks = reject_runs(emulator, 1, ODD)
    run_try(create_batch(first, create_items(4), check_outputs=checks, min_success_ratio=0))
    result = run_try(create_batch(second, f"file://{first}/failed.jsonl", check_outputs=checks))
    assert (result["total"], result["completed"]) == (2, 2)
    assert read_manifest_states(second).keys() == ODD


def test_batch_of_rejections_is_not_retried(emulator: Emulator, tmp_path: Path) -> None:
    """If nothing but the checks has failed items, the error is permanent, and a retry pays nothing."""
    store = Store()
    for try_number in (1, 2):
        operator = create_batch(tmp_path, create_items(3), check_outputs=reject_runs(emulator, 9, ODD))
        with pytest.raises(FlowOutputRejected, match=r"\(the outputs of 2 do not satisfy check_outputs\)"):
            run_try(operator, store, try_number)
        assert len(emulator.paid_runs) == 3
    assert len(read_lines(tmp_path / "failed.jsonl")) == 2


def test_retry_runs_failed_items_and_no_rejected_ones(emulator: Emulator, tmp_path: Path) -> None:
    """An item whose flow run failed is run again by a retry; one whose outputs were rejected is not."""
    emulator.add_plan(Plan("failed"))
    store, checks = Store(), reject_runs(emulator, 9, {"item-2"})
    arguments = {"check_outputs": checks, "max_active_runs": 1}
    with pytest.raises(FlowRunFailed) as raised:
        run_try(create_batch(tmp_path, create_items(3), **arguments), store)
    assert type(raised.value) is FlowRunFailed
    with pytest.raises(FlowOutputRejected):
        run_try(create_batch(tmp_path, create_items(3), **arguments), store, 2)
    assert count_paid_runs(emulator) == {"item-1": 2, "item-2": 1, "item-3": 1}
    assert read_manifest_states(tmp_path) == {
        "item-1": "completed",
        "item-2": "failed",
        "item-3": "completed",
    }


def test_deleted_file_of_a_rejected_item_is_not_paid_for_again(emulator: Emulator, tmp_path: Path) -> None:
    """A person who has looked at a rejected file may delete it before a retry."""
    store, checks = Store(), reject_runs(emulator, 9, ODD)
    with pytest.raises(FlowOutputRejected):
        run_try(create_batch(tmp_path, create_items(2), check_outputs=checks), store)
    for path in (tmp_path / "item-1").iterdir():
        path.unlink()
    with pytest.raises(FlowOutputRejected):
        run_try(create_batch(tmp_path, create_items(2), check_outputs=checks), store, 2)
    assert len(emulator.paid_runs) == 2


def test_rejected_item_is_run_again_with_another_seed(emulator: Emulator, tmp_path: Path) -> None:
    """Only rejected items are run again, each at most so often, and the manifest counts their runs."""
    operator = create_batch(
        tmp_path,
        create_items(4),
        parameters={"quality": "low", "seed": 5},
        check_outputs=reject_runs(emulator, 2, {"item-1"}),
        on_rejected="again",
        check_retries=2,
    )
    result = run_try(operator)
    assert (result["completed"], result["rejected"], result["paid_runs"]) == (4, 0, 6)
    assert count_paid_runs(emulator) == {"item-1": 3, "item-2": 1, "item-3": 1, "item-4": 1}
    lines = {line["key"]: line for line in read_lines(tmp_path / "manifest.jsonl")}
    assert lines["item-1"]["attempts"] == 3
    assert sorted(get_seeds(emulator))[:4] == [5] * 4
    assert len(set(get_seeds(emulator))) == 3


def test_number_of_runs_of_an_item_is_bounded(emulator: Emulator, tmp_path: Path) -> None:
    """After the last one the item has failed, also in later tries."""
    store, arguments = Store(), {"check_outputs": reject_runs(emulator, 9, ODD), "on_rejected": "again"}
    for try_number in (1, 2):
        with pytest.raises(FlowOutputRejected):
            run_try(create_batch(tmp_path, create_items(2), **arguments), store, try_number)
        assert count_paid_runs(emulator) == {"item-1": 2, "item-2": 1}


def test_rejections_in_a_row_stop_the_batch(emulator: Emulator, tmp_path: Path) -> None:
    """A flow that produces nothing useful is not paid for item after item, nor again."""
    operator = create_batch(
        tmp_path,
        create_items(30),
        check_outputs=GlbCheck(max_triangles=1),
        on_rejected="again",
        stop_after_failures=3,
        max_active_runs=1,
    )
    with pytest.raises(FlowOutputRejected, match="3 flow runs have failed in a row"):
        run_try(operator)
    assert len(emulator.paid_runs) <= 4


def run_parts(create: Callable[[], Any], store: Store) -> dict[str, Any]:
    """Run a try of a deferrable batch, each part with an operator of its own."""
    import asyncio

    from airflow.providers.common.compat.sdk import TaskDeferred

    try_context, method, event = context(store, 1, 3), "execute", ()
    while True:
        try:
            result: dict[str, Any] = getattr(create(), method)(try_context, *event)
        except TaskDeferred as deferral:
            method, event = deferral.method_name, (asyncio.run(get_event(deferral.trigger)),)
        else:
            return result


def test_deferred_batch_runs_rejected_items_again(emulator: Emulator, tmp_path: Path) -> None:
    """A batch that waits in the triggerer does the same, also for a run that another part has started."""
    emulator.run_seconds = 0.5
    checks = reject_runs(emulator, 1, ODD)

    def create() -> Any:
        return create_batch(
            tmp_path, create_items(4), check_outputs=checks, on_rejected="again", deferrable=True
        )

    result = run_parts(create, Store())
    assert (result["completed"], result["paid_runs"]) == (4, 6)
    assert count_paid_runs(emulator) == {"item-1": 2, "item-2": 1, "item-3": 2, "item-4": 1}


@pytest.mark.parametrize("is_written", [False, True])
def test_death_at_each_write_of_the_store(emulator: Emulator, tmp_path: Path, is_written: bool) -> None:
    """No item is run more often than its checks allow, whichever write was the last one."""
    for number in itertools.count(1):
        emulator.reset()
        emulator.run_seconds = 0.05
        emulator.switches.abort = "instant"
        arguments = {"check_outputs": reject_runs(emulator, 1, {"item-1"}), "on_rejected": "again"}
        folder, store = tmp_path / str(number), CountingStore(dies_at=number, is_written=is_written)
        try:
            run_try(create_batch(folder, create_items(2), **arguments), store)
        except Death:
            result = run_try(create_batch(folder, create_items(2), **arguments), Store(store), 2)
            assert result["completed"] == 2
            assert count_paid_runs(emulator) == {"item-1": 2, "item-2": 1}, number
        else:
            assert number > 3
            return


@pytest.mark.parametrize("kind", ["store", "no store"])
def test_death_at_each_request(emulator: Emulator, tmp_path: Path, kind: str) -> None:
    """The same for each request, also where the service's list is all that the next try has."""
    for number in itertools.count(1):
        emulator.reset()
        emulator.run_seconds = 0.05
        emulator.switches.abort = "instant"
        arguments = {"check_outputs": reject_runs(emulator, 1, {"item-1"}), "on_rejected": "again"}
        folder, store = tmp_path / str(number), Store()

        def run(try_number: int, folder: Path = folder, store: Store = store, more: Any = arguments) -> Any:
            operator = create_batch(folder, create_items(1), **more)
            return operator.execute(context(store, try_number, 3, kind=AIRFLOW_KINDS[kind]))

        try:
            with die_at_request(emulator, number):
                run(1)
        except Death:
            result = run(2)
            assert result["completed"] == 1
            assert count_paid_runs(emulator) == {"item-1": 2}, number
        else:
            assert number > 8
            return


def test_promptchainer_items_are_run_again(emulator: Emulator, tmp_path: Path) -> None:
    """A response that was rejected is deleted once the item is settled."""
    seen: list[str] = []

    def check(output: CheckedOutput) -> bool:
        seen.append(output.name)
        return len(seen) > 1

    operator = create_chain_batch(
        tmp_path,
        create_chain_items(1),
        check_outputs=[TextCheck(max_characters=10_000), check],
        on_rejected="again",
    )
    result = run_try(operator)
    assert (result["completed"], result["paid_runs"]) == (1, 2)
    assert [path for path in (tmp_path / "item-1").iterdir() if path.name.startswith(".")] == []
    assert len(emulator.paid_runs) == 2


def test_arguments_are_validated_in_the_dag_file(tmp_path: Path) -> None:
    """A batch has the same arguments as a single task."""
    with pytest.raises(FlowInputError, match="on_rejected must be"):
        create_batch(tmp_path, [], check_outputs=GlbCheck(), on_rejected="never")
    with pytest.raises(FlowInputError, match="check_outputs must be"):
        create_batch(tmp_path, [], check_outputs="glb")
