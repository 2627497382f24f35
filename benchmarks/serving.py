"""Start the service of the benchmarks as a process, and control it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from tools.processes import LOOPBACK, Program, free_port, wait_until

START_SECONDS = 30
_OPENER = build_opener(ProxyHandler({}))  # no proxy for the loopback interface


class FlowServer(Program):
    """The service on a free port; arguments go to its command line as `--name value`."""

    def __init__(self, log: Path, **arguments: object) -> None:
        """Select a port."""
        port = free_port()
        self.address = f"http://{LOOPBACK}:{port}"
        options = [option for name, value in arguments.items() for option in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "benchmarks.flow_server", "--port", str(port), *options]
        super().__init__("the benchmarks' service", command, dict(os.environ), log)

    def start(self) -> None:
        """Start it, and wait until it responds."""
        super().start()
        wait_until(self._is_ready, [self], START_SECONDS, "The start of the benchmarks' service")

    def report(self) -> dict[str, Any]:
        """Return the requests by kind, and the CPU seconds of the server."""
        return send_control(self.address, "report")

    def _is_ready(self) -> bool:
        try:
            self.report()
        except (URLError, ConnectionError):
            return False
        return True


def start_runs(address: str, origin: float) -> None:
    """Start the scripted runs at `origin` (epoch seconds), and count requests from now on."""
    send_control(address, f"start?at={origin!r}")


def send_control(address: str, command: str) -> dict[str, Any]:
    """Send a control request, and return its response."""
    with _OPENER.open(f"{address}/_bench/{command}", timeout=START_SECONDS) as response:
        return dict(json.load(response))


def seconds_until(timestamp: float) -> float:
    """Return the seconds until a time in epoch seconds, at least 0."""
    return max(0.0, timestamp - time.time())
