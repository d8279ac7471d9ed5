"""Attention maps without the cost: capture the head mean of chosen layers.

transformers returns attention maps only from its slow "eager" attention, for every layer and every
head at once, and in training mode after dropout. :func:`capture` asks for less. The layers keep
running fast sdpa attention; beside it, only the chosen layers compute

    A = softmax(Q K^T * scaling + mask),    map = mean over the heads of A               (1)

before dropout, with gradients. One map is L x L numbers for each sequence.

Shapes: B sequences, H heads, L tokens, d numbers per head. What the maps say is measured in
:mod:`comet_lib.similarity`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from comet_lib.errors import CometError

NAME = "head_mean"  # our attention's name in transformers

# For each module: what to read of its attention, and what keeps it. Beside the modules, not on
# them, so that a model can be copied and pickled while a capture is open.
_READERS: WeakKeyDictionary[nn.Module, list[tuple[Callable, Callable]]] = WeakKeyDictionary()


def head_mean_attention(module: nn.Module, *tensors: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """The layer's output by sdpa; in a layer chosen by :func:`capture`, what it reads is kept.

    ``tensors`` are query (B, H, L, d), key and value (B, H or fewer, L, d), and a mask or None.
    """
    for read, keep in _READERS.get(module, ()):
        keep(read(module, *tensors, **kwargs))
    return sdpa_attention_forward(module, *tensors, **kwargs)


# Register both: without the second, transformers would hand our function no mask at all.
AttentionInterface.register(NAME, head_mean_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _read_map(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    heads: bool,
    small: bool,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """The map of one layer, eq. (1)."""
    if position_bias is not None:
        raise CometError(
            f"{type(module).__name__} adds a position bias to its attention, which capture "
            "does not support: use a model without it, such as XLM-R or BERT."
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and causal:  # sdpa builds this mask itself, so it did not reach us
        square = torch.ones(query.shape[2], key.shape[2], device=query.device)
        attention_mask = square.tril().bool()
    keys = repeat_kv(key, query.shape[1] // key.shape[1])
    if small and not heads:
        found = _mean_head_by_head(query, keys, attention_mask, scaling)
    else:
        found = attention_weights(query, keys, attention_mask, scaling)
        found = found if heads else found.mean(1)
    return found.to(torch.float16 if small else query.dtype)


def _read_qkv(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, ...]:
    """Queries, keys and values of one layer, the heads side by side again."""
    return tuple(x.transpose(1, 2).flatten(2) for x in (query, key, value))


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
        # The lowest number, not -inf: a row of only padding becomes uniform, never NaN.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1)


def _mean_head_by_head(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """The mean over the heads, (B, L, L), with the weights of one head in memory at a time."""
    total: Any = 0
    for h in range(query.shape[1]):
        own = mask if mask is None or mask.shape[1] == 1 else mask[:, h : h + 1]
        total = total + attention_weights(query[:, h : h + 1], key[:, h : h + 1], own, scaling)
    return total[:, 0] / query.shape[1]


def encoder_layers(model: nn.Module) -> nn.ModuleList:
    """The encoder's layers, in order.

    Raises:
        CometError: not a transformers model, a model with cross-attention, or no list of layers.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise CometError(f"model is a {name}: capture needs a transformers PreTrainedModel.")
    flags = ("is_encoder_decoder", "add_cross_attention")
    if any(getattr(model.config, flag, False) for flag in flags):
        raise CometError(f"{name} has cross-attention: capture works only on encoders.")
    count = getattr(model.config, "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise CometError(
        f"{name} keeps no list of {count} layers (it may share one layer), so capture cannot "
        "tell its layers apart: use a model such as XLM-R, BERT, DistilBERT or ModernBERT."
    )


@contextmanager
def _collecting(
    model: PreTrainedModel, layers: Sequence[int] | None, read: Callable[..., Any] | None
) -> Iterator[dict[int, Any]]:
    """A dict from each chosen layer to what ``read`` takes from its attention, or to its output.

    Every forward pass of the encoder empties the dict. Within one pass, the first find of a layer
    stays: gradient checkpointing runs the layers again during the backward pass, and keeping that
    second find would hold on to the very activations that checkpointing lets go.
    """
    blocks, name = encoder_layers(model), type(model).__name__
    count = len(blocks)
    for layer in layers or ():
        if not -count <= layer < count:
            raise CometError(
                f"layers names layer {layer}, but {name} has {count}: "
                f"use 0 to {count - 1}, or -{count} to -1 from the end."
            )
    chosen = sorted({layer % count for layer in (range(count) if layers is None else layers)})
    encoder = next(module for module in model.modules() if blocks in module.children())
    found: dict[int, Any] = {}

    def begin(module: nn.Module, inputs: Any) -> None:
        if module is encoder:  # not a copy of it, which has the hook too
            found.clear()

    def keep_output(module: nn.Module, inputs: Any, output: Any) -> None:
        for layer in chosen:
            if module is blocks[layer]:
                found.setdefault(layer, output[0] if isinstance(output, tuple) else output)

    with ExitStack() as undo:
        undo.callback(encoder.register_forward_pre_hook(begin).remove)
        if read is not None:
            undo.callback(model.set_attn_implementation, model.config._attn_implementation)
            model.set_attn_implementation(NAME)
            if model.config._attn_implementation != NAME:  # transformers only warns
                raise CometError(
                    f"{name} does not use transformers' attention interface, so its maps cannot "
                    "be captured: use a model such as XLM-R, BERT or ModernBERT."
                )
        for layer in chosen:
            if read is None:
                undo.callback(blocks[layer].register_forward_hook(keep_output).remove)
                continue
            reader = read, partial(found.setdefault, layer)
            for module in blocks[layer].modules():  # one of them attends, and will find its reader
                _READERS.setdefault(module, []).append(reader)
                undo.callback(_READERS[module].remove, reader)
        yield found


def capture(
    model: PreTrainedModel,
    layers: Sequence[int] | None = None,
    heads: bool = False,
    small: bool = False,
) -> AbstractContextManager[dict[int, Tensor]]:
    """Collect attention maps from every forward pass inside a ``with`` block.

    Yields a dict from layer number (0 is the first; -1 in ``layers`` means the last) to a map
    (B, L, L), or (B, H, L, L) with ``heads=True``, in the dtype of the queries. Each forward pass
    replaces the maps of the one before. They hold no dropout, their rows sum to one even in
    training mode, and gradients flow through them. Rows of padded queries mean nothing: mask them
    (:func:`comet_lib.losses.valid_pairs`).

    ``layers`` defaults to all. ``small`` saves memory when you want all of them at once: maps are
    float16, and head means are summed head by head, which takes longer. Captures may be nested.
    Leaving the block, even by an exception, restores the former attention implementation.

    One capture can stay open for a whole training: checkpoints saved inside do not name our
    attention, and an evaluation inside only replaces the maps. With gradient checkpointing, call
    ``backward()`` inside the block, because it runs the layers again, and use
    ``use_reentrant=False``: the other kind runs the first pass without gradients.

    Raises :class:`CometError` for a layer out of range, a model with cross-attention, or one that
    does not use transformers' attention interface (DeBERTa, for example).
    """
    return _collecting(model, layers, partial(_read_map, heads=heads, small=small))


def capture_qkv(
    model: PreTrainedModel, layers: Sequence[int] | None = None
) -> AbstractContextManager[dict[int, tuple[Tensor, Tensor, Tensor]]]:
    """Collect queries, keys and values, with the rules and errors of :func:`capture`.

    Yields a dict from layer number to three tensors (B, L, width), the heads side by side, with
    gradients. Models with fewer key heads than query heads give narrower keys and values.
    """
    return _collecting(model, layers, _read_qkv)


def capture_hidden(
    model: PreTrainedModel, layers: Sequence[int] | None = None
) -> AbstractContextManager[dict[int, Tensor]]:
    """Collect the chosen layers' outputs (B, L, width) from every forward pass, with gradients.

    Layer 0 is the first layer, not the embeddings. Layers, replacement and errors as in
    :func:`capture`, but any attention implementation will do.
    """
    return _collecting(model, layers, None)


def capture_maps(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    layers: Sequence[int] | None = None,
    heads: bool = False,
    small: bool = False,
) -> dict[int, Tensor]:
    """The maps of one forward pass ``model(**inputs)``, in eval mode and without gradients.

    Arguments, keys, shapes and errors as in :func:`capture`; the model's mode is restored.
    """
    training = model.training
    with torch.no_grad(), capture(model, layers, heads, small) as maps:
        try:
            model.eval()(**inputs)
        finally:
            model.train(training)
    if not maps:
        raise CometError(
            f"{type(model).__name__} gave no attention maps: its layers do not call the "
            "attention interface of transformers."
        )
    return maps


def layer_map(student_layers: int, teacher_layers: int, how: str = "uniform") -> list[int]:
    """Which teacher layer (from 0) each student layer learns from.

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
    rules = {
        "uniform": [(i + 1) * t // s - 1 for i in range(s)],
        "skip": [i * t // s for i in range(s)],
        "last": [t - s + i for i in range(s)],
    }
    if how not in rules:
        raise CometError(f'how is "{how}", but must be "uniform", "skip" or "last".')
    return rules[how]
