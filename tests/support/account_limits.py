"""Connections to the emulator with limits, and waits that are short enough for tests."""

from __future__ import annotations

import json

import pytest

from airflow_provider_flows.core import account_limits
from airflow_provider_flows.emulator import Emulator


def set_extra(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, **extra: float) -> None:
    """Let all connections to the emulator have these fields in their extra."""
    for name, connection in emulator.connections.items():
        fields = {"extra": {"retries": 0, **extra}}
        monkeypatch.setenv(name, json.dumps(json.loads(connection) | fields))


def shorten_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the account's runs again several times in a second."""
    monkeypatch.setattr(account_limits, "LIST_TTL_SECONDS", 0.05)
    monkeypatch.setattr(account_limits, "MIN_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(account_limits, "MAX_WAIT_SECONDS", 0.2)


def count_lists(emulator: Emulator) -> int:
    """Return how many lists of flow runs the emulator was asked for."""
    return sum((one.method, one.path) == ("GET", "/flows") for one in emulator.requests)
