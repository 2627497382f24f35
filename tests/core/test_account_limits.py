"""Tests of the limits of an account: which runs count, and what a process starts beyond the last list."""

from __future__ import annotations

from typing import Any

import pendulum
import pytest

from airflow_provider_flows.core.account_limits import (
    DAY_SECONDS,
    MAX_START_SECONDS,
    AccountLimits,
    AccountUsage,
)
from airflow_provider_flows.core.exceptions import FlowQuotaExceeded
from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from tests.support.scripted_transport import NOON

HOUR = 3600.0


def create_run(state: FlowState, age: float | None) -> FlowRun:
    """Return a run that was created so many seconds before noon, or that has no time at all."""
    created_at = None if age is None else pendulum.from_timestamp(NOON - age)
    return FlowRun("id", "generio", state=state, raw_state=state.value, created_at=created_at)


def create_usage(*runs: tuple[FlowState, float | None], listed_at: float = NOON) -> AccountUsage:
    """Return the usage of an account with these runs."""
    usage = AccountUsage()
    usage.record_list([create_run(state, age) for state, age in runs], listed_at)
    return usage


@pytest.mark.parametrize(
    ("state", "age", "is_active", "is_of_this_day"),
    [
        (FlowState.RUNNING, HOUR, True, True),
        (FlowState.RUNNING, 30 * HOUR, True, False),
        (FlowState.RUNNING, None, True, False),
        (FlowState.STARTING, 1.0, True, True),
        (FlowState.ABORTING, HOUR, True, True),
        (FlowState.UNKNOWN, HOUR, True, True),
        (FlowState.CREATED, 1.0, True, True),  # about to be started
        (FlowState.CREATED, MAX_START_SECONDS, False, False),  # left behind, and never billed
        (FlowState.CREATED, None, False, False),
        (FlowState.COMPLETED, HOUR, False, True),
        (FlowState.FAILED, DAY_SECONDS - 1, False, True),
        (FlowState.ABORTED, DAY_SECONDS, False, False),
    ],
)
def test_which_runs_count(
    state: FlowState, age: float | None, *, is_active: bool, is_of_this_day: bool
) -> None:
    """A run that is not final counts as active, and one of the last 24 hours as one of the day."""
    assert (create_usage((state, age)).reserve(AccountLimits(max_active_runs=1), NOON) is None) is is_active
    usage = create_usage((state, age))
    if is_of_this_day:
        with pytest.raises(FlowQuotaExceeded):
            usage.reserve(AccountLimits(max_runs_per_day=1), NOON)
    else:
        assert usage.reserve(AccountLimits(max_runs_per_day=1), NOON) is not None


@pytest.mark.parametrize("limits", [{"max_active_runs": 2}, {"max_runs_per_day": 2}])
def test_starts_of_this_process_count_until_a_later_list(
    limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start in progress counts, and so does one that has ended since the last list was requested."""
    usage, account_limits = create_usage(), AccountLimits(**limits)

    def is_admitted() -> bool:
        try:
            return usage.reserve(account_limits, NOON) is not None
        except FlowQuotaExceeded:
            return False

    first = usage.reserve(account_limits, NOON)
    assert first is not None
    assert is_admitted()
    assert not is_admitted()
    monkeypatch.setattr("time.time", lambda: NOON + 2)
    with first.hold():
        pass
    usage.record_list([], NOON + 1)
    assert not is_admitted()
    usage.record_list([], NOON + 3)
    assert is_admitted()
    assert not is_admitted()


def test_a_reservation_expires() -> None:
    """A reservation for another process counts for a time only."""
    usage, limits = create_usage(), AccountLimits(max_active_runs=1)
    reservation = usage.reserve(limits, NOON)
    assert reservation is not None
    reservation.expires_at = NOON + 10
    assert usage.reserve(limits, NOON + 9) is None
    assert usage.reserve(limits, NOON + 10) is not None


def test_error_of_the_day_says_when_to_run_again() -> None:
    """The error names the field, and the time at which the oldest runs no longer count."""
    usage = create_usage(*((FlowState.COMPLETED, hours * HOUR) for hours in (1, 2, 23)))
    with pytest.raises(FlowQuotaExceeded, match="max_runs_per_day") as caught:
        usage.reserve(AccountLimits(max_runs_per_day=2), NOON)
    free_at = pendulum.from_timestamp(NOON - 2 * HOUR + DAY_SECONDS)
    assert f"from {free_at:%Y-%m-%d %H:%M:%S} UTC on" in str(caught.value)
    assert caught.value.is_permanent


def test_limits_decide_how_many_runs_are_listed() -> None:
    """Without limits nothing is counted; a large limit needs a long list."""
    assert not AccountLimits.from_extra({})
    assert AccountLimits(max_active_runs=1)
    assert AccountLimits(max_runs_per_day=5_000).listed_runs == 5_000
