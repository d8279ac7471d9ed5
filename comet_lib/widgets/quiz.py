"""A quick question before a plot: an answer to choose or a number to type, and what it shows."""

from __future__ import annotations

import html
import re
from typing import Any

import ipywidgets

from comet_lib import course, progress
from comet_lib.errors import CometError
from comet_lib.widgets.view import live_view

TEXT = "<style>.comet-quiz .widget-html-content { line-height: 1.4 }</style>"  # as in markdown
NO_NUMBER = "Type a number, such as 3.5, then press Enter."


def _marked_up(text: str) -> str:
    """Escaped HTML; text in backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


class Quiz:
    """The quick question ``name``; as the last line of a cell it can be answered.

    The answer is noted in the progress file and shown again when the cell is run again. Where no
    widget runs (GitHub, nbconvert) the comments are folded below the question. ``comment`` is what
    is said about the present answer, "" as long as there is none.

    Raises:
        CometError: no question of that name.
    """

    def __init__(self, name: str) -> None:
        asked = {
            q.name: q
            for notebook in course.notebooks().values()
            for q in notebook.questions.values()
        }
        if name not in asked:
            raise CometError(f"no question {name!r}; choose one of: {', '.join(sorted(asked))}")
        self.question = asked[name]
        head = ipywidgets.HTML(f"{TEXT}<b>Quick question.</b> {_marked_up(self.question.question)}")
        self._said = ipywidgets.HTML()
        before = progress.noted("answered").get(name)
        self.control: Any
        if self.question.choices:
            options = list(self.question.choices)
            self.control = ipywidgets.RadioButtons(
                options=options, value=None, layout={"width": "auto"}
            )
            before = before if before in options else None
        else:
            self.control = ipywidgets.Text(
                placeholder="a number", continuous_update=False, layout={"width": "12em"}
            )
        self.comment = ""
        self.control.observe(self._answered, names="value")
        if before is not None:
            self.control.value = before
        unit = [ipywidgets.HTML(html.escape(self.question.unit))] if self.question.unit else []
        row = ipywidgets.HBox([self.control, *unit], layout={"align_items": "center"})
        self.box = ipywidgets.VBox([head, row, self._said])
        self.box.add_class("comet-quiz")

    def _answered(self, change: Any) -> None:
        answer = change["new"]
        if answer is None or not answer.strip():
            return
        try:
            self.comment = self.question.comment(answer)
        except ValueError:
            self.comment = NO_NUMBER
        else:
            progress.note("answered", self.question.name, answer)
        # A screen reader reads it out as soon as it changes.
        said = re.sub("^(Right|Not quite)", r"<b>\1</b>", _marked_up(self.comment))
        self._said.value = f'{TEXT}<div role="status" aria-live="polite">{said}</div>'

    def __repr__(self) -> str:
        choices = "".join(f"\n  - {choice}" for choice in self.question.choices)
        return f"Quick question. {self.question.question}{choices}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        said = {c: self.question.comment(c) for c in self.question.choices}
        if not said:
            said = {"Answer": self.question.comment(str(self.question.right))}
        folded = "".join(
            f"<details><summary>{_marked_up(c)}</summary>{_marked_up(comment)}</details>"
            for c, comment in said.items()
        )
        page = f"<b>Quick question.</b> {_marked_up(self.question.question)}{folded}"
        return {"text/plain": repr(self), "text/html": page} | live_view(self.box)
