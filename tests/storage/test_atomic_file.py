"""Tests of atomic writes: what is on the disk before a file has its name, and what a killed process left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_flows.storage.atomic_file import open_stored_file
from airflow_provider_flows.storage.output_options import OutputOptions
from tests.support.downloads import data_uri_body, fetch_or_raise, glb, hook_to, list_files, run_of, send_body
from tests.support.servers import MisbehavingServer

CONTENT = glb(300_000)
COMPLETE_BODY = data_uri_body(CONTENT)
PART = ".chair.0123abcd.part"

pytestmark = pytest.mark.usefixtures("no_proxy")


def test_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary file is synced, then its folder after the rename, because the run may be deleted next."""
    synced: list[tuple[str, int, list[str]]] = []
    sync = os.fsync

    def seen(number: int) -> None:
        sync(number)
        name = Path(f"/proc/self/fd/{number}").readlink()
        synced.append((name.suffix, name.stat().st_size if name.is_file() else 0, list_files(tmp_path)))

    monkeypatch.setattr(os, "fsync", seen)
    with MisbehavingServer(send_body(COMPLETE_BODY)) as misbehaving:
        fetch_or_raise(hook_to(misbehaving.url), run_of("chair"), OutputOptions(str(tmp_path)))
    (file, folder) = synced
    assert file[:2] == (".part", len(CONTENT))
    assert folder == ("", 0, ["r/chair.glb"])


def test_stale_temporary_files_are_removed(tmp_path: Path) -> None:
    """Temporary files of the same outputs go; whatever else lies in the folder stays."""
    (tmp_path / "r").mkdir()
    others = [
        ".chairs.0123abcd.part",
        ".chair.part",
        "chair.0123abcd.part",
        ".chair.0123abcd.part.txt",
        ".table.0123abcd.part",
    ]
    for name in (PART, ".chair.ffffffff.part", *others):
        (tmp_path / "r" / name).write_bytes(b"half")
    with MisbehavingServer(send_body(COMPLETE_BODY)) as misbehaving:
        fetch_or_raise(hook_to(misbehaving.url), run_of("chair"), OutputOptions(str(tmp_path)))
    assert list_files(tmp_path) == sorted(f"r/{name}" for name in ("chair.glb", *others))


def test_only_a_regular_file_of_the_folder_is_opened(tmp_path: Path) -> None:
    """Links, folders and pipes in the folder are refused at once, and so is a link in place of the folder."""
    (tmp_path / "folder").mkdir()
    names = {"file": b"x", "other": b"y"}
    for name, content in names.items():
        (tmp_path / "folder" / name).write_bytes(content)
    (tmp_path / "folder" / "link").symlink_to("file")
    (tmp_path / "folder" / "sub").mkdir()
    os.mkfifo(tmp_path / "folder" / "pipe")
    (tmp_path / "linked").symlink_to("folder")
    folder = ObjectStoragePath((tmp_path / "folder").as_uri())
    with open_stored_file(folder / "file", folder) as file:
        assert file.read() == b"x"
    for name in ("link", "sub", "pipe", "missing"):
        with pytest.raises(OSError, match=name):
            open_stored_file(folder / name, folder)
    linked = ObjectStoragePath((tmp_path / "linked").as_uri())
    with pytest.raises(OSError, match="linked"):
        open_stored_file(linked / "file", linked)
