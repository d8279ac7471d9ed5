"""The contract of notebooks/*.ipynb, and whether their solutions pass.

For authors. A notebook ``NN_name.ipynb`` holds, in this order:

1. A markdown cell with the title (``# ...``) and the badges (``tools/badges.py`` writes them).
   In it or in the markdown below it, before any code: ``## What you will be able to do``; then
   ``**Time and memory**`` with a table that has a row for each of tiny, laptop and gpu, with the
   profile in the first column and figures in two others; then ``**Prerequisites**``. Each of the
   three starts a line.
2. The setup cell: the first code cell, at most four lines.
3. The lesson. No cell asks which profile it is (``if profile.name == "tiny"``), ends a line with a
   semicolon, or uses an Output widget (``interact`` creates one too).
4. At the end, in the last cells, the headings ``## Key takeaways`` and ``## What comes next``,
   each on its own line, the second in the last cell.

An exercise consists of four consecutive cells:

- markdown: ``### Exercise N: title`` (N counts from 1) and, on its own line,
  ``*difficulty: easy|medium|hard, M minutes*``;
- the stub: a code cell with the tag ``exercise`` and the first line ``# exercise: NAME``, which
  leaves ``...`` and never raises;
- the check: a code cell with the tag ``check`` that calls ``check.NAME(...)``; NAME is an
  exercise of ``comet_lib.checks`` that belongs to this notebook's number NN;
- markdown: ``<details><summary>Hint</summary>`` and ``<details><summary>Solution</summary>``,
  with an empty line after each ``</summary>``; the solution holds a ```` ```python ```` fence that
  defines everything the stub defines (it replaces the stub unchanged).

A later cell continues with ``NAME = check.or_reference(NAME, "NAME")``. Notebooks 01 to 09 have
three to ten exercises, and at least five cells tagged ``nbval-check-output``; in each, a share of
the lines of code is the learner's.

Outputs come from ``tools/execute_notebooks.py``: every code cell run in order, no error, no
widget state, no image over 300 KB (300,000 bytes), no path of a machine.

Each rule is a function in ``notebook_helpers.py``. The self-tests below break an invented notebook
in one way at a time and look for the rule's sentence.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
import transformers
from IPython.core.inputtransformer2 import TransformerManager
from IPython.display import display
from nbformat import NotebookNode, v4
from notebook_helpers import (
    BELOW,
    ROOT,
    RULES,
    STUB,
    badges,
    execute_notebooks,
    good,
    problems,
    solve_notebooks,
)

from comet_lib import checks

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


# --- The notebooks -------------------------------------------------------------------------


def test_there_are_notebooks() -> None:
    """An empty list of parameters would skip all tests below without a word."""
    if not FOLDER.exists():
        pytest.skip("there is no folder notebooks/ yet")
    assert NOTEBOOKS, "notebooks/ holds no .ipynb file"


@each_notebook
def test_the_contract_is_kept(path: Path) -> None:
    assert problems(execute_notebooks.read(path), path.name) == []


@each_notebook
def test_the_exercises_have_checks(path: Path) -> None:
    cells = execute_notebooks.read(path).cells
    names = [solve_notebooks.exercise_name(c) for c in cells if solve_notebooks.is_stub(c)]
    number = path.name[:2]
    assert names == [name for name in names if name in checks.EXERCISES]
    assert [checks.EXERCISES[str(name)].notebook for name in names] == [number] * len(names)


def test_every_check_is_set_in_its_notebook() -> None:
    if not NOTEBOOKS:
        pytest.skip("there are no notebooks yet")
    present = {path.name[:2] for path in NOTEBOOKS}
    named = {
        solve_notebooks.exercise_name(cell)
        for path in NOTEBOOKS
        for cell in execute_notebooks.read(path).cells
        if solve_notebooks.is_stub(cell)
    }
    wanted = {name for name, it in checks.EXERCISES.items() if it.notebook in present}
    assert wanted - named == set()


def test_the_badges_are_up_to_date() -> None:
    assert badges.update(ROOT, check=True) == [], "run python tools/badges.py"


@each_notebook
def test_a_cell_run_first_says_which_name_is_missing(path: Path, comet_home: Path) -> None:
    """A kernel that was restarted, and any cell but the set-up run first: a plain NameError, or no
    error where the cell stands alone; nothing is trained and nothing is written."""
    cells = [c for c in execute_notebooks.read(path).cells if c.cell_type == "code"]
    missing = 0
    for cell in cells[2:]:  # behind the set-up and the imports
        try:
            exec(compile(cell.source, cell.id, "exec"), {"__name__": "__main__"})
        except NameError:
            missing += 1
    assert missing > len(cells) / 2
    assert list(comet_home.iterdir()) == []


@pytest.fixture
def settings_of_libraries() -> Iterator[None]:
    """What a notebook sets for its own kernel, put back."""
    threads, loudness = torch.get_num_threads(), transformers.logging.get_verbosity()
    with plt.rc_context():
        yield
    plt.close("all")
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity(loudness)


@pytest.mark.slow
@pytest.mark.usefixtures("settings_of_libraries")
@each_notebook
def test_the_solutions_pass(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stub replaced by its solution, with COMET_STRICT=1. It runs in this process, where the
    libraries are imported already; make nbval runs the notebooks as they are, in kernels."""
    monkeypatch.setenv("COMET_STRICT", "1")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__", "display": display}
    for cell in solve_notebooks.solve(execute_notebooks.read(path), path.name).cells:
        if cell.cell_type == "code":
            source = TransformerManager().transform_cell(cell.source)
            exec(compile(source, f"{path.name}, cell {cell.id}", "exec"), names)


# --- The rules can fail --------------------------------------------------------------------


def test_the_made_up_notebook_keeps_the_contract() -> None:
    notebook = good()
    nbformat.validate(notebook)
    assert problems(notebook, "00_made_up.ipynb") == []


def show(notebook: NotebookNode, data: dict[str, Any]) -> None:
    notebook.cells[1].outputs = [v4.new_output("display_data", data=data)]


def say(notebook: NotebookNode, text: str) -> None:
    notebook.cells[1].outputs = [v4.new_output("stream", name="stdout", text=text)]


def put(notebook: NotebookNode, index: int, source: str) -> None:
    notebook.cells[index].source = source


def swap(notebook: NotebookNode, index: int, old: str, new: str) -> None:
    assert old in notebook.cells[index].source
    put(notebook, index, notebook.cells[index].source.replace(old, new))


def fail(notebook: NotebookNode) -> None:
    error = v4.new_output("error", ename="KeyError", evalue="x", traceback=[])
    notebook.cells[1].outputs = [error]


IMAGE = base64.b64encode(bytes(300_001)).decode()
VIEW = {execute_notebooks.WIDGET_VIEW: {"model_id": "x"}, "text/plain": "IntSlider()"}

BREACHES: dict[str, tuple[Callable[[NotebookNode], Any], str]] = {
    "unrun": (lambda n: n.cells[4].update(execution_count=None), "cell 4 has not been run"),
    "order": (lambda n: n.cells[4].update(execution_count=9), "cell 4 was run out of order"),
    "empty cell": (lambda n: put(n, 1, "\n"), "empty code cell"),
    "error": (fail, "cell 1 shows the error KeyError"),
    "widget state": (lambda n: n.metadata.update(widgets={}), "metadata.widgets"),
    "widget view": (lambda n: show(n, VIEW), "whose state is not saved"),
    "timings": (lambda n: n.cells[1].metadata.update(execution={}), "timings"),
    "Output shown": (lambda n: show(n, {"text/plain": "Output()"}), "Output widget"),
    "Output made": (lambda n: put(n, 6, "widgets.Output()"), "Output widget"),
    "Output imported": (
        lambda n: put(n, 6, "from ipywidgets import HBox, Output"),
        "Output widget",
    ),
    "interact": (lambda n: put(n, 6, "interact(print, x=3)"), "Output widget"),
    "@interact": (lambda n: put(n, 6, "@interact\ndef f(x=1): ..."), "Output widget"),
    "image": (lambda n: show(n, {"image/png": IMAGE}), "an image of 300 KB"),
    "svg": (lambda n: show(n, {"image/svg+xml": "x" * 300_001}), "an image of 300 KB"),
    "path": (lambda n: say(n, "saved in /home/ada/runs"), "/home/ada/runs"),
    "path in html": (lambda n: show(n, {"text/html": "<p>/tmp/x</p>"}), "machine: /tmp/x"),
    "path in svg": (lambda n: show(n, {"image/svg+xml": "<a>/root/x</a>"}), "machine: /root/x"),
    "path in json": (lambda n: show(n, {"application/json": {"a": "/work/x"}}), "machine: /work/x"),
    "ids": (lambda n: n.cells[4].update(id="cell-1"), "ids are missing or double"),
    "no title": (lambda n: swap(n, 0, "# Made up", "Made up"), "title"),
    "no objectives": (lambda n: swap(n, 0, "## What you will", "## You"), "What you will be able"),
    "no time": (lambda n: swap(n, 0, "**Time and memory**", "Time"), "'**Time and memory**'"),
    "no figures": (lambda n: swap(n, 0, "| gpu | 1", "| gpu | ?"), "figures for gpu"),
    "no profile": (lambda n: swap(n, 0, "| tiny |", "| small |"), "figures for tiny"),
    "no prerequisites": (lambda n: swap(n, 0, "**Pre", "**pre"), "'**Prerequisites**'"),
    "late objectives": (
        lambda n: n.cells.insert(0, v4.new_code_cell("1", id="new", execution_count=1)),
        "before the first code cell",
    ),
    "no takeaways": (lambda n: swap(n, 7, "## Key takeaways", "## Key"), "'## Key takeaways'"),
    "no next": (lambda n: swap(n, 7, "## What comes next", "## Next"), "'## What comes next'"),
    "next is not last": (
        lambda n: n.cells.append(v4.new_markdown_cell("More.", id="new")),
        "the last cell does not hold",
    ),
    "closing order": (
        lambda n: put(n, 7, "\n## What comes next\n-\n\n## Key takeaways\n-"),
        "next stands before",
    ),
    "no badges": (lambda n: swap(n, 0, "badges:begin", "badge"), "badge for colab"),
    "no Binder": (lambda n: swap(n, 0, "mybinder.org/v2", "example.org"), "badge for mybinder"),
    "wrong badge": (lambda n: swap(n, 0, "00_made_up.ipynb", "01_x.ipynb"), "badge for colab"),
    "long setup": (lambda n: put(n, 1, "a = 1\n" * 5), "more than 4 lines"),
    "syntax": (lambda n: put(n, 6, "a = = 1"), "cell 6 is not Python"),
    "semicolon": (lambda n: put(n, 6, "a = 1;"), "cell 6 ends a line with a semicolon"),
    "semicolon, comment": (lambda n: put(n, 6, "f(1);  # quiet\nb = 1"), "a semicolon"),
    "if tiny": (lambda n: put(n, 6, "if tiny:\n    n = 1"), "cell 6 asks which profile"),
    "is_tiny": (lambda n: put(n, 6, "n = 1 if p.is_tiny else 2"), "asks which profile"),
    "name == tiny": (lambda n: put(n, 6, 'n = 1 + (p.name == "tiny")'), "asks which profile"),
    "name in": (lambda n: put(n, 6, 'if p.name in ("tiny",):\n    n = 1'), "asks which profile"),
    "match": (
        lambda n: put(n, 6, 'match p:\n    case "gpu":\n        n = 1'),
        "asks which profile",
    ),
    "table": (lambda n: put(n, 6, 'n = {"tiny": 1, "gpu": 2}[p.name]'), "asks which profile"),
    "variable": (
        lambda n: put(n, 6, 'if os.environ["COMET_PROFILE"]:\n    n = 1'),
        "asks which profile",
    ),
    "no name": (lambda n: swap(n, 3, "# exercise: retention", "# fill in"), "'# exercise: NAME'"),
    "stub raises": (lambda n: swap(n, 3, "return ...", "raise Open\n    ..."), "raises"),
    "stub asserts": (lambda n: swap(n, 3, "return ...", "assert ..."), "raises"),
    "stub is full": (lambda n: swap(n, 3, "return ...", "return 1"), "leaves no ..."),
    "magic stub": (lambda n: swap(n, 3, "    return ...", "    %time ..."), "not plain Python"),
    "no heading": (lambda n: swap(n, 2, "### Exercise 1", "### Task"), "'### Exercise 1: title'"),
    "wrong number": (lambda n: swap(n, 2, "Exercise 1", "Exercise 2"), "'### Exercise 1: title'"),
    "no difficulty": (lambda n: swap(n, 2, "easy", "simple"), "difficulty"),
    "no minutes": (lambda n: swap(n, 2, "2 minutes", "some time"), "difficulty"),
    "no check": (lambda n: n.cells.pop(4), "no cell tagged check"),
    "untagged check": (lambda n: n.cells[4].metadata.update(tags=[]), "no cell tagged check"),
    "other check": (
        lambda n: swap(n, 4, "check.retention", "check.kd_loss"),
        "no cell tagged check",
    ),
    "lost check": (lambda n: n.cells[6].metadata.update(tags=["check"]), "follows no stub"),
    "lost heading": (lambda n: n.cells[3].metadata.update(tags=[]), "no stub tagged exercise"),
    "no hint": (lambda n: swap(n, 5, ">Hint<", ">Tip<"), "<summary>Hint</summary>"),
    "empty hint": (lambda n: swap(n, 5, "The teacher's score is the whole.", ""), ">Hint<"),
    "no solution": (lambda n: swap(n, 5, ">Solution<", ">Answer<"), "<summary>Solution</summary>"),
    "no fence": (lambda n: swap(n, 5, "```python", "```"), "fence"),
    "tight details": (lambda n: swap(n, 5, "</summary>\n\n", "</summary>\n"), "empty line after"),
    "broken solution": (
        lambda n: swap(n, 5, "return 100", "return return"),
        "solution that is not",
    ),
    "other solution": (
        lambda n: swap(n, 5, "def retention", "def kept"),
        "does not define retention",
    ),
    "moved solution": (
        lambda n: n.cells.insert(5, v4.new_markdown_cell("Now look.", id="new")),
        "right below its check",
    ),
    "share": (
        lambda n: put(n, 6, "x = 1\n" * 200),
        "2 of 204 lines of code are the learner's, 1.0%",
    ),
    "same name twice": (
        lambda n: n.cells.extend(nbformat.from_dict(n.cells[2:6])),
        "a name that stands twice",
    ),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_is_found(breach: str) -> None:
    notebook = good()
    change, sentence = BREACHES[breach]
    change(notebook)
    found = problems(notebook, "00_made_up.ipynb")
    assert any(sentence in problem for problem in found), found


def test_the_middle_notebooks_need_exercises_and_verified_cells() -> None:
    found = " ".join(problems(good("03_made_up.ipynb"), "03_made_up.ipynb"))
    assert "has 1 exercises" in found
    assert "has 0 cells tagged nbval-check-output" in found


def test_every_rule_is_broken_by_some_breach() -> None:
    used = {"the_middle_notebooks_have_enough"}  # the test above
    for change, _ in BREACHES.values():
        notebook = good()
        change(notebook)
        used |= {rule.__name__ for rule in RULES if list(rule(notebook, "00_made_up.ipynb"))}
    assert {rule.__name__ for rule in RULES} - used == set()


@pytest.mark.parametrize(
    "source",
    [
        "%matplotlib inline\n!pip --version\nx = 1",
        "x = 'a;'  # b;\ny = 1; z = 2",
        "for name in ('tiny', 'laptop', 'gpu'):\n    print(get_profile(name).budget)",
        "if torch.cuda.is_available():\n    x = 1",
        "temperature_view = widgets.IntSlider()",
        "x = tensor[..., 0]",
        "assert tiny_map.shape == (3, 3)",
    ],
)
def test_honest_code_is_no_breach(source: str) -> None:
    notebook = good()
    put(notebook, 6, source)
    assert problems(notebook, "00_made_up.ipynb") == []


@pytest.mark.parametrize(
    "text",
    [
        "/home/ada/x",
        "in '/root'",
        "(/tmp/ipykernel_1/2.py:3: UserWarning)",
        "/work/data",
        "file:///Users/ada",
        r"C:\Users\Ada",
        "'d:\\\\data'",
        "/opt/conda/lib/python3.12/site-packages/torch/nn.py:3",
        r"venv\Lib\site-packages\torch",
        "/content/comet",
        "\x1b[32m/srv/x",
    ],
)
def test_a_local_path_is_seen(text: str) -> None:
    notebook = good()
    say(notebook, f"saved: {text}\n")
    assert execute_notebooks.local_paths(notebook)


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/home/x",
        "runs/tmp/x",
        "./work/x",
        "../root/x",
        "and/or",
        "</tmp>",
        "1/2",
        "/homework",
        "ratio a:b",
        "T:\n3",
        "kin/home/x",
    ],
)
def test_other_text_is_no_local_path(text: str) -> None:
    notebook = good()
    say(notebook, text)
    assert execute_notebooks.local_paths(notebook) == []


# --- tools/solve_notebooks.py --------------------------------------------------------------


def test_a_solution_takes_the_place_of_its_stub() -> None:
    notebook = good()
    say(notebook, "old")
    solved = solve_notebooks.solve(notebook)
    assert solved.cells[3].source == (
        "# exercise: retention\n"
        "def retention(student_f1, teacher_f1):\n"
        "    return 100 * student_f1 / teacher_f1"
    )
    assert solved.cells[1].outputs == []
    assert {c.execution_count for c in solved.cells if c.cell_type == "code"} == {None}
    assert [c.id for c in solved.cells] == [c.id for c in notebook.cells]
    assert notebook.cells[3].source == STUB


@pytest.mark.parametrize(
    ("old", "new"), [(">Solution<", ">Answer<"), ("```python", "```"), ("</details>", "")]
)
def test_a_missing_solution_is_an_error(old: str, new: str) -> None:
    notebook = good()
    swap(notebook, 5, old, new)
    with pytest.raises(execute_notebooks.NotebookError, match=r"made\.ipynb: exercise 'retention'"):
        solve_notebooks.solve(notebook, "made.ipynb")


def test_a_stub_takes_no_solution_from_the_next_exercise() -> None:
    notebook = good()
    second = nbformat.from_dict(notebook.cells[2:6])
    notebook.cells[5].source = "No solution here."
    notebook.cells[6:6] = second
    with pytest.raises(execute_notebooks.NotebookError, match="has no solution"):
        solve_notebooks.solve(notebook)


def test_a_stub_without_a_name_is_an_error() -> None:
    notebook = good()
    put(notebook, 3, "def retention(s, t): ...")
    with pytest.raises(execute_notebooks.NotebookError, match="cell 3: the first line"):
        solve_notebooks.solve(notebook)


def test_the_strict_run_passes_the_solution_and_stops_at_a_wrong_one(tmp_path: Path) -> None:
    notebook = good()
    notebook.cells[6].source += '\nimport os\nassert os.environ["COMET_PROFILE"] == "tiny"'
    solved = solve_notebooks.solve(notebook)
    done = solve_notebooks.run_strictly(solved, tmp_path, 120, "made.ipynb")
    assert done.notebook.cells[4].outputs[0].text.startswith("\x1b[1;32mPASS\x1b[0m  retention (")
    assert done.peak_mib > 20
    swap(notebook, 5, "100 * ", "")
    solved = solve_notebooks.solve(notebook)
    with pytest.raises(execute_notebooks.NotebookError, match="CheckFailed"):
        solve_notebooks.run_strictly(solved, tmp_path, 120, "made.ipynb")
    assert BELOW.count("100 * ") == 1


# --- tools/execute_notebooks.py ------------------------------------------------------------


def plain_notebook(tmp_path: Path, *sources: str) -> Path:
    """A notebook without ids' help: format 4.4 has none."""
    path = tmp_path / "made.ipynb"
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in sources])
    for cell in notebook.cells:
        del cell["id"]
    notebook.nbformat_minor = 4
    notebook.metadata = nbformat.from_dict({"widgets": {}, "toc": {"x": 1}, "accelerator": "GPU"})
    notebook.cells[0].metadata = nbformat.from_dict({"tags": ["a"], "ExecuteTime": {"x": 1}})
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    return path


def execute(path: Path, home: Path, timeout: int = 120) -> execute_notebooks.Run:
    env = execute_notebooks.environment("tiny", None, home)
    return execute_notebooks.execute(path, env, timeout, [home])


def test_executing_twice_gives_the_same_file(tmp_path: Path) -> None:
    path = plain_notebook(
        tmp_path,
        "import os, sys, ipywidgets\nprint('one')\nprint('two', flush=True)\nprint(object())",
        "print(os.environ['COMET_PROFILE'], os.environ['COMET_STRICT'], hash('x'))\nobject()",
        "ipywidgets.IntSlider(value=3)",
        "print('10 %\\r20 %\\rdone')",
        "import matplotlib.pyplot as plt\nplt.title('It falls', loc='left')\nplt.show()",
    )
    home = tmp_path / "home"
    done = execute(path, home)
    first = path.read_bytes()
    execute(path, home)
    assert path.read_bytes() == first
    assert done.seconds > 0
    notebook = nbformat.read(path, as_version=4)
    assert dict(notebook.metadata) == {
        "accelerator": "GPU",
        "kernelspec": execute_notebooks.KERNEL,
        "language_info": execute_notebooks.LANGUAGE,
    }
    cells = notebook.cells
    assert [dict(cell.metadata) for cell in cells] == [{"tags": ["a"]}, {}, {}, {}, {}]
    assert [cell.execution_count for cell in cells] == [1, 2, 3, 4, 5]
    assert [o.text for o in cells[0].outputs] == ["one\ntwo\n<object object at 0x0>\n"]
    assert cells[1].outputs[0].text.startswith("tiny 0 ")
    assert cells[1].outputs[1].data == {"text/plain": "<object at 0x0>"}
    assert list(cells[2].outputs[0].data) == ["text/plain"]
    assert cells[3].outputs[0].text == "done\n"
    assert cells[4].outputs[0].data["text/plain"] == "Figure: It falls"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made.ipynb"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import os\nprint(os.environ['COMET_HOME'])", "not written, because its outputs name"),
    ],
)
def test_a_notebook_that_must_not_be_committed_is_left_as_it_was(
    source: str, message: str, tmp_path: Path
) -> None:
    path = plain_notebook(tmp_path, source)
    before = path.read_bytes()
    with pytest.raises(execute_notebooks.NotebookError, match=message):
        execute(path, tmp_path / "home")
    assert path.read_bytes() == before


def test_a_slow_cell_is_stopped(tmp_path: Path) -> None:
    path = plain_notebook(tmp_path, "import time\ntime.sleep(60)")
    with pytest.raises(execute_notebooks.NotebookError, match="more than 2 seconds"):
        execute(path, tmp_path / "home", timeout=2)


def test_ids_stay_and_double_ones_are_mended() -> None:
    notebook = good()
    notebook.cells[2].id = "cell-1"
    del notebook.cells[3]["id"]
    ids = [cell.id for cell in execute_notebooks.normalize(notebook).cells]
    assert ids[:2] == ["cell-0", "cell-1"]
    assert ids[4:] == [f"cell-{i}" for i in range(4, 8)]
    assert len(set(ids)) == 8
    again = good()
    again.cells[2].id = "cell-1"
    del again.cells[3]["id"]
    assert [cell.id for cell in execute_notebooks.normalize(again).cells] == ids


def test_a_frozen_progress_bar_is_left_out() -> None:
    texts = ["answers:   0%|          | 0/9 [00:00<?, ?it/s]", "50 % of the tweets"]
    cell = nbformat.v4.new_code_cell("train()", execution_count=1)
    for text in texts:
        data = {execute_notebooks.WIDGET_VIEW: {"model_id": "x"}, "text/plain": text}
        cell.outputs.append(nbformat.v4.new_output("display_data", data))
    notebook = execute_notebooks.normalize(nbformat.v4.new_notebook(cells=[cell]))
    assert [o.data["text/plain"] for o in notebook.cells[0].outputs] == texts[1:]


def test_a_failed_write_leaves_the_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plain_notebook(tmp_path, "1")
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        execute_notebooks.write(good(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["made.ipynb"]


def test_what_is_no_notebook_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.ipynb").write_text("{")
    with pytest.raises(execute_notebooks.NotebookError, match=r"x\.ipynb: not a notebook"):
        execute_notebooks.read(tmp_path / "x.ipynb")


def test_the_environment_of_the_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMET_DATA", "elsewhere")
    monkeypatch.setenv("COMET_SEED", "9")
    env = execute_notebooks.environment("laptop", None, tmp_path)
    assert "COMET_DATA" not in env
    assert "COMET_SEED" not in env
    assert env["COMET_PROFILE"] == "laptop"
    env = execute_notebooks.environment("tiny", tmp_path, tmp_path, strict=True)
    assert (env["COMET_STRICT"], env["HF_HUB_OFFLINE"]) == ("1", "1")
    assert env["COMET_DATA"] == str(tmp_path.resolve())


def cli(tool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_lines(tmp_path: Path) -> None:
    path = plain_notebook(tmp_path, "1 + 1")
    done = cli("execute_notebooks.py", "--profile", "tiny", path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"made\.ipynb: \d+\.\d min, peak [1-9]\d* MiB\n", done.stdout)
    done = cli("solve_notebooks.py", "--out", tmp_path / "solved", "--run", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("made.ipynb: solved and passed, ")
    assert (tmp_path / "solved" / "made.ipynb").exists()
    assert cli("badges.py", "--check").returncode == int(bool(badges.update(ROOT, check=True)))


def test_a_refusal_is_an_exit_code_and_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = plain_notebook(tmp_path, "1 / 0")
    with pytest.raises(SystemExit, match="1"):
        solve_notebooks.main([path], tmp_path)
    assert "would replace it" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="1"):
        execute_notebooks.main([path], "tiny")
    assert "ZeroDivisionError" in capsys.readouterr().err


# --- tools/badges.py -----------------------------------------------------------------------


def course(root: Path, repository: str = "https://github.com/ada/course") -> Path:
    (root / "notebooks").mkdir()
    (root / "pyproject.toml").write_text(f'[tool.comet]\nrepository = "{repository}"\n')
    (root / "README.md").write_text(f"# Course\n\n{badges.BEGIN}\nold\n{badges.END}\n\nText.\n")
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell("# One\n\nText.", id="a")])
    nbformat.write(notebook, root / "notebooks" / "00_one.ipynb")
    return root


def test_badges_are_written_once_and_checked(tmp_path: Path) -> None:
    root = course(tmp_path)
    both = ["README.md", "notebooks/00_one.ipynb"]
    assert badges.update(root, check=True) == both
    assert badges.update(root, check=True) == both  # a check writes nothing
    assert badges.update(root) == both
    assert badges.update(root, check=True) == []
    first = nbformat.read(root / "notebooks" / "00_one.ipynb", as_version=4).cells[0].source
    assert first.startswith(f"# One\n\n{badges.BEGIN}\n")
    assert first.endswith(f"{badges.END}\n\nText.")
    for text in (first, (root / "README.md").read_text()):
        assert "github/ada/course/blob/main/notebooks/00_one.ipynb)" in text
        assert "gh/ada/course/main?urlpath=lab/tree/notebooks/00_one.ipynb)" in text
    assert "old" not in (root / "README.md").read_text()
    setting = '[tool.comet]\nrepository = "bob/course.git"\nbranch = "dev"\n'
    (root / "pyproject.toml").write_text(setting)
    assert badges.update(root) == both
    assert "github/bob/course/blob/dev/" in (root / "README.md").read_text()


@pytest.mark.parametrize("repository", ["", "https://example.org/a/b", "course"])
def test_a_bad_setting_is_named(repository: str, tmp_path: Path) -> None:
    with pytest.raises(execute_notebooks.NotebookError, match="repository must be"):
        badges.update(course(tmp_path, repository))


def test_a_readme_without_marks_is_named(tmp_path: Path) -> None:
    root = course(tmp_path)
    (root / "README.md").write_text("# Course\n")
    with pytest.raises(execute_notebooks.NotebookError, match=r"README\.md: the marks"):
        badges.update(root)
