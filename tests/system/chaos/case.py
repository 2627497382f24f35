"""A scenario, and its case: its proxy, its connection, and its access to Airflow and to the service."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import requests

from tests.system.chaos import processes
from tests.system.chaos.proxy import CREATE_LOCK, Action, Interception, Proxy, When
from tests.system.chaos.services import EmulatorService, Plan, ServiceFactory, ServiceUnderTest

if TYPE_CHECKING:
    from tests.system.chaos.stage import Stage
    from tools.airflow_stack import Stack

T = TypeVar("T")
RUN_PATH = r"/flows/[^/]+"
WRITE_LOCK = threading.Lock()
MAX_WAIT_SECONDS = 240.0
POLL_SECONDS = 1.0
MAX_SLOW_READS = 4
FINAL_TASK_STATES = {"success", "failed", "upstream_failed", "skipped", "removed"}


@dataclass(frozen=True)
class Scenario:
    """A scenario: `run` returns facts, of which `expected` has the relevant ones."""

    name: str
    expected: dict[str, Any]
    run: Callable[[Case], dict[str, Any]]
    is_exclusive: bool = False
    """Whether it needs Airflow for itself, because it stops a process that all tasks need."""
    slow: bool = False
    """Whether flow runs only end when the scenario advances the clock of a service that is not shared."""
    conn_type: str = "generio"
    has_backend: bool = False
    """Whether its connection comes from a secrets backend, with a host that the API server cannot reach."""
    plans: tuple[Plan, ...] = ()
    """The plans of the flow runs, in the order of their creation."""
    server: ServiceFactory = EmulatorService
    find_missing: Callable[[], str | None] = lambda: None
    """Returns what the scenario needs and this machine lacks, if anything."""

    @property
    def tag(self) -> str:
        """The name as one word, for connections, folders and runs."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")

    @property
    def service_requirement(self) -> str | None:
        """What the scenario needs of the service beyond its API, if anything."""
        if self.conn_type != "generio":
            return "our PromptChainer flow"
        if self.slow:
            return "a clock that can be advanced"
        return "plans of flow runs" if self.plans else None


@dataclass
class Case:
    """A running scenario: its proxy, its connection, and its access to Airflow and to the service."""

    stage: Stage
    scenario: Scenario
    service: ServiceUnderTest
    killed_pids: list[int] = field(default_factory=list)
    task_pids: list[int] = field(default_factory=list)
    dag_runs: list[tuple[str, str]] = field(default_factory=list)
    """The DAGs and the ids of the DAG runs, in order."""

    def __post_init__(self) -> None:
        """Create the proxy."""
        self.tag = self.scenario.tag
        self.conn_id = f"chaos_{self.tag}"
        self.output = self.stage.home / "output" / self.tag
        plans = list(self.scenario.plans)
        self.proxy = Proxy(
            self.service.url, plan=lambda: self.service.plan_next(plans.pop(0)) if plans else None
        )
        self.traffic = self.proxy.traffic
        self._own_airflow: Stack | None = None

    @property
    def airflow(self) -> Stack:
        """The Airflow that runs its DAGs: the stage's, unless the scenario has started one of its own."""
        return self._own_airflow or self.stage.airflow

    @airflow.setter
    def airflow(self, airflow: Stack) -> None:
        self._own_airflow = airflow

    @property
    def connections(self) -> dict[str, str]:
        """The environment variable of the Airflow connection to the proxy."""
        return {f"AIRFLOW_CONN_{self.conn_id.upper()}": self.connection}

    @property
    def connection(self) -> str:
        """The Airflow connection to the proxy, as JSON."""
        return json.dumps(self.connection_fields())

    def connection_fields(self, host: str | None = None) -> dict[str, str]:
        """Return the Airflow connection to the proxy, or to another host."""
        conn_type, password = self.scenario.conn_type, self.service.key
        return {"conn_type": conn_type, "host": host or self.proxy.url, "password": password}

    def arm(self, action: Action, method: str, path: str, when: When = "before", nth: int = 1) -> None:
        """Run an action at a later request."""
        self.proxy.interceptions.append(Interception(method, path, action, when, nth))

    def kill_task(self, port: int) -> bool:
        """Kill the client of a request, if it is a task's process; an action for `arm`."""
        pid = self._task_at(port)
        if pid is None:
            return False
        processes.kill(pid)
        self.killed_pids.append(pid)
        return True

    def record_task(self, port: int) -> bool:
        """Record the client of a request, if it is a task's process; an action without an effect."""
        pid = self._task_at(port)
        if pid is not None and pid not in self.task_pids:
            self.task_pids.append(pid)
        return False

    def _task_at(self, port: int) -> int | None:
        pid = processes.owner_of(port, self.proxy.port)
        return pid if pid is not None and processes.is_task(pid, self.stage.schedulers) else None

    def take_service_down(self, _port: int) -> bool:
        """Start an outage of the service; an action for `arm`."""
        self.proxy.is_down = True
        return True

    def trigger(self, dag: str, **more: Any) -> str:
        """Start a run of one of the DAGs, and return its id."""
        flow = self.service.chain if self.scenario.conn_type == "promptchainer" else self.service.flow
        base_conf = {"proxy": self.proxy.url, "conn": self.conn_id, "tag": self.tag, "flow": flow}
        conf = base_conf | {"output": f"file://{self.output}"} | more
        run_id = self.run_exclusively(lambda: self.airflow.trigger(f"chaos_{dag}", conf))
        self.dag_runs.append((dag, run_id))
        return run_id

    def run_to_end(self, dag: str) -> dict[str, Any]:
        """Start a run, wait for its end, and return the facts."""
        run_id = self.trigger(dag)
        self.wait_for_end(dag, run_id)
        return self.facts(dag, run_id)

    def start_external_run(self) -> str:
        """Start a flow run outside Airflow, and return its id."""
        body = {
            "template": self.service.flow,
            "inputs": [{"data": "A chair"}],
            "additional": {"tag": self.tag},
        }
        with CREATE_LOCK:
            flow_run_id = str(self.service.send("POST", "/flows", json=body).json()["flow_id"])
        self.traffic.created_ids.append(flow_run_id)
        self.traffic.started_ids.append(flow_run_id)
        return flow_run_id

    def state(self, dag: str, run_id: str) -> str | None:
        """Return the state of a run's task."""
        return self._read(lambda: self.airflow.task_state(f"chaos_{dag}", run_id, "run"))

    def task_instances(self, dag: str, run_id: str) -> list[dict[str, Any]]:
        """Return the instances of a run's task, ordered by map index, as Airflow's API describes them."""
        found = self._read(lambda: self.airflow.task_instances(f"chaos_{dag}", run_id))
        return sorted(found, key=lambda instance: int(instance["map_index"]))

    def is_waiting(self, dag: str, run_id: str, number: int = 1) -> bool:
        """Return whether a run's task has started its flow run and waits in its process or a triggerer.

        :param number: the number of instances of a mapped task, all of which have to wait.
        """
        if len(self.traffic.started_ids) < number:
            return False
        instances = self.task_instances(dag, run_id)
        return len(instances) == number and all(is_waiting_instance(dag, one) for one in instances)

    def wait_for_end(self, dag: str, run_id: str, timeout: float = MAX_WAIT_SECONDS) -> str:
        """Wait for the end of a run's task, and return its state; after the timeout it is not final."""
        return str(
            self.wait_until(lambda: self.state(dag, run_id) in FINAL_TASK_STATES, timeout)
            and self.state(dag, run_id)
        )

    def mark(self, dag: str, run_id: str, state: str) -> None:
        """Mark a run's task, as a user does in the UI."""
        self.run_exclusively(lambda: self.airflow.set_task_state(f"chaos_{dag}", run_id, "run", state))

    def clear(self, dag: str, run_id: str, send: Callable[[Stack], None] | None = None) -> None:
        """Clear a run's task; if the task has finished, wait for the end of the DAG run first.

        :param send: sends another request that clears something of the DAG run.

        Airflow loses a Clear while the scheduler finishes the DAG run: the result is a task without a state
        in a finished DAG run, which the scheduler ignores.
        """
        if all(one["state"] in FINAL_TASK_STATES for one in self.task_instances(dag, run_id)):
            is_finished = self.wait_until(
                lambda: (
                    self.retry_when_locked(lambda: self.airflow.run_state(f"chaos_{dag}", run_id))
                    in FINAL_TASK_STATES
                ),
                60,
            )
            if not is_finished:
                raise TimeoutError("the task has finished, but not its DAG run")
        self.run_exclusively(
            lambda: send(self.airflow) if send else self.airflow.clear(f"chaos_{dag}", run_id, "run")
        )

    def _read(self, call: Callable[[], T]) -> T:
        """Call Airflow to read something, again if SQLite was locked or there was no response."""
        for _ in range(MAX_SLOW_READS):
            try:
                return self.retry_when_locked(call)
            except requests.Timeout:
                self.stage.stop_event.wait(POLL_SECONDS)
        return self.retry_when_locked(call)

    @staticmethod
    def retry_when_locked(call: Callable[[], T]) -> T:
        """Call Airflow, again if SQLite was locked."""
        for _ in range(10):
            try:
                return call()
            except RuntimeError as error:
                if "atabase" not in str(error):
                    raise
                time.sleep(1)
        return call()

    @classmethod
    def run_exclusively(cls, call: Callable[[], T]) -> T:
        """Call Airflow to change something, one call at a time, because SQLite has one writer."""
        with WRITE_LOCK:
            return cls.retry_when_locked(call)

    def wait_until(self, condition: Callable[[], Any], timeout: float = MAX_WAIT_SECONDS) -> bool:
        """Wait until a condition is true; return False after the timeout."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self.stage.stop_event.is_set():
                raise InterruptedError("the scenarios were interrupted")
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def facts(self, dag: str, run_id: str) -> dict[str, Any]:
        """Return the facts that every scenario has at its end."""
        return {
            "killed": len(self.killed_pids),
            "starts": self.count_starts(),
            "task": self.state(dag, run_id),
            "runs": self.service.states(self.traffic.created_ids),
            "files": self.describe_files(),
        }

    def count_starts(self) -> int | str:
        """Return the number of started flow runs, with the service's own number if that is another one."""
        starts = len(self.traffic.started_ids)
        paid = self.service.count_paid(self.tag, self.scenario.conn_type)
        return starts if paid in {None, starts} else f"{starts} (the service says {paid})"

    def describe_files(self) -> str:
        """Describe the files in the output folder; "all" are as many files as the service has outputs."""
        files = [path for path in self.output.rglob("*") if path.is_file()]
        temporary = [path for path in files if path.name.startswith(".") or path.suffix == ".part"]
        complete = [path for path in files if path not in temporary and is_complete_glb(path)]
        counts = Counter(path.parent.name for path in complete)
        complete_runs = [run for run, number in counts.items() if number == self.service.outputs(run)]
        counted = {
            "broken": len(files) - len(temporary) - len(complete),
            "temporary": len(temporary),
            "of an incomplete set": sum(counts.values()) - sum(counts[run] for run in complete_runs),
        }
        parts = [f"all of {len(complete_runs)} run{'s' * (len(complete_runs) > 1)}"] if complete_runs else []
        return ", ".join(parts + [f"{number} {kind}" for kind, number in counted.items() if number]) or "none"

    def all_logs(self) -> str:
        """Return the logs of all tries."""
        folders = [
            self.airflow.home / "logs" / f"dag_id=chaos_{dag}" / f"run_id={run_id}"
            for dag, run_id in self.dag_runs
        ]
        files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
        return "\n".join(
            f"--- {path.relative_to(self.stage.home)}\n{path.read_text(errors='replace')}" for path in files
        )


def is_waiting_instance(dag: str, instance: dict[str, Any]) -> bool:
    """Return whether a task instance waits: in a triggerer if it is deferrable, else in its process."""
    return bool(instance["triggerer_job"]) if "deferrable" in dag else instance["state"] == "running"


def is_complete_glb(path: Path) -> bool:
    """Return whether a file is a model of the length that its header names."""
    data = path.read_bytes()
    return data[:4] == b"glTF" and int.from_bytes(data[8:12], "little") == len(data)
