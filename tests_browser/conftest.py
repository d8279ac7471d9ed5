"""One headless Chromium and one JupyterLab for all browser tests. ``CHROMIUM`` names the file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no Chromium at {CHROMIUM}: make test-browser installs it")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A JupyterLab over copies of the notebooks, each of which a test opens for itself."""
    pytest.importorskip("jupyterlab")
    from lab import ROOT, running_lab

    names = [path.name for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    with running_lab(tmp_path_factory.mktemp("lab"), names) as running:
        yield running


@pytest.fixture(scope="session")
def seen(lab: Any, browser: Any) -> Iterator[Any]:
    """Notebook 03, with the lens, in JupyterLab, run from top to bottom: once for all tests."""
    from lab import LENS_NOTEBOOK, run_notebook

    with run_notebook(lab, browser, LENS_NOTEBOOK, width=1600) as found:
        yield found


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Where screenshots go: ``COMET_SHOTS``, or a folder that pytest forgets."""
    folder = Path(os.environ.get("COMET_SHOTS") or tmp_path / "shots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def hover_milliseconds(lens: Any) -> list[float]:
    """Milliseconds of forty moves over the teacher's map, style and layout included."""
    return lens.evaluate(
        """async (root) => {
            const canvas = root.querySelector("[data-map=teacher]");
            const box = canvas.getBoundingClientRect(), spent = [];
            for (let i = 0; i < 40; i++) {
                const at = { clientX: box.left + 5 + 5 * i, clientY: box.top + 5 + 6 * i };
                const begun = performance.now();
                canvas.dispatchEvent(new PointerEvent("pointermove", at));
                root.querySelector(".lens-sentence").offsetHeight;
                spent.push(performance.now() - begun);
                await new Promise(requestAnimationFrame);
            }
            return spent;
        }"""
    )
