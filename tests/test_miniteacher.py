"""The mini teacher's recipe at small sizes: one encoder, two heads, one file."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, set_seed

from comet_lib.data import load_sentiment
from comet_lib.errors import CometError
from comet_lib.files import claim
from comet_lib.lab import small_teacher
from comet_lib.lab.muon import Muon, orthogonal
from comet_lib.lab.small_teacher import (
    SPECIALS,
    BothTasks,
    TwoHeads,
    below_counting,
    build,
    save,
    train_tokenizer,
)
from comet_lib.loading import load_model, load_tokenizer
from comet_lib.models import xlmr_config
from comet_lib.profiles import Stage, get_profile
from comet_lib.training import last_checkpoint

WEIGHTS = "model.safetensors"
TEXTS = ["Ẹ kú àárọ̀ o", "habari za asubuhi", "ina kwana 2026!", "ụtụtụ ọma nke oma"] * 5
SIZES = {
    "hidden_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=80)


@pytest.fixture
def model(tokenizer):
    set_seed(0)
    return TwoHeads(xlmr_config(SIZES, len(tokenizer), 32))


def test_tokenizer_is_in_xlmr_form(tokenizer):
    assert tokenizer.convert_tokens_to_ids(SPECIALS) == [0, 1, 2, 3, 4]
    ids = tokenizer("Ẹ KÚ ÀÁRỌ̀")["input_ids"]
    assert ids[0] == 0 and ids[-1] == 2 and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ẹ kú àárọ̀"  # tone marks kept
    assert tokenizer("e\u0323")["input_ids"] == tokenizer("\u1eb9")["input_ids"]  # NFC


def test_the_same_texts_give_the_same_tokenizer():
    """In any order. The trainer's own scores differ in their last digits from call to call."""
    sample = load_sentiment(get_profile("tiny"))["train"]["text"][:]
    made = [
        train_tokenizer(texts, 600).backend_tokenizer.to_str() for texts in (sample, sample[::-1])
    ]
    assert made[0] == made[1]
    scores = [score for _, score in json.loads(made[0])["model"]["vocab"]]
    assert scores[5:] == sorted(scores[5:], reverse=True) and len(set(scores)) > 20


def test_one_file_loads_with_both_heads(model, tokenizer, tmp_path):
    save(model, tokenizer, tmp_path / "teacher")
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    assert config["architectures"] == ["XLMRobertaForSequenceClassification"]
    batch = load_tokenizer(tmp_path / "teacher")(["habari za"], return_tensors="pt")
    model.eval()
    with torch.no_grad():
        hidden = model.roberta(**batch).last_hidden_state
        expected = {"sentiment": model.classifier(hidden), "masked-lm": model.lm_head(hidden)}
        for head, value in expected.items():
            got = load_model(tmp_path / "teacher", head)(**batch).logits
            torch.testing.assert_close(got, value, atol=2e-3, rtol=2e-2)  # stored in fp16
    for auto in (AutoModelForMaskedLM, AutoModelForSequenceClassification):
        assert auto.from_pretrained(tmp_path / "teacher").config.vocab_size == len(tokenizer)


def test_both_tasks_train_both_heads_and_mask_nothing_in_evaluation(model, tokenizer):
    batch = dict(tokenizer(TEXTS[:4], padding=True, return_tensors="pt"))
    batch["labels"] = torch.tensor([0, -100, 2, 1])
    batch["teacher_probs"] = torch.full((4, 3), 1 / 3)
    stage = Stage(1, 1e-3, 4, temperature=1.0, alpha=0.5)
    objective = BothTasks(tokenizer.mask_token_id, stage, sentiment_weight=2.0)
    set_seed(1)
    terms = objective(model.train(), batch)
    expected = terms["soft_targets"] + terms["hard_labels"] + terms["masked_lm"]
    torch.testing.assert_close(terms["loss"].detach(), expected)
    terms["loss"].backward()
    assert model.classifier.out_proj.weight.grad.abs().sum() > 0
    assert model.lm_head.dense.weight.grad.abs().sum() > 0
    calm = objective(model.eval(), batch)
    torch.testing.assert_close(
        calm["logits"],
        model.classifier(
            model.roberta(
                batch["input_ids"], attention_mask=batch["attention_mask"]
            ).last_hidden_state
        ),
    )


def test_a_teacher_of_another_seed_is_not_taken_for_this_one(tmp_path):
    """Its last checkpoint would be, without a word."""
    claim(tmp_path / "work" / "settings.json", get_profile("tiny").as_dict())
    with pytest.raises(CometError, match=r"differs in seed \(0 there, 1 now\)"):
        build(get_profile("tiny").with_(seed=1), tmp_path, say=lambda _: None)


def test_a_killed_teacher_resumes_and_ends_with_the_same_weights(tmp_path, monkeypatch):
    for name, value in (("SIZES", SIZES), ("VOCABULARY", 300), ("FOLDS", 2)):
        monkeypatch.setattr(small_teacher, name, value)
    monkeypatch.setattr(small_teacher, "STAGE", Stage(1, 1e-3, 16, 1.0, 0.5, max_steps=36))
    profile, said = get_profile("tiny").with_(languages=("kin", "swa")), list[str]()
    build(profile, tmp_path / "whole", say=said.append)
    assert sum("masked-LM" in line for line in said) == 2
    shutil.copytree(tmp_path / "whole" / "work", tmp_path / "killed" / "work")
    shutil.rmtree(tmp_path / "killed" / "work" / "checkpoint-36")
    assert last_checkpoint(tmp_path / "killed" / "work").endswith("checkpoint-35")
    build(profile, tmp_path / "killed", say=lambda _: None)
    whole, killed = ((tmp_path / n / "teacher" / WEIGHTS).read_bytes() for n in ("whole", "killed"))
    assert whole == killed


def test_counting_is_the_loss_of_the_piece_counts(model, tokenizer):
    loss, counting = below_counting(model.eval(), tokenizer, TEXTS, TEXTS, 32)
    assert 0 < counting < loss  # random weights know less than the counts


def test_muon_moves_a_matrix_along_all_directions_alike(model):
    values = torch.linalg.svdvals(orthogonal(torch.randn(2, 20, 40)))
    assert ((values > 0.6) & (values < 1.3)).all()
    optimizer, before = Muon(model, lr=0.1), model.roberta.encoder.layer[0].intermediate.dense
    old = before.weight.detach().clone()
    model(torch.tensor([[0, 5, 6, 2]]), labels=torch.tensor([[0, 5, 6, 2]])).loss.backward()
    optimizer.step()
    moved = torch.linalg.svdvals(old * (1 - 0.1 * 0.01) - before.weight.detach())
    assert moved[0] < 2.5 * moved[3] and moved[4] < 1e-4  # four pieces, so four directions
