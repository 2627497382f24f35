"""The pytest fixture `flow_emulator`: an emulator for a test, with the Airflow connections to it.

pytest imports this module in every run of every user, so it imports nothing that takes time.
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
    """Run one emulator for the session; tests use `flow_emulator`, which resets it for each test."""
    from airflow_provider_flows.emulator import Emulator, MissingExtraError

    emulator = Emulator(run_seconds=RUN_SECONDS)
    try:
        emulator.start()
    except MissingExtraError as error:
        pytest.fail(f"The fixture flow_emulator cannot start. {error}", pytrace=False)
    yield emulator
    emulator.stop()


@pytest.fixture
def flow_emulator(flow_emulator_server: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """Return an emulator of both services, after a reset and with the Airflow connections to it set.

    A flow run takes half a second. The connections `flows_default`, `generio_default` and
    `promptchainer_default` lead to the emulator during the test.
    """
    flow_emulator_server.reset()
    for name, value in flow_emulator_server.connections.items():
        monkeypatch.setenv(name, value)
    return flow_emulator_server
