"""The checks: solutions pass, each slip and each catalogued wrong answer is named, nothing raises.

``catalogue/nbNN.py`` adds to each exercise SOLUTIONS in several forms and MUTANTS, wrong answers
that do more than repeat the formula of a slip: for each a function and a piece of its message.
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from catalogue import nb00 as nb00_answers
from notebook_helpers import try_check
from typer.testing import CliRunner

from comet_lib import checks as check
from comet_lib.checks import framework as grading
from comet_lib.checks import nb00, nb04
from comet_lib.checks.draws import generator, normal
from comet_lib.errors import CometError
from comet_lib.progress import noted

app = typer.Typer()
app.command()(try_check.main)
CATALOGUES = [
    import_module(f"catalogue.{path.stem}")
    for path in sorted(Path(__file__).with_name("catalogue").glob("nb*.py"))
]
SOLUTIONS: dict[str, list[Any]] = {k: v for c in CATALOGUES for k, v in c.SOLUTIONS.items()}
MUTANTS: dict[str, dict[str, tuple[Any, str]]] = {
    k: v for c in CATALOGUES for k, v in c.MUTANTS.items()
}
EACH_SLIP = [(name, message) for name, it in check.EXERCISES.items() for message in it.slips]
REPEATS = 2  # each time with other random arguments
each_exercise = pytest.mark.parametrize("name", check.EXERCISES)


@pytest.fixture(autouse=True)
def the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh arguments at each call, but the same ones in each run of the tests.

    ``tools/try_check.py`` is for the question whether a check depends on the luck of the draw.
    """
    monkeypatch.setattr("comet_lib.checks.draws.secrets.randbits", random.Random(0).getrandbits)


def endless(*_: Any) -> Any:
    while True:
        pass


def test_every_exercise_is_catalogued() -> None:
    assert set(check.EXERCISES) == set(SOLUTIONS) == set(MUTANTS)
    for name, exercise in check.EXERCISES.items():
        wrong = len(MUTANTS[name]) + len(exercise.slips)
        assert wrong >= 3, f"{name} needs at least three wrong answers"
        assert exercise.look, f"{name} does not say where to look"
        assert exercise.reference.__doc__, f"{name} does not state its task"
        assert getattr(check, name) is exercise


@each_exercise
def test_the_solutions_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for solution in [check.reference(name), *SOLUTIONS[name]] * REPEATS:
        check.EXERCISES[name](solution)
    lines = capsys.readouterr().out.splitlines()
    assert {line.partition(" (")[0] for line in lines} == {f"PASS  {name}"}


@pytest.mark.parametrize(("name", "message"), EACH_SLIP)
def test_a_slip_is_named(name: str, message: str) -> None:
    exercise = check.EXERCISES[name]
    slip = exercise.slips[message]
    named = f"{message}. {slip.look or exercise.look}"
    for _ in range(REPEATS):
        found = exercise.examine(slip.formula)
        assert found.state == "NOT YET"
        assert found.message.removeprefix(f"{exercise.edge_case}, ") == named


@each_exercise
def test_each_mutant_is_named_by_its_own_message(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: dict[str, str] = {}
    for kind, (answer, fragment) in [*MUTANTS[name].items()] * REPEATS:
        check.EXERCISES[name](answer)
        lines[kind] = capsys.readouterr().out.strip()
        assert lines[kind].startswith(f"NOT YET  {name}: "), kind
        assert fragment in lines[kind], kind
        assert "\n" not in lines[kind], kind
    assert len(set(lines.values())) == len(lines)
    for kind, (_, fragment) in MUTANTS[name].items():
        # A pair of slips is named by both of its messages, so it holds their pieces too.
        single = [x for x in lines.values() if kind == "two slips" or "two things at once" not in x]
        assert sum(fragment in line for line in single) == 1, fragment


def test_the_slips_of_kd_loss_start_from_the_right_loss() -> None:
    student, teacher = normal(generator(), 2, 5, 4)
    right = check.EXERCISES["kd_loss"].reference(student, teacher, 2.5)
    assert torch.allclose(nb00._kd(student, teacher, 2.5).float(), right, rtol=1e-4)
    assert torch.allclose(nb00_answers.slow_kd(student, teacher, 2.5), right, rtol=1e-4)


@each_exercise
def test_an_open_answer_is_todo(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    blanks = (lambda *a: ..., lambda *a: ... * 2, lambda *a: torch.softmax(..., -1))
    for answer in (..., None, [1, ...], *blanks):
        check.EXERCISES[name](answer)
        assert capsys.readouterr().out.startswith(f"TODO  {name}: "), answer


class Nasty(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def quits(*_: Any) -> Any:
    raise SystemExit(3)


def nasty(*_: Any) -> Any:
    raise Nasty


def recursive(*arguments: Any) -> Any:
    return recursive(*arguments)


STRANGE = [
    (3, "type int"),
    (torch.zeros(3), "type Tensor"),
    ("kd_loss", "type str"),
    (quits, "SystemExit: 3 (at `raise SystemExit(3)`)"),
    (nasty, "raised Nasty (at"),
    (recursive, "RecursionError"),
    (lambda *a: object(), "returned a object"),
    (lambda *a: torch.zeros(3, 9, 2), "returned"),
    (lambda *a: torch.zeros((), dtype=torch.complex64), ""),
    (lambda *a: {}, "returned a dict"),
    (int, "Error: "),  # of the type or of the value
]


@each_exercise
def test_a_strange_answer_never_raises(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for answer, fragment in STRANGE:
        check.EXERCISES[name](answer)
        line = capsys.readouterr().out
        assert line.startswith(f"NOT YET  {name}: "), fragment
        assert fragment in line


def test_a_keyboard_interrupt_still_stops_the_cell() -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check.retention(interrupted)


@pytest.mark.parametrize("answer", [..., lambda s, t: s / t, SOLUTIONS["retention"][0]])
def test_a_cell_shows_the_line_and_no_value(answer: Any) -> None:
    """What a cell's last expression returns, the notebook shows below what was printed."""
    assert check.retention(answer) is None


@pytest.mark.parametrize("answer", [..., lambda s, t: s / t, 3])
def test_strict_raises(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMET_STRICT", "1")
    with pytest.raises(check.CheckFailed, match="retention"):
        check.retention(answer)
    check.retention(SOLUTIONS["retention"][0])
    monkeypatch.setenv("COMET_STRICT", "0")
    check.retention(answer)


@pytest.fixture
def hasty() -> check.Exercise:
    """The retention check with a time limit of 0.2 s."""
    return dataclasses.replace(check.retention, name="hasty", seconds=0.2)


def stubborn(*_: Any) -> Any:
    try:
        endless()
    except BaseException:
        endless()


@pytest.mark.parametrize("answer", [endless, stubborn])
def test_an_endless_loop_is_cut_off(answer: Any, hasty: check.Exercise) -> None:
    signal = pytest.importorskip("signal")
    if not hasattr(signal, "SIGALRM"):
        pytest.skip("this system has no SIGALRM")
    before = signal.getsignal(signal.SIGALRM)
    began = time.monotonic()
    outcome = hasty.examine(answer)
    assert time.monotonic() - began < 4
    assert outcome.state == "NOT YET"
    assert "still running after 0.2 seconds" in outcome.message
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert check.retention.seconds <= 10


def test_the_time_limit_puts_an_alarm_back(hasty: check.Exercise) -> None:
    signal = pytest.importorskip("signal")
    if not hasattr(signal, "SIGALRM"):
        pytest.skip("this system has no SIGALRM")
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        signal.setitimer(signal.ITIMER_REAL, 60.0)
        assert hasty.examine(SOLUTIONS["retention"][0]).passed
        assert 50 < signal.getitimer(signal.ITIMER_REAL)[0] <= 60
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_outside_the_main_thread_there_is_no_time_limit(hasty: check.Exercise) -> None:
    outcomes: list[check.Outcome] = []
    answers = [SOLUTIONS["retention"][0], lambda s, t: s / t]
    thread = threading.Thread(
        target=lambda: outcomes.extend(hasty.examine(answer) for answer in answers)
    )
    thread.start()
    thread.join(20)
    assert [outcome.state for outcome in outcomes] == ["PASS", "NOT YET"]


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    check.kd_loss(nb00_answers.slow_kd)
    assert torch.equal(before, torch.get_rng_state())


def test_a_check_works_with_gradients_switched_off() -> None:
    with torch.no_grad():
        assert check.kd_loss.examine(SOLUTIONS["kd_loss"][0]).passed


def test_an_exercise_can_ask_for_a_value(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(answer: Any) -> None:
        if answer != 4:
            raise check.Misconception("it is not 2 + 2")

    monkeypatch.setattr(grading, "EXERCISES", {})

    @grading.exercise(look="Count again.", verify=verify, is_function=False)
    def value() -> int:
        return 2 + 2

    assert value.reference == 4
    value(4)
    value(5)
    value(...)
    assert capsys.readouterr().out.splitlines()[:2] == [
        "PASS  value (1 of 1; all of this notebook)",
        "NOT YET  value: it is not 2 + 2. Count again.",
    ]
    value(torch.zeros(2, 2))  # comparing it raises inside verify
    assert capsys.readouterr().out.startswith("NOT YET  value: ")


def test_a_wrong_value_comes_with_the_smallest_failing_input() -> None:
    def area(width: float, heights: torch.Tensor) -> torch.Tensor:
        """Areas."""
        return width * heights

    draws = [(2.0, torch.ones(90)), (2.0, torch.tensor([3.0, 4.0])), (3.0, torch.zeros(1))]
    it = grading.Exercise("area", "00", area, look="width * heights", draws=lambda source: draws)
    outcome = it.examine(lambda w, h: w * h + 1e-3 * (h == 3))
    assert outcome.message == (
        "the value at [0] is 6.001, but 6 is right, on random input: width=2, heights=[3, 4]. "
        "Work this case out by hand and compare."
    )
    draws[1:] = []
    assert it.examine(lambda w, h: h).message.startswith(
        "the value at [0] is 1, but 2 is right, on random input: width=2, heights=shape (90,). "
    )
    assert "is 2.0004, but 2 is" in it.examine(lambda w, h: 2.0004 * h).message


@each_exercise
def test_the_generic_line_shows_the_input_and_keeps_the_formula(name: str) -> None:
    it = check.EXERCISES[name]

    def bent(*draw: Any) -> Any:
        result = it.reference(*draw)
        if isinstance(result, list | tuple | np.ndarray) and not hasattr(result, "shape"):
            return result
        return result * 1.137 + 0.0173 if not isinstance(result, str) else result

    message = it.examine(bent).message
    if "is right, on random input: " in message:
        assert it.look not in message
        assert len(message) < 400, message
        assert re.search(r"input: \w+=", message), message


def test_a_rounded_number_is_named() -> None:
    outcome = check.retention.examine(lambda s, t: round(100 * s / t, 2))
    assert "the result is rounded" in outcome.message


def test_an_exercise_has_one_name() -> None:
    def kd_loss() -> None: ...

    with pytest.raises(CometError, match="defined twice"):
        grading.exercise(look="")(kd_loss)


def test_the_example_in_contributing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## Add an exercise")[1].split("\n## ")[0]
    fences = re.findall(r"^(`{3,4})\w+\n(.*?)^\1$", section, re.DOTALL | re.MULTILINE)
    assert sum(code.count("\n") for _, code in fences) <= 85
    definition, stub, _, solution, entries = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.setattr(grading, "EXERCISES", {})
    names = vars(nb04) | {"math": math, "__name__": "comet_lib.checks.nb04"}
    exec(definition, names)
    example = grading.EXERCISES["effective_classes"]
    assert example.notebook == "04"
    catalogue: dict[str, Any] = {"SOLUTIONS": {}, "MUTANTS": {}, "torch": torch}
    exec(entries, catalogue)
    exec(stub, catalogue)
    assert example.examine(catalogue["effective_classes"]).state == "TODO"
    exec(solution, catalogue)
    for right in (catalogue["effective_classes"], *catalogue["SOLUTIONS"]["effective_classes"]):
        assert example.examine(right).passed
    for message, slip in example.slips.items():
        assert example.examine(slip.formula).message.startswith(message)
    for answer, fragment in catalogue["MUTANTS"]["effective_classes"].values():
        assert fragment in example.examine(answer).message


# --- Going on with the reference ---


def test_or_reference(capsys: pytest.CaptureFixture[str]) -> None:
    right = SOLUTIONS["kd_loss"][0]
    assert check.or_reference(right, "kd_loss") is right
    assert capsys.readouterr().out == ""
    reference = check.reference("kd_loss")
    assert check.or_reference(lambda *a: ..., "kd_loss") is reference
    assert capsys.readouterr().out == "kd_loss is still open: going on with the reference\n"
    assert check.or_reference(lambda s, t, T: s, "kd_loss") is reference
    assert capsys.readouterr().out == "kd_loss does not pass yet: going on with the reference\n"
    assert noted("passed") == {}
    with pytest.raises(CometError, match=r"no exercise 'nothing'.*kd_loss"):
        check.or_reference(right, "nothing")


def odd_forms(result: Any) -> list[Any]:
    """One result in the other types that a learner may return it in."""
    if isinstance(result, torch.Tensor) and not result.requires_grad:
        return [result.numpy()[::-1][::-1] if result.ndim else result.item(), result.tolist()]
    if isinstance(result, np.ndarray):
        return [result.tolist(), tuple(result), torch.from_numpy(result)]
    if isinstance(result, tuple) and not any(isinstance(x, torch.Tensor) for x in result):
        return [list(result), np.array(result), torch.tensor(result)]
    if isinstance(result, tuple):
        parts = [odd_forms(part) for part in result]
        return [[*form] for form in zip(*parts, strict=False)]
    if isinstance(result, list) and isinstance(result[0], tuple):
        return [tuple(result), [[*pair] for pair in result]]
    if isinstance(result, list):
        return [tuple(result), np.array(result), torch.tensor(result), [*map(float, result)]]
    if isinstance(result, int):
        return [float(result), np.int64(result), torch.tensor(result)]
    return [np.float64(result), torch.tensor(result)] if isinstance(result, float) else []


def types(result: Any) -> Any:
    if isinstance(result, torch.Tensor | np.ndarray):
        return type(result), result.dtype
    if isinstance(result, list | tuple):
        return type(result), [*map(types, result)]
    return float if isinstance(result, float) else type(result)


@each_exercise
def test_or_reference_hands_a_right_answer_on_in_the_type_of_the_reference(name: str) -> None:
    it = check.EXERCISES[name]
    draws = it.draws(generator())
    if not draws:
        pytest.skip("the answers are words, which have one type")
    wanted = it.reference(*draws[0])
    for i in range(len(odd_forms(wanted))):

        def odd(*draw: Any, i: int = i) -> Any:
            return odd_forms(it.reference(*draw))[i]

        if it.examine(odd).passed:
            handed = check.or_reference(odd, name)
            assert getattr(handed, "__wrapped__", handed) is odd  # and not the reference
            assert types(handed(*draws[0])) == types(wanted), odd_forms(wanted)[i]


@pytest.mark.parametrize("name", ["fold_targets", "mix_targets", "match_layers", "on_front"])
def test_numpy_is_a_right_answer_where_a_table_or_a_list_is_wanted(name: str) -> None:
    right = check.reference(name)
    outcome = check.EXERCISES[name].examine(lambda *draw: np.asarray(right(*draw))[::-1][::-1])
    assert outcome.passed, outcome.line


def test_like() -> None:
    weight = torch.ones(2, requires_grad=True)
    loss = (weight * 2).sum()
    assert grading.like(loss, torch.zeros(())) is loss  # with its graph
    assert grading.like(loss, torch.zeros((), dtype=torch.float64)).requires_grad
    kept = [1, 2]
    assert grading.like(kept, [9]) is kept
    assert types(grading.like((1.0, np.int64(2)), [9])) == types([1, 2])
    assert types(grading.like([3.0, 1], (1, 0.5))) == types((3, 1.0))
    assert types(grading.like({"a": np.float32(1)}, {"a": 0.5})["a"]) is float
    assert grading.like(2.5, 1) == 2.5  # no whole number: converting would change it
    assert grading.like("open", 1) == "open"
    assert grading.like(None, torch.zeros(1)) is None
    array = np.arange(3.0)
    assert grading.like(array, 1.0) is array  # a formula called on an array


def test_or_reference_does_not_raise_under_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMET_STRICT", "1")
    assert check.or_reference(..., "retention") is check.reference("retention")


# --- tools/try_check.py ---


def test_try_check_counts_what_is_said(tmp_path: Path) -> None:
    file = tmp_path / "answers.py"
    file.write_text(
        "def retention(s, t):\n    return 100 * s / t\n\n\n"
        "def retention__fraction(s, t):\n    return s / t\n\n\n"
        "def retention__bent(s, t):\n    return 100 * s / t + 1\n",
        encoding="utf-8",
    )
    run = CliRunner().invoke
    lines = run(app, ["retention", str(file), "--times", "7"]).stdout.splitlines()
    assert lines[:2] == ["retention", "    7  PASS  retention"]
    assert lines[3].startswith("    7  NOT YET  retention: this is a fraction")
    assert lines[5].startswith("    7  NOT YET  retention: the value is ")
    assert len(lines) == 6
    assert "no kd_loss" in run(app, ["kd_loss", str(file)]).stderr
    assert "choose one of" in run(app, ["nothing", str(file)]).stderr
