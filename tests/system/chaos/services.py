"""The services that the scenarios are played against: the emulator in a process of its own, and servers that are not ours.

What is true of a flow run is asked over the documented API; a service's own word of what was paid is a second witness.
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
from tools.stand_in import EmulatorProcess

TIMEOUT = 30


@dataclass(frozen=True)
class Plan:
    """How a flow run goes: how many seconds it takes, if it is not what is usual, and the error that it ends with, if any."""

    seconds: float | None = None
    error: str | None = None


class ServiceUnderTest(ABC):
    """One service that speaks Generio's documented API."""

    flow: str
    chain: str = ""
    """A flow of PromptChainer's."""
    url: str
    key: str

    @abstractmethod
    def start(self) -> None:
        """Begin to answer."""

    @abstractmethod
    def stop(self) -> None:
        """End."""

    @abstractmethod
    def plan_next(self, plan: Plan) -> None:
        """Say how the flow run goes that is created next."""

    @abstractmethod
    def advance(self, seconds: float) -> None:
        """Push the service's clock forward."""

    @abstractmethod
    def count_paid(self, tag: str, conn_type: str) -> int | None:
        """Tell how many flow runs with this tag the service takes money for; None if it does not say."""

    def send(self, method: str, path: str, **options: Any) -> requests.Response:
        """Ask anything of the service, not through a proxy."""
        with requests.Session() as session:
            session.trust_env = False
            headers = {"Authorization": f"Bearer {self.key}"}
            return session.request(method, self.url + path, headers=headers, timeout=TIMEOUT, **options)

    def state(self, flow_run_id: str) -> str:
        """Tell the state of a flow run, `gone` if it was deleted; a run that is being aborted counts as aborted."""
        response = self.send("GET", f"/flows/{flow_run_id}")
        if response.status_code == 404:
            return "gone"
        response.raise_for_status()
        return str(response.json()["state"]).replace("aborting", "aborted")

    def states(self, flow_run_ids: list[str]) -> str:
        """Put the states of flow runs into words, without those that are gone."""
        counted = Counter(self.state(flow_run_id) for flow_run_id in dict.fromkeys(flow_run_ids))
        return (
            ", ".join(f"{number} {state}" for state, number in sorted(counted.items()) if state != "gone")
            or "none"
        )

    def outputs(self, flow_run_id: str) -> int:
        """Tell how many outputs a flow run has."""
        response = self.send("GET", f"/flows/{flow_run_id}/outputs")
        response.raise_for_status()
        return len(response.json()["outputs"])


ServiceFactory = Callable[[Path, float], ServiceUnderTest]
"""Makes a service, from where its log goes and how long its flow runs take."""


class EmulatorService(ServiceUnderTest):
    """The emulator as a process of its own."""

    flow = "model_generate_fromprompt"
    chain = "clibnwpno000bmc0k9hvv3y7f"

    def __init__(self, log: Path, run_seconds: float) -> None:
        """Choose the port."""
        self._program = EmulatorProcess(log, "--run-seconds", str(run_seconds))
        self.url = self._program.address
        self.key = self._program.connections()["generio_default"]["password"]

    def start(self) -> None:
        """Start the process."""
        self._program.start()

    def stop(self) -> None:
        """End the process."""
        self._program.stop()

    def plan_next(self, plan: Plan) -> None:
        """Hand it to the emulator."""
        payload = {
            "run_seconds": plan.seconds,
            "outcome": "failed" if plan.error else "completed",
            "error": plan.error,
        }
        self.send("POST", "/_emulator/plans", json=payload).raise_for_status()

    def advance(self, seconds: float) -> None:
        """Push the emulator's clock forward."""
        self.send("PATCH", "/_emulator/settings", json={"advance": seconds}).raise_for_status()

    def count_paid(self, tag: str, conn_type: str) -> int | None:
        """Count by the tag in `additional`; the emulator does not tell what a chain was given."""
        if conn_type != "generio":
            return None
        paid = self.send("GET", "/_emulator/runs").json()["paid_runs"]
        return [(run["additional"] or {}).get("tag") for run in paid].count(tag)


class IndependentService(ServiceUnderTest):
    """The independent server of tests/support/other_server.py, in a thread."""

    flow = FLOW
    chain = CHAIN_ID

    def __init__(self, _log: Path, run_seconds: float) -> None:
        """Take a free port."""
        self._server = OtherServer(run_seconds)
        self.url = self._server.url
        self.key = self._server.key

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()

    def stop(self) -> None:
        """End."""
        self._server.stop()

    def plan_next(self, plan: Plan) -> None:
        """Hand it to the server."""
        self._server.plan_next(seconds=plan.seconds, error=plan.error)

    def advance(self, seconds: float) -> None:
        """Push its clock forward."""
        self._server.advance(seconds)

    def count_paid(self, tag: str, conn_type: str) -> int:  # noqa: ARG002  # it counts both kinds in the same way
        """Count by the tag, in `additional` or among a chain's variables."""
        return self._server.count_paid(tag)


class ExternalService(ServiceUnderTest):
    """A server that runs anyway, and is told nothing but what the API has a word for."""

    def __init__(self, url: str, key: str, flow: str) -> None:
        """Keep how to reach it, and a flow that takes prompts."""
        self.url, self.key, self.flow = url.rstrip("/"), key, flow

    def start(self) -> None:
        """Leave it as it is."""

    def stop(self) -> None:
        """Leave it as it is."""

    def plan_next(self, plan: Plan) -> None:
        """Do nothing: runs go as they go there."""

    def advance(self, seconds: float) -> None:
        """Refuse; its clock is its own."""
        raise NotImplementedError(f"the clock of {self.url} cannot be pushed {seconds} s forward")

    def count_paid(self, tag: str, conn_type: str) -> None:
        """Tell nothing: no page of the API does."""
