"""Exercises of notebook 08, shrink and ship."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from comet_lib.checks.framework import (
    Misconception,
    Slip,
    all_close,
    compare,
    exercise,
    generator,
    slips_and_pairs,
)

Pair = tuple[Tensor, Tensor]


def _whole(source: torch.Generator, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``."""
    return int(torch.randint(low, high + 1, (), generator=source))


# --- Parameters after trimming -------------------------------------------------------------


def _parameters_after(total: int, vocabulary: int, kept: int, width: int) -> int:
    return total - (vocabulary - kept) * width


@exercise(
    "parameters_after",
    notebook="08",
    reference=_parameters_after,
    look="Each dropped piece takes one row of `width` numbers with it; nothing else changes.",
)
def parameters_after(answer: Callable[..., Any]) -> None:
    """answer(total, vocabulary, kept, width) -> parameters of the trimmed model."""
    source = generator()
    draws = []
    for _ in range(4):
        vocabulary, width = _whole(source, 1000, 90_000), _whole(source, 8, 900)
        kept = _whole(source, vocabulary // 9, vocabulary // 3)
        draws.append((vocabulary * width + _whole(source, 9999, 10**7), vocabulary, kept, width))
    slips = [
        Slip(
            "the kept rows are taken away and the dropped ones stay",
            lambda t, v, k, w: t - k * w,
            "Take away vocabulary - kept rows.",
        ),
        Slip(
            "the whole model shrinks with the vocabulary",
            lambda t, v, k, w: t * k / v,
            "Only the embedding table has a row for each piece; the layers stay as they are.",
        ),
        Slip("the width is forgotten: a row is not one number", lambda t, v, k, w: t - (v - k)),
        Slip(
            "this is what is saved, not what is left",
            lambda t, v, k, w: (v - k) * w,
            "Subtract it from the total.",
        ),
        Slip(
            "this is the new embedding table alone",
            lambda t, v, k, w: k * w,
            "Add the rest of the model, which stays.",
        ),
        Slip(
            "each row is taken away twice",
            lambda t, v, k, w: t - 2 * (v - k) * w,
            "A classifier has no output table; in a masked-LM model it is tied, and counts once.",
        ),
    ]
    compare(answer, draws, _parameters_after, slips)


# --- Cutting rows and renumbering ----------------------------------------------------------


def _trim_embeddings(weight: Tensor, ids: Tensor, special: Tensor) -> Pair:
    kept = torch.unique(torch.cat([ids, special]))  # sorted
    return weight[kept], torch.searchsorted(kept, ids)


def _without_special(weight: Tensor, ids: Tensor, special: Tensor) -> Pair:
    kept, new = torch.unique(ids, return_inverse=True)
    return weight[kept], new


def _by_appearance(weight: Tensor, ids: Tensor, special: Tensor) -> Pair:
    order = list(dict.fromkeys([*special.tolist(), *ids.tolist()]))
    return weight[order], torch.tensor([order.index(i) for i in ids.tolist()])


def _ids_first(weight: Tensor, ids: Tensor, special: Tensor) -> Pair:
    order = list(dict.fromkeys([*ids.tolist(), *special.tolist()]))
    return weight[order], torch.tensor([order.index(i) for i in ids.tolist()])


def _zeroed(weight: Tensor, ids: Tensor, special: Tensor) -> Pair:
    kept = torch.unique(torch.cat([ids, special]))
    out = torch.zeros_like(weight)
    out[kept] = weight[kept]
    return out, ids


def _complement(weight: Tensor, ids: Tensor, special: Tensor) -> Tensor:
    drop = torch.ones(len(weight), dtype=torch.bool)
    drop[torch.cat([ids, special])] = False
    return weight[drop]


def _two(result: Any, first: str, second: str) -> Pair:
    """An answer's two tensors (lists are taken for tensors)."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Misconception(
            f"your function returned a {type(result).__name__} where a pair is wanted",
            f"Return two tensors: {first}, {second}.",
        )
    try:
        one, two = (torch.as_tensor(part) for part in result)
    except (TypeError, ValueError, RuntimeError):
        raise Misconception(
            "the two parts of your answer are no tensors",
            f"Return two tensors: {first}, {second}.",
        ) from None
    return one, two


def _same(got: Sequence[Pair], wanted: Sequence[Pair]) -> bool:
    """Whether both parts agree on every draw."""
    return all(
        all_close([a.detach().double() for a in one], [b.detach().double() for b in two])
        for one, two in zip(got, wanted, strict=True)
    )


@exercise(
    "trim_embeddings",
    notebook="08",
    reference=_trim_embeddings,
    look="kept = the numbers in ids and special, each once, in rising order; then weight[kept].",
)
def trim_embeddings(answer: Callable[..., Any]) -> None:
    """answer(weight (V, H), ids (N,), special (S,)) -> rows (K, H), new_ids (N,)."""
    source = generator()
    draws = []
    for size in (14, 20, 31):
        weight = torch.randn(size, 3, generator=source)
        ids = 5 + torch.randint(size - 5, (9,), generator=source)
        ids = torch.cat([ids, torch.tensor([size - 1, 5, 5])])  # not in order, some twice
        draws.append((weight, ids, torch.tensor([1, 3, 4])))
    names = "rows", "new_ids"
    results = [_two(answer(*draw), *names) for draw in draws]
    wanted = [_trim_embeddings(*draw) for draw in draws]
    if all(a.is_floating_point() for a, _ in results) and _same(results, wanted):
        return
    if all(b.is_floating_point() and not a.is_floating_point() for a, b in results):
        raise Misconception("the two parts are swapped", "Return rows first, then new_ids.")
    rows_right = all(
        a.shape == c.shape and torch.allclose(a.double(), c.double())
        for (a, _), (c, _) in zip(results, wanted, strict=True)
    )
    old_ids = all(torch.equal(b, d[1]) for (_, b), d in zip(results, draws, strict=True))
    if rows_right and old_ids:
        raise Misconception(
            "new_ids are still the old numbers",
            "Row 17 of the old table may be row 4 of the new one: look each id up in kept.",
        )
    slips = [
        Slip(
            "the special pieces are gone where the text does not use them",
            _without_special,
            "Padding and the unknown piece must stay, whatever the corpus holds.",
        ),
        Slip(
            "the rows stand in the order in which the pieces appear",
            _by_appearance,
            "Sort kept: then padding keeps its number, from which XLM-R counts positions.",
        ),
        Slip(
            "the rows stand in the order of the text, the special ones last",
            _ids_first,
            "Sort kept: then padding keeps its number, from which XLM-R counts positions.",
        ),
        Slip(
            "dropped rows are set to zero and still stored",
            _zeroed,
            "Index with kept, weight[kept]: the table itself must get shorter.",
        ),
        Slip("nothing is dropped", lambda w, ids, s: (w, ids), "Keep only the rows of ids."),
        Slip(
            "every occurrence has a row of its own",
            lambda w, ids, s: (w[torch.cat([s, ids])], len(s) + torch.arange(len(ids))),
            "A piece that stands twice in ids needs one row: take a set, or torch.unique.",
        ),
    ]
    for slip in slips:
        if _same(results, [slip.formula(*draw) for draw in draws]):
            raise Misconception(slip.message, slip.look)
    if all(
        a.shape == (left := _complement(*d)).shape and torch.equal(a, left)
        for (a, _), d in zip(results, draws, strict=True)
    ):
        raise Misconception("the used rows are dropped and the unused ones kept")
    if not rows_right:
        raise Misconception(
            f"rows have shape {tuple(results[0][0].shape)} and the wrong content, where "
            f"{tuple(wanted[0][0].shape)} is wanted"
        )
    raise Misconception(
        "the rows are right, but rows[new_ids] is not weight[ids]",
        "new_ids[i] is the place of ids[i] in kept.",
    )


# --- Coverage ------------------------------------------------------------------------------


def _token_coverage(ids: Tensor, kept: Tensor) -> float:
    return 100 * float(torch.isin(ids, kept).double().mean())


def _types(ids: Tensor, kept: Tensor) -> float:
    return 100 * float(torch.isin(ids.unique(), kept).double().mean())


@exercise(
    "token_coverage",
    notebook="08",
    reference=_token_coverage,
    look="Of all tokens in ids, count those whose piece is in kept, and divide by len(ids).",
)
def token_coverage(answer: Callable[..., Any]) -> None:
    """answer(ids (N,), kept (K,)) -> percent of the tokens whose piece is kept."""
    source = generator()
    draws = []
    for size in (40, 90, 130):
        # squared, so that small numbers are frequent, as words are
        ids = (30 * torch.rand(size, generator=source).square()).long()
        ids = torch.cat([ids, torch.arange(20, 30)])
        kept = torch.cat([torch.arange(_whole(source, 3, 9)), torch.tensor([40, 41])])
        draws.append((ids, kept))  # two kept pieces occur nowhere
    slips = [
        Slip(
            "each piece counts once, however often it occurs",
            _types,
            "Do not take the set of ids: a frequent piece must weigh more than a rare one.",
        ),
        Slip(
            "this is the share that is lost",
            lambda i, k: 100 - _token_coverage(i, k),
            "Count the tokens that are in kept.",
        ),
        Slip(
            "this is a fraction, and percent is wanted",
            lambda i, k: _token_coverage(i, k) / 100,
            "Multiply by 100.",
        ),
        Slip(
            "this is the share of the pieces that are kept, whatever the text says",
            lambda i, k: 100 * len(k) / len(i.unique()),
            "Look at each token of ids.",
        ),
        Slip(
            "the tokens are divided by the number of kept pieces",
            lambda i, k: 100 * float(torch.isin(i, k).sum()) / len(k),
            "Divide by the number of tokens.",
        ),
        Slip("this is a count, not a percentage", lambda i, k: float(torch.isin(i, k).sum())),
    ]
    compare(answer, draws, _token_coverage, slips)


# --- int8 by hand --------------------------------------------------------------------------


def _quantised(
    weight: Tensor,
    bits: int,
    *,
    absolute: bool = True,
    levels: Callable[[int], int] = lambda bits: 2 ** (bits - 1) - 1,
    rounding: Callable[[Tensor], Tensor] = torch.round,
    axis: int | None = 1,
) -> Pair:
    """Codes (R, C) and scales; an int8 overflow wraps round, as it does in torch."""
    size = weight.abs() if absolute else weight
    top = size.amax() if axis is None else size.amax(axis, keepdim=True)
    scale = top / levels(bits)
    return rounding(weight / scale).to(torch.int64).to(torch.int8), scale


def _quantise_rows(weight: Tensor, bits: int) -> Pair:
    scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
    return (weight / scale).round().to(torch.int8), scale


_CHANGES: list[tuple[str, str, dict[str, Any]]] = [
    (
        "a row's largest entry is taken with its sign",
        "Where the largest size is negative, the codes overflow: take weight.abs() first.",
        {"absolute": False},
    ),
    (
        "the scale is the largest size / 2 ** (bits - 1)",
        "int8 ends at 127: the largest weight would become 128 and wrap round to -128.",
        {"levels": lambda bits: 2 ** (bits - 1)},
    ),
    (
        "the scale is the largest size / (2 ** bits - 1)",
        "That is the number of steps from end to end; on each side of zero there are "
        "2 ** (bits - 1) - 1.",
        {"levels": lambda bits: 2**bits - 1},
    ),
    (
        "bits is not used: the codes always go up to 127",
        "With 4 bits they end at 7: 2 ** (bits - 1) - 1.",
        {"levels": lambda bits: 127},
    ),
    (
        "the codes are cut off, not rounded",
        "`.to(torch.int8)` drops the fraction: call .round() before it.",
        {"rounding": torch.trunc},
    ),
    (
        "the codes are rounded down",
        "Round to the nearest: floor makes the error one-sided and twice as large.",
        {"rounding": torch.floor},
    ),
    (
        "one scale serves the whole matrix",
        "One large weight then makes every row coarse: take the largest of each row, amax(1).",
        {"axis": None},
    ),
    (
        "each column has a scale, and rows are wanted",
        "amax(1, keepdim=True) looks along a row.",
        {"axis": 0},
    ),
]


@exercise(
    "quantise_rows",
    notebook="08",
    reference=_quantise_rows,
    look="scale = largest size of the row / (2 ** (bits - 1) - 1); codes = round(weight / scale).",
)
def quantise_rows(answer: Callable[..., Any]) -> None:
    """answer(weight (R, C), bits) -> codes int8 (R, C), scale (R, 1): codes * scale near weight."""
    source = generator()
    draws = []
    for shape, bits in (((4, 6), 8), ((3, 7), 4), ((5, 5), 6)):
        weight = torch.randn(*shape, generator=source).clamp(-2, 2)
        weight[:2, 0] = torch.tensor([-3.1, 4.3])  # the largest size is negative, and positive
        weight[:, 1] = weight[:, 1].abs() + 0.1  # so that no row is all negative
        draws.append((weight, bits))
    names = "codes", "scale"
    results = [_two(answer(*draw), *names) for draw in draws]
    for (codes, scale), (weight, _) in zip(results, draws, strict=True):
        if codes.dtype != torch.int8 and scale.dtype == torch.int8:
            raise Misconception("the two parts are swapped", "Return codes first, then scale.")
        if codes.dtype != torch.int8:
            raise Misconception(
                f"the codes are {codes.dtype}, not torch.int8",
                "Whole numbers in a float tensor still take four bytes each: end with "
                ".to(torch.int8).",
            )
        if codes.shape != weight.shape:
            raise Misconception(
                f"the codes have shape {tuple(codes.shape)} where {tuple(weight.shape)} is wanted"
            )
        if scale.shape == weight.shape[:1]:
            raise Misconception(
                "scale has shape (R,), which codes * scale would lay along the columns",
                "Keep the axis: amax(1, keepdim=True) gives (R, 1).",
            )
    wanted = [_quantise_rows(*draw) for draw in draws]
    if not _same(results, wanted):
        for slip in slips_and_pairs(_quantised, _CHANGES):
            if _same(results, [slip.formula(*draw) for draw in draws]):
                raise Misconception(slip.message, slip.look)
        if _same(results, [(codes, 1 / scale) for codes, scale in wanted]):
            raise Misconception("scale is turned over", "codes * scale must give the weights back.")
        worst = max(
            float((codes.double() * scale.double() - weight).abs().max())
            for (codes, scale), (weight, _) in zip(results, draws, strict=True)
        )
        raise Misconception(f"codes * scale misses a weight by {worst:.3g}, on random input")
    empty = torch.randn(3, 4, generator=source)
    empty[1] = 0
    codes, scale = _two(answer(empty, 8), *names)
    if not scale.double().isfinite().all() or codes[1].any():
        raise Misconception(
            "a row of zeros gives codes other than zero, or a scale that is no number",
            "0/0: keep the largest size above zero, for example with .clamp_min(1e-12).",
        )
    if not _same([(codes, scale * 0)], [(_quantise_rows(empty, 8)[0], scale * 0)]):
        raise Misconception("beside a row of zeros, another row's codes are wrong")
    if (scale[1] == 0).any():
        raise Misconception(
            "the scale of a row of zeros is 0, and the codes come from 0/0",
            "Keep the largest size above zero, for example with .clamp_min(1e-12).",
        )


# --- The front -----------------------------------------------------------------------------


def _front(sizes: Tensor, scores: Tensor, strict: str = "one", small: bool = True) -> Tensor:
    """(N,) bool; ``strict`` says how much better a rival must be: in one respect, both or none."""
    s = sizes if small else -sizes
    no_larger, no_worse = s[None, :] <= s[:, None], scores[None, :] >= scores[:, None]
    smaller, better = s[None, :] < s[:, None], scores[None, :] > scores[:, None]
    beaten = {
        "one": no_larger & no_worse & (smaller | better),
        "both": smaller & better,
        "none": no_larger & no_worse,
        "size": smaller,
        "score": better,
    }[strict]
    return ~beaten.any(1)


def _extremes(sizes: Tensor, scores: Tensor) -> Tensor:
    return (sizes == sizes.min()) | (scores == scores.max())


@exercise(
    "on_front",
    notebook="08",
    reference=lambda sizes, scores: _front(sizes, scores),
    look="A form is off the front if another is no larger and no worse, and better in one of both.",
)
def on_front(answer: Callable[..., Any]) -> None:
    """answer(sizes (N,), scores (N,)) -> (N,) bool: no other form beats it."""
    source = generator()
    draws = []
    for count in (4, 7, 10):
        # the smallest, one as small and worse, two alike, the best, one larger and worse
        sizes = torch.tensor([0.5, 0.5, 0.6, 0.6, 9.0, 20.0])
        scores = torch.tensor([40.0, 39.0, 45.0, 45.0, 90.0, 85.0])
        sizes = torch.cat([sizes, 1 + 7 * torch.rand(count, generator=source)])
        scores = torch.cat([scores, 41 + 40 * torch.rand(count, generator=source)])
        order = torch.randperm(len(sizes), generator=source)
        sizes, scores = sizes[order], scores[order]
        draws.append((sizes, scores))
    slips = [
        Slip("True stands for the forms that are beaten", lambda s, f: ~_front(s, f), "Negate it."),
        Slip(
            "a larger form is taken for the better one",
            lambda s, f: _front(s, f, small=False),
            "Size is a cost: smaller is better. Score is a gain: higher is better.",
        ),
        Slip(
            "a form is off the front only if another is better in both respects",
            lambda s, f: _front(s, f, "both"),
            "Equal in size and worse in score is beaten too.",
        ),
        Slip(
            "every form beats itself",
            lambda s, f: _front(s, f, "none"),
            "No larger and no worse is not enough, each form is that to itself: ask for strictly "
            "better in at least one of both.",
        ),
        Slip(
            "only the smallest and the best form are left",
            _extremes,
            "The front is all forms between them that no other beats.",
        ),
        Slip("only the size is looked at", lambda s, f: _front(s, f, "size")),
        Slip("only the score is looked at", lambda s, f: _front(s, f, "score")),
    ]

    def as_numbers(sizes: Tensor, scores: Tensor) -> Any:
        result = answer(sizes, scores)
        return torch.as_tensor(result) if isinstance(result, list) else result

    compare(as_numbers, draws, _front, slips)
