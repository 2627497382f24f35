"""How what is seen becomes HTML: the templates, the words for sizes and spans of time, the picture of a flow.

Everything is escaped by jinja; only the picture is put in as it is, which is made of escaped texts itself (flow/drawing).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from airflow_provider_flows.core.graph import FlowGraph
from airflow_provider_flows.drawing import STYLE, to_svg

if TYPE_CHECKING:
    from fastapi import Request

NO_VALUE = "\N{EN DASH}"
STATIC_MEDIA_TYPES = {
    "flows.css": "text/css",
    "flows.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "icon-dark.svg": "image/svg+xml",
}


async def render_page(request: Request, name: str, status: int = 200, **context: Any) -> HTMLResponse:
    """Make a page of a template, in another thread: a large one takes a while, and Airflow answers others meanwhile.

    :param context: what the template speaks of; `base`, the address of the pages' beginning, it always has.
    """
    base = request.scope.get("root_path", "")
    return HTMLResponse(
        await run_in_threadpool(_environment().get_template(name).render, base=base, **context), status
    )


@cache
def load_static(name: str) -> bytes | None:
    """Give one of our own files, None if there is no such one."""
    if name not in STATIC_MEDIA_TYPES:
        return None
    content = (files("airflow_provider_flows.plugin") / "static" / name).read_bytes()
    return content + STYLE.encode() if name == "flows.css" else content


@cache
def _environment() -> Environment:
    loader = PackageLoader("airflow_provider_flows.plugin")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(
        quote_segment=quote_segment,
        size=size,
        span=span,
        percent=percent,
        timestamp=timestamp,
        shorten=shorten,
    )
    environment.globals.update(query=query, picture=picture)
    return environment


def quote_segment(text: str) -> str:
    """Quote an id as one segment of a path."""
    return quote(text, safe="", errors="replace")


def query(selection: Mapping[str, Any], **changes: Any) -> str:
    """Give the query of an address with some of it changed; what is empty is left out, and a new choice begins on page 1."""
    params = {**selection, **({} if "page" in changes else {"page": 1}), **changes}
    non_default_params = {
        name: value
        for name, value in params.items()
        if value not in {"", None} and (name, value) != ("page", 1)
    }
    return f"?{urlencode(non_default_params, errors='replace')}"


def size(count: int | None) -> str:
    """Word a number of bytes."""
    if count is None:
        return ""
    if count < 1000:
        return f"{count} bytes"
    power = min(int(math.log(count, 1000)), 4)
    return f"{count / 1000**power:.{1 if count < 100 * 1000**power else 0}f} {('', 'kB', 'MB', 'GB', 'TB')[power]}"


def span(seconds: float | None) -> str:
    """Word a span of time."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def percent(progress: float) -> str:
    """Word a progress of 0.0 to 1.0; it is 100 % only at the end."""
    return f"{int(progress * 100)} %"


def timestamp(when: datetime | None) -> Markup:
    """Give a moment as an element that the script words in the time zone that the user has chosen in Airflow."""
    if when is None:
        return Markup('<span class="nothing">{}</span>').format(NO_VALUE)
    return Markup('<time datetime="{}">{:%Y-%m-%d %H:%M:%S} UTC</time>').format(when.isoformat(), when)


def shorten(text: str, max_length: int = 26) -> str:
    """Give the beginning of a long id."""
    return text if len(text) <= max_length + 1 else f"{text[:max_length]}…"


def picture(graph: FlowGraph, title: str) -> Markup:
    """Draw a flow's graph; its colours are in our style sheet."""
    return Markup(to_svg(graph, title=title, styled=False))  # noqa: S704  # a tree of elements whose texts are escaped
