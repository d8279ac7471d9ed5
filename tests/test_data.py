"""Every entry point for text: good files load unchanged, bad ones raise an error naming the row."""

import csv
import unicodedata
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comet_lib import data
from comet_lib.errors import CometError
from comet_lib.profiles import get_profile
from comet_lib.text import load_text

GOOD = "tweet\tlabel\nnímo dára\tpositive\nko dára\tnegative\n"


def write_folder(root: Path, language: str = "yor", **splits: str) -> Path:
    folder = root / "afrisenti" / language
    folder.mkdir(parents=True)
    for split in data.SPLITS:
        folder.joinpath(f"{split}.tsv").write_text(splits.get(split, GOOD), encoding="utf-8")
    return root


def read(tmp_path: Path, content: str | bytes):
    path = tmp_path / "train.tsv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return data.read_tsv(path)


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD + "\n\n",
        GOOD.replace("positive", " Positive "),
        "label\ttweet\npositive\tnímo dára\nnegative\tko dára\n",
    ],
    ids=["plain", "bom", "crlf", "blank rows", "label case", "columns swapped by name"],
)
def test_harmless_forms_read_alike(tmp_path, content):
    frame = read(tmp_path, content)
    assert frame["text"].tolist() == ["nímo dára", "ko dára"]
    assert frame["label"].tolist() == ["positive", "negative"]


def test_quotes_are_plain_characters(tmp_path):
    frame = read(tmp_path, 'tweet\tlabel\n"open quote\tneutral\nsay "yes"\tpositive\n')
    assert frame["text"].tolist() == ['"open quote', 'say "yes"']


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_table_of_a_csv_writer_loses_its_quotes(tmp_path, quoting):
    texts = ['a "quoted" word', "plain", '"all of it"', '"', ", ", "''"]
    path = tmp_path / "x.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=quoting)
        writer.writerows([("tweet", "label"), *((text, "neutral") for text in texts)])
    expected = list(map(data.normalize, texts))
    assert data.read_tsv(path)["text"].tolist() == data.read_texts(path) == expected


def test_a_tab_inside_quotes_is_part_of_the_text(tmp_path):
    frame = read(tmp_path, 'tweet\tlabel\n"a\tb"\tneutral\n')
    assert frame["text"].tolist() == ["a b"]


@pytest.mark.parametrize(
    "content",
    [
        'tweet\tlabel\n"opens here\tneutral\nends there"\tpositive\n',
        'tweet\tlabel\n"whole"\tneutral\n',  # no writer would need these quotes
        'tweet\tlabel\n"a ""b"""\tneutral\nsay "yes"\tpositive\n',
        'tweet\tlabel\n"a ""b"""\tneutral\n"open\tpositive\n',
        'tweet\tlabel\n""a"" b\tneutral\n',
    ],
)
def test_quotes_that_no_csv_writer_wrote_stay(tmp_path, content):
    texts = [line.split("\t")[0] for line in content.splitlines()[1:]]
    assert read(tmp_path, content)["text"].tolist() == texts


@pytest.mark.parametrize(
    ("content", "row"),
    [
        ('tweet\tlabel\nx\tneutral\n"first\nsecond"\tneutral\n', 3),
        ('tweet\tlabel\n"a ""b"""\tneutral\n"first\n\nthird"\tneutral\n', 3),
        ('label\ttweet\nneutral\t"first\nsecond ""x"""\n', 2),
        ('tweet\n"first\nsecond"\n', 2),
    ],
)
def test_a_quoted_line_break_is_named(tmp_path, content, row):
    path = tmp_path / "x.tsv"
    path.write_text(content, encoding="utf-8")
    for reader in (data.read_tsv, data.read_texts)["label" not in content :]:
        with pytest.raises(CometError, match=f"row {row}: the text in quotes .* line break"):
            reader(path)


def test_tone_marks_survive_as_nfc(tmp_path):
    decomposed = unicodedata.normalize("NFD", "Ẹ kú àárọ̀")
    frame = read(tmp_path, f"tweet\tlabel\n{decomposed}\tpositive\n")
    assert frame["text"][0] == unicodedata.normalize("NFC", "Ẹ kú àárọ̀") != decomposed


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text\tlabel\nx\tpositive\n", ["row 1", "tweet"]),
        ("tweet\nx\n", ["row 1", "label"]),
        ("tweet\ttweet\tlabel\nx\ty\tpositive\n", ["row 1", "tweet"]),
        ("", ["row 1"]),
        (GOOD + "x\tgood\n", ["row 4", "'good'", "neutral"]),
        (GOOD + "x\t1\n", ["row 4", "'1'"]),
        (GOOD + "  \tpositive\n", ["row 4", "empty"]),
        (GOOD + "a\tb\tpositive\n", ["row 4", "3 columns"]),
        (GOOD + "only text\n", ["row 4", "1 columns"]),
        (GOOD + "tweet\tlabel\n", ["row 4", "header"]),
        ("tweet\tlabel\n", ["no rows"]),
        (GOOD.encode() + b"\xff\xfe\tpositive\n", ["row 4", "UTF-8"]),
        (GOOD + "a\0b\tpositive\n", ["row 4", "NUL"]),
        ("tweet,label\nx,positive\n", ["row 1", "<TAB>"]),
    ],
)
def test_bad_files_name_file_row_and_fix(tmp_path, content, words):
    with pytest.raises(CometError) as caught:
        read(tmp_path, content)
    message = str(caught.value)
    assert "train.tsv" in message
    for word in words:
        assert word in message


@given(st.binary(max_size=200))
def test_any_bytes_read_or_are_refused_in_one_sentence(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.tsv"
    path.write_bytes(content)
    try:
        frame = data.read_tsv(path)
    except CometError as error:
        assert "any.tsv" in str(error)
    else:
        assert set(frame["label"]) <= set(data.LABELS)


def test_missing_file_and_language(tmp_path):
    profile = get_profile("laptop", write_folder(tmp_path))
    with pytest.raises(CometError, match="no such language; this data has yor"):
        data.load_sentiment(profile, ["hau"])
    (tmp_path / "afrisenti" / "yor" / "dev.tsv").unlink()
    with pytest.raises(CometError, match=r"dev\.tsv: cannot be read"):
        data.load_sentiment(profile, ["yor"])


@pytest.mark.parametrize("code", ["../x", "/etc", "a", "YOR", "y or", "yor/..", ""])
def test_language_codes_cannot_be_paths(code):
    with pytest.raises(CometError, match="language code"):
        data.check_language(code)


def test_leakage_is_found_reported_and_can_be_left_out(tmp_path):
    dev = (
        "tweet\tlabel\nnímo  dára\tnegative\nàlàáfíà ni\tneutral\n"  # spaces differ, text does not
    )
    profile = get_profile(
        "laptop", write_folder(tmp_path, dev=dev, test="tweet\tlabel\nx\tneutral\n")
    )
    loaded = data.load_sentiment(profile, ["yor"])
    assert loaded["dev"]["seen_in_train"][:] == [True, False]
    assert data.unseen(loaded["dev"])["text"][:] == ["àlàáfíà ni"]
    report = data.leakage(loaded).set_index("split")
    assert report.loc["dev", "in_train"] == 1 and report.loc["dev", "percent"] == 50.0
    assert report.loc["test", "in_train"] == 0
    assert not any(loaded["train"]["seen_in_train"][:])


def two_languages(root: Path) -> data.DatasetDict:
    """Yoruba's dev and test hold copies of Igbo's train and of Yoruba's dev."""
    rows = {
        "dev": "Ṅdewo nnọọ, enyi!\tneutral\nàlàáfíà ni\tneutral\nṅdewo nnọọ enyi\tneutral\n",
        "test": "àlàáfíà ni\tneutral\n@user ṅdewonnọọ ENYI 😀 http://x.y\tpositive\n",
    }
    splits = {split: f"tweet\tlabel\n{text}" for split, text in rows.items()}
    write_folder(root, "yor", **splits)
    train = "Ṅdewo nnọọ, enyi!\tpositive\nọ dị mma\tpositive\n"
    folder = write_folder(root, "ibo", train="tweet\tlabel\n" + train)
    return data.load_sentiment(get_profile("laptop", folder), ["yor", "ibo"])


def test_copies_of_any_language_count_exact_and_loose(tmp_path):
    loaded = two_languages(tmp_path)
    assert loaded["dev"]["seen_in_train"][:3] == [True, False, False]
    rows = data.leakage(loaded).set_index(["language", "split"]).to_dict("index")
    assert rows["yor", "dev"] == {
        "rows": 3,
        "in_train": 1,
        "percent": 33.3,
        "loose": 2,
        "loose_percent": 66.7,
        "in_dev": 0,
    }
    test = rows["yor", "test"]
    assert (test["in_train"], test["loose"], test["in_dev"]) == (0, 1, 1)
    assert rows["ibo", "test"]["in_dev"] == 2  # GOOD is its dev too


def test_a_language_without_train_on_the_hub_is_read_and_its_leakage_unknown(tmp_path):
    for code, split in (("tir", "test"), ("swa", "train"), ("swa", "test")):
        folder = tmp_path / code / split
        folder.mkdir(parents=True)
        table = datasets.Dataset.from_dict({"tweet": ["ok", f"{code}!"], "label": [0, 2]})
        table.to_parquet(str(folder / "0000.parquet"))
    source, profile = data.Source("hub", str(tmp_path), ""), get_profile("tiny")
    table = data.load_sentiment(profile, ["tir", "swa"], source, ["test"])["test"]
    assert table["seen_in_train"][:] == [None, None, True, True]
    assert data.seen_percent(table) == {"tir": None, "swa": 100.0}
    with pytest.raises(CometError, match="tir/train on the hub is not there"):
        data.load_sentiment(profile, ["tir", "swa"], source, ["train"])


def test_training_texts_with_conflicting_labels_are_found(tmp_path):
    train = GOOD + "ko dára\tneutral\nnímo dára\tpositive\n"
    write_folder(tmp_path, "yor", train=train)
    folder = write_folder(tmp_path, "ibo", train=GOOD.replace("positive", "negative"))
    loaded = data.load_sentiment(get_profile("laptop", folder), ["yor", "ibo"])
    found = data.conflicting_labels(loaded["train"])
    assert found.groupby("text")["label"].agg(set).to_dict() == {
        "ko dára": {"negative", "neutral"},
        "nímo dára": {"positive", "negative"},  # one label in each language
    }
    assert found.groupby("language")["text"].nunique().to_dict() == {"ibo": 2, "yor": 2}


def test_afrisenti_leaks_as_counted(data_folder):
    loaded = data.load_sentiment(get_profile("laptop", data_folder))
    rows = data.leakage(loaded).set_index(["split", "language"])
    dev = {"kin": 3.9, "swa": 0.7, "hau": 8.0, "ibo": 2.1, "yor": 11.3}
    assert rows.loc["dev", "percent"].to_dict() == dev
    # 28 in Kinyarwanda: a CSV writer wrote its test split, and one copy stands in quotes there.
    assert rows.loc["test", "in_train"].to_dict() == dict(kin=28, swa=1, hau=0, ibo=0, yor=0)
    assert rows.loc["test", "loose"].to_dict() == dict(kin=29, swa=2, hau=388, ibo=86, yor=113)
    found = data.conflicting_labels(loaded["train"])
    assert found.groupby("language")["text"].nunique().to_dict() == {"kin": 9, "swa": 3}


def test_labels_follow_our_order_not_the_files(tmp_path):
    profile = get_profile("laptop", write_folder(tmp_path))
    table = data.load_sentiment(profile, ["yor"])["train"]
    assert table.features["label"].names == list(data.LABELS)
    assert [table.features["label"].int2str(i) for i in table["label"]] == ["positive", "negative"]


@pytest.mark.parametrize("named", [True, False], ids=["ClassLabel", "plain integers"])
def test_hub_layout_maps_labels_by_name(tmp_path, named):
    """A local copy of the hub's Parquet branch, whose integers run positive, neutral, negative."""
    features = datasets.Features(
        tweet=datasets.Value("string"),
        label=datasets.ClassLabel(names=list(data.HUB_LABELS))
        if named
        else datasets.Value("int64"),
    )
    for split in ("train", "validation", "test"):
        folder = tmp_path / "hau" / split
        folder.mkdir(parents=True)
        table = datasets.Dataset.from_dict(
            {"tweet": ["mai kyau", "haka ne", "ba kyau"], "label": [0, 1, 2]}, features=features
        )
        table.to_parquet(folder / "0000.parquet")
    frame = data.read_hub("hau", "dev", root=str(tmp_path))
    assert frame["label"].tolist() == ["positive", "neutral", "negative"]


@pytest.mark.parametrize(
    ("tweets", "labels", "words"),
    [
        (
            ["a", "b"],
            [0, -1],
            "row 2: unknown label '-1';",
        ),  # no label, and not the last of the names
        (["a", "b"], [0, 7], "row 2: unknown label '7';"),
        (["a", "b"], [None, 1], "row 1: unknown label 'None';"),
        (["a", None], [0, 1], "row 2: text is 'None', not a string;"),
    ],
)
def test_a_bad_row_of_the_hub_is_named(tmp_path, tweets, labels, words):
    (tmp_path / "kin" / "test").mkdir(parents=True)
    table = datasets.Dataset.from_dict({"tweet": tweets, "label": labels})
    table.to_parquet(str(tmp_path / "kin" / "test" / "0.parquet"))
    with pytest.raises(CometError, match=words):
        data.read_hub("kin", "test", root=str(tmp_path))


def test_unreachable_hub_says_what_to_do(tmp_path):
    with pytest.raises(CometError, match="COMET_DATA"):
        data.read_hub("hau", "dev", root=str(tmp_path / "nothing"))


def test_source_order(tmp_path, monkeypatch):
    profile = get_profile("laptop")
    monkeypatch.setattr(data, "_hub_reachable", lambda: True)
    assert data.find_source(profile).kind == "hub"
    monkeypatch.setattr(data, "_hub_reachable", lambda: False)
    sample = data.find_source(profile)
    assert sample.kind == "sample" and "name AfriSenti's folder (COMET_DATA)" in str(sample)
    assert "COMET_DATA" not in str(data.find_source(get_profile("tiny")))  # the sample was wanted
    folder = write_folder(tmp_path)
    assert data.find_source(get_profile("laptop", folder)).kind == "folder"


def test_text_falls_back_to_tweets_without_labels(tmp_path):
    profile = get_profile("laptop", write_folder(tmp_path))
    assert load_text(profile, ["yor"])["text"][:] == ["nímo dára", "ko dára"]
    text = tmp_path / "text"
    text.mkdir()
    (text / "yor.txt").write_text("ọ̀rọ̀ kan\n\nọ̀rọ̀ méjì\n", encoding="utf-8")
    table = load_text(profile, ["yor"])
    assert table["text"][:] == ["ọ̀rọ̀ kan", "ọ̀rọ̀ méjì"] and set(table["language"]) == {"yor"}


def test_bundled_sample_loads_in_every_language():
    profile = get_profile("tiny")
    loaded = data.load_sentiment(profile)
    for split in data.SPLITS:
        assert set(loaded[split]["language"]) == set(profile.languages)
        assert set(loaded[split]["label"]) == {0, 1, 2}
    assert data.leakage(loaded).query("split == 'dev'")["in_train"].tolist() == [1] * 5
    assert len(load_text(profile)) > 100


def test_the_cleaned_form_keeps_letters_marks_and_numbers():
    raw = "@user Ọjọ́ dára gan-an!!! 😊 http://x.y 2024 (ẹ̀rín)"
    assert data.cleaned(raw) == "ọjọ́ dára gan an 2024 ẹ̀rín"
    assert data.cleaned(data.cleaned(raw)) == data.cleaned(raw)
    assert data.cleaned("😊 !") == "😊 !"  # nothing would be left
