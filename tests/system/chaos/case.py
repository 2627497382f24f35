"""A scenario, and the place where it is played: its proxy, its connection, and what it asks of Airflow and of the service.

What happens in it stands in the scenarios; the Airflow and the services, which it shares with others, stand in stage.py.
"""

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

from tests.system.chaos import victims
from tests.system.chaos.proxy import ROW, Deed, Moment, Proxy, When
from tests.system.chaos.services import Emulated, Plan, Server, Service

if TYPE_CHECKING:
    from tests.system.chaos.stage import Stage

T = TypeVar("T")
RUN = r"/flows/[^/]+"
ORDERS = threading.Lock()
PATIENCE = 240.0
LOOK_EVERY = 1.0
FINAL = {"success", "failed", "upstream_failed", "skipped", "removed"}


@dataclass(frozen=True)
class Scenario:
    """What is to happen, and what must come of it: `play` gives what was seen, of which `expected` names what matters."""

    name: str
    expected: dict[str, Any]
    play: Callable[[Case], dict[str, Any]]
    alone: bool = False
    """Whether it disturbs all others, for it stops a process that all of them need."""
    slow: bool = False
    """Whether flow runs take for ever until the service's clock is pushed forward, so that the service is its own."""
    conn_type: str = "generio"
    plans: tuple[Plan, ...] = ()
    """How the flow runs go, in the order in which they are created."""
    server: Server = Emulated

    @property
    def tag(self) -> str:
        """The name as one word, for connections, folders and runs."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")

    @property
    def order(self) -> str | None:
        """What must be told to the service although its API has no word for it, so that not every service can be told."""
        if self.conn_type != "generio":
            return "our flow of PromptChainer's"
        if self.slow:
            return "to push its clock forward"
        return "how long a flow run takes, or that it fails" if self.plans else None


@dataclass
class Case:
    """One scenario being played: its proxy, its connection, and what it asks of Airflow and of the service."""

    stage: Stage
    scenario: Scenario
    service: Service
    killed: list[int] = field(default_factory=list)
    seen_pids: list[int] = field(default_factory=list)
    triggered: list[tuple[str, str]] = field(default_factory=list)
    """The DAGs and the ids of the runs that were started."""

    def __post_init__(self) -> None:
        """Open the proxy."""
        self.tag = self.scenario.tag
        self.conn_id = f"chaos_{self.tag}"
        self.output = self.stage.home / "output" / self.tag
        plans = list(self.scenario.plans)
        self.proxy = Proxy(self.service.url, plan=lambda: self.service.plan(plans.pop(0)) if plans else None)
        self.book = self.proxy.book

    @property
    def connection(self) -> str:
        """The Airflow connection that leads to the proxy."""
        return json.dumps(
            {"conn_type": self.scenario.conn_type, "host": self.proxy.url, "password": self.service.key}
        )

    def arm(self, deed: Deed, method: str, path: str, when: When = "before", nth: int = 1) -> None:
        """Let a deed be done at a request that is to come."""
        self.proxy.moments.append(Moment(method, path, deed, when, nth))

    def kill_task(self, port: int) -> bool:
        """Kill the client of a request, if it is a task's process; a deed for `arm`."""
        pid = self._task_at(port)
        if pid is None:
            return False
        victims.kill(pid)
        self.killed.append(pid)
        return True

    def note_task(self, port: int) -> bool:
        """Note the client of a request, if it is a task's process; a deed for `arm` that disturbs nothing."""
        pid = self._task_at(port)
        if pid is not None and pid not in self.seen_pids:
            self.seen_pids.append(pid)
        return False

    def _task_at(self, port: int) -> int | None:
        pid = victims.owner_of(port, self.proxy.port)
        return pid if pid is not None and victims.is_task(pid, self.stage.schedulers) else None

    def go_away(self, _port: int) -> bool:
        """Let the service be away from now on; a deed for `arm`."""
        self.proxy.away = True
        return True

    def trigger(self, dag: str, **more: Any) -> str:
        """Start a run of one of the DAGs and give its id."""
        flow = self.service.chain if self.scenario.conn_type == "promptchainer" else self.service.flow
        told = {"proxy": self.proxy.url, "conn": self.conn_id, "tag": self.tag, "flow": flow}
        conf = told | {"output": f"file://{self.output}"} | more
        run_id = self.told(lambda: self.stage.airflow.trigger(f"chaos_{dag}", conf))
        self.triggered.append((dag, run_id))
        return run_id

    def played(self, dag: str) -> dict[str, Any]:
        """Start a run, wait for its end and tell what has come of it."""
        run_id = self.trigger(dag)
        self.ended(dag, run_id)
        return self.facts(dag, run_id)

    def started_elsewhere(self) -> str:
        """Start a flow run that no task has started, and give its id."""
        body = {
            "template": self.service.flow,
            "inputs": [{"data": "A chair"}],
            "additional": {"tag": self.tag},
        }
        with ROW:
            flow_run_id = str(self.service.ask("POST", "/flows", json=body).json()["flow_id"])
        self.book.created.append(flow_run_id)
        self.book.started.append(flow_run_id)
        return flow_run_id

    def state(self, dag: str, run_id: str) -> str | None:
        """Tell the state of a run's task."""
        return self.asked(lambda: self.stage.airflow.task_state(f"chaos_{dag}", run_id, "run"))

    def waits(self, dag: str, run_id: str) -> bool:
        """Tell whether a run's task has started its flow run and waits: in its process, or in a triggerer that has it."""
        if not self.book.started:
            return False
        (told,) = self.asked(lambda: self.stage.airflow.task_instances(f"chaos_{dag}", run_id))
        return bool(told["triggerer_job"]) if "deferrable" in dag else told["state"] == "running"

    def ended(self, dag: str, run_id: str, timeout: float = PATIENCE) -> str:
        """Wait for the end of a run's task and give its state, which is no end if there was none in time."""
        return str(self.until(lambda: self.state(dag, run_id) in FINAL, timeout) and self.state(dag, run_id))

    def mark(self, dag: str, run_id: str, state: str) -> None:
        """Mark a run's task as somebody at the user interface would."""
        self.told(lambda: self.stage.airflow.set_task_state(f"chaos_{dag}", run_id, "run", state))

    def clear(self, dag: str, run_id: str) -> None:
        """Clear a run's task; one that has ended when its DAG run is over too.

        A Clear at the very moment at which the scheduler ends the DAG run is lost in Airflow: neither sees the other,
        and what is left is a task without a state in a DAG run that is over, which nothing schedules.
        """
        if self.state(dag, run_id) in FINAL:
            over = self.until(
                lambda: self.asked(lambda: self.stage.airflow.run_state(f"chaos_{dag}", run_id)) in FINAL, 60
            )
            if not over:
                raise TimeoutError("the task has ended, but not its DAG run")
        self.told(lambda: self.stage.airflow.clear(f"chaos_{dag}", run_id, "run"))

    @staticmethod
    def asked(question: Callable[[], T]) -> T:
        """Ask Airflow, again where SQLite was locked for once."""
        for _ in range(10):
            try:
                return question()
            except RuntimeError as error:
                if "atabase" not in str(error):
                    raise
                time.sleep(1)
        return question()

    @classmethod
    def told(cls, order: Callable[[], T]) -> T:
        """Tell Airflow to change something, one at a time: SQLite has one writer, and the API server keeps the others waiting."""
        with ORDERS:
            return cls.asked(order)

    def until(self, true: Callable[[], Any], timeout: float = PATIENCE) -> bool:
        """Wait until something is so; tell whether it came to be."""
        deadline = time.monotonic() + timeout
        while not true():
            if self.stage.over.is_set():
                raise InterruptedError("the play was broken off")
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_EVERY)
        return True

    def facts(self, dag: str, run_id: str) -> dict[str, Any]:
        """Tell what can be told of any scenario when it is over."""
        starts: int | str = len(self.book.started)
        paid = self.service.paid(self.tag, self.scenario.conn_type)
        if paid not in {None, starts}:
            starts = f"{starts} (the service says {paid})"
        return {
            "killed": len(self.killed),
            "starts": starts,
            "task": self.state(dag, run_id),
            "runs": self.service.states(self.book.created),
            "files": self.files(),
        }

    def files(self) -> str:
        """Put into words what lies in the output folder; "all" are as many files as the service has outputs."""
        files = [path for path in self.output.rglob("*") if path.is_file()]
        temporary = [path for path in files if path.name.startswith(".") or path.suffix == ".part"]
        whole = [path for path in files if path not in temporary and _whole(path)]
        there = Counter(path.parent.name for path in whole)
        every = [run for run, number in there.items() if number == self.service.outputs(run)]
        counted = {
            "broken": len(files) - len(temporary) - len(whole),
            "temporary": len(temporary),
            "of an incomplete set": sum(there.values()) - sum(there[run] for run in every),
        }
        told = [f"all of {len(every)} run{'s' * (len(every) > 1)}"] if every else []
        return ", ".join(told + [f"{number} {kind}" for kind, number in counted.items() if number]) or "none"

    def all_logs(self) -> str:
        """Give the logs of all tries, for whoever has to find out what went wrong."""
        folders = [
            self.stage.airflow.home / "logs" / f"dag_id=chaos_{dag}" / f"run_id={run_id}"
            for dag, run_id in self.triggered
        ]
        files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
        return "\n".join(
            f"--- {path.relative_to(self.stage.home)}\n{path.read_text(errors='replace')}" for path in files
        )


def _whole(path: Path) -> bool:
    data = path.read_bytes()
    return data[:4] == b"glTF" and int.from_bytes(data[8:12], "little") == len(data)
