"""The rules of the notebook contract, each a small function, and an invented notebook that obeys.

``test_notebooks.py`` states the contract in words and applies it.
"""

from __future__ import annotations

import ast
import base64
import io
import re
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode, v4

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import badges  # noqa: E402
import execute_notebooks  # noqa: E402
import solve_notebooks  # noqa: E402
import try_check  # noqa: E402

__all__ = [
    "ROOT",
    "RULES",
    "badges",
    "execute_notebooks",
    "good",
    "problems",
    "solve_notebooks",
    "try_check",
]

PROFILES = {"tiny", "laptop", "gpu"}
MAX_IMAGE = 300_000  # bytes
MAX_SETUP_LINES = 4
# In the notebooks 01 to 09:
EXERCISES = range(3, 11)
MIN_VERIFIED = 5
# Of a solved notebook's lines of code, at least so much is the learner's.
MIN_SHARE = 0.2

TITLE = re.compile(r"# \S")
OPENING = ("## What you will be able to do", "**Time and memory**", "**Prerequisites**")
CLOSING = ("## Key takeaways", "## What comes next")
HEADING = re.compile(r"^### Exercise (\d+): \S.*$", re.MULTILINE)
DIFFICULTY = re.compile(r"^\*difficulty: (?:easy|medium|hard), \d+ minutes?\*$", re.MULTILINE)
# GitHub shows a code fence inside <details> only after an empty line.
TIGHT_DETAILS = re.compile(r"</summary>(?!\n\n)")
OUTPUT_WIDGET = re.compile(
    r"\b(?:\w+\.)?(?:interact|interactive|interactive_output|interact_manual)\s*\("
    r"|\b(?:ipywidgets|widgets|W|w)\.Output\b"
    r"|\bfrom ipywidgets import\b[^\n]*\bOutput\b"
    r"|^@(?:\w+\.)?interact\b",
    re.MULTILINE,
)

Rule = Callable[[NotebookNode, str], Iterable[str]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    RULES.append(function)
    return function


def problems(notebook: NotebookNode, name: str) -> list[str]:
    """Every breach of the contract in a notebook called ``name`` (its file name)."""
    return [f"{name}: {found}" for check in RULES for found in check(notebook, name)]


def is_code(cell: NotebookNode) -> bool:
    return cell.cell_type == "code"


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def has_line(cell: NotebookNode, start: str) -> bool:
    return any(line.startswith(start) for line in cell.source.split("\n"))


def plain_python(cell: NotebookNode) -> str:
    """A cell's source with magics turned into calls."""
    return TransformerManager().transform_cell(cell.source)


def trees(notebook: NotebookNode) -> Iterator[tuple[int, ast.Module]]:
    for index, cell in enumerate(notebook.cells):
        if is_code(cell):
            try:
                yield index, ast.parse(plain_python(cell))
            except SyntaxError:
                continue  # the rule on syntax names it


# --- Outputs and metadata ------------------------------------------------------------------


@rule
def every_code_cell_has_run(notebook: NotebookNode, name: str) -> Iterable[str]:
    count = 0
    for index, cell in enumerate(notebook.cells):
        if not is_code(cell):
            continue
        count += 1
        if not cell.source.strip():
            yield f"cell {index} is an empty code cell; delete it"
        elif cell.execution_count is None:
            yield f"cell {index} has not been run; use tools/execute_notebooks.py"
        elif cell.execution_count != count:
            yield f"cell {index} was run out of order; use tools/execute_notebooks.py"


@rule
def no_error_output(notebook: NotebookNode, name: str) -> Iterable[str]:
    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                yield f"cell {index} shows the error {output.ename}"


@rule
def no_widget_state(notebook: NotebookNode, name: str) -> Iterable[str]:
    if "widgets" in notebook.metadata:
        yield "metadata.widgets is saved; use tools/execute_notebooks.py"
    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if execute_notebooks.WIDGET_VIEW in output.get("data", {}):
                yield f"cell {index} shows a widget whose state is not saved"
        if "execution" in cell.metadata or "ExecuteTime" in cell.metadata:
            yield f"cell {index} has timings in its metadata"


@rule
def no_output_widget(notebook: NotebookNode, name: str) -> Iterable[str]:
    for index, cell in enumerate(notebook.cells):
        if is_code(cell):
            shown = [o.get("data", {}).get("text/plain", "") for o in cell.outputs]
            drawn = any(re.search(r"\bOutput\(", text) for text in shown)
            if drawn or OUTPUT_WIDGET.search(cell.source):
                yield f"cell {index} uses an Output widget (interact makes one too)"


@rule
def images_are_small(notebook: NotebookNode, name: str) -> Iterable[str]:
    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            for kind, content in output.get("data", {}).items():
                if not kind.startswith("image/"):
                    continue
                text = content if isinstance(content, str) else "".join(content)
                is_text = kind == "image/svg+xml"
                size = len(text.encode()) if is_text else len(base64.b64decode(text))
                if size > MAX_IMAGE:
                    yield f"cell {index} shows an image of {size // 1000} KB, over 300 KB"


@rule
def outputs_name_no_local_path(notebook: NotebookNode, name: str) -> Iterable[str]:
    for path in execute_notebooks.local_paths(notebook, [ROOT]):
        yield f"an output names a path of a machine: {path}"


@rule
def cell_ids_are_unique(notebook: NotebookNode, name: str) -> Iterable[str]:
    ids = [cell.get("id") for cell in notebook.cells]
    if not all(ids) or len(set(ids)) != len(ids):
        yield "cell ids are missing or double; use tools/execute_notebooks.py"


# --- Structure -----------------------------------------------------------------------------


@rule
def it_opens_as_agreed(notebook: NotebookNode, name: str) -> Iterable[str]:
    first = next((i for i, c in enumerate(notebook.cells) if is_code(c)), len(notebook.cells))
    opening = notebook.cells[:first]
    if not opening or not TITLE.match(opening[0].source):
        yield "the first cell does not start with a title (# ...)"
    for start in OPENING:
        if not any(has_line(cell, start) for cell in opening):
            yield f"{start!r} is missing before the first code cell"
    text = "\n".join(cell.source for cell in opening)
    table = text.partition("**Time and memory**")[2]
    rows = [line for line in table.split("\n") if line.startswith("|")]
    for profile in ("tiny", "laptop", "gpu"):
        if not any(re.match(rf"\|\s*`?{profile}`?\s*\|.*\d.*\|.*\d.*\|", row) for row in rows):
            yield f"the table of time and memory has no row with figures for {profile}"


@rule
def it_has_badges(notebook: NotebookNode, name: str) -> Iterable[str]:
    first = notebook.cells[0].source if notebook.cells else ""
    match = badges.BLOCK.search(first)
    for service in ("colab.research.google.com/github", "mybinder.org/v2"):
        if not match or not re.search(rf"{service}/\S+/{re.escape(name)}\)", match.group()):
            yield f"the badge for {service.split('/')[0]} is missing; use tools/badges.py"


@rule
def it_closes_as_agreed(notebook: NotebookNode, name: str) -> Iterable[str]:
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    places = [text.find(f"\n{start}\n") for start in CLOSING]
    for start, place in zip(CLOSING, places, strict=True):
        if place < 0:
            yield f"{start!r} is missing"
    if min(places) >= 0 and places != sorted(places):
        yield "what comes next stands before the key takeaways"
    if notebook.cells and not has_line(notebook.cells[-1], CLOSING[1]):
        yield "the last cell does not hold '## What comes next'"


@rule
def the_setup_is_short(notebook: NotebookNode, name: str) -> Iterable[str]:
    setup = next((cell for cell in notebook.cells if is_code(cell)), None)
    if setup is None:
        yield "there is no code"
    elif len(setup.source.strip().split("\n")) > MAX_SETUP_LINES:
        yield f"the setup cell has more than {MAX_SETUP_LINES} lines"


# --- Code ----------------------------------------------------------------------------------


@rule
def code_parses(notebook: NotebookNode, name: str) -> Iterable[str]:
    for index, cell in enumerate(notebook.cells):
        if is_code(cell):
            try:
                ast.parse(plain_python(cell))
            except SyntaxError as error:
                yield f"cell {index} is not Python: {error.msg}"


@rule
def no_semicolon_ends_a_line(notebook: NotebookNode, name: str) -> Iterable[str]:
    skip = (tokenize.COMMENT, tokenize.NL)
    for index, cell in enumerate(notebook.cells):
        if not is_code(cell):
            continue
        try:
            made = tokenize.generate_tokens(io.StringIO(plain_python(cell)).readline)
            tokens = [token for token in made if token.type not in skip]
        except (tokenize.TokenError, SyntaxError):
            continue
        for token, after in pairwise(tokens):
            if token.string == ";" and after.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
                yield f"cell {index} ends a line with a semicolon, which silences nothing here"
                break


def _holds_a_profile(node: ast.AST) -> bool:
    names = (*PROFILES, "COMET_PROFILE")
    return any(isinstance(n, ast.Constant) and n.value in names for n in ast.walk(node))


def _named_after_a_profile(node: ast.AST) -> bool:
    words = [getattr(n, "id", None) or getattr(n, "attr", None) for n in ast.walk(node)]
    return any(isinstance(w, str) and PROFILES & set(w.lower().split("_")) for w in words)


def _asks_for_the_profile(node: ast.AST) -> bool:
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        return _holds_a_profile(node.test) or _named_after_a_profile(node.test)
    if isinstance(node, (ast.Compare, ast.MatchValue)):
        return _holds_a_profile(node)
    if isinstance(node, ast.Dict):  # a table of sizes by profile
        return any(isinstance(key, ast.Constant) and _holds_a_profile(key) for key in node.keys)
    return False


@rule
def no_cell_asks_for_the_profile(notebook: NotebookNode, name: str) -> Iterable[str]:
    for index, tree in trees(notebook):
        if any(map(_asks_for_the_profile, ast.walk(tree))):
            yield f"cell {index} asks which profile it is; sizes live in comet_lib.profiles"


# --- Exercises -----------------------------------------------------------------------------


def _bound(code: str) -> set[str]:
    """Names that the top level of some code defines."""
    found: set[str] = set()
    for node in ast.parse(code).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                found |= {part.id for part in ast.walk(target) if isinstance(part, ast.Name)}
    return found


def _stub_problems(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    if any(isinstance(node, (ast.Raise, ast.Assert)) for node in nodes):
        yield "raises; a stub leaves ... instead"
    if not any(isinstance(node, ast.Constant) and node.value is ... for node in nodes):
        yield "leaves no ... to fill in"


def _solution_problems(stub: str, below: NotebookNode) -> Iterator[str]:
    for summary in ("Hint", "Solution"):
        if not (solve_notebooks.details(below.source, summary) or "").strip():
            yield f"has no <details><summary>{summary}</summary> right below its check"
    if TIGHT_DETAILS.search(below.source):
        yield "needs an empty line after </summary>, or GitHub shows no code fence"
    code = solve_notebooks.solution_below([below], -1)
    if code is None:
        yield "has no ```python fence in its solution"
        return
    try:
        missing = _bound(stub) - _bound(code)
    except SyntaxError:
        yield "has a solution that is not Python"
        return
    if missing:
        yield f"has a solution that does not define {', '.join(sorted(missing))}"


@rule
def exercises_are_complete(notebook: NotebookNode, name: str) -> Iterable[str]:
    blank = v4.new_markdown_cell("")
    cells = [*notebook.cells, blank, blank]
    stubs = [index for index, cell in enumerate(notebook.cells) if solve_notebooks.is_stub(cell)]
    checked = {index + 1 for index in stubs}
    headed = {index - 1 for index in stubs}
    seen: set[str] = set()
    for place, index in enumerate(stubs, start=1):
        stub, check, below = cells[index : index + 3]
        called = solve_notebooks.exercise_name(stub)
        where = f"exercise {place} ({called})"
        if called is None:
            yield f"exercise {place}: the stub's first line is not '# exercise: NAME'"
            called = "NAME"
        if called in seen:
            yield f"{where} has a name that stands twice"
        seen.add(called)
        above = cells[index - 1].source if index else ""
        numbers = [int(number) for number in HEADING.findall(above)]
        if numbers != [place]:
            yield f"{where} needs '### Exercise {place}: title' in the cell above its stub"
        if not DIFFICULTY.search(above):
            yield f"{where} needs '*difficulty: easy|medium|hard, M minutes*' above its stub"
        if "check" not in tags(check) or f"check.{called}(" not in check.source:
            yield f"{where} has no cell tagged check that calls check.{called}(...) below its stub"
        for found in _solution_problems(stub.source, below):
            yield f"{where} {found}"
        try:
            for found in _stub_problems(stub.source):
                yield f"{where} {found}"
        except SyntaxError:
            yield f"{where} has a stub that is not plain Python"
    for index, cell in enumerate(notebook.cells):
        if "check" in tags(cell) and index not in checked:
            yield f"cell {index} is tagged check but follows no stub"
        elif cell.cell_type == "markdown" and HEADING.search(cell.source) and index not in headed:
            yield f"cell {index} announces an exercise but no stub tagged exercise follows"


@rule
def the_middle_notebooks_have_enough(notebook: NotebookNode, name: str) -> Iterable[str]:
    if not re.match(r"0[1-9]\D", name):
        return
    count = sum(map(solve_notebooks.is_stub, notebook.cells))
    if count not in EXERCISES:
        yield f"has {count} exercises; three to ten are wanted"
    verified = sum("nbval-check-output" in tags(cell) for cell in notebook.cells)
    if verified < MIN_VERIFIED:
        yield f"has {verified} cells tagged nbval-check-output; {MIN_VERIFIED} are wanted"


def _lines(code: str) -> int:
    """Lines of code, without blank lines and comments."""
    lines = map(str.strip, code.splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)


@rule
def the_learner_writes_enough(notebook: NotebookNode, name: str) -> Iterable[str]:
    try:
        cells = solve_notebooks.solve(notebook).cells
    except execute_notebooks.NotebookError:
        return  # the rule on exercises names it
    total = sum(_lines(cell.source) for cell in cells if is_code(cell))
    learner = sum(_lines(cell.source) for cell in cells if solve_notebooks.is_stub(cell))
    if learner < MIN_SHARE * total:
        yield (
            f"{learner} of {total} lines of code are the learner's, {learner / total:.1%}; "
            f"at least {MIN_SHARE:.1%} are wanted: turn given code into exercises, or delete it"
        )


# --- A made-up notebook that obeys ---------------------------------------------------------

STUB = """# exercise: retention
def retention(student_f1, teacher_f1):
    return ..."""

BELOW = """<details><summary>Hint</summary>

The teacher's score is the whole.

</details>
<details><summary>Solution</summary>

```python
def retention(student_f1, teacher_f1):
    return 100 * student_f1 / teacher_f1
```

</details>"""


def good(name: str = "00_made_up.ipynb") -> NotebookNode:
    """A small notebook that breaks no rule; its cells by index are used by the self-tests."""
    title = badges.with_block(
        "# Made up\n\n## What you will be able to do\n- nothing\n\n**Time and memory**\n\n"
        "| profile | minutes | memory |\n|---|---|---|\n| tiny | 1 | 1 GB |\n"
        "| laptop | 1 | 1 GB |\n| gpu | 1 | 1 GB |\n\n**Prerequisites**: none.",
        badges.block("owner/name", "main", name),
    )
    code = v4.new_code_cell
    cells = [
        v4.new_markdown_cell(title),
        code("from comet_lib import checks as check", execution_count=1),
        v4.new_markdown_cell("### Exercise 1: what is kept\n\n*difficulty: easy, 2 minutes*"),
        code(STUB, execution_count=2, metadata={"tags": ["exercise"]}),
        code("check.retention(retention)", execution_count=3, metadata={"tags": ["check"]}),
        v4.new_markdown_cell(BELOW),
        code(
            'retention = check.or_reference(retention, "retention")\nretention(1, 2)',
            execution_count=4,
        ),
        v4.new_markdown_cell("## Key takeaways\n- none\n\n## What comes next\nNothing."),
    ]
    for index, cell in enumerate(cells):
        cell.id = f"cell-{index}"
    return v4.new_notebook(cells=cells)
