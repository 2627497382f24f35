"""One process that waits for all scripted runs in one event loop, by one contender, and writes down what that cost.

It starts no server and compares nothing; triggers.py does.
"""

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

import airflow.triggers.base  # noqa: F401  # a triggerer has it; what Airflow itself costs is nobody's here

from benchmarks.contenders import Contender, load
from benchmarks.flow_server import allow_many_connections
from benchmarks.measures import LoopLag, mean, peak_memory, percentile
from benchmarks.scripted_runs import RunScript, ScriptedRun
from benchmarks.serving import seconds_until, send_control, start_runs

LEAD_SECONDS = 1.0  # seconds between the server's being told and the first run
GRACE_SECONDS = 180.0  # seconds after the last run's end at which what is not told yet is lost
ROUND_SECONDS = 1.0  # seconds; the pause of Airflow's triggerer between two looks at what it is to begin
SETTLE_SECONDS = (
    1.0  # seconds after the last wait's begin: from here on the loop's lag is that of steady waiting
)


@dataclass(slots=True)
class Outcomes:
    """What came, and when."""

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
        except Exception as error:  # noqa: BLE001  # whatever it is, the run's news is lost, and that is the figure
            self.errors.append(repr(error)[:300])


async def _start_waits(
    contender: Contender, runs: list[ScriptedRun], origin: float, outcomes: Outcomes
) -> AsyncIterator[asyncio.Task[None]]:
    """Begin to wait for the runs in rounds and one in a turn of the loop, as a triggerer's runner does.

    Its limits (50 new ones a round, 1,000 in all) are left out. A timer for each wait would be of the harness alone.
    """
    for run in sorted(runs, key=lambda run: run.start_offset):
        while seconds_until(origin + run.start_offset) > 0:  # noqa: ASYNC110  # time is waited for, not an event
            await asyncio.sleep(ROUND_SECONDS)
        yield asyncio.create_task(outcomes.wait_for(contender, run, origin))
        await asyncio.sleep(0)  # it lets the others have a turn after each, too


async def measure(name: str, address: str, interval: float, script: RunScript) -> dict[str, Any]:
    """Let a contender wait for all runs, and give the figures."""
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
    """Measure one contender; the figures go into a file as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waiting_process", description=main.__doc__)
    parser.add_argument("--contender", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--interval", type=float, required=True)
    parser.add_argument("--script", type=json.loads, required=True)
    parser.add_argument("--into", type=Path, required=True)
    options = parser.parse_args()
    logging.getLogger().setLevel(
        logging.WARNING
    )  # a line for each poll would be measured, and not every contender writes one
    allow_many_connections()
    figures = asyncio.run(
        measure(options.contender, options.address, options.interval, RunScript(**options.script))
    )
    options.into.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
