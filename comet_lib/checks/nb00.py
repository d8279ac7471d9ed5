"""Exercises of notebook 00, the whole game."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from comet_lib import losses
from comet_lib.checks.framework import (
    Misconception,
    Slip,
    all_close,
    compare,
    exercise,
    generator,
    normal,
    slips_and_pairs,
    uniform,
    value_of,
)

# --- Notebook 00 ---------------------------------------------------------------------------


def _soft_targets_reference(logits: Tensor, temperature: float) -> Tensor:
    return torch.softmax(logits / temperature, dim=-1)


@exercise(
    "soft_targets",
    notebook="00",
    reference=_soft_targets_reference,
    look="Divide the logits by the temperature, then take the softmax over the last axis.",
)
def soft_targets(answer: Callable[..., Any]) -> None:
    """answer(logits, temperature) -> probabilities, softmax(logits / T) over the last axis."""
    source = generator()
    shapes = ((5, 3), (2, 4, 6), (4, 7))
    draws = [(normal(source, *shape), uniform(source, 1.5, 4.0)) for shape in shapes]
    slips = [
        Slip(
            "the logits are multiplied by the temperature",
            lambda x, t: torch.softmax(x * t, -1),
            "A high temperature must make the probabilities flatter, so divide.",
        ),
        Slip(
            "the softmax runs over the first axis",
            lambda x, t: torch.softmax(x / t, 0),
            "The classes are the last axis: each row must sum to 1 (dim=-1).",
        ),
        Slip(
            "one softmax runs over the whole tensor",
            lambda x, t: torch.softmax((x / t).flatten(), 0).reshape(x.shape),
            "Each row is a distribution of its own: give the axis of the classes (dim=-1).",
        ),
        Slip(
            "these are log-probabilities, not probabilities",
            lambda x, t: torch.log_softmax(x / t, -1),
            "They are all negative: use softmax, not log_softmax.",
        ),
        Slip(
            "the temperature is ignored",
            lambda x, t: torch.softmax(x, -1),
            "The result must change when the temperature does.",
        ),
        Slip(
            "the temperature is applied after the softmax",
            lambda x, t: torch.softmax(x, -1) / t,
            "Divide the logits, which come before the softmax; then each row sums to 1 again.",
        ),
        Slip(
            "the exponentials are not normalised",
            lambda x, t: torch.exp(x / t),
            "Divide by their sum over the last axis.",
        ),
        Slip(
            "each class is squashed by itself (a sigmoid)",
            lambda x, t: torch.sigmoid(x / t),
            "The classes share a total of 1: that is a softmax.",
        ),
    ]

    def rows_must_sum_to_one() -> None:
        if not all_close([value_of(answer(*d)).sum(-1) for d in draws], [*map(_ones, draws)]):
            raise Misconception(
                "the probabilities of a row do not sum to 1",
                "Divide by the sum over the last axis, and keep that axis (keepdim=True).",
            )

    compare(answer, draws, _soft_targets_reference, slips, rows_must_sum_to_one)
    large = normal(source, 3, 5) * 1000
    if not torch.isfinite(value_of(answer(large, 1.0))).all():
        raise Misconception(
            "with large logits the exponentials overflow and the result is not finite",
            "Take torch.softmax, or subtract each row's maximum before exp.",
        )


def _ones(draw: tuple[Any, ...]) -> Tensor:
    return torch.ones(draw[0].shape[:-1], dtype=torch.float64)


def _kd_variant(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    *,
    factor: str = "T squared",
    kind: str = "KL",
    swapped: bool = False,
    reduction: str = "batchmean",
    softened: str = "both",
    student_as: str = "log",
    teacher_as: str = "log",
    axis: int = -1,
    sign: int = 1,
) -> Tensor:
    """The loss with any of its parts replaced by a usual slip; with none, the right value."""
    s, t = student_logits.double(), teacher_logits.double()
    heat = {"both": (1, 1), "student": (1, 0), "teacher": (0, 1), "none": (0, 0), "up": (-1, -1)}
    s, t = (x / temperature**power for x, power in zip((s, t), heat[softened], strict=True))
    log_q = F.log_softmax(s, axis)
    log_p = F.log_softmax(t, axis)
    log_q = {"log": log_q, "probabilities": log_q.exp(), "logits": s}[student_as]
    log_p = {"log": log_p, "probabilities": log_p.exp()}[teacher_as]
    if swapped:
        log_p, log_q = log_q, log_p
    if kind == "hard labels":
        total = -log_q.gather(-1, teacher_logits.argmax(-1, keepdim=True)).sum()
    else:
        total = (log_p.exp() * ((log_p if kind == "KL" else 0) - log_q)).sum()
    count = {"batchmean": s.shape[0], "mean": s.numel(), "sum": 1}[reduction]
    power = {"none": 0, "T": 1, "T squared": 2, "divided": -2}[factor]
    return sign * total / count * temperature**power


# What a learner may have got wrong: message, where to look, and the part of the loss it changes.
_KD_SLIPS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "the factor T squared is missing",
        "Gradients shrink by T squared when both sides are softened; multiply the loss by T*T.",
        {"factor": "none"},
    ),
    (
        "the loss is multiplied by T, not by T squared",
        "Both the student and the teacher are softened: one factor T for each.",
        {"factor": "T"},
    ),
    (
        "the loss is divided by T squared",
        "Softening has shrunk the gradients already; multiply to undo it.",
        {"factor": "divided"},
    ),
    (
        "the two sides of the KL divergence are swapped",
        "KL(teacher || student) weights by the teacher's probabilities. F.kl_div takes the "
        "student's log-probabilities first and the teacher as target.",
        {"swapped": True},
    ),
    (
        "the loss is averaged over the classes too (reduction='mean')",
        "A KL is a sum over classes: average over the batch alone (reduction='batchmean').",
        {"reduction": "mean"},
    ),
    (
        "the loss is summed over the batch (reduction='sum')",
        "It must not grow with the batch: divide by the number of rows (reduction='batchmean').",
        {"reduction": "sum"},
    ),
    (
        "the student enters as probabilities, without the logarithm",
        "F.kl_div takes the logarithm of the student's probabilities: F.log_softmax.",
        {"student_as": "probabilities"},
    ),
    (
        "the student enters as raw logits, without a log-softmax",
        "F.kl_div takes log-probabilities as its first argument: F.log_softmax.",
        {"student_as": "logits"},
    ),
    (
        "the teacher's probabilities are read as logarithms",
        "With log_target=True the target is a log_softmax; without it, a softmax.",
        {"teacher_as": "probabilities"},
    ),
    (
        "the temperature softens the student only",
        "Divide the teacher's logits by it as well.",
        {"softened": "student"},
    ),
    (
        "the temperature softens the teacher only",
        "Divide the student's logits by it as well.",
        {"softened": "teacher"},
    ),
    (
        "the temperature does not soften the logits",
        "Divide both the student's and the teacher's logits by it before the softmax.",
        {"softened": "none"},
    ),
    (
        "the logits are multiplied by the temperature",
        "A high temperature must make the distributions flatter, so divide.",
        {"softened": "up"},
    ),
    (
        "this is the cross-entropy, which is the KL plus the teacher's entropy",
        "Subtract that entropy: the loss of a student equal to its teacher must be 0.",
        {"kind": "cross-entropy"},
    ),
    (
        "the teacher's most likely class is taken as a hard label",
        "The soft targets are all of the teacher's probabilities, not their argmax.",
        {"kind": "hard labels"},
    ),
    (
        "the softmax runs over the batch",
        "The classes are the last axis (dim=-1).",
        {"axis": 0},
    ),
    (
        "the sign is wrong: a KL divergence is never negative",
        "Write p * (log p - log q), with p from the teacher, or drop a minus.",
        {"sign": -1},
    ),
)


@exercise(
    "kd_loss",
    notebook="00",
    reference=losses.soft_target_loss,
    look="Soften both sides, take KL(teacher || student), average over the batch, times T*T.",
)
def kd_loss(answer: Callable[..., Any]) -> None:
    """answer(student_logits, teacher_logits, temperature) -> T^2 KL(teacher || student).

    Logits are (batch, classes); the result is a scalar, averaged over the batch. Hinton,
    Vinyals and Dean 2015, section 2.
    """
    source = generator()
    draws = [
        (normal(source, *shape), normal(source, *shape), uniform(source, 1.5, 4.0))
        for shape in ((5, 3), (4, 7), (3, 8), (6, 4))
    ]

    def properties() -> None:
        same = normal(source, 5, 4)
        if value_of(answer(same, same, 2.0)).abs() > 1e-4:
            raise Misconception(
                "a student equal to its teacher has a loss other than 0",
                "A KL divergence of a distribution from itself is 0: "
                "treat both sides in the same way.",
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

    compare(
        answer, draws, losses.soft_target_loss, slips_and_pairs(_kd_variant, _KD_SLIPS), properties
    )

    student, teacher, temperature = draws[0]
    student, teacher = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    loss = answer(student, teacher, temperature)
    if not loss.requires_grad:
        raise Misconception(
            "no gradient reaches the student",
            "Detach the teacher alone; use neither torch.no_grad() nor .detach() on the loss.",
        )
    to_student, to_teacher = torch.autograd.grad(loss, (student, teacher), allow_unused=True)
    if to_teacher is not None and to_teacher.abs().max() > 0:
        raise Misconception(
            "the gradient reaches the teacher",
            "The teacher is fixed: detach its logits (teacher_logits.detach()).",
        )
    # dL/ds = T (softmax(s/T) - softmax(t/T)) / B, the equation that T squared keeps in scale.
    soft = torch.softmax(torch.stack((student, teacher)).detach() / temperature, dim=-1)
    right = temperature * (soft[0] - soft[1]) / len(student)
    if to_student is None or not torch.allclose(to_student, right, rtol=1e-3, atol=1e-5):
        raise Misconception(
            "the value is right and the student's gradient is not",
            "Detach nothing of the student's side.",
        )
    far = normal(source, 4, 6) * 200, normal(source, 4, 6) * 200, 1.0
    if not torch.isfinite(value_of(answer(*far))):
        raise Misconception(
            "with large logits the loss is not finite",
            "log(softmax(x)) meets log(0); use F.log_softmax(x).",
        )


def _retention_reference(student_f1: float, teacher_f1: float) -> float:
    return 100.0 * student_f1 / teacher_f1


@exercise(
    "retention",
    notebook="00",
    reference=_retention_reference,
    look="It is the student's score as a percentage of the teacher's.",
)
def retention(answer: Callable[..., Any]) -> None:
    """answer(student_f1, teacher_f1) -> percent of the teacher's score that the student keeps."""
    source = generator()
    teachers = [uniform(source, 0.6, 0.9) for _ in range(4)]
    # Percentages that round up and down, so that rounding and cutting differ.
    ends = [uniform(source, *ends) for ends in ((0.1, 0.4), (0.6, 0.9)) * 2]
    kept = [int(uniform(source, 30, 95)) + end for end in ends]
    draws = [(p / 100 * teacher, teacher) for p, teacher in zip(kept, teachers, strict=True)]
    draws += [(100 * student, 100 * teacher) for student, teacher in draws[:2]]
    slips = [
        Slip(
            "this is a fraction, not a percentage",
            lambda s, t: s / t,
            "Multiply by 100.",
        ),
        Slip(
            "teacher and student are swapped",
            lambda s, t: 100 * t / s,
            "The teacher's score is the whole, so it stands below the line.",
        ),
        Slip(
            "this is the difference of the two scores",
            lambda s, t: s - t,
            "What is kept is a ratio: divide by the teacher's score.",
        ),
        Slip(
            "this is the difference of the two scores, teacher minus student",
            lambda s, t: t - s,
            "What is kept is a ratio: divide by the teacher's score.",
        ),
        Slip(
            "this is the percentage lost, not the percentage kept",
            lambda s, t: 100 * (t - s) / t,
            "The two add up to 100.",
        ),
        Slip(
            "this is the relative change, not the percentage kept",
            lambda s, t: 100 * (s - t) / t,
            "Add 100, or divide the student's score itself by the teacher's.",
        ),
        Slip(
            "the teacher's score is ignored",
            lambda s, t: 100 * s,
            "Divide by the teacher's score.",
        ),
        Slip(
            "the result is rounded to a whole number",
            lambda s, t: float(round(100 * s / t)),
            "Return all digits and round only when you print.",
        ),
        Slip(
            "the result is cut to a whole number",
            lambda s, t: float(int(100 * s / t)),
            "Return all digits: / rather than //, and no int().",
        ),
    ]
    compare(answer, draws, _retention_reference, slips)
    better = [(teacher * uniform(source, 1.05, 1.2), teacher) for teacher in teachers]
    compare(
        answer,
        better,
        _retention_reference,
        [
            Slip(
                "a student better than its teacher is held at 100",
                lambda s, t: 100.0,
                "Such a student keeps more than 100 percent; leave the min() out.",
            )
        ],
    )
