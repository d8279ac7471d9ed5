"""AfriSenti and unlabeled text, from a folder, the hub, or the bundled sample.

A folder holds ``afrisenti/{lang}/{train,dev,test}.tsv`` (columns ``tweet`` and ``label``) and, one
text per line, ``transfer/{lang}.txt`` (unlabeled posts like those of AfriSenti) or
``text/{lang}.txt`` (other text). Everything comes out as ``datasets`` tables in Unicode
NFC, so Yoruba's and Igbo's tone marks stay as written.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import regex
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from datasets.data_files import resolve_pattern
from huggingface_hub import HfApi

from comet_lib.errors import CometError
from comet_lib.profiles import ASSETS, LABELS, LANGUAGES, Profile

SPLITS = ("train", "dev", "test")
FEATURES = Features(
    {"text": Value("string"), "label": ClassLabel(names=list(LABELS))}
    | {"language": Value("string"), "seen_in_train": Value("bool")}
)

#: The hub copy, whose Parquet is on a branch of its own; HUB_LABELS names its integer labels.
HUB_REPOSITORY = "shmuhammad/AfriSenti-twitter-sentiment"
HUB_ROOT = f"hf://datasets/{HUB_REPOSITORY}@refs%2Fconvert%2Fparquet"
HUB_LABELS = ("positive", "neutral", "negative")


@dataclass(frozen=True)
class Source:
    """Where the data comes from; ``str()`` says it to a reader."""

    kind: str  # folder, hub, or sample
    root: str  # path or URL
    name: str
    why: str = ""  # what to do if another source was wanted

    def __str__(self) -> str:
        return self.name + self.why


#: A quoted cell of a table; line breaks included, so that they can be refused.
QUOTED = re.compile(r'(?m)(?:^|(?<=\t))"((?:[^"]|"")*+)"(?=\t|$)')


def normalize(text: str) -> str:
    """Unicode NFC with each run of white space as one space. Tone marks stay."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def cleaned(text: str) -> str:
    """``text`` in the form of AfriSenti's Hausa, Igbo and Yoruba test splits: lower case, only
    letters, marks and numbers, no mentions, no links. A text that has none of these is unchanged.
    """
    words = regex.sub(r"@\w+|https?\S*|www\.\S+", " ", text.lower())
    words = regex.sub(r"[\p{Pd}/_.,;:…]", " ", words)
    return normalize(regex.sub(r"[^\p{L}\p{M}\p{N}\s]", "", words)) or text


def check_language(code: str) -> str:
    """``code`` itself if it can name a language folder (only letters, so no path tricks)."""
    meant = [known for known, name in LANGUAGES.items() if code.strip().title() in name.split()]
    if meant or not re.fullmatch(r"[a-z]{2,8}", code):
        hint = f"did you mean {meant[0]}?" if meant else f"use ISO 639-3: {', '.join(LANGUAGES)}"
        raise CometError(f"language code {code!r}: {hint}")
    return code


def raw_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Row (from 1) and line of a text file; a BOM is dropped, CRLF and CR end a line too.

    A byte that is not UTF-8 becomes half a surrogate pair, which :func:`checked` refuses.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would never end
            raise CometError(f"{path}: not a file; put a text file there instead")
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for row, line in enumerate(file, start=1):
                yield row, line.rstrip("\n")
    except OSError as error:
        raise CometError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def checked(place: str, text: Any) -> str:
    """``text`` itself. Raises CometError, naming the place, if it cannot be a text."""
    if not isinstance(text, str):
        raise CometError(f"{place}: text is {str(text)[:40]!r}, not a string; fix it")
    if bad := re.search("[\0\ud800-\udfff]", text):
        fault = "holds a NUL byte" if bad[0] == "\0" else "not UTF-8"
        raise CometError(f"{place}: {fault}; save the file as plain UTF-8 text")
    return text


def _quoted(lines: Sequence[str]) -> list[re.Match[str]]:
    """The quoted cells of a table that a CSV writer wrote; none if its quotes are plain characters.

    Tweets are full of quotes, so every one must be accounted for: around a whole cell or doubled
    inside. And one cell must need its quotes: it holds a quote, a tab or a line break, or it is in
    the header. (A tweet that opens with a quote and a later one that ends with one look like a
    cell with both tab and line break.)
    """
    table = "\n".join(lines)
    found = list(QUOTED.finditer(table))
    if sum(cell[0].count('"') for cell in found) < table.count('"'):
        return []
    for cell in found:
        signs = {sign for sign in '"\t\n' if sign in cell[1]}
        if cell.start() < len(lines[0]) or (signs and not signs >= {"\t", "\n"}):
            return found
    return []


def _csv_cells(line: str) -> list[str]:
    cells = re.findall(r'(?:^|\t)("(?:[^"]|"")*"|[^\t]*)', line)
    return [cell[1:-1].replace('""', '"') if cell.startswith('"') else cell for cell in cells]


def _rows(path: Path) -> list[tuple[str, list[str]]]:
    """The place (file and row, for messages) and the cells of the header and each filled row.

    The header is row 1, as in an editor. Quotes are plain characters unless a CSV writer wrote the
    whole file (:func:`_quoted`).
    """
    lines = [checked(f"{path}, row {n}", line) for n, line in raw_lines(path)]
    quoted = _quoted(lines)
    for cell in quoted:
        if "\n" in cell[1]:
            row = 1 + cell.string.count("\n", 0, cell.start())
            raise CometError(
                f"{path}, row {row}: the text in quotes goes on in the next row; put a space "
                "instead of the line break"
            )
    split = _csv_cells if quoted else lambda line: line.split("\t")
    rows = [
        (f"{path}, row {n}", split(line))
        for n, line in enumerate(lines, start=1)
        if n == 1 or line.strip()
    ]
    if len(rows) < 2:
        raise CometError(f"{path}, row 1: no rows follow; give a header and at least one text")
    return rows


def _header(cells: list[str]) -> list[str]:
    return [cell.strip().lower() for cell in cells]


def _column(place: str, header: list[str], *names: str) -> str:
    """The first of ``names`` that the header has, once."""
    name = next((name for name in names if name in header), "")
    if header.count(name) != 1:
        raise CometError(
            f"{place}: needs one column {' or '.join(names)}, has {str(header)[:80]}; the first "
            "row must name the columns, as in tweet<TAB>label"
        )
    return name


def _text(place: str, cell: str) -> str:
    if not (text := normalize(cell)):
        raise CometError(f"{place}: the text is empty; remove the row or fill it in")
    return text


def _label(place: str, label: Any) -> str:
    if (name := str(label).strip().casefold()) not in LABELS:
        known = ", ".join(LABELS)
        raise CometError(f"{place}: unknown label {str(label)[:40]!r}; use one of {known}")
    return name


def read_tsv(path: str | Path) -> pd.DataFrame:
    """One split: columns ``text`` (NFC) and ``label`` (a name of LABELS).

    Raises:
        CometError: naming file, row, and fix, for a bad header, a wrong number of columns, an
            empty tweet, an unknown label, a second header, or a file without rows.
    """
    (place, first), *rows = _rows(Path(path))
    header = _header(first)
    tweet, label = (header.index(_column(place, header, name)) for name in ("tweet", "label"))
    found = []
    for place, cells in rows:
        if len(cells) != len(header):
            raise CometError(
                f"{place}: has {len(cells)} columns where the header has {len(header)}; put one "
                "tab between tweet and label, and neither tab nor line break inside the tweet"
            )
        if _header(cells) == header:
            raise CometError(f"{place}: repeats the header; remove this row")
        found.append((_text(place, cells[tweet]), _label(place, cells[label])))
    return pd.DataFrame(found, columns=["text", "label"])


def read_texts(path: str | Path) -> list[str]:
    """Texts to label: column ``tweet`` or ``text`` of a TSV, whatever its other columns, as NFC.

    Raises:
        CometError: naming file, row, and fix, for a bad header, a short row, or an empty text.
    """
    (place, first), *rows = _rows(Path(path))
    header = _header(first)
    at = header.index(_column(place, header, "tweet", "text"))
    return [_text(place, "".join(cells[at : at + 1])) for place, cells in rows]


def read_hub(language: str, split: str, root: str = HUB_ROOT) -> pd.DataFrame:
    """One split of the hub's Parquet branch (or of a local copy of that layout, for tests).

    The layout is ``{root}/{lang}/{train,validation,test}/*.parquet``. Label names come from the
    file's own ClassLabel; plain integers follow HUB_LABELS.

    Raises:
        CometError: an unreachable hub, a missing column, an unknown label, or a row without text.
    """
    files = f"{root}/{language}/{'validation' if split == 'dev' else split}/*.parquet"
    try:
        resolve_pattern(files, "")  # FileNotFoundError if there is none; below, a plain ValueError
        table = load_dataset("parquet", data_files={"x": files}, split="x")
    except Exception as error:  # of many kinds, which mean one of two things to a reader
        fault, fix = f"could not be read ({type(error).__name__})", "connect to the network"
        if isinstance(error, FileNotFoundError):
            fault, fix = "is not there", "choose other languages or another split"
        raise CometError(
            f"AfriSenti {language}/{split} on the hub {fault}; {fix}, or set COMET_DATA to a local "
            "folder"
        ) from error
    tweets = table[_column(files, table.column_names, "tweet", "text")][:]
    labels = table[_column(files, table.column_names, "label")][:]
    feature = table.features["label"]
    # A table, not an index: -1, which means no label elsewhere, would be the last name.
    names = dict(enumerate(feature.names if isinstance(feature, ClassLabel) else HUB_LABELS))
    found = []
    for row, (tweet, label) in enumerate(zip(tweets, labels, strict=True), start=1):
        place = f"{files}, row {row}"
        found.append((normalize(checked(place, tweet)), _label(place, names.get(label, label))))
    return pd.DataFrame(found, columns=["text", "label"])


def _hub_reachable() -> bool:
    """One short question: without a network, the client would retry a file for over a minute."""
    try:
        HfApi().dataset_info(HUB_REPOSITORY, timeout=5)
    except Exception:  # of many kinds, which all mean that the hub cannot be used now
        return False
    return True


def find_source(profile: Profile) -> Source:
    """A local folder if the profile names one, else the hub if it answers, else the sample."""
    if profile.data:
        return Source("folder", profile.data, f"the folder {Path(profile.data).name}/")
    if profile.use_hub and _hub_reachable():
        return Source("hub", HUB_ROOT, f"the hub ({HUB_REPOSITORY})")
    name = "the bundled sample (written for this course; a sample, never a benchmark)"
    why = "because the hub does not answer: connect to it, or name AfriSenti's folder (COMET_DATA)"
    return Source("sample", str(ASSETS / "sample"), name, f", {why}" if profile.use_hub else "")


def _read_split(source: Source, language: str, split: str) -> pd.DataFrame:
    if source.kind == "hub":
        return read_hub(language, split, source.root)
    folder = Path(source.root) / "afrisenti" / language
    if not folder.is_dir():
        there = ", ".join(sorted(p.name for p in folder.parent.glob("*/"))) or "no afrisenti folder"
        raise CometError(f"{folder}: no such language; this data has {there}")
    return read_tsv(folder / f"{split}.tsv")


def load_sentiment(
    profile: Profile,
    languages: Sequence[str] | None = None,
    source: Source | None = None,
    splits: Sequence[str] = SPLITS,
) -> DatasetDict:
    """The ``splits`` of AfriSenti as one table each, one language after another.

    Columns: ``text``, ``label`` (ClassLabel in LABELS order), ``language``, and ``seen_in_train``:
    whether the training split of any of the languages holds the same text; None (unknown) if the
    row's own language has no training split. AfriSenti's dev repeats 11 % of Yoruba's training
    tweets, so choose models on :func:`unseen` dev.

    Raises:
        CometError: a language or split that is not there, or a file that cannot be read.
    """
    source, limit = source or find_source(profile), profile.train_limit
    codes = [check_language(code) for code in languages or profile.languages]
    trains = {}
    for code in codes:
        try:
            train = _read_split(source, code, "train")
        except CometError as error:
            # Oromo and Tigrinya have no training split.
            if "train" in splits or not isinstance(error.__cause__, FileNotFoundError):
                raise
            continue
        # A sample, not the first rows: the file may be sorted.
        sampled = limit is not None and len(train) > limit
        trains[code] = train.sample(limit, random_state=0) if sampled else train
    known = {text for train in trains.values() for text in train["text"]}
    tables = DatasetDict()
    for split in splits:
        frames = []
        for code in codes:
            frame = trains[code] if split == "train" else _read_split(source, code, split)
            seen = [split != "train" and text in known for text in frame["text"]]
            marks = {"language": code, "seen_in_train": seen if code in trains else None}
            frames.append(frame.assign(**marks))
        rows = pd.concat(frames, ignore_index=True)
        rows["label"] = rows["label"].map(LABELS.index)
        tables[split] = Dataset.from_pandas(rows[list(FEATURES)], FEATURES, preserve_index=False)
    return tables


def both_forms(table: Dataset) -> Dataset:
    """The rows, then a copy of each row whose text differs when it is :func:`cleaned`."""
    rows = table.to_pandas()
    copies = rows.assign(text=rows["text"].map(cleaned))
    doubled = pd.concat([rows, copies[copies["text"] != rows["text"]]])
    return Dataset.from_pandas(doubled, table.features, preserve_index=False)


def unseen(table: Dataset) -> Dataset:
    """The rows whose text is not in train."""
    return table.select([i for i, seen in enumerate(table["seen_in_train"][:]) if not seen])


def seen_percent(table: Dataset) -> dict[str, float | None]:
    """Percent of each language's rows whose text is in train; None if that is unknown."""
    seen = table.to_pandas().groupby("language", sort=False)["seen_in_train"]
    return {
        code: None if marks.isna().any() else round(100 * float(marks.mean()), 1)
        for code, marks in seen
    }


def _letters(text: str) -> str:
    """What loose copies of a text share: its :func:`cleaned` form without spaces."""
    return cleaned(text).replace(" ", "")


@functools.cache
def _translations() -> dict[str, str]:
    rows = _rows(ASSETS / "sample" / "english.tsv")
    return {_letters(text): translation for _, (text, translation) in rows}


def english(text: str) -> str | None:
    """The English translation of a sentence of the bundled sample, raw or :func:`cleaned`; None
    for any other text."""
    return _translations().get(_letters(normalize(text)))


def leakage(data: DatasetDict) -> pd.DataFrame:
    """How many rows of dev and test are copies: one row for each language and split.

    Columns: ``language``, ``split``, ``rows``; ``in_train`` and ``percent``, the rows that stand
    word for word in the training split of any language; ``loose`` and ``loose_percent``, those
    and the rows that differ from a training text only in case, signs, spaces, emoji, mentions or
    links; ``in_dev``, the rows of test that stand word for word in the dev split of any language
    (0 for dev itself).
    """
    letters, dev = set(map(_letters, data["train"]["text"][:])), set(data["dev"]["text"][:])
    frame = pd.concat([data[split].to_pandas().assign(split=split) for split in ("dev", "test")])
    frame["loose"] = frame["text"].map(_letters).map(letters.__contains__)
    frame["in_dev"] = frame["text"].map(dev.__contains__) & (frame["split"] == "test")
    table = frame.groupby(["language", "split"], sort=False).agg(
        rows=("text", "size"),
        in_train=("seen_in_train", "sum"),
        loose=("loose", "sum"),
        in_dev=("in_dev", "sum"),
    )
    for name, percent in (("in_train", "percent"), ("loose", "loose_percent")):
        # Series.map hands out Python floats, which round() rounds as everywhere else.
        table[percent] = (100 * table[name] / table["rows"]).map(lambda share: round(share, 1))
    order = ["rows", "in_train", "percent", "loose", "loose_percent", "in_dev"]
    return table[order].reset_index()


def conflicting_labels(train: Dataset) -> pd.DataFrame:
    """The rows of train whose text stands in train with another label too, in any language.

    Columns ``language``, ``text``, and ``label`` (a name); rows of one text follow each other.
    """
    rows = train.to_pandas()[["language", "text", "label"]]
    found = rows[rows.groupby("text")["label"].transform("nunique") > 1]
    found = found.sort_values("text", kind="stable", ignore_index=True)
    return found.assign(label=[LABELS[label] for label in found["label"]])
