"""What surrounds every command: where connections are found, where the log goes, and which exit code an error has.

What a command does is not known here.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import structlog
from airflow.providers.common.compat.sdk import AirflowNotFoundException, redact

from airflow_provider_flows.cli.exit_codes import Exit
from airflow_provider_flows.cli.signals import raise_on_signals
from airflow_provider_flows.cli.terminal import INTERRUPTED_MESSAGE, echo_err
from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowError,
    FlowInputError,
    FlowNotFound,
    FlowRunAborted,
    FlowTimeout,
)

# the first that fits; any other error is Exit.FAILED
ERROR_EXIT_CODES: tuple[tuple[type[Exception], Exit], ...] = (
    (FlowInputError, Exit.USAGE),
    (AirflowNotFoundException, Exit.USAGE),  # there is no such connection
    (FlowRunAborted, Exit.ABORTED),
    (FlowTimeout, Exit.TIMEOUT),
    (FlowNotFound, Exit.NOT_FOUND),
    (FlowAuthError, Exit.AUTH_ERROR),
)
PROCESS_CONTEXT_VARIABLE = "_AIRFLOW_PROCESS_CONTEXT"
PACKAGE_NAME = __name__.partition(".")[0]


def command(function: Callable[[Namespace], Exit | None]) -> Callable[[Namespace], None]:
    """Make a command of a function: an error becomes one line on stderr, and an exit code.

    :raises SystemExit: with a code that is not 0.
    """

    @wraps(function)
    def wrapper(args: Namespace) -> None:
        with (
            _redirect_logs(verbose=args.verbose),
            _allow_database_connections(),
            raise_on_signals() as received_codes,
        ):
            code = _run_command(function, args)
        if code is Exit.INTERRUPTED and received_codes:
            code = received_codes[-1]
        if code:
            raise SystemExit(int(code))

    return wrapper


def get_exit_code(error: Exception) -> Exit:
    """Give the exit code that stands for an error."""
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
    except Exception as error:  # noqa: BLE001  # a store's library, a disk: whatever it is, a person at a terminal wants a line
        if args.verbose:
            sys.stderr.write(str(redact(traceback.format_exc())))
        echo_err(redact(f"{type(error).__name__}: {error}"))
        return get_exit_code(error)


@contextmanager
def _allow_database_connections() -> Iterator[None]:
    """Let connections be found in Airflow's database too, not in the environment and in secrets backends only.

    Airflow has no public way to say that a process may ask the database; its own commands (connection_command.py) set this
    variable. tests/cli/test_terminal.py notices when that does not do any more.
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
def _redirect_logs(*, verbose: bool) -> Iterator[None]:
    """Write warnings (if it is to be verbose: everything of ours) to stderr, harmless, and nothing of any log to stdout."""
    package_logger, root, echo_handler = logging.getLogger(PACKAGE_NAME), logging.getLogger(), _EchoHandler()
    previous = package_logger.level, package_logger.propagate
    stdout_handlers = [
        each
        for each in root.handlers
        if isinstance(each, logging.StreamHandler) and each.stream is sys.stdout
    ]
    package_logger.addHandler(echo_handler)
    package_logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
    package_logger.propagate = False
    for handler in stdout_handlers:
        handler.setStream(sys.stderr)
    structlog_config = structlog.get_config()
    min_level = logging.DEBUG if verbose else logging.WARNING
    structlog.configure(processors=[_LogLineRenderer(min_level)], logger_factory=lambda *_: _EchoLogger())
    try:
        with warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore")  # Airflow's parts say of each other that they are deprecated
            yield
    finally:
        structlog.configure(
            processors=structlog_config["processors"], logger_factory=structlog_config["logger_factory"]
        )
        for handler in stdout_handlers:
            handler.setStream(sys.stdout)
        package_logger.removeHandler(echo_handler)
        package_logger.level, package_logger.propagate = previous


class _EchoHandler(logging.Handler):
    """Says each line of the log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        echo_err(f"{record.levelname.lower()}: {record.getMessage()}")


class _LogLineRenderer:
    """Makes a line of what Airflow's hooks log (theirs is a log of its own, which goes to stdout), from this level on."""

    def __init__(self, min_level: int) -> None:
        self._min_level = min_level

    def __call__(self, _: Any, method: str, event: Mapping[str, Any]) -> str:
        """Give the line.

        :raises structlog.DropEvent: nobody wants it.
        """
        if logging.getLevelNamesMapping().get(method.upper(), logging.ERROR) < self._min_level:
            raise structlog.DropEvent
        return f"{method}: {redact(str(event.get('event')))}"


class _EchoLogger:
    """Says whatever it is told, at any level."""

    def __getattr__(self, level: str) -> Callable[[str], None]:
        """Give the method of that level."""
        return echo_err
