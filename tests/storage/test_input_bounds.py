"""Tests of what is no input: FIFOs, devices and files of processes; and of the bounds of inputs and BMPs.

Files are real ones; a FIFO or a device would block a test, or never end.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import socket
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath
from fsspec.implementations.memory import MemoryFile
from PIL import Image

from airflow_provider_flows.cli.parser import get_commands
from airflow_provider_flows.core import limits
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.flow_run import FlowInput, UploadSource
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.storage import file_source
from airflow_provider_flows.storage.inputs import parse_inputs
from tests.support.modes import FLOW
from tests.support.object_stores import FragileFileSystem, attach_store

PNG = b"\x89PNG\r\n\x1a\n"


def create_fifo(folder: Path) -> Path:
    """Create a FIFO, which no process writes to."""
    os.mkfifo(folder / "fifo.png")
    return folder / "fifo.png"


def create_socket(folder: Path) -> Path:
    """Create a socket."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s.png"))
    return folder / "s.png"


def link(target: str) -> Callable[[Path], Path]:
    """Return a function that creates a symbolic link, by way of another one."""

    def create(folder: Path) -> Path:
        (folder / "first").symlink_to(target)
        (folder / "chair.txt").symlink_to(folder / "first")
        return folder / "chair.txt"

    return create


def below_link(target: str, name: str) -> Callable[[Path], Path]:
    """Return a function that creates a link to a folder, and returns a path below it."""

    def create(folder: Path) -> Path:
        (folder / "linked").symlink_to(target)
        return folder / "linked" / name

    return create


# each file that is no input, and why
SPECIAL_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "FIFO": (create_fifo, "it is a FIFO, a socket or a device"),
    "link to a FIFO": (lambda folder: link(str(create_fifo(folder)))(folder), "it is a FIFO"),
    "socket": (create_socket, "it is a FIFO, a socket or a device"),
    "folder": (lambda folder: folder, "it is a folder"),
    "endless device": (lambda _: Path("/dev/zero"), "the files of /dev are no inputs"),
    "empty device": (lambda _: Path("/dev/null"), "the files of /dev are no inputs"),
    "link to a device": (link("/dev/zero"), "the files of /dev are no inputs"),
    "standard input": (lambda _: Path("/dev/stdin"), "are no inputs"),
    "file descriptor": (lambda _: Path("/dev/fd/0"), "are no inputs"),
    "environment": (lambda _: Path("/proc/self/environ"), "the files of /proc are no inputs"),
    "two slashes": (lambda _: Path("//proc/self/environ"), "the files of /proc are no inputs"),
    "dots": (lambda folder: folder / ".." / ("../" * 20) / "proc/self/environ", "the files of /proc are no"),
    "link to the environment": (link("/proc/self/environ"), "the files of /proc are no inputs"),
    "below a link": (below_link("/proc/self", "environ"), "the files of /proc are no inputs"),
    "root folder of a process": (lambda _: Path("/proc/self/root/etc/hosts"), "the files of /proc are no"),
    "current folder of a process": (lambda _: Path("/proc/self/cwd/pyproject.toml"), "the files of /proc"),
    "memory": (lambda _: Path("/proc/self/mem"), "the files of /proc are no inputs"),
    "kernel": (lambda _: Path("/sys/kernel/mm/transparent_hugepage/enabled"), "the files of /sys are no"),
    "link to the kernel": (link("/sys/kernel/mm/transparent_hugepage/enabled"), "the files of /sys are no"),
}


@pytest.mark.parametrize("kind", SPECIAL_FILES)
def test_special_file_is_no_input(tmp_path: Path, kind: str) -> None:
    """Only a regular file is an input: by a Path, an ObjectStoragePath or a URI, also for a variable."""
    create, reason = SPECIAL_FILES[kind]
    path = create(tmp_path)
    ways: list[Any] = [
        path, ObjectStoragePath(f"file://{path}"), {"uri": f"file://{path}"}, {"uri": str(path)},
        {"uri": f"local://{path}"}, {"color": {"uri": f"file://{path}"}},
    ]  # fmt: skip
    for way in ways if kind != "two slashes" else ways[:1]:  # which no URI has
        with pytest.raises(FlowInputError, match="names a file that cannot be read") as caught:
            parse_inputs(way)
        assert reason in str(caught.value)
        assert "PATH=" not in str(caught.value)


def test_files_of_a_process_are_no_input_where_proc_is_mounted_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with a size of 0 that has content is one of a process, whatever the name of its folder is."""
    monkeypatch.setattr(file_source, "PSEUDO_FILE_SYSTEMS", ())
    with pytest.raises(FlowInputError, match="its size is 0, but it has content"):
        parse_inputs(Path("/proc/self/environ"))
    (tmp_path / "empty.txt").touch()
    with pytest.raises(FlowInputError, match="names an empty file"):
        parse_inputs(tmp_path / "empty.txt")


def test_file_that_becomes_a_fifo_does_not_block(tmp_path: Path) -> None:
    """A file that is replaced between its check and its upload is an error, not an endless wait."""
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    (read,) = parse_inputs(path)
    assert isinstance(read, FlowInput)
    assert isinstance(read.data, UploadSource)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FlowInputError, match="it is a FIFO") as caught:
        list(read.data.chunks())
    assert not caught.value.is_permanent


def test_size_of_a_local_file_is_bounded_before_it_is_read(flow_emulator: Emulator, tmp_path: Path) -> None:
    """A file that is too large is rejected at once, and nothing is sent."""
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    os.truncate(path, limits.MAX_INPUT_BYTES + 1)  # it takes no space on the disk
    with pytest.raises(
        FlowInputError, match=f"it is larger than the maximum of {limits.MAX_INPUT_BYTES} bytes"
    ):
        FlowsHook.get_hook("generio_default").start(FLOW, path)
    assert not any(request.method == "POST" for request in flow_emulator.requests)


class EndlessFile(MemoryFile):
    """A file in a store that never ends."""

    def read(self, size: int = -1) -> bytes:
        """Return zeros."""
        return bytes(size)


class EndlessFileSystem(FragileFileSystem):
    """A store in memory whose files do not end."""

    protocol = "memory"
    store: dict[str, Any] = {}  # noqa: RUF012  # fsspec's own way

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        """Open a file."""
        del mode, kwargs
        return EndlessFile(self, path)


def test_file_of_a_store_is_bounded_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without an end, in a store whose sizes cannot be trusted, is rejected at the bound."""
    from airflow.sdk.io import attach

    monkeypatch.setattr(file_source, "MAX_INPUT_BYTES", 1024 * 1024)
    monkeypatch.setenv("AIRFLOW_CONN_ENDLESS", "generic://")
    attach(protocol="memory", conn_id="endless", fs=EndlessFileSystem(skip_instance_cache=True))
    with pytest.raises(FlowInputError, match="it is larger than the maximum of 1048576 bytes"):
        parse_inputs({"uri": "memory://bucket/a.pdf"}, "endless")


COUNT = limits.MAX_INPUTS + 1
TEXT = {"name": "n", "asset_id": None, "status": "ready", "media_type": "text/plain", "value": "x"}
RUN = {"flow_run_id": "r", "state": "completed", "outputs": [TEXT] * (COUNT // 2 + 1)}
TOO_MANY: dict[str, Any] = {
    "prompts": ["a chair"] * COUNT,
    "missing files": [Path("/no/such/file.png")] * COUNT,
    "outputs": [TEXT] * COUNT,
    "outputs of runs": [RUN, RUN],
    "variables": {f"v{number}": "x" for number in range(COUNT)},
}


@pytest.mark.parametrize("kind", TOO_MANY)
def test_number_of_inputs_is_bounded(kind: str) -> None:
    """More inputs than the maximum are one error, and no file is read."""
    with pytest.raises(FlowInputError) as caught:
        parse_inputs(TOO_MANY[kind])
    assert "inputs has more than 10000 items" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("a" * (limits.MAX_TEXT_INPUT_BYTES + 1), r"inputs\[0\] is a text of more than 1048576 bytes"),
        ("ä" * (limits.MAX_TEXT_INPUT_BYTES // 2 + 1), r"inputs\[0\] is a text of more than 1048576 bytes"),
        ({"data": "a " * limits.MAX_TEXT_INPUT_BYTES}, r"inputs\[0\] is a text of more than 1048576 bytes"),
        ({"color": "a" * (limits.MAX_TEXT_INPUT_BYTES + 1)}, r"inputs\['color'\] is a text of more than"),
        (
            {"data": "data:image/png;base64," + "A" * limits.MAX_DATA_URI_BYTES},
            r"inputs\[0\] is a data URI of more than 67108864 bytes",
        ),
    ],
    ids=["prompt", "letters", "data", "variable", "data URI"],
)
def test_length_of_a_text_is_bounded(inputs: Any, message: str) -> None:
    """A prompt, a variable and a data URI have a maximum size; a text of that size is sent."""
    with pytest.raises(FlowInputError, match=message) as caught:
        parse_inputs(inputs)
    assert len(str(caught.value)) < 500
    longest = "a" * limits.MAX_TEXT_INPUT_BYTES
    (read,) = parse_inputs(longest)
    assert isinstance(read, FlowInput)
    assert read.data == longest


def create_bitmap(path: Path, width: int, height: int, mode: str = "RGB") -> bytes:
    """Draw a BMP, and return its content."""
    Image.linear_gradient("L").resize((width, height)).convert(mode).save(path, "BMP")
    return path.read_bytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P"])
def test_bitmap_is_streamed_as_a_png(tmp_path: Path, mode: str) -> None:
    """A BMP file is sent as a PNG with the same pixels, each time it is read; its SHA-256 is its own."""
    path = tmp_path / "a.bmp"
    content = create_bitmap(path, 300, 200, mode)
    digest = hashlib.sha256(content).hexdigest()
    output = {"name": "n", "asset_id": None, "status": "ready", "media_type": "image/bmp", "uri": str(path)}
    for inputs in (path, {**output, "sha256": digest}):
        (read,) = parse_inputs(inputs)
        assert isinstance(read, FlowInput)
        assert isinstance(read.data, UploadSource)
        png = b"".join(read.data.chunks())
        assert png == b"".join(read.data.chunks())
        assert (read.data.media_type, read.data.size) == ("image/png", len(png))
        assert read.data.digest == hashlib.sha256(png).hexdigest()
        with Image.open(io.BytesIO(png)) as image, Image.open(path) as original:
            assert image.format == "PNG"
            assert image.convert("RGB").tobytes() == original.convert("RGB").tobytes()
    with pytest.raises(FlowInputError, match="changed since its task wrote it"):
        parse_inputs({**output, "sha256": "0" * 64})


def test_bitmap_that_changed_is_not_sent(tmp_path: Path) -> None:
    """A BMP that was replaced since the inputs were read is a transient error in place of its last chunk."""
    create_bitmap(tmp_path / "a.bmp", 30, 20)
    (read,) = parse_inputs(tmp_path / "a.bmp")
    assert isinstance(read, FlowInput)
    assert isinstance(read.data, UploadSource)
    for replace in (
        lambda: create_bitmap(tmp_path / "a.bmp", 31, 20),
        lambda: (tmp_path / "a.bmp").write_bytes(b"BM and a text"),
    ):
        replace()
        with pytest.raises(FlowInputError) as caught:
            list(read.data.chunks())
        assert not caught.value.is_permanent


def bitmap_header(width: int, height: int, header_size: int = 40, compression: int = 0) -> bytes:
    """Return the header of a BMP."""
    info = struct.pack("<IiiHHIIiiII", header_size, width, height, 1, 24, compression, 0, 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54) + info


HOSTILE_BITMAPS = {
    "too many pixels": (bitmap_header(100_000, 100_000), "pixels"),
    "more than the maximum": (bitmap_header(8192, 4097), "pixels"),
    "compressed pixels": (bitmap_header(60_000, 60_000, compression=1) + b"\xff\x00" * 100, "pixels"),
    "long header": (bitmap_header(1, 1, header_size=2**31), "its header has"),
    "header of the file's size": (bitmap_header(1, 1, header_size=60_000_000), "its header has"),
    "truncated": (bitmap_header(100, 100) + b"x" * 50, "cannot be read"),
    "no size": (bitmap_header(0, 0), "cannot be read"),
    "negative size": (bitmap_header(-5, 5), "cannot be read"),
    "picture inside": (bitmap_header(5, 5, compression=4) + PNG, "cannot be read"),
    "only a header": (bitmap_header(5, 5)[:30], "cannot be read"),
}


@pytest.mark.parametrize("kind", HOSTILE_BITMAPS)
def test_hostile_bitmap_is_rejected_in_little_memory(tmp_path: Path, kind: str) -> None:
    """A BMP that cannot be converted, or has too many pixels, is an error; neither it nor they are loaded."""
    start, reason = HOSTILE_BITMAPS[kind]
    path = tmp_path / "a.bmp"
    path.write_bytes(start)
    if "truncated" not in kind and "only" not in kind:
        os.truncate(path, 60_000_000)
    data_uri = f"data:image/bmp;base64,{base64.b64encode(start).decode()}"
    Image.init()
    for inputs in (path, {"data": data_uri}):
        tracemalloc.start()
        with pytest.raises(FlowInputError, match=r"inputs\[0\] is a BMP image that cannot be read") as caught:
            parse_inputs(inputs)
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert reason in str(caught.value)
        assert memory < 8 * limits.MIB


def test_help_of_the_command_line_names_files_with_an_at_sign() -> None:
    """The help of `run` documents `@PATH` and `@URI` for files."""
    (group,) = get_commands()
    (command,) = [command for command in group.subcommands if command.name == "run"]
    (option,) = [arg for arg in command.args if "--input" in arg.flags]  # type: ignore[union-attr]
    assert "-i @chair.png" in option.kwargs["help"]
    assert "-i @s3://bucket/chair.png" in option.kwargs["help"]


@pytest.fixture(autouse=True)
def _memory_store() -> None:
    attach_store("memory")
