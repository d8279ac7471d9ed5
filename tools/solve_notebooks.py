"""Write solved copies of notebooks, and run them.

    python tools/solve_notebooks.py --out DIR --run notebooks/*.ipynb

In a copy, each stub (a code cell with the tag ``exercise`` whose first line is
``# exercise: NAME``) holds the solution below it: the code in the Python fence of
``<details><summary>Solution</summary>``. With ``--run`` the copies run on the tiny profile with
``COMET_STRICT=1``, which makes an open or wrong exercise an error.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import nbformat
import typer
from execute_notebooks import NotebookError, Run, environment, read, run, write
from nbformat import NotebookNode

NAME = re.compile(r"# exercise: ([A-Za-z_]\w*)\s*$")
DETAILS = re.compile(r"<details>\s*<summary>(.*?)</summary>(.*?)</details>", re.DOTALL)
FENCE = re.compile(r"^```python\n(.*?)^```\s*$", re.DOTALL | re.MULTILINE)


def is_stub(cell: NotebookNode) -> bool:
    """Whether a cell is tagged as an exercise's stub."""
    return cell.cell_type == "code" and "exercise" in cell.metadata.get("tags", [])


def exercise_name(cell: NotebookNode) -> str | None:
    """The name in a stub's first line, ``# exercise: NAME``."""
    match = NAME.match(cell.source.split("\n", 1)[0])
    return match.group(1) if match else None


def details(source: str, summary: str) -> str | None:
    """The content of the ``<details>`` with that summary in a markdown cell, or None."""
    for match in DETAILS.finditer(source):
        if match.group(1).strip() == summary:
            return match.group(2)
    return None


def solution_below(cells: Sequence[NotebookNode], stub: int) -> str | None:
    """The solution's code for the stub at that index, searched for up to the next stub."""
    for cell in cells[stub + 1 :]:
        if is_stub(cell):
            return None
        if cell.cell_type == "markdown":
            inside = details(cell.source, "Solution")
            if inside is not None:
                fences = FENCE.findall(inside)
                return "\n".join(fence.rstrip() for fence in fences).strip() or None
    return None


def solve(notebook: NotebookNode, name: str = "notebook") -> NotebookNode:
    """A copy with every stub replaced by its solution and no outputs.

    Raises ``NotebookError`` for a stub that has no name or no solution.
    """
    solved = nbformat.from_dict(notebook)
    for index, cell in enumerate(notebook.cells):
        copy = solved.cells[index]
        if cell.cell_type == "code":
            copy.outputs, copy.execution_count = [], None
        if not is_stub(cell):
            continue
        exercise = exercise_name(cell)
        if exercise is None:
            raise NotebookError(
                f"{name}, cell {index}: the first line of a stub must be '# exercise: NAME'."
            )
        code = solution_below(notebook.cells, index)
        if code is None:
            raise NotebookError(
                f"{name}: exercise {exercise!r} has no solution; put a ```python fence into "
                "<details><summary>Solution</summary> below it."
            )
        copy.source = f"# exercise: {exercise}\n{code}"
    return solved


def run_strictly(
    notebook: NotebookNode, folder: Path, timeout: int, name: str, profile: str = "tiny"
) -> Run:
    """Execute in ``folder`` with ``COMET_STRICT=1`` and its own home."""
    with tempfile.TemporaryDirectory(prefix="comet-home-") as home:
        env = environment(profile, None, Path(home), strict=True)
        return run(notebook, folder, env, timeout, name)


def main(
    notebooks: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="The folder for the solved copies.")],
    run_them: Annotated[bool, typer.Option("--run", help="Execute them, strictly.")] = False,
    profile: Annotated[str, typer.Option(help="tiny, laptop or gpu.")] = "tiny",
    timeout: Annotated[int, typer.Option(help="Seconds for each cell.")] = 300,
) -> None:
    """Write solved copies of notebooks."""
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for path in notebooks:
        try:
            target = out / path.name
            if target.resolve() == path.resolve():
                raise NotebookError(
                    f"{path}: the solved copy would replace it; choose another --out."
                )
            solved = solve(read(path), path.name)
            line = f"{path.name}: solved"
            if run_them:
                done = run_strictly(solved, out.resolve(), timeout, path.name, profile)
                solved = done.notebook
                line += f" and passed, {done.seconds:.0f} s, peak {done.peak_mib:.0f} MiB"
            write(solved, target)
        except NotebookError as error:
            failed += 1
            typer.echo(str(error), err=True)
            continue
        typer.echo(line)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
