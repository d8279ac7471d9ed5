"""Exercises of notebook 01, meet the teacher."""

# mypy: disable-error-code=has-type

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from comet_lib.checks.draws import attention_maps, mask_of, normal, uniform, whole
from comet_lib.checks.framework import Answer, Draws, Misconception, Slip, exercise


def _two_splits(source: torch.Generator) -> Draws:
    """Counts of train's labels whose mode is neither their mean nor their median, and another
    favorite on dev."""
    draws = []
    for counts, other, rows in (((10, 6, 6), 2, 20), ((20, 3, 12), 1, 35), ((3, 4, 20), 0, 26)):
        train = torch.arange(3).repeat_interleave(torch.tensor(counts))
        dev = torch.randint(0, 3, (rows,), generator=source)
        labels = torch.cat([dev, torch.full((rows,), other)])
        draws.append((train[torch.randperm(len(train), generator=source)], labels))
    return draws


def _always(label: Tensor, labels: Tensor) -> float:
    return 100 * float((labels == label).double().mean())


@exercise(
    look="Find the most frequent label of train; how often is it the label of the other rows?",
    draws=_two_splits,
    apart=True,
    slips={
        "the label is chosen on the rows that are scored": Slip(
            lambda t, y: _always(y.mode().values, y), "That peeks: choose it on train_labels."
        ),
        "this is the label's share of the training rows": Slip(
            lambda t, y: _always(t.mode().values, t), "Score it on `labels`."
        ),
        "this is a fraction, but percent is wanted": Slip(
            lambda t, y: _always(t.mode().values, y) / 100, "Multiply by 100."
        ),
        "this is the label, not how often it is right": Slip(
            lambda t, y: int(t.mode().values), "Compare it with `labels`, and take the mean."
        ),
        "the label is neutral, whatever is frequent": Slip(
            lambda t, y: _always(torch.tensor(1), y), "Find it in train_labels."
        ),
        "the label is the mean of the labels, rounded": Slip(
            lambda t, y: _always(t.double().mean().round(), y), "Labels are names: count them."
        ),
        "this is a coin with three sides": Slip(
            lambda t, y: 100 / 3, "Always give the most frequent label of train."
        ),
        "this is how often it is wrong": Slip(
            lambda t, y: 100 - _always(t.mode().values, y), "Count where it is right."
        ),
        "this is a count, not a percentage": Slip(
            lambda t, y: float((y == t.mode().values).sum()), "Divide by the number of labels."
        ),
        "the largest label is given, not the most frequent": Slip(
            lambda t, y: _always(t.max(), y), "Labels are names: count them."
        ),
        "the label in the middle (the median) is given": Slip(
            lambda t, y: _always(t.median(), y), "Labels are names: count them."
        ),
        "the largest count is taken for a label": Slip(
            lambda t, y: _always(t.bincount().max(), y), "Ask where the count is: argmax."
        ),
        "the least frequent label is given": Slip(
            lambda t, y: _always(t.bincount().argmin(), y), "Take the most frequent one."
        ),
    },
)
def always_most_common(train_labels: Tensor, labels: Tensor) -> float:
    """Percent of labels (N,) that equal the most frequent one of train_labels (M,)."""
    return _always(train_labels.bincount().argmax(), labels)


def _words(texts: Sequence[str]) -> list[str]:
    return [word for text in texts for word in text.split()]


def _by_name(result: Any, names: Collection[str]) -> Tensor:
    if not isinstance(result, Mapping):
        raise Misconception(
            f"your function returned a {type(result).__name__}, but a dictionary is wanted",
            f"Its keys are {', '.join(names)}.",
        )
    if set(result) != set(names):
        raise Misconception(
            f"your function returned a dict with the keys {', '.join(map(str, result)) or 'none'}",
            f"They must be {', '.join(names)}.",
        )
    return torch.tensor([float(result[name]) for name in names])


def _written(source: torch.Generator) -> Draws:
    """Texts with marks at their start, inside, several times, or not at all."""
    patterns = {
        "a capital letter": re.compile("[A-Z]"),
        "a number": re.compile("[0-9]+"),
        "a mention": re.compile(r"@\w"),
    }
    words = ["Aba", "x7", "@me", "plain", "77", "so", "B"]
    draws = []
    for count in (4, 7, 11):
        texts = [
            " ".join(words[whole(source, 0, 6)] for _ in range(whole(source, 1, 5)))
            for _ in range(count)
        ]
        texts += ["so B and C", "1 of 2 and 3", "", "@me and @you", "B", "77"]
        draws.append((texts, patterns))
    return draws


def _marked(
    texts: Sequence[str],
    patterns: Mapping[str, re.Pattern[str]],
    *,
    found: Callable[[re.Pattern[str], str], Any] = lambda pattern, text: bool(pattern.search(text)),
    of: Callable[[Sequence[str]], float] = len,
    scale: float = 100.0,
) -> dict[str, float]:
    """The shares with some parts replaced by slips; with none, the right ones."""
    return {
        name: scale * sum(found(pattern, text) for text in texts) / of(texts)
        for name, pattern in patterns.items()
    }


@exercise(
    look="For each pattern: in what percentage of the texts does it occur, once or more often?",
    draws=_written,
    read=lambda result, texts, patterns: _by_name(result, patterns),
    slips={
        "this is a fraction, but percent is wanted": Slip(
            partial(_marked, scale=1), "Multiply by 100."
        ),
        "this is a count, not a percentage": Slip(
            partial(_marked, scale=1, of=lambda texts: 1), "Divide by the number of texts."
        ),
        "a text with two marks counts twice": Slip(
            partial(_marked, found=lambda p, t: len(p.findall(t))),
            "Ask whether the mark occurs: bool(pattern.search(text)).",
        ),
        "only the start of each text is looked at": Slip(
            partial(_marked, found=lambda p, t: bool(p.match(t))), "pattern.search looks anywhere."
        ),
        "a text counts only if the mark is all it has": Slip(
            partial(_marked, found=lambda p, t: bool(p.fullmatch(t))),
            "pattern.search looks anywhere.",
        ),
        "these are the texts without the mark": Slip(
            partial(_marked, found=lambda p, t: not p.search(t)), "Count the texts that have it."
        ),
        "the texts are divided by all words": Slip(
            partial(_marked, of=lambda texts: len(_words(texts))), "Divide by the number of texts."
        ),
        "the percentages are rounded": Slip(
            lambda x, ps: {name: float(round(share)) for name, share in _marked(x, ps).items()},
            "Return all digits; round when you print.",
        ),
        "the count of one pattern goes on with the next": Slip(
            lambda x, ps: dict(zip(ps, accumulate(_marked(x, ps).values()), strict=True)),
            "Start at 0 for each pattern.",
        ),
        "empty texts are left out of the division": Slip(
            partial(_marked, of=lambda texts: sum(map(bool, texts))), "Divide by len(texts)."
        ),
    },
)
def marked(texts: Sequence[str], patterns: Mapping[str, re.Pattern[str]]) -> dict[str, float]:
    """Name of each pattern -> percent of the texts in which the pattern occurs."""
    return _marked(texts, patterns)


Tokenize = Callable[[str], list[str]]


def _chopper(size: int) -> Tokenize:
    """A toy tokenizer: each word in pieces of at most ``size`` signs, each capital by itself."""

    def tokenize(text: str) -> list[str]:
        return re.findall(rf"[A-Z]|[^A-Z\s]{{1,{size}}}", text)

    return tokenize


def _texts(source: torch.Generator, space: str = " ") -> list[str]:
    """Texts from 1 to 15 words long, of a few words that come back, written as tweets are."""
    letters = string.ascii_lowercase
    vocabulary = [
        "".join(letters[whole(source, 0, 25)] for _ in range(length)) for length in range(1, 13)
    ]
    for place, signs in enumerate(("{}!", "@{}", "{}-x", "n'{}", "{}, 7", "😊{}")):
        word = vocabulary[2 * place].replace(" ", "")
        vocabulary[2 * place] = signs.replace(", ", ",").format(word.capitalize())
    sizes = (1, 15, 2, whole(source, 4, 12))
    return [space.join(vocabulary[whole(source, 0, 11)] for _ in range(size)) for size in sizes]


def _pieces(tokenize: Tokenize, texts: Sequence[str]) -> list[str]:
    return [piece for text in texts for piece in tokenize(text)]


@exercise(
    look="Count all pieces of all texts, count all their words, and divide once.",
    draws=lambda source: [(_chopper(size), _texts(source)) for size in (1, 2, 3, 4)],
    slips={
        "an empty string is counted as a word": Slip(
            lambda f, x: len(_pieces(f, x)) / sum(len(t.split(" ")) for t in x),
            "Use text.split() without an argument.",
        ),
        "words are found by a pattern of letters, so signs split them or drop out": Slip(
            lambda f, x: len(_pieces(f, x)) / sum(len(re.findall(r"\w+", t)) for t in x),
            "White space separates words, whatever else is in them: text.split().",
        ),
        "these are words per token": Slip(
            lambda f, x: len(_words(x)) / len(_pieces(f, x)), "Divide the pieces by the words."
        ),
        "this is the mean of each text's own ratio, in which a text of one word weighs as "
        "much as a text of fifteen": Slip(
            lambda f, x: sum(len(f(t)) / len(t.split()) for t in x) / len(x),
            "Sum the pieces and the words over all texts first, and divide once.",
        ),
        "these are tokens per character": Slip(
            lambda f, x: len(_pieces(f, x)) / sum(map(len, x)),
            "len(text) counts characters; text.split() gives the words.",
        ),
        "these are tokens per text": Slip(
            lambda f, x: len(_pieces(f, x)) / len(x), "Divide by the number of words, not of texts."
        ),
        "this is the number of tokens, not yet divided": Slip(
            lambda f, x: len(_pieces(f, x)), "Divide by the number of words."
        ),
        "a piece that comes back is counted once": Slip(
            lambda f, x: len(set(_pieces(f, x))) / len(_words(x)),
            "Each piece costs a place in the sequence each time: no set() over the pieces.",
        ),
        "a word that comes back is counted once": Slip(
            lambda f, x: len(_pieces(f, x)) / len(set(_words(x))),
            "Count running words, with repetition: no set() over the words.",
        ),
        "two special tokens are added to each text": Slip(
            lambda f, x: (len(_pieces(f, x)) + 2 * len(x)) / len(_words(x)),
            "<s> and </s> belong to no word: count what tokenize(text) returns and no more.",
        ),
        "two pieces of each text are taken for special tokens": Slip(
            lambda f, x: (len(_pieces(f, x)) - 2 * len(x)) / len(_words(x)),
            "tokenize(text) returns none: count every piece.",
        ),
        "the texts are glued together, so that words grow into one another": Slip(
            lambda f, x: len(f("".join(x))) / len(_words(x)), "Call tokenize for each text."
        ),
    },
    edge_case="where two spaces follow each other",
    edges=lambda source: [(_chopper(size), _texts(source, space="  ")) for size in (1, 2, 3, 4)],
)
def tokens_per_word(tokenize: Tokenize, texts: Sequence[str]) -> float:
    """All pieces of the texts divided by all their words."""
    return len(_pieces(tokenize, texts)) / len(_words(texts))


def _maps_with_zeros(source: torch.Generator) -> Draws:
    """Some heads look at exactly one token: such rows have entropy 0 and still count."""
    draws = []
    for heads, mask in ((3, mask_of((7, 3))), (2, mask_of((5, 9, 2))), (4, mask_of((4, 8)))):
        maps = attention_maps(source, mask, heads)
        for head in range(heads):
            maps[0, head, head % 3] = torch.eye(mask.shape[1])[whole(source, 0, 1)]
        maps[-1, 0, 0, 1] = 0  # an entry of 0 inside a row
        maps[-1, 0, 0] /= maps[-1, 0, 0].sum()
        draws.append((maps, mask))
    return draws


def _entropy(
    maps: Tensor,
    mask: Tensor,
    *,
    over: str = "valid",
    keys: str = "sum",
    axis: int = -1,
    base: float = math.e,
    sign: int = 1,
) -> Tensor:
    """Entropy of each head with some parts replaced by slips; with none, the right value."""
    each = torch.special.entr(maps.double())  # (B, H, L, L)
    rows = each.sum(axis) if keys == "sum" else each.mean(axis)  # (B, H, L)
    valid = mask.double()[:, None, :]  # (B, 1, L)
    value = {
        "valid": (rows * valid).sum((0, 2)) / valid.sum(),
        "all": rows.mean((0, 2)),
        "B L": (rows * valid).mean((0, 2)),
        "sentences": ((rows * valid).sum(-1) / valid.sum(-1)).mean(0),
        "sum": (rows * valid).sum((0, 2)),
        "entries": each.sum((0, 2, 3)) / (each > 0).sum((0, 2, 3)),
        "not zero": (rows * valid).sum((0, 2)) / (rows * valid > 0).sum((0, 2)),
    }[over]
    return (sign * value / math.log(base)).to(maps.dtype)


@exercise(
    look="Sum -p log p over the keys, then average the rows of real tokens, for each head.",
    draws=_maps_with_zeros,
    slips={
        "rows of padded queries are counted": Slip(
            partial(_entropy, over="all"),
            "A padded row means nothing: multiply by the mask, divide by mask.sum().",
        ),
        "padded rows are set to zero but still counted in the division": Slip(
            partial(_entropy, over="B L"), "Divide by the number of real tokens, mask.sum()."
        ),
        "each sentence weighs the same, however short it is": Slip(
            partial(_entropy, over="sentences"),
            "Sum over all valid rows of the batch first, and divide once by mask.sum().",
        ),
        "rows with entropy 0 are left out of the mean": Slip(
            partial(_entropy, over="not zero"),
            "A head that looks at one token has entropy 0, and that row counts: divide by "
            "mask.sum().",
        ),
        "the entries that are not zero are averaged": Slip(
            partial(_entropy, over="entries"),
            "A row's entropy is a sum over its keys; then average over the valid rows.",
        ),
        "these are numbers of tokens, the exponential of the entropy": Slip(
            lambda maps, mask: _entropy(maps, mask).exp(), "Return the entropy itself, in nats."
        ),
        "the entropy is divided by its largest value": Slip(
            lambda maps, mask: _entropy(maps, mask) / math.log(maps.shape[-1]), "Return nats."
        ),
        "the rows are summed and not averaged": Slip(
            partial(_entropy, over="sum"), "Divide by the number of real tokens, mask.sum()."
        ),
        "the keys are averaged and not summed": Slip(
            partial(_entropy, keys="mean"), "An entropy is a sum over the keys: .sum(-1)."
        ),
        "the entropy runs over the queries": Slip(
            partial(_entropy, axis=-2), "A row (last axis) is a distribution; a column is not."
        ),
        "these are bits, not nats": Slip(partial(_entropy, base=2.0), "Use torch.log."),
        "the sign is wrong": Slip(
            partial(_entropy, sign=-1), "log p is negative: take minus the sum of p log p."
        ),
    },
)
def attention_entropy(maps: Tensor, mask: Tensor) -> Tensor:
    """(H,) mean entropy in nats of the rows whose query is a real token.

    Maps (B, H, L, L), mask (B, L). Every valid row of the batch weighs the same.
    """
    return _entropy(maps, mask)


PLACES = ("itself", "left", "right", "<s>", "</s>")


def _shares_of(m: Tensor, fewer: int = 0, scale: float = 1.0) -> dict[str, float]:
    length = len(m)
    beside = [m.diagonal(shift).sum().item() / (length - fewer) for shift in (-1, 1)]
    ends = m[:, 0].mean().item(), m[:, -1].mean().item()
    values = (m.diagonal().mean().item(), *beside, *ends)
    return dict(zip(PLACES, (scale * value for value in values), strict=True))


def _wrapped(m: Tensor, shift: int) -> float:
    return m.roll(-shift, 1).diagonal().mean().item()


@exercise(
    look="m[q, k] says how much query q looks at key k; average over all L queries.",
    draws=lambda source: [(attention_maps(source, mask_of((n,)), 1)[0, 0],) for n in (3, 6, 9)],
    read=lambda result, m: _by_name(result, PLACES),
    slips={
        "left and right are swapped": Slip(
            lambda m: (
                _shares_of(m) | {"left": _shares_of(m)["right"], "right": _shares_of(m)["left"]}
            ),
            "The left neighbor of token q is q - 1: m.diagonal(-1).",
        ),
        "rows and columns are swapped": Slip(
            lambda m: _shares_of(m.T), "The query is the row, the key the column."
        ),
        "the first query's left neighbor is taken to be the last token (index -1)": Slip(
            lambda m: _shares_of(m) | {"left": _wrapped(m, -1)}, "It has none: add 0 for it."
        ),
        "the ends count as neighbors of each other": Slip(
            lambda m: _shares_of(m) | {"left": _wrapped(m, -1), "right": _wrapped(m, 1)},
            "The first has no left neighbor, the last no right one: m.diagonal(1) leaves it out.",
        ),
        "the first and the last query are read, not the first and the last key": Slip(
            lambda m: _shares_of(m) | {"<s>": m[0].mean().item(), "</s>": m[-1].mean().item()},
            "Keys are columns: m[:, 0].",
        ),
        "the neighbors are averaged over the queries that have one": Slip(
            partial(_shares_of, fewer=1), "Divide by all L queries: the first has none on its left."
        ),
        "these are percentages": Slip(partial(_shares_of, scale=100), "Return shares, 0 to 1."),
        "the attention is summed over the queries, not averaged": Slip(
            lambda m: _shares_of(m, scale=len(m)), "Divide by the number of queries, L."
        ),
    },
)
def places(m: Tensor) -> dict[str, float]:
    """Share of a head's attention on five places, the mean over the queries of its map m (L, L).

    Keys: "itself", "left", "right", "<s>" (the first key) and "</s>" (the last).
    """
    return _shares_of(m)


def _bins(
    confidence: Tensor, correct: Tensor, bins: int, kind: str = "right"
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, mean confidence and accuracy of the bins that have rows; one part may be a slip."""
    confidence, correct = confidence.double(), correct.double()
    at = (confidence * bins).long()
    if kind == "range":
        low, high = confidence.min(), confidence.max()
        at = ((confidence - low) / (high - low) * bins).long().clamp(max=bins - 1)
    elif kind == "rounds":
        at = (confidence * bins).round().long().clamp(max=bins - 1)
    elif kind == "wraps":
        at = at % bins
    elif kind == "equal mass":
        at[confidence.argsort()] = torch.arange(len(at)) * bins // len(at)
    elif kind == "single rows":
        at = torch.where(torch.bincount(at)[at] > 1, at, bins)
    elif kind != "one lost":  # else the last bin stops before 1
        at = at.clamp(max=bins - 1)
    found = [at == index for index in range(bins) if kind == "empty" or (at == index).any()]
    rows = torch.stack([here.sum() for here in found])
    sure, right = (
        torch.stack([x[here].mean() for here in found]).nan_to_num(0) for x in (confidence, correct)
    )
    if kind == "middle":
        sure = ((sure * bins).floor() + 0.5) / bins
    return rows, sure, right


def _answers(source: torch.Generator, bins: int, too_sure: bool) -> tuple[Any, ...]:
    """Confidences away from the edges of the bins, an empty bin between them, gaps of both signs.

    Overall the answers are too sure, or, as the mirror image, not sure enough.
    """
    confidences, correct = [], []
    for number, index in enumerate(i for i in range(bins // 3, bins) if i != bins // 2):
        shift, most = ((-0.4, 60), (0.2, 20))[number % 2]
        count = whole(source, most - 12, most) if number != 2 else 1  # a bin of one row
        inside = 0.05 + 0.6 * torch.rand(count, generator=source)
        confidences.append((index + inside) / bins)
        middle = (index + 0.35) / bins + shift * uniform(source, 0.7, 1.0)
        correct.append(torch.arange(count) < round(count * min(max(middle, 0.0), 1.0)))
    order = torch.randperm(sum(map(len, confidences)), generator=source)
    sure, right = torch.cat(confidences)[order], torch.cat(correct)[order]
    return (sure, right, bins) if too_sure else (1 - sure, ~right, bins)


def _three_answers(source: torch.Generator) -> Draws:
    return [_answers(source, bins, bins != 10) for bins in (6, 10, 15)]


def _with_certainty(sure: Tensor, right: Tensor, bins: int) -> tuple[Tensor, Tensor, int]:
    """The last bin holds rows that are right and, at a confidence of 1, rows that are wrong:
    their gaps have other signs, so it matters that they share a bin."""
    below = sure < 1 - 1 / bins
    nearly = torch.full((12,), 1 - 0.5 / bins)
    confidence = torch.cat((sure[below], nearly, torch.ones(9)))
    correct = torch.cat((right[below], torch.ones(12).bool(), torch.zeros(9).bool()))
    return confidence, correct, bins


def _three(result: Any, confidence: Tensor, correct: Tensor, bins: int) -> tuple[Tensor, ...]:
    if not isinstance(result, list | tuple) or len(result) != 3:
        raise Misconception(
            f"your function returned a {type(result).__name__}, but three tensors are wanted",
            "return rows, confidence, accuracy: one entry of each for each bin that has rows.",
        )
    parts = tuple(torch.as_tensor(part).double() for part in result)
    lengths = [part.numel() for part in parts]
    if any(part.ndim != 1 for part in parts) or len(set(lengths)) > 1:
        raise Misconception(
            "rows, confidence and accuracy do not have one entry each for each bin",
            "Append to all three in the same turn of the loop.",
        )
    return parts


def _how_many(answer: Answer, draws: Draws) -> None:
    for draw in draws:
        got, wanted = len(answer(*draw)[0]), len(_bins(*draw)[0])
        if got != wanted:
            raise Misconception(
                f"{wanted} of {draw[2]} bins have rows, but you return {got}",
                "Bin i reaches from i / bins to (i + 1) / bins; leave out the empty ones only.",
            )


@exercise(
    look="Which rows are in each bin? Count them, and take their mean confidence and accuracy.",
    draws=_three_answers,
    read=_three,
    slips={
        "rows fall out of the last bin": Slip(
            partial(_bins, kind="one lost"),
            "int(confidence * bins) is `bins` there; hold it at bins - 1.",
        ),
        "a confidence of 1 falls into the first bin": Slip(
            partial(_bins, kind="wraps"), "Hold its bin at bins - 1; do not take a remainder."
        ),
        "empty bins are kept": Slip(partial(_bins, kind="empty"), "Leave out bins without rows."),
        "the bins hold equally many rows": Slip(
            partial(_bins, kind="equal mass"), "Cut the scale from 0 to 1 into equally wide bins."
        ),
        "the bins reach from the smallest to the largest confidence": Slip(
            partial(_bins, kind="range"), "They reach from 0 to 1, whatever the data."
        ),
        "a row goes to the nearest edge of the bins, not into the bin around it": Slip(
            partial(_bins, kind="rounds"), "Cut (confidence * bins).long(); do not round."
        ),
        "bins of one row are left out": Slip(
            partial(_bins, kind="single rows"), "Leave out empty bins only."
        ),
        "the middle of the bin replaces the mean confidence": Slip(
            partial(_bins, kind="middle"), "Average the confidences that fall into the bin."
        ),
        "bins is not used": Slip(lambda p, y, bins: _bins(p, y, 10), "There are `bins` of them."),
        "confidence and accuracy have changed places": Slip(
            lambda *draw: (_bins(*draw)[0], *_bins(*draw)[:0:-1]), "Return the confidence first."
        ),
        "the rows come last": Slip(
            lambda *draw: (*_bins(*draw)[1:], _bins(*draw)[0]), "Return the rows first."
        ),
        "the confidence is a sum": Slip(
            lambda p, y, bins: (
                _bins(p, y, bins)[0],
                _bins(p, y, bins)[0] * _bins(p, y, bins)[1],
                _bins(p, y, bins)[2],
            ),
            "Take the mean of the confidences.",
        ),
        "the accuracy is a count": Slip(
            lambda *draw: (*_bins(*draw)[:2], _bins(*draw)[0] * _bins(*draw)[2]),
            "Take the mean of `correct`, not its sum.",
        ),
        "this is the share that is wrong": Slip(
            lambda *draw: (*_bins(*draw)[:2], 1 - _bins(*draw)[2]), "Accuracy counts right answers."
        ),
        "rows are shares, not counts": Slip(
            lambda *draw: (_bins(*draw)[0] / len(draw[0]), *_bins(*draw)[1:]), "Count the rows."
        ),
    },
    otherwise=_how_many,
    edge_case="with confidences of exactly 1",
    edges=lambda source: [_with_certainty(*draw) for draw in _three_answers(source)],
)
def reliability(
    confidence: Tensor, correct: Tensor, bins: int = 10
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, mean confidence and accuracy of each bin that has rows, (K,) each, in order.

    Confidence (N,) from 0 to 1, correct (N,) bool; equally wide bins from 0 to 1, whose last one
    holds 1. Guo et al. 2017, section 2.
    """
    return _bins(confidence, correct, bins)


def _ece(rows: Tensor, confidence: Tensor, accuracy: Tensor) -> float:
    """Expected calibration error of such bins."""
    return float((rows * (accuracy - confidence).abs()).sum() / rows.sum())


def _mean_gap(rows: Tensor, confidence: Tensor, accuracy: Tensor, kind: str) -> float:
    gaps, share = (accuracy - confidence).double(), rows / rows.sum()
    return {
        "mean of bins": gaps.abs().mean(),
        "worst": gaps.abs().max(),
        "signed": (gaps * share).sum(),
        "minus": -(gaps * share).sum(),
        "one bin": (gaps * share).sum().abs(),
        "squared": (gaps.square() * share).sum(),
        "root": (gaps.square() * share).sum().sqrt(),
        "sum": (gaps.abs() * rows).sum(),
        "bins": (gaps.abs() * rows).sum() / len(rows),
        "twice": (gaps.abs() * share).mean(),
        "percent": 100 * (gaps.abs() * share).sum(),
    }[kind].item()


@exercise(
    look="Take |accuracy - confidence| of each bin, weighted by the bin's share of the rows.",
    draws=lambda source: [_bins(*draw) for draw in _three_answers(source)],
    slips={
        "every bin weighs the same": Slip(
            partial(_mean_gap, kind="mean of bins"),
            "Weight each gap by the bin's share of the rows: larger bins count more.",
        ),
        "this is the gap of the worst bin (the maximum calibration error)": Slip(
            partial(_mean_gap, kind="worst"), "Average the gaps, weighted by the bins' shares."
        ),
        "the gaps keep their signs, so overconfident and underconfident bins cancel": Slip(
            partial(_mean_gap, kind="signed"), "Take the absolute value of each gap."
        ),
        "the gaps keep their signs, confidence minus accuracy, so they cancel": Slip(
            partial(_mean_gap, kind="minus"), "Take the absolute value of each gap."
        ),
        "the absolute value is taken once, at the end": Slip(
            partial(_mean_gap, kind="one bin"), "Take it bin by bin, before the sum."
        ),
        "the gaps are squared": Slip(
            partial(_mean_gap, kind="squared"), "Take the absolute value of each gap instead."
        ),
        "this is the root of the mean squared gap": Slip(
            partial(_mean_gap, kind="root"), "Take the absolute value of each gap instead."
        ),
        "the gaps are weighted by counts and not by shares": Slip(
            partial(_mean_gap, kind="sum"), "Divide by the number of all rows."
        ),
        "the sum is divided by the number of bins, not of rows": Slip(
            partial(_mean_gap, kind="bins"), "Divide by the number of all rows, rows.sum()."
        ),
        "the weighted gaps are averaged, which weights them twice": Slip(
            partial(_mean_gap, kind="twice"), "The shares add up to 1: take the sum."
        ),
        "this is in percent": Slip(partial(_mean_gap, kind="percent"), "Return 0 to 1."),
    },
)
def calibration_error(rows: Tensor, confidence: Tensor, accuracy: Tensor) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3) of bins as :func:`reliability` returns
    them."""
    return _ece(rows, confidence, accuracy)


def _confidences(source: torch.Generator) -> Draws:
    draws = []
    for rows, bins in ((20, 10), (70, 5), (55, 10)):
        sure = 0.35 + 0.64 * torch.rand(rows, generator=source)
        draws.append((sure, torch.rand(30, rows, generator=source), bins))
    return draws


def _by_chance(
    confidence: Tensor,
    uniforms: Tensor,
    bins: int,
    at: Callable[[np.ndarray], Any] = lambda errors: np.percentile(errors, 95),
    right: Callable[[Tensor, Tensor], Tensor] = torch.lt,
) -> float:
    made = [_ece(*_bins(confidence, right(u, confidence), bins)) for u in uniforms]
    return float(at(np.array(made)))


@exercise(
    look="An answer is right where its uniform number is below its confidence; one ECE per draw.",
    draws=_confidences,
    slips={
        "answers are right where the number is above the confidence": Slip(
            partial(_by_chance, right=torch.gt),
            "A number between 0 and 1 is below 0.9 in 90 % of the draws: uniforms < confidence.",
        ),
        "every answer is right half of the time": Slip(
            partial(_by_chance, right=lambda u, p: u < 0.5),
            "A calibrated answer is right as often as its confidence says.",
        ),
        "this is the mean of the draws": Slip(
            partial(_by_chance, at=np.mean), "Half of all calibrated models lie above that."
        ),
        "this is the median of the draws": Slip(
            partial(_by_chance, at=np.median), "Half of all calibrated models lie above that."
        ),
        "this is the largest of the draws": Slip(
            partial(_by_chance, at=np.max), "More draws would make it larger: np.percentile."
        ),
        "this is the 5th percentile": Slip(
            partial(_by_chance, at=partial(np.percentile, q=5)), "Chance reaches up: take the 95th."
        ),
        "this is the 97.5th percentile": Slip(
            partial(_by_chance, at=partial(np.percentile, q=97.5)),
            "Only the upper end is asked for: 5 % above it.",
        ),
        "np.percentile counts from 0 to 100, np.quantile from 0 to 1": Slip(
            partial(_by_chance, at=partial(np.percentile, q=0.95)),
            "np.percentile(x, 95), or np.quantile(x, 0.95).",
        ),
        "one place of the sorted list is read, without interpolation": Slip(
            partial(_by_chance, at=lambda x: np.sort(x)[int(0.95 * len(x))]),
            "Let np.percentile do it.",
        ),
        "bins is not used": Slip(
            lambda p, u, bins: _by_chance(p, u, 10), "Hand it on to calibration_error."
        ),
        "every answer is right as often as the mean confidence says": Slip(
            partial(_by_chance, right=lambda u, p: u < p.mean()), "Compare with each confidence."
        ),
        "only the first draw is used": Slip(
            lambda p, u, bins: _by_chance(p, u[:1], bins), "Each row of uniforms is one draw."
        ),
        "all draws are pooled into one": Slip(
            lambda p, u, bins: _ece(*_bins(p.repeat(len(u)), (u < p).flatten(), bins)),
            "One ECE for each row of uniforms, then a percentile of them.",
        ),
    },
)
def chance_error(confidence: Tensor, uniforms: Tensor, bins: int) -> float:
    """95th percentile of the calibration error that a calibrated model would show.

    Confidence (N,); each row of ``uniforms`` (draws, N), between 0 and 1, makes one set of answers.
    """
    return _by_chance(confidence, uniforms, bins)


#: Measures by which a temperature might be chosen, the right one first; the smallest wins.
RULES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "cross-entropy": F.cross_entropy,
    "accuracy": lambda z, y: 0.0,
    "Brier": lambda z, y: float((z.softmax(-1) - F.one_hot(y, 3)).square().sum()),
    "ECE": lambda z, y: _ece(*_bins(z.softmax(-1).amax(-1), z.argmax(-1) == y, 10)),
    "largest": lambda z, y: -F.cross_entropy(z, y),
    "softmax": lambda z, y: F.cross_entropy(z.softmax(-1), y),
    "probability": lambda z, y: -z.softmax(-1).gather(1, y[:, None]).mean(),
    "own": lambda z, y: F.cross_entropy(z, z.argmax(-1)),
}


def _chosen(
    rule: Callable[[Tensor, Tensor], Any], logits: Tensor, labels: Tensor, grid: Sequence[float]
) -> float:
    return min(grid, key=lambda t: rule(logits / t, labels))


def _misjudged(source: torch.Generator) -> Draws:
    """Labels drawn at another temperature, until no two of RULES choose alike on all draws."""
    grid = [1.0, 0.5, 2.0, 0.25, 3.0, 0.8, 5.0, 1.5]
    while True:
        draws: list[tuple[Any, ...]] = []
        for true in (3.0, 0.5, 1.5, 2.0) * 2:
            logits = normal(source, 15, 3)
            drawn = torch.multinomial((logits / true).softmax(-1), 1, generator=source)
            draws.append((logits, drawn.flatten(), grid))
        choices = {tuple(_chosen(rule, *draw) for draw in draws) for rule in RULES.values()}
        if len(choices) == len(RULES):
            return draws


def _losses_at(logits: Tensor, labels: Tensor, grid: Sequence[float]) -> Tensor:
    return torch.stack([F.cross_entropy(logits / t, labels) for t in grid])


@exercise(
    look="For each temperature, the mean cross-entropy of logits / temperature; take the smallest.",
    draws=_misjudged,
    slips={
        "this is the place in the list, not the temperature": Slip(
            lambda x, y, grid: int(_losses_at(x, y, grid).argmin()), "temperatures[place]."
        ),
        "this is the smallest loss, not its temperature": Slip(
            lambda x, y, grid: float(_losses_at(x, y, grid).min()), "Ask where it is: argmin."
        ),
        "the largest loss is chosen": Slip(
            partial(_chosen, RULES["largest"]), "Take the smallest."
        ),
        "the logits are multiplied by the temperature": Slip(
            lambda x, y, grid: grid[int(_losses_at(x, y, [1 / t for t in grid]).argmin())],
            "A temperature divides.",
        ),
        "the first temperature of the list is chosen every time": Slip(
            partial(_chosen, RULES["accuracy"]),
            "A temperature does not change the accuracy; and F.cross_entropy takes logits, whose "
            "softmax it takes itself: give it logits / t.",
        ),
        "the temperature is chosen by the squared error of the probabilities": Slip(
            partial(_chosen, RULES["Brier"]), "The task asks for the cross-entropy."
        ),
        "the temperature is chosen by the calibration error": Slip(
            partial(_chosen, RULES["ECE"]),
            "That would fit the bins, and their noise: choose by the cross-entropy.",
        ),
        "the softmax is taken twice": Slip(
            partial(_chosen, RULES["softmax"]), "F.cross_entropy takes logits: give it logits / t."
        ),
        "the temperature is chosen by the mean probability of the labels": Slip(
            partial(_chosen, RULES["probability"]), "Average their logarithms."
        ),
        "the answers of the model are taken for the labels": Slip(
            partial(_chosen, RULES["own"]), "Any model is sure of itself: use `labels`."
        ),
    },
)
def fit_temperature(logits: Tensor, labels: Tensor, temperatures: Sequence[float]) -> float:
    """The one of the temperatures with the smallest mean cross-entropy.

    Logits (N, C), labels (N,). Guo et al. 2017, section 4.2.
    """
    return temperatures[int(_losses_at(logits, labels, temperatures).argmin())]


def _pairs(matrix: Tensor) -> tuple[Tensor, Tensor, int]:
    """Labels and predictions with these counts (C, C), labels down."""
    classes = len(matrix)
    pairs = torch.arange(classes**2).repeat_interleave(matrix.flatten())
    return pairs // classes, pairs % classes, classes


def _counted(source: torch.Generator) -> Draws:
    draws = []
    for classes in (3, 4, 2):
        matrix = torch.randint(1, 30, (classes, classes), generator=source)
        matrix[0, 0], matrix[0, 1] = 0, 40  # a label that is never found
        draws.append(_pairs(matrix))
    return draws


def _of_counts(
    labels: Tensor, predictions: Tensor, classes: int, value: Callable[[Tensor], Tensor]
) -> Tensor:
    counts = torch.bincount(labels * classes + predictions, minlength=classes**2)
    return value(counts.reshape(classes, classes))


def _of_class(matrix: Tensor, axis: int = 1) -> Tensor:
    return 100 * matrix.diagonal() / matrix.sum(axis).clamp_min(1)


@exercise(
    look="Of the rows with a label, what percentage is predicted as that label?",
    draws=_counted,
    slips={
        "this is the precision: of each prediction, how often it is right": Slip(
            partial(_of_counts, value=partial(_of_class, axis=0)),
            "Recall asks about a label's rows: predictions[labels == label].",
        ),
        "this is a fraction, but percent is wanted": Slip(
            partial(_of_counts, value=lambda m: _of_class(m) / 100), "Multiply by 100."
        ),
        "these are counts, not percentages": Slip(
            partial(_of_counts, value=torch.diagonal), "Divide by the rows of that label."
        ),
        "the hits are divided by all rows, whatever their label": Slip(
            partial(_of_counts, value=lambda m: 100 * m.diagonal() / m.sum()),
            "Divide by the rows of that label only.",
        ),
        "these are the shares of the labels": Slip(
            partial(_of_counts, value=lambda m: 100 * m.sum(1) / m.sum()),
            "Count the rows that are found, too.",
        ),
        "this is the percentage missed": Slip(
            partial(_of_counts, value=lambda m: 100 - _of_class(m)), "Recall counts what is found."
        ),
        "this is each label's accuracy against all others": Slip(
            partial(
                _of_counts,
                value=lambda m: 100 * (m.sum() + 2 * m.diagonal() - m.sum(0) - m.sum(1)) / m.sum(),
            ),
            "Look only at the rows that have the label.",
        ),
        "the percentages are cut to whole numbers": Slip(
            partial(_of_counts, value=lambda m: 100 * m.diagonal() // m.sum(1).clamp_min(1)),
            "Use / rather than //.",
        ),
        "these are the F1 scores": Slip(
            partial(
                _of_counts, value=lambda m: 200 * m.diagonal() / (m.sum(0) + m.sum(1)).clamp_min(1)
            ),
            "Recall looks only at the rows that have the label.",
        ),
    },
    edge_case="where a label never occurs",
    edges=lambda source: [
        _pairs(torch.tensor(counts))
        for counts in ([[3, 1, 0], [0, 0, 0], [2, 2, 4]], [[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    ],
)
def recall(labels: Tensor, predictions: Tensor, classes: int = 3) -> Tensor:
    """(classes,) percent of each label's rows (N,) that are predicted as that label.

    0 for a label without rows.
    """
    return _of_counts(labels, predictions, classes, _of_class)
