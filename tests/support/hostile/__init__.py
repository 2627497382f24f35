"""A hostile service: each of its behaviours has a name, and a module of this package for its kind.

`HostileServer("name")` behaves so at every request. The modules register their behaviours in `BEHAVIOURS`.
"""

from tests.support.hostile import (
    broken_framing,
    downloads,
    echoes,
    expansion,
    input_urls,
    links,
    odd_responses,
    sizes,
    slow,
    texts,
    unresponsive,
)
from tests.support.hostile.server import BEHAVIOURS, HostileServer

__all__ = [
    "BEHAVIOURS",
    "HostileServer",
    "broken_framing",
    "downloads",
    "echoes",
    "expansion",
    "input_urls",
    "links",
    "odd_responses",
    "sizes",
    "slow",
    "texts",
    "unresponsive",
]
