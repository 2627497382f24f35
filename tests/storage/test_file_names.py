"""Tests that no two runs share a folder, and that a file of another run is never replaced."""

from __future__ import annotations

import hashlib
import re
from itertools import combinations
from pathlib import Path

import pytest
from airflow.sdk import ObjectStoragePath
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun
from airflow_provider_flows.storage.output_options import OutputOptions
from airflow_provider_flows.storage.outputs import fetch_outputs
from airflow_provider_flows.storage.paths import MAX_FILE_NAME_LENGTH, file_names, get_run_folder, safe_name
from tests.support.bucket import BUCKET, BUCKET_CONN_ID, ObjectServer
from tests.support.downloads import FileRecords, data_uri_body, fetch_or_raise, glb, hook_to, list_files
from tests.support.servers import StubResponse, StubServer

pytestmark = pytest.mark.usefixtures("no_proxy")

UNCHANGED = [
    "6b01",
    "6b01-2",
    "a.b",
    "0b7c5c1e-0b0f-4b7e-9d41-2f8a1c3d5e7f",
    "x" * MAX_FILE_NAME_LENGTH,
    "a--b",
]
# ids that differ only in what a store, or a safe name, does not distinguish
ALIKE = {
    "unsafe characters": ["6b01", "./6b01", "/6b01", "6b01/", "6b01.", "../6b01", " 6b01", "6b01\n", "_6b01"],
    "inner characters": ["a_b", "a/b", "a b", "a\\b", "a:b", "a__b", "a%2Fb", "a//b", "a\0b"],
    "case": ["6b01", "6B01", "6b01 ", "6B01 "],
    "length": ["x" * 100, "x" * 101, "x" * 102, "x" * 250, "x" * 100 + "/"],
    "Unicode forms": ["\uff45", "e\u0301", "é", "e", "ß", "ss", "ẞ", "\u212a", "K", "k", "ﬁ", "fi"],
    "reserved names": ["con", "CON", "_con", "con.", "con.txt", "nul", "com1"],
    "empty": ["", ".", "..", "_", "-", "/", "\u200b", "---"],
    "digests": ["a/b", safe_name("a/b"), safe_name(safe_name("a/b")), safe_name("a/b").upper()],
}
TEXTS = (
    st.text(max_size=130)
    | st.text("ab/._-AB", max_size=6)
    | st.from_regex(r"a?--[0-9a-f]{12}", fullmatch=True)
)


def folder_name(flow_run_id: str) -> str:
    """Return the name of a run's folder."""
    return str(get_run_folder(FlowRun(flow_run_id, "generio"), "memory://bucket", None).name)


@pytest.mark.parametrize("kind", ALIKE)
def test_runs_with_similar_ids_have_different_folders(kind: str) -> None:
    """Each id has its own folder, also where upper and lower case are the same."""
    ids = ALIKE[kind]
    # a run's id is one line, so two ids that differ in control characters are the same id
    names = [folder_name(key).lower() for key in ids if key.isprintable()]
    assert len(set(names)) == len(names)
    assert len({safe_name(key) for key in ids}) == len(ids)
    assert all(len(name) <= MAX_FILE_NAME_LENGTH for name in names)
    assert all(re.fullmatch(r"[a-z0-9_][a-z0-9._-]*", name) for name in names)


@pytest.mark.parametrize("name", UNCHANGED)
def test_safe_names_are_unchanged(name: str) -> None:
    """An id as services have them is the name of the folder."""
    assert (safe_name(name), folder_name(name)) == (name, name)


@given(TEXTS, TEXTS)
@example("a/b", safe_name("a/b"))
def test_safe_names_are_injective(first: str, second: str) -> None:
    """Two different texts never have the same safe name, and a safe name is one harmless segment."""
    names = safe_name(first), safe_name(second)
    assert (names[0] == names[1]) == (first == second)
    assert all(0 < len(name) <= MAX_FILE_NAME_LENGTH for name in names)
    assert all(name[0] not in ".-" and name[-1] != "." for name in names)


def test_output_keeps_its_name_in_any_order() -> None:
    """Outputs that differ in unsafe characters have the same file names however the service sorts them."""
    outputs = [FlowOutput(name) for name in ("a b", "a/b", "a_b", "a?b")]
    expected = {output.name: name for output, name in zip(outputs, file_names(outputs), strict=True)}
    outputs.reverse()
    assert {one.name: name for one, name in zip(outputs, file_names(outputs), strict=True)} == expected


def run_of(flow_run_id: str, service: str = "generio") -> FlowRun:
    """Return a run with one output."""
    return FlowRun(flow_run_id, service, outputs=(FlowOutput("chair", asset_id="a"),))


def serve(content: bytes) -> StubServer:
    """Return a service that has this file in each of its runs."""
    return StubServer(lambda _: StubResponse(body=data_uri_body(content)))


def store_all(runs: dict[int, FlowRun], options: OutputOptions) -> list[FlowOutput]:
    """Store the outputs of runs at services of their own, whose file has the size that is the key."""
    stored = list[FlowOutput]()
    for size, run in runs.items():
        with serve(glb(size)) as server:
            stored += fetch_or_raise(hook_to(server.url), run, options, FileRecords()).outputs
    return stored


@pytest.mark.parametrize("ids", list(combinations(["6b01", "./6b01", "6B01", "6b01/"], 2)), ids=" and ".join)
def test_run_of_another_service_replaces_nothing(tmp_path: Path, ids: tuple[str, str]) -> None:
    """Two services below one output_path have runs with similar ids; each file remains."""
    first, second = store_all({1_000: run_of(ids[0]), 2_000: run_of(ids[1])}, OutputOptions(str(tmp_path)))
    assert len({str(first.uri).lower(), str(second.uri).lower()}) == 2
    sizes = [ObjectStoragePath(str(one.uri)).stat().st_size for one in (first, second)]
    assert sizes == [1_000, 2_000]


def test_run_with_the_same_id_replaces_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where services have the same id, the second file has its digest in its name; the log says so."""
    runs = {1_000: run_of("7"), 2_000: run_of("7", "brewery")}
    first, second = store_all(runs, OutputOptions(str(tmp_path)))
    digest = hashlib.sha256(glb(2_000)).hexdigest()
    assert list_files(tmp_path) == [f"7/chair--{digest[:12]}.glb", "7/chair.glb"]
    assert (first.size, second.size, second.sha256) == (1_000, 2_000, digest)
    assert ObjectStoragePath(str(first.uri)).read_bytes() == glb(1_000)
    assert ObjectStoragePath(str(second.uri)).read_bytes() == glb(2_000)
    assert "7/chair.glb is a file of something else, and is not replaced" in caplog.text


def test_object_of_another_run_is_not_replaced(bucket: ObjectServer) -> None:
    """The same in an object store, also if the first file appears after its folder was listed."""
    options = OutputOptions(f"s3://{BUCKET}/x", BUCKET_CONN_ID)
    folder = get_run_folder(run_of("7"), str(options.output_path), BUCKET_CONN_ID)
    assert not folder.exists()
    store_all({1_000: run_of("7"), 2_000: run_of("7", "brewery")}, options)
    assert sorted(len(content) for content in bucket.objects().values()) == [1_000, 2_000]
    assert len(bucket.objects()["x/7/chair.glb"]) == 1_000


def test_retry_finds_the_file_under_its_other_name(tmp_path: Path) -> None:
    """A retry uses the file that has its digest in its name, and replaces it if it has changed."""
    options, records = OutputOptions(str(tmp_path)), FileRecords()
    (tmp_path / "7").mkdir()
    (tmp_path / "7/chair.glb").write_bytes(b"somebody's")
    with serve(glb(2_000)) as server:
        for damage in (False, False, True):
            if damage:
                next((tmp_path / "7").glob("chair--*")).write_bytes(b"damaged")
            (output,) = fetch_or_raise(hook_to(server.url), run_of("7"), options, records).outputs
            assert ObjectStoragePath(str(output.uri)).read_bytes() == glb(2_000)
        requests = len(server.requests)
    assert requests == 2  # at first, and after the damage
    assert len(list_files(tmp_path)) == 2
    assert (tmp_path / "7/chair.glb").read_bytes() == b"somebody's"


def test_no_file_is_replaced_if_both_names_are_taken(tmp_path: Path) -> None:
    """The output states an error that names both files and what to do; nothing is lost."""
    digest = hashlib.sha256(glb(2_000)).hexdigest()
    (tmp_path / "7").mkdir()
    taken = [tmp_path / "7/chair.glb", tmp_path / f"7/chair--{digest[:12]}.glb"]
    for path in taken:
        path.write_bytes(b"somebody's")
    with serve(glb(2_000)) as server:
        run, error = fetch_outputs(hook_to(server.url), run_of("7"), OutputOptions(str(tmp_path)))
    assert isinstance(error, FileExistsError)
    assert run.outputs[0].status == "error"
    for expected in ("output chair", "flow run 7", *map(str, taken), "set another output_path"):
        assert expected in str(run.outputs[0].error)
    assert [path.read_bytes() for path in taken] == [b"somebody's"] * 2
    assert len(list_files(tmp_path)) == 2
