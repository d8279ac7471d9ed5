"""Exercises of notebook 04, the hybrid loss."""

# mypy: disable-error-code=has-type

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from comet_lib import losses
from comet_lib.checks.draws import attention_maps, mask_of, normal, probabilities, uniform, whole
from comet_lib.checks.framework import (
    Answer,
    Draws,
    Misconception,
    Slip,
    check_gradients,
    exercise,
    is_number,
    numbers,
    refuse_infinity,
    refuse_nan,
    value_of,
)


def _must_be_zero(answer: Answer, draw: tuple[Any, ...], message: str, look: str) -> None:
    if value_of(answer(*draw)).abs() > 1e-5:
        raise Misconception(message, look)


def _kl(
    p: Tensor,
    q: Tensor,
    *,
    weight: str = "p",
    sign: int = 1,
    entropy: bool = True,
    by: Callable[[Tensor], Tensor] = lambda terms: terms.sum(-1).mean(),
    log: Callable[[Tensor], Tensor] = torch.log,
    read: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """The divergence with some parts replaced by slips."""
    p, q = read(p), read(q)
    p, q = (q, p) if weight == "q" else (p, q)
    front = torch.ones_like(p) if weight == "none" else p
    own = front * log(p.where(p > 0, 1.0)) if entropy else torch.zeros_like(p)
    return sign * by(own - front * log(q))


def _gradient_of_place(answer: Answer, draw: tuple[Any, ...], place: int) -> None:
    """A gradient must flow to the argument at ``place``: what is written here trains something."""
    arguments = [*draw]
    arguments[place] = draw[place].clone().requires_grad_()
    loss = answer(*arguments)
    if not loss.requires_grad:
        raise Misconception(
            "the value is right, but no gradient reaches the student",
            "Use torch throughout, without .detach(), .item() or torch.no_grad().",
        )


@exercise(
    look="Sum over the classes of one row first; the mean over the rows comes last.",
    draws=lambda source: [
        (probabilities(source, *shape), probabilities(source, *shape))
        for shape in ((5, 3), (4, 7), (6, 2), (1, 4))
    ],
    read=lambda result, p, q: refuse_nan(
        result,
        "the result is NaN",
        "0 log 0 counts as 0: use torch.xlogy(p, p), or set those terms to 0.",
    ),
    slips={
        "the two distributions are swapped: this is KL(q || p)": Slip(
            partial(_kl, weight="q"), "The weights are the teacher's, p."
        ),
        "the sign is wrong: a KL divergence is never negative": Slip(
            partial(_kl, sign=-1), "Write log p - log q, which is log(p / q)."
        ),
        "this is the cross-entropy, not the KL": Slip(
            partial(_kl, entropy=False), "Subtract the entropy of p."
        ),
        "the mean runs over the classes too": Slip(
            partial(_kl, by=torch.mean),
            "Sum over the classes (dim=-1) first, then take the mean over the rows.",
        ),
        "the rows are summed, not averaged": Slip(
            partial(_kl, by=torch.sum),
            "The loss must not grow with the batch: divide by the number of rows.",
        ),
        "the sum runs over the rows, and the mean over the classes": Slip(
            partial(_kl, by=lambda terms: terms.sum(0).mean()), "The classes are the last axis."
        ),
        "only the first row counts": Slip(
            partial(_kl, by=lambda terms: terms[0].sum()), "Take the mean over all rows."
        ),
        "the logarithms are not natural but to base 2": Slip(
            partial(_kl, log=torch.log2), "Use torch.log: nats."
        ),
        "the weights p in front of the logarithms are missing": Slip(
            partial(_kl, weight="none"), "Multiply each log(p / q) by p."
        ),
        "the softmax is applied to probabilities": Slip(
            partial(_kl, read=partial(torch.softmax, dim=-1)),
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
    extra=lambda answer, draws: _gradient_of_place(answer, draws[0], 1),
)
def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Scalar KL(p || q): summed over the classes (last axis), mean over the rows.

    p (teacher) and q (student) are probabilities (N, C). 0 log 0 counts as 0.
    """
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1).mean()


def _reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    return kl_divergence.reference(q, p)


def _two_peaks(source: torch.Generator) -> Tensor:
    """(1, 15) two peaks, one of them a little larger; nowhere exactly 0."""
    x, first, height = torch.arange(15.0), uniform(source, 3, 4), uniform(source, 0.55, 0.65)
    peaks = height * torch.exp(-((x - first) ** 2) / 2)
    peaks = peaks + (1 - height) * torch.exp(-((x - first - 7) ** 2) / 2)
    return (peaks / peaks.sum() * 0.999 + 0.001 / 15)[None]


def _bells() -> Tensor:
    """(45, 15) bells of several centers and widths."""
    x, centers = torch.arange(15.0), torch.arange(0, 15.0)[:, None, None]
    widths = torch.tensor([1.0, 2.0, 4.0])[:, None]
    return (-((x - centers) ** 2) / (2 * widths**2)).log_softmax(-1).exp().flatten(0, 1)


def _nearest(
    target: Tensor,
    bells: Tensor,
    divergence: Answer,
    *,
    swapped: bool = False,
    pick: Callable[[Tensor], Tensor] = torch.argmin,
    percent: Callable[[Tensor, Tensor], Any] = lambda bell, no: 100 * bell[no].sum(),
) -> tuple[Tensor, float]:
    """The bell and its percentage with some parts replaced by slips."""
    costs = [
        divergence(bell[None], target) if swapped else divergence(target, bell[None])
        for bell in bells.clamp_min(1e-30)
    ]
    bell = bells[pick(torch.stack(costs))]
    return bell, float(percent(bell, target[0] < 0.01))


def _bell_and_number(
    result: Any, target: Tensor, bells: Tensor, divergence: Answer
) -> tuple[Tensor, Tensor]:
    wanted = "but a bell and a percentage are wanted"
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Misconception(f"your function returned a {type(result).__name__}, {wanted}")
    bell, percent = result
    if is_number(bell):
        raise Misconception("this is the number of a bell", "Return the bell itself: bells[i].")
    if not isinstance(bell, Tensor) or bell.numel() != target.numel() or not is_number(percent):
        raise Misconception(f"these are a {type(bell).__name__} and a {type(percent).__name__}, "
                            f"{wanted}", "A row of bells, (C,), and a number.")  # fmt: skip
    return bell.flatten(), value_of(percent)


@exercise(
    look="One divergence for each bell; return the bell that has the smallest, and its percentage.",
    draws=lambda source: [
        (_two_peaks(source), _bells(), divergence)
        for divergence in (kl_divergence.reference, _reverse_kl)
    ],
    read=_bell_and_number,
    slips={
        "the target and the bell are swapped in the divergence": Slip(
            partial(_nearest, swapped=True), "Call divergence(target, bell): the target is first."
        ),
        "this is the bell that is furthest away": Slip(
            partial(_nearest, pick=torch.argmax), "The smallest divergence is wanted: argmin."
        ),
        "both divergences give the bell nearest by KL(target || bell)": Slip(
            lambda target, bells, divergence: _nearest(target, bells, kl_divergence.reference),
            "Use the divergence that your function is given, not kl_divergence.",
        ),
        "the bell is right, but the second number is a fraction": Slip(
            partial(_nearest, percent=lambda bell, no: bell[no].sum()), "Multiply by 100."
        ),
        "the bell is right, but the second number counts classes": Slip(
            partial(_nearest, percent=lambda bell, no: 100 * no.float().mean()),
            "Add up what the bell gives to these classes.",
        ),
        "the bell is right, but the second number is an average": Slip(
            partial(_nearest, percent=lambda bell, no: 100 * bell[no].mean()), "Take the sum."
        ),
        "the bell is right, but the second number is what lies where the teacher says yes": Slip(
            partial(_nearest, percent=lambda bell, no: 100 * bell[~no].sum()), "target < 0.01."
        ),
        "the bell is right, but its own small entries are added up": Slip(
            partial(_nearest, percent=lambda bell, no: 100 * bell[bell < 0.01].sum()),
            "The target chooses the classes: target[0] < 0.01.",
        ),
    },
)
def nearest_bell(target: Tensor, bells: Tensor, divergence: Answer) -> tuple[Tensor, float]:
    """(C,) the row of bells (N, C) with the smallest divergence(target, bell), both (1, C); and how
    many percent of it lie where the target is below 0.01."""
    return _nearest(target, bells, divergence)


def _jsd(
    p: Tensor,
    q: Tensor,
    beta: float,
    *,
    middle: Callable[[float], float] = lambda b: b,
    weights: Callable[[float], tuple[float, float]] = lambda b: (b, 1 - b),
    turned: bool = False,
    geometric: bool = False,
    by: Callable[[Tensor], Tensor] = lambda terms: terms.sum(-1).mean(),
) -> Tensor:
    """The divergence with some parts replaced by slips."""
    share = middle(beta)
    m = p**share * q ** (1 - share) if geometric else share * p + (1 - share) * q

    def kl(a: Tensor, b: Tensor) -> Tensor:
        a, b = (b, a) if turned else (a, b)
        return by(torch.xlogy(a, a) - torch.xlogy(a, b.clamp_min(1e-30)))

    of_p, of_q = weights(beta)
    return of_p * kl(p, m) + of_q * kl(q, m)


@exercise(
    look="Mix first, then two KL divergences to the mixture, each with its weight.",
    draws=lambda source: [
        (probabilities(source, *shape), probabilities(source, *shape), beta)
        for shape, beta in (((5, 3), 0.1), ((4, 7), 0.5), ((1, 4), uniform(source, 0.65, 0.9)))
    ],
    slips={
        "p and q have each other's share in the mixture": Slip(
            partial(_jsd, middle=lambda b: 1 - b), "m = beta * p + (1 - beta) * q."
        ),
        "the weights of the two divergences are swapped": Slip(
            partial(_jsd, weights=lambda b: (1 - b, b)), "beta belongs to the one that starts at p."
        ),
        "the mixture is half and half for every beta": Slip(
            partial(_jsd, middle=lambda b: 0.5), "beta sets the mixture too."
        ),
        "both divergences have the weight one half": Slip(
            partial(_jsd, weights=lambda b: (0.5, 0.5)), "The weights are beta and 1 - beta."
        ),
        "the two divergences are added without weights": Slip(
            partial(_jsd, weights=lambda b: (1, 1)), "The weights are beta and 1 - beta."
        ),
        "the divergences run from the mixture, KL(m || p)": Slip(
            partial(_jsd, turned=True), "They run to it: KL(p || m). Then no value is infinite."
        ),
        "the two divergences run to each other, not to the mixture": Slip(
            lambda p, q, b: b * kl_divergence.reference(p, q) + (1 - b) * _reverse_kl(p, q),
            "Compute m = beta * p + (1 - beta) * q first.",
        ),
        "the divergence of q has no weight": Slip(
            partial(_jsd, weights=lambda b: (b, 1)), "The weights are beta and 1 - beta."
        ),
        "only the part of p is there": Slip(
            partial(_jsd, weights=lambda b: (b, 0)), "Add the part of q, (1 - beta) KL(q || m)."
        ),
        "only the part of q is there": Slip(
            partial(_jsd, weights=lambda b: (0, 1 - b)), "Add the part of p, beta KL(p || m)."
        ),
        "the mixture is a product of powers": Slip(
            partial(_jsd, geometric=True), "It is a weighted mean: beta * p + (1 - beta) * q."
        ),
        "the rows are summed, not averaged": Slip(
            partial(_jsd, by=torch.sum), "Take the mean over the rows, as in kl_divergence."
        ),
        "the mean runs over the classes too": Slip(
            partial(_jsd, by=torch.mean), "Sum over the classes of a row first."
        ),
    },
    otherwise=lambda answer, draws: _must_be_zero(
        answer,
        (draws[0][0], draws[0][0], draws[0][2]),
        "for equal p and q the result is not 0",
        "With p = q the mixture is p itself.",
    ),
    edge_case="where one of the two gives a class probability 0",
    edges=lambda source: [
        (*pair, 0.3)
        for certain in (torch.eye(4)[torch.randint(4, (5,), generator=source)],)
        for other in (probabilities(source, 5, 4),)
        for pair in ((certain, other), (other, certain))
    ],
    extra=lambda answer, draws: _gradient_of_place(answer, draws[0], 1),
)
def generalized_jsd(p: Tensor, q: Tensor, beta: float) -> Tensor:
    """Scalar: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q.

    p (teacher) and q (student) are probabilities (N, C). Agarwal et al. 2023, arXiv 2306.13649.
    """
    m = beta * p + (1 - beta) * q
    return beta * kl_divergence.reference(p, m) + (1 - beta) * kl_divergence.reference(q, m)


def _gradient(
    s: Tensor,
    t: Tensor,
    T: float,
    *,
    power: int = 1,
    hot: tuple[int, int] = (1, 1),
    axis: int = -1,
    of: Callable[..., Tensor] = torch.softmax,
    sign: int = 1,
    by: Callable[[Tensor], int] = len,
) -> Tensor:
    """The gradient with some parts replaced by slips; ``hot``: powers of T under s and t."""
    pull = of(s / T ** hot[0], axis) - of(t / T ** hot[1], axis)
    return sign * T**power * pull / by(s)


def _rows_sum_to_zero(answer: Answer, draws: Draws) -> None:
    if value_of(answer(*draws[0])).sum(-1).abs().max() > 1e-4:
        raise Misconception(
            "the gradient of a row does not sum to 0",
            "It is a difference of two distributions, and each of them sums to 1.",
        )


@exercise(
    look="Start from one row's derivative in the text, then follow T squared and the mean.",
    draws=lambda source: [
        (normal(source, *shape), normal(source, *shape), uniform(source, *ends))
        for shape, ends in (((5, 3), (1.5, 4)), ((3, 7), (0.3, 0.7)), ((6, 4), (4, 9)))
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
            partial(_gradient, sign=-1), "A gradient points uphill: student minus teacher."
        ),
        "it is not divided by the number of rows": Slip(
            partial(_gradient, by=lambda s: 1),
            "The loss is a mean over N rows, so each row's gradient is divided by N.",
        ),
        "it is divided by the number of all entries": Slip(
            partial(_gradient, by=torch.numel), "Divide only by the number of rows."
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
        "a temperature below 1 counts as 1": Slip(
            lambda s, t, T: _gradient(s, t, max(T, 1.0)), "Nothing bounds T from below but 0."
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


MASKS = [mask_of(lengths) for lengths in ((5, 3), (4, 6, 2), (7, 4))]


def _mse_draws(source: torch.Generator) -> Draws:
    """Maps with weight on padded keys, so that a forgotten mask of keys shows, and with equal
    entries, zeros among them, at valid pairs: an error of 0 is an error that counts."""
    draws = []
    for mask in MASKS:
        shape = len(mask), mask.shape[1], mask.shape[1]
        student, teacher = (probabilities(source, *shape) for _ in range(2))
        student[0, 0], student[0, 1, 0] = teacher[0, 0], 0.0
        teacher[0, 1, 0] = teacher[-1, 0, 1] = 0.0
        draws.append((student, teacher, mask))
    return draws


def _by_nonzero(terms: Answer) -> Answer:
    """The mean of the terms that are not 0, instead of the terms at valid places."""

    def loss(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        values = terms(s, t, mask)
        return values.sum() / (values != 0).sum()

    return loss


@exercise(
    look="Keep the pairs whose query and key are both tokens; divide by their number.",
    draws=_mse_draws,
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
        "the sum is divided by the number of errors that are not 0": Slip(
            _by_nonzero(lambda s, t, m: (s - t).square() * losses.valid_pairs(m)),
            "An error of 0 at a valid pair counts too: let the mask choose, not the values.",
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
    terms = (torch.xlogy(t, t) if entropy else 0) - t * s.clamp_min(1e-8).log()
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


def _kl_rows(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    return (torch.xlogy(t, t) - t * s.clamp_min(1e-8).log()).sum(-1) * mask


def _row_kl_draws(source: torch.Generator) -> Draws:
    """One row in which student and teacher agree: a KL of 0 is a row that counts; and a valid key
    to which the teacher gives nothing."""
    draws = []
    for mask in MASKS:
        student, teacher = (attention_maps(source, mask) for _ in range(2))
        even = mask[:, None] / mask.sum(-1)[:, None, None]
        student = 0.8 * student + 0.2 * even  # nothing near 0: that is NEARLY_BLIND's case
        student[0, 0] = teacher[0, 0] = 0.8 * teacher[0, 0] + 0.2 * even[0, 0]
        teacher[0, 1, 1] += teacher[0, 1, 0]
        teacher[0, 1, 0] = 0.0
        draws.append((student, teacher, mask))
    return draws


#: A student that gives a key 3e-5: log(s + 1e-8) is right to four digits, log(s + 1e-7) is not.
NEARLY_BLIND = (
    torch.tensor([[[1 - 3e-5, 3e-5], [0.5, 0.5]]]),
    torch.full((1, 2, 2), 0.5),
    torch.ones(1, 2, dtype=torch.long),
)


def _gradients_and_blind_student(answer: Answer, draws: Draws) -> None:
    right = losses.attention_kl(*NEARLY_BLIND)
    if (value_of(answer(*NEARLY_BLIND)) - right).abs() > 1e-4 * right:
        raise Misconception(
            "a student that gives a key only 3e-5 pays too little: its maps are kept too far from "
            "0",
            "Keep them above 1e-8 and no more, or the loss cannot see how wrong the student is.",
        )
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
    draws=_row_kl_draws,
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
        "the mean runs over all entries of the maps": Slip(
            lambda s, t, m: _row_kl(s, t, m, by="nothing") / s.numel(),
            "F.kl_div's default, reduction='mean', divides by B * L * L: sum over the keys, then "
            "divide by the number of valid rows.",
        ),
        "the mean runs over the entries of the valid rows": Slip(
            lambda s, t, m: _row_kl(s, t, m) / s.shape[-1],
            "F.kl_div's default, reduction='mean', divides by the keys too: sum over them.",
        ),
        "the sum is divided by the number of rows whose KL is not 0": Slip(
            _by_nonzero(_kl_rows),
            "A row that agrees counts too: let the mask choose, not the values.",
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
        "a second softmax is applied to the maps, padded keys included": Slip(
            lambda s, t, m: _row_kl(s.softmax(-1), t.softmax(-1), m),
            "The rows are probabilities already: just take their logarithm.",
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


LEFT_OVER = "gradients that were there before the first step are added"


CLEAR_FIRST = "Clear them before backward(), not at the end: optimizer.zero_grad()."


def _cosine(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    projection: Answer,
    *,
    keep: Callable[[Tensor], Tensor] = lambda mask: mask,
    by: Callable[[Tensor], Any] = torch.sum,
    of: Callable[[Tensor], Tensor] = lambda cosine: 1 - cosine,
    axis: int = -1,
    unit: bool = True,
) -> Tensor:
    """The hidden-state loss with some parts replaced by slips."""
    ours = projection(student)
    cosine = F.cosine_similarity(ours, teacher, dim=-1) if unit else (ours * teacher).sum(-1)
    if axis == 1:  # over the tokens: one cosine for each of the D numbers
        return of(F.cosine_similarity(ours, teacher, dim=1)).mean()
    return (of(cosine) * keep(mask)).sum() / by(mask)


class _Projection(nn.Linear):
    """Without bias; each answer starts from the same weights, and with a gradient left over."""

    def __init__(self, source: torch.Generator, narrow: int, wide: int) -> None:
        super().__init__(narrow, wide, bias=False)
        self.start, self.left = normal(source, 2, wide, narrow, scale=1.0)
        self.again()

    def again(self) -> None:
        self.weight.data, self.weight.grad = self.start.clone(), self.left.clone()


def _states(source: torch.Generator) -> Draws:
    """Hidden states of widths d and D, with something at padding too; a projection d -> D."""
    draws = []
    for mask, (d, wide) in zip(MASKS, ((3, 5), (4, 4), (2, 6)), strict=True):
        states = (normal(source, *mask.shape, n) for n in (d, wide))
        rest = (whole(source, 3, 5), uniform(source, 0.1, 0.3))
        draws.append((*states, mask, _Projection(source, d, wide), *rest))
    return draws


def _update(loss: Tensor, optimizer: torch.optim.Optimizer, order: str) -> None:
    for part in order.split():
        if part == "zero":
            optimizer.zero_grad()
        elif part == "step":
            optimizer.step()
        elif part == "backward":
            loss.backward()


def _curve(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    projection: nn.Module,
    steps: int,
    learning_rate: float,
    *,
    loss: Answer = _cosine,
    order: str = "zero backward step",
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    after: bool = False,
) -> list[float]:
    """The training with some parts replaced by slips."""
    optimizer, curve = kind(projection.parameters(), lr=learning_rate), []
    for _ in range(steps):
        value = loss(student, teacher, mask, projection)
        _update(value, optimizer, order)
        curve.append((loss(student, teacher, mask, projection) if after else value).item())
    return curve


def _curve_and_weight(result: Any, *draw: Any) -> tuple[Tensor, Tensor]:
    projection, steps = draw[3:5]
    weight = projection.weight.detach().clone()
    projection.again()
    return numbers(result, steps), weight


def _of_cosine(**parts: Any) -> Answer:
    return partial(_curve, loss=partial(_cosine, **parts))


@exercise(
    look="Project the student, take one cosine for each token, then the mean over real tokens.",
    draws=_states,
    read=_curve_and_weight,
    slips={
        "padding is counted": Slip(
            _of_cosine(keep=torch.ones_like, by=torch.numel), "Pick the rows with mask.bool()."
        ),
        "padding is left out of the sum, but not of the division": Slip(
            _of_cosine(by=torch.numel), "Divide by the number of real tokens, mask.sum()."
        ),
        "the tokens are summed, not averaged": Slip(
            _of_cosine(by=lambda mask: 1), "Divide by the number of real tokens."
        ),
        "each sentence has the same weight, whatever its length": Slip(
            partial(
                _curve,
                loss=lambda s, t, m, p: torch.stack(
                    [_cosine(s[[i]], t[[i]], m[[i]], p) for i in range(len(m))]
                ).mean(),
            ),
            "Take the mean over all real tokens of the batch at once.",
        ),
        "this is the cosine: it falls where the two should agree": Slip(
            _of_cosine(of=lambda cosine: cosine), "A loss is 0 where they agree: 1 - cosine."
        ),
        "this is minus the cosine": Slip(
            _of_cosine(of=lambda cosine: -cosine), "A loss is 0 where they agree: 1 - cosine."
        ),
        "these are inner products, not cosines": Slip(
            _of_cosine(unit=False), "Divide by both lengths: F.cosine_similarity."
        ),
        "the cosine runs over the tokens": Slip(
            _of_cosine(axis=1), "A token's state is the last axis: dim=-1."
        ),
        "this is the squared error of TinyBERT": Slip(
            partial(_curve, loss=losses.hidden_state_mse), "Use the cosine here."
        ),
        "the projection did not move": Slip(
            partial(_curve, order="zero backward"), "backward(), then optimizer.step()."
        ),
        "the gradients of the steps before are still there": Slip(
            partial(_curve, order="backward step"), "Call optimizer.zero_grad() before backward()."
        ),
        LEFT_OVER: Slip(partial(_curve, order="backward step zero"), CLEAR_FIRST),
        "the optimizer is not Adam": Slip(
            partial(_curve, kind=torch.optim.SGD), "Keep the first line of the stub."
        ),
        "these are the losses after each step": Slip(
            partial(_curve, after=True), "Append the loss that you called backward() on."
        ),
    },
)
def projection_curve(
    student_states: Tensor,
    teacher_states: Tensor,
    mask: Tensor,
    projection: nn.Module,
    steps: int,
    learning_rate: float,
) -> list[float]:
    """The loss (eq. (8) of comet_lib.losses) before each step of Adam on ``projection``, d -> D.

    States are (B, L, d) and (B, L, D), without gradients.
    """
    return _curve(student_states, teacher_states, mask, projection, steps, learning_rate)


def _hybrid_draws(source: torch.Generator) -> Draws:
    """Every alpha from 0 to 1, its ends among them, and temperatures on both sides of 1."""
    draws: list[tuple[Any, ...]] = []
    for mask, classes, alpha, ends in zip(
        [*MASKS, MASKS[0], MASKS[0]],
        (4, 7, 3, 5, 5),
        (
            uniform(source, 0.01, 0.04),
            uniform(source, 0.3, 0.45),
            uniform(source, 0.96, 0.99),
            0,
            1,
        ),
        ((1.5, 4.0), (0.4, 0.7), (1.5, 4.0), (1.5, 4.0), (2.0, 4.0)),
        strict=True,
    ):
        map_loss = losses.attention_mse if len(draws) % 2 else losses.attention_kl
        logits = [normal(source, len(mask) * 2, classes) for _ in range(2)]
        maps = [attention_maps(source, mask) for _ in range(2)]
        draws.append((*logits, *maps, mask, map_loss, uniform(source, *ends), float(alpha)))
    return draws


def _hybrid(
    *draw: Any,
    soft: Callable[[float, float], float] = lambda a, T: a,
    maps: Callable[[float, float], float] = lambda a, T: 1 - a,
    attention: Callable[[Answer], Answer] = lambda given: given,
) -> Tensor:
    """The two losses, each with its weight (a function of alpha and T)."""
    sl, tl, sm, tm, mask, map_loss, T, alpha = draw
    soft_loss, of_maps = losses.soft_target_loss(sl, tl, T), attention(map_loss)(sm, tm, mask)
    return soft(alpha, T) * soft_loss + maps(alpha, T) * of_maps


@exercise(
    look="Compute the two losses, then their weighted sum as the formula at the top has it.",
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
        "alpha is always one half": Slip(
            lambda *draw: _hybrid(*draw[:7], 0.5), "Use the argument alpha."
        ),
        "alpha stays away from 0 and 1": Slip(
            lambda *draw: _hybrid(*draw[:7], min(max(draw[7], 0.05), 0.95)),
            "0 and 1 are allowed: each switches one term off.",
        ),
        "a temperature below 1 counts as 1": Slip(
            lambda *draw: _hybrid(*draw[:6], max(draw[6], 1.0), draw[7]),
            "Nothing bounds T from below but 0.",
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
        "the attention term is always the MSE": Slip(
            partial(_hybrid, attention=lambda given: losses.attention_mse), "Call map_loss."
        ),
        "the attention term is always the row-wise KL": Slip(
            partial(_hybrid, attention=lambda given: losses.attention_kl), "Call map_loss."
        ),
        "teacher and student are swapped in the soft targets": Slip(
            lambda sl, tl, *rest: _hybrid(tl, sl, *rest), "The student's logits come first."
        ),
        "teacher and student are swapped in the maps": Slip(
            lambda sl, tl, sm, tm, *rest: _hybrid(sl, tl, tm, sm, *rest), "Student's maps first."
        ),
        "the temperature is left at 1": Slip(
            lambda *draw: _hybrid(*draw[:6], 1.0, draw[7]),
            "Pass the temperature to the soft-target loss.",
        ),
        "the attention term counts padding": Slip(
            partial(_hybrid, attention=lambda f: lambda s, t, m: f(s, t, torch.ones_like(m))),
            "Pass on the mask.",
        ),
    },
    extra=lambda answer, draws: check_gradients(answer, draws[1], (0, 2), (1, 3)),
)
def hybrid(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_maps: Tensor,
    teacher_maps: Tensor,
    mask: Tensor,
    map_loss: Answer,
    T: float,
    alpha: float,
) -> Tensor:
    """Scalar: alpha * soft-target loss + (1 - alpha) * map_loss(maps, maps, mask)."""
    soft = losses.soft_target_loss(student_logits, teacher_logits, T)
    return losses.hybrid_loss(soft, map_loss(student_maps, teacher_maps, mask), alpha)


class _Toy(nn.Module):
    """A model as the notebook's: ``model(batch)`` -> logits (M, C), maps (B, L, L), mask (B, L).

    It starts each step from the same weights, and with gradients left from the step before.
    """

    def __init__(self, source: torch.Generator) -> None:
        super().__init__()
        self.weights = nn.ParameterList(normal(source, 4, n, scale=0.5) for n in (5, 4))
        self.start = [weight.detach().clone() for weight in self.weights]
        self.left = [normal(source, *weight.shape) for weight in self.weights]
        self.again()

    def again(self) -> None:
        for weight, start, left in zip(self.weights, self.start, self.left, strict=True):
            weight.data, weight.grad = start.clone(), left.clone()

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        x, mask = batch["states"], batch["attention_mask"]
        scores = (x @ self.weights[1] @ x.mT).masked_fill(mask[:, None] == 0, -torch.inf)
        return x[:, 0] @ self.weights[0], scores.softmax(-1), mask


def _training_draws(source: torch.Generator) -> Draws:
    draws = []
    for count, alpha in ((1, 0.3), (3, 0.5), (2, 0.8)):
        student, teacher = _Toy(source), _Toy(source)
        batches = [
            {"states": normal(source, *mask.shape, 4, scale=2.0), "attention_mask": mask}
            for mask in MASKS[:count]
        ]
        optimizer = torch.optim.SGD(student.parameters(), lr=uniform(source, 0.2, 0.5))
        options = {"map_loss": losses.attention_kl, "T": uniform(source, 1.5, 4.0), "alpha": alpha}
        draws.append((student, teacher, batches, optimizer, partial(hybrid.reference, **options)))
    return draws


def _losses_and_weights(
    result: Any, student: _Toy, teacher: _Toy, batches: Any, *rest: Any
) -> tuple[Tensor, ...]:
    """The losses and the student's weights; puts both models back for the next answer."""
    weights = [weight.detach().clone() for weight in student.weights]
    taught = any(not torch.equal(a, b) for a, b in zip(teacher.weights, teacher.start, strict=True))
    pulled = any(
        w.grad is not None and not torch.equal(w.grad, left)
        for w, left in zip(teacher.weights, teacher.left, strict=True)
    )
    for model in (student, teacher):
        model.again()
    if taught:
        raise Misconception("the teacher's weights changed", "Only the student is trained.")
    if pulled:
        raise Misconception(
            "the gradient reaches the teacher", "Run the teacher inside torch.no_grad()."
        )
    return (numbers(result, len(batches)), *weights)


def _train(
    student: nn.Module,
    teacher: nn.Module,
    batches: Any,
    optimizer: torch.optim.Optimizer,
    loss_of: Answer,
    *,
    order: str = "zero backward step",
    read: Callable[..., tuple[Any, ...]] = lambda ours, theirs, mask: (
        ours[0],
        theirs[0],
        ours[1],
        theirs[1],
        mask,
    ),
    sign: int = 1,
    once: bool = False,
    after: bool = False,
) -> list[float]:
    """The training with some parts replaced by slips; ``read``: what goes into the loss."""
    history, total = [], torch.zeros(())
    for batch in batches:
        with torch.no_grad():
            *theirs, mask = teacher(batch)
        loss = loss_of(*read(student(batch)[:2], theirs, mask))
        total = total + loss
        if not once:
            _update(sign * loss, optimizer, order)
        history.append((loss_of(*read(student(batch)[:2], theirs, mask)) if after else loss).item())
    if once:
        _update(total, optimizer, order)
    return history


@exercise(
    look="Forward of both, loss_of, then the three lines of every PyTorch step.",
    draws=_training_draws,
    read=_losses_and_weights,
    slips={
        "the gradients of the steps before are still there": Slip(
            partial(_train, order="backward step"), "Call optimizer.zero_grad() before backward()."
        ),
        LEFT_OVER: Slip(partial(_train, order="backward step zero"), CLEAR_FIRST),
        "the student's weights did not move": Slip(
            partial(_train, order="zero backward"),
            "In this order: zero_grad(), backward(), step().",
        ),
        "the update comes before the backward pass": Slip(
            partial(_train, order="step zero backward"), "zero_grad(), backward(), step()."
        ),
        "two updates are made for each batch": Slip(
            partial(_train, order="zero backward step step"), "One step() for each batch."
        ),
        "there is one update for all batches": Slip(
            partial(_train, once=True), "The three lines belong inside the loop."
        ),
        "the loss grows: the update goes uphill": Slip(
            partial(_train, sign=-1), "Call backward() on the loss itself."
        ),
        "padding counts in the attention term": Slip(
            partial(
                _train, read=lambda a, b, mask: (a[0], b[0], a[1], b[1], torch.ones_like(mask))
            ),
            "Pass the mask that the model returns.",
        ),
        "student and teacher are swapped in the logits": Slip(
            partial(_train, read=lambda a, b, mask: (b[0], a[0], a[1], b[1], mask)),
            "loss_of takes the student's logits first.",
        ),
        "student and teacher are swapped in the maps": Slip(
            partial(_train, read=lambda a, b, mask: (a[0], b[0], b[1], a[1], mask)),
            "loss_of takes the student's maps before the teacher's.",
        ),
        "no gradient reaches the student through its maps": Slip(
            partial(_train, read=lambda a, b, mask: (a[0], b[0], a[1].detach(), b[1], mask)),
            "Detach nothing on the student's side.",
        ),
        "the training is right, but these are the losses after each update": Slip(
            partial(_train, after=True), "Append the loss that you called backward() on."
        ),
    },
)
def train_student(
    student: nn.Module, teacher: nn.Module, batches: Any, optimizer: Any, loss_of: Answer
) -> list[float]:
    """The loss of each batch before its update; moves the student's weights once for each."""
    return _train(student, teacher, batches, optimizer, loss_of)


Named = list[tuple[str, Tensor]]


def _shares(
    soft: Tensor,
    attention: Tensor,
    named: Named,
    part_of: Callable[[str], str],
    alpha: float,
    *,
    norm: Callable[[list[Tensor]], Tensor] = lambda each: torch.cat(each).norm(),
    factors: Callable[[float], tuple[float, float]] = lambda a: (a, 1 - a),
    of: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda s, a, both: 100 * a / (s + a),
    keep: Callable[[list[Tensor]], list[Tensor]] = lambda weights: weights,
    together: bool = False,
) -> dict[str, float]:
    """The shares with some parts replaced by slips; ``together``: over all weights each time."""
    shares = {}
    for part in dict.fromkeys(part_of(name) for name, _ in named):
        weights = keep([w for name, w in named if together or part_of(name) == part])
        pulls = []
        for factor, loss in zip(factors(alpha), (soft, attention), strict=True):
            each = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
            pulls.append([factor * g.flatten() for g in each])
        both = [a + b for a, b in zip(*pulls, strict=True)]
        shares[part] = of(*map(norm, [*pulls, both])).item()
    return shares


def _share_draws(source: torch.Generator) -> Draws:
    """Losses of four weights in two parts; the attention never sees the last weight."""
    draws = []
    for size, alpha in ((1.0, 0.5), (0.05, uniform(source, 0.05, 0.2)), (4.0, 0.9)):
        names = ("low.query", "high.query", "high.key", "low.head")
        weights = [normal(source, n, scale=1.0).requires_grad_() for n in (6, 4, 3, 5)]
        sums = [
            torch.stack([w.sin().sum() * k for k, w in enumerate(weights[:n], 1)]).sum()
            for n in (4, 3)
        ]
        named = list(zip(names, weights, strict=True))
        draws.append(
            (sums[0] ** 2, size * sums[1].cos(), named, lambda name: name.split(".")[0], alpha)
        )
    return draws


def _part_by_part(result: Any, soft: Tensor, attention: Tensor, named: Named, *rest: Any) -> Tensor:
    try:
        weights = [weight for _, weight in named]
        for loss in (soft, attention):
            torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    except RuntimeError:
        raise Misconception(
            "the graph is gone after your measurement, and the next one needs it",
            "Pass retain_graph=True, each time.",
        ) from None
    if not isinstance(result, Mapping) or set(result) != {"low", "high"}:
        keys = f" with the keys {[*result]}" if isinstance(result, Mapping) else ""
        raise Misconception(
            f"your function returned a {type(result).__name__}{keys}, but a dict with one number "
            "for each part is wanted",
            "Its keys are what part_of(name) returns.",
        )
    if any(isinstance(share, Tensor) for share in result.values()):
        raise Misconception("your dict holds tensors", "Return floats: .item().")
    return torch.stack([value_of(result[part]).reshape(()) for part in ("low", "high")])


@exercise(
    look="The norm of each term's gradient over all weights of a part together, times its factor.",
    draws=_share_draws,
    read=_part_by_part,
    slips={
        "these are fractions, but percent are wanted": Slip(
            partial(_shares, of=lambda s, a, both: a / (s + a)), "Multiply by 100."
        ),
        "these are the shares of the soft targets": Slip(
            partial(_shares, of=lambda s, a, both: 100 * s / (s + a)), "The attention's is wanted."
        ),
        "alpha weights the attention": Slip(
            partial(_shares, factors=lambda a: (1 - a, a)), "The attention's weight is 1 - alpha."
        ),
        "the terms have no weights": Slip(
            partial(_shares, factors=lambda a: (1, 1)), "Use alpha and 1 - alpha."
        ),
        "the attention is divided by the soft targets, not by both": Slip(
            partial(_shares, of=lambda s, a, both: 100 * a / s),
            "A share is a part of the whole: s + a.",
        ),
        "the attention's norm is divided by the norm of the whole gradient": Slip(
            partial(_shares, of=lambda s, a, both: 100 * a / both),
            "Two pulls can cancel in the sum: divide by the sum of the two norms.",
        ),
        "the norms are squared": Slip(
            partial(_shares, norm=lambda each: torch.cat(each).square().sum()), "Take the root."
        ),
        "the norm has no root: this is the sum of the squares": Slip(
            partial(
                _shares,
                norm=lambda each: torch.cat(each).square().sum(),
                factors=lambda a: (a**0.5, (1 - a) ** 0.5),
            ),
            "Take the root of the sum, then multiply by the factor.",
        ),
        "the norms of the tensors are added up": Slip(
            partial(_shares, norm=lambda each: torch.stack([g.norm() for g in each]).sum()),
            "One norm for the whole part: the root of the sum of all squares.",
        ),
        "absolute values are added up": Slip(
            partial(_shares, norm=lambda each: torch.cat(each).abs().sum()),
            "The norm is the root of the sum of the squares.",
        ),
        "only the first tensor of each part is measured": Slip(
            partial(_shares, keep=lambda weights: weights[:1]), "Go through all weights of a part."
        ),
        "only the last tensor of each part is measured": Slip(
            partial(_shares, keep=lambda weights: weights[-1:]),
            "Collect a list for each part: setdefault(part, []).append(weight).",
        ),
        "each part has the share of the whole model": Slip(
            partial(_shares, together=True), "Take the gradients of one part's weights."
        ),
        "these are shares of the loss, not of the gradient": Slip(
            lambda s, a, named, part_of, alpha: {
                part_of(name): (100 * (1 - alpha) * a / (alpha * s + (1 - alpha) * a)).item()
                for name, _ in named
            },
            "A size is not a pull: use torch.autograd.grad.",
        ),
    },
)
def gradient_shares(
    soft: Tensor, attention: Tensor, named: Named, part_of: Callable[[str], str], alpha: float
) -> dict[str, float]:
    """Part of the model -> percent of its gradient from the attention term, by norms over the
    part's weights.

    A weight that a term does not see counts as 0. Leaves the graph for the next measurement.
    """
    return _shares(soft, attention, named, part_of, alpha)
