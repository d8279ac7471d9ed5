"""Write the Colab and Binder badges from one setting.

    python tools/badges.py            # write them
    python tools/badges.py --check    # name the files that are out of date; fail if there are any

The setting is ``[tool.comet] repository`` in pyproject.toml, a GitHub address; ``branch`` beside
it is optional and defaults to main. The badges stand between ``<!-- badges:begin -->`` and
``<!-- badges:end -->`` in README.md and in the first cell of each notebook. A notebook without
these marks gets them below its title.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import nbformat
import typer
from execute_notebooks import NotebookError, read, write
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- badges:begin -->", "<!-- badges:end -->"
BLOCK = re.compile(re.escape(BEGIN) + r".*?" + re.escape(END), re.DOTALL)
GITHUB = re.compile(r"(?:https://github\.com/)?([\w.-]+/[\w.-]+?)(?:\.git)?/?")
COLAB_IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"
BINDER_IMAGE = "https://mybinder.org/badge_logo.svg"


def setting(root: Path) -> tuple[str, str]:
    """(owner/name, branch) from pyproject.toml. Raises ``NotebookError`` if it is not there."""
    path = root / "pyproject.toml"
    comet = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("comet", {})
    match = GITHUB.fullmatch(str(comet.get("repository", "")))
    if match is None:
        raise NotebookError(
            "pyproject.toml: [tool.comet] repository must be an address such as "
            "https://github.com/owner/name."
        )
    return match.group(1), str(comet.get("branch", "main"))


def block(repository: str, branch: str, notebook: str, title: str = "") -> str:
    """The two badges that open ``notebooks/NAME``, between their marks."""
    file = quote(f"notebooks/{notebook}")
    colab = f"https://colab.research.google.com/github/{repository}/blob/{branch}/{file}"
    binder = f"https://mybinder.org/v2/gh/{repository}/{branch}?urlpath=lab/tree/{file}"
    where = f" {title}" if title else ""
    return (
        f"{BEGIN}\n"
        f"[![Open{where} in Colab]({COLAB_IMAGE})]({colab})\n"
        f"[![Open{where} in Binder]({BINDER_IMAGE})]({binder})\n"
        f"{END}"
    )


def with_block(text: str, badges: str) -> str:
    """The text with these badges between its marks, or below its first heading."""
    if BLOCK.search(text):
        return BLOCK.sub(lambda _: badges, text, count=1)
    lines = text.split("\n")
    place = next((i for i, line in enumerate(lines) if line.startswith("# ")), -1) + 1
    return "\n".join([*lines[:place], "", badges, *lines[place:]]).lstrip("\n")


def with_badges(notebook: NotebookNode, badges: str) -> NotebookNode:
    """The notebook with these badges in its first cell (a new one if it is not markdown)."""
    if not notebook.cells or notebook.cells[0].cell_type != "markdown":
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell("", id="title"))
    notebook.cells[0].source = with_block(notebook.cells[0].source, badges)
    return notebook


def update(root: Path, check: bool = False) -> list[str]:
    """Write the badges below ``root`` where they differ; the names of the files that differed.

    With ``check`` nothing is written. README.md must have the marks; it opens the first notebook.
    """
    repository, branch = setting(root)
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    changed = []
    readme = root / "README.md"
    if readme.exists() and notebooks:
        text = readme.read_text(encoding="utf-8")
        if not BLOCK.search(text):
            raise NotebookError(f"README.md: the marks {BEGIN} and {END} are missing; add them.")
        new = with_block(text, block(repository, branch, notebooks[0].name, "the course"))
        if new != text:
            changed.append(readme.name)
            if not check:
                readme.write_text(new, encoding="utf-8")
    for path in notebooks:
        notebook = read(path)
        before = notebook.cells[0].source if notebook.cells else None
        with_badges(notebook, block(repository, branch, path.name))
        if notebook.cells[0].source != before:
            changed.append(f"notebooks/{path.name}")
            if not check:
                write(notebook, path)
    return changed


def main(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if out of date.")
    ] = False,
) -> None:
    """Write the Colab and Binder badges of README.md and the notebooks."""
    try:
        changed = update(ROOT, check)
    except NotebookError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
    for name in changed:
        typer.echo(f"{name}: {'out of date, run python tools/badges.py' if check else 'written'}")
    sys.exit(1 if check and changed else 0)


if __name__ == "__main__":
    typer.run(main)
