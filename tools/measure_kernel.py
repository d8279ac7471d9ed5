"""MiB that a notebook's kernel holds: after its imports, at its end, and at its peak.

    python tools/measure_kernel.py [--profile tiny] notebooks/00_the_whole_game.ipynb

*Own* is the memory that no other process shares (USS): kernels on one machine share the pages of
torch and other libraries. Needs psutil, which ipykernel installs.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from execute_notebooks import environment, read, run
from nbformat import v4

PROBE = """import json as _json, psutil as _psutil
_now = _psutil.Process().memory_full_info()
print(_json.dumps({"rss": _now.rss / 2**20, "uss": _now.uss / 2**20}))"""


def measure(path: Path, profile: str) -> dict[str, dict[str, float]]:
    """``rss`` and ``uss`` in MiB after the imports and at the end, and ``rss`` at the peak."""
    notebook = read(path)
    codes = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    imports = codes[1] + 1  # the cell with the imports follows the set-up cell
    notebook.cells.insert(imports, v4.new_code_cell(PROBE))
    notebook.cells.append(v4.new_code_cell(PROBE))
    with tempfile.TemporaryDirectory() as home:
        done = run(notebook, path.parent, environment(profile, None, Path(home)), 600, path.name)
    said = [json.loads(done.notebook.cells[i].outputs[0].text) for i in (imports, -1)]
    return {"imports": said[0], "end": said[1], "peak": {"rss": done.peak_mib}}


def main(
    notebooks: Annotated[list[Path], typer.Argument()],
    profile: Annotated[str, typer.Option(help="tiny, laptop or gpu.")] = "tiny",
) -> None:
    """MiB that a notebook's kernel holds: after its imports, at its end, and at its peak."""
    for path in notebooks:
        for when, sizes in measure(path, profile).items():
            own = f", {sizes['uss']:,.0f} its own" if "uss" in sizes else ""
            print(f"{path.name} {when}: {sizes['rss']:,.0f} MiB{own}")


if __name__ == "__main__":
    typer.run(main)
