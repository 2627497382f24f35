"""Switches: interpretations of what the vendors' documentation leaves open, one attribute each."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass
class Switches:
    """How the emulator behaves where the vendors' documentation is ambiguous; for provider developers.

    A provider has to work with every value of every switch. Tests of DAGs rarely need to change one.

    :raises ValueError: a name or value is unknown; also when an attribute is set.
    """

    # Generio: response bodies ------------------------------------------------------------------------------
    # The keys of an asset's id: the vendor's documentation reads one, the vendor's scripts read the other
    # (vendor_notes.md, G-01).
    output_id: Literal["both", "asset_id", "id", "_id"] = "both"
    # The body of a single output: JSON with a data URI, JSON with more keys, the file itself, the data URI
    # itself (vendor_notes.md, G-02).
    download: Literal["json", "json_more", "raw", "text"] = "json"
    # The status of an asset that can be downloaded (vendor_notes.md, G-03).
    ready_word: Literal["ready", "available"] = "ready"
    # The time when an asset was processed, or another value that the vendor's pages show in this field
    # (vendor_notes.md, G-04).
    processed: Literal["timestamp", "bool", "null", "missing"] = "timestamp"
    # "late" (0.0, then 1.0) follows the documentation; "smooth" is the default because people watch the
    # progress (vendor_notes.md, G-18).
    progress: Literal["smooth", "late", "steps", "missing", "null", "percent"] = "smooth"
    # The key, or keys, of a flow run's state (vendor_notes.md, G-28).
    state_key: Literal["state", "status", "both"] = "state"
    state_case: Literal["lower", "upper"] = "lower"
    # Timestamps end with Z, with +00:00, or without an offset.
    timestamps: Literal["zulu", "offset", "naive"] = "zulu"
    # The key of a failed flow run's error message, which the vendor does not document.
    error_field: Literal["error", "message", "details", "none"] = "error"
    # Additional keys in every response; "hidden_errors" also sends errors with status 200 and success: false.
    envelope: Literal["none", "success", "hidden_errors"] = "none"
    # The response to POST /flows: the flow run or only its id (vendor_notes.md, G-16).
    create_response: Literal["full", "id"] = "full"
    # The response to PATCH and DELETE: the flow run, a message, or an empty body.
    acknowledgement: Literal["flow", "small", "empty"] = "flow"

    # Generio: error responses ------------------------------------------------------------------------------
    # The status for a missing or invalid key, for both services (vendor_notes.md, G-24).
    auth_failure: Literal[401, 403] = 401
    # The status for an action that the flow run's state does not allow.
    conflict: Literal[409, 400, 403, 422, 425] = 409
    # The status for an input whose media type the template does not accept.
    unsupported_media: Literal[415, 422, 400] = 415
    # The status for an id that is not an ObjectId; an unknown ObjectId always gets 404.
    malformed_id: Literal[404, 422, 400] = 404
    # The status for an invalid parameter; "fail" accepts it, and the flow run fails.
    bad_parameter: Literal[422, 400, "fail"] = 422
    unknown_parameter: Literal["reject", "ignore"] = "reject"
    # The status for a start without credits, for both services; "plenty" means that credits never run out.
    quota: Literal["plenty", 402, 403, 429] = "plenty"
    # The type of `detail` where FastAPI sends a string.
    error_detail: Literal["string", "list", "object"] = "string"

    # Generio: accepted requests ----------------------------------------------------------------------------
    # The first version of the API has `/input` and `file_data` (vendor_notes.md, G-09).
    input_path: Literal["inputs", "both", "input"] = "inputs"
    # A data URI with comma and semicolon swapped, as some of the vendor's pages print it
    # (vendor_notes.md, G-10).
    swapped_data_uri: Literal["reject", "accept"] = "reject"
    # Base64 without the prefix of a data URI (vendor_notes.md, G-14).
    bare_base64: Literal["reject", "accept"] = "reject"
    # A prompt that is a text/plain data URI: decoded, rejected, or used as the prompt itself
    # (vendor_notes.md, G-15).
    text_data_uri: Literal["accept", "reject", "literal"] = "accept"
    # BMP images (vendor_notes.md, G-11).
    bmp: Literal["reject", "accept"] = "reject"

    # Generio: life of a flow run ---------------------------------------------------------------------------
    # "visible": the state is `aborting` for a while. "finishes": the flow run ends before the abort takes
    # effect.
    abort: Literal["visible", "instant", "finishes"] = "visible"
    # A failed or aborted flow run without partial outputs has an empty list or is a conflict
    # (vendor_notes.md, G-23).
    outputs_after_failure: Literal["empty", "reject"] = "empty"
    # "later": outputs are still processing for a while after the flow run completed (vendor_notes.md, G-03).
    outputs_ready: Literal["at_once", "later"] = "at_once"

    # Generio: list of flow runs ----------------------------------------------------------------------------
    # Whether GET /flows exists, or the status when it does not.
    list_endpoint: Literal["present", 404, 405] = "present"
    # An object with the list in `flows`, or the list itself.
    list_envelope: Literal["flows", "array"] = "flows"
    # `filter_by` names a state, fields to return in addition to the id, all fields to return, or nothing
    # (vendor_notes.md, G-06).
    filter_by: Literal["state", "fields", "fields_only", "ignore"] = "state"
    sort_order: Literal["descending", "ascending"] = "descending"
    # "silent" cuts the list at `page_size` without saying so (vendor_notes.md, G-08).
    paging: Literal["none", "offset", "page", "silent"] = "none"
    page_size: int = 20

    # Generio: list of templates, whose fields are not documented -------------------------------------------
    # Whether GET /templates exists, or the status when it does not.
    templates_endpoint: Literal["present", 404, 405] = "present"
    # A list of objects, an object by name, a JSON schema, a list of names, or no parameters at all
    # (vendor_notes.md, 1.6).
    template_parameters: Literal["list", "mapping", "schema", "names", "absent"] = "list"
    # Media types as strings, in objects, as the short names of the vendor's README, or no inputs at all
    # (vendor_notes.md, 1.6).
    template_inputs: Literal["strings", "objects", "words", "absent"] = "strings"

    # PromptChainer -----------------------------------------------------------------------------------------
    # Seconds that a flow run takes; null means as long as a Generio flow run.
    chain_seconds: float | None = None
    # Accept the key as `apiKey` in the body, too (vendor_notes.md, P-05).
    chain_key_in_body: bool = False
    # Error bodies: {"error": ...}, {"statusCode": ..., "message": ...}, or text (vendor_notes.md, P-06).
    chain_errors: Literal["error", "message", "text"] = "error"
    # The Content-Type of responses that are JSON (vendor_notes.md, P-10).
    chain_content_type: Literal["json", "text"] = "json"
    # The response of getFlowInfo: an array, an object with the array under this key, or the flow graph
    # (vendor_notes.md, P-03).
    info_response: Literal["array", "data", "list", "graph"] = "array"
    # The response of a run: an array, or an object with the array under this key.
    run_response: Literal["array", "outputs", "data", "list"] = "array"
    # "all" also lists the variables, "untyped" omits `type` (vendor_notes.md, P-12).
    run_items: Literal["outputs", "all", "untyped"] = "outputs"
    # "map" returns values by upstream node id, as in the flow graph (vendor_notes.md, P-07).
    output_value: Literal["string", "map"] = "string"
    # How the values of an output with several upstream nodes become one string.
    join: Literal["newline", "space", "first", "last"] = "newline"
    # The status for a missing variable; "blank" fills in an empty string (vendor_notes.md, P-09).
    missing_variable: Literal[400, 422, "blank"] = 400
    # A model that fails: status 500, or status 200 with an empty output, a null output, or without the
    # output (vendor_notes.md, P-08).
    model_failure: Literal["none", "status", "empty", "null", "missing"] = "none"
    # Seconds until the URL of an image expires.
    image_url_seconds: float = 3600.0

    def __setattr__(self, name: str, value: object) -> None:
        """Validate and set one switch."""
        validate_switch(name, value)
        super().__setattr__(name, value)

    def update(self, values: dict[str, Any]) -> None:
        """Set several switches by name, or none of them if one is not valid.

        :raises ValueError: a name or value is unknown.
        """
        for name, value in values.items():
            validate_switch(name, value)
        for name, value in values.items():
            setattr(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return all switches by name."""
        return asdict(self)


@cache
def _switch_types() -> dict[str, Any]:
    return get_type_hints(Switches)


def switch_choices(name: str) -> str:
    """Describe the values of a switch, for help texts and error messages."""
    hint = _switch_types()[name]
    if get_origin(hint) is Literal:
        return ", ".join(str(choice) for choice in get_args(hint))
    return {"page_size": "an integer of at least 1", "chain_key_in_body": "true, false"}.get(name, "seconds")


def switch_names() -> list[str]:
    """Return the names of all switches."""
    return [field.name for field in fields(Switches)]


def validate_switch(name: str, value: object) -> None:
    """Validate the name and value of a switch.

    :raises ValueError: the switch does not exist or cannot have the value.
    """
    if name not in _switch_types():
        raise ValueError(f"There is no switch {name!r}; there are {', '.join(switch_names())}")
    if not _is_valid_value(_switch_types()[name], value):
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
