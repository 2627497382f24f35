"""The libraries that checks need: jsonschema for texts, trimesh for meshes, and what is missing of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from airflow_provider_flows.checks.definitions import Check, GlbCheck, TextCheck
from airflow_provider_flows.checks.mesh import INSTALL_HINT, find_missing_modules
from airflow_provider_flows.core.limits import MAX_VERDICT_LENGTH
from airflow_provider_flows.core.responses import parse_bounded_json


def find_missing_requirements(checks: Sequence[Check]) -> Iterator[str]:
    """Yield why checks cannot be done in this process."""
    for check in checks:
        if isinstance(check, GlbCheck) and check.is_watertight and (missing := find_missing_modules()):
            yield (
                f"check_outputs has GlbCheck(is_watertight=True), which needs {' and '.join(missing)} in the "
                f"worker: {INSTALL_HINT}"
            )
        if isinstance(check, TextCheck) and check.json_schema is not None:
            yield from _find_schema_problems(check.json_schema)


def _find_schema_problems(schema: Any) -> Iterator[str]:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        yield f"TextCheck: json_schema is not a valid JSON Schema: {error.message}"


def compare_with_schema(text: str, schema: Any) -> Iterator[str]:
    """Yield why a text does not match a schema, without its content."""
    from jsonschema.exceptions import best_match
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        value = parse_bounded_json(text.encode())
    except ValueError as error:
        yield f"is no JSON, which json_schema needs: {error}"
        return
    # with a registry of its own the validator fetches no document that the schema refers to
    validator = validator_for(schema, default=Draft202012Validator)(schema, registry=Registry())
    try:
        mismatch = best_match(validator.iter_errors(value))
    except Unresolvable as unresolvable:
        yield f"cannot be compared with json_schema, which refers to {unresolvable.ref!r}"
        return
    if mismatch is not None:
        rule = f"{mismatch.validator}: {mismatch.validator_value!r}"[: MAX_VERDICT_LENGTH // 3]
        place = str(mismatch.json_path)[: MAX_VERDICT_LENGTH // 3]
        yield f"does not match json_schema at {place} ({rule})"
