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

FEWEST = 10  # runs to look at, below which a list is not worth its while
ROWS_A_LOOK = 40  # so many rows of a list cost about as much as the look at one run
PAGES_A_LOOK = 0.5  # a page of a list costs about two looks
AGAIN = (60.0, 3600.0)  # seconds until a list that did not pay is tried again: at first, and at the most


@dataclass(frozen=True, slots=True)
class Glance:
    """What one list told.

    :param runs: of the runs that were asked about, those that it says are running.
    :param ids: of all runs that it has.
    :param pages: the requests that it took.
    :param whole: whether it came to its end.
    """

    runs: Mapping[str, FlowRun] = field(default_factory=dict)
    ids: AbstractSet[str] = frozenset()
    pages: int = 1
    whole: bool = True


class Listing:
    """The experience with one connection's list."""

    def __init__(self) -> None:
        """Begin with trust, and without experience."""
        self._cost = 0.0  # in looks
        self._named: set[str] = set()  # by the last list
        self._absent: set[str] = set()  # from it, and to be looked at for that
        self._left_out: set[str] = set()  # running, and absent all the same
        self._in_vain = 0
        self._again_at = 0.0
        self._failures = 0

    def worth(self, now: float) -> float:
        """Give the number of looks from which on one list is cheaper; infinite while lists are not asked for.

        :param now: epoch seconds.
        """
        return max(FEWEST, self._cost) if now >= self._again_at else float("inf")

    def may_tell(self, run: FlowRun | None, flow_run_id: str) -> bool:
        """Whether a list may tell of this run: it is running for all that is known, and was not left out before."""
        return (run is None or run.state is FlowState.RUNNING) and flow_run_id not in self._left_out

    def answered(self, glance: Glance) -> set[str]:
        """Take notice of a list that came; gives the ids that the list before it named and this one does not."""
        gone = self._named - glance.ids if glance.whole else set()
        if self._named and not self._in_vain:
            self._failures = 0  # the list before it has proved good
        self._cost = len(glance.ids) / ROWS_A_LOOK + glance.pages / PAGES_A_LOOK
        self._named, self._absent, self._in_vain = set(glance.ids), set(), 0
        self._left_out -= glance.runs.keys()
        return gone

    def failed(self, now: float) -> None:
        """Take notice of a list that did not come, could not be read, or left too much out: none is asked for a while."""
        self._failures += 1
        self._again_at = now + min(AGAIN[1], AGAIN[0] * 2.0 ** min(self._failures - 1, 16))
        self._named, self._absent = set(), set()

    def absent(self, flow_run_id: str) -> None:
        """Note that a run is looked at because the list does not name it."""
        self._absent.add(flow_run_id)

    def looked(self, run: FlowRun, now: float) -> None:
        """Take notice of what a look at one run told: a list that leaves many running ones out is of no use."""
        if run.flow_run_id not in self._absent:
            return
        self._absent.remove(run.flow_run_id)
        if run.state is FlowState.RUNNING:
            self._left_out.add(run.flow_run_id)
            self._in_vain += 1
            if self._in_vain >= FEWEST and self._in_vain >= len(self._named):
                self.failed(now)

    def over(self, flow_run_id: str) -> None:
        """Forget a run."""
        for ids in (self._named, self._absent, self._left_out):
            ids.discard(flow_run_id)
