"""A queue of flow runs that the API server aborts, in a few threads that observe the rate limits."""

from __future__ import annotations

import logging
import time
from collections import deque
from contextlib import ExitStack
from threading import Lock, Thread, current_thread
from typing import TYPE_CHECKING, NamedTuple

from airflow_provider_flows.core.exceptions import FlowAuthError, FlowUnreachable
from airflow_provider_flows.core.single_flight import SingleFlightCache
from airflow_provider_flows.core.start_or_resume import abort_run

if TYPE_CHECKING:
    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.transport.shared_rate_limiter import SharedRateLimiter

log = logging.getLogger(__name__)

MAX_THREADS = 4
HOOK_TTL_SECONDS = 60.0


class _Job(NamedTuple):
    """A flow run to abort."""

    conn_id: str
    flow_run_id: str
    dag_id: str | None = None  # whose team the connection is looked up for


class _ConnectionKey(NamedTuple):
    """A connection as the tasks of a team get it; teams may have different ones of the same id."""

    conn_id: str
    team_name: str | None


class _Target(NamedTuple):
    """The hook of a connection, and the rate limiter of all requests by which its runs are aborted."""

    hook: FlowsHook
    limiter: SharedRateLimiter


class AbortQueue:
    """Aborts flow runs in a few threads, which end when the queue is empty.

    They are daemon threads, unlike those of a `ThreadPoolExecutor`, so that a slow service does not delay the
    exit of the API server.
    """

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self._max_threads = max_threads
        self._jobs: deque[_Job] = deque()
        self._threads: list[Thread] = []
        self._lock = Lock()
        self._targets: SingleFlightCache[_Target] = SingleFlightCache()

    def submit(self, conn_id: str, flow_run_id: str, dag_id: str | None = None) -> None:
        """Abort a run in the background, and log the result.

        :param dag_id: the DAG of the run's task; the connection is that of the DAG's team.
        """
        with self._lock:
            self._jobs.append(_Job(conn_id, flow_run_id, dag_id))
            self._threads = [thread for thread in self._threads if thread.is_alive()]  # a fork has none
            if len(self._threads) < self._max_threads:
                thread = Thread(target=self._work, name="flows-abort", daemon=True)
                thread.start()
                self._threads.append(thread)

    def _work(self) -> None:
        """Run jobs until none is left."""
        with ExitStack() as exits:
            hooks: dict[_ConnectionKey, FlowsHook] = {}  # with a session of this thread for each connection
            while (job := self._next_job()) is not None:
                try:
                    was_aborted = self._abort(job, hooks, exits)
                except Exception as error:  # noqa: BLE001  # the trigger's on_kill may still abort the run
                    self._log_failure(job, error)
                else:
                    _log_success(job.flow_run_id, was_aborted=was_aborted)

    def _abort(self, job: _Job, hooks: dict[_ConnectionKey, FlowsHook], exits: ExitStack) -> bool:
        """Abort a run; look its connection up again if the service rejects the key.

        :param hooks: the hooks of this thread by connection; new ones are added, and closed with `exits`.
        """
        from airflow_provider_flows.plugin.airflow_internals import get_dag_team

        key = _ConnectionKey(job.conn_id, get_dag_team(job.dag_id) if job.dag_id else None)
        target = self._get_target(key)
        while True:
            hook = hooks.get(key)
            if hook is None or hook.settings != target.hook.settings:
                hook = hooks[key] = exits.enter_context(target.hook.copy_for_thread())
            conversation = abort_run(hook.service, job.flow_run_id)
            try:
                return hook.run(conversation, retry=hook.abort_retry, limiter=target.limiter)
            except FlowAuthError:
                target = self._get_target(key, stale=hook)
                if _is_stale(target, hook):  # the connection has not changed
                    raise

    def _next_job(self) -> _Job | None:
        with self._lock:
            if self._jobs:
                return self._jobs.popleft()
            if current_thread() in self._threads:
                self._threads.remove(current_thread())
            return None

    def _get_target(self, key: _ConnectionKey, stale: FlowsHook | None = None) -> _Target:
        """Return the target of a connection, which is looked up once for all its runs.

        :param stale: a hook whose key was rejected. The target has other settings, or comes from a lookup
            that began after this call.
        """
        called_at = time.monotonic()
        while True:
            entry, is_new = self._targets.get(
                key, lambda target, started_at: started_at < called_at and _is_stale(target, stale)
            )
            if is_new:
                with self._targets.share_errors(entry):
                    from airflow_provider_flows.plugin.airflow_internals import load_hook
                    from airflow_provider_flows.transport.shared_rate_limiter import SharedRateLimiter

                    hook = load_hook(*key)
                    limiter = SharedRateLimiter(hook.extra.get("max_requests_per_second"))
                    self._targets.set_value(entry, _Target(hook, limiter), HOOK_TTL_SECONDS)
            target = entry.future.result()
            if entry.started_at >= called_at or not _is_stale(target, stale):
                return target

    def _log_failure(self, job: _Job, error: Exception) -> None:
        """Log a failure, and drop the other runs of a connection that does not work in this process."""
        log.warning("Flow run %s could not be aborted by the API server: %s", job.flow_run_id, error)
        if not isinstance(error, (FlowUnreachable, FlowAuthError)):
            return
        self._targets.clear()  # the connection may have been corrected in the meantime
        with self._lock:
            dropped = [other for other in self._jobs if other.conn_id == job.conn_id]
            self._jobs = deque(other for other in self._jobs if other.conn_id != job.conn_id)
        if dropped:
            log.warning(
                "The API server does not try to abort %d more flow runs of connection %s, for the same "
                "reason; a triggerer aborts those whose triggers it runs: %s",
                len(dropped),
                job.conn_id,
                ", ".join(other.flow_run_id for other in dropped),
            )


ABORT_QUEUE = AbortQueue()


def _is_stale(target: _Target, stale: FlowsHook | None) -> bool:
    return stale is not None and target.hook.settings == stale.settings


def _log_success(flow_run_id: str, *, was_aborted: bool) -> None:
    if was_aborted:
        log.info(
            "The task was marked while it was deferred, so flow run %s was aborted "
            "(deleted if it had not started)",
            flow_run_id,
        )
    else:
        log.info(
            "The task was marked while it was deferred; flow run %s had already ended, is being aborted, or "
            "is gone",
            flow_run_id,
        )
