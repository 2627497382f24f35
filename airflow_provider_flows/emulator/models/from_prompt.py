"""A mesh for a prompt: always the same for the same words, another for others.

It knows no furniture: it turns a hash of the prompt into a stone or a turned piece of clay.
"""

# mypy: allow-untyped-calls
# (trimesh says that it is typed, and is so in part)

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import trimesh

from airflow_provider_flows.emulator.models.colours import CLAY, digest, get_colour
from airflow_provider_flows.emulator.models.glb import colour_visual, to_glb

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUBDIVISIONS = {"low": 3, "high": 4}
SECTIONS = {"low": 32, "high": 64}
RINGS = {"low": 24, "high": 48}


def prompt_to_glb(prompt: str, *, quality: str, seed: int, texture: bool) -> bytes:
    """Return a GLB for the prompt; seed -1 means the prompt alone decides."""
    numbers = np.random.default_rng(list(digest(prompt, seed)))
    mesh = (
        _stone(numbers, SUBDIVISIONS[quality])
        if numbers.integers(2)
        else _solid_of_revolution(numbers, quality)
    )
    colour = get_colour(prompt) if texture else CLAY
    mesh.visual = colour_visual(colour, metallic=float(numbers.random()) * 0.6 if texture else 0.0)
    mesh.metadata.clear()
    return to_glb(mesh)


def _stone(numbers: np.random.Generator, subdivisions: int) -> trimesh.Trimesh:
    """Return a ball with waves of several directions on it."""
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


def _solid_of_revolution(numbers: np.random.Generator, quality: str) -> trimesh.Trimesh:
    """Return a profile of soft bulges turned about the upright axis."""
    rings = RINGS[quality]
    heights = np.linspace(0.0, 1.0 + numbers.random(), rings)
    along = np.linspace(0.0, 1.0, rings)
    radius = 0.35 + np.zeros(rings)
    for number in range(1, 5):
        radius += (
            0.22 / number * numbers.random() * np.sin(number * np.pi * along + numbers.random() * 2 * np.pi)
        )
    radius = np.maximum(radius, 0.08)
    # Both ends on the axis, so that the body is closed.
    radius[0] = radius[-1] = 0.0
    profile = np.column_stack((radius, heights))
    body = trimesh.creation.revolve(profile, sections=SECTIONS[quality])
    # glTF's up is y, the turning axis is z.
    body.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, [1, 0, 0]))
    return body
