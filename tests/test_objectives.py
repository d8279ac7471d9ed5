"""The table of terms: each is its loss by hand, from stored answers and from a live teacher."""

import pytest
import torch
from fixed_tokenizer import fixed_tokenizer
from torch.autograd import gradcheck
from transformers import set_seed

from comet_lib import losses, objectives
from comet_lib.attention import capture, capture_hidden, capture_maps, capture_qkv
from comet_lib.batches import tokenize
from comet_lib.errors import CometError
from comet_lib.models import build_student, xlmr_config
from comet_lib.objectives import Objective
from comet_lib.teacher import LiveTeacher, StoredCollator, ask_once, stored_answers

TEXTS = [
    f"{a} {b} {c}"
    for a in ("ẹ kú", "mai kyau", "ndi")
    for b in ("x y", "ọ̀rọ̀", "")
    for c in ("z", "")
]
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def tokenizer():
    return fixed_tokenizer(TEXTS * 3, vocab_size=60)


@pytest.fixture(scope="module")
def models(tokenizer):
    """Student (2 x 8) and teacher (4 x 12), with opinions."""
    set_seed(0)

    def make(width, depth):
        sizes = {**SIZES, "hidden_size": width, "num_hidden_layers": depth}
        return build_student(xlmr_config(sizes, len(tokenizer), 64, initializer_range=0.5)).eval()

    return make(8, 2), make(12, 4)


@pytest.fixture(scope="module")
def table(tokenizer):
    return tokenize(TEXTS, tokenizer, 16)


# --------------------------------------------------------------------------- capture


def slow_qkv(model, inputs, layer):
    """The three projections of one layer by hand, from the layer's input."""
    with capture_hidden(model) as hidden:
        embedded = model.roberta.embeddings(input_ids=inputs["input_ids"])
        model(**inputs)
    before = embedded if layer == 0 else hidden[layer - 1]
    part = model.roberta.encoder.layer[layer].attention.self
    return [x(before) for x in (part.query, part.key, part.value)]


def test_captured_queries_keys_and_values_are_the_projections(models, tokenizer):
    for model in models:
        inputs = tokenizer(TEXTS[:5], padding=True, return_tensors="pt")
        with torch.no_grad(), capture_qkv(model, [0, -1]) as found:
            model(**inputs)
        assert sorted(found) == [0, model.config.num_hidden_layers - 1]
        for layer, three in found.items():
            for one, expected in zip(three, slow_qkv(model, inputs, layer), strict=True):
                torch.testing.assert_close(one, expected)


def test_captured_hidden_states_are_the_models_own(models, tokenizer):
    model = models[1]
    inputs = tokenizer(TEXTS[:5], padding=True, return_tensors="pt")
    with torch.no_grad(), capture_hidden(model, [0, -1]) as found:
        own = model(**inputs, output_hidden_states=True).hidden_states
    assert sorted(found) == [0, 3]
    for layer, one in found.items():
        torch.testing.assert_close(one, own[layer + 1])  # own[0]: the embeddings


def test_captures_leave_the_model_as_it_was_and_may_be_nested(models, tokenizer):
    model = models[0]
    inputs = tokenizer(TEXTS[:5], padding=True, return_tensors="pt")
    before = model(**inputs).logits
    with (
        capture(model, [1]) as maps,
        capture_qkv(model, [1]) as qkv,
        capture_hidden(model) as hidden,
    ):
        torch.testing.assert_close(model(**inputs).logits, before)
    torch.testing.assert_close(maps[1], capture_maps(model, inputs, [1])[1])
    assert len(qkv[1]) == 3 and sorted(hidden) == [0, 1]
    kept = dict(hidden)
    model(**inputs)
    assert hidden[0] is kept[0] and model.config._attn_implementation == "sdpa"
    with pytest.raises(CometError, match="layer 2"), capture_hidden(model, [2]):
        pass


def test_gradients_flow_through_captured_states(models, tokenizer):
    model = models[0]
    inputs = tokenizer(TEXTS[:3], padding=True, return_tensors="pt")
    for how in (capture_hidden, capture_qkv):
        model.zero_grad()
        with how(model, [0]) as found:
            model(**inputs)
        one = found[0] if how is capture_hidden else found[0][1]
        one.square().sum().backward()
        layer = model.roberta.encoder.layer[0].attention.self
        assert layer.key.weight.grad.abs().sum() > 0
    model.zero_grad()


# --------------------------------------------------------------------------- the terms

MATCHES = {0: 1, 1: 3}


def asked(name):
    more = {"masked_lm": False, "max_length": 16, "shard_rows": 5}
    return objectives.questions_for({name: 1.0}, MATCHES, **more)


def stored_batch(name, models, tokenizer, table, folder, rows):
    """Rows of the teacher's stored answers, padded, with labels."""
    stored = ask_once(folder, table, models[1], tokenizer, asked(name), bar=False)
    collator = StoredCollator(asked(name), tokenizer.pad_token_id)
    return collator([{**stored[i], "labels": i % 3} for i in rows])


def by_hand(name, student, teacher, batch, beside):
    """The term from the models themselves, no answers on disk, no objective."""
    text = {k: batch[k] for k in ("input_ids", "attention_mask")}
    mask = batch["attention_mask"]
    if name == "relations":
        with capture_qkv(student, [1]) as s, capture_qkv(teacher, [3]) as t:
            student(**text), teacher(**text)
        return losses.qkv_relation_kl(s[1], t[3], mask, 2)
    if name.startswith("attention"):
        heads = name.endswith("mix")
        with capture(student, [0, 1], heads) as s, capture(teacher, [1, 3]) as t:
            student(**text), teacher(**text)
        function = losses.attention_mse if name.endswith("mse") else losses.attention_kl
        ours = {i: beside[i](s[i]) if heads else s[i] for i in s}
        return (function(ours[0], t[1], mask) + function(ours[1], t[3], mask)) / 2
    with capture_hidden(student, [0, 1]) as s, capture_hidden(teacher, [1, 3]) as t:
        student(**text), teacher(**text)
    function = {"mse": losses.hidden_state_mse, "cosine": losses.hidden_cosine}[name[7:]]
    return sum(function(s[i], t[j], mask, beside[i]) for i, j in MATCHES.items()) / 2


@pytest.mark.parametrize("name", list(objectives.TERMS))
def test_a_term_is_the_loss_by_hand_and_trains_the_student(
    name, models, table, tokenizer, tmp_path
):
    student, teacher = models
    batch = stored_batch(name, models, tokenizer, table, tmp_path / "a", [5, 2, 11])
    weights = {"hard_labels": 1.0, name: 0.5}
    objective = Objective(stored_answers, weights, MATCHES, width=12)
    names = set(student.state_dict())
    with objective.on(student) as terms_of:
        trained = dict(getattr(student, objectives.PROJECTION, {}))
        beside = trained.get(name)
        assert (beside is not None) == (name.startswith("hidden") or name.endswith("mix"))
        terms = terms_of(student, batch)
        torch.testing.assert_close(terms["loss"], terms["hard_labels"] + 0.5 * terms[name])
        expected = by_hand(name, student, teacher, batch, beside)
        torch.testing.assert_close(terms[name], expected.detach(), rtol=0.05, atol=1e-3)
        student.zero_grad()
        only = Objective(stored_answers, {name: 1.0}, MATCHES, width=12)
    with only.on(student) as terms_of:
        terms_of(student, batch)["loss"].backward()
        key = student.roberta.encoder.layer[1].attention.self.key.weight
        assert key.grad.abs().sum() > 0
        for module in getattr(student, objectives.PROJECTION, {}).values():
            assert all(p.grad.abs().sum() > 0 for p in module.parameters())
    student.zero_grad()
    assert set(student.state_dict()) == names
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("name", list(objectives.TERMS))
def test_a_live_teacher_answers_as_the_stored_one(name, models, table, tokenizer, tmp_path):
    """In stage 1 too: every term works there."""
    batch = stored_batch(name, models, tokenizer, table, tmp_path / "a", [0, 7])
    live, stored = LiveTeacher(models[1], asked(name))(batch), stored_answers(batch)
    looks_at = objectives.TERMS[name].looks_at
    ours, theirs = getattr(live, looks_at), getattr(stored, looks_at)
    pairs = (
        zip(ours, theirs, strict=True)
        if looks_at == "qkv"
        else ((ours[i], theirs[i]) for i in theirs)
    )
    valid = batch["attention_mask"].bool()
    for one, other in pairs:
        torch.testing.assert_close(other[valid], one[valid], atol=1e-2, rtol=0.05)
        assert other[~valid].abs().sum() == 0


def test_a_batch_without_answers_is_scored_by_its_labels(models, tokenizer, table):
    batch = StoredCollator(asked("relations"), tokenizer.pad_token_id)(
        [{**table[i], "labels": i % 3} for i in range(4)]
    )
    weights = {"soft_targets": 0.75, "hard_labels": 0.25, "relations": 1.0}
    with Objective(stored_answers, weights, MATCHES).on(models[0]) as terms_of:
        terms = terms_of(models[0], batch)
    assert set(terms) == {"loss", "hard_labels", "logits"}
    assert terms["loss"] == terms["hard_labels"]


@pytest.mark.parametrize(
    ("weights", "words"), [({"attention": 1.0}, "unknown term"), ({"relations": -1.0}, "from 0")]
)
def test_terms_that_make_no_sense_are_refused(weights, words):
    with pytest.raises(CometError, match=words):
        Objective(stored_answers, weights, {0: 1})


# --------------------------------------------------------------------------- ensembles


def test_mean_of_teachers_equals_the_reference():
    parts = torch.rand(3, 4, 3, dtype=torch.float64)
    for weights in (None, [0.2, 0.0, 1.4]):
        made = losses.mean_of_teachers(list(parts), weights)
        used = weights or [1, 1, 1]
        for i in range(4):
            for j in range(3):
                expected = sum(w * p[i, j].item() for w, p in zip(used, parts, strict=True))
                assert made[i, j].item() == pytest.approx(expected / sum(used))
    probs = parts.softmax(-1)
    torch.testing.assert_close(
        losses.mean_of_teachers(list(probs), [3, 1, 2]).sum(-1), torch.ones(4, dtype=torch.float64)
    )


def test_mean_of_teachers_gives_teachers_no_gradient_and_the_student_one():
    teachers = [torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    student = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def loss(s):
        probs = losses.mean_of_teachers([t.softmax(-1) for t in teachers])
        return losses.soft_target_loss_from_probs(s, probs, 2.0)

    assert gradcheck(loss, [student])
    loss(student).backward()
    assert all(t.grad is None for t in teachers)
    half = losses.mean_of_teachers([torch.rand(2, 3, requires_grad=True).half()] * 2)
    assert half.dtype == torch.float32 and not half.requires_grad


def test_one_mean_is_not_one_loss_for_each_teacher_but_has_its_gradient():
    """KL is linear in the teacher but for a constant, at temperature 1."""
    a, b = torch.randn(2, 5, 3, dtype=torch.float64).softmax(-1)
    student = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    soft = losses.soft_target_loss_from_probs
    together = soft(student, losses.mean_of_teachers([a, b]))
    apart = (soft(student, a) + soft(student, b)) / 2
    assert apart > together + 1e-4
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (together, apart)))


@pytest.mark.parametrize(
    ("parts", "weights", "words"),
    [
        ([], None, "at least one teacher"),
        ([torch.rand(2, 3)], [0.5, 0.5], "one weight for each"),
        ([torch.rand(2, 3), torch.rand(3, 3)], None, "must be equal"),
        ([torch.rand(2, 3) - 2], None, "negative numbers"),
        ([torch.rand(2, 3)], [0.0], "above 0"),
        ([torch.rand(2, 3)] * 2, [2.0, -1.0], "negative"),
    ],
)
def test_mistakes_with_teachers_are_named(parts, weights, words):
    with pytest.raises(CometError, match=words):
        losses.mean_of_teachers(parts, weights)
