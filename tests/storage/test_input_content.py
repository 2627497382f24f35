"""Tests that a file or data URI that is not what it is called, or is truncated, is rejected before a run.

Pictures are drawn by Pillow; nothing is sent.
"""

from __future__ import annotations

import base64
import io
import mimetypes
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.payload.data_uri import Content
from airflow_provider_flows.core.payload.integrity import TruncationDetector
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.storage.inputs import parse_inputs
from tests.support.downloads import glb


def sent(inputs: Any) -> list[str]:
    """Return what is sent for each input."""
    read = parse_inputs(inputs)
    assert isinstance(read, list)
    return [
        item.data
        if isinstance(item.data, str)
        else data_uri.encode(Content(b"".join(item.data.chunks()), item.data.media_type))
        for item in read
    ]


def uri(media_type: str, content: bytes) -> str:
    """Write a data URI as documented."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def drawn(format_name: str) -> bytes:
    """Draw a picture with as many details as make it some kilobytes."""
    buffer = io.BytesIO()
    Image.effect_noise((60, 40), 60).convert("RGB").save(buffer, format_name)
    return buffer.getvalue()


# complete files of each media type that is known by its first bytes, by their names
COMPLETE = {
    "chair.glb": glb(3000),
    "chair.png": drawn("PNG"),
    "chair.jpg": drawn("JPEG"),
    "chair.tiff": drawn("TIFF"),
    "chair.webp": drawn("WEBP"),
    "chair.gif": drawn("GIF"),
    "chair.bmp": drawn("BMP"),
}
LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f\n"
    b"size 142564\n"
)
PAGE = b"\n<!DOCTYPE html>\n<html><title>Sign in</title></html>"
# what may be in a file under the name of another one, and how the error calls it
OTHERS = {
    "pointer": (LFS_POINTER, "a Git LFS or git-annex pointer"),
    "annex": (b"/annex/objects/SHA256E-s142564--4d7a.glb\n", "a Git LFS or git-annex pointer"),
    "page": (PAGE, "an HTML page"),
    "empty": (b"", "an empty file"),
    "error": (b'{"error": "not found"}', "JSON"),
    "bucket error": (b'<?xml version="1.0"?><Error/>', "an XML document"),
    "text": ("ein Stuhl für zwei".encode(), "a text"),
    "archive": (b"PK\x03\x04" + bytes(100), "a ZIP archive"),
    "compressed": (b"\x1f\x8b\x08" + bytes(100), "compressed with gzip"),
    "noise": (b"\x00\x01" * 100, "of an unknown type"),
}


@pytest.mark.parametrize("name", COMPLETE)
def test_file_of_another_type_than_its_name_says_is_rejected(
    flow_emulator: Emulator, tmp_path: Path, name: str
) -> None:
    """A file of a known type by name must begin like one; the error says which it is, and should be."""
    hook, path = GenerioHook("generio_default"), tmp_path / name
    kind = data_uri.sniff(COMPLETE[name])
    others = {**OTHERS}
    if name != "chair.glb":  # a picture may be named as another kind of picture
        others["model"] = (COMPLETE["chair.glb"], "model/gltf-binary")
    else:
        others["picture"] = (COMPLETE["chair.png"], "image/png")
    for other, (content, reason) in others.items():
        path.write_bytes(content)
        for inputs in (path, {"uri": f"file://{path}"}):
            with pytest.raises(FlowInputError) as caught:
                hook.start("model_optimize", inputs, validate=False)
            message = str(caught.value)
            assert "inputs[0]" in message
            assert str(path) in message
            assert reason in message, other
            assert other == "empty" or f"but its name says {kind}" in message
    assert flow_emulator.requests == ()


@pytest.mark.parametrize("name", ["model.stl", "model.obj", "report.pdf", "prompt.txt", "notes.md", "noname"])
def test_pointer_to_a_file_is_rejected_under_any_name(tmp_path: Path, name: str) -> None:
    """A pointer to a file is never what is meant, whatever its name; nor is a page, except a text."""
    path = tmp_path / name
    path.write_bytes(LFS_POINTER)
    for inputs in (path, {"color": {"uri": f"file://{path}"}}):
        with pytest.raises(FlowInputError, match=r"a Git LFS or git-annex pointer \(git lfs pull"):
            parse_inputs(inputs)
    path.write_bytes(PAGE)
    if name in {"prompt.txt", "notes.md"}:
        assert sent(path)
    else:
        with pytest.raises(FlowInputError, match="an HTML page"):
            parse_inputs(path)


# names of types that the first bytes do not prove: what such a file may begin with, and what it may not
UNPROVEN: dict[str, tuple[list[bytes], list[str]]] = {
    "chair.gltf": (
        [b'{"asset": {"version": "2.0"}}', glb(3000)],
        ["bucket error", "text", "archive", "noise"],
    ),
    "chair.obj": ([b"# a chair\nv 0 0 0\n"], ["error", "bucket error", "archive", "noise"]),
    "chair.stl": ([b"solid chair\n", bytes(84)], ["error", "bucket error", "archive"]),
    "chair.zip": ([b"PK\x03\x04" + bytes(30)], ["error", "bucket error", "text", "compressed", "noise"]),
    "chair.pdf": ([b"%PDF-1.7"], ["error", "bucket error", "text", "archive"]),
    "chair.heic": ([b"\0\0\0\x18ftypheic"], ["error", "bucket error", "text", "archive"]),
    "chair.txt": ([b"A chair", PAGE, OTHERS["error"][0]], ["noise", "archive", "compressed"]),
}


@pytest.mark.parametrize("name", UNPROVEN)
def test_file_that_cannot_be_what_its_name_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A file whose type has no one signature is refused if it begins as none of that type does."""
    for extension, media_type in (
        (".gltf", "model/gltf+json"),
        (".obj", "model/obj"),
        (".stl", "model/stl"),
        (".heic", "image/heic"),
    ):
        monkeypatch.setitem(mimetypes.types_map, extension, media_type)  # not known to every system
    path, (accepted, refused) = tmp_path / name, UNPROVEN[name]
    for content in accepted:
        path.write_bytes(content)
        assert sent(path)
    for other in refused:
        path.write_bytes(OTHERS[other][0])
        with pytest.raises(FlowInputError, match=r"whose content is .*says|is not UTF-8 or has zero bytes"):
            parse_inputs(path)


@pytest.mark.parametrize("name", COMPLETE)
def test_file_that_is_truncated_is_rejected(flow_emulator: Emulator, tmp_path: Path, name: str) -> None:
    """A file that ends before its own structure does is rejected; a longer one is sent as a complete one."""
    hook, path, content = GenerioHook("generio_default"), tmp_path / name, COMPLETE[name]
    for size in (18, 40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(FlowInputError, match=rf"{re.escape(str(path))}.*is truncated|cannot be read"):
            hook.start("model_optimize", path, validate=False)
        with pytest.raises(FlowInputError, match=r"inputs\[0\] is a (data URI that is truncated|BMP)"):
            parse_inputs({"data": uri(str(data_uri.sniff(content)), content[:size])})
    assert flow_emulator.requests == ()
    for more in (b"", b"\x00", b"and more"):
        path.write_bytes(content + more)
        assert sent(path) != []


def test_pictures_of_every_kind_are_complete() -> None:
    """Pictures of Pillow, fed a byte or a chunk at a time, are complete at their end, and not before."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("JPEG", {"progressive": True}), ("JPEG", {"quality": 5}), ("JPEG", {"optimize": True}),
        ("PNG", {"optimize": True}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"}),
        ("WEBP", {"lossless": True}), ("GIF", {"interlace": 0}),
    ]  # fmt: skip
    for format_name, options in kinds:
        buffer = io.BytesIO()
        Image.effect_noise((50, 70), 90).save(buffer, format_name, **options)
        content = buffer.getvalue()
        for step in (1, 7, len(content)):
            detector = TruncationDetector(data_uri.sniff(content))
            for start in range(0, len(content), step):
                assert detector.is_truncated or start < 16
                detector.feed(content[start : start + step])
            assert not detector.is_truncated, (format_name, options)


@pytest.mark.parametrize("declared", ["", "application/octet-stream", "text/plain", "image/gif", "IMAGE/JPG"])
@pytest.mark.parametrize("name", ["chair.png", "chair.jpg", "chair.webp"])
def test_media_type_of_a_data_uri_is_detected_by_content(name: str, declared: str) -> None:
    """A data URI with no media type or a wrong one has that of its content, as a file has."""
    content = COMPLETE[name]
    assert sent({"data": uri(declared, content)}) == [uri(str(data_uri.sniff(content)), content)]


def test_data_uri_of_another_kind_is_rejected(flow_emulator: Emulator) -> None:
    """A data URI whose content is not of its media type is rejected, as is one that cannot be decoded."""
    hook = GenerioHook("generio_default")
    model = COMPLETE["chair.glb"]
    assert (
        sent({"data": uri("", model)})
        == sent({"data": uri("application/octet-stream", model)})
        == [uri("model/gltf-binary", model)]
    )
    for text, reason in (
        (uri("image/png", model), "model/gltf-binary, but its media type says image/png"),
        (uri("model/gltf-binary", PAGE), "an HTML page, but its media type says model/gltf-binary"),
        (uri("model/gltf-binary", LFS_POINTER), "pointer"),
        (uri("", PAGE), "an HTML page"),
        (uri("image/png", b""), "without content"),
        (uri("text/plain", b"\xff\xfe"), "not UTF-8"),
        ("data:image/png;base64,iVBORw0KG", "cannot be decoded"),
        ("data:base64,Z2xURgIAAAA=", "cannot be decoded"),
    ):
        with pytest.raises(FlowInputError, match=reason) as caught:
            hook.start("model_optimize", {"data": text}, validate=False)
        assert "inputs[0] is a data URI" in str(caught.value)
    assert flow_emulator.requests == ()
    assert sent({"data": "data:text/plain;base64,QlM="}) == ["BS"]
    small_model = b"glTF" + bytes([2, 0, 0, 0, 24, 0, 0, 0, 4, 0, 0, 0]) + b"JSON{}  "  # it is valid UTF-8
    assert sent({"data": uri("text/plain", small_model)}) == [uri("model/gltf-binary", small_model)]
    assert sent({"data": "data:,GIF89a%20is%20old"}) == ["GIF89a is old"]
    assert sent({"data": uri("application/pdf", b"%PDF-1.7")}) == [uri("application/pdf", b"%PDF-1.7")]
