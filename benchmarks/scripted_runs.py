"""Flow runs with start, end and progress from a seed, so that server and client agree on them.

Times are in seconds after an origin that the caller chooses.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

HASTY_UNTIL, HASTY_PROGRESS = 0.3, 0.9  # after 0.3 of its time a hasty run reports a progress of 0.9
STEPS = 5


@dataclass(frozen=True, slots=True)
class ScriptedRun:
    """A flow run: its number, its start after the origin and its duration, in seconds."""

    number: int
    start_offset: float
    duration: float

    @property
    def end_offset(self) -> float:
        """The end, in seconds after the origin."""
        return self.start_offset + self.duration

    @property
    def flow_run_id(self) -> str:
        """The id, in the form of Generio's ids."""
        return f"{self.number:024x}"


@dataclass(frozen=True, slots=True)
class RunScript:
    """Runs that start within `spread` seconds, with durations from `shortest` to `longest` seconds."""

    count: int
    seed: int
    shortest: float
    longest: float
    spread: float

    def runs(self) -> list[ScriptedRun]:
        """Return the runs, the same for the same script in every process."""
        chance = random.Random(self.seed)  # noqa: S311  # repeatable, not secret
        return [
            ScriptedRun(number, chance.uniform(0, self.spread), chance.uniform(self.shortest, self.longest))
            for number in range(1, self.count + 1)
        ]


def _hasty(done: float) -> float:
    if done < HASTY_UNTIL:
        return HASTY_PROGRESS * done / HASTY_UNTIL
    return HASTY_PROGRESS + (0.99 - HASTY_PROGRESS) * (done - HASTY_UNTIL) / (1 - HASTY_UNTIL)


# The progress that a service may report, by the part of a run's time that has passed (0 to 1).
PROGRESS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda done: min(round(done, 4), 0.9999),
    "percent": lambda done: int(done * 100) / 100,  # linear, in full percents
    "stepwise": lambda done: int(done * STEPS) / STEPS,
    "absent": lambda _done: 0.0,  # 0.0 until the end is possible (vendor_notes.md, G-18)
    "hasty": lambda done: round(_hasty(done), 4),  # misleading: 90 % after a third of the time
    "sluggish": lambda done: round(done**3, 4),  # misleading: 12 % at half the time
}
