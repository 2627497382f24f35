"""The base of all hooks: the Airflow connection, its service, and the methods that run conversations."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import copy_context
from copy import copy
from dataclasses import replace
from functools import cached_property, lru_cache
from importlib import import_module
from math import inf
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, ClassVar, Self

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import (
    AirflowException,
    BaseHook,
    mask_secret,
)

from airflow_provider_flows import connection as conn
from airflow_provider_flows import metrics
from airflow_provider_flows.core.exceptions import FlowInputError, FlowServiceError
from airflow_provider_flows.core.flow_run import quote_errors
from airflow_provider_flows.core.http import ForbiddenUrlError, Purpose, allow_urls, with_deadline
from airflow_provider_flows.core.limits import MAX_INPUT_BYTES, MAX_REQUESTS_PER_SECOND, START_LOG_SECONDS
from airflow_provider_flows.core.payload.download import (
    RepeatedFileFilter,
    download_image,
    download_linked_file,
    download_url,
)
from airflow_provider_flows.core.redaction import ErrorTexts, find_signatures
from airflow_provider_flows.core.retry import Retry, with_retries

if TYPE_CHECKING:
    import requests
    from airflow.sdk import Connection

    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.core.http import Conversation, Request, Response, T
    from airflow_provider_flows.core.payload.sink import Target
    from airflow_provider_flows.core.service import Service
    from airflow_provider_flows.transport.rate_limiter import RateLimitedTransport
    from airflow_provider_flows.transport.settings import Settings

    _Send = Callable[[Request], Response]

log = logging.getLogger(__name__)

MIN_DOWNLOAD_ATTEMPTS = 3
MIN_ABORT_ATTEMPTS = 8  # when many runs are aborted at once, a rate limit rejects many requests

# The transports are imported in the methods that use them: a worker never needs aiohttp, and a triggerer
# never needs requests.


def mask_signatures(url: str) -> None:
    """Mask the signatures of a URL in Airflow's logs, because the HTTP libraries log it at level DEBUG."""
    for secret in find_signatures(url):
        mask_secret(secret)


@lru_cache(maxsize=1024)
def warn_once(message: str) -> None:
    """Log a warning, unless this process has logged it before."""
    log.warning(message)


def log_accepted_file(problem: str) -> None:
    """Log that a file was accepted although something is wrong with it."""
    log.warning(
        "A file was accepted because it arrived twice with the same SHA-256. Check it before you use it: %s",
        problem,
    )


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

    hidden_inputs: Any = None
    """The inputs of the task's flow run, which the service may repeat when it explains an error."""
    start_log_interval: float = START_LOG_SECONDS
    """Seconds between two lines of the log while a start has no response yet."""

    def __init__(self, flows_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.flows_conn_id = flows_conn_id
        self._connection: Connection | None = None
        self._session: requests.Session | None = None
        self._max_rate_wait: float | None = None  # None: without a limit, unless the connection sets one

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

        :raises FlowInputError: there is no such connection, or its type does not run flows.
        """
        with conn.explain_missing_connection(conn_id):
            connection = cls.get_connection(conn_id)
        return cls._hook_from_connection(connection, hook_params)

    @classmethod
    async def aget_hook(cls, conn_id: str, hook_params: dict[str, Any] | None = None) -> Self:
        """Return the hook of a connection, without blocking the event loop.

        :raises FlowInputError: there is no such connection, or its type does not run flows.
        """
        with conn.explain_missing_connection(conn_id):
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
            conn_type = cls.conn_type if isinstance(hook, BaseFlowsHook) else None
            raise FlowInputError(conn.describe_wrong_type(connection, conn_type))
        hook._connection = connection  # noqa: SLF001  # saves a second lookup, which is expensive
        return hook

    @property
    def connection(self) -> Connection:
        """The Airflow connection, looked up once.

        :raises FlowInputError: there is none, or it is of another service, whose key must not be
            sent to this one.
        """
        if self._connection is None:
            with conn.explain_missing_connection(self.flows_conn_id):
                connection = self.get_connection(self.flows_conn_id)
            self._require_type(connection)
            self._connection = connection
        return self._connection

    def _require_type(self, connection: Connection) -> None:
        if connection.conn_type in {None, "", self.conn_type}:
            return
        with suppress(Exception):  # the hook of any provider, which may not be importable
            if isinstance(connection.get_hook(), type(self)):  # registered for several types
                return
        raise FlowInputError(conn.describe_wrong_type(connection, self.conn_type))

    @property
    def extra(self) -> dict[str, Any]:
        """The connection's extra, validated, with defaults."""
        parsed = conn.parse_extra(self.connection, self.fields)
        if unknown_fields := conn.find_unknown_fields(self.connection, self.fields):
            warn_once(
                conn.UNKNOWN_FIELDS.format(f"connection {self.flows_conn_id!r}", ", ".join(unknown_fields))
            )
        return parsed

    @cached_property
    def service(self) -> Service:
        """The service, created once, because thousands of waits may use it."""
        return self.create_service(self.extra)

    @property
    def settings(self) -> Settings:
        """The connection's settings for the transports."""
        settings = conn.to_settings(
            self.connection,
            self.extra,
            default_host=self.default_host,
            credentials=self.service.auth_headers,
            picture_hosts=self.service.picture_hosts,
        )
        return replace(settings, error_texts=self.error_texts)

    @property
    def error_texts(self) -> ErrorTexts:
        """What messages, logs and pages show of the texts with which the service explains an error."""
        return ErrorTexts(self.hidden_inputs, is_shown=self._shows_service_errors)

    @cached_property
    def _shows_service_errors(self) -> bool:
        # not at the top: Airflow may load this module while it reads its configuration
        from airflow.providers.common.compat.sdk import conf

        return bool(conf.getboolean("flows", "log_service_errors", fallback=True))

    def quote_errors(self, result: T) -> T:
        """Return a run, an output or a list of them with its errors as `error_texts` shows them."""
        return quote_errors(result, self.error_texts)

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
    ) -> T:
        """Run a conversation over `requests`, and return its result.

        :param retry: the retry policy for each request; by default that of the connection (`retries`).
        :param timeout: upper bound, in seconds, for the whole conversation, with its retries.
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
            send = self._limit_rate(settings, transport.send)
            return self.quote_errors(run(with_retries(conversation, retry or self.retry), send))

    def poll_run(self, flow_run_id: str) -> Conversation[FlowRun]:
        """Read a run from the service, with its errors as `error_texts` shows them."""
        try:
            run = yield from self.service.get_run(flow_run_id)
        except FlowServiceError as error:
            self.add_connection_to(error)  # not only in `run`, because a wait logs it before
            raise
        return self.quote_errors(run)

    @contextmanager
    def log_start(self, flow: str) -> Iterator[None]:
        """Log that a flow is being started in the block, and every minute that there is no response yet.

        A service that starts a run in several steps responds to each in seconds, so the start is logged only
        if it takes longer, such as for the upload of a large file.
        """
        name, conn_id, ended = self.service.name, self.flows_conn_id, Event()
        if not self.service.staged_start:
            arrives = ""
            if not self.service.supports("get_run"):
                limit = f"{self.settings.read_timeout:g} s (read_timeout of connection {conn_id!r})"
                arrives = (
                    f"; it responds when the flow run has ended, for which this process waits up to {limit}"
                )
            self.log.info("Starting flow %s at %s%s", flow, name, arrives)

        def log_waiting() -> None:
            started_at = time.monotonic()
            while not ended.wait(self.start_log_interval):
                seconds = time.monotonic() - started_at
                self.log.info("Still starting flow %s at %s, after %.0f s", flow, name, seconds)

        run = copy_context().run  # with what Airflow's logger knows of the task
        thread = Thread(target=run, args=(log_waiting,), name="flow-start-log", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def limit_requests(self, max_wait: float = inf) -> None:
        """Limit the rate of the requests of `run` also if the connection does not: `MAX_REQUESTS_PER_SECOND`.

        :param max_wait: longest time that a request waits for the limiter, in seconds.
        """
        self._max_rate_wait = max_wait

    def _limit_rate(self, settings: Settings, send: _Send) -> _Send:
        """Return a function that sends requests at the rate of the account in this process, if it has one."""
        per_second = self.extra.get("max_requests_per_second")
        if per_second is None and self._max_rate_wait is None:
            return send
        from airflow_provider_flows.transport.rate_limiter import SHARED_RATE_LIMITERS

        limiter = SHARED_RATE_LIMITERS.get(settings, per_second or MAX_REQUESTS_PER_SECOND)
        max_wait = inf if self._max_rate_wait is None else self._max_rate_wait
        return limiter.limit(send, max_wait, settings.is_foreign)

    def create_url_filter(self) -> Callable[[str], bool]:
        """Return a function that returns whether a file may be fetched from a URL of another host."""
        settings = self.settings

        def is_allowed(url: str) -> bool:
            mask_signatures(url)
            return settings.is_allowed_url(url)

        return is_allowed

    def run_download(self, create_conversation: Callable[[], Conversation[T]]) -> T:
        """Run a conversation that only reads, and retry incomplete responses, in at least three attempts."""
        retry = Retry(attempts=max(MIN_DOWNLOAD_ATTEMPTS, 1 + self.extra["retries"]))
        return self.run(retry.retry_incomplete(create_conversation), retry=retry)

    def save_linked_image(
        self, url: str, target: Target, *, on_accepted: Callable[[str], object] = log_accepted_file
    ) -> str | None:
        """Download the image to which an output links, and return its media type.

        The credentials are sent only if the link leads to the service's own host.

        :param on_accepted: as for `save_output`.
        :returns: None if the link does not lead to an image, or to a host that is not allowed, which is
            logged.
        """
        max_bytes = self.settings.max_response_bytes
        return self._save_link(url, lambda link: download_image(link, target, max_bytes), on_accepted)

    def save_linked_file(
        self,
        url: str,
        target: Target,
        *,
        media_type: str | None = None,
        on_accepted: Callable[[str], object] = log_accepted_file,
    ) -> str | None:
        """Download the file of any type to which an output links, and return its media type.

        As for `save_linked_image`.

        :param media_type: the media type that the service has declared.
        :returns: None if the link leads to a host that is not allowed, which is logged.
        """
        return self._save_link(url, lambda link: download_linked_file(link, target, media_type), on_accepted)

    def _save_link(
        self,
        url: str,
        download: Callable[[str], Conversation[str | None]],
        on_accepted: Callable[[str], object],
    ) -> str | None:
        mask_signatures(url)
        link, is_allowed = url.strip(), self.create_url_filter()
        repeated = RepeatedFileFilter(on_accepted)
        try:
            return self.run_download(lambda: repeated.filter(allow_urls(download(link), is_allowed)))
        except FlowServiceError as error:
            if not isinstance(error.__cause__, ForbiddenUrlError):
                raise
            log.warning("A link in an output is not fetched: %s", error)
            return None

    def fetch_url(self, url: str, target: Target) -> str | None:
        """Download the file at a URL that an input names, and return the media type that its server declares.

        No host gets credentials. The URL and each of its redirects must lead to the service's own host, by
        https to a public host, or to one of `input_hosts` of the connection.

        :param target: receives the bytes; it is restarted when the download is repeated.
        :raises FlowInputError: the file cannot be fetched, or is larger than an input may be.
        """
        settings = self.settings

        def is_allowed(url: str) -> bool:
            mask_signatures(url)
            return settings.is_allowed_input_url(url)

        return self.run(allow_urls(download_url(url, target, MAX_INPUT_BYTES), is_allowed))

    async def arun(
        self,
        conversation: Conversation[T],
        *,
        retry: Retry | None = None,
        send: Callable[[Request], Awaitable[Response]] | None = None,
    ) -> T:
        """Run a conversation over `aiohttp`, and return its result.

        :param retry: the retry policy for each request; by default that of the connection (`retries`).
        :param send: sends one request over a session that is open; by default over one that this call opens.
        :raises FlowServiceError: a request failed; the message names the connection.
        """
        from airflow_provider_flows.transport.asynchronous import run

        if send is None:
            async with self.async_transport() as transport:
                return await self.arun(conversation, retry=retry, send=transport.send)
        with self.add_connection_to_errors():
            result = await run(with_retries(conversation, retry or self.retry), send)
        return self.quote_errors(result)

    @asynccontextmanager
    async def async_transport(self) -> AsyncIterator[RateLimitedTransport]:
        """Open an `aiohttp` session on the running event loop, behind the rate limiter of the account.

        It is closed at the end of the block.

        :raises FlowInputError: the CA bundle cannot be read.
        """
        from airflow_provider_flows.transport.asynchronous import AsyncTransport, new_session
        from airflow_provider_flows.transport.rate_limiter import SHARED_RATE_LIMITERS, RateLimitedTransport

        settings = self.settings
        try:
            new = await new_session(settings)
        except OSError as error:
            bundle = f"CA bundle {settings.verify} of connection {self.flows_conn_id!r}"
            message = f"The {bundle} cannot be read: {error}"
            raise FlowInputError(message) from error
        async with new as session:
            limiter = SHARED_RATE_LIMITERS.get(settings, self.extra.get("max_requests_per_second"))
            transport = AsyncTransport(settings, session)
            yield RateLimitedTransport(transport, limiter, metrics.count_rate_limit_pause)

    @contextmanager
    def add_connection_to_errors(self) -> Iterator[None]:
        """Name the connection in a `FlowServiceError` of the block, because a DAG may use several."""
        try:
            yield
        except FlowServiceError as error:
            self.add_connection_to(error)
            raise

    def add_connection_to(self, error: FlowServiceError) -> None:
        """Name the connection, its type and its host in the message of an error, unless they are there."""
        if error.connection is None:
            conn_type = self.connection.conn_type or self.conn_type
            error.add_connection(f"{self.flows_conn_id!r} of type {conn_type!r}", self.settings.base_url)
