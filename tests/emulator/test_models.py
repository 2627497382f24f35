"""The 3D models that flow runs make are real, small, and what was asked for."""

from __future__ import annotations

import base64
import io
import threading
import time

import pytest
import trimesh

from airflow_provider_flows.emulator import Emulator
from tests.emulator.caller import EmulatorClient, count_triangles, data_uri, picture, read_glb

SMALL = 300 * 1024


def make(
    caller: EmulatorClient, data: str, template: str = "model_generate_fromprompt", **parameters: object
) -> bytes:
    """Run a flow and return its only output's file."""
    flow_id = caller.finish(data, template=template, parameters=parameters)
    assert caller.get(f"/flows/{flow_id}")["state"] == "completed"
    (output,) = caller.get(f"/flows/{flow_id}/outputs", params={"include_data": "true"})["outputs"]
    return base64.b64decode(output["data"].partition(",")[2])


@pytest.mark.parametrize("quality", ["low", "high"])
def test_a_prompt_makes_a_real_model(caller: EmulatorClient, quality: str) -> None:
    """A GLB with points, indices and a coloured material, which a reader opens, comes of a prompt."""
    content = make(caller, "A modern office chair", quality=quality)
    shown = read_glb(content)
    (mesh,) = shown["meshes"]
    (part,) = mesh["primitives"]
    assert {"POSITION", "NORMAL"} <= set(part["attributes"])
    assert len(shown["materials"][part["material"]]["pbrMetallicRoughness"]["baseColorFactor"]) == 4
    scene = trimesh.load_scene(io.BytesIO(content), file_type="glb")
    assert sum(len(item.faces) for item in scene.geometry.values()) == count_triangles(content)
    assert scene.extents.min() > 0.1
    assert len(content) < SMALL


def test_prompt_decides_the_model(caller: EmulatorClient) -> None:
    """The same prompt gives the same bytes; another prompt, seed or quality gives another model."""
    first = make(caller, "a red chair", quality="low")
    assert make(caller, "a red chair", quality="low") == first
    others = [
        make(caller, "a blue chair", quality="low"),
        make(caller, "a red table", quality="low"),
        make(caller, "a red chair", quality="low", seed=7),
        make(caller, "a red chair", quality="low", texture=False),
        make(caller, "a red chair", quality="high"),
    ]
    assert len({first, *others}) == 6
    assert count_triangles(first) < count_triangles(others[-1]) < 10_000


@pytest.mark.parametrize("kind", ["png", "jpeg", "jpg", "tiff", "webp"])
def test_an_image_makes_a_relief(caller: EmulatorClient, kind: str) -> None:
    """Every image type that the template allows becomes a model, by either name of JPEG."""
    image = data_uri(f"image/{kind}", picture("JPEG" if kind == "jpg" else kind.upper()))
    content = make(caller, image, template="model_generate_fromimage", quality="low")
    assert 500 < count_triangles(content) < 5000
    assert len(content) < SMALL


def test_a_relief_follows_the_image(caller: EmulatorClient) -> None:
    """Where the image is bright the relief is high, and with texture it wears the image."""
    image = data_uri("image/png", picture(size=(64, 64)))
    content = make(caller, image, template="model_generate_fromimage")
    mesh = trimesh.load_scene(io.BytesIO(content), file_type="glb").to_mesh()
    corner = mesh.vertices[(abs(mesh.vertices[:, :2]) > 0.45).all(axis=1)][:, 2].mean()
    middle = mesh.vertices[(abs(mesh.vertices[:, :2]) < 0.1).all(axis=1)][:, 2].mean()
    assert corner > middle + 0.1
    assert read_glb(content)["images"]
    plain = make(caller, image, template="model_generate_fromimage", texture=False)
    assert "images" not in read_glb(plain)


@pytest.mark.parametrize("most", [4, 100, 1000])
def test_a_model_is_reduced(caller: EmulatorClient, most: int) -> None:
    """The model that was sent comes back with at most that many polygons, in its shape and colour."""
    sent = make(caller, "a green stone", quality="high")
    got = make(caller, data_uri("model/gltf-binary", sent), template="model_optimize", polygon_count=most)
    assert 1 <= count_triangles(got) <= most < count_triangles(sent)
    assert count_triangles(got) > most * 0.8
    colours = [
        read_glb(item)["materials"][0]["pbrMetallicRoughness"]["baseColorFactor"] for item in (sent, got)
    ]
    assert colours[0] == pytest.approx(colours[1], abs=0.01)
    before, after = (trimesh.load_scene(io.BytesIO(item), file_type="glb").extents for item in (sent, got))
    assert most < 100 or after == pytest.approx(before, rel=0.25)


def test_several_meshes_share_the_polygons(caller: EmulatorClient) -> None:
    """A scene of several meshes is reduced as a whole."""
    parts = [trimesh.creation.icosphere(subdivisions=number) for number in (1, 3, 4)]
    sent = trimesh.Scene(parts).export(file_type="glb")
    got = make(caller, data_uri("model/gltf-binary", sent), template="model_optimize", polygon_count=600)
    assert 500 < count_triangles(got) <= 600
    assert len(read_glb(got)["meshes"]) == 3


def test_a_model_small_enough_is_left_alone(caller: EmulatorClient) -> None:
    """A model with no more polygons than asked for comes back as it was sent."""
    sent = make(caller, "a stone", quality="low")
    assert make(caller, data_uri("model/gltf-binary", sent), template="model_optimize") == sent


@pytest.mark.parametrize(
    ("template", "media_type", "content"),
    [
        ("model_generate_fromimage", "image/png", b"no picture at all"),
        ("model_generate_fromimage", "image/png", picture()[:100]),
        ("model_optimize", "model/gltf-binary", b"no model at all"),
        ("model_optimize", "model/gltf-binary", b"glTF\x02\x00\x00\x00\x10\x00\x00\x00rest"),
    ],
)
def test_a_broken_input_fails_the_run(
    caller: EmulatorClient, template: str, media_type: str, content: bytes
) -> None:
    """A file that is not what it says makes the flow run fail, and says which input it was."""
    good = data_uri("image/png", picture()) if template.endswith("image") else None
    inputs = [item for item in (good, data_uri(media_type, content)) if item]
    shown = caller.get(f"/flows/{caller.finish(*inputs, template=template)}")
    assert shown["state"] == "failed"
    assert shown["error"].startswith(f"Input {len(inputs) - 1}: not a")


def test_several_inputs_make_several_outputs(caller: EmulatorClient) -> None:
    """Each input has its output, in order and with its own additional data."""
    flow_id = caller.finish("a red chair", "a blue chair", "a red chair")
    outputs = caller.get(f"/flows/{flow_id}/outputs", params={"include_data": "true"})["outputs"]
    assert [item["additional"] for item in outputs] == [{"number": 0}, {"number": 1}, {"number": 2}]
    assert outputs[0]["data"] == outputs[2]["data"] != outputs[1]["data"]
    assert len({item["id"] for item in outputs}) == 3


@pytest.mark.parametrize(
    ("template", "data", "status"),
    [
        ("model_generate_fromimage", data_uri("image/gif", b"GIF89a"), 415),
        ("model_generate_fromimage", data_uri("model/gltf-binary", b"glTF"), 415),
        ("model_generate_fromprompt", data_uri("image/png", picture()), 415),
        ("model_optimize", data_uri("image/png", picture()), 415),
        ("model_generate_fromimage", "a chair", 422),
        ("model_generate_fromimage", "data:image/png;base64,%%%", 422),
        ("model_generate_fromimage", "data:image/png,raw", 422),
        ("model_generate_fromimage", "data:image/png;base64", 422),
        ("model_generate_fromprompt", "   ", 422),
    ],
)
def test_wrong_data_is_refused(
    emulator: Emulator, caller: EmulatorClient, template: str, data: str, status: int
) -> None:
    """Data of a wrong type or form is refused at once, when creating and when adding."""
    answer = caller.call("POST", "/flows", json={"template": template, "inputs": [{"data": data}]})
    assert answer.status_code == status
    path = f"/flows/{caller.create(template=template)}/inputs"
    assert caller.call("POST", path, json={"data": data}).status_code == status
    assert emulator.started_count == 0


def test_work_does_not_hold_up_others(caller: EmulatorClient) -> None:
    """While a large model is reduced, other requests are answered."""
    big = trimesh.creation.icosphere(subdivisions=6).export(file_type="glb")
    parameters = {"polygon_count": 20_000}
    flow_id = caller.finish(
        data_uri("model/gltf-binary", big), template="model_optimize", parameters=parameters
    )
    working = threading.Thread(target=caller.get, args=(f"/flows/{flow_id}/outputs?include_data=1",))
    other = EmulatorClient(caller.emulator)
    working.start()
    longest = 0.0
    while working.is_alive():
        began = time.monotonic()
        other.get("/flows")
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.02)
    working.join()
    other.session.close()
    assert longest < 1.0
    (reduced,) = caller.emulator.runs[flow_id].outputs
    assert count_triangles(reduced.content) <= 20_000
