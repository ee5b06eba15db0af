"""A browser without a window, and the page in it. Needs Gradio, Playwright and a Chromium, which are looked for when used."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 180_000  # a machine may be busy


def browser_path() -> str | None:
    """Of the first that there is."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def launched() -> Iterator[Any]:
    """A browser of Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path(), args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def visited(browser: Any, bench: Any) -> Iterator[Any]:
    """The page that runs on ``bench``, on a screen of 1280 pixels. Afterwards: nothing failed in the browser, and nobody was
    asked but this machine.
    """
    from taylorseer_fx.app.main import free_port, serve
    from taylorseer_fx.app.page import Page

    blocks = Page(bench).blocks
    faults, asked = [], set()
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE_MS)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.add(re.sub(r"^(\w+://[^/:]+).*$", r"\1", request.url)))
    try:
        page.goto(serve(blocks, free_port(0)))
        page.wait_for_selector("#A-preview .ts-strip")
        yield page
    finally:
        page.close()
        blocks.close(verbose=False)
    assert faults == []
    assert asked == {"http://127.0.0.1"}


def set_slider(page: Any, name: str, value: float) -> None:
    box = page.locator(f"#{name} input[type=number]")
    box.fill(str(value))
    box.press("Tab")


def press(page: Any) -> None:
    """Press the button, and wait for another message than there was."""
    page.evaluate("document.querySelectorAll('#message p').forEach(old => old.classList.add('old'))")
    page.locator("#run").click()
    page.wait_for_selector("#message p:not(.old)")
