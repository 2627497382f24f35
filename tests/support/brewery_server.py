"""A brewery with an HTTP API of its own, unlike Generio's and PromptChainer's in every respect: paths, words, key, shapes.

It knows nothing of the package, and nothing of the client in third_service/; a brew goes on by being looked at, not by time.
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

from tests.support.servers import Reply, Seen, Station

KEY = "hop-blossom-4711"
FILES = {
    "beer.bin": ("application/x-beer", bytes(range(256)) * 512),
    "label.json": ("application/json", b'{"data": "a label, which only looks like an answer"}'),
    "diary.txt": ("text/plain", "glTF is no beer, but \u00e4le is.\n".encode()),
}
WORDS = "Cheers!"
STRENGTH = {"strength": {"from": 1, "to": 9, "needed": True}}
RECIPES = {"stout": {"knobs": STRENGTH}, "sour": {"knobs": {}}, "lager": {"knobs": {}}}
LOOKS = {"stout": 2, "sour": 1, "lager": 10_000}  # at a lit brew, until it is over
OVER = ("done", "spoilt", "spilt")


@dataclass
class Brew:
    """A brew as it stands."""

    number: int
    recipe: str
    knobs: dict[str, Any]
    note: Any
    made: float = field(default_factory=time.time)
    hops: list[str] = field(default_factory=list)
    stage: str = "queued"
    looks: int = 0
    lit: float | None = None
    over: float | None = None

    def look(self) -> None:
        """Go on, as it does at each look."""
        if self.lit is None or self.over is not None:
            return
        self.looks += 1
        self.stage = "brewing"
        if self.looks >= LOOKS[self.recipe]:
            self.end("spoilt" if self.recipe == "sour" else "done")

    def end(self, stage: str) -> None:
        """Be over."""
        self.stage, self.over = stage, time.time()

    def told(self) -> dict[str, Any]:
        """Give what the API says of it."""
        shown = {
            key: getattr(self, key)
            for key in ("number", "recipe", "knobs", "note", "made", "stage", "lit", "over")
        }
        percent = 100 if self.stage == "done" else min(99, 50 * self.looks)
        return {**shown, "percent": percent, "trouble": "Wild yeast." if self.stage == "spoilt" else None}


class Refused(Exception):
    """An answer that is no success: the status and the words."""


class Brewhouse:
    """All brews, and what was asked."""

    def __init__(self) -> None:
        """Begin with none."""
        self.brews: dict[int, Brew] = {}
        self.lit = 0  # so many were paid for
        self.troubles = 0  # so many times barrels are not to be had
        self.seen: list[Seen] = []
        self._numbers = count(17)
        self._lock = Lock()

    def reply(self, seen: Seen) -> Reply:
        """Answer one request."""
        if seen.headers.get("x-brew-token") != KEY:
            return Reply(401, body=b'{"trouble": "whose token is that?"}')
        path = seen.path.partition("?")[0]
        try:
            with self._lock:
                told = self._told(f"{seen.method} {path}", json.loads(seen.body or b"{}"))
        except Refused as refused:
            status, words = refused.args
            return Reply(status, body=json.dumps({"trouble": words}).encode())
        if isinstance(told, tuple):
            return Reply(200, {"Content-Type": told[0]}, told[1])
        return Reply(
            200, {"Content-Type": "application/json"}, b"" if told is None else json.dumps(told).encode()
        )

    def _told(self, asked: str, body: dict[str, Any]) -> Any:
        fixed = {
            "GET /v2/whoami": lambda: {"brewer": "Fuggle"},
            "GET /v2/recipes": lambda: {"recipes": RECIPES},
            "GET /v2/brews": lambda: {"brews": [brew.told() for brew in reversed(self.brews.values())]},
            "POST /v2/brews": lambda: self._made(body),
        }
        if asked in fixed:
            return fixed[asked]()
        found = re.fullmatch(r"(\w+) /v2/brews/(\d+)(?:/(\w+)(?:/(\d+))?)?", asked)
        if found is None or int(found[2]) not in self.brews:
            raise Refused(404, "no such brew")
        return self._of(self.brews[int(found[2])], f"{found[1]} {found[3] or ''}".strip(), found[4], body)

    def _made(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["recipe"] not in RECIPES:
            raise Refused(422, "no such recipe")
        brew = Brew(next(self._numbers), body["recipe"], body["knobs"], body["note"])
        self.brews[brew.number] = brew
        if "hops" in body:
            brew.hops += body["hops"]
            self._light(brew)
        return brew.told()

    def _light(self, brew: Brew) -> None:
        self.lit += 1
        brew.stage, brew.lit = "kindled", time.time()

    def _of(self, brew: Brew, deed: str, barrel: str | None, body: dict[str, Any]) -> Any:
        if deed == "GET":
            brew.look()
            return brew.told()
        if deed == "GET barrels":
            return self._barrels(brew) if barrel is None else list(FILES.values())[int(barrel) - 1]
        if deed == "POST hops":
            brew.hops.append(body["hop"])
            return {"place": len(brew.hops)}
        if deed == "POST fire" and brew.stage == "queued" and brew.hops:
            self._light(brew)
        elif deed == "POST spill" and brew.stage not in OVER:
            brew.end("spilt")
        elif deed == "DELETE" and brew.stage in {"queued", *OVER}:
            del self.brews[brew.number]
        elif deed != "POST spill":
            raise Refused(409, "not now")
        return None

    def _barrels(self, brew: Brew) -> dict[str, Any]:
        if brew.stage != "done":
            raise Refused(409, "not now")
        if self.troubles:
            self.troubles -= 1
            raise Refused(500, "the cellar is flooded")
        files = [
            {"no": place, "label": label, "kind": kind}
            for place, (label, (kind, _)) in enumerate(FILES.items(), 1)
        ]
        words = {
            "no": len(files) + 1,
            "label": "toast",
            "kind": "text/plain",
            "words": f"{WORDS} {' and '.join(brew.hops)}",
        }
        return {"barrels": [{"number": row.pop("no"), "full": True, **row} for row in [*files, words]]}


@contextmanager
def brewery() -> Iterator[tuple[Brewhouse, str]]:
    """Give a brewery that answers, until the block ends, and its address."""
    house = Brewhouse()
    with Station(house.reply) as station:
        house.seen = station.seen
        yield house, station.url
