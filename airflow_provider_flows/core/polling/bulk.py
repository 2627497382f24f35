"""Whether to ask once for many: when the list of running flow runs pays, and what it can tell, learned from what came back.

It asks nothing. What a service's list really holds is not documented (vendor-api G-05, G-06, G-08): it may be paged, projected,
absent, huge or slow; so what it says is trusted only as far as looks at single runs bear it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_provider_flows.core.run import FlowState

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import FlowRun

MIN_RUNS_FOR_LIST = 10  # runs to look at, below which a list is not worth its while
ROWS_PER_POLL = 40  # so many rows of a list cost about as much as the look at one run
PAGES_PER_POLL = 0.5  # a page of a list costs about two looks
LIST_RETRY_SECONDS = (
    60.0,
    3600.0,
)  # seconds until a list that did not pay is tried again: at first, and at the most


@dataclass(frozen=True, slots=True)
class ActiveRuns:
    """What one list told.

    :param runs: of the runs that were asked about, those that it says are running.
    :param ids: of all runs that it has.
    :param pages: the requests that it took.
    :param whole: whether it came to its end.
    """

    runs: Mapping[str, FlowRun] = field(default_factory=dict)
    ids: AbstractSet[str] = frozenset()
    pages: int = 1
    is_complete: bool = True


class BulkPollPolicy:
    """The experience with one connection's list."""

    def __init__(self) -> None:
        """Begin with trust, and without experience."""
        self._cost = 0.0  # in looks
        self._listed_ids: set[str] = set()  # by the last list
        self._missing_ids: set[str] = set()  # from it, and to be looked at for that
        self._omitted_ids: set[str] = set()  # running, and absent all the same
        self._wasted_polls = 0
        self._retry_at = 0.0
        self._failures = 0

    def break_even(self, now: float) -> float:
        """Give the number of looks from which on one list is cheaper; infinite while lists are not asked for.

        :param now: epoch seconds.
        """
        return max(MIN_RUNS_FOR_LIST, self._cost) if now >= self._retry_at else float("inf")

    def covers(self, run: FlowRun | None, flow_run_id: str) -> bool:
        """Whether a list may tell of this run: it is running for all that is known, and was not left out before."""
        return (run is None or run.state is FlowState.RUNNING) and flow_run_id not in self._omitted_ids

    def record_list(self, active_runs: ActiveRuns) -> set[str]:
        """Take notice of a list that came; gives the ids that the list before it named and this one does not."""
        gone = self._listed_ids - active_runs.ids if active_runs.is_complete else set()
        if self._listed_ids and not self._wasted_polls:
            self._failures = 0  # the list before it has proved good
        self._cost = len(active_runs.ids) / ROWS_PER_POLL + active_runs.pages / PAGES_PER_POLL
        self._listed_ids, self._missing_ids, self._wasted_polls = set(active_runs.ids), set(), 0
        self._omitted_ids -= active_runs.runs.keys()
        return gone

    def record_list_failure(self, now: float) -> None:
        """Take notice of a list that did not come, could not be read, or left too much out: none is asked for a while."""
        self._failures += 1
        self._retry_at = now + min(
            LIST_RETRY_SECONDS[1], LIST_RETRY_SECONDS[0] * 2.0 ** min(self._failures - 1, 16)
        )
        self._listed_ids, self._missing_ids = set(), set()

    def record_missing(self, flow_run_id: str) -> None:
        """Note that a run is looked at because the list does not name it."""
        self._missing_ids.add(flow_run_id)

    def record_single_poll(self, run: FlowRun, now: float) -> None:
        """Take notice of what a look at one run told: a list that leaves many running ones out is of no use."""
        if run.flow_run_id not in self._missing_ids:
            return
        self._missing_ids.remove(run.flow_run_id)
        if run.state is FlowState.RUNNING:
            self._omitted_ids.add(run.flow_run_id)
            self._wasted_polls += 1
            if self._wasted_polls >= MIN_RUNS_FOR_LIST and self._wasted_polls >= len(self._listed_ids):
                self.record_list_failure(now)

    def forget(self, flow_run_id: str) -> None:
        """Forget a run."""
        for ids in (self._listed_ids, self._missing_ids, self._omitted_ids):
            ids.discard(flow_run_id)
