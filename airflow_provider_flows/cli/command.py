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
from airflow_provider_flows.cli.signals import signals
from airflow_provider_flows.cli.terminal import INTERRUPTED, say
from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowError,
    FlowInputError,
    FlowNotFound,
    FlowRunAborted,
    FlowTimeout,
)

# the first that fits; any other error is Exit.FAILED
CODES: tuple[tuple[type[Exception], Exit], ...] = (
    (FlowInputError, Exit.USAGE),
    (AirflowNotFoundException, Exit.USAGE),  # there is no such connection
    (FlowRunAborted, Exit.ABORTED),
    (FlowTimeout, Exit.TIMEOUT),
    (FlowNotFound, Exit.NOT_FOUND),
    (FlowAuthError, Exit.REFUSED),
)
CONTEXT = "_AIRFLOW_PROCESS_CONTEXT"
OURS = __name__.partition(".")[0]


def command(function: Callable[[Namespace], Exit | None]) -> Callable[[Namespace], None]:
    """Make a command of a function: an error becomes one line on stderr, and an exit code.

    :raises SystemExit: with a code that is not 0.
    """

    @wraps(function)
    def framed(args: Namespace) -> None:
        with _own_log(verbose=args.verbose), _all_connections(), signals() as came:
            code = _code(function, args)
        if code is Exit.INTERRUPTED and came:
            code = came[-1]
        if code:
            raise SystemExit(int(code))

    return framed


def exit_of(error: Exception) -> Exit:
    """Give the exit code that stands for an error."""
    return next((code for kind, code in CODES if isinstance(error, kind)), Exit.FAILED)


def _code(function: Callable[[Namespace], Exit | None], args: Namespace) -> Exit:
    try:
        return function(args) or Exit.DONE
    except KeyboardInterrupt:
        say(INTERRUPTED)
        return Exit.INTERRUPTED
    except FlowError as error:
        say(error)
        return exit_of(error)
    except Exception as error:  # noqa: BLE001  # a store's library, a disk: whatever it is, a person at a terminal wants a line
        if args.verbose:
            sys.stderr.write(str(redact(traceback.format_exc())))
        say(redact(f"{type(error).__name__}: {error}"))
        return exit_of(error)


@contextmanager
def _all_connections() -> Iterator[None]:
    """Let connections be found in Airflow's database too, not in the environment and in secrets backends only.

    Airflow has no public way to say that a process may ask the database; its own commands (connection_command.py) set this
    variable. tests/cli/test_terminal.py notices when that does not do any more.
    """
    before = os.environ.get(CONTEXT)
    os.environ[CONTEXT] = "server"
    try:
        yield
    finally:
        os.environ.pop(CONTEXT)
        if before is not None:
            os.environ[CONTEXT] = before


@contextmanager
def _own_log(*, verbose: bool) -> Iterator[None]:
    """Write warnings (if it is to be verbose: everything of ours) to stderr, harmless, and nothing of any log to stdout."""
    ours, root, lines = logging.getLogger(OURS), logging.getLogger(), _Lines()
    before = ours.level, ours.propagate
    loud = [
        each
        for each in root.handlers
        if isinstance(each, logging.StreamHandler) and each.stream is sys.stdout
    ]
    ours.addHandler(lines)
    ours.setLevel(logging.DEBUG if verbose else logging.WARNING)
    ours.propagate = False
    for handler in loud:
        handler.setStream(sys.stderr)
    airflows = structlog.get_config()
    least = logging.DEBUG if verbose else logging.WARNING
    structlog.configure(processors=[_Least(least)], logger_factory=lambda *_: _Said())
    try:
        with warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore")  # Airflow's parts say of each other that they are deprecated
            yield
    finally:
        structlog.configure(processors=airflows["processors"], logger_factory=airflows["logger_factory"])
        for handler in loud:
            handler.setStream(sys.stdout)
        ours.removeHandler(lines)
        ours.level, ours.propagate = before


class _Lines(logging.Handler):
    """Says each line of the log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        say(f"{record.levelname.lower()}: {record.getMessage()}")


class _Least:
    """Makes a line of what Airflow's hooks log (theirs is a log of its own, which goes to stdout), from this level on."""

    def __init__(self, level: int) -> None:
        self._level = level

    def __call__(self, _: Any, method: str, event: Mapping[str, Any]) -> str:
        """Give the line.

        :raises structlog.DropEvent: nobody wants it.
        """
        if logging.getLevelNamesMapping().get(method.upper(), logging.ERROR) < self._level:
            raise structlog.DropEvent
        return f"{method}: {redact(str(event.get('event')))}"


class _Said:
    """Says whatever it is told, at any level."""

    def __getattr__(self, level: str) -> Callable[[str], None]:
        """Give the method of that level."""
        return say
