"""The metrics of this provider, emitted through Airflow's statistics.

Airflow drops them where `[metrics]` configures none. docs/performance.md lists them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_flows.core.safe_text import to_safe_name

if TYPE_CHECKING:
    from airflow_provider_flows.core.flow_run import FlowRun

MAX_TAG_LENGTH = 80  # characters; Airflow accepts 250 for a metric's name with all its tags
MILLISECONDS_PER_SECOND = 1000.0  # Airflow's timings


def count_poll() -> None:
    """Increment `flows.polls`: polls of single runs, in every mode."""
    Stats.incr("flows.polls")


def count_list_poll() -> None:
    """Increment `flows.list_polls`: pages of lists that were requested."""
    Stats.incr("flows.list_polls")


def count_rate_limit_pause() -> None:
    """Increment `flows.rate_limit_pauses`: how often the rate limiter paused all requests of a connection."""
    Stats.incr("flows.rate_limit_pauses")


def count_reused_run() -> None:
    """Increment `flows.reused`: flow runs that were not started, because outputs were reused."""
    Stats.incr("flows.reused")


def set_waiting_runs(count: int) -> None:
    """Set `flows.waiting`: the runs that this process waits for on its event loop."""
    Stats.gauge("flows.waiting", count)


def record_final_run(run: FlowRun, wait_seconds: float, detection_delay: float | None) -> None:
    """Record `flows.wait_time` by service, flow and state, and `flows.detection_delay` if it is known.

    :param wait_seconds: from the start of the wait to its end.
    :param detection_delay: seconds from the run's end to the poll that detected it, None if unknown.
    """
    # a tag is part of the metric's name in some backends, and Airflow drops a metric with an odd name
    flow, service = (to_safe_name(name, MAX_TAG_LENGTH) for name in (run.flow or "unknown", run.service))
    tags = {"service": service, "flow": flow, "state": run.state.value}
    Stats.timing("flows.wait_time", wait_seconds * MILLISECONDS_PER_SECOND, tags=tags)
    if detection_delay is not None:
        Stats.timing("flows.detection_delay", detection_delay * MILLISECONDS_PER_SECOND)
