"""Signed URLs that expire, in the way of Azure's blob store, and what it answers to bad ones.

What lies behind a URL is not its business.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import urlencode
from xml.sax.saxutils import escape

SIGNED_FIELDS = ("st", "se", "sp", "sv", "sr", "rscd", "rsct")
START_MARGIN_SECONDS = 3600


def signed_query(key: bytes, path: str, now: float, seconds: float) -> str:
    """Return the query that opens a path from an hour ago until so many seconds ahead."""
    values = {
        "st": _format_time(now - START_MARGIN_SECONDS),
        "se": _format_time(now + seconds),
        "sp": "r",
        "sv": "2021-08-06",
        "sr": "b",
        "rscd": "inline",
        "rsct": "image/png",
    }
    return urlencode(values | {"sig": _signature(key, path, values)}, safe="/")


def rejection_reason(key: bytes, path: str, query: Mapping[str, str], now: float) -> str | None:
    """Return why the query does not open the path, or None if it does."""
    if not hmac.compare_digest(_signature(key, path, query).encode(), query.get("sig", "").encode()):
        return "Signature did not match. String to sign used was not as expected."
    start, end = query["st"], query["se"]
    if not _format_time(now) < end:
        return f"Signed expiry time [{end}] has to be after [{_format_time(now)}]"
    return (
        None
        if start <= _format_time(now)
        else f"Signed start time [{start}] has to be before [{_format_time(now)}]"
    )


def error_xml(code: str, message: str, detail: str | None = None) -> bytes:
    """Return an error in Azure's words."""
    more = (
        "" if detail is None else f"<AuthenticationErrorDetail>{escape(detail)}</AuthenticationErrorDetail>"
    )
    text = f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message>{more}</Error>"
    return b'\xef\xbb\xbf<?xml version="1.0" encoding="utf-8"?>' + text.encode()


def _signature(key: bytes, path: str, values: Mapping[str, str]) -> str:
    text = "\n".join([path, *(values.get(name, "") for name in SIGNED_FIELDS)])
    return base64.b64encode(hmac.digest(key, text.encode(), hashlib.sha256)).decode()


def _format_time(timestamp: float) -> str:
    # Rounded to whole seconds as Azure's are, so such times compare as text.
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
