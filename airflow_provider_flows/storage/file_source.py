"""Files as inputs: what one is, its size and its digest, found in one pass; then its bytes, as often as it is sent.

Which input names a file is for inputs.py to say, how its bytes stand in a request's body for flow/body.py.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.payload.data_uri import Content
from airflow_provider_flows.core.redaction import redact_path, redact_text

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_flows.core.run import UploadSource

INPUT_CHUNK_BYTES = (
    192 * 1024
)  # a multiple of 3: no chunk needs bytes of the next one to be written as base64
INPUT_BLOCK_BYTES = (
    8 * 1024 * 1024
)  # what a file system fetches at a time; s3fs would take 50 MiB and keep them
MAX_TEXT_INPUT_BYTES = 1024 * 1024
LOCAL_SCHEMES = frozenset({"", "file", "local"})


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
        digest, size, pending = hashlib.sha256(), 0, b""
        for chunk in _iter_file_chunks(self.where, self.path, is_permanent=False):
            size += len(chunk)
            if size > self.size:
                break
            digest.update(chunk)
            if pending:
                yield pending
            pending = chunk
        if size != self.size or digest.hexdigest() != self.digest:
            message = (
                f"{self.where} names a file that changed since the start ({redact_path(self.path)}): it is not what it was when it was "
                f"read first ({self.size} bytes). No flow run was started. Run the task again when nobody writes to the file"
            )
            raise FlowInputError(message, is_permanent=False)
        yield pending


def file_data(where: str, path_or_uri: Any, conn_id: str | None) -> str | UploadSource:
    """Look into a file and give it as it is sent: a text whole, anything else as a source.

    :param where: the argument that names it, for messages.
    :param path_or_uri: a pathlib.Path, an ObjectStoragePath or a URI.
    :param conn_id: the Airflow connection of its store, unless it names one itself or is local.
    :raises FlowInputError: it cannot be read, is empty, or nothing tells what it is.
    """
    path = _resolve_path(where, path_or_uri, conn_id)
    chunks = _iter_file_chunks(where, path)
    first = next(chunks, b"")
    if not first:
        message = f"{where} names an empty file ({redact_path(path)})"
        raise FlowInputError(message)
    media_type = data_uri.sniff(first, path.name)
    if media_type is None:
        message = f"{where}: neither its content nor its name tells what {redact_path(path)} is; give it a usual name such as chair.png"
        raise FlowInputError(message)
    if media_type == "text/plain":
        return _load_text(where, path, first, chunks)
    if media_type == "image/bmp":
        return encode_content(where, Content(b"".join((first, *chunks)), media_type))
    digest, size = hashlib.sha256(first), len(first)
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return FileSource(where, path, media_type, size, digest.hexdigest())


def file_text(where: str, path_or_uri: Any, conn_id: str | None) -> str:
    """Read a text file whole.

    :raises FlowInputError: it cannot be read, is too long, or is no text.
    """
    path = _resolve_path(where, path_or_uri, conn_id)
    chunks = _iter_file_chunks(where, path)
    first = next(chunks, b"")
    media_type = data_uri.sniff(first, path.name) or "text/plain"
    if not media_type.startswith("text/") and media_type != "application/json":
        message = f"{where} names a file of type {media_type} ({redact_path(path)}), where a text is wanted"
        raise FlowInputError(message)
    return _load_text(where, path, first, chunks)


def encode_content(where: str, content: Content) -> str:
    """Give content as it is sent: a text is a prompt (vendor-api G-15), a BMP becomes a PNG (G-11), the rest is a data URI."""
    if content.media_type == "text/plain":
        return content.data.decode()
    return data_uri.encode(_to_png(where, content) if content.media_type == "image/bmp" else content)


def get_conn_id(path: ObjectStoragePath) -> str | None:
    """Give the Airflow connection that a path names; Airflow 3.1 has no attribute for it."""
    conn_id: str | None = path.serialize()["conn_id"]
    return conn_id


def _resolve_path(where: str, path_or_uri: Any, conn_id: str | None) -> Path | ObjectStoragePath:
    if isinstance(path_or_uri, PurePath) and not hasattr(
        path_or_uri, "protocol"
    ):  # to the letter: as URIs some names would say another thing
        return Path(path_or_uri)
    from airflow.sdk import ObjectStoragePath  # heavy, and only needed where there is such a file

    try:
        path = (
            path_or_uri if isinstance(path_or_uri, ObjectStoragePath) else ObjectStoragePath(str(path_or_uri))
        )
        if conn_id and get_conn_id(path) is None and path.protocol not in LOCAL_SCHEMES:
            return ObjectStoragePath(str(path), conn_id=conn_id)
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable_error(where, str(path_or_uri), error) from None
    return path


def _iter_file_chunks(where: str, path: Any, *, is_permanent: bool = True) -> Iterator[bytes]:
    """Read a file, a chunk at a time.

    :raises FlowInputError: it cannot be read.
    """
    try:
        with path.open(
            "rb", **({"block_size": INPUT_BLOCK_BYTES} if hasattr(path, "conn_id") else {})
        ) as file:
            while chunk := file.read(INPUT_CHUNK_BYTES):
                yield chunk
    except Exception as error:  # noqa: BLE001  # every store's library has errors of its own
        raise _unreadable_error(where, path, error, is_permanent=is_permanent) from None


def _unreadable_error(
    where: str, path: Path | ObjectStoragePath | str, error: Exception, *, is_permanent: bool = True
) -> FlowInputError:
    detail = redact_text(str(error)) or type(error).__name__
    return FlowInputError(
        f"{where} names a file that cannot be read ({redact_path(path)}): {detail}", is_permanent=is_permanent
    )


def _load_text(where: str, path: Path | ObjectStoragePath, first: bytes, rest: Iterator[bytes]) -> str:
    content = bytearray(first)
    while len(content) <= MAX_TEXT_INPUT_BYTES and (chunk := next(rest, b"")):
        content += chunk
    if len(content) > MAX_TEXT_INPUT_BYTES:
        message = (
            f"{where} names a text file of more than {MAX_TEXT_INPUT_BYTES} bytes ({redact_path(path)}), which is too long for a "
            "prompt. If it is none, give it a name that tells what it is"
        )
        raise FlowInputError(message)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        message = f"{where} names a text file that is not UTF-8 ({redact_path(path)}): {error}"
        raise FlowInputError(message) from None


def _to_png(where: str, bitmap: Content) -> Content:
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
