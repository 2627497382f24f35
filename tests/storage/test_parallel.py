"""Tests of jobs in parallel threads, and of a thread ahead of its reader."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from threading import Event

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_flows.core.limits import DOWNLOAD_BUFFER_BYTES, DOWNLOAD_CHUNK_BYTES
from airflow_provider_flows.storage.parallel import BrokenFileError, Pipe, ReaderLeftError, run_parallel


def test_error_of_a_thread_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no more threads can be started, that error is raised after the running ones have ended."""
    start, threads = threading.Thread.start, list[threading.Thread]()

    def scarce(thread: threading.Thread) -> None:
        threads.append(thread)
        if len(threads) == 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        list(run_parallel(dict.fromkeys(range(8), lambda _: time.sleep(0.05)), nullcontext, 4, Event()))
    assert len(threads) == 3
    assert not any(thread.is_alive() for thread in threads)


LARGE = bytes(range(256)) * (DOWNLOAD_BUFFER_BYTES // 128)  # twice the buffer


def write_attempts(*attempts: bytes, error: Exception | None = None) -> Callable[[Pipe], None]:
    """Return a source that writes a file several times, and then raises an error."""

    def write(pipe: Pipe) -> None:
        for attempt in attempts:
            pipe.restart()
            for start in range(0, len(attempt), 100_000):
                pipe.write(attempt[start : start + 100_000])
        if error is not None:
            raise error

    return write


def read_all(source: Callable[[Pipe], None]) -> bytes:
    """Read a file to its end."""
    pipe = Pipe()
    pipe.read_from(source)
    return b"".join(pipe.iter_chunks())


@pytest.mark.parametrize(
    "attempts",
    [
        [LARGE],
        [LARGE[:-5], LARGE],
        [LARGE[:100], LARGE[:600_000], LARGE],
        [LARGE, LARGE[:1], b"", LARGE],
        [b"x" * 100, LARGE],  # the reader has nothing yet
        [b""],
    ],
)
def test_reader_gets_the_last_attempt_once(attempts: Sequence[bytes]) -> None:
    """What the reader could read already is skipped in later attempts, which must have the same bytes."""
    assert read_all(write_attempts(*attempts)) == attempts[-1]


@pytest.mark.parametrize(
    "attempts",
    [
        [LARGE, LARGE[:-1]],
        [LARGE, LARGE[:-1] + b"!"],
        [LARGE, b"!" + LARGE[1:]],
        [LARGE[:-1], b"!" + LARGE[1:]],
        [LARGE, b""],
    ],
)
def test_another_file_in_a_later_attempt_is_an_error(attempts: Sequence[bytes]) -> None:
    """A reader who has bytes of the first attempt never gets the end of another file."""
    with pytest.raises(BrokenFileError):
        read_all(write_attempts(*attempts))


def test_error_before_the_first_bytes_is_raised_at_once() -> None:
    """A file that fits into the buffer is complete, or its error raised, before anything is read."""
    with pytest.raises(KeyError):
        Pipe().read_from(write_attempts(b"x" * 100, error=KeyError()))
    pipe = Pipe()
    pipe.read_from(write_attempts(b"x" * 100))
    assert (pipe.size, pipe.peek(5)) == (100, b"xxxxx")
    pipe = Pipe()
    pipe.read_from(write_attempts(LARGE, error=KeyError("late")))
    assert pipe.size is None
    with pytest.raises(BrokenFileError, match="late"):
        list(pipe.iter_chunks())


@given(st.lists(st.integers(0, 300_000), max_size=12))
@settings(max_examples=50, deadline=None)
def test_no_more_than_the_buffer_is_held(sizes: list[int]) -> None:
    """However the source divides its bytes, it is at most a buffer ahead, and chunks are small."""
    pipe, taken, ahead = Pipe(), 0, []

    def write(target: Pipe) -> None:
        for size in sizes:
            target.write(bytes(size))

    pipe.read_from(write)
    for chunk in pipe.iter_chunks():
        ahead.append(pipe.position - taken)
        taken += len(chunk)
        assert len(chunk) <= DOWNLOAD_CHUNK_BYTES
    assert taken == sum(sizes)
    assert max(ahead, default=0) <= DOWNLOAD_BUFFER_BYTES + 300_000 + DOWNLOAD_CHUNK_BYTES


def test_many_tiny_writes_need_no_more_memory() -> None:
    """Bytes that arrive one by one are stored in chunks."""

    def write(pipe: Pipe) -> None:
        for _ in range(100_000):
            pipe.write(b"x")

    pipe = Pipe()
    pipe.read_from(write)
    assert len(list(pipe.iter_chunks())) <= 2


def test_source_ends_when_its_reader_leaves_or_stalls() -> None:
    """The source gets an error at its next write, and the callbacks are called once both have ended."""
    for leave in (Pipe.close, lambda _: None):
        ended, errors = Event(), list[BaseException]()

        def write(pipe: Pipe, errors: list[BaseException] = errors) -> None:
            try:
                while True:
                    pipe.write(bytes(100_000))
            except ReaderLeftError as error:
                errors.append(error)
                raise

        pipe = Pipe(stall_seconds=0.2)
        pipe.read_from(write)
        pipe.when_done(ended.set)
        assert not ended.is_set()
        leave(pipe)
        with suppress(BrokenFileError):
            while not errors:
                time.sleep(0.01)
            list(pipe.iter_chunks())
        assert ended.wait(10)
        assert len(errors) == 1
