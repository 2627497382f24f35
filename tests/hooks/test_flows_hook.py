"""Tests of the hooks."""

from __future__ import annotations

import time

from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import GenerioHook


def test_run_has_its_expected_end(flow_emulator: Emulator) -> None:
    """`get_run` returns an active run with the end that its progress indicates; a final run has none."""
    flow_emulator.run_seconds = 3
    hook = GenerioHook("generio_default")
    run = hook.start("model_generate_fromprompt", "A chair")
    time.sleep(1.5)
    active = hook.get_run(run.flow_run_id)
    assert active.expected_end is not None
    assert active.started_at is not None
    assert 1.5 < (active.expected_end - active.started_at).total_seconds() < 6
    assert hook.wait(run.flow_run_id, 0.5, 0.5).expected_end is None
    assert hook.get_run(run.flow_run_id).expected_end is None
