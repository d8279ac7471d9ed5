"""Exercises of notebook 00, the whole game."""

# mypy: disable-error-code=has-type

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from comet_lib import losses
from comet_lib.checks.draws import generator, normal, uniform, whole
from comet_lib.checks.framework import (
    Answer,
    Draws,
    Misconception,
    Slip,
    all_close,
    check_gradients,
    exercise,
    refuse_infinity,
    rows_must_sum_to_one,
    value_of,
)


def _large_logits(answer: Answer, draws: Draws) -> None:
    refuse_infinity(
        answer(normal(generator(), 3, 5) * 1000, 1.0),
        "with large logits the exponentials overflow and the result is not finite",
        "Take torch.softmax, or subtract each row's maximum before exp.",
    )


@exercise(
    look="Divide the logits by the temperature, then take the softmax over the last axis.",
    draws=lambda source: [
        (normal(source, *shape), uniform(source, 1.5, 4.0)) for shape in ((5, 3), (2, 4, 6), (4, 7))
    ],
    slips={
        "the logits are multiplied by the temperature": Slip(
            lambda x, t: torch.softmax(x * t, -1), "A high temperature flattens the result: divide."
        ),
        "the softmax runs over the first axis": Slip(
            lambda x, t: torch.softmax(x / t, 0), "The classes are the last axis: dim=-1."
        ),
        "one softmax runs over the whole tensor": Slip(
            lambda x, t: torch.softmax((x / t).flatten(), 0).reshape(x.shape),
            "Each row is a distribution of its own: give the axis of the classes (dim=-1).",
        ),
        "these are log-probabilities, not probabilities": Slip(
            lambda x, t: torch.log_softmax(x / t, -1), "Use softmax, not log_softmax."
        ),
        "the temperature is ignored": Slip(
            lambda x, t: torch.softmax(x, -1), "The result must change when the temperature does."
        ),
        "the temperature is applied after the softmax": Slip(
            lambda x, t: torch.softmax(x, -1) / t,
            "Divide the logits, which come before the softmax; then each row sums to 1 again.",
        ),
        "the exponentials are not normalised": Slip(
            lambda x, t: torch.exp(x / t), "Divide by their sum over the last axis."
        ),
        "each class is squashed by itself (a sigmoid)": Slip(
            lambda x, t: torch.sigmoid(x / t), "The classes share a total of 1: that is a softmax."
        ),
    },
    otherwise=rows_must_sum_to_one(
        "the probabilities of a row",
        "Divide by the sum over the last axis, and keep that axis (keepdim=True).",
    ),
    extra=_large_logits,
)
def soft_targets(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / T) over the last axis."""
    return torch.softmax(logits / temperature, dim=-1)


def _kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    *,
    factor: int = 2,
    kind: str = "KL",
    swapped: bool = False,
    reduction: str = "batchmean",
    softened: tuple[int, int] = (1, 1),
    student_as: str = "log",
    teacher_as: str = "log",
    axis: int = -1,
    sign: int = 1,
) -> Tensor:
    """The loss with some parts replaced by common slips; with none, the right value.

    ``factor`` is the power of T in front, ``softened`` that under the student's and the teacher's
    logits.
    """
    s, t = student_logits.double(), teacher_logits.double()
    s, t = s / temperature ** softened[0], t / temperature ** softened[1]
    log_q, log_p = F.log_softmax(s, axis), F.log_softmax(t, axis)
    log_q = {"log": log_q, "probabilities": log_q.exp(), "logits": s}[student_as]
    log_p = {"log": log_p, "probabilities": log_p.exp()}[teacher_as]
    if swapped:
        log_p, log_q = log_q, log_p
    if kind == "hard labels":
        total = -log_q.gather(-1, teacher_logits.argmax(-1, keepdim=True)).sum()
    else:
        total = (log_p.exp() * ((log_p if kind == "KL" else 0) - log_q)).sum()
    count = {"batchmean": s.shape[0], "mean": s.numel(), "sum": 1}[reduction]
    return sign * total / count * temperature**factor


def _kd_properties(answer: Answer, draws: Draws) -> None:
    same = normal(generator(), 5, 4)
    if value_of(answer(same, same, 2.0)).abs() > 1e-4:
        raise Misconception(
            "a student equal to its teacher has a loss other than 0",
            "A KL divergence of a distribution from itself is 0: treat both sides the same way.",
        )
    student, teacher, temperature = draws[0]
    here, there = (answer(x, teacher, temperature) for x in (student, student + 5))
    if not torch.allclose(value_of(here), value_of(there), rtol=1e-3, atol=1e-4):
        raise Misconception(
            "adding 5 to all of the student's logits changes the loss",
            "A softmax does not see such a shift: is there one on the student?",
        )
    at_one = [(student, teacher, 1.0) for student, teacher, _ in draws]
    got = [value_of(answer(*draw)) for draw in at_one]
    if all_close(got, [value_of(losses.soft_target_loss(*draw)) for draw in at_one]):
        raise Misconception(
            "right at temperature 1, wrong at any other",
            "Look at every place where the temperature enters.",
        )


def _kd_gradient_and_range(answer: Answer, draws: Draws) -> None:
    # dL/ds = T (softmax(s/T) - softmax(t/T)) / B, the equation that T squared keeps in scale.
    check_gradients(answer, draws[0], reference=losses.soft_target_loss)
    source = generator()
    refuse_infinity(
        answer(normal(source, 4, 6) * 200, normal(source, 4, 6) * 200, 1.0),
        "with large logits the loss is not finite",
        "log(softmax(x)) meets log(0); use F.log_softmax(x).",
    )


@exercise(
    look="Soften both sides, take KL(teacher || student), average over the batch, times T*T.",
    draws=lambda source: [
        (normal(source, *shape), normal(source, *shape), uniform(source, 1.5, 4.0))
        for shape in ((5, 3), (4, 7), (3, 8), (6, 4))
    ],
    slips={
        "the factor T squared is missing": Slip(
            partial(_kd, factor=0),
            "Gradients shrink by T squared when both sides are softened; multiply the loss by T*T.",
        ),
        "the loss is multiplied by T, not by T squared": Slip(
            partial(_kd, factor=1), "Student and teacher are both softened: one factor T for each."
        ),
        "the loss is divided by T squared": Slip(
            partial(_kd, factor=-2), "Softening shrinks the gradients; multiply to undo it."
        ),
        "the two sides of the KL divergence are swapped": Slip(
            partial(_kd, swapped=True),
            "F.kl_div takes the student's log-probabilities first and the teacher as target.",
        ),
        "the loss is averaged over the classes too (reduction='mean')": Slip(
            partial(_kd, reduction="mean"),
            "A KL is a sum over classes: average over the batch only (reduction='batchmean').",
        ),
        "the loss is summed over the batch (reduction='sum')": Slip(
            partial(_kd, reduction="sum"),
            "It must not grow with the batch: divide by the rows (reduction='batchmean').",
        ),
        "the student enters as probabilities, without the logarithm": Slip(
            partial(_kd, student_as="probabilities"),
            "F.kl_div takes the logarithm of the student's probabilities: F.log_softmax.",
        ),
        "the student enters as raw logits, without a log-softmax": Slip(
            partial(_kd, student_as="logits"), "F.kl_div takes log-probabilities: F.log_softmax."
        ),
        "the teacher's probabilities are read as logarithms": Slip(
            partial(_kd, teacher_as="probabilities"),
            "With log_target=True the target is a log_softmax; without it, a softmax.",
        ),
        "the temperature softens the student only": Slip(
            partial(_kd, softened=(1, 0)), "Divide the teacher's logits by it as well."
        ),
        "the temperature softens the teacher only": Slip(
            partial(_kd, softened=(0, 1)), "Divide the student's logits by it as well."
        ),
        "the temperature does not soften the logits": Slip(
            partial(_kd, softened=(0, 0)), "Divide the logits of both by it, before the softmax."
        ),
        "the logits are multiplied by the temperature": Slip(
            partial(_kd, softened=(-1, -1)), "A high temperature flattens the softmax: divide."
        ),
        "this is the cross-entropy, which is the KL plus the teacher's entropy": Slip(
            partial(_kd, kind="cross-entropy"),
            "Subtract that entropy: the loss of a student equal to its teacher must be 0.",
        ),
        "the teacher's most likely class is taken as a hard label": Slip(
            partial(_kd, kind="hard labels"), "Use all of the probabilities, not their argmax."
        ),
        "the softmax runs over the batch": Slip(
            partial(_kd, axis=0), "The classes are the last axis (dim=-1)."
        ),
        "the sign is wrong: a KL divergence is never negative": Slip(
            partial(_kd, sign=-1), "Write p * (log p - log q), with p from the teacher."
        ),
    },
    otherwise=_kd_properties,
    extra=_kd_gradient_and_range,
)
def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of logits (batch, classes): a scalar, averaged over the batch.

    Hinton, Vinyals and Dean 2015, section 2.
    """
    return losses.soft_target_loss(student_logits, teacher_logits, temperature)


def _scores(source: torch.Generator) -> Draws:
    draws = []
    # Percentages that round up and down, so that rounding and cutting differ.
    for low, high in ((0.1, 0.4), (0.6, 0.9)) * 2:
        kept, teacher = (
            whole(source, 30, 94) + uniform(source, low, high),
            uniform(source, 0.6, 0.9),
        )
        draws.append((kept / 100 * teacher, teacher))
    return draws + [(100 * student, 100 * teacher) for student, teacher in draws[:2]]


@exercise(
    look="It is the student's score as a percentage of the teacher's.",
    draws=_scores,
    slips={
        "the percentage is held at 100": Slip(
            lambda s, t: min(100.0, 100 * s / t), "Leave the min() out."
        ),
        "this is a fraction, not a percentage": Slip(lambda s, t: s / t, "Multiply by 100."),
        "teacher and student are swapped": Slip(
            lambda s, t: 100 * t / s, "The teacher's score is the whole: divide by it."
        ),
        "this is the difference of the two scores": Slip(
            lambda s, t: s - t, "What is kept is a ratio: divide by the teacher's score."
        ),
        "this is the difference of the two scores, teacher minus student": Slip(
            lambda s, t: t - s, "What is kept is a ratio: divide by the teacher's score."
        ),
        "this is the percentage lost, not the percentage kept": Slip(
            lambda s, t: 100 * (t - s) / t, "The two add up to 100."
        ),
        "this is the relative change, not the percentage kept": Slip(
            lambda s, t: 100 * (s - t) / t, "Add 100, or just divide by the teacher's score."
        ),
        "the teacher's score is ignored": Slip(lambda s, t: 100 * s, "Divide by the teacher's."),
        "the result is rounded to a whole number": Slip(
            lambda s, t: float(round(100 * s / t)), "Return all digits; round when you print."
        ),
        "the result is cut to a whole number": Slip(
            lambda s, t: float(int(100 * s / t)), "Return all digits: / rather than //, no int()."
        ),
    },
    edge_case="with a student better than its teacher",
    edges=lambda source: [(t * uniform(source, 1.05, 1.2), t) for t in (0.61, 0.74, 0.88)],
)
def retention(student_f1: float, teacher_f1: float) -> float:
    """The percentage of the teacher's score that the student keeps."""
    return 100.0 * student_f1 / teacher_f1
