"""The services that the scenarios are played against: the emulator in a process of its own, and a server that is not ours.

What is true of a flow run is asked over the documented API; the emulator's own word of what was paid is a second witness.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import requests

from tests.other_server import FLOW, OtherServer, _Handler
from tools.stand_in import StandIn

TIMEOUT = 30
CHAIN = "clibnwpno000bmc0k9hvv3y7f"  # a flow of PromptChainer's that comes with the emulator


class Service(ABC):
    """One service that speaks Generio's documented API."""

    flow: ClassVar[str]
    outputs: ClassVar[int]
    """How many files a run of two inputs makes."""
    url: str
    key: str

    @abstractmethod
    def start(self) -> None:
        """Begin to answer."""

    @abstractmethod
    def stop(self) -> None:
        """End."""

    def plan(self, plan: dict[str, Any]) -> None:
        """Say how the flow run goes that is created next."""
        raise NotImplementedError

    def paid(self, tag: str) -> int | None:  # noqa: ARG002  # a service that does not say
        """Tell how many flow runs with this tag the service takes money for; None if it does not say."""
        return None

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """Ask anything of the service, not through a proxy."""
        with requests.Session() as session:
            session.trust_env = False
            headers = {"Authorization": f"Bearer {self.key}"}
            return session.request(method, self.url + path, headers=headers, timeout=TIMEOUT, **options)

    def state(self, flow_run_id: str) -> str:
        """Tell the state of a flow run, `gone` if it was deleted; a run that is being aborted counts as aborted."""
        answer = self.ask("GET", f"/flows/{flow_run_id}")
        if answer.status_code == 404:
            return "gone"
        answer.raise_for_status()
        return str(answer.json()["state"]).replace("aborting", "aborted")

    def states(self, flow_run_ids: list[str]) -> str:
        """Put the states of flow runs into words, without those that are gone."""
        counted = Counter(self.state(flow_run_id) for flow_run_id in dict.fromkeys(flow_run_ids))
        return ", ".join(f"{number} {state}" for state, number in sorted(counted.items()) if state != "gone") or "none"


class Emulated(Service):
    """The emulator as a process of its own."""

    flow = "model_generate_fromprompt"
    outputs = 2

    def __init__(self, log: Path, run_seconds: float) -> None:
        """Choose the port."""
        self._program = StandIn(log, "--run-seconds", str(run_seconds))
        self.url = self._program.address
        self.key = self._program.connections()["generio_default"]["password"]

    def start(self) -> None:
        """Start the process."""
        self._program.start()

    def stop(self) -> None:
        """End the process."""
        self._program.stop()

    def plan(self, plan: dict[str, Any]) -> None:
        """Hand it to the emulator."""
        self.ask("POST", "/_emulator/plans", json=plan).raise_for_status()

    def paid(self, tag: str) -> int:
        """Count by the tag in `additional`."""
        paid = self.ask("GET", "/_emulator/runs").json()["paid_runs"]
        return sum((run["additional"] or {}).get("tag") == tag for run in paid)

    def advance(self, seconds: float) -> None:
        """Push the emulator's clock forward."""
        self.ask("PATCH", "/_emulator/settings", json={"advance": seconds}).raise_for_status()


class Other(Service):
    """The independent server of tests/other_server.py, which gets what a kill needs besides: DELETE, GET /flows, `additional`."""

    flow = FLOW
    outputs = 1

    def __init__(self) -> None:
        """Take a free port."""
        self._server = _WithDelete()
        self.url = self._server.url
        self.key = self._server.key

    def start(self) -> None:
        """Begin to answer, in a thread."""
        self._server.__enter__()

    def stop(self) -> None:
        """End."""
        self._server.__exit__(None, None, None)


class _WithDelete(OtherServer):
    def __init__(self) -> None:
        super().__init__()
        self._http.RequestHandlerClass.do_DELETE = _Handler.answer  # type: ignore[attr-defined]  # the handler is made there
        self._http.daemon_threads = True

    def answer(self, method: str, path: list[str], body: dict[str, Any]) -> Any:
        """Answer here what is missing there."""
        if method == "DELETE" and len(path) == 2:
            return {} if self.runs.pop(path[1], None) else None
        if (method, path) == ("GET", ["flows"]):
            return {"flows": [self.shown(flow_id) for flow_id in list(self.runs)]}
        told = super().answer(method, path, body)
        if (method, path) == ("POST", ["flows"]):
            self.runs[told["flow_id"]]["additional"] = body.get("additional")
        return told

    def shown(self, flow_id: str) -> dict[str, Any]:
        """Add the caller's own metadata."""
        return super().shown(flow_id) | {"additional": self.runs[flow_id].get("additional")}
