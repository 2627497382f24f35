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
from benchmarks.scripted_runs import Script, ScriptedRun
from benchmarks.serving import ask, begin, until

LEAD = 1.0  # seconds between the server's being told and the first run
GRACE = 180.0  # seconds after the last run's end at which what is not told yet is lost
A_ROUND = 1.0  # seconds; the pause of Airflow's triggerer between two looks at what it is to begin
SETTLED = 1.0  # seconds after the last wait's begin: from here on the loop's lag is that of steady waiting


@dataclass(slots=True)
class News:
    """What came, and when."""

    lateness: list[float] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    async def of(self, contender: Contender, run: ScriptedRun, origin: float) -> None:
        """Wait for one run."""
        try:
            async for completed, told in contender(run):
                if completed:
                    self.lateness.append(time.time() - origin - run.ends)
                else:
                    self.troubles.append(told[:300])
        except Exception as error:  # noqa: BLE001  # whatever it is, the run's news is lost, and that is the figure
            self.troubles.append(repr(error)[:300])


async def _begun(
    contender: Contender, runs: list[ScriptedRun], origin: float, news: News
) -> AsyncIterator[asyncio.Task[None]]:
    """Begin to wait for the runs in rounds and one in a turn of the loop, as a triggerer's runner does.

    Its limits (50 new ones a round, 1,000 in all) are left out. A timer for each wait would be of the harness alone.
    """
    for run in sorted(runs, key=lambda run: run.begins):
        while until(origin + run.begins) > 0:  # noqa: ASYNC110  # time is waited for, not an event
            await asyncio.sleep(A_ROUND)
        yield asyncio.create_task(news.of(contender, run, origin))
        await asyncio.sleep(0)  # it lets the others have a turn after each, too


async def measured(name: str, address: str, interval: float, script: Script) -> dict[str, Any]:
    """Let a contender wait for all runs, and give the figures."""
    memory, cpu, lag = peak_memory(), time.process_time(), LoopLag()
    contender = load(name, address, interval)
    await asyncio.sleep(0)
    imported = time.process_time() - cpu
    origin, runs, news = time.time() + LEAD, script.runs(), News()
    await asyncio.to_thread(begin, address, origin)
    waits = [wait async for wait in _begun(contender, runs, origin, news)]
    settled = lag.now() + SETTLED
    last = origin + max(run.ends for run in runs)
    await asyncio.wait(waits, timeout=until(last + GRACE))
    await asyncio.sleep(until(last))
    cpu, wall = time.process_time() - cpu, time.time() - origin
    lag.stop()
    for wait in waits:
        wait.cancel()
    asked = await asyncio.to_thread(ask, address, "report")
    return {
        "runs": len(runs),
        "cpu": cpu,
        "cpu_import": imported,
        "wall": wall,
        "requests": asked["requests"],
        "server_cpu": asked["cpu"],
        "late_mean": mean(news.lateness),
        "late_p99": percentile(news.lateness, 0.99),
        "late_max": max(news.lateness, default=0.0),
        "lag_max": max(lag.lags(), default=0.0),
        "lag_p99": percentile(lag.lags(), 0.99),
        "lag_steady_max": max(lag.lags(settled), default=0.0),
        "memory": peak_memory() - memory,
        "lost": len(runs) - len(news.lateness),
        "troubles": sorted(set(news.troubles))[:3],
    }


def main() -> None:
    """Measure one contender; the figures go into a file as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waiting_process", description=main.__doc__)
    parser.add_argument("--contender", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--interval", type=float, required=True)
    parser.add_argument("--script", type=json.loads, required=True)
    parser.add_argument("--into", type=Path, required=True)
    told = parser.parse_args()
    logging.getLogger().setLevel(
        logging.WARNING
    )  # a line for each poll would be measured, and not every contender writes one
    allow_many_connections()
    figures = asyncio.run(measured(told.contender, told.address, told.interval, Script(**told.script)))
    told.into.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
