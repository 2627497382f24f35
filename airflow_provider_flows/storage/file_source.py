"""Files as inputs: their type, size and digest, detected in one pass, and their content for each upload."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote_to_bytes

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.limits import (
    MAX_BITMAP_HEADER_BYTES,
    MAX_BITMAP_PIXELS,
    MAX_INPUT_BYTES,
    MAX_TEXT_INPUT_BYTES,
)
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.payload.data_uri import Content
from airflow_provider_flows.core.payload.integrity import TruncationDetector
from airflow_provider_flows.core.redaction import redact_path, redact_text
from airflow_provider_flows.storage.paths import LOCAL_SCHEMES, get_conn_id

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_flows.core.service import Service

INPUT_CHUNK_BYTES = 192 * 1024  # a multiple of 3, so that each chunk is encoded as base64 by itself
INPUT_BLOCK_BYTES = 8 * 1024 * 1024  # the read-ahead of a file system; that of s3fs is 50 MiB by default
PSEUDO_FILE_SYSTEMS = ("/proc", "/sys", "/dev")  # what is read there is of the machine or a process
NAME, DATA_URI = "name", "media type"  # what declares the type of content


class InputHook(Protocol):
    """What of a hook the inputs need."""

    @property
    def service(self) -> Service:
        """The service of the hook's connection."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file that is sent a chunk at a time, if it has not changed since the inputs were read.

    :param where: the argument that names the file, such as `inputs[0]`.
    :param size: in bytes.
    :param digest: the hexadecimal SHA-256 of the content.
    """

    where: str
    path: Path | ObjectStoragePath
    media_type: str
    size: int
    digest: str

    @property
    def file_digest(self) -> str:
        """The digest of the file itself, also if it is converted before it is sent."""
        return self.digest

    def chunks(self) -> Iterator[bytes]:
        """Yield the content from its start, the last chunk only if all of the content is unchanged.

        :raises FlowInputError: the file cannot be read, or has changed. A retry of the task reads it again.
        """
        digest, size, pending = hashlib.sha256(), 0, b""
        for chunk in self._read():
            size += len(chunk)
            if size > self.size:
                break
            digest.update(chunk)
            if pending:
                yield pending
            pending = chunk
        if size != self.size or digest.hexdigest() != self.digest:
            message = (
                f"{self.where} names a file that changed since the start ({redact_path(self.path)}): its "
                f"content differs from the {self.size} bytes that were read first. No flow run was started. "
                "Run the task again when no other program writes to the file"
            )
            raise FlowInputError(message, is_permanent=False)
        yield pending

    def _read(self) -> Iterator[bytes]:
        return _iter_file_chunks(self.where, self.path, is_permanent=False)


@dataclass(frozen=True, slots=True)
class BitmapSource(FileSource):
    """A BMP that is sent as a PNG, whose size and digest these are. It is converted each time it is read.

    :param bitmap_digest: the digest of the BMP.
    """

    bitmap_digest: str

    @property
    def file_digest(self) -> str:
        """The digest of the BMP."""
        return self.bitmap_digest

    def _read(self) -> Iterator[bytes]:
        return _iter_png_chunks(self.where, self.path, is_permanent=False)


def load_file(where: str, path_or_uri: Any, conn_id: str | None) -> str | FileSource:
    """Read a file, and return it in the form in which it is sent, a text as a prompt, any other as a source.

    :param where: the argument that names the file, for messages.
    :param path_or_uri: a pathlib.Path, an ObjectStoragePath or a URI.
    :param conn_id: the Airflow connection of the file's store, unless the path names one or is local.
    :raises FlowInputError: the file cannot be read, is empty, truncated or larger than MAX_INPUT_BYTES, is of
        an unknown type, or is not of the type that its name indicates.
    """
    path = _resolve_path(where, path_or_uri, conn_id)
    chunks = _iter_file_chunks(where, path)
    first = next(chunks, b"")
    if not first:
        raise FlowInputError(f"{where} names an empty file ({redact_path(path)})")
    subject = f"{where} names a file ({redact_path(path)})"
    media_type = _detect_media_type(subject, first, data_uri.sniff(b"", path.name), NAME)
    if media_type is None:
        raise FlowInputError(
            f"{where} names a file of an unknown type ({redact_path(path)}): neither its content nor its "
            "name indicates one. Give it a usual name such as chair.png"
        )
    if media_type == "text/plain":
        return _read_text(where, path, first, chunks)
    digest, size, truncation_detector = hashlib.sha256(first), len(first), TruncationDetector(media_type)
    truncation_detector.feed(first)
    for chunk in chunks:
        digest.update(chunk)
        truncation_detector.feed(chunk)
        size += len(chunk)
    if truncation_detector.is_truncated:
        raise _truncation_error(subject, media_type, size)
    if media_type == "image/bmp":
        return _load_bitmap(where, path, digest.hexdigest())
    return FileSource(where, path, media_type, size, digest.hexdigest())


def _load_bitmap(where: str, path: Path | ObjectStoragePath, bitmap_digest: str) -> BitmapSource:
    digest, size = hashlib.sha256(), 0
    for chunk in _iter_png_chunks(where, path):
        digest.update(chunk)
        size += len(chunk)
    return BitmapSource(where, path, "image/png", size, digest.hexdigest(), bitmap_digest)


def load_variable_file(where: str, path_or_uri: Any, conn_id: str | None) -> str | FileSource:
    """Read a file that is the value of a variable: a text as `load_text_file` does, any other as `load_file`.

    :raises FlowInputError: as `load_file`.
    """
    path = _resolve_path(where, path_or_uri, conn_id)
    is_text = _is_text_media_type(data_uri.sniff(b"", path.name))
    return load_text_file(where, path, conn_id) if is_text else load_file(where, path, conn_id)


def _is_text_media_type(media_type: str | None) -> bool:
    return media_type is not None and (media_type.startswith("text/") or media_type == "application/json")


def load_text_file(where: str, path_or_uri: Any, conn_id: str | None) -> str:
    """Read a text file, and return its content. The parameters are those of `load_file`.

    :raises FlowInputError: the file cannot be read, is too large, or is not a text.
    """
    path = _resolve_path(where, path_or_uri, conn_id)
    chunks = _iter_file_chunks(where, path)
    first = next(chunks, b"")
    subject = f"{where} names a file ({redact_path(path)})"
    media_type = _detect_media_type(subject, first, data_uri.sniff(b"", path.name), NAME) or "text/plain"
    if not _is_text_media_type(media_type):
        raise FlowInputError(
            f"{where} names a file of type {media_type} ({redact_path(path)}), but a text is expected"
        )
    return _read_text(where, path, first, chunks)


def identify_content(where: str, content: Content) -> Content:
    """Return the content of a data URI with the media type that its first bytes indicate, or else its own.

    :raises FlowInputError: the content is empty, is not of the URI's media type, or is truncated.
    """
    subject, data, declared = f"{where} is a data URI", content.data, content.media_type
    if not data.strip():
        raise FlowInputError(f"{subject} without content")
    if declared == "text/plain" and _is_text(data):  # also one that begins like a picture, but not a GLB
        return content
    media_type = _detect_media_type(subject, data[:INPUT_CHUNK_BYTES], declared, DATA_URI)
    if media_type == "text/plain":
        raise FlowInputError(f"{subject} of a text, but its content is not UTF-8 or has zero bytes")
    truncation_detector = TruncationDetector(media_type)
    truncation_detector.feed(data)
    if truncation_detector.is_truncated:
        raise _truncation_error(subject, media_type, len(data))
    return Content(data, media_type)


def _detect_media_type(subject: str, start: bytes, declared: str | None, source: str) -> str | None:
    """Return the media type of the first bytes, or else the declared one. A picture may be of another kind.

    :param declared: the media type that the file's name or data URI declares.
    :param source: NAME or DATA_URI, for the message.
    :raises FlowInputError: the content contradicts the declared type, or is a pointer or page in its place.
    """
    sniffed = data_uri.sniff(start)
    is_other_picture = (declared or "").startswith("image/") and (sniffed or "").startswith("image/")
    is_wrong = declared in data_uri.SNIFFABLE_MEDIA_TYPES and sniffed != declared and not is_other_picture
    expected_content = data_uri.EXPECTED_CONTENT.get(declared or "")
    if expected_content is not None:
        is_wrong = data_uri.describe_content(start) not in expected_content
    foreign = data_uri.sniff_foreign(start)
    is_page = foreign == data_uri.HTML_PAGE and not re.match(r"text/|.*html", declared or "")
    if not is_wrong and foreign != data_uri.POINTER and not is_page:
        return sniffed or declared
    expected = f", but its {source} says {declared}" if declared else ""
    actual = data_uri.describe_content(start)
    raise FlowInputError(f"{subject} whose content is {actual}{expected}. Replace it with the right one")


def _truncation_error(subject: str, media_type: str | None, size: int) -> FlowInputError:
    return FlowInputError(
        f"{subject} that is truncated: it has {size} bytes, and its {media_type} structure continues after "
        "them. Copy it from its source again"
    )


def _is_text(data: bytes | bytearray) -> bool:
    """Return whether this is UTF-8 without zero bytes, which binary files and UTF-16 have."""
    if b"\0" in data:
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def encode_content(where: str, content: Content) -> str:
    """Return content in the form in which it is sent, a text as a prompt, any other content as a data URI.

    A BMP is converted to a PNG (vendor_notes.md, G-11 and G-15).

    :raises FlowInputError: a BMP cannot be converted.
    """
    if content.media_type == "text/plain":
        return content.data.decode()
    if content.media_type == "image/bmp":
        png = io.BytesIO()
        _convert_bitmap(where, io.BytesIO(content.data), png)
        return data_uri.encode(Content(png.getvalue(), "image/png"))
    return data_uri.encode(content)


def _resolve_path(where: str, path_or_uri: Any, conn_id: str | None) -> Path | ObjectStoragePath:
    is_local_path = isinstance(path_or_uri, PurePath) and not hasattr(path_or_uri, "protocol")
    if is_local_path:  # not an ObjectStoragePath, which parses some valid file names as URIs
        return Path(path_or_uri)
    from airflow.sdk import ObjectStoragePath  # slow to import

    def with_connection(path: ObjectStoragePath) -> ObjectStoragePath:
        if conn_id and get_conn_id(path) is None and path.protocol not in LOCAL_SCHEMES:
            return ObjectStoragePath(str(path), conn_id=conn_id)
        return path

    try:
        if isinstance(path_or_uri, ObjectStoragePath):
            return with_connection(path_or_uri)
        path = with_connection(ObjectStoragePath(str(path_or_uri)))
        decoded_uri = _decode_percent(str(path_or_uri))
        if decoded_uri is None:
            return path
        decoded_path = with_connection(ObjectStoragePath(decoded_uri))
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable_error(where, str(path_or_uri), error) from None
    return _choose_path(where, path, decoded_path)


def _decode_percent(uri: str) -> str | None:
    """Return a URI with its escapes (`%20`) decoded; None if it has none, or its server decodes them."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme in {"http", "https"} or not re.search("%[0-9A-Fa-f]{2}", rest):
        return None
    return f"{scheme}://{os.fsdecode(unquote_to_bytes(os.fsencode(rest)))}"


def _choose_path(where: str, path: ObjectStoragePath, decoded_path: ObjectStoragePath) -> ObjectStoragePath:
    """Return the literal path if that exists, else the percent-decoded one if that exists.

    The URIs of this provider's outputs, and those of object stores, are literal; those of
    `pathlib.Path.as_uri` are percent-encoded.

    :raises FlowInputError: both are local files, so that the URI is ambiguous.
    """
    try:
        exists = path.exists()
        if exists and path.protocol not in LOCAL_SCHEMES:  # a second request would be wasted
            return path
        decoded_exists = decoded_path.exists()
    except Exception:  # noqa: BLE001  # any error of the store's library; reading the file reports it
        return path
    if exists and decoded_exists:
        raise FlowInputError(
            f"{where} is ambiguous: both {redact_path(path)} and {redact_path(decoded_path)} exist. Pass the "
            "file as a pathlib.Path"
        )
    return decoded_path if decoded_exists else path


def _iter_file_chunks(where: str, path: Any, *, is_permanent: bool = True) -> Iterator[bytes]:
    """Read a file a chunk at a time.

    :raises FlowInputError: the file cannot be read, is not a regular file, or is too large.
    """
    total = 0
    with _open_file(where, path, is_permanent=is_permanent) as file:
        while chunk := file.read(INPUT_CHUNK_BYTES):
            total += len(chunk)
            if total > MAX_INPUT_BYTES:
                raise ValueError(_too_large())
            yield chunk


def _iter_png_chunks(
    where: str, path: Path | ObjectStoragePath, *, is_permanent: bool = True
) -> Iterator[bytes]:
    """Convert a BMP to a PNG on disk, and read that a chunk at a time.

    :raises FlowInputError: the file cannot be read or converted.
    """
    with _open_file(where, path, is_permanent=is_permanent) as bitmap, TemporaryFile() as png:
        _convert_bitmap(where, bitmap, png, is_permanent=is_permanent)
        png.seek(0)
        while chunk := png.read(INPUT_CHUNK_BYTES):
            yield chunk


@contextmanager
def _open_file(where: str, path: Any, *, is_permanent: bool) -> Iterator[IO[bytes]]:
    """Open a file for reading.

    :raises FlowInputError: the file cannot be opened, or the block raises any other exception.
    """
    local_path = _to_local_path(path)
    options = {"block_size": INPUT_BLOCK_BYTES} if hasattr(path, "conn_id") else {}
    try:
        with path.open("rb", **options) if local_path is None else _open_regular_file(local_path) as file:
            yield file
    except FlowInputError:
        raise
    except Exception as error:  # noqa: BLE001  # any error of the store's library
        raise _unreadable_error(where, path, error, is_permanent=is_permanent) from None


def _to_local_path(path: Any) -> Path | None:
    """Return the path of a file of this machine, None for one in a store."""
    if not hasattr(path, "protocol"):
        return Path(path)
    return Path(path.path).expanduser() if path.protocol in LOCAL_SCHEMES else None


def _open_regular_file(path: Path) -> IO[bytes]:
    """Open a file of this machine that has its content on a disk.

    A FIFO would block the worker, a device has no end, and the files of `/proc` contain the environment of
    processes, and so their secrets. Symbolic links lead to none of these either.

    :raises ValueError: this is another kind of file, or one that is too large.
    """
    real_path = path.resolve()
    for name in (str(real_path), f"/{os.path.normpath(path.absolute()).lstrip('/')}"):
        if any(name == folder or name.startswith(f"{folder}/") for folder in PSEUDO_FILE_SYSTEMS):
            raise ValueError(f"the files of {'/'.join(name.split('/')[:2])} are no inputs")
    _expect_regular_file(path.stat())
    # not blocking, because another process may have replaced the file by a FIFO
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _expect_ordinary_content(descriptor, real_path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _expect_regular_file(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is a FIFO, a socket or a device, not a regular file")


def _expect_ordinary_content(descriptor: int, real_path: Path) -> None:
    status = os.fstat(descriptor)
    _expect_regular_file(status)
    if not os.path.samestat(status, real_path.stat()):  # or a link of /proc led to another root folder
        raise ValueError("it was replaced while it was opened")
    if status.st_size > MAX_INPUT_BYTES:
        raise ValueError(_too_large())
    if status.st_size == 0 and os.read(descriptor, 1):  # /proc may be mounted elsewhere, too
        raise ValueError("its size is 0, but it has content, as the files of /proc have")


def _too_large() -> str:
    return f"it is larger than the maximum of {MAX_INPUT_BYTES} bytes"


def _unreadable_error(
    where: str, path: Path | ObjectStoragePath | str, error: Exception, *, is_permanent: bool = True
) -> FlowInputError:
    detail = redact_text(str(error)) or type(error).__name__
    return FlowInputError(
        f"{where} names a file that cannot be read ({redact_path(path)}): {detail}", is_permanent=is_permanent
    )


def _read_text(where: str, path: Path | ObjectStoragePath, first: bytes, rest: Iterator[bytes]) -> str:
    content = bytearray(first)
    while len(content) <= MAX_TEXT_INPUT_BYTES and (chunk := next(rest, b"")):
        content += chunk
    if len(content) > MAX_TEXT_INPUT_BYTES:
        raise FlowInputError(
            f"{where} names a text file of more than {MAX_TEXT_INPUT_BYTES} bytes ({redact_path(path)}), "
            "which is too long for a prompt. If it is not a text, give it a name that indicates its type"
        )
    if not _is_text(content):
        raise FlowInputError(
            f"{where} names a text file that is not UTF-8 or has zero bytes ({redact_path(path)})"
        )
    return content.decode()


def _convert_bitmap(where: str, bitmap: IO[bytes], png: IO[bytes], *, is_permanent: bool = True) -> None:
    """Convert a BMP to a PNG with Pillow, which is an optional dependency.

    Pillow reads the file in parts, and holds the pixels, of which there are at most MAX_BITMAP_PIXELS.

    :param png: what the PNG is written to.
    :raises FlowInputError: Pillow is not installed, or cannot read the file.
    """
    try:
        from PIL import Image
    except ImportError:
        raise FlowInputError(
            f"{where} is a BMP image, which the service does not accept. Save it as PNG, or install Pillow "
            "(pip install pillow), which converts it"
        ) from None
    try:
        _expect_short_header(bitmap)
        with Image.open(bitmap, formats=("BMP",)) as image:
            _expect_few_pixels(image.width, image.height)
            image.save(png, "PNG")
    except Exception as error:  # noqa: BLE001  # any error of Pillow about content that it cannot read
        detail = redact_text(str(error)) or type(error).__name__
        message = f"{where} is a BMP image that cannot be read: {detail}"
        raise FlowInputError(message, is_permanent=is_permanent) from None


def _expect_short_header(bitmap: IO[bytes]) -> None:
    size = int.from_bytes(bitmap.read(18)[14:], "little")
    bitmap.seek(0)
    if size > MAX_BITMAP_HEADER_BYTES:  # Pillow would read it into memory
        raise ValueError(f"its header has {size} bytes, more than {MAX_BITMAP_HEADER_BYTES}")


def _expect_few_pixels(width: int, height: int) -> None:
    if width * height > MAX_BITMAP_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than {MAX_BITMAP_PIXELS}")
