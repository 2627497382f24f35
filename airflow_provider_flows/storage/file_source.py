"""Files as inputs: what one is, its size and its digest, found in one pass; then its bytes, as often as it is sent.

Which input names a file is for inputs.py to say, how its bytes stand in a request's body for flow/body.py.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.payload.data_uri import Content
from airflow_provider_flows.core.signed_urls import unsigned

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_flows.core.run import Source

CHUNK = 192 * 1024  # a multiple of 3: no chunk needs bytes of the next one to be written as base64
BLOCK = 8 * 1024 * 1024  # what a file system fetches at a time; s3fs would take 50 MiB and keep them
LONGEST_TEXT = 1024 * 1024
LONGEST_NAME = 2000  # characters of a name that are told; what was meant as content may stand there
LOCAL = frozenset({"", "file", "local"})


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file that goes out a chunk at a time, and only as it was when the inputs were read.

    :param where: the argument that names it, such as `inputs[0]`.
    """

    where: str
    path: Path | ObjectStoragePath
    media_type: str
    size: int
    digest: str

    def chunks(self) -> Iterator[bytes]:
        """Give the content from its beginning; the last chunk only if all of it is what it was.

        :raises FlowInputError: it cannot be read any more, or has changed; a retry of the task reads it anew.
        """
        digest, size, held = hashlib.sha256(), 0, b""
        for chunk in _chunks(self.where, self.path, lasting=False):
            size += len(chunk)
            if size > self.size:
                break
            digest.update(chunk)
            if held:
                yield held
            held = chunk
        if size != self.size or digest.hexdigest() != self.digest:
            message = (
                f"{self.where} names a file that changed since the start ({shown(self.path)}): it is not what it was when it was "
                f"read first ({self.size} bytes). No flow run was started. Run the task again when nobody writes to the file"
            )
            raise FlowInputError(message, lasting=False)
        yield held


def file_data(where: str, named: Any, conn_id: str | None) -> str | Source:
    """Look into a file and give it as it is sent: a text whole, anything else as a source.

    :param where: the argument that names it, for messages.
    :param named: a pathlib.Path, an ObjectStoragePath or a URI.
    :param conn_id: the Airflow connection of its store, unless it names one itself or is local.
    :raises FlowInputError: it cannot be read, is empty, or nothing tells what it is.
    """
    path = _path(where, named, conn_id)
    chunks = _chunks(where, path)
    first = next(chunks, b"")
    if not first:
        message = f"{where} names an empty file ({shown(path)})"
        raise FlowInputError(message)
    media_type = data_uri.sniff(first, path.name)
    if media_type is None:
        message = f"{where}: neither its content nor its name tells what {shown(path)} is; give it a usual name such as chair.png"
        raise FlowInputError(message)
    if media_type == "text/plain":
        return _text(where, path, first, chunks)
    if media_type == "image/bmp":
        return in_memory(where, Content(b"".join((first, *chunks)), media_type))
    digest, size = hashlib.sha256(first), len(first)
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return FileSource(where, path, media_type, size, digest.hexdigest())


def file_text(where: str, named: Any, conn_id: str | None) -> str:
    """Read a text file whole.

    :raises FlowInputError: it cannot be read, is too long, or is no text.
    """
    path = _path(where, named, conn_id)
    chunks = _chunks(where, path)
    first = next(chunks, b"")
    media_type = data_uri.sniff(first, path.name) or "text/plain"
    if not media_type.startswith("text/") and media_type != "application/json":
        message = f"{where} names a file of type {media_type} ({shown(path)}), where a text is wanted"
        raise FlowInputError(message)
    return _text(where, path, first, chunks)


def in_memory(where: str, content: Content) -> str:
    """Give content as it is sent: a text is a prompt (vendor-api G-15), a BMP becomes a PNG (G-11), the rest is a data URI."""
    if content.media_type == "text/plain":
        return content.data.decode()
    return data_uri.encode(_as_png(where, content) if content.media_type == "image/bmp" else content)


def shown(path: Path | ObjectStoragePath | str) -> str:
    """Give a file's name as it may be told: without the credentials or the signature that a URI may carry, and not too long."""
    return _plain(str(path))


def _plain(text: str) -> str:
    plain = re.sub(r"(https?://[^\s?]*)\?\S*", r"\1", re.sub(r"(?<=://)[^\s/@]*@", "", unsigned(text)))
    return plain if len(plain) <= LONGEST_NAME else f"{plain[:LONGEST_NAME]}..."


def conn_id_of(path: ObjectStoragePath) -> str | None:
    """Give the Airflow connection that a path names; Airflow 3.1 has no attribute for it."""
    named: str | None = path.serialize()["conn_id"]
    return named


def _path(where: str, named: Any, conn_id: str | None) -> Path | ObjectStoragePath:
    if isinstance(named, PurePath) and not hasattr(
        named, "protocol"
    ):  # to the letter: as URIs some names would say another thing
        return Path(named)
    from airflow.sdk import ObjectStoragePath  # heavy, and only needed where there is such a file

    try:
        path = named if isinstance(named, ObjectStoragePath) else ObjectStoragePath(str(named))
        if conn_id and conn_id_of(path) is None and path.protocol not in LOCAL:
            return ObjectStoragePath(str(path), conn_id=conn_id)
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(where, str(named), error) from None
    return path


def _chunks(where: str, path: Any, *, lasting: bool = True) -> Iterator[bytes]:
    """Read a file, a chunk at a time.

    :raises FlowInputError: it cannot be read.
    """
    try:
        with path.open("rb", **({"block_size": BLOCK} if hasattr(path, "conn_id") else {})) as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except Exception as error:  # noqa: BLE001  # every store's library has errors of its own
        raise _unreadable(where, path, error, lasting=lasting) from None


def _unreadable(
    where: str, path: Path | ObjectStoragePath | str, error: Exception, *, lasting: bool = True
) -> FlowInputError:
    told = _plain(str(error)) or type(error).__name__
    return FlowInputError(
        f"{where} names a file that cannot be read ({shown(path)}): {told}", lasting=lasting
    )


def _text(where: str, path: Path | ObjectStoragePath, first: bytes, rest: Iterator[bytes]) -> str:
    read = bytearray(first)
    while len(read) <= LONGEST_TEXT and (chunk := next(rest, b"")):
        read += chunk
    if len(read) > LONGEST_TEXT:
        message = (
            f"{where} names a text file of more than {LONGEST_TEXT} bytes ({shown(path)}), which is too long for a "
            "prompt. If it is none, give it a name that tells what it is"
        )
        raise FlowInputError(message)
    try:
        return read.decode()
    except UnicodeDecodeError as error:
        message = f"{where} names a text file that is not UTF-8 ({shown(path)}): {error}"
        raise FlowInputError(message) from None


def _as_png(where: str, bitmap: Content) -> Content:
    """Convert a BMP, which the newest documentation takes no more (vendor-api G-11), with Pillow if it is installed."""
    try:
        from PIL import Image
    except ImportError:
        message = (
            f"{where} is a BMP image, which the service does not take. Save it as PNG, or install "
            "airflow-provider-flows[images], which converts it"
        )
        raise FlowInputError(message) from None
    png = io.BytesIO()
    try:
        Image.open(io.BytesIO(bitmap.data)).save(png, "PNG")
    except (OSError, Image.DecompressionBombError) as error:
        message = f"{where} is a BMP image that cannot be read: {error}"
        raise FlowInputError(message) from error
    return Content(png.getvalue(), "image/png")
