"""Files of a batch's items, read a row at a time: JSONL, CSV and Parquet.

A row that cannot be parsed is yielded with the reason. What makes the other rows unreadable, or is wrong with
all of them, is an error.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from airflow_provider_flows.core.batch import ITEM_FIELDS
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.limits import MAX_INPUT_BYTES, MAX_ITEM_BYTES
from airflow_provider_flows.core.validation import shorten, suggest_names
from airflow_provider_flows.storage.file_source import INPUT_CHUNK_BYTES

PARQUET_BATCH_ROWS = 64  # in memory at a time
VERDICT_FIELD = "verdict"  # of an item whose outputs were rejected, in the file of the items that failed
COLUMN_FIELDS = {**{name: name for name in ITEM_FIELDS}, "prompt": "inputs"}
TOO_LARGE = (
    f"it has more than {MAX_ITEM_BYTES} bytes. Put large content into files, and name them by their URIs"
)
NOT_UTF8 = "it is not valid text in UTF-8"
_JSON_FIELDS = frozenset({"parameters", "additional"})

Columns = Mapping[str, str | None]  # the field of an item by the name of a column; None for no field


@dataclass(frozen=True, slots=True)
class RowOptions:
    """How rows become items.

    :param columns: for tables, the fields of those columns that are not named like one.
    :param has_variables: whether every mapping can contain variables, as for `parse_inputs`.
    """

    columns: Columns
    has_variables: bool


@dataclass(frozen=True, slots=True)
class ItemRow:
    """The fields of an item as its source has them.

    :param number: as `BatchItem.row`.
    :param problem: why it is not an item, None if it may be one.
    """

    number: int
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)
    problem: str | None = None


def to_row(number: int, value: Any, *, has_variables: bool) -> ItemRow:
    """Return the row of a value that is a dict with the fields of an item, or else the inputs of one.

    :param has_variables: whether every mapping can contain variables, as for `parse_inputs`.
    """
    if value is None:
        return ItemRow(number, problem="it is empty")
    if isinstance(value, Mapping) and {*ITEM_FIELDS, VERDICT_FIELD} == set(value):  # of an item that failed
        value = {name: value[name] for name in ITEM_FIELDS}
    if isinstance(value, Mapping) and value and value.keys() <= set(ITEM_FIELDS):
        if "inputs" in value:
            return ItemRow(number, value)
        if not has_variables:
            return ItemRow(number, value, "it has no 'inputs'")
    return ItemRow(number, {"inputs": value})


def _iter_text_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Yield the lines of a text, without the byte order mark of UTF-8; None for one that is too long.

    :raises ValueError: the text is UTF-16.
    """
    for number, line in iter_lines(file, MAX_ITEM_BYTES):
        if number > 1 or line is None:
            yield number, line
        elif line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError("it is a text in UTF-16. Save it in UTF-8")
        else:
            yield number, line.removeprefix(codecs.BOM_UTF8)


def _read_json_lines(file: IO[bytes], options: RowOptions) -> Iterator[ItemRow]:
    for number, line in _iter_text_lines(file):
        if line is None:
            yield ItemRow(number, problem=TOO_LARGE)
        elif line.strip():
            yield _parse_json_line(number, line, options)


def _parse_json_line(number: int, line: bytes, options: RowOptions) -> ItemRow:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        return ItemRow(number, problem=NOT_UTF8)
    except json.JSONDecodeError as error:  # whose own text has numbers of another kind
        return ItemRow(number, problem=f"it is not JSON ({error.msg} at character {error.colno})")
    except (ValueError, RecursionError) as error:
        return ItemRow(number, problem=f"it is JSON that cannot be read ({type(error).__name__})")
    return to_row(number, value, has_variables=options.has_variables)


def _read_csv(file: IO[bytes], options: RowOptions) -> Iterator[ItemRow]:
    # The limit is that of the process, by default 128 KiB; `_CsvText` has the one that counts here.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ITEM_BYTES))
    text = _CsvText(_iter_text_lines(file))
    reader = csv.reader(text, strict=True)
    table: _Table | None = None
    while True:
        text.begin_record()
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if table is None or text.is_at_end:
                raise ValueError(
                    f"the row that begins in line {text.first_line} is not CSV ({error})"
                ) from None
            yield ItemRow(text.first_line, problem=f"it is not CSV ({error})")
            continue
        if not any(map(str.strip, cells)):
            continue
        if table is None:
            table = _Table(cells, options.columns)
        else:
            yield table.parse_row(text.first_line, cells)
    if table is None:
        raise ValueError("it is empty; its first line must name its columns")


class _CsvText:
    """The lines of a CSV file, of which a record may have several."""

    def __init__(self, lines: Iterator[tuple[int, bytes | None]]) -> None:
        self._lines = lines
        self._number = self._size = 0
        self.first_line = 1
        self.is_at_end = False

    def begin_record(self) -> None:
        """Start to count the bytes of the next record."""
        self.first_line, self._size = self._number + 1, 0

    def __iter__(self) -> Iterator[str]:
        """Return the lines."""
        return self

    def __next__(self) -> str:
        """Return the next line. Bytes that are not UTF-8 become surrogates, which no item can have.

        :raises ValueError: the record is too long, so that its end and all other records are unknown.
        """
        try:
            self._number, line = next(self._lines)
        except StopIteration:
            self.is_at_end = True
            raise
        self._size += 0 if line is None else len(line) + 1
        if line is None or self._size > MAX_ITEM_BYTES:
            raise ValueError(
                f"the row that begins in line {self.first_line} has more than {MAX_ITEM_BYTES} bytes. "
                "Perhaps a quotation mark in it is not closed"
            )
        return f"{line.decode(errors='surrogateescape')}\n"


def _read_parquet(file: IO[bytes], options: RowOptions) -> Iterator[ItemRow]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise FlowInputError(
            "items is a Parquet file, for which the package pyarrow is not installed. Install it on each "
            "worker (pip install pyarrow), or write the items as CSV or JSONL"
        ) from None
    parquet = ParquetFile(file)
    names = parquet.schema_arrow.names
    table, number = _Table(names, options.columns), 0
    for batch in parquet.iter_batches(PARQUET_BATCH_ROWS):  # one row group after the other
        for record in batch.to_pylist():
            number += 1
            yield table.parse_row(number, [record[name] for name in names])


class _Table:
    """The columns of a table, and for each the field of an item, or the part of one, that it has.

    :raises FlowInputError: a column is unknown, two have the same field, or none has the inputs.
    """

    def __init__(self, names: Sequence[str], columns: Columns) -> None:
        self._names = [name.strip() for name in names]
        for name in columns:
            if name not in self._names:
                raise FlowInputError(
                    f"columns has {name!r}, but items has no such column{suggest_names(name, self._names)}"
                )
        self._targets = [self._find_target(name, columns) for name in self._names]
        self._expect_usable_targets([target for target in self._targets if target is not None])

    def _find_target(self, name: str, columns: Columns) -> tuple[str, str] | None:
        """Return the field of a column and the part of it, empty for all of it; None for no field."""
        target = columns.get(name, name)
        if target is None:
            return None
        start, dot, part = target.partition(".")
        found = COLUMN_FIELDS.get(start.strip().lower())
        if found is not None and bool(part) == bool(dot) and not (found == "key" and part):
            return found, part
        if name in columns:
            hint = suggest_names(target, COLUMN_FIELDS)
            known = f"{', '.join(COLUMN_FIELDS)} or a part such as parameters.quality"
            raise FlowInputError(f"columns has {target!r} for {name!r}, but must have {known}{hint}")
        shown = shorten(name)
        hint = suggest_names(shown, [*COLUMN_FIELDS, *columns])
        separators = " The columns must be separated by commas." if {";", "\t"} & set(name) else ""
        raise FlowInputError(
            f"items has the unknown column {shown!r}{hint}. Known are {', '.join(COLUMN_FIELDS)}. Set "
            f"columns={{{shown!r}: 'inputs'}}, or another field or a part such as 'parameters.quality', or "
            f"None to leave it out.{separators}"
        )

    def _expect_usable_targets(self, targets: Sequence[tuple[str, str]]) -> None:
        for name, part in targets:
            others = [other for other in targets if other[0] == name]
            if len(set(others)) < len(others) or (not part and len(others) > 1):
                raise FlowInputError(
                    f"items has several columns for {name!r} of an item. Set columns, with None for those to "
                    "leave out"
                )
        if "inputs" not in dict(targets):
            raise FlowInputError(
                f"items has no column with the inputs, but {', '.join(map(repr, self._names))}. Name it "
                "'inputs' or 'prompt', or set columns, such as columns={'chair_prompt': 'inputs'}"
            )

    def parse_row(self, number: int, cells: Sequence[Any]) -> ItemRow:
        """Return the row of an item. Empty cells count as none."""
        if len(cells) != len(self._targets):
            return ItemRow(
                number,
                problem=f"its number of cells is {len(cells)}, not {len(self._targets)} as in the header",
            )
        fields: dict[str, Any] = {}
        for target, cell in zip(self._targets, cells, strict=True):
            if target is None or cell is None or (isinstance(cell, str) and not cell.strip()):
                continue
            name, part = target
            try:
                value = (
                    json.loads(cell) if name in _JSON_FIELDS and not part and isinstance(cell, str) else cell
                )
            except (ValueError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
                return ItemRow(number, problem=f"its {name} are not JSON ({reason})")
            if part:
                fields.setdefault(name, {})[part] = value
            else:
                fields[name] = value.strip() if name == "key" and isinstance(value, str) else value
        if "inputs" not in fields:
            return ItemRow(number, fields, "its inputs are empty")
        return ItemRow(number, fields)


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A format of files with items.

    :param row_name: what the number of a row is, for messages.
    :param read: yields the rows of an open file.
    """

    row_name: str
    read: Callable[[IO[bytes], RowOptions], Iterator[ItemRow]]
    has_columns: bool = True
    may_be_compressed: bool = True  # as .gz


_JSON_LINES = FileFormat("line", _read_json_lines, has_columns=False)
FILE_FORMATS = {
    ".jsonl": _JSON_LINES,
    ".ndjson": _JSON_LINES,
    ".csv": FileFormat("line", _read_csv),
    ".parquet": FileFormat("row", _read_parquet, may_be_compressed=False),
}


def iter_lines(file: IO[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield the number and the content of each line, without its line feed; None for a line that is too long.

    :param max_bytes: of a line.
    :raises ValueError: the file is larger than MAX_INPUT_BYTES, which a compressed file does not show.
    """
    number, total, line = 1, 0, bytearray()
    while chunk := file.read(INPUT_CHUNK_BYTES):
        if (total := total + len(chunk)) > MAX_INPUT_BYTES:
            raise ValueError(f"it is larger than the maximum of {MAX_INPUT_BYTES} bytes")
        *ends, start = chunk.split(b"\n")
        for end in ends:
            line += end
            yield number, bytes(line) if len(line) <= max_bytes else None
            number += 1
            line.clear()
        line += start[: max_bytes + 1]
        del line[max_bytes + 1 :]  # what is left of a line that is too long
    if line:
        yield number, bytes(line) if len(line) <= max_bytes else None
