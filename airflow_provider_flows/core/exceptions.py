"""The exception tree of this provider, ordered by the cause of a failure.

FlowError
├── FlowInputError          an argument cannot be sent, or a file changed before it was sent
├── FlowRunFailed           the flow run ended in state `failed`; carries the run
│   └── FlowRunAborted      the flow run ended in state `aborted`
├── FlowOutputRejected      the outputs of a completed run do not satisfy the task's checks; carries the run
├── FlowTimeout             the deadline passed before the run was final (the sensor raises FlowSensorTimeout)
└── FlowServiceError        the service did not respond with success
    ├── FlowAuthError       401, 403: the API key is wrong, expired or lacks a permission
    ├── FlowNotFound        404: no such flow, flow run or output
    ├── FlowInvalid         400, 413, 415, 422: the service rejected the request's content
    ├── FlowConflict        409, 425: not possible in the flow run's current state
    ├── FlowRateLimited     429: too many requests
    ├── FlowQuotaExceeded   402, or a 403 or 429 that says so: the account's quota or credit is used up
    ├── FlowUnreachable     no response: connection refused or reset, timeout, unknown host
    └── FlowMalformed       a response that cannot be parsed
"""

from __future__ import annotations

from typing import Any


def reason_sentence(reason: str | None) -> str:
    """Return a sentence with the reason that a service gives for a failure; it may give none."""
    if not reason:
        return "The service gave no reason."
    reason = reason.rstrip(".")
    return f"Reason given by the service: {reason}{'' if reason.endswith(('!', '?')) else '.'}"


class FlowError(Exception):
    """Base class of this provider's exceptions; a message says what happened and what to do."""

    def to_dict(self) -> dict[str, Any]:
        """Return type and message as a plain dict, for a trigger's event."""
        return {"type": type(self).__name__, "message": str(self)}

    @property
    def summary(self) -> str:
        """What a log line says of the error if the whole message follows elsewhere; by default all of it."""
        return str(self)


class FlowInputError(FlowError):
    """An argument cannot be sent, or an input file has changed; no flow run was started.

    :param is_permanent: whether a retry of the task would fail in the same way.
    """

    def __init__(self, message: str, *, is_permanent: bool = True) -> None:
        super().__init__(message)
        self.is_permanent = is_permanent


class FlowRunFailed(FlowError):
    """The flow run ended in state `failed`.

    :param run: the `FlowRun`, or None if the exception was created from a trigger's event.
        It is not annotated as one: importing this module must not load the module of `FlowRun`, because every
        Airflow process imports it.
    """

    def __init__(self, message: str, run: Any = None) -> None:
        super().__init__(message)
        self.run = run


class FlowRunAborted(FlowRunFailed):
    """The flow run ended in state `aborted`."""


class FlowOutputRejected(FlowError):
    """The flow run completed, and its outputs do not satisfy the checks of its task (`check_outputs`).

    The files are stored, and the run is paid for. A retry of the task would find the same files.

    :param run: the `FlowRun` with its outputs and their verdicts, or None. It is not annotated as one, as in
        `FlowRunFailed`.
    """

    def __init__(self, message: str, run: Any = None) -> None:
        super().__init__(message)
        self.run = run


class FlowTimeout(FlowError):
    """The deadline passed before the flow run reached a final state.

    :param is_permanent: whether a retry of the task would fail in the same way.
    """

    def __init__(self, message: str, *, is_permanent: bool = True) -> None:
        super().__init__(message)
        self.is_permanent = is_permanent


class FlowServiceError(FlowError):
    """The service did not respond with success.

    :param status: the HTTP status, or None if there was no response.
    :param retry_after: seconds that the service asked the client to wait (header `Retry-After`), or None.
    """

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.connection: str | None = None

    def add_connection(self, connection: str, base_url: str) -> None:
        """Name the connection of the request in the message, unless it is there already.

        :param connection: its id and type.
        :param base_url: the host that it leads to, without credentials.
        """
        if self.connection is None:
            self.connection = connection
            self.args = (f"{self} (Connection {connection}, {base_url})",)

    @property
    def summary(self) -> str:
        """The HTTP status and the connection, if there was a response; otherwise the message."""
        if self.status is None:
            return str(self)
        connection = "" if self.connection is None else f" (connection {self.connection})"
        return f"HTTP {self.status}{connection}"

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later.

        A status below 200 is no response to the request: something between the client and the service failed.
        """
        return self.status is not None and (self.status >= 500 or self.status == 408 or self.status < 200)

    @property
    def outcome_unknown(self) -> bool:
        """Whether the service may have carried out the request despite the error."""
        return self.is_transient

    def to_dict(self) -> dict[str, Any]:
        """Return type, message, status and the connection, if it is known, as a plain dict."""
        connection = {} if self.connection is None else {"connection": self.connection}
        return {**super().to_dict(), "status": self.status, **connection}


class FlowAuthError(FlowServiceError):
    """The service rejected the API key: it is wrong, expired or lacks a permission."""

    @property
    def summary(self) -> str:
        """That the key was rejected, the connection if it is known, and the HTTP status."""
        connection = "" if self.connection is None else f" of connection {self.connection}"
        return f"the service rejected the API key{connection} (HTTP {self.status})"


class FlowNotFound(FlowServiceError):
    """The service has no such flow, flow run or output.

    `is_permanent` is whether a retry of the task would fail in the same way.
    """

    is_permanent = True


class FlowInvalid(FlowServiceError):
    """The service rejected the request's content; the message carries its reasons."""


class FlowConflict(FlowServiceError):
    """The request is not possible in the flow run's current state."""


class FlowRateLimited(FlowServiceError):
    """The service limits the number of requests."""

    @property
    def is_transient(self) -> bool:
        """Always true: the limit is temporary."""
        return True

    @property
    def outcome_unknown(self) -> bool:
        """Always false: the service did not carry out the request."""
        return False


class FlowQuotaExceeded(FlowServiceError):
    """The account's quota or credit is used up.

    :param is_permanent: whether a retry of the task would fail in the same way. It is false if the rejected
        request only reads: what it reads is paid already.
    """

    def __init__(self, message: str, *, is_permanent: bool = True, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.is_permanent = is_permanent

    def to_dict(self) -> dict[str, Any]:
        """Return type, message, status and whether it is permanent as a plain dict."""
        return {**super().to_dict(), "is_permanent": self.is_permanent}

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later: for one that reads, a 429 may be a rate limit."""
        return self.status == 429 and not self.is_permanent

    @property
    def outcome_unknown(self) -> bool:
        """Always false: the service did not carry out the request."""
        return False


class FlowUnreachable(FlowServiceError):
    """No response arrived.

    :param may_have_arrived: whether the service may have received the request.
    :param is_permanent: whether a retry of the task would fail in the same way, because the connection must
        be changed: its scheme, or its certificate settings.
    """

    def __init__(
        self, message: str, *, may_have_arrived: bool = True, is_permanent: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(message, **kwargs)
        self.may_have_arrived = may_have_arrived
        self.is_permanent = is_permanent

    @property
    def is_transient(self) -> bool:
        """Always true: a connection may succeed later, and a wait continues until its deadline."""
        return True

    @property
    def outcome_unknown(self) -> bool:
        """Whether the service may have received the request."""
        return self.may_have_arrived


class FlowMalformed(FlowServiceError):
    """A response cannot be parsed: it is not JSON, is truncated, or lacks a required field."""

    @property
    def is_transient(self) -> bool:
        """Always true: most often a proxy's page or a truncated response."""
        return True


def error_from_dict(data: dict[str, Any]) -> FlowError:
    """Return the exception that `FlowError.to_dict` described, with the same type, message and status.

    :param data: `{"type": str, "message": str, "status": int | None, "connection": str}`; an unknown type
        becomes a `FlowError`.
    """
    candidate = globals().get(str(data.get("type")))
    error_class = candidate if isinstance(candidate, type) and issubclass(candidate, FlowError) else FlowError
    message = str(data.get("message"))
    if error_class is FlowQuotaExceeded:
        is_permanent = bool(data.get("is_permanent", True))
        return FlowQuotaExceeded(message, status=data.get("status"), is_permanent=is_permanent)
    if issubclass(error_class, FlowServiceError):
        error = error_class(message, status=data.get("status"))
        error.connection = data.get("connection")
        return error
    return error_class(message)
