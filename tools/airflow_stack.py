"""Runs an Airflow on this machine: API server, scheduler, triggerer and DAG processor as processes.

All of them listen on the loopback address only.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from tools.airflow_api import AirflowApi
from tools.airflow_settings import USER, own_environment, server_settings, tuning
from tools.processes import LOOPBACK, ProcessDied, Program, free_port, stop_all, tail, wait_until

AIRFLOW = (sys.executable, "-m", "airflow")
_COMMANDS = {
    "api-server": ("api-server",),
    "scheduler": ("scheduler", "--skip-serve-logs"),  # the server for logs would listen on every address
    "triggerer": ("triggerer", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
}


class Stack(AirflowApi):
    """An Airflow in one folder, which runs from `with Stack(...)` to the end of the block.

    The methods of `AirflowApi` send requests to it. Without a DAG processor the DAG files are read once, at
    the start: see `reserialize`.
    """

    def __init__(
        self,
        home: Path,
        dags_folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        tuned: bool = False,
        dag_processor: bool = False,
        parallelism: int = 4,
        port: int = 0,
        start_timeout: float = 300,
        database: Path | None = None,
        database_url: str | None = None,
    ) -> None:
        """Choose the port and the secrets; `start` starts the processes.

        :param home: Airflow's home folder; it is created if it does not exist.
        :param environment: additional environment variables.
        :param tuned: whether Airflow reacts within a second; users' Airflows take longer.
        :param dag_processor: whether to start a DAG processor.
        :param port: preferred port of the API server; 0 chooses a free one.
        :param start_timeout: seconds until all processes have to be healthy.
        :param database: SQLite file of the same Airflow version to copy, because setting up an empty database
            takes seconds.
        :param database_url: URL of an empty database of another kind; the default is SQLite in `home`.
        """
        self.home = home.resolve()
        self.home.mkdir(parents=True, exist_ok=True)
        self.user = USER
        self.password = secrets.token_urlsafe(12)
        port = free_port(port)
        super().__init__(f"http://{LOOPBACK}:{port}", self.user, self.password)
        self.environment = {
            **own_environment(self.home, dags_folder.resolve()),
            **server_settings(self.home, port, self.password, parallelism),
            **(tuning() if tuned else {}),
            **({"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database_url} if database_url else {}),
            **(environment or {}),
        }
        self._start_timeout, self._database = start_timeout, database
        names = [name for name in _COMMANDS if dag_processor or name != "dag-processor"]
        self._programs = {name: self._create_program(name) for name in names}

    @property
    def logs(self) -> Path:
        """The folder with the log of each process."""
        return self.home / "processes"

    def start(self) -> None:
        """Set up the database, start every process, and wait until all of them are healthy."""
        if self._database is None:
            self.airflow("db", "migrate")
        else:
            shutil.copy(self._database, self.home / "airflow.db")
        try:
            since = _now()
            for program in self._programs.values():
                program.start()
            if "dag-processor" not in self._programs:
                self.reserialize()  # while the processes start: the DAGs are not needed before that
            self._wait_until_healthy(since, *self._programs)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop every process, including those that they started."""
        stop_all(self._programs.values())

    def __enter__(self) -> Self:
        """Start the processes."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the processes."""
        self.stop()

    def airflow(self, *arguments: str) -> str:
        """Run an `airflow` command in this Airflow, and return its standard output.

        :raises ProcessDied: the command failed.
        """
        result = subprocess.run(
            [*AIRFLOW, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            end = "\n".join((result.stdout + result.stderr).splitlines()[-30:])
            raise ProcessDied(
                f"airflow {' '.join(arguments)} ended with exit code {result.returncode}:\n{end}"
            )
        return result.stdout

    def reserialize(self) -> None:
        """Read the DAG files again; without a DAG processor this is needed after a change."""
        self.airflow("dags", "reserialize")

    def check(self) -> None:
        """Raise ProcessDied if a process has ended."""
        for program in self._programs.values():
            program.check()

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """Return the running process with this name, such as `scheduler`."""
        return self._programs[name].popen

    def process_log(self, name: str, lines: int = 100) -> str:
        """Return the last lines of a process's log."""
        return tail(self._programs[name].log, lines)

    def restart(self, name: str) -> None:
        """Stop one process if it is running, start it again, and wait until it is healthy.

        Child processes of a killed process, such as the workers of a scheduler, continue to run.
        """
        self._programs[name].end()
        since = _now()
        self._programs[name].start()
        self._wait_until_healthy(since, name)

    def _create_program(self, name: str) -> Program:
        return Program(name, (*AIRFLOW, *_COMMANDS[name]), self.environment, self.logs / f"{name}.log")

    def _wait_until_healthy(self, since: datetime, *names: str) -> None:
        components = [name.replace("-", "_") for name in names if name != "api-server"]
        programs = [self._programs[name] for name in names]
        what = f"Airflow's start ({', '.join(names)})"
        wait_until(lambda: self.is_healthy(components, since), programs, self._start_timeout, what)


def _now() -> datetime:
    return datetime.now(tz=UTC)
