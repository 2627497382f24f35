"""The viewer of 3D models in the pages, `<model-viewer>`: its file, its needs, and what it can display.

The build adds the file to the package (`hatch_build.py`). An editable install without a network has none.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import re
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from airflow_provider_flows.core.gltf import COMPRESSIONS

log = logging.getLogger(__name__)

FILE_NAME = "model-viewer.js"
MISSING_WARNING = (
    "The viewer of 3D models is not part of this installation, which was built without a network: "
    "the pages offer models for download only. Install a wheel of airflow-provider-flows, or repeat the "
    "installation with a network"
)
# the element styles its shadow root with a text that is always the same, so its hash can be allowed
STYLE = re.compile(r"<style>([^`]*?)</style>")
UNREADABLE = {**COMPRESSIONS, "KHR_texture_basisu": "KTX2"}


class Viewer(NamedTuple):
    """The viewer.

    :param version: the start of the file's SHA-256, for its URL.
    :param compressed: the file, compressed with gzip.
    :param style_hashes: those of its style elements, as in a Content Security Policy.
    """

    version: str
    script: bytes
    compressed: bytes
    style_hashes: tuple[str, ...]

    @property
    def path(self) -> str:
        """The path of the file, relative to the app."""
        return f"viewer/{self.version}/{FILE_NAME}"

    def get_policy(self) -> dict[str, str]:
        """Return the directives of the Content Security Policy that it needs in place of a page's own.

        Textures inside a model are fetched from `blob:` URLs, and a decoder is compiled as WebAssembly.
        """
        return {
            "style-src": " ".join(["'self'", *self.style_hashes]),
            "script-src": "'self' 'wasm-unsafe-eval'",
            "connect-src": "'self' blob:",
        }


@cache
def load_viewer() -> Viewer | None:
    """Return the viewer, None if this installation has none."""
    path = files(__package__) / "viewer" / FILE_NAME
    if not path.is_file():
        log.warning(MISSING_WARNING)
        return None
    script = path.read_bytes()
    styles = [text for text in STYLE.findall(script.decode()) if "${" not in text]
    return Viewer(
        hashlib.sha256(script).hexdigest()[:12],
        script,
        gzip.compress(script, mtime=0),
        tuple(_to_csp_hash(text) for text in styles),
    )


def _to_csp_hash(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def find_compression(gltf: Mapping[str, Any]) -> str | None:
    """Return how a model is compressed, None if it is in no way that the viewer in the pages cannot read."""
    names = [name for key in ("extensionsUsed", "extensionsRequired") for name in _get_list(gltf, key)]
    return next((label for name, label in UNREADABLE.items() if name in names), None)


def has_other_files(gltf: Mapping[str, Any]) -> bool:
    """Return whether a model refers to other files, which are not stored with it: geometry or textures.

    The viewer would request them, from whatever host the model names. The pages' policy forbids that.
    """
    parts = [part for key in ("buffers", "images") for part in _get_list(gltf, key)]
    return any(isinstance(part, Mapping) and "uri" in part for part in parts)


def _get_list(gltf: Mapping[str, Any], key: str) -> list[Any]:
    value = gltf.get(key)
    return value if isinstance(value, list) else []
