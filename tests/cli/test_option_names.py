"""Tests that what `airflow flows` prints names its own options, not the arguments of the operator."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from airflow_provider_flows.cli.arguments import to_option_names
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.operators import RunFlowOperator
from tests.support.commands import PROMPT_FLOW, FlowsCommand, flows_command
from tests.support.versions import needs

pytestmark = [needs("commands of providers"), pytest.mark.emulator(run_seconds=0)]

SAMPLE = "clibnwpno000bmc0k9hvv3y7f"
CHAIN = f"run {SAMPLE} --conn-id promptchainer_default"
VARIABLES = f"{CHAIN} --variable color=red --variable item=ball"
RUN = f"run {PROMPT_FLOW}"
# arguments of the operator whose names are no words of a sentence
NAMES = {name for name in inspect.signature(RunFlowOperator.__init__).parameters if "_" in name}
PYTHON_TEXT = re.compile(
    rf"\b(?:{'|'.join(NAMES)}|validate=|\w+=(?:True|False|None)\b)|inputs\[|parameters\[|\{{'"
)

# each mistake: the command, and what its message must name
MISTAKES = {
    "no input": (RUN, ["-i 'A modern office chair'", "-i @chair.png"]),
    "variables": (f"{RUN} --variable color=red", ["-i 'A modern office chair'", "not --variable"]),
    "unknown parameter": (
        f"{RUN} -i chair -p qualty=low",
        ["parameter 'qualty'", "'quality'", "--no-validate"],
    ),
    "wrong parameter": (f"{RUN} -i chair -p seed=x", ["--param seed"]),
    "wrong file": (f"{RUN} -i chair -i @picture.png", ["--input #2"]),
    "missing file": (f"{RUN} -i @absent.png", ["--input #1", "Check its name; a relative path starts at"]),
    "no file name": (f"{RUN} -i @", ["--input @ has no file name after the @"]),
    "list": (f"""{RUN} -i '["A"]'""", ["is a JSON list; each input is an --input", "write --input"]),
    "broken list": (f"""{RUN} -i '["A"'""", ["starts like a JSON list", "is not valid JSON"]),
    "path": (f"{RUN} -i /data/chair.png", ["-i"]),
    "reuse without a path": (f"{RUN} -i chair --reuse 30", ["--reuse needs --output-path or --reuse-path"]),
    "both keys": (RUN + """ -i '{"data": "a", "uri": "file:///a"}'""", ["--input #1"]),
    "misspelt key": (
        f"""{RUN} -i '{{"dta": "x"}}'""",
        ["'dta' (did you mean 'data'?)", "To send the text as it is, write --input"],
    ),
    "broken object": (f"""{RUN} -i '{{"data": }}'""", ["--input", "is not valid JSON"]),
    "blank input": (f"{RUN} -i ''", ["--input #1 is blank", "-i @chair.png"]),
    "field of a name": (f"{RUN} -i chair --output-name '{{nme}}' --output-path out", ["--output-name"]),
    "state": ("runs --state runing", ["--state must be one of created, "]),
    "no time": (f"{RUN} -i chair --timeout 0", ["--timeout", "a number of seconds that is more than 0"]),
    "negative time": (f"{RUN} -i chair --timeout -1", ["--timeout", "that is more than 0"]),
    "input in place of variables": (f"{CHAIN} -i chair", ["--variable color=red", "not --input"]),
    "missing variable": (f"{CHAIN} --variable color=red", ["variable 'item'"]),
    "parameter of a chain": (f"{VARIABLES} -p seed=1", ["--variable"]),
    "relative output path": (f"{RUN} -i chair --output-path nonsense://b", ["--output-path"]),
    "output path is a file": (f"{RUN} -i chair --output-path picture.png", ["--output-path"]),
    "interval": (f"{RUN} -i chair --poll-interval 0", ["--poll-interval"]),
    "link that expires": (f"{VARIABLES} --no-validate", ["--output-path"]),
    "connection": (f"{RUN} -i chair --conn-id wrong_type", ["--conn-id"]),
    "timeout": (f"run {PROMPT_FLOW} -i slow --timeout 0.1 --poll-interval 0.05", ["--timeout"]),
    "path without a wait": (f"{RUN} -i chair --no-wait --output-path .", ["--output-path", "--no-wait"]),
    "storage without a wait": (
        f"{RUN} -i chair --no-wait --output-conn-id x",
        ["--output-conn-id", "--no-wait"],
    ),
}


@pytest.fixture
def flows(capsys: pytest.CaptureFixture[str]) -> FlowsCommand:
    """Return a function that runs `airflow flows` in this process."""
    return flows_command(capsys)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_messages_name_options(
    emulator: Emulator, flows: FlowsCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    """A message about a mistake names the option to change, and no argument of the operator."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIRFLOW_CONN_WRONG_TYPE", "http://example.com")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(8))
    command, named = MISTAKES[mistake]
    emulator.run_seconds = 1000 if mistake == "timeout" else 0

    message = flows(command).err

    assert message
    for name in named:
        assert name in message
    assert not PYTHON_TEXT.findall(message)
    assert not re.search(r"\b(?:worker|task)s?\b", message)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("inputs[9] is empty", "--input #10 is empty"),
        ("inputs['my var'] must be text", "--variable my var must be text"),
        ('parameters["it\'s"] must be', "--param it's must be"),
        ("inputs has more than 9 items", "--input was given more than 9 items"),
        ("in a file instead (output_path, save_output)", "in a file instead (--output-path)"),
        ("Set output_path to store it", "Set --output-path to store it"),
        ("its connection (output_conn_id)", "its connection (--output-conn-id)"),
        ("input_conn_id: rendered", "--input-conn-id: rendered"),
        # what is not ours remains as it is
        ("'output_path' is not known", "'output_path' is not known"),
        ("/data/output_path/a.glb cannot be read", "/data/output_path/a.glb cannot be read"),
        ("/data/x-output_path cannot be read", "/data/x-output_path cannot be read"),
        ("the number of inputs must be at least 1", "the number of inputs must be at least 1"),
        ("--output-path is a file", "--output-path is a file"),
    ],
)
def test_arguments_become_options(message: str, expected: str) -> None:
    """An argument's name becomes its option's; a word, a path or a quoted text with that name does not."""
    assert to_option_names(message) == expected
    assert to_option_names(expected) == expected
