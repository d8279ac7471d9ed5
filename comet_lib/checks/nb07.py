"""Exercises of notebook 07, measure honestly."""

# mypy: disable-error-code=has-type

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from comet_lib.checks.draws import generator, numpy_generator, uniform
from comet_lib.checks.framework import (
    Answer,
    Draws,
    Misconception,
    Slip,
    array_of,
    exercise,
    is_number,
    refuse_nan,
    value_of,
)
from comet_lib.data import cleaned, normalize

CLASSES = 3


def _guess(rng: np.random.Generator, labels: np.ndarray, right: float) -> np.ndarray:
    """(N,) predictions that agree with the labels about as often as ``right`` says."""
    keep = rng.random(len(labels)) < right
    return np.where(keep, labels, rng.choice(CLASSES, len(labels), p=(0.2, 0.2, 0.6)))


def _labeled(source: torch.Generator) -> Draws:
    rng, draws = numpy_generator(source), []
    for size, right in ((60, 0.5), (90, 0.7), (150, 0.6), (200, 0.4)):
        labels = rng.choice(CLASSES, size, p=(0.55, 0.3, 0.15))
        labels[:CLASSES] = range(CLASSES)
        predictions = _guess(rng, labels, right)
        predictions[:CLASSES] = range(CLASSES)  # every label is guessed at least once
        draws.append((labels, predictions))
    return draws


def _by_label(labels: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, ...]:
    """Hits, true and guessed counts (3,), as floats."""
    both = np.bincount(CLASSES * labels + predictions, minlength=CLASSES**2)
    counts = both.reshape(CLASSES, CLASSES).astype(float)
    return np.diagonal(counts), counts.sum(1), counts.sum(0)


def _average_f1(labels: np.ndarray, predictions: np.ndarray, weights: str = "true") -> float:
    """F1 in percent, averaged over the labels with the given weights."""
    hit, true, guessed = _by_label(labels, predictions)
    f1 = 2 * hit / np.maximum(true + guessed, 1)
    share = {"true": true, "guessed": guessed, "equal": np.ones(CLASSES)}[weights]
    return float(100 * (f1 * share).sum() / share.sum())


def _weighted_precision(labels: np.ndarray, predictions: np.ndarray) -> float:
    hit, true, guessed = _by_label(labels, predictions)
    return float(100 * (hit / np.maximum(guessed, 1) * true).sum() / true.sum())


def _accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    return float(100 * (labels == predictions).mean())


def _f1_of_averages(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Weighted recall is the accuracy."""
    p, r = _weighted_precision(labels, predictions), _accuracy(labels, predictions)
    return 2 * p * r / (p + r)


def _missing_labels(answer: Answer, draws: Draws) -> None:
    rng = numpy_generator(generator())
    labels = rng.permutation(np.repeat(np.arange(CLASSES), 12))
    lazy = np.where(_guess(rng, labels, 0.6) == 2, 1, labels % 2)  # no label 2
    for name, case in {
        "a label that is never guessed": (labels, lazy),
        "a label that is never true": (lazy, labels),
    }.items():
        with np.errstate(all="ignore"):
            got = refuse_nan(
                answer(*case),
                f"{name} gives 0/0, and the result is not a number",
                "Such a label's F1 is 0: use 2 * hits / max(true + guessed, 1).",
            )
        if not torch.allclose(value_of(got), value_of(_average_f1(*case)), rtol=1e-4):
            raise Misconception(
                f"the value is wrong when there is {name}",
                "Such a label's F1 is 0, and it keeps its weight.",
            )


@exercise(
    look="F1 of each label, times that label's share of the true labels, summed, in percent.",
    draws=_labeled,
    slips={
        "this is the accuracy (and so is the weighted mean of the recalls)": Slip(
            _accuracy, "For each label take F1, 2 * hits / (true + guessed)."
        ),
        "every label counts the same: this is macro F1": Slip(
            partial(_average_f1, weights="equal"), "Weight labels by their share of the true ones."
        ),
        "the weights come from the predictions": Slip(
            partial(_average_f1, weights="guessed"),
            "Count how often a label is true: a model must not choose its own weights.",
        ),
        "this is a fraction, but percent is wanted": Slip(
            lambda y, g: _average_f1(y, g) / 100, "Multiply by 100."
        ),
        "this is the weighted precision, without the recall": Slip(
            _weighted_precision, "Precision by itself forgives every missed tweet."
        ),
        "precision and recall are averaged first and F1 is taken of the averages": Slip(
            _f1_of_averages, "Take F1 of each label first, then average."
        ),
        "the factor 2 of F1 is missing": Slip(
            lambda y, g: _average_f1(y, g) / 2, "A perfect model must reach 100."
        ),
    },
    extra=_missing_labels,
)
def weighted_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Weighted F1 in percent; both (N,) integer arrays, 0 to 2."""
    return _average_f1(labels, predictions)


def _tongues(source: torch.Generator) -> Draws:
    """Languages of other sizes, in which the model is right more or less often."""
    rng, draws = numpy_generator(source), []
    for sizes in ((40, 25, 10), (15, 60, 30, 20)):
        languages = np.repeat(["hau", "amh", "swa", "yor"][: len(sizes)], sizes)
        labels = rng.choice(CLASSES, len(languages), p=(0.55, 0.3, 0.15))
        right = np.repeat(rng.permutation(np.linspace(0.3, 0.9, len(sizes))), sizes)
        guess = np.where(rng.random(len(labels)) < right, labels, (labels + 1) % CLASSES)
        order = rng.permutation(len(labels))
        draws.append((labels[order], guess[order], languages[order]))
    return draws


def _mean_of(
    labels: np.ndarray,
    predictions: np.ndarray,
    languages: np.ndarray,
    *,
    score: Answer = _average_f1,
    by_size: bool = False,
) -> float:
    codes, counts = np.unique(languages, return_counts=True)
    scores = [score(labels[languages == c], predictions[languages == c]) for c in codes]
    return float(np.average(scores, weights=counts if by_size else None))


@exercise(
    look="weighted_f1 of each language's tweets, then the plain mean of these scores.",
    draws=_tongues,
    slips={
        "all tweets were pooled and scored together, whatever their language": Slip(
            lambda y, g, languages: _average_f1(y, g),
            "Score each language by itself first: here = languages == code.",
        ),
        "a language with more tweets counts for more": Slip(
            partial(_mean_of, by_size=True), "The plain mean gives each language the same weight."
        ),
        "the sum is divided by five, however many languages there are": Slip(
            lambda y, g, codes: _mean_of(y, g, codes) * len(set(codes)) / 5, "Use len(scores)."
        ),
        "this is the mean of the accuracies": Slip(
            partial(_mean_of, score=_accuracy), "Score with weighted_f1."
        ),
        "this is the mean of the macro F1s": Slip(
            partial(_mean_of, score=partial(_average_f1, weights="equal")),
            "Score with weighted_f1.",
        ),
        "labels and predictions changed places": Slip(
            lambda y, g, languages: _mean_of(g, y, languages), "The true labels come first."
        ),
    },
)
def mean_f1(labels: np.ndarray, predictions: np.ndarray, languages: np.ndarray) -> float:
    """The plain mean over languages of weighted F1, in percent.

    All (N,); ``languages`` holds the code of each tweet's language.
    """
    return _mean_of(labels, predictions, languages)


def _timed(
    calls: Mapping[str, Answer],
    warm_up: int,
    repeats: int,
    clock: Answer,
    *,
    drop: bool = True,
    warm: bool = True,
    total: bool = False,
) -> dict[str, list[float]]:
    """The times of the calls, with one common slip."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = clock()
    for turn in range(repeats + (warm_up if warm else 0)):
        if turn == warm_up and drop:
            times, began = {name: [] for name in calls}, clock()
        for name, call in calls.items():
            start = began if total else clock()
            call()
            times[name].append(clock() - start)
    return times


class _Watch:
    """A clock that only calls move on, each by another time, and a log of who was called."""

    def __init__(self, times: np.ndarray) -> None:
        self.times, self.now = times, 100.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def call(self, name: str) -> None:
        if len(self.log) < len(self.times):
            self.now += self.times[len(self.log)]
        self.log.append(name)


def _one_by_one(
    calls: Mapping[str, Answer], warm_up: int, repeats: int, clock: Answer
) -> dict[str, list[float]]:
    by_name = [_timed({name: call}, warm_up, repeats, clock) for name, call in calls.items()]
    return {name: times for each in by_name for name, times in each.items()}


_TIME_SLIPS: dict[str, tuple[Answer, str]] = {
    "the warm-up calls are in the result": (
        partial(_timed, drop=False),
        "Call warm_up times before you read the clock.",
    ),
    "there is no warm-up": (
        partial(_timed, warm=False, drop=False),
        "The first calls are slow: make warm_up calls of each that nobody times.",
    ),
    "the clock is never set back: each time includes those before it": (
        partial(_timed, total=True),
        "Read the clock right before each call, and right after it.",
    ),
    "one model is finished before the other begins": (
        _one_by_one,
        "In turns: the loop over the models goes inside the loop over the repeats.",
    ),
    "the times are negative": (
        lambda *a: {name: [-t for t in ts] for name, ts in _timed(*a).items()},
        "The end minus the start.",
    ),
    "these are milliseconds": (
        lambda *a: {name: [1000 * t for t in ts] for name, ts in _timed(*a).items()},
        "The clock counts seconds: leave it.",
    ),
}


def _same_times(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    pairs = [(np.asarray(one[name]), np.asarray(other[name])) for name in one]
    return all(a.shape == b.shape and np.allclose(a, b) for a, b in pairs)


def _times_calls(answer: Answer) -> None:
    rng = numpy_generator(generator())
    for names, warm_up, repeats in (("ab", 2, 5), ("abc", 3, 4), ("ba", 0, 3)):
        size, warm = len(names) * (warm_up + repeats), len(names) * warm_up
        times = rng.uniform(0.1, 1, size)

        def run(function: Answer) -> tuple[Any, list[str]]:
            watch = _Watch(times)  # noqa: B023
            calls = {name: partial(watch.call, name) for name in names}  # noqa: B023
            return function(calls, warm_up, repeats, watch.clock), watch.log  # noqa: B023

        result, log = run(answer)
        if not isinstance(result, Mapping) or set(result) != set(names):
            raise Misconception(
                f"your function returned a {type(result).__name__}, but a dict from "
                f"{', '.join(names)} to times is wanted",
                "Begin with times = {name: [] for name in calls}.",
            )
        if any(is_number(part) for part in result.values()):
            raise Misconception(
                "there is one number where the time of each call is wanted",
                "Return all times; the median is taken from them below.",
            )
        got = {n: array_of(result[n], "a list of times").astype(float) for n in names}
        later = [(n, t) for n, t in zip(log[warm:], times[warm:], strict=False)]
        right = {n: [t for m, t in later if m == n] for n in names}
        turns = [set(log[at : at + len(names)]) for at in range(warm, len(log), len(names))]
        in_turns = all(turn == set(names) for turn in turns) and len(log) == size
        if in_turns and _same_times(got, right):
            continue
        for message, (slip, look) in _TIME_SLIPS.items():
            if _same_times(got, run(slip)[0]):
                raise Misconception(message, look)
        if any(got[n].shape != (repeats,) for n in names):
            raise Misconception(f"one time for each of the {repeats} repeats is wanted")
        if all(np.allclose(got[n], 0) for n in names):
            raise Misconception("all times are 0", "call() itself, between the two readings.")
        if len(log) != size:
            raise Misconception(
                f"the models were called {len(log)} times, where {size} calls are wanted: "
                f"{warm_up} to warm up and {repeats} to time, of each"
            )
        raise Misconception("the times are not those of the calls after the warm-up, in turns")


@exercise(
    look="warm_up calls of each; then for each repeat and each model: clock, call, clock.",
    verify=_times_calls,
)
def call_times(
    calls: Mapping[str, Callable[[], Any]],
    warm_up: int,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    """Name -> seconds of each of ``repeats`` calls, in turns, after ``warm_up`` calls of each.

    ``clock()`` is the time now, in seconds.
    """
    return _timed(calls, warm_up, repeats, clock)


def _small_fit(texts: np.ndarray, labels: np.ndarray) -> Answer:
    """A model whose answers tell what it was fitted on; the texts are numbers."""
    lesson = sum(int(text) * (label + 1) for text, label in zip(texts, labels, strict=True))

    def ask(texts: np.ndarray) -> np.ndarray:
        scores = np.sin(np.outer([int(text) for text in texts], [1, 2, 3]) + 0.7 * lesson)
        return np.exp(scores) / np.exp(scores).sum(1, keepdims=True)

    return ask


def _several(source: torch.Generator) -> Draws:
    rng, draws = numpy_generator(source), []
    for codes in (["hau", "ibo"], ["kin", "swa", "yor"]):
        languages = rng.permutation(np.repeat(codes, [7, 4, 5][: len(codes)]))
        texts = rng.permutation(90)[: len(languages)].astype(str).astype(object)
        draws.append((_small_fit, texts, rng.integers(0, CLASSES, len(texts)), languages))
    return draws


def _asked_back(result: Any, fit: Answer, texts: np.ndarray, labels: Any, codes: Any) -> Tensor:
    """The answers to some of the texts, in another order."""
    if not callable(result):
        raise Misconception(
            f"your function returned a {type(result).__name__}, but a function is wanted",
            "Define ask(texts, languages) inside, and return ask, without parentheses.",
        )
    answers = result(texts[::-2], codes[::-2])
    return torch.tensor(array_of(answers, "ask's table (N, 3)").astype(float))


def _each(
    fit: Answer,
    texts: np.ndarray,
    labels: np.ndarray,
    languages: np.ndarray,
    *,
    lesson: Callable[[np.ndarray], np.ndarray] = lambda here: here,
    model: Callable[[str, list[str]], str] = lambda code, codes: code,
    in_order: bool = True,
) -> Answer:
    """One model a language, with one common slip."""
    codes, fitted = list(np.unique(languages)), {}
    for code in codes:
        here = lesson(languages == code)
        fitted[code] = fit(texts[here], labels[here])

    def ask(texts: np.ndarray, languages: np.ndarray) -> np.ndarray:
        asked = [np.flatnonzero(languages == code) for code in codes]
        out = [fitted[model(c, codes)](texts[at]) for c, at in zip(codes, asked, strict=True)]
        order = np.argsort(np.concatenate(asked)) if in_order else slice(None)
        return np.concatenate(out)[order]

    return ask


@exercise(
    look="A dict {code: fit(its texts, its labels)}; in ask: out[here] = fitted[code](...).",
    draws=_several,
    read=_asked_back,
    slips={
        "every model was fitted on all languages": Slip(
            partial(_each, lesson=lambda here: here | True), "texts[here] and labels[here]."
        ),
        "the last language's model answers for all": Slip(
            partial(_each, model=lambda code, codes: codes[-1]),
            "Ask fitted[code], each tweet's own. (A lambda in a loop sees the last turn's names.)",
        ),
        "the first language's model answers for all": Slip(
            partial(_each, model=lambda code, codes: codes[0]), "Ask fitted[code]."
        ),
        "the answers stand language after language, not in the order of the tweets": Slip(
            partial(_each, in_order=False), "Put them back: out[here] = ..."
        ),
    },
)
def one_per_language(
    fit: Callable[[np.ndarray, np.ndarray], Answer],
    texts: np.ndarray,
    labels: np.ndarray,
    languages: np.ndarray,
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Fit one model for each language; returns ``ask(texts, languages)`` -> (N, 3).

    ``fit(texts, labels)`` returns a function from n texts to (n, 3) probabilities.
    """
    return _each(fit, texts, labels, languages)


def _word(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("abdeghiklmnorstuwyẹọ\u0300\u0301"), int(rng.integers(4, 9))))


def _tweets(rng: np.random.Generator, count: int) -> list[str]:
    texts = (" ".join(_word(rng) for _ in range(int(rng.integers(3, 7)))) for _ in range(count))
    return [normalize("N" + text + "\u0301.") for text in texts]


def _ascii(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("abcdefgh"), 6))


def _disguises(text: str, rng: np.random.Generator) -> dict[str, tuple[str, str, bool]]:
    """What the two texts differ in: one, the other, and whether they are loose copies."""
    words = text.split()
    return {
        "in capital and small letters": (text, text.swapcase(), True),
        "in their punctuation": (text, text.rstrip(".") + "!?", True),
        "in an apostrophe or a hyphen": (f"{text} n'oma", f"{text} n-oma", True),
        "in their spaces": (text, text.replace(" ", "   "), True),
        "in a space where a sign stood": (text, text.replace(" ", "-"), True),
        "in an emoji": (text, f"{text} \U0001f602", True),
        "in a mention": (text, f"@user {text}", True),
        "in a link": (text, f"{text} https://t.co/{_ascii(rng)}", True),
        "in the Unicode spelling of a mark": (text, unicodedata.normalize("NFD", text), True),
        "in a letter": (text, text.replace(words[1], words[1] + "k"), False),
        "in a tone mark": (f"{text} ọkọ\u0301", f"{text} ọkọ\u0300", False),
        "in a number": (f"{text} 19", f"{text} 20", False),
        "in a raised number (NFKC makes ² a 2)": (f"{text} x²", f"{text} x2", False),
        "in the word of a hashtag": (f"{text} #oma", text, False),
        "in whether a mark is there at all": (f"{text} ọwọ", f"{text} owo", False),
        "in the order of their words": (text, " ".join([*words[1:], words[0]]), False),
        "in everything, but have no letters": ("\U0001f602 !", "\U0001f44d", False),
    }


def _keys(answer: Answer) -> None:
    rng = numpy_generator(generator())
    for text in _tweets(rng, 4):
        for what, (one, other, alike) in _disguises(text, rng).items():
            keys = [answer(x) for x in (one, other)]
            if not all(isinstance(key, str) for key in keys):
                raise Misconception(
                    f"your function returned a {type(keys[0]).__name__}, but a str is wanted"
                )
            if (keys[0] == keys[1]) != alike:
                kind = "differ" if alike else "are equal"
                raise Misconception(
                    f"the keys of two texts {kind} that differ only {what}"
                    if alike
                    else f"the keys of two texts {kind} though these differ {what}",
                    f"Compare loose_key({one!r}) and loose_key({other!r}).",
                )


@exercise(
    look="Lower case, NFC, no mentions and links; then only letters (L), marks (M), numbers (N).",
    verify=_keys,
)
def loose_key(text: str) -> str:
    """A key that is equal for loose copies: texts with the same letters, marks and numbers.

    Case, punctuation, emoji, spaces, mentions, links and the Unicode spelling of a mark do not
    count. A text without a letter or number is its own key.
    """
    return cleaned(text).replace(" ", "")


def _with_twins(source: torch.Generator) -> Draws:
    """Twins among the tweets; a model is the rows it was fitted on, and each row has a worth."""
    rng, draws = numpy_generator(source), []
    for size, twins, common in ((30, 6, 9), (24, 4, 15)):
        every, worth = np.arange(size), rng.uniform(1, 9, size)
        is_twin = rng.permutation(every < twins)

        def score(model: np.ndarray, worth: np.ndarray = worth) -> float:
            return float(worth[model].sum() + worth[model].max())

        draws.append((is_twin, common, lambda rows, every=every: np.sort(every[rows]), score))
    return draws


def _two_scores(result: Any, *draw: Any) -> Tensor:
    if is_number(result) or len(scores := array_of(result, "the two scores")) != 2:
        raise Misconception(
            "your function returned no pair, but two scores are wanted",
            "Return both: with the twins in train, and without.",
        )
    return torch.tensor(scores.astype(float))


def _twin_fits(
    is_twin: np.ndarray,
    common: int,
    fit: Answer,
    score: Answer,
    *,
    instead: Callable[[np.ndarray, int, int], np.ndarray] = lambda others, c, n: others[: c + n],
    shared: bool = True,
) -> list[Any]:
    """The two scores, with one common slip."""
    twins, others = np.flatnonzero(is_twin), np.flatnonzero(~is_twin)
    present = np.concatenate([twins, others[:common]]) if shared else twins
    return [score(fit(rows)) for rows in (present, instead(others, common, len(twins)))]


@exercise(
    look="Twins and `common` others; then as many tweets, all others. Fit and score both.",
    draws=_with_twins,
    read=_two_scores,
    slips={
        "the second train is smaller: nothing stands in for the twins": Slip(
            partial(_twin_fits, instead=lambda others, common, n: others[:common]),
            "Then it differs in two things. Take as many further tweets as there are twins.",
        ),
        "the second train holds all other tweets, so it is larger": Slip(
            partial(_twin_fits, instead=lambda others, common, n: others),
            "Both trains need the same size: common + the number of twins.",
        ),
        "some tweets are in the second train twice": Slip(
            partial(_twin_fits, instead=lambda others, c, n: np.r_[others[:c], others[:n]]),
            "The tweets instead of the twins come after the first `common`.",
        ),
        "the first train holds nothing but the twins": Slip(
            partial(_twin_fits, shared=False), "Add the first `common` of the others."
        ),
        "the score without twins comes first": Slip(
            lambda *draw: _twin_fits(*draw)[::-1], "Return [with the twins, without]."
        ),
    },
)
def twin_scores(is_twin: np.ndarray, common: int, fit: Answer, score: Answer) -> list[Any]:
    """[score with the twins in train, score with other tweets instead], on equally many tweets.

    ``is_twin`` (N,) bool marks the training tweets with a copy in dev. ``fit(rows)`` gives a model,
    ``score`` its score on the leaked dev rows. The first ``common`` of the other tweets are in both
    trains; the next ones stand in for the twins.
    """
    return _twin_fits(is_twin, common, fit, score)


def _skewed(source: torch.Generator) -> Draws:
    """Bootstrap scores to which a normal curve does not fit."""
    rng = numpy_generator(source)
    return [
        (uniform(source, 50, 70) - uniform(source, 2, 5) * rng.exponential(size=size),)
        for size in (1000, 2000, 4000)
    ]


def _low_high(result: Any, scores: np.ndarray) -> Tensor:
    if is_number(result):
        raise Misconception(
            "two numbers are wanted, the low end and the high end", "Return the pair: low, high."
        )
    ends = array_of(result, "the pair low, high")
    if ends.shape != (2,):
        raise Misconception(
            f"your function returned shape {ends.shape}, but the pair low, high is wanted"
        )
    return torch.tensor(ends.astype(float))


def _percentiles(result: Any, scores: np.ndarray) -> Tensor:
    """The pair; a percentile by any of the usual definitions counts as the reference's.

    They differ in where they stand between two neighbors of the sorted scores.
    """
    ends, inside = _low_high(result, scores), np.sort(scores)
    at = np.array([0.025, 0.975]) * len(scores)
    below, above = inside[np.floor(at).astype(int) - 1], inside[np.ceil(at).astype(int)]
    if ((below - 1e-4 <= ends.numpy()) & (ends.numpy() <= above + 1e-4)).all():
        return torch.tensor(np.percentile(scores, (2.5, 97.5)))
    return ends


def _normal_interval(scores: np.ndarray, scale: float = 1.0) -> tuple[float, float]:
    middle, width = scores.mean(), 1.96 * scores.std() * scale
    return middle - width, middle + width


@exercise(
    look="Cut 2.5 % of the sorted scores off at each end: np.percentile(scores, (2.5, 97.5)).",
    draws=_skewed,
    read=_percentiles,
    slips={
        "5 % are cut off at each end, which leaves a 90 % interval": Slip(
            partial(np.percentile, q=(5, 95)), "95 % stay inside, so 2.5 % go at each end."
        ),
        "the percentiles are read as fractions of one percent": Slip(
            partial(np.percentile, q=(0.025, 0.975)),
            "np.percentile counts from 0 to 100; np.quantile counts from 0 to 1.",
        ),
        "these are the smallest and the largest score": Slip(
            lambda s: (s.min(), s.max()),
            "More draws would make that interval wider and wider; cut off 2.5 % at each end.",
        ),
        "the standard deviation is divided by the root of the number of draws": Slip(
            lambda s: _normal_interval(s, len(s) ** -0.5),
            "An interval must not shrink with more draws: the spread is the uncertainty.",
        ),
        "this is the mean plus and minus 1.96 standard deviations": Slip(
            _normal_interval, "Percentiles need no normal curve."
        ),
        "the high end comes first": Slip(
            partial(np.percentile, q=(97.5, 2.5)), "Return low, high."
        ),
        "these are the quartiles, which hold half of the scores": Slip(
            partial(np.percentile, q=(25, 75)), "95 % of the scores must lie inside."
        ),
    },
)
def bootstrap_interval(scores: np.ndarray) -> tuple[float, float]:
    """low and high: the 95 % percentile interval of (draws,) resampled scores."""
    low, high = np.percentile(scores, (2.5, 97.5))
    return float(low), float(high)


def _two_models(source: torch.Generator) -> Draws:
    rng, draws = numpy_generator(source), []
    for sizes, right in (((40,), (0.7, 0.4)), ((20, 50), (0.4, 0.7))):  # each side wins once
        rows = np.split(rng.permutation(sum(sizes)), np.cumsum(sizes)[:-1])  # by language
        labels = rng.choice(CLASSES, sum(sizes), p=(0.5, 0.3, 0.2))
        pair = [_guess(rng, labels, share) for share in right]
        draws.append((labels, *pair, [rng.choice(own, (12, len(own))) for own in rows]))
    return draws


def _one_per_draw(result: Any, *draw: np.ndarray) -> Tensor:
    if is_number(result):
        raise Misconception(
            "there is one number where one for each draw is wanted",
            "Return all the differences: the interval comes from their spread.",
        )
    return torch.tensor(array_of(result, "an array with one difference a draw").astype(float))


def _differences(
    labels: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    drawn: list[np.ndarray],
    score: Answer = _average_f1,
    together: Callable[..., np.ndarray] = np.mean,
) -> np.ndarray:
    each = [[score(labels[r], ours[r]) - score(labels[r], theirs[r]) for r in o] for o in drawn]
    return together(each, axis=0)


def _a_model_equals_itself(answer: Answer, draws: Draws) -> None:
    labels, ours, _, drawn = draws[0]
    if answer(labels, ours, ours, drawn).abs().max() > 1e-6:
        raise Misconception(
            "a model differs from itself: the two are scored on different tweets",
            "That is the unpaired comparison. Pick r once and use it for both models.",
        )


@exercise(
    look="In each language, for each draw: score both on those tweets, subtract. Then the mean.",
    draws=_two_models,
    read=_one_per_draw,
    slips={
        "the sign is reversed": Slip(
            lambda y, a, b, drawn: _differences(y, b, a, drawn),
            "Ours minus theirs, so that a positive difference speaks for us.",
        ),
        "the sign of the differences is dropped": Slip(
            lambda *draw: abs(_differences(*draw)), "A draw that theirs wins must count."
        ),
        "these are fractions, but points are wanted": Slip(
            lambda *draw: _differences(*draw) / 100, "Use weighted F1 in percent."
        ),
        "the labels are not resampled with the predictions": Slip(
            lambda y, a, b, drawn: np.mean(
                [
                    [_average_f1(y[: len(r)], a[r]) - _average_f1(y[: len(r)], b[r]) for r in rows]
                    for rows in drawn
                ],
                axis=0,
            ),
            "Row 7 of the draw must be one tweet: pick labels[r] with ours[r] and theirs[r].",
        ),
        "every draw gives the same difference, that of all tweets": Slip(
            lambda y, a, b, drawn: [_average_f1(y, a) - _average_f1(y, b)] * len(drawn[0]),
            "Use the rows: each draw scores another set of tweets.",
        ),
        "the languages are added up, not averaged": Slip(
            partial(_differences, together=np.sum), "Divide by their number: np.mean(..., axis=0)."
        ),
        "all languages are pooled and scored together": Slip(
            lambda y, a, b, drawn: _differences(y, a, b, [np.concatenate(drawn, axis=1)]),
            "Score each language's rows by themselves, then take the mean.",
        ),
        "these are differences of accuracy": Slip(
            partial(_differences, score=_accuracy), "Score with weighted_f1."
        ),
    },
    otherwise=_a_model_equals_itself,
    seconds=20.0,
)
def paired_difference(
    labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray, drawn: list[np.ndarray]
) -> np.ndarray:
    """(draws,) differences of weighted F1, in points, the mean over the languages.

    ``drawn`` holds for each language (draws, n) row numbers, those that each draw picked; both
    models are scored on the same ones.
    """
    return _differences(labels, ours, theirs, drawn)


def _swaps(source: torch.Generator) -> Draws:
    """Scores of predictions, and who swaps: no one and everyone too, which give the same size."""
    rng, draws = numpy_generator(source), []
    for size, right in ((30, (0.6, 0.5)), (40, (0.5, 0.65)), (25, (0.7, 0.4))):
        labels = rng.choice(CLASSES, size, p=(0.5, 0.3, 0.2))
        pair = [_guess(rng, labels, share) for share in right]
        pair.sort(key=partial(_average_f1, labels), reverse=right[0] > right[1])
        swaps = rng.random((60, size)) < 0.5
        swaps[:2] = [[False], [True]]
        draws.append((partial(_average_f1, labels), *pair, swaps))
    return draws


def _permuted(
    score: Answer,
    ours: np.ndarray,
    theirs: np.ndarray,
    swaps: np.ndarray,
    *,
    one: int = 1,
    as_large: Callable[[np.ndarray, float], np.ndarray] = lambda d, found: abs(d) >= abs(found),
    second: bool = True,
) -> float:
    """The p-value, with one common slip."""
    found = score(ours) - score(theirs)
    moved = [
        score(np.where(s, theirs, ours)) - score(np.where(s, ours, theirs) if second else theirs)
        for s in swaps
    ]
    return float((as_large(np.array(moved), found).sum() + one) / (len(swaps) + one))


@exercise(
    look="The share of the swaps, and of the real difference itself, that are as large either way.",
    draws=_swaps,
    slips={
        "the answers as they are do not count as one of the draws, so p can be 0": Slip(
            partial(_permuted, one=0), "(1 + how many are as large) / (1 + the number of draws)."
        ),
        "the test is one-sided: a difference as large the other way does not count": Slip(
            partial(_permuted, as_large=lambda d, found: d >= found), "Compare abs() with abs()."
        ),
        "the real difference keeps its sign, so that a negative one is beaten by every draw": Slip(
            partial(_permuted, as_large=lambda d, found: abs(d) >= found), "Take abs() of it too."
        ),
        "a difference that is exactly as large does not count": Slip(
            partial(_permuted, as_large=lambda d, found: abs(d) > abs(found)), "Use >=."
        ),
        "these are the differences that are smaller": Slip(
            partial(_permuted, as_large=lambda d, found: abs(d) <= abs(found)),
            "A small p must mean that chance seldom does as well.",
        ),
        "this is the share of draws below zero, which swapping keeps near one half": Slip(
            partial(_permuted, as_large=lambda d, found: d <= 0),
            "Compare with the real difference.",
        ),
        "only our answers are swapped, theirs stay": Slip(
            partial(_permuted, second=False), "Where one takes the other's answer, both must."
        ),
        "this is in percent": Slip(lambda *draw: 100 * _permuted(*draw), "Return a share, 0 to 1."),
    },
    apart=True,
    seconds=20.0,
)
def permutation_p(
    score: Callable[[np.ndarray], float], ours: np.ndarray, theirs: np.ndarray, swaps: np.ndarray
) -> float:
    """p of the difference score(ours) - score(theirs), if it did not matter whose answer is whose.

    ``ours`` and ``theirs`` (N,) are predictions; where ``swaps`` (draws, N) bool is true, the two
    models exchange their answers. Two-sided; the answers as they are count as one draw more.
    """
    return _permuted(score, ours, theirs, swaps)


def _by_seed(source: torch.Generator) -> Draws:
    rng = numpy_generator(source)
    # Far from 0, where 1.96 and the normal quantile's other digits give the same interval.
    return [(rng.normal(uniform(source, 6, 9), 1.0, size=n),) for n in (3, 4, 6)]


def _t_interval(
    differences: np.ndarray,
    *,
    quantile: Callable[[int], float] = lambda n: float(stats.t.ppf(0.975, n - 1)),
    ddof: int = 1,
    share: Callable[[int], float] = np.sqrt,
) -> tuple[float, float]:
    """The interval, with one common slip."""
    n = len(differences)
    wide = quantile(n) * np.std(differences, ddof=ddof) / share(n)
    return float(np.mean(differences) - wide), float(np.mean(differences) + wide)


@exercise(
    look="mean +- t * s / sqrt(n), with s = std(ddof=1) and t = scipy.stats.t.ppf(0.975, n - 1).",
    draws=_by_seed,
    read=_low_high,
    slips={
        "1.96 is taken for t, as if there were many seeds": Slip(
            partial(_t_interval, quantile=lambda n: 1.96),
            "With 3 seeds t is 4.3: so few say little about their own spread.",
        ),
        "t has one degree of freedom too many": Slip(
            partial(_t_interval, quantile=lambda n: float(stats.t.ppf(0.975, n))),
            "The mean uses up one: n - 1 are left.",
        ),
        "5 % are cut off at each end, which leaves a 90 % interval": Slip(
            partial(_t_interval, quantile=lambda n: float(stats.t.ppf(0.95, n - 1))),
            "95 % stay inside, so 2.5 % go at each end: 0.975.",
        ),
        "the spread is divided by n, not by n - 1": Slip(
            partial(_t_interval, ddof=0), "np.std needs ddof=1 for a sample."
        ),
        "this is where one more seed may fall, not where the mean of the recipe lies": Slip(
            partial(_t_interval, share=lambda n: 1), "Divide the standard deviation by sqrt(n)."
        ),
        "the standard deviation is divided by n": Slip(
            partial(_t_interval, share=lambda n: n), "Divide it by sqrt(n)."
        ),
        "these are the smallest and the largest difference": Slip(
            lambda d: (float(min(d)), float(max(d))),
            "Three draws leave out the truth one time in four.",
        ),
        "this is the bootstrap's percentile of a handful of numbers": Slip(
            partial(np.percentile, q=(2.5, 97.5)), "Use t: a few seeds cannot be resampled."
        ),
        "the high end comes first": Slip(lambda d: _t_interval(d)[::-1], "Return low, high."),
    },
)
def seed_interval(differences: np.ndarray) -> tuple[float, float]:
    """low and high: Student's 95 % interval of the mean of (n,) differences, one for each seed."""
    return _t_interval(differences)
