"""The notebooks on Google Colab: what their setup cell does, and where the badges lead."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from notebook_helpers import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMET = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["comet"]

# Runs a cell as a notebook would, with Colab's module loaded first (as its kernel does) or not.
RUN_CELL = """
import sys
if sys.argv[2] == "colab":
    import google.colab
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
result = shell.run_cell(open(sys.argv[1], encoding="utf-8").read())
result.raise_error()
"""
# Stands in for pip, and writes down what it was asked to do.
PIP = """
import json, pathlib, sys
with open(pathlib.Path(__file__).parent / "calls.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""


def setup_cell(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return next(cell.source for cell in cells if cell.cell_type == "code")


def pip_calls(cell: str, where: str, folder: Path) -> list[list[str]]:
    """What a setup cell asks of pip on Colab (``where="colab"``) or elsewhere."""
    for name, text in (("google/colab/__init__.py", ""), ("pip/__main__.py", PIP)):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    (folder / "pip" / "__init__.py").write_text("")
    (folder / "cell.py").write_text(cell, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", RUN_CELL, "cell.py", where],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "IPYTHONDIR": str(folder / "ipython")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    calls = folder / "pip" / "calls.jsonl"
    return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []


def test_the_setup_cells_are_alike() -> None:
    assert len({setup_cell(path) for path in NOTEBOOKS}) == 1


def test_on_colab_only_the_library_is_installed(tmp_path: Path) -> None:
    calls = pip_calls(setup_cell(NOTEBOOKS[0]), "colab", tmp_path)
    assert calls == [["install", "-q", "--no-deps", f"git+{COMET['repository']}"]]


def test_elsewhere_nothing_is_installed(tmp_path: Path) -> None:
    assert pip_calls(setup_cell(NOTEBOOKS[0]), "elsewhere", tmp_path) == []


@pytest.mark.parametrize("path", [*NOTEBOOKS, ROOT / "README.md"], ids=lambda path: path.name)
def test_the_badges_open_a_file_that_is_there(path: Path) -> None:
    if path.suffix == ".ipynb":
        text = nbformat.read(path, as_version=4).cells[0].source
        expected = f"notebooks/{path.name}"
    else:
        text = path.read_text(encoding="utf-8")
        expected = f"notebooks/{NOTEBOOKS[0].name}"
    owner, branch = COMET["repository"].removeprefix("https://github.com/"), "main"
    links = [urlsplit(link) for link in re.findall(r"\)\]\(([^)]+)\)", text)]
    colab = [unquote(p.path) for p in links if p.netloc == "colab.research.google.com"]
    binder = [p for p in links if p.netloc == "mybinder.org"]
    assert colab == [f"/github/{owner}/blob/{branch}/{expected}"]
    assert [p.path for p in binder] == [f"/v2/gh/{owner}/{branch}"]
    assert [unquote(p.query) for p in binder] == [f"urlpath=lab/tree/{expected}"]
