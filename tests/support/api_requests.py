"""Record of the requests that task processes send to Airflow's API server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from airflow.sdk.api.client import Client

IN_PROCESS_HOST = "in-process.invalid."  # of the API server that `dag.test()` uses


@contextmanager
def record_api_requests() -> Iterator[list[str]]:
    """Yield a list to which each request of a task in `dag.test()` adds its method and its path's end.

    The API server is Airflow's own, in this process. Heartbeats are missing, because no supervisor sends any.
    """
    requests: list[str] = []
    send = Client.send

    def record(client: Client, request: Any, **options: Any) -> Any:  # httpx's, since Airflow 3.4 httpx2's
        if request.url.host == IN_PROCESS_HOST:
            requests.append(f"{request.method} {request.url.path.rpartition('/')[2]}")
        return send(client, request, **options)

    with mock.patch.object(Client, "send", record):
        yield requests
