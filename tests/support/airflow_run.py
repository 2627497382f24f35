"""Runs a DAG to its end inside the test's own process, through Airflow's real `dag.test()`.

It replaces no part of Airflow (before 3.2 it keeps what Airflow makes anew for each task), and has no scheduler, worker or
triggerer that could be late: see `tools.airflow_stack`.
"""

from __future__ import annotations

import functools
import logging
import os
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.collection import update_dag_parsing_results_in_db
from airflow.listeners import hookimpl
from airflow.models.xcom import XComModel
from airflow.providers.common.compat.sdk import get_listener_manager
from airflow.sdk import DAG
from airflow.sdk.execution_time import supervisor
from airflow.sdk.log import redact
from airflow.serialization.serialized_objects import LazyDeserializedDAG
from airflow.utils.db import initdb
from airflow.utils.session import create_session
from sqlalchemy import Engine, event, select

from tests.support.versions import DagBag

# For tests with an execution_timeout: Airflow takes the very alarm by which tests are ended, and hangs if it meets a line that is
# being logged. A thread ends the whole test process, which the others survive.
THREAD_TIMEOUT = pytest.mark.timeout(120, method="thread")

_BUNDLE = "dags-folder"


@dataclass
class DagResult:
    """What a finished run left behind; task instances go by `task_id`, mapped ones by `task_id[map_index]`."""

    run_id: str
    state: str
    states: dict[str, str | None]
    xcoms: dict[str, dict[str, Any]]
    errors: dict[str, BaseException] = field(default_factory=dict)
    """The exception of each task instance's last failed try."""
    log: str = ""
    """What the tasks, the triggers and Airflow around them logged, a line each, secrets masked as in a real log."""


def run_dag(dag: DAG, conf: dict[str, Any] | None = None) -> DagResult:
    """Run every task of a DAG, with its triggers, retries and reschedules, and tell what came of it.

    Call it from a plain test, not from an `async` one: triggers get an event loop of their own. An exception inside
    a trigger fails the task without resuming it, and is found in the log only; that is how `dag.test()` does it.
    """
    ensure_database()
    _register(dag)
    with capture_log() as lines, _capture_errors() as errors:
        run = dag.test(run_conf=conf)
    return DagResult(
        run_id=run.run_id,
        state=str(run.state),
        states={
            _instance_key(ti.task_id, ti.map_index): ti.state and str(ti.state)
            for ti in run.get_task_instances()
        },
        xcoms=_xcoms(run.dag_id, run.run_id),
        errors=errors,
        log="\n".join(lines),
    )


def load_dags(path: Path) -> dict[str, DAG]:
    """Read the DAGs of one file as Airflow's DAG processor would; a file that it would refuse raises."""
    ensure_database()
    bag = DagBag(dag_folder=str(path))
    if bag.import_errors:
        raise ImportError("\n".join(bag.import_errors.values()))
    return dict(bag.dags)


@functools.cache
def ensure_database() -> None:
    """Create the metadata database of the test session's Airflow, and the API that its tasks talk to, once.

    This is what makes the first run of a session slow: 2 s for the tables, and 5 s in which Airflow builds every
    version of its task API, although only the newest is asked.
    """
    empty_database()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        DagBundlesManager().sync_bundles_to_db()
        if not hasattr(supervisor.in_process_api_server, "cache_clear"):  # Airflow keeps it from 3.2 on
            supervisor.in_process_api_server = functools.cache(supervisor.in_process_api_server)
        assert supervisor.in_process_api_server().app


@functools.cache
def empty_database() -> Path:
    """Create the tables of the test session's Airflow, once, and give a copy for Airflows in other folders to begin with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Airflow's dependencies say of each other at their first import
        event.listen(Engine, "connect", _disable_fsync)
        initdb()
    home = Path(os.environ["AIRFLOW_HOME"])
    with (
        closing(sqlite3.connect(home / "airflow.db")) as source,
        closing(sqlite3.connect(home / "empty.db")) as copy,
    ):
        source.backup(copy)
    return home / "empty.db"


def _disable_fsync(connection: Any, _: object) -> None:
    """Let SQLite leave it to the system when a commit is on the disk: this database outlives no test session.

    A task makes dozens of commits, each of which else costs milliseconds, or many where others write too.
    """
    connection.execute("PRAGMA synchronous=OFF")


def _register(dag: DAG) -> None:
    """Write the DAG to the database, where a DAG of no file in the DAG folder would else be missing."""
    if not dag.relative_fileloc:
        dag.relative_fileloc = Path(dag.fileloc).name
    with create_session() as session:
        update_dag_parsing_results_in_db(
            _BUNDLE, None, [LazyDeserializedDAG.from_dag(dag)], {}, None, set(), session
        )


def _xcoms(dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    with create_session() as session:
        for row in session.scalars(
            select(XComModel).where(XComModel.dag_id == dag_id, XComModel.run_id == run_id)
        ):
            found.setdefault(_instance_key(row.task_id, row.map_index), {})[row.key] = (
                XComModel.deserialize_value(row)
            )
    return found


def _instance_key(task_id: str, map_index: int | None) -> str:
    return task_id if map_index is None or map_index < 0 else f"{task_id}[{map_index}]"


class _ErrorListener:
    """A listener, as a plugin may bring one: Airflow hands it the exception of each try that fails."""

    def __init__(self) -> None:
        self.errors: dict[str, BaseException] = {}

    @hookimpl
    def on_task_instance_failed(self, task_instance: Any, error: str | BaseException | None) -> None:
        if isinstance(error, BaseException):
            self.errors[_instance_key(task_instance.task_id, task_instance.map_index)] = error


@contextmanager
def _capture_errors() -> Iterator[dict[str, BaseException]]:
    listener = _ErrorListener()
    manager = get_listener_manager()
    manager.add_listener(listener)
    try:
        yield listener.errors
    finally:
        manager.pm.unregister(listener)


@contextmanager
def capture_log() -> Iterator[list[str]]:
    """Collect each line as it is written, masked as a worker masks what goes to a task's log.

    `dag.test()` alone masks nothing: it logs as a command does, and a command's log is no task's log.
    """
    lines: list[str] = []
    processors = structlog.get_config()["processors"]
    render = processors[-1]

    def record(logger: Any, method: str, event: structlog.typing.EventDict) -> Any:
        rendered = render(logger, method, event)
        lines.append(str(redact(str(rendered))))
        return rendered

    handler = _LineCollector(lines)
    handler.setFormatter(logging.getLogger().handlers[0].formatter)
    processors[-1] = record
    logging.getLogger().addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(handler)
        processors[-1] = render


class _LineCollector(logging.Handler):
    """Collects what libraries log the standard library's way."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(str(redact(self.format(record))))
