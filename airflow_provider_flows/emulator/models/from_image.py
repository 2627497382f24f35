"""A mesh for an image: a relief, high where the image is bright.

It reads images with Pillow and guesses nothing about what they show.
"""

from __future__ import annotations

import io

import numpy as np
import trimesh
from PIL import Image

from airflow_provider_flows.emulator.models.colours import CLAY
from airflow_provider_flows.emulator.models.glb import colour_visual, image_visual, to_glb
from airflow_provider_flows.emulator.models.make import UnreadableInputError

GRID_SIDE = {"low": 40, "high": 64}
TEXTURE_SIDE = 128
HEIGHT = 0.25


def open_image(content: bytes) -> Image.Image:
    """Return the decoded image, or raise UnreadableInputError."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    # Pillow raises many kinds for a broken file, SyntaxError and struct.error among them.
    except Exception as error:
        raise UnreadableInputError(f"not an image that can be read: {error}") from error
    return image.convert("RGB")


def image_to_glb(content: bytes, *, quality: str, texture: bool) -> bytes:
    """Return a GLB with the image's brightness as height."""
    image = open_image(content)
    side = GRID_SIDE[quality]
    columns = max(2, min(side, round(side * image.width / image.height)))
    rows = max(2, min(side, round(side * image.height / image.width)))
    brightness = np.asarray(image.convert("L").resize((columns, rows)), dtype=np.float64) / 255
    across, down = np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows))
    width, height = columns / side, rows / side
    points = np.column_stack(
        (((across - 0.5) * width).ravel(), ((0.5 - down) * height).ravel(), (brightness * HEIGHT).ravel())
    )
    if texture:
        picture = image.copy()
        picture.thumbnail((TEXTURE_SIDE, TEXTURE_SIDE))
        visual = image_visual(np.column_stack((across.ravel(), 1 - down.ravel())), picture)
    else:
        visual = colour_visual(CLAY)
    return to_glb(trimesh.Trimesh(points, _grid(columns, rows), visual=visual, process=False))


def _grid(columns: int, rows: int) -> np.ndarray:
    """Return two triangles for each square of the grid."""
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    below = corner + columns
    upper = np.column_stack((corner, below, corner + 1))
    lower = np.column_stack((corner + 1, below, below + 1))
    return np.concatenate((upper, lower))
