"""Signed links, as stores of pictures and files make them: which part of one is secret.

Whether a link may be fetched is not said here (transport/hosts.py says it).
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, unquote_plus

SIGNATURE_PARAMETERS = frozenset(
    {"sig", "signature", "x-amz-signature", "x-goog-signature"}
)  # a link that bears one is no page to read
MIN_SIGNATURE_LENGTH = 16  # signs; a shorter one is no signature, and masking it would spoil every log
# bounded, for whoever writes the text could else make its reading take for ever
_URL_WITH_QUERY = re.compile(
    r"(?P<link>[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s?\"'<>]{0,2000})\?(?P<query>[^\s\"'<>]*)"
)


def find_signatures(text: str) -> set[str]:
    """Give the signatures in the queries of a text's URLs, in the spellings that a library may write into its log."""
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
    """Give a text as it may be told: of each signed URL in it, of whatever scheme, what stands before the query."""
    return _URL_WITH_QUERY.sub(
        lambda found: found["link"] if _get_signatures(found["query"]) else found[0], text
    )


def _get_signatures(query: str) -> set[str]:
    parts = (part.partition("=") for part in query.partition("#")[0].split("&"))
    return {value for name, _, value in parts if unquote_plus(name).lower() in SIGNATURE_PARAMETERS}
