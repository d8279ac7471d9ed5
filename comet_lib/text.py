"""Text for the task-agnostic stage: lines in, one memory-mapped Arrow table out.

Lines come from files (.txt with one sentence a line, .jsonl with a key ``text``, .parquet with a
column ``text``), or from FineWeb-2 on the hub. They are written once, under COMET_HOME, so a
million lines take no more memory than ten thousand. The readers are ours because those of
``datasets`` do not name the row in which a file is bad.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

import comet_lib
from comet_lib.batches import no_bars
from comet_lib.data import (
    Source,
    check_language,
    checked,
    find_source,
    load_sentiment,
    normalize,
    raw_lines,
)
from comet_lib.errors import CometError
from comet_lib.profiles import Profile, home, user_path

#: What ``--text`` says for FineWeb-2 from the hub, instead of a path.
HUB = "fineweb-2"
#: FineWeb-2's names for the paper's languages.
FINEWEB = {code: f"{code}_Latn" for code in ("kin", "hau", "ibo", "yor")} | {"swa": "swh_Latn"}
FEATURES = Features({"text": Value("string"), "language": Value("string")})


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    for row, line in raw_lines(path):
        if not line.strip():
            continue
        try:
            yield row, json.loads(line)["text"]
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            raise CometError(
                f'{path}, row {row}: is not JSON with a key text; write {{"text": "..."}} in a line'
            ) from error


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if names.count("text") != 1:
                there = ", ".join(names)[:200] or "none"
                raise CometError(f"{path}: needs one column text, has {there}; rename a column")
            batches = file.iter_batches(batch_size=1000, columns=["text"])
            for row, cell in enumerate(chain.from_iterable(b.column(0) for b in batches), start=1):
                try:
                    yield row, cell.as_py()
                except UnicodeDecodeError:
                    yield row, "\udcff"  # as in raw_lines: a byte that is not UTF-8
    except (pa.ArrowException, OSError) as error:
        raise CometError(f"{path}: cannot be read as Parquet; write or copy it again") from error


#: Each yields (row from 1, text), the text as it stands in the file.
READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".txt": raw_lines,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}


def read_lines(path: Path) -> Iterator[str]:
    """The lines of one file in NFC. Empty lines are left out; a text of several lines is split.

    Raises:
        CometError: naming file, row and fix, for bytes that are not UTF-8, a NUL, a row that is
            not JSON, a missing key or column, or a text that is not a string.
    """
    for row, text in READERS[path.suffix.lower()](path):
        if text is not None:
            lines = checked(f"{path}, row {row}", text).split("\n")
            yield from filter(None, map(normalize, lines))


def text_files(path: str | Path) -> list[Path]:
    """A text file, or all .txt, .jsonl and .parquet files in and below a folder, sorted.

    Raises:
        CometError: nothing there, no such files, or another kind of file.
    """
    if not str(path):  # an unset variable of a shell: Path("") is the current folder
        raise CometError("--text is empty; give a file or a folder, or leave it out")
    path, kinds = user_path(path), ", ".join(READERS)
    found = sorted(path.rglob("[!.]*")) if path.is_dir() else [path]
    files = [p for p in found if p.suffix.lower() in READERS and p.is_file()]
    if files:
        return files
    if path.is_dir():
        raise CometError(f"{path}: no text in this folder; put {kinds} files there")
    if path.is_file():
        raise CometError(f"{path}: its name must end in one of {kinds}; convert the file")
    raise CometError(f"{path}: no such file or folder; check the path of the text")


def fineweb_lines(language: str) -> Iterator[str]:
    """Lines of FineWeb-2 in one of :data:`FINEWEB`, in NFC, as they come over the network."""
    name = FINEWEB[language]
    for row in load_dataset("HuggingFaceFW/fineweb-2", name=name, split="train", streaming=True):
        yield from filter(None, map(normalize, row["text"].split("\n")))


#: A path, or HUB; language; limit of lines; and a file's size and time, by which a changed file
#: gives another table.
Part = tuple[Any, ...]


def _file(path: Path, language: str = "", limit: int | None = None) -> Part:
    stat = path.stat()
    return str(path), language, limit, stat.st_size, stat.st_mtime_ns


def _rows(parts: Sequence[Part], **_: Any) -> Iterator[dict[str, str]]:
    for where, language, limit, *_stamp in parts:
        lines = fineweb_lines(language) if where == HUB else read_lines(Path(where))
        for text in islice(lines, limit):
            yield {"text": text, "language": language}


def _parts(profile: Profile, languages: Sequence[str], source: Source) -> list[Part]:
    """Where :func:`load_text` looks for lines; none: in the training tweets."""
    limits = {c: profile.text_limit.get(c, profile.default_text_limit) for c in languages}
    if profile.text not in (None, HUB):
        return [_file(path) for path in text_files(profile.text)]
    if profile.text == HUB or (source.kind == "hub" and profile.text_limit):
        known = [code for code in languages if code in FINEWEB]
        if profile.text == HUB and not known:
            raise CometError(f"{HUB} has {', '.join(FINEWEB)}: choose some of these --languages")
        return [(HUB, code, limits[code]) for code in known]
    root = Path(source.root)  # of the hub, none is a folder
    for folder in (root / "transfer", root / "text"):
        files = {code: folder / f"{code}.txt" for code in languages}
        if parts := [_file(p, code, limits[code]) for code, p in files.items() if p.is_file()]:
            return parts
    return []


def load_text(
    profile: Profile, languages: Sequence[str] | None = None, source: Source | None = None
) -> Dataset:
    """Unlabeled text for stage 1: columns ``text`` and ``language``, memory-mapped.

    In this order: what ``profile.text`` names (a file, a folder or fineweb-2); the source's
    ``transfer/{language}.txt``, or its ``text/``; on the hub, FineWeb-2 if the profile limits it
    (gpu); else the training tweets without their labels. The profile's limits count lines of each
    language. The table is written once, and found again while files and limits stay the same.

    Raises:
        CometError: a bad line, no such text, or a hub that cannot be read.
    """
    source = source or find_source(profile)
    languages = [check_language(code) for code in languages or profile.languages]
    parts = _parts(profile, languages, source)
    try:
        if next(_rows(parts), None) is not None:
            with no_bars():
                return Dataset.from_generator(
                    _rows,
                    features=FEATURES,
                    cache_dir=str(home() / "text"),
                    gen_kwargs={"parts": parts, "library": comet_lib.__version__},
                )
    except Exception as error:
        wrapped = isinstance(error, DatasetGenerationError) and error.__cause__ is not None
        cause: Any = error.__cause__ if wrapped else error
        if isinstance(cause, CometError) or all(where != HUB for where, *_ in parts):
            raise cause from None
        raise CometError(  # the hub client raises many kinds; all mean the same to a reader
            f"{HUB} could not be read from the hub ({type(cause).__name__}); connect to the "
            "network, or give a folder as --text"
        ) from cause
    if profile.text is not None:
        raise CometError(f"{profile.text}: holds no line of text; stage 1 needs two at least")
    train = load_sentiment(profile, languages, source, ["train"])["train"]
    return train.select_columns(["text", "language"])


def load_transfer(
    profile: Profile, languages: Sequence[str] | None = None, source: Source | None = None
) -> dict[str, list[str]]:
    """Unlabeled posts for stage 2, all of the source's ``transfer/{language}.txt``, by language.

    Raises:
        CometError: a bad line.
    """
    root = Path((source or find_source(profile)).root) / "transfer"
    files = {code: root / f"{code}.txt" for code in languages or profile.languages}
    return {code: list(read_lines(path)) for code, path in files.items() if path.is_file()}
