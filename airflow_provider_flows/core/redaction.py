"""Removal of secrets from texts, URLs and parameters before they are logged, stored or displayed.

Secrets are the signature of a signed URL, the user information of a URL (`user:password@`), and values that
the caller names, such as the connection's API key. Such a value is found in every spelling that a service or
a gateway may repeat it in: in any case, percent-encoded, escaped as in JSON (also JSON inside JSON) or in
HTML, and as a part of a base64 text.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

SIGNATURE_PARAMETERS = frozenset({"sig", "signature", "x-amz-signature", "x-goog-signature"})
MIN_SIGNATURE_LENGTH = 16  # characters; shorter values are not masked, because they occur in ordinary text
MAX_TEXT_LENGTH = 2000  # characters of a redacted text, whose content can be of any length
MAX_PARAMETERS = 100
MAX_REDACTED_BYTES = 8 * 1024  # of all parameters together, and of all URIs together
MAX_REDACTION_DEPTH = 20  # levels of nesting in which secrets are searched, as in the openlineage provider

MASK = "***"
MIN_SECRET_LENGTH = 5  # characters, as in Airflow's own masker; a shorter value occurs in ordinary text
# A shorter one may be an ordinary word, as the emulator's key is: it is masked in messages only, where it
# stands alone, and not in base64.
MIN_DISTINCT_LENGTH = 10
MAX_ESCAPE_LEVELS = 4  # JSON inside JSON, or a URL inside a URL
MAX_SPELLING_LENGTH = 24  # characters in which one character of a secret may be spelt

# The lengths are bounded, because an unbounded match of a hostile text would take quadratic time.
_URL_WITH_QUERY = re.compile(
    r"(?P<link>[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s?\"'<>]{0,2000})\?(?P<query>[^\s\"'<>]*)"
)
_USER_INFO = re.compile(r"(?<=://)[^\s/@]*@")
_HTTP_QUERY = re.compile(r"(https?://[^\s?]*)\?\S*")


def find_signatures(text: str) -> set[str]:
    """Return the signatures in a text's URLs, in all percent-encodings that a library may log."""
    signatures = {
        value for found in _URL_WITH_QUERY.finditer(text) for value in _get_signatures(found["query"])
    }
    spellings = {
        spelling
        for value in signatures
        for spelling in (value, unquote(value), quote(unquote(value), safe=""))
    }
    return {spelling for spelling in spellings if len(spelling) >= MIN_SIGNATURE_LENGTH}


def strip_signatures(text: str) -> str:
    """Return a text without the query of each signed URL in it."""
    return _URL_WITH_QUERY.sub(
        lambda found: found["link"] if _get_signatures(found["query"]) else found[0], text
    )


def _get_signatures(query: str) -> set[str]:
    parts = (part.partition("=") for part in query.partition("#")[0].split("&"))
    return {value for name, _, value in parts if unquote_plus(name).lower() in SIGNATURE_PARAMETERS}


def redact_path(path: object) -> str:
    """Return a path or URI without credentials and signatures, cut after MAX_TEXT_LENGTH characters."""
    return redact_text(str(path))


def redact_text(text: str) -> str:
    """Return a text without credentials and signatures of URLs, cut after MAX_TEXT_LENGTH characters.

    All queries of web URLs are removed, because a store may use a signature parameter of another name.
    """
    plain = _HTTP_QUERY.sub(r"\1", _USER_INFO.sub("", strip_signatures(text)))
    return plain if len(plain) <= MAX_TEXT_LENGTH else f"{plain[:MAX_TEXT_LENGTH]}..."


def mask_values(text: str, secrets: tuple[str, ...], max_length: int | None = None) -> str:
    """Return a text with `***` in place of each secret, in whichever spelling.

    :param max_length: how many characters of the text are read, before they are masked. A secret that begins
        among them is masked also if it ends after them.
    """
    end = len(text) if max_length is None else min(max_length, len(text))
    search = _get_search(secrets)
    if search is None or not search.may_find_in(text):
        return text[:end]
    masked, position = list[str](), 0
    for start, stop in search.find_spans(text[: end + search.max_length]):
        if start >= end:
            break
        if start >= position:
            masked += text[position:start], MASK
        position = max(position, stop)
    return "".join(masked) + text[position:end]


def get_max_spelling_length(secrets: tuple[str, ...]) -> int:
    """Return the number of characters that the longest spelling of a secret has."""
    search = _get_search(secrets)
    return 0 if search is None else search.max_length


def mask_json(value: Any, json_text: str, secrets: tuple[str, ...]) -> Any:
    """Return a JSON value with `***` in place of each secret of MIN_DISTINCT_LENGTH in its texts and keys.

    Only the JSON text is searched in almost all cases, because that takes far less time than walking through
    the value.

    :param value: the value, of bounded depth.
    :param json_text: the text from which it was parsed.
    """
    distinct = tuple(secret for secret in secrets if len(secret) >= MIN_DISTINCT_LENGTH)
    search = _get_search(distinct)
    return _mask_nested(value, distinct) if search is not None and search.finds_in(json_text) else value


def _mask_nested(value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {mask_values(key, secrets): _mask_nested(inner, secrets) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mask_nested(inner, secrets) for inner in value]
    if isinstance(value, int) and str(value) in secrets:
        return MASK
    return mask_values(value, secrets) if isinstance(value, str) else value


class _SecretSearch:
    """A search for secrets (printable ASCII) in all their spellings, which is fast for a large text.

    :param max_length: the length of the longest spelling, in characters.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        encoded = {text for secret in secrets for text in _to_base64(secret)}
        self.max_length = MAX_SPELLING_LENGTH * max(map(len, secrets), default=0)
        # a secret may itself look escaped, and is then unescaped together with the text around it
        plain = {text for secret in secrets for text in _iter_unescaped(secret)}
        patterns = [*map(_to_pattern, plain), *map(re.escape, encoded)]
        self._pattern = re.compile("|".join(patterns), re.IGNORECASE | re.ASCII)
        # Encoders leave letters and digits as they are. A text without the longest run of them can contain
        # the secret only if it escapes such characters.
        runs = [max(_LETTERS_AND_DIGITS.findall(secret), key=len, default="") for secret in secrets]
        self._parts = {case(run) for run in runs for case in (str, str.lower, str.upper)} | encoded

    def may_find_in(self, text: str) -> bool:
        """Return whether a secret may occur in a text; false positives are possible."""
        return (
            any(part in text for part in self._parts)
            or "&#" in text
            or "&amp;" in text
            or any(escaped.search(text) for escaped in _ESCAPED_LETTER_OR_DIGIT)
        )

    def finds_in(self, text: str) -> bool:
        """Return whether a secret occurs in a text."""
        return self.may_find_in(text) and any(map(self._pattern.search, _iter_unescaped(text)))

    def find_spans(self, text: str) -> list[tuple[int, int]]:
        """Return where secrets start and end in a text, sorted by the start."""
        spans, offsets = list[tuple[int, int]](), list(range(len(text) + 1))
        for level in range(1 + MAX_ESCAPE_LEVELS):
            if level:
                text, inner = _unescape_with_offsets(text)
                if len(inner) == len(offsets):  # nothing is escaped any more
                    break
                offsets = [offsets[index] for index in inner]
            spans += [
                (offsets[found.start()], offsets[found.end()]) for found in self._pattern.finditer(text)
            ]
        return sorted(spans)


_LETTERS_AND_DIGITS = re.compile(r"[A-Za-z0-9]+")
_LETTER_OR_DIGIT = "(?:3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa])"
# Each starts with a literal, which the search finds much faster than a choice of several.
_ESCAPED_LETTER_OR_DIGIT = tuple(
    re.compile(start + _LETTER_OR_DIGIT) for start in (r"%(?:25){0,3}", r"\\u00", r"\\x")
)
# one level of escaping of a printable ASCII character in a URL, in JSON, in a string literal, or in HTML
_ESCAPE = re.compile(
    r"%(?P<url>[2-7][0-9A-F])|\\u00(?P<json>[2-7][0-9A-F])|\\x(?P<literal>[2-7][0-9A-F])|\\(?P<quoted>[^\w\s])"
    r"|&#x0{0,4}(?P<hexadecimal>[2-7][0-9A-F]);|&#0{0,4}(?P<decimal>[0-9]{2,3});|&(?P<name>amp|lt|gt|quot|apos);",
    re.IGNORECASE | re.ASCII,
)
_HTML_NAMES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}


@lru_cache(maxsize=64)  # the connections of a process
def _get_search(secrets: tuple[str, ...]) -> _SecretSearch | None:
    long = [secret for secret in secrets if len(secret) >= MIN_SECRET_LENGTH]
    return _SecretSearch(long) if long else None


def _to_pattern(secret: str) -> str:
    pattern = re.escape(secret)
    return pattern if len(secret) >= MIN_DISTINCT_LENGTH else rf"(?<![\w-]){pattern}(?![\w-])"


def _unescape(found: re.Match[str]) -> str:
    kind, text = str(found.lastgroup), found[str(found.lastgroup)]
    if kind == "quoted":
        return text
    if kind == "name":
        return _HTML_NAMES[text.lower()]
    return chr(int(text, 10 if kind == "decimal" else 16))


def _iter_unescaped(text: str) -> Iterator[str]:
    """Yield a text, and the same with each level of escaping less."""
    for _ in range(1 + MAX_ESCAPE_LEVELS):
        yield text
        text = _ESCAPE.sub(_unescape, text)


def _unescape_with_offsets(text: str) -> tuple[str, list[int]]:
    """Return a text with one level of escaping less, and where each of its characters starts in the text.

    The last offset is the text's end.
    """
    pieces, offsets, position = list[str](), list[int](), 0
    for found in _ESCAPE.finditer(text):
        pieces += text[position : found.start()], _unescape(found)
        offsets += range(position, found.start() + 1)
        position = found.end()
    return "".join([*pieces, text[position:]]), [*offsets, *range(position, len(text) + 1)]


def _to_base64(secret: str) -> Iterator[str]:
    """Yield the part of a longer text's base64 that the secret determines, for each offset in that text."""
    if len(secret) < MIN_DISTINCT_LENGTH:
        return
    for offset in range(3):
        data = bytes(offset) + secret.encode()
        determined = slice(-(-offset * 8 // 6), len(data) * 8 // 6)
        for encode in (b64encode, urlsafe_b64encode):
            yield encode(data)[determined].decode()


def redact_uris(uris: Iterable[str]) -> list[str]:
    """Return URIs without secrets, as many as MAX_REDACTED_BYTES allow."""
    redacted, remaining = list[str](), MAX_REDACTED_BYTES
    for uri in map(redact_path, uris):
        remaining -= len(uri)
        if remaining < 0:
            break
        redacted.append(uri)
    return redacted


def redact_parameters(parameters: Any, mask: Callable[..., Any]) -> dict[str, Any]:
    """Return parameters as plain JSON values, without secrets and without the queries of signed URLs.

    If they are larger than MAX_REDACTED_BYTES together, the largest values are replaced by a note. The result
    is empty if `parameters` is not a mapping.

    :param mask: Airflow's `redact`, which masks values of keys such as `password`, and registered secrets.
    """
    if not isinstance(parameters, Mapping):
        return {}
    first = dict(list(parameters.items())[:MAX_PARAMETERS])
    try:
        masked = mask(first, max_depth=MAX_REDACTION_DEPTH)
        plain: dict[str, Any] = _strip_nested_signatures(
            json.loads(json.dumps(masked, default=str, skipkeys=True))
        )
    except (ValueError, RecursionError):  # a circular reference; no run can be started with it
        return {}
    sizes = {name: len(json.dumps(value)) for name, value in plain.items()}
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if sum(sizes.values()) + sum(map(len, sizes)) <= MAX_REDACTED_BYTES:
            break
        plain[name] = f"left out: {sizes[name]} bytes"
        sizes[name] = len(plain[name])
    return plain


def _strip_nested_signatures(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strip_nested_signatures(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_strip_nested_signatures(each) for each in value]
    return strip_signatures(value) if isinstance(value, str) else value
