"""`make airflow`: a whole Airflow with the examples and the emulator, to look at and to play with until Ctrl-C.

Its folder `.airflow/` stays, with runs and connections, from one time to the next; it is not meant for production.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from tools.airflow_stack import Stack
from tools.processes import ProcessDied, exit_on_sigterm
from tools.stand_in import EmulatorProcess

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".airflow"
_PORT = 8080  # where people look for an Airflow; any other if it is taken
_POLL_SECONDS = 1.0
OUTPUT = "file:///tmp/flows"  # where the examples write to, unless a DAG run is told otherwise


def main() -> int:
    """Start everything, say where it is, and wait for Ctrl-C."""
    exit_on_sigterm()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell that starts us in the background has it ignored
    emulator = EmulatorProcess(FOLDER / "processes" / "emulator.log")
    stack = Stack(
        FOLDER,
        ROOT / "example_dags",
        # People press Test on the connection's page; Airflow has the button switched off unless told.
        environment={"AIRFLOW__CORE__TEST_CONNECTION": "Enabled", "FLOWS_DEMO_OUTPUT": OUTPUT},
        dag_processor=True,
        port=_PORT,
    )
    try:
        print("Starting the emulator and Airflow; this takes about half a minute.", flush=True)
        emulator.start()
        with stack:
            _connect(stack, emulator)
            _print_addresses(stack, emulator)
            _monitor(stack, emulator)
    except KeyboardInterrupt:
        print("\nStopped.")
        return 0
    except (ProcessDied, TimeoutError) as error:
        print(f"Airflow could not be kept running: {error}", file=sys.stderr)
        return 1
    finally:
        emulator.stop()


def _connect(stack: Stack, emulator: EmulatorProcess) -> None:
    """Write the connections into the metadata database, where the Connections page shows them."""
    file = FOLDER / "connections.json"
    file.write_text(json.dumps(emulator.connections(), indent=2))
    stack.airflow("connections", "import", "--overwrite", str(file))


def _print_addresses(stack: Stack, emulator: EmulatorProcess) -> None:
    print(f"""
Airflow is up:  {stack.address}
  user          {stack.user}
  password      {stack.password}
  connections   {", ".join(emulator.connections())}
  flow runs     {stack.address}/plugin/flow-runs, and the tab "Flow run" of each task
  emulator      {emulator.address}
  outputs       {stack.environment["FLOWS_DEMO_OUTPUT"]}
  logs          {stack.logs}

Ctrl-C stops everything.""", flush=True)  # fmt: skip


def _monitor(stack: Stack, emulator: EmulatorProcess) -> NoReturn:
    """Stay until Ctrl-C, or until something that is needed has died."""
    while True:
        emulator.check()
        stack.check()
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
