"""Notebooks as a learner has them: JupyterLab, Run All, and every control moved once.

    make test-browser

Each notebook must end without an error, and each control must change the picture of its view. Views
are measured at two widths in both themes; ``COMET_SHOTS`` keeps their screenshots.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jupyterlab")
pytest.importorskip("anywidget")
from lab import CLICK, LENS_NOTEBOOK, Lab, run_notebook, set_theme

VIEWS = {  # a notebook, and how many views and lenses it has
    "00_the_whole_game.ipynb": (1, 2),
    "02_design_the_student.ipynb": (3, 0),
    LENS_NOTEBOOK: (0, 3),
    "04_the_hybrid_loss.ipynb": (2, 0),
    "10_when_attention_pays.ipynb": (0, 1),
}
QUIZ = ".comet-quiz"
VIEW = f".jp-OutputArea-output > .widget-vbox:not({QUIZ})"
LENS = ".comet-lens[data-painted]"
TALL = 1400  # the page's height when it is photographed: a narrow lens is then seen whole
CONTROLS = "[role=slider], select, button, input"
# Controls that change the sentence below the picture alone, and not at each step: a number of heads
# that does not divide the width. The lens's button keeps a sentence to compare others with.
IN_WORDS_ALONE = {"heads", "Compare with this sentence"}
PICTURE = """async (root) => {
    const shown = [];
    for (const image of root.querySelectorAll("img, canvas")) {
        if (image.tagName === "CANVAS") { shown.push(image.toDataURL()); continue; }
        for (let tries = 0; ; tries++) {  // a newer picture can take its place while it is decoded
            try { await image.decode(); break; }
            catch (error) { if (tries === 50) throw error; }
            await new Promise((go) => setTimeout(go, 100));
        }
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        canvas.getContext("2d").drawImage(image, 0, 0);
        shown.push(canvas.toDataURL());
    }
    return shown.join();
}"""
SENTENCE = """(root) => root.matches(".comet-lens")
    ? root.textContent
    : [...root.querySelectorAll(".widget-label, .widget-html-content")]
        .map((label) => label.textContent).join()"""
# What is wider or taller than its box: text that is cut off, or a picture that is.
CUT_OFF = """(root) => [root, ...root.querySelectorAll("*")]
    .filter((one) => one.clientWidth && getComputedStyle(one).overflowX !== "visible"
        && (one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1))
    .map((one) => `${one.className}: ${one.textContent.slice(0, 80)}`)"""


def name_of(control: Any) -> str:
    """The words beside a control."""
    return control.evaluate(
        """(one) => (one.closest("label, .widget-inline-hbox, .jupyter-widgets") ?? one)
            .querySelector(".widget-label, span")?.textContent ?? one.textContent"""
    )


def move(control: Any) -> None:
    """Move a slider by one, choose another entry, or press a button."""
    kind = control.evaluate("(one) => one.tagName")
    if kind == "SELECT":
        chosen = control.evaluate("(one) => one.selectedIndex")
        control.select_option(index=0 if chosen else 1)
    elif kind == "BUTTON":
        control.click()
    else:
        control.focus()
        at, most = control.evaluate(
            """(one) => [one.value ?? one.getAttribute("aria-valuenow"),
                         one.max ?? one.getAttribute("aria-valuemax")].map(Number)"""
        )
        control.press("ArrowRight" if at < most else "ArrowLeft")


def answer(quiz: Any) -> None:
    """Choose each answer, or type a number; each gets a comment of its own."""
    comments = set()
    choices = quiz.locator("input[type=radio]").all()
    for choice in choices:
        choice.check()
        quiz.page.wait_for_timeout(300)
        comments.add(quiz.locator("[role=status]").inner_text())
    if not choices:
        quiz.locator("input").fill("3")
        quiz.locator("input").press("Enter")
        comments.add(quiz.locator("[role=status]").inner_text())
    assert len(comments) == max(1, len(choices)) and "" not in comments


@pytest.mark.parametrize("notebook", VIEWS)
def test_run_all_then_every_control(
    lab: Lab, browser: Any, shots: Path, notebook: str, request: pytest.FixtureRequest
) -> None:
    if notebook == LENS_NOTEBOOK:  # open already
        opened: Any = nullcontext(request.getfixturevalue("seen"))
    else:
        opened = run_notebook(lab, browser, notebook)
    with opened as seen:
        page = seen.page
        views = [*page.locator(VIEW).all(), *page.locator(LENS).all()]
        assert (page.locator(VIEW).count(), page.locator(LENS).count()) == VIEWS[notebook]
        assert page.locator(QUIZ).count() >= 2
        for quiz in page.locator(QUIZ).all():
            answer(quiz)
        for view in views:
            view.scroll_into_view_if_needed()
            controls = [one for one in view.locator(CONTROLS).all() if one.is_visible()]
            assert controls, "a view without controls"
            for control in controls:
                name = name_of(control)
                what = SENTENCE if name in IN_WORDS_ALONE else PICTURE
                before = view.evaluate(what)
                move(control)
                for _ in range(10 * CLICK):
                    if view.evaluate(what) != before:
                        break
                    page.wait_for_timeout(100)
                    if name in IN_WORDS_ALONE:
                        move(control)
                else:
                    pytest.fail(f"{notebook}: {name!r} was moved, and the view is as it was")
        for theme in ("Light", "Dark"):
            set_theme(page, theme)
            for width in (1280, 800):
                page.set_viewport_size({"width": width, "height": TALL})
                page.wait_for_timeout(500)
                for number, view in enumerate(views):
                    view.evaluate("(root) => root.scrollIntoView({ block: 'center' })")
                    page.wait_for_timeout(200)  # cells that come into view push others about
                    view.evaluate("(root) => root.scrollIntoView({ block: 'center' })")
                    assert view.evaluate(CUT_OFF) == [], (notebook, theme, width)
                    name = f"{notebook[:2]}_view{number}_{width}_{theme.lower()}.png"
                    view.screenshot(path=shots / name)
        assert seen.troubles == []
