"""Tests of the run that replaces rejected ones: its seed, its fingerprint, and how it is saved."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_flows.core.check_retry import CheckRetry, choose_seed
from airflow_provider_flows.core.definition import FlowDefinition, Parameter
from airflow_provider_flows.core.flow_run import FlowRun
from airflow_provider_flows.core.start_or_resume import STAMP_KEY, RunRecord, RunRequest

PROBLEM = "model has 5,000,000 triangles, more than max_triangles (50,000)"


def create_request(**parameters: Any) -> RunRequest:
    """Return the request of a flow without inputs."""
    return RunRequest("flow", [], parameters)


def create_definition(**fields: Any) -> FlowDefinition:
    """Return the definition of a flow with a seed."""
    return FlowDefinition("flow", "generio", parameters={"seed": Parameter("seed", **fields)})


@pytest.mark.parametrize(
    ("request_seed", "fields", "low", "high"),
    [
        pytest.param({"seed": 7}, None, 1, 2**31 - 1, id="own"),
        pytest.param({"seed": "7"}, None, 1, 2**31 - 1, id="own, from a template"),
        pytest.param({}, {"types": ("integer",), "minimum": -1}, 1, 2**31 - 1, id="documented"),
        pytest.param({}, {"types": ("integer",), "minimum": 10, "maximum": 12}, 10, 12, id="few"),
        pytest.param({"seed": 4}, {"values": (3, 4)}, 3, 4, id="allowed values"),
    ],
)
def test_other_seed_is_within_the_bounds_and_the_same_for_each_try(
    request_seed: dict[str, Any], fields: dict[str, Any] | None, low: int, high: int
) -> None:
    """A seed that a try has chosen is chosen by the next one as well, and is not the author's."""
    request = create_request(**request_seed)
    definition = None if fields is None else create_definition(**fields)
    seeds = [choose_seed(request, definition, count) for count in (1, 2)]
    assert seeds == [choose_seed(request, definition, count) for count in (1, 2)]
    assert all(seed is not None and low <= seed <= high for seed in seeds)
    assert str(request_seed.get("seed")) not in map(str, seeds)


@pytest.mark.parametrize(
    ("request_seed", "fields"),
    [
        pytest.param({}, None, id="none"),
        pytest.param({"seed": "any"}, None, id="no integer"),
        pytest.param({"seed": True}, None, id="Boolean"),
        pytest.param({"seed": "a"}, {"types": ("string",)}, id="documented as a text"),
        pytest.param({}, {"types": ("string",)}, id="a text that the author has not set"),
        pytest.param({"seed": 3}, {"values": (3,)}, id="one allowed value"),
    ],
)
def test_flow_without_another_seed_is_run_as_it_is(
    request_seed: dict[str, Any], fields: dict[str, Any] | None
) -> None:
    """A seed that is no integer is the author's business."""
    definition = None if fields is None else create_definition(**fields)
    assert choose_seed(create_request(**request_seed), definition, 1) is None


def test_each_run_has_another_fingerprint() -> None:
    """Runs of the same request that replace each other are told apart, also without a seed."""
    request = create_request(quality="low")
    first = CheckRetry.after(None, "a", [PROBLEM], is_paid=True).with_request(request, None)
    second = CheckRetry.after(first, "b", [PROBLEM], is_paid=False).with_request(request, None)
    fingerprints = {request.fingerprint, first.get_fingerprint(request), second.get_fingerprint(request)}
    assert len(fingerprints) == 3
    assert (second.paid_runs, second.names("a"), second.names("b"), second.names(None)) == (
        1,
        True,
        True,
        False,
    )
    assert CheckRetry.after(second, "b", [], is_paid=True).rejected_runs[-1]["flow_run_id"] == "b"


def test_state_survives_a_record_and_a_stamp() -> None:
    """The record has all of it, and the stamp, which the service sees, has no reasons."""
    request = create_request(seed=7)
    state = CheckRetry.after(None, "a", [PROBLEM], is_paid=True).with_request(request, 9)
    record = RunRecord("f" * 64, 3, flow_run_id="b", check_retry=state.to_dict())
    restored = RunRecord.from_dict(json.loads(json.dumps(record.to_dict())))
    assert restored is not None
    assert CheckRetry.from_dict(restored.check_retry) == state
    run = FlowRun("b", "generio", additional={STAMP_KEY: json.loads(json.dumps(record.stamp))})
    assert "triangles" not in json.dumps(record.stamp)
    from_stamp = RunRecord.from_stamp(run)
    assert from_stamp is not None
    listed = CheckRetry.from_dict(from_stamp.check_retry)
    assert listed is not None
    assert (listed.base, listed.seed, listed.paid_runs) == (request.fingerprint, 9, 1)
    assert "check_retry" not in RunRecord("f" * 64, 3).stamp


@pytest.mark.parametrize(
    "data",
    [
        None,
        5,
        [],
        {},
        {"rejected_runs": []},
        {"rejected_runs": [{"flow_run_id": 5}], "base": "x"},
        {"rejected_runs": [5], "base": "x"},
        {"rejected_runs": [{"flow_run_id": "a"}], "base": 5},
        {"rejected_runs": [{"flow_run_id": "a"}], "base": "x", "seed": "7"},
        {"rejected_runs": [{"flow_run_id": "a"}], "base": "x", "seed": True},
    ],
)
def test_anything_else_is_no_state(data: Any) -> None:
    """A stamp is from the service, and may have anything."""
    assert CheckRetry.from_dict(data) is None


def test_state_is_bounded() -> None:
    """Neither many problems nor long ones fill the record."""
    state = CheckRetry.after(None, "a", ["x" * 9000] * 900, is_paid=True)
    for number in range(100):
        state = CheckRetry.after(state, str(number), ["x" * 9000] * 900, is_paid=True)
    restored = CheckRetry.from_dict(state.to_dict())
    assert restored is not None
    assert len(restored.rejected_runs) <= 20
    assert len(json.dumps(restored.to_dict())) < 20_000
