"""Which runs are final by a list of them, and which must be looked at because the list tells too little.

It asks nothing. What a service's list holds is not documented (vendor-api G-05 to G-08): rows may lack state, end or flow, and
a run may be on none of the pages that came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from airflow_provider_flows.core.polling.event_cursor import Ended, end_of
from airflow_provider_flows.core.run import FlowState

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import FlowRun

MOST_LOOKS = 20  # at single runs, for one list
NEWEST = 1000  # rows of a list among which runs are looked at, or followed
MOST_KEPT = 5000  # final runs
LONGEST_ID = 200  # characters; what is longer is no id that anybody would want to remember


class Finals:
    """The experience with the lists of one connection; a final run never changes, so it is read, and looked at, once."""

    def __init__(self) -> None:
        """Begin without experience."""
        self._known: dict[str, FlowRun] = {}  # final
        self._under_way: set[str] = set()  # as a list, or a look, has shown them
        self._ends: dict[str, float] = {}  # of runs that were seen under way, and do not tell when they ended
        self._asked = 0.0
        self._looks: dict[str, int] = {}  # when each was looked at last, counted in looks
        self._count = 0

    def wanting(self, listed: Sequence[FlowRun], asked: float) -> list[str]:
        """Give the ids of the runs to look at after this list, a few: whom nobody looked at for longest comes first.

        :param asked: when the list was asked for, in epoch seconds.
        """
        self._asked = asked
        newest = [run for run in islice(listed, NEWEST) if len(run.flow_run_id) <= LONGEST_ID]
        named = {run.flow_run_id for run in listed}
        vanished = sorted(self._under_way - named)
        untold = [run.flow_run_id for run in newest if _lacks(run) and run.flow_run_id not in self._known]
        going = (run.flow_run_id for run in newest if not run.final and not _lacks(run))
        self._under_way = {*vanished, *going, *self._under_way.intersection(untold)}
        due = sorted((*vanished, *untold), key=lambda key: self._looks.get(key, 0))[:MOST_LOOKS]
        self._looks = {key: self._looks[key] for key in (*vanished, *untold) if key in self._looks}
        return due

    def looked(self, flow_run_id: str, run: FlowRun | None = None, *, gone: bool = False) -> None:
        """Take notice of a look at one run, which may have brought nothing, or that it is gone."""
        self._count += 1
        self._looks[flow_run_id] = self._count
        if run is not None and run.final:
            if run.finished_at is None and flow_run_id in self._under_way:
                self._ends[flow_run_id] = self._asked
            self._known[flow_run_id] = _slim(run)
        if gone or (run is not None and run.final):
            self._under_way.discard(flow_run_id)
        elif run is not None:
            self._under_way.add(flow_run_id)

    def whole(self, listed: Sequence[FlowRun]) -> bool:
        """Whether of each run on this list it is known by now whether it is final, and when it ended."""
        return not any(_lacks(run) and run.flow_run_id not in self._known for run in listed)

    def ended(self, listed: Sequence[FlowRun]) -> list[Ended]:
        """Give the runs that are final and have an end, whatever ended last first."""
        found = {run.flow_run_id: run for run in listed if run.final and not _lacks(run)} | self._known
        known = [run for run in found.values() if len(run.flow_run_id) <= LONGEST_ID]
        dated = [(end, run) for run in known if (end := self._end_of(run)) is not None]
        dated.sort(key=lambda one: one[0], reverse=True)
        ended = [(end, _slim(run)) for end, run in dated[:MOST_KEPT]]
        undated = islice((run for run in self._known.values() if self._end_of(run) is None), MOST_KEPT)
        self._known = {run.flow_run_id: run for run in undated} | {run.flow_run_id: run for _, run in ended}
        self._ends = {key: end for key, end in self._ends.items() if key in self._known}
        return ended

    def _end_of(self, run: FlowRun) -> float | None:
        """Give when a run ended; one that was under way and does not tell it, when that was seen, for its start is long ago."""
        seen = self._ends.get(run.flow_run_id)
        return end_of(run) if seen is None else seen


def _lacks(run: FlowRun) -> bool:
    """Whether a row leaves out what must be known: the state, or of a final run its end or its flow."""
    if run.state is FlowState.UNKNOWN:
        return run.state_word == FlowState.UNKNOWN.value  # else it is told, in a word that nobody knows
    return run.final and (run.finished_at is None or run.flow is None)


def _slim(run: FlowRun) -> FlowRun:
    """Give a run without what may be large."""
    return replace(run, raw={}, parameters=None, additional=None) if run.raw else run
