"""Exercises of notebook 06, stage two."""

# mypy: disable-error-code=has-type

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from comet_lib import losses
from comet_lib.checks.draws import generator, normal, numpy_generator, probabilities, uniform
from comet_lib.checks.framework import (
    Answer,
    Draws,
    Misconception,
    Slip,
    array_of,
    check_gradients,
    exercise,
    is_number,
    refuse_infinity,
    refuse_nan,
    value_of,
)


def _table(result: Any, *draw: Any) -> Tensor:
    """Probabilities as a tensor; an array or a list of rows will do."""
    if isinstance(result, Tensor):
        return result
    try:
        return torch.tensor(array_of(result, "a table (N, C)").astype(float))
    except ValueError:
        raise Misconception(
            "your function returned parts of different lengths, but one table is wanted",
            "Make the table first, and write every part into it.",
        ) from None


def _folds(source: torch.Generator) -> Draws:
    draws = []
    for sizes, in_order in (((3, 4, 4), True), ((5, 2, 6, 1), True), ((4, 4, 5), False)):
        classes = 3 if in_order else 4
        order = torch.arange(0)
        while torch.equal(order.argsort(), order):  # a few orders are their own inverse
            rows = torch.randperm(sum(sizes), generator=source).split(list(sizes))
            rows = [r.sort().values if in_order else r for r in rows]
            order = torch.cat(rows)
        draws.append((rows, [probabilities(source, n, classes) for n in sizes]))
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
    read=_table,
    slips={
        "the targets are in the order of the folds": Slip(
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
        "the folds' rows are sorted, but their parts are not": Slip(
            lambda rows, parts: fold_targets.reference([r.sort().values for r in rows], parts),
            "Row i of a part belongs to rows[k][i], in the order in which they come.",
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


def _teacher(source: torch.Generator, count: int) -> Answer:
    """A ``fit`` for ``count`` texts, whose answers tell which rows it was fitted on."""
    texts = normal(source, count, 3, scale=1.5)

    def fit(rows: Any) -> Callable[[Any], Tensor]:
        lesson = texts[torch.as_tensor(rows)].sum(0)
        return lambda asked: (texts[torch.as_tensor(asked)] + lesson).softmax(-1)

    return fit


def _crossed(source: torch.Generator) -> Draws:
    return [(folds, _teacher(source, sum(map(len, folds)))) for folds, _ in _folds(source)]


def _cross(
    folds: Sequence[Tensor],
    fit: Answer,
    pick: Callable[[int, Sequence[Tensor]], Sequence[Tensor]],
) -> Tensor:
    """Fold k is answered by a model fitted on the folds that ``pick`` gives."""
    parts = [fit(torch.cat(list(pick(k, folds))))(fold) for k, fold in enumerate(folds)]
    return fold_targets.reference(folds, parts)


def _other_folds(k: int, folds: Sequence[Tensor]) -> list[Tensor]:
    return [fold for j, fold in enumerate(folds) if j != k]


@exercise(
    look="For each fold: fit on the rows of all the others, ask about its own; then fold_targets.",
    draws=_crossed,
    read=_table,
    slips={
        "every model was fitted on all rows, so it has seen what it is asked about": Slip(
            partial(_cross, pick=lambda k, folds: folds), "Leave out fold k before you fit."
        ),
        "each model is asked about the very fold that it was fitted on": Slip(
            partial(_cross, pick=lambda k, folds: [folds[k]]), "Fit on the others, ask about k."
        ),
        "one model answers for every fold, and it was fitted on most of them": Slip(
            partial(_cross, pick=lambda k, folds: _other_folds(0, folds)),
            "Fit a new one in each turn of the loop.",
        ),
        "the last model answers for every fold": Slip(
            partial(_cross, pick=lambda k, folds: _other_folds(len(folds) - 1, folds)),
            "Ask each model in the loop, before the next one takes its name.",
        ),
        "each model is fitted on only the fold before its own": Slip(
            partial(_cross, pick=lambda k, folds: [folds[k - 1]]), "Join all the others: torch.cat."
        ),
        "each model is fitted on only the fold after its own": Slip(
            partial(_cross, pick=lambda k, folds: [folds[(k + 1) % len(folds)]]),
            "Join all the others: torch.cat.",
        ),
        "each model is fitted only on the folds before or after its own": Slip(
            partial(_cross, pick=lambda k, folds: folds[:k] or folds[1:]),
            "Fold k learns from those on both sides.",
        ),
        "the targets are in the order of the folds, not of the tweets": Slip(
            lambda folds, fit: torch.cat(
                [fit(torch.cat(_other_folds(k, folds)))(fold) for k, fold in enumerate(folds)]
            ),
            "Use your fold_targets.",
        ),
    },
    otherwise=_every_row_is_filled,
)
def out_of_fold(folds: Sequence[Tensor], fit: Callable[[Tensor], Answer]) -> Tensor:
    """(N, C) targets in row order, each from a model that never saw the row.

    ``folds`` are K index tensors that together hold 0 .. N-1 once; ``fit(rows)`` fits a model on
    those rows, and returns ``ask``; ``ask(rows)`` gives (len(rows), C) probabilities.
    """
    return _cross(folds, fit, _other_folds)


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
    edge_case="with a share of 0 or 1, or a teacher that is certain",
    edges=lambda source: [
        (_one_hot(probabilities(source, 4, 3)), probabilities(source, 4, 3), share)
        for share in (0.0, 0.02, 0.4, 1.0)
    ],
    read=_table,
    slips={
        "the second teacher is left out": Slip(
            lambda a, b, w: a, "Add its share, weight * second."
        ),
        "the weight is kept away from 0 and 1": Slip(
            lambda a, b, w: a + min(max(w, 0.05), 0.95) * (b - a), "Take the weight as it comes."
        ),
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
        "this is a geometric mean, normalized (the logits are averaged)": Slip(
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


def _priors(source: torch.Generator) -> Draws:
    shares = [probabilities(source, 3) for _ in range(3)]
    powers = (uniform(source, 0.2, 0.4), uniform(source, 0.6, 0.8), 1.5)
    return [(probabilities(source, 5, 3), f, p) for f, p in zip(shares, powers, strict=True)]


def _less(
    probabilities: Tensor,
    frequency: Tensor,
    power: float,
    *,
    by: Callable[[Tensor, float], Tensor] = lambda f, power: f**power,
    scale: Callable[[Tensor], Tensor] = lambda out: out / out.sum(1, keepdim=True),
) -> Tensor:
    """The targets, with one common slip."""
    return scale(probabilities / by(frequency, power))


@exercise(
    look="Divide each column by its label's frequency ** power, then each row by its sum.",
    draws=_priors,
    edge_case="with a power of 0 or 1, or where the teacher is certain",
    edges=lambda source: [
        (torch.cat([probabilities(source, 1, 3), torch.eye(3)]), probabilities(source, 3), power)
        for power in (0.0, 0.5, 1.0)
    ],
    read=_table,
    slips={
        "the rows no longer sum to 1": Slip(
            partial(_less, scale=lambda out: out), "Divide each row by its sum."
        ),
        "frequent labels gain, where they should lose": Slip(
            partial(_less, by=lambda f, power: f**-power), "Divide by the frequency."
        ),
        "the power is ignored: each label is divided by its whole frequency": Slip(
            partial(_less, by=lambda f, power: f), "Raise the frequency to the power first."
        ),
        "the power is ignored: this is the square root": Slip(
            partial(_less, by=lambda f, power: f**0.5), "Use `power`."
        ),
        "the whole quotient is raised to the power": Slip(
            lambda p, f, power: F.normalize((p / f) ** power, p=1),
            "Only the frequency: the power of a probability changes how sure the teacher is.",
        ),
        "the columns were made to sum to 1, not the rows": Slip(
            partial(_less, scale=lambda out: out / out.sum(0)), "One tweet is one row: sum(1)."
        ),
        "the whole table was divided by one number": Slip(
            partial(_less, scale=lambda out: out / out.sum()), "Each row has a sum of its own."
        ),
        "a softmax is taken of the quotients": Slip(
            partial(_less, scale=lambda out: out.softmax(1)), "Divide each row by its sum."
        ),
    },
)
def less_prior(probabilities: Tensor, frequency: Tensor, power: float) -> Tensor:
    """(N, C) targets q_c / frequency_c ** power, each row scaled back to sum to 1.

    ``frequency`` (C,) is the share of each label in the language (Menon et al. 2021,
    arXiv 2007.07314).
    """
    return _less(probabilities, frequency, power)


def _mixed(
    logits: Tensor,
    labels: Tensor,
    teacher_probs: Tensor,
    alpha: float,
    *,
    soft_rows: str = "all",
    soft_count: str = "rows",
    soft_kind: str = "KL",
    hard_count: str = "labeled",
    hard_rows: str = "labeled",
    shares: Callable[[float], tuple[float, float]] = lambda alpha: (alpha, 1 - alpha),
) -> Tensor:
    """The loss with some parts replaced by common slips; with none, the right value."""
    known = labels != -100
    log_p, q = torch.log_softmax(logits, -1), teacher_probs
    if soft_kind == "softmax":
        q = q.softmax(-1)
    if soft_kind == "no log":
        each = (torch.xlogy(q, q) - q * logits).sum(-1)
    elif soft_kind == "probabilities":
        each = (torch.xlogy(q, q) - q * log_p.exp()).sum(-1)
    elif soft_kind == "swapped":
        each = (log_p.exp() * (log_p - q.log())).sum(-1)
    else:
        each = ((0 if soft_kind == "cross-entropy" else q.log()) - log_p).mul(q).sum(-1)
    rows = {"all": torch.ones_like(known), "labeled": known, "unlabeled": ~known}[soft_rows]
    soft = each[rows].sum() / {"rows": int(rows.sum()), "entries": q.numel(), "one": 1}[soft_count]
    guess = {
        "labeled": labels,
        "as class 0": labels.clamp_min(0),
        "pseudo": torch.where(known, labels, teacher_probs.argmax(-1)),
    }[hard_rows]
    counted = guess != -100
    nll = -log_p[counted].gather(-1, guess[counted, None]).sum()
    hard = nll / {"labeled": int(counted.sum()), "all": len(labels), "sum": 1}[hard_count]
    a, b = shares(alpha)
    return a * soft + b * hard


def _mixed_draws(source: torch.Generator, labeled: bool = True) -> Draws:
    draws = []
    sizes = ((3, 4, (0.1, 0.3)), (2, 6, (0.6, 0.9)), (5, 2, (0.3, 0.45)), (2, 3, (0, 0)))
    for known, unknown, ends in (*sizes, (3, 2, (1, 1))):
        rows = known + unknown
        labels = torch.randint(1, 3, (rows,), generator=source)  # label 0 is a slip's stand-in
        labels[torch.randperm(rows, generator=source)[: unknown if labeled else rows]] = -100
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
        "the hard loss is divided by all rows, labeled or not": Slip(
            partial(_mixed, hard_count="all"),
            "Average it over the labeled rows: F.cross_entropy(logits[known], labels[known]).",
        ),
        "the hard loss is summed, not averaged": Slip(
            partial(_mixed, hard_count="sum"), "Divide it by the number of labeled rows."
        ),
        "the soft targets reach only the labeled rows": Slip(
            partial(_mixed, soft_rows="labeled"),
            "Average it over all rows: otherwise the unlabeled ones teach nothing.",
        ),
        "the soft targets reach only the unlabeled rows": Slip(
            partial(_mixed, soft_rows="unlabeled"),
            "A labeled row has a soft target too: average over all.",
        ),
        "alpha is the weight of the hard labels": Slip(
            partial(_mixed, shares=lambda alpha: (1 - alpha, alpha)),
            "alpha goes to the soft targets, 1 - alpha to the labels.",
        ),
        "the two losses are added without alpha": Slip(
            partial(_mixed, shares=lambda alpha: (1, 1)), "alpha * soft + (1 - alpha) * hard."
        ),
        "alpha is ignored: both losses count by a half": Slip(
            partial(_mixed, shares=lambda alpha: (0.5, 0.5)), "alpha * soft + (1 - alpha) * hard."
        ),
        "alpha is kept away from 0 and 1": Slip(
            partial(
                _mixed, shares=lambda a: (min(max(a, 0.05), 0.95), 1 - min(max(a, 0.05), 0.95))
            ),
            "Take alpha as it comes: 0 means labels only, 1 means soft targets only.",
        ),
        "the hard loss has weight 1": Slip(
            partial(_mixed, shares=lambda alpha: (alpha, 1)), "alpha * soft + (1 - alpha) * hard."
        ),
        "the hard labels are left out": Slip(
            partial(_mixed, shares=lambda alpha: (alpha, 0)),
            "Add (1 - alpha) times the cross-entropy of the labeled rows.",
        ),
        "a row without a label is taught class 0 as if that were its label": Slip(
            partial(_mixed, hard_rows="as class 0"),
            "Leave the rows with label -100 out of the hard loss: known = labels != -100.",
        ),
        "the teacher's most likely label replaces a missing one": Slip(
            partial(_mixed, hard_rows="pseudo"),
            "That is pseudo-labeling. Here a row without a label has only its soft target.",
        ),
        "the soft loss is a cross-entropy, which is the KL plus the teacher's entropy": Slip(
            partial(_mixed, soft_kind="cross-entropy"),
            "Use the KL divergence: it is 0 where the student equals its teacher.",
        ),
        "the two sides of the KL divergence are swapped": Slip(
            partial(_mixed, soft_kind="swapped"), "The weights are the teacher's probabilities."
        ),
        "the soft loss is summed over the rows, not averaged": Slip(
            partial(_mixed, soft_count="one"), "reduction='batchmean' divides by the rows."
        ),
        "the student's logits are taken for log-probabilities": Slip(
            partial(_mixed, soft_kind="no log"), "F.kl_div wants F.log_softmax(logits, -1)."
        ),
        "the student's probabilities are taken for log-probabilities": Slip(
            partial(_mixed, soft_kind="probabilities"), "F.kl_div wants F.log_softmax(logits, -1)."
        ),
        "a softmax is taken of the teacher's probabilities": Slip(
            partial(_mixed, soft_kind="softmax"), "They sum to 1 already."
        ),
        "the soft loss is averaged over the classes too (reduction='mean')": Slip(
            partial(_mixed, soft_count="entries"),
            "A KL is a sum over classes: average over the rows only (reduction='batchmean').",
        ),
    },
    edge_case="in a batch without labels",
    edges=partial(_mixed_draws, labeled=False),
    read=_no_nan,
    extra=_certain_teacher_and_gradient,
)
def mixed_loss(logits: Tensor, labels: Tensor, teacher_probs: Tensor, alpha: float) -> Tensor:
    """Scalar loss of logits and probabilities (B, C), labels (B,); label -100 means none.

    alpha * KL(teacher || student) over all rows + (1 - alpha) * cross-entropy over labeled rows.
    Temperature 1.
    """
    known = labels != -100
    hard = F.cross_entropy(logits[known], labels[known]) if known.any() else logits.sum() * 0
    soft = losses.soft_target_loss_from_probs(logits, teacher_probs)
    return losses.hybrid_loss(soft, hard, alpha)


def _pulls(
    logits: Tensor,
    labels: Tensor,
    teacher_probs: Tensor,
    alpha: float,
    *,
    soft_count: str = "rows",
    hard_count: str = "labeled",
    sign: int = 1,
    student: Callable[[Tensor], Tensor] = lambda logits: logits.softmax(-1),
    shares: Callable[[float], tuple[float, float]] = lambda alpha: (alpha, 1 - alpha),
) -> Tensor:
    """The gradient at the logits, with one common slip."""
    p, known, (a, b) = student(logits), labels != -100, shares(alpha)
    counts = {"rows": len(labels), "labeled": max(int(known.sum()), 1), "one": 1}
    out = a / counts[soft_count] * (p - teacher_probs)
    out[known] += b / counts[hard_count] * (p[known] - F.one_hot(labels[known], p.shape[-1]))
    return sign * out


@exercise(
    look="alpha / B * (p - q) in every row; in the labeled ones also (1 - alpha) / K * (p - e_y).",
    draws=_mixed_draws,
    slips={
        "the sign is reversed: this is the way down": Slip(
            partial(_pulls, sign=-1), "A gradient points up: p - q, not q - p."
        ),
        "the labels' part is divided by all rows": Slip(
            partial(_pulls, hard_count="rows"), "K counts only the rows with a label."
        ),
        "the soft targets' part is divided by the labeled rows": Slip(
            partial(_pulls, soft_count="labeled"), "B counts all rows."
        ),
        "nothing is divided by the number of rows": Slip(
            partial(_pulls, soft_count="one", hard_count="one"), "Both losses are means."
        ),
        "alpha is the weight of the labels": Slip(
            partial(_pulls, shares=lambda alpha: (1 - alpha, alpha)), "It is the soft targets'."
        ),
        "alpha is left out": Slip(
            partial(_pulls, shares=lambda alpha: (1, 1)), "Weight the two parts as in the loss."
        ),
        "the labels' part is missing": Slip(
            partial(_pulls, shares=lambda alpha: (alpha, 0)), "out[known] += ..."
        ),
        "logits are taken for probabilities": Slip(
            partial(_pulls, student=lambda logits: logits), "p is logits.softmax(-1)."
        ),
    },
    edge_case="in a batch without labels",
    edges=partial(_mixed_draws, labeled=False),
)
def mixed_gradient(logits: Tensor, labels: Tensor, teacher_probs: Tensor, alpha: float) -> Tensor:
    """(B, C) gradient of ``mixed_loss`` at the logits, by its formula."""
    return _pulls(logits, labels, teacher_probs, alpha)


class _Toy(nn.Module):
    """A student of a few weights that notes in which mode it was asked."""

    def __init__(self, source: torch.Generator) -> None:
        super().__init__()
        self.words = nn.Embedding.from_pretrained(normal(source, 9, 4), freeze=False)
        self.head = nn.Linear(4, 3)
        self.head.weight.data, self.head.bias.data = normal(source, 3, 4), normal(source, 3)
        self.modes: list[bool] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        self.modes.append(self.training)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mean = (self.words(input_ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return SimpleNamespace(logits=self.head(mean))


def _batches(source: torch.Generator) -> list[dict[str, Tensor]]:
    found = []
    for _, labels, probs, _ in _mixed_draws(source)[:3]:
        ids = torch.randint(0, 9, (len(labels), 5), generator=source)
        mask = (torch.arange(5) < torch.randint(2, 6, (len(labels), 1), generator=source)).long()
        found.append(
            {"input_ids": ids, "attention_mask": mask, "labels": labels, "teacher_probs": probs}
        )
    return found


def _epoch(
    student: Any,
    batches: Iterable[dict[str, Tensor]],
    alpha: float,
    optimizer: torch.optim.Optimizer,
    *,
    zero: str = "before",
    step: str = "each",
    mask: bool = True,
    share: Callable[[float], float] = lambda alpha: alpha,
    only: int | None = None,
) -> float:
    """One pass, with one common slip."""
    found: list[float] = []
    student.train()
    for batch in islice(batches, only):
        seen = batch["attention_mask"] if mask else None
        logits = student(input_ids=batch["input_ids"], attention_mask=seen).logits
        loss = mixed_loss.reference(logits, batch["labels"], batch["teacher_probs"], share(alpha))
        if zero == "before":
            optimizer.zero_grad()
        loss.backward()
        if zero == "between":
            optimizer.zero_grad()
        if step == "each":
            optimizer.step()
        found.append(loss.item())
    if step == "last":
        optimizer.step()
    return sum(found) / len(found)


_EPOCH_SLIPS = {
    "the gradients of one batch are added to those of the next": (
        partial(_epoch, zero="never"),
        "Call optimizer.zero_grad() once a batch, before backward.",
    ),
    "nothing was learned: the weights did not change": (
        partial(_epoch, step="never"),
        "zero_grad, then backward, then step, in this order, in every batch.",
    ),
    "the weights move only once, after the last batch": (
        partial(_epoch, step="last"),
        "optimizer.step() belongs into the loop.",
    ),
    "all gradients are added up, and the weights move once": (
        partial(_epoch, zero="never", step="last"),
        "zero_grad and step belong into the loop.",
    ),
    "the student reads the padding": (
        partial(_epoch, mask=False),
        "Pass the attention_mask with the input_ids.",
    ),
    "alpha and 1 - alpha are swapped": (
        partial(_epoch, share=lambda alpha: 1 - alpha),
        "mixed_loss takes alpha as it is.",
    ),
    "alpha is ignored": (partial(_epoch, share=lambda alpha: 0.5), "Pass alpha on to mixed_loss."),
    "the soft targets are left out": (partial(_epoch, share=lambda alpha: 0.0), "Pass alpha on."),
    "the labels are left out": (partial(_epoch, share=lambda alpha: 1.0), "Pass alpha on."),
    "only the first batch was used": (
        partial(_epoch, only=1),
        "The return belongs after the loop, not into it.",
    ),
}


def _trains(answer: Answer) -> None:
    source = generator()
    batches, alpha = _batches(source), uniform(source, 0.2, 0.4)
    first = _Toy(source).eval()

    def run(function: Answer) -> tuple[Any, Tensor, list[bool]]:
        student = copy.deepcopy(first)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.3)
        walk = (batch for batch in batches)  # without a length, as in the notebook
        result = function(student, walk, alpha, optimizer)
        return result, nn.utils.parameters_to_vector(student.parameters()).detach(), student.modes

    kept = copy.deepcopy(batches)
    result, weights, modes = run(answer)
    if any(old.keys() != new.keys() for old, new in zip(kept, batches, strict=True)):
        raise Misconception(
            "your function took entries out of the batches, so a second epoch would fail",
            "Read them with batch[...], not with batch.pop(...).",
        )
    if not is_number(result):
        raise Misconception(
            f"your function returned a {type(result).__name__}, but one number is wanted",
            "Return the mean of the batches' losses.",
        )
    wanted, right, _ = run(_epoch)
    if not torch.allclose(weights, right, rtol=1e-3, atol=1e-5):
        for message, (slip, look) in _EPOCH_SLIPS.items():
            if torch.allclose(weights, run(slip)[1], rtol=1e-3, atol=1e-5):
                raise Misconception(message, look)
        raise Misconception("after one epoch the student's weights are not the right ones")
    if not all(modes):
        raise Misconception(
            "the student was trained in eval mode, without its dropout",
            "Begin with student.train(): whoever scored it last has left it in eval mode.",
        )
    if isinstance(result, Tensor) and result.requires_grad:
        raise Misconception(
            "the loss that you return keeps the whole graph of the batch in memory",
            "Collect loss.item().",
        )
    if abs(float(result) - wanted) > 1e-4 * max(1, abs(wanted)):
        total = abs(float(result) - wanted * len(batches)) < 1e-4 * max(1, abs(wanted))
        raise Misconception(
            "the weights are right, but the loss is the sum over the batches, not their mean"
            if total
            else "the weights are right, but the loss is not the mean of the batches' losses"
        )


@exercise(
    look="Forward, mixed_loss, zero_grad, backward, step: for each batch, in this order.",
    verify=_trains,
)
def train_epoch(
    student: Any,
    batches: Iterable[dict[str, Tensor]],
    alpha: float,
    optimizer: torch.optim.Optimizer,
) -> float:
    """One pass of training over ``batches``, in training mode; the mean of the batches' losses.

    A batch holds input_ids and attention_mask (B, L), labels (B,) and teacher_probs (B, C).
    """
    return _epoch(student, batches, alpha, optimizer)


def _keep(
    student: nn.Module,
    run_epoch: Callable[[], Any],
    score: Callable[[], float],
    epochs: int,
    patience: int,
    *,
    better: Callable[[float, float], bool] = lambda new, old: new > old,
    stop: Callable[[list[float], int, int], bool] = lambda s, best, n: len(s) - 1 - best >= n,
) -> list[float]:
    """Train and keep the best epoch, with one common slip."""
    scores: list[float] = []
    best, kept = 0, copy.deepcopy(student.state_dict())
    for _ in range(epochs):
        run_epoch()
        scores.append(score())
        if len(scores) == 1 or better(scores[-1], scores[best]):
            best, kept = len(scores) - 1, copy.deepcopy(student.state_dict())
        elif stop(scores, best, patience):
            break
    student.load_state_dict(kept)
    return scores


_FIT_SLIPS = {
    "training never stops early": (
        partial(_keep, stop=lambda s, best, n: False),
        "Stop after `patience` epochs without a gain.",
    ),
    "training stops at the first epoch without a gain": (
        partial(_keep, stop=lambda s, best, n: True),
        "Wait for `patience` of them in a row.",
    ),
    "training stops one epoch too late": (
        partial(_keep, stop=lambda s, best, n: len(s) - 1 - best > n),
        "With patience 1 it stops at the first epoch without a gain.",
    ),
    "training stops one epoch too early": (
        partial(_keep, stop=lambda s, best, n: len(s) - best >= n),
        "With patience 1 it stops at the first epoch without a gain.",
    ),
    "all epochs without a gain are counted, though a better one came between": (
        partial(
            _keep,
            stop=lambda s, best, n: sum(new <= max(s[:i]) for i, new in enumerate(s) if i) >= n,
        ),
        "Start the count again after each better epoch.",
    ),
    "each epoch is compared with the one before, not with the best": (
        partial(
            _keep,
            stop=lambda s, best, n: len(s) > n and all(s[-i] <= s[-i - 1] for i in range(1, n + 1)),
        ),
        "A score that recovers is still no gain until it beats the best so far.",
    ),
    "the epoch with the lowest score is kept": (
        partial(_keep, better=lambda new, old: new < old),
        "A score is not a loss: more is better.",
    ),
    "of two equal epochs the later one is kept": (
        partial(_keep, better=lambda new, old: new >= old),
        "Only a better score counts as a gain: >, not >=.",
    ),
}
#: Dev scores by epoch, and a patience, on which each slip does something else.
_RUNS = (
    ((3, 5, 4, 6, 5, 5.5, 4, 7), 2),
    ((3, 5, 4, 6, 5, 6, 5, 7), 3),
    ((5, 4, 3, 6, 7, 8), 1),
    ((2, 4, 3, 3.5, 3, 5, 4, 4, 4), 3),
    ((1, 2, 3), 2),
)


def _fits(answer: Answer) -> None:
    source = generator()
    shift = uniform(source, 40, 60)
    tables = [([shift + x for x in scores], patience) for scores, patience in _RUNS]
    tables.append(([0.0, 0.0, 0.0], 2))  # the first epoch counts, whatever its score

    def run(function: Answer, scores: Sequence[float], patience: int) -> tuple[Any, int, int, bool]:
        """What is returned, the epochs run, the epoch whose weights are left, any loading."""
        student, ran, loaded, asked = nn.Linear(1, 1), [0], [False], [0]
        student.weight.data.zero_()

        def load(*arguments: Any, **more: Any) -> Any:
            loaded[0] = True
            return nn.Module.load_state_dict(student, *arguments, **more)

        def run_epoch() -> float:
            if ran[0] == len(scores):
                raise Misconception("your function runs more epochs than `epochs`")
            ran[0] += 1
            student.weight.data.add_(1)  # in place, as an optimizer does
            return 1 / ran[0]

        def score() -> float:
            if not ran[0]:
                raise Misconception("the student is scored before its first epoch")
            asked[0] += 1
            return scores[round(student.weight.item()) - 1]

        student.load_state_dict = load  # type: ignore[method-assign]
        result = function(student, run_epoch, score, len(scores), patience)
        if asked[0] > ran[0]:
            raise Misconception(
                f"score() is called {asked[0]} times in {ran[0]} epochs",
                "Each call is a pass over dev: call it once an epoch, and keep what it says.",
            )
        values = array_of(result, "the list of all scores")
        if values.ndim != 1:
            raise Misconception(
                f"your function returned shape {values.shape}, not a list of scores"
            )
        return values.tolist(), ran[0], round(student.weight.item()), loaded[0]

    got = [run(answer, *table) for table in tables]
    right = [run(_keep, *table) for table in tables]
    if any(g[1:3] != r[1:3] for g, r in zip(got, right, strict=True)):
        for message, (slip, look) in _FIT_SLIPS.items():
            if all(g[1:3] == run(slip, *t)[1:3] for g, t in zip(got, tables, strict=True)):
                raise Misconception(message, look)
        if all(ran == left for _, ran, left, _ in got):
            copied = all(loaded for *_, loaded in got)
            raise Misconception(
                "the weights that you kept have moved on: they are the last epoch's"
                if copied
                else "the student is left with the weights of its last epoch, not of its best",
                "state_dict() hands out the weights themselves, which training goes on changing. "
                "Keep copy.deepcopy(student.state_dict())."
                if copied
                else "Keep a copy of the best ones, and load_state_dict it at the end.",
            )
        at = next(i for i, (g, r) in enumerate(zip(got, right, strict=True)) if g[1:3] != r[1:3])
        raise Misconception(
            f"with the scores {[round(x - shift, 1) for x in tables[at][0]]} and patience "
            f"{tables[at][1]} your function runs {got[at][1]} epochs and keeps number {got[at][2]}"
        )
    for (result, *_), (scores, *_) in zip(got, right, strict=True):
        if result != scores:
            raise Misconception(
                "the right epoch is kept, but what you return is not the list of all scores",
                "Return one score for each epoch that was run.",
            )


@exercise(
    look="Run, score, keep a copy of the best, stop after `patience` epochs without a better one.",
    verify=_fits,
)
def fit(
    student: nn.Module,
    run_epoch: Callable[[], Any],
    score: Callable[[], float],
    epochs: int,
    patience: int,
) -> list[float]:
    """Up to ``epochs`` epochs; the student is left with the weights of the best. All scores.

    ``run_epoch()`` trains the student for one epoch, ``score()`` is its score on dev. Training
    stops after ``patience`` epochs in a row without a better score; of equal epochs the first
    counts.
    """
    return _keep(student, run_epoch, score, epochs, patience)


def _languages_share(source: torch.Generator, missing: bool = False) -> Draws:
    """One language: folds of the labeled tweets, labels, fit, the neural teacher, two numbers."""
    draws: list[tuple[Any, ...]] = []
    for sizes, hidden in (((3, 4, 4), 5), ((4, 3), 8), ((2, 4, 3), 0 if missing else 3)):
        known = sum(sizes)
        folds = [f.sort().values for f in torch.randperm(known, generator=source).split(sizes)]
        labels = torch.randint(0, 2, (known,), generator=source)
        if not missing:
            labels[:3] = torch.tensor([0, 1, 2])
        neural = probabilities(source, known + hidden, 3)
        numbers = uniform(source, 0.2, 0.4), uniform(source, 0.4, 0.8)
        draws.append((folds, labels, _teacher(source, known + hidden), neural, *numbers))
    return draws


def _soft(
    folds: Sequence[Tensor],
    labels: Tensor,
    fit: Answer,
    neural: Tensor,
    weight: float,
    power: float,
    *,
    own: Answer = lambda folds, fit: out_of_fold.reference(folds, fit),
    lesson: Answer = lambda known, neural: known,
    shares: Callable[[float], float] = lambda weight: weight,
    start: int = 1,
    last: Answer = lambda *table: less_prior.reference(*table),
) -> Tensor:
    """The targets of one language, with one common slip."""
    known, hidden = torch.arange(len(labels)), torch.arange(len(labels), len(neural))
    answers = torch.cat([own(folds, fit), fit(lesson(known, neural))(hidden)])
    counts = start + torch.bincount(labels, minlength=3)
    mixed = mix_targets.reference(answers, neural, shares(weight))
    return last(mixed, counts / counts.sum(), power)


@exercise(
    look="out_of_fold for the labeled, one teacher of them all for the rest; mix; less_prior.",
    draws=_languages_share,
    read=_table,
    slips={
        "the labeled tweets were answered by a teacher that had seen them": Slip(
            partial(
                _soft, own=lambda folds, fit: fit(torch.cat(folds))(torch.cat(folds).sort()[0])
            ),
            "Use your out_of_fold for them.",
        ),
        "the teacher of the other tweets was fitted on those tweets too": Slip(
            partial(_soft, lesson=lambda known, neural: torch.arange(len(neural))),
            "It would need their labels, which we pretend not to have: fit on the labeled ones.",
        ),
        "the other tweets were answered by the teacher of one fold": Slip(
            lambda folds, *rest: partial(
                _soft, lesson=lambda *_: torch.cat(_other_folds(len(folds) - 1, folds))
            )(folds, *rest),
            "No labeled tweet must be kept from them: fit once more, on all labeled tweets.",
        ),
        "the two teachers are swapped": Slip(
            partial(_soft, shares=lambda weight: 1 - weight), "`weight` is the neural teacher's."
        ),
        "the neural teacher is left out": Slip(
            partial(_soft, shares=lambda weight: 0.0), "Mix it in: mix_targets."
        ),
        "the prior is taken away from the n-gram teacher only, before the mix": Slip(
            lambda folds, labels, fit, neural, weight, power: mix_targets.reference(
                _soft(folds, labels, fit, neural, 0.0, power), neural, weight
            ),
            "Mix first, then less_prior.",
        ),
        "the prior is taken away from each teacher, before the mix": Slip(
            lambda folds, labels, fit, neural, weight, power: mix_targets.reference(
                *(_soft(folds, labels, fit, neural, share, power) for share in (0.0, 1.0)), weight
            ),
            "Mix first, then less_prior.",
        ),
        "the targets still lean toward the frequent label": Slip(
            partial(_soft, last=lambda mixed, frequency, power: mixed), "Finish with less_prior."
        ),
        "the counts start at 0, not at 1": Slip(
            partial(_soft, start=0), "A label that nobody gave would have a frequency of 0."
        ),
    },
    edge_case="where a label is missing, or every tweet has one",
    edges=partial(_languages_share, missing=True),
)
def soft_rows(
    folds: Sequence[Tensor],
    labels: Tensor,
    fit: Callable[[Tensor], Answer],
    neural: Tensor,
    weight: float,
    power: float,
) -> Tensor:
    """(N, 3) soft targets of one language, of whose N tweets only the first K have a label.

    ``folds`` hold the rows 0 .. K-1, ``labels`` (K,) theirs; ``fit`` as in ``out_of_fold``;
    ``neural`` (N, 3) is the second teacher, mixed in by ``weight``. The frequency of a label is its
    count among ``labels`` plus 1, divided by the sum of these.
    """
    return _soft(folds, labels, fit, neural, weight, power)


def _spoken(source: torch.Generator) -> Draws:
    """Labels whose most common one differs by language; the languages come up in any order."""
    rng, draws = numpy_generator(source), []
    for first, codes in enumerate((["hau", "ibo", "swa"], ["kin", "yor"]), int(rng.integers(3))):
        counts = [np.roll([12, 3, 8], first + i) * (5 if i == 0 else 2) for i in range(len(codes))]
        labels = np.concatenate([np.repeat(range(3), c) for c in counts])
        languages = np.repeat(codes, [c.sum() for c in counts])
        order = rng.permutation(len(labels))
        asked = rng.permutation(np.repeat(codes, 4))
        draws.append((labels[order], languages[order], asked))
    return draws


def _by_code(
    labels: np.ndarray, languages: np.ndarray, asked: np.ndarray, *, pick: Answer
) -> np.ndarray:
    """``pick(counts of a language's labels)`` for each tweet that is asked about."""
    return np.array([pick(np.bincount(labels[languages == c], minlength=3)) for c in asked])


@exercise(
    look="For each language: np.bincount of its labels, .argmax(); then one for each asked code.",
    draws=_spoken,
    read=lambda result, *draw: torch.tensor(array_of(result, "one label a tweet").astype(float)),
    slips={
        "this is the most common label of all languages together": Slip(
            lambda labels, languages, asked: np.full(len(asked), np.bincount(labels).argmax()),
            "Swahili is mostly neutral, other languages are not: count each by itself.",
        ),
        "this is the rarest label": Slip(
            partial(_by_code, pick=lambda counts: counts.argmin()), "The largest count: argmax."
        ),
        "this is how often it occurs, not which label it is": Slip(
            partial(_by_code, pick=lambda counts: counts.max()), "argmax() instead of max()."
        ),
        "this is the mean label": Slip(
            partial(_by_code, pick=lambda c: round((c * np.arange(3)).sum() / c.sum())),
            "Labels are names: negative and positive do not make neutral.",
        ),
    },
)
def most_common(labels: np.ndarray, languages: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """(M,) the label that is most common in the language of each of the ``asked`` codes (M,).

    ``labels`` and ``languages`` (N,) are those of the training tweets.
    """
    return _by_code(labels, languages, asked, pick=lambda counts: counts.argmax())
