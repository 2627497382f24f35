"""What every command has in common: connection lookup, log, signals, and the exit code of each error."""

from __future__ import annotations

import logging
import os
import signal
import sys
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

from airflow_provider_flows.cli.exit_codes import Exit
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
    (AirflowNotFoundException, Exit.USAGE),  # the connection does not exist
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
        echo_err(error)
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
    level = logging.DEBUG if verbose else logging.WARNING
    package_logger, echo_handler = logging.getLogger(PACKAGE_NAME), _EchoHandler()
    previous = package_logger.level, package_logger.propagate
    stdout_handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout
    ]
    package_logger.addHandler(echo_handler)
    package_logger.setLevel(level)
    package_logger.propagate = False
    for handler in stdout_handlers:
        handler.setStream(sys.stderr)
    # Airflow's hooks log by structlog, which Airflow configures to print to stdout.
    structlog_config = structlog.get_config()

    def write_line(_: Any, method: str, event: MutableMapping[str, Any]) -> NoReturn:
        if logging.getLevelNamesMapping().get(method.upper(), logging.ERROR) >= level:
            echo_err(f"{method}: {redact(str(event.get('event')))}")
        raise structlog.DropEvent

    structlog.configure(processors=[write_line])
    try:
        with warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore")  # deprecations inside of Airflow
            yield
    finally:
        structlog.configure(**structlog_config)
        for handler in stdout_handlers:
            handler.setStream(sys.stdout)
        package_logger.removeHandler(echo_handler)
        package_logger.level, package_logger.propagate = previous


class _EchoHandler(logging.Handler):
    """Write each log record as one line to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        echo_err(f"{record.levelname.lower()}: {record.getMessage()}")
