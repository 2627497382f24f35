"""What every command has in common: connection lookup, log, signals, and the exit code of each error.

`emulator` is the one command that has none of that.
"""

from __future__ import annotations

import logging
import os
import signal
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any, NoReturn

import structlog
from airflow.providers.common.compat.sdk import AirflowNotFoundException, redact

from airflow_provider_flows.cli.arguments import to_option_names
from airflow_provider_flows.cli.parser import Exit
from airflow_provider_flows.cli.terminal import INTERRUPTED_MESSAGE, echo_err, write_err
from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowError,
    FlowInputError,
    FlowNotFound,
    FlowRunAborted,
    FlowTimeout,
)

# The first that matches counts; any other error is Exit.FAILED.
ERROR_EXIT_CODES: tuple[tuple[type[Exception], Exit], ...] = (
    (FlowInputError, Exit.USAGE),
    (AirflowNotFoundException, Exit.USAGE),  # the connection of a storage does not exist
    (FlowRunAborted, Exit.ABORTED),
    (FlowTimeout, Exit.TIMEOUT),
    (FlowNotFound, Exit.NOT_FOUND),
    (FlowAuthError, Exit.AUTH_ERROR),
)
PROCESS_CONTEXT_VARIABLE = "_AIRFLOW_PROCESS_CONTEXT"
PACKAGE_NAME = __name__.partition(".")[0]


class SigtermReceived(KeyboardInterrupt):
    """SIGTERM, which ends the command as Ctrl-C does, but asks nothing."""


def command(function: Callable[[Namespace], Exit | None]) -> Callable[[Namespace], None]:
    """Wrap a function as a command: an error becomes one line on stderr and an exit code.

    :raises SystemExit: with a code other than 0.
    """

    @wraps(function)
    def wrapper(args: Namespace) -> None:
        with (
            _log_to_stderr(verbose=args.verbose),
            _allow_database_connections(),
            _raise_on_sigterm() as received_codes,
        ):
            code = _run_command(function, args)
        if code is Exit.INTERRUPTED and received_codes:
            code = received_codes[-1]
        if code:
            raise SystemExit(int(code))

    return wrapper


def get_exit_code(error: Exception) -> Exit:
    """Return the exit code of an error."""
    return next((code for kind, code in ERROR_EXIT_CODES if isinstance(error, kind)), Exit.FAILED)


def _run_command(function: Callable[[Namespace], Exit | None], args: Namespace) -> Exit:
    try:
        return function(args) or Exit.DONE
    except KeyboardInterrupt:
        echo_err(INTERRUPTED_MESSAGE)
        return Exit.INTERRUPTED
    except FlowError as error:
        echo_err(to_option_names(str(error)))
        return get_exit_code(error)
    except Exception as error:  # noqa: BLE001  # a storage library's error, say: users want one line, whatever its type
        if args.verbose:
            write_err(str(redact(traceback.format_exc())))
        echo_err(redact(f"{type(error).__name__}: {error}"))
        return get_exit_code(error)


@contextmanager
def _allow_database_connections() -> Iterator[None]:
    """Find connections in Airflow's database too, not only in the environment and in secrets backends.

    Airflow has no public way to allow a process to read the database; its own commands
    (connection_command.py) set this variable. tests/cli/test_terminal.py fails when that changes.
    """
    previous = os.environ.get(PROCESS_CONTEXT_VARIABLE)
    os.environ[PROCESS_CONTEXT_VARIABLE] = "server"
    try:
        yield
    finally:
        os.environ.pop(PROCESS_CONTEXT_VARIABLE)
        if previous is not None:
            os.environ[PROCESS_CONTEXT_VARIABLE] = previous


@contextmanager
def _raise_on_sigterm() -> Iterator[list[Exit]]:
    """Raise `SigtermReceived` on SIGTERM, unless it is ignored; yield a list that then gets the exit code."""
    received_codes: list[Exit] = []

    def on_signal(_: int, __: FrameType | None) -> NoReturn:
        received_codes.append(Exit.TERMINATED)
        raise SigtermReceived

    previous = signal.getsignal(signal.SIGTERM)
    is_handled = previous not in {signal.SIG_IGN, None}
    if is_handled:
        signal.signal(signal.SIGTERM, on_signal)
    try:
        yield received_codes
    finally:
        if is_handled:
            signal.signal(signal.SIGTERM, previous)


@contextmanager
def _log_to_stderr(*, verbose: bool) -> Iterator[None]:
    """Write warnings (with `verbose`, everything that this package logs) to stderr; stdout is for data."""
    root, package_logger = logging.getLogger(), logging.getLogger(PACKAGE_NAME)
    previous = root.handlers, package_logger.level, structlog.get_config()
    root.handlers = [_EchoHandler(logging.DEBUG if verbose else logging.WARNING)]
    package_logger.setLevel(logging.DEBUG)
    # Airflow's hooks log with structlog, which Airflow always configures to print to stdout.
    structlog.configure(processors=[_get_event_text], logger_factory=structlog.stdlib.LoggerFactory())
    try:
        with warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore")  # deprecations inside of Airflow
            yield
    finally:
        root.handlers, package_logger.level, structlog_config = previous
        structlog.configure(**structlog_config)


def _get_event_text(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    """Return what structlog passes to `logging`: the message, already formatted."""
    return str(event.get("event"))


class _EchoHandler(logging.Handler):
    """Write each log record as one line to stderr, without secrets that Airflow knows, with option names."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        message = to_option_names(str(redact(record.getMessage())))
        echo_err(f"{record.levelname.lower()}: {message}")


def emulator(args: Namespace) -> None:
    """Serve both emulated services until interrupted.

    :raises SystemExit: with a code other than 0.
    """
    from airflow_provider_flows.emulator.__main__ import main

    code = main(args.options, prog="airflow flows emulator")
    if code:
        raise SystemExit(code)
