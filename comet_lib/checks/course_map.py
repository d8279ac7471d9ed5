"""The course and the learner's progress, as a table with links."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass

from comet_lib import progress
from comet_lib.checks.framework import EXERCISES
from comet_lib.course import Notebook, notebooks


@dataclass(frozen=True)
class Row:
    """A notebook, its exercises (name -> passed) and questions (name -> answered)."""

    notebook: Notebook
    exercises: Mapping[str, bool]
    questions: Mapping[str, bool]

    @property
    def left(self) -> list[str]:
        return [name for name, passed in self.exercises.items() if not passed]


@dataclass(frozen=True)
class CourseMap:
    """What has passed in which notebook, and what comes next; text and HTML views."""

    rows: tuple[Row, ...]

    @property
    def next_step(self) -> str:
        """The first exercise that is left, in words."""
        for row in self.rows:
            if row.left:
                return f"Next: {row.left[0]}, in notebook {row.notebook.number}."
        return "All exercises have passed."

    def __repr__(self) -> str:
        lines = []
        for row in self.rows:
            marks = "  ".join(f"[{'x' if ok else ' '}] {x}" for x, ok in row.exercises.items())
            lines += [f"{row.notebook.number}  {row.notebook.title}", f"    {marks}"]
            if row.questions:
                lines.append(f"    {_count(row.questions)} quick questions answered")
        return "\n".join([*lines, self.next_step])

    def _repr_html_(self) -> str:
        body = []
        for row in self.rows:
            marks = " &nbsp; ".join(
                f'<span style="white-space:nowrap">{"&#9745;" if passed else "&#9744;"} '
                f"{html.escape(name)}</span>"
                for name, passed in row.exercises.items()
            )
            link = f'<a href="{row.notebook.file}">{html.escape(row.notebook.title)}</a>'
            cells = (row.notebook.number, link, marks, _count(row.exercises), _count(row.questions))
            tags = "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells)
            body.append(f"<tr>{tags}</tr>")
        names = ("", "Notebook", "Exercises", "Passed", "Questions answered")
        head = "".join(f'<th style="text-align:left">{name}</th>' for name in names)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        return f"{table}<p>{self.next_step}</p>"


def _count(marks: Mapping[str, bool]) -> str:
    return f"{sum(marks.values())} of {len(marks)}"


def course_map() -> CourseMap:
    """The course and the learner's progress on this machine."""
    passed, answered = progress.noted("passed"), progress.noted("answered")
    rows = []
    for number, notebook in notebooks().items():
        names = [e.name for e in EXERCISES.values() if e.notebook == number]
        exercises = {name: name in passed for name in names}
        questions = {name: name in answered for name in notebook.questions}
        rows.append(Row(notebook, exercises, questions))
    return CourseMap(tuple(rows))
