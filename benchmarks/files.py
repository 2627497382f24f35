"""Benchmark 5: speed and memory of moving large files, with the provider and with `requests` only.

Each file is moved in a new process, to or from a server on the loopback interface.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.file_server import FileServer
from benchmarks.reporting import Column, Report, Target, ratio
from tools.airflow_settings import own_environment

MB = 1_000_000
SIZES = {"download": (200, 2000), "upload": (500,)}  # MB
QUICK_SIZES = {"download": (20,), "upload": (20,)}
MAX_MEMORY_MIB = 32  # MiB
MIN_SPEED_RATIO = {"download": 2.0}  # of the plain way's speed
PLAIN_MEMORY_FACTOR = 6  # memory of the plain way, in file sizes
TIMEOUT_SECONDS = 900
COLUMNS = (
    Column("what", "what"),
    Column("MB", "size", ",.0f"),
    Column("way", "way"),
    Column("seconds", "seconds", ".2f"),
    Column("MB/s", "speed", ".0f"),
    Column("of plain", "of_plain", ".2f"),
    Column("CPU s", "cpu", ".2f"),
    Column("memory MiB", "memory", ",.1f"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    group = parser.add_argument_group("files")
    group.add_argument("--only", choices=SIZES, help="download or upload (default: both)")
    group.add_argument(
        "--sizes", type=int, nargs="+", metavar="MB", help=f"sizes of the files (default: {SIZES})"
    )
    group.add_argument("--moves", type=int, help="repetitions of each file (default: 3, from 1 GB on 1)")
    group.add_argument("--folder", type=Path, help="folder of the files (default: a temporary folder)")


def run(options: argparse.Namespace) -> Report:
    """Move each file in each way, in turns, so that disturbances of the machine affect all ways."""
    from benchmarks.file_process import WAYS  # it imports the provider

    report = Report(
        "files",
        "Files between the service and a disk, each in a new process: median time, maximum memory",
        COLUMNS,
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        server = FileServer(Path(folder) / "server.log")
        server.start()
        try:
            for what in [options.only] if options.only else WAYS:
                for size in options.sizes or (QUICK_SIZES if options.quick else SIZES)[what]:
                    moves = options.moves or (1 if options.quick or size >= 1000 else 3)
                    _compare(
                        report,
                        [Move(what, way, size, server.address, Path(folder)) for way in WAYS[what]],
                        moves,
                    )
        finally:
            server.stop()
    report.notes.append(
        "the provider also computes the SHA-256 and uses a temporary name; memory: added by the move."
    )
    return report


@dataclass(frozen=True, slots=True)
class Move:
    """A file, and the way to move it."""

    what: str
    way: str
    size: int  # MB
    address: str
    folder: Path

    def measure(self) -> dict[str, float]:
        """Move it in a new process, and return the figures."""
        with tempfile.TemporaryDirectory(dir=self.folder) as own:
            output_file = Path(own) / "figures.json"
            options = {
                "what": self.what,
                "way": self.way,
                "size": self.size * MB,
                "address": self.address,
                "folder": own,
                "into": output_file,
            }
            command = [sys.executable, "-m", "benchmarks.file_process"]
            command += [argument for name, value in options.items() for argument in (f"--{name}", str(value))]
            environment = own_environment(self.folder, self.folder)
            subprocess.run(command, env=environment, check=True, timeout=TIMEOUT_SECONDS)  # noqa: S603  # a fixed command
            return dict(json.loads(output_file.read_text()))


def _compare(report: Report, moves: list[Move], times: int) -> None:
    """Move a file in each way, in turns, and add the figures to the report."""
    first = moves[0]
    what = f"{first.what} of {first.size} MB"
    if psutil.virtual_memory().available < PLAIN_MEMORY_FACTOR * first.size * MB:
        report.notes.append(f"{what}: not enough memory for the plain way")
        moves = [move for move in moves if move.way != "plain"]
    found: dict[str, list[dict[str, float]]] = {move.way: [] for move in moves}
    for _ in range(times):
        for move in moves:
            found[move.way].append(move.measure())
    rows = {move.way: _row(move, found[move.way]) for move in moves}
    plain = rows["plain"]["speed"] if "plain" in rows else 0.0
    for row in rows.values():
        row["of_plain"] = ratio(row["speed"], plain)
        report.rows.append(row)
    own = rows["provider"]
    report.targets.append(Target(f"{what}: MiB of memory", own["memory"], f"<= {MAX_MEMORY_MIB}"))
    if first.what in MIN_SPEED_RATIO and own["of_plain"]:
        report.targets.append(
            Target(f"{what}: speed, of the plain way's", own["of_plain"], f">= {MIN_SPEED_RATIO[first.what]}")
        )


def _row(move: Move, figures: list[dict[str, float]]) -> dict[str, Any]:
    seconds, cpu = (statistics.median(each[key] for each in figures) for key in ("seconds", "cpu"))
    known = {
        "what": move.what,
        "size": move.size,
        "way": move.way,
        "seconds": seconds,
        "speed": move.size / seconds,
    }
    return {**known, "cpu": cpu, "memory": max(each["memory"] for each in figures)}
