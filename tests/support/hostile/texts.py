"""Responses that repeat the API key in some spelling and place, and texts that are no lines."""

from __future__ import annotations

import base64
import html
import json
import re
import socket
from collections.abc import Callable
from urllib.parse import quote, unquote

from tests.support.hostile.server import head, register

# with characters that each encoding escapes
TOKEN = "t0k/n+Of==n0body&May\"See<1t>'ever~%41\\x"
LONG_TOKEN = "t0k/n." + "Abc9/" * 90  # longer than every excerpt in a message


def _in_json(text: str) -> str:
    """Return a text as the content of a JSON string."""
    return json.dumps(text)[1:-1]


# how a service or a gateway may repeat a key, as the content of a JSON string
SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": _in_json,
    "with an escaped solidus": lambda key: _in_json(key).replace("/", "\\/"),
    "with Unicode escapes": lambda key: "".join(f"\\u{ord(character):04x}" for character in key),
    "with Unicode escapes in upper case": lambda key: "".join(f"\\u{ord(one):04X}" for one in key),
    "percent-encoded": lambda key: quote(key, safe=""),
    "percent-encoded in lower case": lambda key: quote(key, safe="").replace("%2F", "%2f"),
    "percent-encoded but for the solidus": quote,
    "percent-encoded twice": lambda key: quote(quote(key, safe=""), safe=""),
    "with each character percent-encoded": lambda key: "".join(f"%{ord(one):02X}" for one in key),
    "percent-encoded with Unicode escapes": lambda key: quote(key, safe="").replace("%", "\\u0025"),
    "as JSON in JSON": lambda key: _in_json(json.dumps({"key": key})),
    "as JSON in JSON, with an escaped solidus": lambda key: _in_json(_in_json(key).replace("/", "\\/")),
    "as JSON in JSON in JSON": lambda key: _in_json(_in_json(_in_json(key))),
    "as JSON in JSON, with Unicode escapes": lambda key: "".join(f"\\\\u{ord(one):04x}" for one in key),
    "in HTML": lambda key: _in_json(html.escape(key)),
    "in HTML, twice": lambda key: _in_json(html.escape(html.escape(key))),
    "in HTML, by numbers": lambda key: "".join(f"&#{ord(one)};" for one in key),
    "in HTML, by hexadecimal numbers": lambda key: "".join(f"&#x{ord(one):x};" for one in key),
    "as a Python literal": lambda key: _in_json(repr(key)),
    "with a scheme": lambda key: _in_json(f"Bearer {key}, Authorization={key}"),
    "in upper case": lambda key: _in_json(key.upper()),
    "in base64": lambda key: base64.b64encode(key.encode()).decode(),
    "in base64, with a user": lambda key: base64.b64encode(f"me:{key}".encode()).decode(),
    "in base64, with a longer user": lambda key: base64.urlsafe_b64encode(f"me2:{key}@".encode()).decode(),
    "twice": lambda key: _in_json(f"{key} and {key}{key}"),
}

_RUN = '{"flow_id": "r", "state": "failed", "template": "t", %s}'
_OUTPUT = '{"outputs": [{"asset_id": "a", "status": "ready", "additional": {}, %s}]}'
_TEMPLATE = '{"templates": [{"template_id": "t", %s}]}'
# by place: the reader (see the tests), the status line and the body, in which @ is the key
PLACES: dict[str, tuple[str, str, str]] = {
    "run's error": ("run", "200 OK", _RUN % '"error": "no entry for @!"'),
    "run's error object": ("run", "200 OK", _RUN % '"error": {"code": 1, "why": ["@"]}'),
    "run's flow": ("run", "200 OK", _RUN.replace('"t"', '"t @"') % '"progress": 1'),
    "run's state": ("run", "200 OK", '{"flow_id": "r", "state": "@"}'),
    "run's metadata": ("run", "200 OK", _RUN % '"additional": {"deep": [{"er": "x @ y"}]}'),
    "key of a run's metadata": ("run", "200 OK", _RUN % '"additional": {"@": 1}'),
    "run's parameters": ("run", "200 OK", _RUN % '"parameters": {"webhook": "https://h/?k=@"}'),
    "unknown field of a run": (
        "run",
        "200 OK",
        _RUN % '"_debug": {"headers": {"authorization": "Bearer @"}}',
    ),
    "error of a listed run": ("runs", "200 OK", '{"flows": [' + _RUN % '"error": "@"' + "]}"),
    "id of a listed run": ("runs", "200 OK", '{"flows": [{"flow_id": "@", "state": "failed"}]}'),
    "output's name": ("outputs", "200 OK", _OUTPUT % '"name": "chair @"'),
    "output's id": ("outputs", "200 OK", '{"outputs": ["@"]}'),
    "output's media type": ("outputs", "200 OK", _OUTPUT % '"media_type": "text/@"'),
    "output's error": ("outputs", "200 OK", _OUTPUT % '"error": "@"'),
    "output's metadata": ("outputs", "200 OK", _OUTPUT % '"more": 1, "additional": "@"'),
    "output's text": ("outputs with data", "200 OK", _OUTPUT % '"data": "Here is @."'),
    "flow's name": ("definitions", "200 OK", _TEMPLATE % '"name": "n @"'),
    "flow's description": ("definitions", "200 OK", _TEMPLATE % '"description": "d @"'),
    "parameter's name": ("definitions", "200 OK", _TEMPLATE % '"parameters": [{"name": "@"}]'),
    "parameter's default": (
        "definitions",
        "200 OK",
        _TEMPLATE % '"parameters": [{"name": "p", "default": "@", "values": ["@"]}]',
    ),
    "added input's id": ("input", "200 OK", '{"asset_id": "@"}'),
    "chain's text": ("chain", "200 OK", '[{"name": "n", "type": "output", "output": "it is @"}]'),
    "chain's name": ("chain", "200 OK", '[{"name": "@", "type": "output", "output": "x"}]'),
    "rejection": ("run", "403 No", '{"detail": "key @ has no right"}'),
    "validation error": ("run", "422 No", '{"detail": [{"loc": ["header", "@"], "msg": "bad @"}]}'),
    "unknown rejection": ("run", "500 No", '{"trace": {"key": "@"}}'),
    "key of a rejection": ("run", "500 No", '{"@": "@"}'),
    "failure with status 200": ("run", "200 OK", '{"success": false, "message": "@"}'),
    "cut rejection": ("run", "403 No", '{"detail": "' + "x" * 590 + "@ " + "y" * 500 + '"}'),
    "gateway's page": ("run", "502 Away", "<html><body>Request: authorization: @</body></html>"),
    "cut page": ("run", "502 Away", "<html>" + "x" * 590 + "@</html>"),
    "broken JSON": ("run", "200 OK", '{"error": "@", '),
    "cut broken JSON": ("run", "200 OK", '{"error": "' + "x" * 185 + "@" + "y" * 600),
    "list without rows": ("runs", "200 OK", '{"message": "@"}'),
    "broken file": ("file", "200 OK", '{"message": "@", "why": 1}'),
    "broken file after some bytes": ("file", "200 OK", '{"message": "' + "x" * 180 + '@", "why": 1}'),
    "file's media type": ("file", "200 OK", '{"data": "data:text/@;base64,eHh4"}'),
    "status line": ("run", "403 @", "{}"),
}


def _respond(place: str, spelling: str, key: str) -> bytes:
    _, status, body = PLACES[place]
    spelt = SPELLINGS[spelling](key)
    content = body.replace("@", spelt).encode()
    # every response has the key in a header as well
    start = head(
        status=status.replace("@", spelt),
        Content_Type=f"text/{spelt}",
        Content_Length=str(len(content)),
        X_Debug=spelt,
    )
    return start + content


def _register(place: str, spelling: str, key: str, name: str) -> None:
    @register(name)
    def send(connection: socket.socket) -> None:
        connection.sendall(_respond(place, spelling, key))


def key_behaviour(place: str, spelling: str, *, is_long: bool = False) -> str:
    """Return the name of the behaviour that repeats the key."""
    return f"{'long ' if is_long else ''}key, {spelling}, in {place}"


for _place in PLACES:
    for _spelling in SPELLINGS:
        _register(_place, _spelling, TOKEN, key_behaviour(_place, _spelling))
        _register(_place, _spelling, LONG_TOKEN, key_behaviour(_place, _spelling, is_long=True))


def find_key(text: str, key: str) -> str | None:
    """Return what of a key is in a text in any spelling: the key, its first half, or None."""
    start = key[: len(key) // 2 if len(key) < 100 else 40].lower()
    in_base64 = [base64.b64encode(b"\0" * offset + key.encode())[4:24].decode() for offset in range(3)]
    for _ in range(6):
        if start in text.lower() or any(part in text for part in in_base64):
            return text
        text = html.unescape(unquote(text))
        text = re.sub(r"\\u00([0-9a-fA-F]{2})", lambda match: chr(int(match[1], 16)), text)
        text = re.sub(r"\\([^\w\s])", r"\1", text)
    return None


# texts that would begin another line of a log, move a cursor, change a colour or reverse a text
NO_LINES = {
    "line feed": "a\n2026-01-01 [error] forged",
    "carriage return": "a\rforged",
    "both": "a\r\nforged",
    "next line": "a\x85forged",
    "line separator": "a\u2028forged",
    "paragraph separator": "a\u2029forged",
    "vertical tab": "a\vforged",
    "form feed": "a\fforged",
    "file separator": "a\x1cforged",
    "escape sequence": "a\x1b[2J\x1b[31mforged",
    "CSI of one byte": "a\x9b2Jforged",
    "backspace": "a\b\bforged",
    "bell": "a\aforged",
    "delete": "a\x7fforged",
    "right-to-left override": "a\u202eforged",
    "isolate": "a\u2067forged\u2069",
    "right-to-left mark": "a\u200fforged",
    "byte order mark": "a\ufeffforged",
    "tag characters": "a\U000e0041\U000e0042forged",
}
IS_NO_LINE = re.compile(
    "[\\0-\\x1f\\x7f-\\x9f\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\U000e0000-\\U000e007f]"
)
