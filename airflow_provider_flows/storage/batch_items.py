"""The `items` of a batch, in each of their forms, as a source that is read lazily and as often as needed.

A problem of one item, such as a line that is not JSON, is yielded in its place. A problem of the source, such
as a column that is unknown, is an error.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_flows.core.batch import (
    ITEM_FIELDS,
    BatchItem,
    ItemProblem,
    ProblemList,
    find_key_problem,
)
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.limits import MAX_BATCH_ITEMS, MAX_ITEM_BYTES
from airflow_provider_flows.core.redaction import redact_path
from airflow_provider_flows.core.template_problems import is_task
from airflow_provider_flows.core.validation import Problems
from airflow_provider_flows.storage.file_source import (
    FileAccess,
    InputHook,
    InputPath,
    open_file,
    to_local_path,
    unreadable_error,
)
from airflow_provider_flows.storage.inputs import is_path, parse_inputs
from airflow_provider_flows.storage.item_files import (
    FILE_FORMATS,
    NOT_UTF8,
    TOO_LARGE,
    Columns,
    FileFormat,
    ItemRow,
    RowOptions,
    to_row,
)
from airflow_provider_flows.storage.paths import (
    WEB_SCHEMES,
    get_conn_id,
    is_likely_path_or_uri,
    require_connection,
    safe_name,
    to_uri,
)

FORMS = "a list, or the path or URI of a .jsonl, .csv or .parquet file, or of files such as s3://shop/photos/*.png"
_NO_LISTS = (Mapping, bytes, bytearray, set, frozenset)  # they are iterable, but have no items or no order
WILDCARDS = frozenset("*?[")  # of a pattern for the names of files
# what identifies the content of a file, of those that the file systems have
_VERSION_FIELDS = (
    "size", "ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "updated",
    "created",
)  # fmt: skip


class BatchItems:
    """The items of a batch. Each iteration reads them again, and yields the same ones.

    Files of inputs are not read.

    :param items: a list or any other iterable, or the path or URI of a file or of several ones (`FORMS`). An
        iterator, which can be read only once, is copied into a list.
    :param input_conn_id: the Airflow connection of the storage of the file.
    :param columns: for CSV and Parquet files, the field of an item by the name of its column: `inputs`,
        `key`, `parameters`, `additional`, or a part such as `parameters.quality` or `inputs.uri`. None leaves
        a column out.
    :param hook: the hook of the service, which decides what `inputs` can be, and fetches a file from a URL.
    :param find_problem: returns why an item cannot be sent, beyond its form, None if it can.
    :raises FlowInputError: the items have none of the forms.
    """

    def __init__(
        self,
        items: Any,
        input_conn_id: str | None = None,
        *,
        columns: Columns | None = None,
        hook: InputHook | None = None,
        find_problem: Callable[[BatchItem], str | None] | None = None,
    ) -> None:
        self._hook, self._find_problem, self._conn_id = hook, find_problem, input_conn_id
        self._source = _create_source(items, FileAccess(input_conn_id, hook), columns)

    @property
    def row_name(self) -> str:
        """What the row of an item is the number of: a line, a row, a file or an item."""
        return self._source.row_name

    def validate(self) -> int:
        """Read all items, and return their number.

        :raises FlowInputError: items cannot be sent, and the error lists the first ones; or the source cannot
            be read.
        """
        problems, count = ProblemList(), 0
        for item in self:
            count += 1
            if isinstance(item, ItemProblem):
                problems.add(item)
        if problems:
            raise problems.error(self.row_name)
        return count

    def __iter__(self) -> Iterator[BatchItem | ItemProblem]:
        """Yield each item, or its problem.

        :raises FlowInputError: the source cannot be read, has changed since the first iteration, or has more
            than MAX_BATCH_ITEMS items; or there is no connection `input_conn_id`.
        """
        if self._conn_id is not None:
            require_connection("input_conn_id", self._conn_id)
        rows_by_key: dict[int, int] = {}
        for count, row in enumerate(self._source.rows(), 1):
            if count > MAX_BATCH_ITEMS:
                raise FlowInputError(
                    f"items has more than {MAX_BATCH_ITEMS:,} items. Distribute them over several tasks"
                )
            yield self._to_item(row, rows_by_key)

    def _to_item(self, row: ItemRow, rows_by_key: dict[int, int]) -> BatchItem | ItemProblem:
        problems, fields = Problems(), dict(row.fields)
        given_key, digest = fields.pop("key", None), None
        if row.problem is not None:
            problems.add(row.problem)
        with problems.collect():
            digest = _compute_digest(fields, self._source.max_item_bytes) if fields else None
        key = f"{row.number:06}-{digest or 'invalid'}"
        with problems.collect():
            key = self._register_key(_parse_key(given_key) or key, row.number, rows_by_key)
        item = None if problems else BatchItem(key, row.number, **fields)
        if item is not None:
            self._validate(item, problems)
        if item is not None and not problems:
            return item
        readable = None if digest is None else dict(row.fields)
        return ItemProblem(row.number, key, str(problems.error()), readable)

    def _register_key(self, key: str, row: int, rows_by_key: dict[int, int]) -> str:
        """Return the key of an item, if no other item has it.

        :param rows_by_key: the rows of all items so far, by 8 bytes of their keys' digests, because the keys
            would take more memory.
        :raises FlowInputError: one has, also in upper or lower case.
        """
        digest = int.from_bytes(hashlib.sha256(key.lower().encode()).digest()[:8])
        first = rows_by_key.setdefault(digest, row)
        if first != row:
            raise FlowInputError(
                f"its key {key!r} is also that of {self.row_name} {first}; some stores ignore case"
            )
        return key

    def _validate(self, item: BatchItem, problems: Problems) -> None:
        parameters: Any = item.parameters
        if parameters is not None and not isinstance(parameters, Mapping):
            problems.add(f"its parameters are {type(parameters).__name__}, not a mapping")
        parse_inputs(item.inputs, None, problems, self._hook, reads_files=False)
        if not problems and self._find_problem is not None:
            message = self._find_problem(item)
            problems.add(*filter(None, [message]))


def _parse_key(value: Any) -> str | None:
    """Return an item's own key, None if it has none.

    :raises FlowInputError: it is not a safe file name.
    """
    if value is None or value == "":
        return None
    key = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(key, str):
        raise FlowInputError(f"its key must be a text, not {type(value).__name__}")
    if (problem := find_key_problem(key)) is not None:
        raise FlowInputError(problem)
    return key


def _compute_digest(fields: Mapping[str, Any], max_bytes: int | None) -> str:
    """Return the start of the SHA-256 of an item's canonical JSON.

    :raises FlowInputError: JSON cannot represent the item, or it is too large.
    """
    try:
        content = {name: fields.get(name) for name in ITEM_FIELDS if name != "key"}
        data = json.dumps(
            content, sort_keys=True, ensure_ascii=False, allow_nan=False, default=to_json_value
        ).encode()
    except UnicodeEncodeError:
        raise FlowInputError(NOT_UTF8) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise FlowInputError(f"it cannot be sent as JSON: {error}") from None
    if max_bytes is not None and len(data) > max_bytes:
        raise FlowInputError(TOO_LARGE)
    return hashlib.sha256(data).hexdigest()[:8]


def to_json_value(value: Any) -> Any:
    """Return a value that JSON does not know in a form that it knows: a path as the URI of a file.

    :raises TypeError: JSON cannot represent the value.
    """
    if is_path(value):
        return {"uri": _to_location(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _to_location(path_or_uri: Any) -> str:
    """Return a path or a URI as a text, with the Airflow connection of an ObjectStoragePath."""
    if isinstance(path_or_uri, str):
        return path_or_uri.strip()
    if isinstance(path_or_uri, PurePath) and not hasattr(path_or_uri, "protocol"):
        return str(Path(path_or_uri).absolute())
    if not hasattr(path_or_uri, "protocol"):
        return os.fsdecode(path_or_uri)
    scheme, _, rest = to_uri(path_or_uri).partition("://")
    conn_id = get_conn_id(path_or_uri)
    return f"{scheme}://{rest}" if conn_id is None else f"{scheme}://{conn_id}@{rest}"


def _create_source(items: Any, access: FileAccess, columns: Columns | None) -> _Source:
    """Return the source of the items in one of the `FORMS`.

    :raises FlowInputError: they have another form.
    """
    if is_task(items):
        raise FlowInputError(
            f"items is the task {items.task_id!r} itself; write .output after it to pass the task's result"
        )
    source: _Source
    if isinstance(items, str) or is_path(items):
        source = _create_file_source(_to_location(items), access, columns or {})
    elif isinstance(items, Iterable) and not isinstance(items, _NO_LISTS):
        source = _ListSource(items, has_variables=_has_variables(access))
    else:
        raise FlowInputError(f"items must be {FORMS}, not {type(items).__name__}")
    if columns and not (isinstance(source, _FileSource) and source.format.has_columns):
        raise FlowInputError("columns is for CSV and Parquet files only, and items is something else")
    return source


def _create_file_source(location: str, access: FileAccess, columns: Columns) -> _Source:
    is_url = location.partition("://")[0].lower() in WEB_SCHEMES
    name = (urlsplit(location).path if is_url else location).rpartition("/")[2].lower()
    is_path_or_uri = is_likely_path_or_uri(location)
    plain_name = name.removesuffix(".gz")
    file_format, is_compressed = FILE_FORMATS.get(PurePath(plain_name).suffix), plain_name != name
    if file_format is not None and "*" not in name and (file_format.may_be_compressed or not is_compressed):
        return _FileSource(location, access, file_format, columns, is_compressed=is_compressed)
    if file_format is None and is_path_or_uri and not is_url and WILDCARDS & set(location):
        return _create_folder_source(location, access)
    # a text that is no path may be a list of prompts, rendered from a template, which is not shown
    shown = f" ({redact_path(location)})" if is_path_or_uri else ""
    raise FlowInputError(f"items is a text{shown}, but must be {FORMS}. A .jsonl or .csv file may be a .gz")


def _create_folder_source(location: str, access: FileAccess) -> _Source:
    folder, _, pattern = location.rpartition("/")
    if WILDCARDS & set(folder):
        raise FlowInputError(
            f"items has a wildcard in the name of a folder ({redact_path(location)}); only the name of the "
            "file can have one"
        )
    if _has_variables(access):
        raise FlowInputError(
            f"items names the files of a folder ({redact_path(location)}), but the inputs of this service "
            "are variables. Write their values into a .jsonl or .csv file"
        )
    return _FolderSource(f"{folder}/" if folder or location.startswith("/") else "", pattern, access)


def _has_variables(access: FileAccess) -> bool:
    return access.hook is not None and access.hook.service.has_variables


class _Source:
    """Where items come from."""

    row_name: str  # what the number of a row is, for messages
    max_item_bytes: int | None = MAX_ITEM_BYTES  # of the JSON of one item

    def rows(self) -> Iterator[ItemRow]:
        """Yield the rows, in each call the same ones.

        :raises FlowInputError: the source cannot be read, or has changed since the first call.
        """
        raise NotImplementedError


class _ListSource(_Source):
    row_name = "item"
    max_item_bytes = None  # they are in memory already

    def __init__(self, values: Iterable[Any], *, has_variables: bool) -> None:
        is_iterator = isinstance(values, Iterator)
        self._values = list(islice(values, MAX_BATCH_ITEMS + 1)) if is_iterator else values
        self._has_variables = has_variables

    def rows(self) -> Iterator[ItemRow]:
        for number, value in enumerate(self._values, 1):
            yield to_row(number, value, has_variables=self._has_variables)


class _Fingerprint:
    """What identifies the content of a source, so that a change between two iterations is an error."""

    def __init__(self) -> None:
        self._value: object = None

    def expect(self, value: object, location: str) -> None:
        """Compare with the value of the first call.

        :raises FlowInputError: they differ.
        """
        self._value = self._value or value
        if value != self._value:
            raise FlowInputError(
                f"items changed while the batch was running ({redact_path(location)}). Run the task again "
                "when no other program writes there",
                is_permanent=False,
            )


def _get_version(info: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(info.get(name)) for name in _VERSION_FIELDS)


def _get_local_version(status: os.stat_result) -> tuple[str, ...]:
    return str(status.st_size), str(status.st_mtime_ns)


class _FolderSource(_Source):
    """The files of a folder whose names match a pattern, in the order of their names."""

    row_name = "file"

    def __init__(self, folder: str, pattern: str, access: FileAccess) -> None:
        self._folder, self._pattern, self._access = folder, pattern, access
        self._fingerprint = _Fingerprint()

    def rows(self) -> Iterator[ItemRow]:
        names = self._list()
        for number, name in enumerate(names, 1):
            yield ItemRow(number, {"key": safe_name(name), "inputs": {"uri": f"{self._folder}{name}"}})

    def _list(self) -> list[str]:
        """Return the names of the files.

        :raises FlowInputError: the folder cannot be read, has too many files, or has changed.
        """
        path = self._access.resolve("items", self._folder or ".")
        versions: dict[str, tuple[str, ...]] = {}
        try:
            for name, version in _iter_files(path):
                if self._matches(name):
                    versions[name] = version
                if len(versions) > MAX_BATCH_ITEMS:
                    break  # the iteration raises an error
        except Exception as error:  # noqa: BLE001  # any error of the store's library
            raise unreadable_error("items", self._folder, error) from None
        names = sorted(versions)
        digest = hashlib.sha256(repr([(name, versions[name]) for name in names]).encode(errors="replace"))
        self._fingerprint.expect(digest.hexdigest(), f"{self._folder}{self._pattern}")
        return names

    def _matches(self, name: str) -> bool:
        """Return whether a name matches, as in a shell: a hidden file only if the pattern says so."""
        is_hidden = name.startswith(".") and not self._pattern.startswith(".")
        return not is_hidden and fnmatch.fnmatchcase(name, self._pattern)


def _iter_files(path: InputPath) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the name and the version of each file in a folder."""
    local_path = to_local_path(path)
    if local_path is not None:
        with os.scandir(local_path) as entries:
            for entry in entries:
                if entry.is_file():
                    yield entry.name, _get_local_version(entry.stat())
        return
    path.fs.invalidate_cache(path.path)
    for info in path.fs.ls(path.path, detail=True):
        name = str(info["name"]).rpartition("/")[2]
        if info["type"] == "file" and name:
            yield name, _get_version(info)


class _FileSource(_Source):
    """A file that has an item in each line or row."""

    def __init__(
        self,
        location: str,
        access: FileAccess,
        file_format: FileFormat,
        columns: Columns,
        *,
        is_compressed: bool,
    ) -> None:
        self.row_name = file_format.row_name
        self.format = file_format
        self._location, self._access = location, access
        self._options = RowOptions(columns, _has_variables(access))
        self._is_compressed = is_compressed
        self._path: InputPath = None
        self._fingerprint = _Fingerprint()

    def rows(self) -> Iterator[ItemRow]:
        if self._path is None:  # a file from a URL is downloaded once
            self._path = self._access.resolve("items", self._location)
        self._expect_unchanged()
        with open_file("items", self._path, is_permanent=True) as file:
            content: Any = gzip.GzipFile(fileobj=file) if self._is_compressed else file
            yield from self.format.read(content, self._options)
        self._expect_unchanged()

    def _expect_unchanged(self) -> None:
        """Compare the file's version with that of the first call."""
        path = self._path
        local_path = to_local_path(path)
        try:
            if local_path is not None:
                version = _get_local_version(local_path.stat())
            elif hasattr(path, "fs"):
                path.fs.invalidate_cache(path.parent.path)
                version = _get_version(path.fs.info(path.path))
            else:
                return  # a download, which is this process's own copy
        except Exception as error:  # noqa: BLE001  # any error of the store's library
            raise unreadable_error("items", path, error) from None
        self._fingerprint.expect(version, self._location)
