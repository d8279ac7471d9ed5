"""Capture against transformers' eager attention; metrics against loops in plain Python."""

import copy
import math

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from comet_lib import attention, similarity
from comet_lib.attention import capture, capture_hidden, capture_maps, layer_map
from comet_lib.errors import CometError
from comet_lib.losses import normalize_rows, valid_pairs

LAYERS, HEADS, VOCABULARY = 3, 4, 60
SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    intermediate_size=48,
    max_position_embeddings=40,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.3,
    initializer_range=0.3,  # wide, so that the maps are far from uniform
)
MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6])  # lengths 7, 4 and 1


def make(model_class=XLMRobertaModel, config_class=XLMRobertaConfig, **more):
    torch.manual_seed(0)
    return model_class(config_class(**(SIZES | more))).eval()


def make_distilbert():
    torch.manual_seed(0)
    sizes = dict(vocab_size=VOCABULARY, dim=32, n_layers=LAYERS, n_heads=HEADS, hidden_dim=48)
    return DistilBertModel(DistilBertConfig(**sizes, initializer_range=0.3)).eval()


def make_modernbert():
    tokens = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
    return make(ModernBertModel, ModernBertConfig, **tokens, local_attention=4)


MODELS = {
    "XLM-R": make,
    "XLM-R with a head": lambda: make(XLMRobertaForSequenceClassification),
    "BERT with a head": lambda: make(BertForMaskedLM, BertConfig),
    "RoBERTa": lambda: make(RobertaModel, RobertaConfig),
    "DistilBERT": make_distilbert,
    "ModernBERT, windowed": make_modernbert,
}


def make_inputs(padded=True):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCABULARY, MASK.shape, generator=generator)
    mask = MASK if padded else torch.ones_like(MASK)
    return {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}


def eager_copy(model):
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    return model


def valid(x, mask):
    """The entries of a map (B, L, L) that are no padding."""
    return x[valid_pairs(mask)]


# --------------------------------------------------------------------------- equal to eager


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_maps_equal_the_head_mean_of_eager(name, padded):
    model, inputs = MODELS[name](), make_inputs(padded)
    with torch.no_grad():
        expected = eager_copy(model)(**inputs, output_attentions=True).attentions
    maps = capture_maps(model, inputs)
    single = capture_maps(model, inputs, heads=True)
    assert list(maps) == list(single) == list(range(LAYERS))
    for layer in range(LAYERS):
        assert maps[layer].shape == (3, 7, 7)
        assert single[layer].shape == (3, HEADS, 7, 7)
        got, want = maps[layer], expected[layer].mean(1)
        assert (valid(got - want, inputs["attention_mask"])).abs().max() < 1e-5
        for head in range(HEADS):
            difference = single[layer][:, head] - expected[layer][:, head]
            assert valid(difference, inputs["attention_mask"]).abs().max() < 1e-5


def test_maps_without_a_mask_and_with_an_additive_one():
    model, inputs = make(), make_inputs()
    ids = inputs["input_ids"]
    full = capture_maps(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    none = capture_maps(model, {"input_ids": ids})
    torch.testing.assert_close(none, full)
    lowest = torch.finfo(torch.float32).min
    additive = torch.where(MASK.bool(), 0.0, lowest)[:, None, None, :].expand(-1, -1, 7, -1)
    got = capture_maps(model, {"input_ids": ids, "attention_mask": additive})
    torch.testing.assert_close(got, capture_maps(model, inputs))


@pytest.mark.parametrize("padded", [True, False])
def test_maps_in_bfloat16(padded):
    model, inputs = make(initializer_range=0.1).bfloat16(), make_inputs(padded)
    with torch.no_grad():
        expected = eager_copy(model)(**inputs, output_attentions=True).attentions
    for layer, got in capture_maps(model, inputs).items():
        assert got.dtype == torch.bfloat16
        difference = got.float() - expected[layer].float().mean(1)
        assert valid(difference, inputs["attention_mask"]).abs().max() < 0.01


@pytest.mark.parametrize("name", MODELS)
def test_small_captures_are_the_same_rounded_to_float16(name):
    model, inputs = MODELS[name](), make_inputs()
    for heads in (False, True):
        full = capture_maps(model, inputs, heads=heads)
        small = capture_maps(model, inputs, heads=heads, small=True)
        for layer, want in full.items():
            assert small[layer].dtype == torch.float16 and small[layer].shape == want.shape
            torch.testing.assert_close(small[layer].float(), want, rtol=1e-3, atol=1e-6)


def test_each_head_may_have_its_own_mask():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 2, HEADS, 5, 8, generator=generator)
    mask = torch.rand(2, HEADS, 5, 5, generator=generator) < 0.6
    for whole in (mask, mask.float().log().clamp_min(-1e9)):
        found = attention.attention_weights(query, key, whole)
        for h in range(HEADS):
            want = attention.attention_weights(query[:, [h]], key[:, [h]], whole[:, [h]])
            torch.testing.assert_close(found[:, [h]], want)


def test_gradients_equal_those_of_eager():
    model, inputs = make(attention_probs_dropout_prob=0.0), make_inputs()
    eager = eager_copy(model)
    torch.manual_seed(2)
    target = torch.rand(LAYERS, 3, 7, 7)
    pairs = valid_pairs(MASK)

    def loss(maps):
        return sum(((m - t) * pairs).square().sum() for m, t in zip(maps, target, strict=True))

    with capture(model) as maps:
        model(**inputs)
        loss(maps.values()).backward()
    loss([a.mean(1) for a in eager(**inputs, output_attentions=True).attentions]).backward()
    seen = 0
    for (name, got), want in zip(model.named_parameters(), eager.parameters(), strict=True):
        if ".query." in name or ".key.weight" in name:
            assert want.grad.abs().max() > 1e-4, name
            torch.testing.assert_close(got.grad, want.grad, rtol=1e-3, atol=1e-5)
            seen += 1
    assert seen == LAYERS * 3


def test_train_mode_maps_hold_no_dropout():
    model, inputs = make().train(), make_inputs(padded=False)
    with capture(model) as maps:
        model(**inputs)
    for got in maps.values():
        torch.testing.assert_close(got.sum(-1), torch.ones(3, 7))
    eager = eager_copy(model)(**inputs, output_attentions=True).attentions[0].mean(1)
    assert (eager.sum(-1) - 1).abs().max() > 0.05


def test_outputs_equal_those_of_sdpa():
    model, inputs = make(XLMRobertaForSequenceClassification), make_inputs()
    assert model.config._attn_implementation == "sdpa"
    expected = model(**inputs).logits
    with capture(model, layers=[1]):
        assert torch.equal(model(**inputs).logits, expected)
    torch.testing.assert_close(eager_copy(model)(**inputs).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_padded_tokens_change_nothing_at_valid_positions(name):
    model, inputs = MODELS[name](), make_inputs()
    before = capture_maps(model, inputs)
    ids = torch.where(MASK.bool(), inputs["input_ids"], 33)
    if name.startswith(("XLM-R", "RoBERTa")):  # their positions count tokens that are not padding
        assert (ids != 1).all()
    after = capture_maps(model, {**inputs, "input_ids": ids})
    for layer in range(LAYERS):
        torch.testing.assert_close(valid(after[layer], MASK), valid(before[layer], MASK))
        # Valid queries give padded keys nothing at all.
        leak = before[layer] * MASK[:, :, None] * (1 - MASK[:, None, :])
        assert leak.abs().max() == 0


def test_padding_rows_alone_give_no_nan():
    inputs = make_inputs() | {"attention_mask": torch.zeros_like(MASK)}
    for got in capture_maps(make(), inputs).values():
        torch.testing.assert_close(got, torch.full((3, 7, 7), 1 / 7))


# --------------------------------------------------------------------------- the context


def test_only_the_chosen_layers_are_captured():
    model, inputs = make(), make_inputs()
    every = capture_maps(model, inputs)
    for layers, keys in (([1], [1]), ([-1], [2]), ([0, -1, 2], [0, 2]), ([-3], [0]), ([], [])):
        with capture(model, layers=layers) as maps:
            model(**inputs)
        assert sorted(maps) == keys
        for layer in keys:
            torch.testing.assert_close(maps[layer], every[layer])


def test_each_forward_pass_replaces_the_maps():
    model, inputs = make(), make_inputs()
    with torch.no_grad(), capture(model) as maps:
        model(**inputs)
        first = dict(maps)
        model(input_ids=inputs["input_ids"][:1, :5])
        assert maps[0].shape == (1, 5, 5)
    assert first[0].shape == (3, 7, 7)
    model(**inputs)  # outside: nothing is stored any more
    assert maps[0].shape == (1, 5, 5)


@pytest.mark.parametrize("former", ["sdpa", "eager"])
def test_the_former_implementation_is_put_back_also_after_an_exception(former):
    model = make()
    model.set_attn_implementation(former)
    with capture(model):
        assert model.config._attn_implementation == attention.NAME
    assert model.config._attn_implementation == former
    with pytest.raises(RuntimeError, match="halt"), capture(model):
        raise RuntimeError("halt")
    assert model.config._attn_implementation == former
    assert not attention._OPEN
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_nested_captures_of_one_model():
    model, inputs = make(), make_inputs()
    with torch.no_grad(), capture(model, layers=[0]) as outer:
        with capture(model, layers=[0, 1], heads=True) as inner:
            model(**inputs)
        assert model.config._attn_implementation == attention.NAME
        assert (sorted(outer), sorted(inner)) == ([0], [0, 1])
        torch.testing.assert_close(inner[0].mean(1), outer[0])
        outer.clear()
        model(**inputs)
        assert sorted(outer) == [0]
    assert model.config._attn_implementation == "sdpa"


def test_two_models_at_once():
    teacher, student, inputs = make(), make(num_hidden_layers=2), make_inputs()
    with torch.no_grad(), capture(teacher, [-1]) as t, capture(student, [-1]) as s:
        student(**inputs)
        teacher(**inputs)
    assert (list(t), list(s)) == ([2], [1])
    torch.testing.assert_close(t, capture_maps(teacher, inputs, [2]))
    torch.testing.assert_close(s, capture_maps(student, inputs, [1]))


def test_capture_maps_keeps_the_mode_and_takes_no_gradient():
    model = make().train()
    maps = capture_maps(model, make_inputs())
    assert model.training
    assert not any(m.requires_grad for m in maps.values())
    torch.testing.assert_close(maps, capture_maps(model, make_inputs()))  # dropout was off


# ------------------------------------------------------- one capture around a whole training


def test_a_later_pass_leaves_nothing_of_an_earlier_one():
    model, inputs = make(), make_inputs()
    with torch.no_grad(), capture(model, [0, 2]) as maps, capture_hidden(model, [1]) as hidden:
        model(**inputs)
        assert (list(maps), list(hidden)) == ([0, 2], [1])
        model.encoder.layer[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**inputs)
        assert (list(maps), list(hidden)) == ([0], [])


def test_a_checkpoint_saved_inside_is_the_one_saved_outside(tmp_path):
    model, inputs = make(XLMRobertaForSequenceClassification), make_inputs()
    model.save_pretrained(tmp_path / "outside")
    with capture(model) as maps:
        model(**inputs)
        model.save_pretrained(tmp_path / "inside")
        twin = copy.deepcopy(model)
        twin(input_ids=inputs["input_ids"][:1])  # a copy is not captured
        assert maps[0].shape == (3, 7, 7)
    for file in sorted((tmp_path / "outside").iterdir()):
        assert file.read_bytes() == (tmp_path / "inside" / file.name).read_bytes(), file.name
    assert attention.NAME not in (tmp_path / "inside" / "config.json").read_text()
    again = XLMRobertaForSequenceClassification.from_pretrained(tmp_path / "inside")
    assert again.config._attn_implementation == "sdpa"
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def train(model, checkpointing, between=lambda: None):
    """Three steps on maps and hidden states inside one capture of each: maps, then gradients."""
    inputs, seen = make_inputs(), []
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with capture(model) as maps, capture_hidden(model, [1]) as hidden:
        for _ in range(3):
            optimizer.zero_grad()
            model(**inputs)
            found = dict(maps)
            loss = sum(m.square().sum() for m in maps.values()) + hidden[1].square().mean()
            loss.backward()
            # The backward pass runs the layers again, but the maps stay those of the forward pass.
            assert all(maps[layer] is found[layer] for layer in found) and len(found) == LAYERS
            seen += [m.detach().clone() for m in found.values()]
            seen += [p.grad.clone() for p in model.parameters() if p.grad is not None]
            optimizer.step()
            between()
    return seen


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_gives_the_same_maps_and_gradients():
    plain = train(make(attention_probs_dropout_prob=0.0), False)
    again = train(make(attention_probs_dropout_prob=0.0), True)
    assert len(plain) == len(again) > 3 * LAYERS
    torch.testing.assert_close(again, plain)
    assert all(x.abs().max() > 0 for x in plain[:LAYERS])


def test_an_evaluation_and_a_save_inside_change_no_step(tmp_path):
    model = make(attention_probs_dropout_prob=0.0)

    def between():
        capture_maps(model, make_inputs(padded=False), [-1])
        with torch.no_grad():
            model.eval()(input_ids=make_inputs()["input_ids"][:1])
        model.train().save_pretrained(tmp_path)

    got = train(model, False, between)
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(
        got, train(make(attention_probs_dropout_prob=0.0), False), rtol=0, atol=0
    )


def test_under_autocast_maps_are_those_of_bfloat16_with_gradients():
    model, inputs = make(initializer_range=0.1), make_inputs()
    full = capture_maps(model, inputs)
    with capture(model) as maps, torch.autocast("cpu", torch.bfloat16):
        model(**inputs)
    for layer, got in maps.items():
        assert got.dtype == torch.bfloat16 and got.requires_grad
        assert valid(got.float() - full[layer], MASK).abs().max() < 0.02


@pytest.mark.parametrize("layer", [LAYERS, -LAYERS - 1])
def test_a_layer_out_of_range_is_named(layer):
    with pytest.raises(CometError, match=f"layer {layer}, but XLMRobertaModel has {LAYERS}"):
        capture_maps(make(), make_inputs(), layers=[layer])


def test_models_that_cannot_be_captured_are_named():
    deberta = make(DebertaV2Model, DebertaV2Config)
    before = deberta.config._attn_implementation
    with pytest.raises(CometError, match="DebertaV2Model"):
        capture_maps(deberta, make_inputs())
    assert deberta.config._attn_implementation == before
    with pytest.raises(CometError, match="Linear"), capture(nn.Linear(2, 2)):
        pass
    decoder = make(is_decoder=True, add_cross_attention=True)
    with pytest.raises(CometError, match="cross-attention"):
        capture_maps(decoder, make_inputs())


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_function_follows_causal_and_grouped_attention(kv_heads):
    """Not used by the encoders of the course: sdpa then builds the mask that we do not see."""
    torch.manual_seed(0)
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = True, 4 // kv_heads
    query, key = torch.randn(1, 4, 5, 8), torch.randn(1, kv_heads, 5, 8)
    value = torch.eye(5).expand(1, kv_heads, 5, 5)  # so the output of sdpa is its weights
    output, _ = attention.head_mean_attention(module, query, key, value, None)
    maps = attention._read_map(module, query, key, value, None, heads=True, small=False)
    torch.testing.assert_close(maps, output.transpose(1, 2))
    assert maps.triu(1).abs().max() == 0


# ------------------------------------------------------------------ masks and layer maps


def test_valid_pairs():
    pairs = valid_pairs(MASK)
    assert pairs.shape == (3, 7, 7)
    for b in range(3):
        for q in range(7):
            for k in range(7):
                assert pairs[b, q, k] == bool(MASK[b, q] and MASK[b, k])
    with pytest.raises(CometError, match="mask"):
        valid_pairs(torch.ones(2, 3, 3))


@pytest.mark.parametrize(
    ("student", "teacher", "how", "expected"),
    [
        (6, 24, "uniform", [3, 7, 11, 15, 19, 23]),
        (6, 24, "skip", [0, 4, 8, 12, 16, 20]),
        (6, 24, "last", [18, 19, 20, 21, 22, 23]),
        (2, 4, "uniform", [1, 3]),
        (4, 6, "uniform", [0, 2, 3, 5]),
        (3, 3, "skip", [0, 1, 2]),
        (1, 12, "last", [11]),
    ],
)
def test_layer_map(student, teacher, how, expected):
    assert layer_map(student, teacher, how) == expected


def test_layer_map_mistakes():
    for arguments in ((5, 4), (0, 4), (2, 4, "every other")):
        with pytest.raises(CometError):
            layer_map(*arguments)


# --------------------------------------------------------------------------- metrics


def random_maps(mask=MASK, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(mask), mask.shape[1], mask.shape[1])
    scores = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return scores.masked_fill(~mask.bool()[:, None, :], -1e9).softmax(-1)


def valid_rows(maps, mask):
    """[(b, q, row over the valid keys, which sums to one)]"""
    rows = []
    for b in range(len(mask)):
        keys = [i for i in range(mask.shape[1]) if mask[b, i]]
        for q in keys:
            row = [maps[b, q, k].item() for k in keys]
            rows.append((b, q, [x / sum(row) for x in row]))
    return rows


def row_entropy(row):
    return -sum(x * math.log(x) for x in row if x > 0)


def test_normalize_rows():
    got = normalize_rows(3 * random_maps(), MASK)
    torch.testing.assert_close(got.sum(-1), MASK.double())
    assert (got[~valid_pairs(MASK)] == 0).all()
    with pytest.raises(CometError, match=r"maps \(3, 7, 7\), mask \(3, 6\): must be"):
        normalize_rows(random_maps(), torch.ones(3, 6))


def test_entropy_equals_the_reference():
    maps = random_maps()
    rows = [row_entropy(row) for _, _, row in valid_rows(maps, MASK)]
    assert similarity.entropy(maps, MASK).item() == pytest.approx(sum(rows) / len(rows))
    maps = torch.rand(3, 7, 7, dtype=torch.float64)  # mass on padding: left out
    rows = [row_entropy(row) for _, _, row in valid_rows(maps, MASK)]
    assert similarity.entropy(maps, MASK).item() == pytest.approx(sum(rows) / len(rows))


def test_entropy_of_uniform_and_of_pointed_maps():
    uniform, ones = torch.full((2, 8, 8), 1 / 8), torch.ones(2, 8)
    assert similarity.entropy(uniform, ones).item() == pytest.approx(math.log(8))
    assert similarity.entropy(torch.eye(8).expand(2, 8, 8), ones) == 0


def test_js_divergence_equals_the_reference():
    a, b = random_maps(seed=0), random_maps(seed=1)
    got = similarity.js_divergence(a, b, MASK)
    assert got.shape == MASK.shape
    expected = torch.zeros(3, 7, dtype=torch.float64)
    both = zip(valid_rows(a, MASK), valid_rows(b, MASK), strict=True)
    for (i, q, p), (_, _, r) in both:
        middle = [(x + y) / 2 for x, y in zip(p, r, strict=True)]
        for row in (p, r):
            expected[i, q] += 0.5 * sum(
                x * math.log(x / m) for x, m in zip(row, middle, strict=True) if x > 0
            )
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got, similarity.js_divergence(b, a, MASK))


def test_js_divergence_limits():
    eye, ones = torch.eye(4)[None], torch.ones(1, 4)
    assert (similarity.js_divergence(eye, eye, ones) == 0).all()
    far = similarity.js_divergence(eye, eye.flip(-1), ones)
    torch.testing.assert_close(far, torch.full((1, 4), math.log(2)))
    # Nearly equal rows must not round to below zero.
    maps = random_maps().float()
    near = maps * (1 + 1e-6 * torch.linspace(-1, 1, 7))
    assert (similarity.js_divergence(maps, near, MASK) >= 0).all()


def cka_reference(x, y):
    """By centered Gram matrices (HSIC), the other way to write it."""
    n = len(x)

    def gram(z):
        k = [[sum(a * b for a, b in zip(u, v, strict=True)) for v in z] for u in z]
        rows = [sum(row) / n for row in k]
        mean = sum(rows) / n
        return [[k[i][j] - rows[i] - rows[j] + mean for j in range(n)] for i in range(n)]

    def inner(k, m):
        return sum(k[i][j] * m[i][j] for i in range(n) for j in range(n))

    k, m = gram(x.tolist()), gram(y.tolist())
    return inner(k, m) / math.sqrt(inner(k, k) * inner(m, m))


def test_linear_cka_equals_the_reference_and_is_invariant():
    torch.manual_seed(3)
    x, y = torch.randn(9, 4), torch.randn(9, 6)
    assert similarity.linear_cka(x, y).item() == pytest.approx(cka_reference(x, y), rel=1e-5)
    assert similarity.linear_cka(x, x).item() == pytest.approx(1)
    rotation = torch.linalg.qr(torch.randn(4, 4)).Q
    assert similarity.linear_cka(x, 5 * x @ rotation + 3).item() == pytest.approx(1)
    assert similarity.linear_cka(torch.randn(1, 4), torch.randn(1, 6)) == 0
    assert similarity.linear_cka(torch.randn(0, 4), torch.randn(0, 6)) == 0
    assert similarity.linear_cka(torch.ones(5, 2), torch.randn(5, 2)) == 0
    with pytest.raises(CometError):
        similarity.linear_cka(x, y[:-1])


def rollout_reference(layers, b, mask):
    tokens = [i for i in range(mask.shape[1]) if mask[b, i]]
    result = [[float(q == k) for k in tokens] for q in tokens]
    for layer in layers:
        mixed = []
        for q in tokens:
            row = [0.5 * layer[b, q, k].item() + 0.5 * (q == k) for k in tokens]
            mixed.append([x / sum(row) for x in row])
        n = range(len(tokens))
        result = [[sum(mixed[i][j] * result[j][k] for j in n) for k in n] for i in n]
    return torch.tensor(result, dtype=torch.float64)


def test_rollout_equals_the_reference():
    layers = [random_maps(seed=seed) for seed in range(3)]
    got = similarity.rollout(layers, MASK)
    for b, length in enumerate(MASK.sum(1)):
        expected = rollout_reference(layers, b, MASK)
        torch.testing.assert_close(got[b, :length, :length], expected)
    assert (got[~valid_pairs(MASK)] == 0).all()
    torch.testing.assert_close(got.sum(-1), MASK.double())
    shuffled = {2: layers[2], 0: layers[0], 1: layers[1]}
    torch.testing.assert_close(similarity.rollout(shuffled, MASK), got)
    unmasked = similarity.rollout(layers)  # valid rows never looked at padding
    torch.testing.assert_close(unmasked[valid_pairs(MASK)], got[valid_pairs(MASK)])
    for wrong in ([], [layers[0], layers[1][:, :3, :3]]):
        with pytest.raises(CometError):
            similarity.rollout(wrong)


EDGES = {
    "one token": torch.ones(2, 1),
    "a row of padding": torch.tensor([[1, 1, 0], [0, 0, 0]]),
    "all padding": torch.zeros(2, 3, dtype=torch.long),
    "length 512": torch.cat([torch.ones(2, 500), torch.zeros(2, 12)], dim=1),
}


@pytest.mark.parametrize("name", EDGES)
def test_metrics_at_the_edges(name):
    mask = EDGES[name]
    a, b = random_maps(mask, seed=0).float(), random_maps(mask, seed=1).float()
    entropy = similarity.entropy(a, mask)
    js = similarity.js_divergence(a, b, mask)
    rolled = similarity.rollout([a, b], mask)
    assert 0 <= entropy <= math.log(mask.shape[1]) + 1e-6
    assert ((js >= 0) & (js <= math.log(2) + 1e-6)).all()
    assert (js[mask == 0] == 0).all()
    torch.testing.assert_close(rolled.sum(-1), mask.float())
    rows = a[mask.bool()]
    cka = similarity.linear_cka(rows, b[mask.bool()])
    assert 0 <= cka <= 1 + 1e-9
    if name in ("one token", "all padding"):
        assert entropy == 0


def test_cka_of_many_pairs_is_that_of_each_pair():
    torch.manual_seed(0)
    xs, ys = torch.randn(2, 6, 5), torch.randn(3, 6, 4)
    table = similarity.cka_table(xs, ys)
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            assert table[i, j].item() == pytest.approx(similarity.linear_cka(x, y).item())
    assert similarity.cka_table(xs[:, :1], ys[:, :1]).tolist() == [[0, 0, 0]] * 2
    assert similarity.cka_table(xs[:, :0], ys[:, :0]).tolist() == [[0, 0, 0]] * 2
    with pytest.raises(CometError, match="same n"):
        similarity.cka_table(xs, ys[:, :5])
