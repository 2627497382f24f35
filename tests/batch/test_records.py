"""Tests of the records of a batch: bounded parts, shared writes, and what a later try reads."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_flows.batch.records import BatchHeader, BatchRecords, ItemRecord
from airflow_provider_flows.core.batch import ItemState
from airflow_provider_flows.core.exceptions import FlowError
from tests.support.batches import CountingStore, Death
from tests.support.task_instances import Store

HEADER = BatchHeader(3, 1000.0, "generio_default", "https://flows.test")
RECORD = ItemRecord("f" * 16, "6b0daa3d9291a910190750b6", ItemState.ACTIVE, 1, 1, 0, 2000.0)


def load(store: Store) -> BatchRecords:
    """Return the records that a later try reads."""
    records = BatchRecords.load(store)
    assert records is not None
    return records


def test_records_of_many_items_are_in_bounded_parts() -> None:
    """10,000 records are in values of at most 64 KiB, and all of them are read again."""
    store = Store()
    records = BatchRecords(store, HEADER)
    for number in range(10_000):
        records.put(f"chair-{number}", replace(RECORD, attempts=number))
    records.flush()
    sizes = [len(json.dumps(value)) for value in store.values()]
    assert max(sizes) <= 64 * 1024
    found = load(store)
    assert len(found) == 10_000
    assert all(record.attempts == int(key.partition("-")[2]) for key, record in found)


class SlowStore(CountingStore):
    """A store whose first write waits until all threads have a record to save."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.barrier = threading.Barrier(threads)
        self.has_waited = threading.Event()

    def set(self, key: str, value: Any) -> None:
        """Store a value."""
        if not self.has_waited.is_set():
            self.has_waited.wait(10)
        super().set(key, value)


def test_concurrent_saves_share_a_write() -> None:
    """While one write is in progress, the others collect, and are written together."""
    threads = 20
    store = SlowStore(threads)
    records = BatchRecords(store, HEADER)

    def save(number: int) -> None:
        store.barrier.wait(10)
        if number == 0:
            threading.Timer(0.5, store.has_waited.set).start()
        records.save(f"chair-{number}", RECORD)
        # when save returns, the record is in the store
        assert f"chair-{number}" in store["flow_batch_part_1"]["items"]

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(save, range(threads)))
    assert len(load(store)) == threads
    assert len(store.writes) < threads


def test_failed_write_is_repeated_by_the_next_save() -> None:
    """An error of the store is raised, and what it did not store is stored with the next record."""
    store = CountingStore({}, dies_at=1)
    records = BatchRecords(store, HEADER)
    with pytest.raises(Death):
        records.save("chair-1", RECORD)
    store._dies_at = 0
    records.save("chair-2", RECORD)
    assert {key for key, _ in load(store)} == {"chair-1", "chair-2"}


def test_record_that_outgrows_its_part_is_moved() -> None:
    """A record with a long id moves to a later part, and the later one counts wherever both are stored."""
    store = Store()
    records = BatchRecords(store, HEADER)
    for number in range(200):
        records.put(f"chair-{number}", replace(RECORD, flow_run_id=None))
    records.flush()
    before = dict(store)
    for number in range(200):
        records.put(f"chair-{number}", replace(RECORD, flow_run_id="x" * 256))
    records.flush()
    assert {record.flow_run_id for _, record in load(store)} == {"x" * 256}
    mixed = Store({**store, "flow_batch_part_1": before["flow_batch_part_1"]})  # its write was lost
    found = load(mixed)
    assert len(found) == 200
    moved = set(before["flow_batch_part_1"]["items"]) & {
        key for name, value in store.items() if name > "flow_batch_part_1" for key in value["items"]
    }
    assert moved
    assert all(found.get(key).flow_run_id == "x" * 256 for key in moved)  # type: ignore[union-attr]


def test_parts_of_an_earlier_batch_are_ignored() -> None:
    """Parts from before a Clear, of which there were more, do not belong to the new batch."""
    store = Store()
    earlier = BatchRecords(store, HEADER)
    for number in range(1000):
        earlier.put(f"chair-{number}", RECORD)
    earlier.flush()
    later = BatchRecords(store, BatchHeader(9, 1000.0, "generio_default", "https://flows.test"))
    later.save("table", RECORD)
    assert [key for key, _ in load(store)] == ["table"]


@pytest.mark.parametrize("damage", ["header", "version", "token", "list", "state", "gone"])
def test_unreadable_records(damage: str) -> None:
    """Records that cannot be read are an error that names the value."""
    store = Store()
    records = BatchRecords(store, HEADER)
    records.save("chair", RECORD)
    header, part = store["flow_batch"], store["flow_batch_part_1"]
    values: dict[str, dict[str, Any]] = {
        "header": {"flow_batch": "text"},
        "version": {"flow_batch": {**header, "version": 2}},
        "token": {"flow_batch_part_1": {**part, "token": "other"}},
        "list": {"flow_batch_part_1": {**part, "items": {"chair": [1, 2]}}},
        "state": {"flow_batch_part_1": {**part, "items": {"chair": ["f", "r", "odd", 1, 1, 0, None]}}},
        "gone": {"flow_batch_part_1": None},
    }
    with pytest.raises(FlowError, match=f"cannot be read \\({next(iter(values[damage]))}: "):
        load(Store({**store, **values[damage]}))


def test_closed_records_write_nothing() -> None:
    """After a Clear that has deleted the store, a running try does not fill it again."""
    store = CountingStore()
    records = BatchRecords(store, HEADER)
    records.close()
    records.save("chair", RECORD)
    assert store.writes == []


def test_token_differs_for_each_run() -> None:
    """The token of a run is the same in each try, and another one for each item, attempt and batch."""
    other = replace(HEADER, token="other")
    tokens = [HEADER.create_token("a", 1), HEADER.create_token("a", 2), HEADER.create_token("b", 1)]
    assert len({*tokens, other.create_token("a", 1)}) == 4
    assert HEADER.create_token("a", 1) == tokens[0]
