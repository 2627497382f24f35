"""Flow runs whose begin, end and progress are known beforehand from a seed, so that server and client agree on them.

It keeps no clock and answers nothing; every moment here is in seconds after an origin that others choose.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

HASTY_UNTIL, HASTY_PROGRESS = (
    0.3,
    0.9,
)  # the part of its time after which a hasty run says that it is nearly done
STEPS = 5


@dataclass(frozen=True, slots=True)
class ScriptedRun:
    """One flow run: its number, when it begins (seconds after the origin), and how long it lasts."""

    number: int
    start_offset: float
    duration: float

    @property
    def end_offset(self) -> float:
        """The true end, in seconds after the origin."""
        return self.start_offset + self.duration

    @property
    def flow_run_id(self) -> str:
        """An id of the form that Generio's have."""
        return f"{self.number:024x}"


@dataclass(frozen=True, slots=True)
class RunScript:
    """Many runs that begin within `spread` seconds and last `shortest` to `longest` seconds, uniformly."""

    count: int
    seed: int
    shortest: float
    longest: float
    spread: float

    def runs(self) -> list[ScriptedRun]:
        """Give the runs; the same for the same script, in every process."""
        chance = random.Random(self.seed)  # noqa: S311  # a benchmark wants repeatable numbers, not secret ones
        return [
            ScriptedRun(number, chance.uniform(0, self.spread), chance.uniform(self.shortest, self.longest))
            for number in range(1, self.count + 1)
        ]


def _hasty(done: float) -> float:
    if done < HASTY_UNTIL:
        return HASTY_PROGRESS * done / HASTY_UNTIL
    return HASTY_PROGRESS + (0.99 - HASTY_PROGRESS) * (done - HASTY_UNTIL) / (1 - HASTY_UNTIL)


# What a service may tell while a run is under way, of the part of its time that is over (0 to 1); 1.0 comes at the end only.
PROGRESS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda done: min(round(done, 4), 0.9999),
    "percent": lambda done: int(done * 100) / 100,  # linear, in whole percents
    "stepwise": lambda done: int(done * STEPS) / STEPS,
    "absent": lambda _done: 0.0,  # 0.0 until done is a documented possibility (vendor-api G-18)
    "hasty": lambda done: round(_hasty(done), 4),  # misleading: 90 % after a third of the time
    "sluggish": lambda done: round(done**3, 4),  # misleading: 12 % at half the time
}
