"""The picture of a flow graph: as SVG for a page or a file, and as Mermaid for text that is rendered elsewhere.

It reads no graph (flow/graph.py does) and writes no file.
"""

from __future__ import annotations

from airflow_provider_flows.drawing.mermaid import to_mermaid
from airflow_provider_flows.drawing.style import STYLE
from airflow_provider_flows.drawing.svg import to_svg

__all__ = ["STYLE", "to_mermaid", "to_svg"]
