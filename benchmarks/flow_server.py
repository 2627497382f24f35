"""The service that the benchmarks wait for: scripted flow runs behind Generio's endpoints, and behind dbt Cloud's for a run.

It is no emulator: it knows no faults and reads no inputs, but it is cheap, keeps exact time and counts what it is asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time
from collections import Counter
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

from benchmarks.http_server import Answer, serve
from benchmarks.scripted_runs import PROGRESS, Script
from tools.processes import LOOPBACK

LISTS = ("states", "fields", "offset", "silent", "absent")  # what GET /flows does: see `Service.listed`
PAGE = 100
DBT_RUNNING, DBT_SUCCESS = 3, 10
NOT_FOUND: Answer = (404, b'{"detail": "Not Found"}')
OUTPUT = b'[{"asset_id": "1", "status": "ready", "processed": null, "additional": null}]'


class Run:
    """One flow run as the service keeps it; `begins` is None until it is started."""

    def __init__(self, number: int, flow_run_id: str, begins: float | None, lasts: float) -> None:
        """Keep it; times are epoch seconds."""
        self.number, self.flow_run_id, self.lasts = number, flow_run_id, lasts
        self._fixed = ""
        self.begins: float | None = None
        self.ends: float | None = None
        if begins is not None:
            self.start(begins)

    def start(self, now: float) -> None:
        """Let it begin, once."""
        if self.begins is None:
            self.begins, self.ends = now, now + self.lasts

    def running(self, now: float) -> bool:
        """Whether it has begun and not ended."""
        return self.begins is not None and self.ends is not None and self.begins <= now < self.ends

    def ended(self, now: float) -> bool:
        """Whether it is completed."""
        return self.ends is not None and now >= self.ends

    def shown(self, now: float, progress: str) -> str:
        """Give the JSON of "Get flow details"."""
        if self.begins is None or now < self.begins:
            return self._told("created", 0.0, None)
        if self.ended(now):
            return self._told("completed", 1.0, self.ends)
        return self._told("running", PROGRESS[progress]((now - self.begins) / self.lasts), None)

    def _told(self, state: str, progress: float, finished: float | None) -> str:
        if (
            not self._fixed and self.begins is not None
        ):  # what does not change is written once: the server must be cheap
            self._fixed = self._unchanging()
        fixed = self._fixed or self._unchanging()
        return f'{{{fixed}"state": "{state}", "progress": {progress}, "finished_at": {_iso(finished)}}}'

    def _unchanging(self) -> str:
        return (
            f'"flow_id": "{self.flow_run_id}", "template": "model_generate_fromprompt", "additional": null, '
            f'"created_at": {_iso(self.begins)}, "started_at": {_iso(self.begins)}, '
            '"parameters": {"quality": "high", "seed": -1, "texture": true}, '
        )


class Service:
    """All runs, and what is answered for them."""

    def __init__(self, script: Script, progress: str, listing: str) -> None:
        """Know the script; its runs are there when a client says when they begin."""
        self._script, self._progress, self._listing = script, progress, listing
        self._runs: dict[str, Run] = {}
        self._asked: Counter[str] = Counter()

    def answer(self, method: str, target: str, body: bytes) -> Answer:
        """Answer one request, and count it."""
        parts = urlsplit(target)
        words = parts.path.strip("/").split("/")
        match (method, *words):
            case ("GET", "flows", key):
                return self._counted("run", self._shown(key))
            case ("GET", "flows"):
                return self._counted("list", self.listed(parts.query))
            case ("GET", "api", "v2", "accounts", _, "runs", number):
                return self._counted("dbt", self._dbt(int(number)))
            case ("GET", "_bench", word):
                return 200, self._bench(word, parts.query)
            case _:
                return self._counted("other", self._made(method, words, body))

    def _counted(self, kind: str, answer: Answer) -> Answer:
        self._asked[kind] += 1
        return answer

    def _shown(self, key: str) -> Answer:
        run = self._runs.get(key)
        return NOT_FOUND if run is None else (200, run.shown(time.time(), self._progress).encode())

    def listed(self, query: str) -> Answer:
        """GET /flows, in one of the readings of vendor-api G-06 and G-08.

        states: all running runs; fields: every run, and `filter_by` selects what is told of it; offset: pages, with a total;
        silent: the first page only, without a word about it; absent: 404.
        """
        asked, now = parse_qs(query), time.time()
        if self._listing == "absent":
            return NOT_FOUND
        if self._listing == "fields" and "filter_by" in asked:
            rows = [f'{{"flow_id": "{key}"}}' for key in self._runs]
            return 200, f'{{"flows": [{", ".join(rows)}]}}'.encode()
        wanted = [run for run in self._runs.values() if run.running(now) or "filter_by" not in asked]
        total = len(wanted)
        if self._listing in {"offset", "silent"}:
            start = int(asked.get("offset", ["0"])[0])
            wanted = wanted[start : start + PAGE]
        hint = f', "total": {total}' if self._listing == "offset" else ""
        return (
            200,
            f'{{"flows": [{", ".join(run.shown(now, self._progress) for run in wanted)}]{hint}}}'.encode(),
        )

    def _dbt(self, number: int) -> Answer:
        run = self._runs.get(f"{number:024x}")
        if run is None:
            return NOT_FOUND
        status = DBT_SUCCESS if run.ended(time.time()) else DBT_RUNNING
        return 200, f'{{"data": {{"id": {number}, "status": {status}}}, "status": {{"code": 200}}}}'.encode()

    def _made(self, method: str, words: list[str], body: bytes) -> Answer:
        """Answer what starts a run and what reads its outputs."""
        now = time.time()
        if (method, words) == ("POST", ["flows"]):
            run = Run(number := len(self._runs) + 1, f"{number:024x}", None, self._script.shortest)
            self._runs[run.flow_run_id] = run
            if json.loads(body).get("inputs"):
                run.start(now)
        elif len(words) < 2 or words[0] != "flows" or (found := self._runs.get(words[1])) is None:
            return NOT_FOUND
        elif (method, words[2:]) == ("GET", ["outputs"]):
            return 200, b'{"flow_id": "%s", "outputs": %s}' % (found.flow_run_id.encode(), OUTPUT)
        elif (method, words[2:]) == ("POST", ["inputs"]):
            return 200, b'{"asset_id": "0"}'
        else:
            run = found
            if method == "PATCH":
                run.start(now)
        return 200, run.shown(now, self._progress).encode()

    def _bench(self, word: str, query: str) -> bytes:
        """Let a client begin, or tell it what was asked so far."""
        if word == "begin":
            origin = float(parse_qs(query)["at"][0])
            made = (
                Run(run.number, run.flow_run_id, origin + run.begins, run.lasts)
                for run in self._script.runs()
            )
            self._runs = {run.flow_run_id: run for run in made}
            self._asked.clear()
        return json.dumps(
            {"requests": dict(self._asked), "cpu": time.process_time(), "runs": len(self._runs)}
        ).encode()


def _iso(moment: float | None) -> str:
    return (
        "null"
        if moment is None
        else f'"{datetime.fromtimestamp(moment, tz=UTC).isoformat(timespec="milliseconds")}"'
    )


def allow_many_connections() -> None:
    """Raise this process's bound on open files to what the machine allows: each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> None:
    """Serve on the loopback address until ended."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flow_server", description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shortest", type=float, default=20.0)
    parser.add_argument("--longest", type=float, default=60.0)
    parser.add_argument("--spread", type=float, default=3.0)
    parser.add_argument("--progress", choices=PROGRESS, default="linear")
    parser.add_argument("--list", choices=LISTS, default="states")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that each answer is held back")
    told = parser.parse_args()
    allow_many_connections()
    service = Service(
        Script(told.runs, told.seed, told.shortest, told.longest, told.spread), told.progress, told.list
    )
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(service.answer, LOOPBACK, told.port, told.latency))
    else:
        uvloop.run(serve(service.answer, LOOPBACK, told.port, told.latency))


if __name__ == "__main__":
    main()
