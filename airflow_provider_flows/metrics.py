"""What is counted through Airflow's own statistics, and under which names; docs/performance.md lists them.

It decides nothing. Where no statistics are configured Airflow drops them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_flows.core.polling.wait import Meter

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import FlowRun

MILLISECONDS = 1000.0  # Airflow's timings


class WaitMeter(Meter):
    """Counts the looks at single runs, and times how long was waited and how late the news came."""

    __slots__ = ()

    def looked(self) -> None:
        """Count `flows.polls`."""
        Stats.incr("flows.polls")

    def ended(self, run: FlowRun, waited: float, late: float | None) -> None:
        """Time `flows.wait_time` by service, flow and state, and `flows.lateness` where the run tells its end."""
        tags = {"service": run.service, "flow": run.flow or "unknown", "state": run.state.value}
        Stats.timing("flows.wait_time", waited * MILLISECONDS, tags=tags)
        if late is not None:
            Stats.timing("flows.lateness", late * MILLISECONDS)


METER = WaitMeter()  # it keeps nothing of its own, so that one serves all


def listed() -> None:
    """Count `flows.list_polls`, each page of a list."""
    Stats.incr("flows.list_polls")


def braked() -> None:
    """Count `flows.rate_limit_pauses`."""
    Stats.incr("flows.rate_limit_pauses")


def watched(runs: int) -> None:
    """Show `flows.watched`: the runs that this process waits for in its event loop."""
    Stats.gauge("flows.watched", runs)
