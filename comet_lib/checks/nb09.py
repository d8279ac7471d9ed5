"""Exercises of notebook 09, capstone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comet_lib.checks.framework import Misconception, Slip, compare, exercise, generator, uniform


def _random() -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**40, (), generator=generator())))


def _numbers(result: Any, wanted: str) -> Tensor:
    """An answer's list, tuple, array or tensor of numbers. Raises ``Misconception`` for others."""
    if isinstance(result, str | bytes | dict) or not hasattr(result, "__len__"):
        raise Misconception(
            f"your function returned a {type(result).__name__} where {wanted} is wanted"
        )
    return torch.tensor(np.asarray(result, dtype=float))


# --- Differences by seed -------------------------------------------------------------------


def _seed_reference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float:
    return float(np.mean([ours[seed] - theirs[seed] for seed in ours if seed in theirs]))


def _common(ours: Mapping[int, float], theirs: Mapping[int, float]) -> np.ndarray:
    return np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def _by_position(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float:
    pairs = zip(ours.values(), theirs.values(), strict=False)
    return float(np.mean([a - b for a, b in pairs]))


@exercise(
    "seed_difference",
    notebook="09",
    reference=_seed_reference,
    look="Go through the seeds that stand in both, subtract seed by seed, take the mean.",
)
def seed_difference(answer: Callable[..., Any]) -> None:
    """answer(ours, theirs) -> points; both map a seed to a score, some seeds are in one alone."""
    source, draws = generator(), []
    for both, mine, other in ((3, 2, 0), (4, 1, 2), (2, 0, 3)):
        seeds = torch.randperm(60, generator=source).tolist()
        first, second = seeds[: both + mine], seeds[:both] + seeds[20 : 20 + other]
        ours = {s: uniform(source, 60, 70) for s in sorted(first)}
        theirs = {s: uniform(source, 55, 65) for s in sorted(second, reverse=True)}
        draws.append((ours, theirs))
    slips = [
        Slip(
            "all seeds of each side are averaged, also those that the other side lacks",
            lambda a, b: float(np.mean([*a.values()]) - np.mean([*b.values()])),
            "A seed that ran on one side alone compares luck: leave it out.",
        ),
        Slip(
            "the first of one side is compared with the first of the other, whatever their seeds",
            _by_position,
            "Look a seed up in both: ours[seed] - theirs[seed].",
        ),
        Slip(
            "the best seed of each side is compared",
            lambda a, b: max(a.values()) - max(b.values()),
            "Whoever runs more seeds would win: the best of many is always higher.",
        ),
        Slip(
            "the best difference is reported",
            lambda a, b: float(_common(a, b).max()),
            "Take the mean; one lucky seed is no result.",
        ),
        Slip(
            "the sign is turned round",
            lambda a, b: -_seed_reference(a, b),
            "Ours minus theirs, so that a positive number speaks for us.",
        ),
        Slip(
            "the differences are added up, not averaged",
            lambda a, b: float(_common(a, b).sum()),
            "Divide by the number of seeds in common.",
        ),
    ]
    compare(answer, draws, _seed_reference, slips)


# --- Many comparisons ----------------------------------------------------------------------


def _holm(p: np.ndarray, change: str = "") -> Tensor:
    """Adjusted p-values (m,), with one usual slip in them."""
    p = np.asarray(p, dtype=float)
    m, order = len(p), np.argsort(p, kind="stable")
    steps = {"bonferroni": np.full(m, m), "turned": np.arange(m) + 1, "late": m - np.arange(m) - 1}
    made = p[order] * steps.get(change, m - np.arange(m))
    if change != "falls":
        made = np.maximum.accumulate(made)
    if change != "no cap":
        made = np.minimum(made, 1)
    if change == "sorted":
        return torch.tensor(made)
    out = np.empty(m)
    out[order] = made
    return torch.tensor(out)


def _holm_reference(p: np.ndarray) -> np.ndarray:
    return _holm(p).numpy()


@exercise(
    "holm",
    notebook="09",
    reference=_holm_reference,
    look="Sort; times m, m - 1, ..., 1; never falling; at most 1; back to the order of the input.",
)
def holm(answer: Callable[..., Any]) -> None:
    """answer(p) -> adjusted p-values (m,) in the order of the input; p is a (m,) array."""
    rng = _random()
    draws: list[tuple[np.ndarray]] = []
    while len(draws) < 4:
        p = np.round(rng.uniform(0.001, 0.4, 6), 4)
        variants = [_holm(p, c) for c in ("", "falls", "no cap", "sorted", "bonferroni", "late")]
        # A draw on which every slip shows, so that each is told apart.
        if all(not torch.allclose(variants[0], other) for other in variants[1:]):
            draws.append((p,))
    slips = [
        Slip(
            "every p-value is multiplied by m: this is Bonferroni",
            lambda p: _holm(p, "bonferroni"),
            "That is safe too, but loses power. The second smallest needs m - 1 only, and so on.",
        ),
        Slip(
            "an adjusted value is smaller than that of a smaller p-value",
            lambda p: _holm(p, "falls"),
            "Going up the sorted values, keep the largest so far: np.maximum.accumulate.",
        ),
        Slip(
            "a probability is above 1",
            lambda p: _holm(p, "no cap"),
            "Cut at 1: np.minimum.",
        ),
        Slip(
            "the values come back sorted",
            lambda p: _holm(p, "sorted"),
            "Put each back where its p-value stood: out[order] = adjusted.",
        ),
        Slip(
            "the smallest p-value gets the smallest factor",
            lambda p: _holm(p, "turned"),
            "The smallest is the most likely to be luck: it gets m.",
        ),
        Slip(
            "the factors are one too small: the smallest gets m - 1",
            lambda p: _holm(p, "late"),
            "The smallest of m gets m, the largest gets 1.",
        ),
        Slip(
            "nothing is corrected",
            lambda p: torch.tensor(np.asarray(p, dtype=float)),
            "Of twenty true nulls, one is expected below 0.05.",
        ),
    ]
    compare(lambda p: _numbers(answer(p), "an array with one value for each"), draws, _holm, slips)


# --- Choose on dev, report test ------------------------------------------------------------


def _report(dev: np.ndarray, test: np.ndarray) -> tuple[int, float]:
    best = int(dev.mean(1).argmax())
    return best, float(test[best].mean())


def _as_pair(function: Callable[..., Any]) -> Callable[..., Tensor]:
    return lambda *arguments: torch.tensor(function(*arguments), dtype=torch.float64)


@exercise(
    "report",
    notebook="09",
    reference=_report,
    look="Choose by the mean of dev over the seeds; report the mean of test of that variant.",
)
def report(answer: Callable[..., Any]) -> None:
    """answer(dev, test) -> (variant, score); dev and test are (variants, seeds) scores."""
    rng = _random()
    draws: list[tuple[np.ndarray, np.ndarray]] = []
    while len(draws) < 4:
        dev, test = rng.normal(65, 2, (5, 3)), rng.normal(63, 2, (5, 3))
        chosen = {int(dev.mean(1).argmax()), int(test.mean(1).argmax()),
                  int(dev.max(1).argmax()), int(test.max(1).argmax())}  # fmt: skip
        if len(chosen) == 4:
            draws.append((dev, test))

    def pair(dev: np.ndarray, test: np.ndarray) -> Tensor:
        got = _numbers(answer(dev, test), "the pair variant, score")
        if got.shape != (2,):
            raise Misconception(
                f"your function returned {len(got)} numbers where the pair variant, score is wanted"
            )
        return got

    slips = [
        Slip(
            "the variant is chosen on test",
            _as_pair(lambda d, t: (t.mean(1).argmax(), t.mean(1).max())),
            "The best of many on test is best partly by luck on test: its score is too high. "
            "Choose on dev.",
        ),
        Slip(
            "the score is that of dev",
            _as_pair(lambda d, t: (d.mean(1).argmax(), d.mean(1).max())),
            "The winner on dev was chosen for its dev score, which is too high for that reason.",
        ),
        Slip(
            "the variant with the best single seed is chosen",
            _as_pair(lambda d, t: (d.max(1).argmax(), t[d.max(1).argmax()].mean())),
            "Choose by the mean over the seeds.",
        ),
        Slip(
            "the best seed's test score is reported",
            _as_pair(lambda d, t: (d.mean(1).argmax(), t[d.mean(1).argmax()].max())),
            "Report the mean over the seeds: nobody knows beforehand which will be the lucky one.",
        ),
        Slip(
            "the test score is that of the best variant on test, not of the chosen one",
            _as_pair(lambda d, t: (d.mean(1).argmax(), t.mean(1).max())),
            "Report the variant you chose, whatever another one did.",
        ),
    ]
    compare(pair, draws, _as_pair(_report), slips)


# --- A verdict -----------------------------------------------------------------------------


def _verdict(low: float, high: float, margin: float) -> str:
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "equal" if -margin < low and high < margin else "open"


#: What the interval is, relative to the margin 1; the right answer; what a wrong one shows.
_CASES = (
    ((0.4, 2.5), "better"),
    ((-2.5, -0.4), "worse"),
    ((-0.5, 0.4), "equal"),
    ((-1.6, 0.6), "open"),
    ((-0.4, 2.2), "open"),
    ((-3.0, 3.0), "open"),
    ((0.2, 0.7), "better"),
    ((-0.7, -0.2), "worse"),
)


@exercise(
    "verdict",
    notebook="09",
    reference=_verdict,
    look="better: the interval lies above 0; worse: below; equal: inside the margin; else open.",
)
def verdict(answer: Callable[..., Any]) -> None:
    """answer(low, high, margin) -> "better", "worse", "equal" or "open"."""
    source = generator()
    for (low, high), right in _CASES * 3:
        margin = uniform(source, 0.3, 2.0)
        got = answer(low * margin, high * margin, margin)
        if not isinstance(got, str):
            raise Misconception(
                f"your function returned a {type(got).__name__} where a word is wanted",
                'Return "better", "worse", "equal" or "open".',
            )
        if got not in ("better", "worse", "equal", "open"):
            raise Misconception(
                f"your function returned {got!r}, which is none of the four words",
                'Return "better", "worse", "equal" or "open".',
            )
        if got == right:
            continue
        shown = f"{low * margin:+.1f} to {high * margin:+.1f}, margin {margin:.1f}"
        if right == "open" and got == "equal":
            raise Misconception(
                f"no difference found is taken for no difference ({shown})",
                "An interval as wide as this one holds differences that would matter: say open. "
                "Equal needs the whole interval inside the margin.",
            )
        if right == "open":
            raise Misconception(
                f"a difference is claimed though the interval holds 0 ({shown})",
                "The middle of the interval is not the result; both signs are still possible.",
            )
        if right == "equal":
            raise Misconception(
                f"the margin is not used: this interval lies inside it ({shown})",
                "All that the data allow is smaller than what you said would matter: equal.",
            )
        if got in ("equal", "open"):
            raise Misconception(
                f"a difference that is small but sure is not seen ({shown})",
                "Ask for the sign first: an interval without 0 has one, however small.",
            )
        raise Misconception(
            f"better and worse are mixed up ({shown})", "Positive speaks for us: ours minus theirs."
        )
