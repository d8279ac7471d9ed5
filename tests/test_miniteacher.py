"""The mini teacher's recipe at small sizes: one encoder, two heads, one file."""

import json

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, set_seed

from comet_lib.data import load_sentiment
from comet_lib.errors import CometError
from comet_lib.files import claim
from comet_lib.lab.small_teacher import SPECIALS, BothTasks, TwoHeads, build, save, train_tokenizer
from comet_lib.loading import load_model, load_tokenizer
from comet_lib.models import xlmr_config
from comet_lib.profiles import Stage, get_profile

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
    objective = BothTasks(tokenizer.mask_token_id, stage, mlm_weight=0.5)
    set_seed(1)
    terms = objective(model.train(), batch)
    expected = 0.5 * terms["soft_targets"] + 0.5 * terms["hard_labels"] + 0.5 * terms["masked_lm"]
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
