"""A queue of flow runs that the API server aborts, in a few threads for each connection.

The requests observe the rate limiter that they share with the pages of the same connection.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from contextlib import ExitStack
from functools import partial
from math import inf
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from airflow_provider_flows.core.exceptions import FlowAuthError, FlowUnreachable
from airflow_provider_flows.core.limits import MAX_ABORT_THREADS, MAX_QUEUED_ABORTS
from airflow_provider_flows.core.service import abort_run
from airflow_provider_flows.core.single_flight import SingleFlightCache
from airflow_provider_flows.plugin.cache import PageWaitError, ThreadPools

if TYPE_CHECKING:
    from airflow_provider_flows.hooks import FlowsHook

log = logging.getLogger(__name__)

HOOK_TTL_SECONDS = 60.0


class _Job(NamedTuple):
    """A flow run to abort."""

    flow_run_id: str
    dag_id: str | None = None  # whose team the connection is looked up for


class _ConnectionKey(NamedTuple):
    """A connection as the tasks of a team get it; teams may have different ones of the same id."""

    conn_id: str
    team_name: str | None


class AbortQueue:
    """Aborts flow runs in a few threads for each connection, which end when its queue is empty."""

    def __init__(self, max_threads: int = MAX_ABORT_THREADS) -> None:
        # one waiting job of a connection is enough, because each aborts all runs of the queue
        self._pools = ThreadPools("flows-abort", max_threads, max_queued=1, max_pools=inf)
        self._queues: defaultdict[str, deque[_Job]] = defaultdict(deque)  # by connection
        self._lock = Lock()
        self._hooks: SingleFlightCache[FlowsHook] = SingleFlightCache()

    def submit(self, conn_id: str, flow_run_id: str, dag_id: str | None = None) -> None:
        """Abort a run in the background, and log the result.

        :param dag_id: the DAG of the run's task; the connection is that of the DAG's team.
        """
        with self._lock:
            queue = self._queues[conn_id]
            is_full = len(queue) >= MAX_QUEUED_ABORTS
            if not is_full:
                queue.append(_Job(flow_run_id, dag_id))
        if is_full:
            log.warning(
                "The API server does not try to abort flow run %s, because %d others of connection %s are "
                "waiting; a triggerer aborts those whose triggers it runs",
                flow_run_id,
                MAX_QUEUED_ABORTS,
                conn_id,
            )
            return
        try:
            self._pools.submit(conn_id, partial(self._abort_all, conn_id))
        except PageWaitError:
            # a job of the connection has not begun, and will abort this run too
            log.debug("Flow run %s waits for other aborts of connection %s", flow_run_id, conn_id)

    def _abort_all(self, conn_id: str) -> None:
        """Abort runs of a connection until none is left."""
        with ExitStack() as exits:
            hooks: dict[_ConnectionKey, FlowsHook] = {}  # with this thread's sessions
            while (job := self._next_job(conn_id)) is not None:
                try:
                    was_aborted = self._abort(conn_id, job, hooks, exits)
                except Exception as error:  # noqa: BLE001  # the trigger's on_kill may still abort the run
                    self._log_failure(conn_id, job.flow_run_id, error)
                else:
                    _log_success(job.flow_run_id, was_aborted=was_aborted)

    def _abort(
        self, conn_id: str, job: _Job, hooks: dict[_ConnectionKey, FlowsHook], exits: ExitStack
    ) -> bool:
        """Abort a run; look its connection up again if the service rejects the key.

        :param hooks: the hooks of this thread; new ones are added, and closed with `exits`.
        """
        from airflow_provider_flows.plugin.airflow_internals import get_dag_team

        key = _ConnectionKey(conn_id, get_dag_team(job.dag_id) if job.dag_id else None)
        shared_hook = self._get_hook(key)
        while True:
            hook = hooks.get(key)
            if hook is None or hook.settings != shared_hook.settings:
                hook = hooks[key] = exits.enter_context(shared_hook.copy_for_thread())
            conversation = abort_run(hook.service, job.flow_run_id)
            try:
                return hook.run(conversation, retry=hook.abort_retry)
            except FlowAuthError:
                shared_hook = self._get_hook(key, stale=hook)
                if _is_stale(shared_hook, hook):  # the connection has not changed
                    raise

    def _next_job(self, conn_id: str) -> _Job | None:
        with self._lock:
            queue = self._queues.get(conn_id)
            if queue:
                return queue.popleft()
            self._queues.pop(conn_id, None)
            return None

    def _get_hook(self, key: _ConnectionKey, stale: FlowsHook | None = None) -> FlowsHook:
        """Return the hook of a connection, which is looked up once for all its runs.

        :param stale: a hook whose key was rejected. The returned hook has other settings, or comes from a
            lookup that began after this call.
        """
        called_at = time.monotonic()
        while True:
            entry, is_new = self._hooks.get(
                key, lambda hook, started_at: started_at < called_at and _is_stale(hook, stale)
            )
            if is_new:
                with self._hooks.share_errors(entry):
                    from airflow_provider_flows.plugin.airflow_internals import load_hook

                    new_hook = load_hook(*key)
                    new_hook.limit_requests()
                    self._hooks.set_value(entry, new_hook, HOOK_TTL_SECONDS)
            hook = entry.future.result()
            if entry.started_at >= called_at or not _is_stale(hook, stale):
                return hook

    def _log_failure(self, conn_id: str, flow_run_id: str, error: Exception) -> None:
        """Log a failure, and drop the other runs of a connection that does not work in this process."""
        log.warning("Flow run %s could not be aborted by the API server: %s", flow_run_id, error)
        if not isinstance(error, (FlowUnreachable, FlowAuthError)):
            return
        self._hooks.clear()  # the connection may have been corrected in the meantime
        with self._lock:
            dropped = self._queues.pop(conn_id, None)
        if dropped:
            log.warning(
                "The API server does not try to abort %d more flow runs of connection %s, for the same "
                "reason; a triggerer aborts those whose triggers it runs: %s",
                len(dropped),
                conn_id,
                ", ".join(job.flow_run_id for job in dropped),
            )


ABORT_QUEUE = AbortQueue()


def _is_stale(hook: FlowsHook, stale: FlowsHook | None) -> bool:
    return stale is not None and hook.settings == stale.settings


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
