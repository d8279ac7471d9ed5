"""AfriSenti and unlabelled text, from a folder, the hub, or the bundled sample.

A folder holds ``afrisenti/{lang}/{train,dev,test}.tsv`` (columns ``tweet`` and ``label``) and
``text/{lang}.txt`` (one sentence per line). Everything comes out as ``datasets`` tables in Unicode
NFC, so Yoruba's and Igbo's tone marks stay as written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from huggingface_hub import HfApi

from comet_lib.errors import CometError
from comet_lib.profiles import ASSETS, LABELS, LANGUAGES, Profile

SPLITS = ("train", "dev", "test")
FEATURES = Features(
    {
        "text": Value("string"),
        "label": ClassLabel(names=list(LABELS)),
        "language": Value("string"),
        "seen_in_train": Value("bool"),
    }
)

#: The hub copy, whose Parquet is on a branch of its own; HUB_LABELS names its integer labels.
HUB_REPOSITORY = "shmuhammad/AfriSenti-twitter-sentiment"
HUB_REVISION = "refs/convert/parquet"
HUB_ROOT = f"hf://datasets/{HUB_REPOSITORY}@{HUB_REVISION.replace('/', '%2F')}"
HUB_LABELS = ("positive", "neutral", "negative")


@dataclass(frozen=True)
class Source:
    """Where the data comes from: ``kind`` is folder, hub, or sample; ``root`` is a path or URL.

    ``why`` says what to do if this is not the source that was wanted.
    """

    kind: str
    root: str
    why: str = ""

    def __str__(self) -> str:
        return {
            "folder": f"the folder {Path(self.root).name}/",
            "hub": f"the hub ({HUB_REPOSITORY})",
            "sample": "the bundled sample (written for this course; a sample, never a benchmark)",
        }[self.kind] + self.why


def normalise(text: str) -> str:
    """Unicode NFC with each run of white space as one space. Tone marks stay."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def check_language(code: str) -> str:
    """``code`` itself if it can name a language folder (only letters, so no path tricks)."""
    if not re.fullmatch(r"[a-z]{2,8}", code):
        raise CometError(
            f"language code {code!r} is not valid: use ISO 639-3 letters such as "
            f"{', '.join(LANGUAGES)}"
        )
    return code


def decode(path: Path) -> str:
    """The text of a UTF-8 file; a BOM is dropped, CRLF becomes LF.

    Raises:
        CometError: the file is missing, is not UTF-8, or holds NUL bytes; names file and row.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would never end
            raise CometError(f"{path}: not a file; put a text file there instead")
        raw = path.read_bytes()
    except OSError as error:
        raise CometError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = raw[: error.start].count(b"\n") + 1
        raise CometError(f"{path}, row {row}: not UTF-8; save the file as UTF-8") from error
    if "\0" in text:
        row = text[: text.index("\0")].count("\n") + 1
        raise CometError(f"{path}, row {row}: holds a NUL byte; save the file as plain UTF-8 text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The place (file and row, for messages) and the cells of each row that is not blank.

    The header comes first, in lower case. It is row 1, as in an editor. Quotes are plain
    characters (tweets are full of them).
    """
    header, *lines = decode(path).split("\n")
    yield f"{path}, row 1", _header(header.split("\t"))
    filled = [(row, line) for row, line in enumerate(lines, start=2) if line.strip()]
    for row, line in filled:
        yield f"{path}, row {row}", line.split("\t")
    if not filled:
        raise CometError(f"{path}: has a header but no rows; give at least one text")


def _header(cells: list[str]) -> list[str]:
    return [cell.strip().lower() for cell in cells]


def _text(place: str, column: str, cell: str) -> str:
    if not (text := normalise(cell)):
        raise CometError(f"{place}: the {column} is empty; remove the row or fill it in")
    return text


def read_tsv(path: str | Path) -> pd.DataFrame:
    """One split: columns ``text`` (NFC) and ``label`` (a name of LABELS).

    Raises:
        CometError: naming file, row, and fix, for a bad header, a wrong number of columns, an
            empty tweet, an unknown label, a second header, or a file without rows.
    """
    rows = _rows(Path(path))
    place, header = next(rows)
    for column in ("tweet", "label"):
        if header.count(column) != 1:
            raise CometError(
                f"{place}: needs one column {column!r}, but the header is {str(header)[:80]}; "
                "the first row must be tweet<TAB>label"
            )
    found = []
    for place, cells in rows:
        if len(cells) != len(header):
            raise CometError(
                f"{place}: has {len(cells)} columns where the header has {len(header)}; "
                "separate tweet and label by one tab, with no tab inside the tweet"
            )
        if _header(cells) == header:
            raise CometError(f"{place}: repeats the header; remove this row")
        cell = dict(zip(header, cells, strict=True))
        text, label = _text(place, "tweet", cell["tweet"]), cell["label"].strip().casefold()
        if label not in LABELS:
            raise CometError(
                f"{place}: unknown label {cell['label'][:40]!r}; use one of {', '.join(LABELS)}"
            )
        found.append((text, label))
    return pd.DataFrame(found, columns=["text", "label"])


def read_texts(path: str | Path) -> list[str]:
    """Texts to label: column ``tweet`` or ``text`` of a TSV, whatever its other columns, as NFC.

    Raises:
        CometError: naming file, row, and fix, for a bad header, a short row, or an empty text.
    """
    rows = _rows(Path(path))
    place, header = next(rows)
    column = next((name for name in ("tweet", "text") if name in header), None)
    if column is None:
        raise CometError(
            f"{place}: needs a column tweet or text, but the header is {str(header)[:80]}; "
            "write the column's name in the first row"
        )
    at = header.index(column)
    return [_text(place, column, "".join(cells[at : at + 1])) for place, cells in rows]


def read_hub(language: str, split: str, root: str = HUB_ROOT) -> pd.DataFrame:
    """One split of the hub's Parquet branch (or of a local copy of that layout, for tests).

    The layout is ``{root}/{lang}/{train,validation,test}/*.parquet``. Label names come from the
    file's own ClassLabel; plain integers follow HUB_LABELS.

    Raises:
        CometError: an unreachable hub, a missing column, an unknown label, or a row without text.
    """
    files = f"{root}/{language}/{'validation' if split == 'dev' else split}/*.parquet"
    try:
        table = load_dataset("parquet", data_files={"x": files}, split="x")
    except Exception as error:  # of many kinds, which all mean the same to a reader
        raise CometError(
            f"AfriSenti {language}/{split} could not be read from the hub "
            f"({type(error).__name__}); connect to the network, or set COMET_DATA to a local folder"
        ) from error
    column = next((c for c in ("tweet", "text") if c in table.column_names), None)
    if column is None or "label" not in table.column_names:
        raise CometError(f"{files}: needs the columns tweet and label, has {table.column_names}")
    feature = table.features["label"]
    # A table, not an index: -1, which means no label elsewhere, would be the last name.
    by_number = dict(enumerate(feature.names if isinstance(feature, ClassLabel) else HUB_LABELS))
    labels = [by_number.get(label, label) for label in table["label"][:]]
    unknown = sorted({str(label) for label in labels} - set(LABELS))
    if unknown:
        raise CometError(
            f"{files}: unknown labels {', '.join(unknown)[:80]}; use {', '.join(LABELS)}"
        )
    texts = table[column][:]
    if not all(isinstance(text, str) for text in texts):
        raise CometError(f"{files}: a {column} is not text; give each row one")
    return pd.DataFrame({"text": [normalise(text) for text in texts], "label": labels})


def _hub_reachable(seconds: float = 5) -> bool:
    """One short question: without a network, the client would retry a file for over a minute."""
    try:
        HfApi().dataset_info(HUB_REPOSITORY, timeout=seconds)
    except Exception:  # of many kinds, which all mean that the hub cannot be used now
        return False
    return True


def find_source(profile: Profile) -> Source:
    """A local folder if the profile names one, else the hub if it answers, else the sample."""
    if profile.data:
        return Source("folder", profile.data)
    if profile.use_hub and _hub_reachable():
        return Source("hub", HUB_ROOT)
    why = (
        ", because the hub does not answer: connect to it, or name AfriSenti's folder (COMET_DATA)"
    )
    return Source("sample", str(ASSETS / "sample"), why if profile.use_hub else "")


def _read_split(source: Source, language: str, split: str) -> pd.DataFrame:
    if source.kind == "hub":
        return read_hub(language, split, source.root)
    folder = Path(source.root) / "afrisenti" / language
    if not folder.is_dir():
        there = sorted(p.name for p in folder.parent.glob("*") if p.is_dir())
        raise CometError(
            f"{folder}: no such language; this data has {', '.join(there) or 'no afrisenti folder'}"
        )
    return read_tsv(folder / f"{split}.tsv")


def load_sentiment(
    profile: Profile, languages: Sequence[str] | None = None, source: Source | None = None
) -> DatasetDict:
    """Train, dev, and test of AfriSenti as one table each, one language after another.

    Columns: ``text``, ``label`` (ClassLabel in LABELS order), ``language``, and ``seen_in_train``:
    whether the same text is also in the training split of its language. AfriSenti's dev repeats
    11 % of Yoruba's training tweets, so choose models on :func:`unseen` dev.
    """
    source = source or find_source(profile)
    frames: dict[str, list[pd.DataFrame]] = {split: [] for split in SPLITS}
    for language in languages or profile.languages:
        check_language(language)
        train_texts: set[str] = set()
        for split in SPLITS:
            frame = _read_split(source, language, split)
            if split == "train":
                if profile.train_limit is not None and len(frame) > profile.train_limit:
                    frame = frame.sample(profile.train_limit, random_state=0)  # may be sorted
                train_texts = set(frame["text"])
            seen = frame["text"].isin(train_texts) & (split != "train")
            frames[split].append(frame.assign(language=language, seen_in_train=seen))
    out = DatasetDict()
    for split, parts in frames.items():
        table = pd.concat(parts, ignore_index=True)
        table["label"] = table["label"].map(LABELS.index)
        out[split] = Dataset.from_pandas(table, features=FEATURES, preserve_index=False)
    return out


def unseen(table: Dataset) -> Dataset:
    """The rows whose text is not in train."""
    return table.select([i for i, seen in enumerate(table["seen_in_train"][:]) if not seen])


def leakage(data: DatasetDict) -> pd.DataFrame:
    """Rows of dev and test that are word for word in train: count and percent by language."""
    rows = []
    for split in ("dev", "test"):
        frame = data[split].to_pandas()
        for language, group in frame.groupby("language", sort=False):
            count = int(group["seen_in_train"].sum())
            percent = round(100 * count / len(group), 1)
            rows.append((language, split, len(group), count, percent))
    return pd.DataFrame(rows, columns=["language", "split", "rows", "in_train", "percent"])
