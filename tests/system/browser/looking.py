"""What the walk looks with: frames, pictures, and what a page's colours and width do to people.

Where it goes stands in walk.py.
"""

from __future__ import annotations

from playwright.sync_api import Frame, Page

from tests.system.browser.stage import IMAGES

MIN_CONTRAST = 4.5  # contrast of text, WCAG 2.2, 1.4.3
# The contrast of every text that is seen, worst first; a canvas turns whatever colour a style has into red, green and blue.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const mixed = (colours) => {
    pen.clearRect(0, 0, 1, 1);
    for (const colour of ["white", ...colours]) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.map((each) => linear(each / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const it of document.querySelectorAll("main *")) {
    const text = [...it.childNodes].filter((each) => each.nodeType === 3).map((each) => each.data.trim()).join("");
    if (!text || !it.checkVisibility() || it.namespaceURI.endsWith("svg") || it.closest(".visually-hidden")) continue;
    const behind = [];
    for (let outer = it; outer; outer = outer.parentElement) behind.unshift(getComputedStyle(outer).backgroundColor);
    const [a, b] = [light(mixed(behind)), light(mixed([...behind, getComputedStyle(it).color]))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text.slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""
# As a browser says it of a page behind another one; Playwright keeps every page in front, whatever is opened.
HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def hide(page: Page, *, hidden: bool) -> None:
    """Let a page believe that nobody sees it, or that somebody does again."""
    page.evaluate(HIDE, hidden)


def open_frame(page: Page, address: str) -> Frame:
    """Go to a page of Airflow's, and give what stands in its frame."""
    page.goto(address)
    handle = page.locator("iframe").element_handle()
    frame = handle.content_frame()
    assert frame is not None
    frame.wait_for_selector("main > *")
    return frame


def save_screenshot(page: Page, name: str) -> None:
    """Keep a picture of what is seen, once it stands still."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(700)
    page.screenshot(path=IMAGES / f"{name}.png")


def assert_readable(target: Frame | Page, width: int | None = None) -> None:
    """Every text stands out from what is behind it, and the page fits its width.

    :param width: in CSS pixels, if it is to fit.
    """
    contrasts = target.evaluate(CONTRASTS)
    assert contrasts
    assert [contrast for contrast in contrasts if contrast[0] < MIN_CONTRAST] == []
    assert width is None or target.evaluate("document.documentElement.scrollWidth") <= width


def assert_harmless(page: Page) -> None:
    """Nothing of what is hostile was run."""
    assert page.evaluate("window.hostile") is None


def collect_percentages(frame: Frame, count: int) -> list[int]:
    """Give the percentages that are shown one after the other."""
    percentages: list[int] = []
    while len(percentages) < count:
        now = int(frame.locator('[data-is="percent"]').first.inner_text().split()[0])
        if not percentages or now != percentages[-1]:
            percentages.append(now)
        frame.page.wait_for_timeout(200)
    return percentages
