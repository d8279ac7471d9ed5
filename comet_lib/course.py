"""The notebooks and their quick questions, as ``assets/course/NN.toml`` holds them.

The questions are no text of the notebooks, because a reader would see the answers in the cell::

    title = "The whole game"
    file = "00_the_whole_game.ipynb"

    [most_weights]                      # a choice: each answer with what to say about it
    question = "Which part of the student holds most of its weights?"
    right = "the word embeddings"
    [most_weights.choices]
    "attention" = "Each layer has four small matrices."
    "the word embeddings" = "250,002 rows of 256 numbers."

    [share]                             # a number
    question = "How many percent of its weights?"
    right = 93
    within = 5                          # what still counts as right
    unit = "percent"
    because = "One row for each piece of the vocabulary."
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from comet_lib.errors import CometError
from comet_lib.profiles import ASSETS


@dataclass(frozen=True)
class Question:
    """A quick question: with ``choices`` (answer -> what to say about it), or about a number."""

    name: str
    question: str
    right: str | float
    choices: Mapping[str, str]
    within: float
    unit: str
    because: str

    def is_right(self, answer: str) -> bool:
        """Whether the answer, as it was chosen or typed, is right.

        Raises:
            ValueError: a number is wanted, and ``answer`` is none.
        """
        if isinstance(self.right, str):
            return answer == self.right
        return abs(float(answer) - self.right) <= self.within

    def comment(self, answer: str) -> str:
        """What to say about the answer; raises ValueError as :meth:`is_right` does."""
        verdict = "Right" if self.is_right(answer) else "Not quite"
        if isinstance(self.right, str):
            return f"{verdict}. {self.choices[answer]}"
        return f"{verdict}: it is {self.right:g} {self.unit}. {self.because}"


@dataclass(frozen=True)
class Notebook:
    """A notebook of the course."""

    number: str
    title: str
    file: str
    questions: Mapping[str, Question]


@cache
def notebooks() -> dict[str, Notebook]:
    """Number ("00") -> notebook, in the order of the course.

    Raises:
        CometError: a question whose right answer is none of its choices, or is no number and has
            no choices; the message names it.
    """
    course = {}
    for path in sorted((ASSETS / "course").glob("*.toml")):
        entry = tomllib.loads(path.read_text(encoding="utf-8"))
        title, file = entry.pop("title"), entry.pop("file")
        questions = {name: _question(name, **fields) for name, fields in entry.items()}
        course[path.stem] = Notebook(path.stem, title, file, questions)
    return course


def _question(
    name: str,
    question: str,
    right: str | float,
    choices: Mapping[str, str] | None = None,
    within: float = 0.0,
    unit: str = "",
    because: str = "",
) -> Question:
    choices = choices or {}
    if right not in choices and (choices or isinstance(right, str)):
        raise CometError(f"question {name}: the right answer, {right!r}, is none of its choices")
    return Question(name, question, right, choices, within, unit, because)
