"""Tests of what a flow takes, read from whatever a service may say of it, and of the check of an order against that.

Nothing is asked of anybody here: that the check comes before a run is shown in test_validation.py.
"""

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
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.graph import FlowGraph
from airflow_provider_flows.core.payload.data_uri import Content, encode
from airflow_provider_flows.core.problems import NOTHING_STARTED, Problems
from airflow_provider_flows.core.run import FlowInput
from airflow_provider_flows.core.validation import coerce_parameters, select_definition, validate_arguments
from airflow_provider_flows.emulator.promptchainer.graph import sample_graphs
from airflow_provider_flows.preflight import DEFINITION_TTL_SECONDS, DefinitionCache
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.services.generio.templates import parse_template
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


class Word(StrEnum):
    """A text that is not just a str."""

    LOW = "low"


def template(**told: Any) -> FlowDefinition:
    """Read a template that tells this of itself."""
    read = parse_template({"name": "t", **told})
    assert read is not None
    return read


def refusal(definition: FlowDefinition, inputs: Any, parameters: Any = None) -> str:
    """Give what the check says of an order, nothing if it fits."""
    findings = Problems()
    validate_arguments(definition, inputs, parameters, findings)
    return str(findings.error(NOTHING_STARTED)) if findings else ""


@pytest.mark.parametrize(
    "told",
    [
        [{"name": "seed", "type": "integer", "default": -1, "description": "d", "values": [1, 2, 3]}],
        [{"key": "seed", "type": "int", "default_value": -1, "help": "d", "enum": [1, 2, 3]}],
        [{"name": "A b", "id": "seed", "type": "INT", "default": -1, "help": "d", "options": [{"value": n} for n in (1, 2, 3)]}],
        [{"name": "seed", "description": "d", "schema": {"type": ["integer"], "default": -1, "enum": [1, 2, 3]}}],
        {"seed": {"type": "integer", "default": -1, "description": "d", "allowed_values": [1, 2, 3]}},
        {"type": "object", "properties": {"seed": {"type": "integer", "default": -1, "title": "d", "enum": [1, 2, 3]}}},
    ],
)  # fmt: skip
def test_parameters_are_read_in_every_shape(told: Any) -> None:
    """A parameter is the same, whatever its fields are called and whether it stands in a list, a mapping or a schema."""
    definition = template(parameters=told)
    assert definition.parameters == {"seed": Parameter("seed", ("integer",), -1, "d", (1, 2, 3))}
    assert definition.is_complete


@pytest.mark.parametrize(
    ("told", "parameter"),
    [
        (["seed"], Parameter("seed")),
        ({"seed": -1}, Parameter("seed", default=-1)),
        ({"seed": "integer"}, Parameter("seed", ("integer",))),
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
            Parameter("seed", ("integer",), minimum=1, maximum=9),
        ),
        ([{"name": "seed", "values": {"low": "Low"}}], Parameter("seed")),
        ([{"name": "seed", "min": 1, "max": True}], Parameter("seed", minimum=1)),
        ([{"name": "seed", "required": True}], Parameter("seed", required=True)),
        ([{"name": "seed", "required": True, "default": 3}], Parameter("seed", default=3)),
        ({"properties": {"seed": {}}, "required": ["seed", 7]}, Parameter("seed", required=True)),
    ],
)
def test_what_a_template_does_not_tell_is_not_there(told: Any, parameter: Parameter) -> None:
    """A word that nobody knows, values that contradict the type, and what is of the wrong shape count as not told."""
    assert template(parameters=told).parameters == {"seed": parameter}


@pytest.mark.parametrize(
    "told", [None, 7, "seed", [{"label": "x"}], [7], {"properties": {}, "additionalProperties": True}]
)
def test_names_that_are_not_all_told_are_not_checked(told: Any) -> None:
    """A parameter of any name goes through where the template's list cannot be read whole."""
    assert not template(parameters=told).is_complete
    assert not refusal(template(parameters=told, inputs="prompt"), PROMPT, {"anything": 1})


@pytest.mark.parametrize(
    ("told", "types"),
    [
        ({"input_types": ["text/plain", "prompt"]}, ("text/plain",)),
        ({"inputs": [{"type": "image/jpg"}, {"mime_type": "IMAGE/PNG"}]}, ("image/jpeg", "image/png")),
        ({"inputs": "png, jpg, .glb"}, ("image/png", "image/jpeg", "model/gltf-binary")),
        ({"inputs": ["image", "sketch"]}, ("image/*",)),
        ({"inputs": {"types": ["image/png"], "min": 1, "max": 2}}, ("image/png",)),
        (
            {"inputs": {"picture": {"type": "file", "formats": ["png"]}, "about": "prompt"}},
            ("image/png", "text/plain"),
        ),
        ({"inputs": ["image/tif", "model/GLB"]}, ("image/tiff", "model/gltf-binary")),
        ({"inputs": ["png/jpg", "image/webp"]}, ()),
        ({"inputs": ["image/png", 7]}, ()),
        ({"inputs": [None, "image/png"]}, ()),
        ({"inputs": {"required": True, "picture": "image/png"}}, ()),
        ({"inputs": None}, ()),
        ({}, ()),
    ],
)
def test_input_types_are_read_in_every_shape(told: dict[str, Any], types: tuple[str, ...]) -> None:
    """Media types are read from strings and objects, in standard names (G-11 to G-13); if one cannot be read, none is."""
    assert template(**told).inputs == types


def test_number_of_inputs_is_read() -> None:
    """How many inputs a run takes is read where it is told, and is no number below one."""
    counted = template(inputs={"types": ["prompt"], "min_items": 1, "maxItems": 2})
    assert (counted.min_inputs, counted.max_inputs) == (1, 2)
    lengths = template(
        inputs={"type": "prompt", "min": 3, "max": 1000}
    )  # of a prompt, for all that anybody knows
    assert (lengths.inputs, lengths.min_inputs, lengths.max_inputs) == (("text/plain",), None, None)
    assert template(min_inputs=2, max_inputs=0).min_inputs == 2
    assert template(min_inputs=True, max_inputs=0).max_inputs is None
    assert "inputs must be 2 at the most, not 3" in refusal(counted, PROMPT * 3)
    assert "inputs must be 3 at the least, not 1" in refusal(replace(counted, min_inputs=3), PROMPT)


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
def test_any_template_is_read_or_none(item: Any, given_parameters: Any) -> None:
    """No template, however malformed, raises anything, nor does a check against it anything but a FlowInputError."""
    definition = parse_template(item)
    if definition is not None:
        refusal(definition, [*PROMPT, PNG], {"name": given_parameters, "quality": "low"})
        refusal(definition, {"color": given_parameters})
        find_definition("t", [definition])
    ScriptedTransport(json_response({"templates": item if isinstance(item, list | dict) else [item]})).run(
        Generio().list_definitions()
    )


@pytest.mark.parametrize(
    "told",
    [
        {"templates": [{"id": "1", "name": "t"}]},
        {"templates": {"t": {"id": "1"}}},
        [{"_id": "1", "template_name": "t"}],
        {"data": [{"id": "1", "slug": "t"}]},
    ],
)
def test_list_of_templates_is_read_in_every_shape(told: Any) -> None:
    """A list, a mapping by name, wrapped or bare, gives the same flow, found by id and by name (G-26)."""
    known = ScriptedTransport(json_response(told)).run(Generio().list_definitions())
    assert [one.flow for one in known] == ["1"]
    assert find_definition("1", known) is find_definition("t", known) is known[0]


def test_list_of_templates_is_read_to_its_end() -> None:
    """Pages that are told of are read, so that a flow on the second one is known."""
    pages = {"templates": [{"name": "a"}], "page": 1, "pages": 2}, {"templates": ["b"], "page": 2, "pages": 2}
    script = ScriptedTransport(*map(json_response, pages))
    assert [one.flow for one in script.run(Generio().list_definitions())] == ["a", "b"]
    assert script.requests[1].query == {"page": "2"}


def test_flow_is_known_by_whatever_short_text_a_row_calls_it() -> None:
    """Which field a start takes is not documented: a row that says the word is the flow's."""
    known = [template(id="1", name="Text to 3D", reference="model_fromtext"), template(id="model_fromtext2")]
    assert find_definition("model_fromtext", known) is known[0]
    assert select_definition("model_fromtext", "generio", known, Problems()) is known[0]


def test_unknown_flow_is_told_with_the_nearest() -> None:
    """A flow that is not there is refused with the nearest names among all, with all there are, and with the way out."""
    known = [
        template(id=str(number), name=name)
        for number, name in enumerate(["model_fromprompt", "model_fromimage", "poem"])
    ]
    findings = Problems()
    assert select_definition("model_fromprmpt", "generio", known, findings) is None
    told = str(findings.error(NOTHING_STARTED))
    assert (
        "generio has no flow 'model_fromprmpt' (did you mean 'model_fromprompt' or 'model_fromimage'?)"
        in told
    )
    assert "'poem'. No flow run was made" in told
    assert "validate=False" in told


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("qualty", "low", "parameter 'qualty' is not known (did you mean 'quality'?)"),
        ("Seed", 1, "parameter 'Seed' is not known (did you mean 'seed'?)"),
        ("quality", "best", "parameters['quality'] must be 'low' or 'high', not 'best'"),
        ("quality", 1, "parameters['quality'] must be of type string, not 1"),
        ("quality", Word.LOW, ""),
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
def test_parameters_are_checked(name: str, value: Any, told: str) -> None:
    """Names, types and values are checked; a Boolean is no integer, an integer is a number, a text only if it spells one."""
    found = refusal(MODEL, PROMPT, {name: value})
    assert told in found
    assert bool(found) == bool(told)


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
def test_texts_are_sent_as_what_they_spell(types: tuple[str, ...], value: Any, sent: Any) -> None:
    """What a DAG's template gives for a number or a Boolean is one, unless a text will do there, or nothing is told."""
    definition = replace(MODEL, parameters={"it": Parameter("it", types, default="auto")})
    meanings = coerce_parameters(definition, {"it": value, "other": "3"})
    assert meanings == {"it": sent, "other": "3"}
    assert type((meanings or {})["it"]) is type(sent)


def test_null_is_sent_only_where_it_may_be_one() -> None:
    """A None for a parameter that takes no null leaves it to the service; one that is needed is refused."""
    definition = replace(
        MODEL, parameters={**MODEL.parameters, "mode": Parameter("mode", ("string",), required=True)}
    )
    given = {"seed": None, "extra": None, "anything": None, "mode": None, "other": None}
    assert coerce_parameters(definition, given) == {name: None for name in given if name != "seed"}
    assert coerce_parameters(definition, None) is None
    assert "parameters['mode'] must be of type string, not None" in refusal(
        definition, PROMPT, {"mode": None}
    )


def test_all_findings_are_told_at_once() -> None:
    """One error names everything that is wrong, what the flow takes, that nothing was made, and the way out."""
    definition = replace(MODEL, parameters={**MODEL.parameters, "mode": Parameter("mode", required=True)})
    told = refusal(definition, [PNG, *PROMPT, PNG], {"qualty": "low", "seed": "x", "mod": 1})
    assert told.startswith(
        "This does not fit the generio flow chairs: inputs[0], inputs[2] must be text/plain, not image/png; "
    )
    for part in (
        "'qualty' is not known (did you mean 'quality'?)",
        "parameters['seed'] must be of type integer, not 'x'",
        "parameter 'mode' is missing (did you mean 'mod'?)",
        "It takes text/plain, and the parameters quality ('low' or 'high'), seed (integer, 0 or more and 9 or less), ",
        "No flow run was made",
        "validate=False",
    ):
        assert part in told


IMAGES = FlowDefinition("i", "generio", inputs=("image/png", "image/jpeg"))
HERE = Path("x")


@pytest.mark.parametrize(
    ("takes", "item", "told"),
    [
        (IMAGES.inputs, PNG, ""),
        (IMAGES.inputs, FlowInput("data:image/jpg;base64,AAAA"), ""),
        (
            IMAGES.inputs,
            FlowInput("data: a prompt"),
            "inputs[0] must be image/png or image/jpeg, not a prompt (text/plain)",
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
def test_media_types_are_checked(takes: tuple[str, ...], item: FlowInput, told: str) -> None:
    """What is known of an input's type is compared with what the flow takes, by standard names (G-12, G-13)."""
    found = refusal(replace(IMAGES, inputs=takes), [item])
    assert told in found
    assert bool(found) == bool(told)


def test_mapping_for_a_flow_of_files_is_refused() -> None:
    """Variables for a flow that takes files are told as such, unless nothing is known of what it takes."""
    assert "inputs must be a list" in refusal(IMAGES, {"color": "red"})
    assert not refusal(replace(IMAGES, inputs=()), {"color": "red"})


def test_variables_are_checked_all_at_once() -> None:
    """Missing and unknown variables, values that no text can stand for, and parameters, in one error."""
    told = refusal(CHAIN, {"Color": "red", "xyz": None}, {"quality": "low"})
    for part in (
        "variable 'color' is missing (did you mean 'Color'?)",
        "variable 'item' is missing",
        "variable 'xyz' is not known",
        "inputs['xyz'] must be text, a number or a Boolean, not NoneType",
        "parameter 'quality' is not known; it has variables only",
        "It takes 'color', 'item'",
    ):
        assert part in told
    assert "inputs must be a mapping" in refusal(CHAIN, PROMPT)
    assert not refusal(CHAIN, {"color": "red", "item": 7})
    assert "variable 'color' is missing" in refusal(CHAIN, [])
    assert not refusal(replace(CHAIN, inputs=()), [])


def test_words_of_a_graph_are_variables_too() -> None:
    """A row's type is known in capitals and in the word that a graph has for it."""
    told = [
        {"name": "a", "type": "Variable"},
        {"name": "b", "type": "variableNode"},
        {"name": "c", "type": "outputNode"},
    ]
    definition = ScriptedTransport(json_response(told)).run(PromptChainer().get_definition("f"))
    assert (definition.inputs, definition.outputs, definition.is_complete) == (("a", "b"), ("c",), True)


@pytest.mark.parametrize(
    "told",
    [
        [],
        [{"name": "a"}, {"type": "variable"}],
        ["a", "b"],
        [{"name": "anything", "type": "input"}, {"name": "o"}],
    ],
)
def test_variables_that_are_not_all_told_are_not_checked(told: Any) -> None:
    """An answer of getFlowInfo that is empty or cannot be read whole refuses no name."""
    assert not refusal(
        ScriptedTransport(json_response(told)).run(PromptChainer().get_definition("f")), {"anything": "x"}
    )


def test_messages_are_bounded() -> None:
    """A service that tells thousands of long names, or a value of any length, makes no message that nobody can read."""
    known = [template(id=f"{number}{'n' * 5000}") for number in range(500)]
    findings = Problems()
    select_definition("x" * 100_000, "generio", known, findings)
    assert 0 < len(str(findings.error())) < 10_000
    assert len(refusal(MODEL, [PNG] * 5000, {"quality": "q" * 100_000})) < 10_000


def test_graph_file_is_read(tmp_path: Path) -> None:
    """The graph of a flow is the file of its id in the folder, a path or a URI; one that is not there is none."""
    (tmp_path / f"{SAMPLE}.json").write_text(json.dumps(sample_graphs()[SAMPLE].source))
    for folder in (str(tmp_path), f"{tmp_path.as_uri()}/"):
        found = load_graph(folder, SAMPLE)
        assert isinstance(found, FlowGraph)
        assert found.variables == tuple(sample_graphs()[SAMPLE].variables)
    assert load_graph(str(tmp_path), "other") is None
    assert load_graph(str(tmp_path / "nowhere"), SAMPLE) is None
    assert load_graph(None, SAMPLE) is None


@pytest.mark.parametrize(
    "flow",
    ["../secret", "..", ".", "", "a/b", "/etc/passwd", "a\\b", "a\x00b", "%2e%2e%2fsecret", "s3://x/y"],
)
def test_flow_never_leads_out_of_the_folder(tmp_path: Path, flow: str) -> None:
    """A flow id that is a path is the name of no file."""
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.json").write_text('{"nodes": [], "edges": []}')
    assert load_graph(str(tmp_path / "in"), flow) is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"[" * 5000, "no JSON"),
        (b"{}", "no list of nodes"),
        (b" " * (MAX_GRAPH_BYTES + 1), "larger than"),
    ],
)
def test_graph_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    """A file that is no flow graph, or far too large for one, is refused by its name and the connection's field."""
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(FlowInputError, match=told) as caught:
        load_graph(str(tmp_path), "f")
    assert f"{tmp_path}/f.json (field graphs of the connection)" in str(caught.value)
    assert caught.value.is_permanent


@pytest.mark.parametrize("folder", ["no-such-scheme://graphs", "no-such-scheme://user:secret@graphs"])
def test_store_that_cannot_be_asked_is_an_error_of_ours(tmp_path: Path, folder: str) -> None:
    """Whatever a store raises becomes a FlowInputError that shows no credentials; a folder in a file's place as well."""
    (tmp_path / "f.json").mkdir()
    for place in (folder, str(tmp_path)):
        with pytest.raises(FlowInputError, match="field graphs") as caught:
            load_graph(place, "f")
        assert "secret" not in str(caught.value)
        assert not caught.value.is_permanent


def test_answers_are_kept_for_a_moment() -> None:
    """What was told is not asked for again for a minute, unless it is wanted anew; an error is not kept."""
    now, asked = [0.0], []
    recent = DefinitionCache(lambda: now[0])

    def ask() -> int:
        asked.append(now[0])
        if len(asked) == 1:
            raise FlowInputError("no")
        return len(asked)

    with pytest.raises(FlowInputError):
        recent.get("a", ask)
    assert recent.get("a", ask) == (2, True)
    now[0] = DEFINITION_TTL_SECONDS - 1
    assert recent.get("a", ask) == (2, False)
    assert recent.get("b", ask) == (3, True)
    assert recent.get("a", ask, reload=True) == (4, True)
    now[0] += DEFINITION_TTL_SECONDS - 1
    assert recent.get("a", ask) == (4, False)
    now[0] += 1
    assert recent.get("a", ask) == (5, True)
    recent.clear()
    assert recent.get("a", ask) == (6, True)
