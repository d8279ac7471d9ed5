"""Exercise checks that name the misconception.

In a notebook::

    from comet_lib import checks as check

    check.kd_loss(kd_loss)                                   # TODO, PASS or NOT YET
    kd_loss = check.or_reference(kd_loss, "kd_loss")         # go on where it is open

A check prints one line, returns whether the answer passed, and never raises for a learner. With
``COMET_STRICT=1`` an open or failing check raises ``CheckFailed`` (that is how the course tests
its own solutions). A check draws random tensors from a fresh seed at each run and compares with
the reference on them; nothing is compared with a stored number.

To add an exercise, write one function that raises ``Misconception`` for a wrong answer::

    @exercise("double", notebook="00", reference=lambda x: 2 * x, look="Multiply by two.")
    def double(answer):
        draws = [(normal(generator(), 4, 3),)]
        compare(answer, draws, double.reference, [Slip("you squared it", lambda x: x**2)])

and add its wrong answers to the catalogue in ``tests/test_checks.py``.
"""

from __future__ import annotations

import contextlib
import datetime
import html
import json
import os
import secrets
import signal
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from comet_lib import losses
from comet_lib.errors import CometError

__all__ = [
    "EXERCISES",
    "CheckFailed",
    "CourseMap",
    "Exercise",
    "Misconception",
    "Outcome",
    "Slip",
    "compare",
    "course_map",
    "exercise",
    "generator",
    "kd_loss",
    "normal",
    "or_reference",
    "progress",
    "reference",
    "retention",
    "soft_targets",
    "uniform",
]


# --- The framework -------------------------------------------------------------------------


class CheckFailed(AssertionError):
    """An open or failing check under ``COMET_STRICT=1``."""


class Misconception(Exception):
    """What a wrong answer shows about its author's picture: ``message``, and where to ``look``."""

    def __init__(self, message: str, look: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.look = look


class _Open(Exception):
    """The learner's function still returns ``...`` or stumbles over a blank left in it."""


class _TimeUp(BaseException):
    """Not an ``Exception``, so that ``except Exception`` in an answer does not swallow it."""


@dataclass(frozen=True)
class Outcome:
    """What a check found: ``state`` is "TODO", "PASS" or "NOT YET"."""

    name: str
    state: str
    message: str = ""

    @property
    def passed(self) -> bool:
        return self.state == "PASS"

    @property
    def line(self) -> str:
        return f"{self.state}  {self.name}" + (f": {self.message}" if self.message else "")


@dataclass(frozen=True)
class Exercise:
    """One check. Calling it prints a line and returns whether the answer passed."""

    name: str
    notebook: str
    verify: Callable[[Any], None]
    reference: Any
    look: str
    is_function: bool
    seconds: float

    def __call__(self, answer: Any = ...) -> bool:
        outcome = self.examine(answer)
        print(outcome.line)
        if outcome.passed:
            _record(self.name)
        elif os.environ.get("COMET_STRICT", "") not in ("", "0"):
            raise CheckFailed(outcome.line)
        return outcome.passed

    def examine(self, answer: Any) -> Outcome:
        """The outcome without printing, recording or raising."""
        try:
            if _is_open(answer):
                raise _Open("replace the ... with your answer, then run this cell again")
            if self.is_function and not callable(answer):
                raise Misconception(
                    f"this is a value of type {type(answer).__name__}, and a function is wanted",
                    f"Pass the function itself: check.{self.name}({self.name}).",
                )
            with _time_limit(self.seconds), warnings.catch_warnings(), torch.enable_grad():
                warnings.simplefilter("ignore")
                self.verify(_Guarded(answer) if self.is_function else answer)
        except _Open as blank:
            return Outcome(self.name, "TODO", str(blank))
        except Misconception as wrong:
            look = wrong.look or self.look
            return Outcome(self.name, "NOT YET", f"{wrong.message}. {look}".strip())
        except _TimeUp:
            message = (
                f"your answer was still running after {self.seconds:g} seconds and was stopped. "
                "Look for a loop that never ends."
            )
            return Outcome(self.name, "NOT YET", message)
        except Exception as error:
            message = f"your answer could not be compared: {_describe(error)}. {self.look}"
            return Outcome(self.name, "NOT YET", message)
        return Outcome(self.name, "PASS")


EXERCISES: dict[str, Exercise] = {}


def exercise(
    name: str,
    *,
    notebook: str,
    reference: Any,
    look: str,
    is_function: bool = True,
    seconds: float = 5.0,
) -> Callable[[Callable[[Any], None]], Exercise]:
    """Turn ``verify(answer) -> None``, which raises ``Misconception``, into an ``Exercise``.

    ``notebook`` is the number of the notebook that sets it ("00"), ``reference`` the right
    answer, ``look`` the sentence that says where to look when a misconception brings none of
    its own. With ``is_function=False`` the answer is a value and reaches ``verify`` as it is.
    An answer is stopped after ``seconds`` (in the main thread of a system with SIGALRM).
    """

    def register(verify: Callable[[Any], None]) -> Exercise:
        if name in EXERCISES:
            raise CometError(f"The exercise {name!r} is defined twice; give one another name.")
        made = Exercise(name, notebook, verify, reference, look, is_function, seconds)
        EXERCISES[name] = made
        return made

    return register


def _is_open(answer: Any) -> bool:
    if answer is None or answer is ...:
        return True
    if isinstance(answer, Mapping):
        answer = answer.values()
    elif not isinstance(answer, (list, tuple)):
        return False
    return any(part is ... for part in answer)


class _Guarded:
    """The learner's function: a blank, an exception, None or a changed argument is named."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        before = [a.detach().clone() if isinstance(a, Tensor) else None for a in arguments]
        try:
            result = self.function(*arguments)
        except (_TimeUp, KeyboardInterrupt):
            raise
        except BaseException as error:
            if "ellipsis" in _text(error):
                raise _Open("a blank (...) is still left inside your function") from None
            raise Misconception(
                f"your function raised {_describe(error)}{_where(error, self.function)}",
                "Call it yourself in a new cell to see the whole traceback.",
            ) from None
        if result is None:
            raise Misconception(
                "your function returned None", "Does its last line say `return`?"
            ) from None
        if _is_open(result):
            raise _Open("your function still returns ...")
        for place, (argument, kept) in enumerate(zip(arguments, before, strict=True), start=1):
            if kept is not None and not torch.equal(argument.detach(), kept):
                raise Misconception(
                    f"your function changed its argument {place} in place",
                    "Write x = x / y rather than x /= y, and no function that ends in _.",
                )
        return result


def _text(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())
    except Exception:
        return ""


def _describe(error: BaseException) -> str:
    text = _text(error)
    if len(text) > 200:
        text = text[:197] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _where(error: BaseException, function: Callable[..., Any]) -> str:
    """The last line of the learner's own code that the traceback passes, or nothing."""
    code = getattr(function, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if code is not None and f.filename == code.co_filename and f.line]
    return f" (at `{own[-1].line}`)" if own else ""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise ``_TimeUp`` after ``seconds`` of wall time; no limit where SIGALRM cannot serve."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(signum: int, frame: Any) -> None:
        raise _TimeUp

    began = time.monotonic()
    handler = signal.signal(signal.SIGALRM, stop)
    # It rings again each second, for an answer that swallows the first one.
    left, every = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if left:
            rest = left - (time.monotonic() - began)
            signal.setitimer(signal.ITIMER_REAL, max(rest, 0.001), every)


# --- Tools for writing a check -------------------------------------------------------------


def generator() -> torch.Generator:
    """A torch generator with a fresh seed; torch's global random state stays as it is."""
    return torch.Generator().manual_seed(secrets.randbits(48))


def normal(source: torch.Generator, *shape: int, scale: float = 3.0) -> Tensor:
    """Float32 tensor of ``shape`` with normal entries of standard deviation ``scale``."""
    return torch.randn(*shape, generator=source) * scale


def uniform(source: torch.Generator, low: float, high: float) -> float:
    """One number between ``low`` and ``high``."""
    return low + (high - low) * torch.rand((), generator=source).item()


@dataclass(frozen=True)
class Slip:
    """A wrong formula that can be recognised: it takes the same arguments as the answer."""

    message: str
    formula: Callable[..., Any]
    look: str = ""


def compare(
    answer: Callable[..., Any],
    draws: Sequence[tuple[Any, ...]],
    reference: Callable[..., Any],
    slips: Iterable[Slip] = (),
    otherwise: Callable[[], None] | None = None,
) -> None:
    """Compare an answer with the reference on every draw (a tuple of arguments).

    Raises ``Misconception`` for a wrong type, a wrong shape, NaN or infinity; then, if a value
    differs, for the first slip that explains the answer on **all** draws; then whatever
    ``otherwise()`` finds; at last one that states both values.
    """
    wanted = [_value(reference(*draw)) for draw in draws]
    got = [_checked(answer(*draw), reference(*draw)) for draw in draws]
    if _all_close(got, wanted):
        return
    for slip in slips:
        if _all_close(got, [_value(slip.formula(*draw)) for draw in draws]):
            raise Misconception(slip.message, slip.look)
    if otherwise is not None:
        otherwise()
    worst = max(range(len(draws)), key=lambda i: (got[i] - wanted[i]).abs().max().item())
    place = (got[worst] - wanted[worst]).abs().argmax()
    raise Misconception(
        f"the value is {got[worst].flatten()[place].item():.4g} where "
        f"{wanted[worst].flatten()[place].item():.4g} is right, on random input"
    )


def _value(result: Any) -> Tensor:
    return torch.as_tensor(result).detach().to("cpu", torch.float64)


def _all_close(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6)
        for a, b in zip(got, wanted, strict=True)
    )


def _checked(result: Any, wanted: Any) -> Tensor:
    """The answer's result as a float64 tensor, once its type and shape are those wanted."""
    is_number = isinstance(result, Real) and not isinstance(result, bool)
    if isinstance(wanted, Tensor):
        if not isinstance(result, Tensor):
            raise Misconception(
                f"your function returned a {type(result).__name__} where a tensor is wanted",
                "Return the tensor itself, without float(), .item(), .tolist() or .numpy().",
            )
        if result.shape != wanted.shape:
            want = f"shape {tuple(wanted.shape)}" if wanted.ndim else "a scalar, shape (),"
            raise Misconception(
                f"your function returned shape {tuple(result.shape)} where {want} is wanted",
                "" if wanted.ndim else "Sum or average over every axis until one number is left.",
            )
    elif not is_number and not (isinstance(result, Tensor) and result.ndim == 0):
        raise Misconception(
            f"your function returned a {type(result).__name__} where a number is wanted"
        )
    value = _value(result)
    if value.isnan().any():
        raise Misconception(
            "your function returned NaN",
            "Look for the logarithm of zero or of a negative number, or for 0/0; "
            "F.kl_div takes its target as a logarithm only with log_target=True.",
        )
    if value.isinf().any():
        raise Misconception(
            "your function returned infinity", "Look for an exp that is too large or for log(0)."
        )
    return value


# --- Going on with the reference -----------------------------------------------------------


def reference(name: str) -> Any:
    """The right answer of exercise ``name``. Raises ``CometError`` for an unknown name."""
    if name not in EXERCISES:
        known = ", ".join(sorted(EXERCISES))
        raise CometError(f"There is no exercise {name!r}; choose one of: {known}.")
    return EXERCISES[name].reference


def or_reference(answer: Any, name: str) -> Any:
    """``answer`` if it passes its check, else the reference; says so in one line if it is used."""
    right = reference(name)
    outcome = EXERCISES[name].examine(answer)
    if outcome.passed:
        return answer
    state = "is still open" if outcome.state == "TODO" else "does not pass yet"
    print(f"{name} {state}: going on with the reference")
    return right


# --- Progress ------------------------------------------------------------------------------


def _progress_file() -> Path:
    home = os.environ.get("COMET_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".comet") / "progress.json"


def progress() -> dict[str, str]:
    """Exercises passed on this machine, with the day of the first pass (ISO date).

    Read from ``progress.json`` in the folder ``COMET_HOME`` (default ``~/.comet``); the file is
    the learner's to delete. Where it is missing or cannot be read, nothing has been passed.
    """
    try:
        record = json.loads(_progress_file().read_text(encoding="utf-8"))["passed"]
        return {str(name): str(day) for name, day in record.items()}
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _record(name: str) -> None:
    """Note a pass; a home that cannot be written never gets in the way."""
    passed = progress()
    if name in passed:
        return
    passed[name] = datetime.date.today().isoformat()
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        path = _progress_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".progress-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"passed": passed}, file, indent=1, sort_keys=True)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


@dataclass(frozen=True)
class CourseMap:
    """Which exercises of which notebook have passed; text and HTML views for a notebook."""

    rows: tuple[tuple[str, str, tuple[tuple[str, bool], ...]], ...]

    def __repr__(self) -> str:
        lines = []
        for number, title, exercises in self.rows:
            marks = "  ".join(f"[{'x' if passed else ' '}] {name}" for name, passed in exercises)
            lines.append(f"{number}  {title}".rstrip() + (f"\n    {marks}" if marks else ""))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        body = []
        for number, title, exercises in self.rows:
            marks = " &nbsp; ".join(
                f"{'&#9745;' if passed else '&#9744;'} {html.escape(name)}"
                for name, passed in exercises
            )
            count = f"{sum(passed for _, passed in exercises)} of {len(exercises)}"
            cells = (html.escape(number), html.escape(title), marks, count if exercises else "")
            tags = "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells)
            body.append(f"<tr>{tags}</tr>")
        names = ("", "Notebook", "Exercises", "Passed")
        head = "".join(f'<th style="text-align:left">{name}</th>' for name in names)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def course_map(titles: Mapping[str, str] | None = None) -> CourseMap:
    """The course and the learner's progress. ``titles`` names the notebooks: {"00": "..."}."""
    titles = titles or {}
    passed = progress()
    rows = []
    for number in sorted(set(titles) | {e.notebook for e in EXERCISES.values()}):
        names = [e.name for e in EXERCISES.values() if e.notebook == number]
        marks = tuple((name, name in passed) for name in names)
        rows.append((number, titles.get(number, ""), marks))
    return CourseMap(tuple(rows))


# --- Notebook 00 ---------------------------------------------------------------------------


def _soft_targets_reference(logits: Tensor, temperature: float) -> Tensor:
    return torch.softmax(logits / temperature, dim=-1)


@exercise(
    "soft_targets",
    notebook="00",
    reference=_soft_targets_reference,
    look="Divide the logits by the temperature, then take the softmax over the last axis.",
)
def soft_targets(answer: Callable[..., Any]) -> None:
    """answer(logits, temperature) -> probabilities, softmax(logits / T) over the last axis."""
    source = generator()
    shapes = ((5, 3), (2, 4, 6), (4, 7))
    draws = [(normal(source, *shape), uniform(source, 1.5, 4.0)) for shape in shapes]
    slips = [
        Slip(
            "the logits are multiplied by the temperature",
            lambda x, t: torch.softmax(x * t, -1),
            "A high temperature must make the probabilities flatter, so divide.",
        ),
        Slip(
            "the softmax runs over the first axis",
            lambda x, t: torch.softmax(x / t, 0),
            "The classes are the last axis: each row must sum to 1 (dim=-1).",
        ),
        Slip(
            "one softmax runs over the whole tensor",
            lambda x, t: torch.softmax((x / t).flatten(), 0).reshape(x.shape),
            "Each row is a distribution of its own: give the axis of the classes (dim=-1).",
        ),
        Slip(
            "these are log-probabilities, not probabilities",
            lambda x, t: torch.log_softmax(x / t, -1),
            "They are all negative: use softmax, not log_softmax.",
        ),
        Slip(
            "the temperature is ignored",
            lambda x, t: torch.softmax(x, -1),
            "The result must change when the temperature does.",
        ),
        Slip(
            "the temperature is applied after the softmax",
            lambda x, t: torch.softmax(x, -1) / t,
            "Divide the logits, which come before the softmax; then each row sums to 1 again.",
        ),
        Slip(
            "the exponentials are not normalised",
            lambda x, t: torch.exp(x / t),
            "Divide by their sum over the last axis.",
        ),
        Slip(
            "each class is squashed by itself (a sigmoid)",
            lambda x, t: torch.sigmoid(x / t),
            "The classes share a total of 1: that is a softmax.",
        ),
    ]

    def rows_must_sum_to_one() -> None:
        if not _all_close([_value(answer(*d)).sum(-1) for d in draws], [*map(_ones, draws)]):
            raise Misconception(
                "the probabilities of a row do not sum to 1",
                "Divide by the sum over the last axis, and keep that axis (keepdim=True).",
            )

    compare(answer, draws, _soft_targets_reference, slips, rows_must_sum_to_one)
    large = normal(source, 3, 5) * 1000
    if not torch.isfinite(_value(answer(large, 1.0))).all():
        raise Misconception(
            "with large logits the exponentials overflow and the result is not finite",
            "Take torch.softmax, or subtract each row's maximum before exp.",
        )


def _ones(draw: tuple[Any, ...]) -> Tensor:
    return torch.ones(draw[0].shape[:-1], dtype=torch.float64)


def _kd_variant(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    *,
    factor: str = "T squared",
    kind: str = "KL",
    swapped: bool = False,
    reduction: str = "batchmean",
    softened: str = "both",
    student_as: str = "log",
    teacher_as: str = "log",
    axis: int = -1,
    sign: int = 1,
) -> Tensor:
    """The loss with any of its parts replaced by a usual slip; with none, the right value."""
    s, t = student_logits.double(), teacher_logits.double()
    heat = {"both": (1, 1), "student": (1, 0), "teacher": (0, 1), "none": (0, 0), "up": (-1, -1)}
    s, t = (x / temperature**power for x, power in zip((s, t), heat[softened], strict=True))
    log_q = F.log_softmax(s, axis)
    log_p = F.log_softmax(t, axis)
    log_q = {"log": log_q, "probabilities": log_q.exp(), "logits": s}[student_as]
    log_p = {"log": log_p, "probabilities": log_p.exp()}[teacher_as]
    if swapped:
        log_p, log_q = log_q, log_p
    if kind == "hard labels":
        total = -log_q.gather(-1, teacher_logits.argmax(-1, keepdim=True)).sum()
    else:
        total = (log_p.exp() * ((log_p if kind == "KL" else 0) - log_q)).sum()
    count = {"batchmean": s.shape[0], "mean": s.numel(), "sum": 1}[reduction]
    power = {"none": 0, "T": 1, "T squared": 2, "divided": -2}[factor]
    return sign * total / count * temperature**power


# What a learner may have got wrong: message, where to look, and the part of the loss it changes.
_KD_SLIPS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "the factor T squared is missing",
        "Gradients shrink by T squared when both sides are softened; multiply the loss by T*T.",
        {"factor": "none"},
    ),
    (
        "the loss is multiplied by T, not by T squared",
        "Both the student and the teacher are softened: one factor T for each.",
        {"factor": "T"},
    ),
    (
        "the loss is divided by T squared",
        "Softening has shrunk the gradients already; multiply to undo it.",
        {"factor": "divided"},
    ),
    (
        "the two sides of the KL divergence are swapped",
        "KL(teacher || student) weights by the teacher's probabilities. F.kl_div takes the "
        "student's log-probabilities first and the teacher as target.",
        {"swapped": True},
    ),
    (
        "the loss is averaged over the classes too (reduction='mean')",
        "A KL is a sum over classes: average over the batch alone (reduction='batchmean').",
        {"reduction": "mean"},
    ),
    (
        "the loss is summed over the batch (reduction='sum')",
        "It must not grow with the batch: divide by the number of rows (reduction='batchmean').",
        {"reduction": "sum"},
    ),
    (
        "the student enters as probabilities, without the logarithm",
        "F.kl_div takes the logarithm of the student's probabilities: F.log_softmax.",
        {"student_as": "probabilities"},
    ),
    (
        "the student enters as raw logits, without a log-softmax",
        "F.kl_div takes log-probabilities as its first argument: F.log_softmax.",
        {"student_as": "logits"},
    ),
    (
        "the teacher's probabilities are read as logarithms",
        "With log_target=True the target is a log_softmax; without it, a softmax.",
        {"teacher_as": "probabilities"},
    ),
    (
        "the temperature softens the student only",
        "Divide the teacher's logits by it as well.",
        {"softened": "student"},
    ),
    (
        "the temperature softens the teacher only",
        "Divide the student's logits by it as well.",
        {"softened": "teacher"},
    ),
    (
        "the temperature does not soften the logits",
        "Divide both the student's and the teacher's logits by it before the softmax.",
        {"softened": "none"},
    ),
    (
        "the logits are multiplied by the temperature",
        "A high temperature must make the distributions flatter, so divide.",
        {"softened": "up"},
    ),
    (
        "this is the cross-entropy, which is the KL plus the teacher's entropy",
        "Subtract that entropy: the loss of a student equal to its teacher must be 0.",
        {"kind": "cross-entropy"},
    ),
    (
        "the teacher's most likely class is taken as a hard label",
        "The soft targets are all of the teacher's probabilities, not their argmax.",
        {"kind": "hard labels"},
    ),
    (
        "the softmax runs over the batch",
        "The classes are the last axis (dim=-1).",
        {"axis": 0},
    ),
    (
        "the sign is wrong: a KL divergence is never negative",
        "Write p * (log p - log q), with p from the teacher, or drop a minus.",
        {"sign": -1},
    ),
)


def _kd_slip_list() -> Iterator[Slip]:
    """Each slip alone, then each pair of slips in different parts of the loss."""

    def formula(change: dict[str, Any]) -> Callable[..., Tensor]:
        return lambda s, t, temperature: _kd_variant(s, t, temperature, **change)

    for message, look, change in _KD_SLIPS:
        yield Slip(message, formula(change), look)
    for (message, look, change), (message_2, look_2, change_2) in combinations(_KD_SLIPS, 2):
        if not change.keys() & change_2.keys():
            both = f"two things at once: {message}, and {message_2}"
            yield Slip(both, formula(change | change_2), f"{look} {look_2}")


@exercise(
    "kd_loss",
    notebook="00",
    reference=losses.soft_target_loss,
    look="Soften both sides, take KL(teacher || student), average over the batch, times T*T.",
)
def kd_loss(answer: Callable[..., Any]) -> None:
    """answer(student_logits, teacher_logits, temperature) -> T^2 KL(teacher || student).

    Logits are (batch, classes); the result is a scalar, averaged over the batch. Hinton,
    Vinyals and Dean 2015, section 2.
    """
    source = generator()
    draws = [
        (normal(source, *shape), normal(source, *shape), uniform(source, 1.5, 4.0))
        for shape in ((5, 3), (4, 7), (3, 8), (6, 4))
    ]

    def properties() -> None:
        same = normal(source, 5, 4)
        if _value(answer(same, same, 2.0)).abs() > 1e-4:
            raise Misconception(
                "a student equal to its teacher has a loss other than 0",
                "A KL divergence of a distribution from itself is 0: "
                "treat both sides in the same way.",
            )
        student, teacher, temperature = draws[0]
        here, there = (answer(x, teacher, temperature) for x in (student, student + 5))
        if not torch.allclose(_value(here), _value(there), rtol=1e-3, atol=1e-4):
            raise Misconception(
                "adding 5 to all of the student's logits changes the loss",
                "A softmax does not see such a shift: is there one on the student?",
            )
        at_one = [(student, teacher, 1.0) for student, teacher, _ in draws]
        got = [_value(answer(*draw)) for draw in at_one]
        if _all_close(got, [_value(losses.soft_target_loss(*draw)) for draw in at_one]):
            raise Misconception(
                "right at temperature 1, wrong at any other",
                "Look at every place where the temperature enters.",
            )

    compare(answer, draws, losses.soft_target_loss, _kd_slip_list(), properties)

    student, teacher, temperature = draws[0]
    student, teacher = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    loss = answer(student, teacher, temperature)
    if not loss.requires_grad:
        raise Misconception(
            "no gradient reaches the student",
            "Detach the teacher alone; use neither torch.no_grad() nor .detach() on the loss.",
        )
    to_student, to_teacher = torch.autograd.grad(loss, (student, teacher), allow_unused=True)
    if to_teacher is not None and to_teacher.abs().max() > 0:
        raise Misconception(
            "the gradient reaches the teacher",
            "The teacher is fixed: detach its logits (teacher_logits.detach()).",
        )
    # dL/ds = T (softmax(s/T) - softmax(t/T)) / B, the equation that T squared keeps in scale.
    soft = torch.softmax(torch.stack((student, teacher)).detach() / temperature, dim=-1)
    right = temperature * (soft[0] - soft[1]) / len(student)
    if to_student is None or not torch.allclose(to_student, right, rtol=1e-3, atol=1e-5):
        raise Misconception(
            "the value is right and the student's gradient is not",
            "Detach nothing of the student's side.",
        )
    far = normal(source, 4, 6) * 200, normal(source, 4, 6) * 200, 1.0
    if not torch.isfinite(_value(answer(*far))):
        raise Misconception(
            "with large logits the loss is not finite",
            "log(softmax(x)) meets log(0); use F.log_softmax(x).",
        )


def _retention_reference(student_f1: float, teacher_f1: float) -> float:
    return 100.0 * student_f1 / teacher_f1


@exercise(
    "retention",
    notebook="00",
    reference=_retention_reference,
    look="It is the student's score as a percentage of the teacher's.",
)
def retention(answer: Callable[..., Any]) -> None:
    """answer(student_f1, teacher_f1) -> percent of the teacher's score that the student keeps."""
    source = generator()
    teachers = [uniform(source, 0.6, 0.9) for _ in range(4)]
    # Percentages that round up and down, so that rounding and cutting differ.
    ends = [uniform(source, *ends) for ends in ((0.1, 0.4), (0.6, 0.9)) * 2]
    kept = [int(uniform(source, 30, 95)) + end for end in ends]
    draws = [(p / 100 * teacher, teacher) for p, teacher in zip(kept, teachers, strict=True)]
    draws += [(100 * student, 100 * teacher) for student, teacher in draws[:2]]
    slips = [
        Slip(
            "this is a fraction, not a percentage",
            lambda s, t: s / t,
            "Multiply by 100.",
        ),
        Slip(
            "teacher and student are swapped",
            lambda s, t: 100 * t / s,
            "The teacher's score is the whole, so it stands below the line.",
        ),
        Slip(
            "this is the difference of the two scores",
            lambda s, t: s - t,
            "What is kept is a ratio: divide by the teacher's score.",
        ),
        Slip(
            "this is the difference of the two scores, teacher minus student",
            lambda s, t: t - s,
            "What is kept is a ratio: divide by the teacher's score.",
        ),
        Slip(
            "this is the percentage lost, not the percentage kept",
            lambda s, t: 100 * (t - s) / t,
            "The two add up to 100.",
        ),
        Slip(
            "this is the relative change, not the percentage kept",
            lambda s, t: 100 * (s - t) / t,
            "Add 100, or divide the student's score itself by the teacher's.",
        ),
        Slip(
            "the teacher's score is ignored",
            lambda s, t: 100 * s,
            "Divide by the teacher's score.",
        ),
        Slip(
            "the result is rounded to a whole number",
            lambda s, t: float(round(100 * s / t)),
            "Return all digits and round only when you print.",
        ),
        Slip(
            "the result is cut to a whole number",
            lambda s, t: float(int(100 * s / t)),
            "Return all digits: / rather than //, and no int().",
        ),
    ]
    compare(answer, draws, _retention_reference, slips)
    better = [(teacher * uniform(source, 1.05, 1.2), teacher) for teacher in teachers]
    compare(
        answer,
        better,
        _retention_reference,
        [
            Slip(
                "a student better than its teacher is held at 100",
                lambda s, t: 100.0,
                "Such a student keeps more than 100 percent; leave the min() out.",
            )
        ],
    )
