"""Benchmark 5: files of hundreds of megabytes, moved by us and plainly: how fast, and in how much memory.

Each is moved in a process of its own, to and from a server on the loopback address; how stands in file_process.py.
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
MIN_SPEED_RATIO = {"download": 2.0}  # times the plain way's
PLAIN_MEMORY_FACTOR = 6  # times the file's size in memory
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
    """Add what can be chosen."""
    group = parser.add_argument_group("files")
    group.add_argument("--only", choices=SIZES, help="download or upload (default: both)")
    group.add_argument(
        "--sizes", type=int, nargs="+", metavar="MB", help="sizes of the files (default: the issue's)"
    )
    group.add_argument(
        "--moves", type=int, help="how often each file is moved (default: 3, one of 1 GB or more once)"
    )
    group.add_argument(
        "--folder", type=Path, help="where the files are written (default: a temporary folder)"
    )


def run(options: argparse.Namespace) -> Report:
    """Move each file each way, in turns, so that what disturbs the machine disturbs all."""
    from benchmarks.file_process import WAYS  # it imports all that is measured

    report = Report(
        "files",
        "Files between the service and a disk, each in a process of its own: median, most memory",
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
        "ours also takes the SHA-256 and writes under a temporary name first; memory is what a move adds."
    )
    return report


@dataclass(frozen=True, slots=True)
class Move:
    """One file, and the way it is moved."""

    what: str
    way: str
    size: int  # MB
    address: str
    folder: Path

    def measure(self) -> dict[str, float]:
        """Move it, in a folder and a process of its own."""
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
            subprocess.run(command, env=environment, check=True, timeout=TIMEOUT_SECONDS)  # noqa: S603  # our own words
            return dict(json.loads(output_file.read_text()))


def _compare(report: Report, moves: list[Move], times: int) -> None:
    """Move a file each way, in turns, and add the figures."""
    first = moves[0]
    what = f"{first.what} of {first.size} MB"
    if psutil.virtual_memory().available < PLAIN_MEMORY_FACTOR * first.size * MB:
        report.notes.append(f"{what}: too little memory here for the plain way")
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
    ours = rows["ours"]
    report.targets.append(Target(f"{what}: MiB of memory", ours["memory"], f"<= {MAX_MEMORY_MIB}"))
    if first.what in MIN_SPEED_RATIO and ours["of_plain"]:
        report.targets.append(
            Target(
                f"{what}: times the plain way's speed", ours["of_plain"], f">= {MIN_SPEED_RATIO[first.what]}"
            )
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
