"""Which reading of the vendors' documentation the emulator plays: one attribute a doubt, one word a reading.

It plays none of them itself: the routes and views ask here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass
class Switches:
    """Every doubt about the two APIs; an unknown name or value raises ValueError, which names it."""

    # Generio: how one answer looks -------------------------------------------------------------------------------
    # Both identifiers by default: the vendor's documentation reads one, the vendor's scripts the other (G-01).
    output_id: Literal["both", "asset_id", "id", "_id"] = "both"
    # The body of a single output: JSON with a data URI, JSON with more keys, the bare file, the bare data URI (G-02).
    download: Literal["json", "json_more", "raw", "text"] = "json"
    ready_word: Literal["ready", "available"] = "ready"
    # The time when an asset was processed, or one of the other things the pages say of that field (G-04).
    processed: Literal["timestamp", "bool", "null", "missing"] = "timestamp"
    # "late" (0.0, then 1.0) is the documentation's word; "smooth" is the default because people watch it (G-18).
    progress: Literal["smooth", "late", "steps", "missing", "null", "percent"] = "smooth"
    state_key: Literal["state", "status", "both"] = "state"
    state_case: Literal["lower", "upper"] = "lower"
    timestamps: Literal["zulu", "offset", "naive"] = "zulu"
    # Where a failed flow run says why; the vendor does not tell.
    error_field: Literal["error", "message", "details", "none"] = "error"
    # Keys around every answer; "hidden_errors" also turns refusals into 200 with success: false.
    envelope: Literal["none", "success", "hidden_errors"] = "none"
    # What creating a flow run answers (G-16), and what PATCH and DELETE answer.
    create_answer: Literal["full", "id"] = "full"
    acknowledgement: Literal["flow", "small", "empty"] = "flow"

    # Generio: refusals ---------------------------------------------------------------------------------------------
    auth_failure: Literal[401, 403] = 401
    conflict: Literal[409, 400, 403, 422, 425] = 409
    media_refusal: Literal[415, 422, 400] = 415
    # An id that is no ObjectId at all may be told from one that is merely unknown.
    malformed_id: Literal[404, 422, 400] = 404
    bad_parameter: Literal[422, 400, "fail"] = 422
    unknown_parameter: Literal["refuse", "ignore"] = "refuse"
    quota: Literal["plenty", 402, 403, 429] = "plenty"
    error_detail: Literal["string", "list", "object"] = "string"

    # Generio: what is accepted ------------------------------------------------------------------------------------
    # Generation A of the API knows `/input` and `file_data` (G-09).
    input_path: Literal["inputs", "both", "input"] = "inputs"
    swapped_data_uri: Literal["reject", "accept"] = "reject"
    bare_base64: Literal["reject", "accept"] = "reject"
    # A prompt that is a text/plain data URI: decoded, refused, or taken for the prompt itself (G-15).
    text_data_uri: Literal["accept", "reject", "literal"] = "accept"
    bmp: Literal["reject", "accept"] = "reject"

    # Generio: life of a flow run ------------------------------------------------------------------------------------
    # "finishes": the work is done before the abort gets to it.
    abort: Literal["visible", "instant", "finishes"] = "visible"
    # A failed or aborted flow run without partial outputs: an empty list, or a conflict (G-23).
    outputs_after_failure: Literal["empty", "refuse"] = "empty"
    # "later": for a while after the end of the flow run its outputs are only processing (G-03).
    outputs_ready: Literal["at_once", "later"] = "at_once"

    # Generio: the list of flow runs ---------------------------------------------------------------------------------
    list_endpoint: Literal["present", 404, 405] = "present"
    list_envelope: Literal["flows", "array"] = "flows"
    # "fields" selects fields beside the id (generation B), "fields_only" selects nothing else (G-06).
    filter_by: Literal["state", "fields", "fields_only", "ignore"] = "state"
    sort_order: Literal["descending", "ascending"] = "descending"
    # "silent" cuts the list at page_size and says nothing about it (G-08).
    paging: Literal["none", "offset", "page", "silent"] = "none"
    page_size: int = 20

    # Generio: the list of templates, whose fields are not documented (vendor-api 1.6) -------------------------------
    templates_endpoint: Literal["present", 404, 405] = "present"
    # A list of objects, a mapping by name, a JSON schema, the bare names, or nothing at all.
    template_parameters: Literal["list", "mapping", "schema", "names", "absent"] = "list"
    # Media types as they are, in objects, as the bare words of the vendor's README, or nothing at all.
    template_inputs: Literal["strings", "objects", "words", "absent"] = "strings"

    # PromptChainer --------------------------------------------------------------------------------------------------
    # Seconds that one run takes; None: as long as a flow run of Generio's.
    chain_seconds: float | None = None
    chain_key_in_body: bool = False
    chain_errors: Literal["error", "message", "text"] = "error"
    chain_content_type: Literal["json", "text"] = "json"
    # An array, an object with the array under that key, or the graph itself (P-03).
    info_answer: Literal["array", "data", "list", "graph"] = "array"
    run_answer: Literal["array", "outputs", "data", "list"] = "array"
    # "all" also lists the variables, "untyped" leaves `type` out (P-12).
    run_items: Literal["outputs", "all", "untyped"] = "outputs"
    # "map" answers upstream node id -> value, as the graph does (P-07).
    output_value: Literal["string", "map"] = "string"
    join: Literal["newline", "space", "first", "last"] = "newline"
    # A missing variable: refused with that status, or blank (P-09).
    missing_variable: Literal[400, 422, "blank"] = 400
    # A model that fails: status 500, or status 200 with an empty output, none, or no element at all (P-08).
    model_failure: Literal["none", "status", "empty", "null", "missing"] = "none"
    image_url_seconds: float = 3600.0

    def __setattr__(self, name: str, value: object) -> None:
        """Set one switch, unless its name or value is unknown."""
        validate_switch(name, value)
        super().__setattr__(name, value)

    def update(self, values: dict[str, Any]) -> None:
        """Set several switches, or none of them if one is wrong."""
        for name, value in values.items():
            validate_switch(name, value)
        for name, value in values.items():
            setattr(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return all switches by name."""
        return asdict(self)


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Switches)


def switch_choices(name: str) -> str:
    """Say in words what a switch can be set to."""
    hint = _hints()[name]
    if get_origin(hint) is Literal:
        return ", ".join(str(choice) for choice in get_args(hint))
    return {"page_size": "a whole number from 1", "chain_key_in_body": "true, false"}.get(name, "seconds")


def switch_names() -> list[str]:
    """Return the names of all switches."""
    return [field.name for field in fields(Switches)]


def validate_switch(name: str, value: object) -> None:
    """Raise ValueError unless there is such a switch and it can have that value."""
    if name not in _hints():
        raise ValueError(f"There is no switch {name!r}; there are {', '.join(switch_names())}")
    if not _is_valid_value(_hints()[name], value):
        raise ValueError(f"Switch {name!r} cannot be {value!r}; it can be {switch_choices(name)}")


def _is_valid_value(hint: object, value: object) -> bool:
    if get_origin(hint) is Literal:
        # Types are compared too, because True equals 1.
        return any(type(choice) is type(value) and choice == value for choice in get_args(hint))
    if hint is bool:
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if hint is int:
        return isinstance(value, int) and value >= 1
    if value is None:
        return type(None) in get_args(hint)
    return isinstance(value, int | float) and value >= 0
