"""Exercises of notebook 04, the hybrid loss."""

# mypy: disable-error-code=has-type

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from comet_lib import losses
from comet_lib.checks.draws import attention_maps, mask_of, normal, probabilities, uniform
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

MASKS = [mask_of(lengths) for lengths in ((5, 3), (4, 6, 2), (7, 4))]


def _must_be_zero(answer: Answer, draw: tuple[Any, ...], message: str, look: str) -> None:
    if value_of(answer(*draw)).abs() > 1e-5:
        raise Misconception(message, look)


@exercise(
    look="Sum p * (log p - log q) over the classes, then take the mean over the rows.",
    draws=lambda source: [
        (probabilities(source, *shape), probabilities(source, *shape))
        for shape in ((5, 3), (4, 7), (6, 2))
    ],
    read=lambda result, p, q: refuse_nan(
        result,
        "the result is NaN",
        "0 log 0 counts as 0: use torch.xlogy(p, p), or set those terms to 0.",
    ),
    slips={
        "the two distributions are swapped: this is KL(q || p)": Slip(
            lambda p, q: kl_divergence.reference(q, p), "The weights are the teacher's, p."
        ),
        "the sign is wrong: a KL divergence is never negative": Slip(
            lambda p, q: -kl_divergence.reference(p, q), "Write log p - log q, which is log(p / q)."
        ),
        "this is the cross-entropy, not the KL": Slip(
            lambda p, q: -torch.xlogy(p, q).sum(-1).mean(), "Subtract the entropy of p."
        ),
        "the mean runs over the classes too": Slip(
            lambda p, q: kl_divergence.reference(p, q) / p.shape[-1],
            "Sum over the classes (dim=-1) first, then take the mean over the rows.",
        ),
        "the rows are summed, not averaged": Slip(
            lambda p, q: kl_divergence.reference(p, q) * len(p),
            "The loss must not grow with the batch: divide by the number of rows.",
        ),
        "the logarithms are not natural but to base 2": Slip(
            lambda p, q: (p * (p.log2() - q.log2())).sum(-1).mean(), "Use torch.log: nats."
        ),
        "the weights p in front of the logarithms are missing": Slip(
            lambda p, q: (p.log() - q.log()).sum(-1).mean(), "Multiply each log(p / q) by p."
        ),
        "the softmax is applied to probabilities": Slip(
            lambda p, q: kl_divergence.reference(p.softmax(-1), q.softmax(-1)),
            "p and q are probabilities already: just take their logarithm.",
        ),
    },
    otherwise=lambda answer, draws: _must_be_zero(
        answer,
        (draws[0][0], draws[0][0]),
        "KL(p || p) is not 0",
        "Treat p and q the same way inside the bracket.",
    ),
    edge_case="where the teacher gives a class probability 0",
    edges=lambda source: [
        (torch.eye(4)[torch.randint(4, (5,), generator=source)], probabilities(source, 5, 4))
    ],
)
def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Scalar KL(p || q): summed over the classes (last axis), mean over the rows.

    p (teacher) and q (student) are probabilities (N, C). 0 log 0 counts as 0.
    """
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1).mean()


def _gradient(
    s: Tensor,
    t: Tensor,
    T: float,
    *,
    power: int = 1,
    hot: tuple[int, int] = (1, 1),
    axis: int = -1,
    of: Callable[..., Tensor] = torch.softmax,
) -> Tensor:
    """The gradient with some parts replaced by slips; with none, the right value."""
    return T**power * (of(s / T ** hot[0], axis) - of(t / T ** hot[1], axis)) / len(s)


def _rows_sum_to_zero(answer: Answer, draws: Draws) -> None:
    if value_of(answer(*draws[0])).sum(-1).abs().max() > 1e-4:
        raise Misconception(
            "the gradient of a row does not sum to 0",
            "It is a difference of two distributions, and each of them sums to 1.",
        )


@exercise(
    look="T * (softmax(s / T) - softmax(t / T)) / N, with N the number of rows.",
    draws=lambda source: [
        (normal(source, *shape), normal(source, *shape), uniform(source, 1.5, 4.0))
        for shape in ((5, 3), (3, 7), (6, 4))
    ],
    slips={
        "one factor T is missing": Slip(
            partial(_gradient, power=0), "T squared of the loss times 1/T of the chain rule is T."
        ),
        "there is one factor T too many": Slip(
            partial(_gradient, power=2), "The chain rule through s / T divides T squared by T."
        ),
        "this is the gradient of the loss without T squared": Slip(
            partial(_gradient, power=-1), "Multiply by T squared."
        ),
        "the sign is wrong: this points from the student to the teacher": Slip(
            lambda s, t, T: -_gradient(s, t, T), "A gradient points uphill: student minus teacher."
        ),
        "it is not divided by the number of rows": Slip(
            lambda s, t, T: _gradient(s, t, T) * len(s),
            "The loss is a mean over N rows, so each row's gradient is divided by N.",
        ),
        "it is divided by the number of all entries": Slip(
            lambda s, t, T: _gradient(s, t, T) / s.shape[-1], "Divide only by the number of rows."
        ),
        "the logits are not softened": Slip(
            partial(_gradient, hot=(0, 0)), "Divide both by T before the softmax."
        ),
        "the student's logits are not softened": Slip(
            partial(_gradient, hot=(0, 1)), "Write s / T."
        ),
        "the teacher's logits are not softened": Slip(
            partial(_gradient, hot=(1, 0)), "Write t / T."
        ),
        "the softmax runs over the rows": Slip(
            partial(_gradient, axis=0), "The classes are the last axis: dim=-1."
        ),
        "these are the logits' differences: only the limit of a high temperature": Slip(
            lambda s, t, T: (s - t) / s.numel(), "For a finite T the softmax stays."
        ),
        "the logarithms of the probabilities are subtracted": Slip(
            partial(_gradient, of=torch.log_softmax), "Subtract the probabilities themselves."
        ),
    },
    otherwise=_rows_sum_to_zero,
)
def temperature_gradient(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> Tensor:
    """(N, C) gradient of T^2 / N * sum KL(softmax(t/T) || softmax(s/T)) by the student's logits."""
    return _gradient(student_logits, teacher_logits, temperature)


def _mse(
    s: Tensor,
    t: Tensor,
    mask: Tensor,
    *,
    queries: bool = True,
    keys: bool = True,
    by: str = "pairs",
) -> Tensor:
    """Squared error over the pairs with a valid query and key, or only one of both."""
    keep, real = torch.ones_like(s, dtype=torch.bool), mask.bool()
    keep = keep & real[:, :, None] if queries else keep
    keep = keep & real[:, None, :] if keys else keep
    counts: dict[str, Any] = {
        "pairs": keep.sum(),
        "all": keep.numel(),
        "rows": mask.sum(),
        "batch": len(mask),
    }
    return ((s - t).square() * keep).sum() / counts.get(by, 1)


def _sentence_by_sentence(loss: Answer, s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    each = [loss(s[i : i + 1], t[i : i + 1], mask[i : i + 1]) for i in range(len(mask))]
    return torch.stack(each).mean()


def _more_padding_changes_nothing(answer: Answer, draws: Draws) -> None:
    student, teacher, mask = draws[0]
    longer = [F.pad(x, (0, 2, 0, 2), value=0.5 * i) for i, x in enumerate((student, teacher))]
    here, there = answer(student, teacher, mask), answer(*longer, F.pad(mask, (0, 2)))
    if not torch.allclose(value_of(here), value_of(there), rtol=1e-4, atol=1e-7):
        raise Misconception("two more columns of padding change the loss")


@exercise(
    look="Keep the pairs whose query and key are both tokens; divide by their number.",
    # Weight on padded keys too, so that a forgotten mask of keys shows.
    draws=lambda source: [
        (*(probabilities(source, len(m), m.shape[1], m.shape[1]) for _ in range(2)), m)
        for m in MASKS
    ],
    slips={
        "padding is counted: neither queries nor keys are masked": Slip(
            partial(_mse, queries=False, keys=False),
            "Build pairs = mask[:, :, None] & mask[:, None, :] and leave the others out.",
        ),
        "padded queries are counted": Slip(
            partial(_mse, queries=False), "Mask the rows too: mask[:, :, None]."
        ),
        "padded keys are counted": Slip(
            partial(_mse, keys=False), "Mask columns too: mask[:, None]."
        ),
        "the errors at padding are left out, but it still counts in the division": Slip(
            partial(_mse, by="all"), "Divide by the number of valid pairs, not by B * L * L."
        ),
        "the sum is divided by the number of rows, not of pairs": Slip(
            partial(_mse, by="rows"), "Divide by the number of entries in the sum."
        ),
        "the sum is divided by the number of sentences": Slip(
            partial(_mse, by="batch"), "Divide by the number of valid pairs."
        ),
        "the squared errors are summed, not averaged": Slip(
            partial(_mse, by="nothing"), "Divide by the number of valid pairs."
        ),
        "each sentence has the same weight, whatever its length": Slip(
            partial(_sentence_by_sentence, losses.attention_mse),
            "Sum over the whole batch, then divide once by the number of valid pairs.",
        ),
        "these are absolute errors": Slip(
            lambda s, t, m: _mse((s - t).abs().sqrt(), torch.zeros(()), m),
            "Square the differences.",
        ),
        "this is the root of the mean squared error": Slip(
            lambda s, t, m: losses.attention_mse(s, t, m).sqrt(), "Leave the root out."
        ),
    },
    otherwise=_more_padding_changes_nothing,
    extra=lambda answer, draws: check_gradients(answer, draws[0]),
)
def masked_attention_mse(student_maps: Tensor, teacher_maps: Tensor, mask: Tensor) -> Tensor:
    """Scalar, eq. (3) of comet_lib.losses: maps (B, L, L), mask (B, L)."""
    return losses.attention_mse(student_maps, teacher_maps, mask)


def _row_kl(
    s: Tensor,
    t: Tensor,
    mask: Tensor,
    *,
    rows: str = "valid",
    by: str = "rows",
    entropy: bool = True,
    sign: int = 1,
) -> Tensor:
    """Row-wise KL over valid or all rows, divided in the given way."""
    terms = (torch.xlogy(t, t) if entropy else 0) - torch.xlogy(t, s)
    keep = mask if rows == "valid" else torch.ones_like(mask)
    pairs = mask.sum(-1).square().sum()
    counts: dict[str, Any] = {
        "rows": keep.sum(),
        "all": keep.numel(),
        "batch": len(mask),
        "pairs": pairs,
    }
    return sign * (terms.sum(-1) * keep).sum() / counts.get(by, 1)


def _softmax_again(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    padded = mask[:, None, :] == 0
    s, t = (x.masked_fill(padded, -torch.inf).softmax(-1) for x in (s, t))
    return losses.attention_kl(s, t, mask)


def _gradients_and_blind_student(answer: Answer, draws: Draws) -> None:
    check_gradients(answer, draws[0])
    student, teacher, mask = draws[0]
    blind = student.clone()
    blind[0, 0, 0] = 0.0
    refuse_infinity(
        answer(blind, teacher, mask),
        "a student that gives one key exactly 0 has an infinite loss",
        "Keep the student above a small number: .clamp_min(1e-8).",
    )


@exercise(
    look="One KL for each valid query row, summed over the keys; then the mean over valid rows.",
    draws=lambda source: [
        (attention_maps(source, mask), attention_maps(source, mask), mask) for mask in MASKS
    ],
    read=lambda result, *draw: refuse_nan(
        result,
        "padded keys, where both maps are 0, make the result NaN",
        "0 log 0 counts as 0: torch.xlogy(t, t) - t * s.clamp_min(1e-8).log().",
    ),
    slips={
        "rows of padded queries are counted": Slip(
            partial(_row_kl, rows="all"), "A padded query's row means nothing: leave it out."
        ),
        "padded rows are left out of the sum, but not of the division": Slip(
            partial(_row_kl, by="all"), "Divide by the number of valid rows, mask.sum()."
        ),
        "the two maps are swapped: this is KL(student || teacher)": Slip(
            lambda s, t, m: _row_kl(t, s, m), "The teacher's weights come before the logarithms."
        ),
        "the sum is divided by the number of sentences": Slip(
            partial(_row_kl, by="batch"),
            "F.kl_div's batchmean divides by the first axis; divide by mask.sum().",
        ),
        "the sum is divided by the number of pairs": Slip(
            partial(_row_kl, by="pairs"), "A KL is a sum over keys: average only over rows."
        ),
        "the rows are summed, not averaged": Slip(
            partial(_row_kl, by="nothing"), "Divide by the number of valid rows."
        ),
        "this is the cross-entropy, not the KL": Slip(
            partial(_row_kl, entropy=False), "Subtract the teacher's entropy: equal maps give 0."
        ),
        "the sign is wrong: a KL divergence is never negative": Slip(
            partial(_row_kl, sign=-1), "Write log teacher - log student."
        ),
        "a second softmax is applied to the maps": Slip(
            _softmax_again, "The rows are probabilities already: just take their logarithm."
        ),
        "each sentence has the same weight, whatever its length": Slip(
            partial(_sentence_by_sentence, losses.attention_kl),
            "Sum over the whole batch, then divide once by the number of valid rows.",
        ),
    },
    otherwise=lambda answer, draws: _must_be_zero(
        answer,
        (draws[0][0], draws[0][0], draws[0][2]),
        "a student with its teacher's maps has a loss other than 0",
        "Treat both maps the same way inside the bracket.",
    ),
    extra=_gradients_and_blind_student,
)
def attention_row_kl(student_maps: Tensor, teacher_maps: Tensor, mask: Tensor) -> Tensor:
    """Scalar, eq. (4) of comet_lib.losses.

    Each row of the maps (B, L, L) sums to 1 and gives padded keys nothing; mask is (B, L).
    """
    return losses.attention_kl(student_maps, teacher_maps, mask)


def _hybrid_draws(source: torch.Generator) -> Draws:
    draws = []
    for mask, classes, ends in zip(
        MASKS, (4, 7, 3), ((0.1, 0.35), (0.65, 0.9), (0.1, 0.35)), strict=True
    ):
        logits = [normal(source, len(mask) * 2, classes) for _ in range(2)]
        maps = [attention_maps(source, mask) for _ in range(2)]
        draws.append((*logits, *maps, mask, uniform(source, 1.5, 4.0), uniform(source, *ends)))
    return draws


def _hybrid(
    *draw: Any,
    soft: Callable[[float, float], float] = lambda a, T: a,
    maps: Callable[[float, float], float] = lambda a, T: 1 - a,
    attention: Answer = losses.attention_kl,
) -> Tensor:
    """The two losses, each with its weight (a function of alpha and T)."""
    sl, tl, sm, tm, mask, T, alpha = draw
    soft_loss, map_loss = losses.soft_target_loss(sl, tl, T), attention(sm, tm, mask)
    return soft(alpha, T) * soft_loss + maps(alpha, T) * map_loss


@exercise(
    look="alpha * soft targets + (1 - alpha) * row-wise KL of the maps.",
    draws=_hybrid_draws,
    slips={
        "alpha weights the attention term": Slip(
            partial(_hybrid, soft=lambda a, T: 1 - a, maps=lambda a, T: a),
            "alpha belongs to the soft targets, 1 - alpha to the attention.",
        ),
        "the attention term has no weight": Slip(
            partial(_hybrid, maps=lambda a, T: 1), "Multiply it by 1 - alpha."
        ),
        "the soft targets have no weight": Slip(
            partial(_hybrid, soft=lambda a, T: 1), "Multiply them by alpha."
        ),
        "both terms have the weight alpha": Slip(
            partial(_hybrid, maps=lambda a, T: a), "The attention term has 1 - alpha."
        ),
        "the two terms are added without weights": Slip(
            partial(_hybrid, soft=lambda a, T: 1, maps=lambda a, T: 1), "Use alpha and 1 - alpha."
        ),
        "the soft targets lack the factor T squared": Slip(
            partial(_hybrid, soft=lambda a, T: a / T**2),
            "losses.soft_target_loss includes it; in your own formula multiply by T * T.",
        ),
        "T squared multiplies the attention term": Slip(
            partial(_hybrid, maps=lambda a, T: (1 - a) * T**2),
            "There is no temperature in the maps: T squared belongs to the soft targets only.",
        ),
        "T squared is there twice": Slip(
            partial(_hybrid, soft=lambda a, T: a * T**2), "losses.soft_target_loss has it."
        ),
        "the attention term is the MSE, but the row-wise KL is wanted": Slip(
            partial(_hybrid, attention=losses.attention_mse), "Use attention_row_kl."
        ),
        "teacher and student are swapped in the soft targets": Slip(
            lambda sl, tl, *rest: _hybrid(tl, sl, *rest), "The student's logits come first."
        ),
        "teacher and student are swapped in the maps": Slip(
            lambda sl, tl, sm, tm, *rest: _hybrid(sl, tl, tm, sm, *rest), "Student's maps first."
        ),
        "the temperature is left at 1": Slip(
            lambda sl, tl, sm, tm, m, T, a: _hybrid(sl, tl, sm, tm, m, 1.0, a),
            "Pass the temperature to the soft-target loss.",
        ),
        "the attention term counts padding": Slip(
            partial(_hybrid, attention=partial(_row_kl, rows="all")), "Pass on the mask."
        ),
    },
    extra=lambda answer, draws: check_gradients(answer, draws[0], (0, 2), (1, 3)),
)
def hybrid(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_maps: Tensor,
    teacher_maps: Tensor,
    mask: Tensor,
    temperature: float,
    alpha: float,
) -> Tensor:
    """Scalar: alpha * soft-target loss + (1 - alpha) * row-wise attention KL."""
    soft = losses.soft_target_loss(student_logits, teacher_logits, temperature)
    attention = losses.attention_kl(student_maps, teacher_maps, mask)
    return losses.hybrid_loss(soft, attention, alpha)
