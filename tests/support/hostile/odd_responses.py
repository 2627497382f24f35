"""Responses that are odd and legal, odd and common, or wrong: what a client makes of them is its own choice.

Each is one complete answer to a request. Most servers close the connection after it; `LEFT_OPEN` does not.
"""

from __future__ import annotations

import gzip
import socket
import zlib
from contextlib import suppress

from tests.support.hostile.server import Act, register

KIB = 1024
OK = b"HTTP/1.1 200 OK\r\n"
REDIRECT = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n"
JSON = b'{"n": 1}'
LENGTH = b"Content-Length: 8\r\n"
END = b"\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"8\r\n" + JSON + b"\r\n0\r\n\r\n"
GZIP = gzip.compress(JSON, mtime=0)
ZLIB = zlib.compress(JSON)
RAW_DEFLATE = ZLIB[2:-4]
WHOLE = OK + LENGTH + END + JSON


def _with(headers: bytes) -> bytes:
    """Return a response with some headers more."""
    return OK + headers + LENGTH + END + JSON


def _header_of(size: int) -> bytes:
    """Return a header whose line has this size, with its line break."""
    return b"X-Long: " + b"a" * (size - 10) + b"\r\n"


def _encoded(encoding: bytes, body: bytes) -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return OK + b"Content-Encoding: " + encoding + b"\r\n" + length + END + body


def _status(line: bytes) -> bytes:
    """Return a response with another status line."""
    return line + b"\r\n" + LENGTH + END + JSON


def _chunked(body: bytes, headers: bytes = b"") -> bytes:
    return OK + CHUNKED + headers + END + body


RESPONSES: dict[str, bytes] = {
    # sizes
    "a header of 8.2 KiB": _with(_header_of(8_400)),
    "a header of 16 KiB": _with(_header_of(16 * KIB)),
    "a header of 64 KiB": _with(_header_of(64 * KIB)),
    "a header of 64 KiB and 10 bytes": _with(_header_of(64 * KIB + 10)),
    "a header of 65.6 KiB": _with(_header_of(67_174)),
    "a header of 200 KiB": _with(_header_of(200 * KIB)),
    "ten headers of 60 KiB": _with(_header_of(60 * KIB) * 10),
    "a header's name of 20 KiB": _with(b"X-" + b"a" * 20 * KIB + b": b\r\n"),
    "a header's name of 70 KiB": _with(b"X-" + b"a" * 70 * KIB + b": b\r\n"),
    "99 headers": _with(b"".join(b"X-%d: a\r\n" % number for number in range(98))),
    "120 headers": _with(b"".join(b"X-%d: a\r\n" % number for number in range(119))),
    "256 headers": _with(b"".join(b"X-%d: a\r\n" % number for number in range(255))),
    "257 headers": _with(b"".join(b"X-%d: a\r\n" % number for number in range(256))),
    "2,000 headers": _with(b"".join(b"X-%d: a\r\n" % number for number in range(2_000))),
    "300 cookies": _with(b"Set-Cookie: a=b\r\n" * 300),
    "a reason phrase of 20 KiB": _status(b"HTTP/1.1 200 " + b"O" * 20 * KIB),
    "a reason phrase of 70 KiB": _status(b"HTTP/1.1 200 " + b"O" * 70 * KIB),
    # lengths
    "length and chunked": _chunked(CHUNKS, LENGTH),
    "a wrong length and chunked": _chunked(CHUNKS, b"Content-Length: 3\r\n"),
    "two equal lengths": _with(LENGTH),
    "two equal lengths in one header": OK + b"Content-Length: 8, 8\r\n\r\n" + JSON,
    "two different lengths": _with(b"Content-Length: 7\r\n"),
    "two different lengths in one header": OK + b"Content-Length: 8, 7\r\n\r\n" + JSON,
    "a length with a plus sign": OK + b"Content-Length: +8\r\n\r\n" + JSON,
    "a negative length": OK + b"Content-Length: -8\r\n\r\n" + JSON,
    "a length with leading zeros": OK + b"Content-Length: 0008\r\n\r\n" + JSON,
    "a length with an underscore": OK + b"Content-Length: 0_8\r\n\r\n" + JSON,
    "a length with blanks around it": OK + b"Content-Length:   8  \r\n\r\n" + JSON,
    "a length that is no number": OK + b"Content-Length: eight\r\n\r\n" + JSON,
    "a length in hexadecimal": OK + b"Content-Length: 0x8\r\n\r\n" + JSON,
    "a length with a fraction": OK + b"Content-Length: 8.0\r\n\r\n" + JSON,
    "an empty length": OK + b"Content-Length:\r\n\r\n" + JSON,
    "a length in other digits": OK + "Content-Length: \u0668\r\n\r\n".encode() + JSON,
    "a length of 30 digits": OK + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n" + JSON,
    "a body that is longer than its length": OK + b"Content-Length: 7\r\n\r\n" + JSON,
    "a body that is shorter than its length": OK + b"Content-Length: 9\r\n\r\n" + JSON,
    "no length": OK + b"\r\n" + JSON,
    "no length, and Connection: close": OK + b"Connection: close\r\n\r\n" + JSON,
    "no length, and Connection: keep-alive": OK + b"Connection: keep-alive\r\n\r\n" + JSON,
    "a length of zero and a body": OK + b"Content-Length: 0\r\n\r\n" + JSON,
    # informational responses
    "a 100 before the response": b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE,
    "a 102 before the response": b"HTTP/1.1 102 Processing\r\n\r\n" + WHOLE,
    "a 103 before the response": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + WHOLE,
    "a 199 before the response": b"HTTP/1.1 199 Odd\r\n\r\n" + WHOLE,
    "a 103 with a length before the response": b"HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\n"
    + WHOLE,
    "ten 103 before the response": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 10 + WHOLE,
    "a 103 only": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "a 101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + JSON,
    "a 101 before the response": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + WHOLE,
    # headers
    "a blank before the colon": _with(b"X-A : b\r\n"),
    "a blank before the colon of the length": OK + b"Content-Length : 8\r\n\r\n" + JSON,
    "a tab before the colon": _with(b"X-A\t: b\r\n"),
    "a blank in a name": _with(b"X A: b\r\n"),
    "no blank after the colon": _with(b"X-A:b\r\n"),
    "a header without a colon": _with(b"broken\r\n"),
    "an empty name": _with(b": b\r\n"),
    "an empty value": _with(b"X-A:\r\n"),
    "a folded header": _with(b"X-A: b\r\n  c\r\n"),
    "a folded header with a tab": _with(b"X-A: b\r\n\tc\r\n"),
    "a folded first header": OK + b" X-A: b\r\n" + LENGTH + END + JSON,
    "a folded length": OK + b"Content-Length:\r\n 8\r\n\r\n" + JSON,
    "a NUL in a value": _with(b"X-A: b\0c\r\n"),
    "a NUL in a name": _with(b"X-\0: b\r\n"),
    "a control character in a value": _with(b"X-A: b\x01c\r\n"),
    "a vertical tab in a value": _with(b"X-A: b\x0bc\r\n"),
    "a form feed in a value": _with(b"X-A: b\x0cc\r\n"),
    "a DEL in a value": _with(b"X-A: b\x7fc\r\n"),
    "a file separator in a value": _with(b"X-A: b\x1cX-B: c\r\n"),
    "a carriage return in a value": _with(b"X-A: b\rX-B: c\r\n"),
    "UTF-8 in a value": _with("X-A: Stühle\r\n".encode()),
    "Latin-1 in a value": _with("X-A: Stühle\r\n".encode("latin-1")),
    "a next line (NEL) in a value": _with(b"X-A: b\x85X-B: c\r\n"),
    "UTF-8 in a name": _with("X-Stühle: a\r\n".encode()),
    "a symbol in a name": _with(b"X-(A): b\r\n"),
    "a quotation mark in a name": _with(b'X-"A": b\r\n'),
    "a semicolon instead of a colon": _with(b"X-A; b\r\n"),
    "names in capitals": OK + b"CONTENT-LENGTH: 8\r\n\r\n" + JSON,
    "names in lower case": OK + b"content-length: 8\r\n\r\n" + JSON,
    "two content types": _with(b"Content-Type: a/b\r\nContent-Type: c/d\r\n"),
    "line feeds only": WHOLE.replace(b"\r\n", b"\n"),
    "line feeds only, and chunks": _chunked(CHUNKS).replace(b"\r\n", b"\n"),
    "a line feed after one header": OK + b"X-A: b\n" + LENGTH + END + JSON,
    "a line feed at the end of the headers": OK + LENGTH + b"\n" + JSON,
    "a line feed after the status line": b"HTTP/1.1 200 OK\n" + LENGTH + END + JSON,
    "carriage returns only": WHOLE.replace(b"\r\n", b"\r"),
    "two carriage returns before a line feed": OK + b"X-A: b\r\r\n" + LENGTH + END + JSON,
    "headers that do not end": OK + LENGTH,
    "headers that end within a name": OK + LENGTH + b"X-",
    # status line
    "a line break before the response": b"\r\n" + WHOLE,
    "two line breaks before the response": b"\r\n\r\n" + WHOLE,
    "a blank before the response": b" " + WHOLE,
    "rubbish before the response": b"rubbish\r\n" + WHOLE,
    "a byte order mark before the response": b"\xef\xbb\xbf" + WHOLE,
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\n" + JSON,
    "HTTP/1.0 with a length": _status(b"HTTP/1.0 200 OK"),
    "HTTP/1.0 and keep-alive": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + LENGTH + END + JSON,
    "HTTP/1.0 and chunks": b"HTTP/1.0 200 OK\r\n" + CHUNKED + END + CHUNKS,
    "HTTP/0.9": JSON,
    "HTTP/1.2": _status(b"HTTP/1.2 200 OK"),
    "HTTP/1.10": _status(b"HTTP/1.10 200 OK"),
    "HTTP/2.0": _status(b"HTTP/2.0 200 OK"),
    "HTTP/2": _status(b"HTTP/2 200 OK"),
    "HTTP/0.9 in the status line": _status(b"HTTP/0.9 200 OK"),
    "HTTP/3.7": _status(b"HTTP/3.7 200 OK"),
    "HTTP/01.1": _status(b"HTTP/01.1 200 OK"),
    "a version in lower case": _status(b"http/1.1 200 OK"),
    "a version of mixed case": _status(b"Http/1.1 200 OK"),
    "another protocol": _status(b"ICY 200 OK"),
    "RTSP": _status(b"RTSP/1.0 200 OK"),
    "no reason phrase": _status(b"HTTP/1.1 200 "),
    "no blank after the status": _status(b"HTTP/1.1 200"),
    "two blanks before the status": _status(b"HTTP/1.1  200 OK"),
    "two blanks after the status": _status(b"HTTP/1.1 200  OK"),
    "a tab before the status": _status(b"HTTP/1.1\t200 OK"),
    "a tab after the status": _status(b"HTTP/1.1 200\tOK"),
    "UTF-8 in the reason phrase": _status("HTTP/1.1 200 Schön".encode()),
    "Latin-1 in the reason phrase": _status("HTTP/1.1 200 Schön".encode("latin-1")),
    "a NUL in the reason phrase": _status(b"HTTP/1.1 200 O\0K"),
    "a carriage return in the reason phrase": _status(b"HTTP/1.1 200 O\rK"),
    "status 0": _status(b"HTTP/1.1 0 OK"),
    "status 000": _status(b"HTTP/1.1 000 OK"),
    "status 20": _status(b"HTTP/1.1 20 OK"),
    "status 99": _status(b"HTTP/1.1 99 OK"),
    "status 099": _status(b"HTTP/1.1 099 OK"),
    "status 0200": _status(b"HTTP/1.1 0200 OK"),
    "status 299": _status(b"HTTP/1.1 299 Odd"),
    "status 450": _status(b"HTTP/1.1 450 Odd"),
    "status 599": _status(b"HTTP/1.1 599 Odd"),
    "status 600": _status(b"HTTP/1.1 600 Odd"),
    "status 999": _status(b"HTTP/1.1 999 Odd"),
    "status 1000": _status(b"HTTP/1.1 1000 OK"),
    "status 2000": _status(b"HTTP/1.1 2000 OK"),
    "status -200": _status(b"HTTP/1.1 -200 OK"),
    "status +20": _status(b"HTTP/1.1 +20 OK"),
    "status 2_0": _status(b"HTTP/1.1 2_0 OK"),
    "status 200.0": _status(b"HTTP/1.1 200.0 OK"),
    "status OK": _status(b"HTTP/1.1 OK"),
    "status in other digits": _status("HTTP/1.1 \u0662\u0660\u0660 OK".encode()),
    "no status": _status(b"HTTP/1.1"),
    "an empty status line": _status(b""),
    # statuses without a body
    "a 204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "a 204 with a length of zero": b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
    "a 204 with a body": _status(b"HTTP/1.1 204 No Content"),
    "a 204 with chunks": b"HTTP/1.1 204 No Content\r\n" + CHUNKED + END + CHUNKS,
    "a 205 with a body": _status(b"HTTP/1.1 205 Reset Content"),
    "a 304 with a body": _status(b"HTTP/1.1 304 Not Modified"),
    "a 304 with a length and no body": b"HTTP/1.1 304 Not Modified\r\n" + LENGTH + END,
    "a length and no body": OK + LENGTH + END,
    # chunks
    "chunks": _chunked(CHUNKS),
    "chunks of one byte": _chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in JSON) + b"0\r\n\r\n"),
    "chunk extensions": _chunked(b"8;name=value\r\n" + JSON + b"\r\n0;last\r\n\r\n"),
    "a quoted chunk extension": _chunked(b'8;name="a;b"\r\n' + JSON + b"\r\n0\r\n\r\n"),
    "a chunk extension after a blank": _chunked(b"8 ; name=value\r\n" + JSON + b"\r\n0\r\n\r\n"),
    "a chunk extension of 20 KiB": _chunked(b"8;a=" + b"x" * 20 * KIB + b"\r\n" + JSON + b"\r\n0\r\n\r\n"),
    "a chunk extension of 70 KiB": _chunked(b"8;a=" + b"x" * 70 * KIB + b"\r\n" + JSON + b"\r\n0\r\n\r\n"),
    "a blank after a chunk size": _chunked(b"8 \r\n" + JSON + b"\r\n0\r\n\r\n"),
    "a blank before a chunk size": _chunked(b" 8\r\n" + JSON + b"\r\n0\r\n\r\n"),
    "a chunk size in capitals": _chunked(b"A\r\n" + JSON + b"  \r\n0\r\n\r\n"),
    "a chunk size in small letters": _chunked(b"a\r\n" + JSON + b"  \r\n0\r\n\r\n"),
    "a chunk size with leading zeros": _chunked(b"0008\r\n" + JSON + b"\r\n000\r\n\r\n"),
    "a chunk size with 0x": _chunked(b"0x8\r\n" + JSON + b"\r\n0\r\n\r\n"),
    "a chunk size with a plus sign": _chunked(b"+8\r\n" + JSON + b"\r\n0\r\n\r\n"),
    "a chunk size with an underscore": _chunked(b"0_8\r\n" + JSON + b"\r\n0\r\n\r\n"),
    "a trailer": _chunked(CHUNKS[:-2] + b"X-Trailer: a\r\n\r\n"),
    "a trailer with a length": _chunked(CHUNKS[:-2] + b"Content-Length: 3\r\n\r\n"),
    "a trailer with a blank before the colon": _chunked(CHUNKS[:-2] + b"X-Trailer : a\r\n\r\n"),
    "a trailer that has no end": _chunked(CHUNKS[:-2] + b"X-Trailer: a\r\n"),
    "a trailer without a line break": _chunked(CHUNKS[:-2] + b"X-Trailer"),
    "300 trailers": _chunked(CHUNKS[:-2] + b"X-Trailer: a\r\n" * 300 + END),
    "a trailer of 70 KiB": _chunked(CHUNKS[:-2] + _header_of(70 * KIB) + END),
    "no last line break": _chunked(CHUNKS[:-2]),
    "half a last line break": _chunked(CHUNKS[:-1]),
    "chunks without the last one": _chunked(CHUNKS[:-5]),
    "bytes after the chunks": _chunked(CHUNKS + b"rubbish"),
    "Chunked in capitals": OK + b"Transfer-Encoding: CHUNKED\r\n\r\n" + CHUNKS,
    "chunked twice": OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + CHUNKS,
    "chunked in two headers": _chunked(CHUNKS, CHUNKED),
    "identity before chunked": OK + b"Transfer-Encoding: identity, chunked\r\n\r\n" + CHUNKS,
    "identity": OK + b"Transfer-Encoding: identity\r\n" + LENGTH + END + JSON,
    "gzip and chunked as transfer encodings": OK
    + b"Transfer-Encoding: gzip, chunked\r\n\r\n%x\r\n" % len(GZIP)
    + GZIP
    + b"\r\n0\r\n\r\n",
    "gzip as the transfer encoding": OK + b"Transfer-Encoding: gzip\r\n\r\n" + GZIP,
    "chunked before gzip": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + CHUNKS,
    "an unknown transfer encoding": OK + b"Transfer-Encoding: odd\r\n" + LENGTH + END + JSON,
    "a transfer encoding that starts like chunked": OK + b"Transfer-Encoding: chunkedx\r\n\r\n" + CHUNKS,
    "an empty transfer encoding": OK + b"Transfer-Encoding:\r\n" + LENGTH + END + JSON,
    # content encodings
    "gzip": _encoded(b"gzip", GZIP),
    "x-gzip": _encoded(b"x-gzip", GZIP),
    "GZIP in capitals": _encoded(b"GZIP", GZIP),
    "gzip in two members": _encoded(b"gzip", gzip.compress(JSON[:4]) + gzip.compress(JSON[4:])),
    "gzip and rubbish after it": _encoded(b"gzip", GZIP + b"rubbish"),
    "gzip without its end": _encoded(b"gzip", GZIP[:-4]),
    "gzip with a wrong checksum": _encoded(b"gzip", GZIP[:-8] + b"\0" * 4 + GZIP[-4:]),
    "plain JSON labelled gzip": _encoded(b"gzip", JSON),
    "gzip labelled deflate": _encoded(b"deflate", GZIP),
    "gzip without a label": OK + b"Content-Length: %d\r\n\r\n" % len(GZIP) + GZIP,
    "gzip twice": _encoded(b"gzip, gzip", gzip.compress(GZIP)),
    "gzip twice, labelled once": _encoded(b"gzip", gzip.compress(GZIP)),
    "deflate": _encoded(b"deflate", ZLIB),
    "raw deflate": _encoded(b"deflate", RAW_DEFLATE),
    "zlib labelled gzip": _encoded(b"gzip", ZLIB),
    "deflate, then gzip": _encoded(b"deflate, gzip", gzip.compress(ZLIB)),
    "an empty body labelled gzip": OK + b"Content-Encoding: gzip\r\nContent-Length: 0\r\n\r\n",
    "an empty body in chunks labelled gzip": OK + b"Content-Encoding: gzip\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "identity as the content encoding": _encoded(b"identity", JSON),
    "an empty content encoding": _encoded(b"", JSON),
    "an unknown content encoding": _encoded(b"odd", JSON),
    "a content encoding of UTF-8": _encoded(b"utf-8", JSON),
    "br": _encoded(b"br", b"\x8b\x03\x80" + JSON + b"\x03"),
    # connection
    "Connection: close": _with(b"Connection: close\r\n"),
    "Connection: Close, and a token": _with(b"Connection: X-A, Close\r\n"),
    "an upgrade that nobody requested": _with(b"Upgrade: h2c\r\nConnection: Upgrade\r\n"),
    "a proxy's connection header": _with(b"Proxy-Connection: keep-alive\r\n"),
    "an invalid cookie": _with(b"Set-Cookie: \xff=;;;=\r\n"),
    "an invalid content type": _with(b"Content-Type: ;;; charset=nope\r\n"),
    "an unknown charset": _with(b"Content-Type: application/json; charset=nope\r\n"),
    "a redirect without a location": REDIRECT + END,
    "a redirect to an invalid URL": REDIRECT + b"Location: http://[::1\r\n\r\n",
    "a redirect with a location of UTF-8": REDIRECT + "Location: /\u00fc\r\n\r\n".encode(),
    "a 401 without a challenge": _status(b"HTTP/1.1 401 Unauthorized"),
    "a 407": _status(b"HTTP/1.1 407 Proxy Authentication Required"),
    "a 417": _status(b"HTTP/1.1 417 Expectation Failed"),
    "a 426": _status(b"HTTP/1.1 426 Upgrade Required"),
    "nothing": b"",
    "one byte": b"H",
    "half a status line": b"HTTP/1.1 2",
    "a greeting of another protocol": b"220 mail.example.com ESMTP\r\n",
    "a TLS alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "an HTTP/2 frame": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18),
}
"""The bytes of a response, after which the connection is closed."""

LEFT_OPEN = {
    "a complete response on an open connection": WHOLE,
    "chunks on an open connection": _chunked(CHUNKS),
    "chunks with a trailer on an open connection": _chunked(CHUNKS[:-2] + b"X-Trailer: a\r\n\r\n"),
    "a longer body than its length on an open connection": OK + b"Content-Length: 7\r\n\r\n" + JSON,
    "rubbish after the body on an open connection": WHOLE + b"rubbish",
    "a second response on an open connection": WHOLE + _status(b"HTTP/1.1 500 No"),
    "bytes after the chunks on an open connection": _chunked(CHUNKS + b"rubbish"),
    "a 204 on an open connection": b"HTTP/1.1 204 No Content\r\n\r\n",
    "a 204 with a body on an open connection": _status(b"HTTP/1.1 204 No Content"),
    "a 304 with a length on an open connection": b"HTTP/1.1 304 Not Modified\r\n" + LENGTH + END,
    "two equal lengths on an open connection": _with(LENGTH),
    "two different lengths on an open connection": _with(b"Content-Length: 7\r\n"),
    "length and chunked on an open connection": _chunked(CHUNKS, LENGTH),
    "a length of zero on an open connection": OK + b"Content-Length: 0\r\n\r\n",
    "line feeds only on an open connection": WHOLE.replace(b"\r\n", b"\n"),
    "no length on an open connection": OK + b"\r\n" + JSON,
    "a shorter body than its length on an open connection": OK + b"Content-Length: 9\r\n\r\n" + JSON,
    "headers without an end on an open connection": OK + LENGTH,
}
"""The bytes of a response, after which the server waits for the client."""


def _create_act(data: bytes, *, closes: bool) -> Act:
    def act(connection: socket.socket) -> None:
        with suppress(OSError):
            connection.sendall(data)
            if closes:
                # a close with unread bytes would be a reset, which may overtake the response
                connection.shutdown(socket.SHUT_WR)
            connection.settimeout(5)
            while connection.recv(65_536):
                pass

    return act


for _name, _data in RESPONSES.items():
    register(_name)(_create_act(_data, closes=True))
for _name, _data in LEFT_OPEN.items():
    register(_name)(_create_act(_data, closes=False))
