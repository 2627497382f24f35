"""The values of command line arguments: functions that parse a text, or say what is wrong with it."""

from __future__ import annotations

import argparse
import json
from datetime import timedelta
from typing import Any, NoReturn

SECONDS_BY_UNIT = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
ANY_AGE = "any"


def parse_name_value(text: str) -> tuple[str, str]:
    """Split NAME=VALUE."""
    name, separator, value = text.partition("=")
    if not separator or not name.strip():
        message = f"{text!r} is not NAME=VALUE"
        raise argparse.ArgumentTypeError(message)
    return name.strip(), value


def parse_strict_json(text: str) -> Any:
    """Parse JSON, without the constants that only Python accepts."""

    def reject_constant(constant: str) -> NoReturn:
        raise ValueError(constant)

    # NaN and Infinity are not valid JSON, though Python parses them
    return json.loads(text, parse_constant=reject_constant)


def parse_parameter_argument(text: str) -> tuple[str, Any]:
    """Split NAME=VALUE; a value that is no JSON is a text."""
    name, value = parse_name_value(text)
    try:
        return name, parse_strict_json(value)
    except ValueError:
        return name, value


def parse_json_argument(text: str) -> Any:
    """Parse JSON."""
    try:
        return parse_strict_json(text)
    except ValueError as error:
        message = f"{text!r} is not JSON ({error})"
        raise argparse.ArgumentTypeError(message) from error


def parse_seconds(text: str) -> float:
    """Parse a positive number of seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 < seconds < float("inf"):
        message = f"{text!r} is not a number of seconds that is more than 0"
        raise argparse.ArgumentTypeError(message)
    return seconds


def parse_age(text: str) -> timedelta:
    """Parse a number of days, or a time with a unit, such as 12h."""
    number, unit = (text[:-1], text[-1:].lower()) if text[-1:].isalpha() else (text, "d")
    try:
        age = timedelta(seconds=float(number) * SECONDS_BY_UNIT[unit])
    except (ValueError, KeyError, OverflowError):
        age = timedelta(0)
    if age <= timedelta(0):
        message = f"{text!r} is not a number of days of more than 0, such as 30, or a time such as 12h"
        raise argparse.ArgumentTypeError(message)
    return age


def parse_reuse(text: str) -> timedelta | bool:
    """Parse an age, or `any`, which is True."""
    return text.lower() == ANY_AGE or parse_age(text)


def parse_count(text: str) -> int:
    """Parse a whole number of at least 0."""
    if not text.isdecimal():
        message = f"{text!r} is not a whole number of at least 0"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def parse_ratio(text: str) -> float:
    """Parse a number from 0 to 1."""
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1
    if not 0 <= ratio <= 1:
        message = f"{text!r} is not a number from 0 to 1"
        raise argparse.ArgumentTypeError(message)
    return ratio


def parse_run_count(text: str) -> int:
    """Parse a number of flow runs."""
    if not text.isdecimal():
        message = f"{text!r} is not a number of flow runs"
        raise argparse.ArgumentTypeError(message)
    return int(text)
