"""Exercises of notebook 03, see attention."""

# mypy: disable-error-code=has-type

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from comet_lib.attention import attention_weights
from comet_lib.checks.draws import (
    attention_maps,
    generator,
    mask_of,
    normal,
    probabilities,
    random_mask,
    whole,
)
from comet_lib.checks.framework import (
    Answer,
    Draws,
    Misconception,
    Slip,
    all_close,
    array_of,
    exercise,
    refuse_nan,
    rows_must_sum_to_one,
    value_of,
)
from comet_lib.losses import valid_pairs
from comet_lib.models import build_student, xlmr_config
from comet_lib.similarity import js_divergence, linear_cka


def _project(
    layer: Any,
    x: Tensor,
    heads: int,
    *,
    bias: bool = True,
    flip: bool = False,
    split: str = "columns",
    sources: Sequence[str] = ("query", "key"),
    factor: float = 0.0,
) -> tuple[Tensor, ...]:
    """Queries and keys with some parts replaced by common slips; with none, the right ones."""
    found = []
    for name in sources:
        linear = getattr(layer, name)
        one = x @ (linear.weight if flip else linear.weight.T) + linear.bias * bias
        if split == "columns":
            one = one.unflatten(-1, (heads, -1)).transpose(1, 2)
        elif split == "every":  # head h gets columns h, h + heads, ...
            one = one.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)
        else:
            one = one.reshape(len(x), heads, x.shape[1], -1)
        found.append(one * one.shape[-1] ** factor)
    return tuple(found)


def _layers(source: torch.Generator) -> Draws:
    draws = []
    for batch, length, heads, width in ((2, 5, 3, 4), (3, 4, 2, 6), (1, 7, 4, 3)):
        linears = {}
        for name in ("query", "key"):
            linears[name] = linear = nn.Linear(heads * width, heads * width)
            linear.weight.data = normal(source, heads * width, heads * width, scale=0.5)
            linear.bias.data = normal(source, heads * width, scale=0.5)
        x = normal(source, batch, length, heads * width, scale=1.0)
        draws.append((SimpleNamespace(**linears), x, heads))
    return draws


def _halves(result: Any, shapes: Sequence[tuple[int, ...]], names: str) -> tuple[Tensor, ...]:
    """A pair of tensors or numbers of these shapes, without NaN."""
    if not isinstance(result, tuple | list | Tensor) or len(result) != 2:
        raise Misconception(
            f"your function returned a {type(result).__name__}, "
            "but two results in a tuple are wanted",
            f"Return {names}.",
        )
    parts = tuple(torch.as_tensor(part) for part in result)
    for part, shape in zip(parts, shapes, strict=True):
        if tuple(part.shape) != shape:
            raise Misconception(
                f"your function returned shape {tuple(part.shape)}, but {shape} is wanted"
            )
        refuse_nan(part, "your function returned NaN", "0 log 0 counts as 0: torch.special.entr.")
    return parts


def _queries_and_keys(result: Any, layer: Any, x: Tensor, heads: int) -> Any:
    batch, length, width = x.shape
    each = (batch, heads, length, width // heads)
    wrong = {
        (batch, length, heads, width // heads): "the heads stand behind the tokens",
        (batch, length, width): "the heads are not split",
    }
    for part in result if isinstance(result, tuple | list) else ():
        if (shape := tuple(getattr(part, "shape", ()))) in wrong and shape != each:
            raise Misconception(
                wrong[shape], "unflatten(-1, (heads, -1)), then transpose(1, 2): (B, heads, L, d)."
            )
    return _halves(result, (each, each), "queries and keys")


@exercise(
    look="x @ weight.T + bias, once for each; then the width falls into `heads` slices of d.",
    draws=_layers,
    read=_queries_and_keys,
    slips={
        "the tokens are mixed up with the heads": Slip(
            partial(_project, split="reshape"),
            "reshape or view to (B, heads, L, d) deals out numbers in their order: split the width "
            "first, (B, L, heads, d), then transpose(1, 2).",
        ),
        "each head gets every heads-th column, not a slice": Slip(
            partial(_project, split="every"),
            "The first d columns are head 0: (heads, d), not (d, heads).",
        ),
        "the biases are missing": Slip(partial(_project, bias=False), "Add layer.query.bias."),
        "the weights are not transposed": Slip(
            partial(_project, flip=True), "A Linear computes x @ weight.T + bias."
        ),
        "queries and keys are swapped": Slip(
            partial(_project, sources=("key", "query")), "return the queries first."
        ),
        "the keys are queries, too": Slip(
            partial(_project, sources=("query", "query")), "Keys come from layer.key."
        ),
        "the queries are keys, too": Slip(
            partial(_project, sources=("key", "key")), "Queries come from layer.query."
        ),
        "both are already divided by the square root of d": Slip(
            partial(_project, factor=-0.5), "That belongs to the scores, in the next step."
        ),
    },
)
def queries_keys(layer: Any, x: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Queries and keys (B, heads, L, d) of states (B, L, width), by the layer's two Linears."""
    return _project(layer, x, heads)


def _queries_keys(source: torch.Generator, *shapes: tuple[int, int, int, int]) -> Draws:
    """(query, key, mask) for each (batch, heads, length, width)."""
    draws = []
    for batch, heads, length, width in shapes:
        q, k = (normal(source, batch, heads, length, width, scale=1.3) for _ in range(2))
        draws.append((q, k, random_mask(source, batch, length)))
    return draws


def _map_draws(source: torch.Generator) -> Draws:
    return _queries_keys(source, (3, 2, 6, 4), (2, 3, 5, 8), (4, 2, 7, 3), (1, 2, 4, 4))


def _map(
    query: Tensor,
    key: Tensor,
    mask: Tensor,
    *,
    scale: str = "root d",
    masked: str = "keys",
    axis: int = -1,
    swapped: bool = False,
    log: bool = False,
) -> Tensor:
    """The map with some parts replaced by common slips; with none, the right value."""
    heads, width = query.shape[1], query.shape[-1]
    if swapped:
        query, key = key, query
    factors = {"root d": width**-0.5, "none": 1.0, "d": 1 / width, "heads": heads**-0.5}
    scores = query.double() @ key.double().mT
    scores = scores * (factors | {"all heads": (heads * width) ** -0.5})[scale]
    real = mask.bool()
    keys = real[:, None, None, :].expand_as(scores)
    queries = real[:, None, :, None].expand_as(scores)
    keep = {
        "keys": keys,
        "rows too": keys,
        "queries": queries,
        "both": keys & queries,
        "inverted": ~keys,
    }
    if masked in keep:
        scores = scores.masked_fill(~keep[masked], torch.finfo(scores.dtype).min)
    elif masked == "zero score":
        scores = scores * keys
    weights = scores.log_softmax(axis) if log else scores.softmax(axis)
    if masked == "rows too":
        return weights * queries
    return weights * keys if masked == "after" else weights


def _map_without_nan(result: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    """Name rows of which every score is minus infinity."""
    shape = query.shape[:3] + query.shape[2:3]
    if isinstance(result, Tensor) and result.shape == shape and result.isnan().any():
        if bool(result.isnan().any(-1)[mask.bool()[:, None].expand(shape[:3])].any()):
            return result
        raise Misconception(
            "the rows of padded queries are NaN: every score in them is minus infinity",
            "Hide keys and no queries: the keys are the last axis, mask[:, None, None, :].",
        )
    return result


def _exactly_nothing(answer: Answer, draws: Draws) -> None:
    """Padding gets 0, not the little that a score of -30 leaves it, and does so in any row."""
    for query, key, mask in draws:
        padded = (mask == 0)[:, None, None, :].expand(*query.shape[:3], -1)
        if (most := value_of(answer(query, key, mask))[padded].sum()) > 0:
            raise Misconception(
                f"padded keys get a little, {most:.0e}, and not exactly nothing",
                "A low score is still a score like any other: use minus infinity.",
            )


@exercise(
    look="Scores first, then the padded keys hidden, then the shares: which axis is which?",
    draws=_map_draws,
    read=_map_without_nan,
    slips={
        "the scores are not divided by the square root of d": Slip(
            partial(_map, scale="none"),
            "d is the width of one head, query.shape[-1]; without it the softmax is too sharp.",
        ),
        "the scores are divided by d, not by its square root": Slip(
            partial(_map, scale="d"), "A dot product of d terms has a deviation of sqrt(d)."
        ),
        "the scores are divided by the square root of the number of heads": Slip(
            partial(_map, scale="heads"), "d is the width of one head, query.shape[-1]."
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
        "the mask hides queries as well as keys": Slip(
            partial(_map, masked="both"),
            "A row of which everything is hidden means nothing: hide only keys, the last axis.",
        ),
        "the rows of padded queries are set to zero": Slip(
            partial(_map, masked="rows too"),
            "They may stay as they come out; section 6 masks them where they count.",
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
            partial(_map, log=True), "A map holds probabilities: softmax, not log_softmax."
        ),
    },
    otherwise=rows_must_sum_to_one(
        "the rows", "The softmax must be the last step and run over the keys (dim=-1)."
    ),
    extra=_exactly_nothing,
)
def attention_map(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """Maps (B, H, L, L) of queries and keys (B, H, L, d) and a mask (B, L).

    Keys are masked, queries are not. Vaswani et al. 2017 (arXiv 1706.03762), equation 1.
    """
    return attention_weights(query, key, mask.bool()[:, None, None, :])


def _split(
    maps: Tensor, *, heads: Any = None, unit: float = 1.0, keys: Any = torch.sum, rows: Any = None
) -> tuple[Tensor, Tensor]:
    """Both entropies with some parts replaced by common slips; with none, the right values."""
    heads, rows = heads or (lambda m: m.mean(0)), rows or (lambda e: e.mean())
    of_heads, of_mean = (
        rows(keys(torch.special.entr(m), -1)) / unit for m in (maps.double(), heads(maps.double()))
    )
    return of_heads, of_mean - of_heads


def _sparse_maps(source: torch.Generator, mask: Tensor, layers: int) -> dict[int, Tensor]:
    """Head means by layer, some of whose real places hold exactly 0."""
    found = {}
    for layer in range(layers):
        one = attention_maps(source, mask)
        gone = (torch.rand(one.shape, generator=source) < 0.2) & (one < one.amax(-1, keepdim=True))
        one = one.masked_fill(gone, 0.0)
        found[layer] = one / one.sum(-1, keepdim=True)
    return found


@exercise(
    look="The entropy of each row, then means: of all heads' rows, and of the head mean's rows.",
    draws=lambda source: [
        (torch.stack([*_sparse_maps(source, torch.ones(1, n).long(), h).values()])[:, 0],)
        for h, n in ((3, 5), (2, 7), (4, 4))
    ],
    read=lambda result, maps: _halves(
        result, ((), ()), "the entropy of the heads and what is added"
    ),
    slips={
        "the second number is the whole entropy of the mean": Slip(
            lambda m: (_split(m)[0], sum(_split(m))), "Take the heads' own entropy away from it."
        ),
        "the two numbers are in the other order": Slip(
            lambda m: _split(m)[::-1], "First the heads, then what the mean has more."
        ),
        "the difference has the wrong sign": Slip(
            lambda m: (_split(m)[0], -_split(m)[1]),
            "Averaging only adds entropy: the mean's minus the heads'.",
        ),
        "these entropies have the wrong sign": Slip(
            partial(_split, unit=-1.0), "An entropy is minus the sum of p log p, so never below 0."
        ),
        "these are bits": Slip(partial(_split, unit=math.log(2)), "Use the natural logarithm."),
        "the keys are averaged, not summed": Slip(
            partial(_split, keys=torch.mean), "An entropy is a sum over the keys: .sum(-1)."
        ),
        "the rows are summed, not averaged": Slip(
            lambda m: (_split(m)[0] * m[..., 0].numel(), _split(m, rows=torch.sum)[1]),
            "Average over the rows, and over the heads.",
        ),
        "the heads are summed, not averaged": Slip(
            lambda m: (_split(m)[0] * len(m), sum(_split(m)) - _split(m)[0] * len(m)),
            "A mean over the heads, for both.",
        ),
        "the map is averaged over the tokens that look, not over the heads": Slip(
            partial(_split, heads=lambda m: m.mean(1)), "The heads are axis 0."
        ),
        "the second number is a share of the whole": Slip(
            lambda m: (_split(m)[0], _split(m)[1] / sum(_split(m))), "Return it in nats."
        ),
        "only the first head is measured": Slip(
            lambda m: (_split(m[:1])[0], sum(_split(m)) - _split(m[:1])[0]),
            "Take the mean over all heads.",
        ),
    },
)
def split_entropy(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean row entropy of the heads of maps (H, L, L), and what the head mean's has more."""
    return _split(maps)


def _hooked(
    encoder: Any,
    batch: Any,
    layers: Sequence[int],
    *,
    late: bool = False,
    into: bool = False,
    first: bool = False,
) -> dict[int, Tensor]:
    """The states with some parts replaced by common slips; with none, the right ones."""
    with torch.no_grad():
        found = encoder(**batch, output_hidden_states=True).hidden_states  # embeddings first
    states = {n: found[(layers[-1] if late else n) + (not into)] for n in layers}
    return {n: state[0] for n, state in states.items()} if first else states


STATES_SLIPS: dict[str, tuple[Answer, str]] = {
    "each layer holds the states of the last one": (
        partial(_hooked, late=True),
        "A function in a loop sees the loop's variable as it is at the end. Hand it over as a "
        "default, number=number, or write a function that returns the hook.",
    ),
    "these are the states that enter a layer, not those that leave it": (
        partial(_hooked, into=True),
        "A hook gets (module, inputs, output): keep the output. Of `hidden_states`, the first "
        "are the embeddings.",
    ),
    "this is only the first sentence": (
        partial(_hooked, first=True),
        "The output of a layer is a tensor (B, L, width) here; no [0] is needed.",
    ),
}


def _verify_states(answer: Answer) -> None:
    source = generator()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(whole(source, 0, 2**31))
        sizes = dict(hidden_size=8, num_hidden_layers=4, num_attention_heads=2)
        config = xlmr_config({**sizes, "intermediate_size": 12}, 20, 6)
        encoder = build_student(config, "encoder").eval()
    ids = torch.randint(5, 20, (2, 5), generator=source)
    batch = {"input_ids": ids, "attention_mask": mask_of([5, 3])}
    for chosen in ([0, 2, 3], [whole(source, 1, 2)]):
        right = _hooked(encoder, batch, chosen)  # transformers adds hooks of its own here
        hooks = [len(layer._forward_hooks) for layer in encoder.encoder.layer]
        got = answer(encoder, batch, chosen)
        if hooks != [len(layer._forward_hooks) for layer in encoder.encoder.layer]:
            raise Misconception(
                "a hook is still on the model, and will run at each later call",
                "register_forward_hook returns a handle: call its .remove() after the run.",
            )
        if not isinstance(got, Mapping) or any(not isinstance(s, Tensor) for s in got.values()):
            raise Misconception(
                f"your function returned a {type(got).__name__}, but a dict with a tensor for each "
                "layer is wanted"
            )
        if sorted(got) != chosen:
            raise Misconception(
                f"your function returned a dict of layers {[*got]}, but layers {chosen} are wanted",
                "Hook these layers and no others.",
            )
        if any(state.requires_grad for state in got.values()):
            raise Misconception(
                "each state holds the graph of all layers below it in memory",
                "Nothing is trained here: call the model under torch.no_grad().",
            )
        if all_close([*got.values()], [right[n] for n in got]):
            continue
        for message, (slip, look) in STATES_SLIPS.items():
            wrong = slip(encoder, batch, chosen)
            if all_close([*got.values()], [wrong[n] for n in got]):
                raise Misconception(message, look)
        bad = next(n for n in got if not all_close([got[n]], [right[n]]))
        raise Misconception(f"these are not the states that leave layer {bad}")


@exercise(
    look="One hook on each chosen layer, one call of the model, and then all hooks off again.",
    verify=_verify_states,
)
def states_of(encoder: Any, batch: Any, layers: Sequence[int]) -> dict[int, Tensor]:
    """{layer: (B, L, width)} the hidden states that leave the chosen layers, without gradients."""
    return _hooked(encoder, batch, layers)


def _along(
    maps: Tensor,
    mask: Tensor,
    offset: int,
    *,
    keep: str = "pairs",
    by: tuple[int, ...] = (1, 3),
    largest: bool = False,
    around: bool = False,
) -> Tensor:
    """The shares with some parts replaced by common slips; with none, the right value."""
    length = mask.shape[1]
    if around:
        query = torch.arange(length)
        key = (query + offset) % length
        looks, real = maps[..., query, key], mask * mask[:, key]
    else:
        looks = maps.diagonal(offset, -2, -1)  # (N, B, H, n)
        real = valid_pairs(mask).long().diagonal(offset, 1, 2)  # (B, n)
    if keep == "all":
        real = torch.ones_like(real)
    elif keep == "keys" and not around:
        real = mask[:, None].expand(-1, length, -1).diagonal(offset, 1, 2)
    if largest:
        return (looks * real[:, None]).amax((1, 3))
    total = (looks * real[:, None]).sum(by)
    if keep == "by sentence":
        return ((looks * real[:, None]).sum(3) / real.sum(1)[:, None].clamp_min(1)).mean(1)
    return total / {"tokens": mask.sum(), "places": torch.tensor(real.numel())}.get(
        keep, real.sum()
    )


def _stacks(source: torch.Generator) -> Draws:
    draws: list[tuple[Any, ...]] = []
    for (layers, batch, heads, length), offset in zip(
        ((3, 4, 2, 6), (2, 3, 4, 5), (1, 4, 3, 7), (2, 1, 2, 4), (2, 3, 2, 6)),
        (-1, 1, 2, 0, -2),
        strict=True,
    ):
        mask = random_mask(source, batch, length)
        maps = torch.stack([attention_maps(source, mask, heads) for _ in range(layers)])
        draws.append((maps, mask, offset))
    return draws


def _one_share_each(result: Any, maps: Tensor, mask: Tensor, offset: int) -> Any:
    layers, batch, heads, _, _ = maps.shape
    wrong_axes = {
        (layers, batch, heads): "every sentence still has a share of its own",
        (batch, heads): "the layers are averaged",
        (layers,): "the heads are averaged",
        (): "everything is averaged: layers and heads, too",
    }
    shape = tuple(result.shape) if isinstance(result, Tensor) else None
    if shape in wrong_axes and shape != (layers, heads):
        raise Misconception(wrong_axes[shape], "One number for each layer and head: (N, H).")
    return result


@exercise(
    look="Which entries of a map belong to a token and the one `offset` places after it?",
    draws=_stacks,
    read=_one_share_each,
    slips={
        "the sign is wrong: this looks the other way": Slip(
            lambda maps, mask, offset: _along(maps, mask, -offset),
            "Rows look, columns are looked at: offset 1 is one column to the right.",
        ),
        "padding is counted": Slip(
            partial(_along, keep="all"), "A pair counts if query and key are both real tokens."
        ),
        "padded queries are counted": Slip(
            partial(_along, keep="keys"), "A pair counts if its query is a real token, too."
        ),
        "the sum is right, but it is divided by all places of the diagonal": Slip(
            partial(_along, keep="places"), "Divide by the pairs that you added up."
        ),
        "the sum is right, but it is divided by the number of tokens": Slip(
            partial(_along, keep="tokens"),
            "The first or last tokens have no such neighbor: divide by the pairs that exist.",
        ),
        "each sentence is averaged by itself first": Slip(
            partial(_along, keep="by sentence"), "Sum over the batch, then divide once."
        ),
        "the end of the sentence wraps around to its start": Slip(
            partial(_along, around=True), "The last token has no next one: leave it out."
        ),
        "this is the largest entry, not the mean": Slip(
            partial(_along, largest=True), "One token that looks there is not a head that does."
        ),
    },
)
def looks_along(maps: Tensor, mask: Tensor, offset: int) -> Tensor:
    """(N, H) mean attention of a token to the one ``offset`` places on, of maps (N, B, H, L, L)."""
    return _along(maps, mask, offset)


def _cka(
    x: Tensor,
    y: Tensor,
    *,
    center: int | None = 0,
    power: int = 2,
    norm: Any = "fro",
    bare: int = 0,
) -> Tensor:
    """CKA with some parts replaced by common slips; with none, the right value."""
    if center is not None:
        x, y = x - x.mean(center, keepdim=True), y - y.mean(center, keepdim=True)
    size = partial(torch.linalg.matrix_norm, ord=norm)
    both: Tensor = size(y.mT @ x) ** power
    return both if bare else both / (size(x.mT @ x) * size(y.mT @ y))


def _states(source: torch.Generator) -> Draws:
    draws = []
    for tokens, width, other in ((12, 4, 6), (9, 5, 3), (20, 3, 3)):
        x = normal(source, tokens, width, scale=1.0) + 2 * normal(source, width, scale=1.0)
        y = x[:, :2] @ normal(source, 2, other, scale=1.0) + normal(
            source, tokens, other, scale=1.0
        )
        draws.append((x, y))
    return draws


def _by_tokens(x: Tensor, y: Tensor) -> Tensor:
    return ((x @ x.mT) * (y @ y.mT)).sum() / ((x @ x.mT).norm() * (y @ y.mT).norm())


@exercise(
    look="Center each column, then three Frobenius norms: which of them is squared?",
    draws=_states,
    slips={
        "nothing is centered": Slip(
            partial(_cka, center=None), "Take each column's mean away: x - x.mean(0)."
        ),
        "each token is centered, not each column": Slip(
            partial(_cka, center=1), "Tokens are rows: the mean over tokens is .mean(0)."
        ),
        "the mean of all numbers is taken away, not each column's": Slip(
            lambda x, y: _by_tokens(x - x.mean(), y - y.mean()), "x.mean(0), not x.mean()."
        ),
        "only one side is centered": Slip(
            lambda x, y: _by_tokens(x - x.mean(0), y), "Center x and y."
        ),
        "the norm above the line is not squared": Slip(partial(_cka, power=1), "Square it."),
        "nothing is divided, so the size of the states counts": Slip(
            partial(_cka, bare=1), "Divide by the two norms below the line."
        ),
        "below the line stand the norms of the states themselves": Slip(
            lambda x, y: _cka(x, y, bare=1) / ((x - x.mean(0)).norm() * (y - y.mean(0)).norm()),
            "They are norms of products, of X^T X and of Y^T Y.",
        ),
        "below the line stand the squared norms of the states themselves": Slip(
            lambda x, y: (
                _cka(x, y, bare=1) / ((x - x.mean(0)).norm() * (y - y.mean(0)).norm()).square()
            ),
            "They are norms of products, of X^T X and of Y^T Y.",
        ),
        "these are spectral norms": Slip(
            partial(_cka, norm=2), "Frobenius: the root of the sum of all squares, x.norm()."
        ),
        "all three norms are squared": Slip(
            lambda x, y: _cka(x, y).square() / _cka(x, y, bare=1), "Only the one above the line."
        ),
        "this is the root of CKA": Slip(
            lambda x, y: _cka(x, y).sqrt(), "The norm above the line is squared, as a whole."
        ),
        "this is 1 - CKA, a distance": Slip(lambda x, y: 1 - _cka(x, y), "1 means alike."),
    },
)
def cka(x: Tensor, y: Tensor) -> Tensor:
    """Scalar: linear CKA of states (tokens, width) and (tokens, other width)."""
    return linear_cka(x, y)


def _masked_values(source: torch.Generator) -> Draws:
    draws = []
    for batch, length in ((3, 6), (4, 7), (2, 5)):
        values = normal(source, batch, length, length)
        zero = torch.rand(values.shape, generator=source) < 0.2  # two maps may agree
        draws.append((values.masked_fill(zero, 0.0), random_mask(source, batch, length)))
    return [*draws, tuple(part[1:] for part in draws[-1])]  # one padded sentence


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
        "places that hold 0 are left out, though query and key are real": Slip(
            lambda v, m: (v * valid_pairs(m)).sum() / (v * valid_pairs(m)).count_nonzero(),
            "A difference of 0 counts like any other: divide by the pairs of the mask.",
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


def _two_models(source: torch.Generator) -> Draws:
    draws = []
    for batch, length, students, teachers in ((3, 6, 2, 4), (2, 5, 3, 3), (1, 4, 1, 2)):
        mask = random_mask(source, batch, length)
        maps = (_sparse_maps(source, mask, n) for n in (students, teachers))
        draws.append((*maps, mask))
    return draws


def _grid(maps: Any, others: Any, mask: Tensor, *, rows: Any = None, far: Any = None) -> Tensor:
    """The table with some parts replaced by common slips; with none, the right one."""
    rows = rows or (lambda d: d.sum() / mask.sum())
    far = far or js_divergence
    return torch.stack(
        [torch.stack([rows(far(a, b, mask)) for b in others.values()]) for a in maps.values()]
    )


def _js_of_all(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Without the mask: padded rows have a divergence, too."""
    return js_divergence(a, b, torch.ones_like(mask))


def _table(result: Any, maps: Any, others: Any, mask: Tensor) -> Tensor:
    """A list of lists, an array, or a tensor."""
    try:
        table = torch.as_tensor(np.array(array_of(result, "a table"), dtype=float))
    except (TypeError, ValueError):
        raise Misconception("your table holds more than one number in a place") from None
    if len(maps) != len(others) and table.shape == (len(others), len(maps)):
        raise Misconception(
            "the table is on its side", "Rows are the layers of `maps`, columns those of `others`."
        )
    return table


def _above_log_two(answer: Answer, draws: Draws) -> None:
    """For ``otherwise``: a KL, whatever it puts in place of log 0."""
    if max(_table(answer(*draw), *draw).max() for draw in draws) > math.log(2):
        raise Misconception(
            "a distance is above log 2, which no Jensen-Shannon divergence exceeds",
            "Is this a KL divergence, or a sum? js compares both rows with their middle.",
        )


@exercise(
    look="For each pair of layers: js(a, b), a mean over the rows of real queries.",
    draws=_two_models,
    read=_table,
    otherwise=_above_log_two,
    slips={
        "padded rows are counted": Slip(
            lambda a, b, m: _grid(a, b, m, rows=lambda d: d.mean(), far=_js_of_all),
            "A padded query has a row, and it means nothing: multiply by the mask first.",
        ),
        "padded rows are left out, but counted in the mean": Slip(
            lambda a, b, m: _grid(a, b, m, rows=lambda d: d.mean()),
            "Divide by the number of real tokens, mask.sum().",
        ),
        "padded rows are added up, though not counted": Slip(
            lambda a, b, m: _grid(a, b, m, far=_js_of_all), "Multiply by the mask before the sum."
        ),
        "the rows are added up, not averaged": Slip(
            lambda a, b, m: _grid(a, b, m, rows=lambda d: d.sum()), "Divide by mask.sum()."
        ),
        "each sentence is averaged by itself first": Slip(
            lambda a, b, m: _grid(a, b, m, rows=lambda d: (d.sum(1) / m.sum(1)).mean()),
            "Add up all rows of the batch, then divide once by mask.sum().",
        ),
        "this is the largest row, not the mean": Slip(
            lambda a, b, m: _grid(a, b, m, rows=lambda d: d.max()), "Average over real queries."
        ),
        "the mean is divided by the number of tokens once more": Slip(
            lambda a, b, m: _grid(a, b, m) / m.sum(), "Divide by mask.sum() once."
        ),
        "this is the root of each divergence": Slip(
            lambda a, b, m: _grid(a, b, m, far=lambda *x: js_divergence(*x).sqrt()),
            "Take the divergence itself, in nats.",
        ),
        "these are squared differences": Slip(
            lambda a, b, m: _grid(a, b, m, far=lambda x, y, k: (x - y).square().sum(-1) * k),
            "Compare with js.",
        ),
    },
)
def layer_table(maps: Any, others: Any, mask: Tensor) -> Tensor:
    """(S, T) mean JS over real queries of two models' head means, {layer: (B, L, L)} each."""
    return _grid(maps, others, mask)


def _mixed(attention: Tensor) -> Tensor:
    return 0.5 * attention + 0.5 * torch.eye(attention.shape[-1], dtype=attention.dtype)


def _chain(maps: Mapping[int, Tensor], step: Answer = lambda a, r: _mixed(a) @ r) -> Tensor:
    """The rollout by ``step`` (map, rollout below) -> rollout; without one, the right one."""
    first = next(iter(maps.values()))
    start = torch.eye(first.shape[-1]).expand_as(first)
    return reduce(lambda result, one: step(one, result), maps.values(), start)


def _stacks_of_maps(source: torch.Generator) -> Draws:
    """One layer only in the first draw, where the weights of map and identity show."""
    return [
        ({layer: probabilities(source, batch, size, size) for layer in range(layers)},)
        for layers, batch, size in ((1, 2, 5), (2, 3, 4), (4, 1, 6))
    ]


def _other_weights(answer: Answer, draws: Draws) -> None:
    """For ``otherwise``: the map counts w and the identity 1 - w, or rows of another sum."""
    got, moved = value_of(answer(*draws[0])), draws[0][0][0].double() - torch.eye(5)
    w = ((got - torch.eye(5)) * moved).sum() / moved.square().sum()
    if torch.allclose(got, torch.eye(5) + w * moved, atol=1e-5) and abs(w - 0.5) > 1e-3:
        raise Misconception(
            f"the map counts {w:.3g} and the residual connection {1 - w:.3g}",
            "Each of the two counts one half.",
        )
    rows_must_sum_to_one(
        "the rows", "What a token reads and what it keeps are shares: do they add up to 1?"
    )(answer, draws)


@exercise(
    look="Two toy layers stand above the exercise: which of them is on the left, and why?",
    draws=_stacks_of_maps,
    slips={
        "the residual connection is missing": Slip(
            partial(_chain, step=lambda a, r: a @ r), "Half of each token stays where it is."
        ),
        "the factors are in the wrong order": Slip(
            partial(_chain, step=lambda a, r: r @ _mixed(a)),
            "The new layer acts last, so it goes on the left.",
        ),
        "the identity is added but nothing is halved": Slip(
            partial(_chain, step=lambda a, r: 2 * _mixed(a) @ r),
            "Rows now sum to 2 and more: take one half of each.",
        ),
        "the identity is mixed in after the product": Slip(
            partial(_chain, step=lambda a, r: _mixed(a @ r)),
            "What stays is a part of R: mix first, then multiply.",
        ),
        "this is an element-wise product": Slip(
            partial(_chain, step=lambda a, r: _mixed(a) * r),
            "Paths add up over the tokens between them: use @.",
        ),
        "the layers below are ignored": Slip(
            partial(_chain, step=lambda a, r: _mixed(a)), "Multiply by the result so far."
        ),
        "this is the first layer only": Slip(
            lambda maps: _mixed(next(iter(maps.values()))),
            "Does `return` stand inside the loop?",
        ),
        "the last layer is left out": Slip(
            lambda maps: _chain(dict([*maps.items()][: max(1, len(maps) - 1)])), "Take all of them."
        ),
        "the maps are averaged, not chained": Slip(
            lambda maps: _mixed(sum(maps.values()) / len(maps)),
            "One layer feeds the next: a matrix product.",
        ),
        "the maps are transposed": Slip(
            partial(_chain, step=lambda a, r: _mixed(a).mT @ r),
            "Row q of A is the query that looks; it stays a row.",
        ),
        "the result is transposed": Slip(
            lambda maps: _chain(maps).mT, "Rows are upper tokens: each must sum to 1."
        ),
        "the first map is not mixed with the identity": Slip(
            lambda maps: reduce(lambda r, a: _mixed(a) @ r, maps.values()),
            "R_0 is the identity, and each layer has a residual connection, the first one, too.",
        ),
    },
    otherwise=_other_weights,
)
def rollout(maps: Mapping[int, Tensor]) -> Tensor:
    """(B, L, L) how much of each input token arrives, from {layer: (B, L, L)}, the lowest first.

    Abnar and Zuidema 2020 (arXiv 2005.00928).
    """
    return _chain(maps)


def _hidden(
    model: Any,
    ids: Tensor,
    mask_id: int,
    *,
    how: str = "one",
    label: str = "first",
    what: str = "probability",
    sign: int = 1,
) -> Tensor:
    """The losses with some parts replaced by common slips; with none, the right value."""
    length = ids.shape[1]
    eye = torch.eye(length, dtype=torch.bool)
    where = {"one": eye, "others": ~eye}.get(how, eye)
    copies = ids.repeat(length, 1)
    if how == "deleted":
        attention = (~eye).long()
    else:
        copies, attention = copies.masked_fill(where, mask_id), torch.ones_like(copies)

    def ask(x: Tensor, seen: Tensor) -> Tensor:
        logits = model(input_ids=x, attention_mask=seen).logits
        return {"probability": logits.softmax(-1), "log": logits.log_softmax(-1)}.get(what, logits)

    whole, parts = ask(ids, torch.ones_like(ids))[0], ask(copies, attention)
    top = whole.argmax()
    left = {"first": parts[:, top], "best": parts.amax(-1), "zero": parts[:, 0]}[label]
    base = whole[0] if label == "zero" else whole[top]
    return left if sign == 0 else sign * (base - left)


class _Classifier:
    """A stand-in: (B, L) ids -> logits (B, 3) that depend on which pieces stand where."""

    def __init__(self, source: torch.Generator, pieces: int = 12, length: int = 9) -> None:
        self.table = normal(source, pieces, 3, scale=2.0)
        self.place = torch.rand(length, generator=source) + 0.5

    def __call__(self, input_ids: Tensor, attention_mask: Any = None, **more: Any) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        weight = self.place[: input_ids.shape[1]] * mask
        states = (self.table[input_ids] * weight[..., None]).sum(1) / weight.sum(1)[:, None]
        return SimpleNamespace(logits=2 * states + 0.3 * states.roll(1, -1).square())


def _sentences(source: torch.Generator) -> Draws:
    """Sentences of which a token changes the label, and another one makes the model more sure."""
    draws: list[tuple[Any, ...]] = []
    for length in (5, 8, 3, 6):
        while True:
            draw = _Classifier(source), torch.randint(1, 12, (1, length), generator=source), 0
            lost = _hidden(*draw)
            if lost.min() < -0.02 and (lost - _hidden(*draw, label="best")).abs().max() > 0.02:
                break
        draws.append(draw)
    return draws


def _piled(model: Any, ids: Tensor, mask_id: int) -> Tensor:
    before = model(input_ids=ids).logits.softmax(-1)[0]
    hidden, found = ids.clone(), []
    for i in range(ids.shape[1]):
        hidden[0, i] = mask_id
        found.append(before.max() - model(input_ids=hidden).logits.softmax(-1)[0, before.argmax()])
    return torch.stack(found)


def _taken_out(model: Any, ids: Tensor) -> Tensor:
    before = model(input_ids=ids).logits.softmax(-1)[0]
    rest = [torch.cat([ids[:, :i], ids[:, i + 1 :]], 1) for i in range(ids.shape[1])]
    after = torch.cat([model(input_ids=one).logits.softmax(-1) for one in rest])
    return before.max() - after[:, before.argmax()]


@exercise(
    look="One question with the whole sentence, then one for each token that is hidden.",
    draws=_sentences,
    slips={
        "the sign is wrong: a token that matters has a negative loss": Slip(
            partial(_hidden, sign=-1), "Before minus after."
        ),
        "this is what is left, not what is lost": Slip(
            partial(_hidden, sign=0), "Take it away from the probability of the whole sentence."
        ),
        "the label is chosen again after hiding": Slip(
            partial(_hidden, label="best"),
            "Choose the label once, with the whole sentence; follow the same one.",
        ),
        "this follows label 0, not the label that the model gives": Slip(
            partial(_hidden, label="zero"), "The label is .argmax(-1) of the whole sentence."
        ),
        "these are logits, not probabilities": Slip(
            partial(_hidden, what="logits"), "softmax over the three labels."
        ),
        "these are log-probabilities": Slip(
            partial(_hidden, what="log"), "Use softmax, not log_softmax."
        ),
        "all other tokens are hidden": Slip(
            partial(_hidden, how="others"), "Hide one token and leave the others."
        ),
        "hidden tokens stay hidden, so they pile up": Slip(
            lambda model, ids, mask_id: _piled(model, ids, mask_id),
            "Start from the whole sentence for each token: ids.clone().",
        ),
        "the absolute value is taken": Slip(
            lambda *a: _hidden(*a).abs(),
            "The answer may gain from hiding a token; a negative loss is one, too.",
        ),
        "negative losses are set to 0": Slip(
            lambda *a: _hidden(*a).clamp_min(0), "The answer may gain from hiding a token."
        ),
        "these are shares of the probability itself": Slip(
            lambda *a: _hidden(*a) / (_hidden(*a) + _hidden(*a, sign=0)),
            "Return the difference of the two probabilities.",
        ),
        "these are shares of the total": Slip(
            lambda *a: _hidden(*a) / _hidden(*a).sum(), "Return the losses themselves."
        ),
        "the token is taken out, so all that follow move": Slip(
            lambda model, ids, mask_id: _taken_out(model, ids),
            "Write `mask_id` into its place; the sentence keeps its length.",
        ),
        "the token is cut off by the attention mask, not replaced": Slip(
            partial(_hidden, how="deleted"), "Write `mask_id` into its place; all is attended to."
        ),
    },
)
def occlusion(model: Any, ids: Tensor, mask_id: int) -> Tensor:
    """(L,) what the answer's probability loses if a token of ids (1, L) becomes ``mask_id``."""
    return _hidden(model, ids, mask_id)
