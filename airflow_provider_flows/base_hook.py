"""The base of all hooks: the Airflow connection, its service, and the methods that run conversations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from copy import copy
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Self

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import AirflowException, BaseHook

from airflow_provider_flows import connection as conn
from airflow_provider_flows.core.exceptions import FlowInputError, FlowServiceError
from airflow_provider_flows.core.http import Purpose, allow_urls, with_deadline
from airflow_provider_flows.core.limits import MAX_INPUT_BYTES
from airflow_provider_flows.core.payload.download import download_url
from airflow_provider_flows.core.redaction import find_signatures
from airflow_provider_flows.core.retry import Retry, with_retries

if TYPE_CHECKING:
    import requests
    from airflow.sdk import Connection

    from airflow_provider_flows.core.http import Conversation, T
    from airflow_provider_flows.core.payload.sink import Target
    from airflow_provider_flows.core.service import Service
    from airflow_provider_flows.transport.asynchronous import AsyncTransport
    from airflow_provider_flows.transport.settings import Settings
    from airflow_provider_flows.transport.shared_rate_limiter import SharedRateLimiter

MIN_ABORT_ATTEMPTS = 8  # when many runs are aborted at once, a rate limit rejects many requests

# The transports are imported in the methods that use them: a worker never needs aiohttp, and a triggerer
# never needs requests.


class BaseFlowsHook(BaseHook):
    """A hook that runs conversations with the service of its connection.

    Looks up and opens everything on first use, and caches only the connection, the service and the session.

    :param flows_conn_id: the Airflow connection to use.
    """

    conn_name_attr = "flows_conn_id"
    default_conn_name = "flows_default"
    conn_type = "flows"
    hook_name = "Flows"
    default_host: ClassVar[str] = ""
    fields: ClassVar[Mapping[str, conn.Field]] = conn.fields(read_timeout=60)
    max_transfer_seconds: float | None = None
    """The longest time for a file in either direction, with retries: the `timeout` of the task, if any.

    It is never shorter than `connect_timeout` and `read_timeout` of the connection together.
    """

    def __init__(self, flows_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.flows_conn_id = flows_conn_id
        self._connection: Connection | None = None
        self._session: requests.Session | None = None

    def create_service(self, extra: Mapping[str, Any]) -> Service:  # noqa: ARG002  # subclasses need it
        """Create the service of this hook.

        :param extra: the connection's extra, validated, with defaults.
        """
        message = (
            f"{type(self).__name__} has no service; use FlowsHook.get_hook({self.flows_conn_id!r}), "
            "which returns the hook of the connection's type"
        )
        raise FlowInputError(message)

    @classmethod
    def get_hook(cls, conn_id: str, hook_params: dict[str, Any] | None = None) -> Self:
        """Return the hook of a connection, according to its connection type.

        :raises FlowInputError: the connection's type does not run flows.
        """
        return cls._hook_from_connection(cls.get_connection(conn_id), hook_params)

    @classmethod
    async def aget_hook(cls, conn_id: str, hook_params: dict[str, Any] | None = None) -> Self:
        """Return the hook of a connection, without blocking the event loop.

        :raises FlowInputError: the connection's type does not run flows.
        """
        connection = await get_async_connection(conn_id, cls)
        return await asyncio.to_thread(cls._load_hook, connection, hook_params)

    @classmethod
    def _load_hook(cls, connection: Connection, hook_params: dict[str, Any] | None) -> Self:
        """Return the hook of a connection after slow first-time work, which must not run on an event loop.

        That is the import of aiohttp, and reading the metadata of every provider for Airflow's connection
        types.
        """
        import_module("airflow_provider_flows.transport.asynchronous")
        return cls._hook_from_connection(connection, hook_params)

    @classmethod
    def _hook_from_connection(cls, connection: Connection, hook_params: dict[str, Any] | None) -> Self:
        try:
            hook = connection.get_hook(hook_params=hook_params)
        except AirflowException:  # no installed provider has this connection type
            hook = None
        if not isinstance(hook, cls):
            message = (
                f"Connection {connection.conn_id!r} has type {connection.conn_type!r}, which is not a flow "
                "service. Set flows_conn_id to a connection of type generio or promptchainer, or of a flow "
                'service that another provider adds (see "airflow providers list").'
            )
            raise FlowInputError(message)
        hook._connection = connection  # noqa: SLF001  # saves a second lookup, which is expensive
        return hook

    @property
    def connection(self) -> Connection:
        """The Airflow connection, looked up once."""
        if self._connection is None:
            self._connection = self.get_connection(self.flows_conn_id)
        return self._connection

    @property
    def extra(self) -> dict[str, Any]:
        """The connection's extra, validated, with defaults."""
        return conn.parse_extra(self.connection, self.fields)

    @cached_property
    def service(self) -> Service:
        """The service, created once, because thousands of waits may use it."""
        return self.create_service(self.extra)

    @property
    def settings(self) -> Settings:
        """The connection's settings for the transports."""
        return conn.to_settings(
            self.connection,
            self.extra,
            default_host=self.default_host,
            credentials=self.service.auth_headers,
            picture_hosts=self.service.picture_hosts,
        )

    @property
    def retry(self) -> Retry:
        """The retry policy for single requests, according to the connection's field `retries`."""
        return Retry(attempts=1 + self.extra["retries"])

    @property
    def abort_retry(self) -> Retry:
        """The retry policy for aborting the run of a task that has ended, because no later try does it."""
        return Retry(attempts=max(MIN_ABORT_ATTEMPTS, 1 + self.extra["retries"]))

    def get_conn(self) -> requests.Session:
        """Return the `requests` session of this hook.

        The session has no credentials; they are added to each request.
        """
        if self._session is None:
            from airflow_provider_flows.transport.blocking import new_session

            self._session = new_session(self.settings)
        return self._session

    def close(self) -> None:
        """Close the session, if there is one; the next call opens another."""
        if self._session is not None:
            self._session.close()
            self._session = None

    @contextmanager
    def copy_for_thread(self) -> Iterator[Self]:
        """Return a copy of this hook with a session of its own, for use in another thread."""
        other = copy(self)
        other._session = None  # noqa: SLF001  # an instance of the same class
        try:
            yield other
        finally:
            other.close()

    def run(
        self,
        conversation: Conversation[T],
        *,
        retry: Retry | None = None,
        timeout: float | None = None,
        limiter: SharedRateLimiter | None = None,
    ) -> T:
        """Run a conversation over `requests`, and return its result.

        :param retry: the retry policy for each request; by default that of the connection (`retries`).
        :param timeout: upper bound, in seconds, for the whole conversation, with its retries.
        :param limiter: the rate limiter for each request; by default there is none.
        :raises FlowServiceError: a request failed; the message names the connection.
        """
        from airflow_provider_flows.transport.blocking import BlockingTransport, run

        settings = self.settings
        if timeout is not None:
            conversation = with_deadline(conversation, time.monotonic() + timeout)
            settings = replace(
                settings,
                connect_timeout=min(timeout, settings.connect_timeout),
                read_timeout=min(timeout, settings.read_timeout),
            )
        if self.max_transfer_seconds is not None:
            # a run that ended at the deadline is paid for, so its files have the time of any request
            seconds = max(self.max_transfer_seconds, settings.connect_timeout + settings.read_timeout)
            transfer_deadline = time.monotonic() + seconds
            conversation = with_deadline(conversation, transfer_deadline, (Purpose.TRANSFER,))
        with self.add_connection_to_errors():
            transport = BlockingTransport(settings, self.get_conn())
            send = transport.send if limiter is None else limiter.limit(transport.send)
            return run(with_retries(conversation, retry or self.retry), send)

    def fetch_url(self, url: str, target: Target) -> str | None:
        """Download the file at a URL that an input names, and return the media type that its server declares.

        No host gets credentials. The URL and each of its redirects must lead to the service's own host, by
        https to a public host, or to one of `input_hosts` of the connection.

        :param target: receives the bytes; it is restarted when the download is repeated.
        :raises FlowInputError: the file cannot be fetched, or is larger than an input may be.
        """
        from airflow.providers.common.compat.sdk import mask_secret

        settings = self.settings

        def is_allowed(url: str) -> bool:
            for secret in find_signatures(url):  # the HTTP libraries log it at level DEBUG
                mask_secret(secret)
            return settings.is_allowed_input_url(url)

        return self.run(allow_urls(download_url(url, target, MAX_INPUT_BYTES), is_allowed))

    async def arun(self, conversation: Conversation[T], *, retry: Retry | None = None) -> T:
        """Run a conversation over `aiohttp`, and return its result.

        :param retry: the retry policy for each request; by default that of the connection (`retries`).
        :raises FlowServiceError: a request failed; the message names the connection.
        """
        from airflow_provider_flows.transport.asynchronous import run

        async with self.async_transport() as transport:
            with self.add_connection_to_errors():
                return await run(with_retries(conversation, retry or self.retry), transport.send)

    @asynccontextmanager
    async def async_transport(self) -> AsyncIterator[AsyncTransport]:
        """Open an `aiohttp` session on the running event loop; it is closed at the end of the block.

        :raises FlowInputError: the CA bundle cannot be read.
        """
        from airflow_provider_flows.transport.asynchronous import AsyncTransport, new_session

        settings = self.settings
        try:
            new = await new_session(settings)
        except OSError as error:
            bundle = f"CA bundle {settings.verify} of connection {self.flows_conn_id!r}"
            message = f"The {bundle} cannot be read: {error}"
            raise FlowInputError(message) from error
        async with new as session:
            yield AsyncTransport(settings, session)

    @contextmanager
    def add_connection_to_errors(self) -> Iterator[None]:
        """Name the connection in a `FlowServiceError` of the block, because a DAG may use several."""
        try:
            yield
        except FlowServiceError as error:
            self.add_connection_to(error)
            raise

    def add_connection_to(self, error: FlowServiceError) -> None:
        """Name the connection and its host in the message of an error."""
        error.args = (f"{error} (Connection {self.flows_conn_id!r}, {self.settings.base_url})",)
