"""A second server that speaks both documented APIs, written from the vendors' pages alone: no code of ours, no emulator.

Where the pages leave something open it does what the emulator does not by itself; how its flow runs go stands in other_runs.py.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.support.other_runs import FLOW, HttpError, Ledger, Run, RunPlan

RUN_SECONDS = 1.5
CHAIN_ID = "clj0other0000qwer1234asdf"
CHAIN_SECONDS = 1.0
VARIABLES, OUTPUT = ("item", "color"), "Slogan"
JSON = "application/json"

Query = Mapping[str, list[str]]


class OtherServer(AbstractContextManager["OtherServer"]):
    """The server, from `with` to the end of the block; it knows one key and one flow of either service."""

    def __init__(self, seconds: float = RUN_SECONDS) -> None:
        """Take a free port; nothing is answered yet.

        :param seconds: how long a flow run takes of which nothing else is said.
        """
        self.key = secrets.token_urlsafe(24)
        self._ledger = Ledger(seconds)
        self._default_seconds = seconds
        self._http = _Http(("127.0.0.1", 0), type("Bound", (_Handler,), {"owner": self}))
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._routes: tuple[tuple[str, str, Callable[..., Any]], ...] = (
            ("GET", "/flows", self._list),
            ("POST", "/flows", self._create),
            ("GET", "/flows/([^/]+)", self._get),
            ("PATCH", "/flows/([^/]+)", self._act),
            ("DELETE", "/flows/([^/]+)", self._delete),
            ("POST", "/flows/([^/]+)/inputs", self._add_input),
            ("GET", "/flows/([^/]+)/outputs", self._outputs),
            ("GET", "/flows/([^/]+)/outputs/([^/]+)", self._output),
            ("GET", "/api/flows/getFlowInfo/([^/]+)", self._chain_info),
            ("POST", "/api/flows/run/([^/]+)", self._run_chain),
        )

    def __enter__(self) -> Self:
        """Begin to answer."""
        Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._http.shutdown()
        self._http.server_close()

    def plan_next(self, *, seconds: float | None = None, error: str | None = None) -> None:
        """Say how the flow run goes that is made next: how long it takes, and the error that it ends with, if any."""
        self._ledger.plan_next(RunPlan(self._default_seconds if seconds is None else seconds, error))

    def advance(self, seconds: float) -> None:
        """Push the server's clock forward."""
        self._ledger.advance(seconds)

    def count_paid(self, tag: str) -> int:
        """Count the runs that were started, so paid for, of those in whose metadata or variables there is this value."""
        return sum(isinstance(payment, dict) and tag in payment.values() for payment in self._ledger.payments)

    def handle(self, method: str, address: str, headers: Mapping[str, str], body: dict[str, Any]) -> Any:
        """Give what the pages say: a JSON value, a file's bytes, or None for an answer without a body."""
        parts = urlsplit(address)
        chain = parts.path.startswith("/api/")
        if self.key != (
            headers.get("x-api-key")
            if chain
            else (headers.get("authorization") or "").removeprefix("Bearer ")
        ):
            raise HttpError(403, "not with this key")
        for verb, pattern, handler in self._routes:
            found = re.fullmatch(pattern, parts.path)
            if found and verb == method:
                with (
                    nullcontext() if chain else self._ledger.lock
                ):  # a chain takes its time, which is nobody else's
                    return handler(*found.groups(), query=parse_qs(parts.query), body=body)
        raise HttpError(404, "no such thing")

    def _list(self, query: Query, **_: Any) -> list[dict[str, Any]]:
        """Give the bare list, oldest first; `filter_by` is read as the fields that are wanted (vendor-api G-06)."""
        rows = [self._to_json(run) for run in self._ledger.list_runs()]
        fields = query.get("filter_by")
        return (
            [{key: row[key] for key in row if key in {"flow_id", *fields}} for row in rows]
            if fields
            else rows
        )

    def _create(self, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {"flow_id": self._ledger.create(body).flow_id}

    def _get(self, flow_id: str, **_: Any) -> dict[str, Any]:
        return self._to_json(self._ledger.get_run(flow_id))

    def _act(self, flow_id: str, body: dict[str, Any], **_: Any) -> None:
        actions = {"start": self._ledger.start, "abort": self._ledger.abort}
        if body.get("action") not in actions:
            raise HttpError(422, "action is start or abort")
        actions[body["action"]](self._ledger.get_run(flow_id))

    def _delete(self, flow_id: str, **_: Any) -> None:
        self._ledger.delete(self._ledger.get_run(flow_id))

    def _add_input(self, flow_id: str, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {"id": f"input-{self._ledger.add_input(self._ledger.get_run(flow_id), body)}"}

    def _outputs(self, flow_id: str, **_: Any) -> dict[str, Any]:
        run = self._get_final_run(flow_id)
        processed = _iso(run.finished_at(self._ledger.now()))
        files = run.files(self._ledger.now())
        common = {"status": "available", "processed": processed}
        return {
            "flow_id": flow_id,
            "outputs": [{"id": key, "additional": files[key]["additional"], **common} for key in files],
        }

    def _output(self, flow_id: str, asset_id: str, **_: Any) -> bytes:
        """Give the file as it is, as the vendor's scripts read it (vendor-api G-02)."""
        files = self._get_final_run(flow_id).files(self._ledger.now())
        if asset_id not in files:
            raise HttpError(404, "no such output")
        return bytes(files[asset_id]["content"])

    def _get_final_run(self, flow_id: str) -> Run:
        run = self._ledger.get_run(flow_id)
        if run.state(self._ledger.now()) not in {"completed", "failed", "aborted"}:
            raise HttpError(425, "outputs come at the end")
        return run

    def _to_json(self, run: Run) -> dict[str, Any]:
        """Give a run as it is now, without progress until it is done; a failure's reason alone is no documented key."""
        now = self._ledger.now()
        state = run.state(now)
        return {
            "flow_id": run.flow_id,
            "template": {"name": FLOW, "category": "Assets"},
            "state": state,
            **({"progress": 1.0} if state == "completed" else {}),
            "created_at": _iso(run.created_at),
            "started_at": _iso(run.started_at),
            "finished_at": _iso(run.finished_at(now)),
            "parameters": run.parameters,
            "additional": run.additional,
            **({"details": run.plan.error} if state == "failed" else {}),
        }

    def _chain_info(self, chain: str, **_: Any) -> list[dict[str, str]]:
        if chain != CHAIN_ID:
            raise HttpError(404, "no such flow")
        rows = [{"name": name, "type": "variable"} for name in VARIABLES]
        return [{"name": OUTPUT, "type": "output"}, *rows]

    def _run_chain(self, chain: str, body: dict[str, Any], **_: Any) -> list[dict[str, str]]:
        """Give one output, and a row of another type, of which the pages say nothing but that vendor code filters (P-12)."""
        self._chain_info(chain)
        variables = body.get("variables")
        if not isinstance(variables, dict) or set(variables) != set(VARIABLES):
            raise HttpError(400, f"the variables are {' and '.join(VARIABLES)}")
        self._ledger.payments.append(variables)
        time.sleep(CHAIN_SECONDS)
        text = f"\n The {variables['color']} {variables['item']}! \n"
        return [{"name": "usage", "type": "info"}, {"name": OUTPUT, "type": "output", "output": text}]


class _Http(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    owner: OtherServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def serve(self) -> None:
        """Answer one request."""
        raw_body = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            body = json.loads(raw_body or b"{}")
            headers = {name.lower(): value for name, value in self.headers.items()}
            result = self.owner.handle(self.command, self.path, headers, body)
        except HttpError as refused:
            status, kind, content = _error_response(refused, chain=self.path.startswith("/api/"))
        else:
            status, kind, content = _encode_result(result)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_DELETE = serve  # noqa: N815  # the names are the standard library's

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _encode_result(result: Any) -> tuple[int, str, bytes]:
    if isinstance(result, bytes):
        return 200, "application/octet-stream", result
    return 200, JSON, b"" if result is None else json.dumps(result).encode()


def _error_response(error: HttpError, *, chain: bool) -> tuple[int, str, bytes]:
    """Word a refusal: 422 as it is documented, and every other one as the pages leave it open."""
    message = str(error)
    if chain:
        return error.status, "text/plain", message.encode()
    if error.status == 404:
        return 404, "text/html", f"<h1>Not found</h1><p>{message}</p>".encode()
    detail = {"detail": [{"loc": ["body"], "msg": message, "type": "value_error"}]}
    return error.status, JSON, json.dumps(detail if error.status == 422 else {"message": message}).encode()


def _iso(timestamp: float | None) -> str | None:
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC).isoformat()
