"""JSON from a stranger: read with a bound on its depth, and with finite numbers only, so that whatever handles it later can.

It knows nothing of what the JSON means; exchange.py makes errors of what cannot be read.
"""

from __future__ import annotations

import json
import math
from typing import Any

CONTAINERS = frozenset({dict, list})
MAX_JSON_DEPTH = (
    64  # what a service means is nested a few levels deep; Airflow's own XCom code and Python's json recurse
)


def parse_bounded_json(body: bytes) -> Any:
    """Read JSON; NaN and the infinities, however they are written, become None.

    :raises ValueError: it is not JSON, or it is nested too deeply.
    """
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")
        value = _FAST_DECODER.decode(text)
    except RecursionError:
        raise _depth_error() from None
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH + 2):
        if math.inf in level or -math.inf in level:
            level = [value := _FINITE_DECODER.decode(text)]
        containers = [outer for outer in level if type(outer) in CONTAINERS]
        if not containers:
            return value
        level = [
            inner for outer in containers for inner in (outer.values() if type(outer) is dict else outer)
        ]
    raise _depth_error()


def _parse_finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


# made once: `json.loads` with arguments makes one for each call, which takes as long as reading a small answer
_FAST_DECODER = json.JSONDecoder(parse_constant=lambda _: None)
_FINITE_DECODER = json.JSONDecoder(
    parse_constant=lambda _: None, parse_float=_parse_finite
)  # takes twice as long


def _depth_error() -> ValueError:
    return ValueError(f"nested more than {MAX_JSON_DEPTH} levels deep")
