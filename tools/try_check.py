"""Run answers through a check many times, each time with fresh draws, and count what it says.

    python tools/try_check.py kd_loss answers.py --times 100

``answers.py`` defines ``kd_loss`` (a function or a value), or several answers called
``kd_loss__SOMETHING``; each is tried.
"""

from __future__ import annotations

import re
import runpy
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from comet_lib import checks

NUMBERS = re.compile(r"(?<!\w)[-+]?\d[\d.e+-]*")


def main(
    name: Annotated[str, typer.Argument(help="The exercise.")],
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    times: Annotated[int, typer.Option(min=1, help="Runs of the check.")] = 100,
) -> None:
    """Print each outcome of each answer with its count; lines that differ in numbers are one."""
    exercise = checks.EXERCISES.get(name)
    if exercise is None:
        raise typer.BadParameter(f"{name}: choose one of {', '.join(sorted(checks.EXERCISES))}")
    found = runpy.run_path(str(file))
    answers = {k: v for k, v in found.items() if k == name or k.startswith(f"{name}__")}
    if not answers:
        raise typer.BadParameter(f"{file} defines no {name}; add it.")
    for title, answer in answers.items():
        lines = [exercise.examine(answer).line for _ in range(times)]
        kinds = [NUMBERS.sub("#", line.split(", on random input")[0]) for line in lines]
        typer.echo(title)
        for kind, count in Counter(kinds).most_common():
            typer.echo(f"{count:5d}  {lines[kinds.index(kind)]}")


if __name__ == "__main__":
    typer.run(main)
