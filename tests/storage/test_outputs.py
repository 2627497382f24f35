"""Tests of fetched outputs: files written completely or not at all, with safe names, size and digest.

The runs are the emulator's; the targets are real stores, one of which breaks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Connection, ObjectStoragePath
from airflow.sdk.log import redact

from airflow_provider_flows.core.exceptions import FlowNotFound, FlowServiceError
from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.hooks import GenerioHook, PromptChainerHook
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.storage.atomic_file import PartialFile
from airflow_provider_flows.storage.output_options import OutputOptions
from airflow_provider_flows.storage.outputs import MAX_PENDING_POLLS, list_ready_outputs
from airflow_provider_flows.storage.paths import file_names, safe_name
from tests.support.downloads import FileRecords, fetch_or_raise
from tests.support.object_stores import attach_store
from tests.support.scripted_transport import ScriptedTransport, json_response

SAMPLE = "clibnwpno000bmc0k9hvv3y7f"
HOSTILE = [
    "../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b\\c", "nul", "CON.txt", "com1", "\x00", "a\x00b",
    "a\nb", " ", "-rf",
    "x" * 300,
    "~root", "%2e%2e%2f", "a:b|c?d*", "größe", "☃", ".hidden", "trailing.", "$(rm)", "\u202egnp.exe",
]  # fmt: skip

pytestmark = pytest.mark.emulator(run_seconds=0)


@pytest.fixture
def model_run(hook: GenerioHook) -> FlowRun:
    """Create two models."""
    run = hook.start(
        "model_generate_fromprompt",
        ["a chair", {"data": "a table", "additional": {"n": 2}}],
        {"quality": "low"},
    )
    return hook.get_run(run.flow_run_id)


@pytest.fixture
def chain_run(flow_emulator: Emulator) -> FlowRun:
    """Run a chain whose outputs are a picture's link and a text."""
    flow_emulator.run_seconds = 0
    return PromptChainerHook("promptchainer_default").start(SAMPLE, {"color": "Red", "item": "Ball"})


def list_all_files(folder: Path) -> list[Path]:
    """List all files below a folder, hidden ones too."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_outputs_are_written_with_size_and_digest(
    hook: GenerioHook, model_run: FlowRun, tmp_path: Path
) -> None:
    """Each output is a file below output_path and the run's id; its dict has its URI, size and digest."""
    given = fetch_or_raise(hook, model_run, OutputOptions(str(tmp_path))).to_dict()["outputs"]
    assert len(given) == len(list_all_files(tmp_path)) == 2
    for output, path in zip(
        sorted(given, key=lambda output: output["uri"]), list_all_files(tmp_path), strict=True
    ):
        data = path.read_bytes()
        assert (path.parent.name, path.suffix, data[:4]) == (model_run.flow_run_id, ".glb", b"glTF")
        assert output["uri"] == f"file://{path}"
        assert (output["size"], output["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert (output["media_type"], output["status"]) == ("model/gltf-binary", "ready")
    assert [output["additional"] for output in given] == [None, {"n": 2}]


@pytest.mark.parametrize("form", ["{}", "file://{}", "{}/", "file://{}/deeper/still"])
def test_path_in_any_form(hook: GenerioHook, model_run: FlowRun, tmp_path: Path, form: str) -> None:
    """A plain path and a file URI are the same, folders are created, and the returned URI has a scheme."""
    (one, _) = fetch_or_raise(hook, model_run, OutputOptions(form.format(tmp_path))).outputs
    assert str(one.uri).startswith(f"file://{tmp_path}/")
    assert ObjectStoragePath(str(one.uri)).read_bytes()[:4] == b"glTF"


def test_memory_store_works(hook: GenerioHook, model_run: FlowRun) -> None:
    """A store that is no disk takes the files too, and no temporary name is left."""
    files = attach_store("memory")
    run = fetch_or_raise(hook, model_run, OutputOptions("memory://bucket/chairs"))
    assert len(files.store) == 2
    for output in run.outputs:
        assert len(files.cat(str(output.uri))) == output.size


def test_own_file_is_replaced(hook: GenerioHook, model_run: FlowRun, tmp_path: Path) -> None:
    """Fetching a second time replaces the task's own files that have changed, and leaves no second copy."""
    records = FileRecords()
    first = fetch_or_raise(hook, model_run, OutputOptions(str(tmp_path)), records)
    for path in list_all_files(tmp_path):
        path.write_bytes(b"old")
    second = fetch_or_raise(hook, model_run, OutputOptions(str(tmp_path)), records)
    assert second.to_dict() == first.to_dict()
    assert all(path.read_bytes()[:4] == b"glTF" for path in list_all_files(tmp_path))
    assert len(list_all_files(tmp_path)) == 2


def test_same_file_is_used_as_it_is(hook: GenerioHook, model_run: FlowRun, tmp_path: Path) -> None:
    """Fetching a second time without a record, as on an older Airflow, leaves no second copy either."""
    first = fetch_or_raise(hook, model_run, OutputOptions(str(tmp_path)))
    assert fetch_or_raise(hook, model_run, OutputOptions(str(tmp_path))).to_dict() == first.to_dict()
    assert len(list_all_files(tmp_path)) == 2


def write_file(path: ObjectStoragePath, data: bytes) -> None:
    """Write a file as a download does."""
    with PartialFile(path.parent, path.name) as file:
        file.restart()
        file.write(data)
        file.commit(path)


@contextmanager
def small_disk(most: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_no_partial_file(tmp_path: Path) -> None:
    """A failed write leaves neither a partial nor a temporary file, and does not change the old file."""
    path = ObjectStoragePath(f"file://{tmp_path}") / "chair.glb"
    write_file(path, b"old")
    with small_disk(1_000), pytest.raises(OSError, match="too large"):
        write_file(path, b"x" * 100_000)
    assert list_all_files(tmp_path) == [tmp_path / "chair.glb"]
    assert (tmp_path / "chair.glb").read_bytes() == b"old"


def test_failed_store_leaves_no_partial_file(hook: GenerioHook, model_run: FlowRun) -> None:
    """On an object store too, a write that breaks off leaves nothing."""
    files = attach_store("fragile")
    with pytest.raises(OSError, match="No space left"):
        fetch_or_raise(hook, model_run, OutputOptions("fragile://bucket/"))
    assert list(files.store) == []


def test_complete_files_remain_after_a_failed_download(
    flow_emulator: Emulator, hook: GenerioHook, model_run: FlowRun, tmp_path: Path
) -> None:
    """If the second download fails, the first file is complete, and nothing of the second remains."""
    flow_emulator.add_fault(Fault("GET", "*/outputs/*", skip=1, status=404, times=None))
    with pytest.raises(FlowServiceError):
        fetch_or_raise(hook, model_run, OutputOptions(str(tmp_path)))
    (path,) = list_all_files(tmp_path)
    assert path.read_bytes()[:4] == b"glTF"


def test_output_path_that_is_no_folder_is_an_error(
    hook: GenerioHook, model_run: FlowRun, tmp_path: Path
) -> None:
    """A file where the folder should be is an error of the store, and stays as it is."""
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OSError, match="taken"):
        fetch_or_raise(hook, model_run, OutputOptions(str(tmp_path / "taken")))
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_name_becomes_one_harmless_segment(tmp_path: Path, name: str) -> None:
    """Whatever an output's name, its file is in its folder, with a name that every store accepts."""
    safe = safe_name(name)
    assert 0 < len(safe) <= 101
    assert not set(safe) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    assert safe.partition(".")[0].lower() not in {"con", "nul", "com1"}
    assert safe[0] not in ".-"
    assert safe[-1] != "."
    write_file(ObjectStoragePath(f"file://{tmp_path}") / f"{safe}.glb", b"x")
    assert [path.parent for path in list_all_files(tmp_path)] == [tmp_path]


def test_outputs_never_share_a_file() -> None:
    """Outputs whose names are equal, or differ in case or unsafe characters, have separate files."""
    outputs = [FlowOutput(name) for name in ("a", "A", "a", "a-2", "a/b", "a?b", *HOSTILE, *HOSTILE)]
    names = [name.lower() for name in file_names(outputs)]
    assert len(set(names)) == len(names)
    assert names[:3] == ["a", "a-2", "a-3"]


def test_hostile_run_id_stays_below_the_path(hook: GenerioHook, model_run: FlowRun, tmp_path: Path) -> None:
    """Even a run id that climbs does not lead out of output_path."""
    output = model_run.with_outputs(tuple(hook.list_outputs(model_run.flow_run_id))[:1])
    climbing = FlowRun("../../up", "promptchainer", outputs=(FlowOutput("../x", value="kept as text"),))
    assert (
        fetch_or_raise(hook, climbing, OutputOptions(str(tmp_path / "in"))).outputs[0].value == "kept as text"
    )
    assert fetch_or_raise(hook, output, OutputOptions(str(tmp_path / "in"))).outputs[0].size
    assert [path.relative_to(tmp_path).parts[0] for path in list_all_files(tmp_path)] == ["in"]


def list_response(*words: str) -> Any:
    """Return a list of outputs with these statuses."""
    return json_response(
        {"outputs": [{"asset_id": str(number), "status": word} for number, word in enumerate(words)]}
    )


def test_pending_outputs_are_listed_again() -> None:
    """Outputs are listed again with growing delays until none is pending."""
    script = ScriptedTransport(
        list_response("ready", "processing"),
        list_response("ready", "never seen"),
        list_response("ready", "error"),
    )
    assert [output.status for output in script.run(list_ready_outputs(Generio(), "r"))] == ["ready", "error"]
    assert script.sleeps == [0.5, 1.0]


def test_wait_for_a_pending_output_is_bounded(hook: GenerioHook) -> None:
    """After about half a minute a pending output is listed as such, without a file."""
    script = ScriptedTransport(list_response("pending"), endless=True)
    (output,) = script.run(list_ready_outputs(Generio(), "r"))
    assert (output.status, len(script.requests)) == ("pending", MAX_PENDING_POLLS)
    assert 15 < sum(script.sleeps) < 45
    assert fetch_or_raise(
        hook, FlowRun("r", "generio", outputs=(output,)), OutputOptions("/nowhere")
    ).outputs == (output,)


def test_unrequested_content_is_not_in_xcom() -> None:
    """Files in a service's list of outputs are not in the run's dict."""
    given = json_response(
        {"outputs": [{"asset_id": "a", "data": "data:model/gltf-binary;base64," + "A" * 1_000_000}]}
    )
    (output,) = ScriptedTransport(given).run(Generio().list_outputs("r"))
    assert len(json.dumps(output.to_dict())) < 300
    assert output.media_type == "model/gltf-binary"


def test_no_path_lists_the_outputs_and_warns_of_links(
    flow_emulator: Emulator, chain_run: FlowRun, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Without output_path a link remains, with a warning about its expiry and the argument to set."""
    requested = len(flow_emulator.requests)
    with caplog.at_level(logging.WARNING):
        picture, text = fetch_or_raise(
            PromptChainerHook("promptchainer_default"), chain_run, OutputOptions()
        ).outputs
    assert "sig=" in str(picture.value)
    assert (text.is_url, text.uri) == (False, None)
    (record,) = caplog.records
    assert "Set output_path to store the file" in record.getMessage()
    assert "+00:00" in record.getMessage()
    assert "sig=" not in record.getMessage()
    assert len(flow_emulator.requests) == requested
    assert list_all_files(tmp_path) == []


def test_linked_picture_is_saved_without_its_signature(
    chain_run: FlowRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With output_path the picture is a file, and its signature is not in the run's dict or the log."""
    signature = str(chain_run.outputs[0].value).partition("?")[2]
    with caplog.at_level(logging.DEBUG):
        run = fetch_or_raise(
            PromptChainerHook("promptchainer_default"), chain_run, OutputOptions(str(tmp_path))
        )
    given = run.to_dict()["outputs"]
    (path,) = list_all_files(tmp_path)
    assert (path.suffix, path.read_bytes()[:4], given[0]["uri"]) == (".png", b"\x89PNG", f"file://{path}")
    assert given[1]["value"]
    assert "sig=" not in json.dumps(given)
    ours = [
        record.getMessage() for record in caplog.records if record.name.startswith("airflow_provider_flows")
    ]
    assert ours
    assert "sig=" not in "".join(ours)
    assert signature not in str(redact(caplog.text))  # what Airflow writes of the libraries' own debug lines


def test_expired_link_is_reported(flow_emulator: Emulator, chain_run: FlowRun, tmp_path: Path) -> None:
    """An expired signed link is an error that advises to run the flow again, without the signature."""
    flow_emulator.advance(7_200)
    with pytest.raises(FlowNotFound, match=r"not valid any more.*Run the flow again") as caught:
        fetch_or_raise(PromptChainerHook("promptchainer_default"), chain_run, OutputOptions(str(tmp_path)))
    assert "sig=" not in str(caught.value)
    assert list_all_files(tmp_path) == []


def test_failed_output_is_listed_with_its_reason(
    hook: GenerioHook, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed output has no file; its reason is in the dict and in one warning."""
    run = FlowRun("r", "generio", outputs=(FlowOutput("chair", "a", status="error", error="out of clay"),))
    (output,) = fetch_or_raise(hook, run, OutputOptions(str(tmp_path))).to_dict()["outputs"]
    assert (output["status"], output["error"]) == ("error", "out of clay")
    assert "out of clay" in caplog.text
    assert list_all_files(tmp_path) == []


def test_chain_without_outputs_has_none(tmp_path: Path) -> None:
    """A chain whose definition has no outputs has none, and no request is sent."""
    run = ScriptedTransport(json_response([])).run(
        PromptChainerHook("promptchainer_default")
        .create_service({"test_flow": None})
        .start("f", {}, None, None, expected_outputs=())
    )
    assert fetch_or_raise(create_unreachable_hook(), run, OutputOptions(str(tmp_path))).outputs == ()


def create_unreachable_hook() -> PromptChainerHook:
    """Return a hook with a connection to a port that is closed."""
    hook = PromptChainerHook("nobody")
    hook._connection = Connection(
        conn_id="nobody", conn_type="promptchainer", host="http://127.0.0.1:9", password="k"
    )
    return hook


def test_files_are_plain_files(hook: GenerioHook, model_run: FlowRun, tmp_path: Path) -> None:
    """A written file is nothing that can be run."""
    fetch_or_raise(hook, model_run, OutputOptions(str(tmp_path)))
    assert not any(path.stat().st_mode & (stat.S_IXUSR | stat.S_IXGRP) for path in list_all_files(tmp_path))
