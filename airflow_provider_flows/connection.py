"""From an Airflow connection to `Settings`: the one table of the fields that a connection's extra may hold.

It looks no connection up (hooks.py does) and knows no service's paths; what differs by service comes in as an argument.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_flows.core.exceptions import FlowInputError

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_provider_flows.transport.settings import Settings

# bundles of trusted certificates that the environment may name; `requests` knows the first two, OpenSSL the third
CA_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a connection's extra: how the form shows it, and what it must be.

    :param kind: JSON schema's word: number, integer, boolean or string.
    :param minimum: the least a number may be.
    """

    label: str
    description: str
    kind: str
    default: Any = None
    minimum: float | None = None

    def to_form(self) -> dict[str, Any]:
        """Give the field as Airflow's provider info wants it (`conn-fields`)."""
        schema: dict[str, Any] = {"type": [self.kind, "null"]}
        if self.default is not None:
            schema["default"] = self.default
        if self.minimum is not None:
            schema["minimum"] = self.minimum
        return {"label": self.label, "description": self.description, "schema": schema}


def fields(read_timeout: float) -> dict[str, Field]:
    """Give the table of fields that every service's connection has.

    :param read_timeout: the service's own default, in seconds.
    """
    return {
        "connect_timeout": Field(
            "Connect timeout", "Seconds until a connection must stand.", "number", 10, 0.1
        ),
        "read_timeout": Field(
            "Read timeout", "Seconds that the service may be silent.", "number", read_timeout, 0.1
        ),
        "retries": Field(
            "Retries", "How often a request that may be repeated is sent again.", "integer", 3, 0
        ),
        "verify": Field(
            "Verify TLS", "Whether the service's certificate is checked.", "boolean", default=True
        ),
        "ca_bundle": Field(
            "CA bundle", "Path of a file with the certificates to trust instead of the usual ones.", "string"
        ),
        "max_requests_per_second": Field(
            "Most requests per second",
            "The bound on one triggerer's requests; empty for none.",
            "number",
            None,
            0.01,
        ),
        "max_response_mib": Field(
            "Largest answer", "MiB; the bound on an answer that is not a file.", "number", 64, 0.001
        ),
    }


GENERIO_FIELDS = fields(read_timeout=60)
PROMPTCHAINER_FIELDS = {
    **fields(read_timeout=300),  # one request lasts as long as the whole flow run
    "test_flow": Field("Test flow", "Id of a flow of yours; Test asks for it to check the key.", "string"),
    "graphs": Field(
        "Flow graphs", "Folder (path or URI) of exported flow graphs, named <flow id>.json.", "string"
    ),
}


def connection_type(
    name: str,
    *,
    hook_name: str,
    hook_class: str,
    default_host: str,
    table: Mapping[str, Field],
    key: str = "API key",
) -> dict[str, Any]:
    """Give a service's entry in `connection-types` of its package's provider info: the type, and its form.

    :param name: the connection type, as `conn_type` of the hook.
    :param hook_class: the full name of the hook's class, which is not imported here.
    :param table: the hook's `fields`.
    :param key: what the service calls what goes into the password field.
    """
    return {
        "connection-type": name,
        "hook-name": hook_name,
        "hook-class-name": hook_class,
        "ui-field-behaviour": {
            "hidden-fields": ["login", "schema", "port"],
            "relabeling": {"password": key, "host": "Host"},
            "placeholders": {"host": default_host, "password": f"the {key} of your account"},
        },
        "conn-fields": {field: entry.to_form() for field, entry in table.items()},
    }


def parse_extra(connection: Connection, table: Mapping[str, Field]) -> dict[str, Any]:
    """Read and check a connection's extra; what is absent, null or blank has its default.

    :raises FlowInputError: the extra is no JSON object, or a field has the wrong type; the message names it.
    """
    # not `extra_dejson`: that call blocks the triggerer's loop, and there are no secrets among these fields
    try:
        raw_value = json.loads(connection.extra or "{}")
    except ValueError:
        raw_value = None
    if not isinstance(raw_value, dict):
        message = f'The extra of connection {connection.conn_id!r} must be a JSON object such as {{"read_timeout": 60}}'
        raise FlowInputError(message)
    return {
        name: _parse_field(connection.conn_id, name, field, raw_value.get(name))
        for name, field in table.items()
    }


def _parse_field(conn_id: str, name: str, field: Field, raw_value: Any) -> Any:
    """Read one field; text is read into its kind, for an extra that came from a URI is all text."""
    if raw_value is None or raw_value == "":
        return field.default
    try:
        value = _PARSERS[field.kind](raw_value)
    except (ValueError, TypeError, KeyError):
        value = None
    if value is None or (field.minimum is not None and not field.minimum <= value < float("inf")):
        bound = "" if field.minimum is None else f" of at least {field.minimum}"
        message = f"{name} in the extra of connection {conn_id!r} must be of type {field.kind}{bound}, not {raw_value!r}"
        raise FlowInputError(message)
    return value


def _parse_boolean(raw_value: Any) -> bool:
    return (
        raw_value
        if isinstance(raw_value, bool)
        else {"true": True, "1": True, "false": False, "0": False}[str(raw_value).lower()]
    )


def _parse_number(raw_value: Any) -> float:
    return float("nan") if isinstance(raw_value, bool) else float(raw_value)


def _parse_integer(raw_value: Any) -> int:
    number = _parse_number(raw_value)
    if not number.is_integer():
        raise ValueError
    return int(number)


def _parse_string(raw_value: Any) -> str:
    if not isinstance(raw_value, str):
        raise TypeError
    return raw_value.strip()


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "number": _parse_number,
    "integer": _parse_integer,
    "boolean": _parse_boolean,
    "string": _parse_string,
}


def parse_base_url(connection: Connection, default: str) -> str:
    """Give the service's address: the connection's host, which may carry scheme and port, else the service's own.

    :raises FlowInputError: no host can be read from it, or its scheme is neither http nor https.
    """
    host = (connection.host or "").strip() or default
    url = host if "://" in host else f"https://{host}"
    try:
        parts = urlsplit(url)
        usable = (
            parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or "@" in parts.netloc:
        message = f"The host of connection {connection.conn_id!r} must be a host name, or an http(s) address such as {default}"
        raise FlowInputError(message)
    port = f":{connection.port}" if connection.port and not parts.port else ""
    return f"{parts.scheme}://{parts.netloc}{port}{parts.path.rstrip('/')}"


def get_token(connection: Connection) -> str:
    """Give the connection's password.

    :raises FlowInputError: there is none, or it holds characters that no key has; it is never shown.
    """
    token = (connection.password or "").strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        state = "no password" if not token else "a password with blanks or characters that no key has"
        message = f"Connection {connection.conn_id!r} has {state}; put the service's API key into its password field"
        raise FlowInputError(message)
    return token


def to_settings(
    connection: Connection,
    extra: Mapping[str, Any],
    *,
    default_host: str,
    credentials: Callable[[str], Mapping[str, str]],
) -> Settings:
    """Turn a connection into what the transports need.

    :param extra: what `extra_of` gave.
    :param credentials: turns the key into headers.
    """
    from airflow_provider_flows.transport.settings import (
        Settings,
    )  # not for whoever only wants the table of fields

    return Settings(
        base_url=parse_base_url(connection, default_host),
        credentials=credentials(get_token(connection)),
        connect_timeout=extra["connect_timeout"],
        read_timeout=extra["read_timeout"],
        verify=_ca_bundle(connection.conn_id, extra["ca_bundle"]) if extra["verify"] else False,
        max_response_bytes=int(extra["max_response_mib"] * 1024 * 1024),
    )


def _ca_bundle(conn_id: str, configured: str | None) -> str | bool:
    """Give the CA bundle that the connection names, else the environment's, else True for the usual certificates.

    :raises FlowInputError: it is not there.
    """
    candidates = [
        (f"ca_bundle in the extra of connection {conn_id!r}", configured),
        *((name, os.environ.get(name)) for name in CA_BUNDLES),
    ]
    where, bundle = next(((where, bundle) for where, bundle in candidates if bundle), ("", None))
    if bundle is not None and not Path(bundle).exists():
        message = f"{where} must be the path of a file with certificates; there is nothing at {bundle}"
        raise FlowInputError(message)
    return bundle or True
