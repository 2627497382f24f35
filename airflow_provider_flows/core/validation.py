"""Whether an order fits what its flow takes: all that is wrong with it, said at once, before anybody pays.

It checks nothing that a service did not tell, and asks nobody (definitions.py of the package does).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.definition import FlowDefinition, Parameter, find
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.problems import Findings

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import FlowInput
    from airflow_provider_flows.core.service import Inputs

TEXT = "text/plain"
UNKNOWN = "application/octet-stream"  # says of a file that nobody knows what it is
MOST_NAMES = 50  # of flows, parameters, variables or inputs in one message
LONGEST = 80  # signs of a value or a name in a message
NUMBER = re.compile(r"[+-]?\d{1,300}(?P<part>\.\d{1,300})?(?P<power>[eE][+-]?\d{1,3})?", re.ASCII)
WAY_OUT = "If the service does take this, validate=False sends it unchecked."


def chosen(
    flow: str, service: str, known: Sequence[FlowDefinition], findings: Findings
) -> FlowDefinition | None:
    """Give the definition of a flow among those that there are; note that there is none, with the nearest matches."""
    found = find(flow, known)
    if found is None:
        nearest = _nearest(flow, [one.called for one in known] + [one.flow for one in known], most=3)
        findings.add(
            f"{service} has no flow {_shown(flow)}{nearest}. It has {_listed(one.called for one in known)}"
        )
        findings.frame(way_out=WAY_OUT)
    return found


def check(
    definition: FlowDefinition,
    inputs: Inputs,
    parameters: Mapping[str, Any] | None,
    findings: Findings,
    spoilt: Collection[str] = (),
) -> None:
    """Note what of inputs and parameters does not fit a flow, with the nearest match of each name, and what the flow takes.

    :param spoilt: those arguments of which it is known already that the flow's service takes nothing like them.
    """
    if "inputs" not in spoilt:
        findings.add(*_inputs(definition, inputs))
    if "parameters" not in spoilt:
        findings.add(*_parameters(definition, meant(definition, parameters) or {}))
    if findings:
        head = f"This does not fit the {definition.service} flow {definition.called}: "
        findings.frame(head, f"It takes {_taken(definition)}.", WAY_OUT)


def meant(definition: FlowDefinition, parameters: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Give parameters in the types that the flow takes: a text that spells a number or a Boolean where no text will do as that.

    A template of a DAG gives nothing but texts, `3` and `True` among them; a whole number may have come as 3.0; and a null where
    none will do is left out, which leaves it to the service.
    """
    if parameters is None:
        return None
    known = ((name, value, definition.parameters.get(str(name))) for name, value in parameters.items())
    return {
        name: value if one is None else _meant(one, value)
        for name, value, one in known
        if not _left_out(one, value)
    }


def _left_out(parameter: Parameter | None, value: Any) -> bool:
    if value is not None or parameter is None or parameter.required:
        return False
    return bool(parameter.types) and "null" not in parameter.types


def _meant(parameter: Parameter, value: Any) -> Any:
    types = parameter.types
    if "integer" in types and "number" not in types and isinstance(value, float) and value.is_integer():
        return int(value)
    named = any(_same(value, one) for one in (parameter.default, *parameter.values))
    if not isinstance(value, str) or not types or "string" in types or named:
        return value
    text = value.strip()
    if "boolean" in types and text.lower() in {"true", "false"}:
        return text.lower() == "true"
    read = NUMBER.fullmatch(text)
    if read is None or not {"integer", "number"} & {*types}:
        return value
    if read["part"] is None and read["power"] is None:
        return int(text)
    number = float(text)
    return number if "number" in types and math.isfinite(number) else value


def unsendable(variables: Mapping[Any, Any]) -> list[str]:
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
        return data_uri.normal_media_type(item.data.media_type)
    if item.data[:5].lower() != "data:":
        return TEXT
    try:
        return data_uri.decode(item.data).media_type
    except ValueError:  # a prompt that merely begins like a data URI
        return TEXT


def _inputs(definition: FlowDefinition, given: Inputs) -> list[str]:
    if definition.variables:
        return _variables(definition, given)
    if isinstance(given, Mapping):
        told = bool(definition.inputs)
        return (
            ["inputs must be a list of prompts and files; a mapping is for flows that have variables"]
            if told
            else []
        )
    return [*_number(definition, len(given)), *_media_types(definition.inputs, given)]


def _variables(definition: FlowDefinition, given: Inputs) -> list[str]:
    if not given:
        given = {}
    if not isinstance(given, Mapping):
        return ["inputs must be a mapping of variable names to values, such as {'color': 'red'}"]
    names = [str(name) for name in given]
    missing = [name for name in definition.inputs if name not in names]
    unknown = [name for name in names if name not in definition.inputs] if definition.whole else []
    return [
        *(f"variable {_shown(name)} is missing{_nearest(name, unknown)}" for name in missing),
        *(f"variable {_shown(name)} is not known{_nearest(name, definition.inputs)}" for name in unknown),
        *unsendable(given),
    ]


def _number(definition: FlowDefinition, given: int) -> Iterator[str]:
    least, most = definition.least_inputs, definition.most_inputs
    if least is not None and given < least:
        yield f"inputs must be {least} at the least, not {given}"
    if most is not None and given > most:
        yield f"inputs must be {most} at the most, not {given}"


def _media_types(taken: Collection[str], given: Sequence[FlowInput]) -> Iterator[str]:
    if not taken or not all("/" in kind for kind in taken):  # a word that is no media type may mean anything
        return
    wrong: dict[str, list[str]] = {}
    for number, item in enumerate(given):
        kind = media_type(item)
        if kind and kind != UNKNOWN and not any(_covers(one, kind) for one in taken):
            wrong.setdefault(kind, []).append(f"inputs[{number}]")
    for kind, places in wrong.items():
        shown = f"a prompt ({TEXT})" if kind == TEXT else cut(kind)
        yield f"{_listed(places, quoted=False)} must be {' or '.join(map(cut, taken))}, not {shown}"


def _covers(taken: str, kind: str) -> bool:
    if taken in {"*/*", UNKNOWN} or (taken.endswith("/*") and kind.startswith(taken[:-1])):
        return True
    texts = kind.startswith("text/") and taken.startswith(
        "text/"
    )  # which one a text is, only its author knows
    return texts or _plain(taken) == _plain(kind)


def _plain(kind: str) -> str:
    """Give a media type without what is said or left out at will: `audio/x-wav` is audio/wav, `image/svg+xml` image/svg."""
    main, _, sub = kind.partition("/")
    return f"{main}/{sub.removeprefix('x-').partition('+')[0]}"


def _parameters(definition: FlowDefinition, given: Mapping[str, Any]) -> Iterator[str]:
    known, names = definition.parameters, [str(name) for name in given]
    unknown = [name for name in names if name not in known] if definition.whole else []
    for name in unknown:
        where = (
            "; it has variables only, which belong into inputs"
            if definition.variables
            else _nearest(name, known)
        )
        yield f"parameter {_shown(name)} is not known{where}"
    for name, value in given.items():
        wanted = _wanted(known[str(name)], value) if str(name) in known else None
        if wanted:
            yield f"parameters[{_shown(name)}] must be {wanted}, not {_shown(value)}"
    for name, parameter in known.items():
        if parameter.required and name not in names:
            yield f"parameter {_shown(name)} is missing{_nearest(name, unknown)}"


def _wanted(parameter: Parameter, value: Any) -> str | None:
    """Say what a parameter must be if this value is not that; the default is always right, whatever else is told."""
    kind = _kind(value)
    if kind is None or (parameter.default is not None and _same(value, parameter.default)):
        return None
    if (
        parameter.types
        and kind not in parameter.types
        and not (kind == "integer" and "number" in parameter.types)
    ):
        return f"of type {parameter.type}"
    if kind in {"null", "array", "object"}:
        return None
    if parameter.values and not any(_same(value, allowed) for allowed in parameter.values):
        return _listed(parameter.values, " or ")
    if kind in {"integer", "number"} and not _within(parameter, value):
        return _bounds(parameter)
    return None


def _kind(value: Any) -> str | None:
    """Give JSON schema's word for a value; a Boolean is no integer here, although it is one to Python."""
    kinds = ((bool, "boolean"), (str, "string"), (int, "integer"), (float, "number"), (type(None), "null"))
    found = next((word for kind, word in kinds if isinstance(value, kind)), None)
    return found or (
        "object" if isinstance(value, Mapping) else "array" if isinstance(value, Sequence) else None
    )


def _same(value: Any, other: Any) -> bool:
    kinds = {_kind(value), _kind(other)}
    return (len(kinds) == 1 or kinds == {"integer", "number"}) and bool(value == other)


def _within(parameter: Parameter, value: float) -> bool:
    least, most = parameter.minimum, parameter.maximum
    return (least is None or value >= least) and (most is None or value <= most)


def _bounds(parameter: Parameter) -> str:
    least = None if parameter.minimum is None else f"{parameter.minimum} or more"
    most = None if parameter.maximum is None else f"{parameter.maximum} or less"
    return " and ".join(bound for bound in (least, most) if bound)


def _taken(definition: FlowDefinition) -> str:
    """Say what a flow takes."""
    if definition.variables:
        return _listed(definition.inputs) if definition.inputs else "no variables"
    inputs = " or ".join(map(cut, definition.inputs)) or "inputs of which nothing is told"
    told = [f"{cut(name)}{_described(one)}" for name, one in definition.parameters.items()]
    parameters = f"the parameters {_listed(told, quoted=False)}" if told else "no parameters"
    return f"{inputs}, and {parameters}" if told or definition.whole else inputs


def _described(parameter: Parameter) -> str:
    told = _listed(parameter.values, " or ") if parameter.values else parameter.type
    bounds = _bounds(parameter)
    return f" ({', '.join(part for part in (told, bounds) if part)})" if told or bounds else ""


def _nearest(name: str, among: Iterable[str], most: int = 1) -> str:
    """Word the nearest matches to a name, or nothing."""
    by_lower = {other.lower(): other for other in among}
    found = get_close_matches(name.lower(), by_lower, n=most)
    return f" (did you mean {' or '.join(_shown(by_lower[one]) for one in found)}?)" if found else ""


def _listed(things: Iterable[Any], joint: str = ", ", *, quoted: bool = True) -> str:
    """List names or values in a message, as many as anybody reads."""
    every = [_shown(thing) if quoted else str(thing) for thing in things]
    more = f"{joint}{len(every) - MOST_NAMES} more" if len(every) > MOST_NAMES else ""
    return joint.join(every[:MOST_NAMES]) + more


def _shown(value: Any) -> str:
    return cut(repr(value))


def cut(text: str) -> str:
    """Give as much of a text as is shown in a message."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
