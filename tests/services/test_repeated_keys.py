"""Tests that the API key never comes out of a response that repeats it, whichever its spelling and place."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.flow_run import FlowInput
from airflow_provider_flows.core.http import Conversation
from airflow_provider_flows.core.payload.download import DownloadSink, download_file
from airflow_provider_flows.core.payload.sink import MemoryBuffer
from airflow_provider_flows.core.redaction import mask_values
from airflow_provider_flows.core.responses import parse_bounded_json
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.services.promptchainer import PromptChainer
from tests.support.drivers import DRIVERS, settings_for
from tests.support.hostile import HostileServer
from tests.support.hostile.texts import LONG_TOKEN, PLACES, SPELLINGS, TOKEN, find_key, key_behaviour

G, P = Generio(), PromptChainer()
READERS: dict[str, Callable[[], Conversation[Any]]] = {
    "run": lambda: G.get_run("r"),
    "runs": G.list_runs,
    "outputs": lambda: G.list_outputs("r"),
    "outputs with data": lambda: G.list_outputs("r", include_data=True),
    "definitions": G.list_definitions,
    "input": lambda: G.add_input("r", FlowInput("p")),
    "chain": lambda: P.start("f", {}, None, None),
    "file": lambda: download_file("/file", DownloadSink(MemoryBuffer())),
}


def read(driver: str, reader: str, behaviour: str, key: str) -> str:
    """Return everything that a reader returns or raises, also the causes of an error, as a text."""
    with HostileServer(behaviour) as server:
        settings = settings_for(server.url, credentials={"Authorization": f"Bearer {key}"})
        try:
            value = DRIVERS[driver](settings, READERS[reader]())
        except FlowError as error:
            chain: list[BaseException | None] = [error, error.__cause__, error.__context__]
            return " ".join(f"{one} {one!r} {getattr(one, 'media_type', '')}" for one in chain)
    values = value if isinstance(value, list) else [value]
    return " ".join(
        f"{one} {one!r} {vars(one) if hasattr(one, '__dict__') else ''} {getattr(one, 'raw', '')} "
        f"{one.to_dict() if hasattr(one, 'to_dict') else ''} {getattr(one, 'additional', '')}"
        for one in values
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("driver", DRIVERS)
def test_key_is_masked_in_every_place(driver: str, place: str) -> None:
    """Neither a value nor an error has the key or a part of it, in any spelling."""
    for spelling in SPELLINGS:
        for is_long in (False, True):
            if place == "status line" and is_long:
                continue
            key = LONG_TOKEN if is_long else TOKEN
            text = read(driver, PLACES[place][0], key_behaviour(place, spelling, is_long=is_long), key)
            assert find_key(text, key) is None, spelling


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_only_the_key_is_masked(spelling: str) -> None:
    """What stands around the key remains, and the JSON has its structure."""
    for key in (TOKEN, LONG_TOKEN):
        text = '{"a": ["before ' + SPELLINGS[spelling](key) + ' after", 1, null], "b": "c"}'
        value = parse_bounded_json(text.encode(), (key,))
        masked = value["a"][0]
        assert masked.startswith("before ")
        assert masked.endswith(" after")
        assert "***" in masked
        assert find_key(masked, key) is None
        assert (value["a"][1:], value["b"]) == ([1, None], "c")


def test_texts_without_the_key_are_unchanged() -> None:
    """Escapes, encoded URLs and other keys are not touched."""
    value = {
        "url": "https://h.example/a%20b?sig=ab%2Fc%3D&x=%41",
        "html": "&lt;b&gt; &#65; &amp;amp;",
        "path": "C:\\x41\\new",
        "json": json.dumps({"a": 'b/c "d" \u00fc'}),
        "other key": TOKEN[:-1],
    }
    for ensure_ascii in (True, False):
        body = json.dumps(value, ensure_ascii=ensure_ascii).encode()
        assert parse_bounded_json(body, (TOKEN,)) == value


def test_number_that_is_the_key_is_masked() -> None:
    """A key of digits is masked also where a service sends it as a number; other numbers remain."""
    key = "31415926535897932384"
    value = parse_bounded_json(f'{{"a": {key}, "b": {key}1, "c": true}}'.encode(), (key,))
    assert value == {"a": "***", "b": int(f"{key}1"), "c": True}


def test_short_password_is_masked_only_as_a_word_of_a_message() -> None:
    """The password of a test may be a word, which is part of names, of keys and of links."""
    value = {"emulator": "https://h/org-emulator/x", "text": "an emulator"}
    assert parse_bounded_json(json.dumps(value).encode(), ("emulator",)) == value
    message = "no key emulator, 'emulator', org-emulator"
    assert mask_values(message, ("emulator",)) == "no key ***, '***', org-emulator"
    assert mask_values("abc", ("abc",)) == "abc"


@pytest.mark.parametrize("length", range(1, 80))
def test_text_is_masked_before_it_is_cut(length: int) -> None:
    """Wherever a text is cut, no part of a key remains."""
    text = "x" * 20 + TOKEN + "y" * 20
    cut = mask_values(text, (TOKEN,), length)
    rest = max(0, length - 20 - len(TOKEN))
    assert cut == "x" * min(length, 20) + ("***" if length > 20 else "") + "y" * rest
