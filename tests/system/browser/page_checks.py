"""Helpers of the browser tests: frames, screenshots, and checks of contrast, width and escaping."""

from __future__ import annotations

import json
import struct
from typing import Any

from playwright.sync_api import Frame, Page

from tests.system.browser.stage import IMAGES

MIN_CONTRAST = 4.5  # contrast of text, WCAG 2.2, 1.4.3
# Returns the contrast of every visible text, lowest first. A canvas converts colors of any notation to RGB.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const blend = (colors) => {
    pen.clearRect(0, 0, 1, 1);
    for (const color of ["white", ...colors]) { pen.fillStyle = color; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => {
    const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.map((each) => linear(each / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const it of document.querySelectorAll("main *")) {
    const textNodes = [...it.childNodes].filter((each) => each.nodeType === 3);
    const text = textNodes.map((each) => each.data.trim()).join("");
    if (!text || !it.checkVisibility()) continue;
    if (it.namespaceURI.endsWith("svg") || it.closest(".visually-hidden")) continue;
    const behind = [];
    for (let outer = it; outer; outer = outer.parentElement) {
      behind.unshift(getComputedStyle(outer).backgroundColor);
    }
    const [a, b] = [luminance(blend(behind)), luminance(blend([...behind, getComputedStyle(it).color]))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text.slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""
# Returns the number of colors of a model, without what is behind it.
MODEL_COLORS = """async (index) => {
  const viewer = document.querySelectorAll("model-viewer")[index];
  const picture = await createImageBitmap(await viewer.toBlob());
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [picture.width, picture.height];
  const pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0);
  const pixels = new Uint32Array(pen.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
  return new Set(pixels.filter((each) => each >>> 24 === 255)).size;
}"""
# Hides a page as if another tab were in front; Playwright has every page in front.
HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def hide(page: Page, *, hidden: bool) -> None:
    """Report a page to itself as hidden or as visible."""
    page.evaluate(HIDE, hidden)


def open_frame(page: Page, url: str) -> Frame:
    """Go to a page of Airflow's UI and return the frame in it."""
    page.goto(url)
    handle = page.locator("iframe").element_handle()
    frame = handle.content_frame()
    assert frame is not None
    frame.wait_for_selector("main > *")
    return frame


def save_screenshot(page: Page, name: str) -> None:
    """Save a screenshot, after animations."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(700)
    page.screenshot(path=IMAGES / f"{name}.png")


def assert_readable(target: Frame | Page, width: int | None = None) -> None:
    """Assert that every text has the minimum contrast and that the page does not scroll sideways.

    :param width: width of the page in CSS pixels, if it is to be checked.
    """
    contrasts = target.evaluate(CONTRASTS)
    assert contrasts
    assert [contrast for contrast in contrasts if contrast[0] < MIN_CONTRAST] == []
    assert width is None or target.evaluate("document.documentElement.scrollWidth") <= width


def assert_harmless(page: Page) -> None:
    """Assert that no script in a hostile text was run."""
    assert page.evaluate("window.hostile") is None


def collect_percentages(frame: Frame, count: int) -> list[int]:
    """Return the first `count` different percentages that the page shows."""
    percentages: list[int] = []
    while len(percentages) < count:
        now = int(frame.locator('[data-is="percent"]').first.inner_text().split()[0])
        if not percentages or now != percentages[-1]:
            percentages.append(now)
        frame.page.wait_for_timeout(200)
    return percentages


def count_model_colors(target: Frame | Page, index: int = 0) -> int:
    """Return the number of colors of a displayed model, once it is loaded."""
    page = target.page if isinstance(target, Frame) else target
    viewer = target.locator("model-viewer").nth(index)
    viewer.wait_for(timeout=60_000)
    viewer.scroll_into_view_if_needed()
    for step in range(300):
        if viewer.evaluate("(each) => each.loaded && each.modelIsVisible"):
            break
        page.mouse.move(200 + step % 2, 300)  # a headless browser draws nothing while nothing happens
        page.wait_for_timeout(100)
    colors: int = target.evaluate(MODEL_COLORS, index)
    return colors


def get_turn(frame: Frame) -> float:
    """Return how far a model has turned by itself, in radians."""
    turn: float = frame.locator("model-viewer").first.evaluate("(each) => each.turntableRotation")
    return turn


def get_orbit(frame: Frame) -> str:
    """Return from where the camera sees a model."""
    return str(frame.locator("model-viewer").first.evaluate("(each) => each.getCameraOrbit().toString()"))


def to_glb(gltf: dict[str, Any]) -> bytes:
    """Return a GLB file without geometry."""
    chunk = json.dumps(gltf).encode()
    chunk += b" " * (-len(chunk) % 4)
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(chunk), len(chunk), 0x4E4F534A) + chunk
