"""Responses that repeat a flow's prompt in some spelling and place while they explain an error."""

from __future__ import annotations

import base64
import html
import json
import socket
from collections.abc import Callable
from urllib.parse import quote, quote_plus, unquote_plus

from tests.support.hostile.server import head, register

# with characters that each encoding escapes
PROMPT = (
    'A w\N{LATIN SMALL LETTER O WITH DIAERESIS}oden chair by "Smith & Sons",\nwith <4> red legs \U0001fa91'
)

# how a service may repeat a prompt
SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in upper case": str.upper,
    "in lower case": str.lower,
    "on one line": lambda prompt: " ".join(prompt.split()),
    "as JSON": json.dumps,
    "as JSON with any character": lambda prompt: json.dumps(prompt, ensure_ascii=False),
    "as JSON in JSON": lambda prompt: json.dumps(json.dumps({"prompt": prompt})),
    "as a Python literal": repr,
    "in HTML": html.escape,
    "percent-encoded": quote,
    "percent-encoded as in a form": quote_plus,
    "in base64": lambda prompt: base64.b64encode(prompt.encode()).decode(),
    "in base64 with the whole request": lambda prompt: base64.b64encode(
        json.dumps({"inputs": [{"data": prompt}]}).encode()
    ).decode(),
    "in a data URI": lambda prompt: f"data:text/plain;base64,{base64.b64encode(prompt.encode()).decode()}",
    "its start": lambda prompt: f"{prompt[:14]}...",
    "its end": lambda prompt: f"...{prompt[-24:]}",
    "its middle": lambda prompt: f"...{prompt[14:34]}...",
    "many times": lambda prompt: " or ".join([prompt] * 30),
    "after a long text": lambda prompt: "x" * 180 + prompt,
}
BEFORE = "No entry for"
"""What stands before the prompt, and must not be lost."""

_RUN = '{"flow_id": "r", "state": "failed", %s}'
# the status line, and the body, in which "@" is a JSON string with the prompt, and @ its text
PLACES: dict[str, tuple[str, str]] = {
    "a rejection": ("422 No", '{"detail": "@"}'),
    "a validation error": ("422 No", '{"detail": [{"loc": ["body", "inputs"], "msg": "@", "input": "@"}]}'),
    "a server error": ("500 Oops", '{"trace": {"locals": ["@"]}}'),
    "a conflict": ("409 No", '{"message": "@"}'),
    "a failure with status 200": ("200 OK", '{"success": false, "message": "@"}'),
    "a gateway's page": ("502 Away", "<html><title>@</title><body>@</body></html>"),
    "broken JSON": ("200 OK", '{"error": "@", '),
    "a response without an id": ("200 OK", '{"error": "@"}'),
    "a failed run": ("200 OK", _RUN % '"error": "@", "outputs": []'),
    "a failed run's error object": ("200 OK", _RUN % '"error": {"code": 1, "why": ["@"]}, "outputs": []'),
    "an unknown state": ("200 OK", '{"flow_id": "r", "state": "@", "outputs": []}'),
    "an output's error": (
        "200 OK",
        _RUN % '"outputs": [{"asset_id": "a", "name": "n", "status": "error", "error": "@"}]',
    ),
}


def echo_behaviour(place: str, spelling: str) -> str:
    """Return the name of the behaviour that repeats the prompt."""
    return f"prompt, {spelling}, in {place}"


def _register(place: str, spelling: str) -> None:
    status, body = PLACES[place]
    text = f"{BEFORE} {SPELLINGS[spelling](PROMPT)}."
    is_page = body.startswith("<")
    content = body.replace("@", text if is_page else json.dumps(text)[1:-1]).encode()

    @register(echo_behaviour(place, spelling))
    def send(connection: socket.socket) -> None:
        start = head(status=status, Content_Length=str(len(content)), Connection="close")
        connection.sendall(start + content)


for _place in PLACES:
    for _spelling in SPELLINGS:
        _register(_place, _spelling)


def find_echo(text: str, prompt: str = PROMPT) -> str | None:
    """Return a part of a prompt that is in a text in any spelling, or None."""
    letters, base64_text = _only_letters(prompt), base64.b64encode(prompt.encode()).decode()
    parts = [letters[start : start + 12] for start in range(len(letters) - 11)]
    encoded = [base64_text[start : start + 16] for start in range(len(base64_text) - 15)]
    found = "|".join(map(_only_letters, (text, unquote_plus(text), html.unescape(text))))
    return next((part for part in parts if part in found), next((e for e in encoded if e in text), None))


def _only_letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isascii() and character.isalnum())
