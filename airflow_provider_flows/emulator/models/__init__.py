"""The work of Generio's templates: validates an input, and creates the output that belongs to it.

The mesh libraries are imported on first use.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

# Larger models are simplified in a child process: the library holds the GIL, about a second for a third of a
# million triangles, and would block all other requests.
MIN_SUBPROCESS_BYTES = 1024 * 1024


def validate_input(template: str, content: bytes) -> None:
    """Validate the content of an input for a template.

    :raises UnreadableInputError: the content cannot be read.
    """
    if template == "model_generate_fromimage":
        from airflow_provider_flows.emulator.models.meshes import open_image

        open_image(content)
    elif template == "model_optimize":
        from airflow_provider_flows.emulator.models.meshes import open_model

        open_model(content)


def create_output(template: str, content: bytes, parameters: dict[str, Any]) -> bytes:
    """Create the output for a valid input, and return it as a GLB file."""
    if template == "model_generate_fromimage":
        from airflow_provider_flows.emulator.models.meshes import image_to_glb

        return image_to_glb(content, quality=parameters["quality"], texture=parameters["texture"])
    if template == "model_optimize":
        return _simplify(content, parameters["polygon_count"])
    from airflow_provider_flows.emulator.models.meshes import prompt_to_glb

    return prompt_to_glb(
        content.decode(), **{name: parameters[name] for name in ("quality", "seed", "texture")}
    )


def _simplify(content: bytes, polygon_count: int) -> bytes:
    if len(content) < MIN_SUBPROCESS_BYTES:
        from airflow_provider_flows.emulator.models.meshes import simplify

        return simplify(content, polygon_count)
    command = [sys.executable, "-m", "airflow_provider_flows.emulator.models.meshes", str(polygon_count)]
    # The child process has to find the same packages as this one.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(command, input=content, stdout=subprocess.PIPE, env=environment, check=True).stdout  # noqa: S603  our own
