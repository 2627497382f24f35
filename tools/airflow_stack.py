"""Runs a real Airflow as separate processes on this machine: API server, scheduler, triggerer, DAG processor.

It does not know what the DAGs do, and nothing that it starts listens anywhere but on the loopback address.
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
    "scheduler": ("scheduler", "--skip-serve-logs"),  # what would serve logs listens on every address
    "triggerer": ("triggerer", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
}


class Stack(AirflowApi):
    """A whole Airflow in one folder, from `with Stack(...)` to the end of the block.

    Every method of `AirflowApi` works on it. `tuned` makes it answer in about a second; leave it off to see what
    users see. Without a DAG processor the DAGs are read once, at the start: see `reserialize`.
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
        start_timeout: float = 120,
        database: Path | None = None,
    ) -> None:
        """Choose the port and the secrets; nothing is started yet.

        :param database: a file to begin with, of just this Airflow, in place of one that it sets up itself, which takes seconds.
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
            **(environment or {}),
        }
        self._start_timeout, self._database = start_timeout, database
        names = [name for name in _COMMANDS if dag_processor or name != "dag-processor"]
        self._programs = {name: self._program(name) for name in names}

    @property
    def logs(self) -> Path:
        """The folder with the log of each process."""
        return self.home / "processes"

    def start(self) -> None:
        """Set up the database and start every process; return when all of them say that they are healthy."""
        if self._database is None:
            self.airflow("db", "migrate")
        else:
            shutil.copy(self._database, self.home / "airflow.db")
        try:
            since = _now()
            for program in self._programs.values():
                program.start()
            if "dag-processor" not in self._programs:
                self.reserialize()  # beside the start of the others: nobody needs the DAGs before they are up
            self._wait_until_healthy(since, *self._programs)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process that was started here, and what those have started."""
        stop_all(self._programs.values())

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it, whatever has happened."""
        self.stop()

    def airflow(self, *arguments: str) -> str:
        """Run an `airflow` command in this Airflow and return what it printed."""
        done = subprocess.run(
            [*AIRFLOW, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            end = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
            raise ProcessDied(f"airflow {' '.join(arguments)} ended with exit code {done.returncode}:\n{end}")
        return done.stdout

    def reserialize(self) -> None:
        """Read the DAG files again; needed after a change when there is no DAG processor."""
        self.airflow("dags", "reserialize")

    def check(self) -> None:
        """Raise if any process has ended by itself."""
        for program in self._programs.values():
            program.check()

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """Return a process by its name (`scheduler`, ...): for its id, and for signals."""
        return self._programs[name].popen

    def process_log(self, name: str, lines: int = 100) -> str:
        """Read the end of a process's own log."""
        return tail(self._programs[name].log, lines)

    def restart(self, name: str) -> None:
        """Stop one process if it still runs, start it again, and wait until it is healthy.

        What a killed process left behind, such as the workers of a scheduler, stays as it would on a real machine.
        """
        self._programs[name].end()
        since = _now()
        self._programs[name].start()
        self._wait_until_healthy(since, name)

    def _program(self, name: str) -> Program:
        return Program(name, (*AIRFLOW, *_COMMANDS[name]), self.environment, self.logs / f"{name}.log")

    def _wait_until_healthy(self, since: datetime, *names: str) -> None:
        parts = [name.replace("-", "_") for name in names if name != "api-server"]
        programs = [self._programs[name] for name in names]
        what = f"Airflow's start ({', '.join(names)})"
        wait_until(lambda: self.is_healthy(parts, since), programs, self._start_timeout, what)


def _now() -> datetime:
    return datetime.now(tz=UTC)
