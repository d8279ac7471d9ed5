"""Right and wrong answers to the exercises of notebook 03."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Answer = Callable[..., Any]
INF = float("inf")


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5


def hidden(m: Tensor) -> Tensor:
    """(B, 1, 1, L): True at padded keys."""
    return m[:, None, None, :] == 0


def fast_map(q: Tensor, k: Tensor, m: Tensor) -> Tensor:
    return scores(q, k).masked_fill(hidden(m), -INF).softmax(-1)


def slow_map(q: Tensor, k: Tensor, m: Tensor) -> Tensor:
    """Entry by entry, without a softmax function."""
    batch, heads, length, width = q.shape
    out = torch.zeros(batch, heads, length, length)
    for b in range(batch):
        keys = [j for j in range(length) if m[b, j]]
        for h in range(heads):
            for i in range(length):
                row = torch.stack([(q[b, h, i] * k[b, h, j]).sum() for j in keys]) / width**0.5
                row = torch.exp(row - row.max())
                for j, weight in zip(keys, row / row.sum(), strict=True):
                    out[b, h, i, j] = weight
    return out


def raw_exp(q: Tensor, k: Tensor, m: Tensor) -> Tensor:
    e = torch.exp(scores(q, k)) * ~hidden(m)
    return e / e.sum(-1, keepdim=True)


def slow_pairs(v: Tensor, m: Tensor) -> Tensor:
    kept = [
        v[b, i, j]
        for b in range(v.shape[0])
        for i in range(v.shape[1])
        for j in range(v.shape[2])
        if m[b, i] and m[b, j]
    ]
    return torch.stack(kept).mean()


def pairs(m: Tensor) -> Tensor:
    return m[:, :, None] * m[:, None, :]


def chain(maps: Any, weight: float = 0.5) -> Tensor:
    """From the top down: M_l ... M_1."""
    eye = torch.eye(next(iter(maps.values())).shape[-1])
    result = eye
    for a in reversed(maps.values()):
        result = result @ (weight * a + (1 - weight) * eye)
    return result


def slow_chain(maps: Any) -> Tensor:
    """Path by path."""
    result = torch.eye(next(iter(maps.values())).shape[-1])[None].repeat(
        len(next(iter(maps.values()))), 1, 1
    )
    for a in maps.values():
        step = torch.zeros_like(result)
        for b, i, j in np.ndindex(a.shape):
            step[b, i] += 0.5 * (a[b, i, j] + (i == j)) * result[b, j]
        result = step
    return result


def slow_projections(layer: Any, x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Head by head."""
    d = x.shape[-1] // heads

    def cut(linear: Any) -> Tensor:
        return torch.stack([linear(x)[..., h * d : (h + 1) * d] for h in range(heads)], 1)

    return cut(layer.query), cut(layer.key)


def slow_split(maps: Tensor) -> tuple[float, float]:
    """Row by row, in numpy."""

    def entropy(p: Any) -> float:
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    heads, length, _ = maps.shape
    of_heads = np.mean([entropy(maps[h, i].numpy()) for h in range(heads) for i in range(length)])
    of_mean = np.mean([entropy(maps[:, i].mean(0).numpy()) for i in range(length)])
    return float(of_heads), float(of_mean - of_heads)


def hooked(encoder: Any, batch: Any, layers: Any, stay: bool = False) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}

    def hook(number: int) -> Answer:
        return lambda module, inputs, output: found.update({number: output})

    hooks = [encoder.encoder.layer[n].register_forward_hook(hook(n)) for n in layers]
    with torch.no_grad():
        encoder(**batch)
    for one in hooks[stay:]:
        one.remove()
    return found


def by_the_model(encoder: Any, batch: Any, layers: Any, first: int = 1) -> dict[int, Tensor]:
    states = encoder(**batch, output_hidden_states=True).hidden_states
    return {n: states[n + first].detach() for n in layers}


SOLUTIONS: dict[str, list[Answer]] = {
    "attention_map": [
        lambda q, k, m: torch.softmax(scores(q, k).masked_fill(hidden(m), -INF), dim=-1),
        lambda q, k, m: (scores(q, k) - 1e4 * (1 - m[:, None, None, :])).softmax(-1),
        lambda q, k, m: F.normalize(scores(q, k).softmax(-1) * ~hidden(m), p=1, dim=-1),
        raw_exp,
        slow_map,
    ],
    "masked_rows": [
        lambda v, m: (v * pairs(m)).sum() / pairs(m).sum(),
        lambda v, m: v[pairs(m).bool()].mean(),
        slow_pairs,
    ],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "attention_map": {
        "no scale": (
            lambda q, k, m: (q @ k.mT).masked_fill(hidden(m), -INF).softmax(-1),
            "not divided by the square root of d",
        ),
        "over d": (
            lambda q, k, m: (q @ k.mT / q.shape[-1]).masked_fill(hidden(m), -INF).softmax(-1),
            "divided by d, not by its square root",
        ),
        "whole width": (
            lambda q, k, m: (
                (q @ k.mT / (q.shape[1] * q.shape[-1]) ** 0.5)
                .masked_fill(hidden(m), -INF)
                .softmax(-1)
            ),
            "model's whole width",
        ),
        "no mask": (lambda q, k, m: scores(q, k).softmax(-1), "mask is ignored"),
        "zero score": (
            lambda q, k, m: (scores(q, k) * m[:, None, None, :]).softmax(-1),
            "get the score 0",
        ),
        "mask after": (
            lambda q, k, m: scores(q, k).softmax(-1) * m[:, None, None, :],
            "applied after the softmax",
        ),
        "queries": (
            lambda q, k, m: scores(q, k).masked_fill(m[:, None, :, None] == 0, -1e30).softmax(-1),
            "hides queries and not keys",
        ),
        "upside down": (
            lambda q, k, m: scores(q, k).masked_fill(~hidden(m), -1e30).softmax(-1),
            "upside down",
        ),
        "over the queries": (
            lambda q, k, m: scores(q, k).masked_fill(hidden(m), -1e30).softmax(-2),
            "runs over the queries",
        ),
        "swapped": (
            lambda q, k, m: scores(k, q).masked_fill(hidden(m), -INF).softmax(-1),
            "queries and keys are swapped",
        ),
        "log": (
            lambda q, k, m: (
                scores(q, k)
                .double()
                .masked_fill(hidden(m), torch.finfo(torch.double).min)
                .log_softmax(-1)
            ),
            "log-probabilities",
        ),
        "-30": (
            lambda q, k, m: scores(q, k).masked_fill(hidden(m), -30.0).softmax(-1),
            "not exactly nothing",
        ),
        "both axes": (
            lambda q, k, m: scores(q, k).masked_fill(pairs(m)[:, None] == 0, -1e30).softmax(-1),
            "hides queries as well as keys",
        ),
        "zero rows": (
            lambda q, k, m: fast_map(q, k, m) * m[:, None, :, None],
            "padded queries are set to zero",
        ),
        "exp alone": (lambda q, k, m: torch.exp(scores(q, k)) * ~hidden(m), "do not sum to 1"),
        "two slips": (lambda q, k, m: (q @ k.mT).softmax(-1), "two things at once"),
        "minus infinity over queries": (
            lambda q, k, m: scores(q, k).masked_fill(m[:, None, :, None] == 0, -INF).softmax(-1),
            "padded queries are NaN",
        ),
        "zero over zero": (
            lambda q, k, m: fast_map(q, k, m) + (q - q).sum(-1, keepdim=True) / 0,
            "returned NaN",
        ),
        "mean of heads": (lambda q, k, m: slow_map(q, k, m).mean(1), "returned shape"),
        "other": (lambda q, k, m: slow_map(q * 1.1, k, m), "is right, on random input"),
        "raises": (lambda q, k, m: q @ k, "RuntimeError"),
    },
    "masked_rows": {
        "keys": (
            lambda v, m: (v * m[:, None, :]).sum() / (m.sum() * m.shape[1]),
            "padded keys are left out, but",
        ),
        "queries": (
            lambda v, m: (v * m[:, :, None]).sum() / (m.sum() * m.shape[1]),
            "padded queries are left out, but",
        ),
        "by sentence": (
            lambda v, m: ((v * pairs(m)).sum((1, 2)) / pairs(m).sum((1, 2))).mean(),
            "averaged by itself first",
        ),
        "upside down": (lambda v, m: v[pairs(m) == 0].mean(), "upside down"),
        "or": (
            lambda v, m: v[(m[:, :, None] + m[:, None, :]) > 0].mean(),
            "as soon as one of its two",
        ),
        "not 0": (lambda v, m: v[(v * pairs(m)) != 0].mean(), "places that hold 0 are left out"),
        "by row": (lambda v, m: (v * pairs(m)).mean(-1), "but a scalar"),
        "item": (lambda v, m: slow_pairs(v, m).item(), "returned a float"),
        "other": (lambda v, m: slow_pairs(v, m) * 1.01, "is right, on random input"),
        "in place": (lambda v, m: v.mul_(pairs(m)).sum() / pairs(m).sum(), "changed its argument"),
    },
}


def slow_looks(maps: Tensor, mask: Tensor, offset: int) -> Tensor:
    layers, batch, heads, length, _ = maps.shape
    total, count = torch.zeros(layers, heads), 0
    for b in range(batch):
        for q in range(length):
            if 0 <= q + offset < length and mask[b, q] and mask[b, q + offset]:
                total, count = total + maps[:, b, :, q, q + offset], count + 1
    return total / count


def slow_cka(x: Tensor, y: Tensor) -> Tensor:
    """By the tokens' Gram matrices, centered on both sides (HSIC)."""
    center = torch.eye(len(x)) - 1 / len(x)
    k, m = center @ x @ x.T @ center, center @ y @ y.T @ center
    return (k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt()


def js(p: Tensor, q: Tensor) -> Tensor:
    def entropy(row: Tensor) -> Tensor:
        return torch.special.entr(row).sum(-1)

    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


def table(maps: Any, others: Any, m: Tensor) -> Any:
    return [
        [((js(a, b) * m).sum() / m.sum()).item() for b in others.values()] for a in maps.values()
    ]


def kl_table(maps: Any, others: Any, m: Tensor) -> Any:
    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p * (p.clamp_min(1e-9) / q.clamp_min(1e-9)).log()).sum(-1)

    return [[(kl(a, b)[m > 0]).mean() for b in others.values()] for a in maps.values()]


def careless(p: Tensor, q: Tensor) -> Tensor:
    middle = (p + q) / 2
    return ((p * (p / middle).log() + q * (q / middle).log()) / 2).sum(-1)


def occluded(model: Any, ids: Tensor, mask_id: int) -> Tensor:
    before = model(input_ids=ids).logits.softmax(-1)[0]
    lost = torch.zeros(ids.shape[1])
    for i in range(ids.shape[1]):
        hidden_one = ids.clone()
        hidden_one[0, i] = mask_id
        after = model(input_ids=hidden_one).logits.softmax(-1)[0]
        lost[i] = before.max() - after[before.argmax()]
    return lost


def at_once(model: Any, ids: Tensor, mask_id: int) -> Tensor:
    copies = ids.repeat(ids.shape[1], 1).fill_diagonal_(mask_id)
    p = model(input_ids=torch.cat([ids, copies]), attention_mask=None).logits.softmax(-1)
    return p[0].max() - p[1:, p[0].argmax()]


def shorter(model: Any, ids: Tensor, mask_id: int) -> Tensor:
    """Takes the token out, which moves all that follow."""
    before = model(input_ids=ids).logits.softmax(-1)[0]
    found = []
    for i in range(ids.shape[1]):
        rest = torch.cat([ids[:, :i], ids[:, i + 1 :]], 1)
        found.append(before.max() - model(input_ids=rest).logits.softmax(-1)[0, before.argmax()])
    return torch.stack(found)


SOLUTIONS["looks_along"] = [
    slow_looks,
    lambda *a: slow_looks(*a).numpy(),
    lambda maps, m, o: (
        (maps.diagonal(o, -2, -1) * pairs(m).diagonal(o, 1, 2)[:, None]).sum((1, 3))
        / pairs(m).diagonal(o, 1, 2).sum()
    ),
]
SOLUTIONS["cka"] = [
    slow_cka,
    lambda x, y: (
        ((y - y.mean(0)).T @ (x - x.mean(0))).square().sum()
        / (x.T.cov().norm() * y.T.cov().norm() * (len(x) - 1) ** 2)
    ),
]
SOLUTIONS["layer_table"] = [
    table,
    lambda a, b, m: np.array(table(a, b, m)),
    lambda a, b, m: [
        torch.stack([(js(x, y)[m.bool()]).mean() for y in b.values()]) for x in a.values()
    ],
]
SOLUTIONS["occlusion"] = [occluded, at_once, lambda *a: occluded(*a).numpy()]

MUTANTS["looks_along"] = {
    "column": (lambda maps, m, o: slow_looks(maps.mT, m, o), "this looks the other way"),
    "by sentence": (
        lambda maps, m, o: (maps.diagonal(o, -2, -1) * pairs(m).diagonal(o, 1, 2)[:, None]).sum(3),
        "every sentence still has",
    ),
    "heads": (lambda maps, m, o: slow_looks(maps, m, o).mean(1), "the heads are averaged"),
    "one number": (lambda maps, m, o: slow_looks(maps, m, o).mean(), "everything is averaged"),
    "transposed": (lambda maps, m, o: slow_looks(maps, m, o).T, "returned shape"),
    "always next": (lambda maps, m, o: slow_looks(maps, m, 1), "is right, on random input"),
}
MUTANTS["cka"] = {
    "by the tokens": (lambda x, y: slow_cka(x, y) * len(x), "is right, on random input"),
    "number": (lambda x, y: slow_cka(x, y).item(), "returned a float"),
    "raises": (lambda x, y: ((x - x.mean(0)) @ (y - y.mean(0))).norm(), "RuntimeError"),
}
MUTANTS["layer_table"] = {
    "KL": (lambda a, b, m: kl_table(a, b, m), "above log 2"),
    "on its side": (lambda a, b, m: table(b, a, m), "on its side"),
    "zeros": (
        lambda a, b, m: [[careless(x, y).mean() for y in b.values()] for x in a.values()],
        "NaN",
    ),
    "matched only": (lambda a, b, m: [table(a, b, m)[0]], "returned shape (1, 4)"),
    "by row": (
        lambda a, b, m: [[js(x, y).mean(-1) for y in b.values()] for x in a.values()],
        "returned shape (2, 4, 3)",
    ),
    "half": (lambda a, b, m: np.array(table(a, b, m)) / 2, "is right, on random input"),
}
MUTANTS["occlusion"] = {
    "taken out": (shorter, "the token is taken out"),
    "absolute": (lambda *a: occluded(*a).abs(), "a negative loss is one, too"),
    "share": (lambda *a: occluded(*a) / occluded(*a).sum(), "these are shares of the total"),
    "other": (lambda *a: 1.1 * occluded(*a), "is right, on random input"),
    "without ends": (lambda *a: occluded(*a)[1:-1], "returned shape"),
    "a number": (lambda *a: occluded(*a).max().item(), "returned a float"),
}

SOLUTIONS["queries_keys"] = [
    slow_projections,
    lambda layer, x, h: tuple(
        (x @ f.weight.T + f.bias).view(*x.shape[:2], h, -1).permute(0, 2, 1, 3)
        for f in (layer.query, layer.key)
    ),
    lambda *a: [part.detach().numpy() for part in slow_projections(*a)],
]
SOLUTIONS["split_entropy"] = [
    slow_split,
    lambda maps: (
        torch.special.entr(maps).sum(-1).mean(),
        torch.special.entr(maps.mean(0)).sum(-1).mean() - torch.special.entr(maps).sum(-1).mean(),
    ),
]
SOLUTIONS["states_of"] = [hooked, by_the_model]
SOLUTIONS["rollout"] = [chain, slow_chain, lambda maps: chain(maps).numpy()]

MUTANTS["queries_keys"] = {
    "view": (
        lambda layer, x, h: tuple(
            f(x).view(len(x), h, x.shape[1], -1) for f in (layer.query, layer.key)
        ),
        "mixed up with the heads",
    ),
    "no transpose": (
        lambda *a: tuple(part.transpose(1, 2) for part in slow_projections(*a)),
        "the heads stand behind the tokens",
    ),
    "whole": (lambda layer, x, h: (layer.query(x), layer.key(x)), "the heads are not split"),
    "keys only": (lambda *a: slow_projections(*a)[1][0, 0], "two results in a tuple"),
    "for the product": (
        lambda *a: (slow_projections(*a)[0], slow_projections(*a)[1].mT),
        "returned shape",
    ),
    "other": (
        lambda *a: tuple(1.1 * part for part in slow_projections(*a)),
        "is right, on random input",
    ),
}
MUTANTS["split_entropy"] = {
    "log of 0": (
        lambda maps: (-(maps * maps.log()).sum(-1).mean(), maps.mean()),
        "0 log 0 counts as 0",
    ),
    "by head": (
        lambda maps: (torch.special.entr(maps).sum(-1).mean(1), maps.mean()),
        "returned shape (3,)",
    ),
    "one number": (lambda maps: slow_split(maps)[1], "two results in a tuple"),
    "floor": (
        lambda maps: (torch.special.entr(maps + 0.01).sum(-1).mean(), slow_split(maps)[1]),
        "is right, on random input",
    ),
}
MUTANTS["states_of"] = {
    "late": (lambda *a: {n: hooked(*a)[a[2][-1]] for n in a[2]}, "holds the states of"),
    "only the last": (lambda *a: dict([*hooked(*a).items()][-1:]), "layers [0, 2, 3] are wanted"),
    "off by one": (lambda *a: by_the_model(*a, first=0), "that enter a layer"),
    "a hook stays": (lambda *a: hooked(*a, stay=True), "a hook is still on the model"),
    "graph": (
        lambda e, b, n: {i: e(**b, output_hidden_states=True).hidden_states[i + 1] for i in n},
        "holds the graph",
    ),
    "list": (lambda *a: [*hooked(*a).values()], "returned a list, but a dict"),
    "first sentence": (
        lambda *a: {n: state[0] for n, state in hooked(*a).items()},
        "only the first sentence",
    ),
    "other": (lambda *a: {n: 2 * s for n, s in hooked(*a).items()}, "not the states that leave"),
}
MUTANTS["rollout"] = {
    "other weights": (
        lambda maps: chain(maps, 0.9),
        "the map counts 0.9 and the residual connection 0.1",
    ),
    "first sentence": (lambda maps: chain(maps)[0], "returned shape"),
    "list": (lambda maps: chain(maps).tolist(), "returned a list"),
    "rows": (lambda maps: 1.1 * chain(maps), "do not sum to 1"),
    "other": (lambda maps: chain(maps).flip(0).flip(1), "is right, on random input"),
}
