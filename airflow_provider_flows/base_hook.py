"""What every hook stands on: an Airflow connection, its service, and the two doors through which conversations are held.

It has no words for what can be asked of a service (hooks.py has) and keeps nothing between calls but the session.
"""

from __future__ import annotations

import asyncio
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
from airflow_provider_flows.core.retry import Retry, with_retries

if TYPE_CHECKING:
    import requests
    from airflow.sdk import Connection

    from airflow_provider_flows.core.http import Conversation, T
    from airflow_provider_flows.core.service import Service
    from airflow_provider_flows.transport.asynchronous import AsyncTransport
    from airflow_provider_flows.transport.settings import Settings


class BaseFlowsHook(BaseHook):
    """A hook that knows its connection and can hold conversations with its service.

    :param flows_conn_id: the Airflow connection to use.
    """

    conn_name_attr = "flows_conn_id"
    default_conn_name = "flows_default"
    conn_type = "flows"
    hook_name = "Flows"
    default_host: ClassVar[str] = ""
    fields: ClassVar[Mapping[str, conn.Field]] = conn.fields(read_timeout=60)

    def __init__(self, flows_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        """Keep the connection's id; nothing is looked up or opened yet."""
        super().__init__(**kwargs)
        self.flows_conn_id = flows_conn_id
        self._connection: Connection | None = None
        self._session: requests.Session | None = None

    def create_service(self, extra: Mapping[str, Any]) -> Service:  # noqa: ARG002  # subclasses need it
        """Make the service that this hook talks to.

        :param extra: the connection's extra, checked, with defaults.
        """
        message = f"{type(self).__name__} serves no service; ask FlowsHook.get_hook({self.flows_conn_id!r}) for the right hook"
        raise FlowInputError(message)

    @classmethod
    def get_hook(cls, conn_id: str, hook_params: dict[str, Any] | None = None) -> Self:
        """Give the hook of a connection, by its connection type.

        :raises FlowInputError: the connection is not of a type that runs flows.
        """
        return cls._hook_from_connection(cls.get_connection(conn_id), hook_params)

    @classmethod
    async def aget_hook(cls, conn_id: str, hook_params: dict[str, Any] | None = None) -> Self:
        """Give the hook of a connection, without blocking the event loop."""
        connection = await get_async_connection(conn_id, cls)
        return await asyncio.to_thread(cls._load_hook, connection, hook_params)

    @classmethod
    def _load_hook(cls, connection: Connection, hook_params: dict[str, Any] | None) -> Self:
        """Do what is slow the first time and must not be done on the loop.

        That is the look at Airflow's registry of connection types, which reads every provider's metadata, and aiohttp's import.
        """
        import_module("airflow_provider_flows.transport.asynchronous")
        return cls._hook_from_connection(connection, hook_params)

    @classmethod
    def _hook_from_connection(cls, connection: Connection, hook_params: dict[str, Any] | None) -> Self:
        try:
            hook = connection.get_hook(hook_params=hook_params)
        except AirflowException:  # a type that no installed provider knows
            hook = None
        if not isinstance(hook, cls):
            message = (
                f"Connection {connection.conn_id!r} is of type {connection.conn_type!r}, which runs no flows here; "
                "flows_conn_id must name one of type generio or promptchainer, or of a type that another package adds for its "
                "service, and the provider of that type must be installed in this environment (airflow providers list)"
            )
            raise FlowInputError(message)
        hook._connection = connection  # noqa: SLF001  # it was looked up just now; a look-up is dear
        return hook

    @property
    def connection(self) -> Connection:
        """The Airflow connection, looked up once."""
        if self._connection is None:
            self._connection = self.get_connection(self.flows_conn_id)
        return self._connection

    @property
    def extra(self) -> dict[str, Any]:
        """The connection's extra, checked, with defaults."""
        return conn.parse_extra(self.connection, self.fields)

    @cached_property
    def service(self) -> Service:
        """The service, as this connection wants it; made once, for thousands of waits may ask for it."""
        return self.create_service(self.extra)

    @property
    def settings(self) -> Settings:
        """What the transports need to know of this connection."""
        return conn.to_settings(
            self.connection, self.extra, default_host=self.default_host, credentials=self.service.auth_headers
        )

    def get_conn(self) -> requests.Session:
        """Give the one `requests` session of this hook; credentials are added to each request, not to the session."""
        if self._session is None:
            from airflow_provider_flows.transport.blocking import new_session

            self._session = new_session(self.settings)
        return self._session

    def run(
        self, conversation: Conversation[T], *, retry: Retry | None = None, timeout: float | None = None
    ) -> T:
        """Run a conversation over `requests`.

        :param retry: how often each request is sent, and when; by default as the connection says (`retries`).
        :param timeout: seconds that connecting and each read may take at most, if the connection allows more.
        """
        from airflow_provider_flows.transport.blocking import BlockingTransport, run

        settings = self.settings
        if timeout is not None:
            settings = replace(
                settings,
                connect_timeout=min(timeout, settings.connect_timeout),
                read_timeout=min(timeout, settings.read_timeout),
            )
        with self.add_connection_to_errors():
            return run(
                with_retries(conversation, retry or self.retry),
                BlockingTransport(settings, self.get_conn()).send,
            )

    @property
    def retry(self) -> Retry:
        """How often each request is sent, and when, as the connection says."""
        return Retry(attempts=1 + self.extra["retries"])

    @contextmanager
    def copy_for_thread(self) -> Iterator[Self]:
        """Give this hook once more, with a session of its own, for another thread."""
        other = copy(self)
        other._session = None  # noqa: SLF001  # it is one of us
        try:
            yield other
        finally:
            other.close()

    def close(self) -> None:
        """Close the session, if there is one; the next call opens another."""
        if self._session is not None:
            self._session.close()
            self._session = None

    @contextmanager
    def add_connection_to_errors(self) -> Iterator[None]:
        """Name the connection in what a service refuses: with several of them one would have to guess."""
        try:
            yield
        except FlowServiceError as error:
            self.add_connection_to(error)
            raise

    def add_connection_to(self, error: FlowServiceError) -> None:
        """Name the connection in an error."""
        error.args = (f"{error} (Connection {self.flows_conn_id!r}, {self.settings.base_url})",)

    @asynccontextmanager
    async def async_transport(self) -> AsyncIterator[AsyncTransport]:
        """Open the async door: an `aiohttp` session for the running loop, closed at the end."""
        from airflow_provider_flows.transport.asynchronous import AsyncTransport, new_session

        settings = self.settings
        try:
            opened = await new_session(settings)
        except OSError as error:
            message = f"The certificates in {settings.verify} cannot be read: {error}"
            raise FlowInputError(message) from error
        async with opened as session:
            yield AsyncTransport(settings, session)

    async def arun(self, conversation: Conversation[T], *, retry: Retry | None = None) -> T:
        """Run a conversation over `aiohttp`.

        :param retry: how often each request is sent, and when; by default as the connection says (`retries`).
        """
        from airflow_provider_flows.transport.asynchronous import run

        async with self.async_transport() as transport:
            with self.add_connection_to_errors():
                return await run(with_retries(conversation, retry or self.retry), transport.send)
