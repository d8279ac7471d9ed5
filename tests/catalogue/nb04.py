"""Right and wrong answers to the exercises of notebook 04."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def slow_nearest(target: Tensor, bells: Tensor, divergence: Answer) -> Tensor:
    best, least = bells[0], float("inf")
    for bell in bells:
        cost = divergence(target, bell[None]).item()
        if cost < least:
            best, least = bell, cost
    return best


def cosine(s: Tensor, t: Tensor, m: Tensor, projection: Answer) -> Tensor:
    a, b = projection(s)[m.bool()], t.detach()[m.bool()]
    return (1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean()


def step(student: Any, teacher: Any, batch: Any, optimiser: Any, loss_of: Answer) -> Any:
    with torch.no_grad():
        logits, maps, mask = teacher(batch)
    optimiser.zero_grad()
    ours, our_maps, _ = student(batch)
    loss = loss_of(ours, logits, our_maps, maps, mask)
    loss.backward()
    optimiser.step()
    return loss


def careless_step(student: Any, teacher: Any, batch: Any, optimiser: Any, loss_of: Answer) -> Any:
    logits, maps, mask = teacher(batch)
    ours, our_maps, _ = student(batch)
    loss = loss_of(ours, logits, our_maps, maps, mask)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


def teaching_step(student: Any, teacher: Any, batch: Any, optimiser: Any, loss_of: Answer) -> Any:
    for weight in teacher.parameters():
        weight.data.mul_(0.9)
    return step(student, teacher, batch, optimiser, loss_of)


def share(soft: Tensor, attention: Tensor, weights: Any, alpha: float) -> float:
    pulls = []
    for part, loss in ((alpha, soft), (1 - alpha, attention)):
        each = torch.autograd.grad(part * loss, weights, retain_graph=True, allow_unused=True)
        pulls.append(sum(g.square().sum() for g in each if g is not None).sqrt())
    return 100 * (pulls[1] / sum(pulls)).item()


def share_by_backward(soft: Tensor, attention: Tensor, weights: Any, alpha: float) -> Tensor:
    norms = []
    for loss in (alpha * soft, (1 - alpha) * attention):
        for weight in weights:
            weight.grad = None
        loss.backward(retain_graph=True)
        norms.append(sum((w.grad**2).sum() for w in weights if w.grad is not None) ** 0.5)
    return 100 * norms[1] / (norms[0] + norms[1])


def share_of_the_sum(soft: Tensor, attention: Tensor, weights: Any, alpha: float) -> float:
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    total = torch.autograd.grad(alpha * soft + (1 - alpha) * attention, weights, **options)
    part = torch.autograd.grad((1 - alpha) * attention, weights, **options)
    return 100 * (torch.cat([*map(torch.flatten, part)]).norm()
                  / torch.cat([*map(torch.flatten, total)]).norm()).item()  # fmt: skip


def share_once(soft: Tensor, attention: Tensor, weights: Any, alpha: float) -> float:
    norms = []
    for part, loss in ((alpha, soft), (1 - alpha, attention)):
        each = torch.autograd.grad(loss, weights, retain_graph=part == alpha, allow_unused=True)
        norms.append(part * sum(g.square().sum() for g in each if g is not None).sqrt())
    return 100 * (norms[1] / sum(norms)).item()


SOLUTIONS: dict[str, list[Answer]] = {
    "kl_divergence": [
        slow_kl,
        lambda p, q: (torch.xlogy(p, p) - p * q.log()).sum(-1).mean(),
        lambda p, q: F.kl_div(q.log(), p, reduction="batchmean"),
    ],
    "generalised_jsd": [
        jsd,
        lambda p, q, b: (
            b * F.kl_div((b * p + (1 - b) * q).clamp_min(1e-30).log(), p, reduction="batchmean")
            + (1 - b)
            * F.kl_div((b * p + (1 - b) * q).clamp_min(1e-30).log(), q, reduction="batchmean")
        ),
    ],
    "nearest_bell": [
        slow_nearest,
        lambda target, bells, d: min(bells, key=lambda bell: d(target, bell[None]).item()),
        lambda target, bells, d: bells[
            int(torch.tensor([d(target, bells[i : i + 1]) for i in range(len(bells))]).argmin())
        ][None],
    ],
    "hidden_loss": [
        cosine,
        lambda s, t, m, p: (
            1 - F.cosine_similarity(p(s)[m == 1], t[m == 1].detach(), dim=-1)
        ).mean(),
        lambda s, t, m, p: losses.hidden_cosine(s, t.detach(), m, p),
    ],
    "train_step": [step, lambda *a: step(*a).item()],
    "gradient_share": [share, share_by_backward],
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
        lambda sl, tl, sm, tm, m, T, a: a * soft(sl, tl, T) + (1 - a) * row_kl(sm, tm, m),
        lambda sl, tl, sm, tm, m, T, a: losses.hybrid_loss(
            soft(sl, tl, T), losses.attention_kl(sm, tm, m), a
        ),
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
    "generalised_jsd": {
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
            lambda target, bells, d: torch.stack([d(target, x[None]) for x in bells]).argmin(),
            "number of a bell",
        ),
        "cost": (
            lambda target, bells, d: torch.stack([d(target, x[None]) for x in bells]).min(),
            "returned shape ()",
        ),
        "all": (lambda target, bells, d: bells, "returned shape (45, 15)"),
        "middle": (lambda target, bells, d: bells[22], "is right"),
    },
    "hidden_loss": {
        "not detached": (
            lambda s, t, m, p: 1 - F.cosine_similarity(p(s), t, dim=-1)[m.bool()].mean(),
            "reaches the teacher",
        ),
        "no gradient": (lambda s, t, m, p: cosine(s.detach(), t, m, p), "no gradient reaches"),
        "no projection": (
            lambda s, t, m, p: F.cosine_similarity(s, t, dim=-1)[m.bool()].mean(),
            "RuntimeError",
        ),
        "each": (lambda s, t, m, p: 1 - F.cosine_similarity(p(s), t, dim=-1), "but a scalar"),
        "one": (lambda s, t, m, p: cosine(s, t, m, p) + 1, "teacher's directions"),
    },
    "train_step": {
        "teacher watched": (careless_step, "keeps what a backward pass needs"),
        "teacher moves": (teaching_step, "teacher's weights changed"),
        "no backward": (
            lambda student, teacher, batch, optimiser, loss_of: loss_of(
                *(
                    x
                    for pair in zip(student(batch)[:2], teacher(batch)[:2], strict=True)
                    for x in pair
                ),
                batch["attention_mask"],
            ).item(),
            "did not move",
        ),
        "vector": (lambda *a: step(*a)[None], "of shape (1,)"),
        "text": (lambda *a: str(step(*a).item()), "returned a str"),
    },
    "gradient_share": {
        "graph gone": (share_once, "graph is gone"),
        "of the sum": (share_of_the_sum, "is right"),
        "tensor": (lambda *a: torch.tensor([share(*a)]), "returned a Tensor"),
        "unused": (
            lambda s, a, w, alpha: (
                100 * sum(g.norm() for g in torch.autograd.grad(a, w, retain_graph=True)).item()
            ),
            "RuntimeError",
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
            lambda sl, tl, sm, tm, m, T, a: (
                a * soft(sl / T, tl / T, 1.0) + (1 - a) * row_kl(sm, tm, m)
            ),
            "lack the factor T squared",
        ),
        "padding": (
            lambda sl, tl, sm, tm, m, T, a: a * soft(sl, tl, T) + (1 - a) * rows(sm, tm).mean(),
            "counts padding",
        ),
        "not detached": (
            lambda sl, tl, sm, tm, m, T, a: (
                a * soft(sl, tl, T) + (1 - a) * rows(sm, tm)[m.bool()].mean()
            ),
            "reaches the teacher",
        ),
        "half": (
            lambda sl, tl, sm, tm, m, T, a: 0.5 * soft(sl, tl, T) + 0.5 * row_kl(sm, tm, m),
            "always one half",
        ),
        "clamped": (
            lambda sl, tl, sm, tm, m, T, a: (
                min(max(a, 0.05), 0.95) * soft(sl, tl, T)
                + (1 - min(max(a, 0.05), 0.95)) * row_kl(sm, tm, m)
            ),
            "away from 0 and 1",
        ),
        "cold": (
            lambda sl, tl, sm, tm, m, T, a: (
                a * soft(sl, tl, max(T, 1.0)) + (1 - a) * row_kl(sm, tm, m)
            ),
            "below 1 counts as 1",
        ),
        "half a student": (
            lambda sl, tl, sm, tm, m, T, a: (
                a * soft(sl, tl, T) + (1 - a) * row_kl(sm.detach(), tm, m)
            ),
            "a part of the student",
        ),
        "other": (lambda sl, tl, sm, tm, m, T, a: soft(sl, tl, T) * 3, "on random input"),
    },
}
