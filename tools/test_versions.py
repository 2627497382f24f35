"""Runs the tests in environments with several versions of Airflow and Python, and prints the result of each.

The Makefile creates the environments. tests/support/versions.py says which tests need a newer Airflow.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tools.processes import run_command

_VERSIONS_SCRIPT = """
from importlib.metadata import version
from platform import python_version

print(f"Airflow {version('apache-airflow-core')}, Python {python_version()}")
"""
_TAIL_BYTES = 4096  # enough to contain pytest's last line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run pytest with each interpreter, and return 1 if tests failed in any environment.

    :param arguments: `PYTHON... -- PYTEST_ARGUMENTS...`
    """
    args = list(sys.argv[1:] if arguments is None else arguments)
    pythons, pytest_arguments = args[: args.index("--")], args[args.index("--") + 1 :]
    results, failed = [], False
    for python in pythons:
        versions = subprocess.run(
            [python, "-c", _VERSIONS_SCRIPT], capture_output=True, text=True, check=True
        ).stdout.strip()
        print(versions, flush=True)
        with subprocess.Popen([python, "-m", "pytest", *pytest_arguments], stdout=subprocess.PIPE) as process:
            last_line = _forward_output(process.stdout)
        failed = failed or process.returncode != 0
        results.append(f"{versions}: {last_line}")
    print("", *results, sep="\n", flush=True)
    return int(failed)


def _forward_output(output: Any) -> str:
    """Copy the output to standard output as it arrives, and return its last line."""
    tail = b""
    while chunk := output.read1(_TAIL_BYTES):
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        tail = (tail + chunk)[-_TAIL_BYTES:]
    lines = tail.decode(errors="replace").strip().splitlines() or ["no output"]
    return lines[-1].strip("= ")


if __name__ == "__main__":
    sys.exit(run_command(main))
