"""A JupyterLab on a free port, and notebooks opened in it and run from top to bottom.

Its settings and ``COMET_HOME`` are in a folder of its own; the profile is tiny.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client import BlockingKernelClient

ROOT = Path(__file__).resolve().parent.parent
LENS_NOTEBOOK = "03_see_attention.ipynb"
SECONDS = 600  # for a whole run of a notebook, on a slow machine
CLICK = 60  # seconds for one thing to appear, on a slow machine
HARMLESS = (  # what JupyterLab's console complains of without a network, and of itself
    "/lsp/status",
    "colab-badge.svg",
    "badge_logo.svg",
)
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

    def ask(self, what: str, method: str = "GET") -> Any:
        """The answer of the server's REST interface."""
        request = urllib.request.Request(
            f"{self.address}/api/{what}",
            headers={"Authorization": f"token {self.token}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=CLICK) as answer:
            return json.loads(answer.read() or "null")

    def session(self, notebook: str) -> dict[str, Any]:
        """The session of an open notebook."""
        (session,) = [one for one in self.ask("sessions") if one["path"] == f"notebooks/{notebook}"]
        return session

    def run(self, notebook: str, code: str) -> str:
        """What the notebook's kernel prints for some code."""
        with ThreadPoolExecutor(1) as other:  # playwright's event loop occupies this thread
            return other.submit(self._run, notebook, code).result()

    def _run(self, notebook: str, code: str) -> str:
        kernel = self.session(notebook)["kernel"]["id"]
        client = BlockingKernelClient(
            connection_file=str(self.folder / "runtime" / f"kernel-{kernel}.json")
        )
        client.load_connection_file()
        client.start_channels()
        printed: list[str] = []
        try:
            client.wait_for_ready(timeout=CLICK)
            reply = client.execute_interactive(
                code,
                store_history=False,
                timeout=CLICK,
                output_hook=lambda m: printed.append(m["content"].get("text", "")),
            )
        finally:
            client.stop_channels()
        assert reply["content"]["status"] == "ok", reply["content"]
        return "".join(printed)


@contextmanager
def running_lab(folder: Path, notebooks: Sequence[str]) -> Iterator[Lab]:
    """JupyterLab over copies of these notebooks, in the repository's layout."""
    (folder / "notebooks").mkdir()
    for name in notebooks:
        shutil.copy(ROOT / "notebooks" / name, folder / "notebooks")
    shutil.copytree(ROOT / "docs" / "images", folder / "docs" / "images")  # their diagrams
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
        "ServerApp.root_dir": folder,
        "ServerApp.allow_root": True,
        "ServerApp.open_browser": False,
        "IdentityProvider.token": token,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *words], env=env, stdout=log, stderr=log
        )
    running = Lab(f"http://127.0.0.1:{port}", token, folder)
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
    """The page of one notebook in JupyterLab, and what its console said."""

    page: Any
    notebook: str
    troubles: list[str] = field(default_factory=list)


@contextmanager
def run_notebook(lab: Lab, browser: Any, notebook: str, width: int = 1280) -> Iterator[Seen]:
    """A notebook in JupyterLab, run from top to bottom without an error; its kernel ends after."""
    page = browser.new_context(viewport={"width": width, "height": 1000}).new_page()
    page.set_default_timeout(1000 * CLICK)
    seen = Seen(page, notebook)

    def said(message: Any) -> None:
        if message.type == "error":
            text = f"{message.text} ({message.location.get('url', '')})"
            if not any(word in text for word in HARMLESS):
                seen.troubles.append(text)

    page.on("console", said)
    page.on("pageerror", lambda error: seen.troubles.append(str(error)))
    # A workspace of its own, or the page would also open what another page has open.
    own = Path(notebook).stem
    page.goto(f"{lab.address}/lab/workspaces/{own}/tree/notebooks/{notebook}?token={lab.token}")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    wait_for_kernel(page, lab, notebook)
    begun = time.monotonic()
    choose(page, "Run", "Run All Cells")
    wait_for_the_end(page)
    print(f"\n{notebook} in JupyterLab: {time.monotonic() - begun:.0f} s", file=sys.__stdout__)
    page.locator(".jp-WindowedPanel-outer").first.evaluate(  # as a reader would pass over it
        """async (panel) => {
            for (let y = 0; y < panel.scrollHeight; y += 800) {
                panel.scrollTop = y;
                await new Promise((go) => setTimeout(go, 50));
            }
        }"""
    )
    try:
        yield seen
    finally:
        lab.ask(f"sessions/{lab.session(notebook)['id']}", "DELETE")
        page.context.close()


def choose(page: Any, *menus: str) -> None:
    """Click through JupyterLab's menus."""
    page.locator(f".lm-MenuBar-itemLabel:text-is('{menus[0]}')").click()
    for name in menus[1:]:
        page.locator(f".lm-Menu-itemLabel:text-is('{name}')").last.click()


def wait_for_kernel(page: Any, lab: Lab, notebook: str) -> None:
    """Wait until the notebook has a kernel and it is idle, there and in the page."""
    begun = time.monotonic()
    while True:
        states = [
            one["kernel"]["execution_state"]
            for one in lab.ask("sessions")
            if one["path"] == f"notebooks/{notebook}" and one["kernel"]
        ]
        if states == ["idle"]:
            break
        assert time.monotonic() - begun < SECONDS, f"{notebook} has no kernel"
        page.wait_for_timeout(300)
    # In the page, though perhaps hidden: JupyterLab has several of these signs and shows one.
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", state="attached")


def wait_for_the_end(page: Any) -> None:
    """Wait until every code cell has run, or one has failed, which is an error."""
    page.wait_for_function(
        """() => {
            const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")];
            const ended = (prompt) => /^\\[\\d+\\]:$/.test(prompt.textContent.trim());
            const said = [...document.querySelectorAll(".jp-OutputArea-output")];
            const failed = (output) => output.textContent.includes("Traceback (most recent");
            return prompts.every(ended) || said.some(failed);
        }""",
        timeout=1000 * SECONDS,
    )
    errors = page.locator(".jp-OutputArea-output", has_text="Traceback (most recent call last)")
    assert errors.count() == 0, errors.first.inner_text()


def set_theme(page: Any, theme: str) -> None:
    """``Light`` or ``Dark``, through the menu."""
    choose(page, "Settings", "Theme", f"JupyterLab {theme}")
    light = str(theme == "Light").lower()
    page.wait_for_selector(f"body[data-jp-theme-light={light}]", state="attached")
