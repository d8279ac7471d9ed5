"""Right and wrong answers to the exercises of notebook 06."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

Answer = Callable[..., Any]


def fold_by_fold(rows: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    out = torch.full((sum(len(r) for r in rows), parts[0].shape[1]), float("nan"))
    for r, part in zip(rows, parts, strict=True):
        for i, row in enumerate(r.tolist()):
            out[row] = part[i]
    return out


def fold_sum(rows: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """The whole table divided by the number of folds, as if every fold had judged every tweet."""
    return fold_by_fold(rows, parts) / len(rows)


def first_fold(rows: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    out = torch.zeros(sum(len(r) for r in rows), parts[0].shape[1])
    out[rows[0]] = parts[0]
    return out


def kl(logits: Tensor, probs: Tensor, reduction: str = "batchmean") -> Tensor:
    return F.kl_div(F.log_softmax(logits, -1), probs, reduction=reduction)


def hard_of(logits: Tensor, labels: Tensor) -> Tensor:
    known = labels != -100
    return F.cross_entropy(logits[known], labels[known]) if known.any() else logits.sum() * 0


def slow_mixed(logits: Tensor, labels: Tensor, probs: Tensor, alpha: float) -> Tensor:
    """Row by row and class by class."""
    soft, hard, count = torch.zeros(()), torch.zeros(()), 0
    for z, y, q in zip(logits, labels.tolist(), probs, strict=True):
        log_p = z - torch.logsumexp(z, 0)
        for c in range(len(z)):
            soft = soft + torch.xlogy(q[c], q[c]) - q[c] * log_p[c]
        if y != -100:
            hard, count = hard - log_p[y], count + 1
    return alpha * soft / len(logits) + (1 - alpha) * hard / max(count, 1)


def naive_kl(logits: Tensor, probs: Tensor) -> Tensor:
    return (probs * (probs.log() - F.log_softmax(logits, -1))).sum(-1).mean()


def no_labels_no_loss(z: Tensor, y: Tensor, q: Tensor, a: float) -> Tensor:
    return a * kl(z, q) + (1 - a) * hard_of(z, y) if (y != -100).any() else z.sum() * 0


def no_labels_no_alpha(z: Tensor, y: Tensor, q: Tensor, a: float) -> Tensor:
    return a * kl(z, q) + (1 - a) * hard_of(z, y) if (y != -100).any() else kl(z, q)


def numpy_folds(rows: Sequence[Tensor], parts: Sequence[Tensor]) -> np.ndarray:
    out = np.zeros((sum(map(len, rows)), parts[0].shape[1]))
    for r, part in zip(rows, parts, strict=True):
        out[r] = part
    return out


def crossed(folds: Sequence[Tensor], fit: Answer) -> Tensor:
    parts = []
    for k, fold in enumerate(folds):
        ask = fit(torch.cat([*folds[:k], *folds[k + 1 :]]))
        parts.append(ask(fold))
    return fold_by_fold(folds, parts)


def row_by_row(folds: Sequence[Tensor], fit: Answer) -> list[list[float]]:
    """The others as a list of numbers; one row asked at a time."""
    size = sum(map(len, folds))
    out: list[list[float]] = [[]] * size
    for fold in folds:
        ask = fit([i for i in range(size) if i not in fold.tolist()])
        for i in fold.tolist():
            out[i] = ask([i])[0].tolist()
    return out


def fitted_again(folds: Sequence[Tensor], fit: Answer) -> Tensor:
    """The model of the other folds is asked about those: the last to answer wins."""
    out = torch.zeros(sum(map(len, folds)), fit(folds[0])(folds[0]).shape[1])
    for fold in folds:
        others = torch.cat([f for f in folds if f is not fold])
        out[others] = fit(fold)(others)
    return out


def prior(p: Tensor, f: Tensor, power: float) -> Tensor:
    return F.normalize(p / f.pow(power), p=1, dim=-1)


def pulls(logits: Tensor, labels: Tensor, probs: Tensor, alpha: float, sign: int = 1) -> Tensor:
    """By automatic differentiation."""
    leaf = logits.clone().requires_grad_()
    return sign * torch.autograd.grad(slow_mixed(leaf, labels, probs, alpha), leaf)[0]


def row_pulls(logits: Tensor, labels: Tensor, probs: Tensor, alpha: float) -> list[Tensor]:
    rows = []
    for z, y, q in zip(logits, labels, probs, strict=True):
        row = alpha * (z.softmax(0) - q) / len(logits)
        if y != -100:
            one = torch.eye(3)[y]
            row = row + (1 - alpha) * (z.softmax(0) - one) / (labels != -100).sum()
        rows.append(row)
    return rows


def soft_by_hand(
    folds: Any, labels: Tensor, fit: Answer, neural: Tensor, weight: float, power: float
) -> Tensor:
    """Without the exercises before."""
    known, count = range(len(labels)), len(neural)
    out = torch.zeros(count, 3)
    for fold in folds:
        out[fold] = fit([i for i in known if i not in fold.tolist()])(fold)
    if count > len(labels):
        out[len(labels) :] = fit([*known])(list(range(len(labels), count)))
    share = torch.tensor([1 + (labels == c).sum() for c in range(3)]) / (3 + len(labels))
    return prior(torch.lerp(out, neural, weight), share, power)


def commonest(labels: Any, languages: Any, asked: Any) -> list[int]:
    by_code: dict[str, list[int]] = {}
    for label, code in zip(labels, languages, strict=True):
        by_code.setdefault(code, []).append(label)
    return [max(set(by_code[c]), key=by_code[c].count) for c in asked]


def epoch(student: Any, batches: Any, alpha: float, optimizer: Any) -> float:
    student.train()
    losses = []
    for b in batches:
        logits = student(b["input_ids"], b["attention_mask"]).logits
        loss = slow_mixed(logits, b["labels"], b["teacher_probs"], alpha)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses).mean()  # type: ignore[return-value]


def epoch_with(change: str) -> Answer:
    """The epoch, with one thing done otherwise."""

    def changed(student: Any, batches: Any, alpha: float, optimizer: Any) -> Any:
        if change != "eval":
            student.train()
        losses = []
        for b in batches:
            mask = None if change == "mask" else b["attention_mask"]
            y = b.pop("labels") if change == "pop" else b["labels"]
            logits = student(input_ids=b["input_ids"], attention_mask=mask).logits
            if change == "detach":
                logits = logits.detach().requires_grad_()
            weight = {"swap": 1 - alpha, "labels": 0.0, "targets": 1.0, "half": 0.5}
            loss = slow_mixed(logits, y, b["teacher_probs"], weight.get(change, alpha))
            if change not in ("no zero", "late", "between"):
                optimizer.zero_grad()
            loss.backward()
            if change == "between":
                optimizer.zero_grad()
            if change != "late":
                optimizer.step()
            losses.append(loss if change == "graph" else loss.item())
            if change == "one":
                break
        if change == "late":
            optimizer.step()
        if change == "length":
            return sum(losses) / len(batches)
        return {"sum": sum(losses), "last": losses[-1], "list": losses}.get(
            change, sum(losses) / len(losses)
        )

    return changed


def fitted(
    student: Any, run_epoch: Answer, score: Answer, epochs: int, patience: int
) -> list[float]:
    scores: list[float] = []
    waited, best = 0, {}
    while len(scores) < epochs and waited < patience:
        run_epoch()
        new = score()
        if not scores or new > max(scores):
            best, waited = {k: v.clone() for k, v in student.state_dict().items()}, 0
        else:
            waited += 1
        scores.append(new)
    student.load_state_dict(best)
    return scores


def fitted_copy(student: Any, run_epoch: Answer, score: Answer, epochs: int, patience: int) -> Any:
    """Keeps whole students."""
    kept, scores = [], np.zeros(0)
    for epoch in range(epochs):
        run_epoch()
        scores = np.append(scores, score())
        kept.append(copy.deepcopy(student.state_dict()))
        if epoch - scores.argmax() == patience:
            break
    student.load_state_dict(kept[scores.argmax()])
    return scores


def fitted_with(change: str) -> Answer:
    def changed(student: Any, run_epoch: Answer, score: Answer, epochs: int, patience: int) -> Any:
        scores: list[float] = []
        waited, best, top = 0, {}, -1e9
        for _ in range(epochs + (change == "more")):
            if change == "first":
                scores.append(score())
            run_epoch()
            if change != "first":
                scores.append(score())
            new = scores[-1]
            gain = {
                "low": new < top or top < 0,
                "equal": new >= top,
                "before": len(scores) < 2 or new > scores[-2],
            }.get(change, new > top)
            if gain:
                top = min(top, new) if change == "low" and top > 0 else new
                state = student.state_dict()
                best = state if change == "reference" else copy.deepcopy(state)
                waited = waited if change == "total" else 0
            else:
                waited += 1
            if change != "never" and waited >= patience + (change == "late"):
                break
        if change != "last":
            student.load_state_dict(best)
        return {"max": max(scores), "none": [max(scores)], "student": student}.get(change, scores)

    return changed


SOLUTIONS: dict[str, list[Answer]] = {
    "mixed_gradient": [pulls, lambda *draw: torch.stack(row_pulls(*draw))],
    "soft_rows": [soft_by_hand, lambda *draw: soft_by_hand(*draw).numpy()],
    "most_common": [
        commonest,
        lambda y, codes, asked: np.array(commonest(y, codes, asked)),
        lambda y, codes, asked: pd.Series(asked).map(
            pd.Series(y).groupby(codes).agg(lambda label: label.mode()[0])
        ),
    ],
    "out_of_fold": [crossed, row_by_row, lambda folds, fit: crossed(folds, fit).numpy()],
    "less_prior": [
        prior,
        lambda p, f, power: (p / f**power) / (p / f**power).sum(-1)[:, None],
        lambda p, f, power: np.array(prior(p, f, power)).tolist(),
        lambda p, f, power: torch.stack([row / f**power / (row / f**power).sum() for row in p]),
    ],
    "train_epoch": [epoch, epoch_with("")],
    "fit": [fitted, fitted_copy, fitted_with("")],
    "fold_targets": [
        fold_by_fold,
        lambda rows, parts: torch.cat(parts)[torch.cat(rows).argsort()],
        numpy_folds,
        lambda rows, parts: numpy_folds(rows, parts).tolist(),
        lambda rows, parts: torch.zeros(sum(map(len, rows)), parts[0].shape[1]).index_copy_(
            0, torch.cat(rows), torch.cat(parts)
        ),
    ],
    "mix_targets": [
        lambda a, b, w: (1 - w) * a + w * b,
        lambda a, b, w: torch.lerp(a, b, w),
        lambda a, b, w: a + w * (b - a),
        lambda a, b, w: (1 - w) * a.numpy() + w * b.numpy(),
    ],
    "mixed_loss": [
        slow_mixed,
        lambda z, y, q, a: a * kl(z, q) + (1 - a) * hard_of(z, y),
        lambda z, y, q, a: (
            a * kl(z, q)
            + (1 - a)
            * F.cross_entropy(z, y, ignore_index=-100, reduction="sum")
            / (y != -100).sum().clamp_min(1)
        ),
    ],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "mixed_gradient": {
        "down": (lambda *draw: pulls(*draw, sign=-1), "this is the way down"),
        "over all": (
            lambda z, y, q, a: (
                a * pulls(z, y, q, 1.0) + (1 - a) * pulls(z, y, q, 0.0) * (y != -100).float().mean()
            ),
            "divided by all rows",
        ),
        "no labels": (lambda z, y, q, a: a * pulls(z, y, q, 1.0), "labels' part is missing"),
        "sums": (lambda *draw: len(draw[0]) * pulls(*draw), "is right, on random input"),
        "norms": (lambda *draw: pulls(*draw).norm(dim=-1), "returned shape"),
        "in place": (lambda z, y, q, a: pulls(z, y, q.mul_(2.0), a), "argument 3 in place"),
    },
    "soft_rows": {
        "seen": (
            lambda folds, y, fit, *rest: soft_by_hand(
                folds, y, lambda rows: fit(torch.arange(len(y))), *rest
            ),
            "a teacher that had seen them",
        ),
        "own": (lambda *d: soft_by_hand(*d[:4], 0.0, d[5]), "the neural teacher is left out"),
        "prior first": (
            lambda f, y, fit, neural, w, power: torch.lerp(
                soft_by_hand(f, y, fit, neural, 0.0, power), neural, w
            ),
            "from the n-gram teacher only",
        ),
        "priors first": (
            lambda f, y, fit, neural, w, power: torch.lerp(
                *(soft_by_hand(f, y, fit, neural, share, power) for share in (0.0, 1.0)), w
            ),
            "from each teacher",
        ),
        "lean": (lambda *d: soft_by_hand(*d[:5], 0.0), "still lean toward the frequent"),
        "short": (lambda *d: soft_by_hand(*d)[: len(d[1])], "returned shape"),
        "twice": (
            lambda *d: soft_by_hand(*d[:5], 2 * d[5]),
            "is right, on random input",
        ),
    },
    "most_common": {
        "all": (
            lambda y, codes, asked: commonest(y, ["x"] * len(y), ["x"] * len(asked)),
            "of all languages together",
        ),
        "codes": (
            lambda y, codes, asked: commonest(y, codes, sorted(set(asked))),
            "returned shape",
        ),
        "counts": (
            lambda y, codes, asked: [np.bincount(y[codes == c]).max() for c in asked],
            "how often it occurs",
        ),
        "next": (
            lambda y, codes, asked: [(i + 2) % 3 for i in commonest(y, codes, asked)],
            "is right, on random input",
        ),
    },
    "fold_targets": {
        "one fold": (first_fold, "a row of zeros"),
        "divided": (fold_sum, "no longer sum to 1"),
        "one hot": (
            lambda rows, parts: F.one_hot(
                fold_by_fold(rows, parts).argmax(-1), parts[0].shape[1]
            ).float(),
            "is right, on random input",
        ),
        "stack": (lambda rows, parts: fold_by_fold(rows, parts).flatten(), "returned shape"),
        "list": (lambda rows, parts: list(parts), "parts of different lengths"),
        "three classes": (
            lambda rows, parts: torch.zeros(sum(map(len, rows)), 3).index_copy_(
                0, torch.cat(rows), torch.cat(parts)
            ),
            "your function raised",
        ),
    },
    "mix_targets": {
        "logits": (
            lambda a, b, w: torch.softmax((1 - w) * a.log() + w * b.log(), -1),
            "the logits are averaged",
        ),
        "first": (lambda a, b, w: a, "the second teacher is left out"),
        "in place": (lambda a, b, w: a.mul_(1 - w) + w * b, "argument 1 in place"),
        "clamped": (
            lambda a, b, w: torch.lerp(a, b, min(max(w, 0.05), 0.95)),
            "kept away from 0 and 1",
        ),
        "floor": (
            lambda a, b, w: torch.lerp(a, b, w).clamp_min(1e-3),
            "is right, on random input",
        ),
    },
    "out_of_fold": {
        "saw it": (
            lambda folds, fit: fold_by_fold(folds, [fit(torch.cat(folds))(f) for f in folds]),
            "fitted on all rows",
        ),
        "itself": (
            lambda folds, fit: fold_by_fold(folds, [fit(f)(f) for f in folds]),
            "asked about the very fold",
        ),
        "others": (fitted_again, "is right, on random input"),
        "fold order": (
            lambda folds, fit: torch.cat(
                [fit(torch.cat([g for g in folds if g is not f]))(f) for f in folds]
            ),
            "in the order of the folds",
        ),
        "rows": (lambda folds, fit: fit(folds)(folds), "your function raised"),
        "first": (lambda folds, fit: fit(folds[1])(folds[0]), "returned shape"),
    },
    "less_prior": {
        "no sum": (lambda p, f, power: p * f**-power, "no longer sum to 1"),
        "gains": (lambda p, f, power: prior(p, 1 / f, power), "frequent labels gain"),
        "whole": (lambda p, f, power: prior(p, f, 1), "divided by its whole frequency"),
        "root": (lambda p, f, power: prior(p, f, 0.5), "this is the square root"),
        "columns": (
            lambda p, f, power: p / f**power / (p / f**power).sum(0, keepdim=True),
            "the columns were made",
        ),
        "floor": (
            lambda p, f, power: prior(p.clamp_min(0.001), f, power),
            "is right, on random input",
        ),
        "one row": (lambda p, f, power: prior(p[:1], f, power), "returned shape"),
    },
    "train_epoch": {
        "no zero": (epoch_with("no zero"), "are added to those of the next"),
        "between": (epoch_with("between"), "nothing was learned"),
        "late": (epoch_with("late"), "all gradients are added up"),
        "mask": (epoch_with("mask"), "reads the padding"),
        "swap": (epoch_with("swap"), "1 - alpha are swapped"),
        "labels": (epoch_with("labels"), "the soft targets are left out"),
        "targets": (epoch_with("targets"), "the labels are left out"),
        "half": (epoch_with("half"), "alpha is ignored"),
        "one": (epoch_with("one"), "only the first batch"),
        "eval": (epoch_with("eval"), "in eval mode"),
        "graph": (epoch_with("graph"), "keeps the whole graph"),
        "sum": (epoch_with("sum"), "is the sum over the batches"),
        "last": (epoch_with("last"), "is not the mean of the batches' losses"),
        "list": (epoch_with("list"), "returned a list"),
        "length": (epoch_with("length"), "has no len()"),
        "pop": (epoch_with("pop"), "took entries out of the batches"),
        "everything": (
            lambda student, batches, a, o: sum(student(**b).logits.sum() for b in batches),
            "unexpected keyword",
        ),
    },
    "fit": {
        "last": (fitted_with("last"), "left with the weights of its last epoch"),
        "reference": (fitted_with("reference"), "have moved on"),
        "never": (fitted_with("never"), "never stops early"),
        "late": (fitted_with("late"), "one epoch too late"),
        "total": (fitted_with("total"), "a better one came between"),
        "before": (fitted_with("before"), "compared with the one before"),
        "low": (fitted_with("low"), "the lowest score is kept"),
        "equal": (fitted_with("equal"), "the later one is kept"),
        "first": (fitted_with("first"), "scored before its first epoch"),
        "asked twice": (
            lambda s, run, score, n, wait: fitted(s, run, lambda: min(score(), score()), n, wait),
            "times in",
        ),
        "more": (fitted_with("more"), "runs more epochs than"),
        "max": (fitted_with("max"), "returned a float"),
        "none": (fitted_with("none"), "not the list of all scores"),
        "student": (fitted_with("student"), "returned a Linear"),
    },
    "mixed_loss": {
        "clamped": (
            lambda z, y, q, a: slow_mixed(z, y, q, min(max(a, 0.05), 0.95)),
            "alpha is kept away",
        ),
        "fixed": (lambda z, y, q, a: slow_mixed(z, y, q, 0.5), "alpha is ignored"),
        "rows summed": (
            lambda z, y, q, a: a * kl(z, q, "sum") + (1 - a) * hard_of(z, y),
            "summed over the rows",
        ),
        "no log": (
            lambda z, y, q, a: a * F.kl_div(z, q, reduction="batchmean") + (1 - a) * hard_of(z, y),
            "logits are taken for log-probabilities",
        ),
        "softmax twice": (
            lambda z, y, q, a: a * kl(z, q.softmax(-1)) + (1 - a) * hard_of(z, y),
            "a softmax is taken of the teacher",
        ),
        "over all rows": (
            lambda z, y, q, a: (
                a * kl(z, q)
                + (1 - a) * F.cross_entropy(z, y, ignore_index=-100, reduction="none").mean()
            ),
            "divided by all rows",
        ),
        "summed": (
            lambda z, y, q, a: (
                a * kl(z, q) + (1 - a) * F.cross_entropy(z, y, ignore_index=-100, reduction="sum")
            ),
            "summed, not averaged",
        ),
        "soft labeled": (
            lambda z, y, q, a: a * kl(z[y >= 0], q[y >= 0]) + (1 - a) * hard_of(z, y),
            "reach only the labeled rows",
        ),
        "soft unlabeled": (
            lambda z, y, q, a: a * kl(z[y < 0], q[y < 0]) + (1 - a) * hard_of(z, y),
            "reach only the unlabeled rows",
        ),
        "alpha": (lambda z, y, q, a: (1 - a) * kl(z, q) + a * hard_of(z, y), "of the hard labels"),
        "no alpha": (lambda z, y, q, a: kl(z, q) + hard_of(z, y), "added without alpha"),
        "hard in full": (lambda z, y, q, a: a * kl(z, q) + hard_of(z, y), "has weight 1"),
        "no hard": (lambda z, y, q, a: a * kl(z, q), "are left out"),
        "class 0": (
            lambda z, y, q, a: a * kl(z, q) + (1 - a) * F.cross_entropy(z, y.clamp_min(0)),
            "taught class 0",
        ),
        "pseudo": (
            lambda z, y, q, a: (
                a * kl(z, q) + (1 - a) * F.cross_entropy(z, torch.where(y < 0, q.argmax(-1), y))
            ),
            "replaces a missing one",
        ),
        "cross-entropy": (
            lambda z, y, q, a: a * F.cross_entropy(z, q) + (1 - a) * hard_of(z, y),
            "plus the teacher's entropy",
        ),
        "swapped": (
            lambda z, y, q, a: (
                a * F.kl_div(q.log(), F.softmax(z, -1), reduction="batchmean")
                + (1 - a) * hard_of(z, y)
            ),
            "sides of the KL divergence are swapped",
        ),
        "mean": (
            lambda z, y, q, a: a * kl(z, q, "mean") + (1 - a) * hard_of(z, y),
            "averaged over the classes",
        ),
        "two slips": (
            lambda z, y, q, a: (1 - a) * kl(z[y >= 0], q[y >= 0]) + a * hard_of(z, y),
            "two things at once",
        ),
        "NaN": (
            lambda z, y, q, a: a * kl(z, q) + (1 - a) * F.cross_entropy(z, y),
            "without labels, the result is NaN",
        ),
        "raises without": (
            lambda z, y, q, a: a * kl(z, q) + (1 - a) * hard_of(z, y) + 0 * float(y[y >= 0].max()),
            "without labels, your function raised",
        ),
        "no alpha without": (no_labels_no_alpha, "no longer weighted by alpha"),
        "nothing without": (no_labels_no_loss, "the soft loss is lost"),
        "log of zero": (
            lambda z, y, q, a: a * naive_kl(z, q) + (1 - a) * hard_of(z, y),
            "probability of exactly 0 gives NaN",
        ),
        "detached": (
            lambda z, y, q, a: slow_mixed(z.detach(), y, q, a),
            "no gradient reaches the student",
        ),
        "item": (lambda z, y, q, a: slow_mixed(z, y, q, a).item(), "returned a float"),
    },
}
