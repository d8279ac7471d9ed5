"""Counts to the digit, labels by name, clear refusals, and a student from its teacher."""

import json
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoTokenizer,
    BertConfig,
    FunnelConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
    set_seed,
)

from comet_lib.data import LABELS
from comet_lib.errors import CometError
from comet_lib.evaluation import predict_probabilities
from comet_lib.loading import (
    check_pair,
    label_order,
    load_model,
    load_pair,
    load_tokenizer,
    longest_text,
    model_origin,
    name_labels,
)
from comet_lib.models import (
    build_student,
    count_parameters,
    initialize_embeddings,
    paper_model,
    parameter_table,
    reduce_width,
    same_body,
    xlmr_config,
)
from comet_lib.profiles import ASSETS, PAPER_STUDENT, shape

SMALL = shape(16, 2, 2, 32)


@pytest.fixture(autouse=True)
def _seed():
    set_seed(0)


@pytest.mark.parametrize(
    ("which", "head", "count"),
    [
        ("teacher", "encoder", 559_890_432),
        ("student", "encoder", 68_937_216),
        ("teacher", "sentiment", 559_893_507),
        ("student", "sentiment", 68_937_987),
        ("teacher", "masked-lm", 560_142_482),
        ("student", "masked-lm", 69_187_730),
    ],
)
def test_paper_sizes_to_the_digit(which, head, count):
    model = paper_model(which, head)
    assert count_parameters(model) == count
    assert all(p.device.type == "meta" for p in model.parameters())


def test_table_adds_up_and_embeddings_weigh_93_percent():
    table = parameter_table(paper_model("student")).set_index("component")
    parts = table.drop("total")
    assert parts["parameters"].sum() == table.loc["total", "parameters"] == 68_937_216
    assert table.loc["word embeddings", "share"] == 92.8
    assert table.loc["total", "mib"] == 263.0
    hidden, layers, inner = 256, 6, 1024
    assert table.loc["attention", "parameters"] == layers * (4 * (hidden**2 + hidden) + 2 * hidden)
    assert table.loc["feed-forward", "parameters"] == layers * (
        2 * hidden * inner + inner + hidden + 2 * hidden
    )


def test_students_save_as_stock_checkpoints(tmp_path):
    model = build_student(xlmr_config(SMALL, 50))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [
        "XLMRobertaForSequenceClassification"
    ]
    again = load_model(tmp_path)
    assert again.config.id2label == dict(enumerate(LABELS)) and not again.training
    ids = torch.tensor([[0, 7, 8, 2]])
    torch.testing.assert_close(again(ids).logits, model.eval()(ids).logits)


def test_untrained_head_is_refused(tmp_path):
    build_student(xlmr_config(SMALL, 50), "masked-lm").save_pretrained(tmp_path)
    with pytest.raises(CometError, match="untrained head teaches noise"):
        load_model(tmp_path, "sentiment")


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(CometError, match=r"config\.json"):
        load_model(tmp_path)
    with pytest.raises(CometError, match="the hub cannot be reached"):
        load_model("no-such/model")
    with pytest.raises(CometError, match="no such folder"):
        load_model(tmp_path / "missing")
    with pytest.raises(CometError, match="tokenizer"):
        load_tokenizer(tmp_path)
    model = build_student(xlmr_config(SMALL, 50))
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])  # truncated
    with pytest.raises(CometError, match="not a whole safetensors file"):
        load_model(tmp_path)
    weights.unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")  # pickle
    with pytest.raises(CometError, match="no model could be loaded"):
        load_model(tmp_path)


def test_a_hub_id_may_pin_a_commit(tmp_path, monkeypatch):
    """A hub cache as the hub client lays it out: two commits, of which main is the second."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commits = ["1" * 40, "2" * 40]
    for commit in commits:
        folder = tmp_path / "models--owner--name" / "snapshots" / commit
        model = build_student(xlmr_config(SMALL, 50))
        torch.nn.init.constant_(model.classifier.out_proj.bias, float(commit[0]))
        model.save_pretrained(folder)
        pieces = Tokenizer(WordLevel({commit[0]: 0}))
        PreTrainedTokenizerFast(tokenizer_object=pieces).save_pretrained(folder)
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commits[1])
    for name, commit in {
        "owner/name": commits[1],
        f"owner/name@{commits[0]}": commits[0],
        f"owner/name@{commits[1]}": commits[1],
    }.items():
        model = load_model(name)
        assert model.classifier.out_proj.bias[0] == float(commit[0])
        assert commit[0] in load_tokenizer(name).get_vocab()
        assert model_origin(name) == f"owner/name@{commit}"
    with pytest.raises(CometError, match="the hub cannot be reached"):
        load_model("owner/name@" + "3" * 40)
    with pytest.raises(CometError, match="not a hub id"):
        load_model("name@" + commits[0])
    assert model_origin(refs) == "refs"  # a folder's own name, and never its path
    at = (tmp_path / "models--owner--name" / "snapshots" / commits[0]).rename(tmp_path / "a@b")
    assert load_model(at).classifier.out_proj.bias[0] == 1  # a folder may have the sign in its name
    assert model_origin(at) == "a@b" and "1" in load_tokenizer(at).get_vocab()


def test_labels_are_read_by_name():
    model = build_student(xlmr_config(SMALL, 50))
    model.config.id2label = {0: "positive", 1: "neutral", 2: "Negative"}
    assert label_order(model) == [2, 1, 0]
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    with pytest.raises(CometError, match="--labels negative,neutral,positive"):
        label_order(model)  # an order is never guessed
    model.config.id2label = {0: "POS", 1: "Neu", 2: "neg"}
    assert label_order(model) == [2, 1, 0]
    with pytest.raises(CometError, match="names its own labels, in another order"):
        name_labels(model, LABELS)
    model.config.id2label = {0: "neg", 1: "negative", 2: "pos"}
    with pytest.raises(CometError, match="--labels"):
        label_order(model)
    model.config.id2label = dict(enumerate("12345"))
    with pytest.raises(CometError, match="give a sentiment model with the labels"):
        name_labels(model, LABELS)


@pytest.mark.parametrize("head", ["encoder", "masked-lm", "sentiment"])
def test_a_pair_from_the_door_is_checked_and_left_as_it_was(head):
    model, tokenizer = load_pair(ASSETS / "teacher", head)
    fresh = load_tokenizer(ASSETS / "teacher")
    assert tokenizer.backend_tokenizer.to_str() == fresh.backend_tokenizer.to_str()
    assert not model.training and longest_text(model) >= 64
    with torch.no_grad():
        next(model.parameters())[:] = float("nan")
    with pytest.raises(CometError, match="answers with NaN"):
        check_pair(model, tokenizer)


def test_a_piece_beyond_the_rows_is_refused_before_a_text_has_it():
    model = build_student(xlmr_config(SMALL, 50))
    pieces = Tokenizer(WordLevel({"<pad>": 1, "a": 5, "rare": 50}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="<pad>")
    with pytest.raises(CometError, match="51 pieces and the model 50 rows"):
        check_pair(model, tokenizer)


def test_a_model_that_diverged_does_not_predict():
    model, tokenizer = load_pair(ASSETS / "teacher")
    with torch.no_grad():
        model.classifier.out_proj.bias[1] = float("nan")
    with pytest.raises(CometError, match="train it again"):
        predict_probabilities(model, tokenizer, ["a"])


def test_same_body_copies_the_encoder_and_keeps_the_head():
    config = xlmr_config(SMALL, 50)
    source, target = build_student(config, "masked-lm"), build_student(config)
    head = target.classifier.dense.weight.clone()
    same_body(target, source)
    ids = torch.tensor([[0, 9, 2]])
    with torch.no_grad():
        ours = target.eval().roberta(ids).last_hidden_state
        theirs = source.eval().roberta(ids).last_hidden_state
    assert torch.equal(ours, theirs) and torch.equal(target.classifier.dense.weight, head)
    with pytest.raises(CometError, match="different bodies"):
        same_body(target, build_student(xlmr_config({**SMALL, "num_hidden_layers": 3}, 50)))


def test_sizes_that_do_not_divide():
    with pytest.raises(CometError, match="multiple"):
        xlmr_config({**PAPER_STUDENT, "num_attention_heads": 7}, 100)


def test_bundled_teacher_has_both_heads_and_keeps_tone_marks():
    folder = ASSETS / "teacher"
    sentiment, masked = load_model(folder, "sentiment"), load_model(folder, "masked-lm")
    for name, value in sentiment.base_model.state_dict().items():
        assert torch.equal(value, masked.base_model.state_dict()[name])
    assert label_order(sentiment) == [0, 1, 2]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == sentiment.config.vocab_size
    text = "ẹ kú àárọ̀"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    # masked-LM: a filled-in piece beats a random one
    ids = tokenizer("ẹ kú àárọ̀", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = masked(ids.masked_fill(torch.arange(ids.shape[1]) == 2, tokenizer.mask_token_id))
    assert logits.logits.isfinite().all()


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (XLMRobertaConfig(max_position_embeddings=514), 512),
        (BertConfig(), 512),
        (BertConfig(pad_token_id=30_000), 512),
        (ModernBertConfig(), 8192),  # its padding piece is number 50,283
        (RobertaConfig(pad_token_id=9, max_position_embeddings=50), 40),
        (FunnelConfig(), None),
    ],
)
def test_how_long_a_text_may_be_depends_on_where_positions_begin(config, tokens):
    assert longest_text(SimpleNamespace(config=config)) == tokens


# --- A student from its teacher: the best embeddings of a width ---

NARROW = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def small(width=12, pieces=30, **more):
    return build_student(xlmr_config({**NARROW, "hidden_size": width, **more}, pieces, 32)).eval()


def skewed(rows=40, width=9):
    """A table whose directions differ in size, and which is not centered."""
    return torch.randn(rows, width, dtype=torch.float64) * torch.arange(1.0, width + 1) + 0.5


@pytest.mark.parametrize("width", [1, 4, 9])
def test_what_is_lost_is_the_tail_of_the_singular_values(width):
    table = skewed()
    reduced = reduce_width(table, width)
    values = torch.linalg.svd(table)[1]
    assert reduced.shape == (40, width)
    assert reduced.square().sum().item() == pytest.approx(
        sum(s.item() ** 2 for s in values[:width])
    )
    back = reduced @ torch.linalg.lstsq(reduced, table).solution
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
    reduced = reduce_width(table, 5)
    sizes = reduced.square().sum(0)
    assert (sizes.diff() < 0).all()
    basis = torch.linalg.lstsq(table, reduced).solution  # V_d
    assert (basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all()
    torch.testing.assert_close(reduce_width(table.flip(0), 5).flip(0), reduced)
    assert reduce_width(table.half(), 3).dtype == torch.float16


def test_the_students_embeddings_keep_angles_and_get_the_students_scale():
    teacher = small(12, initializer_range=0.02)
    student = small(6, initializer_range=0.1)
    with torch.no_grad():
        teacher.get_input_embeddings().weight[1] = 3.0  # some teachers have a padding row
    others = {k: v.clone() for k, v in student.state_dict().items() if "word_emb" not in k}
    factor = initialize_embeddings(student, teacher)
    reduced = student.get_input_embeddings().weight.detach()
    assert reduced.square().mean().sqrt().item() == pytest.approx(0.1, rel=1e-5)
    assert torch.equal(reduced[1], torch.zeros(6))  # padding
    expected = reduce_width(teacher.get_input_embeddings().weight, 6)
    rows = [0, *range(2, 30)]
    torch.testing.assert_close(reduced[rows], factor * expected[rows])
    assert reduced.requires_grad is False and student.get_input_embeddings().weight.requires_grad
    for name, value in others.items():
        assert torch.equal(value, student.state_dict()[name]), name
    initialize_embeddings(student, teacher, scale=0.5)
    again = student.get_input_embeddings().weight
    assert again.square().mean().sqrt().item() == pytest.approx(0.5, rel=1e-5)


def test_tied_embeddings_stay_tied():
    config = xlmr_config({**NARROW, "hidden_size": 6}, 30, 32)
    student = build_student(config, "masked-lm")
    initialize_embeddings(student, small(12))
    assert student.lm_head.decoder.weight is student.get_input_embeddings().weight


def test_embeddings_that_do_not_fit_are_refused():
    with pytest.raises(CometError, match="one vocabulary"):
        initialize_embeddings(small(6, pieces=29), small(12))
    with pytest.raises(CometError, match="no wider than"):
        initialize_embeddings(small(12), small(6))
    for width in (0, 10):
        with pytest.raises(CometError, match="width is"):
            reduce_width(skewed(), width)
