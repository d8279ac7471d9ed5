"""The lens in JupyterLab: notebook 03 is opened, run, and its lens pointed at, clicked and dragged.

    make test-browser

Screenshots go to ``COMET_SHOTS`` where that is set.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jupyterlab")
pytest.importorskip("anywidget")
from conftest import hover_milliseconds
from lab import LENS_NOTEBOOK, Lab, Seen, set_theme

from comet_lib.lens.export import MIME
from comet_lib.widgets.view import WIDGET_VIEW


@pytest.fixture
def lens(seen: Seen) -> Any:
    """The lens with two students and single heads: the second of the notebook."""
    one = seen.page.locator(".comet-lens").nth(1)
    one.scroll_into_view_if_needed()
    one.locator("[data-map=teacher]").wait_for()
    return one


def point_at(page: Any, lens: Any, name: str, q: int, k: int, size: int) -> None:
    canvas = lens.locator(f"[data-map={name}]")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    cell = box["width"] / size
    page.mouse.move(box["x"] + (k + 0.5) * cell, box["y"] + (q + 0.5) * cell)


def row_colors(lens: Any, name: str, size: int) -> list[list[int]]:
    """The color in the middle of column 3, in each row of a map."""
    return lens.locator(f"[data-map={name}]").evaluate(
        """(canvas, size) => {
            const cell = canvas.width / size, context = canvas.getContext("2d");
            return Array.from({ length: size }, (_, q) =>
                [...context.getImageData(3.3 * cell, (q + 0.5) * cell, 1, 1).data]);
        }""",
        size,
    )


def active_cell(page: Any) -> int:
    return page.evaluate(
        """() => [...document.querySelectorAll(".jp-Notebook .jp-Cell")]
            .findIndex((cell) => cell.classList.contains("jp-mod-active"))"""
    )


def test_every_lens_is_alive_and_has_its_picture_saved(seen: Seen, lab: Lab) -> None:
    assert seen.page.locator(".comet-lens[data-painted]").count() == 3
    seen.page.keyboard.press("Control+s")
    file = lab.folder / "notebooks" / LENS_NOTEBOOK
    for _ in range(50):
        try:
            cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        except ValueError:  # it is being written
            cells = []
        outputs = [o for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
        kinds = [set(o["data"]) for o in outputs if o["output_type"] == "execute_result"]
        lenses = [k for k in kinds if k >= {MIME, WIDGET_VIEW}]  # a quiz has no MIME of ours
        if len(lenses) == 3:
            break
        time.sleep(0.2)
    assert len(lenses) == 3 and all("image/png" in k for k in lenses)
    assert not [o for o in outputs if o["output_type"] == "error"]


def test_a_row_pointed_at_lights_up_in_the_students_map(seen: Seen, lens: Any) -> None:
    size = lens.locator(".lens-word").count()
    seen.page.mouse.move(1, 1)
    before = row_colors(lens, "student", size)
    point_at(seen.page, lens, "teacher", 5, 8, size)
    assert lens.get_attribute("data-row") == "5" and lens.get_attribute("data-column") == "8"
    after = row_colors(lens, "student", size)
    assert after[5] == before[5]  # lit: as it was; the others step back
    assert all(after[q] != before[q] for q in range(size) if q not in (4, 5, 6))
    assert "teacher 0." in lens.locator(".lens-readout").inner_text()


def test_the_table_of_layers_chooses_the_pair_in_python_too(
    seen: Seen, lens: Any, lab: Lab
) -> None:
    shape = json.loads(lab.run(LENS_NOTEBOOK, "print(list(lens.data.js.shape))"))
    assert shape == [2, 2, 4]
    grid = lens.locator(".lens-grid")
    grid.scroll_into_view_if_needed()
    shown = lens.locator(".lens-finding").inner_text()
    grid.click(position={"x": 24 + 2.5 * 64, "y": 54 + 0.5 * 28})
    assert lens.get_attribute("data-pair") == "2 0"
    assert lens.locator(".lens-caption").first.inner_text() == "teacher, layer 2"
    assert lens.locator(".lens-finding").inner_text() != shown
    at = active_cell(seen.page)
    seen.page.keyboard.press("ArrowRight")
    seen.page.keyboard.press("ArrowDown")
    assert lens.get_attribute("data-pair") == "3 1"
    assert active_cell(seen.page) == at  # JupyterLab's own use of the arrow keys stays out
    seen.page.wait_for_timeout(500)
    pair = "print(lens.selection['teacher_layer'], lens.selection['student_layer'])"
    assert lab.run(LENS_NOTEBOOK, pair) == "3 1\n"


def test_the_slider_is_dragged_to_the_first_step(seen: Seen, lens: Any, lab: Lab) -> None:
    size = lens.locator(".lens-word").count()
    slider = lens.locator("input[type=range]")
    slider.scroll_into_view_if_needed()
    seen.page.mouse.move(1, 1)
    before = row_colors(lens, "student", size)
    box = slider.bounding_box()
    y = box["y"] + box["height"] / 2
    seen.page.mouse.move(box["x"] + box["width"] - 8, y)
    seen.page.mouse.down()
    seen.page.mouse.move(box["x"] + box["width"] / 2, y, steps=4)
    seen.page.mouse.move(box["x"] + 4, y, steps=4)
    seen.page.mouse.up()
    assert lens.locator("output").inner_text() == "0"
    assert "at step 0" in lens.locator(".lens-finding").inner_text()
    assert row_colors(lens, "student", size) != before
    seen.page.wait_for_timeout(500)
    assert lab.run(LENS_NOTEBOOK, "print(lens.selection['step'])") == "0\n"


def test_what_is_exported_is_what_is_seen(
    seen: Seen, lens: Any, lab: Lab, browser: Any, tmp_path: Path
) -> None:
    file = tmp_path / "lens.html"
    lab.run(LENS_NOTEBOOK, f"lens.export({str(file)!r})")
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("[data-painted]")
    assert page.locator(".comet-lens").get_attribute("data-pair") == lens.get_attribute("data-pair")
    assert page.locator(".lens-finding").inner_text() == lens.locator(".lens-finding").inner_text()
    page.context.close()


def test_first_paint_and_hover_are_quick(
    seen: Seen, lens: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    paint = float(lens.get_attribute("data-painted"))
    lens.locator("[data-map=teacher]").scroll_into_view_if_needed()
    hovers = hover_milliseconds(lens)
    median = float(np.median(hovers))
    with capsys.disabled():
        print(
            f"\nin JupyterLab: first paint {paint:.0f} ms, "
            f"hover median {median:.1f} ms, most {max(hovers):.1f}"
        )
    # Far above the aims (1 s, 50 ms): a busy machine must not fail the build.
    assert paint < 10_000 and median < 500


def test_light_and_dark(seen: Seen, lens: Any, shots: Path) -> None:
    page = seen.page
    size = lens.locator(".lens-word").count()
    widths = set()
    for theme in ("Light", "Dark"):
        set_theme(page, theme)
        page.wait_for_timeout(1000)
        widths.add(lens.locator("[data-map=teacher]").bounding_box()["width"])
        assert lens.get_attribute("data-theme") == theme.lower()
        lens.locator(".lens-finding").scroll_into_view_if_needed()
        point_at(page, lens, "teacher", 5, 8, size)
        page.screenshot(path=shots / f"lab_{theme.lower()}.png")
    assert len(widths) == 1, "the maps of one theme are narrower"


def test_the_console_has_no_error(seen: Seen) -> None:
    """Last: it looks back on all that was done."""
    assert seen.troubles == []
