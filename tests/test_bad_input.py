"""Bad input at every entry point: one sentence that names the fix, exit code 2, no traceback.

Tables hold the cases by class; ``pytest -s -k counts`` prints how many there are. Hypothesis adds
random ones.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import json
import os
import pickle
import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from typer.testing import CliRunner

from comet_lib import __main__ as cli
from comet_lib import checks as check
from comet_lib import data, evaluation, training
from comet_lib.console import printable
from comet_lib.data import check_language, read_texts, read_tsv
from comet_lib.errors import CometError
from comet_lib.files import read_json
from comet_lib.loading import answering, check_pair, load_model, load_tokenizer, longest_text
from comet_lib.profiles import ASSETS, PROFILES, get_profile
from comet_lib.recipe import read_teachers
from comet_lib.ship.onnx import is_exported, load_exported
from comet_lib.teacher import open_answers

HEADER = "tweet\tlabel\n"
GOOD = f"{HEADER}nímo dára\tpositive\nko dára\tnegative\n"
quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sentence(error: BaseException) -> str:
    """A message as it must be: one line, not too long, with a fix after ';' or ':'."""
    text = str(error)
    assert "\n" not in text and 15 < len(text) < 700, text
    assert ";" in text or ":" in text
    return text


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Calls the command line in this process, which must refuse: returns its sentence."""

    def call(*arguments: str, code: int = 2) -> str:
        monkeypatch.setattr(sys, "argv", ["comet_lib", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        shown = capsys.readouterr()
        assert stopped.value.code == code, shown.err[-400:]
        assert "Traceback" not in shown.err + shown.out
        return shown.err.strip().splitlines()[-1]

    return call


# --- Tables of text ------------------------------------------------------------------------

LONG = "a" * 2**20
BAD_TSV: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "row 1"),
    "only a BOM": (b"\xef\xbb\xbf", "row 1"),
    "UTF-16": (GOOD.encode("utf-16"), "UTF-8"),
    "Latin-1": (GOOD.encode("latin-1", "replace").replace(b"?", b"\xe0"), "UTF-8"),
    "a NUL": (f"{GOOD}a\0b\tpositive\n".encode(), "row 4: holds a NUL"),
    "only NULs": (bytes(500), "NUL"),
    "commas": (b"tweet,label\nx,positive\n", "<TAB>"),
    "semicolons": (b"tweet;label\nx;positive\n", "<TAB>"),
    "spaces": (b"tweet label\nx positive\n", "<TAB>"),
    "no header": (b"x\tpositive\ny\tneutral\n", "row 1"),
    "header twice": (f"{GOOD}{HEADER}".encode(), "row 4: repeats the header"),
    "columns swapped": (f"{HEADER}positive\tx\n".encode(), "unknown label 'x'"),
    "label in another tongue": (f"{GOOD}x\tmbaya\n".encode(), "unknown label 'mbaya'"),
    "label as a number": (f"{GOOD}x\t2\n".encode(), "unknown label '2'"),
    "a long label": (f"{GOOD}x\t{LONG}\n".encode(), "row 4: unknown label"),
    "a long header": (LONG.encode(), "row 1"),
    "no label": (f"{GOOD}x\t\n".encode(), "unknown label ''"),
    "one column": (f"{GOOD}x\n".encode(), "1 columns"),
    "a tab in the tweet": (f"{GOOD}a\tb\tpositive\n".encode(), "3 columns"),
    "an empty tweet": (f"{GOOD} \tpositive\n".encode(), "is empty"),
    "no rows": (HEADER.encode(), "no rows"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "UTF-8"),
    "an archive": (b"PK\x03\x04" + bytes(40), "NUL"),
    "escapes in the label": (f"{GOOD}x\t\x1b[31mred\n".encode(), r"\x1b[31mred"),
}
GOOD_TSV: dict[str, bytes] = {
    "BOM": b"\xef\xbb\xbf" + GOOD.encode(),
    "CRLF": GOOD.replace("\n", "\r\n").encode(),
    "CR": GOOD.replace("\n", "\r").encode(),
    "label case": GOOD.replace("positive", "POSITIVE").replace("negative", " Negative ").encode(),
    "decomposed": unicodedata.normalize("NFD", GOOD).encode(),
    "no last newline": GOOD.rstrip().encode(),
    "more columns": GOOD.replace("\n", "\tx\n").replace("\tx", "\tid", 1).encode(),
}


@pytest.mark.parametrize("kind", BAD_TSV)
def test_a_bad_table_is_refused(kind: str, tmp_path: Path) -> None:
    content, words = BAD_TSV[kind]
    path = tmp_path / "train.tsv"
    path.write_bytes(content)
    with pytest.raises(CometError) as caught:
        read_tsv(path)
    text = sentence(caught.value)
    assert words in text and "train.tsv" in text and "\x1b" not in text


@pytest.mark.parametrize("kind", GOOD_TSV)
def test_a_harmless_form_is_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_bytes(GOOD_TSV[kind])
    frame = read_tsv(path)
    assert frame["text"].tolist() == ["nímo dára", "ko dára"]
    assert frame["label"].tolist() == ["positive", "negative"]


def test_a_line_of_a_megabyte_is_read_and_answered(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text(f"{HEADER}{'neno ' * 2**18}\tneutral\n", encoding="utf-8")
    frame = read_tsv(path)
    assert len(frame["text"][0]) > 2**20
    teacher, tokenizer = load_model(ASSETS / "teacher"), load_tokenizer(ASSETS / "teacher")
    answer = evaluation.predict_probabilities(teacher, tokenizer, frame["text"].tolist())
    assert answer.shape == (1, 3) and np.isfinite(answer).all()


cells = st.text(st.characters(codec="utf-8"), max_size=20)
tables = st.lists(st.lists(cells, max_size=4), max_size=8).map(
    lambda rows: "\n".join("\t".join(row) for row in rows)
)


@quick
@given(st.one_of(st.binary(max_size=300), tables.map(lambda t: (HEADER + t).encode())))
def test_any_table_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.tsv"
    path.write_bytes(content)
    for reader in (read_tsv, read_texts):
        try:
            read = reader(path)
        except CometError as error:
            assert "any.tsv" in sentence(error)
        else:
            texts = list(read["text"] if reader is read_tsv else read)
            assert texts and all(text == data.normalize(text) != "" for text in texts)


@quick
@given(st.lists(st.tuples(cells, st.sampled_from(data.LABELS)), min_size=1, max_size=6))
def test_what_is_written_as_a_table_comes_back(tmp_path: Path, rows: list) -> None:
    rows = [(data.normalize(text.replace("\0", "")), label) for text, label in rows]
    rows = [row for row in rows if row[0]]
    path = tmp_path / "any.tsv"
    path.write_text(HEADER + "".join(f"{t}\t{n}\n" for t, n in rows), encoding="utf-8", newline="")
    if not rows:
        return
    if any(text.lower() == "tweet" for text, _ in rows):
        return  # may repeat the header, which is refused
    if any(text.startswith('"') and '""' in text for text, _ in rows):
        return  # may be what a CSV writer makes of another text
    assert list(read_tsv(path).itertuples(index=False, name=None)) == rows


def test_copies_between_train_and_test_are_reported(tmp_path: Path) -> None:
    for split, text in (("train", GOOD), ("dev", f"{HEADER}x\tneutral\n"), ("test", GOOD)):
        folder = tmp_path / "afrisenti" / "yor"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.tsv").write_text(text, encoding="utf-8")
    loaded = data.load_sentiment(get_profile("laptop", tmp_path), ["yor"])
    leaks = data.leakage(loaded).set_index("split")["in_train"]
    assert leaks["test"] == 2 and leaks["dev"] == 0


# --- Folders of data -----------------------------------------------------------------------


def data_folder(root: Path) -> Path:
    for code in PROFILES["tiny"].languages:
        folder = root / "afrisenti" / code
        folder.mkdir(parents=True)
        for split in data.SPLITS:
            (folder / f"{split}.tsv").write_text(GOOD, encoding="utf-8")
    return root


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def as_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no afrisenti": (lambda root: shutil.rmtree(root / "afrisenti"), "no afrisenti folder"),
    "no language": (lambda root: shutil.rmtree(root / "afrisenti" / "swa"), "no such language"),
    "no split": (lambda root: (root / "afrisenti/swa/dev.tsv").unlink(), "dev.tsv: cannot be read"),
    "a folder": (lambda root: as_folder(root / "afrisenti/swa/dev.tsv"), "not a file"),
    "a pipe": (lambda root: as_pipe(root / "afrisenti/swa/dev.tsv"), "not a file"),
    "a loop of links": (lambda root: as_loop(root / "afrisenti/swa/dev.tsv"), "cannot be read"),
    "an endless device": (lambda root: as_device(root / "afrisenti/swa/dev.tsv"), "not a file"),
    "an empty split": (lambda root: (root / "afrisenti/swa/dev.tsv").write_text(""), "row 1"),
    "text that is no UTF-8": (
        lambda root: [(root / "text").mkdir(), (root / "text/kin.txt").write_bytes(b"a\nb\xff")],
        "kin.txt, row 2: not UTF-8",
    ),
    "text with a NUL": (
        lambda root: [(root / "text").mkdir(), (root / "text/kin.txt").write_bytes(b"a\0b")],
        "NUL",
    ),
    "text of one line": (
        lambda root: [(root / "text").mkdir(), (root / "text/kin.txt").write_text("habari")],
        "stage 1 has 1 line",
    ),
    "a dev split that is train": (lambda root: None, "dev: every tweet is in train too"),
    "too few tweets to cross-fit": (
        lambda root: (root / "afrisenti/swa/dev.tsv").write_text(f"{HEADER}x\tneutral\n"),
        "too few training tweets",
    ),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_a_bad_data_folder_leaves_no_trace(kind: str, tmp_path: Path, refused: Any) -> None:
    breach, words = BAD_FOLDERS[kind]
    breach(data_folder(tmp_path / "data"))
    line = refused(
        "distill", "--profile", "tiny", "--data", f"{tmp_path}/data", "--output", f"{tmp_path}/out"
    )
    assert line.startswith("comet: ") and words in line
    assert not (tmp_path / "out").exists()


# --- Arguments -----------------------------------------------------------------------------

BAD_ARGUMENTS: dict[str, tuple[list[str], str]] = {
    "profile": (["distill", "--profile", "huge"], "unknown profile 'huge': choose one of"),
    "profile with escapes": (["distill", "--profile", "\x1b[2J"], "unknown profile"),
    "no data folder": (["distill", "--data", "no/such"], "does not exist"),
    "data of nobody": (["distill", "--data", "~nobody-here/x"], "does not exist"),
    "data is a file": (["distill", "--data", __file__], "does not exist"),
    "path as language": (["distill", "--languages", "../../etc"], "language code"),
    "no language": (["distill", "--languages", " , "], "name each language once"),
    "language twice": (["distill", "--languages", "kin,kin"], "once"),
    "unknown language": (["distill", "--languages", "xho"], "no such language"),
    "no text": (["distill", "--text", "no/such.txt"], "no such file or folder"),
    "text of nobody": (["distill", "--text", "~nobody-here/x"], "no such file or folder"),
    "empty text path": (["distill", "--text", ""], "--text is empty"),
    "text of another kind": (["distill", "--text", __file__], "must end in one of .txt"),
    "teacher": (["distill", "--teacher", "no-such/teacher"], "could be loaded"),
    "teacher is a path": (["distill", "--teacher", "/no/such/teacher"], "no such folder"),
    "split": (["evaluate", "x", "--split", "exam"], "choose one of train, dev, test"),
    "model": (["evaluate", "no/such/model"], "no such folder"),
    "model of nobody": (["evaluate", "~nobody-here/x/y"], "no such folder"),
    "empty text": (["predict", "x", " "], "empty"),
    "broken text": (["predict", "x", "a\udcffb"], "not UTF-8"),
    "a file among texts": (
        ["predict", "x", "habari", __file__],
        "is not a text: give only one FILE.tsv",
    ),
    "a dash among texts": (["predict", "x", "-", "habari"], "'-' is not a text"),
    "no table": (["predict", "x", "no-such.tsv"], "cannot be read"),
    "model is a file": (["predict", __file__, "hi"], "no such folder"),
    "export to a file": (["export", "x/y", "--output", __file__], "holds no export"),
    "no runs": (
        ["lab", "ablate", "--summary", "--output", "TMP/x"],
        "is not there; run lab ablate",
    ),
    "export of nothing": (["export", "no/such/model", "--output", "TMP/x"], "no such folder"),
    "teacher without data": (["lab", "teacher", "--data", "no/such"], "does not exist"),
    "a report into a file": (["lab", "rehearse", "--output", __file__], "permissions and free"),
    "rehearse": (["lab", "rehearse", "--profile", "huge"], "unknown profile"),
}
USAGE: dict[str, list[str]] = {
    "command": ["dance"],
    "option": ["distill", "--color", "red"],
    "seed in words": ["distill", "--seed", "one"],
    "seed below zero": ["distill", "--seed", "-1"],
    "seed too large": ["distill", "--seed", "4294967296"],
    "a million seeds": ["lab", "ablate", "--seeds", "1000000"],
    "no texts": ["predict", "model"],
    "no output": ["export", "model"],
}


@pytest.mark.parametrize("kind", BAD_ARGUMENTS)
def test_a_bad_argument_gets_one_sentence(kind: str, tmp_path: Path, refused: Any) -> None:
    arguments, words = BAD_ARGUMENTS[kind]
    arguments = [a.replace("TMP", str(tmp_path)) for a in arguments]
    if arguments[0] == "distill":
        arguments += ["--output", str(tmp_path / "out")]
        if "--profile" not in arguments:
            arguments += ["--profile", "tiny"]
    line = refused(*arguments)
    assert line.startswith("comet: ") and words in line and "\x1b" not in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", USAGE)
def test_a_wrong_use_is_explained(kind: str, refused: Any) -> None:
    assert refused(*USAGE[kind])


def test_figures_to_a_folder_are_refused_before_the_measuring(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["lab", "benchmark", "--json", str(tmp_path)])
    words = " ".join(done.output.replace("│", " ").split())
    assert done.exit_code == 2 and "'--json'" in words and "is a directory" in words


@pytest.mark.parametrize(
    "variables",
    [
        {"COMET_PROFILE": "huge"},
        {"COMET_SEED": "one"},
        {"COMET_SEED": "-3"},
        {"COMET_SEED": "²"},  # a digit, and no number
        {"COMET_SEED": "9" * 30},
        {"COMET_PROFILE": "laptop", "COMET_DATA": "no/such"},
        {"COMET_PROFILE": "laptop", "COMET_DATA": "~nobody-here"},
    ],
    ids=str,
)
def test_a_bad_variable_is_named(variables: dict[str, str], monkeypatch: Any) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CometError) as caught:
        get_profile()
    sentence(caught.value)


@quick
@given(st.text(max_size=12))
def test_any_language_code_is_letters_or_refused(code: str) -> None:
    try:
        assert check_language(code).isascii() and code.isalpha()
    except CometError as error:
        sentence(error)


@quick
@given(st.text(max_size=30).filter(lambda n: n.strip().lower() not in PROFILES and n))
def test_any_other_profile_is_refused(name: str) -> None:
    with pytest.raises(CometError, match="choose one of"):
        get_profile(name)


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["comet_lib", "--debug", "distill", "--profile", "huge"])
    with pytest.raises(CometError, match="unknown profile"):
        cli.main()


def test_an_error_of_ours_is_one_line_too(monkeypatch: Any, refused: Any) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("first\nsecond \x1b[31m")

    monkeypatch.setattr("comet_lib.profiles.get_profile", broken)
    line = refused("lab", "rehearse", code=1)
    assert line.startswith("comet: unexpected RuntimeError: first second") and "\x1b" not in line
    assert "--debug" in line


# --- Models --------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(ASSETS / "teacher", folder)
    return folder


def lie(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def write(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(folder: Path, share: float = 0.5) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def foreign(folder: Path) -> None:
    save_file({"stranger.weight": torch.zeros(9, 9)}, folder / "model.safetensors")


def half(folder: Path) -> None:
    path = folder / "model.safetensors"
    kept = {k: v for k, v in load_file(path).items() if "classifier" not in k}
    save_file(kept, path, metadata={"format": "pt"})


def not_numbers(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["classifier.dense.weight"] *= float("nan")
    save_file(weights, path, metadata={"format": "pt"})


def in_shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    parts = dict.fromkeys(["classifier.dense.weight"], "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    lie(num_hidden_layers=10**9)(folder)


def pieces(**parts: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **parts}), "utf-8")

    return change


class Bomb:
    """A pickle that leaves a file where it is opened."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("pickle-was-run"),)


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def lost_part(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))


def only_sentencepiece(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "sentencepiece.bpe.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")


def linked(name: str, target: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return change


BAD_MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "it has no model.safetensors"),
    "config is no JSON": (write("config.json", b"{"), "no readable JSON"),
    "config is a list": (write("config.json", b"[]"), "model_type"),
    "config is binary": (write("config.json", b"\xff\0\xfe"), "no readable JSON"),
    "config is deep": (write("config.json", b"[" * 10**5), "no readable JSON"),
    "truncated weights": (cut, "not a whole safetensors file"),
    "truncated header": (lambda f: cut(f, 1e-5), "not a whole safetensors file"),
    "weights are text": (write("model.safetensors", b"hello"), "not a whole safetensors file"),
    "empty weights": (write("model.safetensors", b""), "not a whole safetensors file"),
    "a header of 2^63 bytes": (
        write("model.safetensors", b"\xff" * 7 + b"\x7f" + b"{}"),
        "not a whole safetensors file",
    ),
    "foreign tensors": (foreign, "cannot hold"),
    "no head": (half, "no weights for the sentiment head"),
    "pickle": (as_pickle, "pytorch_model.bin, may hold code and are not read"),
    "a part of the weights is lost": (lost_part, "lacks model-00002-of-00002.safetensors, which"),
    "only a sentencepiece file": (only_sentencepiece, "to read it, pip install sentencepiece"),
    "pickle called safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(pickle.dumps(Bomb())),
        "not a whole safetensors file",
    ),
    "a billion layers": (lie(num_hidden_layers=10**9), "num_hidden_layers"),
    "a billion layers by another name": (lie(model_type="distilbert", n_layers=10**9), "n_layers"),
    "a billion layers, deeper": (lie(text_config={"num_layers": 10**9}), "num_layers"),
    "a billion layers beside shards": (in_shards, "num_hidden_layers"),
    "a billion labels": (lie(num_labels=10**9), "num_labels"),
    "layers below zero": (lie(num_hidden_layers=-1), "num_hidden_layers"),
    "layers in words": (lie(num_hidden_layers="four"), "num_hidden_layers"),
    "more layers than there are": (lie(num_hidden_layers=5), "no weights for"),
    "a huge vocabulary": (lie(vocab_size=10**12), "vocab_size"),
    "a wrong vocabulary": (lie(vocab_size=15_999), "could be loaded"),
    "a wrong width": (lie(hidden_size=320), "could be loaded"),
    "heads that do not divide": (lie(num_attention_heads=7), "could be loaded"),
    "no heads": (lie(num_attention_heads=0), "could be loaded"),
    "positions it does not have": (lie(max_position_embeddings=9999), "could be loaded"),
    "another kind of model": (lie(model_type="no-such-model"), "could be loaded"),
    "labels of another task": (
        lie(id2label={"0": "spam", "1": "ham", "2": "eggs"}, label2id={}),
        "set id2label",
    ),
    "labels twice": (lie(id2label={"0": "neutral", "1": "neutral", "2": "positive"}), "id2label"),
    "a label without a column": (
        lie(id2label={"0": "negative", "1": "neutral", "5": "positive"}),
        "set id2label",
    ),
    "a column from behind": (
        lie(id2label={"0": "negative", "1": "neutral", "-3": "positive"}),
        "set id2label",
    ),
    "attention code from the hub": (
        lie(_attn_implementation="kernels-community/flash-attn"),
        "remove _attn_implementation",
    ),
    "attention code, the other key": (lie(attn_implementation="who/what"), "code from the hub"),
    "no number for padding": (lie(pad_token_id=None), "does not answer"),
    "heads below zero": (lie(num_attention_heads=-1), "does not answer"),
    "answers as tuples": (lie(return_dict=False), "does not answer"),
    "weights that are no numbers": (not_numbers, "answers with NaN"),
    "weights link to nowhere": (linked("model.safetensors", "/no/such"), "could be loaded"),
    "weights link to a device": (linked("model.safetensors", "/dev/zero"), "could be loaded"),
    "config link to a device": (linked("config.json", "/dev/zero"), "has no config.json"),
    "config link to a secret": (linked("config.json", "/etc/passwd"), "no readable JSON"),
    "no tokenizer": (
        lambda f: [(f / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")],
        "has no tokenizer.json",
    ),
    "tokenizer is no JSON": (write("tokenizer.json", b"{"), "no tokenizer could be loaded"),
    "tokenizer is binary": (write("tokenizer.json", bytes(99)), "no tokenizer could be loaded"),
    "tokenizer is another thing": (write("tokenizer.json", b'{"a": 1}'), "no tokenizer could"),
    "tokenizer that panics": (
        pieces(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "(PanicException:",
    ),
    "tokenizer that panics later": (
        pieces(normalizer={"type": "Precompiled", "precompiled_charsmap": "CAAAAP////8AAAAA"}),
        "does not answer (PanicException:",
    ),
    "a special piece without a row": (
        pieces(
            post_processor={
                "type": "RobertaProcessing",
                "sep": ["</s>", 99_999],
                "cls": ["<s>", 0],
                "trim_offsets": True,
                "add_prefix_space": True,
            }
        ),
        "does not answer",
    ),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_bad_model_is_refused(
    kind: str, model: Path, tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    breach, words = BAD_MODELS[kind]
    breach(model)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)  # as where it is not installed
    monkeypatch.setattr("comet_lib.loading.is_sentencepiece_available", lambda: False)
    line = refused("predict", str(model), "habari njema")
    assert line.startswith("comet: ") and words in line, line
    assert "root:" not in line  # nothing of a linked file is shown
    assert not (tmp_path / "pickle-was-run").exists()


def test_where_sentencepiece_is_installed_its_file_is_at_fault(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_sentencepiece(model)
    (model / "sentencepiece.bpe.model").write_bytes(b"cut off")
    monkeypatch.setattr("comet_lib.loading.is_sentencepiece_available", lambda: True)
    with pytest.raises(CometError, match=r"only in sentencepiece\.bpe\.model.*copy it again"):
        load_tokenizer(model)


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        ("You are trying to access a gated repo.\nMake sure to have access", "ask for it on"),
        ("v9 is not a valid git identifier (branch name, tag name", "no such revision"),
        ("x/y is not a local folder and is not a valid model identifier listed", "check the name"),
        ("We couldn't connect to 'https://huggingface.co' to load the files", "HF_HUB_OFFLINE"),
        ("There was a specific connection error when trying to load x/y", "cannot be reached"),
        ("The repository x/y contains custom code which must be executed", "code from the hub"),
        ("model type `z` but Transformers does not recognize this architecture", "newer version"),
        ("x/y does not appear to have a file named pytorch_model.bin or", "no model.safetensors"),
    ],
)
def test_what_the_hub_says_becomes_its_cause_and_fix(
    error: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **more: Any) -> None:
        raise OSError(error)

    monkeypatch.setattr(AutoConfig, "from_pretrained", fail)
    with pytest.raises(CometError, match="no model could be loaded from 'x/y@v9': ") as caught:
        load_model("x/y@v9")
    assert fix in str(caught.value) and "give a folder with config.json" not in str(caught.value)


def test_a_stop_is_no_fault_of_a_model() -> None:
    for stop in (KeyboardInterrupt, MemoryError, SystemExit):
        with pytest.raises(stop), answering(SimpleNamespace(config=None)):
            raise stop
    with pytest.raises(RuntimeError, match="memory"), answering(SimpleNamespace(config=None)):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")


def test_a_long_text_is_cut_where_the_model_ends(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    table = "roberta.embeddings.position_embeddings.weight"
    save_file(
        {**weights, table: weights[table][:34]}, model / "model.safetensors", {"format": "pt"}
    )
    lie(max_position_embeddings=34)(model)
    short, tokenizer = load_model(model), load_tokenizer(model)
    assert longest_text(short) == 32
    texts = ["neno " * 90, "neno " * 99]
    one, two = evaluation.predict_probabilities(short, tokenizer, texts)
    np.testing.assert_allclose(one, two)


def test_a_bad_teacher_leaves_no_trace(model: Path, tmp_path: Path, refused: Any) -> None:
    path = model / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for breach, words in (
        (lambda: path.write_text(json.dumps({**settings, "mask_token": None})), "no mask piece"),
        (lambda: lie(num_hidden_layers=1)(model), "a teacher of 1"),
        (lambda: not_numbers(model), "answers with NaN"),
    ):
        breach()
        out = tmp_path / "out"
        line = refused(
            *("distill", "--profile", "tiny", "--teacher", str(model), "--output", str(out))
        )
        assert words in line and not out.exists()
        shutil.rmtree(model)
        shutil.copytree(ASSETS / "teacher", model)


def test_a_home_sign_is_read_by_both(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    assert len(load_tokenizer("~/model")) == load_model("~/model").config.vocab_size


def test_an_oversized_tokenizer_is_no_pair(model: Path, refused: Any) -> None:
    parts = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    parts["model"]["vocab"] += [[f"▁more{i}", -9.0] for i in range(100)]
    (model / "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")
    line = refused("predict", str(model), "▁more3 more7")
    assert "16,100 pieces and the model 16,000 rows" in line
    unpadded = load_tokenizer(ASSETS / "teacher")
    unpadded.pad_token = None
    with pytest.raises(CometError, match="no padding piece"):
        check_pair(load_model(ASSETS / "teacher"), unpadded)


def test_code_beside_a_model_is_never_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (model / "modeling_evil.py").write_text("open('code-was-run', 'w')\nclass Evil: pass\n")
    lie(auto_map={"AutoModelForSequenceClassification": "modeling_evil.Evil"})(model)
    assert load_model(model).config.model_type == "xlm-roberta"
    lie(model_type="evil", auto_map={"AutoConfig": "modeling_evil.Evil"})(model)
    with pytest.raises(CometError):
        load_model(model)
    assert not (tmp_path / "code-was-run").exists()


def exported(folder: Path, **files: bytes) -> Path:
    shutil.copytree(ASSETS / "teacher", folder)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    return folder


def test_a_bad_export_is_refused(tmp_path: Path, refused: Any) -> None:
    pytest.importorskip("onnxruntime")
    for number, content in enumerate((b"", b"no graph", bytes(5000))):
        folder = exported(tmp_path / str(number), model_onnx=content)
        assert "cannot read it" in refused("predict", str(folder), "habari")
    with pytest.raises(CometError, match="has no onnx/model"):
        load_exported(tmp_path)
    assert not is_exported("~nobody-here/x")


# --- Caches, settings and checkpoints ------------------------------------------------------

BAD_JSON = {
    "nothing": b"",
    "half": b'{"rows": 3, "shard ro',
    "a list": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "no keys": b"{}",
    "no UTF-8": b"\xff\xfe",
    "NaN keys": b'{"rows": NaN}',
    "deep": b"[" * 10**5,
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_a_damaged_note_says_what_to_delete(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "fingerprint.json"
    path.write_bytes(BAD_JSON[kind])
    for read in (
        lambda: read_json(path, "rows", "shard rows"),
        lambda: open_answers(tmp_path),
        lambda: open_answers(tmp_path, {"library": "1.0", "rows": 3}),
    ):
        with pytest.raises(CometError, match="delete the file"):
            read()


@pytest.mark.parametrize("rows", [0, -3, 1.5, "x", None])
def test_a_cache_that_counts_wrongly_is_refused(rows: Any, tmp_path: Path) -> None:
    (tmp_path / "fingerprint.json").write_text(json.dumps({"rows": 3, "shard rows": rows}))
    with pytest.raises(CometError, match="delete it"):
        open_answers(tmp_path)


def test_a_cut_off_shard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fingerprint.json").write_text('{"rows": 3, "shard rows": 9}')
    (tmp_path / "shard-00000.json").write_text('{"bytes": 10, "sha256": "x", "rows": 3}')
    (tmp_path / "shard-00000.arrow").write_bytes(bytes(4))
    with pytest.raises(CometError, match="4 bytes, not the 10"):
        open_answers(tmp_path)
    (tmp_path / "shard-00000.arrow").write_bytes(bytes(10))
    with pytest.raises(CometError, match="SHA-256"):
        open_answers(tmp_path)


def test_damaged_settings_of_a_run_are_named(tmp_path: Path, refused: Any) -> None:
    for content in BAD_JSON.values():
        work = tmp_path / "out" / "work"
        work.mkdir(parents=True, exist_ok=True)
        (work / "settings.json").write_bytes(content)
        line = refused("distill", "--profile", "tiny", "--output", str(tmp_path / "out"))
        assert "settings.json" in line and "delete the file" in line


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_file({"w": torch.zeros(3)}, folder / "model.safetensors")
    torch.save({}, folder / "optimizer.pt")
    torch.save({}, folder / "scheduler.pt")
    torch.save({}, folder / "rng_state.pth")
    (folder / "trainer_state.json").write_text('{"global_step": 9}')
    return folder


def flip(folder: Path) -> None:
    """One bit of the optimizer, inside its data."""
    torch.save({"moment": torch.zeros(999)}, folder / "optimizer.pt")
    content = bytearray((folder / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "optimizer.pt").write_bytes(content)


BAD_CHECKPOINTS: dict[str, Callable[[Path], Any]] = {
    "no state": lambda f: (f / "trainer_state.json").unlink(),
    "half a state": write("trainer_state.json", b'{"epoch": 1'),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "half the weights": write("model.safetensors", b"\x50\0\0\0\0\0\0\0{"),
    "half an optimizer": write("optimizer.pt", b"PK\x03\x04"),
    "no scheduler": lambda f: (f / "scheduler.pt").unlink(),
    "pickled optimizer": write("optimizer.pt", pickle.dumps(Bomb())),
    "a flipped bit": flip,
    "half a random state": write("rng_state.pth", b"PK\x03\x04"),
    "a state without a step": write("trainer_state.json", b"{}"),
    "a state that is a list": write("trainer_state.json", b"[]"),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_a_damaged_checkpoint_is_passed_over(kind: str, tmp_path: Path) -> None:
    whole = checkpoint(tmp_path / "checkpoint-9")
    BAD_CHECKPOINTS[kind](checkpoint(tmp_path / "checkpoint-10"))
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-11").touch()
    assert training.last_checkpoint(tmp_path) == str(whole)


# --- Answers to checks ---------------------------------------------------------------------


def endless(*_: Any) -> Any:
    while True:
        pass


def swallowing(*_: Any) -> Any:
    while True:
        with contextlib.suppress(Exception):
            endless()


#: Beside those of test_checks.py.
ANSWERS: dict[str, Any] = {
    "NaN": lambda *a: torch.tensor(float("nan")),
    "infinity": lambda *a: float("inf"),
    "wrong shape": lambda *a: torch.zeros(7, 5, 3, 1),
    "empty": lambda *a: torch.zeros(0),
    "too few arguments": lambda: None,
    "a generator": lambda *a: (i for i in a),
    "bytes": lambda *a: b"\0",
}


@pytest.mark.parametrize("name", check.EXERCISES)
def test_no_answer_breaks_a_check(name: str, capsys: Any) -> None:
    for kind, answer in ANSWERS.items():
        check.EXERCISES[name](answer)
        line = capsys.readouterr().out
        assert line.startswith("NOT YET") and line.count("\n") == 1, (kind, line)


@pytest.mark.parametrize("answer", [endless, swallowing])
def test_an_endless_answer_is_cut_off(answer: Any) -> None:
    short = dataclasses.replace(check.EXERCISES["token_coverage"], seconds=0.2)
    assert "still running after 0.2 seconds" in short.examine(answer).message


# --- What is shown -------------------------------------------------------------------------

HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x9b2J",  # one byte for ESC [
    "a\x08\x08b",
    "a\rb",
    "abc\u202egnp.exe",  # turns the writing round
    "\u2066x\u2069",
    "a\0b",
]


def test_no_text_commands_the_terminal(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("comet_lib.ship.onnx.load_classifier", lambda *_: (SimpleNamespace(), None))
    monkeypatch.setattr(
        "comet_lib.evaluation.predict_probabilities",
        lambda model, tokenizer, texts: np.tile([0.2, 0.3, 0.5], (len(texts), 1)),
    )
    stream = io.TextIOWrapper(io.BytesIO("\n".join(HOSTILE).encode()))
    for arguments in (["predict", "m", *HOSTILE], ["predict", "m", "-"]):
        monkeypatch.setattr(sys, "argv", ["comet_lib", *arguments])
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) >= len(HOSTILE)
        assert all(sign.isprintable() or sign == "\t" for line in lines for sign in line)


def test_no_name_commands_the_terminal(model: Path, monkeypatch: Any, capsys: Any) -> None:
    named = model.rename(model.with_name("\x9b2J\u202enot"))
    for extra in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["comet_lib", "evaluate", str(named), *extra])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 0
        assert all(map(str.isprintable, capsys.readouterr().out.splitlines()))


def test_an_output_without_these_letters_is_no_reason_to_stop(monkeypatch: Any) -> None:
    """Windows gives a redirected output its own old encoding."""
    monkeypatch.setattr("comet_lib.evaluation.predict_probabilities", lambda *_: np.eye(1, 3))
    monkeypatch.setattr(sys, "argv", ["comet_lib", "predict", str(ASSETS / "teacher"), "ẹ̀kọ́"])
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    stream.flush()
    assert stopped.value.code == 0 and rb"\u1eb9" in stream.buffer.getvalue()  # type: ignore


def test_a_closed_input_is_named(monkeypatch: Any, refused: Any) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is closed: give" in refused("predict", "x", "-")


def test_standard_input_is_cut_only_at_line_ends(monkeypatch: Any) -> None:
    stream = io.TextIOWrapper(io.BytesIO("moja\u2028mbili\x85tatu\r\nnne\n".encode()))
    monkeypatch.setattr(sys, "stdin", stream)
    assert cli._texts(["-"]) == ["moja mbili tatu", "nne"]


@quick
@given(st.text(max_size=40))
def test_what_is_printable_prints(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text) and shown.isprintable()


# --- What SECURITY.md promises of the source ------------------------------------------------


def unsafe(source: str) -> list[str]:
    """Calls of eval and exec, imports of pickle and its like, and leave to run a model's code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "compile"):
                found.append(node.func.id)
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if keyword.arg == "trust_remote_code" and value is not False:
                    found.append("trust_remote_code")
        names = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
        names += [getattr(node, "module", None) or ""]
        found += [n for n in names if n.split(".")[0] in ("pickle", "marshal", "shelve", "dill")]
    return found


def test_the_source_keeps_the_promises() -> None:
    for path in Path(cli.__file__).parent.rglob("*.py"):
        assert unsafe(path.read_text(encoding="utf-8")) == [], path.name
    for breach in (
        "eval('1')",
        "import pickle",
        "from pickle import loads",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=x)",
    ):
        assert len(unsafe(breach)) == 1, breach
    assert unsafe("model.eval()\nre.compile('x')\nf(trust_remote_code=False)") == []


# --- How many ------------------------------------------------------------------------------


def test_counts_by_class() -> None:
    """``pytest -s -k counts tests/test_bad_input.py`` prints the fixed cases of each class."""
    counts = {
        "tables": len(BAD_TSV) + len(GOOD_TSV),
        "data folders": len(BAD_FOLDERS),
        "arguments": len(BAD_ARGUMENTS) + len(USAGE),
        "models": len(BAD_MODELS) + 2,
        "notes, caches, checkpoints": 2 * len(BAD_JSON) + 6 + len(BAD_CHECKPOINTS),
        "answers": len(ANSWERS) * len(check.EXERCISES) + 2,
        "texts shown": len(HOSTILE),
    }
    print(json.dumps(counts))
    assert min(counts.values()) >= 5


def test_terms_of_stage_two_need_teachers_that_read_the_same_tokens(tmp_path: Path) -> None:
    """Token ids of one tokenizer would mean other words to the sentiment teacher."""
    shutil.copytree(ASSETS / "teacher", tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    pieces = state["model"]["vocab"]
    pieces[5], pieces[6] = pieces[6], pieces[5]
    path.write_text(json.dumps(state), encoding="utf-8")
    guided = get_profile("tiny").with_(sentiment_teacher=str(tmp_path / "other"))
    read_teachers(guided.with_(stage2=dataclasses.replace(guided.stage2, terms={})))
    with pytest.raises(CometError, match="token by token"):
        read_teachers(guided)
