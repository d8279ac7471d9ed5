"""Exercises of notebook 06, stage two."""

# mypy: disable-error-code=has-type

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from comet_lib import losses
from comet_lib.checks.draws import normal, probabilities, uniform
from comet_lib.checks.framework import (
    Answer,
    Draws,
    Misconception,
    Slip,
    check_gradients,
    exercise,
    refuse_infinity,
    refuse_nan,
    value_of,
)


def _folds(source: torch.Generator) -> Draws:
    draws = []
    for sizes, in_order in (((3, 4, 4), True), ((5, 2, 6, 3), True), ((4, 4, 5), False)):
        order = torch.arange(0)
        while torch.equal(order.argsort(), order):  # a few orders are their own inverse
            rows = torch.randperm(sum(sizes), generator=source).split(list(sizes))
            rows = [r.sort().values if in_order else r for r in rows]
            order = torch.cat(rows)
        draws.append((rows, [probabilities(source, n, 3) for n in sizes]))
    return draws


def _from_row_zero(rows: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    out = torch.zeros(sum(map(len, rows)), parts[0].shape[-1])
    for part in parts:
        out[: len(part)] = part
    return out


def _every_row_is_filled(answer: Answer, draws: Draws) -> None:
    sums = torch.cat([value_of(answer(*draw)).sum(-1) for draw in draws])
    if (sums.abs() < 1e-6).any():
        raise Misconception(
            "some tweets got no target at all (a row of zeros)",
            "Go through all folds: `for r, part in zip(rows, parts)`.",
        )
    if (sums - 1).abs().max() > 1e-3:
        raise Misconception(
            "the probabilities of a tweet no longer sum to 1",
            "Each tweet is in only one fold, so there is nothing to add or average.",
        )


@exercise(
    look="Create a table of zeros, one row per tweet; for each fold write out[rows] = part.",
    draws=_folds,
    slips={
        "the targets stand in the order of the folds": Slip(
            lambda rows, parts: torch.cat(parts),
            "Row 0 must be the target of tweet 0: use `rows` to say where each one goes.",
        ),
        "the indices are read from, not written to": Slip(
            lambda rows, parts: torch.cat(parts)[torch.cat(rows)],
            "x[rows] picks those rows; out[rows] = x puts rows there. Here you must put.",
        ),
        "each fold is written from row 0 on, over the one before": Slip(
            _from_row_zero, "Write fold k at the places rows[k], not at its first rows."
        ),
    },
    otherwise=_every_row_is_filled,
)
def fold_targets(rows: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """(N, C) targets: part k's row i belongs to the tweet number rows[k][i].

    ``rows`` are K index tensors that together hold 0 .. N-1 once; ``parts`` are K tensors
    (len(rows[k]), C).
    """
    order = torch.cat(list(rows))
    out = torch.zeros(len(order), parts[0].shape[-1])
    out[order] = torch.cat(list(parts))
    return out


def _one_hot(probs: Tensor) -> Tensor:
    return F.one_hot(probs.argmax(-1), probs.shape[-1]).to(probs.dtype)


def _geometric(first: Tensor, second: Tensor, weight: float) -> Tensor:
    return first ** (1 - weight) * second**weight


@exercise(
    look="The two shares must add up to 1, and `weight` is the second teacher's.",
    draws=lambda source: [
        (probabilities(source, rows, 3), probabilities(source, rows, 3), uniform(source, *ends))
        for rows, ends in ((6, (0.1, 0.3)), (5, (0.6, 0.9)), (7, (0.2, 0.4)))
    ],
    slips={
        "the two teachers are swapped": Slip(
            lambda a, b, w: w * a + (1 - w) * b, "With weight 0 only the first teacher counts."
        ),
        "the first teacher counts in full beside the second's share": Slip(
            lambda a, b, w: a + w * b, "Give the first teacher what is left, 1 - weight."
        ),
        "both teachers count by the same weight": Slip(
            lambda a, b, w: w * a + w * b, "Give the first teacher what is left, 1 - weight."
        ),
        "the weight is ignored: this is the plain mean": Slip(
            lambda a, b, w: (a + b) / 2, "It is right only at weight 0.5."
        ),
        "this is a geometric mean, whose rows do not sum to 1": Slip(
            _geometric, "Add the two, each by its share, rather than multiply them."
        ),
        "this is a geometric mean, normalised (the logits are averaged)": Slip(
            lambda a, b, w: F.normalize(_geometric(a, b, w), p=1, dim=-1),
            "A fair idea, but not the task: it gives one teacher that is sure of a no a veto. "
            "Average the probabilities.",
        ),
        "each teacher's most likely label votes, and its doubt is lost": Slip(
            lambda a, b, w: (1 - w) * _one_hot(a) + w * _one_hot(b),
            "Mix the probabilities themselves: the doubt is what the student is to learn.",
        ),
        "a softmax is taken of probabilities": Slip(
            lambda a, b, w: torch.softmax((1 - w) * a + w * b, -1),
            "They sum to 1 already; a second softmax makes them nearly equal.",
        ),
    },
)
def mix_targets(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """(N, C) mixed targets; the second teacher's share is ``weight``."""
    return (1 - weight) * first + weight * second


def _mixed(
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
    shares: Callable[[float], tuple[float, float]] = lambda alpha: (alpha, 1 - alpha),
) -> Tensor:
    """The loss with some parts replaced by common slips; with none, the right value."""
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
    counted = guess != -100
    nll = -log_p[counted].gather(-1, guess[counted, None]).sum()
    hard = nll / {"labelled": int(counted.sum()), "all": len(labels), "sum": 1}[hard_count]
    a, b = shares(alpha)
    return a * soft + b * hard


def _mixed_draws(source: torch.Generator, labelled: bool = True) -> Draws:
    draws = []
    for known, unknown, ends in ((3, 4, (0.1, 0.3)), (2, 6, (0.6, 0.9)), (5, 2, (0.3, 0.45))):
        rows = known + unknown
        labels = torch.randint(1, 3, (rows,), generator=source)  # label 0 is a slip's stand-in
        labels[torch.randperm(rows, generator=source)[: unknown if labelled else rows]] = -100
        logits, probs = normal(source, rows, 3, scale=1.5), probabilities(source, rows, 3)
        draws.append((logits, labels, probs, uniform(source, *ends)))
    return draws


def _only_with_labels(without: Answer) -> Answer:
    """A formula that is right as long as the batch has a label."""
    return lambda z, y, q, alpha: (
        mixed_loss.reference(z, y, q, alpha) if (y != -100).any() else without(z, q)
    )


def _no_nan(result: Tensor, logits: Tensor, labels: Tensor, *rest: object) -> Tensor:
    if (labels != -100).any():
        return result
    return refuse_nan(
        result,
        "the result is NaN",
        "The mean of no rows is 0/0. Then the hard loss is 0: ask known.any() first.",
    )


def _certain_teacher_and_gradient(answer: Answer, draws: Draws) -> None:
    logits, labels, probs, alpha = draws[0]
    refuse_infinity(
        answer(logits, labels, _one_hot(probs), alpha),
        "a teacher's probability of exactly 0 gives NaN",
        "0 log 0 must count as 0: F.kl_div knows, q * q.log() does not (torch.xlogy does).",
    )
    check_gradients(answer, draws[0], teachers=(), reference=mixed_loss.reference)


@exercise(
    look="alpha * KL over all rows + (1 - alpha) * cross-entropy over the rows with a label.",
    draws=_mixed_draws,
    slips={
        "the soft loss is no longer weighted by alpha": Slip(
            _only_with_labels(losses.soft_target_loss_from_probs),
            "Keep the weights: alpha * soft + (1 - alpha) * 0.",
        ),
        "the soft loss is lost": Slip(
            _only_with_labels(lambda z, q: z.sum() * 0), "Such rows still have their soft targets."
        ),
        "the hard loss is divided by all rows, labelled or not": Slip(
            partial(_mixed, hard_count="all"),
            "Average it over the labelled rows: F.cross_entropy(logits[known], labels[known]).",
        ),
        "the hard loss is summed, not averaged": Slip(
            partial(_mixed, hard_count="sum"), "Divide it by the number of labelled rows."
        ),
        "the soft targets reach only the labelled rows": Slip(
            partial(_mixed, soft_rows="labelled"),
            "Average it over all rows: otherwise the unlabelled ones teach nothing.",
        ),
        "the soft targets reach only the unlabelled rows": Slip(
            partial(_mixed, soft_rows="unlabelled"),
            "A labelled row has a soft target too: average over all.",
        ),
        "alpha is the weight of the hard labels": Slip(
            partial(_mixed, shares=lambda alpha: (1 - alpha, alpha)),
            "alpha goes to the soft targets, 1 - alpha to the labels.",
        ),
        "the two losses are added without alpha": Slip(
            partial(_mixed, shares=lambda alpha: (1, 1)), "alpha * soft + (1 - alpha) * hard."
        ),
        "the hard loss has weight 1": Slip(
            partial(_mixed, shares=lambda alpha: (alpha, 1)), "alpha * soft + (1 - alpha) * hard."
        ),
        "the hard labels are left out": Slip(
            partial(_mixed, shares=lambda alpha: (alpha, 0)),
            "Add (1 - alpha) times the cross-entropy of the labelled rows.",
        ),
        "a row without a label is taught class 0 as if that were its label": Slip(
            partial(_mixed, hard_rows="as class 0"),
            "Leave the rows with label -100 out of the hard loss: known = labels != -100.",
        ),
        "the teacher's most likely label replaces a missing one": Slip(
            partial(_mixed, hard_rows="pseudo"),
            "That is pseudo-labelling. Here a row without a label has only its soft target.",
        ),
        "the soft loss is a cross-entropy, which is the KL plus the teacher's entropy": Slip(
            partial(_mixed, soft_kind="cross-entropy"),
            "Use the KL divergence: it is 0 where the student equals its teacher.",
        ),
        "the two sides of the KL divergence are swapped": Slip(
            partial(_mixed, soft_kind="swapped"), "The weights are the teacher's probabilities."
        ),
        "the soft loss is averaged over the classes too (reduction='mean')": Slip(
            partial(_mixed, soft_count="entries"),
            "A KL is a sum over classes: average over the rows only (reduction='batchmean').",
        ),
    },
    edge_case="in a batch without labels",
    edges=partial(_mixed_draws, labelled=False),
    read=_no_nan,
    extra=_certain_teacher_and_gradient,
)
def mixed_loss(logits: Tensor, labels: Tensor, teacher_probs: Tensor, alpha: float) -> Tensor:
    """Scalar loss of logits and probabilities (B, C), labels (B,); label -100 means none.

    alpha * KL(teacher || student) over all rows + (1 - alpha) * cross-entropy over labelled rows.
    Temperature 1.
    """
    known = labels != -100
    hard = F.cross_entropy(logits[known], labels[known]) if known.any() else logits.sum() * 0
    soft = losses.soft_target_loss_from_probs(logits, teacher_probs)
    return losses.hybrid_loss(soft, hard, alpha)
