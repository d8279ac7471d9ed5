"""Right and wrong answers to the exercises of notebook 08."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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


def cut(model: Any, ids: Any, special: Any, unknown: int, **change: Any) -> tuple[Any, Any]:
    """Piece by piece, in a model built anew."""
    kept = sorted({*ids.tolist(), *special.tolist()})
    table = model.get_input_embeddings().weight
    smaller = model if change.get("in place") else copy.deepcopy(model)
    rows = nn.Embedding(len(kept), table.shape[1], padding_idx=1)
    with torch.no_grad():
        for row, piece in enumerate(kept):
            rows.weight[row] = table[piece]
    smaller.set_input_embeddings(rows)
    if change.get("config", True):
        smaller.config.vocab_size = len(kept)
    other = change.get("other", kept.index(unknown))
    return smaller, torch.tensor([kept.index(i) if i in kept else other for i in range(len(table))])


def first_enough(texts: Any, order: Any, candidates: Any, percent: float) -> int:
    for count in candidates:
        kept = {*order[:count].tolist()}
        shares = [np.mean([i in kept for i in ids.tolist()]) for ids in texts.values()]
        if all(100 * share >= percent for share in shares):
            return count
    return candidates[-1]


def to_file(weights: Any, bits: int) -> dict[str, Any]:
    out = {}
    for name in weights:
        if len(weights[name].shape) == 2:
            out[name + ".codes"], out[name + ".scale"] = slow_codes(weights[name], bits)
        else:
            out[name] = weights[name].numpy()
    return out


def from_file(packed: Any) -> dict[str, Any]:
    out = {k: v for k, v in packed.items() if not k.endswith((".codes", ".scale"))}
    for name in packed:
        if name.endswith(".codes"):
            out[name[:-6]] = packed[name].double() * packed[name[:-6] + ".scale"]
    return out


def agreement(model: Any, session: Any, tokenizer: Any, texts: Any, **change: Any) -> Any:
    batch = tokenizer(texts, return_tensors="pt", **change.get("how", {"padding": True}))
    given = {k: v.numpy() if change.get("numpy", True) else v for k, v in batch.items()}
    theirs = session.run(None, given)[0]
    with torch.no_grad():
        ours = model(**batch).logits.numpy()
    return np.abs(ours - theirs).max(), (ours.argmax(-1) == theirs.argmax(-1)).mean() * 100


def clocked(forms: Any, inputs: Any, warm_up: int, **change: Any) -> Any:
    """By a table of turns and forms."""
    table = np.zeros((len(inputs), len(forms)))
    places = [(i, j) for i in range(len(inputs)) for j in range(len(forms))]
    for i, j in sorted(places, key=change.get("order", lambda place: place)):
        began = time.time()
        [*forms.values()][j](inputs[i])
        table[i, j] = time.time() - began
    kept = change.get("kept", lambda table: table[warm_up:])(table)
    value = 1000 * change.get("middle", np.median)(kept, axis=0)
    return dict(zip(forms, value, strict=True))


SOLUTIONS: dict[str, list[Answer]] = {
    "trim_embeddings": [
        slow_trim,
        by_search,
        lambda w, i, s: tuple(np.array(part) for part in by_search(w, i, s)),
    ],
    "trim_student": [cut],
    "fewest_pieces": [first_enough, lambda *draw: torch.tensor(first_enough(*draw))],
    "pack_weights": [to_file],
    "unpack_weights": [from_file, lambda packed: dict(sorted(from_file(packed).items()))],
    "compare_export": [agreement, lambda *draw: torch.tensor(agreement(*draw))],
    "time_forms": [clocked],
    "token_coverage": [
        lambda ids, kept: 100 * torch.isin(ids, kept).float().mean().item(),
        lambda ids, kept: 100 * torch.isin(ids, kept).float().mean(),
        lambda ids, kept: 100 * sum(i in kept.tolist() for i in ids.tolist()) / len(ids),
    ],
    "quantize_rows": [
        slow_codes,
        codes,
        lambda w, b: tuple(np.array(part) for part in codes(w, b)),
        lambda w, b: (
            (w * (2 ** (b - 1) - 1) / rows(w).clamp_min(1e-30)).round().to(torch.int8),
            rows(w).clamp_min(1e-30) / (2 ** (b - 1) - 1),
        ),
    ],
    "on_front": [
        slow_front,
        walk,
        lambda s, f: np.array(slow_front(s, f)),
        lambda s, f: [int(x) for x in slow_front(s, f)],
    ],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
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
        "float ids": (
            lambda w, i, s: (by_search(w, i, s)[0], by_search(w, i, s)[1].float()),
            "are fractions",
        ),
    },
    "trim_student": {
        "in place": (lambda *draw: cut(*draw, **{"in place": True}), "has become smaller too"),
        "no config": (lambda *draw: cut(*draw, config=False), "config.vocab_size says 12"),
        "minus one": (lambda *draw: cut(*draw, other=-1), "holds numbers from -1"),
        "swapped": (lambda *draw: cut(*draw)[::-1], "returned a tuple, but a pair"),
        "no lookup": (lambda *draw: cut(*draw)[0], "returned a XLMRoberta"),
        "uncut": (lambda m, i, s, u: (copy.deepcopy(m), torch.arange(12)), "as long as before"),
        "short": (lambda m, i, s, u: (cut(m, i, s, u)[0], i), "lookup has shape"),
        "corpus only": (
            lambda m, i, s, u: cut(m, torch.cat([i, s[-1:]]), torch.tensor([0, 2, u]), u),
            "is right",
        ),
    },
    "fewest_pieces": {
        "all": (lambda texts, order, counts, p: counts[-1], "is right, on random input"),
        "list": (lambda texts, order, counts, p: counts, "returned a list"),
        "first": (lambda texts, order, counts, p: order[: counts[0]], "returned a Tensor"),
    },
    "pack_weights": {
        "vectors too": (
            lambda w, b: to_file({k: v.reshape(len(v), -1) for k, v in w.items()}, b),
            "'norm.weight.codes' should not be",
        ),
        "nothing": (lambda w, b: dict(w), "'embeddings.weight' should not"),
        "only matrices": (
            lambda w, b: to_file({k: v for k, v in w.items() if v.ndim == 2}, b),
            "'norm.weight' is missing",
        ),
        "only codes": (
            lambda w, b: {k: v for k, v in to_file(w, b).items() if not k.endswith("scale")},
            "'embeddings.weight.scale' is missing",
        ),
        "other names": (
            lambda w, b: {k.replace(".codes", "_codes"): v for k, v in to_file(w, b).items()},
            "'embeddings.weight_codes' should not",
        ),
        "list": (lambda w, b: [*to_file(w, b).items()], "returned a list"),
        "swapped": (
            lambda w, b: {
                k.translate({})
                if k not in w and not k.endswith((".codes", ".scale"))
                else (
                    k[:-6] + {"codes": ".scale", "scale": ".codes"}[k[-5:]]
                    if k.endswith((".codes", ".scale"))
                    else k
                ): v
                for k, v in to_file(w, b).items()
            },
            "parts are swapped",
        ),
    },
    "unpack_weights": {
        "scales stay": (
            lambda p: from_file(p) | {k: v for k, v in p.items() if k.endswith("scale")},
            ".scale' should not be in your dict",
        ),
        "matrices only": (
            lambda p: {k: v for k, v in from_file(p).items() if v.ndim == 2},
            "is missing from your dict",
        ),
        "names": (
            lambda p: {k + ".codes" * (v.ndim == 2): v for k, v in from_file(p).items()},
            "codes' should not be in your dict",
        ),
        "tensor": (lambda p: next(iter(from_file(p).values())), "returned a Tensor"),
        "doubled": (lambda p: {k: 2 * v for k, v in from_file(p).items()}, "is right"),
    },
    "compare_export": {
        "no padding": (lambda *draw: agreement(*draw, how={}), "ValueError"),
        "tensors": (lambda *draw: agreement(*draw, numpy=False), "must be numpy arrays"),
        "one number": (lambda *draw: agreement(*draw)[0], "but a pair is wanted"),
        "by text": (
            lambda m, s, t, x: (np.zeros(3), np.ones(3)),
            "returned arrays, but two numbers",
        ),
    },
    "time_forms": {
        "form by form": (
            lambda *draw: clocked(*draw, order=lambda place: place[::-1]),
            "in turn with the others",
        ),
        "warm-up counted": (
            lambda *draw: clocked(*draw, kept=lambda t: t),
            "the calls that warm up are counted",
        ),
        "mean": (lambda *draw: clocked(*draw, middle=np.mean), "the mean is taken"),
        "best": (lambda *draw: clocked(*draw, middle=np.min), "the best time is taken"),
        "sum": (lambda *draw: clocked(*draw, middle=np.sum), "the times are added up"),
        "seconds": (
            lambda *draw: {k: v / 1000 for k, v in clocked(*draw).items()},
            "these are seconds",
        ),
        "one late": (
            lambda f, i, w: clocked(f, i, w, kept=lambda t: t[w + 1 :]),
            "one input too many",
        ),
        "lists": (
            lambda f, i, w: {k: [v] for k, v in clocked(f, i, w).items()},
            "is not one number",
        ),
        "a list": (lambda *draw: [*clocked(*draw).values()], "returned a list"),
        "slowest": (lambda *draw: clocked(*draw, middle=np.max), "seconds with warm_up"),
    },
    "token_coverage": {
        "lost": (lambda i, k: 100 * torch.isin(i, k, invert=True).float().mean(), "that is lost"),
        "mask": (lambda i, k: torch.isin(i, k), "returned a Tensor"),
    },
    "quantize_rows": {
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
        "guard too high": (
            lambda w, b: codes(w, b, lambda w: rows(w).clamp_min(1e-3)),
            "loses its digits",
        ),
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
            "places of forms",
        ),
        "median": (lambda s, f: f >= f.median(), "is right, on random input"),
        "two forms": (lambda s, f: torch.ones(2, dtype=torch.bool), "returned shape (2,)"),
    },
}
