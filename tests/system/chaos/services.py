"""The services of the scenarios: the emulator as a process, the independent server, and an external server.

The state of flow runs is read over the documented API; two of the services also count billed runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.support.other_runs import FLOW
from tests.support.other_server import CHAIN_ID, OtherServer
from tools.emulator_process import EmulatorProcess

TIMEOUT = 30


@dataclass(frozen=True)
class Plan:
    """The duration of a flow run in seconds, None for the default, and the error of one that fails."""

    seconds: float | None = None
    error: str | None = None


class ServiceUnderTest(ABC):
    """A service with Generio's documented API."""

    flow: str
    chain: str = ""
    """The id of a PromptChainer flow."""
    url: str
    key: str

    @abstractmethod
    def start(self) -> None:
        """Start the service."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the service."""

    @abstractmethod
    def plan_next(self, plan: Plan) -> None:
        """Plan the flow run that is created next."""

    @abstractmethod
    def advance(self, seconds: float) -> None:
        """Advance the service's clock."""

    @abstractmethod
    def count_paid(self, tag: str, conn_type: str) -> int | None:
        """Return the number of billed flow runs with this tag, or None if the service does not count them."""

    def send(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request to the service, without the proxy."""
        with requests.Session() as session:
            session.trust_env = False
            headers = {"Authorization": f"Bearer {self.key}"}
            return session.request(method, self.url + path, headers=headers, timeout=TIMEOUT, **options)

    def state(self, flow_run_id: str) -> str:
        """Return the state of a flow run: `gone` after a deletion, `aborted` also during the abort."""
        response = self.send("GET", f"/flows/{flow_run_id}")
        if response.status_code == 404:
            return "gone"
        response.raise_for_status()
        return str(response.json()["state"]).replace("aborting", "aborted")

    def states(self, flow_run_ids: list[str]) -> str:
        """Return the number of flow runs in each state as text, without deleted runs."""
        counted = Counter(self.state(flow_run_id) for flow_run_id in dict.fromkeys(flow_run_ids))
        return (
            ", ".join(f"{number} {state}" for state, number in sorted(counted.items()) if state != "gone")
            or "none"
        )

    def outputs(self, flow_run_id: str) -> int:
        """Return the number of a flow run's outputs."""
        response = self.send("GET", f"/flows/{flow_run_id}/outputs")
        response.raise_for_status()
        return len(response.json()["outputs"])


ServiceFactory = Callable[[Path, float], ServiceUnderTest]
"""Creates a service from the path of its log and the duration of its flow runs in seconds."""


class EmulatorService(ServiceUnderTest):
    """The emulator as a process."""

    flow = "model_generate_fromprompt"
    chain = "clibnwpno000bmc0k9hvv3y7f"

    def __init__(self, log: Path, run_seconds: float) -> None:
        """Select a port."""
        self._program = EmulatorProcess(log, "--run-seconds", str(run_seconds))
        self.url = self._program.address
        self.key = self._program.connections()["generio_default"]["password"]

    def start(self) -> None:
        """Start the process."""
        self._program.start()

    def stop(self) -> None:
        """Stop the process."""
        self._program.stop()

    def plan_next(self, plan: Plan) -> None:
        """Send the plan to the emulator."""
        payload = {
            "run_seconds": plan.seconds,
            "outcome": "failed" if plan.error else "completed",
            "error": plan.error,
        }
        self.send("POST", "/_emulator/plans", json=payload).raise_for_status()

    def advance(self, seconds: float) -> None:
        """Advance the emulator's clock."""
        self.send("PATCH", "/_emulator/settings", json={"advance": seconds}).raise_for_status()

    def count_paid(self, tag: str, conn_type: str) -> int | None:
        """Count by the tag in `additional`; the emulator does not report the variables of a chain."""
        if conn_type != "generio":
            return None
        paid = self.send("GET", "/_emulator/runs").json()["paid_runs"]
        return [(run["additional"] or {}).get("tag") for run in paid].count(tag)


class IndependentService(ServiceUnderTest):
    """The independent server of tests/support/other_server.py, in threads."""

    flow = FLOW
    chain = CHAIN_ID

    def __init__(self, _log: Path, run_seconds: float) -> None:
        """Create the server."""
        self._server = OtherServer(run_seconds)
        self.url = self._server.url
        self.key = self._server.key

    def start(self) -> None:
        """Start the service."""
        self._server.start()

    def stop(self) -> None:
        """Stop the service."""
        self._server.stop()

    def plan_next(self, plan: Plan) -> None:
        """Pass the plan to the server."""
        self._server.plan_next(seconds=plan.seconds, error=plan.error)

    def advance(self, seconds: float) -> None:
        """Advance its clock."""
        self._server.advance(seconds)

    def count_paid(self, tag: str, conn_type: str) -> int:  # noqa: ARG002  # the same for both services
        """Count by the tag, in `additional` or among a chain's variables."""
        return self._server.count_paid(tag)


class ExternalService(ServiceUnderTest):
    """An external server, which is controlled by its API only."""

    def __init__(self, url: str, key: str, flow: str) -> None:
        """Set its URL, its key and a flow whose inputs are prompts."""
        self.url, self.key, self.flow = url.rstrip("/"), key, flow

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""

    def plan_next(self, plan: Plan) -> None:
        """Do nothing."""

    def advance(self, seconds: float) -> None:
        """Raise, because its clock cannot be advanced."""
        raise NotImplementedError(f"the clock of {self.url} cannot be advanced by {seconds} s")

    def count_paid(self, tag: str, conn_type: str) -> None:
        """Return None: the API does not report it."""
