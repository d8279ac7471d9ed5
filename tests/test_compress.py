"""Trimming keeps the function: same pieces, same logits, and a clear report of what was lost."""

import json
import unicodedata

import pytest
import torch
from tokenizers import processors
from transformers import AutoConfig, AutoTokenizer, XLMRobertaConfig, XLMRobertaModel, set_seed

from comet_lib.data import load_sentiment, read_tsv
from comet_lib.errors import CometError
from comet_lib.lab.small_teacher import train_tokenizer
from comet_lib.loading import load_model, load_tokenizer, longest_text
from comet_lib.models import HEADS, build_student, count_parameters, xlmr_config
from comet_lib.profiles import ASSETS, TINY
from comet_lib.ship.trim import (
    coverage,
    needed_pieces,
    scripts_of,
    token_ids,
    trim,
    trim_model,
    trim_tokenizer,
)

SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


@pytest.fixture(scope="module")
def sample():
    data = load_sentiment(TINY)
    return {
        split: (table["text"][:], table["language"][:])
        for split, table in {s: data[s] for s in ("train", "test")}.items()
    }


@pytest.fixture(scope="module")
def teacher_tokenizer():
    return load_tokenizer(ASSETS / "teacher")


@pytest.fixture(scope="module")
def trimmed(sample, teacher_tokenizer):
    return trim(load_model(ASSETS / "teacher"), teacher_tokenizer, sample["train"][0])


def ids(tokenizer, text):
    return torch.tensor([tokenizer(text, truncation=True, max_length=60)["input_ids"]])


def assert_same_on(texts, before, model, trimmed):
    """Same pieces under their new numbers and bit-identical logits; ``texts`` must be covered."""
    for text in texts:
        old, new = ids(before, text), ids(trimmed.tokenizer, text)
        assert [trimmed.kept[i] for i in new[0]] == old[0].tolist()
        with torch.no_grad():
            assert torch.equal(model(old).logits, trimmed.model(new).logits)


def covered(texts, tokenizer, trimmed):
    kept = set(trimmed.kept)
    return [text for text in texts if kept.issuperset(tokenizer(text)["input_ids"])]


def test_logits_are_bit_identical_on_the_corpus(sample, teacher_tokenizer, trimmed):
    model = load_model(ASSETS / "teacher")
    assert len(trimmed.kept) < 0.3 * len(teacher_tokenizer)
    assert_same_on(sample["train"][0][::4], teacher_tokenizer, model, trimmed)
    unseen = covered(sample["test"][0], teacher_tokenizer, trimmed)
    assert 0 < len(unseen) < len(sample["test"][0])
    assert_same_on(unseen, teacher_tokenizer, model, trimmed)


def test_a_covered_text_with_an_unknown_sign_keeps_its_pieces(sample, teacher_tokenizer, trimmed):
    """What an unknown sign costs hangs on the least likely piece, so that one is kept."""
    for sign in ("\u4e2d", "\u0e01\u0e01", "a\u4e2d"):
        text = f"{sample['train'][0][0]} {sign}"
        old = teacher_tokenizer(text)["input_ids"]
        assert teacher_tokenizer.unk_token_id in old
        assert [trimmed.kept[i] for i in trimmed.tokenizer(text)["input_ids"]] == old
    scores = json.loads(teacher_tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    new_scores = json.loads(trimmed.tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    assert min(s for _, s in new_scores) == min(s for _, s in scores)


def test_nothing_in_the_scripts_becomes_unknown(teacher_tokenizer, trimmed):
    vocabulary = teacher_tokenizer.get_vocab()
    single = [p for p in vocabulary if len(p) == 1 and p.isalpha()]
    letters = [p for p in single if "LATIN" in unicodedata.name(p, "")]
    assert len(letters) > 30
    for letter in letters:
        assert trimmed.tokenizer.unk_token_id not in trimmed.tokenizer(letter * 3)["input_ids"]
    assert "🔥" in vocabulary  # emoji carry sentiment, and the sample has none
    assert trimmed.tokenizer.convert_tokens_to_ids("🔥") != trimmed.tokenizer.unk_token_id


def test_scripts_leave_out_a_stray_quotation():
    assert scripts_of(["habari za asubuhi " * 100, "д"]) == {"LATIN"}
    assert scripts_of(["habari", "привет"]) == {"LATIN", "CYRILLIC"}
    assert scripts_of(["123 !"]) == set()


def test_masked_lm_head_is_cut_the_same_way_and_stays_tied(sample, teacher_tokenizer):
    model = load_model(ASSETS / "teacher", "masked-lm")
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.linspace(-1, 1, len(model.lm_head.bias)))
    cut = trim(model, teacher_tokenizer, sample["train"][0][:40])
    assert cut.model.lm_head.decoder.weight is cut.model.get_input_embeddings().weight
    for text in sample["train"][0][:5]:
        with torch.no_grad():
            old = model(ids(teacher_tokenizer, text)).logits[..., cut.kept]
            torch.testing.assert_close(cut.model(ids(cut.tokenizer, text)).logits, old)
    dropped = len(teacher_tokenizer) - len(cut.kept)
    assert count_parameters(model) - count_parameters(cut.model) == dropped * (192 + 1)


def test_saved_and_loaded_it_is_the_same(sample, trimmed, tmp_path):
    trimmed.model.save_pretrained(tmp_path)
    trimmed.tokenizer.save_pretrained(tmp_path)
    again, tokenizer = load_model(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    text = sample["train"][0][3]
    assert tokenizer(text)["input_ids"] == trimmed.tokenizer(text)["input_ids"]
    assert tokenizer.mask_token_id == trimmed.kept.index(4)
    assert len(tokenizer) == again.config.vocab_size == len(trimmed.kept)
    with torch.no_grad():
        assert torch.equal(
            again(ids(tokenizer, text)).logits, trimmed.model(ids(tokenizer, text)).logits
        )
    assert tokenizer.decode(ids(tokenizer, text)[0], skip_special_tokens=True) == text.lower()


def with_mask_last(tokenizer, processor):
    """The same vocabulary with <mask> at its end, as XLM-R has it."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    mask = parts["model"]["vocab"].pop(4)
    parts["model"]["vocab"].append(mask)
    parts["added_tokens"][4]["id"] = len(parts["model"]["vocab"]) - 1
    made = type(tokenizer.backend_tokenizer).from_str(json.dumps(parts))
    made.post_processor = processor
    return type(tokenizer)(tokenizer_object=made, **tokenizer.special_tokens_map)


@pytest.mark.parametrize(
    "processor",
    [
        lambda last: processors.RobertaProcessing(("</s>", 2), ("<s>", 0)),
        lambda last: processors.TemplateProcessing(
            "<s> $A <mask>", None, [("<s>", 0), ("<mask>", last)]
        ),
    ],
)
def test_special_numbers_move_in_every_kind_of_post_processor(processor):
    texts = ["ẹ kú àárọ̀ o", "habari za asubuhi", "ina kwana 2026!", "ụtụtụ ọma nke oma"]
    plain = train_tokenizer(texts * 5, vocab_size=80)
    size = len(plain)
    whole = with_mask_last(plain, processor(size - 1))
    assert whole.mask_token_id == size - 1
    set_seed(0)
    model = build_student(xlmr_config(SMALL, size)).eval()
    cut = trim(model, whole, texts[:1])
    assert len(cut.kept) < size and cut.tokenizer.mask_token_id == len(cut.kept) - 1
    assert_same_on(texts[:1], whole, model, cut)


SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 16, "max_position_embeddings": 70}
KINDS = {
    "xlm-roberta": {},
    "roberta": {},
    "bert": {},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16},
    "albert": {"embedding_size": 8},
    "deberta-v2": {},
    "modernbert": dict.fromkeys(("cls_token_id", "bos_token_id"), 0)
    | dict.fromkeys(("sep_token_id", "eos_token_id"), 2),
}


def assert_cut(model, kept, tmp_path):
    """The same answers under the new numbers, also after saving and loading."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_()
    saved = tmp_path / "model"
    trim_model(model.eval(), kept).save_pretrained(saved)
    cut, new = type(model).from_pretrained(saved), torch.tensor([[0, 3, 6, 9, 2, 0]])
    new[0, -1] = kept.index(model.config.pad_token_id)
    mask = torch.tensor([[1] * 5 + [0]])
    with torch.no_grad():
        ours = model(input_ids=torch.tensor(kept)[new], attention_mask=mask)[0]
        theirs = cut(input_ids=new, attention_mask=mask)[0]
    if model.get_output_embeddings() is not None:
        ours = ours[..., kept]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_head_and_kind_of_model_is_trimmed(kind, head, tmp_path):
    config = AutoConfig.for_model(kind, **{**SIZES, "pad_token_id": 1, **KINDS[kind]})
    assert_cut(HEADS[head].from_config(config), [0, 1, 2, 3, *range(5, 40, 4)], tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_without_a_pooler_and_one_with_an_untied_head_are_trimmed(tied, tmp_path):
    config = XLMRobertaConfig(**SIZES, tie_word_embeddings=tied)
    kept, whole = [0, 1, 2, 3, *range(5, 40, 4)], build_student(config, "masked-lm")
    for model in (whole, whole.base_model, XLMRobertaModel(config, add_pooling_layer=False)):
        assert_cut(model, kept, tmp_path)
    assert trim_model(whole.base_model, kept).pooler is None
    assert trim_model(XLMRobertaModel(config), kept).pooler is not None


def test_positions_move_with_the_padding_piece(tmp_path):
    """XLM-R numbers them from it; a vocabulary may have it at the end, as ModernBERT's does."""
    kept = [0, 2, 3, *range(5, 40, 4), 38]
    for head in HEADS:
        model = build_student(XLMRobertaConfig(**SIZES, pad_token_id=38), head)
        assert longest_text(model) == longest_text(trim_model(model, kept)) == 31
        assert_cut(model, kept, tmp_path)


def test_coverage_counts_by_hand(sample, teacher_tokenizer, trimmed):
    texts, languages = sample["test"]
    table = coverage(teacher_tokenizer, trimmed, texts, languages).set_index("language")
    kept = set(trimmed.kept)
    for code in [*dict.fromkeys(languages), "all"]:
        tokens = good = whole = count = new = 0
        for text, language in zip(texts, languages, strict=True):
            if code in (language, "all"):
                old = teacher_tokenizer(text)["input_ids"]
                tokens, good = tokens + len(old), good + sum(i in kept for i in old)
                new += len(trimmed.tokenizer(text)["input_ids"])
                whole, count = whole + all(i in kept for i in old), count + 1
        row = table.loc[code]
        assert row["tokens"] == tokens and 50 < row["kept"] < 100
        assert row["kept"] == pytest.approx(100 * good / tokens)
        assert row["whole_texts"] == pytest.approx(100 * whole / count)
        assert row["pieces_for_one"] == pytest.approx((new - good) / (tokens - good))
        assert row["pieces_for_one"] > 1
    own = coverage(teacher_tokenizer, trimmed, *sample["train"]).set_index("language")
    assert own.loc["all", "kept"] == own.loc["all", "whole_texts"] == 100
    assert own["pieces_for_one"].isna().all()


def test_what_cannot_be_trimmed_is_refused(teacher_tokenizer, trimmed):
    with pytest.raises(CometError, match="unigram"):
        needed_pieces(object(), ["x"])
    with pytest.raises(CometError, match="rows of embeddings"):
        trim_model(trimmed.model, [0, 1, 2, 3, 23_000])
    with pytest.raises(CometError, match="eos_token_id"):
        trim_model(trimmed.model, [0, 1, 3])
    with pytest.raises(CometError, match="unknown piece"):
        trim_tokenizer(teacher_tokenizer, [0, 1, 2, 4, 9])


def test_the_real_xlmr_tokenizer(data_folder):
    before = load_tokenizer(data_folder / "xlmr_tokenizer")
    texts = [
        text
        for code in ("swa", "yor")
        for text in read_tsv(data_folder / "afrisenti" / code / "train.tsv")["text"][:500]
    ]
    set_seed(0)
    model = build_student(xlmr_config(SMALL, len(before))).eval()
    cut = trim(model, before, texts)
    assert len(cut.kept) < 0.1 * len(before) and cut.tokenizer.mask_token_id == len(cut.kept) - 1
    assert_same_on(texts[:100], before, model, cut)
    test = read_tsv(data_folder / "afrisenti" / "yor" / "test.tsv")["text"].tolist()[:300]
    unseen = covered(test, before, cut)
    assert len(unseen) > 50
    assert_same_on(unseen[:100], before, model, cut)
    old, new = token_ids(before, test), token_ids(cut.tokenizer, test)
    unknown = sum(i.count(3) for i in old), sum(i.count(3) for i in new)
    assert unknown[1] <= unknown[0] + 0.001 * sum(map(len, new))
