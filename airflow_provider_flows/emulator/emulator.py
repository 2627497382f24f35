"""The public class `Emulator`: starts and stops the server, scripts it and shows what it recorded.

Web framework and mesh libraries are imported when an emulator starts, not with this module.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_flows.emulator.graph import PromptGraph
from airflow_provider_flows.emulator.scripting import ActiveFault, Fault, Plan
from airflow_provider_flows.emulator.state import ChainRun, EmulatorState, GenerioRun, RecordedRequest
from airflow_provider_flows.emulator.switches import Switches

if TYPE_CHECKING:
    from airflow_provider_flows.emulator.server import Server

REQUIRED_MODULES = ("fastapi", "uvicorn", "numpy", "trimesh", "fast_simplification", "PIL")
# The names of Airflow's default connections, with their types.
CONNECTION_TYPES = {"FLOWS": "generio", "GENERIO": "generio", "PROMPTCHAINER": "promptchainer"}


class MissingExtraError(ImportError):
    """The libraries of the extra `emulator` are not installed."""


class Emulator:
    """An emulator of Generio and PromptChainer on one port; a context manager.

    :param key: the only API key that the emulator accepts.
    :param run_seconds: duration of a flow run in seconds.
    :param port: port to listen on; 0 chooses a free one.
    :param host: address to listen on; one that other machines can reach requires a key of your own.
    :param switches: initial switches; :meth:`reset` restores them.
    """

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
        """Start the server in a thread.

        :raises MissingExtraError: the extra `emulator` is not installed.
        :raises OSError: the address cannot be used.
        :raises ValueError: other machines can reach the address, and the key is the default one.
        :raises RuntimeError: the emulator is already running.
        """
        if self._server is not None:
            raise RuntimeError(f"The emulator is already running at {self.url}")
        missing = [name for name in REQUIRED_MODULES if importlib.util.find_spec(name) is None]
        if missing:
            raise MissingExtraError(
                f"The emulator needs {', '.join(missing)}: "
                "install them with pip install 'airflow-provider-flows[emulator]', or, in a clone of the "
                "repository, with pip install '.[emulator]'"
            )
        # Imported here because it takes time and memory that a process without a running emulator can save.
        from airflow_provider_flows.emulator.server import Server

        server = Server(self._state)
        self._address = server.start(*self._bind_address)
        self._server = server
        return self

    def stop(self) -> None:
        """Stop the server; runs and requests remain available."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def __enter__(self) -> Self:
        """Start the server."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server."""
        self.stop()

    def __repr__(self) -> str:
        """Return the URL, without the key."""
        return f"<Emulator at {self.url if self._address else 'no address yet'}>"

    @property
    def url(self) -> str:
        """The URL of both services, without a path."""
        if self._address is None:
            raise RuntimeError("The emulator has not been started")
        host, port = self._address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def key(self) -> str:
        """The only API key that the emulator accepts."""
        return self._state.key

    @property
    def run_seconds(self) -> float:
        """Duration in seconds of the flow runs that start from now on; may be set."""
        return self._state.run_seconds

    @run_seconds.setter
    def run_seconds(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"A flow run cannot take {seconds} s")
        self._state.run_seconds = seconds

    @property
    def switches(self) -> Switches:
        """The emulator's switches, for provider developers; set attributes to change its behaviour."""
        return self._state.switches

    @property
    def connections(self) -> dict[str, str]:
        """The Airflow connections to the emulator, as environment variables and their values."""
        return {
            f"AIRFLOW_CONN_{name}_DEFAULT": json.dumps(
                {"conn_type": kind, "host": self.url, "password": self.key}
            )
            for name, kind in CONNECTION_TYPES.items()
        }

    def add_fault(self, fault: Fault) -> ActiveFault:
        """Make the matching requests go wrong; the returned object counts them in `hits`."""
        return self._state.faults.add(fault)

    def clear_faults(self) -> None:
        """Remove all faults."""
        self._state.faults.clear()

    def add_plan(self, plan: Plan) -> None:
        """Decide how the Generio flow runs end that are created next."""
        self._state.plans.add(plan)

    def advance(self, seconds: float) -> None:
        """Move the emulator's clock forward: flow runs progress and URLs expire without waiting."""
        self._state.clock.advance(seconds)

    def set_request_listener(self, listener: Callable[[RecordedRequest], None] | None) -> None:
        """Call a function with each request until :meth:`reset`; None removes it.

        The function runs before the request is processed, so the request sees its effects. For example, a
        function that calls :meth:`advance` lets each poll move a flow run forward, on any machine.
        """
        self._state.request_listener = listener

    @property
    def requests(self) -> tuple[RecordedRequest, ...]:
        """The requests that the emulator received, oldest first."""
        return self._state.request_log.all()

    @property
    def runs(self) -> Mapping[str, GenerioRun]:
        """Generio's flow runs by id, without deleted ones."""
        with self._state.lock:
            return dict(self._state.runs)

    @property
    def paid_runs(self) -> list[GenerioRun | ChainRun]:
        """All flow runs of both services that were started, including deleted ones."""
        return list(self._state.paid_runs)

    @property
    def started_count(self) -> int:
        """Number of flow runs that were started."""
        return len(self._state.paid_runs)

    def add_graph(self, flow_id: str, graph: dict[str, Any]) -> None:
        """Add or replace a PromptChainer flow.

        :param graph: the flow graph as PromptChainer's editor exports it.
        :raises ValueError: it is not a flow graph.
        """
        self._state.graphs[flow_id] = PromptGraph.parse(graph)

    def reset(self) -> None:
        """Restore the state that the emulator was created with."""
        self._state.reset()
