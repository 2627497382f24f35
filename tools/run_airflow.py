"""`make airflow`: run Airflow with the examples and the emulator until Ctrl-C.

The folder `.airflow/` stores runs and connections for the next start.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from tools.airflow_stack import Stack
from tools.emulator_process import EmulatorProcess
from tools.processes import ProcessDied, exit_on_sigterm, run_command

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".airflow"
_PORT = 8080  # Airflow's default port; another one if it is taken
_POLL_SECONDS = 1.0
OUTPUT = "file:///tmp/flows"  # where the examples store their outputs by default


def main() -> int:
    """Start Airflow and the emulator, print their addresses, and wait for Ctrl-C."""
    exit_on_sigterm()
    # A shell ignores SIGINT for a program in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    emulator = EmulatorProcess(FOLDER / "processes" / "emulator.log")
    stack = Stack(
        FOLDER,
        ROOT / "example_dags",
        # Airflow disables the button Test on the page of a connection by default.
        environment={"AIRFLOW__CORE__TEST_CONNECTION": "Enabled", "FLOWS_DEMO_OUTPUT": OUTPUT},
        dag_processor=True,
        port=_PORT,
    )
    try:
        print("Starting the emulator and Airflow. This takes about half a minute.", flush=True)
        emulator.start()
        with stack:
            _import_connections(stack, emulator)
            _print_addresses(stack, emulator)
            _monitor(stack, emulator)
    except KeyboardInterrupt:
        print("\nStopped.")
        return 0
    except (ProcessDied, TimeoutError) as error:
        print(f"Airflow or the emulator failed: {error}", file=sys.stderr)
        return 1
    finally:
        emulator.stop()


def _import_connections(stack: Stack, emulator: EmulatorProcess) -> None:
    """Import the connections into the metadata database, where the Connections page shows them."""
    file = FOLDER / "connections.json"
    file.write_text(json.dumps(emulator.connections(), indent=2))
    stack.airflow("connections", "import", "--overwrite", str(file))


def _print_addresses(stack: Stack, emulator: EmulatorProcess) -> None:
    print(f"""
Airflow:        {stack.address}
  user          {stack.user}
  password      {stack.password}
  connections   {", ".join(emulator.connections())}
  flow runs     {stack.address}/plugin/flow-runs, and the tab "Flow run" of each task instance
  emulator      {emulator.address}
  outputs       {stack.environment["FLOWS_DEMO_OUTPUT"]}
  logs          {stack.logs}

Ctrl-C stops everything.""", flush=True)  # fmt: skip


def _monitor(stack: Stack, emulator: EmulatorProcess) -> NoReturn:
    """Wait for Ctrl-C.

    :raises ProcessDied: the emulator or a process of Airflow has ended.
    """
    while True:
        emulator.check()
        stack.check()
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(run_command(main))
