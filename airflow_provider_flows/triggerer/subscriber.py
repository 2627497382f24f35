"""One wait in a watch: where its end is told, and whether a list may tell of its run the next time.

It looks at nothing itself; watch.py does.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from airflow_provider_flows.core.exceptions import FlowError

if TYPE_CHECKING:
    from airflow_provider_flows.core.polling.bulk import BulkPollPolicy
    from airflow_provider_flows.core.polling.wait import Wait
    from airflow_provider_flows.core.run import FlowRun

LIST_TIMEOUT_SECONDS = 5.0  # a page of a list that takes longer is given up
MAX_UNCHANGED_LISTS = (
    20  # lists in a row that saw a run not move, after which it is looked at itself: a list may be behind
)


class Subscriber:
    """One wait, and the place where its end is told."""

    __slots__ = ("_progress", "_unchanged_lists", "needs_single_poll", "future", "wait", "worker")

    def __init__(self, wait: Wait) -> None:
        self.wait = wait
        self.future: asyncio.Future[FlowRun] = asyncio.get_running_loop().create_future()
        self.needs_single_poll = self._is_near_deadline(
            0.0
        )  # whether nothing but a look at the run itself will do
        self.worker: asyncio.Task[None] | None = None  # who looks just now
        self._progress = 0.0
        self._unchanged_lists = 0

    def fail(self, error: BaseException | None) -> None:
        """End the wait with an error; one that is no FlowError is worded as what it means for the run."""
        message = f"The wait for flow run {self.wait.flow_run_id} broke off ({error!r}). The run goes on; so does the next try."
        if not self.future.done():
            self.future.set_exception(error if isinstance(error, FlowError) else FlowError(message))

    def next_delay(self, policy: BulkPollPolicy) -> float:
        """Let the wait say in how many seconds it looks next, and settle whether the list may tell of its run then.

        :raises FlowTimeout: the deadline has passed.
        """
        wait, previous = self.wait, self._progress
        delay = wait.next_delay()
        self._progress = wait.run.progress if wait.run else 0.0
        self._unchanged_lists = (
            0 if self.needs_single_poll or self._progress != previous else self._unchanged_lists + 1
        )
        is_covered = policy.covers(wait.run, wait.flow_run_id) and self._unchanged_lists < MAX_UNCHANGED_LISTS
        self.needs_single_poll = (
            wait.is_due_at_expected_end or not is_covered or self._is_near_deadline(delay)
        )
        return delay

    def _is_near_deadline(self, delay: float) -> bool:
        """Whether the deadline is too near for the patience that lists are given."""
        remaining = self.wait.seconds_left()
        return remaining is not None and remaining - delay <= LIST_TIMEOUT_SECONDS
