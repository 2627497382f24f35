"""A table of what each value of each switch does, so that none is forgotten.

The exhibits themselves stand in the test modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.emulator.caller import Caller

Exhibit = Callable[[Caller, Any], None]


@dataclass(frozen=True)
class Exhibited:
    """What a switch does, and the values at which that is shown."""

    exhibit: Exhibit
    values: tuple[object, ...]


class Exhibits(dict[str, Exhibited]):
    """Exhibits by the name of their switch."""

    def shows(self, name: str, *values: object) -> Callable[[Exhibit], Exhibit]:
        """Register an exhibit; it is called with the switch set to each of the values."""

        def register(exhibit: Exhibit) -> Exhibit:
            self[name] = Exhibited(exhibit, values)
            return exhibit

        return register

    def cases(self) -> list[tuple[str, object]]:
        """List every switch with every value."""
        return [(name, value) for name, item in self.items() for value in item.values]
