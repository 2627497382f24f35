"""Runs the tests in several environments, each with an Airflow of its own, one after the other, and tells how each of them ended.

The Makefile makes the environments; which tests an older Airflow leaves out stands in tests/support/versions.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

_VERSION_SCRIPT = "from importlib.metadata import version; print(version('apache-airflow-core'))"
_TAIL_BYTES = 4096  # bytes in which pytest's last line is found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `PYTHON... -- PYTEST_ARGUMENTS...`; give 1 if the tests failed in any of the environments."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    pythons, pytest_arguments = args[: args.index("--")], args[args.index("--") + 1 :]
    results, failed = [], False
    for python in pythons:
        airflow = subprocess.run(
            [python, "-c", _VERSION_SCRIPT], capture_output=True, text=True, check=True
        ).stdout.strip()
        print(f"Airflow {airflow}", flush=True)
        with subprocess.Popen([python, "-m", "pytest", *pytest_arguments], stdout=subprocess.PIPE) as running:
            last = _forward_output(running.stdout)
        failed = failed or running.returncode != 0
        results.append(f"Airflow {airflow}: {last}")
    print("", *results, sep="\n", flush=True)
    return int(failed)


def _forward_output(output: Any) -> str:
    """Pass on what comes as it comes, and give its last line."""
    tail = b""
    while chunk := output.read1(_TAIL_BYTES):
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        tail = (tail + chunk)[-_TAIL_BYTES:]
    lines = tail.decode(errors="replace").strip().splitlines() or ["nothing was printed"]
    return lines[-1].strip("= ")


if __name__ == "__main__":
    sys.exit(main())
