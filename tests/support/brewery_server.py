"""A server of a third service with paths, states, a key and shapes of its own.

A brew advances with each poll, not with time. The client is in tests/services/third_service.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from threading import Lock
from typing import Any

from tests.support.servers import ReceivedRequest, StubResponse, StubServer

KEY = "hop-blossom-4711"
FILES = {
    "beer.bin": ("application/x-beer", bytes(range(256)) * 512),
    "label.json": ("application/json", b'{"data": "a label, which only looks like a response"}'),
    "diary.txt": ("text/plain", "glTF is no beer, but \u00e4le is.\n".encode()),
}
TOAST_TEXT = "Cheers!"
STRENGTH = {"strength": {"from": 1, "to": 9, "needed": True}}
RECIPES = {"stout": {"knobs": STRENGTH}, "sour": {"knobs": {}}, "lager": {"knobs": {}}}
POLLS_UNTIL_DONE = {"stout": 2, "sour": 1, "lager": 10_000}  # at a lit brew, until it is over
FINAL_STAGES = ("done", "spoilt", "spilt")


@dataclass
class Brew:
    """The state of one brew."""

    number: int
    recipe: str
    knobs: dict[str, Any]
    note: Any
    created: float = field(default_factory=time.time)
    hops: list[str] = field(default_factory=list)
    stage: str = "queued"
    polls: int = 0
    lit: float | None = None
    over: float | None = None

    def record_poll(self) -> None:
        """Advance the brew by one poll."""
        if self.lit is None or self.over is not None:
            return
        self.polls += 1
        self.stage = "brewing"
        if self.polls >= POLLS_UNTIL_DONE[self.recipe]:
            self.finish("spoilt" if self.recipe == "sour" else "done")

    def finish(self, stage: str) -> None:
        """End the brew in a final stage."""
        self.stage, self.over = stage, time.time()

    def to_json(self) -> dict[str, Any]:
        """Return the brew as the API has it."""
        fields = {
            key: getattr(self, key)
            for key in ("number", "recipe", "knobs", "note", "created", "stage", "lit", "over")
        }
        percent = 100 if self.stage == "done" else min(99, 50 * self.polls)
        return {**fields, "percent": percent, "trouble": "Wild yeast." if self.stage == "spoilt" else None}


class BreweryError(Exception):
    """An error response: its status and its message."""


class Brewhouse:
    """All brews, and the requests."""

    def __init__(self) -> None:
        self.brews: dict[int, Brew] = {}
        self.paid_count = 0
        self.failures_left = 0  # requests for barrels that fail
        self.requests: list[ReceivedRequest] = []
        self._numbers = count(17)
        self._lock = Lock()

    def reply(self, request: ReceivedRequest) -> StubResponse:
        """Return the response to one request."""
        if request.headers.get("x-brew-token") != KEY:
            return StubResponse(401, body=b'{"trouble": "whose token is that?"}')
        path = request.path.partition("?")[0]
        try:
            with self._lock:
                result = self._dispatch(f"{request.method} {path}", json.loads(request.body or b"{}"))
        except BreweryError as rejected:
            status, message = rejected.args
            return StubResponse(status, body=json.dumps({"trouble": message}).encode())
        if isinstance(result, tuple):
            return StubResponse(200, {"Content-Type": result[0]}, result[1])
        return StubResponse(
            200, {"Content-Type": "application/json"}, b"" if result is None else json.dumps(result).encode()
        )

    def _dispatch(self, route: str, body: dict[str, Any]) -> Any:
        fixed = {
            "GET /v2/whoami": lambda: {"brewer": "Fuggle"},
            "GET /v2/recipes": lambda: {"recipes": RECIPES},
            "GET /v2/brews": lambda: {"brews": [brew.to_json() for brew in reversed(self.brews.values())]},
            "POST /v2/brews": lambda: self._create_brew(body),
        }
        if route in fixed:
            return fixed[route]()
        match = re.fullmatch(r"(\w+) /v2/brews/(\d+)(?:/(\w+)(?:/(\d+))?)?", route)
        if match is None or int(match[2]) not in self.brews:
            raise BreweryError(404, "no such brew")
        return self._handle_brew(
            self.brews[int(match[2])], f"{match[1]} {match[3] or ''}".strip(), match[4], body
        )

    def _create_brew(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["recipe"] not in RECIPES:
            raise BreweryError(422, "no such recipe")
        brew = Brew(next(self._numbers), body["recipe"], body["knobs"], body["note"])
        self.brews[brew.number] = brew
        if "hops" in body:
            brew.hops += body["hops"]
            self._light(brew)
        return brew.to_json()

    def _light(self, brew: Brew) -> None:
        self.paid_count += 1
        brew.stage, brew.lit = "kindled", time.time()

    def _handle_brew(self, brew: Brew, action: str, barrel: str | None, body: dict[str, Any]) -> Any:
        if action == "GET":
            brew.record_poll()
            return brew.to_json()
        if action == "GET barrels":
            return self._barrels(brew) if barrel is None else list(FILES.values())[int(barrel) - 1]
        if action == "POST hops":
            brew.hops.append(body["hop"])
            return {"place": len(brew.hops)}
        if action == "POST fire" and brew.stage == "queued" and brew.hops:
            self._light(brew)
        elif action == "POST spill" and brew.stage not in FINAL_STAGES:
            brew.finish("spilt")
        elif action == "DELETE" and brew.stage in {"queued", *FINAL_STAGES}:
            del self.brews[brew.number]
        elif action != "POST spill":
            raise BreweryError(409, "not now")
        return None

    def _barrels(self, brew: Brew) -> dict[str, Any]:
        if brew.stage != "done":
            raise BreweryError(409, "not now")
        if self.failures_left:
            self.failures_left -= 1
            raise BreweryError(500, "the cellar is flooded")
        files = [
            {"no": number, "label": label, "kind": kind}
            for number, (label, (kind, _)) in enumerate(FILES.items(), 1)
        ]
        toast = {
            "no": len(files) + 1,
            "label": "toast",
            "kind": "text/plain",
            "words": f"{TOAST_TEXT} {' and '.join(brew.hops)}",
        }
        return {"barrels": [{"number": row.pop("no"), "full": True, **row} for row in [*files, toast]]}


@contextmanager
def run_brewery() -> Iterator[tuple[Brewhouse, str]]:
    """Run a brewery until the end of the block; return it with its URL."""
    house = Brewhouse()
    with StubServer(house.reply) as server:
        house.requests = server.requests
        yield house, server.url
