"""The service of the benchmarks: scripted flow runs behind Generio's endpoints, and one of dbt Cloud's.

Unlike the emulator it has no faults and ignores inputs. It is cheap, has exact times, and counts requests.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import resource
import time
from collections import Counter
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

from benchmarks.http_server import RawResponse, serve
from benchmarks.scripted_runs import PROGRESS, RunScript
from tools.processes import LOOPBACK

LIST_MODES = ("states", "fields", "offset", "silent", "absent")  # of GET /flows, see `FlowService.list_runs`
PAGE_SIZE = 100
DBT_RUNNING, DBT_SUCCESS = 3, 10
NOT_FOUND: RawResponse = (404, b'{"detail": "Not Found"}')
OUTPUT = b'[{"asset_id": "1", "status": "ready", "processed": null, "additional": null}]'
MODEL_HEADER_BYTES = 12


class Run:
    """A flow run; `starts_at` is None until it is started."""

    def __init__(self, number: int, flow_run_id: str, starts_at: float | None, duration: float) -> None:
        """Create a run; times are epoch seconds."""
        self.number, self.flow_run_id, self.duration = number, flow_run_id, duration
        self._static_json = ""
        self.starts_at: float | None = None
        self.ends_at: float | None = None
        if starts_at is not None:
            self.start(starts_at)

    def start(self, now: float) -> None:
        """Start the run, once."""
        if self.starts_at is None:
            self.starts_at, self.ends_at = now, now + self.duration

    def is_running(self, now: float) -> bool:
        """Return whether it is in progress."""
        return (
            self.starts_at is not None and self.ends_at is not None and self.starts_at <= now < self.ends_at
        )

    def is_completed(self, now: float) -> bool:
        """Return whether it is completed."""
        return self.ends_at is not None and now >= self.ends_at

    def to_json(self, now: float, progress: str) -> str:
        """Return the JSON of "Get flow details"."""
        if self.starts_at is None or now < self.starts_at:
            return self._format_state("created", 0.0, None)
        if self.is_completed(now):
            return self._format_state("completed", 1.0, self.ends_at)
        return self._format_state("running", PROGRESS[progress]((now - self.starts_at) / self.duration), None)

    def _format_state(self, state: str, progress: float, finished: float | None) -> str:
        # fields that do not change are formatted once: the server must be cheap
        if not self._static_json and self.starts_at is not None:
            self._static_json = self._static_fields()
        fixed = self._static_json or self._static_fields()
        return f'{{{fixed}"state": "{state}", "progress": {progress}, "finished_at": {_iso(finished)}}}'

    def _static_fields(self) -> str:
        return (
            f'"flow_id": "{self.flow_run_id}", "template": "model_generate_fromprompt", "additional": null, '
            f'"created_at": {_iso(self.starts_at)}, "started_at": {_iso(self.starts_at)}, '
            '"parameters": {"quality": "high", "seed": -1, "texture": true}, '
        )


class FlowService:
    """All runs, and the responses about them."""

    def __init__(self, script: RunScript, progress: str, listing: str, model_bytes: int = 0) -> None:
        """Create a service without runs; those of the script start by a control request.

        :param model_bytes: the size of each run's output, a model; without a size it is the run itself.
        """
        self._script, self._progress, self._listing = script, progress, listing
        self._model = _create_model(model_bytes) if model_bytes else None
        self._runs: dict[str, Run] = {}
        self._request_counts: Counter[str] = Counter()

    def handle(self, method: str, target: str, body: bytes) -> RawResponse:
        """Return the response to a request, and count it."""
        parts = urlsplit(target)
        segments = parts.path.strip("/").split("/")
        match (method, *segments):
            case ("GET", "flows", key):
                return self._count("run", self._get_run(key))
            case ("GET", "flows"):
                return self._count("list", self.list_runs(parts.query))
            case ("GET", "api", "v2", "accounts", _, "runs", number):
                return self._count("dbt", self._get_dbt_run(int(number)))
            case ("GET", "_bench", word):
                return 200, self._control(word, parts.query)
            case _:
                return self._count("other", self._start_or_read(method, segments, body))

    def _count(self, kind: str, response: RawResponse) -> RawResponse:
        self._request_counts[kind] += 1
        return response

    def _get_run(self, key: str) -> RawResponse:
        run = self._runs.get(key)
        return NOT_FOUND if run is None else (200, run.to_json(time.time(), self._progress).encode())

    def list_runs(self, query: str) -> RawResponse:
        """Respond to GET /flows in one of the readings of vendor_notes.md, G-06 and G-08.

        states: all runs in progress; fields: every run, `filter_by` selects fields; offset: pages, with a
        total; silent: only the first page, without a hint; absent: 404.
        """
        params, now = parse_qs(query), time.time()
        if self._listing == "absent":
            return NOT_FOUND
        if self._listing == "fields" and "filter_by" in params:
            ids = [f'{{"flow_id": "{key}"}}' for key in self._runs]
            return 200, f'{{"flows": [{", ".join(ids)}]}}'.encode()
        selected = [run for run in self._runs.values() if run.is_running(now) or "filter_by" not in params]
        total = len(selected)
        if self._listing in {"offset", "silent"}:
            start = int(params.get("offset", ["0"])[0])
            selected = selected[start : start + PAGE_SIZE]
        hint = f', "total": {total}' if self._listing == "offset" else ""
        rows = ", ".join(run.to_json(now, self._progress) for run in selected)
        return 200, f'{{"flows": [{rows}]{hint}}}'.encode()

    def _get_dbt_run(self, number: int) -> RawResponse:
        run = self._runs.get(f"{number:024x}")
        if run is None:
            return NOT_FOUND
        status = DBT_SUCCESS if run.is_completed(time.time()) else DBT_RUNNING
        return 200, f'{{"data": {{"id": {number}, "status": {status}}}, "status": {{"code": 200}}}}'.encode()

    def _start_or_read(self, method: str, segments: list[str], body: bytes) -> RawResponse:
        """Respond to requests that start a run or read its outputs."""
        now = time.time()
        if (method, segments) == ("POST", ["flows"]):
            run = Run(number := len(self._runs) + 1, f"{number:024x}", None, self._script.shortest)
            self._runs[run.flow_run_id] = run
            if json.loads(body).get("inputs"):
                run.start(now)
        elif len(segments) < 2 or segments[0] != "flows" or (known := self._runs.get(segments[1])) is None:
            return NOT_FOUND
        elif (method, segments[2:]) == ("GET", ["outputs"]):
            return 200, b'{"flow_id": "%s", "outputs": %s}' % (known.flow_run_id.encode(), OUTPUT)
        elif (method, segments[2:]) == ("GET", ["outputs", "1"]) and self._model is not None:
            return 200, self._model
        elif (method, segments[2:]) == ("POST", ["inputs"]):
            return 200, b'{"asset_id": "0"}'
        else:
            run = known
            if method == "PATCH":
                run.start(now)
        return 200, run.to_json(now, self._progress).encode()

    def _control(self, command: str, query: str) -> bytes:
        """Start the script, or report the requests so far."""
        if command == "start":
            origin = float(parse_qs(query)["at"][0])
            runs = (
                Run(run.number, run.flow_run_id, origin + run.start_offset, run.duration)
                for run in self._script.runs()
            )
            self._runs = {run.flow_run_id: run for run in runs}
            self._request_counts.clear()
        return json.dumps(
            {"requests": dict(self._request_counts), "cpu": time.process_time(), "runs": len(self._runs)}
        ).encode()


def _create_model(size: int) -> bytes:
    """Return the response with a GLB of that size."""
    header = b"glTF\x02\x00\x00\x00" + size.to_bytes(4, "little")
    model = base64.b64encode(header + bytes(size - MODEL_HEADER_BYTES))
    return b'{"data": "data:model/gltf-binary;base64,%s"}' % model


def _iso(timestamp: float | None) -> str:
    return (
        "null"
        if timestamp is None
        else f'"{datetime.fromtimestamp(timestamp, tz=UTC).isoformat(timespec="milliseconds")}"'
    )


def allow_many_connections() -> None:
    """Raise this process's limit of open files to the hard limit: each connection is one."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def main() -> None:
    """Serve on the loopback interface until the process is stopped."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flow_server", description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shortest", type=float, default=20.0)
    parser.add_argument("--longest", type=float, default=60.0)
    parser.add_argument("--spread", type=float, default=3.0)
    parser.add_argument("--progress", choices=PROGRESS, default="linear")
    parser.add_argument("--list", choices=LIST_MODES, default="states")
    parser.add_argument("--model", type=int, default=0, help="size of each run's output in bytes")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each response")
    options = parser.parse_args()
    allow_many_connections()
    service = FlowService(
        RunScript(options.runs, options.seed, options.shortest, options.longest, options.spread),
        options.progress,
        options.list,
        options.model,
    )
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(service.handle, LOOPBACK, options.port, options.latency))
    else:
        uvloop.run(serve(service.handle, LOOPBACK, options.port, options.latency))


if __name__ == "__main__":
    main()
