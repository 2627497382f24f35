"""Benchmark 6: the flow runs of one batch, and the same in mapped tasks, in a complete Airflow.

The ways are the DAGs in airflow_dags/; each runs in a new Airflow with default settings, with a new server.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil

from benchmarks.complete_airflow import (
    EXTRA_WAIT_SECONDS,
    SLOTS,
    TASK_OVERHEAD_SECONDS,
    measure,
    start_airflow,
)
from benchmarks.reporting import Column, Report, Target, ratio
from tools.airflow_stack import Stack

WAYS = {
    "batch": "RunFlowBatchOperator",
    "batch_deferrable": "RunFlowBatchOperator(deferrable=True)",
    "deferrable": "mapped RunFlowOperator(deferrable=True)",
    "http": "mapped HttpOperator + HttpSensor, reschedule",
}
BATCHES = ("batch", "batch_deferrable")
MEMORY_WAY = "batch"
MEMORY_SECONDS = 1.0  # duration of the flow runs of the batch for the memory
POKE_SECONDS = 60.0  # the default of HttpSensor
MODEL_BYTES = 6_000
SAMPLE_SECONDS = 1.0
MIB = 1024 * 1024
COLUMNS = (
    Column("way", "title"),
    Column("items", "items", ",d"),
    Column("CPU s per item", "cpu_per_item", ".4f"),
    Column("of the batch's", "cpu_of_batch", ".1f"),
    Column("scheduler", "scheduler", ".1f"),
    Column("triggerer", "triggerer", ".1f"),
    Column("api-server", "api-server", ".1f"),
    Column("makespan s", "makespan", ".0f"),
    Column("of ideal", "makespan_of_ideal", ".2f"),
    Column("requests per item", "requests_per_run", ".2f"),
    Column("task MiB", "task_memory", ".0f"),
    Column("extra MiB", "extra_memory", ".0f"),
    Column("started", "started", ",d"),
    Column("state", "state"),
)
NOTES = (
    "CPU: of all processes of the Airflow (the scheduler with its workers and tasks) during the DAG run.",
    "ideal: items / max_active x seconds. The mapped ways have no maximum, so it is not compared for them.",
    "task MiB: maximum resident memory of any process of a task; extra: beyond a batch of max_active items.",
    "HttpOperator and HttpSensor fetch no outputs; the other ways store one file for each item.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark; `--seconds` is an option of the benchmark `airflow`."""
    group = parser.add_argument_group("batch (flow runs of --seconds, default: 20)")
    group.add_argument("--items", type=int, help="items of a batch (default: 1000)")
    group.add_argument("--max-active", type=int, help="flow runs at the same time (default: 100)")
    group.add_argument("--mapped-items", type=int, help="flow runs of the mapped ways (default: 100)")
    group.add_argument("--memory-items", type=int, help="items of the batch for the memory (default: 10000)")
    group.add_argument(
        "--batch-ways", nargs="+", choices=[*WAYS, "memory"], default=[*WAYS, "memory"],
        help="the ways to run (default: all)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> Report:
    """Run each way in a new Airflow, one after another."""
    quick = options.quick
    items, max_active = options.items or (40 if quick else 1000), options.max_active or (10 if quick else 100)
    mapped, seconds = (
        options.mapped_items or (4 if quick else 100),
        options.seconds or (5.0 if quick else 20.0),
    )
    memory_items = options.memory_items or (200 if quick else 10_000)
    title = (
        f"Batch: {items:,} flow runs of {seconds:g} s, at most {max_active} at the same time, "
        f"LocalExecutor with {SLOTS} slots; {mapped:,} in the mapped ways"
    )
    report = Report("batch", title, COLUMNS, notes=list(NOTES))
    for way in options.batch_ways:
        if way == "memory":
            report.rows.append(_measure_memory(memory_items, max_active))
        else:
            report.rows.append(_run_way(way, items if way in BATCHES else mapped, max_active, seconds))
    rows = {row["way"]: row for row in report.rows}
    for row in report.rows:
        row["cpu_of_batch"] = ratio(row["cpu_per_item"], rows.get("batch", {}).get("cpu_per_item", 0.0))
    report.targets += _compare(rows)
    return report


def _compare(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[Target]:
    """Yield the targets, with the figures of the ways that have run."""
    for way in [way for way in BATCHES if way in rows]:
        row, name = rows[way], WAYS[way]
        for peer in [peer for peer in WAYS if peer not in BATCHES and peer in rows]:
            part = row["cpu_per_item"] / rows[peer]["cpu_per_item"]
            yield Target(f"CPU of {name}, of that of {WAYS[peer]}", part, "at most 0.033")
        yield Target(f"makespan of {name}, of the ideal one", row["makespan_of_ideal"], "at most 1.25")
        yield Target(f"requests of {name} per item", row["requests_per_run"], "at most 7")
    if "memory" in rows:
        row = rows["memory"]
        yield Target(
            f"extra memory at {row['items']:,} items, MiB", row["extra_memory"], "at most 143 (150 MB)"
        )


def _run_way(way: str, count: int, max_active: int, seconds: float) -> dict[str, Any]:
    """Run one way to its end, and return the figures."""
    print(f"  {WAYS[way]}: {count:,} items of {seconds:g} s ...", file=sys.stderr, flush=True)
    with _start(count, max_active, seconds) as batch:
        figures = batch.measure(way, count, seconds)
    ideal = (
        {"makespan_of_ideal": figures["makespan"] / (count / max_active * seconds)} if way in BATCHES else {}
    )
    return {"title": WAYS[way], **figures, **ideal}


def _measure_memory(count: int, max_active: int) -> dict[str, Any]:
    """Run a small batch and a large one in the same Airflow, and return the figures of the large one."""
    title = f"{WAYS[MEMORY_WAY]}, runs of {MEMORY_SECONDS:g} s"
    print(f"  {title}: {max_active:,} and {count:,} items ...", file=sys.stderr, flush=True)
    with _start(1, max_active, MEMORY_SECONDS) as batch:
        small = batch.measure(MEMORY_WAY, max_active, MEMORY_SECONDS)
        large = batch.measure(MEMORY_WAY, count, MEMORY_SECONDS)
    extra = large["task_memory"] - small["task_memory"]
    return {**large, "title": title, "way": "memory", "extra_memory": extra}


class _BatchAirflow:
    """A running Airflow with its server, and a folder for items and outputs."""

    def __init__(self, airflow: Stack, server: Any, home: Path) -> None:
        self._airflow, self._server, self._home = airflow, server, home

    def measure(self, way: str, count: int, seconds: float) -> dict[str, Any]:
        """Run a way, and return the figures, also the maximum memory of a task's process."""
        items = self._home / f"{count}.jsonl"
        items.write_text("".join(f"{json.dumps(f'A chair, number {number}')}\n" for number in range(count)))
        conf = {"items": items.as_uri(), "output": (self._home / f"output-{count}").as_uri()}
        timeout = EXTRA_WAIT_SECONDS + count * (seconds + POKE_SECONDS + TASK_OVERHEAD_SECONDS)
        with _sample_memory(self._airflow.process("scheduler").pid) as peaks:
            figures = measure(self._airflow, self._server, way, count, timeout, conf)
        return {**figures, "items": count, "cpu_per_item": figures["cpu"] / count, "task_memory": max(peaks)}


@contextmanager
def _start(mapped: int, max_active: int, seconds: float) -> Iterator[_BatchAirflow]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        environment = {
            "FLOWS_BENCH_OUTPUT": (home / "mapped").as_uri(),
            "FLOWS_BENCH_MAX_ACTIVE": str(max_active),
        }
        started = start_airflow(seconds, mapped, POKE_SECONDS, environment, model=MODEL_BYTES)
        with started as (airflow, server):
            yield _BatchAirflow(airflow, server, home)


@contextmanager
def _sample_memory(scheduler_pid: int) -> Iterator[list[float]]:
    """Collect the resident memory of the largest process of a task, in MiB, until the end of the block."""
    peaks, has_ended = [0.0], Event()

    def sample() -> None:
        while not has_ended.wait(SAMPLE_SECONDS):
            peaks.append(max(_task_memory(scheduler_pid), default=0.0))

    thread = Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        has_ended.set()
        thread.join()


def _task_memory(scheduler_pid: int) -> Iterator[float]:
    """Yield the resident memory of each process of a task: the children of the scheduler's workers."""
    for worker in psutil.Process(scheduler_pid).children():
        try:
            for process in worker.children():
                yield process.memory_info().rss / MIB
        except psutil.NoSuchProcess:  # it has ended
            continue
