"""Exercises of notebook 08, shrink and ship."""

# mypy: disable-error-code=has-type

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from comet_lib.checks.draws import generator, whole
from comet_lib.checks.framework import Answer, Draws, Misconception, Slip, all_close, exercise

Pair = tuple[Tensor, Tensor]


def _trimmed_sizes(source: torch.Generator) -> Draws:
    draws = []
    for _ in range(4):
        vocabulary, width = whole(source, 1000, 90_000), whole(source, 8, 900)
        kept = whole(source, vocabulary // 9, vocabulary // 3)
        draws.append((vocabulary * width + whole(source, 9999, 10**7), vocabulary, kept, width))
    return draws


@exercise(
    look="Each dropped piece takes one row of `width` numbers with it; nothing else changes.",
    draws=_trimmed_sizes,
    slips={
        "the kept rows are taken away and the dropped ones stay": Slip(
            lambda t, v, k, w: t - k * w, "Take away vocabulary - kept rows."
        ),
        "the whole model shrinks with the vocabulary": Slip(
            lambda t, v, k, w: t * k / v,
            "Only the embedding table has a row for each piece; the layers stay as they are.",
        ),
        "the width is forgotten: a row is not one number": Slip(lambda t, v, k, w: t - (v - k)),
        "this is what is saved, not what is left": Slip(
            lambda t, v, k, w: (v - k) * w, "Subtract it from the total."
        ),
        "this is only the new embedding table": Slip(
            lambda t, v, k, w: k * w, "Add the rest of the model, which stays."
        ),
        "each row is taken away twice": Slip(
            lambda t, v, k, w: t - 2 * (v - k) * w,
            "A classifier has no output table; in a masked-LM model it is tied, and counts once.",
        ),
    },
)
def parameters_after(total: int, vocabulary: int, kept: int, width: int) -> int:
    """Parameters of the trimmed model."""
    return total - (vocabulary - kept) * width


def _two(result: Any, first: str, second: str) -> Pair:
    """An answer's two tensors (lists become tensors)."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Misconception(
            f"your function returned a {type(result).__name__}, but a pair is wanted",
            f"Return two tensors: {first}, {second}.",
        )
    try:
        one, two = (torch.as_tensor(part) for part in result)
    except (TypeError, ValueError, RuntimeError):
        raise Misconception(
            "the two parts of your answer are not tensors",
            f"Return two tensors: {first}, {second}.",
        ) from None
    return one, two


def _tables(source: torch.Generator) -> Draws:
    draws = []
    for size in (14, 20, 31):
        ids = 5 + torch.randint(size - 5, (9,), generator=source)
        ids = torch.cat([ids, torch.tensor([size - 1, 5, 5])])  # not in order, some twice
        weight = torch.randn(size, 3, generator=source)
        draws.append((weight, ids, torch.tensor([1, 3, 4])))
    return draws


def _rows_and_ids(result: Any, *draw: Tensor) -> Pair:
    rows, new_ids = _two(result, "rows", "new_ids")
    if new_ids.is_floating_point() and not rows.is_floating_point():
        raise Misconception("the two parts are swapped", "Return rows first, then new_ids.")
    return rows, new_ids


def _in_order(weight: Tensor, ids: Tensor, order: list[int]) -> Pair:
    order = list(dict.fromkeys(order))
    return weight[order], torch.tensor([order.index(i) for i in ids.tolist()])


def _zeroed(weight: Tensor, ids: Tensor, special: Tensor) -> Pair:
    used = torch.isin(torch.arange(len(weight)), torch.cat([ids, special]))
    return weight * used[:, None], ids


def _wrong_table(answer: Answer, draws: Draws) -> None:
    results = [answer(*draw) for draw in draws]
    wanted = [trim_embeddings.reference(*draw)[0] for draw in draws]
    rows = [rows.double() for rows, _ in results]
    used = [torch.isin(torch.arange(len(w)), torch.cat([ids, s])) for w, ids, s in draws]
    if all_close(rows, [w[~u].double() for (w, _, _), u in zip(draws, used, strict=True)]):
        raise Misconception("the used rows are dropped and the unused ones kept")
    if not all_close(rows, [w.double() for w in wanted]):
        raise Misconception(
            f"rows have shape {tuple(rows[0].shape)} and the wrong content, but "
            f"{tuple(wanted[0].shape)} is wanted"
        )
    raise Misconception(
        "the rows are right, but rows[new_ids] is not weight[ids]",
        "new_ids[i] is the place of ids[i] in kept.",
    )


@exercise(
    look="kept = the numbers in ids and special, each once, in ascending order; then weight[kept].",
    draws=_tables,
    read=_rows_and_ids,
    slips={
        "new_ids are still the old numbers": Slip(
            lambda w, ids, s: (trim_embeddings.reference(w, ids, s)[0], ids),
            "Row 17 of the old table may be row 4 of the new one: look each id up in kept.",
        ),
        "the special pieces are gone where the text does not use them": Slip(
            lambda w, ids, s: _in_order(w, ids, sorted(ids.tolist())),
            "Padding and the unknown piece must stay, whatever the corpus holds.",
        ),
        "the rows stand in the order in which the pieces appear": Slip(
            lambda w, ids, s: _in_order(w, ids, [*s.tolist(), *ids.tolist()]),
            "Sort kept: then padding keeps its number, from which XLM-R counts positions.",
        ),
        "the rows stand in the order of the text, the special ones last": Slip(
            lambda w, ids, s: _in_order(w, ids, [*ids.tolist(), *s.tolist()]),
            "Sort kept: then padding keeps its number, from which XLM-R counts positions.",
        ),
        "dropped rows are set to zero and still stored": Slip(
            _zeroed, "Index with kept, weight[kept]: the table itself must get shorter."
        ),
        "nothing is dropped": Slip(lambda w, ids, s: (w, ids), "Keep only the rows of ids."),
        "every occurrence has a row of its own": Slip(
            lambda w, ids, s: (w[torch.cat([s, ids])], len(s) + torch.arange(len(ids))),
            "A piece that occurs twice in ids needs one row: take a set, or torch.unique.",
        ),
    },
    otherwise=_wrong_table,
)
def trim_embeddings(weight: Tensor, ids: Tensor, special: Tensor) -> Pair:
    """rows (K, H) and new_ids (N,), from weight (V, H), ids (N,), special (S,)."""
    kept = torch.unique(torch.cat([ids, special]))  # sorted
    return weight[kept], torch.searchsorted(kept, ids)


def _tokens(source: torch.Generator) -> Draws:
    draws = []
    for size in (40, 90, 130):
        # squared, so that small numbers are frequent, as words are
        ids = (30 * torch.rand(size, generator=source).square()).long()
        ids = torch.cat([ids, torch.arange(20, 30)])
        kept = torch.cat([torch.arange(whole(source, 3, 9)), torch.tensor([40, 41])])
        draws.append((ids, kept))  # two kept pieces occur nowhere
    return draws


@exercise(
    look="Of all tokens in ids, count those whose piece is in kept, and divide by len(ids).",
    draws=_tokens,
    slips={
        "each piece counts once, however often it occurs": Slip(
            lambda i, k: token_coverage.reference(i.unique(), k),
            "Do not take the set of ids: a frequent piece must weigh more than a rare one.",
        ),
        "this is the share that is lost": Slip(
            lambda i, k: 100 - token_coverage.reference(i, k), "Count the tokens that are in kept."
        ),
        "this is a fraction, but percent is wanted": Slip(
            lambda i, k: token_coverage.reference(i, k) / 100, "Multiply by 100."
        ),
        "this is the share of the pieces that are kept, whatever the text says": Slip(
            lambda i, k: 100 * len(k) / len(i.unique()), "Look at each token of ids."
        ),
        "the tokens are divided by the number of kept pieces": Slip(
            lambda i, k: token_coverage.reference(i, k) * len(i) / len(k), "Divide by len(ids)."
        ),
        "this is a count, not a percentage": Slip(lambda i, k: float(torch.isin(i, k).sum())),
    },
)
def token_coverage(ids: Tensor, kept: Tensor) -> float:
    """Percent of the tokens ids (N,) whose piece is in kept (K,)."""
    return 100 * float(torch.isin(ids, kept).double().mean())


def _quantised(
    weight: Tensor,
    bits: int,
    *,
    absolute: bool = True,
    levels: Callable[[int], int] = lambda bits: 2 ** (bits - 1) - 1,
    rounding: Callable[[Tensor], Tensor] = torch.round,
    axis: tuple[int, ...] = (1,),
) -> Pair:
    """Codes (R, C) and scales with some parts replaced by slips; an overflow wraps as in torch."""
    size = weight.abs() if absolute else weight
    scale = size.amax(axis, keepdim=True) / levels(bits)
    return rounding(weight / scale).to(torch.int64).to(torch.int8), scale


def _matrices(source: torch.Generator) -> Draws:
    draws = []
    for shape, bits in (((4, 6), 8), ((3, 7), 4), ((5, 5), 6)):
        weight = torch.randn(*shape, generator=source).clamp(-2, 2)
        weight[:2, 0] = torch.tensor([-3.1, 4.3])  # the largest size is negative, and positive
        weight[:, 1] = weight[:, 1].abs() + 0.1  # so that no row is all negative
        draws.append((weight, bits))
    return draws


def _codes_and_scale(result: Any, weight: Tensor, bits: int) -> Pair:
    codes, scale = _two(result, "codes", "scale")
    if codes.dtype != torch.int8 and scale.dtype == torch.int8:
        raise Misconception("the two parts are swapped", "Return codes first, then scale.")
    if codes.dtype != torch.int8:
        raise Misconception(
            f"the codes are {codes.dtype}, not torch.int8",
            "Whole numbers in a float tensor still take four bytes each: end with .to(torch.int8).",
        )
    if codes.shape != weight.shape:
        raise Misconception(
            f"the codes have shape {tuple(codes.shape)}, but {tuple(weight.shape)} is wanted"
        )
    if scale.shape == weight.shape[:1]:
        raise Misconception(
            "scale has shape (R,), which codes * scale would apply along the columns",
            "Keep the axis: amax(1, keepdim=True) gives (R, 1).",
        )
    return codes, scale.reshape(1, 1) if scale.numel() == 1 else scale


def _far_from_the_weights(answer: Answer, draws: Draws) -> None:
    results = [answer(*draw) for draw in draws]
    worst = max(
        float((codes.double() * scale.double() - weight).abs().max())
        for (codes, scale), (weight, _) in zip(results, draws, strict=True)
    )
    raise Misconception(f"codes * scale misses a weight by {worst:.3g}, on random input")


def _row_of_zeros(answer: Answer, draws: Draws) -> None:
    weight = torch.randn(3, 4, generator=generator())
    weight[1] = 0
    codes, scale = answer(weight, 8)
    if not scale.double().isfinite().all() or codes[1].any():
        raise Misconception(
            "a row of zeros gives codes other than zero, or a scale that is not a number",
            "0/0: keep the largest size above zero, for example with .clamp_min(1e-12).",
        )
    if not torch.equal(codes, quantise_rows.reference(weight, 8)[0]):
        raise Misconception("beside a row of zeros, another row's codes are wrong")
    if (scale[1] == 0).any():
        raise Misconception(
            "the scale of a row of zeros is 0, and the codes come from 0/0",
            "Keep the largest size above zero, for example with .clamp_min(1e-12).",
        )


@exercise(
    look="scale = largest size of the row / (2 ** (bits - 1) - 1); codes = round(weight / scale).",
    draws=_matrices,
    read=_codes_and_scale,
    slips={
        "a row's largest entry is taken with its sign": Slip(
            partial(_quantised, absolute=False),
            "Where the largest size is negative, the codes overflow: take weight.abs() first.",
        ),
        "the scale is the largest size / 2 ** (bits - 1)": Slip(
            partial(_quantised, levels=lambda bits: 2 ** (bits - 1)),
            "int8 ends at 127: the largest weight would become 128 and wrap round to -128.",
        ),
        "the scale is the largest size / (2 ** bits - 1)": Slip(
            partial(_quantised, levels=lambda bits: 2**bits - 1),
            "On each side of zero there are 2 ** (bits - 1) - 1 steps.",
        ),
        "bits is not used: the codes always go up to 127": Slip(
            partial(_quantised, levels=lambda bits: 127), "With 4 bits they end at 7."
        ),
        "the codes are cut off, not rounded": Slip(
            partial(_quantised, rounding=torch.trunc), "Call .round() before .to(torch.int8)."
        ),
        "the codes are rounded down": Slip(
            partial(_quantised, rounding=torch.floor),
            "Round to the nearest: floor makes the error one-sided and twice as large.",
        ),
        "one scale serves the whole matrix": Slip(
            partial(_quantised, axis=(0, 1)),
            "One large weight then makes every row coarse: take the largest of each row, amax(1).",
        ),
        "each column has a scale, but rows are wanted": Slip(
            partial(_quantised, axis=(0,)), "amax(1, keepdim=True) looks along a row."
        ),
        "scale is inverted": Slip(
            lambda w, bits: (_quantised(w, bits)[0], 1 / _quantised(w, bits)[1]),
            "codes * scale must give the weights back.",
        ),
    },
    otherwise=_far_from_the_weights,
    extra=_row_of_zeros,
)
def quantise_rows(weight: Tensor, bits: int) -> Pair:
    """codes int8 (R, C) and scale (R, 1) of weight (R, C): codes * scale is near weight."""
    scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
    return (weight / scale).round().to(torch.int8), scale


def _sizes_and_scores(source: torch.Generator) -> Draws:
    draws = []
    for count in (4, 7, 10):
        # the smallest, one as small and worse, two alike, the best, one larger and worse
        sizes = torch.tensor([0.5, 0.5, 0.6, 0.6, 9.0, 20.0])
        scores = torch.tensor([40.0, 39.0, 45.0, 45.0, 90.0, 85.0])
        sizes = torch.cat([sizes, 1 + 7 * torch.rand(count, generator=source)])
        scores = torch.cat([scores, 41 + 40 * torch.rand(count, generator=source)])
        order = torch.randperm(len(sizes), generator=source)
        draws.append((sizes[order], scores[order]))
    return draws


def _front(sizes: Tensor, scores: Tensor, strict: str = "one") -> Tensor:
    """(N,) bool; ``strict`` says how much better a rival must be: in one respect, both or none."""
    smaller, better = sizes[None, :] < sizes[:, None], scores[None, :] > scores[:, None]
    no_worse = (sizes[None, :] <= sizes[:, None]) & (scores[None, :] >= scores[:, None])
    beaten = {
        "one": no_worse & (smaller | better),
        "both": smaller & better,
        "none": no_worse,
        "size": smaller,
        "score": better,
    }[strict]
    return ~beaten.any(1)


@exercise(
    look="A form is off the front if another is no larger and no worse, and better in one of both.",
    draws=_sizes_and_scores,
    read=lambda result, *draw: torch.as_tensor(result) if isinstance(result, list) else result,
    slips={
        "True marks the forms that are beaten": Slip(lambda s, f: ~_front(s, f), "Negate it."),
        "a larger form counts as the better one": Slip(
            lambda s, f: _front(-s, f), "Smaller sizes and higher scores are better."
        ),
        "a form is off the front only if another is better in both respects": Slip(
            partial(_front, strict="both"), "Equal in size and worse in score is beaten too."
        ),
        "every form beats itself": Slip(
            partial(_front, strict="none"),
            "Ask for no larger, no worse, and strictly better in at least one of both.",
        ),
        "only the smallest and the best form are left": Slip(
            lambda s, f: (s == s.min()) | (f == f.max()), "Keep all forms that no other beats."
        ),
        "only the size is looked at": Slip(partial(_front, strict="size")),
        "only the score is looked at": Slip(partial(_front, strict="score")),
    },
)
def on_front(sizes: Tensor, scores: Tensor) -> Tensor:
    """(N,) bool, from sizes (N,) and scores (N,): no other form beats it."""
    return _front(sizes, scores)
