"""The emulator as users hold it: begin, end, set, ask.

It imports no web framework and no mesh library before it is started.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_flows.emulator.faults import ActiveFault, Fault
from airflow_provider_flows.emulator.plans import Plan
from airflow_provider_flows.emulator.promptchainer.graph import FlowGraph
from airflow_provider_flows.emulator.request_log import RecordedRequest
from airflow_provider_flows.emulator.runs import ChainRun, GenerioRun
from airflow_provider_flows.emulator.state import EmulatorState
from airflow_provider_flows.emulator.switches import Switches

if TYPE_CHECKING:
    from airflow_provider_flows.emulator.server import Server

REQUIRED_MODULES = ("fastapi", "uvicorn", "numpy", "trimesh", "fast_simplification", "PIL")


class MissingExtraError(ImportError):
    """The libraries that the emulator needs are not installed."""


class Emulator:
    """A stand-in for Generio and PromptChainer on one port; a context manager."""

    def __init__(
        self,
        key: str = "emulator",
        run_seconds: float = 6.0,
        port: int = 0,
        host: str = "127.0.0.1",
        switches: Switches | None = None,
    ) -> None:
        self._state = EmulatorState(key, run_seconds, switches or Switches())
        self._bind_address = (host, port)
        self._address: tuple[str, int] | None = None
        self._server: Server | None = None

    def start(self) -> Self:
        """Begin to serve."""
        if self._server is not None:
            raise RuntimeError(f"The emulator is already running at {self.url}")
        missing = [name for name in REQUIRED_MODULES if importlib.util.find_spec(name) is None]
        if missing:
            message = f"The emulator needs {', '.join(missing)}: install them with pip install 'airflow-provider-flows[emulator]'"
            raise MissingExtraError(message)
        # Only now, because these cost time, and memory for good.
        from airflow_provider_flows.emulator import app
        from airflow_provider_flows.emulator.server import Server

        server = Server(lambda find_connection: app.create_app(self._state, find_connection))
        self._address = server.start(*self._bind_address)
        self._server = server
        return self

    def stop(self) -> None:
        """End; what happened can still be asked for."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def __enter__(self) -> Self:
        """Begin."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self.stop()

    def __repr__(self) -> str:
        """Tell where it is, and not the key."""
        return f"<Emulator at {self.url if self._address else 'no address yet'}>"

    @property
    def url(self) -> str:
        """Where both services are."""
        if self._address is None:
            raise RuntimeError("The emulator has not been started")
        host, port = self._address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def key(self) -> str:
        """The only key that is let in."""
        return self._state.key

    @property
    def run_seconds(self) -> float:
        """How long the flow runs take that start from now on."""
        return self._state.run_seconds

    @run_seconds.setter
    def run_seconds(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"A flow run cannot take {seconds} s")
        self._state.run_seconds = seconds

    @property
    def switches(self) -> Switches:
        """The readings of the documentation that are played."""
        return self._state.switches

    @property
    def connections(self) -> dict[str, str]:
        """The environment variables that make the Airflow connections to it."""
        return connections(self.url, self.key)

    def add_fault(self, fault: Fault) -> ActiveFault:
        """Let the matching requests go wrong."""
        return self._state.faults.add(fault)

    def clear_faults(self) -> None:
        """Let everything go right again."""
        self._state.faults.clear()

    def add_plan(self, plan: Plan) -> None:
        """Say how the flow runs go that are created next."""
        self._state.plans.add(plan)

    def advance(self, seconds: float) -> None:
        """Push the emulator's clock forward: runs go on, URLs expire."""
        self._state.clock.advance(seconds)

    def set_request_listener(self, listener: Callable[[RecordedRequest], None] | None) -> None:
        """Have a listener told of each request that comes in from now on, until :meth:`reset`; None for nobody.

        It is told before anything is done with the request, which so meets what the listener does: with :meth:`advance`
        looks themselves make a flow run go on, however fast or slowly the machine makes them.
        """
        self._state.request_listener = listener

    @property
    def requests(self) -> tuple[RecordedRequest, ...]:
        """What was asked, oldest first."""
        return self._state.request_log.all()

    @property
    def runs(self) -> Mapping[str, GenerioRun]:
        """Generio's flow runs by id, without deleted ones."""
        with self._state.lock:
            return dict(self._state.runs)

    @property
    def paid_runs(self) -> list[GenerioRun | ChainRun]:
        """The flow runs of both services that were ever started, deleted ones among them."""
        return list(self._state.paid_runs)

    @property
    def started_count(self) -> int:
        """How many flow runs were ever started."""
        return len(self._state.paid_runs)

    def add_graph(self, flow_id: str, graph: dict[str, Any]) -> None:
        """Add a flow of PromptChainer's, or replace one."""
        self._state.graphs[flow_id] = FlowGraph.parse(graph)

    def reset(self) -> None:
        """Go back to how it was when it was made."""
        self._state.reset()


def connections(url: str, key: str) -> dict[str, str]:
    """Return the environment variables that make the Airflow connections to an emulator."""
    names = {"FLOWS": "generio", "GENERIO": "generio", "PROMPTCHAINER": "promptchainer"}
    return {
        f"AIRFLOW_CONN_{name}_DEFAULT": json.dumps({"conn_type": kind, "host": url, "password": key})
        for name, kind in names.items()
    }
