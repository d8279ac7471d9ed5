"""Attention maps without the cost: capture the head mean of chosen layers, then measure it.

transformers gives attention maps only from its slow "eager" attention, for every layer and every
head at once, and in training mode after dropout. :func:`capture` asks for less. The layers go on
running fast sdpa attention; beside it, the chosen layers alone compute

    A = softmax(Q K^T * scaling + mask),    map = mean over the heads of A               (1)

before dropout, with gradients. One map is L x L numbers for each sequence.

Shapes in this file: B sequences, H heads, L tokens, d numbers per head. ``mask`` is the (B, L)
attention mask of the tokenizer: 1 for a token, 0 for padding. Logarithms are natural (nats).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from comet_lib.errors import CometError

NAME = "head_mean"  # what we register with transformers
_SLOTS = "_comet_slots"  # attribute on a chosen layer's modules, only inside `capture`


# --------------------------------------------------------------------------- capture


@dataclass(eq=False)
class _Slot:
    """Where one layer of one capture puts its find: a "map", its "heads", or its "qkv"."""

    found: dict[int, Any]
    layer: int
    kind: str
    small: bool = False


def head_mean_attention(
    module: nn.Module,
    query: Tensor,  # (B, H, L, d)
    key: Tensor,  # (B, H or fewer, L, d)
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The layer's output by sdpa; for a layer chosen by :func:`capture` also its map, eq. (1)."""
    for slot in getattr(module, _SLOTS, ()):
        if slot.kind == "qkv":  # heads side by side again
            slot.found[slot.layer] = tuple(
                x.transpose(1, 2).flatten(2) for x in (query, key, value)
            )
            continue
        if kwargs.get("position_bias") is not None:
            raise CometError(
                f"{type(module).__name__} adds a position bias to its attention, which capture "
                "does not support: use a model without it, such as XLM-R or BERT."
            )
        mask = attention_mask
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if mask is None and causal:  # sdpa builds this mask itself, so it did not reach us
            mask = torch.ones(query.shape[2], key.shape[2], device=query.device).tril().bool()
        keys = repeat_kv(key, query.shape[1] // key.shape[1])
        if slot.kind == "heads":
            found = attention_weights(query, keys, mask, scaling)
        elif slot.small:
            found = _mean_head_by_head(query, keys, mask, scaling)
        else:
            found = attention_weights(query, keys, mask, scaling).mean(1)
        slot.found[slot.layer] = found.to(torch.float16 if slot.small else query.dtype)
    return sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        **kwargs,
    )


def attention_weights(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None = None
) -> Tensor:
    """softmax(Q K^T * scaling + mask) in at least float32: (B, H, L, d) twice -> (B, H, L, L).

    ``mask`` broadcasts to (B, H, L, L): bool (True = may look), or a float that is added, or None.
    ``scaling`` is 1 / sqrt(d) by default.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(-1, -2) * scaling
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask is not None and mask.dtype == torch.bool:
        # The lowest number, not -inf: a row of padding alone becomes uniform, never NaN.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1)


def _mean_head_by_head(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """The mean over the heads, (B, L, L), with the weights of one head in memory at a time."""
    count = query.shape[1]
    total: Tensor | None = None
    for h in range(count):
        own = mask if mask is None or mask.shape[1] == 1 else mask[:, h : h + 1]
        one = attention_weights(query[:, h : h + 1], key[:, h : h + 1], own, scaling)[:, 0]
        total = one if total is None else total + one
    assert total is not None
    return total / count


# Both names are needed: without the mask's, transformers would hand our function no mask at all.
AttentionInterface.register(NAME, head_mean_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def encoder_layers(model: nn.Module) -> nn.ModuleList:
    """The encoder's layers, in order.

    Raises:
        CometError: no transformers model, cross-attention, or no list of its layers.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise CometError(f"model is a {name}: capture needs a transformers PreTrainedModel.")
    config = model.config
    if getattr(config, "is_encoder_decoder", False) or getattr(
        config, "add_cross_attention", False
    ):
        raise CometError(f"{name} has cross-attention: capture works on encoders alone.")
    count = getattr(config, "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise CometError(
        f"{name} keeps no list of {count} layers (it may share one layer), so capture cannot "
        "tell its layers apart: use a model such as XLM-R, BERT, DistilBERT or ModernBERT."
    )


def _resolve_layers(layers: Sequence[int] | None, count: int, name: str) -> list[int]:
    chosen = list(range(count)) if layers is None else list(layers)
    for layer in chosen:
        if not -count <= layer < count:
            raise CometError(
                f"layers names layer {layer}, but {name} has {count}: "
                f"use 0 to {count - 1}, or -{count} to -1 from the end."
            )
    return sorted({layer % count for layer in chosen})


@contextmanager
def capture(
    model: PreTrainedModel,
    layers: Sequence[int] | None = None,
    heads: bool = False,
    small: bool = False,
) -> Iterator[dict[int, Tensor]]:
    """Collect attention maps from every forward pass inside the ``with`` block.

    Yields a dict from layer number (0 is the first; a negative number in ``layers`` is stored
    under its positive one) to a map (B, L, L), or (B, H, L, L) with ``heads=True``, in the
    model's dtype. Each forward pass replaces the maps of the one before. They hold no dropout,
    their rows sum to one, also in training mode, and gradients flow through them. Rows of padded
    queries mean nothing: mask them (:func:`valid_pairs`).

    ``layers`` defaults to all. ``small`` spares memory where all of them are wanted at once: the
    maps are float16, and head means are summed head by head, which takes longer. Captures may be
    nested, on one model or on several; leaving the block, also by an exception, puts the former
    attention implementation back.

    Gradient checkpointing: the backward pass runs each layer again, so call ``backward()``
    **inside** the block, and keep ``use_reentrant=False`` (the default of transformers 5): the
    other kind runs the first pass without gradients, and the maps then carry none.

    Raises :class:`CometError` for a layer out of range, a model with cross-attention, or one that
    does not use transformers' attention interface (DeBERTa, for example).
    """
    with _listen(model, layers, "heads" if heads else "map", small) as maps:
        yield maps


@contextmanager
def capture_qkv(
    model: PreTrainedModel, layers: Sequence[int] | None = None
) -> Iterator[dict[int, tuple[Tensor, Tensor, Tensor]]]:
    """Collect queries, keys and values, as :func:`capture` does maps and with its errors.

    Yields a dict from layer number to three tensors (B, L, width), the heads side by side, with
    gradients. Models with fewer key than query heads give narrower keys and values.
    """
    with _listen(model, layers, "qkv") as found:
        yield found


@contextmanager
def capture_hidden(
    model: PreTrainedModel, layers: Sequence[int] | None = None
) -> Iterator[dict[int, Tensor]]:
    """Collect the chosen layers' outputs (B, L, width) from every forward pass, with gradients.

    Layer 0 is the first layer, not the embeddings. Layers, replacement and errors as in
    :func:`capture`, but any attention implementation will do.
    """
    blocks = encoder_layers(model)
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    chosen = _resolve_layers(layers, len(blocks), type(model).__name__)
    handles = [blocks[layer].register_forward_hook(keep(layer)) for layer in chosen]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _listen(
    model: PreTrainedModel, layers: Sequence[int] | None, kind: str, small: bool = False
) -> Iterator[dict[int, Any]]:
    """The chosen layers' slots of one kind, and our attention in the model's, inside the block."""
    blocks = encoder_layers(model)
    chosen = _resolve_layers(layers, len(blocks), type(model).__name__)
    before = model.config._attn_implementation
    found: dict[int, Any] = {}
    marked: list[tuple[nn.Module, _Slot]] = []
    try:
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:  # transformers only warns
            raise CometError(
                f"{type(model).__name__} does not use transformers' attention interface, so its "
                "maps cannot be captured: use a model such as XLM-R, BERT or ModernBERT."
            )
        for layer in chosen:
            slot = _Slot(found, layer, kind, small)
            for module in blocks[layer].modules():  # the one that attends will find its slot
                module.__dict__.setdefault(_SLOTS, []).append(slot)
                marked.append((module, slot))
        yield found
    finally:
        for module, slot in marked:
            module.__dict__[_SLOTS].remove(slot)
            if not module.__dict__[_SLOTS]:
                del module.__dict__[_SLOTS]
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)


def capture_maps(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    layers: Sequence[int] | None = None,
    heads: bool = False,
    small: bool = False,
) -> dict[int, Tensor]:
    """The maps of one forward pass ``model(**inputs)``, in eval mode and without gradients.

    Same arguments, keys, shapes and errors as :func:`capture`; the model's mode is put back.
    """
    training = model.training
    try:
        model.eval()
        with torch.no_grad(), capture(model, layers, heads, small) as maps:
            model(**inputs)
    finally:
        model.train(training)
    if not maps:
        raise CometError(
            f"{type(model).__name__} gave no attention maps: its layers do not call the "
            "attention interface of transformers."
        )
    return maps


# ------------------------------------------------------------------ masks and layer maps


def valid_pairs(mask: Tensor) -> Tensor:
    """Attention mask (B, L) -> bool (B, L, L): True where query and key are both real tokens."""
    if mask.ndim != 2:
        raise CometError(f"mask must have shape (B, L), but has {tuple(mask.shape)}.")
    mask = mask.bool()
    return mask[:, :, None] & mask[:, None, :]


def normalise_rows(maps: Tensor, mask: Tensor) -> Tensor:
    """Maps (B, L, L) -> the same in at least float32, each valid row summing to one over the
    valid keys, everything that touches padding zero."""
    pairs = valid_pairs(mask)
    if maps.shape != pairs.shape:
        raise CometError(
            f"maps have shape {tuple(maps.shape)} but mask {tuple(mask.shape)}: maps must be "
            "(B, L, L) and mask (B, L), of the same batch and length."
        )
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32)).masked_fill(~pairs, 0.0)
    total = maps.sum(-1, keepdim=True)
    return maps / total.clamp_min(torch.finfo(maps.dtype).tiny)


def layer_map(student_layers: int, teacher_layers: int, how: str = "uniform") -> list[int]:
    """Which teacher layer (from 0) each of the student's layers learns from.

    ``student_layers`` and ``teacher_layers`` are counts. With S and T of them, layer i takes

    - "uniform": (i + 1) T / S - 1, the last layer of each of S equal groups (TinyBERT,
      arXiv 1909.10351); 6 from 24 gives 3, 7, 11, 15, 19, 23;
    - "skip":    i T / S, the first layer of each group (close to PKD-skip, arXiv 1908.09355);
    - "last":    T - S + i, the top S layers (PKD-last).

    Fractions are rounded down. Raises :class:`CometError` if the student is deeper.
    """
    s, t = student_layers, teacher_layers
    if not 1 <= s <= t:
        raise CometError(
            f"a student of {s} layers cannot be mapped to a teacher of {t}: "
            "it needs at least one layer and at most as many as the teacher."
        )
    if how == "uniform":
        return [(i + 1) * t // s - 1 for i in range(s)]
    if how == "skip":
        return [i * t // s for i in range(s)]
    if how == "last":
        return [t - s + i for i in range(s)]
    raise CometError(f'how is "{how}", but must be "uniform", "skip" or "last".')


# --------------------------------------------------------------------------- metrics


def entropy(maps: Tensor, mask: Tensor) -> Tensor:
    """Mean entropy of the valid query rows, in nats: maps (B, L, L), mask (B, L) -> scalar.

        H_q = - sum_k p_qk log p_qk                                                      (2)

    Zero: every token looks at one token. log n: it looks at all n of its sentence alike. An
    all-padding batch gives 0.
    """
    rows = torch.special.entr(normalise_rows(maps, mask)).sum(-1)  # (B, L), padded rows 0
    return rows.sum() / mask.sum().clamp_min(1)


def js_divergence(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Jensen-Shannon divergence of each query row, in nats: (B, L, L) twice, (B, L) -> (B, L).

        JS = H((p + q) / 2) - (H(p) + H(q)) / 2                                          (3)

    From 0 (equal rows) to log 2 (no key in common); 0 on padded rows. Lin 1991.
    """
    p, q = normalise_rows(a, mask), normalise_rows(b, mask)
    entr = torch.special.entr
    return (entr((p + q) / 2) - (entr(p) + entr(q)) / 2).sum(-1).clamp_min(0.0)


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear centred kernel alignment of x (n, p) and y (n, q) -> scalar from 0 to 1.

        CKA = ||Y^T X||^2 / (||X^T X|| ||Y^T Y||),  columns centred, Frobenius norms     (4)

    Row i of x and of y belong to the same example or token; the widths may differ. 1 means equal
    up to a rotation and one scale. 0 where a side does not vary (n = 1, for example). Pass valid
    rows only. Kornblith et al. 2019, arXiv 1905.00414.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise CometError(
            f"x {tuple(x.shape)} and y {tuple(y.shape)} must be (n, p) and (n, q), with the same n."
        )
    x, y = x.double(), y.double()
    if not len(x):
        return x.new_zeros(())
    x, y = x - x.mean(0), y - y.mean(0)
    scale = (x.T @ x).norm() * (y.T @ y).norm()
    return (y.T @ x).square().sum() / scale.clamp_min(torch.finfo(scale.dtype).tiny)


def cka_table(xs: Tensor, ys: Tensor) -> Tensor:
    """Linear CKA, eq. (4), of every x with every y: (S, n, p) and (T, n, q) -> (S, T).

    Equal to :func:`linear_cka` pair by pair, but each side's (n, n) product is made once:
    ||Y^T X||^2 is the sum of (X X^T) * (Y Y^T) over their entries.
    """
    if xs.ndim != 3 or ys.ndim != 3 or xs.shape[1] != ys.shape[1]:
        raise CometError(
            f"xs {tuple(xs.shape)} and ys {tuple(ys.shape)} must be (S, n, p) and (T, n, q), "
            "with the same n."
        )
    sides = []
    for side in (xs.double(), ys.double()):
        if side.shape[1]:
            side = side - side.mean(1, keepdim=True)
        products = (side @ side.mT).flatten(1)
        length = products.norm(dim=1, keepdim=True)
        sides.append(products / length.clamp_min(torch.finfo(products.dtype).tiny))
    return sides[0] @ sides[1].T


def head_importance(maps: Tensor, gradients: Tensor, mask: Tensor) -> Tensor:
    """How much a loss leans on each head: maps and gradients (B, H, L, L), mask (B, L) -> (H,).

        I_h = mean over the sentences of | sum_qk A_hqk dLoss/dA_hqk |                   (6)

    The inner sum is the loss's derivative by a gate on the head, at 1 (Michel et al. 2019, arXiv
    1905.10650, eq. 2). ``maps`` come from :func:`capture` with ``heads=True``, ``gradients`` from
    ``torch.autograd.grad(loss, maps)`` for a loss made from the maps, summed over the batch, not
    averaged. Padding does not count, and a sentence of padding alone is left out of the mean.
    """
    pairs = valid_pairs(mask)
    if maps.ndim != 4 or maps.shape != gradients.shape or maps[:, 0].shape != pairs.shape:
        raise CometError(
            f"maps {tuple(maps.shape)} and gradients {tuple(gradients.shape)} must both be "
            f"(B, H, L, L), of the batch and length of mask {tuple(mask.shape)}."
        )
    dtype = torch.promote_types(maps.dtype, torch.float32)
    product = (maps.to(dtype) * gradients.to(dtype)).masked_fill(~pairs[:, None], 0.0)
    sentences = mask.bool().any(-1).sum().clamp_min(1)
    return product.sum((-2, -1)).abs().sum(0) / sentences


def rollout(
    maps_by_layer: Mapping[int, Tensor] | Sequence[Tensor], mask: Tensor | None = None
) -> Tensor:
    """Attention rollout: how much of each input token reaches each token of the last layer.

        R_0 = I,    R_l = rownorm(0.5 A_l + 0.5 I) R_(l-1)                               (5)

    Maps (B, L, L) of all layers, as a dict from layer number or a list from the first layer up ->
    (B, L, L), rows (upper tokens) summing to one. With ``mask`` (B, L) all that touches padding is
    zero. The 0.5 I stands for the residual connection. Abnar and Zuidema 2020, arXiv 2005.00928.
    """
    maps = maps_by_layer
    ordered = [maps[i] for i in sorted(maps)] if isinstance(maps, Mapping) else list(maps)
    if not ordered or any(m.ndim != 3 or m.shape != ordered[0].shape for m in ordered):
        raise CometError("rollout needs at least one map, all of the same shape (B, L, L).")
    batch, length, _ = ordered[0].shape
    dtype = torch.promote_types(ordered[0].dtype, torch.float32)
    eye = torch.eye(length, dtype=dtype, device=ordered[0].device)
    full = torch.ones(batch, length, device=eye.device) if mask is None else mask
    result = eye.expand(batch, -1, -1).masked_fill(~valid_pairs(full), 0.0)
    for layer in ordered:
        result = normalise_rows(0.5 * layer.to(dtype) + 0.5 * eye, full) @ result
    return result
