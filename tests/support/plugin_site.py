"""Airflow's API server app with the plugin, in the test process, and clients with different permissions."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest
import uvicorn
from airflow.models.connection import Connection
from airflow.utils.session import create_session
from fastapi.testclient import TestClient
from sqlalchemy import delete

# dora, carl and xena lack some permissions of their role
USERS = {"anna": "admin", "vera": "viewer", "dora": "op", "carl": "op", "xena": "op"}
SECRET = "a-secret-of-the-tests-that-is-long-enough-for-every-algorithm-there-is"


@contextmanager
def airflow_clients() -> Iterator[dict[str, TestClient]]:
    """Yield a client for each user, and one named `anonymous`; creating the app takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        # as in `airflow api-server`, so that connections come from the database too
        patch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", SECRET)
        patch.setenv(
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS",
            ",".join(f"{name}:{role}" for name, role in USERS.items()),
        )
        patch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "tests.support.plugin_rights.SingleRights")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Airflow 3.1 has warnings about its dependencies
            from airflow.api_fastapi.app import create_app, get_auth_manager
            from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

            app = create_app(apps="core")
        with TestClient(app, follow_redirects=False) as anonymous:
            clients = {"anonymous": anonymous}
            for name, role in USERS.items():
                token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=name, role=role))
                clients[name] = TestClient(app, cookies={"_token": token}, follow_redirects=False)
                clients[name].portal = anonymous.portal  # one event loop, as in a server
            yield clients


@contextmanager
def serve(client: TestClient) -> Iterator[str]:
    """Serve a client's app over HTTP, and yield its URL; requests need the client's cookies."""
    server = uvicorn.Server(
        uvicorn.Config(client.app, port=0, lifespan="off", ws="none", log_level="critical")
    )  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = server.force_exit = True
    thread.join(10)


def save_connections(connections: dict[str, dict[str, Any]]) -> None:
    """Replace all connections in Airflow's database."""
    with create_session() as session:
        session.execute(delete(Connection))
        for conn_id, fields in connections.items():
            extra = json.dumps(fields.get("extra", {}))
            session.add(
                Connection(
                    conn_id,
                    fields["conn_type"],
                    host=fields.get("host"),
                    password=fields.get("password"),
                    extra=extra,
                )
            )


def task_path(dag_id: str, run_id: str, task_id: str = "run", map_index: object = -1) -> str:
    """Return the path of a task instance's tab, relative to the app."""
    return "/".join(["task", *(quote(part, safe="") for part in (dag_id, run_id, task_id, str(map_index)))])
