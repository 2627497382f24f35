"""A table of what each value of each switch does, so that none is forgotten.

The exhibits themselves stand in the test modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.emulator.caller import EmulatorClient

SwitchCheck = Callable[[EmulatorClient, Any], None]


@dataclass(frozen=True)
class SwitchEntry:
    """What a switch does, and the values at which that is shown."""

    check: SwitchCheck
    values: tuple[object, ...]


class SwitchChecks(dict[str, SwitchEntry]):
    """Exhibits by the name of their switch."""

    def covers(self, name: str, *values: object) -> Callable[[SwitchCheck], SwitchCheck]:
        """Register an exhibit; it is called with the switch set to each of the values."""

        def register(check: SwitchCheck) -> SwitchCheck:
            self[name] = SwitchEntry(check, values)
            return check

        return register

    def cases(self) -> list[tuple[str, object]]:
        """List every switch with every value."""
        return [(name, value) for name, item in self.items() for value in item.values]
