"""A wait over scripted responses, whose clock only its sleeps advance."""

from __future__ import annotations

from typing import Any

from airflow_provider_flows.core.exceptions import FlowServiceError
from airflow_provider_flows.core.flow_run import FlowRun
from airflow_provider_flows.core.http import Response
from airflow_provider_flows.core.polling.schedule import PollStep, Schedule
from airflow_provider_flows.core.polling.wait import Wait
from airflow_provider_flows.core.retry import NO_RETRY, with_retries
from airflow_provider_flows.services.generio.api import Generio
from tests.support.scripted_transport import NOON, ScriptedTransport, json_response


def run_response(state: str, **more: Any) -> Response:
    """Return the response about a run that started at noon."""
    return json_response({"flow_id": "r", "state": state, "started_at": NOON, **more})


class ScriptedWait:
    """A wait over scripted responses, and the lines that it logged."""

    def __init__(
        self,
        *responses: Response | FlowServiceError,
        deadline: float | None = None,
        endless: bool = False,
        min_log_interval: float = 0.0,
        **observers: Any,
    ) -> None:
        self.script = ScriptedTransport(*responses, endless=endless)
        self.lines: list[tuple[int, str]] = []
        schedule = Schedule(5, 60, deadline, jitter=lambda: 0.0)
        self.wait = Wait(
            "r",
            Generio().get_run,
            schedule=schedule,
            clock=self.script.clock,
            log=lambda *line: self.lines.append(line),
            min_log_interval=min_log_interval,
            **observers,
        )

    def run(self, kind: str = "blocking") -> FlowRun:
        """Wait to the end."""
        return self.script.run(with_retries(self.wait.poll_until_final(), NO_RETRY), kind)

    def poll(self) -> PollStep:
        """Poll once, and return the next step."""
        return self.script.run(with_retries(self.wait.poll(), NO_RETRY))

    def poll_run(self) -> FlowRun:
        """Poll once, and return the run; the poll must succeed."""
        self.poll()
        assert self.wait.poll_state.last_error is None
        assert self.wait.run is not None
        return self.wait.run

    def lines_of(self, level: int) -> list[str]:
        """Return the lines of one level."""
        return [line for line_level, line in self.lines if line_level == level]
