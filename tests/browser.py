"""A real browser for pages: Debian's Chromium, driven by Playwright, with axe-core to look for what keeps people out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
MISSING = [
    *([] if CHROMIUM else ["chromium (apt-get install chromium)"]),
    *(name for name in ("playwright", "axe_playwright_python") if find_spec(name) is None),
]

needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")

PHONE, DESK = (390, 844), (1280, 900)


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Any, file: Path, size: tuple[int, int] = DESK, scheme: str = "light", anchor: str = ""
) -> Iterator[Any]:
    """A page in a window of this size. Fails on errors and warnings of the console, and on anything that is loaded."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(20_000)
    said: list[str] = []
    page.on(
        "console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request",
        lambda request: said.append(request.url) if request.url.split("#")[0] != file.as_uri() else None,
    )
    page.goto(file.as_uri() + anchor)
    try:
        yield page
    finally:
        context.close()
    assert said == []


def barriers(page: Any) -> list[str]:
    """What axe-core finds wrong with a page as it stands: rule, element, and what to do."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response
    assert any(rule["id"] == "color-contrast" for rule in found["passes"] + found["violations"]), (
        "axe looked at it"
    )
    return [
        f"{rule['id']}: {node['target']}: {node.get('failureSummary', '')}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]
