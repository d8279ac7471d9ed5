"""Exercises of notebook 03, see attention."""

# mypy: disable-error-code=has-type

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from comet_lib.attention import attention_weights
from comet_lib.checks.draws import normal, probabilities, random_mask
from comet_lib.checks.framework import (
    Answer,
    Draws,
    Misconception,
    Slip,
    exercise,
    refuse_infinity,
    rows_must_sum_to_one,
)
from comet_lib.losses import valid_pairs


def _queries_keys(source: torch.Generator, *shapes: tuple[int, int, int, int]) -> Draws:
    """(query, key, mask) for each (batch, heads, length, width)."""
    draws = []
    for batch, heads, length, width in shapes:
        q, k = (normal(source, batch, heads, length, width, scale=1.3) for _ in range(2))
        draws.append((q, k, random_mask(source, batch, length)))
    return draws


def _map_draws(source: torch.Generator) -> Draws:
    draws = _queries_keys(source, (3, 2, 6, 4), (2, 3, 5, 8), (4, 2, 7, 3))
    query, key, mask = draws[0]
    return [*draws, (query, key, mask.flip(1))]  # padding may be on the left


def _map(
    query: Tensor,
    key: Tensor,
    mask: Tensor,
    *,
    scale: str = "root d",
    masked: str = "keys",
    axis: int = -1,
    swapped: bool = False,
    squash: str = "softmax",
) -> Tensor:
    """The map with some parts replaced by common slips; with none, the right value."""
    heads, width = query.shape[1], query.shape[-1]
    if swapped:
        query, key = key, query
    factors = {"root d": width**-0.5, "none": 1.0, "d": 1 / width, "up": width**0.5}
    scores = query.double() @ key.double().mT
    scores = scores * (factors | {"all heads": (heads * width) ** -0.5})[scale]
    real = mask.bool()
    keys = real[:, None, None, :].expand_as(scores)
    keep = {"keys": keys, "queries": real[:, None, :, None].expand_as(scores), "inverted": ~keys}
    if masked in keep:
        scores = scores.masked_fill(~keep[masked], torch.finfo(scores.dtype).min)
    elif masked == "zero score":
        scores = scores * keys
    if squash == "softmax":
        weights = scores.softmax(axis)
    else:
        weights = scores.log_softmax(axis) if squash == "log" else scores.sigmoid()
    return weights * keys if masked == "after" else weights


def _large_scores(answer: Answer, draws: Draws) -> None:
    query, key, mask = draws[0]
    refuse_infinity(
        answer(query * 40, key * 40, mask),
        "with large scores the exponentials overflow and the map is not finite",
        "Take torch.softmax, or subtract each row's maximum before exp.",
    )


@exercise(
    look="softmax(Q K^T / sqrt(d)) over the keys, padded keys at minus infinity before it.",
    draws=_map_draws,
    slips={
        "the scores are not divided by the square root of d": Slip(
            partial(_map, scale="none"),
            "d is the width of one head, query.shape[-1]; without it the softmax is too sharp.",
        ),
        "the scores are divided by d, not by its square root": Slip(
            partial(_map, scale="d"), "A dot product of d terms has a deviation of sqrt(d)."
        ),
        "the scores are multiplied by the square root of d": Slip(
            partial(_map, scale="up"), "Divide, so that the scores of wide heads do not grow."
        ),
        "the scores are divided by the square root of the model's whole width": Slip(
            partial(_map, scale="all heads"),
            "Each head has a softmax of its own: d is the width of one head, query.shape[-1].",
        ),
        "the mask is ignored, so padding is looked at": Slip(
            partial(_map, masked="no"), "Before the softmax, set padded keys to minus infinity."
        ),
        "padded keys get the score 0, which is a score like any other": Slip(
            partial(_map, masked="zero score"),
            "exp(0) is 1: use minus infinity (masked_fill with float('-inf')), not a product.",
        ),
        "the mask is applied after the softmax, so rows with padding sum to less than 1": Slip(
            partial(_map, masked="after"), "Mask the scores: then the real keys share the whole 1."
        ),
        "the mask hides queries and not keys": Slip(
            partial(_map, masked="queries"), "The keys are the last axis: mask[:, None, None, :]."
        ),
        "the mask is upside down: the real keys are hidden": Slip(
            partial(_map, masked="inverted"),
            "In the tokenizer's mask 1 is a real token; masked_fill fills where it is given True.",
        ),
        "the softmax runs over the queries": Slip(
            partial(_map, axis=-2), "A query's weights sum to 1 over the keys, the last axis."
        ),
        "queries and keys are swapped": Slip(
            partial(_map, swapped=True), "Row q belongs to query q: query @ key.transpose(-1, -2)."
        ),
        "these are log-probabilities": Slip(
            partial(_map, squash="log"), "A map holds probabilities: softmax, not log_softmax."
        ),
        "each score is squashed by itself (a sigmoid)": Slip(
            partial(_map, squash="sigmoid"), "The keys of a row share a total of 1: a softmax."
        ),
    },
    otherwise=rows_must_sum_to_one(
        "the rows", "The softmax must be the last step and run over the keys (dim=-1)."
    ),
    extra=_large_scores,
)
def attention_map(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """Maps (B, H, L, L) of queries and keys (B, H, L, d) and a mask (B, L).

    Keys are masked, queries are not. Vaswani et al. 2017 (arXiv 1706.03762), equation 1.
    """
    return attention_weights(query, key, mask.bool()[:, None, None, :])


def _one_map_each(result: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    """Name a mean over the wrong axes by its shape."""
    batch, heads, length, _ = query.shape
    wrong_axes = {
        (heads, length, length): "the mean runs over the batch, axis 0",
        (batch, heads, length): "the mean runs over the tokens",
        (batch, 1, length, length): "the axis of the heads is still there (keepdim=True)",
        (batch, heads, length, length): "every head still has a map of its own",
        (length, length): "the mean runs over the batch as well",
    }
    if isinstance(result, Tensor) and tuple(result.shape) in wrong_axes:
        raise Misconception(wrong_axes[tuple(result.shape)])
    return result


def _mean_scores(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    scores = (query @ key.mT / query.shape[-1] ** 0.5).mean(1)
    return scores.masked_fill(~mask.bool()[:, None, :], float("-inf")).softmax(-1)


def _mean_vectors(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    q, k = query.mean(1, keepdim=True), key.mean(1, keepdim=True)
    return attention_map.reference(q, k, mask)[:, 0]


@exercise(
    look="Take the map of every head, then average over axis 1 and over no other.",
    draws=lambda source: _queries_keys(source, (2, 3, 5, 4), (4, 6, 7, 3)),
    read=_one_map_each,
    slips={
        "the heads are summed, not averaged": Slip(
            lambda *qkm: attention_map.reference(*qkm).sum(1),
            "Each row must still sum to 1: divide by the number of heads.",
        ),
        "the scores are averaged before the softmax": Slip(
            _mean_scores, "Each head takes its own softmax; average the maps that come out."
        ),
        "queries and keys are averaged before the scores": Slip(
            _mean_vectors, "Each head has a map of its own; average the maps, not the vectors."
        ),
        "this is the largest head at each place, not the mean": Slip(
            lambda *qkm: attention_map.reference(*qkm).amax(1), "Its rows sum to more than 1."
        ),
        "this is only the first head": Slip(
            lambda *qkm: attention_map.reference(*qkm)[:, 0], "Average over all of axis 1."
        ),
        "this is only the last head": Slip(
            lambda *qkm: attention_map.reference(*qkm)[:, -1], "Average over all of axis 1."
        ),
        "this is the median of the heads, not the mean": Slip(
            lambda *qkm: attention_map.reference(*qkm).median(1).values,
            "Rows of medians need not sum to 1; use .mean(1).",
        ),
        "the mean map is transposed: queries and keys are swapped": Slip(
            lambda *qkm: head_mean.reference(*qkm).mT, "Rows stay queries, columns stay keys."
        ),
        "a second softmax runs over the mean": Slip(
            lambda *qkm: head_mean.reference(*qkm).softmax(-1),
            "The mean of rows that sum to 1 sums to 1 already; a second softmax flattens it.",
        ),
        "the mean is right, but the mask is ignored": Slip(
            lambda *qkm: _map(*qkm, masked="no").mean(1),
            "Take the maps from attention_map(query, key, mask), which hides padded keys.",
        ),
        "padded queries are set to zero as well": Slip(
            lambda q, k, m: head_mean.reference(q, k, m) * m[:, :, None],
            "Leave the rows of padded queries as they come out; they are masked where they count.",
        ),
    },
)
def head_mean(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """One map per sentence, (B, L, L), from queries and keys (B, H, L, d) and a mask (B, L)."""
    return attention_map.reference(query, key, mask).mean(1)


def _masked_values(source: torch.Generator) -> Draws:
    draws = []
    for batch, length in ((3, 6), (4, 7), (2, 5)):
        values = normal(source, batch, length, length).abs() + 0.1
        draws.append((values, random_mask(source, batch, length)))
    return [*draws, (draws[0][0], draws[0][1].flip(1))]


def _mean_over(values: Tensor, keep: Tensor) -> Tensor:
    return values[keep.expand_as(values)].mean()


@exercise(
    look="Keep the entries whose query and key are both real, and divide by how many they are.",
    draws=_masked_values,
    slips={
        "padding is counted: this is the plain mean over B x L x L": Slip(
            lambda v, m: v.mean(), "Build pairs from the mask: mask[:, :, None] * mask[:, None]."
        ),
        "padded keys are left out, but padded queries are not": Slip(
            lambda v, m: _mean_over(v, m.bool()[:, None, :]),
            "A padded query still has a row, and it sums to 1: mask both axes.",
        ),
        "padded queries are left out, but padded keys are not": Slip(
            lambda v, m: _mean_over(v, m.bool()[:, :, None]),
            "Mask both axes: the columns of padding must not count either.",
        ),
        "the sum is right, but it is divided by B x L x L": Slip(
            lambda v, m: (v * valid_pairs(m)).mean(),
            ".mean() counts the zeros at padding too: divide by the number of valid pairs.",
        ),
        "the sum is right, but it is divided by the number of tokens": Slip(
            lambda v, m: (v * valid_pairs(m)).sum() / m.sum(),
            "A sentence of n tokens has n x n pairs: divide by the number of pairs.",
        ),
        "the valid entries are summed and not averaged": Slip(
            lambda v, m: (v * valid_pairs(m)).sum(), "Divide by the number of valid pairs."
        ),
        "each sentence is averaged by itself first, so short ones weigh as much as long ones": Slip(
            lambda v, m: torch.stack(
                [v[i : i + 1][valid_pairs(m[i : i + 1])].mean() for i in range(len(m))]
            ).mean(),
            "Sum over the whole batch, then divide once by all valid pairs.",
        ),
        "the mask is upside down: this is the mean over padding": Slip(
            lambda v, m: _mean_over(v, ~valid_pairs(m)), "In the mask 1 is a real token."
        ),
        "a pair counts as soon as one of its two tokens is real": Slip(
            lambda v, m: _mean_over(v, m.bool()[:, :, None] | m.bool()[:, None, :]),
            "Both must be real: multiply the two masks (and), do not add them (or).",
        ),
        "the valid entries are divided by the pairs whose query is real": Slip(
            lambda v, m: (v * valid_pairs(m)).sum() / (m.sum() * m.shape[1]),
            "Count with the same mask that you multiply with.",
        ),
    },
)
def masked_rows(values: Tensor, mask: Tensor) -> Tensor:
    """Scalar: mean of values (B, L, L) over the valid pairs of a mask (B, L)."""
    pairs = valid_pairs(mask)
    return values.masked_fill(~pairs, 0.0).sum() / pairs.sum()


def _mixed(attention: Tensor) -> Tensor:
    return 0.5 * attention + 0.5 * torch.eye(attention.shape[-1], dtype=attention.dtype)


@exercise(
    look="(A / 2 + I / 2) @ R, with R of the layers below on the right.",
    draws=lambda source: [
        (probabilities(source, *shape), probabilities(source, *shape))
        for shape in ((2, 5, 5), (3, 4, 4), (1, 6, 6))
    ],
    slips={
        "the residual connection is missing": Slip(
            lambda a, r: a @ r, "Half of each token stays: mix in the identity, A / 2 + I / 2."
        ),
        "the two factors are in the wrong order": Slip(
            lambda a, r: r @ _mixed(a), "The new layer acts last, so it goes on the left."
        ),
        "the identity is added but nothing is halved": Slip(
            lambda a, r: 2 * _mixed(a) @ r, "Rows now sum to 2: take one half of each."
        ),
        "the identity is mixed in after the product": Slip(
            lambda a, r: _mixed(a @ r), "What stays is a part of R: mix first, then multiply."
        ),
        "this is an element-wise product": Slip(
            lambda a, r: _mixed(a) * r, "Paths add up over the tokens between them: use @."
        ),
        "the layers below are ignored": Slip(lambda a, r: _mixed(a), "Multiply by `previous`."),
        "the two maps are averaged, not chained": Slip(
            lambda a, r: 0.5 * a + 0.5 * r, "One layer feeds the next: (A / 2 + I / 2) @ R."
        ),
        "the map is transposed": Slip(
            lambda a, r: _mixed(a).mT @ r, "Row q of A is the query that looks; it stays a row."
        ),
        "the identity is mixed into the layers below and not into this one": Slip(
            lambda a, r: a @ _mixed(r), "The residual belongs to the layer you add: mix it into A."
        ),
    },
    otherwise=rows_must_sum_to_one(
        "the rows",
        "A mix of rows that sum to 1 must sum to 1 again: do the two weights add up to 1?",
    ),
)
def rollout_step(attention: Tensor, previous: Tensor) -> Tensor:
    """The next rollout (B, L, L) from this layer's map and the rollout below, (B, L, L) each.

    Abnar and Zuidema 2020 (arXiv 2005.00928).
    """
    return _mixed(attention) @ previous
