"""Servers of a predictions API and of a queue API. The clients are in tests/services/other_services.

A run advances with each poll, not with time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.servers import ReceivedRequest, StubResponse, StubServer

KEY = "the-key-of-the-other-services"
MODEL = "acme/upscale"
SLOW_MODEL = "acme/slow"
BROKEN_MODEL = "acme/broken"
POLLS_UNTIL_DONE = {MODEL: 3, SLOW_MODEL: 10_000, BROKEN_MODEL: 2}
PAGE_SIZE = 3
FILES = {
    "mesh.obj": ("model/obj", b"# a mesh\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"),
    "sound.bin": ("application/x-sound", bytes(range(256)) * 300),
    "table.csv": ("text/csv", b"a,b\n1,2\n"),
}
SCHEMA = {
    "required": ["prompt"],
    "properties": {
        "prompt": {"type": "string"},
        "scale": {"type": "integer", "minimum": 1, "maximum": 8, "default": 2},
        "image": {"type": "string"},
        "tags": {"type": "array"},
        "fast": {"type": "boolean"},
    },
}


@dataclass
class Job:
    """One run."""

    number: str
    model: str
    body: dict[str, Any]
    key: str | None
    polls: int = 0
    state: str = "starting"

    def record_poll(self) -> None:
        """Advance by one poll."""
        if self.state in {"starting", "processing"}:
            self.polls += 1
            self.state = "processing" if self.polls > 1 else "starting"
            if self.polls >= POLLS_UNTIL_DONE[self.model]:
                self.state = "failed" if self.model == BROKEN_MODEL else "succeeded"


class OtherServices:
    """The runs of either API, and the requests."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.requests: list[ReceivedRequest] = []
        self.url = ""
        self.lost_responses = 0
        """How many responses to a start are lost: the run starts, and a gateway responds with 503."""

    def reply(self, request: ReceivedRequest) -> StubResponse:
        """Return the response to one request."""
        path, _, query = request.path.partition("?")
        if path.startswith("/files/"):
            media_type, content = FILES[path.rpartition("/")[2]]
            return StubResponse(200, {"Content-Type": media_type}, content)
        if request.headers.get("authorization") not in {f"Bearer {KEY}", f"Key {KEY}"}:
            return StubResponse(401)
        found = self._dispatch(f"{request.method} {path}", query, request)
        if isinstance(found, StubResponse):
            return found
        return StubResponse(404) if found is None else StubResponse(body=json.dumps(found).encode())

    def _dispatch(self, route: str, query: str, request: ReceivedRequest) -> Any:
        if route in {"GET /v1/account", "GET /health"}:
            return {"username": "ada"}
        if route == "GET /v1/predictions":
            return self._list(int(query.partition("=")[2] or 0))
        if match := re.fullmatch(r"POST /v1/models/(\w+/\w+)/predictions|POST /(\w+/\w+)", route):
            return self._start(match[1] or match[2], request, is_queue=match[1] is None)
        if match := re.fullmatch(r"GET /v1/models/(\w+/\w+)", route):
            return {"input_schema": SCHEMA} if match[1] in POLLS_UNTIL_DONE else None
        if match := re.fullmatch(r"(\w+) /v1/predictions/(\w+)(/cancel)?", route):
            return self._handle_prediction(match[1], self.jobs.get(match[2]), is_cancel=bool(match[3]))
        match = re.fullmatch(r"(\w+) /(\w+/\w+)/requests/(\w+)(/status|/cancel)?", route)
        return match and self._handle_queued(f"{match[1]}{match[4] or ''}", self.jobs.get(match[3]))

    def _start(self, model: str, request: ReceivedRequest, *, is_queue: bool) -> Any:
        if model not in POLLS_UNTIL_DONE:
            return None
        key = request.headers.get("idempotency-key")
        job = next((one for one in self.jobs.values() if key is not None and one.key == key), None)
        if job is None:
            job = Job(f"p{len(self.jobs) + 1:05}", model, json.loads(request.body), key)
            self.jobs[job.number] = job
        if self.lost_responses:
            self.lost_responses -= 1
            return StubResponse(503)
        return self._to_status(job) if is_queue else self._to_prediction(job)

    def _list(self, start: int) -> dict[str, Any]:
        newest = list(reversed(self.jobs.values()))
        end = start + PAGE_SIZE
        following = f"{self.url}/v1/predictions?cursor={end}" if end < len(newest) else None
        return {"results": [self._to_prediction(job) for job in newest[start:end]], "next": following}

    def _handle_prediction(self, method: str, job: Job | None, *, is_cancel: bool) -> Any:
        if job is None:
            return None
        if is_cancel:
            return self._cancel(job, method == "POST")
        job.record_poll()
        return self._to_prediction(job)

    def _handle_queued(self, action: str, job: Job | None) -> Any:
        if job is None:
            return None
        if action.endswith("/cancel"):
            return self._cancel(job, action == "PUT/cancel")
        if action == "GET/status":
            job.record_poll()
            return self._to_status(job)
        if job.state == "failed":
            return StubResponse(422, body=b'{"detail": "The picture is too dark."}')
        files = [
            {"url": f"{self.url}/files/{name}", "content_type": kind, "file_name": name}
            for name, (kind, _) in FILES.items()
        ]
        return {"files": files}

    def _cancel(self, job: Job, is_right_method: bool) -> Any:
        if not is_right_method:
            return StubResponse(405)
        job.state = "canceled"
        return {}

    def _to_prediction(self, job: Job) -> dict[str, Any]:
        is_done = job.state == "succeeded"
        return {
            "id": job.number,
            "model": job.model,
            "status": job.state,
            "created_at": f"2026-01-01T00:{int(job.number[1:]):02}:00Z",
            "started_at": None,
            "completed_at": "2026-01-01T12:00:00Z" if is_done else None,
            "error": "The picture is too dark." if job.state == "failed" else None,
            "output": [f"{self.url}/files/{name}" for name in FILES] if is_done else None,
        }

    def _to_status(self, job: Job) -> dict[str, Any]:
        names = {"starting": "IN_QUEUE", "processing": "IN_PROGRESS", "canceled": "CANCELED"}
        position = {"queue_position": 4 - job.polls} if job.state == "starting" else {}
        return {"request_id": job.number, "status": names.get(job.state, "COMPLETED"), **position}


@contextmanager
def run_other_services() -> Iterator[OtherServices]:
    """Run both APIs on one port until the end of the block."""
    services = OtherServices()
    with StubServer(services.reply) as server:
        services.requests, services.url = server.requests, server.url
        yield services
