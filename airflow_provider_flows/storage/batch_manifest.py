"""What a batch leaves beside the folders of its items: the manifest, the items that failed, and its state.

The first two are JSONL. The lines of the manifest are in a temporary file until they are written, because
there may be many. The state is in the folder `.batch`, if a command runs the batch.
A reader who shows some of the lines has an index of them all.
"""

from __future__ import annotations

import fcntl
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_flows.core.batch import FAILED_ITEMS_NAME, MANIFEST_NAME, BatchItem, ItemProblem
from airflow_provider_flows.core.exceptions import FlowError, FlowInputError
from airflow_provider_flows.core.limits import (
    MAX_BATCH_ITEMS,
    MAX_IN_MEMORY_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_MANIFEST_LINE_BYTES,
)
from airflow_provider_flows.core.redaction import redact_path
from airflow_provider_flows.core.safe_text import replace_surrogates, to_line
from airflow_provider_flows.core.timestamps import parse_timestamp, to_epoch
from airflow_provider_flows.storage.atomic_file import (
    OUTPUT_CHUNK_BYTES,
    PartialFile,
    Spool,
    open_stored_file,
    remove_stale_temporary_files,
)
from airflow_provider_flows.storage.batch_items import to_json_value
from airflow_provider_flows.storage.file_source import FileAccess, open_file
from airflow_provider_flows.storage.item_files import VERDICT_FIELD, iter_lines
from airflow_provider_flows.storage.paths import (
    LOCAL_SCHEMES,
    OBJECT_STORES,
    require_connection,
    to_object_path,
    to_uri,
)

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

STATE_FOLDER = ".batch"
LOCK_NAME = "lock"
MIN_WASTED_BYTES = 16 * 1024 * 1024  # of replaced lines in the temporary file, before it is copied
RATE_SECONDS = 600.0  # the rate is that of the last ten minutes in which items have ended
MIN_RATE_ITEMS = 3
MAX_STATES = 16  # that lines may have; another version of this package may have others than this one
MAX_STATE_LENGTH = 30
OTHER_STATE = "unknown"
MANIFEST_TOO_LARGE = (
    f"The manifest has more than {MAX_MANIFEST_BYTES:,} bytes, {MAX_BATCH_ITEMS:,} lines, or "
    f"{MAX_MANIFEST_LINE_BYTES:,} bytes in one line. Read it with airflow_provider_flows.read_manifest."
)


@dataclass(frozen=True, slots=True)
class ManifestLine:
    """What the manifest says about one item.

    :param state: of its flow run, or `skipped` or `invalid` if it has none.
    :param outputs: in the form of `FlowOutput.to_dict`.
    :param attempts: how many flow runs were started for the item.
    :param started_at: ISO 8601, in UTC, and so is `finished_at`.
    :param reused: whether the outputs are those of an earlier flow run for the same request.
    :param verdict: of the task's checks, `accepted` and `problems`; it is not written without checks.
    """

    key: str
    state: str
    flow_run_id: str | None = None
    outputs: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    error: str | None = None
    attempts: int = 0
    started_at: str | None = None
    finished_at: str | None = None
    reused: bool = False
    verdict: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the values that are written."""
        omitted = {"verdict"} if self.verdict is None else set[str]()
        return {name: value for name, value in asdict(self).items() if name not in omitted}


class BatchManifest:
    """The manifest of one batch, with the latest line of each item. Several threads may use it.

    :param output_path: the folder of the batch.
    :param output_conn_id: the Airflow connection of its store.
    """

    def __init__(self, output_path: str, output_conn_id: str | None = None) -> None:
        self._folder = to_object_path(output_path, output_conn_id)
        self._lock = Lock()
        self._spool = Spool()
        self._end = 0  # of what is written to the spool
        self._live_bytes = 0  # of the latest lines
        self._indexes: dict[str, int] = {}  # of an item's numbers in the arrays, by its key
        self._rows, self._offsets, self._sizes = array("Q"), array("Q"), array("Q")

    def __len__(self) -> int:
        """Return the number of items with a line."""
        return len(self._indexes)

    @property
    def uri(self) -> str:
        """The URI of the manifest."""
        return to_uri(self._folder / MANIFEST_NAME)

    @property
    def failed_items_uri(self) -> str:
        """The URI of the file with the items that failed."""
        return to_uri(self._folder / FAILED_ITEMS_NAME)

    def record(self, line: ManifestLine, row: int) -> None:
        """Record the line of an item, in place of an earlier one.

        :param row: that of the item. The lines are written in the order of these.
        """
        self._save(line.key, _to_json_line(line.to_dict()), row)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the latest line of an item, None if it has none."""
        with self._lock:
            index = self._indexes.get(key)
            if index is None:
                return None
            data = _read_span(self._spool, self._offsets[index], self._sizes[index])
        line: dict[str, Any] = json.loads(data)
        return line

    def load(self) -> int:
        """Record the lines that an earlier try has written, and return their number.

        Temporary files of killed tries are removed, except in object stores, where that takes a list of all
        items.

        :raises FlowInputError: the manifest cannot be read.
        """
        path = self._folder / MANIFEST_NAME
        if self._folder.protocol not in OBJECT_STORES:
            remove_stale_temporary_files(self._folder, (MANIFEST_NAME, FAILED_ITEMS_NAME))
        path.fs.invalidate_cache(self._folder.path)
        if not path.exists():
            return 0
        count = 0
        for count, line in enumerate(_iter_manifest(path), 1):  # the count is returned
            self._save(line["key"], _to_json_line(line), count)
        return count

    def write(self) -> str:
        """Write the manifest, so that no reader finds a part of it, and return its URI.

        :raises OSError: the store does not accept the file.
        """
        with self._lock:
            self._drop_replaced_lines()
            spool, spans = self._spool, sorted(zip(self._rows, self._offsets, self._sizes, strict=True))
        self._write_file(MANIFEST_NAME, (_read_span(spool, offset, size) for _, offset, size in spans))
        return self.uri

    def write_failed_items(self, items: Iterable[BatchItem | ItemProblem]) -> str:
        """Write the file with the items that failed, so that it can be the `items` of another batch.

        Items whose text could not be parsed have no form to write them in; only the manifest names them. An
        item whose outputs were rejected has its `verdict`, which a batch that reads the file ignores.

        :returns: the file's URI.
        :raises OSError: the store does not accept the file.
        :raises FlowInputError: the items cannot be read again.
        """
        forms = (self._to_form(item) if isinstance(item, BatchItem) else item.item for item in items)
        self._write_file(FAILED_ITEMS_NAME, (_to_json_line(form) for form in forms if form is not None))
        return self.failed_items_uri

    def _to_form(self, item: BatchItem) -> dict[str, Any]:
        verdict = (self.get(item.key) or {}).get(VERDICT_FIELD)
        return item.to_dict() if verdict is None else {**item.to_dict(), VERDICT_FIELD: verdict}

    def _save(self, key: str, data: bytes, row: int) -> None:
        with self._lock:
            offset = self._end
            _write_all(self._spool, data, offset)
            self._end += len(data)
            self._live_bytes += len(data)
            index = self._indexes.setdefault(key, len(self._rows))
            if index == len(self._rows):
                self._rows.append(row)
                self._offsets.append(offset)
                self._sizes.append(len(data))
            else:
                self._live_bytes -= self._sizes[index]
                self._rows[index], self._offsets[index], self._sizes[index] = row, offset, len(data)

    def _drop_replaced_lines(self) -> None:
        """Copy the latest lines to a new temporary file, if the other ones take most of it."""
        if self._end - self._live_bytes < max(self._live_bytes, MIN_WASTED_BYTES):
            return
        spool, end = Spool(), 0
        for index, size in enumerate(self._sizes):
            _write_all(spool, _read_span(self._spool, self._offsets[index], size), end)
            self._offsets[index] = end
            end += size
        self._spool, self._end = spool, end  # a write in progress still refers to the one before

    def _write_file(self, name: str, lines: Iterable[bytes]) -> None:
        with PartialFile(self._folder, name) as file:
            file.restart()
            buffer = bytearray()
            for line in lines:
                buffer += line
                if len(buffer) >= OUTPUT_CHUNK_BYTES:
                    file.write(bytes(buffer))
                    buffer.clear()
            file.write(bytes(buffer))
            file.commit(self._folder / name, may_replace=True)


class FileStore:
    """The state of a batch in files, with the methods of Airflow's task state store.

    Each value is a file below `output_path`. A value is stored completely or not at all.

    :param output_path: the folder of the batch.
    :param output_conn_id: the Airflow connection of its store.
    :param folder_name: of the files, below the folder of the batch. It begins with a dot, as no key does.
    """

    def __init__(
        self, output_path: str, output_conn_id: str | None = None, folder_name: str = STATE_FOLDER
    ) -> None:
        from airflow.sdk import ObjectStoragePath  # slow to import

        self._folder = ObjectStoragePath(output_path, conn_id=output_conn_id) / folder_name

    def get(self, key: str) -> Any:
        """Return a value, None if there is none.

        :raises FlowError: the file does not have a value.
        :raises Exception: any other error of the store.
        """
        path = self._folder / f"{key}.json"
        try:
            content = path.fs.cat_file(path.path)
        except FileNotFoundError:
            return None
        try:
            return json.loads(content)
        except ValueError:
            raise FlowError(
                f"{redact_path(to_uri(path))} is damaged. The flow runs of this batch may be active or paid "
                "for, so none was started. To start the batch again, which is billed again, use another "
                "output_path"
            ) from None

    def set(self, key: str, value: Any) -> None:
        """Store a value.

        :raises OSError: the store does not accept the file.
        """
        with PartialFile(self._folder, key) as file:
            file.restart()
            file.write(json.dumps(value).encode())
            file.commit(self._folder / f"{key}.json", may_replace=True)

    def delete(self, key: str) -> None:
        """Delete a value, if there is one."""
        (self._folder / f"{key}.json").unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Let no other process use this store during the block, if it is on this machine.

        :raises FlowInputError: another process uses it.
        """
        if self._folder.protocol not in LOCAL_SCHEMES:
            yield  # object stores have no locks that end with their process
            return
        folder = Path(self._folder.path)
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(".*.part"):  # of a process that was killed
            path.unlink(missing_ok=True)
        with (folder / LOCK_NAME).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise FlowInputError(
                    f"Another process runs the batch in {folder.parent}. Wait for its end, or use another "
                    "output_path"
                ) from None
            yield


def read_manifest(manifest: str | ObjectStoragePath, conn_id: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the lines of a batch's manifest, one dict an item, without loading the file into memory.

    :param manifest: the URI that the batch returned as `manifest`.
    :param conn_id: the Airflow connection of its store, as `output_conn_id` of the batch.
    :raises FlowInputError: the manifest cannot be read, a line is no line of a manifest, or there is no such
        connection.
    """
    if conn_id is not None:
        require_connection("conn_id", conn_id)
    return _iter_manifest(FileAccess(conn_id).resolve("manifest", manifest))


def _iter_manifest(path: Any) -> Iterator[dict[str, Any]]:
    with open_file("manifest", path, is_permanent=True) as file:
        for number, data in iter_lines(file, MAX_IN_MEMORY_BYTES):
            if data is None or data.strip():
                yield _parse_line(path, number, data)


def _parse_line(path: Any, number: int, data: bytes | None) -> dict[str, Any]:
    """Return the dict of a line, with whatever fields a later version of this package adds."""
    try:
        line = json.loads(data or b"")
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict) or not isinstance(line.get("key"), str) or "state" not in line:
        raise FlowInputError(
            f"Line {number} of {redact_path(path)} is no line of a batch's manifest. Correct or remove it, "
            "or run the task of the batch again, which writes the file"
        )
    return line


def _to_json_line(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=to_json_value)
    return f"{replace_surrogates(text)}\n".encode()


def _write_all(spool: Spool, data: bytes, offset: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(spool.file.fileno(), data[written:], offset + written)


def _read_span(spool: Spool, offset: int, size: int) -> bytes:
    return os.pread(spool.file.fileno(), size, offset)


@dataclass(frozen=True, slots=True)
class ManifestIndex:
    """Where the lines of a manifest are, and what they are selected by; a few bytes for each of them.

    :param uri: of the manifest.
    :param offsets: of the lines in the file, and its size.
    :param keys: of the items, separated by line feeds.
    :param states: the index of each item's state in `state_names`.
    :param runs: the hash of each key with its flow run (`hash_run`).
    :param rate: how many items have ended in a second, recently; None if unknown.
    """

    uri: str
    offsets: array[int]
    keys: bytes
    states: bytes
    state_names: tuple[str, ...]
    runs: array[int]
    rate: float | None

    @classmethod
    def load(cls, folder: ObjectStoragePath) -> Self:
        """Read the manifest in a folder, without following a symbolic link there.

        :raises FlowInputError: it is too large.
        :raises ValueError: a line is none of a manifest.
        :raises Exception: any error of the store.
        """
        offsets, states, runs, end_times = array("Q", [0]), bytearray(), array("q"), array("d")
        keys: list[str] = []
        numbers: dict[str, int] = {}
        path = folder / MANIFEST_NAME
        with open_stored_file(path, folder) as file:
            for _, data in iter_lines(file, MAX_MANIFEST_LINE_BYTES):
                if data is None or len(states) >= MAX_BATCH_ITEMS or offsets[-1] > MAX_MANIFEST_BYTES:
                    raise FlowInputError(MANIFEST_TOO_LARGE)
                line = _parse_indexed_line(data)
                keys.append(line["key"])
                states.append(_number_state(line.get("state"), numbers))
                runs.append(hash_run(line["key"], line.get("flow_run_id")))
                offsets.append(offsets[-1] + len(data) + 1)
                if (finished_at := parse_timestamp(line.get("finished_at"))) is not None:
                    end_times.append(to_epoch(finished_at))
        encoded_keys, rate = "\n".join(keys).encode(), _compute_rate(end_times)
        return cls(to_uri(path), offsets, encoded_keys, bytes(states), tuple(numbers), runs, rate)

    def get_keys(self) -> list[bytes]:
        """Return the keys of all items."""
        return self.keys.split(b"\n") if self.states else []

    def load_lines(self, folder: ObjectStoragePath, numbers: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Return lines by their numbers, from 0 on, without those that have changed since the index.

        :raises Exception: any error of the store.
        """
        lines: dict[int, dict[str, Any]] = {}
        keys = self.get_keys()
        with open_stored_file(folder / MANIFEST_NAME, folder) as file:
            for number in sorted(numbers):
                file.seek(self.offsets[number])
                with suppress(ValueError):
                    line = _parse_indexed_line(file.read(self.offsets[number + 1] - self.offsets[number]))
                    run = hash_run(line["key"], line.get("flow_run_id"))
                    if line["key"].encode() == keys[number] and run == self.runs[number]:
                        lines[number] = line
        return lines


def hash_run(key: str, flow_run_id: str | None) -> int:
    """Return a hash of an item's key with its flow run, which has another value in each process.

    It is 0 for an item without a run.
    """
    return 0 if flow_run_id is None else hash((key, flow_run_id)) or 1


def _parse_indexed_line(data: bytes) -> dict[str, Any]:
    """Return the dict of a line.

    :raises ValueError: it is no line of a manifest.
    """
    try:
        line = json.loads(data)
    except RecursionError as error:
        raise ValueError("the line is nested too deeply") from error
    has_key = isinstance(line, dict) and isinstance(line.get("key"), str) and line["key"].isprintable()
    if not has_key or not isinstance(line.get("flow_run_id"), str | None):
        raise ValueError("it is no line of a manifest")
    return dict(line)


def _number_state(state: Any, numbers: dict[str, int]) -> int:
    """Return the number of a state, the next one for a new state."""
    name = to_line(state[:MAX_STATE_LENGTH]) if isinstance(state, str) else OTHER_STATE
    if name not in numbers and len(numbers) >= MAX_STATES:
        name = OTHER_STATE
    return numbers.setdefault(name, len(numbers))


def _compute_rate(end_times: array[float]) -> float | None:
    """Return how many items have ended in a second of the last minutes, None if these are too few."""
    latest = max(end_times, default=0.0)
    recent = [end_time for end_time in end_times if end_time >= latest - RATE_SECONDS]
    seconds = latest - min(recent, default=latest)
    return (len(recent) - 1) / seconds if len(recent) >= MIN_RATE_ITEMS and seconds > 0 else None
