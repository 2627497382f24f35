"""Which runs are final by a list of them, and which must be looked at because the list tells too little.

It asks nothing. What a service's list holds is not documented (vendor-api G-05 to G-08): rows may lack state, end or flow, and
a run may be on none of the pages that came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from airflow_provider_flows.core.polling.event_cursor import RunEnd, end_time
from airflow_provider_flows.core.run import FlowState

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import FlowRun

MAX_POLLS_PER_LIST = 20  # at single runs, for one list
MAX_TRACKED_ROWS = 1000  # rows of a list among which runs are looked at, or followed
MAX_FINISHED_RUNS = 5000  # final runs
MAX_ID_CHARACTERS = 200  # characters; what is longer is no id that anybody would want to remember


class FinishedRuns:
    """The experience with the lists of one connection; a final run never changes, so it is read, and looked at, once."""

    def __init__(self) -> None:
        """Begin without experience."""
        self._final_runs: dict[str, FlowRun] = {}  # final
        self._active_ids: set[str] = set()  # as a list, or a look, has shown them
        self._observed_ends: dict[
            str, float
        ] = {}  # of runs that were seen under way, and do not tell when they ended
        self._requested_at = 0.0
        self._poll_order: dict[str, int] = {}  # when each was looked at last, counted in looks
        self._poll_count = 0

    def ids_to_poll(self, listed_runs: Sequence[FlowRun], requested_at: float) -> list[str]:
        """Give the ids of the runs to look at after this list, a few: whom nobody looked at for longest comes first.

        :param asked: when the list was asked for, in epoch seconds.
        """
        self._requested_at = requested_at
        newest = [
            run for run in islice(listed_runs, MAX_TRACKED_ROWS) if len(run.flow_run_id) <= MAX_ID_CHARACTERS
        ]
        listed_ids = {run.flow_run_id for run in listed_runs}
        vanished_ids = sorted(self._active_ids - listed_ids)
        incomplete_ids = [
            run.flow_run_id
            for run in newest
            if _is_incomplete(run) and run.flow_run_id not in self._final_runs
        ]
        active_ids = (run.flow_run_id for run in newest if not run.is_final and not _is_incomplete(run))
        self._active_ids = {*vanished_ids, *active_ids, *self._active_ids.intersection(incomplete_ids)}
        due = sorted((*vanished_ids, *incomplete_ids), key=lambda key: self._poll_order.get(key, 0))[
            :MAX_POLLS_PER_LIST
        ]
        self._poll_order = {
            key: self._poll_order[key] for key in (*vanished_ids, *incomplete_ids) if key in self._poll_order
        }
        return due

    def record_single_poll(
        self, flow_run_id: str, run: FlowRun | None = None, *, not_found: bool = False
    ) -> None:
        """Take notice of a look at one run, which may have brought nothing, or that it is gone."""
        self._poll_count += 1
        self._poll_order[flow_run_id] = self._poll_count
        if run is not None and run.is_final:
            if run.finished_at is None and flow_run_id in self._active_ids:
                self._observed_ends[flow_run_id] = self._requested_at
            self._final_runs[flow_run_id] = _strip_large_fields(run)
        if not_found or (run is not None and run.is_final):
            self._active_ids.discard(flow_run_id)
        elif run is not None:
            self._active_ids.add(flow_run_id)

    def is_complete(self, listed_runs: Sequence[FlowRun]) -> bool:
        """Whether of each run on this list it is known by now whether it is final, and when it ended."""
        return not any(_is_incomplete(run) and run.flow_run_id not in self._final_runs for run in listed_runs)

    def list_run_ends(self, listed_runs: Sequence[FlowRun]) -> list[RunEnd]:
        """Give the runs that are final and have an end, whatever ended last first."""
        found = {
            run.flow_run_id: run for run in listed_runs if run.is_final and not _is_incomplete(run)
        } | self._final_runs
        known = [run for run in found.values() if len(run.flow_run_id) <= MAX_ID_CHARACTERS]
        dated = [(end, run) for run in known if (end := self._end_time(run)) is not None]
        dated.sort(key=lambda one: one[0], reverse=True)
        run_ends = [(end, _strip_large_fields(run)) for end, run in dated[:MAX_FINISHED_RUNS]]
        undated = islice(
            (run for run in self._final_runs.values() if self._end_time(run) is None), MAX_FINISHED_RUNS
        )
        self._final_runs = {run.flow_run_id: run for run in undated} | {
            run.flow_run_id: run for _, run in run_ends
        }
        self._observed_ends = {
            key: end for key, end in self._observed_ends.items() if key in self._final_runs
        }
        return run_ends

    def _end_time(self, run: FlowRun) -> float | None:
        """Give when a run ended; one that was under way and does not tell it, when that was seen, for its start is long ago."""
        observed_end = self._observed_ends.get(run.flow_run_id)
        return end_time(run) if observed_end is None else observed_end


def _is_incomplete(run: FlowRun) -> bool:
    """Whether a row leaves out what must be known: the state, or of a final run its end or its flow."""
    if run.state is FlowState.UNKNOWN:
        return run.raw_state == FlowState.UNKNOWN.value  # else it is told, in a word that nobody knows
    return run.is_final and (run.finished_at is None or run.flow is None)


def _strip_large_fields(run: FlowRun) -> FlowRun:
    """Give a run without what may be large."""
    return replace(run, raw={}, parameters=None, additional=None) if run.raw else run
