"""Whether an order fits what its flow takes: all that is wrong with it, said at once, before anybody pays.

It checks nothing that a service did not tell, and asks nobody (definitions.py of the package does).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.definition import FlowDefinition, Parameter, find_definition
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.problems import Problems

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import FlowInput
    from airflow_provider_flows.core.service import Inputs

TEXT_MEDIA_TYPE = "text/plain"
UNKNOWN_MEDIA_TYPE = "application/octet-stream"  # says of a file that nobody knows what it is
MAX_LISTED_NAMES = 50  # of flows, parameters, variables or inputs in one message
MAX_QUOTED_LENGTH = 80  # signs of a value or a name in a message
NUMBER_PATTERN = re.compile(r"[+-]?\d{1,300}(?P<part>\.\d{1,300})?(?P<power>[eE][+-]?\d{1,3})?", re.ASCII)
VALIDATE_FALSE_HINT = "If the service does take this, validate=False sends it unchecked."


def select_definition(
    flow: str, service: str, definitions: Sequence[FlowDefinition], problems: Problems
) -> FlowDefinition | None:
    """Give the definition of a flow among those that there are; note that there is none, with the nearest matches."""
    definition = find_definition(flow, definitions)
    if definition is None:
        nearest = _suggest_names(
            flow, [one.display_name for one in definitions] + [one.flow for one in definitions], max_count=3
        )
        problems.add(
            f"{service} has no flow {_quote(flow)}{nearest}. It has {_join_values(one.display_name for one in definitions)}"
        )
        problems.context(hint=VALIDATE_FALSE_HINT)
    return definition


def validate_arguments(
    definition: FlowDefinition,
    inputs: Inputs,
    parameters: Mapping[str, Any] | None,
    problems: Problems,
    invalid: Collection[str] = (),
) -> None:
    """Note what of inputs and parameters does not fit a flow, with the nearest match of each name, and what the flow takes.

    :param spoilt: those arguments of which it is known already that the flow's service takes nothing like them.
    """
    if "inputs" not in invalid:
        problems.add(*_input_problems(definition, inputs))
    if "parameters" not in invalid:
        problems.add(*_parameter_problems(definition, coerce_parameters(definition, parameters) or {}))
    if problems:
        head = f"This does not fit the {definition.service} flow {definition.display_name}: "
        problems.context(head, f"It takes {_describe_accepted(definition)}.", VALIDATE_FALSE_HINT)


def coerce_parameters(
    definition: FlowDefinition, parameters: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Give parameters in the types that the flow takes: a text that spells a number or a Boolean where no text will do as that.

    A template of a DAG gives nothing but texts, `3` and `True` among them; a whole number may have come as 3.0; and a null where
    none will do is left out, which leaves it to the service.
    """
    if parameters is None:
        return None
    known = ((name, value, definition.parameters.get(str(name))) for name, value in parameters.items())
    return {
        name: value if one is None else _coerce(one, value)
        for name, value, one in known
        if not _is_omitted(one, value)
    }


def _is_omitted(parameter: Parameter | None, value: Any) -> bool:
    if value is not None or parameter is None or parameter.required:
        return False
    return bool(parameter.types) and "null" not in parameter.types


def _coerce(parameter: Parameter, value: Any) -> Any:
    types = parameter.types
    if "integer" in types and "number" not in types and isinstance(value, float) and value.is_integer():
        return int(value)
    is_known_value = any(_is_same_value(value, one) for one in (parameter.default, *parameter.values))
    if not isinstance(value, str) or not types or "string" in types or is_known_value:
        return value
    text = value.strip()
    if "boolean" in types and text.lower() in {"true", "false"}:
        return text.lower() == "true"
    match = NUMBER_PATTERN.fullmatch(text)
    if match is None or not {"integer", "number"} & {*types}:
        return value
    if match["part"] is None and match["power"] is None:
        return int(text)
    number = float(text)
    return number if "number" in types and math.isfinite(number) else value


def find_unsendable_variables(variables: Mapping[Any, Any]) -> list[str]:
    """Say which variables are nothing that a text can stand for."""
    wrong = {
        name: value for name, value in variables.items() if not isinstance(value, (str, int, float, bool))
    }
    return [
        f"inputs[{name!r}] must be text, a number or a Boolean, not {type(value).__name__}"
        for name, value in wrong.items()
    ]


def media_type(item: FlowInput) -> str | None:
    """Tell what an input is: what was seen when its file was read, what its data URI says, else text."""
    if not isinstance(item.data, str):
        return data_uri.normalize_media_type(item.data.media_type)
    if item.data[:5].lower() != "data:":
        return TEXT_MEDIA_TYPE
    try:
        return data_uri.decode(item.data).media_type
    except ValueError:  # a prompt that merely begins like a data URI
        return TEXT_MEDIA_TYPE


def _input_problems(definition: FlowDefinition, inputs: Inputs) -> list[str]:
    if definition.has_variables:
        return _variable_problems(definition, inputs)
    if isinstance(inputs, Mapping):
        has_media_types = bool(definition.inputs)
        return (
            ["inputs must be a list of prompts and files; a mapping is for flows that have variables"]
            if has_media_types
            else []
        )
    return [*_input_count_problems(definition, len(inputs)), *_media_type_problems(definition.inputs, inputs)]


def _variable_problems(definition: FlowDefinition, inputs: Inputs) -> list[str]:
    if not inputs:
        inputs = {}
    if not isinstance(inputs, Mapping):
        return ["inputs must be a mapping of variable names to values, such as {'color': 'red'}"]
    names = [str(name) for name in inputs]
    missing = [name for name in definition.inputs if name not in names]
    unknown = [name for name in names if name not in definition.inputs] if definition.is_complete else []
    return [
        *(f"variable {_quote(name)} is missing{_suggest_names(name, unknown)}" for name in missing),
        *(
            f"variable {_quote(name)} is not known{_suggest_names(name, definition.inputs)}"
            for name in unknown
        ),
        *find_unsendable_variables(inputs),
    ]


def _input_count_problems(definition: FlowDefinition, count: int) -> Iterator[str]:
    minimum, maximum = definition.min_inputs, definition.max_inputs
    if minimum is not None and count < minimum:
        yield f"inputs must be {minimum} at the least, not {count}"
    if maximum is not None and count > maximum:
        yield f"inputs must be {maximum} at the most, not {count}"


def _media_type_problems(accepted: Collection[str], inputs: Sequence[FlowInput]) -> Iterator[str]:
    if not accepted or not all(
        "/" in kind for kind in accepted
    ):  # a word that is no media type may mean anything
        return
    wrong: dict[str, list[str]] = {}
    for number, item in enumerate(inputs):
        kind = media_type(item)
        if (
            kind
            and kind != UNKNOWN_MEDIA_TYPE
            and not any(_matches_media_type(one, kind) for one in accepted)
        ):
            wrong.setdefault(kind, []).append(f"inputs[{number}]")
    for kind, names in wrong.items():
        description = f"a prompt ({TEXT_MEDIA_TYPE})" if kind == TEXT_MEDIA_TYPE else shorten(kind)
        yield f"{_join_values(names, quoted=False)} must be {' or '.join(map(shorten, accepted))}, not {description}"


def _matches_media_type(accepted: str, kind: str) -> bool:
    if accepted in {"*/*", UNKNOWN_MEDIA_TYPE} or (
        accepted.endswith("/*") and kind.startswith(accepted[:-1])
    ):
        return True
    texts = kind.startswith("text/") and accepted.startswith(
        "text/"
    )  # which one a text is, only its author knows
    return texts or _to_base_media_type(accepted) == _to_base_media_type(kind)


def _to_base_media_type(kind: str) -> str:
    """Give a media type without what is said or left out at will: `audio/x-wav` is audio/wav, `image/svg+xml` image/svg."""
    main, _, sub = kind.partition("/")
    return f"{main}/{sub.removeprefix('x-').partition('+')[0]}"


def _parameter_problems(definition: FlowDefinition, parameters: Mapping[str, Any]) -> Iterator[str]:
    known, names = definition.parameters, [str(name) for name in parameters]
    unknown = [name for name in names if name not in known] if definition.is_complete else []
    for name in unknown:
        where = (
            "; it has variables only, which belong into inputs"
            if definition.has_variables
            else _suggest_names(name, known)
        )
        yield f"parameter {_quote(name)} is not known{where}"
    for name, value in parameters.items():
        expectation = _get_expectation(known[str(name)], value) if str(name) in known else None
        if expectation:
            yield f"parameters[{_quote(name)}] must be {expectation}, not {_quote(value)}"
    for name, parameter in known.items():
        if parameter.required and name not in names:
            yield f"parameter {_quote(name)} is missing{_suggest_names(name, unknown)}"


def _get_expectation(parameter: Parameter, value: Any) -> str | None:
    """Say what a parameter must be if this value is not that; the default is always right, whatever else is told."""
    kind = _to_json_type(value)
    if kind is None or (parameter.default is not None and _is_same_value(value, parameter.default)):
        return None
    if (
        parameter.types
        and kind not in parameter.types
        and not (kind == "integer" and "number" in parameter.types)
    ):
        return f"of type {parameter.type}"
    if kind in {"null", "array", "object"}:
        return None
    if parameter.values and not any(_is_same_value(value, allowed) for allowed in parameter.values):
        return _join_values(parameter.values, " or ")
    if kind in {"integer", "number"} and not _is_within_bounds(parameter, value):
        return _describe_bounds(parameter)
    return None


def _to_json_type(value: Any) -> str | None:
    """Give JSON schema's word for a value; a Boolean is no integer here, although it is one to Python."""
    kinds = ((bool, "boolean"), (str, "string"), (int, "integer"), (float, "number"), (type(None), "null"))
    found = next((name for kind, name in kinds if isinstance(value, kind)), None)
    return found or (
        "object" if isinstance(value, Mapping) else "array" if isinstance(value, Sequence) else None
    )


def _is_same_value(value: Any, other: Any) -> bool:
    kinds = {_to_json_type(value), _to_json_type(other)}
    return (len(kinds) == 1 or kinds == {"integer", "number"}) and bool(value == other)


def _is_within_bounds(parameter: Parameter, value: float) -> bool:
    minimum, maximum = parameter.minimum, parameter.maximum
    return (minimum is None or value >= minimum) and (maximum is None or value <= maximum)


def _describe_bounds(parameter: Parameter) -> str:
    minimum = None if parameter.minimum is None else f"{parameter.minimum} or more"
    maximum = None if parameter.maximum is None else f"{parameter.maximum} or less"
    return " and ".join(bound for bound in (minimum, maximum) if bound)


def _describe_accepted(definition: FlowDefinition) -> str:
    """Say what a flow takes."""
    if definition.has_variables:
        return _join_values(definition.inputs) if definition.inputs else "no variables"
    inputs = " or ".join(map(shorten, definition.inputs)) or "inputs of which nothing is told"
    descriptions = [
        f"{shorten(name)}{_describe_parameter(one)}" for name, one in definition.parameters.items()
    ]
    parameters = (
        f"the parameters {_join_values(descriptions, quoted=False)}" if descriptions else "no parameters"
    )
    return f"{inputs}, and {parameters}" if descriptions or definition.is_complete else inputs


def _describe_parameter(parameter: Parameter) -> str:
    allowed = _join_values(parameter.values, " or ") if parameter.values else parameter.type
    bounds = _describe_bounds(parameter)
    return f" ({', '.join(part for part in (allowed, bounds) if part)})" if allowed or bounds else ""


def _suggest_names(name: str, candidates: Iterable[str], max_count: int = 1) -> str:
    """Word the nearest matches to a name, or nothing."""
    by_lower = {other.lower(): other for other in candidates}
    found = get_close_matches(name.lower(), by_lower, n=max_count)
    return f" (did you mean {' or '.join(_quote(by_lower[one]) for one in found)}?)" if found else ""


def _join_values(values: Iterable[Any], separator: str = ", ", *, quoted: bool = True) -> str:
    """List names or values in a message, as many as anybody reads."""
    every = [_quote(thing) if quoted else str(thing) for thing in values]
    more = f"{separator}{len(every) - MAX_LISTED_NAMES} more" if len(every) > MAX_LISTED_NAMES else ""
    return separator.join(every[:MAX_LISTED_NAMES]) + more


def _quote(value: Any) -> str:
    return shorten(repr(value))


def shorten(text: str) -> str:
    """Give as much of a text as is shown in a message."""
    return text if len(text) <= MAX_QUOTED_LENGTH else f"{text[:MAX_QUOTED_LENGTH]}..."
