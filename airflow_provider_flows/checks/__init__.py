"""Checks of a flow run's outputs, for the argument `check_outputs`: no person is needed to reject a model.

`GlbCheck`, `ImageCheck` and `TextCheck` read the files in the worker. A function that takes a `CheckedOutput`
is a check as well.
"""

from __future__ import annotations

from airflow_provider_flows.checks.definitions import CheckedOutput, GlbCheck, ImageCheck, TextCheck

__all__ = ["CheckedOutput", "GlbCheck", "ImageCheck", "TextCheck"]
