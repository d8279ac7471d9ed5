"""The lens in JupyterLab: notebook 03 is opened, run, and its lens pointed at, clicked and dragged.

    make test-browser

JupyterLab is started on a free port; its settings and ``COMET_HOME`` are in a folder of their own.
Screenshots go to ``COMET_SHOTS`` where that is set.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jupyterlab")
pytest.importorskip("anywidget")
from conftest import hover_milliseconds
from jupyter_client import BlockingKernelClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "03_see_attention.ipynb"
SECONDS = 300  # for a whole run of the notebook, on a slow machine
QUIET = {  # JupyterLab's own questions and news would stand in the way
    "@jupyterlab/apputils-extension:notification": {
        "checkForUpdates": False,
        "fetchNews": "false",
    },
}


@dataclass
class Lab:
    """A running JupyterLab."""

    address: str
    token: str
    folder: Path
    env: dict[str, str]

    def ask(self, what: str) -> Any:
        """The answer of the server's REST interface."""
        request = urllib.request.Request(
            f"{self.address}/api/{what}", headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def run(self, code: str) -> str:
        """What the notebook's kernel prints for some code."""
        with ThreadPoolExecutor(1) as other:  # playwright's event loop occupies this thread
            return other.submit(self._run, code).result()

    def _run(self, code: str) -> str:
        (session,) = self.ask("sessions")
        file = self.folder / "runtime" / f"kernel-{session['kernel']['id']}.json"
        client = BlockingKernelClient(connection_file=str(file))
        client.load_connection_file()
        client.start_channels()
        printed: list[str] = []
        try:
            client.wait_for_ready(timeout=60)
            reply = client.execute_interactive(
                code,
                store_history=False,
                timeout=60,
                output_hook=lambda m: printed.append(m["content"].get("text", "")),
            )
        finally:
            client.stop_channels()
        assert reply["content"]["status"] == "ok", reply["content"]
        return "".join(printed)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / NOTEBOOK, folder / "notebooks")
    for name, values in QUIET.items():
        package, plugin = name.split(":")
        file = folder / "settings" / package / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    env = os.environ | {
        "COMET_PROFILE": "tiny",
        "COMET_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
        "TQDM_DISABLE": "1",
    }
    options = {
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.root_dir": folder / "notebooks",
        "ServerApp.allow_root": True,
        "ServerApp.open_browser": False,
        "IdentityProvider.token": token,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *words], env=env, stdout=log, stderr=log
        )
    running = Lab(f"http://127.0.0.1:{port}", token, folder, env)
    try:
        for _ in range(2 * SECONDS):
            try:
                running.ask("status")
                break
            except OSError:
                assert server.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.5)
        yield running
    finally:
        server.terminate()
        server.wait(30)


@dataclass
class Seen:
    """The page of JupyterLab, and what its console said."""

    page: Any
    troubles: list[str] = field(default_factory=list)  # uncaught, or about us
    others: list[str] = field(default_factory=list)  # JupyterLab's own errors


@pytest.fixture(scope="module")
def seen(lab: Lab, browser: Any) -> Iterator[Seen]:
    """Notebook 03 in JupyterLab, run from top to bottom."""
    page = browser.new_context(viewport={"width": 1600, "height": 1000}).new_page()
    page.set_default_timeout(1000 * SECONDS)
    found = Seen(page)

    def said(message: Any) -> None:
        if message.type == "error":
            text = f"{message.text} ({message.location.get('url', '')})"
            ours = any(word in text.lower() for word in ("lens", "anywidget", "comet", "widget"))
            (found.troubles if ours else found.others).append(text)

    page.on("console", said)
    page.on("pageerror", lambda error: found.troubles.append(str(error)))
    page.goto(f"{lab.address}/lab/tree/{NOTEBOOK}?token={lab.token}")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    begun = time.monotonic()
    wait_until_idle(page, lab)
    choose(page, "Run", "Run All Cells")
    page.wait_for_timeout(1000)
    wait_until_idle(page, lab)
    last = page.locator(".jp-CodeCell .jp-InputPrompt").last
    assert last.inner_text().strip("[]: \n").isdigit(), "the notebook stopped at an error"
    print(f"\nnotebook 03 in JupyterLab: {time.monotonic() - begun:.0f} s", file=sys.__stdout__)
    page.locator(".jp-WindowedPanel-outer").first.evaluate(  # as a reader would pass over it
        """async (panel) => {
            for (let y = 0; y < panel.scrollHeight; y += 800) {
                panel.scrollTop = y;
                await new Promise((go) => setTimeout(go, 50));
            }
        }"""
    )
    yield found
    page.context.close()


def choose(page: Any, *menus: str) -> None:
    """Click through JupyterLab's menus."""
    page.locator(f".lm-MenuBar-itemLabel:text-is('{menus[0]}')").click()
    for name in menus[1:]:
        page.locator(f".lm-Menu-itemLabel:text-is('{name}')").last.click()


def wait_until_idle(page: Any, lab: Lab) -> None:
    """Wait until the kernel has had nothing to do for three seconds."""
    begun, idle = time.monotonic(), 0
    while idle < 3:
        assert time.monotonic() - begun < SECONDS, "the notebook did not end"
        page.wait_for_timeout(1000)
        states = [one["execution_state"] for one in lab.ask("kernels")]
        idle = idle + 1 if states == ["idle"] else 0


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


def row_colours(lens: Any, name: str, size: int) -> list[list[int]]:
    """The colour in the middle of column 3, in each row of a map."""
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
    file = lab.folder / "notebooks" / NOTEBOOK
    kinds: list[set[str]] = []
    for _ in range(50):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        outputs = [o for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
        kinds = [set(o["data"]) for o in outputs if o["output_type"] == "execute_result"]
        if sum("application/vnd.jupyter.widget-view+json" in k for k in kinds) == 3:
            break
        time.sleep(0.2)
    views = [k for k in kinds if "application/vnd.jupyter.widget-view+json" in k]
    assert len(views) == 3 and all("image/png" in k for k in views)
    assert not [o for o in outputs if o["output_type"] == "error"]


def test_a_row_pointed_at_lights_up_in_the_students_map(seen: Seen, lens: Any) -> None:
    size = lens.locator(".lens-word").count()
    seen.page.mouse.move(1, 1)
    before = row_colours(lens, "student", size)
    point_at(seen.page, lens, "teacher", 5, 8, size)
    assert lens.get_attribute("data-row") == "5" and lens.get_attribute("data-column") == "8"
    after = row_colours(lens, "student", size)
    assert after[5] == before[5]  # lit: as it was; the others step back
    assert all(after[q] != before[q] for q in range(size) if q not in (4, 5, 6))
    assert "teacher 0." in lens.locator(".lens-readout").inner_text()


def test_the_table_of_layers_chooses_the_pair_in_python_too(
    seen: Seen, lens: Any, lab: Lab
) -> None:
    shape = json.loads(lab.run("print(list(lens.data.js.shape))"))
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
    assert lab.run(pair) == "3 1\n"


def test_the_slider_is_dragged_to_the_first_step(seen: Seen, lens: Any, lab: Lab) -> None:
    size = lens.locator(".lens-word").count()
    slider = lens.locator("input[type=range]")
    slider.scroll_into_view_if_needed()
    seen.page.mouse.move(1, 1)
    before = row_colours(lens, "student", size)
    box = slider.bounding_box()
    y = box["y"] + box["height"] / 2
    seen.page.mouse.move(box["x"] + box["width"] - 8, y)
    seen.page.mouse.down()
    seen.page.mouse.move(box["x"] + box["width"] / 2, y, steps=4)
    seen.page.mouse.move(box["x"] + 4, y, steps=4)
    seen.page.mouse.up()
    assert lens.locator("output").inner_text() == "0"
    assert "at step 0" in lens.locator(".lens-finding").inner_text()
    assert row_colours(lens, "student", size) != before
    seen.page.wait_for_timeout(500)
    assert lab.run("print(lens.selection['step'])") == "0\n"


def test_what_is_exported_is_what_is_seen(
    seen: Seen, lens: Any, lab: Lab, browser: Any, tmp_path: Path
) -> None:
    file = tmp_path / "lens.html"
    lab.run(f"lens.export({str(file)!r})")
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
    for theme in ("Light", "Dark"):
        choose(page, "Settings", "Theme", f"JupyterLab {theme}")
        light = str(theme == "Light").lower()
        page.wait_for_selector(f"body[data-jp-theme-light={light}]", state="attached")
        page.wait_for_timeout(1000)
        assert lens.get_attribute("data-theme") == theme.lower()
        lens.locator(".lens-finding").scroll_into_view_if_needed()
        point_at(page, lens, "teacher", 5, 8, size)
        page.screenshot(path=shots / f"lab_{theme.lower()}.png")


def test_the_console_has_no_error_of_ours(seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    """Last: it looks back on all that was done."""
    if seen.others:
        with capsys.disabled():
            print("\nJupyterLab's own errors:", *seen.others, sep="\n  ")
    assert seen.troubles == []
