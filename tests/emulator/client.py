"""An HTTP client for the emulator that uses nothing of the provider, and helpers for files."""

from __future__ import annotations

import base64
import io
import json
import struct
import time
from typing import Any

import requests
from PIL import Image

from airflow_provider_flows.emulator import Emulator

SAMPLE_FLOW = "clibnwpno000bmc0k9hvv3y7f"


class EmulatorClient:
    """Sends requests with the key; paths start with a slash."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.session = requests.Session()
        self.session.headers.update({"Authorization": f"Bearer {emulator.key}", "x-api-key": emulator.key})

    def call(self, method: str, path: str, **more: Any) -> requests.Response:
        """Send a request, and return the response with any status."""
        return self.session.request(method, self.emulator.url + path, timeout=20, **more)

    def get(self, path: str, **more: Any) -> Any:
        """Return the JSON of a GET that succeeds."""
        response = self.call("GET", path, **more)
        assert response.status_code == 200, response.text
        return response.json()

    def create(self, *inputs: str, template: str = "model_generate_fromprompt", **more: Any) -> str:
        """Create a flow run and return its id."""
        items = [{"data": data, "additional": {"number": number}} for number, data in enumerate(inputs)]
        response = self.call("POST", "/flows", json={"template": template, "inputs": items or None, **more})
        assert response.status_code == 200, response.text
        return str(response.json()["flow_id"])

    def finish(self, *inputs: str, **more: Any) -> str:
        """Create a flow run, advance the clock past its end, and return its id."""
        flow_id = self.create(*inputs, **more)
        self.emulator.advance(60)
        return flow_id

    def wait(self, flow_id: str, *states: str) -> dict[str, Any]:
        """Poll until the flow run is in one of the states."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            run: dict[str, Any] = self.get(f"/flows/{flow_id}")
            if run["state"] in (states or ("completed", "failed", "aborted")):
                return run
            time.sleep(0.02)
        raise AssertionError(f"Never {states}: {run}")

    def run_chain(self, flow_id: str = SAMPLE_FLOW, **variables: str) -> requests.Response:
        """Run a PromptChainer flow, by default with the variables of the sample flow."""
        values = variables or {"color": "Red", "item": "Ball"}
        return self.call("POST", f"/api/flows/run/{flow_id}", json={"variables": values})


def read_glb(content: bytes) -> dict[str, Any]:
    """Check the header of a GLB, and return its JSON chunk."""
    magic, version, length, size, kind = struct.unpack("<4sII I4s", content[:20])
    assert (magic, version, length, kind) == (b"glTF", 2, len(content), b"JSON")
    gltf: dict[str, Any] = json.loads(content[20 : 20 + size])
    return gltf


def count_triangles(content: bytes) -> int:
    """Return the number of triangles of a GLB."""
    gltf = read_glb(content)
    parts = [part for mesh in gltf["meshes"] for part in mesh["primitives"]]
    return int(sum(gltf["accessors"][part["indices"]]["count"] // 3 for part in parts))


def data_uri(media_type: str, content: bytes) -> str:
    """Return the content as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def draw_image(kind: str = "PNG", size: tuple[int, int] = (48, 32)) -> bytes:
    """Return a small image with bright and dark areas."""
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert("RGB").save(buffer, kind)
    return buffer.getvalue()
