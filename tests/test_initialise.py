"""A student started from its teacher: the best embeddings for a width, layers where they fit."""

import pytest
import torch
from transformers import set_seed

from comet_lib.errors import CometError
from comet_lib.initialise import copy_layers, initialise_embeddings, reduce_width
from comet_lib.models import build_student, xlmr_config

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def model(width=12, pieces=30, **more):
    return build_student(xlmr_config({**SIZES, "hidden_size": width, **more}, pieces, 32)).eval()


@pytest.fixture(autouse=True)
def _seed():
    set_seed(0)


def skewed(rows=40, width=9):
    """A table whose directions differ in size, and which is not centred."""
    return torch.randn(rows, width, dtype=torch.float64) * torch.arange(1.0, width + 1) + 0.5


@pytest.mark.parametrize("width", [1, 4, 9])
def test_what_is_lost_is_the_tail_of_the_singular_values(width):
    table = skewed()
    made = reduce_width(table, width)
    values = torch.linalg.svd(table)[1]
    assert made.shape == (40, width)
    assert made.square().sum().item() == pytest.approx(sum(s.item() ** 2 for s in values[:width]))
    back = made @ torch.linalg.lstsq(made, table).solution
    tail = sum(s.item() ** 2 for s in values[width:])
    assert (back - table).square().sum().item() == pytest.approx(tail, abs=1e-9)


def test_inner_products_are_kept_best():
    table, width = skewed(), 4
    gram, values = table @ table.T, torch.linalg.svd(table)[1]

    def error(reduced):
        return (reduced @ reduced.T - gram).square().sum().item()

    best = error(reduce_width(table, width))
    assert best == pytest.approx(sum(s.item() ** 4 for s in values[width:]))  # Eckart and Young
    for _ in range(20):  # no other projection does as well
        basis = torch.linalg.qr(torch.randn(9, width, dtype=torch.float64))[0]
        assert error(table @ basis) > best
    assert error(table[:, :width]) > best
    all_of_it = reduce_width(table, 9)
    torch.testing.assert_close(all_of_it @ all_of_it.T, gram)


def test_columns_fall_in_size_and_have_one_sign():
    table = skewed()
    made = reduce_width(table, 5)
    sizes = made.square().sum(0)
    assert (sizes.diff() < 0).all()
    basis = torch.linalg.lstsq(table, made).solution  # V_d
    assert (basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all()
    torch.testing.assert_close(reduce_width(table.flip(0), 5).flip(0), made)
    assert reduce_width(table.half(), 3).dtype == torch.float16


def test_the_students_embeddings_keep_angles_and_get_the_students_scale():
    teacher = model(12, initializer_range=0.02)
    student = model(6, initializer_range=0.1)
    with torch.no_grad():
        teacher.get_input_embeddings().weight[1] = 3.0  # some teachers have a padding row
    others = {k: v.clone() for k, v in student.state_dict().items() if "word_emb" not in k}
    factor = initialise_embeddings(student, teacher)
    made = student.get_input_embeddings().weight.detach()
    assert made.square().mean().sqrt().item() == pytest.approx(0.1, rel=1e-5)
    assert torch.equal(made[1], torch.zeros(6))  # padding
    expected = reduce_width(teacher.get_input_embeddings().weight, 6)
    rows = [0, *range(2, 30)]
    torch.testing.assert_close(made[rows], factor * expected[rows])
    assert made.requires_grad is False and student.get_input_embeddings().weight.requires_grad
    for name, value in others.items():
        assert torch.equal(value, student.state_dict()[name]), name
    initialise_embeddings(student, teacher, scale=0.5)
    again = student.get_input_embeddings().weight
    assert again.square().mean().sqrt().item() == pytest.approx(0.5, rel=1e-5)


def test_tied_embeddings_stay_tied():
    config = xlmr_config({**SIZES, "hidden_size": 6}, 30, 32)
    student = build_student(config, "masked-lm")
    initialise_embeddings(student, model(12))
    assert student.lm_head.decoder.weight is student.get_input_embeddings().weight


def test_copied_layers_are_the_teachers_and_copies():
    teacher, student = model(12, num_hidden_layers=4), model(12)
    copy_layers(student, teacher, {0: 1, 1: 3})
    hidden = torch.randn(2, 5, 12)
    for i, j in ((0, 1), (1, 3)):
        ours, theirs = (m.roberta.encoder.layer[k] for m, k in ((student, i), (teacher, j)))
        torch.testing.assert_close(ours(hidden, None), theirs(hidden, None))
    before = teacher.roberta.encoder.layer[1].output.dense.weight.clone()
    with torch.no_grad():
        student.roberta.encoder.layer[0].output.dense.weight.add_(1)
    assert torch.equal(teacher.roberta.encoder.layer[1].output.dense.weight, before)


@pytest.mark.parametrize(
    ("student", "matches", "words"),
    [
        ({"width": 6}, {0: 0}, "equal sizes"),
        ({"width": 12, "intermediate_size": 20}, {0: 0}, "equal sizes"),
        ({"width": 12}, {0: 2}, "cannot be taken"),
        ({"width": 12}, {2: 0}, "cannot be taken"),
        ({"width": 12}, {0: -1}, "cannot be taken"),
        ({"width": 12, "num_attention_heads": 3}, {0: 0}, "attention heads"),
    ],
)
def test_layers_that_do_not_fit_are_refused_and_nothing_is_copied(student, matches, words):
    teacher, student = model(12), model(**student)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    with pytest.raises(CometError, match=words):
        copy_layers(student, teacher, {1: 1, **matches})
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


def test_embeddings_that_do_not_fit_are_refused():
    with pytest.raises(CometError, match="one vocabulary"):
        initialise_embeddings(model(6, pieces=29), model(12))
    with pytest.raises(CometError, match="wider"):
        initialise_embeddings(model(12), model(6))
    for width in (0, 10):
        with pytest.raises(CometError, match="width is"):
            reduce_width(skewed(), width)
