"""One value for each event loop, such as a registry of what the triggers on that loop share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Creates a value when an event loop first needs it, and drops it with the loop.

    How long the content of the value lives depends on its type: a dict holds what is put in, a
    WeakValueDictionary drops what no task uses any more.
    """

    def __init__(self, create: Callable[[], T]) -> None:
        """Store how a value is created."""
        self._create = create
        self._values: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()

    def get(self) -> T:
        """Return the running loop's value."""
        loop = asyncio.get_running_loop()
        if (value := self._values.get(loop)) is None:
            value = self._values[loop] = self._create()
        return value
