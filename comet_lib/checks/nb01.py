"""Exercises of notebook 01, meet the teacher."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from comet_lib.checks.framework import Slip, compare, exercise, generator, normal, uniform

Tokenize = Callable[[str], list[str]]


def _whole(source: torch.Generator, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=source))


# --- Tokens per word -----------------------------------------------------------------------


def _tokens_per_word_reference(tokenize: Tokenize, texts: Sequence[str]) -> float:
    pieces = sum(len(tokenize(text)) for text in texts)
    words = sum(len(text.split()) for text in texts)
    return pieces / words


def _chopper(size: int) -> Tokenize:
    """A toy tokenizer: each word in pieces of at most ``size`` letters."""

    def tokenize(text: str) -> list[str]:
        return [w[i : i + size] for w in text.split() for i in range(0, len(w), size)]

    return tokenize


def _random_texts(source: torch.Generator) -> list[str]:
    """Texts from 1 to 15 words long, of a few words that come back."""
    letters = string.ascii_lowercase
    vocabulary = [
        "".join(letters[_whole(source, 0, 25)] for _ in range(length)) for length in range(1, 13)
    ]
    sizes = (1, 15, 2, _whole(source, 4, 12))
    return [" ".join(vocabulary[_whole(source, 0, 11)] for _ in range(size)) for size in sizes]


def _words(texts: Sequence[str]) -> list[str]:
    return [word for text in texts for word in text.split()]


def _pieces(tokenize: Tokenize, texts: Sequence[str]) -> list[str]:
    return [piece for text in texts for piece in tokenize(text)]


@exercise(
    "tokens_per_word",
    notebook="01",
    reference=_tokens_per_word_reference,
    look="Count all pieces of all texts, count all their words, and divide once.",
)
def tokens_per_word(answer: Callable[..., Any]) -> None:
    """answer(tokenize, texts) -> all pieces of the texts divided by all their words."""
    source = generator()
    draws = [(_chopper(size), _random_texts(source)) for size in (1, 2, 3, 4)]
    slips = [
        Slip(
            "these are words per token",
            lambda f, x: len(_words(x)) / len(_pieces(f, x)),
            "The pieces stand above the line, the words below it.",
        ),
        Slip(
            "this is the mean of each text's own ratio, in which a text of one word weighs as "
            "much as a text of fifteen",
            lambda f, x: sum(len(f(t)) / len(t.split()) for t in x) / len(x),
            "Sum the pieces and the words over all texts first, and divide once.",
        ),
        Slip(
            "these are tokens per character",
            lambda f, x: len(_pieces(f, x)) / sum(map(len, x)),
            "len(text) counts characters; text.split() gives the words.",
        ),
        Slip(
            "these are tokens per text",
            lambda f, x: len(_pieces(f, x)) / len(x),
            "Divide by the number of words, not by the number of texts.",
        ),
        Slip(
            "this is the number of tokens, not yet divided",
            lambda f, x: len(_pieces(f, x)),
            "Divide by the number of words.",
        ),
        Slip(
            "a piece that comes back is counted once",
            lambda f, x: len(set(_pieces(f, x))) / len(_words(x)),
            "Each piece costs a place in the sequence each time: no set() over the pieces.",
        ),
        Slip(
            "a word that comes back is counted once",
            lambda f, x: len(_pieces(f, x)) / len(set(_words(x))),
            "Count running words, with repetition: no set() over the words.",
        ),
        Slip(
            "two special tokens are added to each text",
            lambda f, x: (len(_pieces(f, x)) + 2 * len(x)) / len(_words(x)),
            "<s> and </s> belong to no word: count what tokenize(text) returns and no more.",
        ),
    ]
    compare(answer, draws, _tokens_per_word_reference, slips)
    spaced = [(f, [text.replace(" ", "  ") for text in texts]) for f, texts in draws]
    slips = [
        Slip(
            "where two spaces follow each other, an empty string is counted as a word",
            lambda f, x: len(_pieces(f, x)) / sum(len(t.split(" ")) for t in x),
            'Use text.split() without an argument rather than text.split(" ").',
        ),
    ]
    compare(answer, spaced, _tokens_per_word_reference, slips)


# --- Entropy of attention ------------------------------------------------------------------


def _entropy_variant(
    maps: Tensor,
    mask: Tensor,
    *,
    over: str = "valid",
    keys: str = "sum",
    axis: int = -1,
    base: float = 1.0,
    sign: int = 1,
) -> Tensor:
    """Entropy of each head with one part replaced by a usual slip; with none, the right value."""
    each = torch.special.entr(maps.double())  # (B, H, L, L)
    rows = each.sum(axis) if keys == "sum" else each.mean(axis)  # (B, H, L)
    valid = mask.double()[:, None, :]  # (B, 1, L)
    if over == "all":
        value = rows.mean((0, 2))
    elif over == "B L":
        value = (rows * valid).mean((0, 2))
    elif over == "sentences":
        value = ((rows * valid).sum(-1) / valid.sum(-1)).mean(0)
    elif over == "sum":
        value = (rows * valid).sum((0, 2))
    else:
        value = (rows * valid).sum((0, 2)) / valid.sum()
    return (sign * value / base).to(maps.dtype)


def _attention_entropy_reference(maps: Tensor, mask: Tensor) -> Tensor:
    return _entropy_variant(maps, mask)


def _random_maps(source: torch.Generator, heads: int, lengths: Sequence[int]) -> tuple[Any, ...]:
    """Maps (B, H, L, L) as a padded batch gives them, and its mask (B, L)."""
    longest = max(lengths)
    mask = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).long()
    scores = normal(source, len(lengths), heads, longest, longest, scale=1.5)
    return scores.masked_fill(mask[:, None, None, :] == 0, -torch.inf).softmax(-1), mask


@exercise(
    "attention_entropy",
    notebook="01",
    reference=_attention_entropy_reference,
    look="Sum -p log p over the keys, then average the rows of real tokens, for each head.",
)
def attention_entropy(answer: Callable[..., Any]) -> None:
    """answer(maps, mask) -> (H,) mean entropy in nats of the rows whose query is a real token.

    Maps (B, H, L, L), mask (B, L). Every valid row of the batch weighs the same.
    """
    source = generator()
    draws = [
        _random_maps(source, 3, (7, 3)),
        _random_maps(source, 2, (5, 9, 2)),
        _random_maps(source, 4, (4, 8)),
    ]
    v = _entropy_variant
    slips = [
        Slip(
            "rows of padded queries are counted",
            lambda m, k: v(m, k, over="all"),
            "A padded row sums to 1 as well, and means nothing: multiply the rows by the mask "
            "and divide by mask.sum().",
        ),
        Slip(
            "padded rows are set to zero and still counted below the line",
            lambda m, k: v(m, k, over="B L"),
            "Divide by the number of real tokens, mask.sum(), not by B times L.",
        ),
        Slip(
            "each sentence weighs the same, however short it is",
            lambda m, k: v(m, k, over="sentences"),
            "Sum over all valid rows of the batch first, and divide once by mask.sum().",
        ),
        Slip(
            "the rows are summed and not averaged",
            lambda m, k: v(m, k, over="sum"),
            "Divide by the number of real tokens, mask.sum().",
        ),
        Slip(
            "the keys are averaged and not summed",
            lambda m, k: v(m, k, keys="mean"),
            "An entropy is a sum over the keys: .sum(-1).",
        ),
        Slip(
            "the entropy runs over the queries",
            lambda m, k: v(m, k, axis=-2),
            "A row (last axis) is a distribution over keys and sums to 1; a column is none.",
        ),
        Slip(
            "these are bits, not nats",
            lambda m, k: v(m, k, base=torch.log(torch.tensor(2.0)).item()),
            "Use the natural logarithm, torch.log.",
        ),
        Slip(
            "the sign is wrong",
            lambda m, k: v(m, k, sign=-1),
            "log p is negative, so the entropy is minus the sum of p log p.",
        ),
    ]
    compare(answer, draws, _attention_entropy_reference, slips)


# --- Calibration ---------------------------------------------------------------------------


def _ece_variant(confidence: Tensor, correct: Tensor, bins: int, kind: str = "right") -> float:
    """Expected calibration error with one part replaced by a usual slip."""
    confidence, correct = confidence.double(), correct.double()
    at = (confidence * bins).long().clamp(max=bins - 1)
    if kind == "one lost":  # bins that stop before 1
        at = (confidence * bins).long()
    total = worst = signed = squared = weighted = 0.0
    gaps = []
    for index in range(bins):
        here = at == index
        if not here.any():
            continue
        sure = confidence[here].mean().item()
        if kind == "middle":
            sure = (index + 0.5) / bins
        gap = correct[here].mean().item() - sure
        share = here.double().mean().item()
        gaps.append(abs(gap))
        worst = max(worst, abs(gap))
        signed += share * gap
        squared += share * gap * gap
        weighted += share * abs(gap)
        total += abs(gap) * here.sum().item()
    return {
        "right": weighted,
        "one lost": weighted,
        "middle": weighted,
        "mean of bins": sum(gaps) / max(len(gaps), 1),
        "all bins": sum(gaps) / bins,
        "worst": worst,
        "signed": signed,
        "minus": -signed,
        "one bin": abs(signed),
        "squared": squared,
        "root": squared**0.5,
        "sum": total,
        "percent": 100 * weighted,
    }[kind]


def _calibration_error_reference(confidence: Tensor, correct: Tensor, bins: int = 10) -> float:
    return _ece_variant(confidence, correct, bins)


def _random_answers(source: torch.Generator, bins: int, too_sure: bool) -> tuple[Any, ...]:
    """Confidences away from the edges of the bins, one bin between empty, gaps of both signs.

    All in all the answers are too sure, or, as the mirror image, not sure enough.
    """
    confidences, correct = [], []
    for number, index in enumerate(i for i in range(bins // 3, bins) if i != bins // 2):
        shift, most = ((-0.4, 60), (0.2, 20))[number % 2]
        count = _whole(source, most - 12, most)
        inside = 0.05 + 0.6 * torch.rand(count, generator=source)
        confidences.append((index + inside) / bins)
        middle = (index + 0.35) / bins + shift * uniform(source, 0.7, 1.0)
        correct.append(torch.arange(count) < round(count * min(max(middle, 0.0), 1.0)))
    order = torch.randperm(sum(map(len, confidences)), generator=source)
    sure, right = torch.cat(confidences)[order], torch.cat(correct)[order]
    return (sure, right, bins) if too_sure else (1 - sure, ~right, bins)


@exercise(
    "calibration_error",
    notebook="01",
    reference=_calibration_error_reference,
    look="In each bin take |accuracy - mean confidence|, weighted by the bin's share of the rows.",
)
def calibration_error(answer: Callable[..., Any]) -> None:
    """answer(confidence, correct, bins) -> expected calibration error (Guo et al. 2017, eq. 3).

    Confidence (N,) from 0 to 1, correct (N,) bool; equally wide bins from 0 to 1.
    """
    source = generator()
    draws = [_random_answers(source, bins, bins != 10) for bins in (6, 10, 15)]

    def slip(kind: str) -> Callable[..., Any]:
        return lambda confidence, correct, bins: _ece_variant(confidence, correct, bins, kind)

    slips = [
        Slip(
            "every bin weighs the same",
            slip("mean of bins"),
            "A bin of three rows counts less than a bin of three hundred: weigh each gap by the "
            "bin's share of the rows.",
        ),
        Slip(
            "every bin weighs the same, the empty ones too",
            slip("all bins"),
            "Weigh each gap by the bin's share of the rows; an empty bin then weighs nothing.",
        ),
        Slip(
            "this is the gap of the worst bin (the maximum calibration error)",
            slip("worst"),
            "Average the gaps of the bins, weighted by their share of the rows.",
        ),
        Slip(
            "the gaps keep their signs, so bins that are too sure and bins that are too unsure "
            "cancel",
            slip("signed"),
            "Take the absolute value in each bin, before the sum.",
        ),
        Slip(
            "the gaps keep their signs, confidence minus accuracy, so they cancel",
            slip("minus"),
            "Take the absolute value in each bin, before the sum.",
        ),
        Slip(
            "the absolute value is taken once, at the end",
            slip("one bin"),
            "That is |accuracy - mean confidence| of all rows, as if there were one bin; take it "
            "bin by bin.",
        ),
        Slip(
            "the gaps are squared",
            slip("squared"),
            "Take the absolute value of each gap, not its square.",
        ),
        Slip(
            "this is the root of the mean squared gap",
            slip("root"),
            "Take the absolute value of each gap, without square and root.",
        ),
        Slip(
            "the middle of the bin stands in for the mean confidence",
            slip("middle"),
            "Average the confidences that fall into the bin.",
        ),
        Slip(
            "the gaps are weighted by counts and not by shares",
            slip("sum"),
            "Divide by the number of all rows.",
        ),
        Slip(
            "this is in percent",
            slip("percent"),
            "Return a fraction between 0 and 1.",
        ),
    ]
    compare(answer, draws, _calibration_error_reference, slips)
    certain = []
    for confidence, correct, bins in draws:
        ones = torch.ones(9)
        certain.append((torch.cat((confidence, ones)), torch.cat((correct, ones > 1)), bins))
    compare(
        answer,
        certain,
        _calibration_error_reference,
        [
            Slip(
                "rows with a confidence of exactly 1 fall out of the last bin",
                slip("one lost"),
                "int(confidence * bins) is `bins` there; hold it at bins - 1.",
            )
        ],
    )


# --- Confusion matrix ----------------------------------------------------------------------


def _confusion_reference(labels: Tensor, predictions: Tensor, classes: int = 3) -> Tensor:
    pairs = torch.bincount(labels * classes + predictions, minlength=classes * classes)
    return pairs.reshape(classes, classes)


@exercise(
    "confusion",
    notebook="01",
    reference=_confusion_reference,
    look="Entry [i, j] is the number of rows whose label is i and whose prediction is j.",
)
def confusion(answer: Callable[..., Any]) -> None:
    """answer(labels, predictions, classes) -> (C, C) counts, labels down, predictions across."""
    source = generator()
    draws = []
    for classes, absent in ((3, 0), (4, 1), (5, 0)):  # in the second the last class never comes
        labels = torch.randint(0, classes - absent, (60,), generator=source)
        predictions = torch.randint(0, classes - absent, (60,), generator=source)
        # One pair surely comes often and its mirror image never, so that no draw is symmetric.
        predictions[(labels == 1) & (predictions == 0)] = 1
        labels[:8], predictions[:8] = 0, 1
        draws.append((labels, predictions, classes))
    right = _confusion_reference

    def share(axis: int | None) -> Callable[..., Tensor]:
        def formula(y: Tensor, p: Tensor, c: int) -> Tensor:
            counts = right(y, p, c).double()
            total = counts.sum() if axis is None else counts.sum(axis, keepdim=True)
            return counts / total.clamp_min(1)

        return formula

    slips = [
        Slip(
            "labels and predictions are swapped",
            lambda y, p, c: right(p, y, c),
            "The label chooses the row (first index), the prediction the column.",
        ),
        Slip(
            "a pair that comes several times is counted once",
            lambda y, p, c: right(y, p, c).clamp(max=1),
            "matrix[labels, predictions] += 1 adds once for each distinct pair; use a loop, "
            "torch.bincount, or index_put_ with accumulate=True.",
        ),
        Slip(
            "each row is divided by its sum",
            share(1),
            "Return the counts; shares come later.",
        ),
        Slip(
            "each column is divided by its sum",
            share(0),
            "Return the counts; shares come later.",
        ),
        Slip(
            "the counts are divided by the number of all rows",
            share(None),
            "Return the counts; shares come later.",
        ),
        Slip(
            "the right answers are left out",
            lambda y, p, c: right(y, p, c) * (1 - torch.eye(c, dtype=torch.long)),
            "The diagonal, where label and prediction agree, belongs to the matrix.",
        ),
        Slip(
            "only the right answers are counted",
            lambda y, p, c: right(y, p, c) * torch.eye(c, dtype=torch.long),
            "Count every pair of label and prediction, also where they differ.",
        ),
    ]
    compare(answer, draws, _confusion_reference, slips)
