"""Exercises of notebook 09, capstone."""

# mypy: disable-error-code=has-type

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comet_lib.checks.draws import generator, numpy_generator, uniform
from comet_lib.checks.framework import Answer, Draws, Misconception, Slip, array_of, exercise

Scores = Mapping[int, float]


def _seeds(source: torch.Generator) -> Draws:
    draws = []
    for both, mine, other in ((3, 2, 0), (4, 1, 2), (2, 0, 3)):
        seeds = torch.randperm(60, generator=source).tolist()
        first, second = seeds[: both + mine], seeds[:both] + seeds[20 : 20 + other]
        ours = {s: uniform(source, 60, 70) for s in sorted(first)}
        theirs = {s: uniform(source, 55, 65) for s in sorted(second, reverse=True)}
        draws.append((ours, theirs))
    return draws


def _common(ours: Scores, theirs: Scores) -> np.ndarray:
    return np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


@exercise(
    look="Go through the seeds that are in both, subtract seed by seed, take the mean.",
    draws=_seeds,
    slips={
        "all seeds of each side are averaged, also those that the other side lacks": Slip(
            lambda a, b: float(np.mean([*a.values()]) - np.mean([*b.values()])),
            "A seed that ran on one side only compares luck: leave it out.",
        ),
        "the first of one side is compared with the first of the other, whatever their seeds": Slip(
            lambda a, b: float(
                np.mean([x - y for x, y in zip(a.values(), b.values(), strict=False)])
            ),
            "Look a seed up in both: ours[seed] - theirs[seed].",
        ),
        "the best seed of each side is compared": Slip(
            lambda a, b: max(a.values()) - max(b.values()),
            "Whoever runs more seeds would win: the best of many is always higher.",
        ),
        "the best difference is reported": Slip(
            lambda a, b: float(_common(a, b).max()), "Take the mean; one lucky seed is no result."
        ),
        "the sign is reversed": Slip(
            lambda a, b: float(-_common(a, b).mean()), "Take ours minus theirs."
        ),
        "the differences are added up, not averaged": Slip(
            lambda a, b: float(_common(a, b).sum()), "Divide by the number of seeds in common."
        ),
    },
)
def seed_difference(ours: Scores, theirs: Scores) -> float:
    """Mean difference in points; both map a seed to a score, some seeds are only in one."""
    return float(_common(ours, theirs).mean())


def _holm(p: np.ndarray, change: str = "") -> np.ndarray:
    """Adjusted p-values (m,), with one common slip."""
    p = np.asarray(p, dtype=float)
    m, order = len(p), np.argsort(p, kind="stable")
    steps = {"bonferroni": np.full(m, m), "reversed": np.arange(m) + 1, "late": np.arange(m)[::-1]}
    out = p[order] * steps.get(change, m - np.arange(m))
    if change != "falls":
        out = np.maximum.accumulate(out)
    if change != "no cap":
        out = np.minimum(out, 1)
    return out if change == "sorted" else out[np.argsort(order)]


def _p_values(source: torch.Generator) -> Draws:
    rng = numpy_generator(source)
    draws: list[tuple[np.ndarray, ...]] = []
    while len(draws) < 4:
        p = rng.uniform(0.001, 0.4, 6)
        slips = ("falls", "no cap", "sorted", "bonferroni", "late")
        # A draw on which every slip shows, so that each is told apart.
        if not any(np.allclose(_holm(p), _holm(p, slip)) for slip in slips):
            draws.append((p,))
    return draws


def _numbers(wanted: str) -> Any:
    """For ``read``: a list, tuple, array or tensor of numbers."""
    return lambda result, *draw: torch.tensor(array_of(result, wanted).astype(float))


@exercise(
    look="Sort; times m, m - 1, ..., 1; never falling; at most 1; back to the order of the input.",
    draws=_p_values,
    read=_numbers("an array with one value for each"),
    slips={
        "every p-value is multiplied by m: this is Bonferroni": Slip(
            partial(_holm, change="bonferroni"),
            "That is safe too, but loses power. The second smallest needs only m - 1, and so on.",
        ),
        "an adjusted value is smaller than that of a smaller p-value": Slip(
            partial(_holm, change="falls"), "Keep the largest so far: np.maximum.accumulate."
        ),
        "a probability is above 1": Slip(partial(_holm, change="no cap"), "Cut at 1: np.minimum."),
        "the values come back sorted": Slip(
            partial(_holm, change="sorted"), "Restore the order: out[order] = adjusted."
        ),
        "the smallest p-value gets the smallest factor": Slip(
            partial(_holm, change="reversed"), "The smallest p-value gets the factor m."
        ),
        "the factors are one too small: the smallest gets m - 1": Slip(
            partial(_holm, change="late"), "The smallest of m gets m, the largest gets 1."
        ),
        "nothing is corrected": Slip(lambda p: p, "One of 20 true nulls falls below 0.05."),
    },
)
def holm(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values (m,) in the order of the input (m,)."""
    return _holm(p)


def _variants(source: torch.Generator) -> Draws:
    rng = numpy_generator(source)
    draws: list[tuple[np.ndarray, ...]] = []
    while len(draws) < 4:
        dev, test = rng.normal(65, 2, (5, 3)), rng.normal(63, 2, (5, 3))
        tables = (dev.mean(1), test.mean(1), dev.max(1), test.max(1))
        if len({int(table.argmax()) for table in tables}) == 4:  # each slip chooses another
            draws.append((dev, test))
    return draws


def _variant_and_score(result: Any, *draw: np.ndarray) -> Tensor:
    pair = array_of(result, "the pair variant, score")
    if pair.shape != (2,):
        raise Misconception(
            f"your function returned {len(pair)} numbers, but the pair variant, score is wanted"
        )
    return torch.tensor(pair.astype(float))


@exercise(
    look="Choose by the mean of dev over the seeds; report the mean of test of that variant.",
    draws=_variants,
    read=_variant_and_score,
    slips={
        "the variant is chosen on test": Slip(
            lambda d, t: (t.mean(1).argmax(), t.mean(1).max()),
            "Choose on dev: the best of many on test owes its score partly to luck on test.",
        ),
        "the score is that of dev": Slip(
            lambda d, t: (d.mean(1).argmax(), d.mean(1).max()),
            "The winner on dev was chosen for its dev score, which is too high for that reason.",
        ),
        "the variant with the best single seed is chosen": Slip(
            lambda d, t: (d.max(1).argmax(), t[d.max(1).argmax()].mean()), "Choose by the mean."
        ),
        "the best seed's test score is reported": Slip(
            lambda d, t: (d.mean(1).argmax(), t[d.mean(1).argmax()].max()),
            "Report the mean over the seeds: nobody knows beforehand which will be the lucky one.",
        ),
        "the test score is that of the best variant on test, not of the chosen one": Slip(
            lambda d, t: (d.mean(1).argmax(), t.mean(1).max()), "Report the variant you chose."
        ),
    },
)
def report(dev: np.ndarray, test: np.ndarray) -> tuple[int, float]:
    """variant and score, from dev and test scores (variants, seeds)."""
    best = int(dev.mean(1).argmax())
    return best, float(test[best].mean())


#: Intervals relative to the margin 1, and the right answer.
CASES = (
    ((0.4, 2.5), "better"),
    ((-2.5, -0.4), "worse"),
    ((-0.5, 0.4), "equal"),
    ((-1.6, 0.6), "open"),
    ((-0.4, 2.2), "open"),
    ((-3.0, 3.0), "open"),
    ((0.2, 0.7), "better"),
    ((-0.7, -0.2), "worse"),
)


def _one_word(answer: Answer, low: float, high: float, margin: float) -> str:
    got = answer(low, high, margin)
    what = None
    if not isinstance(got, str):
        what = f"a {type(got).__name__}, but a word is wanted"
    elif got not in ("better", "worse", "equal", "open"):
        what = f"{got!r}, which is none of the four words"
    if what:
        look = 'Return "better", "worse", "equal" or "open".'
        raise Misconception(f"your function returned {what}", look)
    return got


def _each_case(answer: Answer) -> None:
    source = generator()
    for (low, high), right in CASES * 3:
        margin = uniform(source, 0.3, 2.0)
        got = _one_word(answer, low * margin, high * margin, margin)
        if got == right:
            continue
        if right == "open" and got == "equal":
            message = "no difference found is taken for no difference"
            look = (
                "An interval as wide as this one holds differences that would matter: say open. "
                "Equal needs the whole interval inside the margin."
            )
        elif right == "open":
            message = "a difference is claimed though the interval holds 0"
            look = "The middle of the interval is not the result; both signs are still possible."
        elif right == "equal":
            message = "the margin is not used: this interval lies inside it"
            look = "All that the data allow is smaller than what you said would matter: equal."
        elif got in ("equal", "open"):
            message = "a difference that is small but certain is not seen"
            look = "Ask for the sign first: an interval without 0 has one, however small."
        else:
            message = "better and worse are mixed up"
            look = "Positive speaks for us: ours minus theirs."
        shown = f"{low * margin:+.1f} to {high * margin:+.1f}, margin {margin:.1f}"
        raise Misconception(f"{message} ({shown})", look)


@exercise(
    look="better: the interval lies above 0; worse: below; equal: inside the margin; else open.",
    verify=_each_case,
)
def verdict(low: float, high: float, margin: float) -> str:
    """ "better", "worse", "equal" or "open"."""
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "equal" if -margin < low and high < margin else "open"
