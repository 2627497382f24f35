"""Tests of the parsers of flow definitions, and of the validation of requests against them."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_flows.core.definition import FlowDefinition, Parameter, find_definition
from airflow_provider_flows.core.exceptions import FlowInputError, FlowMalformed
from airflow_provider_flows.core.flow_run import FlowInput
from airflow_provider_flows.core.graph import FlowGraph
from airflow_provider_flows.core.payload.data_uri import Content, encode
from airflow_provider_flows.core.validation import (
    NOTHING_STARTED,
    Problems,
    coerce_inputs,
    coerce_parameters,
    select_definition,
    validate_arguments,
)
from airflow_provider_flows.emulator.graph import sample_graphs
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.services.generio.responses import parse_template
from airflow_provider_flows.services.promptchainer import PromptChainer
from airflow_provider_flows.storage.file_source import FileSource
from airflow_provider_flows.storage.graph_files import MAX_GRAPH_BYTES, load_graph
from tests.support.scripted_transport import ScriptedTransport, json_response

PROMPT = [FlowInput("a chair")]
PNG = FlowInput(encode(Content(b"\x89PNG\r\n\x1a\n", "image/png")))
CHAIN = FlowDefinition(
    "c", "promptchainer", inputs=("color", "item"), has_variables=True, outputs=("Text",), is_complete=True
)
SAMPLE = "clibnwpno000bmc0k9hvv3y7f"
ALL = (
    Parameter("quality", ("string",), "high", values=("low", "high")),
    Parameter("seed", ("integer",), -1, minimum=0, maximum=9),
    Parameter("scale", ("number",)),
    Parameter("texture", ("boolean",)),
    Parameter("tags", ("array",)),
    Parameter("extra", ("object", "null")),
    Parameter("anything"),
)
MODEL = FlowDefinition(
    "1",
    "generio",
    "chairs",
    inputs=("text/plain",),
    parameters={one.name: one for one in ALL},
    is_complete=True,
)


class StringSubclass(StrEnum):
    """A text that is not just a str."""

    LOW = "low"


def parse(**data: Any) -> FlowDefinition:
    """Parse a template with these fields."""
    read = parse_template({"name": "t", **data})
    assert read is not None
    return read


def validate(definition: FlowDefinition, inputs: Any, parameters: Any = None) -> str:
    """Return the problems of a request as one text, empty if there are none."""
    findings = Problems()
    validate_arguments(definition, inputs, parameters, findings)
    return str(findings.error(NOTHING_STARTED)) if findings else ""


@pytest.mark.parametrize(
    "data",
    [
        [{"name": "seed", "type": "integer", "default": -1, "description": "d", "values": [1, 2, 3]}],
        {"seed": {"type": "INTEGER", "default": -1, "description": "d", "values": [1, 2, 3]}},
        {
            "type": "object",
            "properties": {"seed": {"type": "integer", "default": -1, "title": "d", "enum": [1, 2, 3]}},
        },
    ],
)  # fmt: skip
def test_parameters_are_parsed_in_every_shape(data: Any) -> None:
    """A parameter is the same in a list, in a mapping by name and in a JSON Schema."""
    definition = parse(parameters=data)
    assert definition.parameters == {"seed": Parameter("seed", ("integer",), -1, "d", (1, 2, 3))}
    assert definition.is_complete


@pytest.mark.parametrize(
    ("data", "parameter"),
    [
        (["seed"], Parameter("seed")),
        ({"seed": -1}, Parameter("seed")),
        ({"seed": "integer"}, Parameter("seed")),
        ({"seed": None}, Parameter("seed")),
        ([{"name": "seed", "type": "magic"}], Parameter("seed")),
        ([{"name": "seed", "type": ["integer", "null"]}], Parameter("seed", ("integer", "null"))),
        ([{"name": "seed", "type": "integer", "default": None}], Parameter("seed", ("integer", "null"))),
        (
            [{"name": "seed", "type": "integer", "values": ["one", "two", "three"]}],
            Parameter("seed", ("integer",)),
        ),
        (
            [{"name": "seed", "type": "integer", "values": [1, 9]}],
            Parameter("seed", ("integer",)),
        ),
        ([{"name": "seed", "values": {"low": "Low"}}], Parameter("seed")),
        ([{"name": "seed", "minimum": 1, "maximum": True}], Parameter("seed", minimum=1)),
        ([{"name": "seed", "type": "int", "min": 1, "options": [1, 2, 3]}], Parameter("seed")),
        ([{"name": "seed", "required": True}], Parameter("seed")),
        ([{"name": "seed", "required": True, "default": 3}], Parameter("seed", default=3)),
        ({"properties": {"seed": {}}, "required": ["seed", 7]}, Parameter("seed", required=True)),
        (
            {"properties": {"seed": {"default": 3}}, "required": ["seed"]},
            Parameter("seed", default=3),
        ),
    ],
)
def test_undocumented_properties_are_none(data: Any, parameter: Parameter) -> None:
    """Unknown types, unknown fields and ambiguous values are not validated; the name is known."""
    assert parse(parameters=data).parameters == {"seed": parameter}


@pytest.mark.parametrize(
    "data", [None, 7, "seed", [{"label": "x"}], [7], {"properties": {}, "additionalProperties": True}]
)
def test_unknown_parameters_are_accepted_if_the_definition_is_incomplete(data: Any) -> None:
    """A parameter of any name is accepted if the template's parameters are not completely readable."""
    assert not parse(parameters=data).is_complete
    assert not validate(parse(parameters=data, inputs=["prompt"]), PROMPT, {"anything": 1})


@pytest.mark.parametrize(
    ("data", "types"),
    [
        ({"input_types": ["text/plain", "prompt"]}, ("text/plain",)),
        ({"inputs": [{"type": "image/jpg"}, {"type": "IMAGE/PNG"}]}, ("image/jpeg", "image/png")),
        ({"inputs": ["png", "jpg", "glb"]}, ("image/png", "image/jpeg", "model/gltf-binary")),
        ({"inputs": "png"}, ()),
        ({"inputs": [{"mime_type": "image/png"}]}, ()),
        ({"inputs": ["image", "sketch"]}, ("image/*",)),
        ({"inputs": {"types": ["image/png"], "min": 1, "max": 2}}, ()),
        ({"inputs": ["image/tif", "model/GLB"]}, ("image/tiff", "model/gltf-binary")),
        ({"inputs": ["png/jpg", "image/webp"]}, ()),
        ({"inputs": ["image/png", 7]}, ()),
        ({"inputs": [None, "image/png"]}, ()),
        ({"inputs": {"required": True, "picture": "image/png"}}, ()),
        ({"inputs": None}, ()),
        ({}, ()),
    ],
)
def test_input_types_are_parsed_in_every_shape(data: dict[str, Any], types: tuple[str, ...]) -> None:
    """Media types are parsed into standard names (G-11 to G-13); if one cannot be parsed, none is."""
    assert parse(**data).inputs == types


def test_number_of_inputs_is_checked() -> None:
    """The bounds in a definition are checked; Generio documents none, so a template has none."""
    counted = replace(MODEL, min_inputs=1, max_inputs=2)
    assert not validate(counted, PROMPT)
    assert "the number of inputs must be at most 2, not 3" in validate(counted, PROMPT * 3)
    assert "the number of inputs must be at least 3, not 1" in validate(
        replace(counted, min_inputs=3), PROMPT
    )
    undocumented = parse(inputs=["prompt"], min_inputs=2, max_inputs=2)
    assert (undocumented.min_inputs, undocumented.max_inputs) == (None, None)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
KEYS = [
    "name",
    "type",
    "default",
    "values",
    "enum",
    "min",
    "max",
    "required",
    "schema",
    "properties",
    "types",
]
ROWS = JSON | st.dictionaries(
    st.sampled_from(KEYS), JSON | st.sampled_from(["integer", "image/png", "string"]), max_size=6
)
ITEMS = (
    "template_id",
    "id",
    "name",
    "description",
    "parameters",
    "inputs",
    "outputs",
    "min_inputs",
    "max_inputs",
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    item=JSON | st.dictionaries(st.sampled_from(ITEMS), ROWS | st.lists(ROWS, max_size=3)),
    given_parameters=JSON,
)
def test_any_template_is_parsed_or_none(item: Any, given_parameters: Any) -> None:
    """A malformed template raises nothing, and a check against it raises FlowInputError only."""
    definition = parse_template(item)
    if definition is not None:
        validate(definition, [*PROMPT, PNG], {"name": given_parameters, "quality": "low"})
        validate(definition, {"color": given_parameters})
        find_definition("t", [definition])
    rows = item if isinstance(item, list) else [item]
    ScriptedTransport(json_response({"templates": rows})).run(Generio().list_definitions())


@pytest.mark.parametrize(
    "data",
    [
        {"templates": [{"id": "1", "name": "t"}]},
        [{"_id": "1", "template_name": "t"}],
        {"templates": [{"template_id": "1", "name": "t"}, "t", {"slug": "t"}]},
    ],
)
def test_list_of_templates_is_parsed_in_every_shape(data: Any) -> None:
    """A list, wrapped or bare, has the same flow, found by id and name (G-26); other rows are skipped."""
    known = ScriptedTransport(json_response(data)).run(Generio().list_definitions())
    assert [one.flow for one in known] == ["1"]
    assert find_definition("1", known) is find_definition("t", known) is known[0]


@pytest.mark.parametrize("body", [{"templates": {"t": {"id": "1"}}}, {"data": [{"id": "1"}]}, {}, "t"])
def test_other_shapes_of_the_list_are_malformed(body: Any) -> None:
    """A response without a list of templates is an error; otherwise every flow would be unknown."""
    with pytest.raises(FlowMalformed, match="contains no list of templates"):
        ScriptedTransport(json_response(body)).run(Generio().list_definitions())


def test_all_pages_of_templates_are_requested() -> None:
    """All pages are requested, so a flow on the second one is found."""
    pages = (
        {"templates": [{"name": "a"}], "page": 1, "pages": 2},
        {"templates": [{"name": "b"}], "page": 2, "pages": 2},
    )
    script = ScriptedTransport(*map(json_response, pages))
    assert [one.flow for one in script.run(Generio().list_definitions())] == ["a", "b"]
    assert script.requests[1].query == {"page": "2"}


def test_flow_is_found_by_any_short_text_of_its_row() -> None:
    """The field that a start refers to is not documented, so any field with the text matches."""
    known = [parse(id="1", name="Text to 3D", reference="model_fromtext"), parse(id="model_fromtext2")]
    assert find_definition("model_fromtext", known) is known[0]
    assert select_definition("model_fromtext", "generio", known, Problems()) is known[0]


def test_error_about_an_unknown_flow_has_the_nearest_name() -> None:
    """An unknown flow is rejected with the closest names, all names, and the way to skip the check."""
    known = [
        parse(id=str(number), name=name)
        for number, name in enumerate(["model_fromprompt", "model_fromimage", "poem"])
    ]
    findings = Problems()
    assert select_definition("model_fromprmpt", "generio", known, findings) is None
    data = str(findings.error(NOTHING_STARTED))
    assert (
        "generio has no flow 'model_fromprmpt' (did you mean 'model_fromprompt' or 'model_fromimage'?)"
        in data
    )
    assert "'poem'. No flow run was created" in data
    assert "validate=False" in data


@pytest.mark.parametrize(
    ("name", "value", "data"),
    [
        ("qualty", "low", "parameter 'qualty' is not known (did you mean 'quality'?)"),
        ("Seed", 1, "parameter 'Seed' is not known (did you mean 'seed'?)"),
        ("quality", "best", "parameters['quality'] must be 'low' or 'high', not 'best'"),
        ("quality", 1, "parameters['quality'] must be of type string, not 1"),
        ("quality", StringSubclass.LOW, ""),
        ("seed", "three", "parameters['seed'] must be of type integer, not 'three'"),
        ("seed", "3", ""),
        ("seed", "30", "parameters['seed'] must be 0 or more and 9 or less, not 30"),
        ("seed", "3.5", "of type integer, not '3.5'"),
        ("seed", True, "parameters['seed'] must be of type integer, not True"),
        ("seed", 3.0, ""),
        ("seed", 3.5, "parameters['seed'] must be of type integer, not 3.5"),
        ("seed", None, ""),
        ("seed", 10, "parameters['seed'] must be 0 or more and 9 or less, not 10"),
        ("seed", -2, "parameters['seed'] must be 0 or more"),
        ("seed", -1, ""),  # it is the default
        ("scale", 3, ""),
        ("scale", 3.5, ""),
        ("scale", True, "of type number"),
        ("texture", 1, "of type boolean"),
        ("texture", "True", ""),
        ("texture", "yes", "of type boolean"),
        ("texture", False, ""),
        ("tags", ["a"], ""),
        ("tags", "a", "of type array"),
        ("extra", {}, ""),
        ("extra", None, ""),
        ("extra", [], "of type object or null"),
        ("anything", object(), ""),
    ],
)
def test_parameters_are_checked(name: str, value: Any, data: str) -> None:
    """Names, types and values are checked; a Boolean is not an integer; a text may represent a number."""
    found = validate(MODEL, PROMPT, {name: value})
    assert data in found
    assert bool(found) == bool(data)


@pytest.mark.parametrize(
    ("types", "value", "sent"),
    [
        (("integer",), " -3 ", -3),
        (("integer",), 3.0, 3),
        (("integer",), "1e3", "1e3"),
        (("integer",), "9" * 400, "9" * 400),
        (("number",), "1.5", 1.5),
        (("number",), "2", 2),
        (("number",), "1e999", "1e999"),
        (("number",), 3.0, 3.0),
        (("boolean",), "False", False),
        (("boolean", "integer"), "1", 1),
        (("string", "integer"), "3", "3"),
        (("string",), "true", "true"),
        (("array",), "3", "3"),
        ((), "3", "3"),
        (("integer",), "auto", "auto"),
    ],
)
def test_strings_are_coerced_to_the_parameter_type(types: tuple[str, ...], value: Any, sent: Any) -> None:
    """A string is sent as the number or Boolean that it represents, unless the flow takes strings there."""
    definition = replace(MODEL, parameters={"it": Parameter("it", types, default="auto")})
    meanings = coerce_parameters(definition, {"it": value, "other": "3"})
    assert meanings == {"it": sent, "other": "3"}
    assert type((meanings or {})["it"]) is type(sent)


def test_null_is_sent_only_if_accepted() -> None:
    """A None for a parameter without null is omitted; for a required parameter it is rejected."""
    definition = replace(
        MODEL, parameters={**MODEL.parameters, "mode": Parameter("mode", ("string",), required=True)}
    )
    given = {"seed": None, "extra": None, "anything": None, "mode": None, "other": None}
    assert coerce_parameters(definition, given) == {name: None for name in given if name != "seed"}
    assert coerce_parameters(definition, None) is None
    assert "parameters['mode'] must be of type string, not None" in validate(
        definition, PROMPT, {"mode": None}
    )


def test_all_problems_are_reported_at_once() -> None:
    """One error names all problems, what the flow takes, that no run was created, and what to do."""
    definition = replace(MODEL, parameters={**MODEL.parameters, "mode": Parameter("mode", required=True)})
    data = validate(definition, [PNG, *PROMPT, PNG], {"qualty": "low", "seed": "x", "mod": 1})
    assert data.startswith(
        "The request does not match the generio flow chairs: "
        "inputs[0], inputs[2] must be text/plain, not image/png; "
    )
    for part in (
        "'qualty' is not known (did you mean 'quality'?)",
        "parameters['seed'] must be of type integer, not 'x'",
        "parameter 'mod' is not known (did you mean 'mode'?)",
        "The flow takes text/plain, and the parameters quality ('low' or 'high'), ",
        "seed (integer, 0 or more and 9 or less), ",
        "No flow run was created",
        "validate=False",
    ):
        assert part in data


IMAGES = FlowDefinition("i", "generio", inputs=("image/png", "image/jpeg"))
HERE = Path("x")


@pytest.mark.parametrize(
    ("takes", "item", "data"),
    [
        (IMAGES.inputs, PNG, ""),
        (IMAGES.inputs, FlowInput("data:image/jpg;base64,AAAA"), ""),
        (
            IMAGES.inputs,
            FlowInput("data: a prompt"),
            "inputs[0] must be image/png or image/jpeg, not a prompt or a text file (text/plain)",
        ),
        (IMAGES.inputs, FlowInput("a chair"), "not a prompt"),
        (IMAGES.inputs, FlowInput(FileSource("", HERE, "image/tiff", 1, "")), "not image/tiff"),
        (IMAGES.inputs, FlowInput(FileSource("", HERE, "application/octet-stream", 1, "")), ""),
        (IMAGES.inputs, FlowInput("data:;base64,AAAA"), ""),
        (("image/*",), FlowInput(FileSource("", HERE, "image/tiff", 1, "")), ""),
        (("image/*",), FlowInput("a chair"), "must be image/*"),
        (("text/markdown",), FlowInput("a chair"), ""),
        (("audio/wav",), FlowInput(FileSource("", HERE, "audio/x-wav", 1, "")), ""),
        (("image/svg",), FlowInput(FileSource("", HERE, "image/svg+xml", 1, "")), ""),
        (
            ("model/gltf+json",),
            FlowInput(FileSource("", HERE, "model/gltf-binary", 1, "")),
            "not model/gltf-binary",
        ),
        (("*/*",), PNG, ""),
        (("mesh",), PNG, ""),
        ((), PNG, ""),
    ],
)
def test_media_types_are_checked(takes: tuple[str, ...], item: FlowInput, data: str) -> None:
    """The media type of an input is compared with what the flow takes, by standard names (G-12, G-13)."""
    found = validate(replace(IMAGES, inputs=takes), [item])
    assert data in found
    assert bool(found) == bool(data)


def test_mapping_is_rejected_for_a_flow_with_files() -> None:
    """Variables for a flow with files are rejected, unless its inputs are not documented."""
    assert "inputs must be a list" in validate(IMAGES, {"color": "red"})
    assert not validate(replace(IMAGES, inputs=()), {"color": "red"})


MISSPELT: dict[str, tuple[dict[str, str], list[str]]] = {
    "one name": ({"colour": "red", "item": "ball"}, ["'colour' is not known (did you mean 'color'?)"]),
    "both names": (
        {"colour": "red", "itm": "ball"},
        ["'colour' is not known (did you mean 'color'?)", "'itm' is not known (did you mean 'item'?)"],
    ),
    "another name": ({"xyz": "red", "item": "ball"}, ["'xyz' is not known", "'color' is missing"]),
    "both spellings": ({"colour": "a", "color": "b"}, ["'item' is missing", "'colour' is not known"]),
}


@pytest.mark.parametrize("case", MISSPELT)
def test_misspelt_name_is_reported_once(case: str) -> None:
    """The right name is suggested for the wrong one, and not reported as missing as well."""
    inputs, problems = MISSPELT[case]
    message = validate(CHAIN, inputs)
    assert [problem for problem in problems if problem not in message] == []
    assert message.count(" is missing") == sum("is missing" in problem for problem in problems)
    assert message.count(" is not known") == sum("is not known" in problem for problem in problems)


def test_variables_are_checked_all_at_once() -> None:
    """Missing and unknown variables, values that no text can stand for, and parameters, in one error."""
    data = validate(CHAIN, {"Color": "red", "xyz": None}, {"quality": "low"})
    for part in (
        "variable 'Color' is not known (did you mean 'color'?)",
        "variable 'item' is missing",
        "variable 'xyz' is not known",
        "inputs['xyz'] must be text, a number or a Boolean, not NoneType",
        "parameter 'quality' is not known; the flow has only variables",
        "The flow takes 'color', 'item'",
    ):
        assert part in data
    assert "inputs must be a mapping" in validate(CHAIN, PROMPT)
    assert not validate(CHAIN, {"color": "red", "item": 7})
    assert "variable 'color' is missing" in validate(CHAIN, [])
    assert not validate(replace(CHAIN, inputs=()), [])


def test_variables_in_a_graph() -> None:
    """A row's type is known in capitals and in the word that a graph has for it."""
    data = [
        {"name": "a", "type": "Variable"},
        {"name": "b", "type": "variableNode"},
        {"name": "c", "type": "outputNode"},
    ]
    definition = ScriptedTransport(json_response(data)).run(PromptChainer().get_definition("f"))
    assert (definition.inputs, definition.outputs, definition.is_complete) == (("a", "b"), ("c",), True)


@pytest.mark.parametrize(
    "data",
    [
        [],
        [{"name": "a"}, {"type": "variable"}],
        ["a", "b"],
        [{"name": "anything", "type": "input"}, {"name": "o"}],
    ],
)
def test_variables_are_not_validated_if_the_definition_is_incomplete(data: Any) -> None:
    """If getFlowInfo returns nothing, or is not completely readable, no name is rejected."""
    assert not validate(
        ScriptedTransport(json_response(data)).run(PromptChainer().get_definition("f")), {"anything": "x"}
    )


def test_messages_are_bounded() -> None:
    """A message has a bounded length, whatever the number and the length of names and values."""
    known = [parse(id=f"{number}{'n' * 250}") for number in range(500)]
    findings = Problems()
    select_definition("x" * 100_000, "generio", known, findings)
    assert 0 < len(str(findings.error())) < 10_000
    assert len(validate(MODEL, [PNG] * 5000, {"quality": "q" * 100_000})) < 10_000


def test_graph_file_is_loaded(tmp_path: Path) -> None:
    """The graph of a flow is `<flow>.json` in the folder, a path or a URI; without a file it is None."""
    (tmp_path / f"{SAMPLE}.json").write_text(json.dumps(sample_graphs()[SAMPLE].source))
    for folder in (str(tmp_path), f"{tmp_path.as_uri()}/"):
        found = load_graph(folder, SAMPLE, "flows_default")
        assert isinstance(found, FlowGraph)
        assert found.variables == tuple(sample_graphs()[SAMPLE].variables)
    assert load_graph(str(tmp_path), "other", "flows_default") is None
    assert load_graph(str(tmp_path / "nowhere"), SAMPLE, "flows_default") is None
    assert load_graph(None, SAMPLE, "flows_default") is None


def test_unusual_graph_file_is_used_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A doubled id, a loose edge and a byte order mark do not reject an exported file; the log names it."""
    nodes = [{"id": "a", "type": "variableNode", "data": {"variable": {"label": label}}} for label in "xy"]
    graph = {"nodes": nodes, "edges": [{"source": "a"}]}
    (tmp_path / "f.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(graph).encode())
    found = load_graph(str(tmp_path), "f", "flows_default")
    assert found is not None
    assert found.variables == ("x", "y")
    assert f"{tmp_path}/f.json is unusual: nodes[1] has the same id as nodes[0]" in caplog.text


@pytest.mark.parametrize(
    "flow",
    ["../secret", "..", ".", "", "a/b", "/etc/passwd", "a\\b", "a\x00b", "%2e%2e%2fsecret", "s3://x/y"],
)
def test_graph_file_is_never_outside_the_folder(tmp_path: Path, flow: str) -> None:
    """A flow id that is a path is the name of no file."""
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.json").write_text('{"nodes": [], "edges": []}')
    assert load_graph(str(tmp_path / "in"), flow, "flows_default") is None


@pytest.mark.parametrize(
    ("content", "data"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b"{}", "no list of nodes"),
        (b" " * (MAX_GRAPH_BYTES + 1), "larger than"),
    ],
)
def test_graph_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, data: str) -> None:
    """A file that is not a flow graph, or is too large, is rejected with its name and the field."""
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(FlowInputError, match=data) as caught:
        load_graph(str(tmp_path), "f", "flows_default")
    assert f"{tmp_path}/f.json (field graphs of connection 'flows_default')" in str(caught.value)
    assert caught.value.is_permanent


@pytest.mark.parametrize("folder", ["no-such-scheme://graphs", "no-such-scheme://user:secret@graphs"])
def test_unreachable_store_is_a_flow_error(tmp_path: Path, folder: str) -> None:
    """An error of the store becomes a FlowInputError without credentials, also for a folder as the file."""
    (tmp_path / "f.json").mkdir()
    for place in (folder, str(tmp_path)):
        with pytest.raises(FlowInputError, match="field graphs") as caught:
            load_graph(place, "f", "flows_default")
        assert "secret" not in str(caught.value)
        assert not caught.value.is_permanent


TYPED = FlowDefinition(
    "m",
    "predictions",
    variables={
        "prompt": Parameter("prompt", ("string",), required=True),
        "scale": Parameter("scale", ("integer",), default=2, minimum=1, maximum=8),
        "mode": Parameter("mode", ("string",), values=("fast", "good")),
        "tags": Parameter("tags", ("array",)),
        "extra": Parameter("extra", ("object", "null")),
        "anything": Parameter("anything"),
    },
    parameters={"seed": Parameter("seed", ("integer",))},
    is_complete=True,
)


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"prompt": "a"}, ""),
        ({"prompt": "a", "scale": "3", "tags": ["x", "y"], "extra": {"a": 1}, "anything": [1]}, ""),
        ({"prompt": "a", "scale": None, "extra": None}, ""),
        ({}, "variable 'prompt' is missing"),
        ({"prompt": None}, "inputs['prompt'] must be of type string, not None"),
        ({"prompt": ["a"]}, "inputs['prompt'] must be of type string, not ['a']"),
        ({"prompt": "a", "scale": 9}, "inputs['scale'] must be 1 or more and 8 or less, not 9"),
        ({"prompt": "a", "scale": "many"}, "inputs['scale'] must be of type integer, not 'many'"),
        ({"prompt": "a", "mode": "best"}, "inputs['mode'] must be 'fast' or 'good', not 'best'"),
        ({"prompt": "a", "tags": "x"}, "inputs['tags'] must be of type array, not 'x'"),
        ({"prompt": "a", "extra": [1]}, "inputs['extra'] must be of type object or null, not [1]"),
        ({"prompt": "a", "tag": []}, "variable 'tag' is not known (did you mean 'tags'?)"),
    ],
)
def test_typed_variables_are_checked(variables: dict[str, object], problem: str) -> None:
    """Variables have types, lists among them, bounds and allowed values, and need not be required."""
    found = validate(TYPED, variables)
    assert problem in found
    assert bool(found) == bool(problem)
    assert TYPED.has_variables
    assert TYPED.inputs == tuple(TYPED.variables)


def test_typed_variables_are_converted() -> None:
    """A variable that a template has rendered becomes what it spells; a None for a default is left out."""
    given = {"prompt": "1", "scale": "3", "tags": ["1"], "extra": None, "mode": None, "other": "4"}
    expected = {"prompt": "1", "scale": 3, "tags": ["1"], "extra": None, "other": "4"}
    assert coerce_inputs(TYPED, given) == expected
    assert coerce_inputs(CHAIN, given) is given
    assert coerce_inputs(TYPED, PROMPT) is PROMPT


def test_a_flow_with_variables_and_parameters_has_both() -> None:
    """Nobody is told that a flow has variables only if it has parameters: the closest of these is named."""
    found = validate(TYPED, {"prompt": "a"}, {"sed": 1})
    assert "parameter 'sed' is not known (did you mean 'seed'?)" in found
    assert "only variables" not in found
    assert "anything, and the parameters seed (integer)" in found
    both = replace(CHAIN, parameters=TYPED.parameters)
    found = validate(both, {"color": "red", "item": "ball"}, {"seed": "x", "speed": 1})
    assert "parameters['seed'] must be of type integer" in found
    assert "only variables" not in found
    assert "The flow takes 'color', 'item', and the parameters seed (integer)" in found
