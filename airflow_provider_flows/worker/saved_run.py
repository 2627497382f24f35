"""Storage of a complete run for a retry, of any size: in Airflow's task state store, or below `output_path`.

The run is paid for, and its service may be unable to return it a second time, so nothing is omitted. A signed
link to an output is a secret. A retry needs it, and users who may see the task in Airflow must not have it:
its query is encrypted with the connection's API key.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf

from airflow_provider_flows.core.redaction import redact_path
from airflow_provider_flows.storage.atomic_file import PartialFile
from airflow_provider_flows.storage.paths import get_file_path, to_object_path, to_uri

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath
    from cryptography.fernet import Fernet

log = logging.getLogger(__name__)

# of one value: what every database of Airflow stores, also if Airflow's own limit is off or larger
MAX_VALUE_BYTES = 1024 * 1024
MIN_VALUE_BYTES = 512  # a smaller limit would be one for the record itself, which cannot be split
QUOTES_BYTES = 2  # of a string in JSON
SEALED = "sealed="  # in place of the query of a link, with its encrypted form
SCRYPT_COST = 2**14  # 50 ms and 16 MiB: keys are random, but a self-hosted service may have a short one


def max_value_bytes() -> int:
    """Return the size up to which a value is stored in one piece, in bytes of JSON.

    Airflow's limit (`[state_store] max_value_storage_bytes`) rejects larger values only at its REST API. It
    logs a warning for a worker's, and a custom backend may reject them.
    """
    limit = int(conf.getint("state_store", "max_value_storage_bytes", fallback=0))
    return min(max(limit, MIN_VALUE_BYTES), MAX_VALUE_BYTES) if limit > 0 else MAX_VALUE_BYTES


def fits(value: Any) -> bool:
    """Return whether a value is stored in one piece; its size is measured as Airflow does."""
    return len(json.dumps(value)) <= max_value_bytes()


@dataclass(frozen=True, slots=True)
class SavedRunStorage:
    """Where the complete run of a record is stored, if the record would be too large with it.

    The record then has a reference in its place: `part_key_prefix`, `parts` (their number) and `sha256`, or
    `uri` and `sha256` for a file. A run is plain JSON (`FlowRun.to_record`).

    :param store: Airflow's task state store.
    :param key: the record's key, with which the keys of the parts start.
    :param output_path: the folder of the file; None for no file.
    :param output_conn_id: the Airflow connection of that folder.
    """

    store: Any
    key: str
    output_path: str | None = None
    output_conn_id: str | None = None

    def save_in_parts(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Store a run as several values, and return the reference to them.

        The record must be saved afterwards, so that it never names parts that are not stored. The keys differ
        for each run, so that the parts that the last record names are not overwritten.

        :raises Exception: any error of the store; no part remains if the store can delete them.
        """
        # compressed, and in base64: the JSON of a text would need a varying number of bytes in a JSON string
        text = base64.b64encode(zlib.compress(_to_json(run).encode())).decode()
        digest, size = get_digest(run), max_value_bytes() - QUOTES_BYTES
        parts = [text[start : start + size] for start in range(0, len(text), size)]
        reference = {
            "part_key_prefix": f"{self.key}_part_{digest[:12]}_",
            "parts": len(parts),
            "sha256": digest,
        }
        try:
            for part_key, part in zip(_part_keys(reference), parts, strict=True):
                self.store.set(part_key, part)
        except Exception:
            self.delete(reference)
            raise
        return reference

    def save_in_file(self, token: str, run: Mapping[str, Any]) -> dict[str, Any]:
        """Store a run in a file below `output_path`, and return the reference to it.

        :param token: of the record, which names the file.
        :raises OSError: the file could not be written; nothing remains of it.
        """
        path = self._file_path(token)
        with PartialFile(path.parent, f"flow_run_{token}") as file:
            file.restart()
            file.write(json.dumps({"sha256": get_digest(run), "flow_run": run}).encode())
            file.commit(path, may_replace=True)  # the token is the record's own
        return {"uri": to_uri(path), "sha256": get_digest(run)}

    def load(self, reference: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the run of a reference; None if it is missing, incomplete or another one.

        :raises Exception: any error of the task state store.
        """
        if "uri" in reference:
            return self._load_file(str(reference["uri"]), str(reference.get("sha256")))
        parts = [self.store.get(part_key) for part_key in _part_keys(reference)]
        with suppress(ValueError, TypeError, zlib.error):  # a part is missing, or is not from this provider
            run = json.loads(zlib.decompress(base64.b64decode("".join(parts), validate=True)))
            if isinstance(run, dict) and get_digest(run) == reference.get("sha256"):
                return run
        return None

    def find_file(self, token: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return the run in the file of a record that has no reference to it, with the reference.

        A try leaves such a file if the store failed after the file was written.
        """
        if self.output_path is None:
            return None
        uri = to_uri(self._file_path(token))
        run = self._load_file(uri, None)
        return None if run is None else (run, {"uri": uri, "sha256": get_digest(run)})

    def delete(self, reference: Mapping[str, Any]) -> None:
        """Delete what a reference names; an error is logged only, because nothing depends on it."""
        try:
            if "uri" in reference:
                self._path(str(reference["uri"])).unlink(missing_ok=True)
                return
            for part_key in _part_keys(reference):
                self.store.delete(part_key)
        except Exception as error:  # noqa: BLE001  # a store may raise anything
            log.info("The saved response could not be deleted completely (%s)", type(error).__name__)

    def delete_file(self, token: str) -> None:
        """Delete the file of a record, if there is one; an error is logged only."""
        self.delete({"uri": to_uri(self._file_path(token))})

    def _file_path(self, token: str) -> ObjectStoragePath:
        """Return the path of a record's file. No output has a name with a dot at its start."""
        folder = to_object_path(str(self.output_path), self.output_conn_id)
        return folder / f".flow_run_{token}.json"

    def _path(self, uri: str) -> ObjectStoragePath:
        return get_file_path(uri, self.output_path or uri, self.output_conn_id)

    def _load_file(self, uri: str, sha256: str | None) -> dict[str, Any] | None:
        """Return the run in a file; None if there is no such file, or one that cannot be read."""
        try:
            path = self._path(uri)
            # not `path.read_bytes`, which would report the file to Airflow's lineage
            content = json.loads(path.fs.cat_file(path.path))
            run, digest = content["flow_run"], content["sha256"]
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001  # any error of the store, or of a damaged file
            log.info("%s cannot be read (%s)", redact_path(uri), type(error).__name__)
            return None
        return run if isinstance(run, dict) and get_digest(run) == digest == (sha256 or digest) else None


def is_reference(saved_run: Any) -> bool:
    """Return whether a record has a reference in place of its complete run."""
    return isinstance(saved_run, Mapping) and ("uri" in saved_run or "part_key_prefix" in saved_run)


def is_same_place(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether two references name the same file or the same parts."""
    return all(first.get(name) == second.get(name) for name in ("uri", "part_key_prefix"))


def seal_links(run: Mapping[str, Any], secrets: Sequence[str]) -> dict[str, Any]:
    """Return a saved run with the queries of its outputs' links encrypted; a link remains without its query.

    :param run: as `FlowRun.to_record` returns it.
    :param secrets: the API key (`Settings.secrets`).
    """

    def seal(query: str, fernet: Fernet) -> str:
        return SEALED + fernet.encrypt(query.encode("utf-8", "surrogatepass")).decode()

    return _replace_queries(run, secrets, seal)


def open_links(run: Mapping[str, Any], secrets: Sequence[str]) -> dict[str, Any]:
    """Return the run that `seal_links` has sealed.

    A link remains without its query, and this is logged, if it was sealed with another key.
    """
    from cryptography.fernet import InvalidToken  # takes longer to import than all of the provider

    def open_sealed(query: str, fernet: Fernet) -> str:
        if not query.startswith(SEALED):
            return query
        try:
            return fernet.decrypt(query.removeprefix(SEALED).encode()).decode("utf-8", "surrogatepass")
        except InvalidToken:
            log.warning(
                "A link in the outputs of flow run %s was saved with another API key than the connection has "
                "now, so its file cannot be fetched any more",
                run.get("flow_run_id"),
            )
            return ""

    return _replace_queries(run, secrets, open_sealed)


def _replace_queries(
    run: Mapping[str, Any], secrets: Sequence[str], replace_query: Callable[[str, Fernet], str]
) -> dict[str, Any]:
    """Return a saved run with another query in each link, without one where it is empty."""
    outputs = [*run["outputs"]]
    fernet: Fernet | None = None
    for index, output in enumerate(outputs):
        link, _, query = str(output.get("value") or "").partition("?")
        if output.get("is_url") and query:
            fernet = fernet or _create_fernet(secrets)
            new_query = replace_query(query, fernet)
            outputs[index] = {**output, "value": f"{link}?{new_query}" if new_query else link}
    return {**run, "outputs": outputs}


def _create_fernet(secrets: Sequence[str]) -> Fernet:
    from cryptography.fernet import Fernet  # see `open_links`

    password = "\0".join(secrets).encode()
    key = hashlib.scrypt(
        password, salt=b"airflow-provider-flows, saved link", n=SCRYPT_COST, r=8, p=1, dklen=32
    )
    return Fernet(base64.urlsafe_b64encode(key))


def _part_keys(reference: Mapping[str, Any]) -> list[str]:
    return [f"{reference['part_key_prefix']}{number}" for number in range(1, int(reference["parts"]) + 1)]


def _to_json(run: Mapping[str, Any]) -> str:
    return json.dumps(run, sort_keys=True)


def get_digest(run: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a run's JSON, in hexadecimal."""
    return hashlib.sha256(_to_json(run).encode()).hexdigest()
