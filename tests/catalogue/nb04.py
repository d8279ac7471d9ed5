"""Right and wrong answers to the exercises of notebook 04."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from comet_lib import losses

Answer = Callable[..., Any]


def slow_kl(p: Tensor, q: Tensor) -> Tensor:
    """Entry by entry."""
    total = torch.zeros(())
    for p_row, q_row in zip(p, q, strict=True):
        for one, other in zip(p_row, q_row, strict=True):
            if one > 0:
                total = total + one * (one / other).log()
    return total / len(p)


def gradient(s: Tensor, t: Tensor, T: float) -> Tensor:
    return T * (torch.softmax(s / T, -1) - torch.softmax(t / T, -1)) / len(s)


def by_autograd(s: Tensor, t: Tensor, T: float) -> Tensor:
    leaf = s.clone().requires_grad_()
    return torch.autograd.grad(losses.soft_target_loss(leaf, t, T), leaf)[0]


def slow_mse(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    total, count = torch.zeros(()), 0
    for b, valid in enumerate(mask.bool()):
        for i in valid.nonzero().flatten():
            for j in valid.nonzero().flatten():
                total, count = total + (s[b, i, j] - t[b, i, j].detach()) ** 2, count + 1
    return total / count


def pairs_of(mask: Tensor) -> Tensor:
    return mask.bool()[:, :, None] & mask.bool()[:, None, :]


def rows(s: Tensor, t: Tensor) -> Tensor:
    """(B, L) KL of each row, safe at 0."""
    return (torch.xlogy(t, t) - t * s.clamp_min(1e-8).log()).sum(-1)


def row_kl(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    return rows(s, t.detach())[mask.bool()].mean()


def slow_row_kl(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    each = []
    for b, valid in enumerate(mask.bool()):
        n = int(valid.sum())
        for i in range(n):
            each.append(
                F.kl_div(s[b, i, :n].clamp_min(1e-8).log(), t[b, i, :n].detach(), reduction="sum")
            )
    return torch.stack(each).mean()


def soft(s: Tensor, t: Tensor, T: float) -> Tensor:
    return losses.soft_target_loss(s, t, T)


def jsd(p: Tensor, q: Tensor, beta: float) -> Tensor:
    m = beta * p + (1 - beta) * q
    return beta * slow_kl(p, m) + (1 - beta) * slow_kl(q, m)


def slow_nearest(target: Tensor, bells: Tensor, divergence: Answer) -> tuple[Tensor, float]:
    best, least = bells[0], float("inf")
    for bell in bells:
        cost = divergence(target, bell[None]).item()
        if cost < least:
            best, least = bell, cost
    return best, 100 * sum(float(b) for b, t in zip(best, target[0], strict=True) if t < 0.01)


def cosine(s: Tensor, t: Tensor, m: Tensor, projection: Answer) -> Tensor:
    a, b = projection(s)[m.bool()], t[m.bool()]
    return (1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean()


def curve(
    s: Tensor, t: Tensor, m: Tensor, projection: Any, steps: int, rate: float, loss: Answer = cosine
) -> list[Any]:
    optimizer, values = torch.optim.Adam(projection.parameters(), lr=rate), []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(s, t, m, projection)
        values.append(value)
        value.backward()
        optimizer.step()
    return values


def training(
    student: Any, teacher: Any, batches: Any, optimizer: Any, loss_of: Answer
) -> list[Any]:
    history = []
    for batch in batches:
        with torch.no_grad():
            logits, maps, mask = teacher(batch)
        optimizer.zero_grad()
        ours, our_maps, _ = student(batch)
        loss = loss_of(ours, logits, our_maps, maps, mask)
        loss.backward()
        optimizer.step()
        history.append(loss)
    return history


def careless_training(
    student: Any, teacher: Any, batches: Any, optimizer: Any, loss_of: Answer
) -> list[Any]:
    """The teacher's forward pass keeps its graph, but no gradient reaches the teacher."""
    history = []
    for batch in batches:
        (logits, maps, mask), (ours, our_maps, _) = teacher(batch), student(batch)
        loss = loss_of(ours, logits, our_maps, maps, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def teaching(student: Any, teacher: Any, *rest: Any) -> list[Any]:
    for weight in teacher.parameters():
        weight.data.mul_(0.9)
    return floats(training(student, teacher, *rest))


def floats(values: Any) -> list[float]:
    return [value.item() for value in values]


def shares(
    soft: Tensor, attention: Tensor, named: Any, part_of: Answer, alpha: float, **options: Any
) -> dict[str, Any]:
    """With autograd's gradients of all weights at once."""
    squares: dict[str, list[Any]] = {part_of(name): [0.0, 0.0] for name, _ in named}
    for place, loss in enumerate((alpha * soft, (1 - alpha) * attention)):
        weights = [weight for _, weight in named]
        each = torch.autograd.grad(
            loss, weights, allow_unused=True, **{"retain_graph": True, **options}
        )
        for (name, _), g in zip(named, each, strict=True):
            squares[part_of(name)][place] += 0.0 if g is None else (g**2).sum()
    return {part: 100 * a**0.5 / (s**0.5 + a**0.5) for part, (s, a) in squares.items()}


def shares_by_backward(
    soft: Tensor, attention: Tensor, named: Any, part_of: Answer, alpha: float
) -> dict[str, float]:
    norms: dict[str, list[Any]] = {}
    for loss in (alpha * soft, (1 - alpha) * attention):
        for _, weight in named:
            weight.grad = None
        loss.backward(retain_graph=True)
        for part in {part_of(name) for name, _ in named}:
            found = [w.grad for n, w in named if part_of(n) == part and w.grad is not None]
            norms.setdefault(part, []).append(sum((g**2).sum() for g in found) ** 0.5)
    return {part: float(100 * a / (s + a)) for part, (s, a) in norms.items()}


SOLUTIONS: dict[str, list[Answer]] = {
    "kl_divergence": [
        slow_kl,
        lambda p, q: (torch.xlogy(p, p) - p * q.log()).sum(-1).mean(),
        lambda p, q: F.kl_div(q.log(), p, reduction="batchmean"),
    ],
    "generalized_jsd": [
        jsd,
        lambda p, q, b: (
            b * F.kl_div((b * p + (1 - b) * q).clamp_min(1e-30).log(), p, reduction="batchmean")
            + (1 - b)
            * F.kl_div((b * p + (1 - b) * q).clamp_min(1e-30).log(), q, reduction="batchmean")
        ),
    ],
    "nearest_bell": [
        slow_nearest,
        lambda target, bells, d: [
            min(bells, key=lambda bell: d(target, bell[None]).item())[None],
            slow_nearest(target, bells, d)[1],
        ],
    ],
    "projection_curve": [
        lambda *a: floats(curve(*a)),
        lambda *a: np.array([*map(float, curve(*a))]),
        lambda *a: tuple(floats(curve(*a, loss=losses.hidden_cosine))),
    ],
    "train_student": [
        lambda *a: floats(training(*a)),
        lambda *a: tuple(map(float, training(*a))),
        careless_training,
    ],
    "gradient_shares": [
        lambda *a: {part: share.item() for part, share in shares(*a).items()},
        shares_by_backward,
    ],
    "temperature_gradient": [
        gradient,
        by_autograd,
        lambda s, t, T: T / len(s) * (F.softmax(s / T, 1) - F.softmax(t / T, 1)),
    ],
    "masked_attention_mse": [
        slow_mse,
        lambda s, t, m: (s - t.detach())[pairs_of(m)].square().mean(),
        losses.attention_mse,
    ],
    "attention_row_kl": [
        row_kl,
        slow_row_kl,
        losses.attention_kl,
        lambda s, t, m: (
            (torch.xlogy(t.detach(), t.detach()) - t.detach() * (s + 1e-8).log())
            .sum(-1)[m.bool()]
            .mean()
        ),
        lambda s, t, m: (rows(s, t.detach()) * m).sum() / m.sum(),
    ],
    "hybrid": [
        lambda sl, tl, sm, tm, m, f, T, a: a * soft(sl, tl, T) + (1 - a) * f(sm, tm, m),
        lambda sl, tl, sm, tm, m, f, T, a: torch.lerp(f(sm, tm, m), soft(sl, tl, T), a),
    ],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "kl_divergence": {
        "swapped": (lambda p, q: (q * (q.log() - p.log())).sum(-1).mean(), "swapped"),
        "negative": (lambda p, q: (p * (q.log() - p.log())).sum(-1).mean(), "sign is wrong"),
        "cross-entropy": (lambda p, q: -(p * q.log()).sum(-1).mean(), "cross-entropy"),
        "mean": (lambda p, q: (p * (p.log() - q.log())).mean(), "mean runs over the classes"),
        "sum": (lambda p, q: (p * (p.log() - q.log())).sum(), "rows are summed"),
        "softmax": (
            lambda p, q: slow_kl(p.softmax(-1), q.softmax(-1)),
            "softmax is applied to probabilities",
        ),
        "zero": (lambda p, q: (p * (p / q).log()).sum(-1).mean(), "probability 0"),
        "rows": (lambda p, q: (p * (p / q).log()).sum(-1), "but a scalar"),
        "over rows": (
            lambda p, q: (p * (p.log() - q.log())).sum(0).mean(),
            "sum runs over the rows",
        ),
        "detached": (lambda p, q: slow_kl(p, q.detach()), "no gradient reaches"),
        "not zero": (lambda p, q: slow_kl(p, q) + 1, "KL(p || p) is not 0"),
        "squared": (lambda p, q: slow_kl(p, q) ** 2, "is right, on random input"),
        "item": (lambda p, q: slow_kl(p, q).item(), "returned a float"),
    },
    "generalized_jsd": {
        "nan": (
            lambda p, q, b: sum(
                w * (x * (x / (b * p + (1 - b) * q)).log()).sum(-1).mean()
                for w, x in ((b, p), (1 - b, q))
            ),
            "probability 0",
        ),
        "two slips": (lambda p, q, b: jsd(p, q, 0.5), "two things at once"),
        "mixed KLs": (
            lambda p, q, b: b * slow_kl(p, q) + (1 - b) * slow_kl(q, p),
            "run to each other",
        ),
        "detached": (lambda p, q, b: jsd(p, q.detach(), b), "no gradient reaches"),
        "not zero": (lambda p, q, b: jsd(p, q, b) + 1, "for equal p and q"),
    },
    "nearest_bell": {
        "number": (
            lambda target, bells, d: (
                torch.stack([d(target, x[None]) for x in bells]).argmin(),
                0.0,
            ),
            "number of a bell",
        ),
        "only the bell": (lambda *a: slow_nearest(*a)[0], "returned a Tensor, but a bell"),
        "all": (lambda target, bells, d: (bells, 0.0), "these are a Tensor and a float"),
        "middle": (lambda target, bells, d: (bells[22], 0.0), "is right"),
    },
    "projection_curve": {
        "tensors": (curve, "your list holds tensors"),
        "last": (lambda *a: curve(*a)[-1].item(), "but a list of numbers"),
        "one": (lambda *a: floats(curve(*a))[:1], "there are 1 losses"),
        "no projection": (
            lambda s, t, m, p, n, rate: F.cosine_similarity(s, t, dim=-1)[m.bool()].mean(),
            "RuntimeError",
        ),
        "sum": (
            lambda *a: floats(
                curve(*a, loss=lambda s, t, m, p: (p(s) - t).square()[m.bool()].sum(-1).mean())
            ),
            "is right",
        ),
    },
    "train_student": {
        "teacher pulled": (
            lambda student, teacher, batches, optimizer, loss_of: careless_training(
                student, teacher, batches, optimizer, lambda a, b, c, d, m: loss_of(b, a, d, c, m)
            ),
            "gradient reaches the teacher",
        ),
        "teacher moves": (teaching, "teacher's weights changed"),
        "tensors": (training, "your list holds tensors"),
        "last": (lambda *a: training(*a)[-1].item(), "returned a float"),
        "sum": (lambda *a: [sum(floats(training(*a)))], "there are 1 losses"),
        "swapped": (
            lambda student, teacher, batches, optimizer, loss_of: floats(
                training(
                    student,
                    teacher,
                    batches,
                    optimizer,
                    lambda a, b, c, d, mask: loss_of(b, a, d, c, mask),
                )
            ),
            "does it stand in the teacher's place",
        ),
        "clipped": (
            lambda student, teacher, batches, optimizer, loss_of: floats(
                training(
                    student,
                    teacher,
                    batches,
                    optimizer,
                    lambda *a: (lambda loss: loss / loss.detach())(loss_of(*a)),
                )
            ),
            "is right, on random input",
        ),
    },
    "gradient_shares": {
        "tensors": (shares, "your dict holds tensors"),
        "graph gone": (
            lambda s, a, *rest: shares(s, a, *rest, retain_graph=False),
            "graph is gone",
        ),
        "number": (lambda *a: shares(*a)["low"], "returned a Tensor, but a dict"),
        "names": (
            lambda s, a, named, part_of, alpha: shares(s, a, named, lambda name: name, alpha),
            "with the keys",
        ),
        "unused": (
            lambda s, a, named, part_of, alpha: dict(
                torch.autograd.grad(a, [w for _, w in named], retain_graph=True)
            ),
            "RuntimeError",
        ),
        "alpha twice": (
            lambda s, a, named, part_of, alpha: shares_by_backward(
                s * alpha, a * (1 - alpha), named, part_of, alpha
            ),
            "is right",
        ),
    },
    "temperature_gradient": {
        "two slips": (
            lambda s, t, T: (s / T).softmax(-1) - (t / T).softmax(-1),
            "one factor T is missing, and it is not divided",
        ),
        "floor": (lambda s, t, T: gradient(s, t, max(1, T)), "below 1 counts as 1"),
        "negative": (lambda s, t, T: gradient(t, s, T), "from the student to the teacher"),
        "hard": (
            lambda s, t, T: T * (s.softmax(-1) - t.softmax(-1)) / len(s),
            "the logits are not softened",
        ),
        "hard student": (
            lambda s, t, T: T * (s.softmax(-1) - (t / T).softmax(-1)) / len(s),
            "the student's logits are not",
        ),
        "hard teacher": (
            lambda s, t, T: T * ((s / T).softmax(-1) - t.softmax(-1)) / len(s),
            "the teacher's logits are not",
        ),
        "first axis": (
            lambda s, t, T: T * ((s / T).softmax(0) - (t / T).softmax(0)) / len(s),
            "softmax runs over the rows",
        ),
        "logs": (
            lambda s, t, T: T * ((s / T).log_softmax(-1) - (t / T).log_softmax(-1)) / len(s),
            "logarithms of the probabilities",
        ),
        "student alone": (lambda s, t, T: T * (s / T).softmax(-1) / len(s), "does not sum to 0"),
        "loss": (losses.soft_target_loss, "shape (), but shape"),
    },
    "masked_attention_mse": {
        "no mask": (lambda s, t, m: F.mse_loss(s, t), "neither queries nor keys"),
        "keys": (
            lambda s, t, m: (s - t)[m.bool()[:, None, :].expand_as(s)].square().mean(),
            "padded queries are counted",
        ),
        "queries": (lambda s, t, m: (s - t)[m.bool()].square().mean(), "padded keys are counted"),
        "B L L": (
            lambda s, t, m: ((s - t) * pairs_of(m)).square().mean(),
            "still counts in the division",
        ),
        "rows": (
            lambda s, t, m: ((s - t) * pairs_of(m)).square().sum() / m.sum(),
            "number of rows, not of pairs",
        ),
        "batch": (
            lambda s, t, m: ((s - t) * pairs_of(m)).square().sum() / len(m),
            "number of sentences",
        ),
        "sum": (
            lambda s, t, m: ((s - t) * pairs_of(m)).square().sum(),
            "errors are summed",
        ),
        "each sentence": (
            lambda s, t, m: torch.stack(
                [(a - b)[v][:, v].square().mean() for a, b, v in zip(s, t, m.bool(), strict=True)]
            ).mean(),
            "same weight",
        ),
        "not zero": (
            lambda s, t, m: (
                ((s - t.detach()) ** 2 * pairs_of(m)).sum()
                / ((s - t.detach()) * pairs_of(m)).ne(0).sum()
            ),
            "errors that are not 0",
        ),
        "absolute": (lambda s, t, m: (s - t)[pairs_of(m)].abs().mean(), "absolute"),
        "root": (lambda s, t, m: slow_mse(s, t, m).sqrt(), "root"),
        "not detached": (
            lambda s, t, m: (s - t)[pairs_of(m)].square().mean(),
            "reaches the teacher",
        ),
        "no gradient": (lambda s, t, m: slow_mse(s.detach(), t, m), "no gradient"),
        "more padding": (
            lambda s, t, m: slow_mse(s, t, m) * m.shape[1],
            "two more columns of padding",
        ),
        "doubled": (lambda s, t, m: slow_mse(s, t, m) * 2, "is right, on random input"),
    },
    "attention_row_kl": {
        "padding": (lambda s, t, m: rows(s, t).mean(), "padded queries are counted"),
        "B L": (
            lambda s, t, m: (rows(s, t) * m).mean(),
            "not of the division",
        ),
        "swapped": (lambda s, t, m: rows(t, s)[m.bool()].mean(), "swapped"),
        "batchmean": (
            lambda s, t, m: (rows(s, t) * m).sum() / len(m),
            "number of sentences",
        ),
        "pairs": (
            lambda s, t, m: (rows(s, t) * m).sum() / pairs_of(m).sum(),
            "number of pairs",
        ),
        "sum": (lambda s, t, m: (rows(s, t) * m).sum(), "rows are summed"),
        "cross-entropy": (
            lambda s, t, m: -(t * s.clamp_min(1e-8).log()).sum(-1)[m.bool()].mean(),
            "cross-entropy",
        ),
        "negative": (lambda s, t, m: -row_kl(s, t, m), "sign is wrong"),
        "softmax": (
            lambda s, t, m: slow_row_kl(
                *(x.masked_fill(m[:, None, :] == 0, -1e9).softmax(-1) for x in (s, t)), m
            ),
            "second softmax",
        ),
        "each sentence": (
            lambda s, t, m: ((rows(s, t) * m).sum(-1) / m.sum(-1)).mean(),
            "same weight",
        ),
        "nan": (lambda s, t, m: (t * (t / s).log()).sum(-1)[m.bool()].mean(), "make the result"),
        "not detached": (
            lambda s, t, m: rows(s, t)[m.bool()].mean(),
            "reaches the teacher",
        ),
        "high floor": (
            lambda s, t, m: row_kl(s.clamp_min(1e-3), t, m),
            "pays too little",
        ),
        "mean": (
            lambda s, t, m: F.kl_div(
                s.clamp_min(1e-8).log()[m.bool()], t[m.bool()].detach(), reduction="mean"
            ),
            "entries of the valid rows",
        ),
        "mean of all": (
            lambda s, t, m: (rows(s, t.detach()) * m).sum() / s.numel(),
            "all entries of the maps",
        ),
        "rows above 0": (
            lambda s, t, m: (lambda r: r.sum() / (r != 0).sum())(rows(s, t.detach()) * m),
            "whose KL is not 0",
        ),
        "nan gradient": (
            lambda s, t, m: (torch.xlogy(t, t) - torch.xlogy(t, s)).sum(-1)[m.bool()].mean(),
            "student's gradient is NaN",
        ),
        "infinite": (
            lambda s, t, m: (
                F.kl_div(s.masked_fill(m[:, None, :] == 0, 1.0).log(), t.detach(), reduction="none")
                .sum(-1)[m.bool()]
                .mean()
            ),
            "exactly 0",
        ),
        "not zero": (lambda s, t, m: row_kl(s, t, m) + 1, "a loss other than 0"),
    },
    "hybrid": {
        "no T squared": (
            lambda sl, tl, sm, tm, m, f, T, a: (
                a * soft(sl / T, tl / T, 1.0) + (1 - a) * f(sm, tm, m)
            ),
            "lack the factor T squared",
        ),
        "own KL": (
            lambda sl, tl, sm, tm, m, f, T, a: a * soft(sl, tl, T) + (1 - a) * row_kl(sm, tm, m),
            "always the row-wise KL",
        ),
        "half": (
            lambda sl, tl, sm, tm, m, f, T, a: 0.5 * soft(sl, tl, T) + 0.5 * f(sm, tm, m),
            "always one half",
        ),
        "half a student": (
            lambda sl, tl, sm, tm, m, f, T, a: (
                a * soft(sl, tl, T) + (1 - a) * f(sm.detach(), tm, m)
            ),
            "a part of the student",
        ),
        "other": (lambda sl, tl, sm, tm, m, f, T, a: soft(sl, tl, T) * 3, "on random input"),
    },
}
