"""Which flow runs that ended are news: each is told once, by its end and its id, and nothing of before the beginning.

It asks nothing; where its memory is kept is its owner's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.flow.moments import epoch

if TYPE_CHECKING:
    from airflow_provider_flows.flow.run import FlowRun

OVERLAP = 3600.0  # seconds; a list may show a run so much later than one that ended after it
MOST = 1000  # ids that are remembered: some 45 kB

Ended = tuple[float, "FlowRun"]  # epoch seconds, and the run


@dataclass(frozen=True, slots=True)
class Edition:
    """Which runs are final at one moment.

    :param asked: the moment, in epoch seconds.
    :param ended: the runs, whatever ended last first.
    :param whole: whether there are no others of which it is just not known yet.
    """

    asked: float
    ended: Sequence[Ended]
    whole: bool = True


def end_of(run: FlowRun) -> float | None:
    """Give, in epoch seconds, when a final run ended; where nothing tells that, when it began."""
    moment = run.finished_at or run.started_at or run.created_at
    return None if moment is None else epoch(moment)


class Told:
    """What was told, as a moment and the ids of the runs that ended since.

    The first look only sets the moment: what is over by then is nobody's news. It is the service's own clock that counts, as
    long as it tells when runs ended; and a run's end, not its beginning, so that one that took long is not missed.
    """

    def __init__(self, memory: Any = None) -> None:
        """Begin anew, or where the one that gave this memory was; a memory that cannot be read is none."""
        self._since: float | None = None
        self._ends: dict[str, float] = {}
        self.changed = False
        if isinstance(memory, Mapping) and isinstance(memory.get("since"), (int, float)):
            self._since = float(memory["since"])
            told = memory.get("told")
            ends = told.items() if isinstance(told, Mapping) else ()
            self._ends = {str(key): float(end) for key, end in ends if isinstance(end, (int, float))}

    @property
    def memory(self) -> dict[str, Any]:
        """What must be kept, as plain JSON values: `since` in epoch seconds, and `told`, the ends by id."""
        return {"since": self._since, "told": self._ends}

    def news(self, edition: Edition, wanted: Callable[[FlowRun], bool]) -> list[FlowRun]:
        """Give the runs that were not told yet, in the order in which they ended; they count as told from now on."""
        if self._since is None:
            self._begin(edition)
            return []
        found: list[Ended] = []
        for end, run in edition.ended:
            if end < self._since:
                break
            if run.flow_run_id not in self._ends and wanted(run):
                found.append((end, run))
        if found:
            self._ends.update((run.flow_run_id, end) for end, run in found)
            self._move_on(edition.asked)
        return [run for _, run in reversed(found)]

    def _begin(self, edition: Edition) -> None:
        ends = {run.flow_run_id: end for end, run in edition.ended}
        newest = max((min(end, edition.asked) for end in ends.values()), default=0.0)
        self._since = newest if edition.whole else edition.asked
        self._ends = {key: end for key, end in ends.items() if end >= self._since}
        self.changed = True

    def _move_on(self, asked: float) -> None:
        """Forget what ended so long ago that no list will show it for the first time, and more than is bearable.

        An end that lies in the future is a clock that goes wrong, and moves nothing.
        """
        latest = sorted(self._ends.items(), key=lambda told: told[1], reverse=True)
        moments = [self._since or 0.0, min(latest[0][1], asked) - OVERLAP]
        if len(latest) > MOST:
            moments.append(math.nextafter(latest[MOST][1], math.inf))
        self._since = max(moments)
        self._ends = {key: end for key, end in latest if end >= self._since}
        self.changed = True
