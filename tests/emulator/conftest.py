"""Fixtures of the emulator's tests: one emulator for the session, reset for each test, and a client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_provider_flows.emulator import Emulator
from tests.emulator.client import EmulatorClient


@pytest.fixture
def client(emulator: Emulator) -> Iterator[EmulatorClient]:
    """Yield a client with the key."""
    client = EmulatorClient(emulator)
    yield client
    client.session.close()
