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

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from comet_lib.errors import CometError, pick

NAME = "head_mean"  # our attention's name in transformers
Layers = Sequence[int] | None  # the chosen layers; None: all
OTHERS = "use a model such as XLM-R, BERT or ModernBERT."

# What the open captures do with each call of our attention. It is not kept on the modules, so that
# a model can be copied and pickled while a capture is open.
_OPEN: list[Callable[..., None]] = []


def head_mean_attention(module: nn.Module, *tensors: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """The layer's output by sdpa; in a layer chosen by :func:`capture`, what it reads is kept.

    ``tensors`` are query (B, H, L, d), key and value (B, H or fewer, L, d), and a mask or None.
    """
    for keep in _OPEN:
        keep(module, *tensors, **kwargs)
    return sdpa_attention_forward(module, *tensors, **kwargs)


# Register both: without the second, transformers would hand our function no mask at all.
AttentionInterface.register(NAME, head_mean_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _read_map(module: nn.Module, *tensors: Any, heads: bool, small: bool, **kwargs: Any) -> Tensor:
    """The map of one layer, eq. (1)."""
    query, key, _, mask = tensors
    scaling, causal = kwargs.get("scaling"), kwargs.get("is_causal")
    if kwargs.get("position_bias") is not None:
        raise CometError(
            f"{type(module).__name__} adds a position bias, which capture cannot read: {OTHERS}"
        )
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if mask is None and causal:  # sdpa builds this mask itself, so it did not reach us
        square = torch.ones(1, 1, query.shape[2], key.shape[2], device=query.device)
        mask = square.tril().bool()
    found = attention_weights(query, repeat_kv(key, query.shape[1] // key.shape[1]), mask, scaling)
    return (found if heads else found.mean(1)).to(torch.float16 if small else query.dtype)


def _read_qkv(module: nn.Module, *tensors: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """Queries, keys and values of one layer, the heads side by side again."""
    return tuple(x.transpose(1, 2).flatten(2) for x in tensors[:3])


def _read_output(module: nn.Module, inputs: Any, output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


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


def encoder_layers(model: nn.Module) -> nn.ModuleList:
    """The encoder's layers, in order; raises :class:`CometError` for anything but an encoder of
    transformers with one list of layers."""
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
        f"{name} keeps no list of {count} layers (it may share one), so capture cannot tell them "
        f"apart: {OTHERS}"
    )


@contextmanager
def _collecting(
    model: PreTrainedModel, layers: Layers, read: Callable[..., Any]
) -> Iterator[dict[int, Any]]:
    """A dict from each chosen layer to what ``read`` takes from its attention, or its output.

    Every forward pass of the encoder empties the dict. Within one pass, the first find of a layer
    stays: gradient checkpointing runs the layers again during the backward pass, and keeping that
    second find would hold on to the very activations that checkpointing lets go.
    """
    blocks, name = encoder_layers(model), type(model).__name__
    count = len(blocks)
    wanted = range(count) if layers is None else layers
    wrong = [layer for layer in wanted if not -count <= layer < count]
    if wrong:
        raise CometError(
            f"layers names layer {wrong[0]}, but {name} has {count}: use {-count} to {count - 1}."
        )
    chosen = {layer % count for layer in wanted}
    encoder = next(module for module in model.modules() if blocks in module.children())
    # One module of a layer attends. Modules of a copy, which has our hooks too, are not in here.
    places = {module: layer for layer in chosen for module in blocks[layer].modules()}
    found: dict[int, Any] = {}

    def begin(module: nn.Module, inputs: Any) -> None:
        if module is encoder:
            found.clear()

    def keep(module: nn.Module, *args: Any, **kwargs: Any) -> None:
        if module in places:
            found.setdefault(places[module], read(module, *args, **kwargs))

    with ExitStack() as undo:
        undo.callback(encoder.register_forward_pre_hook(begin).remove)
        if read is _read_output:
            for layer in chosen:
                undo.callback(blocks[layer].register_forward_hook(keep).remove)
        else:
            undo.callback(model.set_attn_implementation, model.config._attn_implementation)
            model.set_attn_implementation(NAME)
            if model.config._attn_implementation != NAME:  # transformers only warns
                raise CometError(
                    f"{name} does not use transformers' attention interface, which capture "
                    f"needs: {OTHERS}"
                )
            _OPEN.append(keep)
            undo.callback(_OPEN.remove, keep)
        yield found


def capture(
    model: PreTrainedModel, layers: Layers = None, heads: bool = False, small: bool = False
) -> AbstractContextManager[dict[int, Tensor]]:
    """Collect attention maps from every forward pass inside a ``with`` block.

    Yields a dict from layer number (0 is the first; -1 in ``layers`` means the last) to a map
    (B, L, L), or (B, H, L, L) with ``heads=True``, in the dtype of the queries. Each forward pass
    replaces the maps of the one before. They hold no dropout, so rows sum to one even in training
    mode, and gradients flow through them. Rows of padded queries mean nothing: mask them
    (:func:`comet_lib.losses.valid_pairs`).

    ``layers`` defaults to all. ``small`` saves memory when you want all of them at once: maps are
    float16. Captures may be nested. Leaving the block, even by an exception, restores the former
    attention implementation.

    One capture can stay open for a whole training: checkpoints saved inside do not name our
    attention, and an evaluation inside only replaces the maps. With gradient checkpointing, call
    ``backward()`` inside the block, because it runs the layers again, and use
    ``use_reentrant=False``: the other kind runs the first pass without gradients.

    Raises :class:`CometError` for a layer out of range, a model with cross-attention, or one that
    does not use transformers' attention interface (DeBERTa, for example).
    """
    return _collecting(model, layers, partial(_read_map, heads=heads, small=small))


def capture_qkv(
    model: PreTrainedModel, layers: Layers = None
) -> AbstractContextManager[dict[int, tuple[Tensor, Tensor, Tensor]]]:
    """Collect queries, keys and values, with the rules and errors of :func:`capture`.

    Yields a dict from layer number to three tensors (B, L, width), the heads side by side, with
    gradients. Models with fewer key heads than query heads give narrower keys and values.
    """
    return _collecting(model, layers, _read_qkv)


def capture_hidden(
    model: PreTrainedModel, layers: Layers = None
) -> AbstractContextManager[dict[int, Tensor]]:
    """Collect the chosen layers' outputs (B, L, width) from every forward pass, with gradients.

    Layer 0 is the first layer, not the embeddings. Layers, replacement and errors as in
    :func:`capture`, but any attention implementation will do.
    """
    return _collecting(model, layers, _read_output)


def capture_maps(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    layers: Layers = None,
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
        raise CometError(f"{type(model).__name__} never called our attention: {OTHERS}")
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
        raise CometError(f"a student of {s} layers has no map to a teacher of {t}: use 1 to {t}.")
    rules: dict[str, Callable[[int], int]] = {
        "uniform": lambda i: (i + 1) * t // s - 1,
        "skip": lambda i: i * t // s,
        "last": lambda i: t - s + i,
    }
    return [pick("how", how, rules)(i) for i in range(s)]
