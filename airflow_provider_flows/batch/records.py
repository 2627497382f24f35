"""The records of a batch's items, from which a retry, or the next call of a command, continues.

They are in Airflow's task state store, or in the files of a command (`FileStore`), several in each value. A
record is stored before its run is started. What several threads save at the same time is written together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from threading import Lock
from typing import Any, Self
from uuid import uuid4

from airflow_provider_flows.core.batch import ItemState
from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.worker.saved_run import max_value_bytes

HEADER_KEY = "flow_batch"
PART_KEY = "flow_batch_part_{number}"
VERSION = 1
MAX_PART_BYTES = 16 * 1024  # a part is written for each record that changes, so it is not as large as allowed
PART_FRAME_BYTES = 100  # of a part without records
SEPARATOR_BYTES = 2  # between two records
TOKEN_LENGTH = 32  # hexadecimal digits


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """What is saved about an item.

    :param fingerprint: of the item's request, as it was given.
    :param flow_run_id: of its last run; None if no run was created, or if its id is not known yet.
    :param state: ACTIVE if the run may be active, or is completed and has outputs to be fetched.
    :param attempts: how many runs were started for it, in all tries.
    :param try_number: the try of the task in which it was last run.
    :param failures: how often it failed in that try.
    :param deadline: of its last run, in epoch seconds, or None.
    :param rejections: how many of its runs had outputs that the task's checks have rejected, in all tries. It
        is written with the id of the run that replaces them, so that none is counted twice.
    """

    fingerprint: str
    flow_run_id: str | None = None
    state: ItemState = ItemState.PENDING
    attempts: int = 0
    try_number: int = 0
    failures: int = 0
    deadline: float | None = None
    rejections: int = 0

    def count_rejections(self, fingerprint: str) -> int:
        """Return how many runs for a request were rejected; those for another request do not count."""
        return self.rejections if self.fingerprint == fingerprint else 0

    def to_list(self) -> list[Any]:
        """Return the values in their order, without names, because there are thousands."""
        deadline = None if self.deadline is None else round(self.deadline)
        identity = [self.fingerprint, self.flow_run_id, self.state.value]
        rejections = [self.rejections] if self.rejections else []
        return [*identity, self.attempts, self.try_number, self.failures, deadline, *rejections]

    @classmethod
    def from_list(cls, values: Any) -> Self:
        """Return the record that `to_list` wrote.

        :raises ValueError: it is not one.
        """
        length = len(cls.__dataclass_fields__)
        if not isinstance(values, list) or len(values) not in {length - 1, length}:
            raise ValueError("it is not a list of the expected length")
        fingerprint, flow_run_id, state, attempts, try_number, failures, deadline, *rejections = values
        counts = (attempts, try_number, failures, *rejections)
        are_texts = isinstance(fingerprint, str) and isinstance(flow_run_id, str | None)
        are_numbers = all(isinstance(count, int) for count in counts)
        if not (are_texts and are_numbers and isinstance(deadline, int | float | None)):
            raise ValueError("its values have other types")
        numbers = (attempts, try_number, failures, deadline, *rejections)
        return cls(fingerprint, flow_run_id, ItemState(state), *numbers)


@dataclass(frozen=True, slots=True)
class BatchHeader:
    """What is saved about a batch as a whole.

    :param generation: the same number for all tries of one run of a task; clearing the task raises it.
    :param started_at: of the first try, in epoch seconds.
    :param conn_id: the Airflow connection of the flow runs.
    :param host: that connection's base URL, without credentials.
    :param token: tags the flow runs of the batch at the service, together with key and attempt.
    :param parts: the number of values that have the records of the items.
    :param total: the number of items, 0 before they are counted.
    :param failures_in_row: see `BatchState`.
    :param quota_error: the message of the error if the quota or credit of the account is used up. Then no
        later part of the try starts a flow run. A task that is cleared after that continues, because nothing
        else starts it again.
    """

    generation: int
    started_at: float
    conn_id: str
    host: str
    token: str = field(default_factory=lambda: uuid4().hex)
    parts: int = 0
    total: int = 0
    failures_in_row: int = 0
    quota_error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the header as plain JSON values."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Return the header that `to_dict` wrote.

        :raises FlowError: it cannot be read.
        """
        try:
            _require(data["version"] == VERSION, "it has another version")
            return cls(**{name: value for name, value in data.items() if name != "version"})
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise _unreadable_error(HEADER_KEY, error) from error

    def create_token(self, key: str, attempt: int) -> str:
        """Return the token of an item's run. It can be computed without a record of the run."""
        text = f"{self.token}/{key}/{attempt}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:TOKEN_LENGTH]


class _Part:
    """The records of one value in the store, by key, and their size in bytes of JSON."""

    __slots__ = ("records", "size")

    def __init__(self) -> None:
        self.records: dict[str, ItemRecord] = {}
        self.size = PART_FRAME_BYTES

    def put(self, key: str, record: ItemRecord) -> None:
        previous = self.records.get(key)
        self.size += _get_size(key, record) - (0 if previous is None else _get_size(key, previous))
        self.records[key] = record

    def fits(self, key: str, record: ItemRecord, max_bytes: int) -> bool:
        previous = self.records.get(key)
        added = _get_size(key, record) - (0 if previous is None else _get_size(key, previous))
        return self.size + added <= max_bytes


def _get_size(key: str, record: ItemRecord) -> int:
    return len(json.dumps({key: record.to_list()})) + SEPARATOR_BYTES


class BatchRecords:
    """The records of the items of one batch.

    The methods may be called in several threads. `put` changes a record in memory; `save` and `flush` return
    when all changes until then are in the store. A record belongs to the same part for good, unless that part
    becomes too large: then it is moved to a later part, and the record in the later part counts.

    :param store: with the methods of Airflow's task state store, None for no store: then nothing is saved.
    :param header: of the batch.
    """

    def __init__(self, store: Any, header: BatchHeader) -> None:
        self.header = header
        self._store = store
        self._max_bytes = min(MAX_PART_BYTES, max_value_bytes())
        self._parts: list[_Part] = []
        self._numbers: dict[str, int] = {}  # the index of the part of each key
        self._unsaved: set[int] = set()  # indexes of parts
        self._is_header_unsaved = True
        self._version = self._written_version = 0
        self._lock = Lock()
        self._write_lock = Lock()

    @classmethod
    def load(cls, store: Any) -> Self | None:
        """Return the records in the store; None if there are none.

        :raises FlowError: they cannot be read. A new batch would be billed a second time.
        :raises Exception: any error of the store.
        """
        data = None if store is None else store.get(HEADER_KEY)
        if data is None:
            return None
        records = cls(store, BatchHeader.from_dict(data))
        while records._load_part(len(records._parts)):  # the same class
            pass
        records._is_header_unsaved = records.header.parts != len(records._parts)
        return records

    def _load_part(self, index: int) -> bool:
        """Load a part, and return whether there is one."""
        name = PART_KEY.format(number=index + 1)
        value = self._store.get(name)
        is_known = index < self.header.parts
        if value is None and not is_known:
            return False
        try:
            if value["token"] != self.header.token:
                _require(not is_known, "it is of another batch")
                return False  # of a batch before a Clear, which had more parts
            loaded = {key: ItemRecord.from_list(values) for key, values in value["items"].items()}
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise _unreadable_error(name, error) from error
        part = _Part()
        self._parts.append(part)
        for key, record in loaded.items():
            if (earlier := self._numbers.get(key)) is not None:
                self._remove(key, earlier)
            part.put(key, record)
            self._numbers[key] = index
        return True

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._numbers)

    def __iter__(self) -> Iterator[tuple[str, ItemRecord]]:
        """Yield each key with its record, of those that there are now."""
        with self._lock:
            found = [(key, self._parts[index].records[key]) for key, index in self._numbers.items()]
        yield from found

    def get(self, key: str) -> ItemRecord | None:
        """Return the record of an item, None if it has none."""
        with self._lock:
            index = self._numbers.get(key)
            return None if index is None else self._parts[index].records[key]

    def get_active(self) -> dict[str, ItemRecord]:
        """Return the records of the runs that may be active, by key."""
        return {key: record for key, record in self if record.state is ItemState.ACTIVE}

    def get_active_run_ids(self) -> list[str]:
        """Return the ids of the runs that may be active, as far as they are known."""
        return [record.flow_run_id for record in self.get_active().values() if record.flow_run_id]

    def put(self, key: str, record: ItemRecord) -> None:
        """Change a record. It is written with the next one that is saved."""
        with self._lock:
            self._put(key, record)

    def _put(self, key: str, record: ItemRecord) -> None:
        index = self._numbers.get(key)
        if index is not None and not self._parts[index].fits(key, record, self._max_bytes):
            # written together with the later part, and until then the earlier record remains in the store
            self._remove(key, index)
            index = None
        if index is None:
            if not self._parts or not self._parts[-1].fits(key, record, self._max_bytes):
                self._parts.append(_Part())
                self._is_header_unsaved = True
            index = self._numbers[key] = len(self._parts) - 1
        self._parts[index].put(key, record)
        self._unsaved.add(index)
        self._version += 1

    def _remove(self, key: str, index: int) -> None:
        part = self._parts[index]
        part.size -= _get_size(key, part.records.pop(key))
        self._unsaved.add(index)

    def save(self, key: str, record: ItemRecord) -> None:
        """Change a record, and return when it is in the store.

        :raises Exception: any error of the store.
        """
        with self._lock:
            self._put(key, record)
            version = self._version
        self._write(version)

    def change_header(self, **changes: Any) -> None:
        """Change fields of the header. It is written with the next record that is saved."""
        with self._lock:
            changed = replace(self.header, **changes)
            if changed != self.header:
                self.header = changed
                self._is_header_unsaved = True
                self._version += 1

    def copy_to(self, store: Any) -> BatchRecords:
        """Write all records to another store, and return those there.

        :raises Exception: any error of that store.
        """
        copy = BatchRecords(store, replace(self.header, parts=0))
        for key, record in self:
            copy.put(key, record)
        copy.flush()
        return copy

    def delete(self) -> None:
        """Delete all records from their store.

        :raises Exception: any error of the store.
        """
        parts = range(1, len(self._parts) + 1)
        for name in (HEADER_KEY, *(PART_KEY.format(number=number) for number in parts)):
            self._store.delete(name)

    def close(self) -> None:
        """Save nothing any more."""
        with self._write_lock:
            self._store = None

    def flush(self) -> None:
        """Write all changes.

        :raises Exception: any error of the store.
        """
        with self._lock:
            version = self._version
        self._write(version)

    def _write(self, version: int) -> None:
        """Write all changes, unless another thread has done so while this one waited for its turn."""
        with self._write_lock:
            with self._lock:
                is_written = self._written_version >= version and not self._is_header_unsaved
                if self._store is None or is_written:
                    return
                written_version, unsaved = self._version, sorted(self._unsaved, reverse=True)
                values = [(index, self._to_value(index)) for index in unsaved]
                header = replace(self.header, parts=len(self._parts)) if self._is_header_unsaved else None
                self._unsaved, self._is_header_unsaved = set(), False
            try:
                self._write_values(values, header)
            except BaseException:
                with self._lock:
                    self._unsaved.update(unsaved)
                    self._is_header_unsaved = self._is_header_unsaved or header is not None
                raise
            with self._lock:
                self._written_version = max(self._written_version, written_version)
                if header is not None:
                    self.header = replace(self.header, parts=header.parts)

    def _write_values(
        self, values: Sequence[tuple[int, Mapping[str, Any]]], header: BatchHeader | None
    ) -> None:
        """Write later parts first, because a record may have been moved there, and a first header before all.

        Without a header the parts could not be found; a header never names parts that are not written.
        """
        if header is not None and not self.header.parts:
            self._store.set(HEADER_KEY, replace(header, parts=0).to_dict())
        for index, value in values:
            self._store.set(PART_KEY.format(number=index + 1), value)
        if header is not None and header.parts:
            self._store.set(HEADER_KEY, header.to_dict())

    def _to_value(self, index: int) -> dict[str, Any]:
        records = self._parts[index].records
        return {
            "token": self.header.token,
            "items": {key: record.to_list() for key, record in records.items()},
        }


def _require(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _unreadable_error(key: str, error: Exception) -> FlowError:
    return FlowError(
        f"The records of this batch cannot be read ({key}: {error}). Its flow runs may be active or paid "
        "for, so none was started. To start the batch again, which is billed again, clear the task; on the "
        "command line, use another folder for the outputs."
    )
