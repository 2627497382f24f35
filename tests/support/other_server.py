"""An independent server of both APIs, written from the vendors' pages without code of the package.

Where the pages are ambiguous, it chooses a reading that is not the emulator's default.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.other_runs import FLOW, HttpError, Ledger, Run, RunPlan
from tests.support.servers import ReceivedRequest, StubResponse, StubServer

RUN_SECONDS = 1.5
CHAIN_ID = "clj0other0000qwer1234asdf"
CHAIN_SECONDS = 1.0
VARIABLES, OUTPUT = ("item", "color"), "Slogan"
JSON = "application/json"

Query = Mapping[str, list[str]]


class OtherServer(StubServer):
    """The server; it accepts one key and has one flow of each service."""

    def __init__(self, seconds: float = RUN_SECONDS) -> None:
        """Create the server.

        :param seconds: the time that a flow run takes without a plan.
        """
        super().__init__()
        self.key = secrets.token_urlsafe(24)
        self._ledger = Ledger(seconds)
        self._default_seconds = seconds
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

    def plan_next(self, *, seconds: float | None = None, error: str | None = None) -> None:
        """Plan the flow run that is created next: its duration, and the error that it fails with, if any."""
        self._ledger.plan_next(RunPlan(self._default_seconds if seconds is None else seconds, error))

    def advance(self, seconds: float) -> None:
        """Advance the server's clock."""
        self._ledger.advance(seconds)

    def count_paid(self, tag: str) -> int:
        """Return the number of billed runs that have this value in their metadata or variables."""
        return sum(isinstance(payment, dict) and tag in payment.values() for payment in self._ledger.payments)

    def respond(self, request: ReceivedRequest) -> StubResponse:
        """Return the response to a request."""
        try:
            body = json.loads(request.body or b"{}")
            result = self._dispatch(request.method, request.path, request.headers, body)
        except HttpError as error:
            return _error_response(error, chain=request.path.startswith("/api/"))
        return _to_response(result)

    def _dispatch(self, method: str, address: str, headers: Mapping[str, str], body: dict[str, Any]) -> Any:
        """Return what the pages say: a JSON value, a file's bytes, or None for a response without a body."""
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
                # a chain sleeps, so it must not hold the lock
                with nullcontext() if chain else self._ledger.lock:
                    return handler(*found.groups(), query=parse_qs(parts.query), body=body)
        raise HttpError(404, "no such thing")

    def _list(self, query: Query, **_: Any) -> list[dict[str, Any]]:
        """Return a bare list, oldest first; `filter_by` selects fields (vendor_notes.md, G-06)."""
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
        """Return the bytes of a file, as the vendor's scripts expect (vendor_notes.md, G-02)."""
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
        """Return a run's JSON: progress only at the end, a failure's reason under an undocumented key."""
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
        """Return one output and a row of another type, which vendor code ignores (vendor_notes.md, P-12)."""
        self._chain_info(chain)
        variables = body.get("variables")
        if not isinstance(variables, dict) or set(variables) != set(VARIABLES):
            raise HttpError(400, f"the variables are {' and '.join(VARIABLES)}")
        self._ledger.payments.append(variables)
        time.sleep(CHAIN_SECONDS)
        text = f"\n The {variables['color']} {variables['item']}! \n"
        return [{"name": "usage", "type": "info"}, {"name": OUTPUT, "type": "output", "output": text}]


def _to_response(result: Any) -> StubResponse:
    if isinstance(result, bytes):
        return StubResponse(200, {"Content-Type": "application/octet-stream"}, result)
    return StubResponse(200, {"Content-Type": JSON}, b"" if result is None else json.dumps(result).encode())


def _error_response(error: HttpError, *, chain: bool) -> StubResponse:
    """Return the response to a rejected request: 422 as documented, others in undocumented forms."""
    message = str(error)
    if chain:
        return StubResponse(error.status, {"Content-Type": "text/plain"}, message.encode())
    if error.status == 404:
        html = f"<h1>Not found</h1><p>{message}</p>"
        return StubResponse(404, {"Content-Type": "text/html"}, html.encode())
    detail = {"detail": [{"loc": ["body"], "msg": message, "type": "value_error"}]}
    content = json.dumps(detail if error.status == 422 else {"message": message})
    return StubResponse(error.status, {"Content-Type": JSON}, content.encode())


def _iso(timestamp: float | None) -> str | None:
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC).isoformat()
