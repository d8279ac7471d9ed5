"""Distillation losses: small pure functions, each with its equation.

Rules that hold for all of them:

- the student comes first, the teacher second; the teacher is detached and never gets a gradient;
- padding is ignored, so adding padding changes no loss; a batch of only padding, or no position
  at all, gives a zero with a zero gradient, not a NaN;
- half-precision input is computed in float32;
- a wrong shape raises :class:`CometError`.

Shapes: B sequences, L tokens, C classes or pieces, H heads, d the student's width, D the
teacher's. ``mask`` is the (B, L) attention mask: 1 for a token, 0 for padding. sigma is softmax.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comet_lib.errors import CometError, pick

# Without it, a student that ignores a key its teacher looks at would cost infinity.
EPS = 1e-8
#: One tensor per layer: a dict from layer number, or a list from the lowest layer up.
ByLayer = Mapping[int, Tensor] | Sequence[Tensor]


def _wide(x: Tensor) -> Tensor:
    """float16 and bfloat16 to float32; float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_shapes(fit: bool, rule: str, **tensors: Tensor) -> None:
    """Raise :class:`CometError` unless ``fit``, with the tensors' names and shapes and the rule."""
    if not fit:
        given = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        raise CometError(f"{given}: must be {rule}.")


def _pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in at least float32, the teacher detached; they must be equal in shape."""
    fit = student.shape == teacher.shape
    check_shapes(fit, "equal in shape", student=student, teacher=teacher)
    return _wide(student), _wide(teacher.detach())


def valid_pairs(mask: Tensor) -> Tensor:
    """Attention mask (B, L) -> bool (B, L, L): True where query and key are both real tokens."""
    check_shapes(mask.ndim == 2, "(B, L)", mask=mask)
    mask = mask.bool()
    return mask[:, :, None] & mask[:, None, :]


def in_order(by_layer: ByLayer) -> list[Tensor]:
    """The tensors from the lowest layer up."""
    if isinstance(by_layer, Mapping):
        return [by_layer[layer] for layer in sorted(by_layer)]
    return list(by_layer)


def _masked(maps: Tensor, mask: Tensor) -> Tensor:
    """Maps (B, L, L) in at least float32, zero wherever query or key is padding."""
    pairs = valid_pairs(mask)
    rule = "(B, L, L) and (B, L), of the same batch and length"
    check_shapes(maps.shape == pairs.shape, rule, maps=maps, mask=mask)
    return _wide(maps).masked_fill(~pairs, 0.0)


def _token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Values (B, L) -> their mean over valid tokens, scalar; whatever stands at padding."""
    return values.masked_fill(~mask.bool(), 0.0).sum() / mask.sum().clamp_min(1)


def normalize_rows(maps: Tensor, mask: Tensor) -> Tensor:
    """Maps (B, L, L) -> the same in at least float32: each valid row sums to one over the valid
    keys, and padding is zero."""
    maps = _masked(maps, mask)
    return maps / maps.sum(-1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """logits / T, in at least float32."""
    if not temperature > 0:
        raise CometError(f"temperature is {temperature}, but must be above 0.")
    return _wide(logits) / temperature


def _mean_kl(student: Tensor, teacher: Tensor, temperature: float, log: bool = True) -> Tensor:
    """T^2 / N * KL(teacher || student): (..., C) twice -> scalar. The student's are logarithms,
    and so are the teacher's with ``log``; otherwise 0 log 0 counts as 0."""
    total = F.kl_div(student, teacher, reduction="sum", log_target=log)
    return total * temperature**2 / max(student.shape[:-1].numel(), 1)


def soft_target_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
) -> Tensor:
    """Soft targets: logits (..., C) of both -> scalar, the mean over all N leading positions.

        loss = T^2 / N * sum_n KL( sigma(t_n / T) || sigma(s_n / T) )                    (1)

    T^2 keeps the gradient at the same size for every T. Pass only valid or masked positions,
    because logits at all positions can take gigabytes. Hinton, Vinyals and Dean 2015, arXiv
    1503.02531.
    """
    both = _pair(student_logits, teacher_logits)
    student, teacher = (_scaled(x, temperature).log_softmax(-1) for x in both)
    return _mean_kl(student, teacher, temperature)


def soft_target_loss_from_probs(
    student_logits: Tensor, teacher_probs: Tensor, temperature: float = 1.0
) -> Tensor:
    """Soft targets from stored probabilities: logits and probabilities (..., C) -> scalar.

        q_nc = p_nc^(1/T) / sum_j p_nj^(1/T)
        loss = T^2 / N * sum_n KL( q_n || sigma(s_n / T) )                               (2)

    This divides log p by T, so for p = sigma(t) it equals eq. (1). The teacher can be anything
    with probabilities, even a TF-IDF model. Zeros are allowed and stay zero.
    """
    logits, probs = _pair(student_logits, _not_negative(teacher_probs))
    student = _scaled(logits, temperature).log_softmax(-1)
    # Dividing by the largest first keeps a small p^(1/T) from vanishing at low temperatures.
    tiny = torch.finfo(probs.dtype).tiny
    probs = (probs / probs.amax(-1, keepdim=True).clamp_min(tiny)) ** (1 / temperature)
    probs = probs / probs.sum(-1, keepdim=True).clamp_min(tiny)
    return _mean_kl(student, probs.to(student.dtype), temperature, log=False)


def _not_negative(probs: Tensor) -> Tensor:
    if (probs < 0).any():
        raise CometError("a teacher gives negative numbers: pass probabilities, not logits.")
    return probs


def mean_of_teachers(
    probabilities: Sequence[Tensor], weights: Sequence[float] | None = None
) -> Tensor:
    """An ensemble's soft targets: M teachers' probabilities (..., C) -> (..., C).

        p = sum_m w_m p_m / sum_m w_m                                                   (11)

    ``weights`` w are equal by default. For :func:`soft_target_loss_from_probs`. Hinton, Vinyals and
    Dean 2015, section 3 (arXiv 1503.02531). With an earlier student of the same size as teacher,
    or among the teachers, it is a born-again network (Furlanello et al. 2018, arXiv 1805.04770).
    """
    weights = [1.0] * len(probabilities) if weights is None else list(weights)
    if not 1 <= len(probabilities) == len(weights) or min(weights) < 0 or not sum(weights) > 0:
        raise CometError(
            f"there are {len(probabilities)} teachers and the weights {weights}: give at least one "
            "teacher and one weight for each; none may be negative, and one must be above 0."
        )
    total = torch.zeros_like(_wide(probabilities[0]))
    for weight, probs in zip(weights, probabilities, strict=True):
        _, probs = _pair(total, _not_negative(probs))
        total = total + weight / sum(weights) * probs
    return total


def soft_target_loss_topk(
    student: Tensor, indices: Tensor, logprobs: Tensor, tail: Tensor, temperature: float = 1.0
) -> Tensor:
    """Soft targets from the teacher's k likeliest classes and one number for all others -> scalar.

        p_nj, j in top_n: the teacher's top k at temperature T;   p_n* = 1 - sum_j p_nj
        q_n = sigma(s_n / T);                                     q_n* = 1 - sum_(j in top_n) q_nj
        loss = T^2 / N * sum_n [ sum_(j in top_n) p_nj log(p_nj / q_nj) + p_n* log(p_n* / q_n*) ]
                                                                                        (10)

    ``student`` holds logits (N, C); ``indices`` (N, k), no class twice in a row. The teacher's
    ``logprobs`` (N, k), log p_nj, and ``tail`` (N,), log p_n*, are stored numbers, **already at
    temperature T** (:func:`topk_of_logits`). They may be rounded: p_n and p_n* are rescaled to sum
    to one. With k = C this equals eq. (1); with fewer classes it is never above it, because it does
    not see how the others share the tail.
    """
    rows, classes, k = len(student), student.shape[-1], indices.shape[-1]
    fit = student.ndim == 2 and tail.shape == (rows,) and k <= classes
    fit = fit and indices.shape == logprobs.shape == (rows, k)
    rule = "(N, C), (N, k), (N, k) and (N,), with k at most C"
    check_shapes(fit, rule, student=student, indices=indices, logprobs=logprobs, tail=tail)
    indices, scaled = indices.long(), _scaled(student, temperature)
    ours, theirs = scaled.gather(1, indices), _wide(logprobs.detach())
    if k < classes:  # with k = C, the tail's logarithm would be minus infinity
        # Sum the tail's own logits: 1 - sum(top) would round to nothing.
        own_tail = scaled.scatter(1, indices, -torch.inf).logsumexp(-1, keepdim=True)
        last = _wide(tail.detach())[:, None].clamp_min(-1e30)  # an empty tail: 0, not NaN
        ours, theirs = torch.cat([ours, own_tail], -1), torch.cat([theirs, last], -1)
    return _mean_kl(ours.log_softmax(-1), theirs.log_softmax(-1).to(ours.dtype), temperature)


def topk_of_logits(logits: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, ...]:
    """What eq. (10) stores for logits (N, C): indices (N, k), log p (N, k), log tail (N,).

    At ``temperature``, likeliest first; k above C means C. The tail of k = C is minus infinity.
    """
    logprobs = _scaled(logits.detach(), temperature).log_softmax(-1)
    top, indices = logprobs.topk(min(k, logits.shape[-1]), dim=-1)
    return indices, top, logprobs.scatter(1, indices, -torch.inf).logsumexp(-1)


def attention_mse(student_maps: Tensor, teacher_maps: Tensor, mask: Tensor) -> Tensor:
    """Squared error of two maps (B, L, L) over the valid pairs -> scalar.

        loss = sum_(b,q,k valid) (S_bqk - T_bqk)^2 / number of valid (b, q, k)           (3)

    Entries of a map over L keys are near 1/L, so this number is small, and so is its gradient.
    After TinyBERT (Jiao et al. 2020, arXiv 1909.10351), which compares scores before the softmax.
    """
    student, teacher = _pair(student_maps, teacher_maps)
    error = _masked(student - teacher, mask)
    return error.square().sum() / valid_pairs(mask).sum().clamp_min(1)


def attention_kl(student_maps: Tensor, teacher_maps: Tensor, mask: Tensor) -> Tensor:
    """Row-wise KL(teacher || student) of two maps (B, L, L), mean over valid rows -> scalar.

        loss = 1 / rows * sum_(b,q valid) sum_(k valid) T_bqk log(T_bqk / S_bqk)         (4)

    Each row is first rescaled to sum to one over its valid keys. Unlike eq. (3), its size does not
    depend on the length. S is kept above 1e-8. After Wang et al. 2020 (MiniLM, arXiv 2002.10957).
    """
    student, teacher = (normalize_rows(x, mask) for x in _pair(student_maps, teacher_maps))
    terms = torch.xlogy(teacher, teacher) - teacher * student.clamp_min(EPS).log()
    return _token_mean(terms.sum(-1), mask)


def attention_loss(student: ByLayer, teacher: ByLayer, mask: Tensor, kind: str = "kl") -> Tensor:
    """Mean over matched layers of eq. (4), ``kind="kl"``, or of eq. (3), ``kind="mse"``.

    ``student`` and ``teacher`` hold maps by layer: lists, or dicts from ``capture``, which are read
    in the order of their layer numbers. The i-th map of one is compared with the i-th of the other.
    """
    loss = pick("kind", kind, {"kl": attention_kl, "mse": attention_mse})
    students, teachers = in_order(student), in_order(teacher)
    if not 1 <= len(students) == len(teachers):
        raise CometError(
            f"student has {len(students)} maps and teacher {len(teachers)}: give as many, at least "
            "one (see layer_map)."
        )
    pairs = zip(students, teachers, strict=True)
    return torch.stack([loss(s, t, mask) for s, t in pairs]).mean()


class HeadMix(nn.Module):
    """A learned mix of H attention heads: (B, H, L, L) -> (B, L, L).

        map = sum_h w_h A_h,   w = sigma(theta)                                          (5)

    theta starts at zero, so the mix starts as the head mean. The weights are positive and sum to
    one, so each row of the map still does. It costs H parameters and fits any length.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(num_heads))

    def forward(self, maps: Tensor) -> Tensor:
        rule = f"(B, {len(self.theta)}, L, L) for this HeadMix; capture with heads=True"
        check_shapes(maps.ndim == 4 and maps.shape[1] == len(self.theta), rule, maps=maps)
        return torch.einsum("h,bhqk->bqk", self.theta.softmax(0).to(maps.dtype), maps)


def projection_parameters(length: int, kind: str = "none", heads: int = 8) -> int:
    """How many parameters it costs to project a student's L x L map before comparing it.

    "linear" is a ``Linear(L*L, L*L)`` with bias, which also fixes the length.
    """
    return pick("kind", kind, {"none": 0, "head_mix": heads, "linear": length**4 + length**2})


def hybrid_loss(soft: Tensor, attention: Tensor, alpha: float) -> Tensor:
    """Two scalar losses -> scalar:  alpha * soft + (1 - alpha) * attention              (6)"""
    if not 0 <= alpha <= 1:
        raise CometError(f"alpha is {alpha}, but must be from 0 to 1.")
    return alpha * soft + (1 - alpha) * attention


def _check_states(states: Tensor, mask: Tensor) -> None:
    fit = states.ndim == 3 and mask.shape == states.shape[:2]
    check_shapes(fit, "(B, L, width) and (B, L)", states=states, mask=mask)


def _projected(
    student: Tensor, teacher: Tensor, mask: Tensor, projection: nn.Module | None
) -> tuple[Tensor, Tensor]:
    _check_states(student, mask)
    return _pair(student if projection is None else projection(student), teacher)


def hidden_state_mse(
    student: Tensor, teacher: Tensor, mask: Tensor, projection: nn.Module | None = None
) -> Tensor:
    """Squared error of hidden states (B, L, d) and (B, L, D) over valid tokens -> scalar.

        loss = sum_(b,i valid) || W s_bi - t_bi ||^2 / (D * number of valid tokens)      (7)

    ``projection`` is W, a ``Linear(d, D)`` trained with the student; None requires d = D.
    TinyBERT (Jiao et al. 2020, arXiv 1909.10351).
    """
    student, teacher = _projected(student, teacher, mask, projection)
    error = (student - teacher).masked_fill(~mask.bool()[:, :, None], 0.0)
    return error.square().sum() / (mask.sum().clamp_min(1) * teacher.shape[-1])


def hidden_cosine(
    student: Tensor, teacher: Tensor, mask: Tensor, projection: nn.Module | None = None
) -> Tensor:
    """One minus the cosine of hidden states (B, L, d) and (B, L, D), valid tokens -> scalar.

        loss = sum_(b,i valid) (1 - cos(W s_bi, t_bi)) / number of valid tokens          (8)

    ``projection`` as in eq. (7). DistilBERT (Sanh et al. 2019, arXiv 1910.01108).
    """
    student, teacher = _projected(student, teacher, mask, projection)
    return _token_mean(1 - F.cosine_similarity(student, teacher, dim=-1), mask)


def qkv_relation_kl(
    student_qkv: Sequence[Tensor], teacher_qkv: Sequence[Tensor], mask: Tensor, relation_heads: int
) -> Tensor:
    """Self-attention relations: queries, keys and values, each (B, L, width) -> scalar.

        R(A)  = sigma(A A^T / sqrt(width / heads))  for A in Q, K, V, in each of r heads
        loss  = sum over Q, K, V of the mean over heads and valid rows of KL(R_T || R_S)  (9)

    Each model's width is cut into the same number of relation heads, so the two may differ in
    width and in attention heads. MiniLMv2 (Wang et al. 2021, arXiv 2012.15828).
    """
    if len(student_qkv) != 3 or len(teacher_qkv) != 3:
        raise CometError("student_qkv and teacher_qkv must hold three tensors each: Q, K and V.")
    total = _wide(student_qkv[0]).new_zeros(())
    for s, t in zip(student_qkv, teacher_qkv, strict=True):
        # One mask fits both, so their relations (B, r, L, L) have one shape.
        ours, theirs = (_log_relations(x, mask, relation_heads) for x in (s, t.detach()))
        # Padded keys have log probabilities near -1e38 in both and probability 0: leave them out.
        terms = theirs.exp() * (theirs - ours).masked_fill(~valid_pairs(mask)[:, None], 0.0)
        total = total + terms.sum() / (relation_heads * mask.sum().clamp_min(1))
    return total


def _log_relations(x: Tensor, mask: Tensor, heads: int) -> Tensor:
    _check_states(x, mask)
    if heads < 1 or x.shape[-1] % heads:
        raise CometError(f"relation_heads is {heads}, but must divide the width {x.shape[-1]}.")
    parts = _wide(x).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, r, L, width / r)
    scores = parts @ parts.transpose(-1, -2) / parts.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask.bool()[:, None, None, :], torch.finfo(scores.dtype).min)
    return scores.log_softmax(-1)
