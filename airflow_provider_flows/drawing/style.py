"""The colours of a flow's picture, light and dark, and the style sheet that puts them on; one table of both.

What is drawn where is not said here.
"""

from __future__ import annotations

FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

# name -> light, dark; a page overrides each by the custom property `--flow-NAME`
COLOURS = {
    "paper": ("#ffffff", "#1b2028"),
    "ink": ("#1d2430", "#e8edf4"),
    "soft": ("#566173", "#a3afbf"),
    "edge": ("#98a3b3", "#6c7889"),
    "variable": ("#b45309", "#f5b83d"),
    "variable-tint": ("#fdf0d5", "#3b2d10"),
    "action": ("#4f46e5", "#a9b1fb"),
    "action-tint": ("#e9e8fd", "#292a52"),
    "image": ("#be185d", "#f79cc4"),
    "image-tint": ("#fce4ef", "#46203a"),
    "output": ("#047857", "#3ddba3"),
    "output-tint": ("#d8f4e8", "#0f3b2f"),
    "other": ("#475569", "#b8c4d3"),
    "other-tint": ("#e6ebf1", "#2d3642"),
}
KINDS = ("variable", "action", "image", "output", "other")


def light(name: str) -> str:
    """Give the colour of this name on a light page."""
    return COLOURS[name][0]


def _properties(theme: int) -> str:
    return "".join(f"--f-{name}:var(--flow-{name},{both[theme]});" for name, both in COLOURS.items())


def _rules() -> str:
    """Write the style sheet: everything below `.flow-drawing`, so that it changes nothing else of a page that takes it in."""
    dark = _properties(1)
    kinds = "".join(
        f".flow-drawing .{kind} .tile{{fill:var(--f-{kind}-tint)}}"
        f".flow-drawing .{kind} .icon,.flow-drawing .{kind} .box{{stroke:var(--f-{kind})}}"
        f".flow-drawing .{kind} .kind,.flow-drawing .{kind} .handle{{fill:var(--f-{kind})}}"
        for kind in KINDS
    )
    return (
        "svg:root{color-scheme:light dark}"
        f".flow-drawing{{max-width:100%;height:auto;{_properties(0)}}}"
        f"@media (prefers-color-scheme:dark){{.flow-drawing{{{dark}}}}}"
        f'.light .flow-drawing,[data-theme="light"] .flow-drawing,.flow-drawing.light{{{_properties(0)}}}'
        f'.dark .flow-drawing,[data-theme="dark"] .flow-drawing,.flow-drawing.dark{{{dark}}}'
        ".flow-drawing .box{fill:var(--f-paper)}"
        ".flow-drawing .edge{stroke:var(--f-edge)}"
        ".flow-drawing .head{fill:var(--f-edge)}"
        ".flow-drawing .name{fill:var(--f-ink)}"
        ".flow-drawing .soft{fill:var(--f-soft)}"
        ".flow-drawing .handle{stroke:var(--f-paper)}"
        f"{kinds}"
        ".flow-drawing .placeholder{fill:var(--f-variable)}"
    )


STYLE = _rules()
