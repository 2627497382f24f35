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
from airflow_provider_flows.storage.output_options import OutputOptions
from airflow_provider_flows.storage.outputs import fetch_outputs
from benchmarks.file_uploads import get_input_file, upload, upload_async, upload_plainly
from benchmarks.measures import peak_memory

WARM_UP_BYTES = (
    1024 * 1024
)  # bytes of a file that is moved first: what is imported and opened once is no part of the figure
Way = Callable[[str, int, Path], None]  # the server's address, the file's size, the folder that is ours


def download(address: str, size: int, folder: Path) -> None:
    """Download as operator and sensor do."""
    hook = GenerioHook()
    hook._connection = Connection(
        conn_id=hook.flows_conn_id, conn_type="generio", host=address, password="none"
    )  # noqa: SLF001, S106
    run, error = fetch_outputs(
        hook, FlowRun("r", "generio", outputs=(FlowOutput("model", str(size)),)), OutputOptions(str(folder))
    )
    if error is not None:
        raise error
    (output,) = run.outputs
    if output.size != size:
        raise RuntimeError(f"{output.size} bytes came of {size}")


def download_plainly(address: str, size: int, folder: Path) -> None:
    """Download as one does who does not think of memory."""
    response = requests.get(
        f"{address}/flows/r/outputs/{size}", headers={"Authorization": "Bearer none"}, timeout=60
    )
    response.raise_for_status()
    content = base64.b64decode(response.json()["data"].partition(",")[2])
    (folder / "plain.glb").write_bytes(content)
    if len(content) != size:
        raise RuntimeError(f"{len(content)} bytes came of {size}")


# what is moved, and by whom; "plain" is what the others are compared with
WAYS: dict[str, dict[str, Way]] = {
    "download": {"ours": download, "plain": download_plainly},
    "upload": {"ours": upload, "ours, in a loop": upload_async, "plain": upload_plainly},
}


def measure(way: Way, address: str, size: int, folder: Path) -> dict[str, Any]:
    """Move a small file, then the real one, and give the figures."""
    way(address, WARM_UP_BYTES, folder)
    before, cpu, started = _reset_peak(), time.process_time(), time.perf_counter()
    way(address, size, folder)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "cpu": time.process_time() - cpu, "memory": _peak_mib() - before}


def _reset_peak() -> float:
    """Forget the peak of memory so far where the system can, and give what is in use, in MiB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # no Linux: the peak of the imports may hide a little
        return peak_memory()
    return psutil.Process().memory_info().rss / 2**20


def _peak_mib() -> float:
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
    options = parser.parse_args()
    if options.what == "upload":  # what is sent is there before
        for size in (WARM_UP_BYTES, options.size):
            get_input_file(size, options.folder)
    options.into.write_text(
        json.dumps(measure(WAYS[options.what][options.way], options.address, options.size, options.folder))
    )


if __name__ == "__main__":
    main()
