"""The pytest fixture `flow_emulator`: an emulator for a test, with the Airflow connections to it.

This module is imported in every pytest run of every user, so it imports nothing that costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from airflow_provider_flows.emulator import Emulator

RUN_SECONDS = 0.5


@pytest.fixture(scope="session")
def flow_emulator_server() -> Iterator[Emulator]:
    """Run one emulator for the whole session; tests use `flow_emulator`, which is fresh in each."""
    from airflow_provider_flows.emulator import Emulator, MissingExtraError

    emulator = Emulator(run_seconds=RUN_SECONDS)
    try:
        emulator.start()
    except MissingExtraError as error:
        pytest.fail(f"The fixture flow_emulator cannot work. {error}", pytrace=False)
    yield emulator
    emulator.stop()


@pytest.fixture
def flow_emulator(flow_emulator_server: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """Give a test an emulator of both services, reset, with the Airflow connections to it set."""
    flow_emulator_server.reset()
    for name, value in flow_emulator_server.connections.items():
        monkeypatch.setenv(name, value)
    return flow_emulator_server
