"""Jobs in threads that do not delay the end of a process: several in parallel, or one ahead of its reader."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from contextvars import copy_context
from queue import Empty, SimpleQueue
from threading import Condition, Event, Thread
from typing import Self, TypeVar

from airflow_provider_flows.core.limits import DOWNLOAD_BUFFER_BYTES, DOWNLOAD_CHUNK_BYTES, MAX_STALL_SECONDS

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


class BrokenFileError(Exception):
    """A file ended before it was complete, and after its first bytes could be read."""


class ReaderLeftError(Exception):
    """The reader of a pipe has left, or has taken no chunk for too long."""


class Pipe:
    """A file on its way from a source, in a thread of its own, to one reader.

    The source is at most a buffer ahead of the reader. It may start the file again. If bytes could already be
    read, it must then write the same ones once more, and the reader gets only what follows.

    :param stall_seconds: how long the source waits for the reader to take a chunk.
    """

    def __init__(self, stall_seconds: float = MAX_STALL_SECONDS) -> None:
        self.size: int | None = None
        """In bytes, None if the file was not complete when its first bytes could be read."""
        self.position = 0
        """The number of bytes that the source has written since the last restart."""
        self._stall_seconds = stall_seconds
        self._changed = Condition()
        self._chunks: deque[bytearray] = deque()
        self._buffered = 0
        self._passed, self._passed_digest = 0, hashlib.sha256()  # of all bytes, also those in the buffer
        self._repeated_digest = hashlib.sha256()  # of those that the source has written again
        self._is_readable = self._is_finished = self._is_closed = False
        self._error: BaseException | None = None
        self._wake_reader: Callable[[], object] = lambda: None
        self._done_callbacks: list[Callable[[], object]] = []

    def when_done(self, callback: Callable[[], object]) -> None:
        """Call this once the reader has closed the pipe and the source has ended, in any thread."""
        with self._changed:
            self._done_callbacks.append(callback)
            self._notify()

    def read_from(self, source: Callable[[Self], object]) -> None:
        """Start the source, and return when the buffer is full or the file complete.

        :param source: writes the file to the pipe; it raises an error if the file is not complete.
        :raises BaseException: any error of the source until then.
        """
        thread = Thread(target=copy_context().run, args=(self._run, source), name="flows-pipe", daemon=True)
        thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._is_readable or self._is_finished)
            self._is_readable = True
            error = self._error
            if self._is_finished and error is None:
                self.size = self._passed
        if error is not None:
            self.close()
            raise error

    def _run(self, source: Callable[[Self], object]) -> None:
        error: BaseException | None = None
        try:
            source(self)
        except BaseException as raised:  # noqa: BLE001  # raised in the reader
            error = raised
        if error is None and self.position < self._passed:
            error = BrokenFileError("the second attempt has fewer bytes than the first one")
        with self._changed:
            self._error, self._is_finished = error, True
            self._notify()

    def restart(self) -> None:
        """Start the file, or start it again.

        :raises ReaderLeftError: the reader has left.
        """
        with self._changed:
            self._raise_if_closed()
            if not self._is_readable:
                self._chunks.clear()
                self._buffered = self._passed = 0
                self._passed_digest = hashlib.sha256()
            self.position, self._repeated_digest = 0, hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Write the next bytes, and wait while the buffer is full.

        :raises BrokenFileError: the reader has got other bytes than these before.
        :raises ReaderLeftError: the reader has left, or takes nothing.
        """
        repeated = data[: max(0, self._passed - self.position)]
        self.position += len(data)
        if repeated:
            self._repeated_digest.update(repeated)
            is_last = self.position >= self._passed
            if is_last and self._repeated_digest.digest() != self._passed_digest.digest():
                raise BrokenFileError("the second attempt has other bytes than the first one")
        for start in range(len(repeated), len(data), DOWNLOAD_CHUNK_BYTES):
            self._put(data[start : start + DOWNLOAD_CHUNK_BYTES])

    def _put(self, chunk: bytes) -> None:
        with self._changed:
            while self._buffered + len(chunk) > DOWNLOAD_BUFFER_BYTES:
                self._raise_if_closed()
                self._is_readable = True
                self._changed.notify_all()
                if not self._changed.wait(self._stall_seconds):
                    raise ReaderLeftError
            self._raise_if_closed()
            if self._chunks and len(self._chunks[-1]) + len(chunk) <= DOWNLOAD_CHUNK_BYTES:
                self._chunks[-1] += chunk
            else:
                self._chunks.append(bytearray(chunk))
            self._buffered += len(chunk)
            self._passed += len(chunk)
            self._passed_digest.update(chunk)
            self._notify()

    def _raise_if_closed(self) -> None:
        if self._is_closed:
            raise ReaderLeftError

    def _notify(self) -> None:
        self._changed.notify_all()
        self._wake_reader()
        while self._is_finished and self._is_closed and self._done_callbacks:
            self._done_callbacks.pop()()

    def peek(self, size: int) -> bytes:
        """Return the first bytes, fewer than `size` only if the file is shorter."""
        with self._changed:
            return b"".join(bytes(chunk[:size]) for chunk in list(self._chunks)[:2])[:size]

    def iter_chunks(self) -> Iterator[bytes]:
        """Yield the file's chunks, and close the pipe.

        :raises BrokenFileError: the file is not complete; discard its chunks.
        """
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(self._can_take)
                    chunk = self._take()
                if chunk is None:
                    return
                yield chunk
        finally:
            self.close()

    async def aiter_chunks(self) -> AsyncIterator[bytes]:
        """Yield the same chunks without blocking the event loop. The caller closes the pipe.

        :raises BrokenFileError: the file is not complete; discard its chunks.
        """
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(changed.set)

        with self._changed:
            self._wake_reader = wake
        while True:
            changed.clear()
            with self._changed:
                can_take = self._can_take()
                chunk = self._take() if can_take else None
            if not can_take:
                await changed.wait()
            elif chunk is None:
                return
            else:
                yield chunk

    def _can_take(self) -> bool:
        return bool(self._chunks) or self._is_finished or self._is_closed

    def _take(self) -> bytes | None:
        """Return the next chunk, None after the last one."""
        if self._error is not None:
            raise BrokenFileError(str(self._error) or type(self._error).__name__) from self._error
        if self._is_closed:
            raise BrokenFileError("it was closed")
        if not self._chunks:
            return None
        chunk = self._chunks.popleft()
        self._buffered -= len(chunk)
        self._changed.notify_all()
        return bytes(chunk)

    def close(self) -> None:
        """Discard what the reader has not taken, and end the source at its next write."""
        with self._changed:
            self._is_closed = True
            self._chunks.clear()
            self._buffered = 0
            self._notify()
