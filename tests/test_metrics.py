"""Tests of the metrics: which names reach the backend that Airflow configures, and with which values.

The backend is one of Airflow's own, set as Airflow sets it, or selected by its settings.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import Stats
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from airflow_provider_flows import metrics
from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.http import Conversation
from airflow_provider_flows.core.polling.bulk import ActiveRuns
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import FlowsHook, GenerioHook
from airflow_provider_flows.services.generio.api import Generio
from tests.support.batches import create_batch, create_items, run_try
from tests.support.flow_server import ApiResponse, StubFlowServer
from tests.support.servers import StubResponse, StubServer
from tests.support.triggers import (
    age_hook_cache,
    run_trigger,
    run_triggers,
    wait_for_condition,
    wait_for_idle_loop,
    wait_in_poller,
)

Tags = dict[str, Any]


class Backend:
    """A backend with those methods of Airflow's that are used; it records their calls."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.recorded: list[tuple[str, float, Tags]] = []

    def _record(self, name: str, value: float, tags: Tags | None) -> None:
        with self._lock:
            self.recorded.append((name, value, tags or {}))

    def incr(self, stat: str, count: int = 1, rate: float = 1, *, tags: Tags | None = None) -> None:  # noqa: ARG002  # Airflow's signature
        """Record a counter."""
        self._record(stat, count, tags)

    def gauge(self, stat: str, value: float, rate: float = 1, *, tags: Tags | None = None) -> None:  # noqa: ARG002  # Airflow's signature
        """Record a gauge."""
        self._record(stat, value, tags)

    def timing(self, stat: str, dt: float, *, tags: Tags | None = None) -> None:
        """Record a timing."""
        self._record(stat, dt, tags)

    def of(self, name: str) -> list[tuple[float, Tags]]:
        """Return the recorded values of one name, with their tags."""
        return [(value, tags) for recorded, value, tags in self.recorded if recorded == f"flows.{name}"]

    def sum(self, name: str) -> float:
        """Return the sum of the values of one name."""
        return sum(value for value, _ in self.of(name))


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """Yield a backend that Airflow uses during the test."""
    if not hasattr(Stats, "initialize"):  # before Airflow 3.2
        backend = Backend()
        monkeypatch.setattr(type(Stats), "factory", lambda _: backend)
        monkeypatch.setattr(Stats, "instance", None)
        yield backend
        return
    from airflow.sdk.observability.metrics.stats_utils import get_stats_factory

    backend = Backend()
    Stats.initialize(factory=lambda: backend, export_legacy_names=False)
    yield backend
    Stats.initialize(factory=get_stats_factory(), export_legacy_names=False)


async def test_polls_and_lists_are_counted(flow_server: StubFlowServer, backend: Backend) -> None:
    """`flows.polls` and `flows.list_polls` are the numbers of requests that the service received."""
    await run_triggers(flow_server.create_runs(20, 1.5))
    assert backend.sum("polls") == len(flow_server.poll_requests())
    assert backend.sum("list_polls") == len(flow_server.list_requests()) > 0


def test_reused_runs_are_counted(emulator: Emulator, backend: Backend, tmp_path: Path) -> None:
    """`flows.reused` is the number of flow runs that were not started."""
    emulator.run_seconds = 0
    items = create_items(3)
    for name in ("a", "b", "c"):
        run_try(create_batch(tmp_path / name, items, reuse=True, reuse_path=str(tmp_path)))
    assert backend.sum("reused") == 6
    assert len(emulator.paid_runs) == 3


async def test_waits_are_timed(flow_server: StubFlowServer, backend: Backend) -> None:
    """`flows.wait_time` is recorded once a run; `flows.detection_delay` is the time since the run's end."""
    flow_server.create_runs(3, 0.5, "good")
    flow_server.create_runs(2, 0.5, "bad", end="failed")
    await run_triggers(flow_server.runs)

    counts = {"completed": 3, "failed": 2}
    times = backend.of("wait_time")
    assert len(times) == 5
    for state, count in counts.items():
        assert [tags for _, tags in times if tags["state"] == state] == [
            {"service": "generio", "flow": "t", "state": state}
        ] * count
    assert all(400 < value < 5_000 for value, _ in times)
    assert len(backend.of("detection_delay")) == 5
    assert all(0 <= value < 3_000 for value, _ in backend.of("detection_delay"))


class ListWithFinalRuns(Generio):
    """A third party's service, whose list of active runs contains each run as a completed one."""

    def list_active(self, flow_run_ids: Collection[str]) -> Conversation[ActiveRuns]:
        """Send the request of the list, and return all runs as completed."""
        yield from super().list_active(flow_run_ids)
        runs = {
            key: FlowRun(key, self.name, state=FlowState.COMPLETED, raw_state="completed")
            for key in flow_run_ids
        }
        return ActiveRuns(runs, runs.keys())


class HookWithFinalRuns(GenerioHook):
    """The hook of that service."""

    def create_service(self, extra: Mapping[str, Any]) -> ListWithFinalRuns:  # noqa: ARG002  # it has no options
        """Return the service."""
        return ListWithFinalRuns()


async def test_row_of_a_list_does_not_end_a_wait(flow_server: StubFlowServer, backend: Backend) -> None:
    """A wait is timed once, when a poll of its own returns the final run, whatever a list showed before."""
    hook = HookWithFinalRuns()
    hook._connection = (await FlowsHook.aget_hook("flows_default"))._connection
    ids = flow_server.create_runs(15, 1.0)

    runs = await asyncio.gather(*(wait_in_poller(hook, key) for key in ids))

    assert all(run.is_completed for run in runs)
    assert flow_server.list_requests()
    assert len(backend.of("wait_time")) == len(ids)
    assert all(value > 900 for value, _ in backend.of("wait_time"))


async def test_pause_for_the_rate_limit_is_counted_once(
    flow_server: StubFlowServer, backend: Backend
) -> None:
    """`flows.rate_limit_pauses` counts the pauses of the connection, not the waits that it delays."""
    rejected_at: list[float] = []

    def respond(key: str, _: Any) -> ApiResponse:
        if rejected_at and time.time() > rejected_at[0] + 0.2:
            return ApiResponse(flow_server.row(key))
        rejected_at.append(time.time())
        return ApiResponse({}, 429, {"Retry-After": "1"})

    flow_server.list_response, flow_server.run_response = lambda _: ApiResponse({}, 404), respond
    await run_triggers(flow_server.create_runs(20, 0.2))
    assert len(rejected_at) > 1
    assert backend.sum("rate_limit_pauses") == 1


async def test_gauge_follows_the_waiting_runs(flow_server: StubFlowServer, backend: Backend) -> None:
    """`flows.waiting` follows the number of runs that are waited for, down to none."""
    ids = flow_server.create_runs(12, 2.5)
    await run_triggers(ids)
    assert await wait_for_idle_loop()
    values = backend.of("waiting")
    assert max(value for value, _ in values) == 12
    assert values[-1][0] == 0


async def test_gauge_is_right_after_a_key_rotation(
    flow_server: StubFlowServer, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waits that continue with a new key are counted, though the poller with the old key has ended."""
    tasks = [asyncio.create_task(run_trigger(key)) for key in flow_server.create_runs(5, 60)]
    assert await wait_for_condition(lambda: len(flow_server.requests) > 5)
    flow_server.keys = {"new"}
    flow_server.connect(monkeypatch, key="new")
    age_hook_cache()
    await wait_for_condition(
        lambda: len([request for request in flow_server.requests if request.key == "new"]) > 15
    )
    await asyncio.sleep(1.2)

    assert backend.of("waiting")[-1][0] == 5

    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_gauge_of_a_shared_poller_returns_to_zero(
    flow_server: StubFlowServer, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two connections share a poller, the gauge returns to zero for both."""
    flow_server.connect(monkeypatch, "same")
    first = asyncio.create_task(run_trigger(flow_server.create_runs(1, 1.5, "first")[0]))
    assert await wait_for_condition(lambda: backend.of("waiting"))
    await run_trigger(flow_server.create_runs(1, 2.5, "second")[0], conn_id="same")
    assert (await first).is_completed
    assert await wait_for_idle_loop()
    assert backend.of("waiting")[-1][0] == 0


# A process that is configured as a triggerer is, and imports what a triggerer imports.
IN_A_TRIGGERER = """
import asyncio, sys
import airflow.jobs.triggerer_job_runner
from airflow_provider_flows.triggers import FlowRunTrigger

async def main():
    triggers = [FlowRunTrigger("flows_default", key, 0.1, 0.1) for key in sys.argv[1:]]
    await asyncio.gather(*(anext(trigger.run()) for trigger in triggers))
    await asyncio.sleep(0.1)

asyncio.run(main())
"""


def test_metrics_of_a_triggerer_are_exported(flow_server: StubFlowServer) -> None:
    """In a process that exports metrics over OpenTelemetry, all names reach the collector."""
    polled: list[str] = []

    def respond(key: str, _: Any) -> ApiResponse:
        polled.append(key)
        return (
            ApiResponse({}, 429, {"Retry-After": "0.5"})
            if len(polled) == 1
            else ApiResponse(flow_server.row(key))
        )

    flow_server.run_response = respond
    ids = flow_server.create_runs(12, 0.5)
    with StubServer(lambda _: StubResponse()) as collector:
        settings = {
            "AIRFLOW__METRICS__OTEL_ON": "True",
            "AIRFLOW__METRICS__OTEL_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__OTEL_PORT": collector.url.rpartition(":")[2],
            "AIRFLOW__METRICS__OTEL_INTERVAL_MILLISECONDS": "60000",
        }
        done = subprocess.run(
            [sys.executable, "-c", IN_A_TRIGGERER, *ids],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        sent = [ExportMetricsServiceRequest.FromString(request.body) for request in collector.requests]

    scopes = [scope for one in sent for resource in one.resource_metrics for scope in resource.scope_metrics]
    names = {metric.name.removeprefix("airflow.") for scope in scopes for metric in scope.metrics}
    expected = {"polls", "list_polls", "waiting", "detection_delay", "rate_limit_pauses", "wait_time"}
    assert {f"flows.{name}" for name in expected} <= names


ODD_NAMES = [
    "text to 3d",
    "größe",
    "a,b=c",
    "flow,state=completed",
    "a\nb",
    "a:1|c",
    "name|#tag:x",
    "",
    " ",
    "." * 300,
    "x" * 300,
    "x" * 299 + "y",
    "\ufffd" * 90,
    "日本語",
    "a@b%c&d",
]


class Lines:
    """A statsd client that records the metrics that are sent."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def timing(self, stat: str, _: float) -> None:
        """Record a timing."""
        self.names.append(stat)


@pytest.mark.parametrize("is_influxdb", [True, False])
def test_odd_names_drop_no_metric(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_influxdb: bool
) -> None:
    """Each flow's wait is recorded by Airflow's own logger, under a name of its own, and without an error."""
    has_sdk = hasattr(Stats, "initialize")
    path = "airflow.sdk._shared.observability.metrics" if has_sdk else "airflow.metrics"
    statsd_logger = importlib.import_module(f"{path}.statsd_logger")
    client = Lines()
    logger_type = statsd_logger.SafeStatsdLogger
    options = {"influxdb_tags_enabled": is_influxdb}
    if "statsd_influxdb_enabled" in inspect.signature(logger_type.__init__).parameters:
        options["statsd_influxdb_enabled"] = is_influxdb
    logger = logger_type(client, **options)
    if hasattr(Stats, "initialize"):
        Stats.initialize(factory=lambda: logger, export_legacy_names=False)
    else:  # before Airflow 3.2
        monkeypatch.setattr(type(Stats), "factory", lambda _: logger)
        monkeypatch.setattr(Stats, "instance", None)
    try:
        for name in ODD_NAMES:
            run = FlowRun("r", name or "s", flow=name, state=FlowState.COMPLETED)
            metrics.record_final_run(run, 1.0, None)
    finally:
        if hasattr(Stats, "initialize"):
            from airflow.sdk.observability.metrics.stats_utils import get_stats_factory

            Stats.initialize(factory=get_stats_factory(), export_legacy_names=False)
    assert len(client.names) == len(ODD_NAMES)
    assert caplog.messages == []
    assert all(len(name) <= 250 and name.isascii() for name in client.names)
    assert len(set(client.names)) == (len(ODD_NAMES) if is_influxdb else 1)
    assert not is_influxdb or all(name.count(",") == name.count("=") == 3 for name in client.names)
