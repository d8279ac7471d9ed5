"""Exercises of notebook 02, design the student: counts, FLOPs, shapes, and first weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from comet_lib import models
from comet_lib.checks.draws import generator, normal, uniform, whole
from comet_lib.checks.framework import (
    Answer,
    Draws,
    Misconception,
    Slip,
    all_close,
    exercise,
    numbers,
    value_of,
)

Draw = tuple[int, ...]


def _exact(reference: Answer, large: Callable[[torch.Generator], Draw]) -> Any:
    """For ``extra``: at a real model's size every unit must be right, not just four digits."""

    def extra(answer: Answer, draws: Draws) -> None:
        draw = large(generator())
        off = float(answer(*draw)) - reference(*draw)
        if off:
            raise Misconception(
                f"it is right at small sizes and {abs(off):,.0f} too "
                f"{'large' if off > 0 else 'small'} at large ones",
                "Count in Python's whole numbers: no float32 tensor and no rounding.",
            )

    return extra


def _odd_size(source: torch.Generator) -> Draw:
    """Vocabulary, width, length. Odd rows times an odd width: no float32 of this size is odd."""
    longest = whole(source, 99, 600)
    vocabulary = 2 * whole(source, 100_000, 150_000) + longest % 2
    return vocabulary, 2 * whole(source, 150, 500) + 1, longest


def _rows_too_many(answer: Answer, draws: Draws) -> None:
    """For ``otherwise``: the same number of rows too many on every draw."""
    off = {(answer(*draw) - models.embedding_parameters(*draw)) / draw[1] for draw in draws}
    if len(off) == 1 and (rows := float(off.pop())).is_integer() and 0 < rows < 9:
        raise Misconception(
            f"rows of `hidden` numbers are counted that do not exist: {rows:.0f} too many",
            "There is one token type, a LayerNorm has no more than a scale and a shift, and the "
            "position table has only two rows that no token uses.",
        )


def _miscount(reference: Answer, *draw: int, **differences: Answer) -> int:
    """The right count plus what a slip in each of the named parts adds to it."""
    return reference(*draw) + sum(difference(*draw) for difference in differences.values())


_embedding = partial(_miscount, models.embedding_parameters)


@exercise(
    look="The cell above the exercise lists five tensors; which of their shapes hold the length?",
    otherwise=_rows_too_many,
    draws=lambda source: [
        (whole(source, 60, 200), whole(source, 4, 24), whole(source, 10, 40)) for _ in range(4)
    ],
    slips={
        "one row of `hidden` numbers is missing": Slip(
            partial(_embedding, rows=lambda v, d, m: -d),
            "There is one token-type row, and a LayerNorm is two rows: a scale and a shift.",
        ),
        "two rows of `hidden` numbers are missing": Slip(
            partial(_embedding, rows=lambda v, d, m: -2 * d),
            "The LayerNorm (scale and shift), or two positions: there are max_length + 2.",
        ),
        "three rows of `hidden` numbers are missing": Slip(
            partial(_embedding, rows=lambda v, d, m: -3 * d),
            "One token type, two LayerNorm rows, two positions beyond max_length.",
        ),
        "four rows of `hidden` numbers are missing": Slip(
            partial(_embedding, rows=lambda v, d, m: -4 * d),
            "There are max_length + 2 positions, and the LayerNorm has a scale and a shift.",
        ),
        "five rows of `hidden` numbers are missing: only words and max_length positions count "
        "here": Slip(
            partial(_embedding, rows=lambda v, d, m: -5 * d),
            "Add two more positions, one token-type row, and the LayerNorm's scale and shift.",
        ),
        "only the word embeddings are counted": Slip(
            partial(_embedding, tables=lambda v, d, m: -d * (m + 5)),
            "Positions, the token type and the LayerNorm have numbers too.",
        ),
        "the position embeddings are missing": Slip(
            partial(_embedding, tables=lambda v, d, m: -d * (m + 2)),
            "XLM-R learns a vector for each position (no fixed sines): max_length + 2 rows.",
        ),
        "the position table always has 514 rows here": Slip(
            partial(_embedding, tables=lambda v, d, m: d * (512 - m)), "There are max_length + 2."
        ),
        "the word embeddings are missing": Slip(
            partial(_embedding, tables=lambda v, d, m: -d * v), "The largest table, vocab_size."
        ),
        "the word embeddings are counted twice": Slip(
            partial(_embedding, tables=lambda v, d, m: d * v),
            "The masked-LM head shares (ties) this table; it is stored once.",
        ),
        "the LayerNorm counts as two numbers, not as two rows": Slip(
            partial(_embedding, rows=lambda v, d, m: 2 - 2 * d),
            "Its scale and its shift have `hidden` numbers each.",
        ),
        "rows are counted, not numbers": Slip(
            partial(_embedding, unit=lambda v, d, m: (1 - d) * (v + m + 5)),
            "Each row holds `hidden` numbers: multiply.",
        ),
        "these are bytes, four for each number": Slip(
            partial(_embedding, unit=lambda v, d, m: 3 * d * (v + m + 5)), "Count numbers."
        ),
        "the word table and the position table are multiplied": Slip(
            partial(_embedding, tables=lambda v, d, m: d * (v * (m + 2) - v - (m + 2))),
            "They are two tables, one below the other: add their rows.",
        ),
    },
    extra=_exact(models.embedding_parameters, _odd_size),
)
def embedding_parameters(vocab_size: int, hidden: int, max_length: int) -> int:
    """Parameters of XLM-R's embedding block."""
    return models.embedding_parameters(vocab_size, hidden, max_length)


def _layer_sizes(source: torch.Generator) -> tuple[int, int, int]:
    """hidden, intermediate and heads: heads divide hidden, and the feed-forward is not 4 x."""
    heads = whole(source, 2, 4)
    hidden = heads * whole(source, 2, 6)
    return hidden, 4 * hidden + whole(source, 1, 9), heads


def _large_layer(source: torch.Generator) -> Draw:
    heads = whole(source, 3, 9)
    return heads * whole(source, 90, 120), whole(source, 3000, 5000), heads


_layer = partial(_miscount, models.layer_parameters)


@exercise(
    look="Four hidden x hidden matrices, two of the feed-forward, six biases, two LayerNorms.",
    draws=lambda source: [_layer_sizes(source) for _ in range(4)],
    slips={
        "Q, K and V are multiplied by the number of heads": Slip(
            partial(_layer, attention=lambda d, f, h: 3 * (d * d + d) * (h - 1)),
            "The heads share one hidden x hidden matrix: each takes hidden / heads of its columns.",
        ),
        "all four attention matrices are multiplied by the number of heads": Slip(
            partial(_layer, attention=lambda d, f, h: 4 * (d * d + d) * (h - 1)),
            "The heads share one hidden x hidden matrix: each takes hidden / heads of its columns.",
        ),
        "only one head's part of Q, K and V is counted": Slip(
            partial(_layer, attention=lambda d, f, h: 3 * (d // h - d) * (d + 1)),
            "All heads together have `hidden` columns.",
        ),
        "the attention's output matrix is missing": Slip(
            partial(_layer, attention=lambda d, f, h: -(d * d + d)),
            "After the heads are put side by side a fourth Linear mixes them.",
        ),
        "only one attention matrix is counted": Slip(
            partial(_layer, attention=lambda d, f, h: -3 * (d * d + d)),
            "Query, key, value and output are four different matrices.",
        ),
        "the second feed-forward matrix is missing": Slip(
            partial(_layer, feed_forward=lambda d, f, h: -(f * d + d)),
            "The feed-forward goes up to `intermediate` and comes back down to `hidden`.",
        ),
        "the feed-forward block is missing": Slip(
            partial(_layer, feed_forward=lambda d, f, h: -(2 * f * d + f + d)),
            "It has two Linear layers and most of a layer's parameters.",
        ),
        "the feed-forward width is assumed to be 4 * hidden": Slip(
            partial(_layer, feed_forward=lambda d, f, h: (4 * d - f) * (2 * d + 1)),
            "That is only the usual choice: use the argument `intermediate`.",
        ),
        "exactly 4 * hidden parameters are missing": Slip(
            partial(_layer, vectors=lambda d, f, h: -4 * d),
            "Either the attention's four biases, or the two LayerNorms (each a scale and a shift).",
        ),
        "exactly 2 * hidden parameters are missing": Slip(
            partial(_layer, vectors=lambda d, f, h: -2 * d),
            "A layer has two LayerNorms, each with a scale and a shift: 4 * hidden in all.",
        ),
        "the feed-forward's biases are missing": Slip(
            partial(_layer, vectors=lambda d, f, h: -(f + d)),
            "The first has `intermediate` numbers, the second `hidden`.",
        ),
        "no bias is counted": Slip(
            partial(_layer, vectors=lambda d, f, h: -(5 * d + f)),
            "Each of the six Linear layers has one number for each of its outputs.",
        ),
        "only the matrices are counted": Slip(
            partial(_layer, vectors=lambda d, f, h: -(9 * d + f)),
            "Add six biases and two LayerNorms (each a scale and a shift).",
        ),
    },
    extra=_exact(models.layer_parameters, _large_layer),
)
def layer_parameters(hidden: int, intermediate: int, heads: int = 1) -> int:
    """Parameters of one encoder layer."""
    return models.layer_parameters(hidden, intermediate, heads)


def _encoders(source: torch.Generator) -> Draws:
    draws = []
    for _ in range(4):
        hidden, intermediate, heads = _layer_sizes(source)
        layers, vocabulary = whole(source, 3, 6), whole(source, 60, 200)
        draws.append((vocabulary, hidden, layers, heads, intermediate, whole(source, 10, 40)))
    return draws


def _large_encoder(source: torch.Generator) -> Draw:
    vocabulary, _, longest = _odd_size(source)
    heads = 2 * whole(source, 1, 4) + 1
    hidden, layers = heads * (2 * whole(source, 45, 60) + 1), whole(source, 8, 30)
    return vocabulary, hidden, layers, heads, 2 * whole(source, 1500, 2500) + 1, longest


_whole_encoder = partial(_miscount, models.encoder_parameters)


_one_embedding, _one_layer = models.embedding_parameters, models.layer_parameters


@exercise(
    look="Embeddings once, a layer `layers` times, and one pooler: a Linear(hidden, hidden).",
    draws=_encoders,
    slips={
        "the pooler is missing": Slip(
            partial(_whole_encoder, pooler=lambda v, d, n, h, f, m: -(d * d + d)),
            "XLMRobertaModel ends with a Linear(hidden, hidden), its bias included.",
        ),
        "exactly `hidden` parameters are missing": Slip(
            partial(_whole_encoder, pooler=lambda v, d, n, h, f, m: -d), "A Linear has a bias."
        ),
        "there is a pooler in every layer": Slip(
            partial(_whole_encoder, pooler=lambda v, d, n, h, f, m: (n - 1) * (d * d + d)),
            "There is one, after the last layer: add it outside the product.",
        ),
        "only one layer is counted": Slip(
            partial(_whole_encoder, layers=lambda v, d, n, h, f, m: -(n - 1) * _one_layer(d, f)),
            "Layers share nothing with each other: multiply by `layers`.",
        ),
        "the layers are missing": Slip(
            partial(_whole_encoder, layers=lambda v, d, n, h, f, m: -n * _one_layer(d, f)),
            "Add `layers` times the parameters of one layer.",
        ),
        "the number of heads multiplies the layers": Slip(
            partial(_whole_encoder, layers=lambda v, d, n, h, f, m: n * (h - 1) * _one_layer(d, f)),
            "Heads cost no parameters; they share the columns of Q, K and V.",
        ),
        "there is a LayerNorm too many at the end": Slip(
            partial(_whole_encoder, layers=lambda v, d, n, h, f, m: 2 * d),
            "XLM-R normalizes after each block, so none is left for the end (GPT-2 has one).",
        ),
        "the embeddings are missing": Slip(
            partial(_whole_encoder, embeddings=lambda v, d, n, h, f, m: -_one_embedding(v, d, m)),
            "Add them once: they are most of a small student.",
        ),
        "there are embeddings in every layer": Slip(
            partial(
                _whole_encoder,
                embeddings=lambda v, d, n, h, f, m: (n - 1) * _one_embedding(v, d, m),
            ),
            "There is one block, below the first layer: add it outside the product.",
        ),
        "of the embeddings only the word table is counted": Slip(
            partial(_whole_encoder, embeddings=lambda v, d, n, h, f, m: -d * (m + 5)),
            "Use embedding_parameters: positions, token type and LayerNorm belong to it.",
        ),
        "the word table is counted twice": Slip(
            partial(_whole_encoder, embeddings=lambda v, d, n, h, f, m: v * d),
            "A masked-LM head would share it, and this encoder has no head at all.",
        ),
    },
    extra=_exact(models.encoder_parameters, _large_encoder),
)
def student_parameters(
    vocab_size: int, hidden: int, layers: int, heads: int, intermediate: int, max_length: int
) -> int:
    """Parameters of the whole encoder."""
    return models.encoder_parameters(vocab_size, hidden, layers, heads, intermediate, max_length)


def _needed(
    ids: Sequence[Sequence[int]],
    share: float,
    *,
    rare: bool = False,
    by_text: bool = False,
    past: int = 0,
    of_pieces: bool = False,
    strict: bool = False,
    down: bool = False,
) -> int:
    """The count with some parts replaced by common slips; with none, the right value."""
    counts = Counter(i for text in ids for i in (set(text) if by_text else text))
    if of_pieces:
        return math.ceil(share * len(counts))
    wanted, total = share * sum(counts.values()), 0
    wanted = int(wanted) if down else wanted
    for place, count in enumerate(sorted(counts.values(), reverse=not rare), start=1):
        total += count
        if total > wanted or (total == wanted and not strict):
            return place + past
    return len(counts)


def _too_many_or_too_few(answer: Answer, draws: Draws) -> None:
    """For ``otherwise``: what the first wrong number of pieces covers."""
    for ids, share in draws:
        number, right = float(answer(ids, share)), _needed(ids, share)
        if number > right:
            raise Misconception(f"for {share:.1%} of the tokens {right} pieces do, not {number:g}")
        if number < right:
            raise Misconception(
                f"{number:g} pieces make up less than the {share:.1%} of all tokens that are wanted"
            )


def _texts(source: torch.Generator, tokens: int = 256) -> Draws:
    """With 256 tokens a share can be met exactly, and missed by half a token."""
    draws: list[tuple[Any, ...]] = []
    for more in (None, None, 0, 0.5):
        pieces = (torch.rand(tokens, generator=source) ** 3 * 60).long().tolist()
        cut = whole(source, 20, 120)
        texts = [pieces[:cut], pieces[cut:200], [], pieces[200:]]
        most = sum(count for _, count in Counter(pieces).most_common(whole(source, 4, 9)))
        share = uniform(source, 0.3, 0.95) if more is None else (most + more) / tokens
        draws.append((texts, share))
    return draws


@exercise(
    look="Count every piece, sort the counts, and add them up until the share is reached.",
    draws=_texts,
    apart=True,
    otherwise=_too_many_or_too_few,
    slips={
        "the rarest pieces come first": Slip(
            partial(_needed, rare=True), "Sort the counts from the largest to the smallest."
        ),
        "a piece counts once in each text": Slip(
            partial(_needed, by_text=True), "The share is one of all tokens, so count each token."
        ),
        "this is a share of the different pieces, not of the tokens": Slip(
            partial(_needed, of_pieces=True),
            "A frequent piece covers many tokens: add up counts, not pieces.",
        ),
        "a share that is reached exactly is not enough": Slip(
            partial(_needed, strict=True), "At least `share`: compare with >=."
        ),
        "the number of tokens wanted is rounded down": Slip(
            partial(_needed, down=True), "Compare with share * total as it is."
        ),
        "this is one piece too many": Slip(
            partial(_needed, past=1), "Stop as soon as the share is reached."
        ),
        "this is one piece too few": Slip(
            partial(_needed, past=-1), "Count the piece that reaches the share, too."
        ),
        "this is the number of all different pieces": Slip(
            lambda ids, share: _needed(ids, 1.0), "Stop once `share` of the tokens is covered."
        ),
        "this is the number of tokens": Slip(
            lambda ids, share: math.ceil(share * sum(map(len, ids))),
            "Return the number of pieces whose tokens these are.",
        ),
    },
    edge_case="with share = 1 (where rounded fractions may never add up to 1: compare counts)",
    edges=lambda source: [(texts, 1.0) for texts, _ in _texts(source, 260)],
)
def pieces_needed(ids: Sequence[Sequence[int]], share: float) -> int:
    """How many pieces, the most frequent first, make up ``share`` of all tokens of the texts."""
    return _needed(ids, share)


def _flops(
    hidden: int,
    intermediate: int,
    layers: int,
    length: int,
    *,
    factor: float = 2,
    all_layers: bool = True,
    whole_text: bool = False,
    projections: float = 4,
    products: float = 2,
    keys: int = 1,
    matrices: float = 2,
    vectors: int = 0,
) -> float:
    """The count with some parts replaced by common slips; with none, the right value."""
    one = projections * hidden * hidden + products * length**keys * hidden
    one += matrices * hidden * intermediate + vectors * (9 * hidden + intermediate)
    return factor * (layers if all_layers else 1) * (length if whole_text else 1) * one


def _flop_sizes(source: torch.Generator) -> Draws:
    sizes = [_layer_sizes(source)[:2] for _ in range(4)]
    return [(*size, whole(source, 3, 6), whole(source, 7, 40)) for size in sizes]


def _large_flops(source: torch.Generator) -> Draw:
    return whole(source, 300, 900), whole(source, 1000, 4000), 23, whole(source, 100, 500)


@exercise(
    look="List the matrix products of one layer: eight numbers meet in each pair of widths.",
    draws=_flop_sizes,
    slips={
        "multiply-adds are counted, not FLOPs": Slip(
            partial(_flops, factor=1), "A multiply-add is two operations: multiply by 2."
        ),
        "the backward pass is counted too": Slip(
            partial(_flops, factor=6), "Count only the forward pass, a third of a training step."
        ),
        "only one layer is counted": Slip(
            partial(_flops, all_layers=False), "The token passes through `layers` of them."
        ),
        "this is the count for the whole text": Slip(
            partial(_flops, whole_text=True), "Count one token: do not multiply by `length`."
        ),
        "the attention products are missing": Slip(
            partial(_flops, products=0), "A query meets `length` keys and `length` values."
        ),
        "only one of the two attention products is counted": Slip(
            partial(_flops, products=1), "After the scores Q K^T, the weights multiply V."
        ),
        "the attention products grow with length squared": Slip(
            partial(_flops, keys=2),
            "All tokens have length * length pairs; one token has `length`.",
        ),
        "the attention products do not grow with the length": Slip(
            partial(_flops, keys=0), "A token meets every token: length * hidden multiply-adds."
        ),
        "the attention's output matrix is missing": Slip(
            partial(_flops, projections=3), "Four projections: query, key, value and output."
        ),
        "only one projection is counted": Slip(
            partial(_flops, projections=1), "Four projections: query, key, value and output."
        ),
        "only one feed-forward matrix is counted": Slip(
            partial(_flops, matrices=1), "It goes up to `intermediate` and back down to `hidden`."
        ),
        "the feed-forward block is missing": Slip(
            partial(_flops, matrices=0), "Add two products of hidden * intermediate multiply-adds."
        ),
        "biases and LayerNorms are counted as matrix products": Slip(
            partial(_flops, vectors=1), "Take only the matrices, not all of layer_parameters."
        ),
    },
    extra=_exact(models.flops_per_token, _large_flops),
)
def flops_per_token(hidden: int, intermediate: int, layers: int, length: int) -> int:
    """Forward FLOPs of the layers for one token."""
    return models.flops_per_token(hidden, intermediate, layers, length)


def _widest(
    layers: int,
    budget: int,
    vocab_size: int,
    heads: int,
    max_length: int,
    *,
    step: int = 0,
    times: int = 4,
    count: Answer = models.encoder_parameters,
    strict: bool = False,
    above: bool = False,
) -> int:
    """The widest student with some parts replaced by common slips; with none, the right value."""
    step, width = step or heads, 0
    while True:
        wider = width + step
        size = count(vocab_size, wider, layers, heads, times * wider, max_length)
        if size > budget or (strict and size == budget):
            return wider if above else width
        width = wider


def _too_wide_or_too_narrow(answer: Answer, draws: Draws) -> None:
    """For ``otherwise``: what is wrong with the first width that is."""
    for layers, budget, vocabulary, heads, longest in draws:
        width = float(answer(layers, budget, vocabulary, heads, longest))
        if width == _widest(layers, budget, vocabulary, heads, longest):
            continue
        case = f"with {layers} layers, {heads} heads and a budget of {budget:,}, width {width:g}"
        if width <= 0 or width % heads:
            raise Misconception(f"{case} is not a multiple of the heads")
        size = models.encoder_parameters(
            vocabulary, int(width), layers, heads, 4 * int(width), longest
        )
        if size > budget:
            raise Misconception(f"{case} has {size:,} parameters and does not fit")
        raise Misconception(f"{case} fits, and so does {width + heads:g}")


def _budgets(source: torch.Generator) -> Draws:
    """Budgets that a width meets exactly, that it misses by one, and any others."""
    draws = []
    for more in (0, -1, 0, None):
        layers, heads = whole(source, 3, 6), 2 * whole(source, 1, 4) + 1
        vocabulary, longest = whole(source, 3000, 6000), whole(source, 10, 60)
        width = heads * whole(source, 8, 14)
        budget = models.encoder_parameters(vocabulary, width, layers, heads, 4 * width, longest)
        budget += whole(source, 2, 1000) if more is None else more
        draws.append((layers, budget, vocabulary, heads, longest))
    return draws


@exercise(
    look="Try one width after the other, `heads` more each time, until the next is too large.",
    draws=_budgets,
    apart=True,
    otherwise=_too_wide_or_too_narrow,
    slips={
        "this is the first width that no longer fits": Slip(
            partial(_widest, above=True), "Return the width before it."
        ),
        "a student of exactly `budget` parameters is refused": Slip(
            partial(_widest, strict=True), "It fits: at most `budget`."
        ),
        "this width is not a multiple of the heads": Slip(
            partial(_widest, step=1), "Every head gets the same number of columns."
        ),
        "the feed-forward block is as narrow as the student": Slip(
            partial(_widest, times=1), "`intermediate` is four times the width here."
        ),
        "only the layers are counted": Slip(
            partial(_widest, count=lambda v, d, n, h, f, m: n * models.layer_parameters(d, f)),
            "The word table is most of a small student: use student_parameters.",
        ),
        "only one layer is counted": Slip(
            partial(
                _widest, count=lambda v, d, n, h, f, m: models.encoder_parameters(v, d, 1, h, f, m)
            ),
            "Hand `layers` on to student_parameters.",
        ),
        "this is the width of one head": Slip(
            lambda n, b, v, h, m: _widest(n, b, v, h, m) // h, "Return the whole width."
        ),
        "this is a number of parameters, not a width": Slip(
            lambda n, b, v, h, m: models.encoder_parameters(
                v, _widest(n, b, v, h, m), n, h, 4 * _widest(n, b, v, h, m), m
            ),
            "Return the width that gives it.",
        ),
    },
    edge_case="where not even one column for each head fits",
    edges=lambda source: [(whole(source, 1, 4), 40, 300, 8, 20)],
)
def widest_student(layers: int, budget: int, vocab_size: int, heads: int, max_length: int) -> int:
    """The largest multiple of ``heads`` for which a student fits in ``budget``, 0 if none does."""
    return _widest(layers, budget, vocab_size, heads, max_length)


def _follow(pointers: Tensor, jumps: int, *, first: int = 1, doubled: bool = False) -> Tensor:
    """The ends with some parts replaced by common slips; with none, the right ones."""
    ends = [pointers if first else torch.arange(pointers.shape[1]).expand_as(pointers)]
    while len(ends) < jumps:
        ends.append((ends[-1] if doubled else pointers).gather(1, ends[-1]))
    return torch.stack(ends, -1)


def _ends(result: Any, pointers: Tensor, jumps: int) -> Any:
    axes = {(jumps, *pointers.shape): "first", (len(pointers), jumps, pointers.shape[1]): "second"}
    if isinstance(result, Tensor) and (shape := tuple(result.shape)) in axes:
        raise Misconception(f"the jumps are the {axes[shape]} axis", "torch.stack(ends, -1).")
    if isinstance(result, Tensor) and result.shape == pointers.shape:
        raise Misconception("there is one end for each place", "Keep the ends of all jumps.")
    return result


@exercise(
    look="The first jump ends at the pointers; the next one asks the pointer at that place.",
    draws=lambda source: [
        (torch.randint(places, (batch, places), generator=source), jumps)
        for batch, places, jumps in ((5, 8, 4), (6, 7, 3), (3, 9, 5), (4, 6, 1))
    ],
    read=_ends,
    slips={
        "this starts with no jump at all": Slip(
            partial(_follow, first=0), "After one jump from a place, you are at its pointer."
        ),
        "each step doubles the number of jumps": Slip(
            partial(_follow, doubled=True), "Ask the pointers, not the ends, in each step."
        ),
        "all jumps end where the first one does": Slip(
            lambda p, jumps: p[..., None].expand(-1, -1, jumps), "Jump on from the last end."
        ),
        "all jumps end where the last one does": Slip(
            lambda p, jumps: _follow(p, jumps)[..., -1:].expand(-1, -1, jumps),
            "Append the ends in each step.",
        ),
        "every sentence follows the pointers of the first": Slip(
            lambda p, jumps: torch.cat([p[..., None], p[0][_follow(p, jumps)[..., :-1]]], -1),
            "Each row has pointers of its own: .gather(1, ...).",
        ),
        "the last jump comes first": Slip(
            lambda p, jumps: _follow(p, jumps).flip(-1), "In the order of the jumps."
        ),
    },
)
def follow(pointers: Tensor, jumps: int) -> Tensor:
    """(B, L, jumps) where 1 to ``jumps`` jumps from each place lead, of pointers (B, L)."""
    return _follow(pointers, jumps)


Batches = Sequence[tuple[Tensor, Tensor]]


def _train(
    model: nn.Module,
    batches: Batches,
    rate: float,
    *,
    optimizer: Any = torch.optim.AdamW,
    clear: bool = True,
    step: bool = True,
    again: bool = False,
    hops: Any = slice(None),
    reduction: str = "mean",
    twice: bool = False,
) -> list[float]:
    """The loop with some parts replaced by common slips; with none, the right one."""
    losses, worker = [], optimizer(model.parameters(), lr=rate)
    for pointers, targets in batches:
        worker = optimizer(model.parameters(), lr=rate) if again else worker
        scores = model(pointers)
        scores = (scores.softmax(-1) if twice else scores)[:, :, hops]
        loss = F.cross_entropy(
            scores.flatten(0, 2), targets[:, :, hops].flatten(), reduction=reduction
        )
        if clear:
            worker.zero_grad()
        loss.backward()
        if step:
            worker.step()
        losses.append(loss.item())
    return losses


class _Reader(nn.Module):
    """Pointers (B, L) -> scores (B, L, hops, L), as the notebook's student returns them."""

    def __init__(self, source: torch.Generator, places: int, hops: int) -> None:
        super().__init__()
        self.shape = (hops, places)
        self.weight = nn.Parameter(normal(source, places, hops * places, scale=1.0))

    def forward(self, pointers: Tensor) -> Tensor:
        return self.weight[pointers].unflatten(-1, self.shape)


LEARN_SLIPS: dict[str, tuple[Answer, str]] = {
    "the gradients of all batches pile up": (
        partial(_train, clear=False),
        "Call optimizer.zero_grad() once for each batch.",
    ),
    "the model never changes": (partial(_train, step=False), "backward() fills .grad; who steps?"),
    "each batch gets a new optimizer, which forgets the averages of the last": (
        partial(_train, again=True),
        "Create it once, before the loop.",
    ),
    "only the last hop is learned": (
        partial(_train, hops=slice(-1, None)),
        "Flatten places and hops, and keep all of them.",
    ),
    "the losses are summed, not averaged": (
        partial(_train, reduction="sum"),
        "F.cross_entropy averages by itself.",
    ),
    "there are two softmaxes": (
        partial(_train, twice=True),
        "F.cross_entropy takes scores, and has a softmax inside.",
    ),
    "this is Adam, without AdamW's weight decay": (
        partial(_train, optimizer=torch.optim.Adam),
        "Use torch.optim.AdamW.",
    ),
    "this is plain gradient descent": (
        partial(_train, optimizer=torch.optim.SGD),
        "Use torch.optim.AdamW.",
    ),
    "the rate is not used": (
        lambda model, batches, rate: _train(model, batches, 1e-3),
        "torch.optim.AdamW(model.parameters(), rate).",
    ),
    "only the first batch is used": (
        lambda model, batches, rate: _train(model, [batches[0]] * len(batches), rate),
        "Take the next pair of `batches` in each turn.",
    ),
}


def _outcome(train: Answer, model: nn.Module, batches: Batches, rate: float) -> list[Tensor]:
    """The losses that ``train`` returns, and the weights that it leaves in a copy of ``model``."""
    model = deepcopy(model)
    losses = numbers(train(model, batches, rate), len(batches))
    return [losses, *(value_of(parameter) for parameter in model.parameters())]


def _verify_learn(answer: Answer) -> None:
    source = generator()
    for places, hops in ((5, 2), (4, 3)):
        batches = [
            (
                torch.randint(places, (3, places), generator=source),
                torch.randint(places, (3, places, hops), generator=source),
            )
            for _ in range(6)
        ]
        draw = (_Reader(source, places, hops), batches, uniform(source, 0.04, 0.3))
        right, got = _outcome(_train, *draw), _outcome(answer, *draw)
        if all_close(got, right):
            continue
        for message, (slip, look) in LEARN_SLIPS.items():
            if all_close(got, _outcome(slip, *draw)):
                raise Misconception(message, look)
        if torch.allclose(got[0], right[0], rtol=1e-4):
            raise Misconception("the losses are right, but the last step is missing")
        if torch.allclose(got[0][0], right[0][0], rtol=1e-4):
            raise Misconception(
                f"the first loss is right and the second is {got[0][1]:.3f}, but {right[0][1]:.3f} "
                "is right",
                "Look at what happens between the two: clear, backward, step, once each.",
            )
        raise Misconception(
            f"the first loss is {got[0][0]:.3f}, but {right[0][0]:.3f} is right",
            "It is the mean of -log p(target) over the batch, its places and hops.",
        )


@exercise(look="For each batch: scores, loss, zero_grad, backward, step.", verify=_verify_learn)
def learn(model: nn.Module, batches: Batches, rate: float) -> list[float]:
    """One AdamW step for each batch of (pointers, targets); the loss of each, before its step."""
    return _train(model, batches, rate)


def _copied(student: Any, teacher: Any, chosen: Sequence[int], *, embeddings: bool = True) -> Any:
    if embeddings:
        student.embeddings.load_state_dict(teacher.embeddings.state_dict())
    for layer, number in zip(student.encoder.layer, chosen, strict=False):
        layer.load_state_dict(teacher.encoder.layer[number].state_dict())
    return student


def _encoder(layers: int) -> Any:
    """A tiny encoder with random weights."""
    sizes = dict(hidden_size=8, num_hidden_layers=layers, num_attention_heads=2)
    return models.build_student(
        models.xlmr_config({**sizes, "intermediate_size": 12}, 20, 6), "encoder"
    )


def _words_only(student: Any, teacher: Any, chosen: Sequence[int]) -> Any:
    words = teacher.embeddings.word_embeddings.state_dict()
    student.embeddings.word_embeddings.load_state_dict(words)
    return _copied(student, teacher, chosen, embeddings=False)


COPY_SLIPS: dict[str, tuple[Answer, str]] = {
    "the embeddings are still random": (
        partial(_copied, embeddings=False),
        "student.embeddings.load_state_dict(...).",
    ),
    "the layers are still random": (
        lambda s, t, chosen: _copied(s, t, []),
        "Copy each chosen layer into its place.",
    ),
    "these are the teacher's first layers, not the chosen ones": (
        lambda s, t, chosen: _copied(s, t, range(len(chosen))),
        "Student layer i gets chosen[i].",
    ),
    "these are the teacher's last layers, not the chosen ones": (
        lambda s, t, chosen: _copied(s, t, range(-len(chosen), 0)),
        "Student layer i gets chosen[i].",
    ),
    "the chosen layers are in the opposite order": (
        lambda s, t, chosen: _copied(s, t, chosen[::-1]),
        "Student layer i gets chosen[i].",
    ),
    "the chosen layers are sorted": (
        lambda s, t, chosen: _copied(s, t, sorted(chosen)),
        "Student layer i gets chosen[i], in whatever order.",
    ),
    "of the embeddings only the words are copied": (
        lambda s, t, chosen: _words_only(s, t, chosen),
        "Positions, token type and LayerNorm belong to student.embeddings, too.",
    ),
    "each layer is one too low": (
        lambda s, t, chosen: _copied(s, t, [i - 1 for i in chosen]),
        "Layers count from 0.",
    ),
}


def _same(one: nn.Module, other: nn.Module) -> bool:
    right = other.state_dict()
    return all(torch.equal(value, right[name]) for name, value in one.state_dict().items())


def _verify_copy(answer: Answer) -> None:
    source = generator()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(whole(source, 0, 2**31))
        teacher, student = _encoder(5), _encoder(3)
    first = whole(source, 1, 2)
    for chosen in ([first + 1, 4, 0], []):
        before, mine = deepcopy(teacher), deepcopy(student)
        result: Any = answer(mine, teacher, list(chosen))
        if not hasattr(result, "encoder"):
            raise Misconception(
                f"your function returned a {type(result).__name__}, but the student is wanted"
            )
        if result is teacher or len(result.encoder.layer) != 3:
            raise Misconception("this student no longer has its own number of layers")
        if not _same(teacher, before):
            raise Misconception("the teacher was changed", "Copy from the teacher to the student.")
        own = {parameter.data_ptr() for parameter in teacher.parameters()}
        if any(parameter.data_ptr() in own for parameter in result.parameters()):
            raise Misconception(
                "student and teacher share a tensor, so training the student changes its teacher",
                "Copy the numbers: load_state_dict, not an assignment of the module.",
            )
        if not all(parameter.requires_grad for parameter in result.parameters()):
            raise Misconception("a part of the student can no longer be trained", "Only copy.")
        if _same(result, _copied(deepcopy(student), teacher, chosen)):
            continue
        for message, (slip, look) in COPY_SLIPS.items():
            if chosen and _same(result, slip(deepcopy(student), teacher, chosen)):
                raise Misconception(message, look)
        right = _copied(deepcopy(student), teacher, chosen).state_dict()
        wrong = next(k for k, v in result.state_dict().items() if not torch.equal(v, right[k]))
        raise Misconception(f"with chosen = {chosen}, {wrong} does not hold the right numbers")


@exercise(
    look="load_state_dict(other.state_dict()) copies the numbers of a module of the same shape.",
    verify=_verify_copy,
)
def start_from(student: Any, teacher: Any, chosen: Sequence[int]) -> Any:
    """``student`` with the teacher's embeddings, and in layer i the teacher's layer chosen[i]."""
    return _copied(student, teacher, chosen)


def _apart(
    student: Tensor,
    teacher: Tensor,
    hidden: Tensor,
    *,
    mean: Any = lambda nats, hidden: nats[hidden].mean(),
    soft: Any = lambda x: x.log_softmax(-1),
) -> Tensor:
    """The distance with some parts replaced by common slips; with none, the right value."""
    p, q = soft(teacher.double()), soft(student.double())
    return mean((p.exp() * (p - q)).sum(-1), hidden)


def _masked_logits(source: torch.Generator) -> Draws:
    draws = []
    for batch, length, pieces in ((3, 5, 4), (4, 6, 7), (2, 7, 3)):
        student, teacher = (normal(source, batch, length, pieces, scale=1.5) for _ in range(2))
        hidden = torch.rand(batch, length, generator=source) < 0.4
        hidden[:, 0] = True
        hidden[0] = True  # another number of places in each sentence
        hidden[1, 1:] = False
        draws.append((student, teacher, hidden))
    return draws


@exercise(
    look="First the hidden places, (places, V); then log_softmax; then p (log p - log q).",
    draws=_masked_logits,
    slips={
        "teacher and student are swapped": Slip(
            lambda s, t, hidden: _apart(t, s, hidden), "The teacher is p, whose mean is taken."
        ),
        "all places count": Slip(
            partial(_apart, mean=lambda nats, hidden: nats.mean()), "Index with `hidden`."
        ),
        "the sum is right, but it is divided by all places": Slip(
            partial(_apart, mean=lambda nats, hidden: (nats * hidden).mean()),
            "Divide by the number of hidden places.",
        ),
        "the places that are not hidden count": Slip(
            partial(_apart, mean=lambda nats, hidden: nats[~hidden].mean()),
            "`hidden` is True at the places that count.",
        ),
        "the places are summed, not averaged": Slip(
            partial(_apart, mean=lambda nats, hidden: nats[hidden].sum()), "A mean over places."
        ),
        "each sentence is averaged by itself first": Slip(
            partial(
                _apart,
                mean=lambda nats, hidden: ((nats * hidden).sum(1) / hidden.sum(1)).mean(),
            ),
            "Take the mean over all hidden places at once.",
        ),
        "the pieces are averaged, not summed": Slip(
            lambda s, t, hidden: _apart(s, t, hidden) / s.shape[-1],
            "Sum over the pieces: reduction='batchmean' or .sum(-1).",
        ),
        "this is the cross-entropy": Slip(
            lambda s, t, hidden: F.cross_entropy(s[hidden], t[hidden].softmax(-1)),
            "Take the teacher's own entropy away: p (log p - log q).",
        ),
        "the teacher's answer is one piece, not a distribution": Slip(
            lambda s, t, hidden: F.cross_entropy(s[hidden], t[hidden].argmax(-1)),
            "All its probabilities count.",
        ),
    },
)
def nats_apart(student_logits: Tensor, teacher_logits: Tensor, hidden: Tensor) -> Tensor:
    """Scalar: mean KL(teacher || student) at hidden places (B, L), of logits (B, L, V) twice."""
    return _apart(student_logits, teacher_logits, hidden)
