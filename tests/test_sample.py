"""The sample text that ships with the library: its form, its counts and its one planted leak."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import pytest

import comet_lib
from comet_lib import data

SAMPLE = Path(comet_lib.__file__).parent / "assets" / "sample"
LANGUAGES = ("kin", "swa", "hau", "ibo", "yor")
ROWS = {"train": 42, "dev": 15, "test": 15}
LABELS = ("negative", "neutral", "positive")
UNLABELED = 30
TONE_MARKS = {"\N{COMBINING GRAVE ACCENT}", "\N{COMBINING ACUTE ACCENT}"}

each_language = pytest.mark.parametrize("language", LANGUAGES)
each_split = pytest.mark.parametrize("split", ROWS)


def split_path(language: str, split: str) -> Path:
    return SAMPLE / "afrisenti" / language / f"{split}.tsv"


def text_path(language: str) -> Path:
    return SAMPLE / "transfer" / f"{language}.txt"


def lines_of(path: Path) -> list[str]:
    """The lines of a file; splits only at the line feed, so nothing else hides a break."""
    text = path.read_bytes().decode("utf-8")
    assert text.endswith("\n"), f"{path} does not end with a line feed"
    return text[:-1].split("\n")


def rows_of(language: str, split: str) -> list[tuple[str, str]]:
    rows = []
    for line in lines_of(split_path(language, split))[1:]:
        fields = line.split("\t")
        assert len(fields) == 2, f"not one tab: {line!r}"
        rows.append((fields[0], fields[1]))
    return rows


def sentences_of(language: str) -> list[str]:
    """All sentences of a language, labeled and not, repeats included."""
    labeled = [tweet for split in ROWS for tweet, _ in rows_of(language, split)]
    return labeled + lines_of(text_path(language))


@each_split
@each_language
def test_labeled_file_has_header_counts_and_balance(language: str, split: str) -> None:
    assert lines_of(split_path(language, split))[0] == "tweet\tlabel"
    rows = rows_of(language, split)
    assert len(rows) == ROWS[split]
    assert Counter(label for _, label in rows) == dict.fromkeys(LABELS, ROWS[split] // 3)


@each_language
def test_unlabeled_file_has_its_sentences(language: str) -> None:
    lines = lines_of(text_path(language))
    assert len(lines) == UNLABELED
    outside = [line for line in lines if not 8 <= len(line.split()) <= 25]
    assert outside == []


@each_language
def test_text_is_clean(language: str) -> None:
    for path in [*(split_path(language, split) for split in ROWS), text_path(language)]:
        text = path.read_bytes().decode("utf-8")
        assert "\r" not in text, path
        assert not text.startswith("\N{ZERO WIDTH NO-BREAK SPACE}"), path
        assert unicodedata.is_normalized("NFC", text), path
    for sentence in sentences_of(language):
        assert "\t" not in sentence
        assert " ".join(sentence.split()) == sentence
        assert 3 <= len(sentence.split()) <= 30, sentence


@each_language
def test_only_the_planted_sentence_is_there_twice(language: str) -> None:
    repeated = {text: n for text, n in Counter(sentences_of(language)).items() if n > 1}
    assert list(repeated.values()) == [2], repeated
    (leaked,) = repeated
    train, dev = (dict(rows_of(language, split)) for split in ("train", "dev"))
    assert train[leaked] == dev[leaked]


@each_language
def test_openings_vary(language: str) -> None:
    openings = Counter(
        tuple(sentence.casefold().split()[:3]) for sentence in set(sentences_of(language))
    )
    assert {opening: n for opening, n in openings.items() if n > 4} == {}


def test_most_yoruba_sentences_carry_tone_marks() -> None:
    sentences = sentences_of("yor")
    marked = [text for text in sentences if TONE_MARKS & set(unicodedata.normalize("NFD", text))]
    assert len(marked) >= 0.9 * len(sentences)


def test_each_sentence_has_a_translation() -> None:
    header, *rows = (line.split("\t") for line in lines_of(SAMPLE / "english.tsv"))
    assert header == ["text", "english"]
    there = dict.fromkeys(text for language in LANGUAGES for text in sentences_of(language))
    assert [text for text, _ in rows] == [*there]
    for text, english in rows:
        assert data.english(text) == data.english(data.cleaned(text)) == english != text
        shown = {c for c in text if unicodedata.category(c) == "So"} | {"@user"} & {*text.split()}
        assert all(sign in english for sign in shown), text
        assert 3 <= len(english.split()) <= 40, text
    assert data.english("Not a sentence of the sample") is None


def test_languages_do_not_share_sentences() -> None:
    shared = Counter(text for language in LANGUAGES for text in set(sentences_of(language)))
    assert [text for text, n in shared.items() if n > 1] == []
