"""Starts the emulator of both services for the demo and for `make airflow`, and tells how Airflow connects to it.

What the emulator does is its own affair; nothing of it is imported here.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import requests

from tools.processes import LOOPBACK, Program, free_port, wait_until

_KEY = "emulator"
_START_TIMEOUT = 60
# The exported graphs of the flows that the emulator knows: with them Airflow shows a flow's picture.
_GRAPHS = Path(__file__).resolve().parent.parent / "airflow_provider_flows" / "emulator" / "graphs"
# Which connection ids exist in the examples, and which service stands behind each.
_CONNECTIONS = {
    "flows_default": "generio",
    "generio_default": "generio",
    "promptchainer_default": "promptchainer",
}


class EmulatorProcess(Program):
    """The emulator as a process of its own, on a free port."""

    def __init__(self, log: Path, *arguments: str) -> None:
        """Choose the port; `arguments` go to the emulator's own command line."""
        port = free_port()
        self.address = f"http://{LOOPBACK}:{port}"
        command = [
            sys.executable,
            "-m",
            "airflow_provider_flows.emulator",
            "--port",
            str(port),
            "--key",
            _KEY,
        ]
        super().__init__("the emulator", [*command, *arguments], dict(os.environ), log)

    def start(self) -> None:
        """Start it and wait until it answers."""
        super().start()
        wait_until(self._is_ready, [self], _START_TIMEOUT, "The emulator's start")

    def connections(self) -> dict[str, dict[str, str]]:
        """Describe the connections of the examples, by their ids, in Airflow's own words."""
        settings = {
            name: {"conn_type": service, "host": self.address, "password": _KEY}
            for name, service in _CONNECTIONS.items()
        }
        settings["promptchainer_default"]["extra"] = json.dumps({"graphs": _GRAPHS.as_uri()})
        return settings

    def environment(self) -> dict[str, str]:
        """Write the same connections as environment variables."""
        return {
            f"AIRFLOW_CONN_{name.upper()}": json.dumps(fields) for name, fields in self.connections().items()
        }

    def _is_ready(self) -> bool:
        with requests.Session() as session:
            session.trust_env = False  # a proxy of the machine has no say on the loopback
            try:
                return session.get(f"{self.address}/_emulator/health", timeout=5).ok
            except requests.ConnectionError:
                return False
