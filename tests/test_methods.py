"""A teacher's states on disk, and the extra terms of stage 2."""

import numpy as np
import pytest
import torch
from fixed_tokenizer import fixed_tokenizer
from torch.autograd import gradcheck
from transformers import set_seed

from comet_lib import losses
from comet_lib import objectives as methods
from comet_lib.attention import capture, capture_hidden, capture_maps, capture_qkv
from comet_lib.batches import SentimentCollator, tokenise
from comet_lib.errors import CometError
from comet_lib.models import build_student, xlmr_config
from comet_lib.training import TaskSpecific

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
    return tokenise(TEXTS, tokenizer, 16)


@pytest.fixture(scope="module")
def states(tmp_path_factory, tokenizer, models, table):
    return methods.ask_states(
        tmp_path_factory.mktemp("x") / "states", table, models[1], tokenizer, [1, 3], 16
    )


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


# --------------------------------------------------------------------------- states on disk


def test_states_are_what_the_teacher_says_of_each_row_alone(states, models, tokenizer):
    teacher, rows, longest = models[1], [4, 0, 7], 17
    maps = states.get("attention-kl", rows, longest, [1, 3])
    hidden = states.get("hidden-mse", rows, longest, [3])
    qkv = states.get("relations", rows, longest, [1, 3])
    assert [x.shape for x in maps] == [(3, 17, 17)] * 2
    assert [x.shape for x in [*hidden, *qkv]] == [(3, 17, 12)] * 4
    for b, row in enumerate(rows):
        inputs = tokenizer([TEXTS[row]], return_tensors="pt")
        n = inputs["input_ids"].shape[1]
        with (
            torch.no_grad(),
            capture(teacher, [1, 3]) as m,
            capture_hidden(teacher, [3]) as h,
            capture_qkv(teacher, [3]) as q,
        ):
            teacher(**inputs)
        for one, layer in zip(maps, (1, 3), strict=True):
            torch.testing.assert_close(one[b, :n, :n], m[layer][0], atol=0.01, rtol=0.05)
            assert one[b, n:].abs().sum() == 0 and one[b, :, n:].abs().sum() == 0
        torch.testing.assert_close(hidden[0][b, :n], h[3][0], atol=1e-2, rtol=1e-2)
        for one, expected in zip(qkv, q[3], strict=True):
            torch.testing.assert_close(one[b, :n], expected[0], atol=1e-2, rtol=1e-2)
        assert hidden[0][b, n:].abs().sum() == 0


def test_states_are_kept_until_something_changes(states, tmp_path, models, tokenizer, table):
    asked = []
    handle = models[1].register_forward_pre_hook(lambda *_: asked.append(1))

    def ask(rows=table, layers=(1, 3)):
        asked.clear()
        methods.ask_states(tmp_path / "s", rows, models[1], tokenizer, layers, 16)
        return len(asked)

    assert (ask(), ask(), ask(layers=(3,)), ask(table.select(range(5)))) == (1, 0, 1, 1)
    handle.remove()


def test_states_say_what_does_not_fit(states):
    with pytest.raises(CometError, match="tokens for the teacher but 2"):
        states.get("hidden-mse", [0], 2, [1])
    with pytest.raises(CometError, match="layer 2 of the teacher was not kept"):
        states.get("hidden-mse", [0], 16, [2])


# --------------------------------------------------------------------------- the extra term


def batch_of(table, tokenizer, rows):
    return SentimentCollator(tokenizer)([{**table[i], "labels": i % 3, "row": i} for i in rows])


def by_hand(term, student, teacher, batch, projection):
    """The term from the models themselves, no states on disk, no objective."""
    text = {k: batch[k] for k in ("input_ids", "attention_mask")}
    mask = batch["attention_mask"]
    if term == "relations":
        with capture_qkv(student, [1]) as s, capture_qkv(teacher, [3]) as t:
            student(**text), teacher(**text)
        return losses.qkv_relation_kl(s[1], t[3], mask, 2)
    if term.startswith("attention"):
        with capture(student, [0, 1]) as s, capture(teacher, [1, 3]) as t:
            student(**text), teacher(**text)
        function = {"mse": losses.attention_mse, "kl": losses.attention_kl}[term[10:]]
        return (function(s[0], t[1], mask) + function(s[1], t[3], mask)) / 2
    with capture_hidden(student, [0, 1]) as s, capture_hidden(teacher, [1, 3]) as t:
        student(**text), teacher(**text)
    function = {"mse": losses.hidden_state_mse, "cosine": losses.hidden_cosine}[term[7:]]
    return sum(function(s[i], t[j], mask, projection[i]) for i, j in ((0, 1), (1, 3))) / 2


@pytest.mark.parametrize("term", list(methods.TERMS))
def test_the_term_is_the_loss_by_hand_and_trains_the_student(
    term, states, models, table, tokenizer
):
    student, teacher = models
    batch = batch_of(table, tokenizer, [5, 2, 11])
    objective = TaskSpecific()
    guided = methods.Guided(objective, states, term, {0: 1, 1: 3}, 0.5, relation_heads=2)
    names = set(student.state_dict())
    with methods.projected(student, term, 2, states.width):
        projection = getattr(student, methods.PROJECTION, None)
        assert (projection is not None) == term.startswith("hidden")
        terms = guided(student, batch)
        expected = by_hand(term, student, teacher, batch, projection)
        torch.testing.assert_close(terms[term], expected.detach(), rtol=0.05, atol=1e-3)
        plain = objective(student, batch)
        torch.testing.assert_close(terms["loss"], plain["loss"] + 0.5 * terms[term])
        student.zero_grad()
        guided.objective = lambda s, b: {**objective(s, b), "loss": torch.zeros(())}
        guided(student, batch)["loss"].backward()
        key = student.roberta.encoder.layer[1].attention.self.key.weight
        assert key.grad.abs().sum() > 0
        if projection is not None:
            assert all(p.weight.grad.abs().sum() > 0 for p in projection)
    student.zero_grad()
    assert set(student.state_dict()) == names
    assert all(p.grad is None for p in teacher.parameters())


def test_a_batch_without_rows_gets_the_objective_alone(states, models, table, tokenizer):
    batch = batch_of(table, tokenizer, [1, 2])
    del batch["row"]
    guided = methods.Guided(TaskSpecific(), states, "relations", {0: 1, 1: 3})
    assert set(guided(models[0], batch)) == {"loss", "hard_labels", "logits"}


def test_an_unknown_term_is_refused(states):
    with pytest.raises(CometError, match="unknown term"):
        methods.Guided(TaskSpecific(), states, "attention", {0: 1})


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


def test_lengths_are_kept_as_numbers(states, table):
    assert np.array_equal(states.lengths, table["length"][:])
