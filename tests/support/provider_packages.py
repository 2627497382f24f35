"""Packages with a provider for Airflow, installed by writing what `pip install` would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def install_provider(site: Path, name: str, entry_point: str, modules: Mapping[str, str]) -> None:
    """Install a package into a folder, which must be on the path of modules of a process.

    :param name: of the project, in lower case and with dashes.
    :param entry_point: where Airflow finds the provider's metadata, such as `beer.provider_info:get`.
    :param modules: the source of each module, by its path.
    """
    for path, source in modules.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(source)
    metadata = site / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[apache_airflow_provider]\nprovider_info = {entry_point}\n")
