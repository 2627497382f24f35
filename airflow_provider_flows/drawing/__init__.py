"""The picture of a flow graph: SVG for a page or a file, Mermaid for text that is rendered elsewhere."""

from __future__ import annotations

from airflow_provider_flows.drawing.picture import STYLE, to_mermaid, to_svg

__all__ = ["STYLE", "to_mermaid", "to_svg"]
