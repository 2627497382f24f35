"""A small client of Airflow's public REST API, for tests and scripts that drive a running Airflow."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any
from urllib.parse import quote

import requests

_POLL_SECONDS = 0.2
_TIMEOUT_SECONDS = 30
_FINAL_DAG_STATES = frozenset({"success", "failed"})


class AirflowApi:
    """A client of one Airflow's REST API, version 2; errors of the API raise RuntimeError."""

    def __init__(self, address: str, user: str, password: str) -> None:
        """Save the address and the credentials; the first call logs in."""
        self.address = address
        self._credentials = {"username": user, "password": password}
        self._session = requests.Session()
        self._session.trust_env = False  # ignore the machine's proxies and netrc file

    def is_healthy(self, components: Iterable[str], since: datetime) -> bool:
        """Return whether components of Airflow are healthy, each with a heartbeat after `since`."""
        try:
            response = self._session.get(f"{self.address}/api/v2/monitor/health", timeout=_TIMEOUT_SECONDS)
            response.raise_for_status()
        except requests.RequestException:
            return False
        health = response.json()
        return all(
            _is_alive(health[name], health[name].get(f"latest_{name}_heartbeat"), since)
            for name in components
        )

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None, run_id: str | None = None) -> str:
        """Start a run of a DAG and return its id."""
        body = {"logical_date": None, "conf": conf or {}} | ({"dag_run_id": run_id} if run_id else {})
        return str(self.call("POST", f"dags/{_q(dag_id)}/dagRuns", json=body).json()["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a DAG run."""
        return str(self.call("GET", f"dags/{_q(dag_id)}/dagRuns/{_q(run_id)}").json()["state"])

    def wait(self, dag_id: str, run_id: str, timeout: float) -> str:
        """Wait until a DAG run has ended, and return its state."""
        deadline = time.monotonic() + timeout
        while (state := self.run_state(dag_id, run_id)) not in _FINAL_DAG_STATES:
            if time.monotonic() > deadline:
                tasks = {ti["task_id"]: ti["state"] for ti in self.task_instances(dag_id, run_id)}
                raise TimeoutError(f"{dag_id} {run_id} is still {state} after {timeout:.0f} s: {tasks}")
            time.sleep(_POLL_SECONDS)
        return state

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the first hundred task instances of a run, as the API sends them."""
        path = f"dags/{_q(dag_id)}/dagRuns/{_q(run_id)}/taskInstances"
        return list(self.call("GET", path, params={"limit": 100}).json()["task_instances"])

    def task_state(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str | None:
        """Return the state of one task instance; None while it has none."""
        path = _task_path(dag_id, run_id, task_id) + ("" if map_index < 0 else f"/{map_index}")
        state = self.call("GET", path).json()["state"]
        return None if state is None else str(state)

    def wait_for_task(  # noqa: PLR0917  the ids of a task in Airflow's order
        self, dag_id: str, run_id: str, task_id: str, states: set[str], timeout: float, map_index: int = -1
    ) -> str:
        """Wait until a task instance is in one of the states, and return its state."""
        deadline = time.monotonic() + timeout
        while (state := self.task_state(dag_id, run_id, task_id, map_index)) not in states:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{dag_id}.{task_id} is {state}, not one of {sorted(states)}, after {timeout:.0f} s"
                )
            time.sleep(_POLL_SECONDS)
        return str(state)

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """Return the log of one try of a task instance, with one JSON object in each line."""
        path = f"{_task_path(dag_id, run_id, task_id)}/logs/{try_number}"
        params = {"full_content": "true", "map_index": str(map_index)}
        return self.call("GET", path, params=params, headers={"Accept": "application/x-ndjson"}).text

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1
    ) -> Any:
        """Return one XCom of a task instance: a plain value as it was pushed, any other in Airflow's JSON."""
        # Without `deserialize`, with which the API would parse the text "7" as a number.
        path = f"{_task_path(dag_id, run_id, task_id)}/xcomEntries/{_q(key)}"
        params = {"map_index": str(map_index), "deserialize": "false", "stringify": "false"}
        return self.call("GET", path, params=params).json()["value"]

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str, map_index: int = -1) -> None:
        """Set the state of a task instance, like the button "Mark as"."""
        path = _task_path(dag_id, run_id, task_id) + ("" if map_index < 0 else f"/{map_index}")
        self.call("PATCH", path, json={"new_state": state})

    def clear(
        self, dag_id: str, run_id: str, *task_ids: str | tuple[str, int], keep_task_state: bool = False
    ) -> None:
        """Clear tasks of a run, or all of them if no id is passed, so that they run again.

        :param task_ids: ids of tasks, or of mapped task instances with their map indices.
        :param keep_task_state: whether Airflow keeps what the tasks have in the task state store; Airflow 3.4
            and later delete it otherwise.
        """
        body: dict[str, Any] = {"dry_run": False, "dag_run_id": run_id, "only_failed": False}
        if task_ids:
            body["task_ids"] = list(task_ids)
        if keep_task_state:
            body["keep_task_state"] = True
        self.call("POST", f"dags/{_q(dag_id)}/clearTaskInstances", json=body)

    def clear_run(self, dag_id: str, run_id: str) -> None:
        """Clear a DAG run, so that all of its tasks run again."""
        body = {"dry_run": False, "only_failed": False}
        self.call("POST", f"dags/{_q(dag_id)}/dagRuns/{_q(run_id)}/clear", json=body)

    def pause(self, dag_id: str) -> None:
        """Pause a DAG."""
        self.call("PATCH", f"dags/{_q(dag_id)}", json={"is_paused": True})

    def unpause(self, dag_id: str) -> None:
        """Unpause a DAG."""
        self.call("PATCH", f"dags/{_q(dag_id)}", json={"is_paused": False})

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request to the API.

        :param path: path below `/api/v2/`.
        :param options: arguments of `requests.Session.request`.
        :raises RuntimeError: the response is an error; the message contains its body.
        """
        if "Authorization" not in self._session.headers:
            self._log_in()
        response = self._session.request(
            method, f"{self.address}/api/v2/{path}", timeout=_TIMEOUT_SECONDS, **options
        )
        if not response.ok:
            raise RuntimeError(f"{method} {path}: {response.status_code} {response.text[:2000]}")
        return response

    def _log_in(self) -> None:
        response = self._session.post(
            f"{self.address}/auth/token", json=self._credentials, timeout=_TIMEOUT_SECONDS
        )
        response.raise_for_status()
        self._session.headers["Authorization"] = f"Bearer {response.json()['access_token']}"


def _is_alive(component: dict[str, Any], heartbeat: str | None, since: datetime) -> bool:
    # Airflow reports a process that died as healthy while its last heartbeat is recent.
    return (
        component["status"] == "healthy"
        and heartbeat is not None
        and datetime.fromisoformat(heartbeat) >= since
    )


def _q(part: str) -> str:
    return quote(part, safe="")


def _task_path(dag_id: str, run_id: str, task_id: str) -> str:
    return f"dags/{_q(dag_id)}/dagRuns/{_q(run_id)}/taskInstances/{_q(task_id)}"
