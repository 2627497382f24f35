"""A PostgreSQL server of the tests' own, from Debian's package `postgresql`.

It runs as an unprivileged user, stores its files in a temporary folder, and accepts connections on a socket
in that folder only.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

USERS = ("postgres", "nobody")  # PostgreSQL does not run as root
DRIVERS = ("psycopg2", "asyncpg")  # Airflow uses both
START_TIMEOUT_SECONDS = 60.0


def find_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, of the newest version, None if it is not installed."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if folders:
        return max(folders, key=lambda folder: [int(part) for part in re.findall(r"\d+", folder.parent.name)])
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb and shutil.which("postgres") else None


def missing_requirement() -> str | None:
    """Return what has to be installed before a `PostgreSQL` can start, None if nothing is missing."""
    if find_programs() is None:
        return "PostgreSQL is not installed: apt-get install postgresql"
    if os.geteuid() == 0 and _find_unprivileged_user() is None:
        return f"PostgreSQL does not run as root, and there is no user {' or '.join(USERS)}"
    missing = [name for name in DRIVERS if find_spec(name) is None]
    return f"The drivers of PostgreSQL are not installed: {', '.join(missing)}" if missing else None


class PostgreSQL:
    """A server, which runs from `with PostgreSQL()` to the end of the block."""

    def __init__(self) -> None:
        """Choose the folder and the user."""
        self.folder = Path(tempfile.mkdtemp(prefix="flows-postgresql-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = _find_unprivileged_user()
            assert user is not None, missing_requirement()
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def __enter__(self) -> Self:
        """Create the files of the server, start it, and wait until it accepts connections."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server, and delete its folder."""
        self.stop()

    def create_database(self) -> str:
        """Create an empty database, and return its URL for Airflow's `sql_alchemy_conn`."""
        self._databases += 1
        name = f"airflow{self._databases}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg2://airflow@/{name}?host={self.folder}"

    def execute(self, statement: str) -> None:
        """Execute an SQL statement in the server's first database."""
        import psycopg2

        connection = psycopg2.connect(host=str(self.folder), user="airflow", dbname="postgres")
        try:
            connection.autocommit = True  # a database is not created in a transaction
            connection.cursor().execute(statement)
        finally:
            connection.close()

    def stop(self) -> None:
        """Stop the server, and delete its folder."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # a shutdown that disconnects the clients
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()  # its other processes notice, and end
                self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        programs, data = find_programs(), self.folder / "data"
        assert programs is not None, missing_requirement()
        log = self.folder / "log"
        with log.open("wb") as out:
            options: dict[str, Any] = {
                "stdin": subprocess.DEVNULL,
                "stdout": out,
                "stderr": out,
                "cwd": self.folder,
                "env": {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
                **self._identity,
            }
            initdb = [programs / "initdb", "--pgdata", data, "--username", "airflow", "--auth", "trust"]
            initdb += ["--encoding", "UTF8", "--no-locale", "--no-sync"]
            result = subprocess.run(initdb, check=False, **options)
            assert result.returncode == 0, log.read_text()
            settings = {
                "listen_addresses": "",
                "unix_socket_directories": self.folder,
                # the data need not survive a crash of the machine
                "fsync": "off",
                "synchronous_commit": "off",
                "full_page_writes": "off",
                "max_connections": 200,
            }
            arguments = [item for name, value in settings.items() for item in ("-c", f"{name}={value}")]
            self._process = subprocess.Popen(
                [programs / "postgres", "-D", data, *arguments], start_new_session=True, **options
            )
        self._wait_until_ready(log)

    def _wait_until_ready(self, log: Path) -> None:
        import psycopg2

        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            try:
                self.execute("SELECT 1")
            except psycopg2.OperationalError:
                assert self._process is not None
                assert self._process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            else:
                return


def _find_unprivileged_user() -> pwd.struct_passwd | None:
    for name in USERS:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    return None
