"""A process that moves one file in one way, and writes the time and the memory that it took."""

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

from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.storage.output_options import OutputOptions
from airflow_provider_flows.storage.outputs import fetch_outputs
from benchmarks.file_uploads import get_input_file, upload, upload_async, upload_plainly
from benchmarks.measures import peak_memory

# the size of a file that is moved first, so that the figures do not include imports
WARM_UP_BYTES = 1024 * 1024
Way = Callable[[str, int, Path], None]  # the server's address, the file's size, a temporary folder


def download(address: str, size: int, folder: Path) -> None:
    """Download as the operator and the sensor do."""
    hook = GenerioHook()
    connection = Connection(conn_id=hook.flows_conn_id, conn_type="generio", host=address)
    connection.password = "none"  # noqa: S105  # not a secret
    hook._connection = connection  # noqa: SLF001  # without a lookup
    run, error = fetch_outputs(
        hook, FlowRun("r", "generio", outputs=(FlowOutput("model", str(size)),)), OutputOptions(str(folder))
    )
    if error is not None:
        raise error
    (output,) = run.outputs
    if output.size != size:
        raise RuntimeError(f"{output.size} of {size} bytes arrived")


def download_plainly(address: str, size: int, folder: Path) -> None:
    """Download with `requests`, without regard to memory."""
    response = requests.get(
        f"{address}/flows/r/outputs/{size}", headers={"Authorization": "Bearer none"}, timeout=60
    )
    response.raise_for_status()
    content = base64.b64decode(response.json()["data"].partition(",")[2])
    (folder / "plain.glb").write_bytes(content)
    if len(content) != size:
        raise RuntimeError(f"{len(content)} of {size} bytes arrived")


# the ways to move a file; "plain" is the reference
WAYS: dict[str, dict[str, Way]] = {
    "download": {"provider": download, "plain": download_plainly},
    "upload": {"provider": upload, "provider, asyncio": upload_async, "plain": upload_plainly},
}


def measure(way: Way, address: str, size: int, folder: Path) -> dict[str, Any]:
    """Move a small file, then the file, and return the figures."""
    warm_up_folder = folder / "warm-up"
    warm_up_folder.mkdir(exist_ok=True)
    way(address, WARM_UP_BYTES, warm_up_folder)
    before, cpu, started = _reset_peak(), time.process_time(), time.perf_counter()
    way(address, size, folder)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "cpu": time.process_time() - cpu, "memory": _peak_mib() - before}


def _reset_peak() -> float:
    """Reset the peak of memory if the system can, and return the memory in use, in MiB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux: the peak of the imports may be higher
        return peak_memory()
    return psutil.Process().memory_info().rss / 2**20


def _peak_mib() -> float:
    """Return the peak of memory of this process, in MiB; on Linux `ru_maxrss` may be the parent's."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return peak_memory()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    """Measure one way, and write the figures to a file as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.file_process", description=main.__doc__)
    parser.add_argument("--what", required=True, choices=WAYS)
    parser.add_argument("--way", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    options = parser.parse_args()
    if options.what == "upload":  # the file is created before the measurement
        for size in (WARM_UP_BYTES, options.size):
            get_input_file(size, options.folder)
    options.into.write_text(
        json.dumps(measure(WAYS[options.what][options.way], options.address, options.size, options.folder))
    )


if __name__ == "__main__":
    main()
