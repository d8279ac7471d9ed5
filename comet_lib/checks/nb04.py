"""Exercises of notebook 04, the hybrid loss."""

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
    uniform,
    value_of,
)

# --- What the checks share -----------------------------------------------------------------


def _refuse_nan(
    answer: Callable[..., Any], draws: Sequence[tuple[Any, ...]], message: str, look: str
) -> None:
    """Name a NaN by its cause here, before ``compare`` names it in general."""
    for draw in draws:
        result = answer(*draw)
        if isinstance(result, Tensor) and value_of(result).isnan().any():
            raise Misconception(message, look)


def _teacher_is_fixed(answer: Callable[..., Any], draw: tuple[Any, ...], pairs: int = 1) -> None:
    """The first 2 x ``pairs`` arguments are student, teacher, student, teacher ... tensors."""
    leaves = [x.clone().requires_grad_() for x in draw[: 2 * pairs]]
    loss = answer(*leaves, *draw[2 * pairs :])
    if not loss.requires_grad:
        raise Misconception(
            "no gradient reaches the student", "Detach the teacher alone; use no torch.no_grad()."
        )
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    for to_student in gradients[::2]:
        if to_student is not None and to_student.isnan().any():
            raise Misconception(
                "the value is right, but the student's gradient is NaN",
                "At padded keys the student's map is 0: clamp it, .clamp_min(1e-8), before the "
                "logarithm.",
            )
        if to_student is None or not to_student.abs().max() > 0:
            raise Misconception(
                "a part of the student gets no gradient", "Detach nothing of the student's side."
            )
    for to_teacher in gradients[1::2]:
        if to_teacher is not None and not to_teacher.abs().max() <= 0:  # NaN is not zero either
            raise Misconception(
                "the gradient reaches the teacher", "The teacher is fixed: .detach() its side."
            )


def _maps(source: torch.Generator, mask: Tensor) -> Tensor:
    """Maps as a model gives them: no weight on padded keys, something on padded queries."""
    batch, length = mask.shape
    scores = normal(source, batch, length, length, scale=1.5)
    return scores.masked_fill(mask[:, None, :] == 0, -torch.inf).softmax(-1)


def _mask(lengths: Sequence[int]) -> Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


# --- KL divergence -------------------------------------------------------------------------


def _kl_reference(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1).mean()


@exercise(
    "kl_divergence",
    notebook="04",
    reference=_kl_reference,
    look="Sum p * (log p - log q) over the classes, then take the mean over the rows.",
)
def kl_divergence(answer: Callable[..., Any]) -> None:
    """answer(p, q) -> scalar: KL(p || q), summed over the classes (last axis), mean over rows.

    p (teacher) and q (student) are probabilities (N, C). 0 log 0 counts as 0.
    """
    source = generator()
    shapes = ((5, 3), (4, 7), (6, 2))
    draws = [
        tuple(normal(source, *shape, scale=1.5).softmax(-1) for _ in range(2)) for shape in shapes
    ]
    slips = [
        Slip(
            "the two distributions are swapped: this is KL(q || p)",
            lambda p, q: _kl_reference(q, p),
            "The weights in front of the logarithms are the teacher's, p.",
        ),
        Slip(
            "the sign is wrong: a KL divergence is never negative",
            lambda p, q: -_kl_reference(p, q),
            "Write log p - log q, which is log(p / q).",
        ),
        Slip(
            "this is the cross-entropy, not the KL",
            lambda p, q: -torch.xlogy(p, q).sum(-1).mean(),
            "Subtract the entropy of p: for q = p the result must be 0.",
        ),
        Slip(
            "the mean runs over the classes too",
            lambda p, q: (torch.xlogy(p, p) - torch.xlogy(p, q)).mean(),
            "Sum over the classes (dim=-1) first, then take the mean over the rows.",
        ),
        Slip(
            "the rows are summed, not averaged",
            lambda p, q: (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(),
            "The loss must not grow with the batch: divide by the number of rows.",
        ),
        Slip(
            "the logarithms are not natural but to base 2",
            lambda p, q: (p * (p.log2() - q.log2())).sum(-1).mean(),
            "Use torch.log: nats, as in the library.",
        ),
        Slip(
            "the weights p in front of the logarithms are missing",
            lambda p, q: (p.log() - q.log()).sum(-1).mean(),
            "Multiply each log(p / q) by p before you sum.",
        ),
        Slip(
            "the softmax is applied to probabilities",
            lambda p, q: _kl_reference(p.softmax(-1), q.softmax(-1)),
            "p and q are probabilities already: take their logarithm alone.",
        ),
    ]

    def properties() -> None:
        same = draws[0][0]
        if value_of(answer(same, same)).abs() > 1e-5:
            raise Misconception(
                "KL(p || p) is not 0", "Treat p and q in the same way inside the bracket."
            )

    compare(answer, draws, _kl_reference, slips, properties)
    certain = torch.eye(4)[torch.randint(4, (5,), generator=source)]
    draw = (certain, normal(source, 5, 4, scale=1.5).softmax(-1))
    _refuse_nan(
        answer,
        [draw],
        "where the teacher gives a class probability 0, the result is NaN",
        "0 log 0 counts as 0: use torch.xlogy(p, p), or set those terms to 0.",
    )
    compare(answer, [draw], _kl_reference)


# --- The gradient --------------------------------------------------------------------------


def _gradient_reference(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    soft = [(x / temperature).softmax(-1) for x in (student, teacher)]
    return temperature * (soft[0] - soft[1]) / len(student)


@exercise(
    "temperature_gradient",
    notebook="04",
    reference=_gradient_reference,
    look="T * (softmax(s / T) - softmax(t / T)) / N, with N the number of rows.",
)
def temperature_gradient(answer: Callable[..., Any]) -> None:
    """answer(student_logits, teacher_logits, temperature) -> (N, C), the gradient of
    T^2 / N * sum KL(softmax(t/T) || softmax(s/T)) with respect to the student's logits."""
    source = generator()
    draws = [
        (normal(source, *shape), normal(source, *shape), uniform(source, 1.5, 4.0))
        for shape in ((5, 3), (3, 7), (6, 4))
    ]

    def scaled(power: int) -> Callable[..., Tensor]:
        return lambda s, t, T: _gradient_reference(s, t, T) * T**power

    def softened(student: bool, teacher: bool) -> Callable[..., Tensor]:
        def formula(s: Tensor, t: Tensor, T: float) -> Tensor:
            q, p = (s / (T if student else 1)).softmax(-1), (t / (T if teacher else 1)).softmax(-1)
            return T * (q - p) / len(s)

        return formula

    slips = [
        Slip(
            "one factor T is missing",
            scaled(-1),
            "T squared from the loss times 1/T from the chain rule (s / T) leaves one T.",
        ),
        Slip(
            "there is one factor T too many",
            scaled(1),
            "The chain rule through s / T brings 1/T: of T squared only one T stays.",
        ),
        Slip(
            "this is the gradient of the loss without T squared",
            scaled(-2),
            "Multiply by T squared.",
        ),
        Slip(
            "the sign is wrong: this points from the student to the teacher",
            lambda s, t, T: -_gradient_reference(s, t, T),
            "A gradient points uphill; it is student minus teacher.",
        ),
        Slip(
            "it is not divided by the number of rows",
            lambda s, t, T: _gradient_reference(s, t, T) * len(s),
            "The loss is a mean over N rows, so each row's gradient is divided by N.",
        ),
        Slip(
            "it is divided by the number of all entries",
            lambda s, t, T: _gradient_reference(s, t, T) / s.shape[-1],
            "Divide by the number of rows, len(student_logits), alone.",
        ),
        Slip(
            "the logits are not softened",
            softened(False, False),
            "Divide both by T before the softmax.",
        ),
        Slip("the student's logits are not softened", softened(False, True), "Write s / T."),
        Slip("the teacher's logits are not softened", softened(True, False), "Write t / T."),
        Slip(
            "the softmax runs over the rows",
            lambda s, t, T: T * ((s / T).softmax(0) - (t / T).softmax(0)) / len(s),
            "The classes are the last axis: dim=-1.",
        ),
        Slip(
            "these are the logits' differences: only the limit of a high temperature",
            lambda s, t, T: (s - t) / s.numel(),
            "For a finite T the softmax stays.",
        ),
        Slip(
            "the logarithms of the probabilities are subtracted",
            lambda s, t, T: T * ((s / T).log_softmax(-1) - (t / T).log_softmax(-1)) / len(s),
            "The derivative of log-softmax gives the probabilities themselves.",
        ),
    ]

    def rows_sum_to_zero() -> None:
        if value_of(answer(*draws[0])).sum(-1).abs().max() > 1e-4:
            raise Misconception(
                "the gradient of a row does not sum to 0",
                "It is a difference of two distributions, and each of them sums to 1.",
            )

    compare(answer, draws, _gradient_reference, slips, rows_sum_to_zero)


# --- Attention -----------------------------------------------------------------------------


def _mse_over(pairs: Callable[[Tensor], Tensor], count: str) -> Callable[..., Tensor]:
    """Squared error over the given pairs, divided in the given way."""

    def formula(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        keep = pairs(mask.bool()).expand_as(student)
        error = (student - teacher).square() * keep
        rows = keep.any(-1).sum()
        by: dict[str, Any] = {
            "pairs": keep.sum(),
            "all": keep.numel(),
            "rows": rows,
            "batch": len(mask),
            "none": 1,
        }
        return error.sum() / by[count]

    return formula


def _both(mask: Tensor) -> Tensor:
    return mask[:, :, None] & mask[:, None, :]


def _queries(mask: Tensor) -> Tensor:
    return mask[:, :, None]


def _keys(mask: Tensor) -> Tensor:
    return mask[:, None, :]


@exercise(
    "masked_attention_mse",
    notebook="04",
    reference=losses.attention_mse,
    look="Keep the pairs whose query and key are both tokens; divide by their number.",
)
def masked_attention_mse(answer: Callable[..., Any]) -> None:
    """answer(student_maps, teacher_maps, mask) -> scalar, eq. (3) of comet_lib.losses.

    Maps are (B, L, L), the mask (B, L).
    """
    source = generator()
    masks = [_mask(lengths) for lengths in ((5, 3), (4, 6, 2), (7, 4))]
    # Weight on padded keys too, so that a forgotten mask of keys shows.
    draws = [
        (*(normal(source, len(m), *[m.shape[1]] * 2).softmax(-1) for _ in range(2)), m)
        for m in masks
    ]
    slips = [
        Slip(
            "padding is counted: neither queries nor keys are masked",
            lambda s, t, m: F.mse_loss(s, t),
            "Build pairs = mask[:, :, None] & mask[:, None, :] and leave the others out.",
        ),
        Slip(
            "padded queries are counted",
            _mse_over(_keys, "pairs"),
            "Mask the rows too: mask[:, :, None].",
        ),
        Slip(
            "padded keys are counted",
            _mse_over(_queries, "pairs"),
            "Mask the columns too: mask[:, None, :].",
        ),
        Slip(
            "the errors at padding are left out, but it still counts in the division",
            _mse_over(_both, "all"),
            "Divide by the number of valid pairs, pairs.sum(), not by B * L * L.",
        ),
        Slip(
            "the sum is divided by the number of rows, not of pairs",
            _mse_over(_both, "rows"),
            "A mean of squared errors divides by the number of entries it sums.",
        ),
        Slip(
            "the sum is divided by the number of sentences",
            _mse_over(_both, "batch"),
            "Divide by the number of valid pairs.",
        ),
        Slip(
            "the squared errors are summed, not averaged",
            _mse_over(_both, "none"),
            "Divide by the number of valid pairs.",
        ),
        Slip(
            "each sentence has the same weight, whatever its length",
            lambda s, t, m: torch.stack(
                [losses.attention_mse(*(x[i : i + 1] for x in (s, t, m))) for i in range(len(m))]
            ).mean(),
            "Sum over the whole batch, then divide once by the number of valid pairs.",
        ),
        Slip(
            "these are absolute errors",
            lambda s, t, m: (s - t).abs()[_both(m.bool())].mean(),
            "Square the differences.",
        ),
        Slip(
            "this is the root of the mean squared error",
            lambda s, t, m: losses.attention_mse(s, t, m).sqrt(),
            "Leave the root out.",
        ),
    ]

    def more_padding_changes_nothing() -> None:
        student, teacher, mask = draws[0]
        longer = [F.pad(x, (0, 2, 0, 2), value=0.5 * i) for i, x in enumerate((student, teacher))]
        here, there = answer(student, teacher, mask), answer(*longer, F.pad(mask, (0, 2)))
        if not torch.allclose(value_of(here), value_of(there), rtol=1e-4, atol=1e-7):
            raise Misconception("two more columns of padding change the loss")

    compare(answer, draws, losses.attention_mse, slips, more_padding_changes_nothing)
    _teacher_is_fixed(answer, draws[0])


def _rows_over(
    pick: Callable[[Tensor], Tensor], count: str, kind: str = "KL"
) -> Callable[..., Tensor]:
    """Row-wise KL over the picked rows (B, L), divided in the given way."""

    def formula(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        s, t = (teacher, student) if kind == "swapped" else (student, teacher)
        terms = -torch.xlogy(t, s) + (0 if kind == "cross-entropy" else torch.xlogy(t, t))
        keep = pick(mask.bool())
        by: dict[str, Any] = {
            "rows": keep.sum(),
            "all rows": keep.numel(),
            "batch": len(mask),
            "pairs": _both(mask.bool()).sum(),
            "none": 1,
        }
        return (-1 if kind == "negative" else 1) * (terms.sum(-1) * keep).sum() / by[count]

    return formula


@exercise(
    "attention_row_kl",
    notebook="04",
    reference=losses.attention_kl,
    look="One KL for each valid query row, summed over the keys; then the mean over valid rows.",
)
def attention_row_kl(answer: Callable[..., Any]) -> None:
    """answer(student_maps, teacher_maps, mask) -> scalar, eq. (4) of comet_lib.losses.

    Each row of the maps (B, L, L) sums to 1 and gives padded keys nothing; mask is (B, L).
    """
    source = generator()
    masks = [_mask(lengths) for lengths in ((5, 3), (4, 6, 2), (7, 4))]
    draws = [(_maps(source, m), _maps(source, m), m) for m in masks]

    def valid(mask: Tensor) -> Tensor:
        return mask

    def softmax_again(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        padded = mask[:, None, :] == 0
        s, t = (x.masked_fill(padded, -torch.inf).softmax(-1) for x in (student, teacher))
        return losses.attention_kl(s, t, mask)

    slips = [
        Slip(
            "rows of padded queries are counted",
            _rows_over(torch.ones_like, "all rows"),
            "A padded query's row sums to 1 as well, but means nothing: leave it out.",
        ),
        Slip(
            "padded rows are left out of the sum, but not of the division",
            _rows_over(valid, "all rows"),
            "Divide by mask.sum(), the number of valid rows, not by B * L.",
        ),
        Slip(
            "the two maps are swapped: this is KL(student || teacher)",
            _rows_over(valid, "rows", "swapped"),
            "The teacher's weights stand in front of the logarithms.",
        ),
        Slip(
            "the sum is divided by the number of sentences",
            _rows_over(valid, "batch"),
            "F.kl_div's batchmean divides by the first axis alone; here the rows are the batch: "
            "divide by mask.sum().",
        ),
        Slip(
            "the sum is divided by the number of pairs",
            _rows_over(valid, "pairs"),
            "A KL is a sum over keys: average over rows alone, or the 1/L comes back.",
        ),
        Slip(
            "the rows are summed, not averaged",
            _rows_over(valid, "none"),
            "Divide by the number of valid rows.",
        ),
        Slip(
            "this is the cross-entropy, not the KL",
            _rows_over(valid, "rows", "cross-entropy"),
            "Subtract the entropy of the teacher's rows: equal maps must give 0.",
        ),
        Slip(
            "the sign is wrong: a KL divergence is never negative",
            _rows_over(valid, "rows", "negative"),
            "Write log teacher - log student.",
        ),
        Slip(
            "a second softmax is applied to the maps",
            softmax_again,
            "The rows are probabilities already: take their logarithm alone.",
        ),
        Slip(
            "each sentence has the same weight, whatever its length",
            lambda s, t, m: torch.stack(
                [losses.attention_kl(*(x[i : i + 1] for x in (s, t, m))) for i in range(len(m))]
            ).mean(),
            "Sum over the whole batch, then divide once by the number of valid rows.",
        ),
    ]
    _refuse_nan(
        answer,
        draws,
        "padded keys, where both maps are 0, make the result NaN",
        "0 log 0 counts as 0: torch.xlogy(t, t) - t * s.clamp_min(1e-8).log().",
    )

    def equal_maps() -> None:
        student, _, mask = draws[0]
        if value_of(answer(student, student, mask)).abs() > 1e-4:
            raise Misconception(
                "a student with its teacher's maps has a loss other than 0",
                "Treat both maps in the same way inside the bracket.",
            )

    compare(answer, draws, losses.attention_kl, slips, equal_maps)
    _teacher_is_fixed(answer, draws[0])
    student, teacher, mask = draws[0]
    blind = student.clone()
    blind[0, 0, 0] = 0.0
    result = value_of(answer(blind, teacher, mask))
    if not torch.isfinite(result):
        raise Misconception(
            "a student that gives one key exactly 0 has an infinite loss",
            "Keep the student above a small number: .clamp_min(1e-8).",
        )


# --- The two together ----------------------------------------------------------------------


def _hybrid_reference(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_maps: Tensor,
    teacher_maps: Tensor,
    mask: Tensor,
    temperature: float,
    alpha: float,
) -> Tensor:
    soft = losses.soft_target_loss(student_logits, teacher_logits, temperature)
    attention = losses.attention_kl(student_maps, teacher_maps, mask)
    return losses.hybrid_loss(soft, attention, alpha)


@exercise(
    "hybrid",
    notebook="04",
    reference=_hybrid_reference,
    look="alpha * soft targets + (1 - alpha) * row-wise KL of the maps.",
)
def hybrid(answer: Callable[..., Any]) -> None:
    """answer(student_logits, teacher_logits, student_maps, teacher_maps, mask, temperature, alpha)
    -> scalar: alpha * soft-target loss + (1 - alpha) * row-wise attention KL."""
    source = generator()
    draws = []
    for lengths, classes, ends in (
        ((5, 3), 4, (0.1, 0.35)),
        ((4, 6, 2), 7, (0.65, 0.9)),
        ((7, 4), 3, (0.1, 0.35)),
    ):
        mask = _mask(lengths)
        logits = [normal(source, len(lengths) * 2, classes) for _ in range(2)]
        maps = [_maps(source, mask) for _ in range(2)]
        draws.append((*logits, *maps, mask, uniform(source, 1.5, 4.0), uniform(source, *ends)))

    def variant(weigh: Callable[[Tensor, Tensor, float, float], Tensor]) -> Callable[..., Tensor]:
        def formula(sl: Tensor, tl: Tensor, sm: Tensor, tm: Tensor, m: Tensor, T: float, a: float):
            soft = losses.soft_target_loss(sl, tl, T)
            return weigh(soft, losses.attention_kl(sm, tm, m), a, T)

        return formula

    slips = [
        Slip(
            "alpha weighs the attention term",
            variant(lambda s, k, a, T: (1 - a) * s + a * k),
            "alpha belongs to the soft targets, 1 - alpha to the attention.",
        ),
        Slip(
            "the attention term has no weight",
            variant(lambda s, k, a, T: a * s + k),
            "Multiply it by (1 - alpha), so that both weights sum to 1.",
        ),
        Slip(
            "the soft targets have no weight",
            variant(lambda s, k, a, T: s + (1 - a) * k),
            "Multiply them by alpha.",
        ),
        Slip(
            "both terms have the weight alpha",
            variant(lambda s, k, a, T: a * (s + k)),
            "The attention term has 1 - alpha.",
        ),
        Slip(
            "the two terms are added without weights",
            variant(lambda s, k, a, T: s + k),
            "alpha and 1 - alpha are missing.",
        ),
        Slip(
            "the soft targets lack the factor T squared",
            variant(lambda s, k, a, T: a * s / T**2 + (1 - a) * k),
            "losses.soft_target_loss holds it already; in your own formula multiply by T * T.",
        ),
        Slip(
            "T squared multiplies the attention term",
            variant(lambda s, k, a, T: a * s + (1 - a) * k * T**2),
            "There is no temperature in the maps: T squared belongs to the soft targets alone.",
        ),
        Slip(
            "T squared stands there twice",
            variant(lambda s, k, a, T: a * s * T**2 + (1 - a) * k),
            "losses.soft_target_loss multiplies by T * T already.",
        ),
        Slip(
            "the attention term is the MSE, and the row-wise KL is asked for",
            lambda sl, tl, sm, tm, m, T, a: (
                a * losses.soft_target_loss(sl, tl, T) + (1 - a) * losses.attention_mse(sm, tm, m)
            ),
            "Use attention_row_kl, or losses.attention_kl.",
        ),
        Slip(
            "teacher and student are swapped in the soft targets",
            lambda sl, tl, sm, tm, m, T, a: _hybrid_reference(tl, sl, sm, tm, m, T, a),
            "The student's logits come first.",
        ),
        Slip(
            "teacher and student are swapped in the maps",
            lambda sl, tl, sm, tm, m, T, a: _hybrid_reference(sl, tl, tm, sm, m, T, a),
            "The student's maps come first.",
        ),
        Slip(
            "the temperature is left at 1",
            lambda sl, tl, sm, tm, m, T, a: _hybrid_reference(sl, tl, sm, tm, m, 1.0, a),
            "Hand the temperature to the soft-target loss.",
        ),
        Slip(
            "the attention term counts padding",
            lambda sl, tl, sm, tm, m, T, a: (
                a * losses.soft_target_loss(sl, tl, T)
                + (1 - a) * _rows_over(torch.ones_like, "all rows")(sm, tm, m)
            ),
            "Hand the mask to the attention loss.",
        ),
    ]
    compare(answer, draws, _hybrid_reference, slips)
    _teacher_is_fixed(answer, draws[0], pairs=2)
