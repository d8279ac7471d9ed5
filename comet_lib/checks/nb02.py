"""Exercises of notebook 02, design the student: counts to the digit and FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import torch

from comet_lib.checks.framework import (
    Misconception,
    Slip,
    compare,
    exercise,
    generator,
    slips_and_pairs,
)
from comet_lib.widgets import budget

# --- Notebook 02 ---------------------------------------------------------------------------

Draw = tuple[int, ...]


def _whole(source: torch.Generator, low: int, high: int) -> int:
    """A whole number, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=source))


def _exact(answer: Callable[..., Any], draw: Draw, reference: Callable[..., int]) -> None:
    """At a real model's size every unit must be right, not the first four digits alone."""
    off = float(answer(*draw)) - reference(*draw)
    if off:
        raise Misconception(
            f"it is right at small sizes and {abs(off):,.0f} too "
            f"{'large' if off > 0 else 'small'} at large ones",
            "Count in Python's whole numbers: no float32 tensor and no rounding.",
        )


# A slip is what it adds to the right count: message, where to look, the part, the difference.
Difference = tuple[str, str, str, Callable[..., int]]


def _slips(reference: Callable[..., int], differences: Sequence[Difference]) -> Iterator[Slip]:
    """Each slip alone, then each pair of slips in different parts."""

    def formula(*added: Callable[..., int]) -> Callable[..., int]:
        return lambda *draw: reference(*draw) + sum(one(*draw) for one in added)

    for message, look, _, change in differences:
        yield Slip(message, formula(change), look)
    for (message, look, part, change), (message_2, look_2, part_2, change_2) in combinations(
        differences, 2
    ):
        if part != part_2:
            both = f"two things at once: {message}, and {message_2}"
            yield Slip(both, formula(change, change_2), f"{look} {look_2}")


_ROWS = (
    (
        "one row of `hidden` numbers is missing",
        "There is one token-type row, and a LayerNorm is two rows: a scale and a shift.",
    ),
    (
        "two rows of `hidden` numbers are missing",
        "Either the LayerNorm (a scale and a shift), or the two positions that XLM-R never uses: "
        "its table has max_length + 2 rows.",
    ),
    (
        "three rows of `hidden` numbers are missing",
        "The token-type table has one row; the LayerNorm has two, and so has the position table "
        "beyond max_length.",
    ),
    (
        "four rows of `hidden` numbers are missing",
        "The position table has max_length + 2 rows, and the LayerNorm has a scale and a shift.",
    ),
    (
        "five rows of `hidden` numbers are missing: only words and max_length positions count here",
        "Add two more positions, one token-type row, and the LayerNorm's scale and shift.",
    ),
)


def _fewer_rows(rows: int) -> Callable[..., int]:
    return lambda v, d, m: -rows * d


@exercise(
    "embedding_parameters",
    notebook="02",
    reference=budget.embedding_parameters,
    look="Four parts: words, positions (max_length + 2), one token type, and a LayerNorm.",
)
def embedding_parameters(answer: Callable[..., Any]) -> None:
    """answer(vocab_size, hidden, max_length) -> parameters of XLM-R's embedding block."""
    source = generator()
    draws = [
        (_whole(source, 60, 200), _whole(source, 4, 24), _whole(source, 10, 40)) for _ in range(4)
    ]
    differences: list[Difference] = [
        (message, look, "rows", _fewer_rows(rows))
        for rows, (message, look) in enumerate(_ROWS, start=1)
    ]
    differences += [
        (
            "only the word embeddings are counted",
            "Positions, the token type and the LayerNorm have numbers too.",
            "tables",
            lambda v, d, m: -d * (m + 5),
        ),
        (
            "the position embeddings are missing",
            "XLM-R learns a vector for each position (no fixed sines): max_length + 2 rows.",
            "tables",
            lambda v, d, m: -d * (m + 2),
        ),
        (
            "the word embeddings are missing",
            "They are the largest table of all: vocab_size rows.",
            "tables",
            lambda v, d, m: -d * v,
        ),
        (
            "the word embeddings are counted twice",
            "The masked-LM head shares (ties) this table; it is stored once.",
            "tables",
            lambda v, d, m: d * v,
        ),
        (
            "rows are counted, not numbers",
            "Each row holds `hidden` numbers: multiply.",
            "unit",
            lambda v, d, m: (1 - d) * (v + m + 5),
        ),
        (
            "these are bytes, four for each number",
            "Count the numbers; bytes come later.",
            "unit",
            lambda v, d, m: 3 * d * (v + m + 5),
        ),
        (
            "the word table and the position table are multiplied",
            "They are two tables, one below the other: add their rows.",
            "tables",
            lambda v, d, m: d * (v * (m + 2) - v - (m + 2)),
        ),
    ]
    reference = budget.embedding_parameters
    compare(answer, draws, reference, _slips(reference, differences))
    longest = _whole(source, 99, 600)
    # An odd number of rows times an odd width is odd, and so no float32 of this size.
    vocabulary = 2 * _whole(source, 100_000, 150_000) + longest % 2
    large = (vocabulary, 2 * _whole(source, 150, 500) + 1, longest)
    _exact(answer, large, reference)


def _layer_sizes(source: torch.Generator) -> tuple[int, int, int]:
    """hidden, intermediate and heads: heads divide hidden, and the feed-forward is not 4 x."""
    heads = _whole(source, 2, 4)
    hidden = heads * _whole(source, 2, 6)
    return hidden, 4 * hidden + _whole(source, 1, 9), heads


@exercise(
    "layer_parameters",
    notebook="02",
    reference=budget.layer_parameters,
    look="Four hidden x hidden matrices, two of the feed-forward, six biases, two LayerNorms.",
)
def layer_parameters(answer: Callable[..., Any]) -> None:
    """answer(hidden, intermediate, heads) -> parameters of one encoder layer."""
    source = generator()
    draws = [_layer_sizes(source) for _ in range(4)]
    shared = "The heads share one hidden x hidden matrix: each takes hidden / heads of its columns."
    differences: list[Difference] = [
        (
            "Q, K and V are multiplied by the number of heads",
            shared,
            "attention",
            lambda d, f, h: 3 * (d * d + d) * (h - 1),
        ),
        (
            "all four attention matrices are multiplied by the number of heads",
            shared,
            "attention",
            lambda d, f, h: 4 * (d * d + d) * (h - 1),
        ),
        (
            "only one head's part of Q, K and V is counted",
            "All heads together make hidden columns.",
            "attention",
            lambda d, f, h: 3 * (d // h - d) * (d + 1),
        ),
        (
            "the attention's output matrix is missing",
            "After the heads are put side by side a fourth Linear mixes them.",
            "attention",
            lambda d, f, h: -(d * d + d),
        ),
        (
            "only one attention matrix is counted",
            "Query, key, value and output are four different matrices.",
            "attention",
            lambda d, f, h: -3 * (d * d + d),
        ),
        (
            "the second feed-forward matrix is missing",
            "The feed-forward goes up to `intermediate` and comes back down to `hidden`.",
            "feed-forward",
            lambda d, f, h: -(f * d + d),
        ),
        (
            "the feed-forward block is missing",
            "It has two Linear layers and most of a layer's parameters.",
            "feed-forward",
            lambda d, f, h: -(2 * f * d + f + d),
        ),
        (
            "the feed-forward width is taken to be 4 * hidden",
            "That is only the usual choice: use the argument `intermediate`.",
            "feed-forward",
            lambda d, f, h: (4 * d - f) * (2 * d + 1),
        ),
        (
            "exactly 4 * hidden parameters are missing",
            "Either the attention's four biases, or the two LayerNorms (each a scale and a shift).",
            "vectors",
            lambda d, f, h: -4 * d,
        ),
        (
            "exactly 2 * hidden parameters are missing",
            "A layer has two LayerNorms, each with a scale and a shift: 4 * hidden in all.",
            "vectors",
            lambda d, f, h: -2 * d,
        ),
        (
            "the feed-forward's biases are missing",
            "The first has `intermediate` numbers, the second `hidden`.",
            "vectors",
            lambda d, f, h: -(f + d),
        ),
        (
            "no bias is counted",
            "Each of the six Linear layers has one number for each of its outputs.",
            "vectors",
            lambda d, f, h: -(5 * d + f),
        ),
        (
            "only the matrices are counted",
            "Add six biases and two LayerNorms (each a scale and a shift).",
            "vectors",
            lambda d, f, h: -(9 * d + f),
        ),
    ]
    reference = budget.layer_parameters
    compare(answer, draws, reference, _slips(reference, differences))
    heads = _whole(source, 3, 9)
    _exact(answer, (heads * _whole(source, 90, 120), _whole(source, 3000, 5000), heads), reference)


@exercise(
    "student_parameters",
    notebook="02",
    reference=budget.encoder_parameters,
    look="Embeddings once, a layer `layers` times, and one pooler: a Linear(hidden, hidden).",
)
def student_parameters(answer: Callable[..., Any]) -> None:
    """answer(vocab_size, hidden, layers, heads, intermediate, max_length) -> whole encoder."""
    source = generator()

    def draw() -> Draw:
        hidden, intermediate, heads = _layer_sizes(source)
        vocabulary, longest = _whole(source, 60, 200), _whole(source, 10, 40)
        return vocabulary, hidden, _whole(source, 3, 6), heads, intermediate, longest

    embeddings, layer = budget.embedding_parameters, budget.layer_parameters
    differences: list[Difference] = [
        (
            "the pooler is missing",
            "XLMRobertaModel ends with a Linear(hidden, hidden), its bias included.",
            "pooler",
            lambda v, d, n, h, f, m: -(d * d + d),
        ),
        (
            "exactly `hidden` parameters are missing",
            "The pooler is a Linear and has a bias.",
            "pooler",
            lambda v, d, n, h, f, m: -d,
        ),
        (
            "there is a pooler in every layer",
            "It stands once, after the last layer: add it outside the product.",
            "pooler",
            lambda v, d, n, h, f, m: (n - 1) * (d * d + d),
        ),
        (
            "only one layer is counted",
            "Layers share nothing with each other: multiply by `layers`.",
            "layers",
            lambda v, d, n, h, f, m: -(n - 1) * layer(d, f),
        ),
        (
            "the layers are missing",
            "Add `layers` times the parameters of one layer.",
            "layers",
            lambda v, d, n, h, f, m: -n * layer(d, f),
        ),
        (
            "the number of heads multiplies the layers",
            "Heads cost no parameters; they share the columns of Q, K and V.",
            "layers",
            lambda v, d, n, h, f, m: n * (h - 1) * layer(d, f),
        ),
        (
            "there is a LayerNorm too many at the end",
            "XLM-R normalises after each block, so none is left for the end (GPT-2 has one).",
            "layers",
            lambda v, d, n, h, f, m: 2 * d,
        ),
        (
            "the embeddings are missing",
            "Add them once: they are most of a small student.",
            "embeddings",
            lambda v, d, n, h, f, m: -embeddings(v, d, m),
        ),
        (
            "there are embeddings in every layer",
            "They stand once, below the first layer: add them outside the product.",
            "embeddings",
            lambda v, d, n, h, f, m: (n - 1) * embeddings(v, d, m),
        ),
        (
            "of the embeddings only the word table is counted",
            "Use embedding_parameters: positions, token type and LayerNorm belong to it.",
            "embeddings",
            lambda v, d, n, h, f, m: -d * (m + 5),
        ),
        (
            "the word table is counted twice",
            "A masked-LM head would share it, and this encoder has no head at all.",
            "embeddings",
            lambda v, d, n, h, f, m: v * d,
        ),
    ]
    reference = budget.encoder_parameters
    compare(answer, [draw() for _ in range(4)], reference, _slips(reference, differences))
    heads, longest = 2 * _whole(source, 1, 4) + 1, _whole(source, 99, 600)
    large = (  # so chosen that the count is odd, as above
        2 * _whole(source, 100_000, 150_000) + longest % 2,
        heads * (2 * _whole(source, 45, 60) + 1),
        _whole(source, 8, 30),
        heads,
        2 * _whole(source, 1500, 2500) + 1,
        longest,
    )
    _exact(answer, large, reference)


def _flops_variant(
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
    keys: int | None = None,
    matrices: float = 2,
    vectors: int = 0,
) -> float:
    """The count with any of its parts replaced by a usual slip; with none, the right value."""
    seen = length if keys is None else length**keys
    one = projections * hidden * hidden + products * seen * hidden
    one += matrices * hidden * intermediate + vectors * (9 * hidden + intermediate)
    return factor * (layers if all_layers else 1) * (length if whole_text else 1) * one


_FLOPS_SLIPS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "multiply-adds are counted, not FLOPs",
        "A multiply-add is two operations: multiply by 2.",
        {"factor": 1},
    ),
    (
        "the backward pass is counted too",
        "Training costs about three times the forward pass; here only the forward pass is asked.",
        {"factor": 6},
    ),
    (
        "only one layer is counted",
        "The token passes through `layers` of them.",
        {"all_layers": False},
    ),
    (
        "this is the count for the whole text",
        "Asked is one token: do not multiply by `length`.",
        {"whole_text": True},
    ),
    (
        "the attention products are missing",
        "The token's query meets `length` keys, and its weights meet `length` values.",
        {"products": 0},
    ),
    (
        "only one of the two attention products is counted",
        "Scores are Q K^T; then the weights multiply V, at the same price.",
        {"products": 1},
    ),
    (
        "the attention products grow with length squared",
        "All tokens together look at length * length pairs; one token looks at `length` others.",
        {"keys": 2},
    ),
    (
        "the attention products do not grow with the length",
        "A token is compared with every token of the text: length * hidden multiply-adds.",
        {"keys": 0},
    ),
    (
        "the attention's output matrix is missing",
        "Four projections: query, key, value and output.",
        {"projections": 3},
    ),
    (
        "only one projection is counted",
        "Four projections: query, key, value and output.",
        {"projections": 1},
    ),
    (
        "only one feed-forward matrix is counted",
        "The feed-forward goes up to `intermediate` and back down to `hidden`.",
        {"matrices": 1},
    ),
    (
        "the feed-forward block is missing",
        "Add its two matrix products, hidden * intermediate multiply-adds each.",
        {"matrices": 0},
    ),
    (
        "biases and LayerNorms are counted as matrix products",
        "Take the matrices alone, not all of layer_parameters.",
        {"vectors": 1},
    ),
)


@exercise(
    "flops_per_token",
    notebook="02",
    reference=budget.flops_per_token,
    look="2 * layers * (four projections + two attention products + two feed-forward products).",
)
def flops_per_token(answer: Callable[..., Any]) -> None:
    """answer(hidden, intermediate, layers, length) -> forward FLOPs of the layers, one token."""
    source = generator()

    def draw() -> Draw:
        hidden, intermediate, _ = _layer_sizes(source)
        return hidden, intermediate, _whole(source, 3, 6), _whole(source, 7, 40)

    reference = budget.flops_per_token
    compare(
        answer, [draw() for _ in range(4)], reference, slips_and_pairs(_flops_variant, _FLOPS_SLIPS)
    )
    large = (_whole(source, 300, 900), _whole(source, 1000, 4000), 23, _whole(source, 100, 500))
    _exact(answer, large, reference)
