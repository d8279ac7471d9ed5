"""What a learner has done: passes and answers on file, quick questions, the course map."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from catalogue import nb00

from comet_lib import checks as check
from comet_lib import course
from comet_lib.errors import CometError
from comet_lib.profiles import ASSETS
from comet_lib.progress import note, noted, progress_file
from comet_lib.widgets.quiz import NO_NUMBER, Quiz
from comet_lib.widgets.view import WIDGET_VIEW

SOLUTIONS = nb00.SOLUTIONS
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TOML = """
title = "Bits & <pieces>"
file = "00_bits.ipynb"

[animal]
question = "Which one <barks>?"
right = "the dog"
[animal.choices]
"the cat" = "It says `meow`."
"the dog" = "<script>woof</script>"

[legs]
question = "How many legs has it?"
right = 4
within = 0.5
unit = "legs"
because = "One at each corner."
"""


@pytest.fixture
def small_course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "course" / "00.toml"
    path.parent.mkdir()
    path.write_text(TOML, encoding="utf-8")
    monkeypatch.setattr(course, "ASSETS", tmp_path)
    course.notebooks.cache_clear()
    yield path
    course.notebooks.cache_clear()


# --- On file ---


def test_only_a_pass_is_recorded(comet_home: Path) -> None:
    check.retention(...)
    check.retention(lambda s, t: s / t)
    check.kd_loss(lambda *a: 1 / 0)
    assert noted("passed") == {}
    assert not list(comet_home.iterdir())
    check.retention(SOLUTIONS["retention"][0])
    check.soft_targets(SOLUTIONS["soft_targets"][0])
    check.retention(lambda s, t: s / t)  # what has passed stays so
    assert set(noted("passed")) == {"retention", "soft_targets"}
    assert [path.name for path in comet_home.iterdir()] == ["progress.json"]
    assert set(json.loads((comet_home / "progress.json").read_text())["passed"]) == {
        "retention",
        "soft_targets",
    }
    (comet_home / "progress.json").unlink()  # the learner may delete it
    assert noted("passed") == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"passed": 3}', "\ufffd", "null"])
def test_a_broken_record_counts_as_none(comet_home: Path, text: str) -> None:
    (comet_home / "progress.json").write_text(text, encoding="utf-8")
    assert noted("passed") == {}
    check.retention(SOLUTIONS["retention"][0])
    assert set(noted("passed")) == {"retention"}


def test_a_home_that_cannot_be_written_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMET_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    check.retention(SOLUTIONS["retention"][0])
    assert set(noted("passed")) == {"retention"}  # kept in a folder for temporary files
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    check.retention(SOLUTIONS["retention"][0])
    assert noted("passed") == {}
    said = "PASS  retention (1 of 6; next: soft_targets)\n"
    assert capsys.readouterr() == (said * 2, "")


def test_a_failed_write_leaves_the_old_record(
    comet_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check.retention(SOLUTIONS["retention"][0])

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    check.soft_targets(SOLUTIONS["soft_targets"][0])  # raises nothing
    assert set(noted("passed")) == {"retention"}
    assert [path.name for path in comet_home.iterdir()] == ["progress.json"]


def test_the_home_defaults_to_a_folder_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMET_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert progress_file() == tmp_path / ".comet" / "progress.json"


def test_passes_and_answers_do_not_disturb_each_other() -> None:
    note("answered", "animal", "the cat")
    check.retention(SOLUTIONS["retention"][0])
    note("answered", "animal", "the dog")
    assert set(noted("passed")) == {"retention"}
    assert noted("answered") == {"animal": "the dog"}


def test_a_pass_names_what_comes_next_in_its_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name, it in check.EXERCISES.items() if it.notebook == "00"]
    for k in (1, 2, 0):
        check.EXERCISES[names[k]](SOLUTIONS[names[k]][0])
    left = [f"({k + 1} of {len(names)}; next: {names[at]})" for k, at in enumerate((2, 3, 3))]
    done = [f"PASS  {names[k]}" for k in (1, 2, 0)]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{one} {more}" for one, more in zip(done, left, strict=True)]


# --- Quick questions ---


def test_a_choice_is_commented_on_and_remembered(small_course: Path) -> None:
    quiz = Quiz("animal")
    assert quiz.comment == "" and quiz.control.value is None
    quiz.control.value = "the cat"
    assert quiz.comment == "Not quite. It says `meow`."
    assert "<code>meow</code>" in quiz._said.value and 'aria-live="polite"' in quiz._said.value
    quiz.control.value = "the dog"
    assert quiz.comment.startswith("Right. ")
    assert "<script>" not in quiz._said.value
    again = Quiz("animal")
    assert again.control.value == "the dog" and again.comment == quiz.comment


def test_an_answer_that_is_no_longer_offered_is_forgotten(small_course: Path) -> None:
    note("answered", "animal", "the cow")
    assert Quiz("animal").comment == ""


def test_a_number_is_right_within_its_margin(small_course: Path) -> None:
    quiz = Quiz("legs")
    quiz.control.value = "four"
    assert quiz.comment == NO_NUMBER and noted("answered") == {}
    quiz.control.value = " 4.4 "
    assert quiz.comment == "Right: it is 4 legs. One at each corner."
    quiz.control.value = "3"
    assert quiz.comment == "Not quite: it is 4 legs. One at each corner."
    assert noted("answered") == {"legs": "3"}


def test_without_a_widget_the_comments_are_folded_below_the_question(small_course: Path) -> None:
    bundle = Quiz("animal")._repr_mimebundle_()
    assert bundle[WIDGET_VIEW]["model_id"]
    assert bundle["text/plain"].count("\n") == 2 and "meow" not in bundle["text/plain"]
    assert bundle["text/html"].count("<details>") == 2
    assert "<script>" not in bundle["text/html"] and "&lt;barks&gt;" in bundle["text/html"]
    assert "it is 4 legs" in Quiz("legs")._repr_mimebundle_()["text/html"]


def test_a_question_that_cannot_be_asked_is_named(small_course: Path) -> None:
    with pytest.raises(CometError, match="no question 'plant'; choose one of: animal, legs"):
        Quiz("plant")
    for right in ('"the cow"', "3"):
        small_course.write_text(TOML.replace('"the dog"\n[', f"{right}\n["), encoding="utf-8")
        course.notebooks.cache_clear()
        with pytest.raises(CometError, match="question animal: the right answer"):
            Quiz("animal")


def test_the_course_lists_the_notebooks() -> None:
    files = [notebook.file for notebook in course.notebooks().values()]
    assert files == [path.name for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    assert len(files) == len([*(ASSETS / "course").iterdir()])


@pytest.mark.parametrize("number", course.notebooks())
def test_each_question_is_asked_once_in_its_notebook(number: str) -> None:
    notebook = course.notebooks()[number]
    cells = json.loads((NOTEBOOKS / notebook.file).read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]).strip() for cell in cells if cell["cell_type"] == "code"]
    for name, question in notebook.questions.items():
        assert code.count(f'Quiz("{name}")') == 1, name
        assert question.comment(str(question.right)).startswith("Right"), name
        assert all(len(comment) > 20 for comment in question.choices.values()), name


@pytest.mark.parametrize("number", course.notebooks())
def test_the_exercises_come_in_the_order_of_the_notebook(number: str) -> None:
    text = (NOTEBOOKS / course.notebooks()[number].file).read_text(encoding="utf-8")
    set_in = re.findall(r'"# exercise: (\w+)', text)
    assert [name for name, it in check.EXERCISES.items() if it.notebook == number] == set_in


def test_questions_have_names_of_their_own() -> None:
    names = [name for each in course.notebooks().values() for name in each.questions]
    assert len(set(names)) == len(names)


# --- The course map ---


def test_the_course_map_shows_what_is_done_and_left(small_course: Path) -> None:
    check.kd_loss(SOLUTIONS["kd_loss"][0])
    note("answered", "legs", "4")
    view = check.course_map()
    assert repr(view).splitlines() == [
        "00  Bits & <pieces>",
        "    [ ] soft_targets  [ ] answers  [x] kd_loss  [ ] train  [ ] agreement  [ ] retention",
        "    1 of 2 quick questions answered",
        "Next: soft_targets, in notebook 00.",
    ]
    page = view._repr_html_()
    assert '<a href="00_bits.ipynb">Bits &amp; &lt;pieces&gt;</a>' in page
    assert page.count("&#9745;") == 1 and "1 of 6" in page and "1 of 2" in page
    for name in check.EXERCISES:
        note("passed", name, "2026-01-01")
    assert check.course_map().next_step == "All exercises have passed."
