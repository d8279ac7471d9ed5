"""The lens's data: alignment and metrics against loops, hostile tokens, the smallest cases."""

from __future__ import annotations

import math
import unicodedata

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from comet_lib.attention import capture_maps
from comet_lib.errors import CometError
from comet_lib.lens.align import aggregate, labels, segments, shown, token_starts
from comet_lib.lens.data import from_arrays, quantize
from comet_lib.lens.reading import from_models
from comet_lib.similarity import js_divergence, linear_cka

TEXT = "Ọjọ́ dára, wọ́n yọ̀ 😀!"


def maps(*shape: int, seed: int = 0) -> np.ndarray:
    *lead, size = shape
    return np.random.default_rng(seed).dirichlet(np.full(size, 0.3), (*lead, size))


def tokenizer(pieces: int) -> PreTrainedTokenizerFast:
    """Words of TEXT in pieces of at most ``pieces`` letters; <s> and </s> around them."""
    built = Tokenizer(models.WordPiece({}, unk_token="<unk>", continuing_subword_prefix="##"))
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    built.normalizer = normalizers.NFC()
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for word in unicodedata.normalize("NFC", TEXT).split():
        for at in range(0, len(word), pieces):
            piece = ("##" if at else "") + word[at : at + pieces]
            vocabulary.setdefault(piece, len(vocabulary))
    built.model = models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix="##")
    built.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=built, **names)


def encoder(layers: int, seed: int, model=XLMRobertaModel, config=XLMRobertaConfig, vocabulary=40):
    torch.manual_seed(seed)
    return model(
        config(
            vocab_size=vocabulary,
            hidden_size=16,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=16,
            max_position_embeddings=40,
            initializer_range=0.5,
        )
    ).eval()


# ------------------------------------------------------------------------ quantized maps


def test_quantized_maps_keep_their_promise() -> None:
    exact = maps(3, 2, 20)
    exact[0, 0] = 0
    kept = quantize(exact)
    assert kept.codes.dtype == np.uint8 and kept.scale.shape == (3, 2)
    error = np.abs(kept.values() - exact)
    scale = exact.max((-2, -1))[..., None, None]
    assert (error <= 0.004 * scale).all()
    small = exact < scale / 64
    assert error[small].max() <= 0.001  # linear steps would be off by 0.002
    assert (kept.values(2, 1) == kept.values()[2, 1]).all()
    assert not kept.values(0, 0).any()


# ------------------------------------------------------------------------ alignment


def slow_segments(one: list[int], other: list[int]) -> list[list[tuple[int, int]]]:
    """Walk both token lists; a new segment begins where both begin a token."""
    common = sorted(set(one) & set(other))
    found: list[list[tuple[int, int]]] = [[] for _ in common]
    for who, starts in enumerate((one, other)):
        for i, start in enumerate(starts):
            k = 0
            while k + 1 < len(common) and common[k + 1] <= start:
                k += 1
            found[k].append((who, i))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_segments_agree_with_a_walk(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one = np.sort(rng.integers(0, 15, 8))
    other = np.sort(np.append(rng.integers(0, 15, 6), one[3]))
    first, second, common = segments(one, other)
    slow = slow_segments(one.tolist(), other.tolist())
    assert len(common) == len(slow)
    for k, members in enumerate(slow):
        ours = [(0, i) for i in np.flatnonzero(first == k)]
        ours += [(1, i) for i in np.flatnonzero(second == k)]
        assert ours == members
        assert {who for who, _ in members} == {0, 1}  # no segment lacks a side


def test_aggregate_agrees_with_loops_and_keeps_row_sums() -> None:
    before, segment = maps(2, 6), np.array([0, 0, 1, 2, 2, 2])
    after = aggregate(before, segment)
    for m in range(2):
        for s in range(3):
            for t in range(3):
                rows = [
                    sum(before[m, q, k] for k in range(6) if segment[k] == t)
                    for q in range(6)
                    if segment[q] == s
                ]
                assert after[m, s, t] == pytest.approx(sum(rows) / len(rows))
    assert after.sum(-1) == pytest.approx(1)
    with pytest.raises(CometError, match="without gaps"):
        aggregate(before, np.array([0, 0, 2, 2, 3, 3]))


def test_starts_skip_spaces_and_set_special_tokens_apart() -> None:
    spans = [(0, 0), (0, 2), (2, 5), (5, 5), (0, 0)]  # the third begins with a space
    starts = token_starts(spans, [1, 0, 0, 0, 1], "ab cd")
    assert starts.tolist() == [-1, 0, 3, 5, 6]


def test_without_a_common_start_all_is_one_segment() -> None:
    first, second, common = segments(np.array([1, 2]), np.array([0, 3]))
    assert first.tolist() == second.tolist() == [0, 0] and common.tolist() == [0]


def test_labels_show_the_text_and_where_words_begin() -> None:
    text = "Ọjọ́ dára"
    found = labels(np.array([-1, 0, 3, 5]), np.array([0, 3, 5, 9]), ["<s>", "", "", ""], text)
    assert found[0] == "<s>" and found[1] == "▁" + text[:3]
    assert "▁" not in found[2] and found[3] == "▁" + text[5:9]


@pytest.mark.parametrize(
    ("token", "label"),
    [
        ("<script>", "<script>"),  # escaping is the writer's work
        ("a\u202eb", "a‹202E›b"),
        ("\x00\n", "‹0000›‹000A›"),
        ("\ud800", "‹D800›"),
        ("👩\u200d🌾", "👩\u200d🌾"),
        ("\u200d", "‹200D›"),  # nothing to join: drawn, it would be an empty box
        ("\ufe0f", "‹FE0F›"),
        ("o\u0301", "ó"),
        ("", "·"),
        ("x" * 500, "x" * 24 + "…"),
        ("x" * 23 + "ọ́" + "y" * 9, "x" * 23 + "ọ́" + "…"),  # a mark stays with its letter
    ],
)
def test_labels_cannot_disturb(token: str, label: str) -> None:
    assert shown(token) == label


# ------------------------------------------------------------------------ metrics


def test_distances_agree_with_the_library_pair_by_pair() -> None:
    teacher, student = maps(4, 7), {0: maps(2, 7, seed=1), 9: maps(2, 7, seed=2)}
    mask = np.array([1, 1, 1, 1, 1, 0, 0])
    data = from_arrays("abcdefg", teacher, student, mask=mask)
    assert data.steps == (0, 9) and data.js.shape == data.cka.shape == (2, 2, 4)
    row = torch.tensor(mask)[None]
    for k, step in enumerate(data.steps):
        for s in range(2):
            for t in range(4):
                a = torch.tensor(student[step][s])[None]
                b = torch.tensor(teacher[t])[None]
                js = js_divergence(a, b, row)[0, :5].mean()
                assert data.js[k, s, t] == pytest.approx(js.item(), abs=1e-5)
                p, q = a[0, :5, :5], b[0, :5, :5]
                p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
                assert data.cka[k, s, t] == pytest.approx(linear_cka(p, q).item(), abs=1e-5)
    row_entropy = [-sum(p * math.log(p) for p in r / r.sum() if p) for r in teacher[2][:5, :5]]
    assert data.teacher_entropy[2] == pytest.approx(np.mean(row_entropy), rel=1e-5)
    assert data.student_entropy.shape == (2, 2)


def test_equal_models_are_nought_apart() -> None:
    data = from_arrays("abcdef", maps(3, 6), maps(3, 6), matches=[0, 1, 2])
    assert np.diagonal(data.js[0]) == pytest.approx(0, abs=1e-6)
    assert np.diagonal(data.cka[0]) == pytest.approx(1, abs=1e-6)


def test_one_token_all_padding_and_512_tokens() -> None:
    one = from_arrays(["a"], maps(2, 1), maps(1, 1))
    assert one.js.tolist() == [[[0, 0]]] and one.cka.tolist() == [[[0, 0]]]
    assert "nothing to compare" in one.finding(0, 0)
    empty = from_arrays("ab", maps(2, 2), maps(1, 2), mask=[0, 0])
    for numbers in (empty.js, empty.cka, empty.teacher_entropy, empty.teacher.values()):
        assert not numbers.any()
    assert "nothing to compare" in empty.finding(0, 0)
    long = from_arrays(["a"] * 512, maps(2, 512), maps(1, 512, seed=1), mask=[1] * 500 + [0] * 12)
    assert np.isfinite(long.js).all() and 0 < long.js.min() < np.log(2)
    assert long.teacher_entropy.max() < np.log(512)
    assert not long.teacher.values()[:, :, 500:].any()


def test_the_finding_names_the_pair_and_the_tokens() -> None:
    teacher, student = np.zeros((2, 3, 3)), np.zeros((1, 3, 3))
    teacher[:, :, 0] = 1
    student[:, :, 2] = 1
    data = from_arrays(["one", "two", "three"], teacher, student, matches=[1])
    assert data.widest() == (1, 0)
    assert data.finding(1, 0) == (
        "Student layer 0 looks more at “three” and less at “one” than teacher layer 1: "
        "0.69 nats apart (0: alike, 0.69: nothing in common)"
    )


def test_heads_are_kept_and_their_mean_is_the_map() -> None:
    teacher, student = maps(2, 3, 5), maps(1, 4, 5)
    data = from_arrays("abcde", teacher, student)
    assert data.pair(1, 0)[0] == pytest.approx(teacher[1].mean(0), abs=0.004)
    t, s = data.pair(1, 0, teacher_head=2, student_head=3)
    assert t == pytest.approx(teacher[1, 2], abs=0.004)
    assert s == pytest.approx(student[0, 3], abs=0.004)
    with pytest.raises(CometError, match="no single heads"):
        from_arrays("abcde", maps(2, 5), maps(1, 5)).pair(0, 0, teacher_head=0)


# ------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": []}, "tokens is empty"),
        ({"teacher": maps(2, 4)}, r"teacher has maps of shape \(2, 4, 4\)"),
        ({"student": maps(2, 3)[0]}, "student has maps of shape"),
        ({"student": {5: maps(2, 4)}}, "student at step 5 has maps"),
        ({"student": {}}, "empty dict"),
        ({"student": {0: maps(2, 3), 1: maps(1, 3)}}, "from step to step"),
        ({"teacher": -maps(2, 3)}, "negative"),
        ({"teacher": maps(2, 3) * np.nan}, "missing"),
        ({"teacher": np.zeros((2, 3, 3))}, "row without any attention"),
        ({"matches": [0, 2]}, "matches is"),
        ({"matches": [0]}, "matches is"),
        ({"mask": [1, 1]}, "mask has shape"),
    ],
)
def test_each_mistake_is_named(change: dict, message: str) -> None:
    arguments = {"tokens": ["a", "b", "c"], "teacher": maps(2, 3), "student": maps(2, 3)} | change
    with pytest.raises(CometError, match=message):
        from_arrays(**arguments)


def test_padding_may_hold_anything() -> None:
    teacher = maps(2, 3)
    teacher[:, 2] = np.nan
    data = from_arrays("abc", teacher, maps(1, 3), mask=[1, 1, 0])
    assert data.teacher.values()[:, :2, :2].sum(-1) == pytest.approx(1, abs=0.01)


# ------------------------------------------------------------------------ models


def test_one_forward_pass_of_each_model_gives_its_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student, words = encoder(4, 0), encoder(2, 1), tokenizer(3)
    calls = []
    for who, model in (("teacher", teacher), ("student", student)):
        run = model.forward
        monkeypatch.setattr(
            model, "forward", lambda *a, who=who, run=run, **k: (calls.append(who), run(*a, **k))[1]
        )
    data = from_models(teacher, student, words, TEXT)
    assert sorted(calls) == ["student", "teacher"]
    batch = words(TEXT, return_tensors="pt")
    length = batch["input_ids"].shape[1]
    assert len(data.tokens) == length and data.tokens[0] == "<s>" and data.tokens[-1] == "</s>"
    assert data.matches == (1, 3) and data.teacher_heads is None
    want = capture_maps(teacher, {"input_ids": batch["input_ids"]})
    for layer in range(4):
        assert data.teacher.values(layer) == pytest.approx(want[layer][0].numpy(), abs=0.004)


def test_different_tokenizers_meet_on_characters() -> None:
    teacher = encoder(3, 0)
    student = encoder(2, 1, BertModel, BertConfig)
    coarse, fine = tokenizer(4), tokenizer(2)
    data = from_models(teacher, student, coarse, TEXT, student_tokenizer=fine, heads=True)
    assert len(data.tokens) == len(coarse(TEXT)["input_ids"])  # pieces of 2 end where 4 do
    assert data.teacher.values().sum(-1) == pytest.approx(1, abs=0.05)
    assert data.student_heads is not None
    assert data.student_heads.codes.shape[:3] == (1, 2, 4)
    other = from_models(teacher, student, tokenizer(3), TEXT, student_tokenizer=fine)
    sizes = [len(tokenizer(n)(TEXT)["input_ids"]) for n in (3, 2)]
    assert 2 < len(other.tokens) < min(sizes)


def test_a_cut_text_is_cut_for_both() -> None:
    teacher, student = encoder(3, 0), encoder(2, 1)
    data = from_models(
        teacher, student, tokenizer(4), TEXT, student_tokenizer=tokenizer(2), max_length=6
    )
    shown_text = "".join(t for t in data.tokens if not t.startswith(("<", "▁<")))
    assert shown_text.replace("▁", " ").strip() in TEXT
    assert len(data.tokens) <= 6


def test_checkpoints_become_steps() -> None:
    students = {10: encoder(2, 2), 0: encoder(2, 1)}
    data = from_models(encoder(2, 0), students, tokenizer(3), TEXT)
    assert data.steps == (0, 10) and data.js.shape == (2, 2, 2)
    alone = from_models(encoder(2, 0), students[10], tokenizer(3), TEXT)
    assert data.js[1] == pytest.approx(alone.js[0])


def test_a_tokenizer_that_is_not_the_students_is_named() -> None:
    with pytest.raises(CometError, match="the student has 5 word embeddings"):
        from_models(encoder(2, 0), encoder(2, 1, vocabulary=5), tokenizer(3), TEXT)
    with pytest.raises(CometError, match="text is empty"):
        from_models(encoder(2, 0), encoder(2, 1), tokenizer(3), "  ")


# ------------------------------------------------------------------------ answers and occlusion

LABELS = ("negative", "neutral", "positive")


def classifier(layers: int, seed: int, labels=LABELS):
    model = encoder(layers, seed, XLMRobertaForSequenceClassification)
    model.config.id2label = dict(enumerate(labels))
    model.config.num_labels = 3
    model.num_labels = 3
    torch.manual_seed(seed)
    model.classifier.out_proj = torch.nn.Linear(16, 3)
    return model.eval()


def probabilities(model, **inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits.softmax(-1)[0]


def test_answers_are_the_models_own_in_one_order_of_labels() -> None:
    teacher, words = classifier(3, 0), tokenizer(3)
    students = {5: classifier(2, 1), 9: classifier(2, 2, LABELS[::-1])}
    ours = {"TF-IDF": lambda texts: np.full((len(texts), 3), 1 / 3)}
    data = from_models(teacher, students, words, TEXT, baselines=ours)
    assert data.answers is not None and data.answers.labels == LABELS
    ids = words(TEXT, return_tensors="pt")["input_ids"]
    assert data.answers.teacher == pytest.approx(
        probabilities(teacher, input_ids=ids).numpy(), abs=1e-5
    )
    for k, step in enumerate((5, 9)):
        theirs = probabilities(students[step], input_ids=ids).numpy()[:: (1, -1)[k]]
        assert data.answers.student[k] == pytest.approx(theirs, abs=1e-5)
    assert data.answers.baselines["TF-IDF"] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("two", [False, True])
def test_occlusion_hides_one_place_from_all_others(two: bool) -> None:
    teacher, student, words = classifier(3, 0), classifier(2, 1), tokenizer(4)
    other = tokenizer(2) if two else None
    data = from_models(teacher, student, words, TEXT, student_tokenizer=other)
    assert data.occlusion is not None and data.occlusion is data.occlusion
    assert data.occlusion.student.shape == (1, len(data.tokens))
    ids = words(TEXT, return_tensors="pt")["input_ids"]
    whole = probabilities(teacher, input_ids=ids)
    for i in range(1, ids.shape[1] - 1):  # the teacher's tokens are the places
        mask = torch.ones_like(ids)
        mask[0, i] = 0
        less = probabilities(teacher, input_ids=ids, attention_mask=mask)
        lost = float((whole - less)[whole.argmax()])
        assert data.occlusion.teacher[i] == pytest.approx(lost, abs=1e-5)
    assert data.occlusion.teacher[[0, -1]].tolist() == [0, 0]  # special tokens stay
    assert np.abs(data.occlusion.student).max() > 0


def test_models_that_classify_nothing_or_other_things_have_no_answers() -> None:
    for teacher, student in (
        (encoder(3, 0), encoder(2, 1)),
        (classifier(3, 0), encoder(2, 1)),
        (classifier(3, 0), classifier(2, 1, ("a", "b", "c"))),
    ):
        data = from_models(teacher, student, tokenizer(3), TEXT)
        assert data.answers is None and data.occlusion is None


def test_another_text_is_read_and_too_long_a_one_refused() -> None:
    data = from_models(
        classifier(3, 0).train(), classifier(2, 1), tokenizer(3), TEXT, matches=[0, 2]
    )
    assert data.read is not None and data.text == unicodedata.normalize("NFC", TEXT)
    other = data.read("dára 😀!")
    assert (
        other.text == "dára 😀!"
        and other.matches == (0, 2)
        and len(other.tokens) < len(data.tokens)
    )
    assert other.read is not None and other.read(TEXT).js == pytest.approx(data.js)
    with pytest.raises(CometError, match="more than 38 tokens: shorten it"):
        data.read(TEXT * 20)  # as many as the models take; a first text is cut
    assert len(from_models(encoder(2, 0), encoder(1, 1), tokenizer(3), TEXT * 20).tokens) == 38


def test_a_word_that_opens_a_text_is_labeled_once() -> None:
    # Some tokenizers give the "▁" in front of a text the offsets of its first letter.
    starts = token_starts([(0, 1), (0, 1), (1, 3), (3, 4), (4, 5)], [0] * 5, "Eku o")
    found = labels(starts, np.array([1, 1, 3, 4, 5]), ["▁", "E", "ku", "▁", "o"], "Eku o")
    assert found == ("▁", "E", "ku", "▁", "o")


def test_chosen_heads_are_measured_not_their_mean() -> None:
    teacher, student = maps(2, 3, 5), {0: maps(2, 4, 5), 1: maps(2, 4, 5, seed=1)}
    data = from_arrays("abcde", teacher, student)
    found = data.measures(1, teacher_head=2, student_head=3)
    alone = from_arrays("abcde", teacher[:, 2], student[1][:, 3])
    assert found.js == pytest.approx(alone.js[0], abs=0.01)
    assert found.teacher_entropy == pytest.approx(alone.teacher_entropy, abs=0.02)
    assert found.student_entropy == pytest.approx(alone.student_entropy[0], abs=0.02)
    assert "layer 1, head 3, at step 1" in data.finding(0, 1, 1, 2, 3)
    assert f"{found.js[1, 0]:.2f} nats" in data.finding(0, 1, 1, 2, 3)
    same = from_arrays("abcde", maps(1, 5), maps(1, 5))
    assert "looks at the same tokens as teacher layer 0" in same.finding(0, 0)
