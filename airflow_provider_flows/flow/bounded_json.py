"""JSON from a stranger: read with a bound on its depth, and with finite numbers only, so that whatever handles it later can.

It knows nothing of what the JSON means; exchange.py makes errors of what cannot be read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

DEEPEST = 64  # what a service means is nested a few levels deep; Airflow's own XCom code and Python's json recurse


def parse(body: bytes) -> Any:
    """Read JSON; NaN and the infinities, however they are written, become None.

    :raises ValueError: it is not JSON, or it is nested too deeply.
    """
    try:
        value = json.loads(body, parse_constant=lambda _: None, parse_float=_finite)
    except RecursionError:
        raise _too_deep() from None
    level: list[Any] = [value]
    for _ in range(DEEPEST + 1):
        level = [inner for outer in level for inner in _inner(outer) if isinstance(inner, (dict, list))]
        if not level:
            return value
    raise _too_deep()


def _inner(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _too_deep() -> ValueError:
    return ValueError(f"nested more than {DEEPEST} levels deep")
