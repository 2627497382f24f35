"""A process that waits for all scripted runs in one event loop with one contender, and writes the figures."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import airflow.triggers.base  # noqa: F401  # a triggerer has imported it, so no contender is charged for it

from benchmarks.contenders import Contender, load
from benchmarks.flow_server import allow_many_connections
from benchmarks.measures import LoopLag, mean, peak_memory, percentile
from benchmarks.scripted_runs import RunScript, ScriptedRun
from benchmarks.serving import seconds_until, send_control, start_runs

LEAD_SECONDS = 1.0  # from the control request to the first run
GRACE_SECONDS = 180.0  # after the last run's end; a run without an event by then is lost
ROUND_SECONDS = 1.0  # between two rounds in which Airflow's triggerer creates triggers
SETTLE_SECONDS = 1.0  # after the last wait's start; from then on the lag is "steady"


@dataclass(slots=True)
class Outcomes:
    """The detection delays and the errors."""

    detection_delays: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    async def wait_for(self, contender: Contender, run: ScriptedRun, origin: float) -> None:
        """Wait for one run."""
        try:
            async for completed, message in contender(run):
                if completed:
                    self.detection_delays.append(time.time() - origin - run.end_offset)
                else:
                    self.errors.append(message[:300])
        except Exception as error:  # noqa: BLE001  # the run is lost, which is a figure
            self.errors.append(repr(error)[:300])


async def _start_waits(
    contender: Contender, runs: list[ScriptedRun], origin: float, outcomes: Outcomes
) -> AsyncIterator[asyncio.Task[None]]:
    """Start the waits in rounds, and one per turn of the loop, as a triggerer does.

    The triggerer's limits (50 new triggers per round, 1,000 in total) do not apply. A timer for each wait
    would be a cost of the harness.
    """
    for run in sorted(runs, key=lambda run: run.start_offset):
        while seconds_until(origin + run.start_offset) > 0:  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(ROUND_SECONDS)
        yield asyncio.create_task(outcomes.wait_for(contender, run, origin))
        await asyncio.sleep(0)  # a turn of the loop after each


async def measure(name: str, address: str, interval: float, script: RunScript) -> dict[str, Any]:
    """Let a contender wait for all runs, and return the figures."""
    memory, cpu, lag = peak_memory(), time.process_time(), LoopLag()
    contender = load(name, address, interval)
    await asyncio.sleep(0)
    imported = time.process_time() - cpu
    origin, runs, outcomes = time.time() + LEAD_SECONDS, script.runs(), Outcomes()
    await asyncio.to_thread(start_runs, address, origin)
    waits = [wait async for wait in _start_waits(contender, runs, origin, outcomes)]
    settled = lag.now() + SETTLE_SECONDS
    last = origin + max(run.end_offset for run in runs)
    await asyncio.wait(waits, timeout=seconds_until(last + GRACE_SECONDS))
    await asyncio.sleep(seconds_until(last))
    cpu, wall = time.process_time() - cpu, time.time() - origin
    lag.stop()
    for wait in waits:
        wait.cancel()
    report = await asyncio.to_thread(send_control, address, "report")
    return {
        "runs": len(runs),
        "cpu": cpu,
        "cpu_import": imported,
        "wall": wall,
        "requests": report["requests"],
        "server_cpu": report["cpu"],
        "delay_mean": mean(outcomes.detection_delays),
        "delay_p99": percentile(outcomes.detection_delays, 0.99),
        "delay_max": max(outcomes.detection_delays, default=0.0),
        "lag_max": max(lag.lags(), default=0.0),
        "lag_p99": percentile(lag.lags(), 0.99),
        "lag_steady_max": max(lag.lags(settled), default=0.0),
        "memory": peak_memory() - memory,
        "lost": len(runs) - len(outcomes.detection_delays),
        "errors": sorted(set(outcomes.errors))[:3],
    }


def main() -> None:
    """Measure one contender, and write the figures to a file as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waiting_process", description=main.__doc__)
    parser.add_argument("--contender", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--interval", type=float, required=True)
    parser.add_argument("--script", type=json.loads, required=True)
    parser.add_argument("--into", type=Path, required=True)
    options = parser.parse_args()
    # not every contender logs polls, and log lines would be measured
    logging.getLogger().setLevel(logging.WARNING)
    allow_many_connections()
    figures = asyncio.run(
        measure(options.contender, options.address, options.interval, RunScript(**options.script))
    )
    options.into.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
