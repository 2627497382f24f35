"""Files as inputs: their type, size and digest, detected in one pass, and their content for each upload.

A file of a store is read again for each upload. A file from a URL is downloaded once, into a temporary file.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Protocol

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.limits import (
    MAX_BITMAP_HEADER_BYTES,
    MAX_BITMAP_PIXELS,
    MAX_INPUT_BYTES,
    MAX_TEXT_INPUT_BYTES,
)
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.payload.data_uri import Content
from airflow_provider_flows.core.payload.integrity import (
    MEDIA_TYPE,
    NAME,
    TruncationDetector,
    detect_media_type,
    is_text,
    truncation_error,
)
from airflow_provider_flows.core.redaction import redact_path, redact_text
from airflow_provider_flows.storage.atomic_file import Spool, SpooledFile
from airflow_provider_flows.storage.paths import (
    LOCAL_SCHEMES,
    MACHINE_CREDENTIALS,
    WEB_SCHEMES,
    explain_store_error,
    get_conn_id,
    resolve_path,
    uses_machine_credentials,
)

if TYPE_CHECKING:
    from airflow_provider_flows.core.payload.sink import Target
    from airflow_provider_flows.core.service import Service


INPUT_CHUNK_BYTES = 192 * 1024  # a multiple of 3, so that each chunk is encoded as base64 by itself
INPUT_BLOCK_BYTES = 8 * 1024 * 1024  # the read-ahead of a file system; that of s3fs is 50 MiB by default
TEXT_ENCODING = "utf-8-sig"  # UTF-8 with or without a byte order mark
MAX_OPEN_ATTEMPTS = 5  # of a file that another process replaces at that moment
PSEUDO_FILE_SYSTEMS = ("/proc", "/sys", "/dev")  # what is read there is of the machine or a process
# media types that servers send for files of unknown type, and for pages, which are no inputs
NOTHING_DECLARED = frozenset({None, "application/octet-stream", "binary/octet-stream", "text/html"})

InputPath = Any  # a pathlib.Path, an ObjectStoragePath or a SpooledFile


class InputHook(Protocol):
    """The methods of a hook that inputs need."""

    @property
    def service(self) -> Service:
        """The service of the hook's connection."""

    def fetch_url(self, url: str, target: Target) -> str | None:
        """Download the file at a URL into a target, and return the media type that its server declares.

        :raises FlowInputError: the file cannot be fetched, or its host is not allowed.
        """


class FileAccess:
    """How the files of one run's inputs are read: over which connection, and with which hook from URLs.

    :param conn_id: the Airflow connection of the files' stores, unless a path names one or is local.
    :param hook: downloads files from URLs; without one, they are rejected.
    """

    def __init__(self, conn_id: str | None = None, hook: InputHook | None = None) -> None:
        self.conn_id = conn_id
        self.hook = hook
        self._spool: Spool | None = None

    def resolve(self, where: str, path_or_uri: Any) -> InputPath:
        """Return the path of a file, after its download if it is at a URL.

        :raises FlowInputError: the URI is invalid or ambiguous, or the file cannot be fetched.
        """
        try:
            if _is_url(path_or_uri):
                return self._fetch(where, str(path_or_uri).strip())
            return resolve_path(where, path_or_uri, self.conn_id)
        except (OSError, ValueError, ImportError) as error:
            raise unreadable_error(where, path_or_uri, error) from None

    def _fetch(self, where: str, url: str) -> SpooledFile:
        if self.hook is None:
            raise ValueError("only the hook of a service fetches files from URLs")
        if self._spool is None:
            self._spool = Spool()
        file = SpooledFile(url, self._spool)
        try:
            file.media_type = self.hook.fetch_url(url, file)
        except FlowInputError as error:
            raise FlowInputError(
                f"{where} names a file that cannot be fetched ({redact_path(url)}): {error}",
                is_permanent=error.is_permanent,
            ) from None
        return file


def _is_url(path_or_uri: Any) -> bool:
    """Return whether this is a web address. A path with a connection has a file system for it."""
    if isinstance(path_or_uri, str):
        return path_or_uri.strip().partition("://")[0].lower() in WEB_SCHEMES
    return getattr(path_or_uri, "protocol", "") in WEB_SCHEMES and get_conn_id(path_or_uri) is None


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file that is sent a chunk at a time, if it has not changed since the inputs were read.

    :param where: the argument that names the file, such as `inputs[0]`.
    :param size: in bytes.
    :param digest: the hexadecimal SHA-256 of the content.
    """

    where: str
    path: InputPath
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


def load_file(
    where: str, path_or_uri: Any, access: FileAccess, sha256: str | None = None
) -> str | FileSource:
    """Read a file, and return it in the form in which it is sent, a text as a prompt, any other as a source.

    :param where: the argument that names the file, for messages.
    :param path_or_uri: a pathlib.Path, an ObjectStoragePath, a URI or a URL.
    :param sha256: the hexadecimal digest that the file must have, None for any.
    :raises FlowInputError: the file cannot be read, is empty, truncated or larger than MAX_INPUT_BYTES, is of
        an unknown type, is not of the type that its name indicates, or has another digest.
    """
    return _load(where, access.resolve(where, path_or_uri), sha256)


def _load(where: str, path: InputPath, sha256: str | None) -> str | FileSource:
    chunks = _iter_file_chunks(where, path)
    first = next(chunks, b"")
    if not first:
        raise FlowInputError(f"{where} names an empty file ({redact_path(path)})")
    subject = f"{where} names a file ({redact_path(path)})"
    media_type = detect_media_type(subject, first, *_get_declared_type(path))
    if media_type is None:
        raise FlowInputError(
            f"{where} names a file of an unknown type ({redact_path(path)}): neither its content nor its "
            "name indicates one. Give it a usual name such as chair.png"
        )
    if media_type == "text/plain":
        return _read_text(where, path, first, chunks, sha256)
    digest, size, truncation_detector = hashlib.sha256(first), len(first), TruncationDetector(media_type)
    truncation_detector.feed(first)
    for chunk in chunks:
        digest.update(chunk)
        truncation_detector.feed(chunk)
        size += len(chunk)
    if truncation_detector.is_truncated:
        raise truncation_error(subject, media_type, size)
    _expect_digest(where, path, digest.hexdigest(), sha256)
    if media_type == "image/bmp":
        return _load_bitmap(where, path, digest.hexdigest())
    return FileSource(where, path, media_type, size, digest.hexdigest())


def _load_bitmap(where: str, path: InputPath, bitmap_digest: str) -> BitmapSource:
    digest, size = hashlib.sha256(), 0
    for chunk in _iter_png_chunks(where, path):
        digest.update(chunk)
        size += len(chunk)
    return BitmapSource(where, path, "image/png", size, digest.hexdigest(), bitmap_digest)


def load_variable_file(
    where: str, path_or_uri: Any, access: FileAccess, sha256: str | None = None
) -> str | FileSource:
    """Read a file that is the value of a variable: a text as `load_text_file` does, any other as `load_file`.

    :raises FlowInputError: as `load_file`.
    """
    path = access.resolve(where, path_or_uri)
    load = _load_text if _is_text_media_type(_get_declared_type(path)[0]) else _load
    return load(where, path, sha256)


def _is_text_media_type(media_type: str | None) -> bool:
    return media_type is not None and (media_type.startswith("text/") or media_type == "application/json")


def load_text_file(where: str, path_or_uri: Any, access: FileAccess, sha256: str | None = None) -> str:
    """Read a text file, and return its content. The parameters are those of `load_file`.

    :raises FlowInputError: the file cannot be read, is too large, is not a text, or has another digest.
    """
    return _load_text(where, access.resolve(where, path_or_uri), sha256)


def _load_text(where: str, path: InputPath, sha256: str | None) -> str:
    chunks = _iter_file_chunks(where, path)
    first = next(chunks, b"")
    subject = f"{where} names a file ({redact_path(path)})"
    media_type = detect_media_type(subject, first, *_get_declared_type(path)) or "text/plain"
    if not _is_text_media_type(media_type):
        raise FlowInputError(
            f"{where} names a file of type {media_type} ({redact_path(path)}), but a text is expected"
        )
    return _read_text(where, path, first, chunks, sha256)


def _get_declared_type(path: InputPath) -> tuple[str | None, str]:
    """Return the media type that a file's name declares, or else its server, and which of them it was."""
    declared = data_uri.sniff(b"", path.name)
    if declared is not None or not isinstance(path, SpooledFile):
        return declared, NAME
    return None if path.media_type in NOTHING_DECLARED else path.media_type, MEDIA_TYPE


def _expect_digest(where: str, path: InputPath, digest: str, expected: str | None) -> None:
    if expected and digest != expected:
        raise FlowInputError(
            f"{where} names a file that changed since its task wrote it ({redact_path(path)}): its SHA-256 "
            "differs. Run that task again, or give the file's URI alone if the change is intended"
        )


def encode_content(where: str, content: Content) -> str:
    """Return content in the form in which it is sent, a text as a prompt, any other content as a data URI.

    A BMP is converted to a PNG (vendor_notes.md, G-11 and G-15).

    :raises FlowInputError: a BMP cannot be converted.
    """
    if content.media_type == "text/plain":
        return content.data.decode(TEXT_ENCODING)
    if content.media_type == "image/bmp":
        png = io.BytesIO()
        _convert_bitmap(where, io.BytesIO(content.data), png)
        return data_uri.encode(Content(png.getvalue(), "image/png"))
    return data_uri.encode(content)


def _iter_file_chunks(where: str, path: Any, *, is_permanent: bool = True) -> Iterator[bytes]:
    """Read a file a chunk at a time.

    :raises FlowInputError: the file cannot be read, is not a regular file, or is too large.
    """
    total = 0
    with open_file(where, path, is_permanent=is_permanent) as file:
        while chunk := file.read(INPUT_CHUNK_BYTES):
            total += len(chunk)
            if total > MAX_INPUT_BYTES:
                raise ValueError(_too_large())
            yield chunk


def _iter_png_chunks(where: str, path: InputPath, *, is_permanent: bool = True) -> Iterator[bytes]:
    """Convert a BMP to a PNG on disk, and read that a chunk at a time.

    :raises FlowInputError: the file cannot be read or converted.
    """
    with open_file(where, path, is_permanent=is_permanent) as bitmap, TemporaryFile() as png:
        _convert_bitmap(where, bitmap, png, is_permanent=is_permanent)
        png.seek(0)
        while chunk := png.read(INPUT_CHUNK_BYTES):
            yield chunk


@contextmanager
def open_file(where: str, path: Any, *, is_permanent: bool) -> Iterator[IO[bytes]]:
    """Open a file for reading.

    :raises FlowInputError: the file cannot be opened, or the block raises any other exception.
    """
    local_path = to_local_path(path)
    options = {"block_size": INPUT_BLOCK_BYTES} if hasattr(path, "conn_id") else {}
    try:
        with path.open("rb", **options) if local_path is None else _open_regular_file(local_path) as file:
            yield file
    except FlowInputError:
        raise
    except Exception as error:  # noqa: BLE001  # any error of the store's library
        raise unreadable_error(where, path, error, is_permanent=is_permanent) from None


def to_local_path(path: Any) -> Path | None:
    """Return the path of a file of this machine, None for one in a store."""
    if not hasattr(path, "protocol"):
        return Path(path)
    return Path(path.path).expanduser() if path.protocol in LOCAL_SCHEMES else None


class _ReplacedError(ValueError):
    """Another process replaced a file while it was opened."""


def _open_regular_file(path: Path) -> IO[bytes]:
    """Open a file of this machine as `_try_to_open` does, several times if it is replaced meanwhile."""
    for _ in range(MAX_OPEN_ATTEMPTS - 1):
        with suppress(_ReplacedError):
            return _try_to_open(path)
    return _try_to_open(path)


def _try_to_open(path: Path) -> IO[bytes]:
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
        raise _ReplacedError("it was replaced while it was opened")
    if status.st_size > MAX_INPUT_BYTES:
        raise ValueError(_too_large())
    if status.st_size == 0 and os.read(descriptor, 1):  # /proc may be mounted elsewhere, too
        raise ValueError("its size is 0, but it has content, as the files of /proc have")


def _too_large() -> str:
    return f"it is larger than the maximum of {MAX_INPUT_BYTES} bytes"


def unreadable_error(
    where: str, path: InputPath, error: Exception, *, is_permanent: bool = True
) -> FlowInputError:
    """Return the error for a file or a folder that a store's library cannot read."""
    detail = redact_text(explain_store_error(path, error)) + _get_remedy(path, error)
    return FlowInputError(
        f"{where} names a file that cannot be read ({redact_path(path)}): {detail}", is_permanent=is_permanent
    )


def _get_remedy(path: InputPath, error: Exception) -> str:
    """Return the end of the message about a file: of this machine that does not exist, or of a store."""
    if uses_machine_credentials(path) and not isinstance(error, FileNotFoundError | ImportError | ValueError):
        return f". {MACHINE_CREDENTIALS.format(argument='input_conn_id')}"
    if not isinstance(error, FileNotFoundError) or not isinstance(path, Path):
        return ""
    scheme, separator, rest = str(path).partition(":/")
    if separator and len(scheme) > 1:  # a Path drops one of the slashes
        return f'. For a URI, write {{"uri": "{redact_text(f"{scheme}://{rest}")}"}}'
    start = "" if path.is_absolute() else ", and a relative path starts at the folder of its process"
    return f". The file must exist on the worker that runs the task{start}"


def _read_text(where: str, path: InputPath, first: bytes, rest: Iterator[bytes], sha256: str | None) -> str:
    """Return the text of a file, without the byte order mark that editors on Windows write."""
    content = bytearray(first)
    while len(content) <= MAX_TEXT_INPUT_BYTES and (chunk := next(rest, b"")):
        content += chunk
    if len(content) > MAX_TEXT_INPUT_BYTES:
        raise FlowInputError(
            f"{where} names a text file of more than {MAX_TEXT_INPUT_BYTES} bytes ({redact_path(path)}), "
            "which is too long for a prompt. If it is not a text, give it a name that indicates its type"
        )
    if not is_text(content):
        raise FlowInputError(
            f"{where} names a text file that is not UTF-8 or has zero bytes ({redact_path(path)})"
        )
    _expect_digest(where, path, hashlib.sha256(content).hexdigest(), sha256)
    return content.decode(TEXT_ENCODING)


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
