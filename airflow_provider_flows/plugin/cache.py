"""What a service has told of late, for all who look at it: asked for once, by whoever comes first, and kept for a moment.

What is asked it does not know; the answers of this process are shared by all its users, so whoever asks must be let in before.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

from airflow_provider_flows.core.exceptions import FlowError, FlowServiceError, FlowUnreachable

T = TypeVar("T")

MOST_KEPT = 500
AT_ONCE = 8  # threads that wait for services; those of Airflow's own pages are not used
FILES_AT_ONCE = 4  # threads that fetch whole files, which may take minutes, while others look at runs
PATIENCE = 10.0  # seconds that a page waits for an answer; what comes later is there for who comes later
TROUBLE_SECONDS = 5.0  # for so long an error serves whoever comes
LONGEST_PAUSE = 60.0  # seconds that a service may ask us to stay away for
SLOW = "It has not answered for a while, and is still waited for."


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What was told: the value, None if there never was one; and what went wrong the last time, if something did."""

    value: T | None
    error: FlowError | None = None


@dataclass
class _Entry:
    coming: Future[Answer[Any]]
    before: Any = None
    until: float = float("inf")


class Answers:
    """Answers by what they are of; an answer under way is waited for by all who want it.

    :param clock: gives monotonic seconds.
    :param patience: seconds after which whoever waits is told so, and of what was known before.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, patience: float = PATIENCE) -> None:
        """Begin with nothing."""
        self._clock = clock
        self._patience = patience
        self._lock = Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="flows-pages")
        self._files = ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="flows-files")

    async def get(self, of: Hashable, ask: Callable[[], T], fresh: Callable[[T], float]) -> Answer[T]:
        """Give what is kept of this, else ask for it.

        After an error the value before it is given beside it.

        :param ask: is called in another thread.
        :param fresh: gives the seconds for which a value serves whoever comes.
        """
        with self._lock:
            known = self._entries.get(of)
            if known is None or known.until <= self._clock():
                known = self._asked(of, ask, fresh, known)
            self._entries.move_to_end(of)
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(known.coming)), self._patience)
        except TimeoutError:
            return Answer(known.before, FlowUnreachable(SLOW))

    async def aside(self, do: Callable[[], T]) -> T:
        """Fetch a whole file in a thread, of which there are others than those that look at runs."""
        return await asyncio.wrap_future(self._files.submit(do))

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()

    def _asked(
        self, of: Hashable, ask: Callable[[], T], fresh: Callable[[T], float], before: _Entry | None
    ) -> _Entry:
        old = _value(before)

        def answer() -> Answer[T]:
            try:
                value = ask()
            except FlowError as error:
                told, seconds = Answer(old, error), _pause(error)
            else:
                told, seconds = Answer(value), fresh(value)
            entry.until = self._clock() + seconds
            return told

        entry = self._entries[of] = _Entry(Future(), old)
        entry.coming = self._pool.submit(answer)
        entry.coming.add_done_callback(lambda done: _stale(entry) if done.exception() else None)
        while len(self._entries) > MOST_KEPT:
            self._entries.popitem(last=False)
        return entry


def _stale(entry: _Entry) -> None:
    """Keep nothing of what ended in an error that is none of ours."""
    entry.until = float("-inf")


def _value(before: _Entry | None) -> Any:
    if before is None or not before.coming.done() or before.coming.exception() is not None:
        return None
    return before.coming.result().value


def _pause(error: FlowError) -> float:
    asked = error.retry_after if isinstance(error, FlowServiceError) else None
    return min(max(TROUBLE_SECONDS, asked or 0.0), LONGEST_PAUSE)
