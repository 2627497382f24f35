"""Runs the emulator as a process for the demo and for `make airflow`, with Airflow's connections to it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import requests

from tools.processes import LOOPBACK, Program, free_port, wait_until

_KEY = "emulator"
_START_TIMEOUT_SECONDS = 180  # a loaded machine takes a minute to import it
# The exported graphs of the emulator's PromptChainer flows, from which Airflow's pages draw a picture.
_GRAPHS = Path(__file__).resolve().parent.parent / "airflow_provider_flows" / "emulator" / "graphs"
# The connection ids that the examples use, with the type of each.
_CONNECTIONS = {
    "flows_default": "generio",
    "generio_default": "generio",
    "promptchainer_default": "promptchainer",
}


class EmulatorProcess(Program):
    """The emulator as a process, on a free port."""

    def __init__(self, log: Path, *arguments: str) -> None:
        """Choose the port.

        :param arguments: additional arguments of the emulator's command line.
        """
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
        """Start the emulator, and wait until it responds."""
        super().start()
        wait_until(self._is_ready, [self], _START_TIMEOUT_SECONDS, "The emulator's start")

    def connections(self) -> dict[str, dict[str, str]]:
        """Return the connections of the examples, by id, as Airflow imports them."""
        settings = {
            name: {"conn_type": service, "host": self.address, "password": _KEY}
            for name, service in _CONNECTIONS.items()
        }
        settings["promptchainer_default"]["extra"] = json.dumps({"graphs": _GRAPHS.as_uri()})
        return settings

    def environment(self) -> dict[str, str]:
        """Return the same connections as environment variables."""
        return {
            f"AIRFLOW_CONN_{name.upper()}": json.dumps(fields) for name, fields in self.connections().items()
        }

    def _is_ready(self) -> bool:
        with requests.Session() as session:
            session.trust_env = False  # ignore the machine's proxies
            try:
                return session.get(f"{self.address}/_emulator/health", timeout=5).ok
            except requests.ConnectionError:
                return False
