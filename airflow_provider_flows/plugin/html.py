"""Rendering of pages, also of errors: the Jinja environment, its functions, the static files, and the URLs.

Jinja escapes every value. The picture of a flow is the only markup inserted as it is; its texts are escaped
when it is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlencode

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.routing import Match

from airflow_provider_flows.core.exceptions import FlowServiceError
from airflow_provider_flows.core.graph import FlowGraph
from airflow_provider_flows.core.limits import MAX_UNASKED_MODEL_BYTES
from airflow_provider_flows.drawing import STYLE, to_svg
from airflow_provider_flows.plugin.cache import TOO_MANY_REQUESTS
from airflow_provider_flows.plugin.texts import to_safe_line
from airflow_provider_flows.plugin.viewer import load_viewer

if TYPE_CHECKING:
    from fastapi import Request
    from starlette.types import Scope

DEFAULT_TITLE = "Not available"
ERROR_TITLES = {401: "Not logged in", 403: "Access denied", 404: "Not found", 429: "Busy"}
ERROR_TEXTS = {
    401: "You are not logged in to Airflow, or your session has expired. Reload the page.",
    403: "You do not have permission to view this connection, or the task instances and XComs of this DAG. "
    "Ask an administrator of this Airflow deployment for access.",
}
NO_VALUE = "\N{EN DASH}"
MAX_SHORT_ID_LENGTH = 26
SERVICE_NAMES = ("{flow_run_id}", "{flow}")
ITEM_STATE_CLASSES = {
    "active": "running",
    "fetching": "running",
    "completed": "completed",
    "failed": "failed",
    "invalid": "failed",
    "aborted": "aborted",
}
TIME_FORMATS = {"time": "%H:%M:%S", "minute": "%H:%M"}
STATIC_MEDIA_TYPES = {
    "flows.css": "text/css",
    "flows.js": "text/javascript",
    "cards.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "icon-dark.svg": "image/svg+xml",
}


class SegmentRoute(APIRoute):
    """A route whose parameters may contain any character, also a slash, which a link to the page quotes.

    Starlette matches the unquoted path, where such a slash would separate segments. Some proxies unquote the
    path too: then the id or name of a service takes the segments that are too many.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match the path as it was sent, segment by segment."""
        params = self._match_segments(scope) if scope["type"] == "http" else None
        if params is None:
            return Match.NONE, {}
        path_params = {**scope.get("path_params", {}), **params}
        match = Match.FULL if scope["method"] in (self.methods or ()) else Match.PARTIAL
        return match, {"endpoint": self.endpoint, "path_params": path_params, "route": self}

    def _match_segments(self, scope: Scope) -> dict[str, str] | None:
        raw_path = scope.get("raw_path") or quote(scope["path"]).encode()
        segments = [unquote(part, errors="replace") for part in raw_path.decode("latin-1").split("/")]
        root = scope.get("root_path", "").rstrip("/").split("/")
        segments = segments[len(root) - 1 :] if segments[: len(root)] == root else segments
        names = self.path_format.split("/")
        place = next((index for index, name in enumerate(names) if name in SERVICE_NAMES), None)
        surplus = len(segments) - len(names)
        if surplus > 0 and place is not None and b"%2f" not in raw_path.lower():
            segments[place : place + surplus + 1] = ["/".join(segments[place : place + surplus + 1])]
        if len(segments) != len(names):
            return None
        pairs = list(zip(names, segments, strict=True))[1:]
        is_match = all(segment if name.startswith("{") else segment == name for name, segment in pairs)
        return {name[1:-1]: segment for name, segment in pairs if name.startswith("{")} if is_match else None


async def render_page(request: Request, name: str, status: int = 200, **context: Any) -> HTMLResponse:
    """Render a template in a thread, so that a large page does not block Airflow's event loop.

    :param context: the template's variables; `base`, the path at which the app is mounted, is added.
    """
    base = request.scope.get("root_path", "")
    template = _environment().get_template(name)
    return HTMLResponse(await run_in_threadpool(template.render, base=base, **context), status)


async def respond_to_http_error(request: Request, error: Any) -> Response:
    """Return the page or the JSON of an HTTP error."""
    text = ERROR_TEXTS.get(error.status_code, str(error.detail))
    response = await _to_error_response(request, error.status_code, text)
    if error.status_code == TOO_MANY_REQUESTS:
        response.headers.update(error.headers or {})
    return response


async def respond_to_invalid_request(request: Request, error: Any) -> Response:
    """Return the page or the JSON of a request with invalid parameters."""
    names = ", ".join(sorted({str(one["loc"][-1]) for one in error.errors()}))
    return await _to_error_response(request, 422, f"Invalid URL parameter: {to_safe_line(names)}.")


async def respond_to_flow_error(request: Request, error: Exception) -> Response:
    """Return the page or the JSON of an error whose message is for the user."""
    status = 503 if isinstance(error, FlowServiceError) and error.is_transient else 404
    return await _to_error_response(request, status, to_safe_line(str(error)), DEFAULT_TITLE)


async def _to_error_response(request: Request, status: int, text: str, title: str = "") -> Response:
    # older versions of Starlette take the host of a URL, and then its path, from the Host header
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    if path.startswith("/json/"):
        return JSONResponse({"detail": text}, status)
    title = title or ERROR_TITLES.get(status, DEFAULT_TITLE)
    return await render_page(request, "message.html", status, title=title, text=text)


@cache
def load_static(name: str) -> bytes | None:
    """Return the content of a static file, None if there is no such file."""
    if name not in STATIC_MEDIA_TYPES:
        return None
    content = (files("airflow_provider_flows.plugin") / "static" / name).read_bytes()
    return content + STYLE.encode() if name == "flows.css" else content


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("airflow_provider_flows.plugin"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(
        quote_segment=quote_segment,
        size=format_size,
        duration=format_duration,
        percent=format_percent,
        timestamp=format_timestamp,
        size_change=format_size_change,
        time_left=format_time_left,
        shorten_id=shorten_id,
        rate=format_rate,
        state_class=get_state_class,
    )
    environment.globals.update(
        query=to_query,
        picture=draw_picture,
        get_viewer=load_viewer,
        max_unasked_bytes=MAX_UNASKED_MODEL_BYTES,
    )
    return environment


def quote_segment(text: str) -> str:
    """Quote a text as one segment of a URL's path."""
    return quote(text, safe="", errors="replace")


def to_query(selection: Mapping[str, Any], **changes: Any) -> str:
    """Return a URL's query with some parameters changed.

    Empty parameters and defaults are omitted. Any change but one of the page itself leads to page 1.
    """
    params = {**selection, **({} if "page" in changes else {"page": 1}), **changes}
    non_default_params = {
        name: value
        for name, value in params.items()
        if value not in {"", None} and (name, value) != ("page", 1)
    }
    return f"?{urlencode(non_default_params, errors='replace')}"


def format_size(count: int | None) -> str:
    """Format a number of bytes, in powers of 1000."""
    if count is None:
        return ""
    if count < 1000:
        return f"{count} bytes"
    power = min(int(math.log(count, 1000)), 4)
    digits = 1 if count < 100 * 1000**power else 0
    return f"{count / 1000**power:.{digits}f} {('', 'kB', 'MB', 'GB', 'TB')[power]}"


def format_size_change(before: int | None, after: int | None) -> str:
    """Format two sizes, with one unit if it is the same: `143 → 13.2 kB`; empty if one is unknown."""
    if before is None or after is None:
        return ""
    one, other = format_size(before), format_size(after)
    if one.rpartition(" ")[2] == other.rpartition(" ")[2]:
        one = one.rpartition(" ")[0]
    return f"{one} → {other}"


def format_time_left(seconds: float | None) -> str:
    """Format the time until an expected end: seconds near it, and else minutes."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def format_duration(seconds: float | None) -> str:
    """Format a number of seconds."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def format_rate(per_minute: float) -> str:
    """Format a number of items per minute."""
    if per_minute < 1:
        return f"{60 * per_minute:.1f} items per hour"
    digits = 0 if per_minute >= 10 else 1
    return f"{per_minute:,.{digits}f} items per minute"


def get_state_class(state: str) -> str:
    """Return the class of an element that shows the state of a batch's item: that of such a flow run."""
    return ITEM_STATE_CLASSES.get(state, "created")


def format_percent(progress: float) -> str:
    """Format a progress of 0.0 to 1.0, rounded down, so that only a finished run has 100 %."""
    return f"{int(progress * 100)} %"


def format_timestamp(when: datetime | None, form: str = "") -> Markup:
    """Return a `<time>` element in UTC, which the script converts to the user's time zone in Airflow.

    :param form: `time` for the time of day, `minute` for that without seconds, else date and time.
    """
    if when is None:
        return Markup('<span class="nothing">{}</span>').format(NO_VALUE)
    text = f"{when:{TIME_FORMATS.get(form, '%Y-%m-%d %H:%M:%S')}}"
    return Markup('<time datetime="{}" data-form="{}">{} UTC</time>').format(when.isoformat(), form, text)


def shorten_id(flow_run_id: str) -> str:
    """Return the id of a flow run, truncated with an ellipsis if it is long."""
    is_short = len(flow_run_id) <= MAX_SHORT_ID_LENGTH + 1
    return flow_run_id if is_short else f"{flow_run_id[:MAX_SHORT_ID_LENGTH]}…"


def draw_picture(graph: FlowGraph, title: str) -> Markup:
    """Return the picture of a flow's graph as SVG; its colors are in the style sheet."""
    return Markup(to_svg(graph, title=title, styled=False))  # noqa: S704  # an element tree, with escaped texts
