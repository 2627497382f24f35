"""One wait in a watch: where its end is told, and whether a list may tell of its run the next time.

It looks at nothing itself; watch.py does.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from airflow_provider_flows.core.exceptions import FlowError

if TYPE_CHECKING:
    from airflow_provider_flows.core.polling.bulk import Listing
    from airflow_provider_flows.core.polling.wait import Wait
    from airflow_provider_flows.core.run import FlowRun

LIST_SECONDS = 5.0  # a page of a list that takes longer is given up
UNCHANGED = (
    20  # lists in a row that saw a run not move, after which it is looked at itself: a list may be behind
)


class Subscriber:
    """One wait, and the place where its end is told."""

    __slots__ = ("_progress", "_unchanged", "alone", "end", "wait", "worker")

    def __init__(self, wait: Wait) -> None:
        self.wait = wait
        self.end: asyncio.Future[FlowRun] = asyncio.get_running_loop().create_future()
        self.alone = self._is_hurried(0.0)  # whether nothing but a look at the run itself will do
        self.worker: asyncio.Task[None] | None = None  # who looks just now
        self._progress = 0.0
        self._unchanged = 0

    def fail(self, error: BaseException | None) -> None:
        """End the wait with an error; one that is no FlowError is worded as what it means for the run."""
        message = f"The wait for flow run {self.wait.flow_run_id} broke off ({error!r}). The run goes on; so does the next try."
        if not self.end.done():
            self.end.set_exception(error if isinstance(error, FlowError) else FlowError(message))

    def pause(self, listing: Listing) -> float:
        """Let the wait say in how many seconds it looks next, and settle whether the list may tell of its run then.

        :raises FlowTimeout: the deadline has passed.
        """
        wait, before = self.wait, self._progress
        delay = wait.pause()
        self._progress = wait.run.progress if wait.run else 0.0
        self._unchanged = 0 if self.alone or self._progress != before else self._unchanged + 1
        told = listing.may_tell(wait.run, wait.flow_run_id) and self._unchanged < UNCHANGED
        self.alone = wait.lands or not told or self._is_hurried(delay)
        return delay

    def _is_hurried(self, delay: float) -> bool:
        """Whether the deadline is too near for the patience that lists are given."""
        left = self.wait.seconds_left()
        return left is not None and left - delay <= LIST_SECONDS
