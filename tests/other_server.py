"""A second server that speaks Generio's documented API, written from the vendor's pages alone: no code of ours, no emulator.

It knows one key and one flow, answers what the pages list and no key more, and tells no progress until a run is done.
"""

from __future__ import annotations

import json
import secrets
import time
from base64 import b64encode
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, Self

MODEL = b"glTF" + (2).to_bytes(4, "little") + (12).to_bytes(4, "little")  # the least that is whole by its header
SECONDS = 1.5
FLOW = "make_something"


class OtherServer(AbstractContextManager["OtherServer"]):
    """The server, from `with` to the end of the block."""

    def __init__(self) -> None:
        """Take a free port; nothing is answered yet."""
        self.key = secrets.token_urlsafe(24)
        self.runs: dict[str, dict[str, Any]] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"owner": self}))
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        """Begin to answer."""
        Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End."""
        self._http.shutdown()
        self._http.server_close()

    def answer(self, method: str, path: list[str], body: dict[str, Any]) -> Any:
        """Give what the pages say; None for 404."""
        if path == ["flows"] and method == "POST" and body["template"] == FLOW:
            flow_id, inputs = secrets.token_hex(12), body.get("inputs", [])
            self.runs[flow_id] = {"made": time.time(), "begun": time.time() if inputs else None, "inputs": inputs}
            return self.shown(flow_id)
        flow_id, *rest = path[1:] or [""]
        if flow_id not in self.runs:
            return None
        if method == "PATCH" and body == {"action": "start"}:
            self.runs[flow_id]["begun"] = time.time()
        if method == "POST" and rest == ["inputs"]:
            self.runs[flow_id]["inputs"].append(body)
            return {"asset_id": secrets.token_hex(12)}
        outputs = {"outputs": [{"asset_id": "0123", "status": "ready", "additional": {"order": 17}}]}
        content = {"data": "data:model/gltf-binary;base64," + b64encode(MODEL).decode()}
        return {(): self.shown(flow_id), ("outputs",): outputs, ("outputs", "0123"): content}.get(tuple(rest))

    def shown(self, flow_id: str) -> dict[str, Any]:
        """Give a run as it is now."""
        run = self.runs[flow_id]
        begun = run["begun"]
        done = begun is not None and time.time() > begun + SECONDS
        return {
            "flow_id": flow_id,
            "template": FLOW,
            "state": "completed" if done else "created" if begun is None else "running",
            "progress": 1.0 if done else 0.0,
            "created_at": _iso(run["made"]),
            "started_at": _iso(begun),
            "finished_at": _iso(begun + SECONDS) if done else None,
        }


class _Handler(BaseHTTPRequestHandler):
    owner: OtherServer
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        allowed = self.headers.get("authorization") == f"Bearer {self.owner.key}"
        told = self.owner.answer(self.command, self.path.partition("?")[0].strip("/").split("/"), body) if allowed else None
        status = 200 if told is not None else 404 if allowed else 401
        data = json.dumps(told if status == 200 else {"detail": "No."}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = answer  # noqa: N815  # the names are the standard library's

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat()
