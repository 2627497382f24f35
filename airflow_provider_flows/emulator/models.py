"""The work of Generio's templates: meshes from prompts and images, simplified meshes, and GLB files.

The mesh libraries take time and memory, so this module is imported on first use.
Run as a program, it simplifies the model on its standard input.
"""

# mypy: allow-untyped-calls
# (trimesh declares itself typed, but only parts of it are)

from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import trimesh
from PIL import Image
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from airflow_provider_flows.emulator.colours import CLAY, digest, get_colour

if TYPE_CHECKING:
    from numpy.typing import NDArray

# By the parameter `quality`: subdivisions of a stone, sections and rings of a solid of revolution, and points
# along the longer side of a relief.
SUBDIVISIONS = {"low": 3, "high": 4}
SECTIONS = {"low": 32, "high": 64}
RINGS = {"low": 24, "high": 48}
GRID_SIDE = {"low": 40, "high": 64}
TEXTURE_SIDE_PIXELS = 128
RELIEF_HEIGHT = 0.25
MIN_FACES = 4
# Larger models are simplified in a child process: the library holds the GIL, about a second for a third of a
# million triangles, and would block all other requests.
MIN_SUBPROCESS_BYTES = 1024 * 1024


class UnreadableInputError(Exception):
    """The content of an input does not match its media type."""


def validate_input(template: str, content: bytes) -> None:
    """Validate the content of an input for a template.

    :raises UnreadableInputError: the content cannot be read.
    """
    if template == "model_generate_fromimage":
        open_image(content)
    elif template == "model_optimize":
        open_model(content)


def create_output(template: str, content: bytes, parameters: dict[str, Any]) -> bytes:
    """Create the output for a valid input, and return it as a GLB file."""
    if template == "model_generate_fromimage":
        return image_to_glb(content, quality=parameters["quality"], texture=parameters["texture"])
    if template == "model_optimize":
        is_small = len(content) < MIN_SUBPROCESS_BYTES
        return (simplify if is_small else _simplify_in_subprocess)(content, parameters["polygon_count"])
    return prompt_to_glb(
        content.decode(), **{name: parameters[name] for name in ("quality", "seed", "texture")}
    )


def prompt_to_glb(prompt: str, *, quality: str, seed: int, texture: bool) -> bytes:
    """Create a model that depends on prompt and seed only, a stone or a solid of revolution.

    :param texture: whether the model has the prompt's colour.
    """
    numbers = np.random.default_rng(list(digest(prompt, seed)))
    mesh = (
        _create_stone(numbers, SUBDIVISIONS[quality])
        if numbers.integers(2)
        else _create_solid_of_revolution(numbers, quality)
    )
    colour = get_colour(prompt) if texture else CLAY
    mesh.visual = _colour_visual(colour, metallic=float(numbers.random()) * 0.6 if texture else 0.0)
    mesh.metadata.clear()
    return to_glb(mesh)


def image_to_glb(content: bytes, *, quality: str, texture: bool) -> bytes:
    """Create a relief that is high where the image is bright.

    :param texture: whether the image is the relief's texture.
    :raises UnreadableInputError: the content is not an image.
    """
    image = open_image(content)
    side = GRID_SIDE[quality]
    columns = max(2, min(side, round(side * image.width / image.height)))
    rows = max(2, min(side, round(side * image.height / image.width)))
    brightness = np.asarray(image.convert("L").resize((columns, rows)), dtype=np.float64) / 255
    across, down = np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows))
    width, height = columns / side, rows / side
    x, y, z = (across - 0.5) * width, (0.5 - down) * height, brightness * RELIEF_HEIGHT
    points = np.column_stack((x.ravel(), y.ravel(), z.ravel()))
    if texture:
        picture = image.copy()
        picture.thumbnail((TEXTURE_SIDE_PIXELS, TEXTURE_SIDE_PIXELS))
        visual = _image_visual(np.column_stack((across.ravel(), 1 - down.ravel())), picture)
    else:
        visual = _colour_visual(CLAY)
    return to_glb(trimesh.Trimesh(points, _grid_faces(columns, rows), visual=visual, process=False))


def simplify(content: bytes, polygon_count: int) -> bytes:
    """Return a GLB with at most so many polygons; a model that has no more is returned unchanged.

    Colours are preserved. Textures are not, because simplification moves the points that they belong to.

    :raises UnreadableInputError: the content is not a GLB with a mesh.
    """
    meshes = open_model(content)
    total = sum(len(mesh.faces) for mesh in meshes)
    if total <= polygon_count:
        return content
    # Largest first: if the count is too small for all meshes, the small ones are omitted.
    smaller: list[trimesh.Trimesh] = []
    remaining = polygon_count
    for mesh in sorted(meshes, key=lambda item: len(item.faces), reverse=True):
        share = min(remaining, max(MIN_FACES, len(mesh.faces) * polygon_count // total))
        if share <= 0:
            break
        smaller.append(_simplify_mesh(mesh, share))
        remaining -= len(smaller[-1].faces)
    return to_glb(*smaller)


def open_image(content: bytes) -> Image.Image:
    """Return the decoded image.

    :raises UnreadableInputError: the content is not an image.
    """
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    # Pillow raises many types of exception for a broken file, including SyntaxError and struct.error.
    except Exception as error:
        raise UnreadableInputError(f"not an image that can be read: {error}") from error
    return image.convert("RGB")


def open_model(content: bytes) -> list[trimesh.Trimesh]:
    """Return the meshes of a GLB file, in the coordinates of its scene.

    :raises UnreadableInputError: the content is not a GLB with a mesh.
    """
    if content[:4] != b"glTF":
        raise UnreadableInputError("not a GLB: it does not start with glTF")
    if int.from_bytes(content[8:12], "little") != len(content):
        raise UnreadableInputError("not a complete GLB: its header states another length")
    try:
        scene = trimesh.load_scene(io.BytesIO(content), file_type="glb")
        meshes = [item for item in scene.dump() if isinstance(item, trimesh.Trimesh) and len(item.faces)]
    # trimesh raises many types of exception for a broken file.
    except Exception as error:
        raise UnreadableInputError(f"not a GLB that can be read: {error}") from error
    if not meshes:
        raise UnreadableInputError("a GLB without a mesh")
    return meshes


def to_glb(*meshes: trimesh.Trimesh) -> bytes:
    """Return the meshes as one GLB file with positions, normals, indices and materials."""
    for mesh in meshes:
        mesh.vertex_normals = _normals(mesh)  # type: ignore[method-assign]  # a setter that mypy does not see
    content = trimesh.Scene(list(meshes)).export(file_type="glb", include_normals=True)
    if not isinstance(content, bytes):
        raise TypeError("trimesh did not export a GLB as bytes")
    return content


def _simplify_in_subprocess(content: bytes, polygon_count: int) -> bytes:
    command = [sys.executable, "-m", "airflow_provider_flows.emulator.models", str(polygon_count)]
    # The child process has to find the same packages as this one.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(command, input=content, stdout=subprocess.PIPE, env=environment, check=True).stdout  # noqa: S603  # our own command


def _create_stone(numbers: np.random.Generator, subdivisions: int) -> trimesh.Trimesh:
    """Create a sphere with waves in several directions."""
    ball = trimesh.creation.icosphere(subdivisions=subdivisions)
    points: NDArray[np.float64] = np.asarray(ball.vertices)
    radius = np.ones(len(points))
    for _ in range(7):
        direction = numbers.normal(size=3)
        direction /= np.linalg.norm(direction)
        waves, phase, height = numbers.integers(1, 6), numbers.random() * 2 * np.pi, 0.12 * numbers.random()
        radius += height * np.sin(waves * (points @ direction) * np.pi + phase)
    stretch = 0.7 + 0.6 * numbers.random(3)
    return trimesh.Trimesh(points * radius[:, None] * stretch, ball.faces, process=False)


def _create_solid_of_revolution(numbers: np.random.Generator, quality: str) -> trimesh.Trimesh:
    """Create a closed body with a wavy profile around the vertical axis."""
    rings = RINGS[quality]
    heights = np.linspace(0.0, 1.0 + numbers.random(), rings)
    along = np.linspace(0.0, 1.0, rings)
    radius = 0.35 + np.zeros(rings)
    for number in range(1, 5):
        radius += (
            0.22 / number * numbers.random() * np.sin(number * np.pi * along + numbers.random() * 2 * np.pi)
        )
    radius = np.maximum(radius, 0.08)
    # Both ends are on the axis, so that the body is closed.
    radius[0] = radius[-1] = 0.0
    profile = np.column_stack((radius, heights))
    body = trimesh.creation.revolve(profile, sections=SECTIONS[quality])
    # Up is y in glTF; trimesh revolves around z.
    body.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, [1, 0, 0]))
    return body


def _grid_faces(columns: int, rows: int) -> np.ndarray:
    """Return two triangles for each square of a grid of points."""
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    below = corner + columns
    upper = np.column_stack((corner, below, corner + 1))
    lower = np.column_stack((corner + 1, below, below + 1))
    return np.concatenate((upper, lower))


def _simplify_mesh(mesh: trimesh.Trimesh, max_faces: int) -> trimesh.Trimesh:
    """Return the mesh with at most so many faces."""
    # Imported here because creating a mesh does not need it.
    import fast_simplification

    visual = _colour_visual(_main_colour(mesh))
    bare = trimesh.Trimesh(mesh.vertices, mesh.faces, process=True)
    points, faces = np.asarray(bare.vertices, dtype=np.float32), np.asarray(bare.faces, dtype=np.int32)
    # The library sometimes stops early; it is then called again with a higher aggressiveness.
    for aggressiveness in (3, 7, 10, 10):
        if len(faces) <= max_faces:
            break
        points, faces = fast_simplification.simplify(
            points, faces, target_count=max_faces, agg=aggressiveness
        )
    if len(faces) > max_faces:
        # The number of polygons is a promise, so faces that cannot be merged are cut off.
        faces = faces[:max_faces]
    return trimesh.Trimesh(points, faces, visual=visual, process=True)


def _main_colour(mesh: trimesh.Trimesh) -> tuple[int, int, int]:
    material = getattr(mesh.visual, "material", None)
    main = getattr(material, "main_color", None)
    if main is None:
        main = getattr(mesh.visual, "main_color", None)
    return CLAY if main is None else (int(main[0]), int(main[1]), int(main[2]))


def _colour_visual(colour: tuple[int, int, int], *, metallic: float = 0.1) -> TextureVisuals:
    """Return a material of one colour."""
    material = PBRMaterial(
        name="paint",
        baseColorFactor=[*colour, 255],
        metallicFactor=metallic,
        roughnessFactor=0.7,
        doubleSided=True,
    )
    return TextureVisuals(material=material)


def _image_visual(uv: object, picture: Image.Image) -> TextureVisuals:
    """Return a material with an image as its texture."""
    material = PBRMaterial(
        name="picture",
        baseColorFactor=[255, 255, 255, 255],
        baseColorTexture=picture,
        metallicFactor=0.0,
        roughnessFactor=0.9,
        doubleSided=True,
    )
    return TextureVisuals(uv=uv, material=material)


def _normals(mesh: trimesh.Trimesh) -> np.ndarray:
    """Return the normal of each point; trimesh's own implementation needs scipy, a large dependency."""
    corners = np.asarray(mesh.triangles)
    of_faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    summed = np.zeros((len(mesh.vertices), 3))
    np.add.at(summed, np.asarray(mesh.faces).ravel(), of_faces.repeat(3, axis=0))
    lengths = np.linalg.norm(summed, axis=1, keepdims=True)
    return np.where(lengths > 0, summed / np.where(lengths > 0, lengths, 1.0), [0.0, 0.0, 1.0])


if __name__ == "__main__":
    sys.stdout.buffer.write(simplify(sys.stdin.buffer.read(), int(sys.argv[1])))
