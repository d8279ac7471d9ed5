"""Exercises of notebook 09, capstone."""

# mypy: disable-error-code=has-type

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comet_lib.checks.draws import generator, numpy_generator, uniform, whole
from comet_lib.checks.framework import Answer, Draws, Misconception, Slip, array_of, exercise

Scores = Mapping[int, float]


def _seeds(source: torch.Generator) -> Draws:
    draws = []
    for both, mine, other in ((3, 2, 0), (4, 1, 2), (2, 0, 3)):
        seeds = torch.randperm(60, generator=source).tolist()
        first, second = seeds[: both + mine], seeds[:both] + seeds[20 : 20 + other]
        ours = {s: uniform(source, 60, 70) for s in sorted(first)}
        theirs = {s: uniform(source, 55, 65) for s in sorted(second, reverse=True)}
        ours[0], theirs[0] = uniform(source, 55, 60), uniform(source, 61, 65)
        theirs[first[0]] = 0.0  # a run that failed is a run
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
        "the median difference is taken": Slip(
            lambda a, b: float(np.median(_common(a, b))), "Average them."
        ),
        "seed 0 is left out": Slip(
            lambda a, b: float(np.mean([a[s] - b[s] for s in a if s and s in b])),
            "0 is a seed like any other: ask for `seed in theirs`, not for `if seed`.",
        ),
        "a score of 0 is taken for a missing one": Slip(
            lambda a, b: float(np.mean([a[s] - b[s] for s in a if b.get(s)])),
            "Ask for `seed in theirs`: a score can be 0.",
        ),
        "a seed that one side lacks counts as a score of 0 there": Slip(
            lambda a, b: float(np.mean([a.get(s, 0) - b.get(s, 0) for s in {**a, **b}])),
            "Leave it out.",
        ),
        "the sum is divided by the number of all of your seeds": Slip(
            lambda a, b: float(_common(a, b).sum() / len(a)), "Divide by the number in common."
        ),
        "the differences have lost their sign": Slip(
            lambda a, b: float(np.abs(_common(a, b)).mean()), "A loss is a loss: no abs."
        ),
        "a seed that they lack counts as a score of 0": Slip(
            lambda a, b: float(np.mean([a[s] - b.get(s, 0) for s in a])), "Leave it out."
        ),
        "the smallest seed of one side is compared with the smallest of the other, and so on": Slip(
            lambda a, b: float(np.mean([a[s] - b[t] for s, t in zip(sorted(a), sorted(b))])),  # noqa: B905
            "Look a seed up in both: ours[seed] - theirs[seed].",
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
    factors = steps.get(change, m - np.arange(m))
    out = p[order] / factors if change == "divided" else p[order] * factors
    if change == "step up":
        out = np.minimum.accumulate(out[::-1])[::-1]
    elif change != "falls":
        out = np.maximum.accumulate(out)
    if change != "no cap":
        out = np.minimum(out, 1)
    if change == "order twice":
        return out[order]
    return out if change == "sorted" else out[np.argsort(order)]


def _benjamini_hochberg(p: np.ndarray, change: str = "") -> np.ndarray:
    order, m = np.argsort(p), len(p)
    out = np.asarray(p)[order] * m / (np.arange(m) + 1)
    if not change:
        out = np.minimum(np.minimum.accumulate(out[::-1])[::-1], 1)
    return out[np.argsort(order)]


def _p_values(source: torch.Generator) -> Draws:
    rng = numpy_generator(source)
    draws: list[tuple[np.ndarray, ...]] = []
    while len(draws) < 4:
        p = rng.uniform(0.001, 0.4, 6)
        # A draw on which every slip shows, and no two look alike.
        found = [_holm(p), *(slip.formula(p) for slip in holm.slips.values())]
        if len({np.round(values, 6).tobytes() for values in found}) == len(found):
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
        "the p-values are divided, so they get smaller": Slip(
            partial(_holm, change="divided"), "More questions need larger p-values: multiply."
        ),
        "the factors are one too small: the smallest gets m - 1": Slip(
            partial(_holm, change="late"), "The smallest of m gets m, the largest gets 1."
        ),
        "this is Hochberg's step-up: a value is capped by the next larger one's": Slip(
            partial(_holm, change="step up"),
            "Holm goes up from the smallest: np.maximum.accumulate keeps the largest so far.",
        ),
        "this is Benjamini and Hochberg's correction, for the false discovery rate": Slip(
            _benjamini_hochberg,
            "It allows a share of false finds. Holm's factors are m, m - 1, ..., 1.",
        ),
        "each p-value is multiplied by m / rank, as for the false discovery rate": Slip(
            partial(_benjamini_hochberg, change="raw"),
            "Holm's factors are m, m - 1, ..., 1.",
        ),
        "the values are put into a wrong order: order says where each came from": Slip(
            partial(_holm, change="order twice"), "Write out[order] = adjusted."
        ),
        "the factors are dealt out in the order of the input: it was not sorted": Slip(
            lambda p: np.minimum(1, p * np.arange(len(p), 0, -1)), "np.argsort(p) comes first."
        ),
        "the largest so far is kept in the order of the input: it was not sorted": Slip(
            lambda p: np.minimum(1, np.maximum.accumulate(p * np.arange(len(p), 0, -1))),
            "np.argsort(p) comes first.",
        ),
        "1 - (1 - p) ** k stands where k * p is asked": Slip(
            lambda p: np.maximum.accumulate(1 - (1 - np.sort(p)) ** np.arange(len(p), 0, -1))[
                np.argsort(np.argsort(p))
            ],
            "That is Sidak's form, for independent tests. Holm multiplies.",
        ),
        "nothing is corrected": Slip(lambda p: p, "One of 20 true nulls falls below 0.05."),
    },
    edge_case="with equal p-values, 0, 1, or a single test",
    edges=lambda source: [
        (np.array(p),) for p in ([0.02, 0.02, 0.5], [0.0, 1.0, 0.3, 0.0], [0.04])
    ],
)
def holm(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values (m,) in the order of the input (m,)."""
    return _holm(p)


#: A variant for each way to choose (see the comments), four seeds each.
DEV = (
    (60, 66, 67, 74),  # best mean
    (60, 60, 60, 76),  # best seed
    (66, 66, 66, 67.6),  # best worst seed
    (58, 68, 68, 68),  # best median
    (65.7, 66.5, 66.5, 66.5),  # best mean minus deviation
    (75, 60, 60, 62),  # best first seed
    (55, 55, 56, 54),  # best on test
    (64, 65.5, 67.5, 68.2),  # best on dev and test together
    (50, 51, 52, 53),  # worst
)


TEST = np.array([63, 62, 61, 60, 62, 61, 71, 68, 60])[:, None]


def _variants(source: torch.Generator) -> Draws:
    rng = numpy_generator(source)
    draws = []
    for _ in range(3):
        dev = np.array(DEV) + rng.normal(0, 0.05, (9, 4))
        # The first seed is neither the best nor the worst one of its variant.
        test = np.sort(TEST + rng.normal(0, 0.8, (9, 4)))[:, [1, 3, 0, 2]]
        order = rng.permutation(9)
        draws.append((dev[order], test[order]))
    return draws


def _chosen(choose: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., Any]:
    """Reports the variant for which ``choose(dev, test)`` (variants,) is the largest."""
    return lambda d, t: ((best := int(choose(d, t).argmax())), t[best].mean())


def _variant_and_score(result: Any, *draw: np.ndarray) -> Tensor:
    pair = array_of(result, "the pair variant, score")
    if pair.shape != (2,):
        raise Misconception(
            f"your function returned {len(pair)} numbers, but the pair variant, score is wanted"
        )
    if pair[1] == round(pair[1]) and pair[0] > len(draw[0]):
        raise Misconception("the score comes first", "Return the variant's number, then its score.")
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
            _chosen(lambda d, t: d.max(1)), "Choose by the mean over the seeds."
        ),
        "the variant whose worst seed is best is chosen": Slip(
            _chosen(lambda d, t: d.min(1)), "Choose by the mean over the seeds."
        ),
        "the variant with the best median is chosen": Slip(
            _chosen(lambda d, t: np.median(d, 1)), "Choose by the mean over the seeds."
        ),
        "the variant with the best mean minus deviation is chosen": Slip(
            _chosen(lambda d, t: d.mean(1) - d.std(1)), "Choose by the mean itself."
        ),
        "only the first seed is looked at when the variant is chosen": Slip(
            _chosen(lambda d, t: d[:, 0]), "Choose by the mean over the seeds."
        ),
        "the variant is chosen on dev and test together": Slip(
            _chosen(lambda d, t: d.mean(1) + t.mean(1)), "Test must have no say in the choice."
        ),
        "the best single run is chosen, and its score on test reported": Slip(
            lambda d, t: (d.argmax() // d.shape[1], t.flatten()[d.argmax()]),
            "Average over the seeds first, on dev and on test.",
        ),
        "the score is the best of all runs on test": Slip(
            lambda d, t: (d.mean(1).argmax(), t.max()), "Report the chosen variant's mean."
        ),
        "the score is the mean over all variants": Slip(
            lambda d, t: (d.mean(1).argmax(), t.mean()), "Report the chosen variant's mean."
        ),
        "the score is that of the chosen variant's first seed": Slip(
            lambda d, t: (d.mean(1).argmax(), t[d.mean(1).argmax(), 0]), "Take the mean."
        ),
        "the mean runs over the variants, so a seed is chosen": Slip(
            lambda d, t: ((best := int(d.mean(0).argmax())), t[:, best].mean()),
            "Rows are variants: average over the seeds, .mean(1).",
        ),
        "the worst variant is chosen": Slip(_chosen(lambda d, t: -d.mean(1)), "argmax."),
        "the number counts from 1": Slip(
            lambda d, t: (d.mean(1).argmax() + 1, t[d.mean(1).argmax()].mean()),
            "Rows are numbered from 0.",
        ),
        "the score is the median over the seeds": Slip(
            lambda d, t: (d.mean(1).argmax(), np.median(t[d.mean(1).argmax()])), "Take the mean."
        ),
        "the score is the mean of dev and test": Slip(
            lambda d, t: (d.mean(1).argmax(), (t[d.mean(1).argmax()].mean() + d.mean(1).max()) / 2),
            "Report test only: dev was used to choose.",
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


def _keeps_all(answer: Answer) -> None:
    rng = numpy_generator(generator())
    day, other = (f"20{rng.integers(30, 60)}-0{m}-1{m}" for m in rng.permutation(range(1, 9))[:2])
    plans: list[dict[str, Any]] = [
        {"change": name, "margin": float(rng.integers(1, 9)) / 4} for name in ("a", "b", "c")
    ]
    plans[0]["seeds"] = 3
    part = {key: plans[0][key] for key in ("change", "margin")}  # is another plan
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "course" / "plans"
        there: dict[Path, dict[str, Any]] = {}
        days = (plans[0], day), (plans[1], day), (plans[0], other), (plans[2], other), (part, other)
        for plan, on in days:
            known = next((file for file, held in there.items() if held == plan), None)
            given = answer(plan, folder, on)
            if isinstance(given, str) and Path(given).is_file():
                raise Misconception(
                    "your function returned a str, but a Path is wanted", "folder / name is one."
                )
            if not isinstance(given, Path) or not given.is_file():
                raise Misconception(
                    f"your function returned a {type(given).__name__} that names no file",
                    "Return the path of the file that holds the plan.",
                )
            for file, held in there.items():
                if not file.is_file() or json.loads(file.read_text()) != held:
                    raise Misconception(
                        f"{file.name} held another plan, and is gone or overwritten",
                        "Count up until the name is free.",
                    )
            found = {file: file.read_text() for file in folder.rglob("*") if file not in there}
            if given.parent != folder:
                raise Misconception("the file is not in folder", "folder / f'plan-...'.")
            if known is not None:
                if found:
                    raise Misconception(
                        "a plan that is on record already was written once more",
                        "Look at every file that is there before you write.",
                    )
                if given != known:
                    raise Misconception("a file with another plan was returned for a known one")
                continue
            if given in there:
                raise Misconception(
                    f"{given.name} was returned for a plan that it does not hold",
                    "Only a file that holds exactly this plan counts.",
                )
            wanted = folder / f"plan-{on}-{1 + sum(f'-{on}-' in file.name for file in there)}.json"
            if [*found] != [wanted]:
                names = ", ".join(sorted(file.name for file in found)) or "nothing"
                raise Misconception(
                    f"{names} was written where {wanted.name} is wanted",
                    "plan-DAY-1.json on a new day, then plan-DAY-2.json.",
                )
            try:
                there[wanted] = json.loads(found[wanted])
            except ValueError:
                there[wanted] = {}
            if there[wanted] != plan:
                raise Misconception(
                    "the file does not hold the plan as JSON", "json.dumps(plan) is its text."
                )
        second = folder / f"plan-{day}-2.json"  # its neighbor is gone: counting files misleads
        (folder / f"plan-{day}-1.json").unlink()
        answer({"change": "d"}, folder, day)
        if json.loads(second.read_text()) != plans[1]:
            raise Misconception(
                f"{second.name} held another plan, and is overwritten: there was one file of that "
                "day, but number 2 was not free",
                "Do not count the files: count up until the name is free.",
            )


@exercise(look="Is it there? Return its file. Else take the next free name.", verify=_keeps_all)
def register(plan: Mapping[str, Any], folder: Path, day: str) -> Path:
    """The file plan-DAY-N.json in ``folder`` that holds the plan: an old one, or a new one."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("plan-*.json")):
        if json.loads(old.read_text()) == plan:
            return old
    number = 1
    while (folder / f"plan-{day}-{number}.json").exists():
        number += 1
    path = folder / f"plan-{day}-{number}.json"
    path.write_text(json.dumps(plan))
    return path


#: The right word for intervals of these bounds in margins, (least, most) each.
CASES = (
    ((0.05, 0.5), (0.6, 0.95), "better"),  # inside the margin, and certain
    ((0.05, 0.9), (1.1, 4.0), "better"),
    ((-0.95, -0.6), (-0.5, -0.05), "worse"),
    ((-4.0, -1.1), (-0.9, -0.05), "worse"),
    ((-0.95, -0.3), (0.3, 0.95), "equal"),
    ((-0.95, -0.8), (0.02, 0.1), "equal"),  # nearly all on one side
    ((-0.3, -0.02), (2.0, 4.0), "open"),  # the middle is above the margin
    ((-4.0, -2.0), (0.02, 0.3), "open"),
    ((-4.0, -2.0), (2.0, 4.0), "open"),
    ((-1.7, -1.1), (0.02, 0.2), "open"),  # narrower than two margins
    ((-0.2, -0.02), (1.1, 1.7), "open"),
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
    for lows, highs, right in CASES * 3:
        margin, low, high = (
            uniform(source, 0.3, 2.0),
            uniform(source, *lows),
            uniform(source, *highs),
        )
        got = _one_word(answer, low * margin, high * margin, margin)
        if got == right:
            continue
        if right == "open" and got == "equal" and high - low < 2:
            message = "an interval counts as equal because it is narrow, but it leaves the margin"
            look = "Both of its ends must lie between -margin and margin."
        elif right == "open" and got == "equal":
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
        shown = f"{low * margin:+.2f} to {high * margin:+.2f}, margin {margin:.2f}"
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


#: How far the two students stand above the floor.
GAINS = (
    (9.0, 4.0),
    (-2.0, 6.0),
    (6.0, -0.5),
    (2.5, -2.0),  # above by their better one only, not by their mean
    (0.3, 0.7),
    (-5.0, 0.2),
    (1.0, 0.5),  # no more than one point
)


MEANT = {"held": "came true", "refuted": "did not come true"}


def _each_conclusion(answer: Answer) -> None:
    source = generator()
    words = ("better", "worse", "equal")
    for found in (*words, "open"):
        for predicted in words:
            for seeds in (1, 2, 3, 10):
                for gains in GAINS:
                    floor = whole(source, 60, 200) / 4  # so that one point above it is exact
                    got = answer(found, predicted, seeds, [floor + gain for gain in gains], floor)
                    if not isinstance(got, str) or got not in ("held", "refuted", "undecided"):
                        what = repr(got) if isinstance(got, str) else f"a {type(got).__name__}"
                        raise Misconception(
                            f"your function returned {what}, which is none of the three words"
                        )
                    learned = max(gains) > 1
                    sure = found != "open" and seeds > 1 and learned
                    right = ("held" if found == predicted else "refuted") if sure else "undecided"
                    if got == right:
                        continue
                    case = f"(verdict {found}, predicted {predicted}, {seeds} seeds)"
                    if right != "undecided":
                        message = f"the prediction is called {got}, but it {MEANT[right]} {case}"
                        if got == "undecided" and min(gains) < 1:
                            message = (
                                "one student has left the floor, and that is enough to decide "
                                f"({gains[0]:+} and {gains[1]:+} points above it)"
                            )
                        elif got == "undecided" and found == "equal":
                            message = (
                                "equal is a finding: it can refute a prediction, or bear it out"
                            )
                        raise Misconception(message)
                    if found == "open":
                        message = f"an open result is called {got}: it decides nothing"
                        look = "Return undecided where found is open."
                    elif not learned:
                        message = "both students stand at the floor, and you conclude something"
                        if max(gains) == 1 and seeds > 1:
                            message = "exactly one point above the floor counts as having left it"
                        look = "Unless max(students) > floor + 1, nothing has been learned."
                    else:
                        message = "one seed decides, though the next may fall the other way"
                        look = "With fewer than two seeds: undecided."
                    raise Misconception(f"{message} {case}", look)


@exercise(
    look="The three cases of undecided first; then compare found with predicted.",
    verify=_each_conclusion,
)
def conclusion(found: str, predicted: str, seeds: int, students: list[float], floor: float) -> str:
    """ "held", "refuted" or "undecided"."""
    learned = max(students) > floor + 1
    if found == "open" or seeds < 2 or not learned:
        return "undecided"
    return "held" if found == predicted else "refuted"
