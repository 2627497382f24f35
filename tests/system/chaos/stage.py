"""The environment of the scenarios: an Airflow, the services, and a proxy for each scenario."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.system.chaos.case import Case, Scenario
from tests.system.chaos.services import Plan, ServiceFactory, ServiceUnderTest
from tools.airflow_stack import Stack
from tools.processes import Program

DAGS = Path(__file__).parent / "dags"
RUN_SECONDS = 5.0
LONG_SECONDS = 3600.0
SETTINGS = {
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "2",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "45",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "40",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "2",
    # After SIGTERM a worker of Airflow 3.4 waits for so long until it sends SIGKILL, and then once more if it
    # misses the end of the process, in both cases without a heartbeat. Together they must be shorter than the
    # heartbeat's timeout: the scheduler of 3.4.0b2 ends with an IntegrityError if a cleared task exceeds it.
    "AIRFLOW__CORE__KILLED_TASK_CLEANUP_TIME": "10",
}


BACKEND_ARGUMENTS = "AIRFLOW__SECRETS__BACKEND_KWARGS"
CLOSED_HOST = "http://127.0.0.1:9"

# Seconds that a process waits for the database. The API server writes audit logs on its event loop. While it
# waits, none of its other requests can release the database, so it has a short timeout, and clients retry.
# The other processes would exit after the default of 5 s.
LOCK_TIMEOUT_SECONDS = {"api-server": 1, "scheduler": 60, "triggerer": 60}


class Airflow(Stack):
    """An Airflow whose processes write to SQLite at the same time."""

    def second_program(self, name: str) -> Program:
        """Return a second process of a kind; the caller starts and stops it."""
        program = self._create_program(name)
        program.log = self.logs / f"{name}-2.log"
        return program

    def _create_program(self, name: str) -> Program:
        program = super()._create_program(name)
        database = f"sqlite:///{self.home / 'airflow.db'}?timeout={LOCK_TIMEOUT_SECONDS[name]}"
        program._environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = database
        if name == "api-server" and BACKEND_ARGUMENTS in program._environment:
            # a host that this process cannot reach, as behind a firewall
            program._environment[BACKEND_ARGUMENTS] = _backend_arguments(self.home.parent, name)
        return program


def _backend_arguments(home: Path, name: str) -> str:
    return json.dumps({"connections_file_path": str(home / f"connections-{name}.json")})


def _run_warm_up(case: Case) -> dict[str, Any]:
    """Kill a deferred task, because a triggerer's first call to Airflow blocks it for seconds."""
    run_id = case.trigger("deferrable")
    is_waiting = case.wait_until(lambda: case.is_waiting("deferrable", run_id))
    case.mark("deferrable", run_id, "failed")
    case.wait_until(lambda: case.service.states(case.traffic.created_ids) == "1 aborted", 60)
    return {"waits": is_waiting}


WARM_UP = Scenario("warming up", {"waits": True}, _run_warm_up, plans=(Plan(3600.0),))


class Stage(AbstractContextManager["Stage"]):
    """The environment, a context manager."""

    def __init__(
        self,
        home: Path,
        scenarios: Iterable[Scenario],
        *,
        parallelism: int = 6,
        outage: float = 60.0,
        many: int = 50,
        database: Path | None = None,
    ) -> None:
        """Create the environment without starting it.

        :param outage: the duration of an outage of the service, in seconds.
        :param many: the number of tasks of the DAG `chaos_many`.
        :param database: a copy of an empty database, see `Stack`.
        """
        self.home = home.resolve()
        self.home.mkdir(parents=True, exist_ok=True)
        self.scenarios = list(scenarios)
        self._warm_up_scenario = replace(WARM_UP, server=self.scenarios[0].server)
        self.outage = outage
        self.schedulers: set[int] = set()
        self.stop_event = threading.Event()
        """Set when the run is interrupted: scenarios stop waiting."""
        self._parallelism = parallelism
        self._many = many
        self._database = database
        self._services: dict[tuple[ServiceFactory, str], ServiceUnderTest] = {}
        self._exits = ExitStack()
        self._cases: dict[str, Case] = {}

    def __enter__(self) -> Self:
        """Start the services, the proxies and Airflow."""
        with self._exits as exits:
            for scenario in [self._warm_up_scenario, *self.scenarios]:
                self._cases[scenario.tag] = case = Case(self, scenario, self._service(scenario))
                exits.enter_context(case.proxy)
            connections = {
                name: value
                for case in self._cases.values()
                if not case.scenario.has_backend
                for name, value in case.connections.items()
            }
            connections |= self._write_backend()
            self.airflow = Airflow(
                self.home / "airflow",
                DAGS,
                environment=SETTINGS | connections | {"CHAOS_MANY": str(self._many)},
                tuned=True,
                parallelism=self._parallelism,
                start_timeout=240,
                database=self._database,
            )
            exits.enter_context(self.airflow)
            self.schedulers.add(self.airflow.process("scheduler").pid)
            self._warm_up()
            self._exits = exits.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything."""
        self._exits.close()

    def _write_backend(self) -> dict[str, str]:
        """Write the secrets backend's files, and return its settings: none if no scenario needs it."""
        cases = [case for case in self._cases.values() if case.scenario.has_backend]
        if not cases:
            return {}
        for name, host in {"all": None, "api-server": CLOSED_HOST}.items():
            connections = {case.conn_id: case.connection_fields(host) for case in cases}
            (self.home / f"connections-{name}.json").write_text(json.dumps(connections))
        return {
            "AIRFLOW__SECRETS__BACKEND": "airflow.secrets.local_filesystem.LocalFilesystemBackend",
            BACKEND_ARGUMENTS: _backend_arguments(self.home, "all"),
        }

    def _warm_up(self) -> None:
        """Run one task, so that a wrong setting is reported before the scenarios."""
        case = self.case(self._warm_up_scenario)
        facts = _run_warm_up(case)
        if facts != WARM_UP.expected:
            raise RuntimeError(
                f"a task did not start to wait, even without a disturbance:\n{case.all_logs()[-6000:]}"
            )

    def case(self, scenario: Scenario) -> Case:
        """Return the case of a scenario."""
        return self._cases[scenario.tag]

    def _service(self, scenario: Scenario) -> ServiceUnderTest:
        """Return the service of a scenario: the shared one, or its own if it advances the clock."""
        name = scenario.tag if scenario.slow else "shared"
        key = (scenario.server, name)
        if key not in self._services:
            log = self.home / "services" / f"{name}.log"
            service = scenario.server(log, LONG_SECONDS if scenario.slow else RUN_SECONDS)
            self._exits.callback(service.stop)
            service.start()
            self._services[key] = service
        return self._services[key]
