"""Exercises of notebook 08, shrink and ship."""

# mypy: disable-error-code=has-type

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel

from comet_lib.checks.draws import generator, normal, uniform, whole
from comet_lib.checks.framework import (
    Answer,
    Draws,
    Misconception,
    Slip,
    all_close,
    exercise,
    is_number,
)
from comet_lib.lab import routing

Pair = tuple[Tensor, Tensor]


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
        ids = 5 + torch.randint(size - 6, (9,), generator=source)
        ids = torch.cat([torch.tensor([3]), ids, torch.tensor([size - 2, 5, 5])])  # some twice
        # A special piece is in the text, and one has a higher number than all words.
        special = torch.tensor([1, 3, 4, size - 1])[torch.randperm(4, generator=source)]
        draws.append((torch.randn(size, 3, generator=source), ids, special))
    return draws


def _rows_and_ids(result: Any, *draw: Tensor) -> Pair:
    rows, new_ids = _two(result, "rows", "new_ids")
    if new_ids.is_floating_point() and not rows.is_floating_point():
        raise Misconception("the two parts are swapped", "Return rows first, then new_ids.")
    if new_ids.is_floating_point():
        raise Misconception(
            "new_ids are fractions, which cannot number rows", "Keep them whole: .long()."
        )
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
        "the rows are in the order in which the pieces appear": Slip(
            lambda w, ids, s: _in_order(w, ids, [*s.tolist(), *ids.tolist()]),
            "Sort kept: then padding keeps its number, from which XLM-R counts positions.",
        ),
        "the rows are in the order of the text, the special ones last": Slip(
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


def _students(source: torch.Generator) -> Draws:
    draws: list[tuple[Any, ...]] = []
    for seed in range(2):
        model = routing.new_model(routing.STUDENT, seed)  # 12 pieces
        ids = 4 + torch.randperm(7, generator=source)[:4].repeat(2)
        special = torch.tensor([11, 0, 2, 3, 1])
        draws.append((model, ids, special, 11))  # its new number is another one
    return draws


def _logits_and_lookup(result: Any, model: Any, *draw: Any) -> Pair:
    """What the smaller model answers to a text of kept pieces, and the lookup."""
    pair = result if isinstance(result, tuple | list) and len(result) == 2 else (0, 0)
    smaller: Any = pair[0]
    if not hasattr(smaller, "get_input_embeddings"):
        raise Misconception(
            f"your function returned a {type(result).__name__}, but a pair is wanted",
            "Return smaller, lookup: a model and a tensor.",
        )
    lookup, old = torch.as_tensor(pair[1]), len(routing.SPECIAL) + len(routing.WORDS)
    rows = len(smaller.get_input_embeddings().weight)
    if len(model.get_input_embeddings().weight) != old or model.config.vocab_size != old:
        raise Misconception(
            "the model that you were given has become smaller too",
            "Work on copy.deepcopy(model): section 5 compares both.",
        )
    if rows == old:
        raise Misconception("the copy's table is as long as before", "Give it the rows you kept.")
    if smaller.config.vocab_size != rows:
        raise Misconception(
            f"config.vocab_size says {smaller.config.vocab_size}, but the table has {rows} rows",
            "Whoever loads the saved model builds the table from its config: set it to len(rows).",
        )
    if not smaller.get_input_embeddings().weight.requires_grad:
        raise Misconception(
            "the copy's table is frozen, so nobody can train it further", "freeze=False."
        )
    if lookup.shape != (old,) or lookup.is_floating_point():
        raise Misconception(
            f"lookup has shape {tuple(lookup.shape)} and type {lookup.dtype}",
            f"It needs one whole number for each of the {old} old pieces: shape (V,).",
        )
    ids, special, _ = draw
    text = lookup[torch.cat([special[special != 1], ids])]
    if lookup.min() < 0 or lookup.max() >= rows:
        raise Misconception(
            f"lookup holds numbers from {lookup.min()} to {lookup.max()}, but the smaller table's "
            f"rows are 0 to {rows - 1}",
            "A dropped piece must become <unk>, whose new number is one of these.",
        )
    with torch.no_grad():
        return smaller.eval()(input_ids=text[None]).logits.double(), lookup


def _cut(
    model: PreTrainedModel,
    ids: Tensor,
    special: Tensor,
    unknown: int,
    dropped: Callable[[Tensor, int], Any] = lambda lookup, unknown: lookup[unknown],
) -> tuple[PreTrainedModel, Tensor]:
    smaller, used = copy.deepcopy(model), torch.cat([ids, special])
    table: Any = model.get_input_embeddings().weight
    rows, new_ids = trim_embeddings.reference(table.detach(), used, special)
    smaller.set_input_embeddings(torch.nn.Embedding.from_pretrained(rows, freeze=False))
    smaller.config.vocab_size = len(rows)
    lookup = torch.full((len(table),), -1)
    lookup[used] = new_ids
    lookup[lookup < 0] = dropped(lookup, unknown)
    return smaller, lookup


@exercise(
    look="Cut the copy's table at ids and special together; lookup[old] = new, <unk>'s elsewhere.",
    draws=_students,
    read=_logits_and_lookup,
    slips={
        "dropped pieces become piece 0, which is <s>": Slip(
            partial(_cut, dropped=lambda lookup, unknown: 0),
            "A dropped piece must become <unk>: lookup[unknown].",
        ),
        "dropped pieces become padding": Slip(
            partial(_cut, dropped=lambda lookup, unknown: 1),
            "Padding is not read at all. A dropped piece must become <unk>: lookup[unknown].",
        ),
        "the special pieces that the corpus does not use become <unk>": Slip(
            lambda m, ids, s, u: (
                (done := _cut(m, ids, s, u))[0],
                torch.where(torch.isin(torch.arange(12), ids), done[1], done[1][u]),
            ),
            "They need a new number too: look up torch.cat([ids, special]).",
        ),
    },
    seconds=20.0,
)
def trim_student(
    model: PreTrainedModel, ids: Tensor, special: Tensor, unknown: int
) -> tuple[PreTrainedModel, Tensor]:
    """A copy with the rows of ids (N,) and special (S,) only; lookup (V,): old number -> new one,
    for dropped pieces that of ``unknown``."""
    return _cut(model, ids, special, unknown)


def _tokens(source: torch.Generator) -> Draws:
    draws = []
    for size in (41, 87, 129):  # no coverage is a whole number
        # squared, so that small numbers are frequent, as words are
        ids = (30 * torch.rand(size, generator=source).square()).long()
        ids = torch.cat([ids, torch.arange(20, 30)])
        # some frequent, some rare, in no order; two occur nowhere
        kept = torch.randperm(30, generator=source)[: whole(source, 4, 12)]
        draws.append((ids, torch.cat([kept, torch.tensor([40, 41])])))
    return draws


@exercise(
    look="Of all tokens in ids, count those whose piece is in kept, and divide by len(ids).",
    draws=_tokens,
    slips={
        "each piece counts once, however often it occurs": Slip(
            lambda i, k: token_coverage.reference(i.unique(), k),
            "Do not take the set of ids: a frequent piece must weigh more than a rare one.",
        ),
        "this is the share of the kept pieces that occur, not of the tokens": Slip(
            lambda i, k: 100 * float(torch.isin(k, i).double().mean()), "torch.isin(ids, kept)."
        ),
        "pieces with small numbers are taken for the kept ones": Slip(
            lambda i, k: 100 * float((i < len(k)).double().mean()),
            "kept holds the numbers of the pieces, in any order.",
        ),
        "every piece up to the largest kept one counts as kept": Slip(
            lambda i, k: 100 * float((i <= k.max()).double().mean()), "torch.isin(ids, kept)."
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


#: Language, tokens, and how uneven its pieces are; the shortest is not the one that loses most.
LENGTHS = (("aaa", 300, 3.0), ("bbb", 60, 1.2), ("ccc", 150, 2.0), ("ddd", 30, 3.0))


def _corpora(source: torch.Generator) -> Draws:
    """Three corpora on which every slip shows, and no two look alike."""
    slips = [slip.formula for slip in fewest_pieces.slips.values()]
    while True:
        draws: list[tuple[Any, ...]] = []
        while len(draws) < 3:
            texts = {
                code: (60 * torch.rand(n, generator=source) ** power).long()
                for code, n, power in LENGTHS
            }
            texts = dict(sorted(texts.items(), key=lambda _: uniform(source, 0, 1)))
            counts = torch.bincount(torch.cat([*texts.values()]), minlength=60)
            order = counts.argsort(descending=True)
            draw = texts, order, [*range(6, 63, 3)], uniform(source, 70, 90) + 1e-3
            right = fewest_pieces.reference(*draw)
            if all(slip(*draw) != right for slip in slips):
                draws.append(draw)
        if len({tuple(slip(*draw) for draw in draws) for slip in slips}) == len(slips):
            return draws


CUT = [1, 2, 3, 4]

#: How coverage over the languages becomes one number, right and wrong.
OVER: tuple[Callable[[list[Tensor], Tensor], float], ...] = (
    lambda texts, kept: min(token_coverage.reference(ids, kept) for ids in texts),
    lambda texts, kept: max(token_coverage.reference(ids, kept) for ids in texts),
    lambda texts, kept: float(np.mean([token_coverage.reference(ids, kept) for ids in texts])),
    lambda texts, kept: min(token_coverage.reference(ids.unique(), kept) for ids in texts),
)


def _fewest(
    texts: Mapping[str, Tensor],
    order: Tensor,
    candidates: Sequence[int],
    percent: float,
    over: Callable[[list[Tensor], Tensor], float],
) -> int:
    good = (k for k in candidates if over([*texts.values()], order[:k]) >= percent)
    return int(next(good, candidates[-1]))


@exercise(
    look="For each candidate, from the smallest: the smallest coverage of any language.",
    draws=_corpora,
    slips={
        "the language that loses least decides": Slip(
            partial(_fewest, over=OVER[1]), "Every language must reach percent: take the min."
        ),
        "the mean over the languages decides, and hides the one that loses most": Slip(
            partial(_fewest, over=OVER[2]), "Every language must reach percent: take the min."
        ),
        "each piece counts once, however often it occurs": Slip(
            partial(_fewest, over=OVER[3]), "Use your token_coverage on all tokens."
        ),
        "all texts are joined, so the language with most text decides": Slip(
            lambda t, o, c, p: _fewest({"": torch.cat([*t.values()])}, o, c, p, OVER[0]),
            "Ask each language by itself.",
        ),
        "the language with the fewest tokens decides": Slip(
            lambda t, o, c, p: _fewest({"": min(t.values(), key=len)}, o, c, p, OVER[0]),
            "Every language must reach percent: take the smallest coverage.",
        ),
        "the last candidate that is too small is returned": Slip(
            lambda t, o, c, p: c[max(c.index(_fewest(t, o, c, p, OVER[0])) - 1, 0)],
            "Return the first candidate that is enough.",
        ),
        "this is the place of the candidate, not the candidate": Slip(
            lambda t, o, c, p: c.index(_fewest(t, o, c, p, OVER[0])), "Return candidates[place]."
        ),
        "the numbers below count are kept, not the first of order": Slip(
            lambda t, o, c, p: _fewest(t, torch.arange(len(o)), c, p, OVER[0]),
            "With count pieces, order[:count] is kept.",
        ),
    },
    edge_case="where a language has exactly percent",
    edges=lambda source: [
        ({"aaa": torch.tensor([0, 1, 2, 3]), "bbb": torch.tensor([2, 0])}, torch.arange(4), CUT, 75)
    ],
)
def fewest_pieces(
    ids_by_language: Mapping[str, Tensor], order: Tensor, candidates: Sequence[int], percent: float
) -> int:
    """The smallest of the rising candidates k such that order[:k] covers at least ``percent`` of
    each language's tokens (N,)."""
    return _fewest(ids_by_language, order, candidates, percent, OVER[0])


def _quantized(
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
        weight[-1] *= 1e-5  # tiny, with digits of its own
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
    # Beside the row's largest entry, or a tiny row's scale would pass with any value.
    largest = weight.abs().amax(1, keepdim=True)
    return codes, torch.where(largest > 0, scale / largest, (scale > 0).to(scale.dtype))


def _far_from_the_weights(answer: Answer, draws: Draws) -> None:
    results = [answer(*draw) for draw in draws]
    for (codes, scale), (weight, bits) in zip(results, draws, strict=True):
        back = codes.double() * scale.double() * weight.abs().amax(1, keepdim=True)
        error = ((back - weight).abs() / weight.abs().amax(1, keepdim=True)).amax(1)
        if error[-1] > 1.5 / (2 ** (bits - 1) - 1) and error[:-1].max() < error[-1] / 2:
            raise Misconception(
                "a row of tiny weights loses its digits: its scale is held too high",
                "The guard against 0/0 must be far below any real weight, such as 1e-12.",
            )
        if not torch.equal(codes, quantize_rows.reference(weight, bits)[0]) or (error > 0.5).any():
            worst = error.max()
            raise Misconception(
                f"codes * scale misses a weight by {100 * worst:.3g} % of its row's largest entry, "
                f"with {bits} bits"
            )


def _row_of_zeros(answer: Answer, draws: Draws) -> None:
    weight = torch.randn(3, 4, generator=generator())
    weight[1] = 0
    codes, scale = answer(weight, 8)
    if not scale.double().isfinite().all() or codes[1].any():
        raise Misconception(
            "a row of zeros gives codes other than zero, or a scale that is not a number",
            "0/0: keep the largest size above zero, for example with .clamp_min(1e-12).",
        )
    if not torch.equal(codes, quantize_rows.reference(weight, 8)[0]):
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
            partial(_quantized, absolute=False),
            "Where the largest size is negative, the codes overflow: take weight.abs() first.",
        ),
        "the scale is the largest size / 2 ** (bits - 1)": Slip(
            partial(_quantized, levels=lambda bits: 2 ** (bits - 1)),
            "int8 ends at 127: the largest weight would become 128 and wrap round to -128.",
        ),
        "the scale is the largest size / (2 ** bits - 1)": Slip(
            partial(_quantized, levels=lambda bits: 2**bits - 1),
            "On each side of zero there are 2 ** (bits - 1) - 1 steps.",
        ),
        "bits is not used: the codes always go up to 127": Slip(
            partial(_quantized, levels=lambda bits: 127), "With 4 bits they end at 7."
        ),
        "the codes are cut off, not rounded": Slip(
            partial(_quantized, rounding=torch.trunc), "Call .round() before .to(torch.int8)."
        ),
        "the codes are rounded down": Slip(
            partial(_quantized, rounding=torch.floor),
            "Round to the nearest: floor makes the error one-sided and twice as large.",
        ),
        "one scale serves the whole matrix": Slip(
            partial(_quantized, axis=(0, 1)),
            "One large weight then makes every row coarse: take the largest of each row, amax(1).",
        ),
        "each column has a scale, but rows are wanted": Slip(
            partial(_quantized, axis=(0,)), "amax(1, keepdim=True) looks along a row."
        ),
        "scale is inverted": Slip(
            lambda w, bits: (_quantized(w, bits)[0], 1 / _quantized(w, bits)[1]),
            "codes * scale must give the weights back.",
        ),
    },
    otherwise=_far_from_the_weights,
    extra=_row_of_zeros,
)
def quantize_rows(weight: Tensor, bits: int) -> Pair:
    """codes int8 (R, C) and scale (R, 1) of weight (R, C): codes * scale is near weight."""
    scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
    return (weight / scale).round().to(torch.int8), scale


MATRIX = "Each tensor with two axes, the embedding table too, becomes NAME.codes and NAME.scale."


def _checkpoints(source: torch.Generator) -> Draws:
    draws = []
    for bits in (8, 4):
        weights = {
            "embeddings.weight": normal(source, 6, 4),
            "types.weight": normal(source, 1, 4),
            "norm.weight": normal(source, 4),
            "dense.weight": normal(source, 4, 4),
            "dense.bias": normal(source, 4),
        }
        weights["embeddings.weight"][1] = 0  # padding
        draws.append((weights, bits))
    return draws


def _named(result: Any, wanted: Mapping[str, Tensor], look: str) -> dict[str, Tensor]:
    """The entries of ``wanted``'s names, and no others."""
    if not isinstance(result, Mapping):
        raise Misconception(
            f"your function returned a {type(result).__name__}, but a dict is wanted"
        )
    if not result:
        raise Misconception("your function returned a dict without entries", look)
    for name in (*result, *wanted):
        if (name in result) != (name in wanted):
            what = "is missing from your dict" if name in wanted else "should not be in your dict"
            raise Misconception(f"{name!r} {what}", look)
    return {name: torch.as_tensor(result[name]) for name in wanted}


def _packed(result: Any, weights: Mapping[str, Tensor], bits: int) -> tuple[Tensor, ...]:
    found = _named(result, pack_weights.reference(weights, bits), f"{MATRIX} Vectors stay.")
    out: list[Tensor] = []
    for name, value in weights.items():
        if value.ndim == 2:
            out += _codes_and_scale((found[f"{name}.codes"], found[f"{name}.scale"]), value, bits)
        else:
            out.append(found[name])
    return tuple(out)


def _pack(weights: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, value in weights.items():
        if value.ndim == 2:
            out[f"{name}.codes"], out[f"{name}.scale"] = quantize_rows.reference(value, bits)
        else:
            out[name] = value
    return out


@exercise(
    look=MATRIX,
    draws=_checkpoints,
    read=_packed,
    slips={
        "bits is not handed on: the codes go up to 127": Slip(
            lambda w, bits: _pack(w, 8), "quantize_rows(value, bits)."
        ),
        "vectors are rounded": Slip(
            lambda w, bits: _pack({k: v if v.ndim == 2 else v.round() for k, v in w.items()}, bits),
            "They are few: keep them as they are.",
        ),
    },
)
def pack_weights(weights: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Matrices NAME as NAME.codes and NAME.scale (``quantize_rows``), the rest as it is."""
    return _pack(weights, bits)


def _files(source: torch.Generator) -> Draws:
    draws = []
    for weights, bits in _checkpoints(source):
        packed = [*_pack(weights, bits).items()]
        shuffled = torch.randperm(len(packed), generator=source).tolist()
        draws.append((dict(packed[i] for i in shuffled),))
    return draws


def _unpacked(result: Any, packed: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    look = "Matrices come back under their old names, without .codes; scales are no weights."
    return tuple(_named(result, unpack_weights.reference(packed), look).values())


def _unpack(
    packed: Mapping[str, Tensor],
    product: Callable[[Tensor, Tensor], Tensor] = lambda codes, scale: codes * scale,
) -> dict[str, Tensor]:
    whole = {k.removesuffix(".codes"): v for k, v in packed.items() if not k.endswith(".scale")}
    return {
        k: product(v, packed[f"{k}.scale"]) if f"{k}.scale" in packed else v
        for k, v in sorted(whole.items())
    }


@exercise(
    look="NAME = NAME.codes * NAME.scale; a scale by itself is no weight; the rest stays.",
    draws=_files,
    read=_unpacked,
    slips={
        "the codes are not multiplied by their scale": Slip(
            partial(_unpack, product=lambda codes, scale: codes.float()), "codes * scale."
        ),
        "the codes are divided by their scale": Slip(
            partial(_unpack, product=lambda codes, scale: codes / scale),
            "Packing divided; unpacking multiplies.",
        ),
        "the product is rounded to whole numbers": Slip(
            partial(_unpack, product=lambda codes, scale: (codes * scale).round()),
            "int8 times float32 is a float32: leave it as it is.",
        ),
        "the scale is rounded to a whole number": Slip(
            partial(_unpack, product=lambda codes, scale: codes * scale.to(torch.int8)),
            "Turn the codes into floats, not the scale into codes.",
        ),
    },
)
def unpack_weights(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``pack_weights`` packed, up to rounding; entries come in any order."""
    return _unpack(packed)


class _Words:
    """A tokenizer: a word's length is its number, 1 is padding."""

    def __call__(self, texts: Sequence[str], **how: Any) -> BatchEncoding:
        rows = [[2 + len(word) for word in text.split()] for text in texts]
        longest = max(map(len, rows)) if how.get("padding") else None
        ids = [row + [1] * ((longest or len(row)) - len(row)) for row in rows]
        mask = [[int(i != 1) for i in row] for row in ids]
        found = {"input_ids": ids, "attention_mask": mask}
        return BatchEncoding(found, tensor_type=how.get("return_tensors"))


def _exports(source: torch.Generator) -> Draws:
    draws: list[tuple[Any, ...]] = []
    while len(draws) < 2:
        count, sign = ((6, 1), (9, -1))[len(draws)]
        table = torch.nn.Parameter(normal(source, 12, 3))
        noise = normal(source, count, 3, scale=1.0).numpy()
        texts = [" ".join("x" * whole(source, 1, 8) for _ in range(n)) for n in range(1, count + 1)]

        def model(input_ids: Tensor, attention_mask: Any = None, table: Any = table) -> Any:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            return SimpleNamespace(logits=(table[input_ids] * mask[..., None]).mean(1))

        def run(names: Any, inputs: Any, model: Any = model, noise: Any = noise) -> list[Any]:
            if {"input_ids", "attention_mask"} != set(inputs):
                raise ValueError("Required inputs are input_ids and attention_mask")
            if not all(isinstance(value, np.ndarray) for value in inputs.values()):
                raise TypeError("the inputs must be numpy arrays")
            logits = model(*(torch.tensor(inputs[x]) for x in ("input_ids", "attention_mask")))
            padded = (inputs["attention_mask"] == 0).sum(1, keepdims=True)  # it reads the padding
            return [logits.logits.detach().numpy() + 0.3 * padded * noise[: len(padded)]]

        draw = model, SimpleNamespace(run=run), _Words(), texts
        ours, theirs = _both(*draw)
        far = (theirs - ours).flatten()
        # The largest difference is positive once and negative once; some labels change.
        if sign * far[far.abs().argmax()] > 0 and 20 < _agreement(ours, theirs)[1] < 80:
            draws.append(draw)
    return draws


def _both(model: Any, session: Any, tokenizer: Any, texts: Sequence[str]) -> Pair:
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    (theirs,) = session.run(["logits"], {name: value.numpy() for name, value in batch.items()})
    return model(**batch).logits.detach(), torch.tensor(theirs)


def _agreement(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    equal = (ours.argmax(1) == theirs.argmax(1)).double().mean()
    return float((ours - theirs).abs().max()), 100 * float(equal)


def _difference_and_share(result: Any, *draw: Any) -> Pair:
    if isinstance(result, Tensor | np.ndarray) and result.shape == (2,):
        result = (*result,)
    first, second = _two(result, "difference", "percentage")
    if first.ndim or second.ndim:
        raise Misconception("your function returned arrays, but two numbers are wanted")
    return first.double(), second.double()


@exercise(
    look="One padded batch for both; max of the absolute differences; 100 * mean of equal argmax.",
    draws=_exports,
    read=_difference_and_share,
    slips={
        "each text is run by itself: without padding, what ignores the mask passes": Slip(
            lambda m, s, t, texts: _agreement(
                *map(torch.cat, zip(*(_both(m, s, t, [x]) for x in texts), strict=True))
            ),
            "Give all texts to the tokenizer at once, with padding=True.",
        ),
        "the mean difference is reported, which hides one bad text": Slip(
            lambda *draw: (
                float((_both(*draw)[0] - _both(*draw)[1]).abs().mean()),
                _agreement(*_both(*draw))[1],
            ),
            "Take the largest: .max().",
        ),
        "the largest difference with its sign is reported": Slip(
            lambda *draw: (
                float((_both(*draw)[0] - _both(*draw)[1]).max()),
                _agreement(*_both(*draw))[1],
            ),
            "A logit that is too small is as wrong: np.abs first.",
        ),
        "the largest difference with its sign, theirs minus ours, is reported": Slip(
            lambda *draw: (
                float((_both(*draw)[1] - _both(*draw)[0]).max()),
                _agreement(*_both(*draw))[1],
            ),
            "A logit that is too small is as wrong: np.abs first.",
        ),
        "the share of equal labels is a fraction": Slip(
            lambda *draw: (_agreement(*_both(*draw))[0], _agreement(*_both(*draw))[1] / 100),
            "Percent is wanted: times 100.",
        ),
        "this is the share of different labels": Slip(
            lambda *draw: (_agreement(*_both(*draw))[0], 100 - _agreement(*_both(*draw))[1]),
            "Count the equal ones.",
        ),
        "the two parts are swapped": Slip(
            lambda *draw: _agreement(*_both(*draw))[::-1], "The difference comes first."
        ),
        "probabilities are compared, not logits": Slip(
            lambda *draw: _agreement(*(x.softmax(1) for x in _both(*draw))),
            "A softmax makes differences small: compare the logits.",
        ),
        "the session gets the mask, but your model does not": Slip(
            lambda m, s, t, texts: _agreement(
                m(t(texts, padding=True, return_tensors="pt")["input_ids"]).logits,
                _both(m, s, t, texts)[1],
            ),
            "Both must ignore padding: attention_mask=batch['attention_mask'].",
        ),
    },
)
def compare_export(
    model: Any, session: Any, tokenizer: Any, texts: Sequence[str]
) -> tuple[float, float]:
    """The largest absolute difference of a logit, and the percentage of equal labels."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    inputs = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
    (theirs,) = session.run(["logits"], inputs)
    with torch.inference_mode():
        ours = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return _agreement(ours, torch.as_tensor(theirs))


#: What a list of seconds and the number of warm-up calls may become, right and wrong.
TIMES: dict[str, tuple[Callable[[Any, int], float], str]] = {
    "": (lambda each, warm: 1000 * float(np.median(each[warm:])), ""),
    "the calls that warm up are counted": (
        lambda each, warm: 1000 * float(np.median(each)),
        "Keep a time only if its input is not among the first warm_up.",
    ),
    "only the calls that warm up are counted": (
        lambda each, warm: 1000 * float(np.median(each[:warm])),
        "Leave the first warm_up out, and keep the others.",
    ),
    "one input too many is left out": (
        lambda each, warm: 1000 * float(np.median(each[warm + 1 :])),
        "Counting starts at 0, so keep turn >= warm_up.",
    ),
    "the mean is taken: one hiccup of the machine moves it": (
        lambda each, warm: 1000 * float(np.mean(each[warm:])),
        "Take np.median.",
    ),
    "the best time is taken": (
        lambda each, warm: 1000 * float(np.min(each[warm:])),
        "Nobody waits for the best case only: take np.median.",
    ),
    "these are seconds": (
        lambda each, warm: float(np.median(each[warm:])),
        "A second has 1000 milliseconds.",
    ),
    "the times are added up": (lambda each, warm: 1000 * float(np.sum(each[warm:])), "np.median."),
}


def _on_a_clock(answer: Answer) -> None:
    """Forms that move the hands of a clock; no real time passes."""
    source = generator()
    for turns, warm_up in ((9, 3), (8, 2), (7, 0)):
        now, calls = [uniform(source, 5, 90)], list[str]()
        seconds = {
            name: [uniform(source, 0.01, 0.02) * (1 + 5 * (i < warm_up)) for i in range(turns)]
            for name in ("one", "two", "three")
        }
        for each in seconds.values():
            each[-1] += 0.3  # a hiccup

        def form(one: int, name: str, seconds: Any = seconds, now: Any = now, calls: Any = calls):
            calls.append(name)
            now[0] += seconds[name][one]

        def clock(now: Any = now) -> float:
            return now[0]

        clocks: dict[str, Any] = dict.fromkeys(
            ("perf_counter", "monotonic", "time", "process_time"), clock
        )
        with patch.multiple(time, **clocks):
            got = answer({x: partial(form, name=x) for x in seconds}, [*range(turns)], warm_up)
        if not isinstance(got, Mapping) or set(got) != set(seconds):
            raise Misconception(
                f"your function returned a {type(got).__name__}, but a dict with the names of "
                "the forms is wanted"
            )
        if not all(is_number(value) for value in got.values()):
            raise Misconception("a form's time is not one number", "Take the median of its times.")
        if calls != [name for _ in range(turns) for name in calls[:3]] or len(set(calls[:3])) < 3:
            raise Misconception(
                "a form is not called once for each input, in turn with the others",
                "The loop over the inputs is the outer one, so that a busy moment hits all forms.",
            )
        for message, (value, look) in TIMES.items():
            if all(np.isclose(float(got[x]), value(seconds[x], warm_up)) for x in seconds):
                if not message:
                    break
                raise Misconception(message, look)
        else:
            raise Misconception(
                f"calls of {', '.join(f'{x:.3f}' for x in seconds['one'])} seconds with warm_up = "
                f"{warm_up} gave {float(got['one']):.4g}"
            )


@exercise(
    look="perf_counter() before and after each call; the median of those that count, times 1000.",
    verify=_on_a_clock,
)
def time_forms(
    forms: Mapping[str, Callable[[Any], Any]], inputs: Sequence[Any], warm_up: int
) -> dict[str, float]:
    """Name -> median milliseconds; all forms answer each input in turn, the first do not count."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn, one in enumerate(inputs):
        for name, form in forms.items():
            start = time.perf_counter()
            form(one)
            seconds = time.perf_counter() - start
            if turn >= warm_up:
                times[name].append(1000 * seconds)
    return {name: float(np.median(each)) for name, each in times.items()}


def _sizes_and_scores(source: torch.Generator) -> Draws:
    draws = []
    for count in (4, 7, 10):
        # the smallest, one as small and worse, two alike, the best, one larger and as good, one
        # larger and worse
        sizes = torch.tensor([0.5, 0.5, 0.6, 0.6, 9.0, 12.0, 20.0])
        scores = torch.tensor([40.0, 39.0, 45.0, 45.0, 90.0, 90.0, 85.0])
        sizes = torch.cat([sizes, 1 + 7 * torch.rand(count, generator=source)])
        scores = torch.cat([scores, 41 + 40 * torch.rand(count, generator=source)])
        order = torch.randperm(len(sizes), generator=source)
        draws.append((sizes[order], scores[order]))
    return draws


def _yes_or_no(result: Any, sizes: Tensor, scores: Tensor) -> Tensor:
    """A list or array is welcome; numbers must be 0 or 1."""
    if isinstance(result, list | tuple | np.ndarray):
        result = torch.as_tensor(result)
    if isinstance(result, Tensor) and not ((result == 0) | (result == 1)).all():
        raise Misconception(
            "these are places of forms, or other numbers", "Return True or False for each form."
        )
    return result


def _no_worse(sizes: Tensor, scores: Tensor) -> Tensor:
    """(N, N) bool: whether form j, a column, is no larger than form i and no worse."""
    return (sizes[None, :] <= sizes[:, None]) & (scores[None, :] >= scores[:, None])


def _front(sizes: Tensor, scores: Tensor, strict: str = "one") -> Tensor:
    """(N,) bool; ``strict`` says how much better a rival must be: in one respect, both or none."""
    smaller, better = sizes[None, :] < sizes[:, None], scores[None, :] > scores[:, None]
    no_worse = _no_worse(sizes, scores)
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
    read=_yes_or_no,
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
        "a larger form with an equal score stays on the front": Slip(
            lambda s, f: ~((s[None] <= s[:, None]) & (f[None] > f[:, None])).any(1),
            "Equal in score and larger is beaten too.",
        ),
        "a worse form of the same size stays on the front": Slip(
            lambda s, f: ~((s[None] < s[:, None]) & (f[None] >= f[:, None])).any(1),
            "Equal in size and worse in score is beaten too.",
        ),
        "equal forms beat each other, and none of them is left": Slip(
            lambda s, f: ~(_no_worse(s, f) & ~torch.eye(len(s), dtype=torch.bool)).any(1),
            "Two equal forms do not beat each other: keep both.",
        ),
        "of equal forms only one is left": Slip(
            lambda s, f: (
                _front(s, f) & ~((s[None] == s[:, None]) & (f[None] == f[:, None])).tril(-1).any(1)
            ),
            "Two equal forms do not beat each other: keep both.",
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
