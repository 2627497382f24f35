"""Tests of the manifest of a batch and of its failed items, on disk and in a bucket of an S3 server."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath

import airflow_provider_flows
from airflow_provider_flows.core.batch import BatchItem, ItemProblem
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.flow_run import FlowOutput
from airflow_provider_flows.core.limits import MAX_BATCH_ITEMS, MAX_MANIFEST_LINE_BYTES
from airflow_provider_flows.storage.batch_items import BatchItems
from airflow_provider_flows.storage.batch_manifest import (
    MANIFEST_TOO_LARGE,
    MAX_STATES,
    MIN_WASTED_BYTES,
    BatchManifest,
    ManifestIndex,
    ManifestLine,
    hash_run,
    read_manifest,
)
from tests.support.bucket import (
    BUCKET,
    BUCKET_CONN_ID,
    SECRET,
    ObjectServer,
    RestrictedStore,
    connection_json,
)

OUTPUT = FlowOutput("chair", uri="s3://shop/chair/chair.glb", size=7, sha256="0" * 64).to_dict()
LINES = [
    ManifestLine(
        "chair", "completed", "r-1", [OUTPUT], None, 1, "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"
    ),
    ManifestLine("table", "failed", "r-2", error="no wood: \N{DEER} \N{LINE SEPARATOR} \ud83d", attempts=2),
    ManifestLine("000003-1a2b3c4d", "invalid", error="it is not JSON"),
    ManifestLine("lamp", "completed", "r-0", [OUTPUT], reused=True),
]
FIELDS = [
    "key",
    "state",
    "flow_run_id",
    "outputs",
    "error",
    "attempts",
    "started_at",
    "finished_at",
    "reused",
]


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str | None]:
    """Return an output path, which does not exist yet, and the connection of its store."""
    if request.param == "disk":
        return f"file://{tmp_path}/out", None
    request.getfixturevalue("bucket")
    return f"s3://{BUCKET}/out", BUCKET_CONN_ID


def list_names(place: tuple[str, str | None]) -> list[str]:
    """Return the names of all files in the output path, also of temporary ones."""
    folder = ObjectStoragePath(place[0], conn_id=place[1])
    folder.fs.invalidate_cache()
    return sorted(path.name for path in folder.iterdir())


def test_manifest_has_the_latest_line_of_each_item(place: tuple[str, str | None]) -> None:
    """The lines are in the order of the items, each with all fields, and no other file is left."""
    manifest = BatchManifest(*place)
    for row, line in reversed(list(enumerate(LINES, 1))):
        manifest.record(ManifestLine(line.key, "running", "r"), row)
        manifest.record(line, row)
    uri = manifest.write()
    assert uri == f"{place[0]}/manifest.jsonl"
    rows = list(read_manifest(uri, place[1]))
    assert [list(row) for row in rows] == [FIELDS] * 4
    assert [row["key"] for row in rows] == [line.key for line in LINES]
    assert rows[0] == {**rows[0], "state": "completed", "outputs": [OUTPUT], "attempts": 1, "reused": False}
    assert rows[1]["error"] == "no wood: \N{DEER} \N{LINE SEPARATOR} \N{REPLACEMENT CHARACTER}"
    assert manifest.get("table") == rows[1]
    assert (manifest.get("nothing"), len(manifest)) == (None, 4)

    manifest.record(ManifestLine("table", "completed", "r-3"), 2)
    manifest.write()
    assert [row["flow_run_id"] for row in read_manifest(uri, place[1])] == ["r-1", "r-3", None, "r-0"]
    assert list_names(place) == ["manifest.jsonl"]


def test_another_try_loads_the_manifest(place: tuple[str, str | None]) -> None:
    """A later try goes on with the lines of the earlier one, also with fields of a later version."""
    assert BatchManifest(*place).load() == 0
    earlier = BatchManifest(*place)
    for row, line in enumerate(LINES, 1):
        earlier.record(line, row)
    earlier.write()
    path = ObjectStoragePath(earlier.uri, conn_id=place[1])
    path.write_bytes(path.read_bytes().replace(b'"key":"lamp"', b'"key":"lamp","cost":{"usd":0.5}'))

    later = BatchManifest(*place)
    assert later.load() == len(later) == 4
    later.record(ManifestLine("table", "completed", "r-9"), 2)
    rows = list(read_manifest(later.write(), place[1]))
    assert [row["flow_run_id"] for row in rows] == ["r-1", "r-9", None, "r-0"]
    assert rows[3]["cost"] == {"usd": 0.5}


def test_failed_items_are_the_items_of_another_batch(place: tuple[str, str | None], tmp_path: Path) -> None:
    """The file has the items in the form that `items` takes, so that another batch has the same ones."""
    values: list[Any] = [
        {
            "key": "chair",
            "inputs": "a red chair \N{DEER}",
            "parameters": {"quality": "low"},
            "additional": [1],
        },
        "a table without a key",
        [tmp_path / "photo.png", "a lamp"],
        {"key": "a bad key", "inputs": "a bed"},
        {"inputs": "a bench", "additional": float("nan")},
    ]
    source = BatchItems(values)
    uri = BatchManifest(*place).write_failed_items(source)
    again = list(BatchItems(uri, place[1]))
    good = [item for item in source if isinstance(item, BatchItem)]
    assert [item.key for item in again[:3]] == [item.key for item in good]
    assert [item.to_dict() for item in again if isinstance(item, BatchItem)] == [
        good[0].to_dict(),
        good[1].to_dict(),
        {**good[2].to_dict(), "inputs": [{"uri": str(tmp_path / "photo.png")}, "a lamp"]},
    ]
    # what is wrong with an item is still wrong with it, and an item without a form in JSON has no line
    assert [(item.row, item.message) for item in again if isinstance(item, ItemProblem)] == [
        (4, next(item.message for item in source if isinstance(item, ItemProblem)))
    ]
    assert list_names(place) == ["failed.jsonl"]
    assert BatchManifest(*place).write_failed_items([]) == uri
    assert BatchItems(uri, place[1]).validate() == 0


BAD_LINES = {
    "text": b"not JSON",
    "half a line": b'{"key":"a","st',
    "a list": b"[1]",
    "no key": b'{"state":"completed"}',
    "no state": b'{"key":"a"}',
    "not UTF-8": b'{"key":"\xff","state":"failed"}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_broken_line_is_an_error_with_its_number(tmp_path: Path, name: str) -> None:
    """The lines before a broken one are read; the error says which one it is and what to do."""
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(b'{"key":"a","state":"completed"}\n\n' + BAD_LINES[name] + b"\n")
    lines = read_manifest(str(path))
    assert next(lines) == {"key": "a", "state": "completed"}
    with pytest.raises(
        FlowInputError, match=r"Line 3 of .*manifest\.jsonl.*Correct or remove it, or run"
    ) as caught:
        next(lines)
    assert "not JSON" not in str(caught.value)
    with pytest.raises(FlowInputError, match="Line 3 of"):
        BatchManifest(str(tmp_path)).load()


def test_missing_manifest_is_an_error(tmp_path: Path) -> None:
    """A manifest that does not exist is named."""
    with pytest.raises(FlowInputError, match=r"manifest names a file that cannot be read \(.*none\.jsonl\)"):
        list(read_manifest(f"file://{tmp_path}/none.jsonl"))


def test_unknown_connection_is_an_error() -> None:
    """An unknown connection is an error, which the file system would ignore."""
    with pytest.raises(FlowInputError, match="conn_id is 'no_such_connection'"):
        read_manifest(f"s3://{BUCKET}/manifest.jsonl", "no_such_connection")


def test_package_exports_the_reader_lazily() -> None:
    """`read_manifest` is in the package, which does not import it before."""
    assert airflow_provider_flows.read_manifest is read_manifest


def test_failed_write_leaves_the_manifest_before(
    bucket: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that rejects a write is an OSError without secrets; the next write has all lines."""
    is_broken = threading.Event()
    with RestrictedStore(bucket.port, lambda method, _: method == "PUT" and is_broken.is_set()) as store:
        monkeypatch.setenv("AIRFLOW_CONN_RESTRICTED", connection_json(store.url))
        manifest = BatchManifest(f"s3://{BUCKET}/out", "restricted")
        manifest.record(LINES[0], 1)
        manifest.write()
        is_broken.set()
        manifest.record(LINES[1], 2)
        with pytest.raises(OSError, match="manifest") as caught:
            manifest.write()
        assert SECRET not in str(caught.value)
        assert len(list(read_manifest(manifest.uri, BUCKET_CONN_ID))) == 1
        is_broken.clear()
        manifest.write()
        assert len(list(read_manifest(manifest.uri, BUCKET_CONN_ID))) == 2


def test_temporary_files_of_a_killed_try_are_removed(tmp_path: Path) -> None:
    """What a killed process has left of the two files is removed; other files are not."""
    (tmp_path / ".manifest.jsonl.0123abcd.part").write_text("x")
    (tmp_path / ".chair.0123abcd.part").write_text("x")
    assert BatchManifest(str(tmp_path)).load() == 0
    assert [path.name for path in tmp_path.iterdir()] == [".chair.0123abcd.part"]


def test_readers_and_writers_in_several_threads(tmp_path: Path) -> None:
    """While lines are recorded and written, a reader finds complete manifests only."""
    manifest, stop, counts = BatchManifest(str(tmp_path)), threading.Event(), []
    manifest.record(ManifestLine("k0", "running", error="x" * 2_000), 0)
    manifest.write()

    def read() -> None:
        while not stop.is_set():
            counts.append(len(list(read_manifest(manifest.uri))))

    def record(start: int) -> None:
        for number in range(start, start + 200):
            manifest.record(ManifestLine(f"k{number}", "running", error="x" * 2_000), number)
            manifest.get(f"k{number}")

    threads = [threading.Thread(target=record, args=(start,)) for start in (0, 200)]
    reader = threading.Thread(target=read)
    for thread in (reader, *threads):
        thread.start()
    while any(thread.is_alive() for thread in threads):
        manifest.write()
    manifest.write()
    stop.set()
    reader.join()
    assert counts == sorted(counts)
    assert [row["key"] for row in read_manifest(manifest.uri)] == [f"k{number}" for number in range(400)]


def test_replaced_lines_do_not_fill_the_disk(tmp_path: Path) -> None:
    """The temporary file of the lines has a bound, however often they are replaced."""
    manifest, text = BatchManifest(str(tmp_path)), "x" * 1024 * 1024
    sizes = []
    for number in range(40):
        manifest.record(ManifestLine(f"k{number % 3}", "running", error=f"{number} {text}"), number % 3)
        manifest.write()
        sizes.append(manifest._spool.file.seek(0, 2))
    assert max(sizes) < MIN_WASTED_BYTES + 8 * len(text)
    assert [int(row["error"].partition(" ")[0]) for row in read_manifest(manifest.uri)] == [39, 37, 38]


def test_memory_of_many_lines(tmp_path: Path) -> None:
    """10,000 lines of 2 KB, 20 MB, take a small part of that memory, to record, to write and to read."""
    manifest = BatchManifest(str(tmp_path))
    tracemalloc.start()
    try:
        for number in range(10_000):
            manifest.record(ManifestLine(f"chair-{number}", "completed", "r", [OUTPUT], "x" * 1_700), number)
        manifest.write()
        assert sum(1 for _ in read_manifest(manifest.uri)) == 10_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "manifest.jsonl").stat().st_size > 18_000_000
    assert peak < 12_000_000


def test_index_finds_each_line(place: tuple[str, str | None]) -> None:
    """The index has keys, states and runs of all lines; a line that was replaced meanwhile is left out."""
    manifest, folder = BatchManifest(*place), ObjectStoragePath(place[0], conn_id=place[1])
    for row, line in enumerate(LINES, 1):
        manifest.record(line, row)
    manifest.write()
    index = ManifestIndex.load(folder)
    assert index.uri == manifest.uri
    assert [key.decode() for key in index.get_keys()] == [line.key for line in LINES]
    assert [index.state_names[state] for state in index.states] == [line.state for line in LINES]
    assert [*index.runs] == [hash_run(line.key, line.flow_run_id) for line in LINES]
    rows = list(read_manifest(manifest.uri, place[1]))
    assert index.load_lines(folder, [3, 1]) == {1: rows[1], 3: rows[3]}
    manifest.record(ManifestLine("table", "completed", "r-3"), 2)
    manifest.write()
    folder.fs.invalidate_cache()
    assert index.load_lines(folder, range(4)) == {0: rows[0]}


@pytest.mark.parametrize(
    ("seconds", "rate"),
    [([], None), ([0, 10], None), ([5, 5, 5], None), ([0, 10, 20], 0.1), ([0, 1000, 1010, 1020], 0.1)],
)
def test_rate_is_that_of_the_last_minutes(tmp_path: Path, seconds: list[int], rate: float | None) -> None:
    """It counts the items that have ended within ten minutes of the last one."""
    manifest = BatchManifest(str(tmp_path))
    for number, second in enumerate(seconds):
        finished_at = f"2026-01-01T00:{second // 60:02}:{second % 60:02}Z"
        manifest.record(ManifestLine(f"k{number}", "completed", finished_at=finished_at), number)
    manifest.write()
    assert ManifestIndex.load(ObjectStoragePath(f"file://{tmp_path}")).rate == rate


@pytest.mark.parametrize("kind", ["lines", "line"])
def test_index_has_bounds(tmp_path: Path, kind: str) -> None:
    """A file with too many lines, or with one that is too long, is rejected."""
    line = b'{"key":"k","state":"completed"}\n'
    content = line * (MAX_BATCH_ITEMS + 1) if kind == "lines" else b" " * MAX_MANIFEST_LINE_BYTES + line
    (tmp_path / "manifest.jsonl").write_bytes(content)
    with pytest.raises(FlowInputError) as caught:
        ManifestIndex.load(ObjectStoragePath(f"file://{tmp_path}"))
    assert str(caught.value) == MANIFEST_TOO_LARGE


def test_index_of_many_states(tmp_path: Path) -> None:
    """Of a file that another program has written, the states have a bound."""
    lines = [f'{{"key":"k{number}","state":"s{number}"}}\n' for number in range(300)]
    (tmp_path / "manifest.jsonl").write_text("".join(lines))
    index = ManifestIndex.load(ObjectStoragePath(f"file://{tmp_path}"))
    assert (len(index.state_names), index.state_names[-1]) == (MAX_STATES + 1, "unknown")


def test_memory_of_an_index(tmp_path: Path) -> None:
    """100,000 lines, 40 MB, have an index of a few MB, and the lines of a page are read alone."""
    filler = "x" * 300
    line = '{{"key":"chair-{0}","state":"completed","flow_run_id":"r{0}","error":"{1}"}}\n'
    with (tmp_path / "manifest.jsonl").open("w") as file:
        file.writelines(line.format(number, filler) for number in range(MAX_BATCH_ITEMS))
    folder = ObjectStoragePath(f"file://{tmp_path}")
    tracemalloc.start()
    try:
        index = ManifestIndex.load(folder)
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        numbers = range(MAX_BATCH_ITEMS - 50, MAX_BATCH_ITEMS)
        rows = index.load_lines(folder, numbers)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [row["flow_run_id"] for row in rows.values()] == [
        f"r{number}" for number in range(99_950, 100_000)
    ]
    assert size < 5_000_000
    assert peak < 20_000_000
