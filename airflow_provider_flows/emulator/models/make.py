"""What the flow runs do: an input's bytes into an output's bytes, by template.

The meshes themselves are built by the mesh modules, which are imported only when there is work.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

# Larger models are reduced in a process of their own: the library keeps Python's lock all the while, about a second for a
# third of a million triangles, and nobody else would be answered.
MIN_SUBPROCESS_BYTES = 1024 * 1024


class UnreadableInputError(Exception):
    """An input that is not what its media type says."""


def validate_input(template: str, content: bytes) -> None:
    """Raise UnreadableInputError if there is no working with that input."""
    if template == "model_generate_fromimage":
        from airflow_provider_flows.emulator.models.from_image import open_image

        open_image(content)
    elif template == "model_optimize":
        from airflow_provider_flows.emulator.models.simplify import open_model

        open_model(content)


def create_output(template: str, content: bytes, parameters: dict[str, Any]) -> bytes:
    """Return the output: a GLB."""
    if template == "model_generate_fromimage":
        from airflow_provider_flows.emulator.models.from_image import image_to_glb

        return image_to_glb(content, quality=parameters["quality"], texture=parameters["texture"])
    if template == "model_optimize":
        return _simplify(content, parameters["polygon_count"])
    from airflow_provider_flows.emulator.models.from_prompt import prompt_to_glb

    return prompt_to_glb(
        content.decode(), **{name: parameters[name] for name in ("quality", "seed", "texture")}
    )


def _simplify(content: bytes, polygon_count: int) -> bytes:
    if len(content) < MIN_SUBPROCESS_BYTES:
        from airflow_provider_flows.emulator.models.simplify import simplify

        return simplify(content, polygon_count)
    command = [sys.executable, "-m", "airflow_provider_flows.emulator.models.simplify", str(polygon_count)]
    # It has to find the same packages, wherever this process has them from.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(command, input=content, stdout=subprocess.PIPE, env=environment, check=True).stdout  # noqa: S603  our own
