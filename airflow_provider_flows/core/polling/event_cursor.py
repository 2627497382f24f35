"""Which flow runs that ended are news: each is told once, by its end and its id, and nothing of before the beginning.

It asks nothing; where its memory is kept is its owner's business.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.timestamps import to_epoch

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import FlowRun

OVERLAP_SECONDS = 3600.0  # seconds; a list may show a run so much later than one that ended after it
MAX_STATE_CHARACTERS = 60_000  # of the memory as JSON, some thousand ids; Airflow's store takes 64 KiB

RunEnd = tuple[float, "FlowRun"]  # epoch seconds, and the run


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Which runs are final at one moment.

    :param asked: the moment, in epoch seconds, by the service's clock where that is known.
    :param ended: the runs, whatever ended last first.
    :param whole: whether there are no others of which it is just not known yet.
    """

    requested_at: float
    run_ends: Sequence[RunEnd]
    is_complete: bool = True


def end_time(run: FlowRun) -> float | None:
    """Give, in epoch seconds, when a final run ended; where nothing tells that, when it began."""
    timestamp = run.finished_at or run.started_at or run.created_at
    return None if timestamp is None else to_epoch(timestamp)


def is_cursor_state(value: Any) -> bool:
    """Whether this is what `Told.memory` gave, and nothing that somebody else has put in its place."""
    since = value.get("since") if isinstance(value, Mapping) else None
    return isinstance(since, (int, float)) and math.isfinite(since)


class EventCursor:
    """What was told, as a moment and the ids of the runs that ended since.

    The first look tells nothing: what is over by then is nobody's news. A run that it saw under way is told, be it that it ended
    before another one that was over by then: a list is not the state of one moment. It is the service's own clock that counts, as
    long as it tells when runs ended, or its answers have a Date; and a run's end, not its beginning, so that one that took long
    is not missed. This machine's clock counts only for a first list that tells neither.
    """

    def __init__(self, state: Any = None) -> None:
        """Begin anew, or where the one that gave this memory was; a memory that cannot be read is none."""
        self._since: float | None = None
        self._ends: dict[str, float] = {}
        self.has_changed = False
        if is_cursor_state(state):
            self._since = float(state["since"])
            stored_ends = state.get("ends")
            ends = stored_ends.items() if isinstance(stored_ends, Mapping) else ()
            self._ends = {str(key): float(end) for key, end in ends if isinstance(end, (int, float))}

    def to_dict(self) -> dict[str, Any]:
        """What must be kept, as plain JSON values: `since` in epoch seconds, and `told`, the ends by id."""
        return {"since": self._since, "ends": dict(self._ends)}

    def take_new(self, snapshot: Snapshot, matches: Callable[[FlowRun], bool]) -> list[FlowRun]:
        """Give the runs that were not told yet, in the order in which they ended; they count as told from now on."""
        if self._since is None:
            self._start(snapshot, matches)
            return []
        found: list[RunEnd] = []
        for end, run in snapshot.run_ends:
            if end < self._since:
                break
            if run.flow_run_id not in self._ends and matches(run):
                found.append((end, run))
        if found:
            self._ends.update((run.flow_run_id, end) for end, run in found)
            self._prune(snapshot.requested_at)
        return [run for _, run in reversed(found)]

    def _start(self, snapshot: Snapshot, matches: Callable[[FlowRun], bool]) -> None:
        self._ends = {run.flow_run_id: end for end, run in snapshot.run_ends if matches(run)}
        newest = max(
            (min(end, snapshot.requested_at) for end, _ in snapshot.run_ends), default=OVERLAP_SECONDS
        )
        self._drop_before(newest - OVERLAP_SECONDS if snapshot.is_complete else snapshot.requested_at)

    def _prune(self, requested_at: float) -> None:
        """Forget what ended so long ago that no list will show it for the first time.

        An end that lies in the future is a clock that goes wrong, and moves nothing.
        """
        self._drop_before(min(max(self._ends.values()), requested_at) - OVERLAP_SECONDS)

    def _drop_before(self, timestamp: float) -> None:
        """Forget what ended before a moment, and more than is bearable."""
        since, room = max(self._since or 0.0, timestamp), MAX_STATE_CHARACTERS
        recent: dict[str, float] = {}
        for key, end in sorted(self._ends.items(), key=lambda item: item[1], reverse=True):
            room -= len(json.dumps({key: end}))
            if room < 0:
                since = max(since, math.nextafter(end, math.inf))
            if end < since:
                break
            recent[key] = end
        self._since, self._ends = since, {key: end for key, end in recent.items() if end >= since}
        self.has_changed = True
