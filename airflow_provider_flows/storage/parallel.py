"""Parallel execution of jobs in a bounded number of threads that do not delay the end of a killed process."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import copy_context
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TypeVar

K = TypeVar("K")
W = TypeVar("W")
R = TypeVar("R")

# for the threads to end by themselves; Airflow gives a killed task five seconds in all
SHUTDOWN_GRACE_SECONDS = 1.0


def run_parallel(
    jobs: Mapping[K, Callable[[W], R]],
    create_worker: Callable[[], AbstractContextManager[W]],
    max_workers: int,
    cancel_event: Event,
) -> Generator[tuple[K, R], None, None]:
    """Run jobs in threads, and yield the key and the result of each as it completes.

    After an error no other job is started. The jobs in progress are completed, and then the error is raised.
    A signal raises its exception in the main thread only. If such an exception or `close` ends the iteration
    early, `cancel_event` is set, so that the jobs in progress can end themselves.

    :param create_worker: creates the argument of the jobs, once in each thread.
    :param max_workers: the maximum number of threads.
    :param cancel_event: no job is started once it is set.
    :raises BaseException: any error of a job or of `create_worker`.
    """
    pending: SimpleQueue[tuple[K, Callable[[W], R]]] = SimpleQueue()
    completed: SimpleQueue[tuple[K, R] | None] = SimpleQueue()  # None: a thread has ended
    errors: list[BaseException] = []
    for item in jobs.items():
        pending.put(item)

    def work() -> None:
        try:
            with create_worker() as worker:
                for key, job in _iter_jobs(pending, lambda: bool(errors) or cancel_event.is_set()):
                    completed.put((key, job(worker)))
        except BaseException as error:  # noqa: BLE001  # raised below, in the caller's thread
            errors.append(error)
        finally:
            completed.put(None)

    threads: list[Thread] = []
    try:
        for _ in range(min(max_workers, len(jobs))):
            thread = Thread(target=copy_context().run, args=(work,), daemon=True)
            thread.start()
            threads.append(thread)
        yield from _iter_results(completed, len(threads))
    except BaseException:
        cancel_event.set()
        raise
    finally:
        deadline = time.monotonic() + SHUTDOWN_GRACE_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise errors[0]


def _iter_jobs(
    pending: SimpleQueue[tuple[K, Callable[[W], R]]], is_stopped: Callable[[], bool]
) -> Iterator[tuple[K, Callable[[W], R]]]:
    while not is_stopped():
        try:
            item = pending.get_nowait()
        except Empty:
            return
        yield item


def _iter_results(completed: SimpleQueue[tuple[K, R] | None], running: int) -> Iterator[tuple[K, R]]:
    while running:
        result = completed.get()
        if result is None:
            running -= 1
        else:
            yield result
