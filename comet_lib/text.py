"""Text for the task-agnostic stage: lines in, one memory-mapped Arrow table out.

Lines come from files (.txt with one sentence a line, .jsonl with a key ``text``, .parquet with a
column ``text``), or from FineWeb-2 on the hub. They are written once, under COMET_HOME, so a
million lines take no more memory than ten thousand. The readers are ours because those of
``datasets`` do not name the row in which a file is bad.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

import comet_lib
from comet_lib.batches import no_bars
from comet_lib.data import Source, check_language, find_source, load_sentiment, normalise
from comet_lib.errors import CometError
from comet_lib.profiles import Profile, home, user_path

#: What ``--text`` says for FineWeb-2 from the hub, instead of a path.
HUB = "fineweb-2"
#: FineWeb-2's names for the paper's languages.
FINEWEB = {
    "kin": "kin_Latn",
    "swa": "swh_Latn",
    "hau": "hau_Latn",
    "ibo": "ibo_Latn",
    "yor": "yor_Latn",
}
FEATURES = Features({"text": Value("string"), "language": Value("string")})

Numbered = Iterator[tuple[int, str]]  # row from 1, text


# --------------------------------------------------------------------------- one file


def _txt(path: Path) -> Numbered:
    # A byte that is not UTF-8 becomes half a surrogate pair; read_lines refuses it by its row.
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        yield from enumerate(file, start=1)


def _jsonl(path: Path) -> Numbered:
    for row, line in _txt(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CometError(
                f"{path}, row {row}: is not JSON; write one object a line, such as "
                '{"text": "..."}'
            ) from error
        if not isinstance(value, dict) or "text" not in value:
            raise CometError(f'{path}, row {row}: has no key text; write {{"text": "..."}}')
        yield row, _string(path, row, value["text"])


def _parquet(path: Path) -> Numbered:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if names.count("text") != 1:
                raise CometError(
                    f"{path}: needs one column text, has {', '.join(names)[:200] or 'none'}; "
                    "rename the column of the text"
                )
            row = 0
            for batch in file.iter_batches(batch_size=1000, columns=["text"]):
                for cell in batch.column(0):
                    row += 1
                    try:
                        yield row, _string(path, row, cell.as_py())
                    except UnicodeDecodeError as error:
                        raise _not_utf8(path, row) from error
    except (pa.ArrowException, OSError) as error:
        raise CometError(f"{path}: cannot be read as Parquet; write or copy it again") from error


def _string(path: Path, row: int, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CometError(f"{path}, row {row}: text is {str(value)[:40]!r}, not a string; fix it")
    return value


def _not_utf8(path: Path, row: int) -> CometError:
    return CometError(f"{path}, row {row}: not UTF-8; save the file as UTF-8")


READERS: dict[str, Callable[[Path], Numbered]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}


def read_lines(path: Path) -> Iterator[str]:
    """The lines of one file in NFC. Empty lines are left out; a text of several lines is split.

    Raises:
        CometError: naming file, row and fix, for bytes that are not UTF-8, a NUL, a row that is
            not JSON, a missing key or column, or a text that is not a string.
    """
    try:
        for row, text in READERS[path.suffix.lower()](path):
            if bad := re.search("[\0\ud800-\udfff]", text):
                if bad[0] != "\0":
                    raise _not_utf8(path, row)
                raise CometError(
                    f"{path}, row {row}: holds a NUL byte; save it as plain UTF-8 text"
                )
            yield from filter(None, map(normalise, text.split("\n")))
    except OSError as error:
        raise CometError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def text_files(path: str | Path) -> list[Path]:
    """A text file, or all .txt, .jsonl and .parquet files in and below a folder, sorted.

    Raises:
        CometError: nothing there, no such files, or another kind of file.
    """
    if not str(path):  # an unset variable of a shell: Path("") is the current folder
        raise CometError("--text is empty; give a file or a folder, or leave it out")
    path, kinds = user_path(path), ", ".join(READERS)
    if not path.is_dir():
        if not path.is_file():
            raise CometError(f"{path}: no such file or folder; check the path of the text")
        if path.suffix.lower() not in READERS:
            raise CometError(f"{path}: its name must end in one of {kinds}; convert the file")
        return [path]
    files = [
        p
        for p in sorted(path.rglob("*"))
        if p.suffix.lower() in READERS and p.is_file() and not p.name.startswith(".")
    ]
    if not files:
        raise CometError(f"{path}: no text in this folder; put {kinds} files there")
    return files


# --------------------------------------------------------------------------- the table


def fineweb_lines(language: str) -> Iterator[str]:
    """Lines of FineWeb-2 in one of :data:`FINEWEB`, in NFC, as they come over the network."""
    stream = load_dataset(
        "HuggingFaceFW/fineweb-2", name=FINEWEB[language], split="train", streaming=True
    )
    for row in stream:
        yield from filter(None, map(normalise, row["text"].split("\n")))


def _rows(parts: Sequence[Sequence[Any]], **_: Any) -> Iterator[dict[str, str]]:
    """Rows of the table; a part is (path, or HUB; language; limit; ...)."""
    for where, language, limit, *_stamp in parts:
        lines = fineweb_lines(language) if where == HUB else read_lines(Path(where))
        for text in islice(lines, limit):
            yield {"text": text, "language": language}


def _write(parts: Sequence[Sequence[Any]]) -> Dataset | None:
    """The table of these parts: written once, found again while files and limits stay the same.

    None where they hold no line.
    """
    if next(_rows(parts), None) is None:
        return None
    try:
        with no_bars():
            return Dataset.from_generator(
                _rows,
                features=FEATURES,
                cache_dir=str(home() / "text"),
                gen_kwargs={"parts": list(parts), "library": comet_lib.__version__},
            )
    except DatasetGenerationError as error:
        if error.__cause__ is not None:
            raise error.__cause__ from None
        raise


def load_text(
    profile: Profile, languages: Sequence[str] | None = None, source: Source | None = None
) -> Dataset:
    """Unlabelled text for stage 1: columns ``text`` and ``language``, memory-mapped.

    In this order: what ``profile.text`` names (a file, a folder or fineweb-2); the source's
    ``text/{language}.txt``; on the hub, FineWeb-2 if the profile limits it (gpu); else the
    training tweets without their labels. The profile's limits count lines of each language.

    Raises:
        CometError: a bad line, no such text, or a hub that cannot be read.
    """
    source = source or find_source(profile)
    languages = [check_language(code) for code in languages or profile.languages]

    def part(where: Path | str, language: str, limit: int | None) -> tuple[Any, ...]:
        if where == HUB:
            return (HUB, language, limit)
        stat = Path(where).stat()
        return (str(where), language, limit, stat.st_size, stat.st_mtime_ns)

    limits = {c: profile.text_limit.get(c, profile.default_text_limit) for c in languages}
    wants_hub = profile.text == HUB
    if wants_hub or (profile.text is None and source.kind == "hub" and profile.text_limit):
        known = [code for code in languages if code in FINEWEB]
        if wants_hub and not known:
            raise CometError(
                f"{HUB} is read in {', '.join(FINEWEB)}: choose some of these --languages"
            )
        parts = [part(HUB, code, limits[code]) for code in known]
    elif profile.text is not None:
        parts = [part(path, "", None) for path in text_files(profile.text)]
    elif source.kind == "hub":
        parts = []
    else:
        files = {c: Path(source.root) / "text" / f"{c}.txt" for c in languages}
        parts = [part(path, c, limits[c]) for c, path in files.items() if path.is_file()]
    try:
        table = _write(parts)
    except CometError:
        raise
    except Exception as error:  # the hub client raises many kinds; all mean the same to a reader
        if not any(where == HUB for where, *_ in parts):
            raise
        raise CometError(
            f"{HUB} could not be read from the hub ({type(error).__name__}); connect to the "
            "network, or give a folder as --text"
        ) from error
    if table is not None:
        return table
    if profile.text is not None:
        raise CometError(f"{profile.text}: holds no line of text; stage 1 needs two at least")
    train = load_sentiment(profile, languages, source)["train"]
    return train.select_columns(["text", "language"])
