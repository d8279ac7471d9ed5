"""Right and wrong answers to the exercises of notebook 10."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from comet_lib import losses
from comet_lib.attention import capture, capture_maps
from comet_lib.lab import routing
from comet_lib.models import reduce_width

Answer = Callable[..., Any]


def slow_weight(maps: Tensor, at: Tensor) -> Tensor:
    """Text by text."""
    each = [one[:, 0, place] for one, place in zip(maps, at.tolist(), strict=True)]
    return torch.stack(each).mean(0)


def step(
    student: Any, batch: Any, soft: float, attention: float, layers: Any = (0, 1), **change: Any
) -> Tensor:
    """By hand: no loss of the library."""
    mask = batch["attention_mask"]
    with capture(student, layers) as found:
        logits = student(batch["input_ids"], mask).logits
    p, q = batch["logits"].softmax(-1), logits.log_softmax(-1)
    parts = F.cross_entropy(logits, batch["labels"])
    parts = parts + soft * (p * (p.log() - q)).sum(-1).mean()
    for layer, ours in found.items():
        theirs = batch["maps"][:, layer]
        if change.get("turned"):
            ours, theirs = theirs, ours
        rows = torch.xlogy(theirs, theirs) - theirs * ours.clamp_min(1e-8).log()
        keep = mask.bool() if change.get("mask", True) else torch.ones_like(mask).bool()
        parts = parts + attention / len(found) * rows.sum(-1)[keep].mean()
    if change.get("backward", True):
        parts.backward()
    return parts


def stale(student: Any, batch: Any, soft: float, attention: float, layers: Any) -> Tensor:
    """The student's maps from a pass of their own, without gradients."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    maps = capture_maps(student, inputs)
    logits = student(**inputs).logits
    loss = F.cross_entropy(logits, batch["labels"])
    loss = loss + soft * losses.soft_target_loss(logits, batch["logits"])
    theirs, maps = [batch["maps"][:, i] for i in layers], [maps[i] for i in layers]
    loss = loss + attention * losses.attention_loss(maps, theirs, batch["attention_mask"])
    loss.backward()
    return loss


def by_hand(maps: Tensor, mask: Tensor) -> Tensor:
    """Text by text: whose turn is next?"""
    lengths = mask.sum(1).tolist()
    out = []
    for i, length in enumerate(lengths):
        same = [j for j, other in enumerate(lengths) if other == length]
        out.append(maps[same[(same.index(i) + 1) % len(same)]])
    return torch.stack(out)


def masked_order(maps: Tensor, mask: Tensor) -> Tensor:
    order = torch.arange(len(maps))
    for length in mask.sum(1).unique():
        here = mask.sum(1) == length
        order[here] = order[here].roll(-1)
    return maps[order]


def counted(ids: Tensor) -> Tensor:
    """Text by text."""
    out = []
    for row in ids.tolist():
        words = [piece - 4 for piece in row if piece > 3]
        out.append(max(range(8), key=words.count))
    return torch.tensor(out)


def scrambled(maps: Tensor, mask: Tensor) -> Tensor:
    """All rows at once: padding sorts last, where it is zero."""
    return maps.gather(-1, (torch.rand(maps.shape) + 2 * (mask == 0)[:, None, None]).argsort(-1))


def rows_of(maps: Tensor, mask: Tensor, order: Answer) -> Tensor:
    """Each text's rows in the ``order`` of its own places."""
    out = torch.zeros_like(maps)
    for number, length in enumerate(mask.sum(1).tolist()):
        rows = maps[number, :, :, :length]
        out[number, :, :, :length] = rows.gather(-1, order(rows))
    return out


def turned_on(rows: Tensor) -> Tensor:
    places = torch.arange(rows.shape[-1])
    return (places + torch.randint(1, len(places), (*rows.shape[:2], 1))) % len(places)


def one_for_all(maps: Tensor, mask: Tensor) -> Tensor:
    draws = torch.rand(maps.shape[1:])
    return rows_of(maps, mask, lambda rows: draws[..., : rows.shape[-1]].argsort(-1))


def one_order(maps: Tensor, mask: Tensor, *axes: int) -> Tensor:
    """The same order along some axes."""
    shape = [1 if axis in axes else size for axis, size in enumerate(maps.shape)]
    draws = torch.rand(shape) + 2 * (mask == 0)[:, None, None]
    return maps.gather(-1, draws.argsort(-1).expand_as(maps))


def told(teacher: Any, texts: Any) -> dict[str, Tensor]:
    """With the maps of single heads, and hands off the caller's dict."""
    inputs = {name: texts[name] for name in ("input_ids", "attention_mask")}
    maps = capture_maps(teacher, inputs, heads=True)
    out = dict(texts)
    out["logits"] = teacher(**inputs).logits.detach()
    out["maps"] = torch.cat([maps[layer].mean(1)[:, None] for layer in (0, 1)], 1)
    return out


def by_eigenvectors(table: Tensor, width: int, size: float) -> Tensor:
    """The main directions as eigenvectors, the largest last."""
    _, vectors = torch.linalg.eigh(table.T @ table)
    reduced = table @ vectors.flip(-1)[:, :width]
    return size * reduced / (reduced**2).mean() ** 0.5


def models_way(table: Tensor, width: int, size: float) -> Tensor:
    reduced = reduce_width(table, width)
    return reduced * size * reduced.numel() ** 0.5 / reduced.norm()


def cell_by_cell(measured: pd.DataFrame) -> pd.DataFrame:
    """Without a pivot."""
    value = measured.set_index(["attention", "texts", "steps"])["percent"]
    texts, steps = (sorted(measured[name].unique()) for name in ("texts", "steps"))
    rows = [[value[1, n, k] - value[0, n, k] for k in steps] for n in texts]
    return pd.DataFrame(rows, index=texts, columns=steps)


SOLUTIONS: dict[str, list[Answer]] = {
    "most_frequent": [counted, lambda ids: counted(ids).tolist()],
    "scrambled_maps": [scrambled, lambda maps, mask: routing.scrambled_maps(maps, mask, 7)],
    "weight_on_answer": [
        slow_weight,
        lambda maps, at: slow_weight(maps, at).tolist(),
        lambda maps, at: (maps[:, :, 0] * F.one_hot(at, maps.shape[-1])[:, None]).sum(-1).mean(0),
    ],
    "hybrid_step": [step],
    "others_maps": [by_hand, masked_order],
    "answers_and_maps": [told],
    "main_directions": [
        by_eigenvectors,
        lambda table, width, size: -models_way(table, width, size),
    ],
    "term_adds": [cell_by_cell],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "most_frequent": {
        "words": (lambda ids: ["ama"] * len(ids), "returned a list"),
        "by place": (lambda ids: ids.mode(1)[0].clamp_min(4) - 4, "is right"),
        "one hot": (lambda ids: F.one_hot(counted(ids), 8), "returned shape"),
    },
    "scrambled_maps": {
        "nothing": (lambda maps, mask: maps, "nothing has moved"),
        "padding": (
            lambda maps, mask: maps.gather(-1, torch.rand(maps.shape).argsort(-1)),
            "padding gets weight",
        ),
        "one order": (
            lambda maps, mask: one_order(maps, mask, 1, 2),
            "put into the same order, so a rule",
        ),
        "columns": (lambda maps, mask: one_order(maps, mask, 2), "so a column stays a column"),
        "layers": (lambda maps, mask: one_order(maps, mask, 1), "both layers get the same order"),
        "turned": (
            lambda maps, mask: torch.stack(
                [
                    torch.cat([m[..., :n].flip(-1), m[..., n:]], -1)
                    for m, n in zip(maps, mask.sum(1).tolist(), strict=True)
                ]
            ),
            "turned round, which is a rule",
        ),
        "sorted": (lambda maps, mask: maps.sort(-1, descending=True)[0], "the largest first"),
        "uniform": (
            lambda maps, mask: (mask / mask.sum(1, keepdim=True))[:, None, None].expand_as(maps),
            "other numbers than before",
        ),
        "random": (
            lambda maps, mask: torch.rand(maps.shape) * mask[:, None, None],
            "rows no longer sum to 1",
        ),
        "list": (lambda maps, mask: [*maps], "a list, not"),
        "turned on": (
            lambda maps, mask: rows_of(maps, mask, turned_on),
            "so what was side by side stays so",
        ),
        "one for all": (one_for_all, "all texts get the same orders"),
        "one map": (lambda maps, mask: maps[0], "returned (2, "),
    },
    "weight_on_answer": {
        "swapped": (
            lambda maps, at: slow_weight(maps.transpose(-1, -2), at),
            "query and key are swapped",
        ),
        "marker": (lambda maps, at: slow_weight(maps, at - 1), "the place before the answer"),
        "heads": (
            lambda maps, at: slow_weight(maps.mean(1, keepdim=True).expand_as(maps), at),
            "heads are averaged away",
        ),
        "one number": (lambda maps, at: slow_weight(maps, at).mean(), "returned shape ()"),
        "by text": (
            lambda maps, at: maps[torch.arange(len(at)), :, 0, at],
            "returned shape (3, 4)",
        ),
        "best": (lambda maps, at: slow_weight(maps, at).cumsum(0), "is right, on random input"),
    },
    "hybrid_step": {
        "no backward": (
            lambda s, b, soft, a, n: step(s, b, soft, a, n, backward=False),
            "no weight of the student has a gradient",
        ),
        "stale maps": (stale, "no gradient: it teaches nothing"),
        "padding": (
            lambda s, b, soft, a, n: step(s, b, soft, a, n, mask=False),
            "rows of padding are counted",
        ),
        "item": (lambda s, b, soft, a, n: step(s, b, soft, a, n).item(), "returned a float"),
        "no attention": (
            lambda s, b, soft, a, n: step(s, b, soft, 0.0, n),
            "attention term is missing",
        ),
        "equal weights": (
            lambda s, b, soft, a, n: step(s, b, 1.0, a, n),
            "weight soft is not used",
        ),
    },
    "others_maps": {
        "any text": (
            lambda maps, mask: maps[torch.arange(len(maps)).roll(-1)],
            "texts of another length",
        ),
        "before": (
            lambda maps, mask: by_hand(maps.flip(0), mask.flip(0)).flip(0),
            "the maps of the one before",
        ),
        "rows": (lambda maps, mask: maps.roll(1, 2), "no longer sum to 1"),
        "half and half": (
            lambda maps, mask: (by_hand(maps, mask) + maps) / 2,
            "is right, on random input",
        ),
        "half": (
            lambda maps, mask: torch.cat([maps[:1], by_hand(maps, mask)[1:]]),
            "still have their own maps",
        ),
    },
    "answers_and_maps": {
        "own dict": (
            lambda t, x: {"logits": told(t, x)["logits"], "maps": told(t, x)["maps"]},
            "returned a dict without answer_at",
        ),
        "parts": (lambda t, x: (told(t, x)["logits"], told(t, x)["maps"]), "a tuple, not a dict"),
        "graph": (
            lambda t, x: told(t, x) | {"logits": t(**routing.inputs(x)).logits},
            "logits still has its graph",
        ),
        "mean text": (
            lambda t, x: told(t, x) | {"maps": told(t, x)["maps"].mean(0)},
            "maps has shape (2, 14, 14)",
        ),
    },
    "main_directions": {
        "one short": (lambda table, width, size: models_way(table, width, size)[1:], "is wanted"),
        "list": (lambda table, width, size: [*models_way(table, width, size)], "a list, not"),
        "shifted": (lambda table, width, size: models_way(table, width, size) + size, "is right"),
    },
    "term_adds": {
        "turned": (lambda m: cell_by_cell(m).T, "steps are rows and texts columns"),
        "array": (lambda m: cell_by_cell(m).to_numpy(), "not a DataFrame"),
        "falling": (lambda m: cell_by_cell(m)[::-1], "rows are ["),
    },
}
