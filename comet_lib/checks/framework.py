"""Exercise checks that name the misconception.

In a notebook::

    from comet_lib import checks as check

    check.kd_loss(kd_loss)                                   # TODO, PASS or NOT YET
    kd_loss = check.or_reference(kd_loss, "kd_loss")         # go on where it is open

A check prints one line, returns nothing (a notebook would show it below the line), and never
raises for a learner; ``check.kd_loss.examine(kd_loss)`` returns the outcome instead. With
``COMET_STRICT=1`` an open or failing check raises ``CheckFailed`` (this is how the course tests
its own solutions). A check draws random arguments from a fresh seed on each run and compares the
answer with the reference on them; it compares nothing with a stored number.

An exercise is its decorated reference in ``comet_lib/checks/nbNN.py``; CONTRIBUTING shows one.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import inspect
import operator
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comet_lib import progress
from comet_lib.checks.draws import generator
from comet_lib.errors import CometError

Answer = Callable[..., Any]
Draws = Sequence[tuple[Any, ...]]  # each is the arguments of one call
GREEN, ORANGE = 32, 33  # of a terminal


class CheckFailed(AssertionError):
    """An open or failing check under ``COMET_STRICT=1``."""


class Misconception(Exception):
    """What a wrong answer shows about its author's picture, and where to ``look``."""

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
class Slip:
    """A known mistake: a wrong ``formula`` with the answer's arguments, and where to ``look``."""

    formula: Answer
    look: str = ""


@dataclass(frozen=True)
class Exercise:
    """One check. Calling it prints a line; ``examine`` returns what that line says.

    Attributes:
        notebook: Number of the notebook that sets the exercise ("00").
        reference: The right answer.
        look: Where to look, if a misconception says nothing of its own.
        draws: Random source -> arguments on which the answer must equal the reference.
        slips: Message -> known mistake; those that are wrong only on the edge cases come first.
            Partials of one function with different keywords are also recognized in pairs.
        edges: Random source -> further draws, compared once the ordinary ones are right.
        edge_case: Names them; every message about them begins with it ("with equal scores").
        read: (result, *draw) -> the result as it is compared, a tensor, a number or a tuple of
            tensors; raises ``Misconception``.
        otherwise: (answer, draws) -> None; looks at wrong values that no slip explains.
        extra: (answer, draws) -> None; looks for what right values can still get wrong.
        verify: Replaces the whole comparison: answer -> None, raises ``Misconception``.
        is_function: False if the answer is a value; ``verify`` gets it as it is.
        apart: Draw again until the reference and all slips, which must return numbers, differ.
        seconds: Time limit (in the main thread of a system with SIGALRM).
    """

    name: str
    notebook: str
    reference: Any
    look: str
    draws: Callable[[torch.Generator], Draws] = lambda source: ()
    slips: Mapping[str, Slip] = field(default_factory=dict)
    edges: Callable[[torch.Generator], Draws] = lambda source: ()
    edge_case: str = ""
    read: Callable[..., Any] = lambda result, *draw: result
    otherwise: Callable[[Answer, Draws], None] = lambda answer, draws: None
    extra: Callable[[Answer, Draws], None] = lambda answer, draws: None
    verify: Callable[[Any], None] | None = None
    is_function: bool = True
    apart: bool = False
    seconds: float = 5.0

    def __call__(self, answer: Any = ...) -> None:
        outcome = self.examine(answer)
        if outcome.passed:
            passed = progress.noted("passed")
            if self.name not in passed:
                progress.note("passed", self.name, datetime.date.today().isoformat())
            print(_in_color(outcome.line, GREEN), _what_is_left(self, {*passed, self.name}))
            return
        print(_in_color(outcome.line, ORANGE) if outcome.state == "NOT YET" else outcome.line)
        if os.environ.get("COMET_STRICT", "") not in ("", "0"):
            raise CheckFailed(outcome.line)

    def examine(self, answer: Any) -> Outcome:
        """The outcome, without printing, recording or raising."""
        try:
            if _is_open(answer):
                raise _Open("replace the ... with your answer, then run this cell again")
            if self.is_function and not callable(answer):
                raise Misconception(
                    f"this is a value of type {type(answer).__name__}, but a function is wanted",
                    f"Pass the function itself: check.{self.name}({self.name}).",
                )
            with _time_limit(self.seconds), warnings.catch_warnings(), torch.enable_grad():
                warnings.simplefilter("ignore")
                verify = self.verify or self._compare_all
                verify(_Guarded(answer) if self.is_function else answer)
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
            message = (
                f"your answer could not be compared: {_describe(error)}. "
                "Does it return what its docstring says?"
            )
            return Outcome(self.name, "NOT YET", message)
        return Outcome(self.name, "PASS")

    def _compare_all(self, function: Answer) -> None:
        def answer(*draw: Any) -> Any:
            return self.read(function(*draw), *draw)

        source = generator()
        draws = self.draws(source)
        while self.apart and not self._told_apart(draws):
            draws = self.draws(source)
        self._compare(answer, draws)
        try:
            self._compare(answer, self.edges(source))
        except Misconception as wrong:
            raise Misconception(f"{self.edge_case}, {wrong.message}", wrong.look) from None
        self.extra(answer, draws)

    def _told_apart(self, draws: Draws) -> bool:
        """Whether no slip looks like the reference or like another on all of these draws."""
        formulas = [self.reference, *(slip.formula for slip in self.slips.values())]
        results = [tuple(round(float(f(*draw)), 4) for draw in draws) for f in formulas]
        return len(set(results)) == len(results)

    def _compare(self, answer: Answer, draws: Draws) -> None:
        """Compare the answer with the reference on every draw.

        Raises ``Misconception`` for a wrong type, a wrong shape, NaN or infinity; then, if a value
        differs, for the first slip that explains the answer on **all** draws; then whatever
        ``otherwise`` finds; finally one that states both values and the input.
        """
        right = [self.read(_as_tensor(self.reference(*draw)), *draw) for draw in draws]
        wanted = [*map(_values, right)]
        got = [_checked(answer(*draw), result) for draw, result in zip(draws, right, strict=True)]
        if all(map(all_close, got, wanted)):
            _refuse_rounding(got, wanted)
            return
        for message, slip in _with_pairs(self.slips):
            if self._explains(slip, draws, got):
                raise Misconception(message, slip.look)
        self.otherwise(answer, draws)
        _refuse_rounding(got, wanted)
        wrong = [i for i in range(len(draws)) if not all_close(got[i], wanted[i])]
        least = min(wrong, key=lambda i: sum(map(_size, draws[i])))
        shown = in_words(self.reference, draws[least])
        by_hand = not re.search(r"=(a |shape |\w+ of \d)", shown)  # all of the input is there
        raise Misconception(
            f"{_difference(got[least], wanted[least])}, on random input: {shown}",
            "Work this case out by hand and compare."
            if by_hand
            else "Compare your steps, one by one, with those in the exercise's text.",
        )

    def _explains(self, slip: Slip, draws: Draws, got: Sequence[Sequence[Tensor]]) -> bool:
        try:
            return all(
                all_close(values, _values(self.read(slip.formula(*draw), *draw)))
                for values, draw in zip(got, draws, strict=True)
            )
        except Misconception:  # `read` refuses the slip's result, but it let the answer's pass
            return False


EXERCISES: dict[str, Exercise] = {}


def exercise(*, look: str, **parts: Any) -> Callable[[Answer], Exercise]:
    """Turn the decorated reference into the ``Exercise`` of its name.

    The docstring states the task, the module ``nbNN`` gives the notebook, ``parts`` are fields of
    ``Exercise``. With ``is_function=False`` the reference is what the decorated function returns.
    """

    def register(function: Answer) -> Exercise:
        name = function.__name__
        if name in EXERCISES:
            raise CometError(f"The exercise {name!r} is defined twice; rename one of them.")
        reference = function if parts.get("is_function", True) else function()
        notebook = function.__module__.rpartition("nb")[2]
        EXERCISES[name] = Exercise(name, notebook, reference, look, **parts)
        return EXERCISES[name]

    return register


def _what_is_left(done: Exercise, passed: Collection[str]) -> str:
    """How far its notebook is done, and which exercise comes next: "(2 of 6; next: ask)"."""
    names = [each.name for each in EXERCISES.values() if each.notebook == done.notebook]
    left = [name for name in names if name not in passed]
    after = [name for name in names[names.index(done.name) :] if name in left]
    following = f"next: {(after or left)[0]}" if left else "all of this notebook"
    return f"({len(names) - len(left)} of {len(names)}; {following})"


def _in_color(line: str, code: int) -> str:
    """The state in bold color in a notebook; elsewhere (a file, a test) the plain line."""
    if not type(sys.stdout).__module__.startswith("ipykernel"):
        return line
    state, gap, rest = line.partition("  ")
    return f"\x1b[1;{code}m{state}\x1b[0m{gap}{rest}"


def _with_pairs(slips: Mapping[str, Slip]) -> Iterator[tuple[str, Slip]]:
    """Each slip by itself, then each pair that changes different keywords of one function."""
    yield from slips.items()
    for (message, one), (message_2, other) in combinations(slips.items(), 2):
        f, g = one.formula, other.formula
        if not (isinstance(f, partial) and isinstance(g, partial)):
            continue
        if (f.func, f.args) == (g.func, g.args) and not f.keywords.keys() & g.keywords.keys():
            both = Slip(partial(f, **g.keywords), f"{one.look} {other.look}")
            yield f"two things at once: {message}, and {message_2}", both


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

    def __init__(self, function: Answer) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        before = [a.detach().clone() if isinstance(a, Tensor) else None for a in arguments]
        try:  # a list, dict or array is the answer's own copy
            result = self.function(
                *(copy(a) if isinstance(a, list | dict | np.ndarray) else a for a in arguments)
            )
        except (_TimeUp, KeyboardInterrupt, Misconception):  # one is from a callback of the check
            raise
        except BaseException as error:
            if "ellipsis" in _text(error):
                raise _Open("a blank (...) is still left inside your function") from None
            cut = "does not require grad" in _text(error)
            raise Misconception(
                f"your function raised {_describe(error)}{_where(error, self.function)}",
                "No weight of the student is in this loss: is the student detached, or does it "
                "stand in the teacher's place?"
                if cut
                else "Call it yourself in a new cell to see the whole traceback.",
            ) from None
        if result is None:
            raise Misconception("your function returned None", "Does its last line say `return`?")
        if _is_open(result):
            raise _Open("your function still returns ...")
        result = _as_tensor(result)
        for place, (argument, kept) in enumerate(zip(arguments, before, strict=True), start=1):
            if kept is not None and not torch.equal(argument.detach(), kept):
                raise Misconception(
                    f"your function changed its argument {place} in place",
                    "Write x = x / y rather than x /= y, and no function that ends in _.",
                )
        return result


def _as_tensor(result: Any) -> Any:
    """An array of numbers as a tensor: an answer may be in numpy. Anything else as it is."""
    if isinstance(result, np.ndarray) and result.dtype.kind in "biuf":
        return torch.from_numpy(result.copy())  # of a reversed view too
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
    """Raise ``_TimeUp`` after ``seconds`` of wall time; no limit where SIGALRM does not work."""
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


# --- Comparing values ----------------------------------------------------------------------


def value_of(result: Any) -> Tensor:
    if not isinstance(result, Tensor):
        return torch.as_tensor(result, dtype=torch.float64)  # float32 would round large numbers
    return result.detach().to("cpu", torch.float64)


def _values(result: Any) -> list[Tensor]:
    return [value_of(part) for part in (result if isinstance(result, tuple) else (result,))]


def all_close(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6)
        for a, b in zip(got, wanted, strict=True)
    )


def _refuse_rounding(got: Sequence[Sequence[Tensor]], wanted: Sequence[Sequence[Tensor]]) -> None:
    """A percentage rounded to two digits is close; a cell below may ask for equality."""
    values, right = ([v.item() for one in r for v in one if not v.ndim] for r in (got, wanted))
    for digits in range(1, 6):
        rounded = [round(value, digits) for value in right]
        sharp = any(abs(a - b) > 1e-8 for a, b in zip(rounded, right, strict=True))
        if sharp and all(abs(a - b) < 1e-9 for a, b in zip(rounded, values, strict=True)):
            raise Misconception("the result is rounded", "Return all digits; round when you print.")


def _difference(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> str:
    """The worst value beside the right one, with as many digits as it takes to differ."""
    value, right = max(
        zip(got, wanted, strict=True), key=lambda pair: (pair[0] - pair[1]).abs().max().item()
    )
    place = int((value - right).abs().argmax())
    pair = value.flatten()[place].item(), right.flatten()[place].item()
    digits = next(n for n in range(4, 18) if f"{pair[0]:.{n}g}" != f"{pair[1]:.{n}g}" or n == 17)
    index = [int(i) for i in np.unravel_index(place, value.shape)]
    where = f" at {index}" if index else ""
    return f"the value{where} is {pair[0]:.{digits}g}, but {pair[1]:.{digits}g} is right"


def _size(argument: Any) -> int:
    """How many numbers or letters there are to read."""
    if isinstance(argument, Tensor | np.ndarray):
        return int(np.prod(argument.shape))
    if isinstance(argument, list | tuple | Mapping):
        parts = argument.values() if isinstance(argument, Mapping) else argument
        return sum(map(_size, parts))
    return len(argument) if isinstance(argument, str) else 1


def _in_digits(value: Any) -> str:
    """A short form of a draw's argument, numbers with three digits."""
    if isinstance(value, Tensor | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_in_digits(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_in_digits, value)) + "]"
    if isinstance(value, float):
        return f"{value:.3g}"
    if value is None or isinstance(value, int | str):
        return repr(value)
    return "a function" if inspect.isfunction(value) else f"a {type(value).__name__}"


def in_words(function: Answer, draw: Sequence[Any], most: int = 200) -> str:
    """``name=value, ...`` of the arguments of a call; the longest give way to their shapes."""
    texts = dict(zip(inspect.signature(function).parameters, map(_in_digits, draw), strict=False))
    values = dict(zip(texts, draw, strict=True))
    while sum(map(len, texts.values())) + sum(len(name) + 3 for name in texts) > most:
        longest = max(texts, key=lambda name: len(texts[name]))
        value = values[longest]
        shape = getattr(value, "shape", None)
        count = len(value) if isinstance(value, Sequence | Mapping) else 1
        short = f"shape {tuple(shape)}" if shape else f"{type(value).__name__} of {count}"
        if len(short) >= len(texts[longest]):
            break
        texts[longest] = short
    return ", ".join(f"{name}={text}" for name, text in texts.items())


def is_number(result: Any) -> bool:
    if isinstance(result, Tensor):
        return result.ndim == 0
    return isinstance(result, Real) and not isinstance(result, bool)


def array_of(result: Any, wanted: str) -> np.ndarray:
    """A list, tuple, array or tensor as an array. Raises ``Misconception`` for anything else."""
    if isinstance(result, str | bytes | dict) or not hasattr(result, "__len__"):
        raise Misconception(
            f"your function returned a {type(result).__name__}, but {wanted} is wanted"
        )
    if isinstance(result, Tensor):
        return result.detach().cpu().numpy()
    return np.asarray(list(result) if isinstance(result, set) else result)


def numbers(result: Any, count: int) -> Tensor:
    """``count`` losses, one for each update, as a tensor (count,)."""
    kind = type(result).__name__
    if isinstance(result, Tensor | np.ndarray) and result.ndim == 1:
        result = [*result]
    if not isinstance(result, list | tuple):
        raise Misconception(
            f"your function returned a {kind}, but a list of numbers is wanted",
            "Start from an empty list, append each loss, and return the list at the end.",
        )
    if any(isinstance(one, Tensor) and one.requires_grad for one in result):
        raise Misconception(
            "your list holds tensors, each with the computation behind it",
            "Append loss.item(), a number: the tensors would fill the memory.",
        )
    if len(result) != count or not all(map(is_number, result)):
        raise Misconception(
            f"there are {len(result)} losses for {count} updates",
            "Append one number in each round; the list must start before the first.",
        )
    return value_of([float(one) for one in result])


def _checked(result: Any, wanted: Any) -> list[Tensor]:
    """The answer's result as float64 tensors, once it has the type and shape of ``wanted``."""
    if isinstance(wanted, tuple):  # the exercise has read its parts
        return _values(result)
    if isinstance(wanted, Tensor):
        if not isinstance(result, Tensor):
            raise Misconception(
                f"your function returned a {type(result).__name__}, but a tensor is wanted",
                "Return the tensor itself, without float(), .item(), .tolist() or .numpy().",
            )
        if result.shape != wanted.shape:
            want = f"shape {tuple(wanted.shape)}" if wanted.ndim else "a scalar, shape (),"
            raise Misconception(
                f"your function returned shape {tuple(result.shape)}, but {want} is wanted",
                "Over which axes do you sum, average or index?"
                if wanted.ndim
                else "Sum or average over every axis until one number is left.",
            )
    elif not is_number(result):
        raise Misconception(
            f"your function returned a {type(result).__name__}, but a number is wanted",
            "Return one number.",
        )
    refuse_nan(
        result,
        "your function returned NaN",
        "Look for the logarithm of zero or of a negative number, or for 0/0; "
        "F.kl_div takes its target as a logarithm only with log_target=True.",
    )
    if value_of(result).isinf().any():
        raise Misconception(
            "your function returned infinity", "Look for an exp that is too large or for log(0)."
        )
    return [value_of(result)]


def refuse_nan(result: Any, message: str, look: str) -> Any:
    """``result``, unless it contains NaN; the message names the cause."""
    if (is_number(result) or isinstance(result, Tensor)) and value_of(result).isnan().any():
        raise Misconception(message, look)
    return result


def refuse_infinity(result: Any, message: str, look: str) -> None:
    if not torch.isfinite(value_of(result)).all():
        raise Misconception(message, look)


def rows_must_sum_to_one(what: str, look: str) -> Callable[[Answer, Draws], None]:
    """For ``otherwise``: the last axis of every result must sum to 1."""

    def otherwise(answer: Answer, draws: Draws) -> None:
        sums = [value_of(answer(*draw)).sum(-1) for draw in draws]
        if not all(torch.allclose(row, torch.ones_like(row), rtol=1e-4) for row in sums):
            raise Misconception(f"{what} do not sum to 1", look)

    return otherwise


def check_gradients(
    answer: Answer,
    draw: tuple[Any, ...],
    students: Sequence[int] = (0,),
    teachers: Sequence[int] = (1,),
    reference: Answer | None = None,
) -> None:
    """Every student argument gets a gradient (that of ``reference``, if given), no teacher does."""

    def gradients(function: Answer) -> dict[int, Tensor]:
        arguments, places = list(draw), [*students, *teachers]
        for place in places:
            arguments[place] = draw[place].clone().requires_grad_()
        loss = function(*arguments)
        if not (isinstance(loss, Tensor) and loss.requires_grad):
            raise Misconception(
                "no gradient reaches the student",
                "Detach only the teacher; on the loss use no torch.no_grad(), .detach() or numpy.",
            )
        leaves = [arguments[place] for place in places]
        found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        return dict(zip(places, found, strict=True))

    got = gradients(answer)
    for place in students:
        if got[place].isnan().any():
            raise Misconception(
                "the value is right, but the student's gradient is NaN",
                "Keep the student above 0 before the logarithm: .clamp_min(1e-8).",
            )
        if not got[place].abs().max() > 0:
            raise Misconception(
                "a part of the student gets no gradient", "Detach nothing on the student's side."
            )
    if any(not got[place].abs().max() <= 0 for place in teachers):  # NaN is not zero either
        raise Misconception(
            "the gradient reaches the teacher", "The teacher is fixed: .detach() its side."
        )
    right = gradients(reference) if reference else got
    if not all(torch.allclose(got[i], right[i], rtol=1e-3, atol=1e-5) for i in students):
        raise Misconception(
            "the value is right, but the student's gradient is not",
            "Detach nothing on the student's side.",
        )


# --- Going on with the reference -----------------------------------------------------------


def reference(name: str) -> Any:
    """The right answer of exercise ``name``. Raises ``CometError`` for an unknown name."""
    if name not in EXERCISES:
        known = ", ".join(sorted(EXERCISES))
        raise CometError(f"There is no exercise {name!r}; choose one of: {known}.")
    return EXERCISES[name].reference


def like(value: Any, example: Any) -> Any:
    """``value`` in the type of ``example``: ``value`` itself where they agree.

    Tensors take the example's dtype, lists and tuples the type of its parts. What cannot be
    converted stays as it is.
    """
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        return _like(value, example)
    return value


def _like(value: Any, example: Any) -> Any:
    if isinstance(example, Tensor):
        tensor = torch.as_tensor(_as_tensor(value))
        return tensor if tensor.dtype == example.dtype else tensor.to(example.dtype)
    if isinstance(example, np.ndarray):
        array = np.asarray(value)
        return array if array.dtype.kind == example.dtype.kind else array.astype(example.dtype)
    if isinstance(example, list | tuple):
        given = list(value)
        each = example if len(example) == len(given) else [*example[:1]] * len(given)
        parts = [*map(like, given, each)] if example else given
        same = type(value) is type(example) and all(map(operator.is_, parts, given))
        return value if same else type(example)(parts)
    if isinstance(example, Mapping):
        table = {key: like(part, example.get(key, part)) for key, part in value.items()}
        return value if all(table[key] is value[key] for key in value) else table
    if isinstance(example, bool | int | float) and not isinstance(value, type(example)):
        given, kind = _as_tensor(value), type(example)
        number = is_number(given) or isinstance(given, bool | np.bool_)
        return kind(given) if number and kind(given) == given else value
    return value


def _handed_on(answer: Any, it: Exercise) -> Any:
    """A right answer, whose results get the reference's type if they have another."""
    if not it.is_function:
        return like(answer, it.reference)
    draws = it.draws(generator())
    if not draws:
        return answer
    example, result = it.reference(*draws[0]), answer(*draws[0])
    if like(result, example) is result:
        return answer

    @functools.wraps(answer)
    def converted(*arguments: Any, **keywords: Any) -> Any:
        return like(answer(*arguments, **keywords), example)

    return converted


def or_reference(answer: Any, name: str) -> Any:
    """``answer`` if it passes its check, else the reference; a line says so if it is used.

    An answer of another type than the reference (a tuple for a list, numpy for a tensor) is handed
    on in the reference's type, so that the cells below need not ask.
    """
    right = reference(name)
    outcome = EXERCISES[name].examine(answer)
    if outcome.passed:
        return _handed_on(answer, EXERCISES[name])
    state = "is still open" if outcome.state == "TODO" else "does not pass yet"
    print(f"{name} {state}: going on with the reference")
    return right
