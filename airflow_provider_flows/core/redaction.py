"""Removal of secrets from texts, URLs and parameters before they are logged, stored or displayed.

Secrets are the signature of a signed URL, the user information of a URL (`user:password@`), and values that
the caller names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

SIGNATURE_PARAMETERS = frozenset({"sig", "signature", "x-amz-signature", "x-goog-signature"})
MIN_SIGNATURE_LENGTH = 16  # characters; shorter values are not masked, because they occur in ordinary text
MAX_TEXT_LENGTH = 2000  # characters of a redacted text, whose content can be of any length
MAX_PARAMETERS = 100
MAX_REDACTED_BYTES = 8 * 1024  # of all parameters together, and of all URIs together
MAX_REDACTION_DEPTH = 20  # levels of nesting in which secrets are searched, as in the openlineage provider

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


def mask_values(text: str, secrets: Iterable[str]) -> str:
    """Return a text with `***` in place of each secret."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


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
