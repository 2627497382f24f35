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

GRACE = 1.0  # seconds for the threads to end by themselves; Airflow gives a killed task five for all that it has to do


def abreast(
    jobs: Sequence[Callable[[H], R]],
    helper: Callable[[], AbstractContextManager[H]],
    most: int,
    stop: Event,
    take: Callable[[int, R], None],
) -> None:
    """Do the jobs, at most `most` at once.

    After a job that failed no other is begun; those under way are finished, and then the first error is raised. A signal raises
    its exception in the main thread only: then `stop` is set, for the jobs to look at.

    :param helper: makes what each job is given; one for each thread.
    :param take: is told each job's number and result as it comes, in the thread that called.
    """
    todo: SimpleQueue[tuple[int, Callable[[H], R]]] = SimpleQueue()
    done: SimpleQueue[tuple[int, R] | BaseException | None] = SimpleQueue()  # None: a thread has ended
    for numbered in enumerate(jobs):
        todo.put(numbered)
    failed = Event()

    def work() -> None:
        try:
            with helper() as mine:
                for number, job in _waiting(todo, stop, failed):
                    done.put((number, job(mine)))
        except BaseException as error:  # noqa: BLE001  # raised again where somebody waits for it
            failed.set()
            done.put(error)
        finally:
            done.put(None)

    threads: list[Thread] = []  # those that run
    try:
        for _ in range(min(most, len(jobs))):
            thread = Thread(target=copy_context().run, args=(work,), daemon=True)
            thread.start()
            threads.append(thread)
        _take_all(done, len(threads), take)
    finally:
        stop.set()
        until = time.monotonic() + GRACE
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))


def _waiting(todo: SimpleQueue[tuple[int, R]], *over: Event) -> Iterator[tuple[int, R]]:
    while not any(event.is_set() for event in over):
        try:
            found = todo.get_nowait()
        except Empty:
            return
        yield found


def _take_all(
    done: SimpleQueue[tuple[int, R] | BaseException | None], running: int, take: Callable[[int, R], None]
) -> None:
    error: BaseException | None = None
    while running:
        told = done.get()
        if isinstance(told, tuple):
            take(*told)
        elif told is None:
            running -= 1
        else:
            error = error or told
    if error is not None:
        raise error
