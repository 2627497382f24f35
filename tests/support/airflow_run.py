"""Run a DAG in the test's own process, through Airflow's `dag.test()`.

No part of Airflow is replaced, but no scheduler, worker or triggerer runs: `tools.airflow_stack` has these.
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

# For tests with an execution_timeout: Airflow uses the same alarm signal as pytest-timeout, and hangs if it
# arrives while a line is logged. The method "thread" ends this test process; xdist replaces it.
THREAD_TIMEOUT = pytest.mark.timeout(120, method="thread")

_BUNDLE = "dags-folder"


@dataclass
class DagResult:
    """The result of a DAG run; task instances are keyed by `task_id`, mapped ones by `task_id[map_index]`."""

    run_id: str
    state: str
    states: dict[str, str | None]
    xcoms: dict[str, dict[str, Any]]
    errors: dict[str, BaseException] = field(default_factory=dict)
    """The exception of each task instance's last failed try."""
    log: str = ""
    """The lines that tasks, triggers and Airflow logged, with masked secrets as in a task's log."""


def run_dag(dag: DAG, conf: dict[str, Any] | None = None) -> DagResult:
    """Run every task of a DAG, with its triggers, retries and reschedules, and return the result.

    Call it from a synchronous test: triggers get a new event loop. As always in `dag.test()`, an exception in
    a trigger fails the task without resuming it, and is only in the log.
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
    """Return the DAGs of a file, as Airflow's DAG processor loads them.

    :raises ImportError: The file cannot be loaded.
    """
    ensure_database()
    bag = DagBag(dag_folder=str(path))
    if bag.import_errors:
        raise ImportError("\n".join(bag.import_errors.values()))
    return dict(bag.dags)


@functools.cache
def ensure_database() -> None:
    """Create the metadata database of the test session's Airflow and the API of its tasks, once.

    The first run of a session takes 2 s longer for the tables, and 5 s in which Airflow builds every version
    of its task API.
    """
    empty_database()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Airflow's dependencies, again
        DagBundlesManager().sync_bundles_to_db()
        if not hasattr(
            supervisor.in_process_api_server, "cache_clear"
        ):  # Airflow before 3.2 does not cache it
            supervisor.in_process_api_server = functools.cache(supervisor.in_process_api_server)
        assert supervisor.in_process_api_server().app


@functools.cache
def empty_database() -> Path:
    """Create the tables of the test session's Airflow, once; return a copy for Airflows in other folders."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Airflow's dependencies use deprecated parts of each other
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
    """Make SQLite commit without waiting for the disk; the database is deleted after the test session.

    A task commits dozens of times, and each commit would cost milliseconds.
    """
    connection.execute("PRAGMA synchronous=OFF")


def _register(dag: DAG) -> None:
    """Write the DAG to the database, because it is in no file of the DAG folder."""
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
    """A listener, as in a plugin: Airflow calls it with the exception of each failed try."""

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
    """Collect the log lines, with secrets masked as in a task's log; `dag.test()` masks none."""
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
    """Collects the lines that libraries log with the standard library."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(str(redact(self.format(record))))
