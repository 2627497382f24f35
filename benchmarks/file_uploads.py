"""The ways to upload a file as an input: with the provider over both transports, and with `requests` only."""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path

import requests
from airflow.sdk import Connection

from airflow_provider_flows.core.flow_run import FlowInput
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.storage.inputs import parse_inputs

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NOISE = os.urandom(1024 * 1024)


def get_input_file(size: int, folder: Path) -> Path:
    """Return the path of a file of that size, and create it if it does not exist."""
    path = folder / f"{size}.png"
    if not path.exists():
        with path.open("wb") as file:
            file.write(PNG_SIGNATURE)
            for start in range(len(PNG_SIGNATURE), size, len(_NOISE)):
                file.write(_NOISE[: size - start])
    return path


def upload(address: str, size: int, folder: Path) -> None:
    """Upload as the operator does."""
    hook = _hook(address)
    hook.run(Generio().add_input("r", _read_input(get_input_file(size, folder))))


def upload_async(address: str, size: int, folder: Path) -> None:
    """Upload from an event loop."""
    hook = _hook(address)
    asyncio.run(hook.arun(Generio().add_input("r", _read_input(get_input_file(size, folder)))))


def upload_plainly(address: str, size: int, folder: Path) -> None:
    """Upload with `requests`, without regard to memory."""
    data = f"data:image/png;base64,{base64.b64encode(get_input_file(size, folder).read_bytes()).decode()}"
    headers = {"Authorization": "Bearer none"}
    requests.post(
        f"{address}/flows/r/inputs", json={"data": data}, headers=headers, timeout=600
    ).raise_for_status()


def _hook(address: str) -> GenerioHook:
    hook = GenerioHook()
    connection = Connection(conn_id=hook.flows_conn_id, conn_type="generio", host=address)
    connection.password = "none"  # noqa: S105  # not a secret
    hook._connection = connection  # noqa: SLF001  # without a lookup
    return hook


def _read_input(path: Path) -> FlowInput:
    (item,) = parse_inputs(path)  # includes reading the file for size and digest
    if isinstance(item, str):
        raise TypeError(item)
    return item
