"""Exercises of notebook 06, stage two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from comet_lib import losses
from comet_lib.checks.framework import (
    Misconception,
    Slip,
    compare,
    exercise,
    generator,
    normal,
    slips_and_pairs,
    uniform,
    value_of,
)


def _probabilities(source: torch.Generator, rows: int, classes: int = 3) -> Tensor:
    return torch.softmax(normal(source, rows, classes, scale=1.5), -1)


# --- Out-of-fold targets back in row order ---------------------------------------------------


def _fold_targets_reference(rows: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    order = torch.cat(list(rows))
    out = torch.zeros(len(order), parts[0].shape[-1])
    out[order] = torch.cat(list(parts))
    return out


def _from_row_zero(rows: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    out = torch.zeros(sum(map(len, rows)), parts[0].shape[-1])
    for part in parts:
        out[: len(part)] = part
    return out


@exercise(
    "fold_targets",
    notebook="06",
    reference=_fold_targets_reference,
    look="Make a table of zeros with a row for each tweet; for each fold write out[rows] = part.",
)
def fold_targets(answer: Callable[..., Any]) -> None:
    """answer(rows, parts) -> (N, C): part k's row i belongs to the tweet number rows[k][i].

    ``rows`` are K index tensors that together hold 0 .. N-1 once; ``parts`` are K tensors
    (len(rows[k]), C).
    """
    source = generator()
    draws = []
    for sizes, in_order in (((3, 4, 4), True), ((5, 2, 6, 3), True), ((4, 4, 5), False)):
        found = torch.randperm(sum(sizes), generator=source).split(list(sizes))
        rows = [r.sort().values if in_order else r for r in found]
        # Of these orders a few are their own inverse; take one that is not.
        first, last = rows[0].clone(), rows[-1].clone()
        if torch.equal(torch.cat(rows).argsort(), torch.cat(rows)):
            first[0], last[0] = rows[-1][0], rows[0][0]
            rows = [first, *rows[1:-1], last]
        draws.append((rows, [_probabilities(source, n) for n in sizes]))
    slips = [
        Slip(
            "the targets stand in the order of the folds",
            lambda rows, parts: torch.cat(parts),
            "Row 0 must be the target of tweet 0: use `rows` to say where each one goes.",
        ),
        Slip(
            "the indices are read from, not written to",
            lambda rows, parts: torch.cat(parts)[torch.cat(rows)],
            "x[rows] picks those rows; out[rows] = x puts rows there. Here you must put.",
        ),
        Slip(
            "each fold is written from row 0 on, over the one before",
            _from_row_zero,
            "Write fold k at the places rows[k], not at its first rows.",
        ),
    ]

    def every_row_is_filled() -> None:
        sums = torch.cat([value_of(answer(*draw)).sum(-1) for draw in draws])
        if (sums.abs() < 1e-6).any():
            raise Misconception(
                "some tweets got no target at all (a row of zeros)",
                "Go through all folds: `for r, part in zip(rows, parts)`.",
            )
        if (sums - 1).abs().max() > 1e-3:
            raise Misconception(
                "the probabilities of a tweet no longer sum to 1",
                "Each tweet stands in one fold alone, so nothing is to be added or averaged.",
            )

    compare(answer, draws, _fold_targets_reference, slips, every_row_is_filled)


# --- Two teachers ----------------------------------------------------------------------------


def _mix_targets_reference(first: Tensor, second: Tensor, weight: float) -> Tensor:
    return (1 - weight) * first + weight * second


def _one_hot(probabilities: Tensor) -> Tensor:
    return F.one_hot(probabilities.argmax(-1), probabilities.shape[-1]).to(probabilities.dtype)


def _geometric(first: Tensor, second: Tensor, weight: float) -> Tensor:
    return first ** (1 - weight) * second**weight


@exercise(
    "mix_targets",
    notebook="06",
    reference=_mix_targets_reference,
    look="The two shares must add up to 1, and `weight` is the second teacher's.",
)
def mix_targets(answer: Callable[..., Any]) -> None:
    """answer(first, second, weight) -> (N, C), the second teacher's share being ``weight``."""
    source = generator()
    draws = [
        (_probabilities(source, rows), _probabilities(source, rows), uniform(source, *ends))
        for rows, ends in ((6, (0.1, 0.3)), (5, (0.6, 0.9)), (7, (0.2, 0.4)))
    ]
    slips = [
        Slip(
            "the two teachers are swapped",
            lambda a, b, w: w * a + (1 - w) * b,
            "With weight 0 the second teacher must not count at all.",
        ),
        Slip(
            "the first teacher counts in full beside the second's share",
            lambda a, b, w: a + w * b,
            "Then a row sums to 1 + weight: give the first teacher what is left, 1 - weight.",
        ),
        Slip(
            "both teachers count by the same weight",
            lambda a, b, w: w * a + w * b,
            "Give the first teacher what is left, 1 - weight.",
        ),
        Slip(
            "the weight is ignored: this is the plain mean",
            lambda a, b, w: (a + b) / 2,
            "It is right at weight 0.5 alone.",
        ),
        Slip(
            "this is a geometric mean, whose rows do not sum to 1",
            _geometric,
            "Add the two, each by its share, rather than multiply them.",
        ),
        Slip(
            "this is a geometric mean, normalised (the logits are averaged)",
            lambda a, b, w: F.normalize(_geometric(a, b, w), p=1, dim=-1),
            "A fair idea, and not the one asked: there one teacher that is sure of a no has a "
            "veto. Average the probabilities.",
        ),
        Slip(
            "each teacher's most likely label votes, and its doubt is lost",
            lambda a, b, w: (1 - w) * _one_hot(a) + w * _one_hot(b),
            "Mix the probabilities themselves: the doubt is what the student is to learn.",
        ),
        Slip(
            "a softmax is taken of probabilities",
            lambda a, b, w: torch.softmax((1 - w) * a + w * b, -1),
            "They sum to 1 already; a second softmax makes them nearly equal.",
        ),
    ]
    compare(answer, draws, _mix_targets_reference, slips)


# --- The objective of a mixed batch ----------------------------------------------------------


def _mixed_loss_reference(
    logits: Tensor, labels: Tensor, teacher_probs: Tensor, alpha: float
) -> Tensor:
    known = labels != -100
    hard = F.cross_entropy(logits[known], labels[known]) if known.any() else logits.sum() * 0
    soft = losses.soft_target_loss_from_probs(logits, teacher_probs)
    return losses.hybrid_loss(soft, hard, alpha)


def _mixed_variant(
    logits: Tensor,
    labels: Tensor,
    teacher_probs: Tensor,
    alpha: float,
    *,
    soft_rows: str = "all",
    soft_count: str = "rows",
    soft_kind: str = "KL",
    hard_count: str = "labelled",
    hard_rows: str = "labelled",
    shares: str = "alpha soft",
) -> Tensor:
    """The loss with any of its parts replaced by a usual slip; with none, the right value."""
    known = labels != -100
    log_p, q = torch.log_softmax(logits, -1), teacher_probs
    if soft_kind == "swapped":
        each = (log_p.exp() * (log_p - q.log())).sum(-1)
    else:
        each = ((q.log() if soft_kind == "KL" else 0) - log_p).mul(q).sum(-1)
    rows = {"all": torch.ones_like(known), "labelled": known, "unlabelled": ~known}[soft_rows]
    soft = each[rows].sum() / {"rows": int(rows.sum()), "entries": q.numel()}[soft_count]
    guess = {
        "labelled": labels,
        "as class 0": labels.clamp_min(0),
        "pseudo": torch.where(known, labels, teacher_probs.argmax(-1)),
    }[hard_rows]
    counted = known if hard_rows == "labelled" else torch.ones_like(known)
    nll = -log_p[counted].gather(-1, guess[counted, None]).sum()
    if hard_rows != "labelled" and hard_count == "labelled":
        hard_count = "all"
    hard = nll / {"labelled": int(known.sum()), "all": len(labels), "sum": 1}[hard_count]
    a, b = {
        "alpha soft": (alpha, 1 - alpha),
        "alpha hard": (1 - alpha, alpha),
        "sum": (1.0, 1.0),
        "soft alone": (alpha, 0.0),
        "alpha and one": (alpha, 1.0),
    }[shares]
    return a * soft + b * hard


# What a learner may have got wrong: message, where to look, and the part of the loss it changes.
_MIXED_SLIPS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "the hard loss is divided by all rows, labelled or not",
        "Average it over the labelled rows: F.cross_entropy(logits[known], labels[known]). Else a "
        "batch with few labels hardly listens to them.",
        {"hard_count": "all"},
    ),
    (
        "the hard loss is summed, not averaged",
        "Divide it by the number of labelled rows.",
        {"hard_count": "sum"},
    ),
    (
        "the soft targets reach the labelled rows alone",
        "Every row has a soft target, so average the soft loss over all rows: the unlabelled ones "
        "would teach nothing.",
        {"soft_rows": "labelled"},
    ),
    (
        "the soft targets reach the unlabelled rows alone",
        "A labelled row has a soft target too: average the soft loss over all rows.",
        {"soft_rows": "unlabelled"},
    ),
    (
        "alpha is the weight of the hard labels",
        "alpha goes to the soft targets, 1 - alpha to the labels.",
        {"shares": "alpha hard"},
    ),
    (
        "the two losses are added without alpha",
        "alpha * soft + (1 - alpha) * hard.",
        {"shares": "sum"},
    ),
    (
        "the hard loss has weight 1",
        "alpha * soft + (1 - alpha) * hard.",
        {"shares": "alpha and one"},
    ),
    (
        "the hard labels are left out",
        "Add (1 - alpha) times the cross-entropy of the labelled rows.",
        {"shares": "soft alone"},
    ),
    (
        "a row without a label is taught class 0 as if that were its label",
        "Leave the rows with label -100 out of the hard loss: known = labels != -100.",
        {"hard_rows": "as class 0"},
    ),
    (
        "the teacher's most likely label stands in for a missing one",
        "That is pseudo-labelling. Here a row without a label has its soft target alone.",
        {"hard_rows": "pseudo"},
    ),
    (
        "the soft loss is a cross-entropy, which is the KL plus the teacher's entropy",
        "Its gradient is the same, and yet it is not 0 where the student equals its teacher: use "
        "the KL divergence.",
        {"soft_kind": "cross-entropy"},
    ),
    (
        "the two sides of the KL divergence are swapped",
        "KL(teacher || student): the teacher's probabilities are the weights.",
        {"soft_kind": "swapped"},
    ),
    (
        "the soft loss is averaged over the classes too (reduction='mean')",
        "A KL is a sum over classes: average over the rows alone (reduction='batchmean').",
        {"soft_count": "entries"},
    ),
)


@exercise(
    "mixed_loss",
    notebook="06",
    reference=_mixed_loss_reference,
    look="alpha * KL over all rows + (1 - alpha) * cross-entropy over the rows with a label.",
)
def mixed_loss(answer: Callable[..., Any]) -> None:
    """answer(logits, labels, teacher_probs, alpha) -> scalar; label -100 means none.

    Logits and probabilities are (B, C), labels (B,). Temperature 1.
    """
    source = generator()
    draws = []
    for labelled, unlabelled, ends in ((3, 4, (0.1, 0.3)), (2, 6, (0.6, 0.9)), (5, 2, (0.3, 0.45))):
        rows = labelled + unlabelled
        labels = torch.randint(1, 3, (rows,), generator=source)  # label 0 is a slip's stand-in
        labels[torch.randperm(rows, generator=source)[:unlabelled]] = -100
        logits, probs = normal(source, rows, 3, scale=1.5), _probabilities(source, rows)
        draws.append((logits, labels, probs, uniform(source, *ends)))

    def no_label_is_no_nan() -> None:
        logits, labels, probs, alpha = draws[0]
        try:
            value = answer(logits, torch.full_like(labels, -100), probs, alpha)
        except Misconception as wrong:
            raise Misconception(
                "a batch without a single label makes your function fail: " + wrong.message,
                "Then the hard loss is 0: ask known.any() first.",
            ) from None
        if not torch.isfinite(value_of(value)).all():
            raise Misconception(
                "a batch without a single label gives NaN",
                "The mean of no rows is 0/0. Then the hard loss is 0: ask known.any() first.",
            )

    compare(answer, draws, _mixed_loss_reference, slips_and_pairs(_mixed_variant, _MIXED_SLIPS))
    no_label_is_no_nan()
    bare = [(z, torch.full_like(y, -100), q, alpha) for z, y, q, alpha in draws]
    compare(
        answer,
        bare,
        _mixed_loss_reference,
        [
            Slip(
                "without labels in the batch the soft loss is no longer weighted by alpha",
                lambda z, y, q, alpha: losses.soft_target_loss_from_probs(z, q),
                "Keep the weights: alpha * soft + (1 - alpha) * 0.",
            ),
            Slip(
                "without labels in the batch the soft loss is lost",
                lambda z, y, q, alpha: torch.zeros(()),
                "Such rows still have their soft targets.",
            ),
        ],
    )
    logits, labels, probs, alpha = draws[0]
    sure = F.one_hot(probs.argmax(-1), 3).float()
    if not torch.isfinite(value_of(answer(logits, labels, sure, alpha))).all():
        raise Misconception(
            "a teacher's probability of exactly 0 gives NaN",
            "0 log 0 must count as 0: F.kl_div knows, q * q.log() does not (torch.xlogy does).",
        )
    leaf = logits.clone().requires_grad_()
    loss = answer(leaf, labels, probs, alpha)
    (gradient,) = (
        torch.autograd.grad(loss, leaf, allow_unused=True) if loss.requires_grad else (None,)
    )
    twin = logits.clone().requires_grad_()
    (right,) = torch.autograd.grad(_mixed_loss_reference(twin, labels, probs, alpha), twin)
    if gradient is None or not torch.allclose(gradient, right, rtol=1e-3, atol=1e-5):
        raise Misconception(
            "the value is right and the gradient of the student's logits is not",
            "Detach nothing of the student's side, and no torch.no_grad() or .item().",
        )
