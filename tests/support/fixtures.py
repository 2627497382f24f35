"""Fixtures that several test modules share; tests/conftest.py loads this module."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from airflow_provider_flows.emulator import Emulator
    from airflow_provider_flows.hooks import GenerioHook, PromptChainerHook
    from tests.support.asset_watchers import FileStore
    from tests.support.bucket import ObjectServer
    from tests.support.drivers import Driver
    from tests.support.flow_server import StubFlowServer
    from tests.support.postgresql import PostgreSQL


REQUIRE_POSTGRESQL = "FLOWS_TESTS_REQUIRE_POSTGRESQL"  # set where its tests must not be skipped


def disable_event_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make triggers emit their event at once, as on a machine without executors."""
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "-1")


@pytest.fixture
def emulator(
    flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Emulator:
    """Return the session's emulator after a reset, with connections to it; triggers emit events at once.

    The mark `emulator` changes settings for a module or a test: `run_seconds` is the duration of flow runs,
    `abort` the switch of that name, and `retries` how often the connections retry a request.
    """
    marker = request.node.get_closest_marker("emulator")
    settings = marker.kwargs if marker else {}
    assert settings.keys() <= {"run_seconds", "abort", "retries"}, settings
    flow_emulator.run_seconds = settings.get("run_seconds", flow_emulator.run_seconds)
    flow_emulator.switches.abort = settings.get("abort", flow_emulator.switches.abort)
    if "retries" in settings:
        extra = {"extra": {"retries": settings["retries"]}}
        for name, connection in flow_emulator.connections.items():
            monkeypatch.setenv(name, json.dumps(json.loads(connection) | extra))
    disable_event_delay(monkeypatch)
    return flow_emulator


@pytest.fixture
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a retry search its earlier run for one second, not for the 30 of a gateway in failover."""
    from airflow_provider_flows.core import start_or_resume

    monkeypatch.setattr(start_or_resume, "MISSING_RUN_RETRY_SECONDS", (0.2, 0.8))


@pytest.fixture
def object_storage_xcoms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Store every XCom in a file below the returned folder, and a reference to it in Airflow's database."""
    from tests.support.xcom_backends import use_object_storage_xcoms

    with use_object_storage_xcoms(monkeypatch, tmp_path / "xcoms") as folder:
        yield folder


@pytest.fixture
def hook(emulator: Emulator) -> GenerioHook:  # noqa: ARG001  # it sets the connection
    """Return a hook for Generio at the emulator."""
    from airflow_provider_flows.hooks import GenerioHook

    return GenerioHook("generio_default")


@pytest.fixture
def chain_hook(emulator: Emulator) -> PromptChainerHook:  # noqa: ARG001  # it sets the connection
    """Return a hook for PromptChainer at the emulator, without retries."""
    from airflow_provider_flows.hooks import PromptChainerHook

    hook = PromptChainerHook("promptchainer_default")
    hook.connection.extra = '{"retries": 0}'
    return hook


@pytest.fixture
def database_connection(emulator: Emulator, airflow_database: None) -> Iterator[str]:  # noqa: ARG001  # a fixture requests another
    """Add a connection to the emulator to Airflow's database, and yield its id; no variable has it."""
    from tests.support.commands import add_connection, call

    add_connection("in_the_database", emulator.url, emulator.key)
    yield "in_the_database"
    call(["connections", "delete", "in_the_database"])


@pytest.fixture
def flow_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubFlowServer]:
    """Yield a scripted flow server, with `flows_default` as its connection; triggers emit events at once."""
    from tests.support.flow_server import StubFlowServer

    disable_event_delay(monkeypatch)
    with StubFlowServer() as flow_server:
        flow_server.connect(monkeypatch)
        yield flow_server


@pytest.fixture
def list_all_runs(flow_server: StubFlowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the flow server list all runs, also finished ones, to a connection without retries."""
    from tests.support.flow_server import ApiResponse

    flow_server.connect(monkeypatch, retries=0)
    flow_server.list_response = lambda _: ApiResponse(
        {"flows": [flow_server.row(key) for key in list(flow_server.runs)]}
    )


@pytest.fixture
def asset_store(tmp_path: Path) -> FileStore:
    """Return the state store of an asset, which outlives the triggers that use it."""
    from tests.support.asset_watchers import FileStore

    return FileStore(tmp_path / "store.json")


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """Run an S3 server; tests use `bucket`, which empties it for each test."""
    from tests.support.bucket import ObjectServer

    with ObjectServer(tmp_path_factory.mktemp("moto") / "moto.log") as server:
        yield server


@pytest.fixture
def bucket(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> ObjectServer:
    """Return the S3 server with an empty bucket, and with the Airflow connection `bucket_of_tests` to it."""
    from tests.support.bucket import BUCKET_CONN_ID, connection_json

    monkeypatch.setenv(f"AIRFLOW_CONN_{BUCKET_CONN_ID.upper()}", connection_json(object_server.url))
    object_server.clear()
    return object_server


@pytest.fixture(params=["requests", "aiohttp"])
def driver(request: pytest.FixtureRequest) -> Driver:
    """Return a driver of conversations; the test runs once with each."""
    from tests.support.drivers import DRIVERS

    return DRIVERS[request.param]


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the machine's proxies and certificates from the environment."""
    from tests.support.drivers import clear_proxy_environment

    clear_proxy_environment(monkeypatch)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """Yield a PostgreSQL server; skip the test where it is not installed, unless it is required."""
    from tests.support.postgresql import PostgreSQL, missing_requirement

    missing = missing_requirement()
    if missing is not None:
        if REQUIRE_POSTGRESQL in os.environ:
            pytest.fail(f"{REQUIRE_POSTGRESQL} is set, and these tests cannot run. {missing}")
        pytest.skip(missing)
    with PostgreSQL() as server:
        yield server
