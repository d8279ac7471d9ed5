"""Exercises of notebook 03, see attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from comet_lib.attention import attention_weights
from comet_lib.checks.framework import (
    Misconception,
    Slip,
    compare,
    exercise,
    generator,
    normal,
    slips_and_pairs,
    value_of,
)
from comet_lib.losses import valid_pairs


def _mask(source: torch.Generator, batch: int, length: int) -> Tensor:
    """(B, L) int64: one full sentence, the others of random lengths from 2 to L - 1."""
    lengths = torch.randint(2, length, (batch,), generator=source)
    lengths[0] = length
    return (torch.arange(length)[None] < lengths[:, None]).long()


def _random_maps(source: torch.Generator, *shape: int) -> Tensor:
    """Rows over the last axis that sum to one."""
    return normal(source, *shape, scale=1.5).softmax(-1)


def _rows_sum_to_one(maps: Tensor) -> bool:
    return torch.allclose(maps.sum(-1), torch.ones_like(maps.sum(-1)), atol=1e-4)


# --- attention_map -------------------------------------------------------------------------


def _attention_map_reference(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    return attention_weights(query, key, mask.bool()[:, None, None, :])


def _map_variant(
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
    """The map with any of its parts replaced by a usual slip; with none, the right value."""
    heads, width = query.shape[1], query.shape[-1]
    if swapped:
        query, key = key, query
    scores = query.double() @ key.double().transpose(-1, -2)
    scores = scores * {"root d": width**-0.5, "none": 1.0, "d": 1 / width, "up": width**0.5}.get(
        scale, (heads * width) ** -0.5
    )
    real = mask.bool()
    keys = real[:, None, None, :].expand_as(scores)
    low = torch.finfo(scores.dtype).min
    keep = {
        "keys": keys,
        "queries": real[:, None, :, None].expand_as(scores),
        "inverted": ~keys,
    }.get(masked)
    if keep is not None:
        scores = scores.masked_fill(~keep, low)
    elif masked == "zero score":
        scores = scores * keys
    if squash == "softmax":
        weights = scores.softmax(axis)
    else:
        weights = scores.log_softmax(axis) if squash == "log" else scores.sigmoid()
    return weights * keys if masked == "after" else weights


_MAP_SLIPS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "the scores are not divided by the square root of d",
        "d is the width of one head, query.shape[-1]; without it the softmax is too sharp.",
        {"scale": "none"},
    ),
    (
        "the scores are divided by d, not by its square root",
        "A dot product of d random pairs has a standard deviation of sqrt(d).",
        {"scale": "d"},
    ),
    (
        "the scores are multiplied by the square root of d",
        "Divide, so that the scores of wide heads do not grow.",
        {"scale": "up"},
    ),
    (
        "the scores are divided by the square root of the model's whole width",
        "Each head has a softmax of its own: d is the width of one head, query.shape[-1].",
        {"scale": "all heads"},
    ),
    (
        "the mask is ignored, so padding is looked at",
        "Give padded keys a score of minus infinity before the softmax.",
        {"masked": "no"},
    ),
    (
        "padded keys get the score 0, which is a score like any other",
        "exp(0) is 1: use minus infinity (masked_fill with float('-inf')), not a product.",
        {"masked": "zero score"},
    ),
    (
        "the mask is applied after the softmax, so rows with padding sum to less than 1",
        "Mask the scores, before the softmax; then the real keys share the whole 1.",
        {"masked": "after"},
    ),
    (
        "the mask hides queries and not keys",
        "The keys are the last axis: mask[:, None, None, :].",
        {"masked": "queries"},
    ),
    (
        "the mask is upside down: the real keys are hidden",
        "In the tokenizer's mask 1 is a real token; masked_fill fills where it is given True.",
        {"masked": "inverted"},
    ),
    (
        "the softmax runs over the queries",
        "Each query shares out a total of 1 among the keys, the last axis (dim=-1).",
        {"axis": -2},
    ),
    (
        "queries and keys are swapped",
        "Row q of the map belongs to query q: query @ key.transpose(-1, -2).",
        {"swapped": True},
    ),
    (
        "these are log-probabilities",
        "An attention map holds the probabilities: softmax, not log_softmax.",
        {"squash": "log"},
    ),
    (
        "each score is squashed by itself (a sigmoid)",
        "The keys of a row share a total of 1: that is a softmax.",
        {"squash": "sigmoid"},
    ),
)


@exercise(
    "attention_map",
    notebook="03",
    reference=_attention_map_reference,
    look="softmax(Q K^T / sqrt(d)) over the keys, padded keys at minus infinity before it.",
)
def attention_map(answer: Callable[..., Any]) -> None:
    """answer(query, key, mask) -> maps: (B, H, L, d) twice and (B, L) -> (B, H, L, L).

    Keys are masked, queries are not. Vaswani et al. 2017 (arXiv 1706.03762), equation 1.
    """
    source = generator()
    draws = []
    for batch, heads, length, width in ((3, 2, 6, 4), (2, 3, 5, 8), (4, 2, 7, 3)):
        q, k = (normal(source, batch, heads, length, width, scale=1.3) for _ in range(2))
        draws.append((q, k, _mask(source, batch, length)))
    draws.append((draws[0][0], draws[0][1], draws[0][2].flip(1)))  # padding may stand on the left

    def rows() -> None:
        if not all(_rows_sum_to_one(value_of(answer(*draw))) for draw in draws):
            raise Misconception(
                "the rows do not sum to 1",
                "The softmax must be the last step and run over the keys (dim=-1).",
            )

    compare(
        answer, draws, _attention_map_reference, slips_and_pairs(_map_variant, _MAP_SLIPS), rows
    )
    q, k, mask = draws[0]
    far = value_of(answer(q * 40, k * 40, mask))
    if not torch.isfinite(far).all():
        raise Misconception(
            "with large scores the exponentials overflow and the map is not finite",
            "Take torch.softmax, or subtract each row's maximum before exp.",
        )


# --- head_mean -----------------------------------------------------------------------------


def _head_mean_reference(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    return _attention_map_reference(query, key, mask).mean(1)


@exercise(
    "head_mean",
    notebook="03",
    reference=_head_mean_reference,
    look="Take the map of every head, then average over axis 1 and over no other.",
)
def head_mean(answer: Callable[..., Any]) -> None:
    """answer(query, key, mask) -> one map a sentence: (B, H, L, d) twice, (B, L) -> (B, L, L)."""
    source = generator()
    draws = []
    for batch, heads, length, width in ((2, 3, 5, 4), (4, 6, 7, 3)):
        q, k = (normal(source, batch, heads, length, width, scale=1.3) for _ in range(2))
        draws.append((q, k, _mask(source, batch, length)))
    wrong_axes = {
        (3, 5, 5): ("the mean runs over the batch", "Axis 0 is the sentences, axis 1 the heads."),
        (2, 3, 5): (
            "the mean runs over the tokens",
            "Average over axis 1 (the heads): the map of one sentence must stay L x L.",
        ),
        (2, 1, 5, 5): (
            "the axis of the heads is still there, with one entry",
            "Leave keepdim=True out.",
        ),
        (2, 3, 5, 5): (
            "every head still has a map of its own",
            "Average the maps over axis 1, the heads.",
        ),
        (5, 5): (
            "the mean runs over the batch as well",
            "Each sentence keeps a map of its own: average over axis 1 alone.",
        ),
    }
    result = answer(*draws[0])
    if isinstance(result, Tensor) and tuple(result.shape) in wrong_axes:
        raise Misconception(*wrong_axes[tuple(result.shape)])

    def of_maps(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda q, k, m: change(_attention_map_reference(q, k, m))

    def of_mean_vectors(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        q, k = query.mean(1, keepdim=True), key.mean(1, keepdim=True)
        return _attention_map_reference(q, k, mask)[:, 0]

    def of_mean_scores(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        scores = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).mean(1)
        return scores.masked_fill(~mask.bool()[:, None, :], float("-inf")).softmax(-1)

    slips = [
        Slip(
            "the heads are summed, not averaged",
            of_maps(lambda a: a.sum(1)),
            "Each row must still sum to 1: divide by the number of heads.",
        ),
        Slip(
            "the scores are averaged before the softmax",
            of_mean_scores,
            "Each head takes its own softmax; average the maps that come out.",
        ),
        Slip(
            "queries and keys are averaged before the scores",
            of_mean_vectors,
            "Each head has a map of its own; average the maps, not the vectors.",
        ),
        Slip(
            "this is the largest head at each place, not the mean",
            of_maps(lambda a: a.amax(1)),
            "Rows of a maximum sum to more than 1; average instead.",
        ),
        Slip(
            "this is the first head alone",
            of_maps(lambda a: a[:, 0]),
            "Average over all of axis 1.",
        ),
        Slip(
            "this is the last head alone",
            of_maps(lambda a: a[:, -1]),
            "Average over all of axis 1.",
        ),
        Slip(
            "this is the median of the heads, not the mean",
            of_maps(lambda a: a.median(1).values),
            "Rows of medians need not sum to 1; use .mean(1).",
        ),
        Slip(
            "the mean map is transposed: queries and keys have changed places",
            of_maps(lambda a: a.mean(1).transpose(-1, -2)),
            "Rows stay queries, columns stay keys.",
        ),
        Slip(
            "a second softmax runs over the mean",
            of_maps(lambda a: a.mean(1).softmax(-1)),
            "The mean of rows that sum to 1 sums to 1 already; a second softmax flattens it.",
        ),
        Slip(
            "the mean is right, and the mask is ignored",
            lambda q, k, m: _map_variant(q, k, m, masked="no").mean(1),
            "Take the maps from attention_map(query, key, mask), which hides padded keys.",
        ),
        Slip(
            "padded queries are set to zero as well",
            lambda q, k, m: _head_mean_reference(q, k, m) * m[:, :, None],
            "Leave the rows of padded queries as they come out; they are masked where they count.",
        ),
    ]
    compare(answer, draws, _head_mean_reference, slips)


# --- masked_rows ---------------------------------------------------------------------------


def _masked_rows_reference(values: Tensor, mask: Tensor) -> Tensor:
    pairs = valid_pairs(mask)
    return values.masked_fill(~pairs, 0.0).sum() / pairs.sum()


def _only(values: Tensor, keep: Tensor) -> Tensor:
    return values[keep.expand_as(values)].mean()


def _by_sentence(values: Tensor, mask: Tensor) -> Tensor:
    each = [v[m][:, m].mean() for v, m in zip(values, mask.bool(), strict=True)]
    return torch.stack(each).mean()


@exercise(
    "masked_rows",
    notebook="03",
    reference=_masked_rows_reference,
    look="Keep the entries whose query and key are both real, and divide by how many they are.",
)
def masked_rows(answer: Callable[..., Any]) -> None:
    """answer(values, mask) -> mean over valid pairs: (B, L, L) and (B, L) -> scalar."""
    source = generator()
    draws = []
    for batch, length in ((3, 6), (4, 7), (2, 5)):
        values = normal(source, batch, length, length).abs() + 0.1
        draws.append((values, _mask(source, batch, length)))
    draws.append((draws[0][0], draws[0][1].flip(1)))
    slips = [
        Slip(
            "padding is counted: this is the plain mean over B x L x L",
            lambda v, m: v.mean(),
            "Build the pairs from the mask: mask[:, :, None] * mask[:, None, :].",
        ),
        Slip(
            "padded keys are left out and padded queries are not",
            lambda v, m: _only(v, m.bool()[:, None, :]),
            "A padded query still has a row, and it sums to 1: mask both axes.",
        ),
        Slip(
            "padded queries are left out and padded keys are not",
            lambda v, m: _only(v, m.bool()[:, :, None]),
            "Mask both axes: the columns of padding must not count either.",
        ),
        Slip(
            "the sum is right, and it is divided by B x L x L",
            lambda v, m: (v * valid_pairs(m)).sum() / v.numel(),
            "Zeros in place of padding are still counted by .mean(): divide by the valid pairs.",
        ),
        Slip(
            "the sum is right, and it is divided by the number of tokens",
            lambda v, m: (v * valid_pairs(m)).sum() / m.sum(),
            "A sentence of n tokens has n x n pairs: divide by the number of pairs.",
        ),
        Slip(
            "the valid entries are summed and not averaged",
            lambda v, m: (v * valid_pairs(m)).sum(),
            "Divide by the number of valid pairs.",
        ),
        Slip(
            "each sentence is averaged by itself first, so short ones weigh as much as long ones",
            _by_sentence,
            "Sum over the whole batch, then divide once by all valid pairs.",
        ),
        Slip(
            "the mask is upside down: this is the mean over padding",
            lambda v, m: _only(v, ~valid_pairs(m)),
            "In the tokenizer's mask 1 is a real token.",
        ),
        Slip(
            "a pair counts as soon as one of its two tokens is real",
            lambda v, m: _only(v, m.bool()[:, :, None] | m.bool()[:, None, :]),
            "Both must be real: multiply the two masks (and), do not add them (or).",
        ),
        Slip(
            "the valid entries are divided by the pairs whose query is real",
            lambda v, m: (v * valid_pairs(m)).sum() / (m.sum() * m.shape[1]),
            "Count with the same mask that you multiply with.",
        ),
    ]
    compare(answer, draws, _masked_rows_reference, slips)


# --- rollout_step --------------------------------------------------------------------------


def _rollout_step_reference(attention: Tensor, previous: Tensor) -> Tensor:
    eye = torch.eye(attention.shape[-1], dtype=attention.dtype)
    return (0.5 * attention + 0.5 * eye) @ previous


@exercise(
    "rollout_step",
    notebook="03",
    reference=_rollout_step_reference,
    look="(A / 2 + I / 2) @ R, with R of the layers below on the right.",
)
def rollout_step(answer: Callable[..., Any]) -> None:
    """answer(attention, previous) -> the next rollout: (B, L, L) twice -> (B, L, L).

    Abnar and Zuidema 2020 (arXiv 2005.00928).
    """
    source = generator()
    draws = []
    for batch, length in ((2, 5), (3, 4), (1, 6)):
        draws.append(tuple(_random_maps(source, batch, length, length) for _ in range(2)))

    def mixed(attention: Tensor) -> Tensor:
        return 0.5 * attention + 0.5 * torch.eye(attention.shape[-1])

    slips = [
        Slip(
            "the residual connection is missing",
            lambda a, r: a @ r,
            "Half of each token stays where it is: mix in the identity, A / 2 + I / 2.",
        ),
        Slip(
            "the two factors are in the wrong order",
            lambda a, r: r @ mixed(a),
            "The new layer comes after those below, so it stands on the left.",
        ),
        Slip(
            "the identity is added and nothing is halved",
            lambda a, r: (a + torch.eye(a.shape[-1])) @ r,
            "Rows now sum to 2: take one half of each.",
        ),
        Slip(
            "the identity is mixed in after the product",
            lambda a, r: 0.5 * a @ r + 0.5 * torch.eye(a.shape[-1]),
            "What stays is what the layers below have made, R: mix first, then multiply.",
        ),
        Slip(
            "this is an element-wise product",
            lambda a, r: mixed(a) * r,
            "Paths from token to token add up over the tokens between them: use @.",
        ),
        Slip(
            "the layers below are ignored",
            lambda a, r: mixed(a),
            "Multiply the mixed map by `previous`.",
        ),
        Slip(
            "the two maps are averaged, not chained",
            lambda a, r: 0.5 * a + 0.5 * r,
            "One layer feeds the next: a matrix product, (A / 2 + I / 2) @ R.",
        ),
        Slip(
            "the map is transposed",
            lambda a, r: mixed(a).transpose(-1, -2) @ r,
            "Row q of A is the query that looks; it stays a row.",
        ),
        Slip(
            "the identity is mixed into the layers below and not into this one",
            lambda a, r: a @ mixed(r),
            "The residual connection belongs to the layer that you add: mix it into A.",
        ),
    ]

    def rows() -> None:
        if not all(_rows_sum_to_one(value_of(answer(*draw))) for draw in draws):
            raise Misconception(
                "the rows do not sum to 1",
                "A mix of rows that sum to 1 must sum to 1 again: do the two weights add up to 1?",
            )

    compare(answer, draws, _rollout_step_reference, slips, rows)
