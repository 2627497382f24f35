"""The marker of an account whose quota is used up, in a file that all processes of a user on this host share.

Mapped tasks are processes of their own. Without the marker each of them would create, fill and delete a flow
run, only to learn what the first one has learned.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import pbkdf2_hmac
from pathlib import Path
from typing import Any

from airflow_provider_flows.core.exceptions import FlowQuotaExceeded

MARKER_SECONDS = 300.0
MAX_MARKER_BYTES = 64 * 1024
FOLDER = Path(tempfile.gettempdir()) / f"airflow_provider_flows-{os.getuid()}"
DIGEST_ITERATIONS = 100_000  # some 50 ms, spent only while some account's quota is used up


@dataclass(frozen=True, slots=True)
class Mark:
    """What a marker holds; the field names are the keys in the file.

    :param set_at: epoch seconds of the rejection.
    :param message: the error's message.
    """

    set_at: float
    message: str

    def is_valid(self, now: float) -> bool:
        """Return whether starts are still to be rejected."""
        return 0 <= now - self.set_at < MARKER_SECONDS


# Of this process, by file name, used only where a file cannot be written.
_MARKS: dict[str, Mark] = {}


class QuotaMarker:
    """The marker of one API key at one service.

    :param service: the service's name.
    :param base_url: the host of the connection.
    :param secrets: the API key. The file's name contains a slow digest of it, from which it cannot be found.
    """

    def __init__(self, service: str, base_url: str, secrets: Sequence[str]) -> None:
        self._account, self._secrets = f"{service} {base_url}", secrets

    def raise_if_set(self, what: str) -> None:
        """Raise the error if a request of the last minutes was rejected because the quota is used up.

        :param what: what is not done now, for the message.
        :raises FlowQuotaExceeded: it was.
        """
        now = time.time()
        if not _MARKS and not _has_file():
            return
        _delete_expired_files(now)
        path = self._path()
        mark = _MARKS.get(path.name) or _read(path)
        if mark is None or not mark.is_valid(now):
            self.clear()
            return
        until = datetime.fromtimestamp(mark.set_at + MARKER_SECONDS, UTC)
        message = (
            f"{what}, and nothing was sent, because the quota or credit of this API key was used up "
            f"{now - mark.set_at:.0f} s ago. Flows are started again from {until:%H:%M:%S} UTC on, at once "
            f"with another API key, or when the file {path} is deleted. What the service responded: "
            f"{mark.message}"
        )
        raise FlowQuotaExceeded(message)

    def set(self, error: FlowQuotaExceeded) -> None:
        """Save that a request was rejected, for this process and the others of this host."""
        mark, path = Mark(time.time(), str(error)), self._path()
        try:
            _write(path, mark)
        except OSError:
            _MARKS[path.name] = mark
        else:
            _MARKS.pop(path.name, None)

    def clear(self) -> None:
        """Delete the marker, because a flow was started or because it has expired."""
        if not _MARKS and not _has_file():
            return
        path = self._path()
        _MARKS.pop(path.name, None)
        with suppress(OSError):
            path.unlink(missing_ok=True)

    def _path(self) -> Path:
        return FOLDER / f"quota-{_digest(tuple(self._secrets), self._account)}.json"


@lru_cache(maxsize=16)  # a batch asks before each start
def _digest(secrets: tuple[str, ...], account: str) -> str:
    key = "\0".join(secrets).encode()
    return pbkdf2_hmac("sha256", key, account.encode(), DIGEST_ITERATIONS, dklen=16).hex()


def _is_private_folder() -> bool:
    """Return whether only this user can have written what is in the folder.

    :raises OSError: there is no folder.
    """
    status = FOLDER.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def _has_file() -> bool:
    """Return whether any account has a marker; usually none has, and no digest is needed."""
    try:
        return _is_private_folder() and any(FOLDER.iterdir())
    except OSError:
        return False


def _delete_expired_files(now: float) -> None:
    """Delete the files of all accounts that no process takes into account any more."""
    with suppress(OSError):
        for file in FOLDER.iterdir():
            if now - file.lstat().st_mtime >= MARKER_SECONDS:
                file.unlink(missing_ok=True)


def _read(path: Path) -> Mark | None:
    try:
        with path.open("rb") as file:
            data: Any = json.loads(file.read(MAX_MARKER_BYTES))
        return Mark(float(data["set_at"]), str(data["message"]))
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _write(path: Path, mark: Mark) -> None:
    """Write the file, so that no process reads a part of it.

    :raises OSError: it cannot be written, or the folder is not only this user's.
    """
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    if not _is_private_folder():
        message = f"{FOLDER} belongs to another user, or others can write to it"
        raise PermissionError(message)
    descriptor, temporary_name = tempfile.mkstemp(dir=FOLDER, prefix=".new-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(mark), file)
        Path(temporary_name).replace(path)
    except BaseException:
        Path(temporary_name).unlink(missing_ok=True)
        raise
