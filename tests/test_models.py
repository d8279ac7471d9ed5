"""Counts to the digit, labels by name, and clear refusals."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from comet_lib.data import LABELS
from comet_lib.errors import CometError
from comet_lib.models import (
    PAPER_STUDENT,
    build_student,
    count_parameters,
    label_order,
    load_model,
    load_tokenizer,
    model_origin,
    paper_model,
    parameter_table,
    same_body,
    xlmr_config,
)
from comet_lib.profiles import ASSETS

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


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
    with pytest.raises(CometError, match="hub id and a network"):
        load_model("no-such/model")
    with pytest.raises(CometError, match="no such folder"):
        load_model(tmp_path / "missing")
    with pytest.raises(CometError, match="tokenizer"):
        load_tokenizer(tmp_path)
    model = build_student(xlmr_config(SMALL, 50))
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])  # truncated
    with pytest.raises(CometError, match="no whole safetensors file"):
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
    with pytest.raises(CometError, match="hub id and a network"):
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
    with pytest.raises(CometError, match="id2label"):
        label_order(model)


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
