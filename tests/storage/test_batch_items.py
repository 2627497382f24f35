"""Tests of the items of a batch: every form of them, their keys, and what is wrong with them.

The files are real ones, on disk and in a bucket of an S3 server.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, ObjectStoragePath, task

from airflow_provider_flows.core.batch import BatchItem, ItemProblem
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.limits import MAX_BATCH_ITEMS, MAX_ITEM_BYTES
from airflow_provider_flows.hooks import GenerioHook, PromptChainerHook
from airflow_provider_flows.storage.batch_items import BatchItems
from airflow_provider_flows.storage.inputs import parse_inputs
from airflow_provider_flows.storage.item_files import FILE_FORMATS
from tests.support.airflow_run import run_dag
from tests.support.bucket import BUCKET, BUCKET_CONN_ID, SECRET, ObjectServer
from tests.support.servers import StubResponse, StubServer
from tools.processes import LOOPBACK

HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None
PNG = b"\x89PNG\r\n\x1a\n"
CHAIR, TABLE = "a red chair", "a round table"


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a connection to each service, to which no test here sends a request."""
    for conn_id, conn_type in (("G", "generio"), ("P", "promptchainer")):
        extra = {"input_hosts": LOOPBACK}
        value = {"conn_type": conn_type, "password": "k", "host": "http://localhost:1", "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id}", json.dumps(value))


def items_of(source: BatchItems) -> list[BatchItem]:
    """Return the items of a source in which all are good, read twice with the same result."""
    first, second = list(source), list(source)
    assert first == second
    good = [item for item in first if isinstance(item, BatchItem)]
    assert good == first
    assert source.validate() == len(good)
    return good


def problems_of(source: BatchItems) -> dict[int, str]:
    """Return the messages of the problems, by row."""
    return {item.row: item.message for item in source if isinstance(item, ItemProblem)}


def write_jsonl(path: Path, values: list[Any]) -> str:
    """Write a file, and return its path."""
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values))
    return str(path)


# Lists, and what has the same form.
VALUES = [CHAIR, {"key": "table", "inputs": TABLE, "parameters": {"quality": "low"}, "additional": {"n": 1}}]
LISTS: dict[str, Callable[[], Any]] = {
    "list": lambda: VALUES,
    "tuple": lambda: tuple(VALUES),
    "iterator": lambda: iter(VALUES),
    "generator": lambda: (value for value in VALUES),
    "dict view": lambda: dict(enumerate(VALUES)).values(),
}


@pytest.mark.parametrize("form", LISTS)
def test_lists_of_all_kinds(form: str) -> None:
    """A value is the inputs of an item, or a dict with its fields; an iterator can be read twice, too."""
    chair, table = items_of(BatchItems(LISTS[form]()))
    assert (chair.inputs, chair.parameters, chair.additional, chair.row) == (CHAIR, None, None, 1)
    assert table == BatchItem("table", 2, TABLE, {"quality": "low"}, {"n": 1})


def test_lazy_sequence_of_mapped_tasks() -> None:
    """The results of a mapped task, which Airflow reads one by one, are items."""

    @task
    def name_item(number: int) -> dict[str, Any]:
        return {"key": f"chair-{number}", "inputs": f"chair {number}"}

    @task
    def read(values: Any) -> list[list[Any]]:
        assert not isinstance(values, list)
        return [[item.key, item.row, item.inputs] for item in items_of(BatchItems(values))]

    with DAG("lazy_items", schedule=None) as dag:
        read(name_item.expand(number=[1, 2, 3]))
    result = run_dag(dag)
    assert result.state == "success", result.log
    assert result.xcoms["read"]["return_value"] == [[f"chair-{n}", n, f"chair {n}"] for n in (1, 2, 3)]


def test_derived_key_has_the_row_and_a_digest() -> None:
    """An item without a key has its row and the digest of its content, whatever the order of its fields."""
    first, second, third = items_of(
        BatchItems(
            [
                CHAIR,
                {"inputs": CHAIR, "parameters": {"a": 1, "b": 2}},
                {"parameters": {"b": 2, "a": 1}, "inputs": CHAIR},
            ]
        )
    )
    content = f'{{"additional": null, "inputs": "{CHAIR}", "parameters": null}}'
    assert first.key == f"000001-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    assert second.key.partition("-")[2] == third.key.partition("-")[2] != first.key.partition("-")[2]


def test_paths_and_other_inputs_are_items(tmp_path: Path) -> None:
    """An item may be whatever `inputs` takes. Its file is not read, and does not have to exist."""
    missing = tmp_path / "missing.png"
    values = [missing, ObjectStoragePath(f"file://{missing}"), {"uri": str(missing)}, [CHAIR, missing]]
    source = BatchItems(values, hook=GenerioHook("g"))
    assert [item.inputs for item in items_of(source)] == values
    with pytest.raises(FlowInputError, match="cannot be read"):
        parse_inputs(missing)


BAD_ITEMS: dict[str, tuple[Any, str]] = {
    "nothing": (None, "it is empty"),
    "a blank prompt": ("  ", r"inputs\[0\] is blank"),
    "a string that is a path": ("/data/chair.png", "looks like a path or a URI"),
    "a key with a slash": ({"key": "a/b", "inputs": CHAIR}, "'a/b' is not a safe file name.*such as 'a_b'"),
    "a key of two dots": ({"key": "..", "inputs": CHAIR}, "'..' is not a safe file name"),
    "a reserved name": ({"key": "con", "inputs": CHAIR}, "'con' is not a safe file name"),
    "a long key": ({"key": "k" * 101, "inputs": CHAIR}, "101 characters, more than 100"),
    "the name of the manifest": ({"key": "Manifest.jsonl", "inputs": CHAIR}, "a file of the batch itself"),
    "a key that is a list": ({"key": ["a"], "inputs": CHAIR}, "its key must be a text, not list"),
    "a key of another item": ({"key": "GOOD", "inputs": CHAIR}, "'GOOD' is also that of item 1"),
    "no inputs": ({"key": "a", "parameters": {}}, "it has no 'inputs'"),
    "parameters in a list": ({"inputs": CHAIR, "parameters": [1]}, "its parameters are list, not a mapping"),
    "what is not JSON": ({"inputs": CHAIR, "additional": {1, 2}}, "set has no form in JSON"),
    "not a number": ({"inputs": CHAIR, "parameters": {"a": float("nan")}}, "cannot be sent as JSON"),
    "a lone surrogate": ("a \ud83d chair", "not valid text in UTF-8"),
    "two sources of one input": (
        {"inputs": {"uri": "a.png", "data": "x"}},
        "exactly one of 'data' and 'uri'",
    ),
}


@pytest.mark.parametrize("name", BAD_ITEMS)
def test_bad_item_is_a_problem_and_the_others_are_items(name: str) -> None:
    """One pass yields the good items, and a problem in place of a bad one, which has a key in any case."""
    value, message = BAD_ITEMS[name]
    source = BatchItems([{"key": "good", "inputs": CHAIR}, value, TABLE], hook=GenerioHook("g"))
    first, problem, last = source
    assert (isinstance(first, BatchItem), isinstance(last, BatchItem)) == (True, True)
    assert isinstance(problem, ItemProblem)
    assert re.search(message, problem.message), problem.message
    assert problem.row == 2
    assert problem.key
    with pytest.raises(FlowInputError, match=f"items has one item that cannot be sent: item 2: .*{message}"):
        source.validate()


def test_error_lists_the_first_problems() -> None:
    """The error has the first 20 problems with their rows, and the number of the others."""
    with pytest.raises(FlowInputError) as caught:
        BatchItems([CHAIR, *[" "] * 23]).validate()
    message = str(caught.value)
    assert message.startswith("items has 23 items that cannot be sent: item 2: inputs[0] is blank")
    assert re.findall(r"item (\d+):", message) == [str(row) for row in range(2, 22)]
    assert "; and 3 more. No flow run was created." in message


def test_callers_check_is_a_problem() -> None:
    """What the caller finds wrong with an item, such as a parameter, is a problem of that item."""

    def find_problem(item: BatchItem) -> str | None:
        return "parameter 'quality' must be 'low' or 'high'" if item.parameters else None

    source = BatchItems([CHAIR, {"inputs": TABLE, "parameters": {"quality": "l"}}], find_problem=find_problem)
    assert problems_of(source) == {2: "parameter 'quality' must be 'low' or 'high'."}


def test_variables_of_a_service_are_inputs() -> None:
    """A mapping is the variables of an item where the service has variables, whatever their names are."""
    values = [{"topic": "chairs"}, {"key": "blue"}, {"key": "a", "inputs": {"topic": "tables"}}]
    source = BatchItems(values, hook=PromptChainerHook("p"))
    assert [item.inputs for item in items_of(source)] == [*values[:2], {"topic": "tables"}]


WRONG_FORMS: dict[str, tuple[Any, str]] = {
    "None": (None, "not NoneType"),
    "a number": (7, "not int"),
    "a mapping": ({"inputs": CHAIR}, "not dict"),
    "bytes": (b"chair", "not bytes"),
    "a set": ({CHAIR}, "not set"),
    "a prompt": (CHAIR, r"items is a text, but must be a list, or the path"),
    "a list as a text": ("['a chair', 'a table']", r"items is a text, but"),
    "another file": ("s3://shop/prompts.json", r"items is a text \(s3://shop/prompts.json\), but must be"),
    "a folder": ("s3://shop/photos/", r"items is a text \(s3://shop/photos/\), but must be"),
    "a compressed Parquet file": ("s3://shop/a.parquet.gz", "but must be"),
    "a wildcard for folders": ("s3://shop/*/a.png", "wildcard in the name of a folder"),
    "several tables": ("s3://shop/*.csv", "but must be"),
}


@pytest.mark.parametrize("name", WRONG_FORMS)
def test_wrong_form_is_an_error(name: str) -> None:
    """Items of another form are an error at once, which shows no prompt and names the forms."""
    value, message = WRONG_FORMS[name]
    with pytest.raises(FlowInputError, match=message) as caught:
        BatchItems(value)
    assert "chair" not in str(caught.value)


def test_secret_in_a_uri_is_not_shown() -> None:
    """An error about a URI has no credentials."""
    with pytest.raises(FlowInputError) as caught:
        BatchItems("s3://key:s3cret@shop/a.json")
    assert "s3cret" not in str(caught.value)


def test_task_itself_is_an_error() -> None:
    """A task in place of its output is an error that says what to write."""
    with (
        DAG("tasks", schedule=None),
        pytest.raises(FlowInputError, match=r"items is the task 'prompts' itself; write \.output"),
    ):
        BatchItems(EmptyOperator(task_id="prompts"))


# Files.
def test_jsonl_file(tmp_path: Path) -> None:
    """Each line is an item; its row is the number of the line, also after blank lines."""
    text = f'\ufeff"{CHAIR}"\r\n\n  \n{json.dumps(VALUES[1])}\n{{"key": 7, "inputs": "x"}}'
    for name in ("a.jsonl", "b.NDJSON", "c.jsonl.gz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        chair, table, last = items_of(BatchItems(str(path)))
        assert (chair.inputs, chair.row, chair.key[:7]) == (CHAIR, 1, "000001-")
        assert (table.key, table.row, table.additional) == ("table", 4, {"n": 1})
        assert (last.key, last.row) == ("7", 5)


def test_problems_of_lines(tmp_path: Path) -> None:
    """Lines that are no items are problems with the number of the line, without their content."""
    path = tmp_path / "prompts.jsonl"
    lines = [
        b'"good"',
        b'{"secret": ',
        b'"a \xff chair"',
        b"[" * 100_000,
        b'"' + b"x" * MAX_ITEM_BYTES + b'"',
        b'"last"',
    ]
    path.write_bytes(b"\n".join(lines))
    source = BatchItems(path)
    problems = problems_of(source)
    assert list(problems) == [2, 3, 4, 5]
    assert problems[2] == "it is not JSON (Expecting value at character 12)."
    assert problems[3] == "it is not valid text in UTF-8."
    assert "JSON" in problems[4]
    assert f"more than {MAX_ITEM_BYTES} bytes" in problems[5]
    assert [item.inputs for item in source if isinstance(item, BatchItem)] == ["good", "last"]
    assert next(item.key for item in source if isinstance(item, ItemProblem)) == "000002-invalid"
    assert "secret" not in str(problems)


CSV = (
    f'key,prompt,parameters,additional\r\nchair,{CHAIR},"{{""quality"": ""low""}}",\r\n'
    ',"a table,\nround",,[1]\r\n,,,\r\n\r\n'
)


def test_csv_file(tmp_path: Path) -> None:
    """A row has the fields that the header names; cells may have several lines, and parameters are JSON."""
    for name, content in {
        "a.csv": CSV.encode(),
        "bom.csv": b"\xef\xbb\xbf" + CSV.encode(),
        "b.csv.gz": gzip.compress(CSV.encode()),
        "upper.csv": CSV.replace("key,prompt", "Key, Prompt").encode(),
    }.items():
        (tmp_path / name).write_bytes(content)
        chair, table = items_of(BatchItems(tmp_path / name))
        assert chair == BatchItem("chair", 2, CHAIR, {"quality": "low"}, None)
        assert (table.row, table.inputs, table.parameters, table.additional) == (
            3,
            "a table,\nround",
            None,
            [1],
        )
        assert table.key.startswith("000003-")


def test_columns_of_a_csv_file(tmp_path: Path) -> None:
    """Columns of any name become fields, parts of fields, or nothing."""
    path = tmp_path / "shop.csv"
    path.write_text(
        f"id,photo,quality,inputs.name,notes\n7,s3://shop/7.png,low,{CHAIR},x\n8,s3://shop/8.png,,,\n"
    )
    columns = {"id": "key", "photo": "inputs.uri", "quality": "parameters.quality", "notes": None}
    first, second = items_of(BatchItems(path, columns=columns))
    assert (first.key, first.parameters) == ("7", {"quality": "low"})
    assert first.inputs == {"uri": "s3://shop/7.png", "name": CHAIR}
    assert (second.inputs, second.parameters) == ({"uri": "s3://shop/8.png"}, None)


BAD_TABLES: dict[str, tuple[str, dict[str, str | None], str]] = {
    "a misspelt column": ("promt\nx", {}, r"'promt' \(did you mean 'prompt'\?\).*columns=\{'promt'"),
    "another column": ("prompt,chair_prompt\nx,y", {}, "unknown column 'chair_prompt'"),
    "semicolons": ("key;prompt\na;x", {}, "must be separated by commas"),
    "no inputs": ("key\na", {}, "no column with the inputs, but 'key'"),
    "inputs twice": ("inputs,prompt\na,b", {}, "several columns for 'inputs'"),
    "a field and a part of it": ("prompt,inputs.uri\na,b", {}, "several columns for 'inputs'"),
    "columns without the file's": ("prompt\na", {"promt": "key"}, r"'promt'.*did you mean 'prompt'"),
    "columns with another field": ("text\na", {"text": "input"}, r"'input'.*did you mean 'inputs'"),
    "a part of the key": ("key.a,prompt\na,b", {}, "unknown column 'key.a'"),
    "no header": ("\n\n", {}, "its first line must name its columns"),
    "a quotation mark without end": ('prompt\na\n"b\nc\n', {}, "row that begins in line 3 is not CSV"),
    "a row without end": ('prompt\na\n"' + "b\n" * (MAX_ITEM_BYTES // 2), {}, "line 3 has more than"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_table_is_an_error(tmp_path: Path, name: str) -> None:
    """What is wrong with a table is an error, at the latest where the rows after it are unknown."""
    content, columns, message = BAD_TABLES[name]
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(FlowInputError, match=message):
        list(BatchItems(tmp_path / "a.csv", columns=columns))


def test_problems_of_a_table(tmp_path: Path) -> None:
    """Rows that are no items are problems with the number of their first line."""
    rows = ["prompt,parameters", "good,", "x", '"a"b,', "x,{low}", ",{}", "a \udcff,", '"last\nrow",']
    (tmp_path / "a.csv").write_bytes("\n".join(rows).encode(errors="surrogateescape"))
    source = BatchItems(tmp_path / "a.csv")
    problems = problems_of(source)
    assert list(problems) == [3, 4, 5, 6, 7]
    assert problems[3] == "its number of cells is 1, not 2 as in the header."
    assert problems[4].startswith("it is not CSV (")
    assert problems[5].startswith("its parameters are not JSON (")
    assert problems[6] == "its inputs are empty."
    assert problems[7] == "it is not valid text in UTF-8."
    assert [item.inputs for item in source if isinstance(item, BatchItem)] == ["good", "last\nrow"]


def test_columns_are_for_tables_only(tmp_path: Path) -> None:
    """An argument that would have no effect is an error."""
    for items in ([CHAIR], write_jsonl(tmp_path / "a.jsonl", [CHAIR]), f"{tmp_path}/*.png"):
        with pytest.raises(FlowInputError, match="columns is for CSV and Parquet files only"):
            BatchItems(items, columns={"a": "inputs"})


@pytest.mark.skipif(not HAS_PYARROW, reason="needs pyarrow")
def test_parquet_file(tmp_path: Path) -> None:
    """Rows of several row groups are items, with structs and with JSON in texts."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = [
        {"prompt": f"chair {n}", "quality": "low", "additional": json.dumps({"n": n})} for n in range(500)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=150)
    source = BatchItems(tmp_path / "a.parquet", columns={"quality": "parameters.quality"})
    items = items_of(source)
    assert [item.row for item in items] == list(range(1, 501))
    assert (items[7].inputs, items[7].parameters, items[7].additional) == (
        "chair 7",
        {"quality": "low"},
        {"n": 7},
    )
    parquet.write_table(
        pa.Table.from_pylist([{"inputs": {"uri": "s3://a/b.png"}}, {"inputs": None}]), tmp_path / "b.parquet"
    )
    first, second = BatchItems(f"file://{tmp_path}/b.parquet")
    assert isinstance(first, BatchItem)
    assert first.inputs == {"uri": "s3://a/b.png"}
    assert isinstance(second, ItemProblem)
    assert second.message == "its inputs are empty."


@pytest.mark.skipif(HAS_PYARROW, reason="pyarrow is installed")
def test_parquet_file_without_pyarrow(tmp_path: Path) -> None:
    """Without its library a Parquet file is an error that names the package."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(FlowInputError, match=r"package pyarrow is not installed.*pip install pyarrow"):
        list(BatchItems(tmp_path / "a.parquet"))


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path, "No such file"),
    "a folder": (lambda path: path.mkdir(), "it is a folder"),
    "a FIFO": (os.mkfifo, "FIFO"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "the files of /dev are no inputs"),
    "a secret of the process": (lambda path: path.symlink_to("/proc/self/environ"), "the files of /proc"),
    "UTF-16": (lambda path: path.write_text('"a"', encoding="utf-16"), "UTF-16. Save it in UTF-8"),
}


@pytest.mark.parametrize("suffix", [suffix for suffix in FILE_FORMATS if suffix != ".parquet"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_an_error(tmp_path: Path, name: str, suffix: str) -> None:
    """A file that cannot be read is an error that names it, and never blocks."""
    create, message = BAD_FILES[name]
    create(tmp_path / f"bad{suffix}")
    with pytest.raises(FlowInputError, match=rf"items names a file that cannot be read \(.*bad.*{message}"):
        list(BatchItems(tmp_path / f"bad{suffix}"))


def test_truncated_gzip_is_an_error(tmp_path: Path) -> None:
    """A compressed file that is incomplete is an error after its readable lines, never a shorter batch."""
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'"a chair"\n' * 100)[:-9])
    with pytest.raises(FlowInputError, match="cannot be read"):
        BatchItems(tmp_path / "a.jsonl.gz").validate()


def test_changed_file_is_an_error(tmp_path: Path) -> None:
    """A file that changes between or during two iterations is an error, which a retry may not have."""
    path = tmp_path / "prompts.jsonl"
    source = BatchItems(write_jsonl(path, [CHAIR, TABLE]))
    assert source.validate() == 2
    status = path.stat()
    write_jsonl(path, [TABLE, CHAIR])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(FlowInputError, match="items changed while the batch was running") as caught:
        list(source)
    assert not caught.value.is_permanent

    rows = iter(BatchItems(str(path)))
    next(rows)
    write_jsonl(path, [TABLE, CHAIR, CHAIR])
    with pytest.raises(FlowInputError, match="items changed"):
        list(rows)


def test_too_many_items_are_an_error(tmp_path: Path) -> None:
    """One item more than the maximum is an error, from a list, an iterator and a file."""
    path = tmp_path / "many.jsonl"
    path.write_text('"a chair"\n' * (MAX_BATCH_ITEMS + 1))
    for items in (str(path), (CHAIR for _ in range(MAX_BATCH_ITEMS + 7))):
        with pytest.raises(FlowInputError, match="more than 100,000 items"):
            BatchItems(items).validate()


def test_memory_of_many_items(tmp_path: Path) -> None:
    """A file of 15,000 items, 30 MB, is checked in a small part of that memory."""
    path = tmp_path / "many.jsonl"
    with path.open("w") as file:
        for number in range(15_000):
            file.write(
                json.dumps({"key": f"chair-{number}", "inputs": f"chair {number} " + "x" * 2_000}) + "\n"
            )
    source = BatchItems(str(path))
    tracemalloc.start()
    try:
        assert source.validate() == 15_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000


def test_file_from_a_url() -> None:
    """A file at a URL is downloaded once, for all iterations, if the connection allows its host."""
    with StubServer(lambda _: StubResponse(200, {}, b'"a chair"\n"a table"\n')) as server:
        source = BatchItems(f"{server.url}/a.jsonl?sig=s3cret.x", hook=GenerioHook("g"))
        assert [item.inputs for item in items_of(source)] == ["a chair", "a table"]
        assert len(server.requests) == 1
        with pytest.raises(FlowInputError, match="only the hook of a service fetches") as caught:
            list(BatchItems(f"{server.url}/a.jsonl?sig=s3cret.x"))
    assert "s3cret" not in str(caught.value)


# Folders.
def test_folder_with_a_pattern(tmp_path: Path) -> None:
    """Each file whose name matches is an item with its name as the key, in the order of the names."""
    for name in ("b.png", "a 1.png", "C.png", ".hidden.png", "d.jpg"):
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "folder.png").mkdir()
    for items in (f"{tmp_path}/*.png", tmp_path / "*.png", f"file://{tmp_path}/*.png"):
        source = BatchItems(items, hook=GenerioHook("g"))
        good = items_of(source)
        assert [item.row for item in good] == [1, 2, 3]
        assert [item.key for item in good] == ["C.png", good[1].key, "b.png"]
        assert re.fullmatch(r"a_1\.png--[0-9a-f]{12}", good[1].key)
        (first,) = parse_inputs(good[1].inputs)
        assert not isinstance(first, str)
    assert [item.key for item in items_of(BatchItems(f"{tmp_path}/[bC].png"))] == ["C.png", "b.png"]
    assert BatchItems(f"{tmp_path}/*.gif").validate() == 0
    with pytest.raises(FlowInputError, match=r"items names a file that cannot be read \(.*nowhere"):
        list(BatchItems(f"{tmp_path}/nowhere/*.png"))


def test_changed_folder_is_an_error(tmp_path: Path) -> None:
    """A file that appears, or changes, between two iterations is an error; other files may change."""
    (tmp_path / "a.png").write_bytes(PNG)
    source = BatchItems(f"{tmp_path}/*.png")
    assert source.validate() == 1
    (tmp_path / "b.jpg").write_bytes(PNG)
    assert source.validate() == 1
    (tmp_path / "b.png").write_bytes(PNG)
    with pytest.raises(FlowInputError, match="items changed"):
        source.validate()


def test_names_that_differ_in_case_are_a_problem(tmp_path: Path) -> None:
    """Two files whose names differ in case only have the same folder on some stores."""
    for name in ("a.png", "A.png"):
        (tmp_path / name).write_bytes(PNG)
    assert problems_of(BatchItems(f"{tmp_path}/*.png")) == {
        2: "its key 'a.png' is also that of file 1; some stores ignore case."
    }


def test_folder_for_variables_is_an_error() -> None:
    """A service whose inputs are variables takes no files of a folder."""
    with pytest.raises(FlowInputError, match="the inputs of this service are variables"):
        BatchItems("s3://shop/photos/*.png", hook=PromptChainerHook("p"))


# A bucket.
@pytest.fixture
def folder(bucket: ObjectServer) -> ObjectStoragePath:
    """Return a folder in an empty bucket."""
    assert bucket.objects() == {}
    return ObjectStoragePath(f"s3://{BUCKET}/shop", conn_id=BUCKET_CONN_ID)


def test_files_in_a_bucket(folder: ObjectStoragePath) -> None:
    """Files are read with `input_conn_id`, the connection in their URI, or that of an ObjectStoragePath."""
    content = json.dumps(CHAIR).encode() + b"\n" + json.dumps(VALUES[1]).encode()
    (folder / "a.jsonl").write_bytes(content)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(content))
    (folder / "c.csv").write_bytes(CSV.encode())
    for name in ("a.jsonl", "b.jsonl.gz", "c.csv"):
        with_connection = f"s3://{BUCKET_CONN_ID}@{BUCKET}/shop/{name}"
        sources = [
            BatchItems(f"s3://{BUCKET}/shop/{name}", BUCKET_CONN_ID),
            BatchItems(with_connection),
            BatchItems(folder / name),
        ]
        assert {tuple(item.key for item in items_of(source)) for source in sources} == {
            tuple(item.key for item in items_of(sources[0]))
        }
        assert len(items_of(sources[0])) == 2


def test_folder_in_a_bucket(folder: ObjectStoragePath) -> None:
    """The objects of a folder are items whose files the same connection opens, without those below it."""
    for name in ("b.png", "a.png", "x.jpg", "below/c.png"):
        (folder / name).write_bytes(PNG + b"1")
    source = BatchItems(f"s3://{BUCKET}/shop/*.png", BUCKET_CONN_ID)
    items = items_of(source)
    assert [(item.key, item.inputs) for item in items] == [
        (name, {"uri": f"s3://{BUCKET}/shop/{name}"}) for name in ("a.png", "b.png")
    ]
    (one,) = parse_inputs(items[0].inputs, BUCKET_CONN_ID)
    assert not isinstance(one, str)
    (own,) = items_of(BatchItems(folder / "b*"))
    assert own.inputs == {"uri": f"s3://{BUCKET_CONN_ID}@{BUCKET}/shop/b.png"}
    (folder / "b.png").write_bytes(PNG + b"2")
    with pytest.raises(FlowInputError, match="items changed"):
        source.validate()


def test_changed_object_is_an_error(folder: ObjectStoragePath) -> None:
    """An object that was replaced by one of the same size is an error."""
    path = folder / "a.jsonl"
    path.write_bytes(b'"a chair"')
    source = BatchItems(path)
    assert source.validate() == 1
    path.write_bytes(b'"a table"')
    with pytest.raises(FlowInputError, match="items changed"):
        source.validate()


@pytest.mark.skipif(not HAS_PYARROW, reason="needs pyarrow")
def test_parquet_file_in_a_bucket(folder: ObjectStoragePath, tmp_path: Path) -> None:
    """A Parquet file is read from a store in the same way."""
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist([{"prompt": CHAIR}, {"prompt": TABLE}]), tmp_path / "a.parquet")
    (folder / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    assert [item.inputs for item in items_of(BatchItems(folder / "a.parquet"))] == [CHAIR, TABLE]


def test_folder_that_is_the_bucket(folder: ObjectStoragePath) -> None:
    """The objects of a bucket without a folder are items, too."""
    (folder.parent / "a.png").write_bytes(PNG)
    (item,) = items_of(BatchItems(f"s3://{BUCKET}/*.png", BUCKET_CONN_ID))
    assert item.inputs == {"uri": f"s3://{BUCKET}/a.png"}


def test_unknown_connection_is_an_error(tmp_path: Path) -> None:
    """An unknown `input_conn_id` is an error, which the file system would ignore, before anything is read."""
    for items in (
        write_jsonl(tmp_path / "a.jsonl", [CHAIR]),
        [{"uri": "s3://shop/a.png"}],
        "s3://shop/*.png",
    ):
        with pytest.raises(FlowInputError, match="input_conn_id is 'no_such_connection'"):
            list(BatchItems(items, "no_such_connection"))


def test_missing_object_is_an_error_without_secrets(folder: ObjectStoragePath) -> None:
    """A missing object, folder or bucket is named; nothing is created."""
    for items in (folder / "no.jsonl", f"s3://{BUCKET_CONN_ID}@nowhere/*.png", f"{folder}/none/*.png"):
        with pytest.raises(FlowInputError, match="items names a file that cannot be read") as caught:
            list(BatchItems(items, BUCKET_CONN_ID))
        assert SECRET not in str(caught.value)
