"""Tests of the tracking of a flow run in a task: the run's web address, and its XCom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from airflow_provider_flows.core.flow_run import FlowRun
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.worker.run_tracking import RUN_LINK_KEY, get_run_url
from tests.support.task_instances import Store, context
from tests.support.tries import CHAIR_ARGUMENTS


class ThirdServiceHook(GenerioHook):
    """The hook of a third service with a console, or with an invalid URL."""

    def __init__(self, url_template: Any) -> None:
        super().__init__("generio_default")
        self._url_template = url_template

    def create_service(self, extra: Mapping[str, Any]) -> Any:
        """Return a service that has URLs of its runs."""
        service: Any = super().create_service(extra)
        template = self._url_template
        return type("Third", (type(service),), {"run_url": lambda _, key, flow: template.format(key, flow)})()


@pytest.mark.parametrize(
    ("url_template", "url"),
    [
        ("https://third.example/runs/{}?flow={}", "https://third.example/runs/r/1?flow=f"),
        ("javascript:alert('{}{}')", ""),
        ("{}{}{}", ""),  # raises IndexError
        (None, ""),
    ],
)
@pytest.mark.usefixtures("flow_emulator")
def test_run_url_of_third_service(url_template: Any, url: str) -> None:
    """A service may return the URL of its console; an error or a URL that is not HTTP results in no link."""
    assert get_run_url(ThirdServiceHook(url_template), FlowRun("r/1", "third", "f")) == url


def test_flow_run_id_is_quoted_in_run_url(flow_emulator: Emulator) -> None:
    """An id with path characters is quoted, and an invalid one gives no URL."""
    hook = GenerioHook("generio_default")
    assert get_run_url(hook, FlowRun("../a?b#c", "generio")) == f"{flow_emulator.url}/flows/..%2Fa%3Fb%23c"
    assert get_run_url(hook, FlowRun("..", "generio")) == ""


def test_failed_push_of_run_link_does_not_fail_the_task(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """An XCom backend that rejects the run's link does not end the task."""
    emulator.run_seconds = 0
    try_context = context(Store())

    def push(key: str, _: Any) -> None:
        if key == RUN_LINK_KEY:
            raise RuntimeError(key)

    try_context["ti"].xcom_push = push
    assert (
        RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1).execute(try_context)["state"]
        == "completed"
    )
    assert "The link to the flow run could not be pushed" in caplog.text
