"""A registry of checks, one for each switch, with the values that it covers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.emulator.client import EmulatorClient

SwitchCheck = Callable[[EmulatorClient, Any], None]


@dataclass(frozen=True)
class SwitchEntry:
    """The check of one switch, and the values with which it is called."""

    check: SwitchCheck
    values: tuple[object, ...]


class SwitchChecks(dict[str, SwitchEntry]):
    """Checks by the name of their switch."""

    def covers(self, name: str, *values: object) -> Callable[[SwitchCheck], SwitchCheck]:
        """Register a check, which is called with the switch set to each of the values."""

        def register(check: SwitchCheck) -> SwitchCheck:
            self[name] = SwitchEntry(check, values)
            return check

        return register

    def cases(self) -> list[tuple[str, object]]:
        """Return every switch with every value."""
        return [(name, value) for name, item in self.items() for value in item.values]
