"""Text read on demand: files, order, processes, resuming, and every bad line."""

from __future__ import annotations

import json
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
from accelerate.data_loader import prepare_data_loader
from fixed_tokenizer import fixed_tokenizer
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments, set_seed

from comet_lib import data, recipe
from comet_lib import text as corpora
from comet_lib.errors import CometError
from comet_lib.models import build_student, xlmr_config
from comet_lib.profiles import Stage, get_profile
from comet_lib.text import Corpus, CorpusRows, corpus_of, hub_corpus, open_corpus
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
        corpus = open_corpus(tmp_path / name)
        expected = ["a b", unicodedata.normalize("NFC", nfd), "two", "lines", "end"]
        assert list(corpus) == expected and len(corpus) == 5, name
        assert list(corpus) == expected  # a second pass
    assert sorted(open_corpus(tmp_path)) == sorted(expected * 3)


def test_a_folder_is_read_with_its_folders_and_without_what_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "kin" / "deep").mkdir(parents=True)
    (tmp_path / "kin" / "deep" / "a.txt").write_text("one\ntwo")
    (tmp_path / "b.txt").write_text("three")
    (tmp_path / "README.md").write_text("not this")
    (tmp_path / "._b.txt").write_bytes(b"\xff\xff")
    assert sorted(open_corpus(tmp_path)) == ["one", "three", "two"]


def test_parts_are_mixed_evenly() -> None:
    corpus = Corpus([lambda: "a" * 30, lambda: "b" * 10, lambda: iter(())], [30, 10, 0])
    order = list(corpus)
    assert Counter(order) == {"a": 30, "b": 10}
    for end in range(4, 41, 4):
        assert order[:end].count("b") == end // 4


def test_many_files_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: Any) -> None:
    for i in range(3 * corpora.LANES):
        (tmp_path / f"{i:03}.txt").write_text(f"line {i}\n")
    reading, most = 0, 0

    def watched(path: Path) -> Any:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        yield path.stem
        reading -= 1

    monkeypatch.setattr(corpora, "read_lines", watched)
    assert len(set(open_corpus(tmp_path))) == 3 * corpora.LANES
    assert most == corpora.LANES


# --- What is refused ------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing there": (lambda p: None, "is no file and no folder"),
    "an empty folder": (lambda p: p.mkdir(), "no text in this folder; put .txt, .jsonl, .parquet"),
    "another kind alone": (
        lambda p: (p.mkdir(), (p / "a.csv").write_text("text\nx")),
        "no text in this folder",
    ),
    "another kind": (lambda p: p.with_suffix(".csv").write_text("x"), "must end in one of .txt"),
    "no lines": (lambda p: p.with_suffix(".txt").write_text("\n \n"), "holds 0 lines"),
    "one line": (lambda p: p.with_suffix(".txt").write_text("x"), "holds 1 lines"),
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
    "no object": (lambda p: p.with_suffix(".jsonl").write_text('"a"\n'), "row 1: has no key text"),
    "no key": (
        lambda p: p.with_suffix(".jsonl").write_text('{"text": "a"}\n{"tweet": "b"}'),
        "row 2: has no key text",
    ),
    "a number": (lambda p: p.with_suffix(".jsonl").write_text('{"text": 3}'), "row 1: text is no"),
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
        "row 2: text is no text but '4'",
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
    text = str(caught.value)
    assert words in text and str(path) in text and "\n" not in text and len(text) < 700
    assert not (tmp_path / "out").exists()


def test_a_cache_of_a_stream_is_refused(tokenizer, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a\nb")
    with pytest.raises(CometError, match="leave out --cache"):
        corpus_of(get_profile("tiny").with_(text=str(tmp_path), cached=True))
    model = build_student(xlmr_config(SIZES, len(tokenizer), 64), "masked-lm")
    with pytest.raises(CometError, match="leave out --cache"):
        distil_task_agnostic(
            model,
            model,
            tokenizer,
            open_corpus(tmp_path),
            get_profile("tiny"),
            tmp_path / "run",
            cache=tmp_path / "cache",
        )


# --- The hub --------------------------------------------------------------------------------


def test_the_hub_is_streamed_up_to_the_profiles_limits(monkeypatch: Any) -> None:
    def hub(path: str, **options: Any) -> datasets.IterableDataset:
        assert options["streaming"] and path == "HuggingFaceFW/fineweb-2"
        code = options["name"]
        return datasets.Dataset.from_dict(
            {"text": [f"{code} {i}\n\n{code} {i} again" for i in range(9)]}
        ).to_iterable_dataset()

    monkeypatch.setattr(data, "load_dataset", hub)
    profile = get_profile("tiny").with_(
        languages=("yor", "kin", "amh"),
        text_limit={"kin": 4},
        default_text_limit=8,
        text="fineweb-2",
    )
    lines = list(corpus_of(profile))
    assert Counter(line[:3] for line in lines) == {"yor": 8, "kin": 4}
    assert lines[0] == "yor_Latn 0" and "kin_Latn 0 again" in lines
    with pytest.raises(CometError, match="choose some of these --languages"):
        hub_corpus(profile.with_(languages=("amh",)))


def test_without_the_hub_there_is_one_sentence(monkeypatch: Any) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Network is unreachable")

    monkeypatch.setattr(data, "load_dataset", offline)
    with pytest.raises(CometError, match=r"ConnectionError.*give a folder as --text"):
        corpus_of(get_profile("tiny").with_(text="fineweb-2"))


# --- Rows for the Trainer -------------------------------------------------------------------


def of(lines: list[str]) -> Corpus:
    return Corpus([lambda: lines], [len(lines)])


@pytest.fixture
def chunks_of_32(monkeypatch: Any) -> None:
    monkeypatch.setattr(corpora, "SHUFFLED", 32)


def test_each_pass_has_each_line_once_in_its_own_order(tokenizer, chunks_of_32: None) -> None:
    rows = CorpusRows(of(LINES), tokenizer, 32, batch_size=8, seed=0, held=3)
    wanted = Counter(map(tuple, tokenizer(LINES[3:])["input_ids"]))
    passes = []
    for epoch in (0, 1, 0):
        rows.set_epoch(epoch)
        passes.append([tuple(row["input_ids"]) for row in rows])
        assert Counter(passes[-1]) == wanted and len(passes[-1]) == len(rows)
    assert passes[0] == passes[2] != passes[1]
    assert passes[0][:32] != passes[0][32:64]
    firsts = Counter(passes[0][:32])
    assert firsts == Counter(passes[1][:32])  # a line stays in its chunk
    lengths = list(map(len, passes[0][:32]))
    spans = [max(lengths[i : i + 8]) - min(lengths[i : i + 8]) for i in range(0, 32, 8)]
    assert sum(spans) <= max(lengths) - min(lengths)  # batches of like length share the range


@pytest.mark.parametrize("lines", [64, 69])
def test_two_processes_take_each_line_once(lines: int, tokenizer, chunks_of_32: None) -> None:
    def batches(size: int, done: int = 0, **which: int) -> list[list[tuple[int, ...] | None]]:
        rows = CorpusRows(of(LINES[:lines]), tokenizer, 32, batch_size=16, seed=0)
        rows.resume(done)
        loader = DataLoader(
            rows, size, collate_fn=lambda b: [r and tuple(r["input_ids"]) for r in b]
        )
        return list(prepare_data_loader(loader, dispatch_batches=False, **which))

    def of_both(done: int = 0) -> list[list[tuple[int, ...] | None]]:
        both = [batches(8, done, num_processes=2, process_index=i) for i in (0, 1)]
        return [first + second for first, second in zip(*both, strict=True)]

    alone, together = batches(16), of_both()
    assert together[:4] == alone[:4]
    assert len(together) == len(alone)  # a short batch is filled from the first
    assert set(together[-1]) >= set(alone[-1])
    resumed = of_both(done=64)  # what is left is the same, its filling too
    assert resumed == [*together[:2], [None] * 16, [None] * 16, *together[4:]]


# --- Training -------------------------------------------------------------------------------


class StopAt(TrainerCallback):
    """Stands in for a killed run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def run(tokenizer, folder: Path, **more: Any) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    set_seed(0)
    teacher, student = (
        build_student(xlmr_config(SIZES, len(tokenizer), 64, initializer_range=0.2), "masked-lm")
        for _ in range(2)
    )
    stage = Stage(3, 5e-3, 4, temperature=2.0, alpha=0.5, gradient_accumulation=2)
    profile = get_profile("tiny").with_(stage1=stage, max_length=16)
    rate = more.pop("learning_rate", 5e-3)
    log = distil_task_agnostic(
        student,
        teacher,
        tokenizer,
        of(LINES * 2),
        profile,
        folder,
        disable_tqdm=True,
        learning_rate=rate,
        **more,
    )
    return student, log


@pytest.mark.parametrize("step", [19, 31, 45])
def test_a_stopped_run_resumes_to_the_same_weights(
    step: int, tokenizer, tmp_path: Path, chunks_of_32: None, monkeypatch: Any
) -> None:
    """142 rows, 18 steps a pass, the last of them short: resumed at a pass's start, and within."""
    whole, log = run(tokenizer, tmp_path / "whole", save_steps=3)
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, tmp_path / "cut", save_steps=3, callbacks=[StopAt(step)])
    asked = []

    def counting(texts: list[str], *more: Any) -> Any:
        asked.append(len(texts))
        return tokenise(texts, *more)

    tokenise = corpora.tokenise
    monkeypatch.setattr(corpora, "tokenise", counting)
    again, second = run(tokenizer, tmp_path / "cut", save_steps=3, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    losses, later = ([r["eval_loss"] for r in rows if "eval_loss" in r] for rows in (log, second))
    assert losses[-2:] == later[-2:]  # resumed at a pass's end, the Trainer leaves out its loss
    passes, rest = divmod((step - 1) // 3 * 3, 18)  # the checkpoint before the stop
    chunks = rest * 8 // 32
    assert sum(asked) == 142 * (3 - passes) - 32 * max(0, chunks - 1)  # what is done is not redone


def test_a_student_learns_from_a_stream_and_held_out_lines_keep_their_masks(
    tokenizer, tmp_path: Path
) -> None:
    """Against a student that stays as it is: a trained one has had its steepest steps before its
    first loss, and the tokenizer, so the losses, differs from call to call."""
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

    def look(*arguments: Any) -> None:
        seen.append(list(arguments[5]))
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "train_student", look)
    with pytest.raises(KeyboardInterrupt):
        recipe.distil(
            get_profile("tiny").with_(text=str(tmp_path / "x.txt")),
            tmp_path / "out",
            say=lambda _: None,
        )
    assert seen == [["habari", "njema"]]
