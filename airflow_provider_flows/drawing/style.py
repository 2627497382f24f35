"""The colours of a flow's picture, light and dark, and the style sheet that applies them."""

from __future__ import annotations

FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

# name -> light, dark; a page overrides each by the custom property `--flow-NAME`
COLOURS = {
    "paper": ("#ffffff", "#1b2028"),
    "ink": ("#1d2430", "#e8edf4"),
    "soft": ("#566173", "#a3afbf"),
    "edge": ("#98a3b3", "#6c7889"),
    "variable": ("#b45309", "#f5b83d"),
    "action": ("#4f46e5", "#a9b1fb"),
    "image": ("#be185d", "#f79cc4"),
    "output": ("#047857", "#3ddba3"),
    "other": ("#475569", "#b8c4d3"),
}


def get_light_colour(name: str) -> str:
    """Return the colour of this name on a light page."""
    return COLOURS[name][0]


def _properties(theme: int) -> str:
    return "".join(f"--f-{name}:var(--flow-{name},{both[theme]});" for name, both in COLOURS.items())


def _style_sheet() -> str:
    """Return the rules: all below `.flow-drawing`, so that they change nothing else of a page."""
    light, dark = _properties(0), _properties(1)
    kinds = "".join(
        f".flow-drawing .{kind} .box{{stroke:var(--f-{kind})}}"
        f".flow-drawing .{kind} .kind{{fill:var(--f-{kind})}}"
        for kind in ("variable", "action", "image", "output", "other")
    )
    return (
        "svg:root{color-scheme:light dark}"
        f".flow-drawing{{max-width:100%;height:auto;{light}}}"
        f"@media (prefers-color-scheme:dark){{.flow-drawing{{{dark}}}}}"
        f'.light .flow-drawing,[data-theme="light"] .flow-drawing{{{light}}}'
        f'.dark .flow-drawing,[data-theme="dark"] .flow-drawing{{{dark}}}'
        ".flow-drawing .box{fill:var(--f-paper)}"
        ".flow-drawing .edge{stroke:var(--f-edge)}"
        ".flow-drawing .head{fill:var(--f-edge)}"
        ".flow-drawing .name{fill:var(--f-ink)}"
        ".flow-drawing .soft{fill:var(--f-soft)}"
        f"{kinds}"
        ".flow-drawing .placeholder{fill:var(--f-variable)}"
    )


STYLE = _style_sheet()
