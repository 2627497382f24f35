"""Validation of a request against a flow's definition, and the collection of its problems in one error."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_flows.core.definition import FlowDefinition, Parameter, find_definition
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.flow_run import UploadSource
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.template_problems import RUN_KEYS

if TYPE_CHECKING:
    from airflow_provider_flows.core.flow_run import FlowInput, Inputs

TEXT_MEDIA_TYPE = "text/plain"
UNKNOWN_MEDIA_TYPE = "application/octet-stream"  # the media type of a file of unknown format
MAX_LISTED_NAMES = 50  # of flows, parameters, variables or inputs in one message
MAX_QUOTED_LENGTH = 80  # characters of a value or a name in a message
NUMBER_PATTERN = re.compile(
    r"[+-]?\d{1,300}(?P<fraction>\.\d{1,300})?(?P<exponent>[eE][+-]?\d{1,3})?", re.ASCII
)
NOTHING_STARTED = "No flow run was created."
VALIDATE_FALSE_HINT = "If the service accepts it, validate=False sends it unchecked."


class Problems:
    """The problems of a request: unique, in the order of their detection, false while there are none.

    `invalid` has the arguments, or parts such as `inputs[1]`, that need no further validation.
    """

    def __init__(self) -> None:
        self.invalid: set[str] = set()
        self._permanent: dict[str, bool] = {}  # for each problem, whether a retry would have it too
        self._head = self._accepts = self._hint = ""

    def __len__(self) -> int:
        """Return the number of problems."""
        return len(self._permanent)

    def add(self, *texts: str, invalidates: str | None = None, is_permanent: bool = True) -> None:
        """Add problems.

        :param texts: one text for each problem.
        :param invalidates: the argument that needs no further validation because of them.
        :param is_permanent: whether a retry of the task would have the same problem.
        """
        for text in texts:
            self._permanent[text] = is_permanent or self._permanent.get(text, False)
        if texts and invalidates is not None:
            self.invalid.add(invalidates)

    @contextmanager
    def collect(self, invalidates: str | None = None) -> Iterator[None]:
        """Add a FlowInputError that the block raises, instead of propagating it."""
        try:
            yield
        except FlowInputError as error:
            self.add(str(error), invalidates=invalidates, is_permanent=error.is_permanent)

    def extend(self, others: Problems) -> None:
        """Add all problems and the context of another collection."""
        for text, is_permanent in others._permanent.items():
            self.add(text, is_permanent=is_permanent)
        self.invalid |= others.invalid
        self.context(others._head, others._accepts, others._hint)

    def context(self, head: str = "", accepts: str = "", hint: str = "") -> None:
        """Set the text around the problems.

        :param head: the text before them.
        :param accepts: the text after them, about what the flow accepts.
        :param hint: the last sentence, about what to do.
        """
        self._head, self._accepts = head or self._head, accepts or self._accepts
        self._hint = hint or self._hint

    def drop_hint(self) -> None:
        """Remove the last sentence, because it does not apply."""
        self._hint = ""

    def error(self, consequence: str = "") -> FlowInputError:
        """Return one exception with all problems; it is permanent if one of them is.

        :param consequence: a sentence about the request, such as NOTHING_STARTED.
        """
        summary = "; ".join(text.removesuffix(".") for text in self._permanent)
        parts = (f"{self._head}{summary}.", self._accepts, consequence, self._hint)
        message = " ".join(part for part in parts if part)
        return FlowInputError(message, is_permanent=any(self._permanent.values()))

    def raise_if_any(self, consequence: str = "") -> None:
        """Raise one exception with all problems, if there are any.

        :raises FlowInputError: there is at least one problem.
        """
        if self:
            raise self.error(consequence) from None  # the cause of a problem may contain secrets


@contextmanager
def collect_problems(problems: Problems | None) -> Iterator[Problems]:
    """Return `problems`, or a new collection that raises its problems at the end of the block.

    :raises FlowInputError: `problems` is None, and the block added a problem.
    """
    target = Problems() if problems is None else problems
    yield target
    if problems is None:
        target.raise_if_any()


def select_definition(
    flow: str, service: str, definitions: Sequence[FlowDefinition], problems: Problems
) -> FlowDefinition | None:
    """Return the definition of a flow, or None after adding a problem with the closest matches.

    :param service: the service's name, for the message.
    """
    try:
        definition = find_definition(flow, definitions)
    except FlowInputError as error:
        problems.add(str(error), invalidates="flow")
        problems.context(hint=VALIDATE_FALSE_HINT)
        return None
    if definition is None:
        names = [one.display_name for one in definitions]
        matches = suggest_names(flow, names + [one.flow for one in definitions], max_count=3)
        problems.add(f"{service} has no flow {_quote(flow)}{matches}. It has {_join_values(names)}")
        problems.context(hint=VALIDATE_FALSE_HINT)
    return definition


def validate_arguments(
    definition: FlowDefinition,
    inputs: Inputs,
    parameters: Mapping[str, Any] | None,
    problems: Problems,
    invalid: Collection[str] = (),
) -> None:
    """Add a problem for every input and parameter that does not match the definition.

    :param invalid: arguments that are not validated, because they are known to be invalid.
    """
    if "inputs" not in invalid:
        problems.add(*_input_problems(definition, coerce_inputs(definition, inputs)))
    if "parameters" not in invalid:
        problems.add(*_parameter_problems(definition, coerce_parameters(definition, parameters) or {}))
    if problems:
        head = f"The request does not match the {definition.service} flow {definition.display_name}: "
        problems.context(head, f"The flow takes {_describe_accepted(definition)}.", VALIDATE_FALSE_HINT)


def coerce_parameters(
    definition: FlowDefinition, parameters: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Return the parameters in the types that the flow takes.

    A templated DAG argument is a string such as `3` or `True`: where the flow takes no string, it becomes the
    number or Boolean that it represents. A float without a fraction becomes an integer where the flow takes
    integers. A None where the flow takes no null is left out, so that the service uses its default.
    """
    return None if parameters is None else _coerce_values(definition.parameters, parameters)


def coerce_inputs(definition: FlowDefinition, inputs: Inputs) -> Inputs:
    """Return the inputs, with variables whose types are documented in those types, as `coerce_parameters`."""
    if not definition.variables or not isinstance(inputs, Mapping):
        return inputs
    return _coerce_values(definition.variables, inputs)


def _coerce_values(known: Mapping[str, Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    rows = ((name, value, known.get(str(name))) for name, value in values.items())
    return {
        name: value if one is None else _coerce(one, value)
        for name, value, one in rows
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
    if match["fraction"] is None and match["exponent"] is None:
        return int(text)
    number = float(text)
    return number if "number" in types and math.isfinite(number) else value


def find_unsendable_values(variables: Mapping[Any, Any], *, accepts_files: bool) -> list[str]:
    """Return a problem for every variable that JSON cannot represent, at any depth.

    :param accepts_files: whether a file is sendable, as a data URI.
    """
    return [
        f"inputs[{name!r}] cannot be sent: {reason}"
        for name, value in variables.items()
        if (reason := _find_unsendable(value, accepts_files=accepts_files)) is not None
    ]


def _find_unsendable(value: Any, *, accepts_files: bool) -> str | None:
    def to_text(one: object) -> str:
        if isinstance(one, UploadSource):
            if accepts_files:
                return ""
            message = f"it is a file of type {one.media_type}, and the service takes no files there"
            raise TypeError(message)
        message = f"{type(one).__name__} is no JSON value"
        raise TypeError(message)

    try:
        json.dumps(value, allow_nan=False, default=to_text)
    except (TypeError, ValueError, RecursionError) as error:
        return str(error)
    return None


def find_unsendable_variables(variables: Mapping[Any, Any]) -> list[str]:
    """Return a problem for every variable that has no text form."""
    wrong = {
        name: value for name, value in variables.items() if not isinstance(value, (str, int, float, bool))
    }
    return [f"inputs[{name!r}] {_describe_unsendable(value)}" for name, value in wrong.items()]


def _describe_unsendable(value: Any) -> str:
    if isinstance(value, Mapping) and value.keys() >= RUN_KEYS:
        example = "\"{{ ti.xcom_pull('first')['outputs'][0]['value'] }}\""
        return f"is all that a task returned; pass one text of it, such as {example} for the task `first`"
    return f"must be text, a number or a Boolean, not {type(value).__name__}"


def media_type(item: FlowInput) -> str | None:
    """Return the media type of an input: of its file, of its data URI, else text."""
    if not isinstance(item.data, str):
        return data_uri.normalize_media_type(item.data.media_type)
    if item.data[:5].lower() != "data:":
        return TEXT_MEDIA_TYPE
    try:
        return data_uri.decode(item.data).media_type
    except ValueError:  # a prompt that starts with "data:"
        return TEXT_MEDIA_TYPE


def _input_problems(definition: FlowDefinition, inputs: Inputs) -> list[str]:
    if definition.has_variables:
        return _variable_problems(definition, inputs)
    if isinstance(inputs, Mapping):
        has_media_types = bool(definition.inputs)
        message = "inputs must be a list of prompts and files; a mapping is for flows that have variables"
        return [message] if has_media_types else []
    return [*_input_count_problems(definition, len(inputs)), *_media_type_problems(definition.inputs, inputs)]


def _variable_problems(definition: FlowDefinition, inputs: Inputs) -> list[str]:
    if not inputs:
        inputs = {}
    if not isinstance(inputs, Mapping):
        return ["inputs must be a mapping of variable names to values, such as {'color': 'red'}"]
    known = definition.variables or {name: Parameter(name, required=True) for name in definition.inputs}
    untyped = {} if definition.variables else inputs
    problems = _value_problems("variable", known, inputs, is_complete=definition.is_complete)
    return [*problems, *find_unsendable_variables(untyped)]


def _input_count_problems(definition: FlowDefinition, count: int) -> Iterator[str]:
    minimum, maximum = definition.min_inputs, definition.max_inputs
    if minimum is not None and count < minimum:
        yield f"the number of inputs must be at least {minimum}, not {count}"
    if maximum is not None and count > maximum:
        yield f"the number of inputs must be at most {maximum}, not {count}"


def _media_type_problems(accepted: Collection[str], inputs: Sequence[FlowInput]) -> Iterator[str]:
    if not accepted or not all("/" in kind for kind in accepted):  # a name without a slash can mean any type
        return
    wrong: dict[str, list[str]] = {}
    for number, item in enumerate(inputs):
        kind = media_type(item) or UNKNOWN_MEDIA_TYPE
        if kind != UNKNOWN_MEDIA_TYPE and not any(_matches_media_type(one, kind) for one in accepted):
            wrong.setdefault(kind, []).append(f"inputs[{number}]")
    for kind, names in wrong.items():
        expected = " or ".join(map(shorten, accepted))
        is_text = kind == TEXT_MEDIA_TYPE
        actual = f"a prompt or a text file ({TEXT_MEDIA_TYPE})" if is_text else shorten(kind)
        yield f"{_join_values(names, quoted=False)} must be {expected}, not {actual}"


def _matches_media_type(accepted: str, kind: str) -> bool:
    if accepted in {"*/*", UNKNOWN_MEDIA_TYPE}:
        return True
    if accepted.endswith("/*") and kind.startswith(accepted[:-1]):
        return True
    if kind.startswith("text/") and accepted.startswith("text/"):  # text formats cannot be distinguished
        return True
    return _to_base_media_type(accepted) == _to_base_media_type(kind)


def _to_base_media_type(kind: str) -> str:
    """Return a media type without optional parts, such as audio/wav for `audio/x-wav`."""
    main, _, sub = kind.partition("/")
    return f"{main}/{sub.removeprefix('x-').partition('+')[0]}"


def _parameter_problems(definition: FlowDefinition, parameters: Mapping[str, Any]) -> Iterator[str]:
    known = definition.parameters
    hint = "; the flow has only variables, which are passed as inputs"
    yield from _value_problems(
        "parameter",
        known,
        parameters,
        is_complete=definition.is_complete,
        hint=hint if definition.has_variables and not known else "",
    )


def _value_problems(
    kind: str, known: Mapping[str, Parameter], values: Mapping[Any, Any], *, is_complete: bool, hint: str = ""
) -> Iterator[str]:
    """Yield a problem for each unknown, invalid and missing value.

    :param kind: `parameter` or `variable`.
    :param is_complete: whether there are no others than the known ones.
    :param hint: the end of the problem of an unknown name, in place of the closest matches.
    """
    argument = "parameters" if kind == "parameter" else "inputs"
    names = [str(name) for name in values]
    unknown = [name for name in names if name not in known] if is_complete else []
    suggested = {match for name in unknown for match in find_closest_names(name, known)}  # named once
    for name in unknown:
        yield f"{kind} {_quote(name)} is not known{hint or suggest_names(name, known)}"
    for name, value in values.items():
        expectation = _get_expectation(known[str(name)], value) if str(name) in known else None
        if expectation:
            actual = "a file" if isinstance(value, UploadSource) else _quote(value)
            yield f"{argument}[{_quote(name)}] must be {expectation}, not {actual}"
    for name, one in known.items():
        if one.required and name not in names and name not in suggested:
            yield f"{kind} {_quote(name)} is missing"


def _get_expectation(parameter: Parameter, value: Any) -> str | None:
    """Return a description of the valid values if this value is invalid; the default is always valid."""
    kind = _to_json_type(value)
    if kind is None or (parameter.default is not None and _is_same_value(value, parameter.default)):
        return None
    is_integer_as_number = kind == "integer" and "number" in parameter.types
    if parameter.types and kind not in parameter.types and not is_integer_as_number:
        return f"of type {parameter.type}"
    if kind in {"null", "array", "object"}:
        return None
    if parameter.values and not any(_is_same_value(value, allowed) for allowed in parameter.values):
        return _join_values(parameter.values, " or ")
    if kind in {"integer", "number"} and not _is_within_bounds(parameter, value):
        return _describe_bounds(parameter)
    return None


def _to_json_type(value: Any) -> str | None:
    """Return the JSON Schema type of a value; a Boolean is not an integer, in contrast to Python."""
    if isinstance(value, UploadSource):
        return "string"  # it is sent as a data URI
    kinds = ((bool, "boolean"), (str, "string"), (int, "integer"), (float, "number"), (type(None), "null"))
    found = next((name for kind, name in kinds if isinstance(value, kind)), None)
    if found is not None:
        return found
    return "object" if isinstance(value, Mapping) else "array" if isinstance(value, Sequence) else None


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
    descriptions = _describe_parameters(definition.parameters)
    if definition.has_variables:
        variables = _join_values(definition.inputs) if definition.inputs else "no variables"
        if definition.variables:
            variables = _join_values(_describe_parameters(definition.variables), quoted=False)
        more = f", and the parameters {_join_values(descriptions, quoted=False)}" if descriptions else ""
        return variables + more
    inputs = " or ".join(map(shorten, definition.inputs)) or "inputs of undocumented types"
    if descriptions:
        return f"{inputs}, and the parameters {_join_values(descriptions, quoted=False)}"
    return f"{inputs}, and no parameters" if definition.is_complete else inputs


def _describe_parameters(parameters: Mapping[str, Parameter]) -> list[str]:
    return [f"{shorten(name)}{_describe_parameter(one)}" for name, one in parameters.items()]


def _describe_parameter(parameter: Parameter) -> str:
    allowed = _join_values(parameter.values, " or ") if parameter.values else parameter.type
    bounds = _describe_bounds(parameter)
    return f" ({', '.join(part for part in (allowed, bounds) if part)})" if allowed or bounds else ""


def reject_unknown_arguments(owner: str, unknown: Iterable[str], names: Sequence[str]) -> NoReturn:
    """Raise an error that names unknown arguments, the closest ones and all that exist.

    :param owner: what has these arguments.
    :raises FlowInputError: always.
    """
    problems = [f"{owner} has no argument {name!r}{suggest_names(name, names)}" for name in sorted(unknown)]
    message = f"{'; '.join(problems)}. Its arguments are {', '.join(names)}"
    raise FlowInputError(message)


def suggest_names(name: str, candidates: Iterable[str], max_count: int = 1) -> str:
    """Return ` (did you mean 'x'?)` with the closest matches of a name, or an empty string."""
    found = find_closest_names(name, candidates, max_count)
    return f" (did you mean {' or '.join(map(_quote, found))}?)" if found else ""


def find_closest_names(name: str, candidates: Iterable[str], max_count: int = 1) -> list[str]:
    """Return the closest matches of a name, without regard to case."""
    by_lower = {other.lower(): other for other in candidates}
    return [by_lower[one] for one in get_close_matches(name.lower(), by_lower, n=max_count)]


def _join_values(values: Iterable[Any], separator: str = ", ", *, quoted: bool = True) -> str:
    """Join names or values for a message, at most MAX_LISTED_NAMES of them."""
    every = [_quote(value) if quoted else str(value) for value in values]
    more = f"{separator}{len(every) - MAX_LISTED_NAMES} more" if len(every) > MAX_LISTED_NAMES else ""
    return separator.join(every[:MAX_LISTED_NAMES]) + more


def _quote(value: Any) -> str:
    return shorten(repr(value))


def shorten(text: str, max_length: int = MAX_QUOTED_LENGTH) -> str:
    """Return the first characters of a text, with an ellipsis if it was cut."""
    return text if len(text) <= max_length else f"{text[:max_length]}..."
