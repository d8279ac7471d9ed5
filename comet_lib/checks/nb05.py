"""Exercises of notebook 05, stage one: distil without labels."""

# mypy: disable-error-code=has-type

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from comet_lib.attention import layer_map
from comet_lib.checks.draws import normal
from comet_lib.checks.framework import Answer, Draws, Misconception, Slip, exercise

IGNORE = -100


def _labels(
    source: torch.Generator, batch: int, length: int, classes: int, ignore: int = IGNORE
) -> Tensor:
    """(B, L) labels: about a third of the positions have one, piece 0 among them."""
    labels = torch.randint(1, classes, (batch, length), generator=source)
    hidden = torch.rand(batch, length, generator=source) < 0.35
    hidden[0, :2], hidden[-1, -1], hidden[0, 2] = True, False, False
    if ignore != 0:
        labels[0, 0] = 0  # piece 0 is a piece like any other
    return torch.where(hidden, labels, ignore)


def _must_be_bool(answer: Answer, draws: Draws) -> None:
    kind = answer(*draws[0]).dtype
    if kind != torch.bool:
        raise Misconception(
            f"the values are right, but of type {kind}, not torch.bool",
            "hidden[mask] with whole numbers takes rows 0 and 1 again and again, without an "
            "error; only a bool mask selects. Leave out .long(), .int() or .float().",
        )


@exercise(
    look="Compare the labels with the number that marks a position without a label.",
    draws=lambda source: [
        (_labels(source, *shape, 50, ignore), ignore)
        for shape, ignore in (((3, 9), 0), ((2, 14), -100), ((4, 7), -1))
    ],
    slips={
        "True and False are swapped": Slip(
            lambda y, ignore: y == ignore, "`ignore` marks the positions that were NOT hidden."
        ),
        "piece 0 is lost": Slip(
            lambda y, ignore: y > 0, "0 is the number of a piece; only `ignore` means 'no label'."
        ),
        "every position is kept": Slip(
            lambda y, ignore: torch.ones_like(y), "The label of most positions is `ignore`."
        ),
        "the number -100 is written into your function": Slip(
            lambda y, ignore: y != IGNORE, "Compare with `ignore`: other code marks with -1 or 0."
        ),
        "these are the labels themselves, with 0 where there is none": Slip(
            lambda y, ignore: y.masked_fill(y == ignore, 0),
            "Return True or False for each position: the comparison itself.",
        ),
    },
    extra=_must_be_bool,
)
def masked_positions(labels: Tensor, ignore: int) -> Tensor:
    """bool (B, L), True where a piece was hidden."""
    return labels != ignore


class _Head(nn.Module):
    """A small masked-LM head that notes at how many positions it was applied."""

    def __init__(self, source: torch.Generator, width: int, classes: int) -> None:
        super().__init__()
        # float64: then the order of gathering and head changes no digit that is compared
        self.first = normal(source, width, width).double()
        self.second = normal(source, width, classes).double()
        self.seen: list[int] = []

    def forward(self, hidden: Tensor) -> Tensor:
        self.seen.append(hidden[..., 0].numel())
        return torch.tanh(hidden @ self.first / 4) @ self.second


def _logit_draws(source: torch.Generator) -> Draws:
    draws = []
    for batch, length, width, classes in ((3, 8, 6, 11), (2, 12, 5, 9)):
        hidden = normal(source, batch, length, width, scale=1.0).double()
        head = _Head(source, width, classes)
        draws.append((hidden, _labels(source, batch, length, classes), head))
    return draws


INVERTED = "you keep the positions that were not hidden"


def _masked_shape(result: Any, hidden: Tensor, labels: Tensor, head: _Head) -> Any:
    """Name a wrong selection by its shape."""
    classes, masked = head.second.shape[1], int((labels != IGNORE).sum())
    if not isinstance(result, Tensor) or result.shape == (masked, classes):
        return result
    named = {
        (*labels.shape, classes): "you return logits at all positions, shape (B, L, V)",
        (int((labels > 0).sum()), classes): "piece 0 is lost: only -100 means no label",
        (labels.numel() - masked, classes): INVERTED,
        (masked, hidden.shape[-1]): "these are the hidden states, not logits",
    }
    if tuple(result.shape) in named:
        raise Misconception(named[tuple(result.shape)])
    return result


def _head_runs_on_few(answer: Answer, draws: Draws) -> None:
    hidden, labels, head = draws[0]
    head.seen.clear()
    answer(hidden, labels, head)
    most, wanted = max(head.seen, default=0), int((labels != IGNORE).sum())
    if most > wanted:
        raise Misconception(
            f"the numbers are right, but the head ran at {most} positions where {wanted} are "
            "enough",
            "Gather first, then apply the head: the other order computes the full (B, L, V) "
            "logits, which is what we want to avoid.",
        )


@exercise(
    look="Select the hidden states at the masked positions, then apply the head only to those.",
    draws=_logit_draws,
    read=_masked_shape,
    slips={
        INVERTED: Slip(lambda h, y, head: head(h[y == IGNORE])),
        "the positions come in another order": Slip(
            lambda h, y, head: head(h[y != IGNORE].flip(0)),
            "Keep the order of labels[labels != -100]: row after row.",
        ),
        "these are probabilities, not logits": Slip(
            lambda h, y, head: head(h[y != IGNORE]).softmax(-1),
            "Return what the head gives; the loss takes its own log-softmax.",
        ),
        "these are log-probabilities, not logits": Slip(
            lambda h, y, head: head(h[y != IGNORE]).log_softmax(-1),
            "Return what the head gives; the loss takes its own log-softmax.",
        ),
    },
    extra=_head_runs_on_few,
)
def gathered_logits(hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits (M, V) at the masked positions, from hidden (B, L, d) and labels (B, L)."""
    return head(hidden[labels != IGNORE])


def _one_layer_each(result: Any, student_layers: int, teacher_layers: int) -> Tensor:
    if isinstance(result, Tensor) and result.ndim != 1:
        raise Misconception(
            f"your function returned shape {tuple(result.shape)}, but a list is wanted"
        )
    if not isinstance(result, list | tuple | range | Tensor):
        raise Misconception(
            f"your function returned a {type(result).__name__}, but a list is wanted",
            "One teacher layer for each student layer, in the student's order: [3, 7, ...].",
        )
    if len(result) != student_layers:
        raise Misconception(
            f"for {student_layers} student layers you name {len(result)} teacher layers",
            "Each student layer learns from one teacher layer: a list of S numbers.",
        )
    return torch.as_tensor(result if isinstance(result, Tensor) else list(result))


@exercise(
    look="Student layer i takes teacher layer (i + 1) T / S - 1, rounded down; i starts at 0.",
    draws=lambda source: [(6, 24), (2, 4), (3, 4), (3, 12), (5, 12), (4, 4), (1, 7)],
    read=_one_layer_each,
    slips={
        "the layers are counted from 1": Slip(
            lambda s, t: [(i + 1) * t // s for i in range(s)], "Count from 0: subtract 1."
        ),
        "you take the first layer of each group": Slip(
            partial(layer_map, how="skip"),
            "Take the last one, so that the student's last layer learns from the teacher's last.",
        ),
        "you take the top layers only": Slip(
            partial(layer_map, how="last"), "Spread the student's layers evenly over the teacher's."
        ),
        "you take the bottom layers only": Slip(
            lambda s, t: range(s), "Spread the student's layers evenly over the teacher's."
        ),
        "the size of a group is rounded before it is multiplied": Slip(
            lambda s, t: [(i + 1) * (t // s) - 1 for i in range(s)],
            "Multiply first, then divide: 4 // 3 is 1 and never reaches the last layer.",
        ),
        "fractions are kept": Slip(
            lambda s, t: [(i + 1) * t / s - 1 for i in range(s)], "Use // rather than /."
        ),
        "the layers run from the first to the last, both included": Slip(
            lambda s, t: torch.linspace(0, t - 1, s).long(),
            "The first student layer takes the end of the first group, not teacher layer 0.",
        ),
        "the list runs backwards": Slip(lambda s, t: layer_map(s, t)[::-1], "Layer 0 comes first."),
    },
)
def match_layers(student_layers: int, teacher_layers: int) -> list[int]:
    """S teacher layers (counted from 0): the last of each of S equal groups."""
    return layer_map(student_layers, teacher_layers)


def _nll(logits: Tensor, labels: Tensor) -> Tensor:
    """(M,) cross-entropies at the masked positions."""
    masked = labels != IGNORE
    return F.cross_entropy(logits[masked], labels[masked], reduction="none")


@exercise(
    look="exp of the mean cross-entropy over the masked positions.",
    draws=lambda source: [
        (normal(source, b, length, v, scale=1.5), _labels(source, b, length, v))
        for b, length, v in ((3, 9, 7), (2, 12, 11))
    ],
    slips={
        "this is the mean cross-entropy; its exponential is wanted": Slip(
            lambda x, y: _nll(x, y).mean(), "Finish with .exp()."
        ),
        "the losses are summed, not averaged": Slip(
            lambda x, y: _nll(x, y).sum().exp(), "It must not grow with the text: take the mean."
        ),
        "the exponential is taken before the mean": Slip(
            lambda x, y: _nll(x, y).exp().mean(), "Average first (the geometric mean of 1/p)."
        ),
        "the mean divides by all positions, masked or not": Slip(
            lambda x, y: (_nll(x, y).sum() / y.numel()).exp(), "Count masked positions only."
        ),
        "2 is raised to a loss in nats": Slip(
            lambda x, y: 2 ** _nll(x, y).mean(),
            "F.cross_entropy uses natural logarithms, so the inverse is exp, not 2 ** loss.",
        ),
        "the exponent has the wrong sign": Slip(
            lambda x, y: (-_nll(x, y).mean()).exp(),
            "A cross-entropy is already positive; this is the mean probability, below 1.",
        ),
        "positions without a label count as piece 0": Slip(
            lambda x, y: F.cross_entropy(x.flatten(0, 1), y.clamp_min(0).flatten()).exp(),
            "Leave out the positions whose label is -100.",
        ),
    },
)
def perplexity(logits: Tensor, labels: Tensor) -> Tensor:
    """Scalar: exp of the mean loss where masked. Logits (B, L, V), labels (B, L)."""
    return _nll(logits, labels).mean().exp()
