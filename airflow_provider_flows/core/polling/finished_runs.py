"""Which flow runs have finished, by lists of a connection's runs, and which are new to a watcher.

What a service's list contains is not documented (vendor_notes.md, G-05 to G-08): rows may lack the state, the
end or the flow, and a run may be on none of the pages. Such runs are polled one by one. Everything here is
pure: each step takes a state and returns the next one. Times are epoch seconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowNotFound
from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.limits import MAX_TRACKED_IDS
from airflow_provider_flows.core.timestamps import to_epoch

if TYPE_CHECKING:
    from airflow_provider_flows.core.exceptions import FlowServiceError

MAX_POLLS_PER_LIST = 20
MAX_TRACKED_ROWS = 1000  # only runs among the first rows of a list are polled or followed
MAX_FINISHED_RUNS = 5000
OVERLAP_SECONDS = 3600.0  # a list may show a run so much later than one that ended after it
MAX_CURSOR_CHARACTERS = 60_000  # of a cursor as JSON, some thousand ids; Airflow's store accepts 64 KiB
MAX_EVENT_TEXT_CHARACTERS = 1000  # of a text that comes from the service
# bounds of an asset event, which Airflow stores in its database and includes in each list of asset events
# A mapped task has at most 1024 instances by default (`[core] max_map_length`).
MAX_EVENT_RUNS = 500
MAX_EVENT_CHARACTERS = 256 * 1024  # as JSON
EVENT_FIELDS = (
    "flow_run_id",
    "flow",
    "service",
    "state",
    "progress",
    "created_at",
    "started_at",
    "finished_at",
    "duration",
    "error",
)

RunEnd = tuple[float, FlowRun]
"""The time at which a run ended, and the run."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The finished runs of a connection at one time.

    :param requested_at: that time, by the service's clock if its responses have a Date header.
    :param run_ends: the runs, the latest end first.
    :param is_complete: whether no further run may have finished without its end being known yet.
    """

    requested_at: float
    run_ends: Sequence[RunEnd]
    is_complete: bool = True


@dataclass(frozen=True, slots=True)
class FinishedRuns:
    """What the lists and polls of one connection have shown so far.

    For each list, `after_list` returns the runs to poll, and `after_polls` takes their results and returns
    the snapshot. A final run never changes, so it is polled at most once.

    :param final_runs: final runs by id.
    :param active_ids: runs that were active when a list or a poll last showed them.
    :param observed_ends: when active runs without an end time of their own were first found to be final.
    :param last_polls: the number of the last poll of a run, for runs that may have to be polled again.
    :param poll_count: polls so far.
    """

    final_runs: Mapping[str, FlowRun] = field(default_factory=dict)
    active_ids: frozenset[str] = frozenset()
    observed_ends: Mapping[str, float] = field(default_factory=dict)
    last_polls: Mapping[str, int] = field(default_factory=dict)
    poll_count: int = 0

    def after_list(self, listed_runs: Sequence[FlowRun]) -> tuple[FinishedRuns, list[str]]:
        """Return the state after a list, and the ids of a few runs to poll, the longest unpolled first."""
        newest = list(islice(listed_runs, MAX_TRACKED_ROWS))
        all_vanished_ids = self.active_ids - {run.flow_run_id for run in listed_runs}
        # of too many, those that were not polled for the longest time
        vanished_ids = sorted(all_vanished_ids, key=lambda key: (self.last_polls.get(key, 0), key))
        vanished_ids = vanished_ids[:MAX_TRACKED_IDS]
        incomplete_ids = [run.flow_run_id for run in newest if self._is_unknown(run)]
        active_ids = (run.flow_run_id for run in newest if not run.is_final and not _is_incomplete(run))
        candidates = (*vanished_ids, *incomplete_ids)
        finished_runs = replace(
            self,
            active_ids=frozenset(vanished_ids).union(
                active_ids, self.active_ids.intersection(incomplete_ids)
            ),
            last_polls={key: self.last_polls[key] for key in candidates if key in self.last_polls},
        )
        by_last_poll = sorted(candidates, key=lambda key: self.last_polls.get(key, 0))
        return finished_runs, by_last_poll[:MAX_POLLS_PER_LIST]

    def after_polls(
        self,
        listed_runs: Sequence[FlowRun],
        polls: Mapping[str, FlowRun | FlowServiceError],
        requested_at: float,
    ) -> tuple[FinishedRuns, Snapshot]:
        """Return the state after the polls that a list required, and the snapshot of both.

        :param polls: the results, in the order of the polls; it may lack runs that were not polled after all.
        :param requested_at: when the list was requested.
        """
        polled_runs = [(key, result) for key, result in polls.items() if isinstance(result, FlowRun)]
        final_runs = {key: _strip_large_fields(run) for key, run in polled_runs if run.is_final}
        observed_ends = {
            key: requested_at
            for key, run in final_runs.items()
            if run.finished_at is None and key in self.active_ids
        }
        gone_ids = {key for key, result in polls.items() if isinstance(result, FlowNotFound)}
        active_ids = self.active_ids.union(key for key, run in polled_runs if not run.is_final)
        numbers = range(self.poll_count + 1, self.poll_count + 1 + len(polls))
        finished_runs = FinishedRuns(
            {**self.final_runs, **final_runs},
            active_ids - final_runs.keys() - gone_ids,
            {**self.observed_ends, **observed_ends},
            {**self.last_polls, **dict(zip(polls, numbers, strict=True))},
            self.poll_count + len(polls),
        )
        finished_runs, run_ends = finished_runs._with_ends(listed_runs)
        return finished_runs, Snapshot(requested_at, run_ends, finished_runs.knows_all(listed_runs))

    def knows_all(self, listed_runs: Sequence[FlowRun]) -> bool:
        """Return whether it is known of each listed run if it is final, and when it ended."""
        return not any(self._is_unknown(run) for run in listed_runs)

    def _with_ends(self, listed_runs: Sequence[FlowRun]) -> tuple[FinishedRuns, list[RunEnd]]:
        """Add the final runs of a list; return the bounded state, and the runs with an end, latest first."""
        listed = {run.flow_run_id: run for run in listed_runs if run.is_final and not _is_incomplete(run)}
        runs = {**listed, **self.final_runs}.values()
        ends = [(end, run) for run in runs if (end := self._end_time(run)) is not None]
        ends.sort(key=lambda run_end: run_end[0], reverse=True)
        run_ends = [(end, _strip_large_fields(run)) for end, run in ends[:MAX_FINISHED_RUNS]]
        endless = (run for run in self.final_runs.values() if self._end_time(run) is None)
        final_runs = {run.flow_run_id: run for run in islice(endless, MAX_FINISHED_RUNS)}
        final_runs.update((run.flow_run_id, run) for _, run in run_ends)
        observed_ends = {key: end for key, end in self.observed_ends.items() if key in final_runs}
        return replace(self, final_runs=final_runs, observed_ends=observed_ends), run_ends

    def _is_unknown(self, run: FlowRun) -> bool:
        """Return whether neither a row nor a poll has shown if the run is final, and when it ended."""
        return _is_incomplete(run) and run.flow_run_id not in self.final_runs

    def _end_time(self, run: FlowRun) -> float | None:
        """Return when a final run ended, None if unknown.

        Without an end time of its own that is when it was found to be final, if it was active before. Its
        start, which is used otherwise, may be long ago.
        """
        observed_end = self.observed_ends.get(run.flow_run_id)
        if observed_end is not None:
            return observed_end
        timestamp = run.finished_at or run.started_at or run.created_at
        return None if timestamp is None else to_epoch(timestamp)


@dataclass(frozen=True, slots=True)
class EventCursor:
    """Which finished runs a watcher has emitted: all up to a time, and by id those that ended since.

    The first snapshot emits nothing. A run that was active there is emitted when it finishes, even if it
    ended before a run that was final there, because a list does not show the state of one instant.

    Times are by the service's clock, which its rows or its Date header show; the local clock is used only for
    a first list without either. A run counts by its end, not by its start, so that a long run is not missed.

    :param emitted_until: that time, None before the first snapshot.
    :param ends: the end times of the runs that ended since, by id.
    """

    emitted_until: float | None = None
    ends: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Any) -> EventCursor:
        """Read what `to_dict` returned; anything unreadable is a new cursor."""
        if not is_cursor_state(data):
            return cls()
        stored = data.get("ends")
        ends = stored.items() if isinstance(stored, Mapping) else ()
        return cls(
            float(data["emitted_until"]),
            {str(key): float(end) for key, end in ends if _is_time(end)},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the cursor as plain JSON values."""
        return {"emitted_until": self.emitted_until, "ends": dict(self.ends)}

    def after(
        self, snapshot: Snapshot, matches: Callable[[FlowRun], bool]
    ) -> tuple[EventCursor, list[FlowRun]]:
        """Return the cursor after a snapshot, and the runs to emit in the order of their ends.

        :param matches: whether the watcher wants a run.
        :returns: the same cursor if nothing has changed.
        """
        if self.emitted_until is None:
            return self._after_first(snapshot, matches), []
        new: list[RunEnd] = []
        for end, run in snapshot.run_ends:
            if end < self.emitted_until:
                break
            if run.flow_run_id not in self.ends and matches(run):
                new.append((end, run))
        if not new:
            return self, []
        ends = {**self.ends, **{run.flow_run_id: end for end, run in new}}
        # an end in the future comes from a wrong clock, and must not move the cursor there
        newest = min(max(ends.values()), snapshot.requested_at)
        cursor = _bounded_cursor(self.emitted_until, ends, newest - OVERLAP_SECONDS)
        return cursor, [run for _, run in reversed(new)]

    def after_emitting(self, snapshot: Snapshot, flow_run_ids: Collection[str]) -> EventCursor:
        """Return the cursor after an event with only some runs of a snapshot, the earliest ones to emit."""
        return self.after(snapshot, lambda run: run.flow_run_id in flow_run_ids)[0]

    def _after_first(self, snapshot: Snapshot, matches: Callable[[FlowRun], bool]) -> EventCursor:
        ends = {run.flow_run_id: end for end, run in snapshot.run_ends if matches(run)}
        newest = max(
            (min(end, snapshot.requested_at) for end, _ in snapshot.run_ends), default=OVERLAP_SECONDS
        )
        emitted_until = newest - OVERLAP_SECONDS if snapshot.is_complete else snapshot.requested_at
        return _bounded_cursor(0.0, ends, emitted_until)


def is_cursor_state(data: Any) -> bool:
    """Return whether this is what `EventCursor.to_dict` returned for a cursor that has a snapshot."""
    emitted_until = data.get("emitted_until") if isinstance(data, Mapping) else None
    return _is_time(emitted_until)


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def _bounded_cursor(previous: float, ends: Mapping[str, float], emitted_until: float) -> EventCursor:
    """Move a cursor to a later time, and further if more runs ended since than can be stored."""
    emitted_until, room = max(previous, emitted_until), MAX_CURSOR_CHARACTERS
    recent: dict[str, float] = {}
    for key, end in sorted(ends.items(), key=lambda item: item[1], reverse=True):
        room -= len(json.dumps({key: end}))
        if room < 0:
            emitted_until = max(emitted_until, math.nextafter(end, math.inf))
        if end < emitted_until:
            break
        recent[key] = end
    return EventCursor(emitted_until, {key: end for key, end in recent.items() if end >= emitted_until})


def _is_incomplete(run: FlowRun) -> bool:
    """Return whether a row lacks what must be known: the state or, of a final run, its end or flow."""
    if run.state is FlowState.UNKNOWN:
        return run.raw_state == FlowState.UNKNOWN.value  # else the service has named a state
    return run.is_final and (run.finished_at is None or run.flow is None)


def _strip_large_fields(run: FlowRun) -> FlowRun:
    """Return a run without the fields that may be large."""
    return replace(run, raw={}, parameters=None, additional=None) if run.raw else run


def event_payloads(runs: Sequence[FlowRun]) -> Iterator[dict[str, Any]]:
    """Yield the payloads of events for these runs: as few as the bounds of an event permit."""
    items: list[dict[str, Any]] = []
    characters = 0
    for item in map(_event_item, runs):
        size = len(json.dumps(item)) + len(json.dumps(item["flow_run_id"])) + len(", , ")
        if items and (len(items) == MAX_EVENT_RUNS or characters + size > MAX_EVENT_CHARACTERS):
            yield _event_payload(items)
            items, characters = [], 0
        items.append(item)
        characters += size
    if items:
        yield _event_payload(items)


def _event_payload(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"flow_run_ids": [item["flow_run_id"] for item in items], "runs": items}


def _event_item(run: FlowRun) -> dict[str, Any]:
    """Return one run of an event, with truncated texts."""
    event = run.to_event()
    return {
        name: value[:MAX_EVENT_TEXT_CHARACTERS] if isinstance(value := event[name], str) else value
        for name in EVENT_FIELDS
    }
