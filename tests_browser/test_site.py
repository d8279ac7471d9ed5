"""The website's pages in headless Chromium, on a phone's width and without a network.

    make site test-browser

The pages' tests are skipped where ``build/site`` has not been built. Screenshots of each page, 375
and 1280 pixels wide, light and dark, go to ``COMET_SHOTS`` where that is set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comet_lib.lens.data import from_arrays
from comet_lib.lens.export import drawn, saved

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "site"
PAGES = [
    path.relative_to(SITE).as_posix()
    for path in sorted(SITE.rglob("*.html"))
    if "_static" not in path.parts
]
SHOTS = os.environ.get("COMET_SHOTS")
built = pytest.mark.skipif(not PAGES, reason="the site is not built: make site")


@built
@pytest.mark.parametrize("page", PAGES or ["none"])
def test_a_page_needs_no_network_and_fits_a_phone(browser: Any, page: str) -> None:
    seen = browser.new_page(viewport={"width": 375, "height": 812})
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
    texts = seen.locator("img").evaluate_all("all => all.map((one) => one.alt)")
    assert all(text and not text.endswith(".png") for text in texts)
    if "playground" not in page and "lens/" not in page:
        for name in ("description", "og:image", "og:title"):
            assert seen.locator(f"meta[name='{name}'], meta[property='{name}']").count() == 1
        assert seen.locator("link[rel~=icon]").count() == 1
    seen.close()


@built
def test_the_home_page_leads_to_the_playground(browser: Any) -> None:
    seen = browser.new_page(viewport={"width": 1280, "height": 900})
    seen.goto((SITE / "index.html").as_uri())
    for link in ("a.try", "a.door >> nth=0"):
        box = seen.locator(link).bounding_box()
        assert box["y"] + box["height"] <= 900, "it is seen without scrolling"
        target = seen.locator(link).get_attribute("href")
        assert target.endswith("playground/index.html") and target.startswith("playground")
    assert seen.locator("a.try img").evaluate("one => one.naturalWidth") == 1200
    seen.close()


@built
def test_the_search_works_without_a_server(browser: Any) -> None:
    seen = browser.new_page()
    seen.goto((SITE / "index.html").as_uri())
    seen.goto(f"{(SITE / 'search.html').as_uri()}?q=temperature")
    found = seen.locator("#search-results li a")
    found.first.wait_for()
    assert any("hybrid loss" in name for name in found.all_inner_texts())
    seen.close()


@built
def test_code_is_copied(browser: Any) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    seen = context.new_page()
    seen.goto((SITE / "docs" / "command-line.html").as_uri())
    block = seen.locator(".highlight").first
    block.hover()
    block.locator("button.copy").click()
    block.locator("button.copy", has_text="Copied").wait_for()
    assert (
        seen.evaluate("navigator.clipboard.readText()")
        == block.locator("pre").inner_text().rstrip()
    )
    context.close()


def test_a_lens_in_a_frame_is_as_high_as_it_is_and_follows_the_theme(
    browser: Any, tmp_path: Path
) -> None:
    maps = np.full((2, 4, 4), 0.25)
    data = from_arrays(["a", "b", "c", "d"], maps, {0: maps, 1: np.stack([np.eye(4)] * 2)})
    (tmp_path / "lens.html").write_text(drawn(saved(data)), encoding="utf-8")
    script = (ROOT / "docs" / "site" / "static" / "site.js").as_uri()
    (tmp_path / "index.html").write_text(
        f"""<!DOCTYPE html><html data-theme="light"><body>
        <style>iframe {{ width: 690px; border: 1px solid; box-sizing: border-box }}</style>
        <iframe class="lens" src="lens.html"></iframe>
        <script src="{script}"></script>"""
    )
    seen = browser.new_page(viewport={"width": 1280, "height": 900})
    seen.goto((tmp_path / "index.html").as_uri())
    inside = seen.frame_locator("iframe.lens")
    inside.locator("[data-painted]").wait_for()
    assert inside.locator("h1").is_hidden() and inside.locator("footer").is_hidden()
    seen.wait_for_function("document.querySelector('iframe').clientHeight > 500")
    body = inside.locator("body").bounding_box()
    frame = seen.locator("iframe").bounding_box()
    assert abs(frame["height"] - 2 - body["height"]) <= 1
    for theme in ("dark", "light"):
        seen.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
        inside.locator(f".comet-lens[data-theme={theme}]").wait_for()
    seen.close()


@built
@pytest.mark.skipif(not SHOTS, reason="COMET_SHOTS is not set")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("page", PAGES or ["none"])
def test_screenshots(browser: Any, page: str, width: int, scheme: str) -> None:
    seen = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme)
    seen.goto((SITE / page).as_uri(), wait_until="load")
    name = f"site_{page.removesuffix('.html').replace('/', '_')}_{width}_{scheme}.png"
    seen.screenshot(path=Path(str(SHOTS)) / name)
    seen.close()
