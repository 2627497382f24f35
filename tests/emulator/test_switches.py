"""Tests that switches validate names and values, and that every value has a check."""

from __future__ import annotations

from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from airflow_provider_flows.emulator import Switches
from tests.emulator import test_switches_generio as generio
from tests.emulator import test_switches_promptchainer as promptchainer
from tests.emulator import test_switches_rules as rules


def test_every_value_of_every_switch_has_a_check() -> None:
    """Every value of every switch is covered by a check."""
    cases = set(generio.CHECKS.cases() + rules.CHECKS.cases() + promptchainer.CHECKS.cases())
    result = {name for name, _ in cases}
    for name, hint in get_type_hints(Switches).items():
        assert name in result
        expected = get_args(hint) if get_origin(hint) is Literal else ()
        assert {(name, value) for value in expected} <= cases


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("download", "zip"),
        ("auth_failure", "401"),
        ("bmp", True),
        ("page_size", 0),
        ("chain_seconds", -1),
        ("new", 1),
    ],
)
def test_an_unknown_value_is_rejected(name: str, value: object) -> None:
    """An unknown switch or value is rejected with the switch's name."""
    with pytest.raises(ValueError, match=name):
        setattr(Switches(), name, value)


def test_switches_are_set_together_or_not_at_all() -> None:
    """One wrong value among several changes nothing."""
    switches = Switches()
    with pytest.raises(ValueError, match="zip"):
        switches.update({"ready_word": "available", "download": "zip"})
    assert switches == Switches()
