"""Distillation losses: small pure functions, each with its equation.

Rules that hold for all of them:

- the student comes first, the teacher second; the teacher is detached, it never gets a gradient;
- padding counts for nothing, so more padding changes no loss; a batch of padding alone, or no
  position at all, gives a zero that still has a (zero) gradient, not a NaN;
- half-precision input is computed in float32;
- a wrong shape raises :class:`CometError`.

Shapes: B sequences, L tokens, C classes or pieces, H heads, d the student's width, D the
teacher's. ``mask`` is the (B, L) attention mask: 1 for a token, 0 for padding. sigma is softmax.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comet_lib.attention import normalise_rows, valid_pairs
from comet_lib.errors import CometError

# A student that gives no attention to a key that the teacher looks at would cost infinity.
EPS = 1e-8


def _wide(x: Tensor) -> Tensor:
    """float16 and bfloat16 to float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.shape != teacher.shape:
        raise CometError(
            f"student {what} have shape {tuple(student.shape)} but teacher {what} "
            f"{tuple(teacher.shape)}: they must be equal."
        )


def _check_mask(x: Tensor, mask: Tensor, what: str) -> None:
    if x.ndim != 3 or mask.shape != x.shape[:2]:
        raise CometError(
            f"{what} have shape {tuple(x.shape)} and mask {tuple(mask.shape)}: they must be "
            "(B, L, width) and (B, L)."
        )


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise CometError(f"temperature is {temperature}, but must be above 0.")


# --------------------------------------------------------------------------- soft targets


def soft_target_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
) -> Tensor:
    """Soft targets: logits (..., C) of both -> scalar, the mean over all N leading positions.

        loss = T^2 / N * sum_n KL( sigma(t_n / T) || sigma(s_n / T) )                    (1)

    T^2 keeps the gradient at the same size whatever T. Pass valid or masked positions only
    (:func:`gather_masked`). Hinton, Vinyals and Dean 2015, arXiv 1503.02531.
    """
    _check_temperature(temperature)
    _same_shape(student_logits, teacher_logits, "logits")
    classes = student_logits.shape[-1]
    student = F.log_softmax(_wide(student_logits) / temperature, dim=-1).reshape(-1, classes)
    teacher = F.log_softmax(_wide(teacher_logits.detach()) / temperature, dim=-1).reshape(
        -1, classes
    )
    total = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return total * temperature**2 / max(len(student), 1)


def soft_target_loss_from_probs(
    student_logits: Tensor, teacher_probs: Tensor, temperature: float = 1.0
) -> Tensor:
    """Soft targets from stored probabilities: logits and probabilities (..., C) -> scalar.

        q_nc = p_nc^(1/T) / sum_j p_nj^(1/T)
        loss = T^2 / N * sum_n KL( q_n || sigma(s_n / T) )                               (2)

    This divides log p by T, so for p = sigma(t) it equals eq. (1). Any teacher with probabilities
    will do, a TF-IDF model too. Zeros are fine and stay zero.
    """
    _check_temperature(temperature)
    _same_shape(student_logits, teacher_probs, "outputs")
    probs = _wide(teacher_probs.detach())
    if (probs < 0).any():
        raise CometError("teacher_probs holds negative numbers: pass probabilities, not logits.")
    classes = student_logits.shape[-1]
    student = F.log_softmax(_wide(student_logits) / temperature, dim=-1).reshape(-1, classes)
    # Dividing by the largest first keeps a small p^(1/T) from vanishing at low temperatures.
    tiny = torch.finfo(probs.dtype).tiny
    probs = (probs / probs.amax(-1, keepdim=True).clamp_min(tiny)) ** (1 / temperature)
    probs = (probs / probs.sum(-1, keepdim=True).clamp_min(tiny)).reshape(-1, classes)
    total = F.kl_div(student, probs.to(student.dtype), reduction="sum")  # 0 log 0 is 0 here
    return total * temperature**2 / max(len(student), 1)


def mean_of_teachers(
    probabilities: Sequence[Tensor], weights: Sequence[float] | None = None
) -> Tensor:
    """An ensemble's soft targets: M teachers' probabilities (..., C) -> (..., C).

        p = sum_m w_m p_m / sum_m w_m                                                   (11)

    ``weights`` w are equal by default. For :func:`soft_target_loss_from_probs`. Hinton, Vinyals and
    Dean 2015, section 3 (arXiv 1503.02531); with an earlier student of the same size as the
    teacher, or as one of them, it is a born-again network (Furlanello et al. 2018, arXiv
    1805.04770).
    """
    weights = [1.0] * len(probabilities) if weights is None else list(weights)
    if not len(probabilities) or len(weights) != len(probabilities):
        raise CometError(
            f"there are {len(probabilities)} teachers and {len(weights)} weights: give at least "
            "one teacher, and one weight for each."
        )
    if min(weights) < 0 or not sum(weights) > 0:
        raise CometError(f"weights are {weights}: none may be negative, and one must be above 0.")
    total = torch.zeros_like(_wide(probabilities[0]))
    for probs, weight in zip(probabilities, weights, strict=True):
        if probs.shape != total.shape:
            raise CometError(
                f"teachers' probabilities have shapes {tuple(total.shape)} and "
                f"{tuple(probs.shape)}: they must be equal."
            )
        if (probs < 0).any():
            raise CometError("probabilities holds negative numbers: pass no logits.")
        total = total + weight / sum(weights) * _wide(probs.detach())
    return total


def soft_target_loss_topk(
    student_logits: Tensor,
    indices: Tensor,
    teacher_logprobs: Tensor,
    teacher_tail: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Soft targets from the teacher's k likeliest classes and one number for all others -> scalar.

        p_nj, j in top_n: the teacher's top k at temperature T;   p_n* = 1 - sum_j p_nj
        q_n = sigma(s_n / T);                                     q_n* = 1 - sum_(j in top_n) q_nj
        loss = T^2 / N * sum_n [ sum_(j in top_n) p_nj log(p_nj / q_nj) + p_n* log(p_n* / q_n*) ]
                                                                                        (10)

    ``student_logits`` (N, C); ``indices`` (N, k), no class twice in a row; ``teacher_logprobs``
    (N, k), log p_nj; ``teacher_tail`` (N,), log p_n*. Both are stored numbers, **at temperature
    T already** (:func:`topk_of_logits`), and may be rounded: p_n and p_n* are first made to sum to
    one. With k = C it equals eq. (1); with fewer it is never above it, since it does not see how
    the others share the tail.
    """
    _check_temperature(temperature)
    rows, classes = student_logits.shape[0], student_logits.shape[-1]
    k = indices.shape[-1]
    if (
        student_logits.ndim != 2
        or indices.shape != (rows, k)
        or teacher_logprobs.shape != (rows, k)
        or teacher_tail.shape != (rows,)
        or k > classes
    ):
        raise CometError(
            f"student logits {tuple(student_logits.shape)}, indices {tuple(indices.shape)}, "
            f"teacher_logprobs {tuple(teacher_logprobs.shape)} and teacher_tail "
            f"{tuple(teacher_tail.shape)} must be (N, C), (N, k), (N, k) and (N,), k at most C."
        )
    indices = indices.long()
    scaled = _wide(student_logits) / temperature
    top = scaled.gather(1, indices)
    teacher = _wide(teacher_logprobs.detach())
    if k == classes:  # no tail: its logarithm would be minus infinity
        student, teacher = top.log_softmax(-1), teacher.log_softmax(-1)
    else:
        # The tail's logits are summed by themselves: 1 - sum(top) would round to nothing.
        tail = scaled.scatter(1, indices, -torch.inf).logsumexp(-1, keepdim=True)
        student = torch.cat([top, tail], -1).log_softmax(-1)
        last = _wide(teacher_tail.detach())[:, None].clamp_min(-1e30)  # an empty tail: 0, not NaN
        teacher = torch.cat([teacher, last], -1).log_softmax(-1)
    total = F.kl_div(student, teacher.to(student.dtype), reduction="sum", log_target=True)
    return total * temperature**2 / max(rows, 1)


def topk_of_logits(logits: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, ...]:
    """What eq. (10) stores of logits (N, C): indices (N, k), log p (N, k), log tail (N,).

    At ``temperature``, likeliest first; k above C means C. The tail of k = C is minus infinity.
    """
    _check_temperature(temperature)
    logprobs = (_wide(logits.detach()) / temperature).log_softmax(-1)
    top, indices = logprobs.topk(min(k, logits.shape[-1]), dim=-1)
    return indices, top, logprobs.scatter(1, indices, -torch.inf).logsumexp(-1)


def gather_masked(hidden: Tensor, labels: Tensor, ignore: int = -100) -> Tensor:
    """Hidden states (B, L, d) and labels (B, L) -> (N, d), the N positions with a real label.

    Apply the masked-LM head to the result, not to all positions: the full (B, L, vocabulary)
    logits can take gigabytes. The labels to go with it are ``labels[labels != ignore]``.
    """
    _check_mask(hidden, labels, "hidden states")
    return hidden[labels != ignore]


# --------------------------------------------------------------------------- attention


def attention_mse(student_maps: Tensor, teacher_maps: Tensor, mask: Tensor) -> Tensor:
    """Squared error of two maps (B, L, L) over the valid pairs alone -> scalar.

        loss = sum_(b,q,k valid) (S_bqk - T_bqk)^2 / number of valid (b, q, k)           (3)

    Entries of a map over L keys are near 1/L, so this number is small, and so is its gradient.
    After TinyBERT (Jiao et al. 2020, arXiv 1909.10351), there on the scores before the softmax.
    """
    _same_shape(student_maps, teacher_maps, "maps")
    pairs = valid_pairs(mask)
    if student_maps.shape != pairs.shape:
        raise CometError(
            f"maps have shape {tuple(student_maps.shape)} and mask {tuple(mask.shape)}: "
            "they must be (B, L, L) and (B, L)."
        )
    error = (_wide(student_maps) - _wide(teacher_maps.detach())).masked_fill(~pairs, 0.0)
    return error.square().sum() / pairs.sum().clamp_min(1)


def attention_kl(student_maps: Tensor, teacher_maps: Tensor, mask: Tensor) -> Tensor:
    """Row-wise KL(teacher || student) of two maps (B, L, L), mean over valid rows -> scalar.

        loss = 1 / rows * sum_(b,q valid) sum_(k valid) T_bqk log(T_bqk / S_bqk)         (4)

    Each row is first made to sum to one over its valid keys. Unlike eq. (3) its size does not
    depend on the length. S is kept above 1e-8. After Wang et al. 2020 (MiniLM, arXiv 2002.10957).
    """
    _same_shape(student_maps, teacher_maps, "maps")
    student = normalise_rows(student_maps, mask).clamp_min(EPS)
    teacher = normalise_rows(teacher_maps.detach(), mask)  # zero at padding, so is each term
    rows = (torch.xlogy(teacher, teacher) - teacher * student.log()).sum(-1)  # (B, L)
    return rows.sum() / mask.sum().clamp_min(1)


def attention_loss(
    student: Mapping[int, Tensor] | Sequence[Tensor],
    teacher: Mapping[int, Tensor] | Sequence[Tensor],
    mask: Tensor,
    kind: str = "kl",
) -> Tensor:
    """Mean over matched layers of eq. (4), ``kind="kl"``, or of eq. (3), ``kind="mse"``.

    ``student`` and ``teacher`` are maps by layer, lists or the dicts of ``capture``; a dict is
    taken in the order of its layer numbers. The i-th of one is matched with the i-th of the other.
    """
    losses = {"kl": attention_kl, "mse": attention_mse}
    if kind not in losses:
        raise CometError(f'kind is "{kind}", but must be "kl" or "mse".')
    pairs = [[x[i] for i in sorted(x)] if isinstance(x, Mapping) else x for x in (student, teacher)]
    if not pairs[0] or len(pairs[0]) != len(pairs[1]):
        raise CometError(
            f"student has {len(pairs[0])} maps and teacher {len(pairs[1])}: give one teacher "
            "map for each student map, at least one (see layer_map)."
        )
    each = [losses[kind](s, t, mask) for s, t in zip(*pairs, strict=True)]
    return torch.stack(each).mean()


class HeadMix(nn.Module):
    """A learned mix of H attention heads: (B, H, L, L) -> (B, L, L).

        map = sum_h w_h A_h,   w = sigma(theta)                                          (5)

    theta starts at zero, so the mix starts as the head mean. The weights are positive and sum to
    one, so the rows of the map still do. It costs H parameters and fits any length.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(num_heads))

    def forward(self, maps: Tensor) -> Tensor:
        if maps.ndim != 4 or maps.shape[1] != len(self.theta):
            raise CometError(
                f"maps have shape {tuple(maps.shape)}, but HeadMix({len(self.theta)}) needs "
                f"(B, {len(self.theta)}, L, L): capture with heads=True."
            )
        return torch.einsum("h,bhqk->bqk", self.theta.softmax(0).to(maps.dtype), maps)


def projection_parameters(length: int, kind: str = "none", heads: int = 8) -> int:
    """How many parameters it costs to project a student's L x L map before it is compared.

    "none": 0; "head_mix": one for each head; "linear": a ``Linear(L*L, L*L)`` with its bias, which
    also fixes the length.
    """
    counts = {"none": 0, "head_mix": heads, "linear": length**4 + length**2}
    if kind not in counts:
        raise CometError(f'kind is "{kind}", but must be "none", "head_mix" or "linear".')
    return counts[kind]


def hybrid_loss(soft: Tensor, attention: Tensor, alpha: float) -> Tensor:
    """Two scalar losses -> scalar:  alpha * soft + (1 - alpha) * attention              (6)"""
    if not 0 <= alpha <= 1:
        raise CometError(f"alpha is {alpha}, but must be from 0 to 1.")
    return alpha * soft + (1 - alpha) * attention


# ------------------------------------------------------------------- states and relations


def _project_states(
    student: Tensor, teacher: Tensor, mask: Tensor, projection: nn.Module | None
) -> tuple[Tensor, Tensor]:
    _check_mask(student, mask, "student hidden states")
    student = student if projection is None else projection(student)
    _same_shape(student, teacher, "hidden states")
    return _wide(student), _wide(teacher.detach())


def hidden_state_mse(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    mask: Tensor,
    projection: nn.Module | None = None,
) -> Tensor:
    """Squared error of hidden states (B, L, d) and (B, L, D) over valid tokens -> scalar.

        loss = sum_(b,i valid) || W s_bi - t_bi ||^2 / (D * number of valid tokens)      (7)

    ``projection`` is W, a ``Linear(d, D)`` that is trained with the student; None needs d = D.
    TinyBERT (Jiao et al. 2020, arXiv 1909.10351).
    """
    student, teacher = _project_states(student_hidden, teacher_hidden, mask, projection)
    error = (student - teacher).masked_fill(~mask.bool()[:, :, None], 0.0)
    return error.square().sum() / (mask.sum().clamp_min(1) * teacher.shape[-1])


def hidden_cosine(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    mask: Tensor,
    projection: nn.Module | None = None,
) -> Tensor:
    """One minus the cosine of hidden states (B, L, d) and (B, L, D), valid tokens -> scalar.

        loss = sum_(b,i valid) (1 - cos(W s_bi, t_bi)) / number of valid tokens          (8)

    ``projection`` as in eq. (7). DistilBERT (Sanh et al. 2019, arXiv 1910.01108).
    """
    student, teacher = _project_states(student_hidden, teacher_hidden, mask, projection)
    distance = 1 - F.cosine_similarity(student, teacher, dim=-1)  # (B, L)
    return distance.masked_fill(~mask.bool(), 0.0).sum() / mask.sum().clamp_min(1)


def qkv_relation_kl(
    student_qkv: Sequence[Tensor],
    teacher_qkv: Sequence[Tensor],
    mask: Tensor,
    relation_heads: int,
) -> Tensor:
    """Self-attention relations: queries, keys and values, each (B, L, width) -> scalar.

        R(A)  = sigma(A A^T / sqrt(width / heads))  for A in Q, K, V, in each of r heads
        loss  = sum over Q, K, V of the mean over heads and valid rows of KL(R_T || R_S)  (9)

    Both models' width is cut into the same number of relation heads, so neither widths nor
    attention heads need be equal. MiniLMv2 (Wang et al. 2021, arXiv 2012.15828).
    """
    if len(student_qkv) != 3 or len(teacher_qkv) != 3:
        raise CometError("student_qkv and teacher_qkv must hold three tensors each: Q, K and V.")
    total = _wide(student_qkv[0]).new_zeros(())
    for s, t in zip(student_qkv, teacher_qkv, strict=True):
        student = _log_relations(s, mask, relation_heads)  # (B, r, L, L)
        teacher = _log_relations(t.detach(), mask, relation_heads)
        if student.shape != teacher.shape:
            raise CometError("student_qkv and teacher_qkv must be of the same batch and length.")
        # Padded keys have log probabilities near -1e38 in both and probability 0: leave them out.
        pairs = valid_pairs(mask)[:, None]
        terms = teacher.exp() * (teacher - student).masked_fill(~pairs, 0.0)
        total = total + terms.sum() / (relation_heads * mask.sum().clamp_min(1))
    return total


def _log_relations(x: Tensor, mask: Tensor, heads: int) -> Tensor:
    _check_mask(x, mask, "queries, keys and values")
    if heads < 1 or x.shape[-1] % heads:
        raise CometError(f"relation_heads is {heads}, but must divide the width {x.shape[-1]}.")
    parts = _wide(x).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, r, L, width / r)
    scores = parts @ parts.transpose(-1, -2) / parts.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask.bool()[:, None, None, :], torch.finfo(scores.dtype).min)
    return scores.log_softmax(-1)
