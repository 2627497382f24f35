"""Signed links, as stores of pictures and files make them: which part of one is secret.

Whether a link may be fetched is not said here (transport/hosts.py says it).
"""

from __future__ import annotations

from urllib.parse import quote, unquote, unquote_plus

SIGNATURES = frozenset({"sig", "signature", "x-amz-signature", "x-goog-signature"})  # a link that bears one is no page to read
LEAST_SECRET = 16  # signs; a shorter one is no signature, and masking it would spoil every log


def secrets_of(url: str) -> set[str]:
    """Give the signatures in a URL's query, in the spellings that a library may write into its log."""
    parts = (part.partition("=") for part in url.partition("?")[2].partition("#")[0].split("&"))
    told = {value for name, _, value in parts if unquote_plus(name).lower() in SIGNATURES}
    spelt = {spelling for value in told for spelling in (value, unquote(value), quote(unquote(value), safe=""))}
    return {spelling for spelling in spelt if len(spelling) >= LEAST_SECRET}
