"""What attention maps say: how spread out they are, how alike, and how they add up over layers.

Shapes: B sequences, L tokens. ``mask`` is the (B, L) attention mask: 1 for a token, 0 for padding.
Logarithms are natural (nats). A wrong shape raises :class:`CometError`. Equation (1), the map
itself, is in :mod:`comet_lib.attention`.
"""

import torch
from torch import Tensor

from comet_lib.errors import CometError
from comet_lib.losses import ByLayer, check_shapes, in_order, normalize_rows, valid_pairs


def entropy(maps: Tensor, mask: Tensor) -> Tensor:
    """Mean entropy of the valid query rows, in nats: maps (B, L, L), mask (B, L) -> scalar.

        H_q = - sum_k p_qk log p_qk                                                      (2)

    Zero: each token looks at one token. log n: it looks at all n tokens of its sentence equally. A
    batch of only padding gives 0.
    """
    rows = torch.special.entr(normalize_rows(maps, mask)).sum(-1)  # (B, L), padded rows 0
    return rows.sum() / mask.sum().clamp_min(1)


def js_divergence(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Jensen-Shannon divergence of each query row, in nats: (B, L, L) twice, (B, L) -> (B, L).

        JS = H((p + q) / 2) - (H(p) + H(q)) / 2                                          (3)

    From 0 (equal rows) to log 2 (no key in common); 0 on padded rows. Lin 1991.
    """
    p, q = normalize_rows(a, mask), normalize_rows(b, mask)
    entr = torch.special.entr
    return (entr((p + q) / 2) - (entr(p) + entr(q)) / 2).sum(-1).clamp_min(0.0)


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear centered kernel alignment of x (..., n, p) and y (..., n, q) -> (...), from 0 to 1.

        CKA = ||Y^T X||^2 / (||X^T X|| ||Y^T Y||),  columns centered, Frobenius norms     (4)

    Row i of x and row i of y belong to the same example or token; the widths may differ. 1 means
    equal up to a rotation and one scale; 0 if a side does not vary (n = 1, for example). Pass only
    valid rows. Kornblith et al. 2019, arXiv 1905.00414.
    """
    fit = x.ndim > 1 and y.ndim > 1 and x.shape[-2] == y.shape[-2]
    check_shapes(fit, "(..., n, p) and (..., n, q), with the same n", x=x, y=y)
    x, y = (side.double() - side.double().mean(-2, keepdim=True) for side in (x, y))
    norm = torch.linalg.matrix_norm
    scale = norm(x.mT @ x) * norm(y.mT @ y)
    return norm(y.mT @ x).square() / scale.clamp_min(torch.finfo(scale.dtype).tiny)


def cka_table(xs: Tensor, ys: Tensor) -> Tensor:
    """Linear CKA, eq. (4), of every x with every y: (S, n, p) and (T, n, q) -> (S, T)."""
    return linear_cka(xs[:, None], ys[None])


def rollout(maps_by_layer: ByLayer, mask: Tensor | None = None) -> Tensor:
    """Attention rollout: how much of each input token reaches each token of the last layer.

        R_0 = I,    R_l = rownorm(0.5 A_l + 0.5 I) R_(l-1)                               (5)

    Maps (B, L, L) of all layers, as a dict from layer number or a list from the first layer up ->
    (B, L, L), rows (upper tokens) summing to one. With ``mask`` (B, L), everything that touches
    padding is zero. The 0.5 I stands for the residual connection. Abnar and Zuidema 2020, arXiv
    2005.00928.
    """
    ordered = in_order(maps_by_layer)
    if not ordered or any(m.ndim != 3 or m.shape != ordered[0].shape for m in ordered):
        raise CometError("rollout needs at least one map, all of the same shape (B, L, L).")
    batch, length, _ = ordered[0].shape
    dtype = torch.promote_types(ordered[0].dtype, torch.float32)
    eye = torch.eye(length, dtype=dtype, device=ordered[0].device)
    full = torch.ones(batch, length, device=eye.device) if mask is None else mask
    result = eye.expand(batch, -1, -1).masked_fill(~valid_pairs(full), 0.0)
    for layer in ordered:
        result = normalize_rows(0.5 * layer.to(dtype) + 0.5 * eye, full) @ result
    return result
