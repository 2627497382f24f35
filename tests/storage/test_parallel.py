"""Tests of jobs in parallel threads."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from threading import Event

import pytest

from airflow_provider_flows.storage.parallel import run_parallel


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
