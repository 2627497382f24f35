"""The errors of this provider, one tree, told apart by who is at fault.

It does not decide which answer is which error (exchange.py does) nor what may be tried again (retry.py and waiting.py do).

FlowError
├── FlowInputError          you: an argument cannot be sent; found before any request, or a file changed before it was sent
├── FlowRunFailed           the flow run: it ended in `failed`; carries the run
│   └── FlowRunAborted      the flow run: somebody aborted it
├── FlowTimeout             the clock: the deadline passed before the run was final (the sensor's is a FlowSensorTimeout)
└── FlowServiceError        the service: it answered with something else than success
    ├── FlowAuthError       401, 403: the key is wrong, expired or not allowed
    ├── FlowNotFound        404: no such flow, flow run or output
    ├── FlowInvalid         400, 415, 422: the service refuses what it was sent
    ├── FlowConflict        409, 425: not in this state
    ├── FlowRateLimited     429: too many requests
    ├── FlowUnreachable     no answer at all: refused, reset, timed out, name not known
    └── FlowMalformed       an answer that cannot be read
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import FlowRun


class FlowError(Exception):
    """Anything that goes wrong with a flow; its message says what happened and what to do."""

    def to_dict(self) -> dict[str, Any]:
        """Give type and message as a plain dict, for the way from a trigger to its task."""
        return {"type": type(self).__name__, "message": str(self)}


class FlowInputError(FlowError):
    """An argument that cannot be sent, or a file that is not what it was: nothing runs.

    `lasting` tells whether it holds for a retry as well.
    """

    def __init__(self, message: str, *, is_permanent: bool = True) -> None:
        super().__init__(message)
        self.is_permanent = is_permanent


class FlowRunFailed(FlowError):
    """The flow run ended in state `failed`; `run` tells how far it came (None if it came from elsewhere)."""

    def __init__(self, message: str, run: FlowRun | None = None) -> None:
        super().__init__(message)
        self.run = run


class FlowRunAborted(FlowRunFailed):
    """The flow run ended in state `aborted`: somebody stopped it at the service."""


class FlowTimeout(FlowError):
    """The deadline passed before the flow run reached a final state; `lasting` tells whether it holds for a retry as well."""

    def __init__(self, message: str, *, is_permanent: bool = True) -> None:
        super().__init__(message)
        self.is_permanent = is_permanent


class FlowServiceError(FlowError):
    """The service answered, but not with success; `status` is the HTTP status, `retry_after` what it asked for in seconds."""

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after

    @property
    def is_transient(self) -> bool:
        """Whether the same request may well succeed later, with nothing changed by the user."""
        return self.status is not None and (self.status >= 500 or self.status == 408)

    @property
    def outcome_unknown(self) -> bool:
        """Whether the service may have done what it was asked, although it did not say so."""
        return self.is_transient

    def to_dict(self) -> dict[str, Any]:
        """Give type, message and status as a plain dict."""
        return {**super().to_dict(), "status": self.status}


class FlowAuthError(FlowServiceError):
    """The service refuses the key: wrong, expired, or not allowed to do this."""


class FlowNotFound(FlowServiceError):
    """The service knows no such flow, flow run or output; `lasting` tells whether it holds for a retry as well."""

    is_permanent = True


class FlowInvalid(FlowServiceError):
    """The service refuses what it was sent; the message carries its reasons."""


class FlowConflict(FlowServiceError):
    """What was asked cannot be done in the flow run's present state."""


class FlowRateLimited(FlowServiceError):
    """The service asks for fewer requests."""

    @property
    def is_transient(self) -> bool:
        """It passes by itself."""
        return True

    @property
    def outcome_unknown(self) -> bool:
        """It says that it did nothing."""
        return False


class FlowUnreachable(FlowServiceError):
    """No answer came back; `may_have_arrived` tells whether the service may have acted on the request all the same."""

    def __init__(self, message: str, *, may_have_arrived: bool = True, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.may_have_arrived = may_have_arrived

    @property
    def is_transient(self) -> bool:
        """It passes by itself."""
        return True

    @property
    def outcome_unknown(self) -> bool:
        """It may have arrived, or it is known that it did not."""
        return self.may_have_arrived


class FlowMalformed(FlowServiceError):
    """An answer that cannot be read: not JSON, cut short, or without what it must hold."""

    @property
    def is_transient(self) -> bool:
        """A proxy's page or a cut answer is gone the next time, as a rule."""
        return True


def error_from_dict(data: dict[str, Any]) -> FlowError:
    """Make the error that `FlowError.as_dict` described: the very same type, message and status.

    :param told: `{"type": str, "message": str, "status": int | None}`; a type that is not ours gives a plain FlowError.
    """
    candidate = globals().get(str(data.get("type")))
    error_class = candidate if isinstance(candidate, type) and issubclass(candidate, FlowError) else FlowError
    message = str(data.get("message"))
    return (
        error_class(message, status=data.get("status"))
        if issubclass(error_class, FlowServiceError)
        else error_class(message)
    )
