"""Tests of `on_rejected="again"` when the process ends or the task is killed: no run is lost or paid twice.

A process ends at each of its writes to the store and at each of its requests, in the first run, between the
two, and in the second one.
"""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import FlowError, FlowOutputRejected, FlowServiceError
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.operators import RunFlowOperator
from tests.support.batches import CountingStore, Death, die_at_request
from tests.support.checked_runs import create_task, get_run_ids, get_seeds, reject_first, run_deferred
from tests.support.task_instances import AIRFLOW_KINDS, Store, context
from tests.support.tries import BOTH_MODES, CHAIN_ARGUMENTS, run_states

pytestmark = [
    pytest.mark.emulator(run_seconds=0.2, abort="instant", retries=0),
    pytest.mark.usefixtures("short_search"),
]


def assert_paid_twice(emulator: Emulator, result: dict[str, Any]) -> None:
    """Assert that two runs were paid for, of which the second is the result, and that no other is left."""
    assert get_run_ids(emulator) == [
        result["verdict"]["rejected_runs"][0]["flow_run_id"],
        result["flow_run_id"],
    ]
    assert result["verdict"]["paid_runs"] == 2
    assert sorted(run_states(emulator)) == ["completed", "completed"]
    assert len(set(get_seeds(emulator))) == 2


@BOTH_MODES
@pytest.mark.parametrize("is_written", [False, True])
def test_death_at_each_write_of_the_store(
    emulator: Emulator, tmp_path: Path, deferrable: bool, is_written: bool
) -> None:
    """The next try continues from what is stored, whichever write was the last one."""
    for number in itertools.count(1):
        emulator.reset()
        emulator.run_seconds = 0.05
        emulator.switches.abort = "instant"
        folder = tmp_path / str(number)
        create = partial(create_task, folder, check_outputs=reject_first(folder, 1), deferrable=deferrable)
        store, has_died = CountingStore(dies_at=number, is_written=is_written), False
        try:
            run_deferred(create, context(store, 1, 3))
        except Death:
            has_died = True
        if not has_died:
            assert number > 4
            return
        assert_paid_twice(emulator, run_deferred(create, context(Store(store), 2, 3)))


@pytest.mark.parametrize("kind", AIRFLOW_KINDS)
def test_death_at_each_request(emulator: Emulator, tmp_path: Path, kind: str) -> None:
    """The same for each request, also where the service's list is all that the next try has."""
    for number in itertools.count(1):
        emulator.reset()
        emulator.run_seconds = 0.05
        emulator.switches.abort = "instant"
        folder = tmp_path / str(number)
        create = partial(create_task, folder, check_outputs=reject_first(folder, 1))
        store = Store()
        has_died = False
        try:
            with die_at_request(emulator, number):
                create().execute(context(store, 1, 3, kind=AIRFLOW_KINDS[kind]))
        except Death:
            has_died = True
        if not has_died:
            assert number > 10
            return
        time.sleep(0.1)  # the service still processes the request
        result = create().execute(context(store, 2, 3, kind=AIRFLOW_KINDS[kind]))
        assert_paid_twice(emulator, result)


@BOTH_MODES
def test_death_during_the_check(emulator: Emulator, tmp_path: Path, deferrable: bool) -> None:
    """A process that ends while it checks the first run leaves no trace; the next try checks it again."""
    deaths = [Death(), None, Death(), None]

    def die(_: Any) -> None:
        if deaths and (death := deaths.pop(0)) is not None:
            raise death

    create = partial(
        create_task, tmp_path, check_outputs=[die, reject_first(tmp_path, 1)], deferrable=deferrable
    )
    store, result = Store(), None
    for try_number in range(1, 5):
        with suppress(Death):
            result = run_deferred(create, context(store, try_number, 5))
            break
    assert result is not None
    assert_paid_twice(emulator, result)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/flows", 503), ("POST", "/flows/*", 503), ("POST", "/flows", 400), ("PATCH", "/flows/*", 400)],
)
def test_error_of_each_request_of_the_second_start(
    emulator: Emulator, tmp_path: Path, method: str, path: str, status: int
) -> None:
    """A service that fails while the second run is started leaves the first one rejected, and paid once."""
    store, create = Store(), partial(create_task, tmp_path)
    emulator.add_fault(Fault(method, path, skip=1, status=status))
    with pytest.raises(FlowServiceError):
        create().execute(context(store, 1, 3))
    assert len(emulator.paid_runs) == 1
    result = create().execute(context(store, 2, 3))
    assert_paid_twice(emulator, result)


@pytest.mark.parametrize("is_deferred", [False, True])
@pytest.mark.parametrize("has_store", [True, False])
def test_kill_aborts_the_second_run(
    emulator: Emulator, tmp_path: Path, is_deferred: bool, has_store: bool
) -> None:
    """A task that is killed while its second run is active aborts that one."""
    kind = AIRFLOW_KINDS["store" if has_store else "no store"]
    operator: RunFlowOperator | None = None

    def slow_down(_: Any) -> None:
        emulator.run_seconds = 3600

    def kill() -> None:
        deadline = time.monotonic() + 20
        while len(emulator.paid_runs) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        assert operator is not None
        operator.on_kill()

    checks = [slow_down, reject_first(tmp_path, 1)]
    operator = create_task(tmp_path, check_outputs=checks, timeout=20)
    thread = Thread(target=kill)
    thread.start()
    try_context = context(Store(), 1, 0, kind=kind)
    first = create_task(tmp_path, check_outputs=checks, deferrable=True)
    parts = iter([first, operator] if is_deferred else [operator])
    with pytest.raises(FlowError):  # the run that it waits for was aborted
        run_deferred(lambda: next(parts), try_context)
    thread.join()
    assert run_states(emulator) == ["completed", "aborted"]


def test_kill_between_the_two_runs_starts_none(emulator: Emulator, tmp_path: Path) -> None:
    """A task that is killed while the first run's files are checked starts no second run."""

    def kill(_: Any) -> str:
        operator.on_kill()
        return "is unwanted"

    operator = create_task(tmp_path, check_outputs=kill)
    with pytest.raises(FlowError, match="was killed during the start"):
        operator.execute(context(Store(), 1, 0))
    assert run_states(emulator) == ["completed"]


@pytest.mark.parametrize("is_written", [False, True])
def test_death_at_each_write_with_promptchainer(emulator: Emulator, tmp_path: Path, is_written: bool) -> None:
    """A response that was saved is never paid for again; one that was lost is, as with every start."""
    for number in itertools.count(1):
        emulator.reset()
        store = CountingStore(dies_at=number, is_written=is_written)
        check = reject_first_texts(emulator)
        create = partial(create_task, tmp_path, **CHAIN_ARGUMENTS, parameters=None, check_outputs=check)
        try:
            create().execute(context(store, 1, 3))
        except Death:
            sent = len(emulator.paid_runs)
            lost = sent - count_saved(store)
            result = create().execute(context(Store(store), 2, 3))
            assert result["verdict"]["paid_runs"] == 2
            assert len(emulator.paid_runs) == 2 + lost
            assert lost <= 1
        else:
            assert number > 3
            return


def count_saved(store: Store) -> int:
    """Return how many responses of PromptChainer the record in a store stands for."""
    record = store.get("flow_run_record") or {}
    rejected = (record.get("check_retry") or {}).get("rejected_runs", [])
    return len(rejected) + (record.get("flow_run_id") is not None)


def reject_first_texts(emulator: Emulator) -> Any:
    """Return a check that rejects the outputs of PromptChainer's first run that it gets, in each try."""
    first: list[str] = []

    def is_new(output: Any) -> str | None:
        if not first:
            first.append(str(len(emulator.paid_runs)))
        seen = [output.name] if len(emulator.paid_runs) == int(first[0]) else []
        return "is the first" if seen else None

    return is_new


def test_rejection_after_all_retries_is_final(emulator: Emulator, tmp_path: Path) -> None:
    """The last rejection ends the task; a try after it pays nothing, whatever was tried before."""
    create = partial(create_task, tmp_path, check_outputs=reject_first(tmp_path, 9))
    store = Store()
    for try_number in range(1, 4):
        with pytest.raises(FlowOutputRejected):
            create().execute(context(store, try_number, 5))
    assert len(emulator.paid_runs) == 2
