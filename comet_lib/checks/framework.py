"""Exercise checks that name the misconception.

In a notebook::

    from comet_lib import checks as check

    check.kd_loss(kd_loss)                                   # TODO, PASS or NOT YET
    kd_loss = check.or_reference(kd_loss, "kd_loss")         # go on where it is open

A check prints one line, returns nothing (a notebook would show it below the line), and never
raises for a learner; ``check.kd_loss.examine(kd_loss)`` returns the outcome instead. With
``COMET_STRICT=1`` an open or failing check raises ``CheckFailed`` (that is how the course tests
its own solutions). A check draws random tensors from a fresh seed at each run and compares with
the reference on them; nothing is compared with a stored number.

To add an exercise, write one function in ``comet_lib/checks/nbNN.py`` that raises
``Misconception`` for a wrong answer::

    @exercise("double", notebook="00", reference=lambda x: 2 * x, look="Multiply by two.")
    def double(answer):
        draws = [(normal(generator(), 4, 3),)]
        compare(answer, draws, double.reference, [Slip("you squared it", lambda x: x**2)])

and add its wrong answers to the catalogue in ``tests/catalogue/``.
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
from functools import partial
from itertools import combinations
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comet_lib.errors import CometError

__all__ = [
    "EXERCISES",
    "CheckFailed",
    "CourseMap",
    "Exercise",
    "Misconception",
    "Outcome",
    "Slip",
    "all_close",
    "compare",
    "course_map",
    "exercise",
    "generator",
    "normal",
    "or_reference",
    "progress",
    "reference",
    "slips_and_pairs",
    "uniform",
    "value_of",
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
    """One check. Calling it prints a line; ``examine`` returns what that line says."""

    name: str
    notebook: str
    verify: Callable[[Any], None]
    reference: Any
    look: str
    is_function: bool
    seconds: float

    def __call__(self, answer: Any = ...) -> None:
        outcome = self.examine(answer)
        print(outcome.line)
        if outcome.passed:
            _record(self.name)
        elif os.environ.get("COMET_STRICT", "") not in ("", "0"):
            raise CheckFailed(outcome.line)

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


def slips_and_pairs(
    variant: Callable[..., Any], changes: Sequence[tuple[str, str, dict[str, Any]]]
) -> Iterator[Slip]:
    """Each slip alone, then each pair of slips that change different parts of the answer.

    ``variant(*draw, **change)`` is the right answer with the parts in ``change`` made wrong;
    ``changes`` holds (message, look, change).
    """
    for message, look, change in changes:
        yield Slip(message, partial(variant, **change), look)
    for (message, look, change), (message_2, look_2, change_2) in combinations(changes, 2):
        if not change.keys() & change_2.keys():
            both = f"two things at once: {message}, and {message_2}"
            yield Slip(both, partial(variant, **change, **change_2), f"{look} {look_2}")


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
    wanted = [value_of(reference(*draw)) for draw in draws]
    got = [_checked(answer(*draw), reference(*draw)) for draw in draws]
    if all_close(got, wanted):
        return
    for slip in slips:
        if all_close(got, [value_of(slip.formula(*draw)) for draw in draws]):
            raise Misconception(slip.message, slip.look)
    if otherwise is not None:
        otherwise()
    worst = max(range(len(draws)), key=lambda i: (got[i] - wanted[i]).abs().max().item())
    place = (got[worst] - wanted[worst]).abs().argmax()
    raise Misconception(
        f"the value is {got[worst].flatten()[place].item():.4g} where "
        f"{wanted[worst].flatten()[place].item():.4g} is right, on random input"
    )


def value_of(result: Any) -> Tensor:
    if not isinstance(result, Tensor):
        return torch.as_tensor(result, dtype=torch.float64)  # float32 would round large numbers
    return result.detach().to("cpu", torch.float64)


def all_close(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
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
    value = value_of(result)
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
