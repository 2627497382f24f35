"""Airflow's own API server application in the test's process, with our plugin in it, and users with different rights.

It listens on no port: requests go to it as a web server would hand them over. What is behind the pages are real DAG runs.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest
from airflow.models.connection import Connection
from airflow.utils.session import create_session
from fastapi.testclient import TestClient
from sqlalchemy import delete

# dora, carl and xena lack single rights of their role (plugin_rights.py)
USERS = {"anna": "admin", "vera": "viewer", "dora": "op", "carl": "op", "xena": "op"}
SECRET = "a-secret-of-the-tests-that-is-long-enough-for-every-algorithm-there-is"


@contextmanager
def airflow_clients() -> Iterator[dict[str, TestClient]]:
    """Give a client for each user, and one for `nobody`; the app is made once, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "_AIRFLOW_PROCESS_CONTEXT", "server"
        )  # as `airflow api-server` has it: connections come from the database too
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", SECRET)
        patch.setenv(
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS",
            ",".join(f"{name}:{role}" for name, role in USERS.items()),
        )
        patch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "tests.support.plugin_rights.SingleRights")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Airflow 3.1 says of the libraries that it is made of
            from airflow.api_fastapi.app import create_app, get_auth_manager
            from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

            app = create_app(apps="core")
        with TestClient(app, follow_redirects=False) as anonymous:
            clients = {"nobody": anonymous}
            for name, role in USERS.items():
                token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=name, role=role))
                clients[name] = TestClient(app, cookies={"_token": token}, follow_redirects=False)
                clients[name].portal = anonymous.portal  # one event loop for all, as in a server
            yield clients


def save_connections(connections: dict[str, dict[str, Any]]) -> None:
    """Write connections, and no others, into Airflow's database, where its own page shows them."""
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
    """Give the end of the addresses of a task instance's tab."""
    return "/".join(["task", *(quote(part, safe="") for part in (dag_id, run_id, task_id, str(map_index)))])
