"""Helpers of the browser tests: frames, screenshots, and checks of contrast, width and escaping."""

from __future__ import annotations

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
