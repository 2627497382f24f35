"""Scripts written like the vendors' own run against the emulator."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import requests

from airflow_provider_flows.emulator import Emulator
from tests.emulator.client import SAMPLE_FLOW, EmulatorClient, data_uri, draw_image, read_glb

# The scripts say 5; what they read does not depend on it.
POLL_SECONDS = 0.05
FINAL = ["completed", "failed", "aborted"]


def from_prompt_script(base_url: str, key: str, folder: Path) -> list[Path]:
    """Do what the vendor's prompt quickstart does: create with inputs, poll, download."""
    headers = {"Authorization": f"Bearer {key}"}
    body = {
        "template": "model_generate_fromprompt",
        "parameters": {"quality": "low"},
        "inputs": [{"data": "A modern office chair"}],
        "additional": None,
    }
    response = requests.post(f"{base_url}/flows", headers=headers, json=body, timeout=10)
    response.raise_for_status()
    return _poll_and_download(base_url, headers, response.json()["flow_id"], folder)


def from_image_script(base_url: str, key: str, folder: Path, image: bytes) -> list[Path]:
    """Do what the vendor's image quickstart does: create empty, upload, start, poll, download."""
    headers = {"Authorization": f"Bearer {key}"}
    body: dict[str, Any] = {"template": "model_generate_fromimage", "parameters": {}, "inputs": None}
    response = requests.post(f"{base_url}/flows", headers=headers, json=body, timeout=10)
    response.raise_for_status()
    flow_id = response.json()["flow_id"]
    upload = {"data": data_uri("image/png", image), "additional": {"file": "chair.png"}}
    requests.post(
        f"{base_url}/flows/{flow_id}/inputs", headers=headers, json=upload, timeout=10
    ).raise_for_status()
    start = {"action": "start"}
    requests.patch(f"{base_url}/flows/{flow_id}", headers=headers, json=start, timeout=10).raise_for_status()
    return _poll_and_download(base_url, headers, flow_id, folder)


def _poll_and_download(base_url: str, headers: dict[str, str], flow_id: str, folder: Path) -> list[Path]:
    while True:
        status = requests.get(f"{base_url}/flows/{flow_id}", headers=headers, timeout=10).json()
        assert 0 <= status["progress"] * 100 <= 100
        if status["state"] in FINAL:
            break
        time.sleep(POLL_SECONDS)
    assert status["state"] == "completed"
    listed = requests.get(f"{base_url}/flows/{flow_id}/outputs", headers=headers, timeout=10).json()
    paths = []
    for output in listed["outputs"]:
        assert output["status"] == "ready"
        response = requests.get(
            f"{base_url}/flows/{flow_id}/outputs/{output['id']}", headers=headers, timeout=10
        )
        response.raise_for_status()
        path = folder / f"{output['id']}.glb"
        path.write_bytes(response.content)
        paths.append(path)
    return paths


@pytest.mark.parametrize("download", ["json", "raw"])
def test_prompt_script_finishes(emulator: Emulator, tmp_path: Path, download: Any) -> None:
    """The vendor's prompt script writes one file, also with the default switches."""
    emulator.switches.download = download
    (path,) = from_prompt_script(emulator.url, emulator.key, tmp_path)
    assert path.read_bytes().startswith(
        b"glTF" if download == "raw" else b'{"data":"data:model/gltf-binary;base64,Z2xURg'
    )


def test_image_script_writes_a_model(emulator: Emulator, tmp_path: Path) -> None:
    """The vendor's image script writes a real GLB where downloads are raw."""
    emulator.switches.download = "raw"
    (path,) = from_image_script(emulator.url, emulator.key, tmp_path, draw_image())
    assert read_glb(path.read_bytes())["meshes"]


def test_image_script_finishes_by_default(emulator: Emulator, tmp_path: Path) -> None:
    """The vendor's image script finishes with nothing set but URL and key."""
    assert len(from_image_script(emulator.url, emulator.key, tmp_path, draw_image())) == 1


def test_responses_match_the_newest_documentation(client: EmulatorClient) -> None:
    """Responses have the keys of the newest reference pages."""
    flow_id = client.finish("a chair")
    result = client.get(f"/flows/{flow_id}/outputs", params={"include_data": "true"})
    assert result["flow_id"] == flow_id
    (output,) = result["outputs"]
    assert {"asset_id", "status", "additional", "data"} <= set(output)
    assert list(client.get(f"/flows/{flow_id}/outputs/{output['asset_id']}")) == ["data"]
    assert {item["name"] for item in client.get("/templates")["templates"]} == {
        "model_generate_fromprompt",
        "model_generate_fromimage",
        "model_optimize",
    }


def test_chain_script_finishes(emulator: Emulator) -> None:
    """A script that follows PromptChainer's pages gets the outputs that getFlowInfo lists."""
    headers = {"x-api-key": emulator.key}
    info = requests.get(
        f"{emulator.url}/api/flows/getFlowInfo/{SAMPLE_FLOW}", headers=headers, timeout=10
    ).json()
    assert info == [
        {"name": "color", "type": "variable"},
        {"name": "item", "type": "variable"},
        {"name": "image", "type": "output"},
        {"name": "text", "type": "output"},
    ]
    body = {"variables": {"item": "Ball", "color": "Blue"}}
    response = requests.post(
        f"{emulator.url}/api/flows/run/{SAMPLE_FLOW}", headers=headers, json=body, timeout=10
    )
    assert [(item["name"], item["type"]) for item in response.json()] == [
        ("image", "output"),
        ("text", "output"),
    ]
    assert "A joke about a Blue and big Ball" in response.json()[1]["output"]
