"""Text for stage 1: files, the table, limits, the hub, training, and every bad line."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fixed_tokenizer import fixed_tokenizer
from transformers import TrainingArguments, set_seed

from comet_lib import recipe, text
from comet_lib.errors import CometError
from comet_lib.models import build_student, xlmr_config
from comet_lib.profiles import ASSETS, Stage, get_profile
from comet_lib.text import load_text
from comet_lib.training import distil_task_agnostic, training_arguments

LINES = [f"{a} ẹ kú {b} {c}" for a in "abcdef" for b in ("mai", "ndi x y") for c in "uvwxyz"]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


@pytest.fixture(scope="module")
def tokenizer():
    return fixed_tokenizer(LINES, vocab_size=60)


def lines_of(path: Path) -> list[str]:
    """What stage 1 reads of a file or folder."""
    return load_text(get_profile("tiny").with_(text=str(path)))["text"][:]


def parquet(path: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns), path)


# --- What is read ---------------------------------------------------------------------------


def test_each_kind_of_file_gives_the_same_lines(tmp_path: Path) -> None:
    nfd = unicodedata.normalize("NFD", "ọ̀rọ̀ dára")
    texts = ["  a  b ", "", nfd, "two\nlines", " \t", "end"]
    (tmp_path / "x.txt").write_bytes(
        b"\xef\xbb\xbf" + "\r\n".join(texts).replace("two\n", "two\r\n").encode()
    )
    (tmp_path / "x.jsonl").write_text(
        "\n".join(json.dumps({"id": 1, "text": t}) for t in [*texts, None]) + "\n\n"
    )
    parquet(tmp_path / "x.PARQUET", id=range(7), text=[*texts, None])
    for name in ("x.txt", "x.jsonl", "x.PARQUET"):
        expected = ["a b", unicodedata.normalize("NFC", nfd), "two", "lines", "end"]
        assert lines_of(tmp_path / name) == expected, name
    assert sorted(lines_of(tmp_path)) == sorted(expected * 3)


def test_a_folder_is_read_with_its_folders_and_without_what_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "kin" / "deep").mkdir(parents=True)
    (tmp_path / "kin" / "deep" / "a.txt").write_text("one\ntwo")
    (tmp_path / "b.txt").write_text("three")
    (tmp_path / "README.md").write_text("not this")
    (tmp_path / "._b.txt").write_bytes(b"\xff\xff")
    assert sorted(lines_of(tmp_path)) == ["one", "three", "two"]


def test_the_table_is_written_once_and_again_when_a_file_changes(
    tmp_path: Path, monkeypatch: Any
) -> None:
    path, read = tmp_path / "x.txt", []
    path.write_text("a\nb\n")

    def counted(where: Path) -> Any:
        for line in read_lines(where):
            read.append(line)
            yield line

    read_lines = text.read_lines
    monkeypatch.setattr(text, "read_lines", counted)
    assert lines_of(path) == ["a", "b"] and lines_of(path) == ["a", "b"]
    assert len(read) == 4  # the first line twice more: is there one at all?
    path.write_text("a\nb\nc\n")
    assert lines_of(path) == ["a", "b", "c"]


def test_limits_count_the_lines_of_each_language_and_without_text_tweets_serve(
    tmp_path: Path,
) -> None:
    shutil.copytree(ASSETS / "sample" / "afrisenti", tmp_path / "afrisenti")
    profile = get_profile("tiny", tmp_path).with_(languages=("kin", "yor"), default_text_limit=3)
    tweets = load_text(profile)
    assert len(tweets) > 6 and set(tweets["language"]) == {"kin", "yor"}
    (tmp_path / "text").mkdir()
    for code in ("kin", "yor", "hau"):
        (tmp_path / "text" / f"{code}.txt").write_text("".join(f"{code} {i}\n\n" for i in range(9)))
    table = load_text(profile.with_(text_limit={"yor": 4}))
    assert Counter(table["language"]) == {"kin": 3, "yor": 4}
    assert table["text"][:4] == ["kin 0", "kin 1", "kin 2", "yor 0"]


# --- What is refused ------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing there": (lambda p: None, "no such file or folder"),
    "an empty folder": (lambda p: p.mkdir(), "no text in this folder; put .txt, .jsonl, .parquet"),
    "another kind alone": (
        lambda p: (p.mkdir(), (p / "a.csv").write_text("text\nx")),
        "no text in this folder",
    ),
    "another kind": (lambda p: p.with_suffix(".csv").write_text("x"), "must end in one of .txt"),
    "no lines": (lambda p: p.with_suffix(".txt").write_text("\n \n"), "holds no line"),
    "one line": (lambda p: p.with_suffix(".txt").write_text("x"), "has 1 line of text"),
    "Latin-1": (
        lambda p: p.with_suffix(".txt").write_bytes(b"a\n\nb\xe9\nc"),
        "x.txt, row 3: not UTF-8",
    ),
    "UTF-16": (lambda p: p.with_suffix(".txt").write_text("ab\nc", "utf-16"), "row 1: not UTF-8"),
    "a NUL": (lambda p: p.with_suffix(".txt").write_bytes(b"a\nb\0\n"), "row 2: holds a NUL"),
    "no JSON": (
        lambda p: p.with_suffix(".jsonl").write_text('{"text": "a"}\n\n{"text": "b"'),
        "x.jsonl, row 3: is not JSON",
    ),
    "deep JSON": (lambda p: p.with_suffix(".jsonl").write_text("[" * 100_000), "row 1: is not"),
    "no object": (
        lambda p: p.with_suffix(".jsonl").write_text('"a"\n'),
        "row 1: is not JSON with a key text",
    ),
    "no key": (
        lambda p: p.with_suffix(".jsonl").write_text('{"text": "a"}\n{"tweet": "b"}'),
        "row 2: is not JSON with a key text",
    ),
    "a number": (lambda p: p.with_suffix(".jsonl").write_text('{"text": 3}'), "row 1: text is '3'"),
    "half a character": (
        lambda p: p.with_suffix(".jsonl").write_text('{"text": "a\\ud800"}'),
        "row 1: not UTF-8",
    ),
    "JSON in Latin-1": (
        lambda p: p.with_suffix(".jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}'),
        "row 2: not UTF-8",
    ),
    "no column": (lambda p: parquet(p.with_suffix(".parquet"), tweet=["a"]), "has tweet; rename"),
    "a column of numbers": (
        lambda p: parquet(p.with_suffix(".parquet"), text=[None, 4]),
        "row 2: text is '4', not",
    ),
    "bytes in a column": (
        lambda p: parquet(
            p.with_suffix(".parquet"),
            text=pa.array([b"a"] * 1500 + [b"\xe9"], pa.binary()).view(pa.string()),
        ),
        "row 1501: not UTF-8",
    ),
    "no Parquet": (
        lambda p: p.with_suffix(".parquet").write_bytes(b"PAR1 and no more"),
        "cannot be read as Parquet",
    ),
    "a folder with one bad file": (
        lambda p: (
            p.mkdir(),
            (p / "a.txt").write_text("x\ny"),
            (p / "b.txt").write_bytes(b"x\xff"),
        ),
        "b.txt, row 1: not UTF-8",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_text_is_refused_before_anything_is_written(kind: str, tmp_path: Path) -> None:
    make, words = BAD[kind]
    make(tmp_path / "x")
    (path,) = list(tmp_path.iterdir()) or [tmp_path / "x"]
    profile = get_profile("tiny").with_(text=str(path))
    with pytest.raises(CometError) as caught:
        recipe.distil(profile, tmp_path / "out", say=lambda _: None)
    said = str(caught.value)
    assert words in said and str(path) in said and "\n" not in said and len(said) < 700
    assert not (tmp_path / "out").exists()


# --- The hub --------------------------------------------------------------------------------


def test_the_hub_is_streamed_up_to_the_profiles_limits(monkeypatch: Any) -> None:
    def hub(path: str, **options: Any) -> datasets.IterableDataset:
        assert options["streaming"] and path == "HuggingFaceFW/fineweb-2"
        code = options["name"]
        return datasets.Dataset.from_dict(
            {"text": [f"{code} {i}\n\n{code} {i} again" for i in range(9)]}
        ).to_iterable_dataset()

    monkeypatch.setattr(text, "load_dataset", hub)
    profile = get_profile("tiny").with_(
        languages=("yor", "kin", "amh"),
        text_limit={"kin": 4},
        default_text_limit=8,
        text="fineweb-2",
    )
    lines = load_text(profile)["text"][:]
    assert Counter(line[:3] for line in lines) == {"yor": 8, "kin": 4}
    assert lines[0] == "yor_Latn 0" and "kin_Latn 0 again" in lines
    with pytest.raises(CometError, match="choose some of these --languages"):
        load_text(profile.with_(languages=("amh",)))


def test_without_the_hub_there_is_one_sentence(monkeypatch: Any) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Network is unreachable")

    monkeypatch.setattr(text, "load_dataset", offline)
    with pytest.raises(CometError, match=r"ConnectionError.*give a folder as --text"):
        load_text(get_profile("tiny").with_(text="fineweb-2"))


# --- Training -------------------------------------------------------------------------------


def run(tokenizer, folder: Path, **more: Any) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    set_seed(0)
    teacher, student = (
        build_student(xlmr_config(SIZES, len(tokenizer), 64, initializer_range=0.2), "masked-lm")
        for _ in range(2)
    )
    stage = Stage(3, 5e-3, 4, temperature=2.0, alpha=0.5, gradient_accumulation=2)
    profile = get_profile("tiny").with_(stage1=stage, max_length=16)
    texts = folder.parent / "x.txt"
    texts.write_text("\n".join(LINES * 2))
    table = load_text(profile.with_(text=str(texts)))
    more = {"learning_rate": 5e-3, "disable_tqdm": True, **more}
    log = distil_task_agnostic(student, teacher, tokenizer, table, profile, folder, **more)
    return student, log


def test_a_table_on_disk_trains_as_a_list_does(tokenizer, tmp_path: Path) -> None:
    """The same rows in the same order, so the same weights."""
    ours, _ = run(tokenizer, tmp_path / "table")
    monkey = pytest.MonkeyPatch()
    monkey.setattr(sys.modules[__name__], "load_text", lambda _: LINES * 2)
    theirs, _ = run(tokenizer, tmp_path / "list")
    monkey.undo()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


def test_held_out_lines_keep_their_masks(tokenizer, tmp_path: Path) -> None:
    """Against a student that stays as it is: its loss must not move either."""
    untrained, trained = (
        [
            row["eval_loss"]
            for row in run(tokenizer, tmp_path / name, learning_rate=rate)[1]
            if "eval_loss" in row
        ]
        for name, rate in (("still", 0.0), ("moved", 5e-3))
    )
    assert len(untrained) == 3 and len(set(untrained)) == 1
    assert trained[-1] < untrained[-1] / 2


def test_two_gpus_without_accelerate_launch_are_one(
    tokenizer, tmp_path: Path, monkeypatch: Any
) -> None:
    """The Trainer would take DataParallel, which no objective of ours can follow."""

    def two(self: TrainingArguments) -> torch.device:
        self.distributed_state, self._n_gpu = recipe.processes(), 2
        return torch.device("cpu")

    devices = cached_property(two)  # as in transformers
    devices.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", devices)
    stage = get_profile("tiny").stage1
    assert TrainingArguments(str(tmp_path)).n_gpu == 2  # the imitation works
    assert training_arguments(tmp_path, stage, seed=0).train_batch_size == stage.batch_size

    def refuse(*_: Any) -> None:
        raise AssertionError("DataParallel")

    monkeypatch.setattr(torch.nn.DataParallel, "__init__", refuse)
    run(tokenizer, tmp_path, max_steps=2)


def test_the_recipe_reads_the_profiles_text(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "x.txt").write_text("habari\nnjema\n", encoding="utf-8")
    seen = []

    def look(run: Any, teachers: Any, texts: Any) -> None:
        seen.append(texts["text"][:])
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "stage_one", look)
    with pytest.raises(KeyboardInterrupt):
        recipe.distil(
            get_profile("tiny").with_(text=str(tmp_path / "x.txt")),
            tmp_path / "out",
            say=lambda _: None,
        )
    assert seen == [["habari", "njema"]]
