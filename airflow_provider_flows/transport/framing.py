"""The framing of a response, read in one way for both transports: where its headers end, and where its body.

`http.client` and `aiohttp` differ in what they accept: in the size and number of headers, two lengths, a
blank before a colon, a trailer, ... So a worker would see a result where a triggerer sees an error. Here the
bytes of a connection are read first, by the rules of RFC 9112. The HTTP library gets a plain form of them,
which every library reads in the same way: a head with the framing only, and the body in its length or in
chunks.

What is odd and has one meaning is accepted, because the response may be paid for. What could be read in two
ways is rejected.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from airflow_provider_flows.core.limits import KIB, MAX_HEAD_BYTES, MAX_HEADER_LINE_BYTES, MAX_HEADERS

SWITCHING_PROTOCOLS = 101
WITHOUT_BODY = frozenset({204, 304, SWITCHING_PROTOCOLS})
START = b"HTTP/1."
LAST_CHUNK = b"0\r\n\r\n"
TLS_RECORDS = (b"\x15\x03", b"\x16\x03")  # an alert and a handshake, of any version

_STATUS_LINE = re.compile(rb"HTTP/1\.(\d)[ \t]+(\d{3})(?:[ \t]+(.*))?")
# RFC 9112 says of a blank before the colon that a proxy removes it from a response
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:(.*)")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;.*)?")
_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)
_SIMPLE_VALUE = re.compile(r"[\w, -]{1,99}", re.ASCII)


class FramingError(ValueError):
    """The bytes of a connection are no complete response; the text is a clause that says why."""


class NoResponseError(FramingError):
    """The connection was closed without a byte of a response."""


class TlsInsteadError(FramingError):
    """The server speaks TLS where plain http was sent."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status, reason phrase and headers of a response, in their order; names as they were sent."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, str]:
        """Return the headers by their names in lower case; several of one name are joined with commas."""
        joined: dict[str, str] = {}
        for name, value in self.headers:
            key = name.lower()
            joined[key] = f"{joined[key]}, {value}" if key in joined else value
        return joined


class Framing:
    """One final response while its bytes arrive; informational responses before it are dropped.

    :param has_body: False for the response to a HEAD.
    """

    def __init__(self, *, has_body: bool = True) -> None:
        self.head: Head | None = None
        """Status and headers, as soon as they are complete."""
        self.is_complete = False
        self.has_surplus = False
        """Whether bytes follow the response, so that its connection must not be used again."""
        self._has_body = has_body
        self._pending = bytearray()
        self._searched = 0  # bytes of `_pending` that contain no line feed
        self._head_bytes = 0  # of lines, since the head or the trailer has started
        self._lines: list[bytes] = []
        self._left = 0  # bytes of the body, or of the chunk
        self._has_started = False
        self._is_until_end = False
        self._is_in_trailer = False
        self._step: Callable[[list[bytes]], bool] = self._read_head

    def feed(self, data: bytes) -> bytes:
        """Return the bytes for the HTTP library that the next bytes of the connection yield; maybe none.

        :raises FramingError: the bytes are no response.
        """
        self._has_started = self._has_started or bool(data)
        if not self._pending and self._step == self._pass_body and len(data) <= self._left:
            self._left -= len(data)  # the most of a large body
            self.is_complete = not self._left
            return data
        self._pending += data
        output: list[bytes] = []
        while not self.is_complete and self._step(output):
            pass
        self.has_surplus = self.is_complete and bool(self._pending)
        return b"".join(output)

    def finish(self) -> bytes:
        """Return the bytes for the HTTP library that the end of the connection yields; maybe none.

        :raises FramingError: the response is not complete.
        """
        if self.is_complete:
            return b""
        if self._is_until_end or self._is_in_trailer:  # after the last chunk, the body is complete
            self.is_complete = True
            return LAST_CHUNK if self._is_in_trailer else b""
        if not self._has_started:
            raise NoResponseError("it closed the connection without a response")
        if self.head is None:
            raise FramingError("it closed the connection within the headers of its response")
        missing = f"{self._left} bytes before its end" if self._left else "before its end"
        raise FramingError(f"it closed the connection within the body of its response, {missing}")

    def _read_head(self, output: list[bytes]) -> bool:
        line = self._take_line("a header of its response", may_end_with_lf=True)
        if not self._lines:
            _check_start(bytes(self._pending[: len(START)]) if line is None else line)
        if line is None:
            return False
        if not self._lines and not line:  # line breaks before a response
            return True
        if line:
            self._lines.append(line)
            if len(self._lines) > MAX_HEADERS + 1:
                raise FramingError(f"its response has more than {MAX_HEADERS} headers")
            return True
        self._on_head(_parse_head(self._lines), output)
        return True

    def _on_head(self, head: Head, output: list[bytes]) -> None:
        minor = int(_STATUS_LINE.fullmatch(self._lines[0])[1])  # type: ignore[index]  # it has matched
        self._lines.clear()
        self._head_bytes = 0
        if head.status < 200 and head.status != SWITCHING_PROTOCOLS:
            return
        fields = head.to_dict()
        length = _parse_length(fields.get("content-length"))
        is_chunked = _is_chunked(fields.get("transfer-encoding"))
        has_body = self._has_body and head.status not in WITHOUT_BODY
        self.head = _with_framing(head, length, is_chunked=is_chunked and has_body)
        framing = [f"HTTP/1.1 {head.status} "]
        # A transfer encoding takes precedence over a length, and the connection is closed after it.
        closes = _closes(fields.get("connection", ""), minor) or (is_chunked and length is not None)
        if not has_body:
            self.is_complete = True
        elif is_chunked:
            framing.append("Transfer-Encoding: chunked")
            self._step = self._read_chunk_size
        elif length is not None:
            framing.append(f"Content-Length: {length}")
            self._left, self.is_complete = length, not length
            self._step = self._pass_body
        else:
            self._is_until_end = closes = True
            self._step = self._pass_rest
        if closes:
            framing.append("Connection: close")
        if _SIMPLE_VALUE.fullmatch(encoding := fields.get("content-encoding", "")):
            framing.append(f"Content-Encoding: {encoding}")
        output.append("\r\n".join([*framing, "", ""]).encode("ascii"))

    def _pass_body(self, output: list[bytes]) -> bool:
        self._pass_left(output)
        self.is_complete = not self._left
        return False

    def _pass_rest(self, output: list[bytes]) -> bool:
        output.append(bytes(self._pending))
        self._pending.clear()
        return False

    def _read_chunk_size(self, _: list[bytes]) -> bool:
        line = self._take_line("the size of a chunk of its response")
        if line is None:
            return False
        if (match := _CHUNK_SIZE.fullmatch(line)) is None:
            raise FramingError("the size of a chunk of its response is invalid")
        self._head_bytes = 0
        self._left = int(match[1], 16)
        if self._left:
            self._step = self._pass_chunk
        else:
            self._is_in_trailer = True
            self._step = self._drop_trailer
        return True

    def _pass_chunk(self, output: list[bytes]) -> bool:
        if size := min(self._left, len(self._pending)):
            output.append(b"%x\r\n" % size)
            self._pass_left(output)
            output.append(b"\r\n")
        if self._left:
            return False
        self._step = self._read_chunk_end
        return True

    def _read_chunk_end(self, _: list[bytes]) -> bool:
        if not b"\r\n".startswith(self._pending[:2]):
            raise FramingError("a chunk of its response is longer than its size")
        if len(self._pending) < 2:
            return False
        del self._pending[:2]
        self._step = self._read_chunk_size
        return True

    def _drop_trailer(self, output: list[bytes]) -> bool:
        line = self._take_line("the trailer of its response", may_end_with_lf=True, max_bytes=MAX_HEAD_BYTES)
        if line:
            return True
        if line is None:
            return False
        output.append(LAST_CHUNK)
        self.is_complete = True
        return False

    def _pass_left(self, output: list[bytes]) -> None:
        """Move bytes of the body from `_pending` to the output."""
        with memoryview(self._pending) as view:
            part = bytes(view[: self._left])
        del self._pending[: self._left]
        self._left -= len(part)
        output.append(part)

    def _take_line(
        self, what: str, *, may_end_with_lf: bool = False, max_bytes: int = MAX_HEADER_LINE_BYTES
    ) -> bytes | None:
        """Return the next line without its line break, None if it is not complete.

        :raises FramingError: the line, or all lines together, are too long, or it has a NUL or another line
            break in it.
        """
        end = self._pending.find(b"\n", self._searched)
        self._searched = len(self._pending)
        size = self._searched if end < 0 else end + 1
        if size > max_bytes:
            raise FramingError(f"{what} is longer than {max_bytes // KIB} KiB")
        if self._head_bytes + size > MAX_HEAD_BYTES:
            raise FramingError(f"the headers of its response are longer than {MAX_HEAD_BYTES // KIB} KiB")
        if end < 0:
            return None
        line = bytes(self._pending[:end])
        del self._pending[:size]
        self._searched = 0
        self._head_bytes += size
        if not (line.endswith(b"\r") or may_end_with_lf):
            raise FramingError(f"{what} is invalid")
        line = line.removesuffix(b"\r")
        if b"\r" in line or b"\0" in line:
            raise FramingError(f"{what} contains a carriage return or a NUL")
        return line


def _check_start(start: bytes) -> None:
    """Check the start of a response, also if it is short.

    :raises FramingError: it is that of something else.
    """
    if start.startswith(TLS_RECORDS):
        raise TlsInsteadError("it speaks TLS; set the connection's host to its https:// address")
    start = start.lstrip(b"\r\n")[: len(START)]
    is_maybe_tls = len(start) == 1 and any(record.startswith(start) for record in TLS_RECORDS)
    if not START.startswith(start) and not is_maybe_tls:
        raise FramingError("its response is not HTTP/1.1")


def _parse_head(lines: list[bytes]) -> Head:
    """Return the head of a response; a header that continues in the next line gets that.

    :raises FramingError: a line is no header.
    """
    match = _STATUS_LINE.fullmatch(lines[0])
    if match is None or match[2] < b"100":
        raise FramingError("the status line of its response is invalid")
    headers: list[tuple[str, str]] = []
    for line in lines[1:]:
        if line[:1] in b" \t" and headers:
            name, value = headers.pop()
            headers.append((name, f"{value} {_decode(line)}".strip()))
        elif (header := _HEADER.fullmatch(line)) is not None:
            headers.append((header[1].decode("ascii"), _decode(header[2])))
        else:
            raise FramingError("its response has an invalid header")
    return Head(int(match[2]), _decode(match[3] or b""), tuple(headers))


def _decode(value: bytes) -> str:
    """Return a header's value, which is UTF-8 by today's custom, and Latin-1 by an old one."""
    stripped = value.strip(b" \t")
    try:
        return stripped.decode()
    except UnicodeDecodeError:
        return stripped.decode("latin-1")


def _parse_length(value: str | None) -> int | None:
    """Return the length of the body, None if there is none. It may be given several times.

    :raises FramingError: it is invalid, or there are several different ones.
    """
    if value is None:
        return None
    texts = {text.strip() for text in value.split(",")}
    if not all(map(_LENGTH.fullmatch, texts)):
        raise FramingError("the Content-Length of its response is invalid")
    lengths = set(map(int, texts))
    if len(lengths) > 1:
        raise FramingError("its response has two different values of Content-Length")
    return lengths.pop()


def _is_chunked(value: str | None) -> bool:
    """Return whether the body is in chunks.

    :raises FramingError: it has another transfer encoding, which was not requested.
    """
    encodings = {text.strip().lower() for text in (value or "").split(",")} - {"", "identity"}
    if encodings - {"chunked"}:
        raise FramingError("the Transfer-Encoding of its response was not requested")
    return bool(encodings)


def _closes(connection: str, minor_version: int) -> bool:
    """Return whether the connection is closed after the response."""
    tokens = {text.strip().lower() for text in connection.split(",")}
    return "close" in tokens or (minor_version == 0 and "keep-alive" not in tokens)


def _with_framing(head: Head, length: int | None, *, is_chunked: bool) -> Head:
    """Return the head with one header for the framing, as it was read, in place of those that were sent."""
    others = [
        (name, value)
        for name, value in head.headers
        if name.lower() not in {"content-length", "transfer-encoding"}
    ]
    if is_chunked:
        others.append(("Transfer-Encoding", "chunked"))
    elif length is not None:
        others.append(("Content-Length", str(length)))
    return Head(head.status, head.reason, tuple(others))
