"""The teacher's answers, live or stored: one interface for every training.

:class:`LiveTeacher` runs the model on each batch. :func:`stored_answers` reads what
:func:`ask_once` wrote to disk. Both return :class:`Answers`, so an objective does not know which
of the two it has (after the ``signals`` of DistillKit).

A stored answer to a masked text depends on the mask, so masks are fixed: a row has the same mask in
every epoch, drawn from the masking seed and the row's number. A live teacher answers new masks in
every epoch. Over one epoch the two are alike; over many, storing trades that variety for the
teacher's time. Of the masked-LM targets the k likeliest pieces are kept and the mass of all others;
the hotter the temperature, the more that leaves out (``python tools/measure_cache.py``).

On disk: ``fingerprint.json``, and shards ``shard-00000.arrow`` of rows in the table's order, each
with a ``.json`` beside it that holds its size and SHA-256. A shard is written under another name
and renamed, its ``.json`` last, so a killed run leaves whole shards or none.

Shapes: B rows, L tokens, n tokens in one row, m of them masked, M masked in a batch, k pieces kept
of the teacher's vocabulary V, D the teacher's width; layers from 0, ascending. Sizes are in bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import comet_lib
from comet_lib.attention import capture, capture_hidden, capture_qkv
from comet_lib.batches import MASKED, mask_row, pad
from comet_lib.errors import CometError
from comet_lib.files import claim, read_json, whole_file, write_json
from comet_lib.losses import topk_of_logits, valid_pairs
from comet_lib.models import only_positions
from comet_lib.processes import processes

BATCH = 32  # rows in one forward pass of the teacher

#: A stored row. The binary columns are arrays in C order: maps uint8 (layers, n, n); hidden float16
#: (layers, n, D); qkv float16 (3, n, D); top_indices int32 and top_logprobs float16 (m, k); tail
#: float32 (m,). A column that was not asked for is empty.
FEATURES = Features(
    {
        "input_ids": List(Value("int32")),  # already masked
        "length": Value("int32"),
        "positions": List(Value("int32")),  # of the m masked tokens, ascending
        **dict.fromkeys(
            ("maps", "hidden", "qkv", "top_indices", "top_logprobs", "tail"), Value("binary")
        ),
    }
)


@dataclass(frozen=True)
class Questions:
    """What a teacher is asked about each row.

    ``maps`` and ``hidden`` are layers whose head-mean map or output is wanted; ``qkv`` asks for
    queries, keys and values of the last layer; ``masked_lm`` for logits at masked positions. The
    other fields concern stored answers only: the ``temperature`` of eq. (10) of the losses, the
    ``k`` pieces kept, the masking ``seed``, ``max_length``, and ``shard_rows``, which a kill may
    lose.
    """

    maps: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    qkv: bool = False
    masked_lm: bool = True
    temperature: float = 1.0
    seed: int = 0
    max_length: int = 64
    k: int = 64
    shard_rows: int = 1024


@dataclass(frozen=True)
class Answers:
    """The teacher's side of one batch; what was not asked for is empty.

    ``maps`` (B, L, L) and ``hidden`` (B, L, D) by layer; ``qkv`` three (B, L, D); ``logits`` (M, V)
    from a live teacher, or ``top``: indices (M, k), log probabilities (M, k) and tail (M,) from a
    stored one; ``probs`` (B, 3), a sentiment teacher's soft targets.
    """

    maps: Mapping[int, Tensor] = field(default_factory=dict)
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    qkv: Sequence[Tensor] = ()
    logits: Tensor | None = None
    top: Sequence[Tensor] = ()
    probs: Tensor | None = None


Batch = Mapping[str, Any]
Teacher = Callable[[Batch], Answers]


@dataclass
class LiveTeacher:
    """A model that answers each batch as it comes; it is never trained."""

    model: PreTrainedModel
    questions: Questions

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Answers:
        ask, ids, mask = self.questions, batch["input_ids"], batch["attention_mask"]
        self.model.to(ids.device)
        last = self.model.config.num_hidden_layers - 1
        with ExitStack() as inside:
            maps = inside.enter_context(capture(self.model, ask.maps)) if ask.maps else {}
            hidden = (
                inside.enter_context(capture_hidden(self.model, ask.hidden)) if ask.hidden else {}
            )
            qkv = inside.enter_context(capture_qkv(self.model, [last])) if ask.qkv else {}
            if ask.masked_lm:
                inside.enter_context(only_positions(self.model, batch["labels"] != -100))
            output = self.model(input_ids=ids, attention_mask=mask)
        return Answers(maps, hidden, qkv.get(last, ()), output.logits if ask.masked_lm else None)


def stored_answers(batch: Batch) -> Answers:
    """Answers that came with the batch: from :class:`StoredCollator`, or the column
    ``teacher_probs`` of stage 2."""
    return Answers(
        {layer: decode_maps(codes) for layer, codes in batch.get("teacher_maps", {}).items()},
        {layer: states.float() for layer, states in batch.get("teacher_hidden", {}).items()},
        [x.float() for x in batch.get("teacher_qkv", ())],
        top=[batch[name] for name in TOP if name in batch],
        probs=batch.get("teacher_probs"),
    )


@dataclass(frozen=True)
class Glances:
    """Soft targets that came with the batch and, for one batch in ``every``, what a live teacher
    has inside. Which one follows from the batch's tokens, so a resumed run asks about the same."""

    teacher: LiveTeacher
    every: int

    def __call__(self, batch: Batch) -> Answers:
        answers = stored_answers(batch)
        if answers.probs is None or int(batch["input_ids"].sum()) % self.every:
            return answers  # dev, or not this time
        return replace(self.teacher(batch), probs=answers.probs)


# --------------------------------------------------------------------------- numbers

TOP = ("top_indices", "top_logprobs", "tail")


def encode_maps(maps: Tensor, mask: Tensor) -> Tensor:
    """Head-mean maps (B, L, L) -> uint8 of the same shape, zero at padding.

        q = round(255 sqrt(a / max of its row))

    The root gives small entries, which are most of a row, finer steps than large ones.
    """
    maps = maps.float().masked_fill(~valid_pairs(mask), 0.0)
    largest = maps.amax(-1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return ((maps / largest).sqrt() * 255).round().to(torch.uint8)


def decode_maps(codes: Tensor) -> Tensor:
    """The inverse: uint8 (..., L, L) -> float32, each row summing to one (padded rows zero)."""
    squares = codes.float().square()
    return squares / squares.sum(-1, keepdim=True).clamp_min(1.0)


def predicted_bytes(lengths: Sequence[int], questions: Questions, width: int = 0) -> int:
    """What rows of these lengths (in tokens) will take on disk, with 15 % of them masked.

    ``width`` is the teacher's; it counts only where states are asked for.
    """
    n = np.asarray(lengths, dtype=np.float64)
    states = 2 * width * (len(questions.hidden) + 3 * questions.qkv)
    masked = MASKED * (n - 2).clip(0) * questions.masked_lm
    size = len(questions.maps) * n**2 + (4 + states) * n + masked * (4 + 4 + 6 * questions.k) + 60
    return int(size.sum())


# --------------------------------------------------------------------------- fingerprint


def _digest(parts: Iterator[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def _weights(model: PreTrainedModel) -> Iterator[bytes]:
    for name, value in sorted(model.state_dict().items()):
        yield f"{name} {value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _texts(table: Dataset) -> Iterator[bytes]:
    for batch in table.iter(1000):
        for ids in batch["input_ids"]:
            yield np.asarray([len(ids), *ids], dtype=np.int32).tobytes()


def fingerprint(
    table: Dataset,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Questions,
) -> dict[str, Any]:
    """All that the answers depend on, long things as SHA-256. Equal fingerprints: same answers."""
    pieces = json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.all_special_ids])
    return {
        "library version": comet_lib.__version__,
        "teacher weights": _digest(_weights(teacher)),
        "tokenizer": _digest(iter([pieces.encode()])),
        "texts": _digest(_texts(table)),
        "rows": len(table),
        **{
            name.replace("_", " "): list(value) if isinstance(value, tuple) else value
            for name, value in asdict(questions).items()
        },
    }


# --------------------------------------------------------------------------- shards


def _shards(mark: Mapping[str, Any]) -> list[str]:
    rows, each = mark["rows"], mark["shard rows"]
    if not all(isinstance(n, int) and n > 0 for n in (rows, each)):
        raise CometError(f"a cache of {rows} rows, {each} a shard: delete it and run again")
    return [f"shard-{i:05d}.arrow" for i in range(-(-rows // each))]


def _finished(path: Path) -> bool:
    return path.with_suffix(".json").is_file()


def _check_shard(path: Path) -> None:
    """Raise if a finished shard is not, byte for byte, what was written."""
    note = read_json(path.with_suffix(".json"), "bytes", "sha256")
    size = path.stat().st_size if path.is_file() else 0
    fix = f"delete {path.with_suffix('.json').name} and run again: only that shard is built again"
    if size != note["bytes"]:
        raise CometError(f"{path}: {size} bytes, not the {note['bytes']} written; {fix}")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != note["sha256"]:
            raise CometError(f"{path}: its content is not what was written (SHA-256); {fix}")


def _write_shard(path: Path, columns: dict[str, list[Any]]) -> None:
    for left in path.parent.glob(f".{path.name}.*"):  # by a run that was killed
        left.unlink()
    with whole_file(path) as temporary:
        table = pa.table(columns, schema=FEATURES.arrow_schema)
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as to:
            to.write_table(table)
        temporary.chmod(0o644)
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = temporary.stat().st_size
    note = {"rows": len(table), "bytes": size, "sha256": digest}
    write_json(path.with_suffix(".json"), note)


@torch.no_grad()
def shard_columns(
    table: Dataset,
    first: int,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Questions,
) -> dict[str, list[Any]]:
    """The columns of the shard that starts at row ``first``: batches of similar length, fp16 on a
    GPU."""
    live, device = LiveTeacher(teacher, questions), teacher.device
    rows = table[first : first + questions.shard_rows]["input_ids"]
    inputs = [
        mask_row(ids, tokenizer, questions.seed, first + i)
        if questions.masked_lm
        else (np.asarray(ids, dtype=np.int32), np.zeros(0, dtype=np.int32))
        for i, ids in enumerate(rows)
    ]
    columns: dict[str, list[Any]] = {name: [b""] * len(rows) for name in FEATURES}
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), BATCH):
        here = order[start : start + BATCH]
        batch = pad([inputs[i][0] for i in here], tokenizer.pad_token_id or 0)
        batch["labels"] = torch.full_like(batch["input_ids"], -100)
        for at, i in enumerate(here):
            batch["labels"][at, inputs[i][1]] = 0
        batch = {name: value.to(device) for name, value in batch.items()}
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            answers = live(batch)
        mask = batch["attention_mask"]
        by_row: dict[str, Tensor] = {}
        if questions.maps:
            codes = [encode_maps(answers.maps[layer], mask) for layer in sorted(answers.maps)]
            by_row["maps"] = torch.stack(codes, 1).cpu()
        if questions.hidden:
            states = [answers.hidden[layer] for layer in sorted(answers.hidden)]
            by_row["hidden"] = torch.stack(states, 1).half().cpu()
        if questions.qkv:
            by_row["qkv"] = torch.stack(list(answers.qkv), 1).half().cpu()
        tops: list[Sequence[Tensor]] = []
        if answers.logits is not None:
            indices, top, tail = topk_of_logits(answers.logits, questions.k, questions.temperature)
            counts = [len(inputs[i][1]) for i in here]
            tops = [x.cpu().split(counts) for x in (indices.int(), top.half(), tail.float())]
        for at, i in enumerate(here):
            n = len(rows[i])
            columns["input_ids"][i], columns["positions"][i] = inputs[i]
            columns["length"][i] = n
            for name, values in by_row.items():
                own = values[at, :, :n, :n] if name == "maps" else values[at, :, :n]
                columns[name][i] = own.numpy().tobytes()
            for name, parts in zip(TOP, tops, strict=False):
                columns[name][i] = parts[at].numpy().tobytes()
    return columns


# --------------------------------------------------------------------------- asking once


def ask_once(
    folder: str | Path,
    table: Dataset,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Questions,
    bar: bool = True,
) -> Dataset:
    """Ask ``teacher`` about every row of ``table`` (of ``tokenize``), once.

    Finished shards are kept: killed and called again, it goes on. Under ``accelerate launch``
    each process writes its share of the shards. Returns :func:`open_answers`.

    Raises:
        CometError: the folder holds answers that depend on other things (it says which), a shard
            is damaged, or the disk has too little room (checked before the start, and during it).
    """
    folder, here = Path(folder), processes()
    mark = fingerprint(table, teacher, tokenizer, questions)
    names = _shards(mark)
    if here.is_main_process:
        claim(folder / "fingerprint.json", mark, write=False)
        _check_room(folder, table, names, questions, teacher.config.hidden_size)
        claim(folder / "fingerprint.json", mark)
    here.wait_for_everyone()
    teacher.to(here.device)
    mine = [
        (i, folder / name)
        for i, name in enumerate(names)
        if i % here.num_processes == here.process_index and not _finished(folder / name)
    ]
    for i, path in tqdm(mine, desc="teacher's answers", disable=not bar or not mine):
        columns = shard_columns(table, i * questions.shard_rows, teacher, tokenizer, questions)
        try:
            _write_shard(path, columns)
        except OSError as error:
            raise CometError(
                f"{folder}: cannot write {path.name} ({error}); make room and run again, finished "
                "shards are kept"
            ) from error
    here.wait_for_everyone()
    return open_answers(folder, mark)


def _check_room(
    folder: Path, table: Dataset, names: Sequence[str], questions: Questions, width: int
) -> None:
    lengths, each = table["length"][:], questions.shard_rows
    left = [
        n
        for i, name in enumerate(names)
        if not _finished(folder / name)
        for n in lengths[i * each : (i + 1) * each]
    ]
    need = predicted_bytes(left, questions, width)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if need * 1.05 > free:
        raise CometError(
            f"{folder}: the teacher's answers need about {need / 1e9:.1f} GB, but "
            f"{free / 1e9:.1f} GB are free; choose a cache folder on a larger disk"
        )


def open_answers(folder: str | Path, mark: Mapping[str, Any] | None = None) -> Dataset:
    """The rows of a finished folder, memory-mapped; the columns are those of :data:`FEATURES`.

    Every shard is read once to compare its SHA-256.

    Raises:
        CometError: nothing there, unfinished or damaged shards, or answers that are not ``mark``'s.
    """
    folder = Path(folder)
    if mark is not None:
        claim(folder / "fingerprint.json", mark, write=False)
    tables = []
    for name in _shards(read_json(folder / "fingerprint.json", "rows", "shard rows")):
        if not _finished(folder / name):
            raise CometError(f"{folder}: {name} is not finished; run the caching again")
        _check_shard(folder / name)
        tables.append(Dataset.from_file(str(folder / name)))
    return concatenate_datasets(tables)


@dataclass
class StoredCollator:
    """Pads stored rows to a batch for :func:`stored_answers`.

    input_ids and attention_mask (B, L); labels: the rows' own (B,) if they have any, else (B, L), 0
    at the M masked positions (the pieces that stood there are not kept) and -100 elsewhere.
    teacher_maps uint8 (B, L, L) and teacher_hidden (B, L, D) by layer, teacher_qkv (3, B, L, D);
    top_indices (M, k), top_logprobs (M, k) and tail (M,) in the order of the masked positions.
    """

    questions: Questions
    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        ask, there = self.questions, rows[0].keys()
        batch: dict[str, Any] = pad([row["input_ids"] for row in rows], self.pad_token_id)
        for name in there & {"labels", "teacher_probs"}:
            batch[name] = torch.tensor([row[name] for row in rows])
        for name, layers in (("maps", ask.maps), ("hidden", ask.hidden)):
            if layers and name in there:  # dev has no answers
                each = _padded(rows, name, len(layers))
                batch[f"teacher_{name}"] = dict(zip(layers, each, strict=True))
        if ask.qkv and "qkv" in there:
            batch["teacher_qkv"] = _padded(rows, "qkv", 3)
        if ask.masked_lm:
            batch["labels"] = torch.full_like(batch["input_ids"], -100)
            for at, row in enumerate(rows):
                batch["labels"][at, row["positions"]] = 0
            total = sum(len(row["positions"]) for row in rows)
            for name, kind in zip(TOP, (np.int32, np.float16, np.float32), strict=True):
                flat = np.frombuffer(b"".join(row[name] for row in rows), kind).copy()
                shape = (total,) if name == "tail" else (total, len(flat) // max(total, 1))
                batch[name] = torch.from_numpy(flat.reshape(shape))
        return batch


def _padded(rows: Sequence[Mapping[str, Any]], name: str, count: int) -> Tensor:
    """The rows' arrays ``name`` as (count, B, L, L or D), zero at padding."""
    kind, longest = np.uint8 if name == "maps" else np.float16, max(row["length"] for row in rows)
    arrays = [np.frombuffer(row[name], kind).reshape(count, row["length"], -1) for row in rows]
    width = longest if name == "maps" else arrays[0].shape[-1]
    out = np.zeros((count, len(rows), longest, width), kind)
    for at, own in enumerate(arrays):
        out[:, at, : own.shape[1], : own.shape[2]] = own
    return torch.from_numpy(out)
