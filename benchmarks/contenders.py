"""The contenders: the provider's trigger, dbt Cloud's, a loop with a session for each run, and no waiter."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

from benchmarks.scripted_runs import ScriptedRun

CONN_ID = "flows_bench"
TOKEN = "benchmark"  # noqa: S105  # not a secret
BASELINE = "baseline"  # no waiter: its figures are the cost of measuring
WAIT_TIMEOUT_SECONDS = 3600.0  # longer than any benchmark

# Yields one pair for a run: whether it completed, and the message.
Contender = Callable[[ScriptedRun], AsyncIterator[tuple[bool, str]]]


def connection_environment(name: str, address: str) -> dict[str, str]:
    """Return the environment variable with the contender's Airflow connection."""
    host = urlsplit(address).netloc if name == "dbt" else address
    connection = {"conn_type": "dbt_cloud" if name == "dbt" else "generio", "host": host, "password": TOKEN}
    return {f"AIRFLOW_CONN_{CONN_ID.upper()}": json.dumps(connection)}


def load(name: str, address: str, interval: float) -> Contender:
    """Import a contender, in the event loop, as a triggerer does."""
    return {"provider": _provider, "dbt": _dbt, "plain": _plain, BASELINE: _baseline}[name](address, interval)


def _provider(_address: str, interval: float) -> Contender:
    """Return the provider's trigger with the arguments that a worker stores after its first poll."""
    from airflow_provider_flows.core.flow_run import FlowRun, FlowState
    from airflow_provider_flows.core.polling.schedule import Schedule
    from airflow_provider_flows.core.polling.wait import Wait
    from airflow_provider_flows.services.generio.api import Generio
    from airflow_provider_flows.triggers import FlowRunTrigger

    service = Generio()
    schedule = Schedule(interval, max(interval, 60.0), time.time() + WAIT_TIMEOUT_SECONDS)
    started_wait = Wait("any", service.get_run, schedule=schedule, clock=time.time, log=lambda *_: None)
    started_wait.record_poll(
        FlowRun("any", service.name, state=FlowState.STARTING, raw_state=FlowState.STARTING.value)
    )
    _, stored = FlowRunTrigger.from_wait(CONN_ID, started_wait).serialize()

    async def wait(run: ScriptedRun) -> AsyncIterator[tuple[bool, str]]:
        trigger = FlowRunTrigger(
            **{**stored, "flow_run_id": run.flow_run_id, "deadline": time.time() + WAIT_TIMEOUT_SECONDS}
        )
        async for event in trigger.run():
            payload = event.payload
            is_own = payload.get("flow_run_id") == run.flow_run_id
            yield (
                is_own and (payload.get("run") or {}).get("state") == "completed",
                str(payload.get("error") or ""),
            )

    return wait


def _dbt(_address: str, interval: float) -> Contender:
    from airflow.providers.dbt.cloud.hooks.dbt import DbtCloudHook
    from airflow.providers.dbt.cloud.triggers.dbt import DbtCloudRunJobTrigger

    original = DbtCloudHook.get_request_url_params

    def without_tls(*arguments: Any, **more: Any) -> tuple[str, dict[str, Any]]:
        url, params = original(*arguments, **more)
        return url.replace("https://", "http://", 1), params

    # Its URL is always https. No contender uses TLS here: one with a session for each poll would suffer most.
    DbtCloudHook.get_request_url_params = staticmethod(without_tls)

    async def wait(run: ScriptedRun) -> AsyncIterator[tuple[bool, str]]:
        trigger = DbtCloudRunJobTrigger(
            CONN_ID, run.number, time.time() + WAIT_TIMEOUT_SECONDS, interval, account_id=1
        )
        async for event in trigger.run():
            payload = event.payload
            yield payload["run_id"] == run.number and payload["status"] == "success", str(payload["message"])

    return wait


def _plain(address: str, interval: float) -> Contender:
    import asyncio

    import aiohttp

    async def wait(run: ScriptedRun) -> AsyncIterator[tuple[bool, str]]:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session:
            while True:
                async with session.get(f"{address}/flows/{run.flow_run_id}") as response:
                    state = (await response.json())["state"]
                if state == "completed":
                    break
                await asyncio.sleep(interval)
        yield True, state

    return wait


def _baseline(_address: str, _interval: float) -> Contender:
    async def wait(_run: ScriptedRun) -> AsyncIterator[tuple[bool, str]]:
        return
        yield

    return wait
