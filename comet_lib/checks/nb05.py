"""Exercises of notebook 05, stage one: distil without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from comet_lib.attention import layer_map
from comet_lib.checks.framework import Misconception, Slip, compare, exercise, generator, normal

IGNORE = -100


def _labels(
    source: torch.Generator, batch: int, length: int, classes: int, ignore: int = IGNORE
) -> Tensor:
    """(B, L) labels: about a third of the positions carry one, piece 0 among them."""
    labels = torch.randint(1, classes, (batch, length), generator=source)
    hidden = torch.rand(batch, length, generator=source) < 0.35
    hidden[0, :2], hidden[-1, -1], hidden[0, 2] = True, False, False
    if ignore != 0:
        labels[0, 0] = 0  # piece 0 is a piece like any other
    return torch.where(hidden, labels, ignore)


# --- masked_positions ----------------------------------------------------------------------


def _masked_positions_reference(labels: Tensor, ignore: int) -> Tensor:
    return labels != ignore


@exercise(
    "masked_positions",
    notebook="05",
    reference=_masked_positions_reference,
    look="Compare the labels with the number that marks a position without a label.",
)
def masked_positions(answer: Callable[..., Any]) -> None:
    """answer(labels, ignore) -> bool (B, L), True where a piece was hidden."""
    source = generator()
    draws = [
        (_labels(source, *shape, 50, ignore), ignore)
        for shape, ignore in (((3, 9), 0), ((2, 14), -100), ((4, 7), -1))
    ]
    slips = [
        Slip(
            "True and False are swapped",
            lambda labels, ignore: labels == ignore,
            "`ignore` marks the positions that were NOT hidden; you want the others.",
        ),
        Slip(
            "piece 0 is lost",
            lambda labels, ignore: labels > 0,
            "0 is the number of a piece; only `ignore` means 'no label'.",
        ),
        Slip(
            "every position is kept",
            lambda labels, ignore: torch.ones_like(labels),
            "Most positions were not hidden; their label is `ignore`.",
        ),
        Slip(
            "the number -100 is written into your function",
            lambda labels, ignore: labels != IGNORE,
            "Compare with the argument `ignore`: other code marks with -1 or 0.",
        ),
        Slip(
            "these are the labels themselves, with 0 where there is none",
            lambda labels, ignore: labels.masked_fill(labels == ignore, 0),
            "Return True or False for each position: the comparison itself.",
        ),
    ]
    compare(answer, draws, _masked_positions_reference, slips)
    kind = answer(*draws[0]).dtype
    if kind != torch.bool:
        raise Misconception(
            f"the values are right, but of type {kind}, not torch.bool",
            "hidden[mask] with whole numbers takes rows 0 and 1 again and again, without an "
            "error; only a bool mask selects. Leave out .long(), .int() or .float().",
        )


# --- gathered_logits -----------------------------------------------------------------------


class _Head(nn.Module):
    """A small masked-LM head that notes at how many positions it was applied."""

    def __init__(self, source: torch.Generator, width: int, classes: int) -> None:
        super().__init__()
        # float64: then the order of gathering and head changes no digit that compare looks at
        self.first = normal(source, width, width).double()
        self.second = normal(source, width, classes).double()
        self.seen: list[int] = []

    def forward(self, hidden: Tensor) -> Tensor:
        self.seen.append(hidden[..., 0].numel())
        return torch.tanh(hidden @ self.first / 4) @ self.second


def _gathered_logits_reference(
    hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor]
) -> Tensor:
    return head(hidden[labels != IGNORE])


@exercise(
    "gathered_logits",
    notebook="05",
    reference=_gathered_logits_reference,
    look="Select the hidden states at the masked positions, then apply the head to those alone.",
)
def gathered_logits(answer: Callable[..., Any]) -> None:
    """answer(hidden (B, L, d), labels (B, L), head) -> logits (M, V) at the masked positions."""
    source = generator()
    draws: list[tuple[Any, ...]] = []
    for batch, length, width, classes in ((3, 8, 6, 11), (2, 12, 5, 9)):
        head = _Head(source, width, classes)
        hidden = normal(source, batch, length, width, scale=1.0).double()
        draws.append((hidden, _labels(source, batch, length, classes), head))

    inverted = "you keep the positions that were not hidden"
    mend = "A label of -100 means: not hidden. Select labels != -100."

    def shape(hidden: Tensor, labels: Tensor, head: _Head) -> Tensor:
        result = answer(hidden, labels, head)
        full = head(hidden)
        head.seen.pop()
        if isinstance(result, Tensor) and result.shape == full.shape:
            raise Misconception(
                "you return logits at all positions, shape (B, L, V)",
                "Only the M masked positions count: the result has the shape (M, V).",
            )
        left = int((labels == IGNORE).sum())
        wanted = (labels.numel() - left, full.shape[-1])
        if not isinstance(result, Tensor) or result.shape == wanted:
            return result
        if result.shape == (wanted[0], hidden.shape[-1]):
            raise Misconception(
                "these are the hidden states at the masked positions, not logits",
                "Gathering is half of it: now apply head(...) to them.",
            )
        if result.shape == (left, full.shape[-1]):
            raise Misconception(inverted, mend)
        if result.shape == (int((labels > 0).sum()), full.shape[-1]):
            raise Misconception(
                "piece 0 is lost", "0 is the number of a piece; select labels != -100."
            )
        return result

    slips = [
        Slip(inverted, lambda h, y, head: head(h[y == IGNORE]), mend),
        Slip(
            "the positions come in another order",
            lambda h, y, head: head(h[y != IGNORE].flip(0)),
            "Boolean indexing reads row after row; leave it as it comes, so that it fits "
            "labels[labels != -100].",
        ),
        Slip(
            "these are probabilities, not logits",
            lambda h, y, head: head(h[y != IGNORE]).softmax(-1),
            "Return what the head gives; the loss takes its own log-softmax.",
        ),
        Slip(
            "these are log-probabilities, not logits",
            lambda h, y, head: head(h[y != IGNORE]).log_softmax(-1),
            "Return what the head gives; the loss takes its own log-softmax.",
        ),
    ]
    compare(shape, draws, _gathered_logits_reference, slips)
    hidden, labels, head = draws[0]
    head.seen.clear()
    answer(hidden, labels, head)
    most, wanted = max(head.seen, default=0), int((labels != IGNORE).sum())
    if most > wanted:
        raise Misconception(
            f"the numbers are right, but the head ran at {most} positions where {wanted} are "
            "enough",
            "Gather first, then apply the head: the other order makes the full (B, L, V) logits, "
            "which is what we want to avoid.",
        )


# --- match_layers --------------------------------------------------------------------------


def _match_layers_reference(student_layers: int, teacher_layers: int) -> list[int]:
    return layer_map(student_layers, teacher_layers)


_EITHER = ((6, 24), (2, 4), (3, 4), (3, 12), (5, 12), (4, 4), (1, 7))


@exercise(
    "match_layers",
    notebook="05",
    reference=_match_layers_reference,
    look="Student layer i takes teacher layer (i + 1) T / S - 1, rounded down; i starts at 0.",
)
def match_layers(answer: Callable[..., Any]) -> None:
    """answer(S, T) -> S teacher layers (from 0): the last of each of S equal groups."""

    def as_tensor(student_layers: int, teacher_layers: int) -> Tensor:
        result = answer(student_layers, teacher_layers)
        if isinstance(result, Tensor) and result.ndim != 1:
            raise Misconception(
                f"your function returned shape {tuple(result.shape)} where a list is wanted"
            )
        if not isinstance(result, (list, tuple, range, Tensor)):
            raise Misconception(
                f"your function returned a {type(result).__name__} where a list is wanted",
                "One teacher layer for each student layer, in the student's order: [3, 7, ...].",
            )
        made = torch.as_tensor(list(result))
        if len(made) != student_layers:
            raise Misconception(
                f"for {student_layers} student layers you name {len(made)} teacher layers",
                "Each student layer learns from one teacher layer: a list of S numbers.",
            )
        return made

    slips = [
        Slip(
            "the layers are counted from 1",
            lambda s, t: torch.tensor([(i + 1) * t // s for i in range(s)]),
            "The library counts from 0: subtract 1 from each.",
        ),
        Slip(
            "you take the first layer of each group",
            lambda s, t: torch.tensor([i * t // s for i in range(s)]),
            "Take the last one, so that the student's last layer learns from the teacher's last.",
        ),
        Slip(
            "you take the top layers only",
            lambda s, t: torch.tensor([t - s + i for i in range(s)]),
            "Spread the student's layers evenly over the teacher's.",
        ),
        Slip(
            "you take the bottom layers only",
            lambda s, t: torch.arange(s),
            "Spread the student's layers evenly over the teacher's.",
        ),
        Slip(
            "the size of a group is rounded before it is multiplied",
            lambda s, t: torch.tensor([(i + 1) * (t // s) - 1 for i in range(s)]),
            "With 3 student and 4 teacher layers T // S is 1 and the last layer is never reached: "
            "multiply first, then divide.",
        ),
        Slip(
            "fractions are kept",
            lambda s, t: torch.tensor([(i + 1) * t / s - 1 for i in range(s)]),
            "A layer has a whole number: use // rather than /.",
        ),
        Slip(
            "the layers run from the first to the last, both included",
            lambda s, t: torch.linspace(0, t - 1, s).long(),
            "The first student layer takes the end of the first group, not teacher layer 0.",
        ),
        Slip(
            "the list runs backwards",
            lambda s, t: torch.tensor([(i + 1) * t // s - 1 for i in reversed(range(s))]),
            "Student layer 0 comes first.",
        ),
    ]
    compare(as_tensor, _EITHER, lambda s, t: torch.tensor(layer_map(s, t)), slips)


# --- perplexity ----------------------------------------------------------------------------


def _perplexity_reference(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE).exp()


@exercise(
    "perplexity",
    notebook="05",
    reference=_perplexity_reference,
    look="exp of the mean cross-entropy over the masked positions.",
)
def perplexity(answer: Callable[..., Any]) -> None:
    """answer(logits (B, L, V), labels (B, L)) -> scalar, exp of the mean loss where masked."""
    source = generator()
    draws = [
        (normal(source, b, length, v, scale=1.5), _labels(source, b, length, v))
        for b, length, v in ((3, 9, 7), (2, 12, 11))
    ]

    def each(logits: Tensor, labels: Tensor) -> Tensor:
        """(M,) cross-entropies."""
        return F.cross_entropy(logits[labels != IGNORE], labels[labels != IGNORE], reduction="none")

    slips = [
        Slip(
            "this is the mean cross-entropy; its exponential is wanted",
            lambda x, y: each(x, y).mean(),
            "Finish with .exp().",
        ),
        Slip(
            "the losses are summed, not averaged",
            lambda x, y: each(x, y).sum().exp(),
            "The perplexity of a longer text must not be larger for its length: take the mean.",
        ),
        Slip(
            "the exponential is taken before the mean",
            lambda x, y: each(x, y).exp().mean(),
            "Average the losses first; exp comes last (the geometric mean of 1/p).",
        ),
        Slip(
            "the mean divides by all positions, masked or not",
            lambda x, y: (each(x, y).sum() / y.numel()).exp(),
            "Divide by the number of masked positions.",
        ),
        Slip(
            "2 is raised to a loss in nats",
            lambda x, y: 2 ** each(x, y).mean(),
            "F.cross_entropy uses natural logarithms, so the inverse is exp, not 2 ** loss.",
        ),
        Slip(
            "the exponent has the wrong sign",
            lambda x, y: (-each(x, y).mean()).exp(),
            "A cross-entropy is already positive; this is the mean probability, below 1.",
        ),
        Slip(
            "positions without a label count as piece 0",
            lambda x, y: F.cross_entropy(x.flatten(0, 1), y.clamp_min(0).flatten()).exp(),
            "Leave out the positions whose label is -100.",
        ),
    ]
    compare(answer, draws, _perplexity_reference, slips)
