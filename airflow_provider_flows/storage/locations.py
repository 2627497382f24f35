"""Where files lie, told in other words: the web address at which a person finds them, the name that lineage knows them by.

It looks at no store and asks nobody; what it is given is a URI, as a task returns it or a DAG author writes it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote

from airflow_provider_flows.core.redaction import strip_signatures

SCHEME_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "local": "file"}  # other names of the same store
HADOOP_SCHEMES = frozenset({"abfs", "abfss", "wasb", "wasbs"})  # there a container stands before the host
# how the host of an S3 client ends, and the console's domain that belongs to it (the amazon provider's links/base_aws.py)
CONSOLE_DOMAINS = {".amazonaws.com": "aws.amazon.com", ".amazonaws.com.cn": "amazonaws.cn"}


@dataclass(frozen=True, slots=True)
class StorageLocation:
    """A file's URI in its three parts, without credentials, signature and Airflow's connection id.

    :param authority: a bucket, a host, a container; empty for this machine's own files.
    :param path: without the slash at its beginning.
    """

    scheme: str
    authority: str
    path: str

    @classmethod
    def parse(cls, uri: str) -> Self | None:
        """Read a URI, None if it is none."""
        scheme, found, rest = strip_signatures(uri.strip()).partition("://")
        if not found or not scheme:
            return None
        scheme = SCHEME_ALIASES.get(scheme.lower(), scheme.lower())
        if scheme in {"http", "https"}:
            rest = rest.partition("#")[0].partition("?")[0]
        authority, _, path = rest.partition("/")
        before, _, host = authority.rpartition("@")
        container = before if scheme in HADOOP_SCHEMES and "." in host else ""
        return cls(scheme, f"{container}@{host}" if container else host, path.lstrip("/"))

    @property
    def namespace(self) -> str:
        """The store, as OpenLineage names it (https://openlineage.io/docs/spec/naming)."""
        return (
            self.scheme
            if self.scheme == "file" and not self.authority
            else f"{self.scheme}://{self.authority}"
        )

    @property
    def name(self) -> str:
        """The file in that store, as OpenLineage names it: of a file system the whole path, of an object store the key."""
        return f"/{self.path}" if self.scheme == "file" or not self.path else self.path


def console_url(uris: Sequence[str], endpoint: str | None = None) -> str | None:
    """Give the address at which a person finds one file, or the folder that several lie in; None if their store has none.

    Azure's portal needs ids of a subscription and an account that no URI holds; a local file has no address.

    :param endpoint: what the S3 client speaks to; a store that is not Amazon's has no address that we know.
    """
    locations = [place for place in map(StorageLocation.parse, uris) if place is not None]
    if not locations or len({(place.scheme, place.authority) for place in locations}) != 1:
        return None
    first, one = locations[0], len(locations) == 1
    path = (
        first.path
        if one
        else posixpath.commonpath([posixpath.dirname(f"/{place.path}") for place in locations]).strip("/")
    )
    quoted_path = quote(path, safe="/")
    if first.scheme == "s3":
        console = _console_domain(endpoint)
        where = (
            f"object/{first.authority}?prefix={quoted_path}"
            if one
            else f"buckets/{first.authority}?prefix={quoted_path}/"
        )
        return console and f"https://console.{console}/s3/{where}"
    if first.scheme == "gs":
        return f"https://console.cloud.google.com/storage/browser/{'_details/' if one else ''}{first.authority}/{quoted_path}"
    if first.scheme in {"http", "https"} and one:
        return f"{first.scheme}://{first.authority}/{quote(path, safe='/%')}"
    return None


def _console_domain(endpoint: str | None) -> str | None:
    """Give the domain of the console that belongs to an S3 endpoint, None if it is not Amazon's."""
    location = StorageLocation.parse(endpoint or "https://s3.amazonaws.com")
    host = "" if location is None else location.authority.partition(":")[0].lower()
    if host.endswith(".amazonaws.com") and ".us-gov-" in host:
        return "amazonaws-us-gov.com"
    return next((domain for ending, domain in CONSOLE_DOMAINS.items() if host.endswith(ending)), None)
