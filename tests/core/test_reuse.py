"""Tests of what identifies a request, of the arguments of a trigger, and of ages in words."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_flows.core.flow_run import FlowInput
from airflow_provider_flows.core.reuse import ReuseLookup, compute_fingerprint, format_age, is_fingerprint
from airflow_provider_flows.core.start_or_resume import RunRequest

REQUEST = RunRequest("chair", [FlowInput("A chair")], {"quality": "low", "seed": 7})
HOST = "https://api.example.com"
FINGERPRINT = compute_fingerprint("generio", HOST, REQUEST)


@pytest.mark.parametrize(
    ("service", "host", "changes", "is_same"),
    [
        pytest.param("generio", HOST, {}, True, id="same"),
        pytest.param("generio", HOST, {"parameters": {"seed": 7, "quality": "low"}}, True, id="order"),
        pytest.param("generio", HOST, {"additional": {"day": 1}}, True, id="metadata of the run"),
        pytest.param("generio", HOST, {"expected_outputs": ("model",)}, True, id="definition"),
        pytest.param("other", HOST, {}, False, id="service"),
        pytest.param("generio", "https://test.example.com", {}, False, id="host"),
        pytest.param("generio", HOST, {"flow": "table"}, False, id="flow"),
        pytest.param("generio", HOST, {"parameters": None}, False, id="parameters"),
        pytest.param("generio", HOST, {"inputs": [FlowInput("A chair", 1)]}, False, id="metadata of input"),
        pytest.param("generio", HOST, {"inputs": {"0": "A chair"}}, False, id="variables"),
    ],
)
def test_what_is_in_the_fingerprint(service: str, host: str, changes: dict[str, Any], is_same: bool) -> None:
    """Service, host, flow, inputs and parameters are, and nothing else is."""
    fingerprint = compute_fingerprint(service, host, replace(REQUEST, **changes))
    assert is_fingerprint(fingerprint)
    assert (fingerprint == FINGERPRINT) is is_same


def test_lookup_in_the_arguments_of_a_trigger() -> None:
    """A lookup is the same after it was stored."""
    lookup = ReuseLookup(FINGERPRINT, 1_700_000_000.5)
    assert ReuseLookup.from_list(lookup.to_list()) == lookup


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        FINGERPRINT,
        [FINGERPRINT],
        ["../../etc/passwd", 1.0],
        [FINGERPRINT.upper(), 1.0],
        [FINGERPRINT + "\n", 1.0],
        [FINGERPRINT, "now"],
        [FINGERPRINT, math.nan],
        [FINGERPRINT, 1.0, 2],
    ],
)
def test_no_lookup(values: Any) -> None:
    """Anything that is no lookup is none, such as a fingerprint that would name another file."""
    assert ReuseLookup.from_list(values) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "0 seconds"),
        (59, "59 seconds"),
        (3_600, "60 minutes"),
        (86_400, "24 hours"),
        (31 * 86_400, "31 days"),
        (math.inf, "any age"),
    ],
)
def test_age_in_words(seconds: float, words: str) -> None:
    """An age has the largest unit of which it has at least two."""
    assert format_age(seconds) == words
