"""Text for stage 1 that need not fit into memory: read anew in each pass, line by line.

A corpus is a file or a folder of .txt (one sentence a line), .jsonl (key ``text``) and .parquet
(column ``text``) files, or FineWeb-2 streamed from the hub. It is read once before the training,
to count its lines and to find every bad one; a pass then has a length, as a table has.

The readers are ours because those of ``datasets`` do not say in which row a file is bad. The order
is ours too, because the shuffle buffer of ``datasets`` is lost when a run is resumed, and because
accelerate gives each process whole files of a ``datasets`` stream, which are of unequal length. A
plain torch ``IterableDataset`` is dealt out row by row: the batches of two processes together are
those of one at twice the batch.
"""

from __future__ import annotations

import heapq
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from comet_lib.batches import LengthBatches, tokenise
from comet_lib.data import FINEWEB, fineweb_lines, normalise
from comet_lib.errors import CometError
from comet_lib.profiles import Profile, user_path

#: What ``--text`` says for FineWeb-2 from the hub, in place of a path.
HUB = "fineweb-2"
#: Files that are read side by side, at most (each holds a few MB); more follow one another.
LANES = 16
#: Rows that are shuffled together, and sorted into batches of like length.
SHUFFLED = 10_000
NO_CACHE = (
    "the teacher's targets are kept for text that fits into memory alone: leave out --cache, or "
    "give the text as text/LANGUAGE.txt in the --data folder"
)

Numbered = Iterator[tuple[int, str]]  # row from 1, text


def _txt(path: Path) -> Numbered:
    # A byte that is no UTF-8 becomes half a surrogate pair, which read_lines refuses by its row.
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        yield from enumerate(file, start=1)


def _jsonl(path: Path) -> Numbered:
    for row, line in _txt(path):
        if not line.strip():
            continue
        try:
            made = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CometError(
                f"{path}, row {row}: is not JSON; write one object a line, such as "
                '{"text": "..."}'
            ) from error
        if not isinstance(made, dict) or "text" not in made:
            raise CometError(f'{path}, row {row}: has no key text; write {{"text": "..."}}')
        yield row, _string(path, row, made["text"])


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
        raise CometError(f"{path}, row {row}: text is no text but {str(value)[:40]!r}; mend it")
    return value


def _not_utf8(path: Path, row: int) -> CometError:
    return CometError(f"{path}, row {row}: not UTF-8; save the file as UTF-8")


READERS: dict[str, Callable[[Path], Numbered]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}


def read_lines(path: Path) -> Iterator[str]:
    """The lines of one file in NFC; empty ones are left out, a text of several lines is split.

    Raises:
        CometError: naming file, row and mend, for bytes that are no UTF-8, a NUL, a row that is no
            JSON, a missing key or column, or a text that is no text.
    """
    for row, text in READERS[path.suffix.lower()](path):
        if bad := re.search("[\0\ud800-\udfff]", text):
            if bad[0] != "\0":
                raise _not_utf8(path, row)
            raise CometError(f"{path}, row {row}: holds a NUL byte; save it as plain UTF-8 text")
        yield from filter(None, map(normalise, text.split("\n")))


@dataclass(frozen=True)
class Corpus:
    """Lines that are read anew in every pass. ``len`` counts them; iterating is one pass.

    Each of ``parts``, when called, starts reading one part; ``counts`` are the parts' lines. With a
    stream of ``datasets``: ``Corpus([lambda: (row["text"] for row in stream)], [1_000_000])``.
    """

    parts: Sequence[Callable[[], Iterable[str]]]
    counts: Sequence[int]

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[str]:
        """Every line once, the parts mixed evenly: line k of n stands at (k + 1/2) / n."""
        lanes = [self._placed(part(), n) for part, n in zip(self.parts, self.counts, strict=True)]
        return map(itemgetter(1), heapq.merge(*lanes, key=itemgetter(0)))

    @staticmethod
    def _placed(lines: Iterable[str], count: int) -> Iterator[tuple[float, str]]:
        return (((k + 0.5) / count, line) for k, line in enumerate(itertools.islice(lines, count)))


def counted(parts: Sequence[Callable[[], Iterable[str]]], name: str) -> Corpus:
    """A corpus whose parts are read once to be counted, and checked on the way.

    Raises:
        CometError: a bad line, or fewer than two lines (one is held out).
    """
    made = Corpus(parts, [sum(1 for _ in part()) for part in parts])
    if len(made) < 2:
        raise CometError(f"{name}: holds {len(made)} lines of text; stage 1 needs two at least")
    return made


def open_corpus(path: str | Path) -> Corpus:
    """The text of a file, or of all .txt, .jsonl and .parquet files in and below a folder.

    Raises:
        CometError: nothing there, no such files, another kind of file, or a bad line (read_lines).
    """
    if not str(path):  # an unset variable of a shell: Path("") is the current folder
        raise CometError("--text is empty; give a file or a folder, or leave it out")
    path, kinds = user_path(path), ", ".join(READERS)
    if path.is_dir():
        files = sorted(
            p
            for p in path.rglob("*")
            if p.suffix.lower() in READERS and p.is_file() and not p.name.startswith(".")
        )
        if not files:
            raise CometError(f"{path}: no text in this folder; put {kinds} files there")
    else:
        if not path.is_file():
            raise CometError(f"{path}: is no file and no folder; check the path of the text")
        if path.suffix.lower() not in READERS:
            raise CometError(f"{path}: its name must end in one of {kinds}; convert the file")
        files = [path]
    lanes = [files[i::LANES] for i in range(min(LANES, len(files)))]
    return counted([_one_after_another(lane) for lane in lanes], str(path))


def _one_after_another(files: Sequence[Path]) -> Callable[[], Iterator[str]]:
    return lambda: itertools.chain.from_iterable(map(read_lines, files))


def hub_corpus(profile: Profile) -> Corpus:
    """FineWeb-2 in the profile's languages, streamed; at most the profile's limit of each.

    Raises:
        CometError: none of the languages is in FineWeb-2, or the hub cannot be read.
    """

    def part(language: str) -> Callable[[], Iterator[str]]:
        limit = profile.text_limit.get(language, profile.default_text_limit)
        return lambda: itertools.islice(
            filter(None, map(normalise, fineweb_lines(language))), limit
        )

    known = [language for language in profile.languages if language in FINEWEB]
    if not known:
        raise CometError(f"{HUB} is read in {', '.join(FINEWEB)}: choose some of these --languages")
    try:
        return counted([part(language) for language in known], HUB)
    except CometError:
        raise
    except Exception as error:  # the hub client raises many kinds; all mean the same to a reader
        raise CometError(
            f"{HUB} could not be read from the hub ({type(error).__name__}); connect to the "
            "network, or give a folder as --text"
        ) from error


def corpus_of(profile: Profile) -> Corpus | None:
    """The corpus that ``profile.text`` names, if it names one.

    Raises:
        CometError: with ``profile.cached``, or what open_corpus and hub_corpus raise.
    """
    if profile.text is None:
        return None
    if profile.cached:
        raise CometError(NO_CACHE)
    return hub_corpus(profile) if profile.text == HUB else open_corpus(profile.text)


class CorpusRows(IterableDataset):
    """Rows of ``tokenise`` for the Trainer, without the first ``held`` lines; ``len`` counts them.

    About :data:`SHUFFLED` lines are read, tokenised, shuffled and ordered by :class:`LengthBatches`
    at a time, in another order in each epoch. Lines never leave their chunk, so a corpus that is
    sorted (by subject, say) should be shuffled before.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        batch_size: int,
        seed: int,
        held: int = 0,
    ) -> None:
        self.corpus, self.held, self.batch_size, self.seed = corpus, held, batch_size, seed
        self.tokenizer, self.max_length = tokenizer, max_length
        self.size = batch_size * max(1, SHUFFLED // batch_size)  # or batches would mix chunks
        self.epoch = self.done = 0

    def __len__(self) -> int:
        return len(self.corpus) - self.held

    def set_epoch(self, epoch: int) -> None:
        """The Trainer calls this before each pass."""
        self.epoch = epoch

    def resume(self, done: int) -> None:
        """The next pass begins with ``done`` rows that the Trainer will skip.

        Whole chunks of them come as None, untokenised. The first chunk never does: accelerate
        fills the last batch of a pass from the first.
        """
        self.done = done

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        done, self.done = self.done, 0
        lines = itertools.islice(self.corpus, self.held, None)
        for number in itertools.count():
            chunk = list(itertools.islice(lines, self.size))
            if not chunk:
                return
            if number > 0 and (number + 1) * self.size <= done:
                yield from [None] * len(chunk)
                continue
            yield from self._ordered(chunk, number + self.epoch * -(-len(self) // self.size))

    def _ordered(self, chunk: list[str], order: int) -> Iterator[dict[str, Any]]:
        """The chunk's rows, shuffled and batched by length as ``order`` and the seed say."""
        rows = tokenise(chunk, self.tokenizer, self.max_length).to_list()
        lengths = [row["length"] for row in rows]
        batches = LengthBatches(lengths, self.batch_size, self.seed, epoch=lambda: order)
        return (rows[i] for i in batches)
