"""The Airflow plugin: a listener for finished tasks, and the user interface for flow runs.

Every Airflow process that loads plugins imports this module, task processes included. The user interface is
therefore an ASGI app that imports the pages on the first request. It adds security headers to each response.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from functools import cache
from threading import Lock
from typing import Any

from airflow.providers.common.compat.sdk import AirflowPlugin, BaseOperatorLink

from airflow_provider_flows.plugin import listener

log = logging.getLogger(__name__)

PREFIX = "/flows"
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# The pages load only their own files, can be framed only by Airflow, and are not cached.
CONTENT_SECURITY_POLICY = {
    "default-src": "'none'",
    "style-src": "'self'",
    "script-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "frame-ancestors": "'self'",
    "base-uri": "'none'",
    "form-action": "'self'",
}
HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",  # a route may set another one
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
UNAVAILABLE_WARNING = (
    "The Flow runs pages are not available in this version of Airflow: %s. "
    "All other parts of the provider work"
)
UNAVAILABLE_TEXT = (
    "The Flow runs pages are not available in this version of Airflow. "
    "The log of the API server has the reason."
)
# Relative URLs: Airflow's UI resolves them against its own base URL.
_BASE_PATH = PREFIX.removeprefix("/")
_ICONS = {"icon": f"{_BASE_PATH}/static/icon.svg", "icon_dark_mode": f"{_BASE_PATH}/static/icon-dark.svg"}


class LazyApp:
    """An ASGI app that creates the actual app when the first request arrives."""

    def __init__(self) -> None:
        self._app: App | None = None
        self._lock = Lock()

    def __repr__(self) -> str:
        """Return the name that Airflow's *Plugins* page shows."""
        return f"<{__name__} at {PREFIX}>"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request and set the headers of its response."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": _add_own_headers(message.get("headers", ()))}
            await send(message)

        await self._get_app()(scope, receive, send_with_headers)

    def _get_app(self) -> App:
        with self._lock:
            if self._app is None:
                self._app = _create_app()
            return self._app


@cache
def get_headers() -> dict[str, str]:
    """Return the headers of each response.

    The Content Security Policy allows what the viewer of 3D models needs, if this installation has one.
    """
    from airflow_provider_flows.plugin.viewer import load_viewer  # only for the pages

    viewer = load_viewer()
    policy = CONTENT_SECURITY_POLICY | ({} if viewer is None else viewer.get_policy())
    return {
        "content-security-policy": "; ".join(f"{name} {sources}" for name, sources in policy.items()),
        **HEADERS,
    }


def _add_own_headers(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return a response's headers with the own ones. A route may have set `cache-control`."""
    own = {name.encode(): value.encode() for name, value in get_headers().items()}
    if any(name.lower() == b"cache-control" for name, _ in headers):
        del own[b"cache-control"]
    return [*((name, value) for name, value in headers if name.lower() not in own), *own.items()]


def _create_app() -> App:
    try:
        from airflow_provider_flows.plugin.routes import create_app
    except ImportError as error:
        log.warning(UNAVAILABLE_WARNING, error)
        return _send_unavailable
    return create_app()


async def _send_unavailable(scope: Message, receive: Receive, send: Send) -> None:  # noqa: ARG001  # an ASGI app
    await send(
        {
            "type": "http.response.start",
            "status": 503,
            "headers": [(b"content-type", b"text/plain; charset=utf-8")],
        }
    )
    await send({"type": "http.response.body", "body": UNAVAILABLE_TEXT.encode()})


class ServedLink(BaseOperatorLink):
    """A link that the API server computes when the UI asks for it, for the package's own operators."""

    @property
    def operators(self) -> list[type]:  # type: ignore[override]  # a class variable there, and imported too early
        """The operators whose links these are; Airflow compares their names with a stored DAG's."""
        # slow to import
        from airflow_provider_flows import decorators, operators, sensors
        from airflow_provider_flows.worker.run_tracking import RunTrackingMixin, has_served_links

        found = [value for module in (operators, sensors, decorators) for value in vars(module).values()]
        return [
            value
            for value in dict.fromkeys(filter(_is_class, found))
            if issubclass(value, RunTrackingMixin) and has_served_links(value)
        ]


class ServedRunLink(ServedLink):
    """The page of the flow run."""

    name = "Flow run"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002  # Airflow's signature
        """Return the URL; empty without a run."""
        from airflow_provider_flows.plugin.airflow_internals import get_run_link  # slow to import

        return get_run_link(ti_key)


class ServedOutputsLink(ServedLink):
    """The output file, or the folder of several."""

    name = "Outputs"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002  # Airflow's signature
        """Return the URL; empty without files."""
        from airflow_provider_flows.plugin.airflow_internals import get_outputs_link  # slow to import

        return get_outputs_link(ti_key)


def _is_class(value: object) -> bool:
    return isinstance(value, type)


class FlowsPlugin(AirflowPlugin):
    """Add a *Flow run* tab to each task instance, a *Flow runs* page and the listener for finished tasks."""

    name = "flows"
    operator_extra_links = [ServedRunLink(), ServedOutputsLink()]  # noqa: RUF012  # as in AirflowPlugin
    listeners = [listener]  # noqa: RUF012  # declared as in AirflowPlugin
    fastapi_apps = [{"name": "Flow runs", "app": LazyApp(), "url_prefix": PREFIX}]  # noqa: RUF012  # as in AirflowPlugin
    external_views = [  # noqa: RUF012  # as in AirflowPlugin
        {
            "name": "Flow run",
            "href": f"{_BASE_PATH}/task/{{DAG_ID}}/{{RUN_ID}}/{{TASK_ID}}/{{MAP_INDEX}}",
            "destination": "task_instance",
            "url_route": "flow-run",
            **_ICONS,
        },
        {
            "name": "Flow runs",
            "href": f"{_BASE_PATH}/",
            "destination": "nav",
            "category": "browse",
            "url_route": "flow-runs",
            **_ICONS,
        },
    ]
