"""The settings of an isolated Airflow: environment variables, user and secrets.

Airflow settings of the surrounding shell are not inherited.
"""

from __future__ import annotations

import json
import os
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path

from tools.processes import LOOPBACK

USER = "admin"

# The prefix of all Airflow settings and connections that the surrounding shell may have.
_AIRFLOW_PREFIX = "AIRFLOW_"


def own_environment(home: Path, dags_folder: Path) -> dict[str, str]:
    """Return the environment in which an Airflow command uses the folder `home` and no other Airflow."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_AIRFLOW_PREFIX)}
    bypass = ",".join(filter(None, (LOOPBACK, "localhost", os.environ.get("NO_PROXY"))))
    return environment | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags_folder),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "NO_PROXY": bypass,
        "no_proxy": bypass,
        "PYTHONUNBUFFERED": "1",
    }


def server_settings(home: Path, port: int, password: str, parallelism: int) -> dict[str, str]:
    """Return the settings that the processes of one Airflow share: address, secrets and users."""
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps({USER: password}))
    passwords.chmod(0o600)
    address = f"http://{LOOPBACK}:{port}"
    return {
        "AIRFLOW__API__BASE_URL": address,
        "AIRFLOW__API__HOST": LOOPBACK,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(64),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{address}/execution/",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__FERNET_KEY": _fernet_key(home),
        "AIRFLOW__CORE__PARALLELISM": str(parallelism),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
    }


def _fernet_key(home: Path) -> str:
    """Return the key that encrypts values in this Airflow's database, the same at each start.

    Without this setting each process would read the key from airflow.cfg, which the first process writes:
    a process that starts at the same time would read none.
    """
    key_file = home / "fernet.key"
    if not key_file.exists():
        key_file.touch(mode=0o600)
        key_file.write_text(urlsafe_b64encode(secrets.token_bytes(32)).decode())
    return key_file.read_text()


def tuning() -> Mapping[str, str]:
    """Return the settings with which a small Airflow reacts within a second instead of several."""
    return {
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    }
