"""Several jobs at once, each in a thread, bounded in number, with an end that comes soon when somebody kills the task.

It knows nothing of files or services.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import copy_context
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TypeVar

H = TypeVar("H")
R = TypeVar("R")

SHUTDOWN_GRACE_SECONDS = 1.0  # seconds for the threads to end by themselves; Airflow gives a killed task five for all that it has to do


def run_parallel(
    jobs: Sequence[Callable[[H], R]],
    create_worker: Callable[[], AbstractContextManager[H]],
    max_workers: int,
    cancel_event: Event,
    on_result: Callable[[int, R], None],
) -> None:
    """Do the jobs, at most `max_workers` at once.

    After a job that failed no other is begun; those under way are finished, and then the first error is raised. A signal raises
    its exception in the main thread only: then `cancel_event` is set, for the jobs to look at.

    :param create_worker: makes what each job is given; one for each thread.
    :param on_result: is told each job's number and result as it comes, in the thread that called.
    """
    todo: SimpleQueue[tuple[int, Callable[[H], R]]] = SimpleQueue()
    done: SimpleQueue[tuple[int, R] | BaseException | None] = SimpleQueue()  # None: a thread has ended
    for numbered in enumerate(jobs):
        todo.put(numbered)
    failed = Event()

    def work() -> None:
        try:
            with create_worker() as worker:
                for number, job in _iter_jobs(todo, cancel_event, failed):
                    done.put((number, job(worker)))
        except BaseException as error:  # noqa: BLE001  # raised again where somebody waits for it
            failed.set()
            done.put(error)
        finally:
            done.put(None)

    threads: list[Thread] = []  # those that run
    try:
        for _ in range(min(max_workers, len(jobs))):
            thread = Thread(target=copy_context().run, args=(work,), daemon=True)
            thread.start()
            threads.append(thread)
        _collect_results(done, len(threads), on_result)
    finally:
        cancel_event.set()
        until = time.monotonic() + SHUTDOWN_GRACE_SECONDS
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))


def _iter_jobs(todo: SimpleQueue[tuple[int, R]], *stop_events: Event) -> Iterator[tuple[int, R]]:
    while not any(event.is_set() for event in stop_events):
        try:
            job = todo.get_nowait()
        except Empty:
            return
        yield job


def _collect_results(
    done: SimpleQueue[tuple[int, R] | BaseException | None], running: int, on_result: Callable[[int, R], None]
) -> None:
    error: BaseException | None = None
    while running:
        result = done.get()
        if isinstance(result, tuple):
            on_result(*result)
        elif result is None:
            running -= 1
        else:
            error = error or result
    if error is not None:
        raise error
