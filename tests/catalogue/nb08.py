"""Right and wrong answers to the exercises of notebook 08."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Answer = Callable[..., Any]


def slow_trim(weight: Tensor, ids: Tensor, special: Tensor) -> tuple[Tensor, list[int]]:
    kept = sorted({*ids.tolist(), *special.tolist()})
    return torch.stack([weight[i] for i in kept]), [kept.index(i) for i in ids.tolist()]


def by_search(weight: Tensor, ids: Tensor, special: Tensor) -> tuple[Tensor, Tensor]:
    kept = torch.cat([ids, special]).unique()
    return weight[kept], torch.searchsorted(kept, ids)


def in_order_of(*which: int) -> Answer:
    """Rows in the order of first appearance in some of (ids, special)."""

    def cut(weight: Tensor, ids: Tensor, special: Tensor) -> tuple[Tensor, Tensor]:
        parts = (ids.tolist(), special.tolist())
        order = list(dict.fromkeys(i for w in which for i in parts[w]))
        return weight[order], torch.tensor([order.index(i) for i in ids.tolist()])

    return cut


def zeroed(weight: Tensor, ids: Tensor, special: Tensor) -> tuple[Tensor, Tensor]:
    out = weight.clone()
    out[[i for i in range(len(weight)) if i not in {*ids.tolist(), *special.tolist()}]] = 0
    return out, ids


def complement(weight: Tensor, ids: Tensor, special: Tensor) -> tuple[Tensor, Tensor]:
    return weight[[i for i in range(len(weight)) if i not in {*ids.tolist(), *special.tolist()}]], (
        ids
    )


def only_used(weight: Tensor, ids: Tensor, special: Tensor) -> tuple[Tensor, Tensor]:
    kept, new = ids.unique(return_inverse=True)
    return weight[kept], new


def one_by_one(weight: Tensor, ids: Tensor, special: Tensor) -> tuple[Tensor, Tensor]:
    return weight[[*special.tolist(), *ids.tolist()]], torch.arange(len(ids)) + len(special)


def slow_codes(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    codes, most = torch.zeros(weight.shape, dtype=torch.int8), 2 ** (bits - 1) - 1
    scale = torch.ones(len(weight), 1)
    for r, row in enumerate(weight.tolist()):
        largest = max(abs(w) for w in row)
        if largest > 0:
            scale[r, 0] = largest / most
            for c, w in enumerate(row):
                codes[r, c] = round(w / (largest / most))
    return codes, scale


def rows(weight: Tensor) -> Tensor:
    return weight.abs().amax(1, keepdim=True)


def codes(
    weight: Tensor,
    bits: int,
    top: Answer = rows,
    levels: Answer = lambda bits: 2 ** (bits - 1) - 1,
    cut: Answer = torch.round,
) -> tuple[Tensor, Tensor]:
    scale = top(weight).clamp_min(1e-12) / levels(bits)
    return cut(weight / scale).long().to(torch.int8), scale


def no_guard(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    scale = rows(weight) / (2 ** (bits - 1) - 1)
    return (weight / scale).round().to(torch.int8), scale


def slow_front(sizes: Tensor, scores: Tensor) -> list[bool]:
    points = list(zip(sizes.tolist(), scores.tolist(), strict=True))
    return [not any(s <= a and f >= b and (s < a or f > b) for s, f in points) for a, b in points]


def walk(sizes: Tensor, scores: Tensor) -> Tensor:
    """From small to large, each new best score is on the front; twins too."""
    out = torch.zeros(len(sizes), dtype=torch.bool)
    for i in range(len(sizes)):
        out[i] = (
            scores[sizes <= sizes[i]].max() <= scores[i]
            and not ((scores == scores[i]) & (sizes < sizes[i])).any()
        )
    return out


SOLUTIONS: dict[str, list[Answer]] = {
    "parameters_after": [
        lambda total, vocabulary, kept, width: total - (vocabulary - kept) * width,
        lambda t, v, k, w: t - v * w + k * w,
        lambda t, v, k, w: torch.tensor(t - (v - k) * w),
    ],
    "trim_embeddings": [slow_trim, by_search],
    "token_coverage": [
        lambda ids, kept: 100 * torch.isin(ids, kept).float().mean().item(),
        lambda ids, kept: 100 * torch.isin(ids, kept).float().mean(),
        lambda ids, kept: 100 * sum(i in kept.tolist() for i in ids.tolist()) / len(ids),
    ],
    "quantise_rows": [slow_codes, codes],
    "on_front": [slow_front, walk],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "parameters_after": {
        "text": (lambda t, v, k, w: str(t), "returned a str"),
        "bytes": (lambda t, v, k, w: 4 * (t - (v - k) * w), "is right, on random input"),
    },
    "trim_embeddings": {
        "special lost": (only_used, "special pieces are gone"),
        "appearance": (in_order_of(1, 0), "in which the pieces appear"),
        "text order": (in_order_of(0, 1), "order of the text"),
        "old numbers": (lambda w, i, s: (slow_trim(w, i, s)[0], i), "still the old numbers"),
        "zeroed": (zeroed, "still stored"),
        "all": (lambda w, i, s: (w, i), "nothing is dropped"),
        "each token": (one_by_one, "a row of its own"),
        "complement": (complement, "unused ones kept"),
        "swapped": (lambda w, i, s: by_search(w, i, s)[::-1], "parts are swapped"),
        "rows alone": (lambda w, i, s: by_search(w, i, s)[0], "but a pair is wanted"),
        "text": (lambda w, i, s: ("a", "b"), "are not tensors"),
        "from 1": (lambda w, i, s: (by_search(w, i, s)[0], by_search(w, i, s)[1] + 1), "is not w"),
        "half": (lambda w, i, s: (w[: len(w) // 2], i), "and the wrong content"),
    },
    "token_coverage": {
        "lost": (lambda i, k: 100 * torch.isin(i, k, invert=True).float().mean(), "that is lost"),
        "mask": (lambda i, k: torch.isin(i, k), "returned a Tensor"),
    },
    "quantise_rows": {
        "signed": (
            lambda w, b: codes(w, b, lambda w: w.amax(1, keepdim=True)),
            "with its sign",
        ),
        "128": (lambda w, b: codes(w, b, rows, lambda b: 2 ** (b - 1)), "size / 2 ** (bits - 1)"),
        "255": (lambda w, b: codes(w, b, rows, lambda b: 2**b - 1), "size / (2 ** bits - 1)"),
        "127": (lambda w, b: codes(w, 8), "bits is not used"),
        "truncated": (lambda w, b: codes(w, b, cut=torch.trunc), "are cut off"),
        "floor": (lambda w, b: codes(w, b, cut=torch.floor), "rounded down"),
        "one scale": (lambda w, b: codes(w, b, lambda w: w.abs().amax()), "the whole matrix"),
        "columns": (lambda w, b: codes(w, b, lambda w: w.abs().amax(0)[None]), "each column has"),
        "turned": (lambda w, b: (codes(w, b)[0], 1 / codes(w, b)[1]), "scale is inverted"),
        "float": (lambda w, b: (codes(w, b)[0].float(), codes(w, b)[1]), "not torch.int8"),
        "flat scale": (lambda w, b: (codes(w, b)[0], codes(w, b)[1][:, 0]), "has shape (R,)"),
        "one row": (lambda w, b: (codes(w, b)[0][:1], codes(w, b)[1]), "codes have shape"),
        "swapped": (lambda w, b: codes(w, b)[::-1], "parts are swapped"),
        "scale alone": (lambda w, b: codes(w, b)[1], "but a pair is wanted"),
        "zero row": (no_guard, "a row of zeros"),
        "3 bits": (lambda w, b: codes(w, 3), "misses a weight"),
        "two slips": (
            lambda w, b: codes(w, b, rows, lambda b: 2**b - 1, torch.trunc),
            "two things at once",
        ),
    },
    "on_front": {
        "inverted": (lambda s, f: torch.tensor([not x for x in slow_front(s, f)]), "are beaten"),
        "large": (
            lambda s, f: torch.tensor(slow_front(-s, f)),
            "counts as the better one",
        ),
        "size": (lambda s, f: s == s.min(), "only the size"),
        "score": (lambda s, f: f == f.max(), "only the score"),
        "numbers": (
            lambda s, f: torch.tensor(slow_front(s, f)).nonzero()[:, 0],
            "returned shape",
        ),
        "median": (lambda s, f: f >= f.median(), "is right, on random input"),
    },
}
