"""All that one emulator remembers, in one place, so that all of it can be forgotten at once.

It has no behaviour of its own beyond that.
"""

from __future__ import annotations

import copy
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock

from airflow_provider_flows.emulator.clock import Clock
from airflow_provider_flows.emulator.faults import FaultRegistry
from airflow_provider_flows.emulator.plans import PlanQueue
from airflow_provider_flows.emulator.promptchainer.graph import FlowGraph, sample_graphs
from airflow_provider_flows.emulator.request_log import RecordedRequest, RequestLog
from airflow_provider_flows.emulator.runs import ChainRun, GenerioRun
from airflow_provider_flows.emulator.switches import Switches


@dataclass(eq=False)
class EmulatorState:
    """One emulator's memory."""

    key: str = field(repr=False)
    run_seconds: float
    switches: Switches = field(default_factory=Switches)
    clock: Clock = field(default_factory=Clock)
    faults: FaultRegistry = field(default_factory=FaultRegistry)
    plans: PlanQueue = field(default_factory=PlanQueue)
    request_log: RequestLog = field(default_factory=RequestLog)
    runs: dict[str, GenerioRun] = field(default_factory=dict)
    paid_runs: list[GenerioRun | ChainRun] = field(default_factory=list)
    graphs: dict[str, FlowGraph] = field(default_factory=sample_graphs)
    images: dict[str, str] = field(default_factory=dict, repr=False)
    signing_key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    # Told of each request before anything is done with it.
    request_listener: Callable[[RecordedRequest], None] | None = None
    # Held by whatever looks at a flow run and then changes it.
    lock: RLock = field(default_factory=RLock, repr=False)

    def __post_init__(self) -> None:
        """Note what to come back to."""
        self._initial = (copy.copy(self.switches), self.run_seconds, dict(self.graphs))

    def is_valid_key(self, key: str | None) -> bool:
        """Tell whether that is the key."""
        return key is not None and hmac.compare_digest(key.encode(), self.key.encode())

    def reset(self) -> None:
        """Forget everything that happened since the start."""
        switches, seconds, graphs = self._initial
        with self.lock:
            self.switches.update(switches.to_dict())
            self.run_seconds = seconds
            self.clock.reset()
            self.request_listener = None
            for store in (self.faults, self.plans, self.request_log, self.runs, self.paid_runs, self.images):
                store.clear()
            self.graphs.clear()
            self.graphs.update(graphs)
