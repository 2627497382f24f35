"""Tests of the 3D models that flow runs create."""

from __future__ import annotations

import base64
import io
import threading
import time

import pytest
import trimesh

from airflow_provider_flows.emulator import Emulator
from tests.emulator.client import EmulatorClient, count_triangles, data_uri, draw_image, read_glb

SMALL = 300 * 1024


def create_model(
    client: EmulatorClient, data: str, template: str = "model_generate_fromprompt", **parameters: object
) -> bytes:
    """Run a flow, and return the file of its only output."""
    flow_id = client.finish(data, template=template, parameters=parameters)
    assert client.get(f"/flows/{flow_id}")["state"] == "completed"
    (output,) = client.get(f"/flows/{flow_id}/outputs", params={"include_data": "true"})["outputs"]
    return base64.b64decode(output["data"].partition(",")[2])


@pytest.mark.parametrize("quality", ["low", "high"])
def test_a_prompt_becomes_a_model(client: EmulatorClient, quality: str) -> None:
    """A prompt becomes a GLB with points, indices and a coloured material, which a library can read."""
    content = create_model(client, "A modern office chair", quality=quality)
    result = read_glb(content)
    (mesh,) = result["meshes"]
    (part,) = mesh["primitives"]
    assert {"POSITION", "NORMAL"} <= set(part["attributes"])
    assert len(result["materials"][part["material"]]["pbrMetallicRoughness"]["baseColorFactor"]) == 4
    scene = trimesh.load_scene(io.BytesIO(content), file_type="glb")
    assert sum(len(item.faces) for item in scene.geometry.values()) == count_triangles(content)
    assert scene.extents.min() > 0.1
    assert len(content) < SMALL


def test_prompt_decides_the_model(client: EmulatorClient) -> None:
    """The same prompt results in the same bytes; another prompt, seed or quality in another model."""
    first = create_model(client, "a red chair", quality="low")
    assert create_model(client, "a red chair", quality="low") == first
    others = [
        create_model(client, "a blue chair", quality="low"),
        create_model(client, "a red table", quality="low"),
        create_model(client, "a red chair", quality="low", seed=7),
        create_model(client, "a red chair", quality="low", texture=False),
        create_model(client, "a red chair", quality="high"),
    ]
    assert len({first, *others}) == 6
    assert count_triangles(first) < count_triangles(others[-1]) < 10_000


@pytest.mark.parametrize("kind", ["png", "jpeg", "jpg", "tiff", "webp"])
def test_an_image_becomes_a_relief(client: EmulatorClient, kind: str) -> None:
    """Every image type that the template allows becomes a model, by either name of JPEG."""
    image = data_uri(f"image/{kind}", draw_image("JPEG" if kind == "jpg" else kind.upper()))
    content = create_model(client, image, template="model_generate_fromimage", quality="low")
    assert 500 < count_triangles(content) < 5000
    assert len(content) < SMALL


def test_a_relief_follows_the_image(client: EmulatorClient) -> None:
    """Where the image is bright the relief is high, and with texture it has the image's colours."""
    image = data_uri("image/png", draw_image(size=(64, 64)))
    content = create_model(client, image, template="model_generate_fromimage")
    mesh = trimesh.load_scene(io.BytesIO(content), file_type="glb").to_mesh()
    corner = mesh.vertices[(abs(mesh.vertices[:, :2]) > 0.45).all(axis=1)][:, 2].mean()
    middle = mesh.vertices[(abs(mesh.vertices[:, :2]) < 0.1).all(axis=1)][:, 2].mean()
    assert corner > middle + 0.1
    assert read_glb(content)["images"]
    plain = create_model(client, image, template="model_generate_fromimage", texture=False)
    assert "images" not in read_glb(plain)


@pytest.mark.parametrize("max_polygons", [4, 100, 1000])
def test_a_model_is_reduced(client: EmulatorClient, max_polygons: int) -> None:
    """The output is the input with at most so many polygons, in the same shape and colour."""
    sent = create_model(client, "a green stone", quality="high")
    reduced = create_model(
        client, data_uri("model/gltf-binary", sent), template="model_optimize", polygon_count=max_polygons
    )
    assert 1 <= count_triangles(reduced) <= max_polygons < count_triangles(sent)
    assert count_triangles(reduced) > max_polygons * 0.8
    colours = [
        read_glb(item)["materials"][0]["pbrMetallicRoughness"]["baseColorFactor"] for item in (sent, reduced)
    ]
    assert colours[0] == pytest.approx(colours[1], abs=0.01)
    before, after = (
        trimesh.load_scene(io.BytesIO(item), file_type="glb").extents for item in (sent, reduced)
    )
    assert max_polygons < 100 or after == pytest.approx(before, rel=0.25)


def test_several_meshes_share_the_polygons(client: EmulatorClient) -> None:
    """The meshes of a scene share the number of polygons."""
    parts = [trimesh.creation.icosphere(subdivisions=number) for number in (1, 3, 4)]
    sent = trimesh.Scene(parts).export(file_type="glb")
    reduced = create_model(
        client, data_uri("model/gltf-binary", sent), template="model_optimize", polygon_count=600
    )
    assert 500 < count_triangles(reduced) <= 600
    assert len(read_glb(reduced)["meshes"]) == 3


def test_a_small_model_is_returned_unchanged(client: EmulatorClient) -> None:
    """A model that has no more polygons than allowed is returned unchanged."""
    sent = create_model(client, "a stone", quality="low")
    assert create_model(client, data_uri("model/gltf-binary", sent), template="model_optimize") == sent


@pytest.mark.parametrize(
    ("template", "media_type", "content"),
    [
        ("model_generate_fromimage", "image/png", b"no picture at all"),
        ("model_generate_fromimage", "image/png", draw_image()[:100]),
        ("model_optimize", "model/gltf-binary", b"no model at all"),
        ("model_optimize", "model/gltf-binary", b"glTF\x02\x00\x00\x00\x10\x00\x00\x00rest"),
    ],
)
def test_a_broken_input_fails_the_run(
    client: EmulatorClient, template: str, media_type: str, content: bytes
) -> None:
    """A file that does not match its media type fails the flow run, with the input's number in the error."""
    good = data_uri("image/png", draw_image()) if template.endswith("image") else None
    inputs = [item for item in (good, data_uri(media_type, content)) if item]
    result = client.get(f"/flows/{client.finish(*inputs, template=template)}")
    assert result["state"] == "failed"
    assert result["error"].startswith(f"Input {len(inputs) - 1}: not a")


def test_each_input_has_its_output(client: EmulatorClient) -> None:
    """Each input has its output, in order and with its own additional data."""
    flow_id = client.finish("a red chair", "a blue chair", "a red chair")
    outputs = client.get(f"/flows/{flow_id}/outputs", params={"include_data": "true"})["outputs"]
    assert [item["additional"] for item in outputs] == [{"number": 0}, {"number": 1}, {"number": 2}]
    assert outputs[0]["data"] == outputs[2]["data"] != outputs[1]["data"]
    assert len({item["id"] for item in outputs}) == 3


@pytest.mark.parametrize(
    ("template", "data", "status"),
    [
        ("model_generate_fromimage", data_uri("image/gif", b"GIF89a"), 415),
        ("model_generate_fromimage", data_uri("model/gltf-binary", b"glTF"), 415),
        ("model_generate_fromprompt", data_uri("image/png", draw_image()), 415),
        ("model_optimize", data_uri("image/png", draw_image()), 415),
        ("model_generate_fromimage", "a chair", 422),
        ("model_generate_fromimage", "data:image/png;base64,%%%", 422),
        ("model_generate_fromimage", "data:image/png,raw", 422),
        ("model_generate_fromimage", "data:image/png;base64", 422),
        ("model_generate_fromprompt", "   ", 422),
    ],
)
def test_invalid_data_is_rejected(
    emulator: Emulator, client: EmulatorClient, template: str, data: str, status: int
) -> None:
    """Data of a wrong type or form is rejected at once, on creation and when an input is added."""
    response = client.call("POST", "/flows", json={"template": template, "inputs": [{"data": data}]})
    assert response.status_code == status
    path = f"/flows/{client.create(template=template)}/inputs"
    assert client.call("POST", path, json={"data": data}).status_code == status
    assert emulator.started_count == 0


def test_slow_work_does_not_block_other_requests(client: EmulatorClient) -> None:
    """Other requests are served while a large model is simplified."""
    big = trimesh.creation.icosphere(subdivisions=6).export(file_type="glb")
    parameters = {"polygon_count": 20_000}
    flow_id = client.finish(
        data_uri("model/gltf-binary", big), template="model_optimize", parameters=parameters
    )
    working = threading.Thread(target=client.get, args=(f"/flows/{flow_id}/outputs?include_data=1",))
    other = EmulatorClient(client.emulator)
    working.start()
    max_seconds = 0.0
    while working.is_alive():
        start_time = time.monotonic()
        other.get("/flows")
        max_seconds = max(max_seconds, time.monotonic() - start_time)
        time.sleep(0.02)
    working.join()
    other.session.close()
    assert max_seconds < 1.0
    (reduced,) = client.emulator.runs[flow_id].outputs
    assert count_triangles(reduced.content) <= 20_000
