"""Exercises of notebook 02, design the student: counts to the digit and FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from comet_lib import models
from comet_lib.checks.draws import generator, whole
from comet_lib.checks.framework import Answer, Draws, Misconception, Slip, exercise

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


def _miscount(reference: Answer, *draw: int, **differences: Answer) -> int:
    """The right count plus what a slip in each of the named parts adds to it."""
    return reference(*draw) + sum(difference(*draw) for difference in differences.values())


def _odd_size(source: torch.Generator) -> Draw:
    """Vocabulary, width, length. Odd rows times an odd width: no float32 of this size is odd."""
    longest = whole(source, 99, 600)
    vocabulary = 2 * whole(source, 100_000, 150_000) + longest % 2
    return vocabulary, 2 * whole(source, 150, 500) + 1, longest


_embedding = partial(_miscount, models.embedding_parameters)


@exercise(
    look="Four parts: words, positions (max_length + 2), one token type, and a LayerNorm.",
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
        "the word embeddings are missing": Slip(
            partial(_embedding, tables=lambda v, d, m: -d * v), "The largest table, vocab_size."
        ),
        "the word embeddings are counted twice": Slip(
            partial(_embedding, tables=lambda v, d, m: d * v),
            "The masked-LM head shares (ties) this table; it is stored once.",
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
            "XLM-R normalises after each block, so none is left for the end (GPT-2 has one).",
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
    look="2 * layers * (four projections + two attention products + two feed-forward products).",
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
