"""JSON from a stranger: read with a bound on its depth, and with finite numbers only, so that whatever handles it later can.

It knows nothing of what the JSON means; exchange.py makes errors of what cannot be read.
"""

from __future__ import annotations

import json
import math
from typing import Any

NESTS = frozenset({dict, list})
DEEPEST = (
    64  # what a service means is nested a few levels deep; Airflow's own XCom code and Python's json recurse
)


def parse(body: bytes) -> Any:
    """Read JSON; NaN and the infinities, however they are written, become None.

    :raises ValueError: it is not JSON, or it is nested too deeply.
    """
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")
        value = _SWIFT.decode(text)
    except RecursionError:
        raise _too_deep() from None
    level: list[Any] = [value]
    for _ in range(DEEPEST + 2):
        if math.inf in level or -math.inf in level:
            level = [value := _WARY.decode(text)]
        nests = [outer for outer in level if type(outer) in NESTS]
        if not nests:
            return value
        level = [inner for outer in nests for inner in (outer.values() if type(outer) is dict else outer)]
    raise _too_deep()


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


# made once: `json.loads` with arguments makes one for each call, which takes as long as reading a small answer
_SWIFT = json.JSONDecoder(parse_constant=lambda _: None)
_WARY = json.JSONDecoder(parse_constant=lambda _: None, parse_float=_finite)  # takes twice as long


def _too_deep() -> ValueError:
    return ValueError(f"nested more than {DEEPEST} levels deep")
