"""What is counted through Airflow's own statistics, and under which names; docs/performance.md lists them.

It decides nothing. Where no statistics are configured Airflow drops them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_flows.core.polling.wait import WaitMetrics

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import FlowRun

MILLISECONDS_PER_SECOND = 1000.0  # Airflow's timings


class AirflowWaitMetrics(WaitMetrics):
    """Counts the looks at single runs, and times how long was waited and how late the news came."""

    __slots__ = ()

    def count_poll(self) -> None:
        """Count `flows.polls`."""
        Stats.incr("flows.polls")

    def record_end(self, run: FlowRun, wait_seconds: float, detection_delay: float | None) -> None:
        """Time `flows.wait_time` by service, flow and state, and `flows.detection_delay` where the run tells its end."""
        tags = {"service": run.service, "flow": run.flow or "unknown", "state": run.state.value}
        Stats.timing("flows.wait_time", wait_seconds * MILLISECONDS_PER_SECOND, tags=tags)
        if detection_delay is not None:
            Stats.timing("flows.detection_delay", detection_delay * MILLISECONDS_PER_SECOND)


WAIT_METRICS = AirflowWaitMetrics()  # it keeps nothing of its own, so that one serves all


def count_list_poll() -> None:
    """Count `flows.list_polls`, each page of a list."""
    Stats.incr("flows.list_polls")


def count_rate_limit_pause() -> None:
    """Count `flows.rate_limit_pauses`."""
    Stats.incr("flows.rate_limit_pauses")


def set_waiting_runs(count: int) -> None:
    """Show `flows.waiting_runs`: the runs that this process waits for in its event loop."""
    Stats.gauge("flows.waiting_runs", count)
