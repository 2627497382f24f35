"""Tests of the texts that no store accepts, where a response is read."""

from __future__ import annotations

import gzip
import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun
from airflow_provider_flows.core.responses import parse_bounded_json
from airflow_provider_flows.core.safe_text import decode_text, to_safe_text
from tests.support.stores import SAFE_PAIR, UNSAFE_TEXTS, assert_storable
from tests.support.versions import deserialize, serialize

PARTS = [
    r"\u0000", r"\ud83d", r"\uDE00", r"\uD83D\ude00", r"\u0041", r"\\", r"\n", r"\"", r"\/",
    "u0000", "d", "\0",
]  # fmt: skip


def replaced(text: str) -> str:
    """Return the text that is expected, by a search in the text itself."""
    return re.sub("[\0\ud800-\udfff]", "\ufffd", text)


def test_every_escape_is_read_as_json_says() -> None:
    """Whatever escapes surround them, exactly NUL and lone surrogates are replaced, in keys and values."""
    for parts in itertools.product(PARTS, repeat=4):
        text = f'"{"".join(parts)}"'
        expected = replaced(json.loads(text, strict=False))
        assert parse_bounded_json(f"{{{text}: [{text}]}}".encode()) == {expected: [expected]}, text


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    body=st.binary(max_size=200)
    | st.text(max_size=50).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
def test_any_bytes_are_a_storable_text(body: bytes) -> None:
    """Whatever a body contains, its text can be stored."""
    assert_storable(decode_text(body))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_of_json_are_read(encoding: str) -> None:
    """A text in any encoding that JSON may have is read as it is, with pairs of surrogates."""
    text = f"größer {SAFE_PAIR}"
    assert decode_text(text.encode(encoding)) == text
    assert parse_bounded_json(json.dumps([text]).encode(encoding)) == [text]


@pytest.mark.parametrize("unsafe", UNSAFE_TEXTS.values(), ids=UNSAFE_TEXTS)
def test_only_what_no_store_accepts_is_replaced(unsafe: str) -> None:
    """The rest of a text remains, also a pair of surrogates, as one character or as escapes."""
    assert to_safe_text(f"ä{unsafe}{SAFE_PAIR}") == f"ä\ufffd{SAFE_PAIR}"
    body = json.dumps(f"ä{unsafe}x{SAFE_PAIR}").encode()
    assert parse_bounded_json(body) == f"ä\ufffdx{SAFE_PAIR}"
    assert to_safe_text(f"ä{SAFE_PAIR}") == f"ä{SAFE_PAIR}"


def test_bytes_that_are_no_text_are_read_as_far_as_possible() -> None:
    """JSON with bytes that are not UTF-8 keeps its other texts; what is no JSON is still an error."""
    assert parse_bounded_json(b'{"a": "x\xff", "b": "y\x00"}') == {"a": "x\ufffd", "b": "y\ufffd"}
    with pytest.raises(ValueError, match="Expecting"):
        parse_bounded_json(gzip.compress(b'{"a": 1}'))


@pytest.mark.parametrize("key", ["__classname__", "__id__", "__type", "__var", "__version__", "__data__"])
def test_metadata_is_returned_by_an_xcom_as_it_was_stored(key: str) -> None:
    """Airflow's own keys, at any depth and in a saved run, neither fail a task nor create objects."""
    name = "airflow.sdk.definitions.asset.Asset"
    metadata = {"__type": name, "__var": {key: name}, "list": [{key: 2**64, "__version__": 1}]}
    run = FlowRun("r", "generio", outputs=(FlowOutput("n", additional=metadata),))
    for stored in (run.to_dict(), FlowRun.from_record(run.to_record()).to_dict(), run.to_record()):
        assert_storable(stored)
        assert deserialize(serialize(stored)) == stored
