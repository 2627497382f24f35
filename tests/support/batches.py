"""Batches that run at the emulator, as a worker runs them, and what they leave."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airflow_provider_flows.core.start_or_resume import get_stamp
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.operators import RunFlowBatchOperator
from tests.support.modes import FLOW
from tests.support.task_instances import WITH_STORE, AirflowKind, Store, context

CHAIN_FLOW = "clibnwpno000bmc0k9hvv3y7f"  # PromptChainer's sample: variables color and item


class Death(BaseException):
    """The end of a process: nothing of the package may catch it."""


class CountingStore(Store):
    """A store that counts its writes, and can end the process before or after one of them.

    :param dies_at: the number of the write, from 1 on.
    :param is_written: whether that value is stored before the process ends.
    """

    def __init__(self, values: Mapping[str, Any] = {}, dies_at: int = 0, *, is_written: bool = False) -> None:
        super().__init__(values)
        self.writes: list[str] = []
        self._dies_at, self._is_written = dies_at, is_written

    def set(self, key: str, value: Any) -> None:
        """Store a value."""
        self.writes.append(key)
        if self._dies_at and len(self.writes) >= self._dies_at:  # a dead process writes nothing more
            if self._is_written and len(self.writes) == self._dies_at:
                super().set(key, value)
            raise Death
        super().set(key, value)


@contextmanager
def die_at_request(emulator: Emulator, number: int) -> Iterator[None]:
    """End the process when the emulator has received so many requests."""

    def die(*_: Any) -> None:
        raise Death

    count = 0

    def on_request(_: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, die)
    emulator.set_request_listener(on_request)
    try:
        yield
    finally:
        emulator.set_request_listener(None)
        signal.signal(signal.SIGUSR1, previous)


def create_items(count: int) -> list[dict[str, Any]]:
    """Return items with the keys item-1, item-2 ..."""
    return [{"key": f"item-{number}", "inputs": f"Chair {number}"} for number in range(1, count + 1)]


def create_chain_items(count: int) -> list[dict[str, Any]]:
    """Return the same for PromptChainer."""
    return [
        {"key": f"item-{number}", "inputs": {"color": "red", "item": f"ball {number}"}}
        for number in range(1, count + 1)
    ]


def create_batch(output_path: Path, items: Any, **arguments: Any) -> RunFlowBatchOperator:
    """Return the operator of a batch, with short intervals."""
    defaults: dict[str, Any] = {
        "flow": FLOW,
        "parameters": {"quality": "low"},
        "poll_interval": 0.1,
        "max_poll_interval": 0.2,
        "flows_conn_id": "generio_default",
    }
    return RunFlowBatchOperator(
        task_id="t", items=items, output_path=str(output_path), **{**defaults, **arguments}
    )


def create_chain_batch(output_path: Path, items: Any, **arguments: Any) -> RunFlowBatchOperator:
    """Return the same for PromptChainer."""
    chain = {"flow": CHAIN_FLOW, "parameters": None, "flows_conn_id": "promptchainer_default"}
    return create_batch(output_path, items, **{**chain, **arguments})


def run_try(
    operator: RunFlowBatchOperator,
    store: Store | None = None,
    try_number: int = 1,
    max_tries: int = 3,
    *,
    kind: AirflowKind = WITH_STORE,
) -> dict[str, Any]:
    """Run one try of a batch."""
    store = Store() if store is None else store
    return operator.execute(context(store, try_number, max_tries, kind=kind))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the values of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_manifest_states(output_path: Path) -> dict[str, str]:
    """Return the state of each item in the manifest."""
    return {line["key"]: line["state"] for line in read_lines(output_path / "manifest.jsonl")}


def count_paid_runs(emulator: Emulator) -> Counter[str]:
    """Return how many runs were started for each item, by the emulator's own list."""
    return Counter(get_item_key(run) for run in emulator.paid_runs)


def get_item_key(run: Any) -> str:
    """Return the key of the item that a run of the emulator was started for."""
    if isinstance(run.additional, Mapping):
        return str(get_stamp(run)["batch_key"])
    return f"item-{run.inputs['item'].split()[-1]}"


def get_max_active(emulator: Emulator) -> int:
    """Return how many runs were active at the same time, by their times at the emulator."""
    changes: list[tuple[float, int]] = []
    for run in emulator.paid_runs:
        started_at = run.timeline.started_at  # type: ignore[union-attr]  # those of Generio
        finished_at = run.current.finished_at  # type: ignore[union-attr]
        assert started_at is not None
        changes.append((started_at, 1))
        if finished_at is not None:
            changes.append((finished_at, -1))
    active = highest = 0
    for _, change in sorted(changes):
        active += change
        highest = max(highest, active)
    return highest


def find_keys(lines: Sequence[Mapping[str, Any]], matches: Callable[[Mapping[str, Any]], bool]) -> set[str]:
    """Return the keys of lines."""
    return {line["key"] for line in lines if matches(line)}
