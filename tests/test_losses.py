"""Every loss against a slow reference in plain Python, and the properties it promises."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from comet_lib import losses
from comet_lib.errors import CometError

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])  # lengths 4, 2 and 1
LENGTH = MASK.shape[1]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_maps(mask=MASK, heads=None):
    """Attention as a model gives it: valid queries look at valid keys alone, rows sum to one."""
    shape = (len(mask), *([heads] if heads else []), mask.shape[1], mask.shape[1])
    keys = mask.bool()[:, None, :] if heads is None else mask.bool()[:, None, None, :]
    scores = torch.randn(shape, dtype=torch.float64).masked_fill(~keys, -1e9)
    return scores.softmax(-1)


def softmax(row, temperature=1.0):
    powers = [math.exp(x / temperature) for x in row]
    return [x / sum(powers) for x in powers]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def close(value, expected):
    return value.item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_the_losses_need_no_transformers():
    code = "import sys, comet_lib.losses; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --------------------------------------------------------------------------- references


def soft_reference(student, teacher_probs, temperature):
    rows = student.reshape(-1, student.shape[-1]).tolist()
    probs = teacher_probs.reshape(-1, student.shape[-1]).tolist()
    total = 0.0
    for s, p in zip(rows, probs, strict=True):
        powers = [x ** (1 / temperature) for x in p]
        total += kl([x / sum(powers) for x in powers], softmax(s, temperature))
    return temperature**2 * total / len(rows)


def mse_reference(student, teacher, mask):
    total, pairs = 0.0, 0
    for b in range(len(mask)):
        for q in range(mask.shape[1]):
            for k in range(mask.shape[1]):
                if mask[b, q] and mask[b, k]:
                    total += (student[b, q, k].item() - teacher[b, q, k].item()) ** 2
                    pairs += 1
    return total / pairs


def kl_reference(student, teacher, mask):
    total, rows = 0.0, 0
    for b in range(len(mask)):
        valid = [i for i in range(mask.shape[1]) if mask[b, i]]
        for q in valid:
            s = [student[b, q, k].item() for k in valid]
            t = [teacher[b, q, k].item() for k in valid]
            total += kl([x / sum(t) for x in t], [x / sum(s) for x in s])
            rows += 1
    return total / rows


def relation_reference(student, teacher, mask, heads):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        part, rows = 0.0, int(mask.sum())
        for b in range(len(mask)):
            valid = [i for i in range(mask.shape[1]) if mask[b, i]]
            for h in range(heads):
                for q in valid:
                    both = []
                    for x in (t, s):
                        d = x.shape[-1] // heads
                        vectors = x[b, :, h * d : (h + 1) * d].tolist()
                        scores = [
                            sum(i * j for i, j in zip(vectors[q], vectors[k], strict=True))
                            / math.sqrt(d)
                            for k in valid
                        ]
                        both.append(softmax(scores))
                    part += kl(*both)
        total += part / (rows * heads)
    return total


# --------------------------------------------------------------------------- soft targets


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
@pytest.mark.parametrize("shape", [(1, 3), (5, 3), (2, 3, 4)])
def test_soft_targets_equal_the_reference(temperature, shape):
    student, teacher = torch.randn(2, *shape, dtype=torch.float64)
    expected = soft_reference(student, teacher.softmax(-1), temperature)
    assert close(losses.soft_target_loss(student, teacher, temperature), expected)
    from_probs = losses.soft_target_loss_from_probs(student, teacher.softmax(-1), temperature)
    assert close(from_probs, expected)


def test_soft_targets_are_zero_when_equal_and_direction_matters():
    student, teacher = 2 * torch.randn(2, 5, 3, dtype=torch.float64)
    assert close(losses.soft_target_loss(student, student, 2.0), 0.0)
    forward = losses.soft_target_loss(student, teacher)
    assert abs(forward - losses.soft_target_loss(teacher, student)) > 1e-3


def topk_reference(student, teacher, k, temperature):
    """Eq. (10) from both models' logits, by loops."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = softmax([x / temperature for x in t]), softmax([x / temperature for x in s])
        top = sorted(range(len(p)), key=lambda j: -p[j])[:k]
        rest = [j for j in range(len(p)) if j not in top]
        total += kl(
            [p[j] for j in top] + [sum(p[j] for j in rest)],
            [q[j] for j in top] + [sum(q[j] for j in rest) or 1.0],
        )
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_topk_equals_the_reference_and_never_more_than_dense(k, temperature):
    student, teacher = 3 * torch.randn(2, 5, 7, dtype=torch.float64)
    stored = losses.topk_of_logits(teacher, k, temperature)
    loss = losses.soft_target_loss_topk(student, *stored, temperature)
    assert close(loss, topk_reference(student, teacher, k, temperature))
    dense = losses.soft_target_loss(student, teacher, temperature)
    assert loss <= dense + 1e-12
    if k == 7:
        assert close(loss, dense.item())


def test_topk_gradients_flow_and_the_dense_one_is_met_at_full_k():
    student, teacher = torch.randn(2, 4, 6, dtype=torch.float64)
    student.requires_grad_()
    stored = losses.topk_of_logits(teacher.requires_grad_(), 2, 2.0)
    assert gradcheck(lambda s: losses.soft_target_loss_topk(s, *stored, 2.0), [student])
    full = losses.topk_of_logits(teacher, 99, 2.0)
    assert full[0].shape == (4, 6)
    (topk,) = torch.autograd.grad(losses.soft_target_loss_topk(student, *full, 2.0), student)
    (dense,) = torch.autograd.grad(losses.soft_target_loss(student, teacher, 2.0), student)
    torch.testing.assert_close(topk, dense)


def test_topk_of_rounded_or_certain_teachers_gives_no_nan():
    student = torch.randn(3, 5, requires_grad=True)
    sure = torch.tensor([200.0, 0, 0, 0, 0]).repeat(3, 1)  # its tail vanishes in float32
    indices, top, tail = losses.topk_of_logits(sure, 2)
    loss = losses.soft_target_loss_topk(student, indices.int(), top.half(), tail - torch.inf)
    expected = -student.log_softmax(-1)[:, 0].mean()
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss, student)
    assert grad.isfinite().all()
    # Numbers that were rounded on disk are made to sum to one: adding a constant changes nothing.
    teacher = torch.randn(3, 5)
    indices, top, tail = losses.topk_of_logits(teacher, 2)
    once = losses.soft_target_loss_topk(student, indices, top, tail)
    torch.testing.assert_close(
        losses.soft_target_loss_topk(student, indices, top + 0.3, tail + 0.3), once
    )
    assert losses.soft_target_loss_topk(student[:0], indices[:0], top[:0], tail[:0]) == 0


def test_zero_probabilities_stay_zero_and_give_no_nan():
    probs = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    student = torch.randn(2, 3, requires_grad=True)
    for temperature in (0.1, 1.0, 50.0):
        loss = losses.soft_target_loss_from_probs(student, probs, temperature)
        (grad,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert grad.isfinite().all()
        assert loss.item() == pytest.approx(soft_reference(student, probs, temperature), rel=1e-4)


def test_temperature_squared_keeps_the_gradient_scale():
    """For high T the gradient tends to (s - t) / C with centered logits, whatever T is."""
    student = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 4, dtype=torch.float64)
    s, t = student.detach(), teacher
    limit = ((s - s.mean(-1, keepdim=True)) - (t - t.mean(-1, keepdim=True))) / (4 * 6)
    for temperature in (100.0, 1000.0):
        loss = losses.soft_target_loss(student, teacher, temperature)
        (grad,) = torch.autograd.grad(loss, student)
        torch.testing.assert_close(grad, limit, rtol=0.05, atol=1e-3)


def test_no_position_gives_a_zero_with_a_gradient():
    student = torch.randn(0, 5, requires_grad=True)
    for loss in (
        losses.soft_target_loss(student, torch.randn(0, 5)),
        losses.soft_target_loss_from_probs(student, torch.rand(0, 5)),
    ):
        assert loss == 0
        loss.backward()


def test_half_precision_is_computed_in_float32():
    student, teacher = torch.randn(2, 5, 3).bfloat16()
    loss = losses.soft_target_loss(student, teacher, 2.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, losses.soft_target_loss(student.float(), teacher.float(), 2.0))
    maps = random_maps().half()
    assert losses.attention_kl(maps, random_maps().half(), MASK).isfinite()


# ------------------------------------------------------------- attention, states, relations

WIDTHS = {"student": 4, "teacher": 6}


def masked_losses():
    """name -> (function(student, teacher, mask), student, teacher, reference)."""
    s_hidden, t_hidden = torch.randn(2, 3, LENGTH, 5, dtype=torch.float64)
    s_qkv = torch.randn(3, 3, LENGTH, WIDTHS["student"], dtype=torch.float64)
    t_qkv = torch.randn(3, 3, LENGTH, WIDTHS["teacher"], dtype=torch.float64)

    def hidden_mse_reference(s, t, mask):
        rows = [(b, i) for b in range(len(mask)) for i in range(mask.shape[1]) if mask[b, i]]
        errors = [(s[b, i, j] - t[b, i, j]).item() ** 2 for b, i in rows for j in range(5)]
        return sum(errors) / len(errors)

    def cosine_reference(s, t, mask):
        values = []
        for b in range(len(mask)):
            for i in range(mask.shape[1]):
                if mask[b, i]:
                    x, y = s[b, i].tolist(), t[b, i].tolist()
                    dot = sum(u * v for u, v in zip(x, y, strict=True))
                    values.append(1 - dot / math.hypot(*x) / math.hypot(*y))
        return sum(values) / len(values)

    return {
        "mse": (losses.attention_mse, random_maps(), random_maps(), mse_reference),
        "kl": (losses.attention_kl, random_maps(), random_maps(), kl_reference),
        "hidden_mse": (losses.hidden_state_mse, s_hidden, t_hidden, hidden_mse_reference),
        "hidden_cosine": (losses.hidden_cosine, s_hidden, t_hidden, cosine_reference),
        "relations": (
            lambda s, t, m: losses.qkv_relation_kl(list(s), list(t), m, 2),
            s_qkv,
            t_qkv,
            lambda s, t, m: relation_reference(s, t, m, 2),
        ),
    }


NAMES = ["mse", "kl", "hidden_mse", "hidden_cosine", "relations"]
every = pytest.mark.parametrize("name", NAMES)


@every
def test_masked_loss_equals_the_reference(name):
    function, student, teacher, reference = masked_losses()[name]
    for mask in (MASK, torch.ones_like(MASK), MASK.bool()):
        assert close(function(student, teacher, mask), reference(student, teacher, mask))


@every
def test_masked_loss_gradcheck_and_no_gradient_for_the_teacher(name):
    function, student, teacher, _ = masked_losses()[name]
    student.requires_grad_()
    assert gradcheck(lambda s: function(s, teacher, MASK), student)
    teacher.requires_grad_()
    function(student, teacher, MASK).backward()
    assert teacher.grad is None


def test_soft_targets_gradcheck_and_no_gradient_for_the_teacher():
    student, teacher = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    student.requires_grad_()
    assert gradcheck(lambda s: losses.soft_target_loss(s, teacher, 2.0), student)
    probs = teacher.softmax(-1)
    assert gradcheck(lambda s: losses.soft_target_loss_from_probs(s, probs, 2.0), student)
    for function, x in (
        (losses.soft_target_loss, teacher),
        (losses.soft_target_loss_from_probs, probs),
    ):
        target = x.detach().clone().requires_grad_()
        function(student, target, 2.0).backward()
        assert target.grad is None


@every
def test_masked_loss_does_not_change_with_more_padding(name):
    function, student, teacher, _ = masked_losses()[name]
    before = function(student, teacher, MASK)
    extra = 3
    square = name in ("mse", "kl")
    longer = (0, extra, 0, extra) if square else (0, 0, 0, extra)
    student, teacher = (
        nn.functional.pad(x, longer, value=value) for x, value in ((student, 5.0), (teacher, -3.0))
    )
    if square:  # maps are never negative
        teacher = teacher.abs()
    after = function(student, teacher, nn.functional.pad(MASK, (0, extra)))
    torch.testing.assert_close(after, before)


@every
def test_masked_loss_ignores_what_stands_at_padding(name):
    function, student, teacher, _ = masked_losses()[name]
    before = function(student, teacher, MASK)
    pairs = MASK.bool()[:, :, None] & MASK.bool()[:, None, :]
    valid = pairs if name in ("mse", "kl") else MASK.bool()[:, :, None]
    torch.testing.assert_close(function(student.masked_fill(~valid, 9.0), teacher, MASK), before)


@every
def test_all_padding_gives_a_zero_with_a_zero_gradient(name):
    function, student, teacher, _ = masked_losses()[name]
    student.requires_grad_()
    loss = function(student, teacher, torch.zeros_like(MASK))
    assert loss == 0
    loss.backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


@every
def test_padded_rows_in_float32_give_no_nan_gradient(name):
    function, student, teacher, _ = masked_losses()[name]
    student = student.float().requires_grad_()
    loss = function(student, teacher.float(), MASK)
    loss.backward()
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["mse", "kl"])
def test_one_token_maps_are_equal(name):
    function = masked_losses()[name][0]
    assert function(torch.ones(2, 1, 1), torch.ones(2, 1, 1), torch.ones(2, 1)) == 0


def test_attention_kl_stays_finite_where_the_student_looks_away():
    student = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], requires_grad=True)
    loss = losses.attention_kl(student, 1 - student.detach(), torch.ones(1, 2))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(losses.EPS), rel=1e-4)
    assert student.grad.isfinite().all()


def test_attention_loss_is_the_mean_over_matched_layers():
    student, teacher = [random_maps(), random_maps()], [random_maps(), random_maps()]
    for kind, function in (("kl", losses.attention_kl), ("mse", losses.attention_mse)):
        expected = sum(function(s, t, MASK) for s, t in zip(student, teacher, strict=True)) / 2
        torch.testing.assert_close(losses.attention_loss(student, teacher, MASK, kind), expected)
        by_layer = {1: student[1], 0: student[0]}  # the order of insertion does not matter
        mixed = losses.attention_loss(by_layer, {11: teacher[0], 23: teacher[1]}, MASK, kind)
        torch.testing.assert_close(mixed, expected)


# --------------------------------------------------------------------------- projection, mix


def test_head_mix_starts_as_the_head_mean_and_learns():
    maps = random_maps(heads=3).float()
    mix = losses.HeadMix(3)
    torch.testing.assert_close(mix(maps), maps.mean(1))
    with torch.no_grad():
        mix.theta.copy_(torch.tensor([0.0, 1.0, -2.0]))
    weights = softmax([0.0, 1.0, -2.0])
    expected = sum(w * maps[:, h] for h, w in enumerate(weights))
    torch.testing.assert_close(mix(maps), expected)
    torch.testing.assert_close(mix(maps).sum(-1), torch.ones(3, LENGTH))
    losses.attention_kl(mix(maps), random_maps().float(), MASK).backward()
    assert mix.theta.grad.abs().sum() > 0
    assert gradcheck(mix.double(), maps.double().requires_grad_())


def test_projection_parameters_count_what_torch_counts():
    def size(module):
        return sum(p.numel() for p in module.parameters())

    assert losses.projection_parameters(5) == 0
    assert losses.projection_parameters(5, "head_mix", heads=16) == size(losses.HeadMix(16))
    with torch.device("meta"):
        assert losses.projection_parameters(128, "linear") == size(nn.Linear(128**2, 128**2))


def test_hidden_losses_train_the_projection():
    student, teacher = torch.randn(3, LENGTH, 2), torch.randn(3, LENGTH, 6)
    for function in (losses.hidden_state_mse, losses.hidden_cosine):
        projection = nn.Linear(2, 6)
        loss = function(student, teacher, MASK, projection)
        torch.testing.assert_close(loss, function(projection(student), teacher, MASK))
        loss.backward()
        assert projection.weight.grad.abs().sum() > 0


def test_hybrid_loss():
    soft, attention = torch.tensor(2.0), torch.tensor(10.0)
    for alpha, expected in ((0.0, 10.0), (0.25, 8.0), (1.0, 2.0)):
        assert losses.hybrid_loss(soft, attention, alpha) == expected


# --------------------------------------------------------------------------- mistakes


def _maps(batch=2, length=3):
    return torch.rand(batch, length, length)


MISTAKES = {
    "temperature zero": lambda: losses.soft_target_loss(torch.rand(2, 3), torch.rand(2, 3), 0.0),
    "temperature negative": lambda: losses.soft_target_loss_from_probs(
        torch.rand(2, 3), torch.rand(2, 3), -1.0
    ),
    "temperature nan": lambda: losses.soft_target_loss(
        torch.rand(2, 3), torch.rand(2, 3), float("nan")
    ),
    "class counts": lambda: losses.soft_target_loss(torch.rand(2, 3), torch.rand(2, 4)),
    "logits for probs": lambda: losses.soft_target_loss_from_probs(
        torch.rand(2, 3), -torch.rand(2, 3)
    ),
    "k tails": lambda: losses.soft_target_loss_topk(
        torch.rand(2, 5), torch.zeros(2, 3).long(), torch.rand(2, 3), torch.rand(2, 3)
    ),
    "k indices": lambda: losses.soft_target_loss_topk(
        torch.rand(2, 5), torch.zeros(2, 2).long(), torch.rand(2, 3), torch.rand(2)
    ),
    "alpha above 1": lambda: losses.hybrid_loss(torch.tensor(1.0), torch.tensor(1.0), 1.5),
    "alpha below 0": lambda: losses.hybrid_loss(torch.tensor(1.0), torch.tensor(1.0), -0.1),
    "mse lengths": lambda: losses.attention_mse(_maps(), _maps(length=4), torch.ones(2, 3)),
    "kl lengths": lambda: losses.attention_kl(_maps(), _maps(length=4), torch.ones(2, 3)),
    "mse mask": lambda: losses.attention_mse(_maps(), _maps(), torch.ones(2, 4)),
    "kl mask": lambda: losses.attention_kl(_maps(), _maps(), torch.ones(2, 4)),
    "mask of pairs": lambda: losses.attention_mse(_maps(), _maps(), torch.ones(2, 3, 3)),
    "heads not mixed": lambda: losses.attention_kl(
        torch.rand(2, 4, 3, 3), torch.rand(2, 4, 3, 3), torch.ones(2, 3)
    ),
    "layer counts": lambda: losses.attention_loss([_maps()], [_maps(), _maps()], torch.ones(2, 3)),
    "no layer": lambda: losses.attention_loss([], [], torch.ones(2, 3)),
    "kind": lambda: losses.attention_loss([_maps()], [_maps()], torch.ones(2, 3), kind="l1"),
    "head count": lambda: losses.HeadMix(4)(torch.rand(2, 3, 5, 5)),
    "head mean given to the mix": lambda: losses.HeadMix(2)(_maps()),
    "projection kind": lambda: losses.projection_parameters(8, "conv"),
    "widths": lambda: losses.hidden_state_mse(
        torch.rand(2, 3, 4), torch.rand(2, 3, 5), torch.ones(2, 3)
    ),
    "cosine mask": lambda: losses.hidden_cosine(
        torch.rand(2, 3, 4), torch.rand(2, 3, 4), torch.ones(2, 4)
    ),
    "relation heads": lambda: losses.qkv_relation_kl(
        [torch.rand(2, 3, 4)] * 3, [torch.rand(2, 3, 4)] * 3, torch.ones(2, 3), 3
    ),
    "two of three": lambda: losses.qkv_relation_kl(
        [torch.rand(2, 3, 4)] * 2, [torch.rand(2, 3, 4)] * 2, torch.ones(2, 3), 2
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_comet_errors(name):
    with pytest.raises(CometError):
        MISTAKES[name]()
