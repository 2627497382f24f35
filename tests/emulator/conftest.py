"""Fixtures for the emulator's tests: one emulator for the session, reset for each test, and a client to it.

What the client can do stands in caller.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_provider_flows.emulator import Emulator
from tests.emulator.caller import EmulatorClient


@pytest.fixture
def caller(emulator: Emulator) -> Iterator[EmulatorClient]:
    """Give a test a client with the key."""
    client = EmulatorClient(emulator)
    yield client
    client.session.close()
