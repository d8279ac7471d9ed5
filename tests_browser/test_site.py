"""The website's pages in headless Chromium, on a phone's width and without a network.

    make site test-browser

Skipped where ``build/site`` has not been built. Screenshots of each page, 390 and 1280 pixels
wide, light and dark, go to ``COMET_SHOTS`` where that is set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

SITE = Path(__file__).resolve().parent.parent / "build" / "site"
PAGES = [
    path.relative_to(SITE).as_posix()
    for path in sorted(SITE.rglob("*.html"))
    if "_static" not in path.parts
]
SHOTS = os.environ.get("COMET_SHOTS")
pytestmark = pytest.mark.skipif(not PAGES, reason="the site is not built: make site")


@pytest.mark.parametrize("page", PAGES or ["none"])
def test_a_page_needs_no_network_and_fits_a_phone(browser: Any, page: str) -> None:
    seen = browser.new_page(viewport={"width": 390, "height": 844})
    asked: list[str] = []
    troubles: list[str] = []
    seen.on("request", lambda request: asked.append(request.url))
    seen.on("pageerror", lambda error: troubles.append(str(error)))
    seen.goto((SITE / page).as_uri(), wait_until="load")
    if seen.locator(".math").count():
        seen.evaluate("MathJax.startup.promise")
        assert seen.locator(".math mjx-container svg").count() >= seen.locator(".math").count()
        assert seen.locator("mjx-merror, [data-mml-node='merror']").count() == 0
    root = "document.documentElement"
    assert seen.evaluate(f"{root}.scrollWidth - {root}.clientWidth") <= 0
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert troubles == []
    seen.close()


@pytest.mark.skipif(not SHOTS, reason="COMET_SHOTS is not set")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("page", PAGES or ["none"])
def test_screenshots(browser: Any, page: str, width: int, scheme: str) -> None:
    seen = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme)
    seen.goto((SITE / page).as_uri(), wait_until="load")
    name = f"site_{Path(page).stem}_{width}_{scheme}.png"
    seen.screenshot(path=Path(str(SHOTS)) / name)
    seen.close()
