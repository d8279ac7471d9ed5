"""Right and wrong answers to the exercises of notebook 02."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from comet_lib.models import count_parameters, on_meta, xlmr_config

Answer = Callable[..., Any]


def built(v: int, d: int, n: int, h: int, f: int, m: int) -> Any:
    """The model itself, without memory for its weights."""
    shape = {
        "hidden_size": d,
        "num_hidden_layers": n,
        "num_attention_heads": h,
        "intermediate_size": f,
    }
    return on_meta(xlmr_config(shape, v, m))


def emb(v: int, d: int, m: int) -> int:
    return v * d + (m + 2) * d + d + 2 * d


def layer(d: int, f: int, h: int) -> int:
    return 4 * (d * d + d) + 2 * d + (d * f + f) + (f * d + d) + 2 * d


def whole(v: int, d: int, n: int, h: int, f: int, m: int) -> int:
    return emb(v, d, m) + n * layer(d, f, h) + d * d + d


def flops(d: int, f: int, n: int, length: int) -> int:
    return n * (8 * d * d + 4 * length * d + 4 * d * f)


SOLUTIONS: dict[str, list[Answer]] = {
    "embedding_parameters": [
        emb,
        lambda v, d, m: torch.tensor(d * (v + m + 5)),
        lambda v, d, m: np.int64(emb(v, d, m)),
        lambda v, d, m: count_parameters(built(v, d, 1, 1, 4, m).embeddings),
    ],
    "layer_parameters": [
        layer,
        lambda d, f, h: 4 * d**2 + 2 * d * f + 9 * d + f,
        lambda d, f, h: h * (3 * d * (d // h) + 3 * (d // h)) + layer(d, f, h) - 3 * (d * d + d),
        lambda d, f, h: count_parameters(built(9, d, 1, h, f, 9).encoder.layer[0]),
    ],
    "student_parameters": [whole, lambda *sizes: count_parameters(built(*sizes))],
    "flops_per_token": [
        flops,
        lambda d, f, n, length: 2.0 * n * (4 * d**2 + 2 * length * d + 2 * d * f),
    ],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "embedding_parameters": {
        "one row": (lambda v, d, m: d * (v + m + 2 + 2), "one row of"),
        "two rows": (lambda v, d, m: d * (v + m + 2 + 1), "two rows of"),
        "three rows": (lambda v, d, m: d * (v + m + 2), "three rows of"),
        "four rows": (lambda v, d, m: d * (v + m + 1), "four rows of"),
        "five rows": (lambda v, d, m: d * (v + m), "five rows of"),
        "words": (lambda v, d, m: d * v, "only the word embeddings"),
        "no positions": (lambda v, d, m: d * (v + 3), "position embeddings are missing"),
        "no words": (lambda v, d, m: d * (m + 5), "word embeddings are missing"),
        "tied": (lambda v, d, m: emb(v, d, m) + v * d, "counted twice"),
        "rows": (lambda v, d, m: v + m + 5, "rows are counted, not numbers"),
        "bytes": (lambda v, d, m: 4 * emb(v, d, m), "these are bytes"),
        "product": (lambda v, d, m: d * (v * (m + 2) + 3), "are multiplied"),
        "two slips": (lambda v, d, m: d * (2 * v + m + 3), "two things at once"),
        "float32": (
            lambda v, d, m: torch.tensor(float(d)) * (v + m + 5),
            "right at small sizes",
        ),
        "tuple": (lambda v, d, m: (v * d, m * d), "returned a tuple"),
        "other": (lambda v, d, m: d**2 * v, "is right, on random input"),
    },
    "layer_parameters": {
        "no feed-forward": (lambda d, f, h: 4 * (d * d + d) + 4 * d, "block is missing"),
        "four times": (lambda d, f, h: layer(d, 4 * d, h), "assumed to be 4 * hidden"),
        "no biases": (lambda d, f, h: 4 * d * d + 2 * d * f + 4 * d, "no bias is counted"),
        "matrices": (lambda d, f, h: 4 * d * d + 2 * d * f, "only the matrices"),
        "two slips": (
            lambda d, f, h: layer(d, f, h) - d * d - d - f * d - d,
            "two things at once",
        ),
        "other": (lambda d, f, h: d * f * h, "is right, on random input"),
    },
    "student_parameters": {
        "poolers": (
            lambda v, d, n, h, f, m: emb(v, d, m) + n * (layer(d, f, h) + d * d + d),
            "pooler in every layer",
        ),
        "one layer": (
            lambda v, d, n, h, f, m: whole(v, d, 1, h, f, m),
            "only one layer is counted",
        ),
        "no layer": (lambda v, d, n, h, f, m: whole(v, d, 0, h, f, m), "layers are missing"),
        "heads": (
            lambda v, d, n, h, f, m: whole(v, d, n * h, h, f, m),
            "heads multiplies the layers",
        ),
        "no embeddings": (
            lambda v, d, n, h, f, m: n * layer(d, f, h) + d * d + d,
            "the embeddings are missing",
        ),
        "embeddings": (
            lambda v, d, n, h, f, m: n * (emb(v, d, m) + layer(d, f, h)) + d * d + d,
            "embeddings in every layer",
        ),
        "words": (
            lambda v, d, n, h, f, m: v * d + n * layer(d, f, h) + d * d + d,
            "only the word table",
        ),
        "two slips": (
            lambda v, d, n, h, f, m: v * d + n * layer(d, f, h),
            "two things at once",
        ),
        "rounded": (
            lambda *s: np.float32(whole(*s)) + np.float32(0),
            "right at small sizes",
        ),
    },
    "flops_per_token": {
        "multiply-adds": (lambda d, f, n, t: flops(d, f, n, t) / 2, "multiply-adds are counted"),
        "backward": (lambda d, f, n, t: flops(d, f, n, t) * 3, "backward pass"),
        "one layer": (lambda d, f, n, t: flops(d, f, 1, t), "only one layer"),
        "whole text": (lambda d, f, n, t: flops(d, f, n, t) * t, "for the whole text"),
        "no scores": (lambda d, f, n, t: flops(d, f, n, 0), "attention products are missing"),
        "no values": (
            lambda d, f, n, t: flops(d, f, n, t) - 2 * n * t * d,
            "only one of the two attention products",
        ),
        "squared": (lambda d, f, n, t: flops(d, f, n, t * t), "length squared"),
        "no length": (lambda d, f, n, t: flops(d, f, n, 1), "do not grow with the length"),
        "no output": (lambda d, f, n, t: flops(d, f, n, t) - 2 * n * d * d, "output matrix"),
        "one projection": (
            lambda d, f, n, t: flops(d, f, n, t) - 6 * n * d * d,
            "only one projection",
        ),
        "one way": (
            lambda d, f, n, t: flops(d, f, n, t) - 2 * n * d * f,
            "only one feed-forward matrix",
        ),
        "no feed-forward": (lambda d, f, n, t: flops(d, 0, n, t), "feed-forward block is missing"),
        "biases": (
            lambda d, f, n, t: flops(d, f, n, t) + 2 * n * (9 * d + f),
            "biases and LayerNorms",
        ),
        "two slips": (
            lambda d, f, n, t: 2 * n * (layer(d, f, 1)),
            "two things at once",
        ),
        "other": (lambda d, f, n, t: d * f * n * t, "is right, on random input"),
    },
}
