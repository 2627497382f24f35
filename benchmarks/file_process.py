"""One process that moves one file one way, and writes down how long it took and how much memory it took.

It starts no server and compares nothing; files.py does.
"""

from __future__ import annotations

import argparse
import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import requests
from airflow.sdk import Connection, ObjectStoragePath  # noqa: F401  # a task has them

from airflow_provider_flows.core.run import FlowOutput, FlowRun
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.storage.output_options import Delivery
from airflow_provider_flows.storage.outputs import fetch
from benchmarks.file_uploads import given, plainly_sent, sent, sent_by_loop
from benchmarks.measures import peak_memory

WARM = (
    1024 * 1024
)  # bytes of a file that is moved first: what is imported and opened once is no part of the figure
Way = Callable[[str, int, Path], None]  # the server's address, the file's size, the folder that is ours


def fetched(address: str, size: int, folder: Path) -> None:
    """Download as operator and sensor do."""
    hook = GenerioHook()
    hook._connection = Connection(
        conn_id=hook.flows_conn_id, conn_type="generio", host=address, password="none"
    )  # noqa: SLF001, S106
    (output,) = fetch(
        hook, FlowRun("r", "generio", outputs=(FlowOutput("model", str(size)),)), Delivery(str(folder))
    ).outputs
    if output.size != size:
        raise RuntimeError(f"{output.size} bytes came of {size}")


def plainly_fetched(address: str, size: int, folder: Path) -> None:
    """Download as one does who does not think of memory."""
    answer = requests.get(
        f"{address}/flows/r/outputs/{size}", headers={"Authorization": "Bearer none"}, timeout=60
    )
    answer.raise_for_status()
    content = base64.b64decode(answer.json()["data"].partition(",")[2])
    (folder / "plain.glb").write_bytes(content)
    if len(content) != size:
        raise RuntimeError(f"{len(content)} bytes came of {size}")


# what is moved, and by whom; "plain" is what the others are compared with
WAYS: dict[str, dict[str, Way]] = {
    "download": {"ours": fetched, "plain": plainly_fetched},
    "upload": {"ours": sent, "ours, in a loop": sent_by_loop, "plain": plainly_sent},
}


def measured(way: Way, address: str, size: int, folder: Path) -> dict[str, Any]:
    """Move a small file, then the real one, and give the figures."""
    way(address, WARM, folder)
    before, cpu, began = _peak_from_now_on(), time.process_time(), time.perf_counter()
    way(address, size, folder)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "cpu": time.process_time() - cpu, "memory": _peak() - before}


def _peak_from_now_on() -> float:
    """Forget the peak of memory so far where the system can, and give what is in use, in MiB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # no Linux: the peak of the imports may hide a little
        return peak_memory()
    return psutil.Process().memory_info().rss / 2**20


def _peak() -> float:
    """Give the peak of memory, in MiB; a new process's is its own only in this table (Linux)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return peak_memory()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    """Measure one way; the figures go into a file as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.file_process", description=main.__doc__)
    parser.add_argument("--what", required=True, choices=WAYS)
    parser.add_argument("--way", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    told = parser.parse_args()
    if told.what == "upload":  # what is sent is there before
        for size in (WARM, told.size):
            given(size, told.folder)
    told.into.write_text(
        json.dumps(measured(WAYS[told.what][told.way], told.address, told.size, told.folder))
    )


if __name__ == "__main__":
    main()
