"""Teacher targets on disk: stage 1 asks the teacher once and reads the answers every epoch.

The teacher's answer to a row depends on the row's mask, so masks are fixed: a row has the same
mask in every epoch, drawn from the masking seed and the row's number. With masks drawn anew each
epoch (``MaskingCollator``) the student sees other gaps, and other targets, each time; with a cache
it sees about 15 % of each text's tokens as targets and never the others. Over one epoch the two
are alike; over many, the cache trades that variety for the teacher's time. Of the masked-LM targets
it keeps the k likeliest pieces and the mass of all others; the hotter the temperature, the more
that leaves out (``python tools/measure_cache.py``).

A cache is a folder: ``fingerprint.json``, and shards ``shard-00000.arrow`` of rows in the table's
order, each with a ``.json`` beside it that holds its size and SHA-256. A shard is written under
another name and renamed, its ``.json`` last, so a killed run leaves whole shards or none.

Shapes: n tokens in a row, m of them masked, k pieces kept of the teacher's vocabulary, layers in
ascending order. Sizes are in bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
from comet_lib.attention import capture
from comet_lib.batches import MASKED, mask_row
from comet_lib.errors import CometError
from comet_lib.files import read_json, whole_file, write_json
from comet_lib.losses import topk_of_logits, valid_pairs
from comet_lib.models import only_positions
from comet_lib.processes import processes

BATCH = 32  # rows in one forward pass of the teacher

#: A row of a cache. The binary columns are arrays in C order: maps uint8 (layers, n, n),
#: top_indices int32 (m, k), top_logprobs float16 (m, k), tail float32 (m,).
FEATURES = Features(
    {
        "input_ids": List(Value("int32")),  # already masked
        "length": Value("int32"),
        "positions": List(Value("int32")),  # of the m masked tokens, ascending
        "maps": Value("binary"),
        "top_indices": Value("binary"),
        "top_logprobs": Value("binary"),
        "tail": Value("binary"),
    }
)


@dataclass(frozen=True)
class CacheSettings:
    """What a cache depends on beside teacher, tokenizer and texts.

    ``layers`` are the teacher's, from 0; ``temperature`` is that of eq. (10) of the losses; ``k``
    pieces are kept at a masked position. ``shard_rows`` is what a kill may lose.
    """

    layers: tuple[int, ...]
    temperature: float
    seed: int
    max_length: int
    k: int = 64
    shard_rows: int = 1024


# --------------------------------------------------------------------------- numbers


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


def predicted_bytes(lengths: Sequence[int], layers: int, k: int) -> int:
    """What rows of these lengths (in tokens) will take on disk, with 15 % of them masked."""
    n = np.asarray(lengths, dtype=np.float64)
    masked = MASKED * (n - 2).clip(0)
    return int((layers * n**2 + 4 * n + masked * (4 + 4 + 6 * k) + 60).sum())


@torch.no_grad()
def teacher_targets(
    teacher: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    masked: Tensor,
    settings: CacheSettings,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One forward pass: ids, mask and bool ``masked``, all (B, L), M of them True ->

    maps uint8 (B, layers, L, L), top indices int32 (M, k), top log probabilities float16 (M, k)
    and the tail's float32 (M,), the last three as eq. (10) wants them. fp16 on a GPU.
    """
    with (
        torch.autocast(ids.device.type, torch.float16, enabled=ids.device.type == "cuda"),
        capture(teacher, settings.layers) as maps,
        only_positions(teacher, masked),
    ):
        logits = teacher(input_ids=ids, attention_mask=mask).logits
    codes = torch.stack([encode_maps(maps[layer], mask) for layer in sorted(maps)], 1)
    indices, top, tail = topk_of_logits(logits, settings.k, settings.temperature)
    return codes.cpu(), indices.int().cpu(), top.half().cpu(), tail.float().cpu()


# --------------------------------------------------------------------------- fingerprint


def _digest(parts: Any) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def _weights(model: PreTrainedModel) -> Any:
    for name, value in sorted(model.state_dict().items()):
        yield f"{name} {value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _texts(table: Dataset) -> Any:
    for batch in table.iter(1000):
        for ids in batch["input_ids"]:
            yield np.asarray([len(ids), *ids], dtype=np.int32).tobytes()


def fingerprint(
    table: Dataset,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: CacheSettings,
) -> dict[str, Any]:
    """All that the answers depend on; long things as SHA-256. Two equal ones: same cache."""
    pieces = json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.all_special_ids])
    return {
        "library version": comet_lib.__version__,
        "teacher weights": _digest(_weights(teacher)),
        "tokenizer": _digest([pieces.encode()]),
        "texts": _digest(_texts(table)),
        "rows": len(table),
        **{name.replace("_", " "): value for name, value in asdict(settings).items()},
        "layers": list(settings.layers),
    }


def _compare(folder: Path, mark: Mapping[str, Any]) -> None:
    """Raise if the cache in ``folder`` was made from other things than ``mark`` says."""
    old = read_json(folder / "fingerprint.json", "rows", "shard rows")
    differ = [
        name if isinstance(mark[name], str) else f"{name} ({old.get(name)} there, {mark[name]} now)"
        for name in mark
        if old.get(name) != mark[name]
    ]
    if differ:
        raise CometError(
            f"{folder}: the cache there differs in {', '.join(differ)}; choose another cache "
            "folder, or delete this one"
        )


# --------------------------------------------------------------------------- shards


def _shards(mark: Mapping[str, Any]) -> list[str]:
    rows, each = mark["rows"], mark["shard rows"]
    if not all(isinstance(n, int) and n > 0 for n in (rows, each)):
        raise CometError(f"a cache of {rows} rows, {each} a shard: delete it and run again")
    return [f"shard-{i:05d}.arrow" for i in range(-(-rows // each))]


def _check_shard(path: Path) -> None:
    """Raise if a finished shard is not, byte for byte, what was written."""
    note = read_json(path.with_suffix(".json"), "bytes", "sha256")
    size = path.stat().st_size if path.is_file() else 0
    mend = f"delete {path.with_suffix('.json').name} and run again: that shard alone is made anew"
    if size != note["bytes"]:
        raise CometError(f"{path}: {size} bytes, not the {note['bytes']} written; {mend}")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != note["sha256"]:
            raise CometError(f"{path}: its content is not what was written (SHA-256); {mend}")


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


def shard_columns(
    table: Dataset,
    first: int,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: CacheSettings,
    device: torch.device,
) -> dict[str, list[Any]]:
    """The columns of the shard that starts at row ``first``: batches of like length."""
    rows = table[first : first + settings.shard_rows]["input_ids"]
    made = [mask_row(ids, tokenizer, settings.seed, first + i) for i, ids in enumerate(rows)]
    columns: dict[str, list[Any]] = {name: [None] * len(rows) for name in FEATURES}
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), BATCH):
        here = order[start : start + BATCH]
        longest = max(len(rows[i]) for i in here)
        ids = torch.full((len(here), longest), tokenizer.pad_token_id or 0)
        mask, masked = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for at, i in enumerate(here):
            ids[at, : len(rows[i])] = torch.from_numpy(made[i][0])
            mask[at, : len(rows[i])] = 1
            masked[at, made[i][1]] = True
        ids, mask, masked = ids.to(device), mask.to(device), masked.to(device)
        codes, *tops = teacher_targets(teacher, ids, mask, masked, settings)
        counts = [len(made[i][1]) for i in here]
        parts = [top.split(counts) for top in tops]
        for at, i in enumerate(here):
            n = len(rows[i])
            columns["input_ids"][i] = made[i][0]
            columns["length"][i] = n
            columns["positions"][i] = made[i][1]
            columns["maps"][i] = codes[at, :, :n, :n].numpy().tobytes()
            for name, part in zip(("top_indices", "top_logprobs", "tail"), parts, strict=True):
                columns[name][i] = part[at].numpy().tobytes()
    return columns


# --------------------------------------------------------------------------- the cache


def cache_targets(
    folder: str | Path,
    table: Dataset,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: CacheSettings,
    bar: bool = True,
) -> Dataset:
    """Ask the teacher (a masked-LM model) about every row of ``table`` (of ``tokenise``), once.

    Finished shards are kept: killed and called again, it goes on. Under ``accelerate launch``
    each process makes its share of the shards. Returns :func:`open_cache`.

    Raises:
        CometError: the folder holds a cache of other things (it says which), a shard is damaged,
            or the disk has too little room (asked before the start, and during it).
    """
    folder, here = Path(folder), processes()
    mark = fingerprint(table, teacher, tokenizer, settings)
    names = _shards(mark)
    if here.is_main_process:
        if (folder / "fingerprint.json").is_file():
            _compare(folder, mark)
        _check_room(folder, table, names, settings)
        write_json(folder / "fingerprint.json", mark)
    here.wait_for_everyone()
    teacher = teacher.eval().to(here.device)
    mine = [
        (i, name)
        for i, name in enumerate(names)
        if i % here.num_processes == here.process_index
        and not (folder / name).with_suffix(".json").is_file()
    ]
    for i, name in tqdm(mine, desc="teacher targets", disable=not bar or not mine):
        columns = shard_columns(
            table, i * settings.shard_rows, teacher, tokenizer, settings, here.device
        )
        try:
            _write_shard(folder / name, columns)
        except OSError as error:
            raise CometError(
                f"{folder}: cannot write {name} ({error}); make room and run again, finished "
                "shards are kept"
            ) from error
    here.wait_for_everyone()
    return open_cache(folder, mark)


def _check_room(
    folder: Path, table: Dataset, names: Sequence[str], settings: CacheSettings
) -> None:
    lengths = table["length"][:]
    need = sum(
        predicted_bytes(
            lengths[i * settings.shard_rows : (i + 1) * settings.shard_rows],
            len(settings.layers),
            settings.k,
        )
        for i, name in enumerate(names)
        if not (folder / name).with_suffix(".json").is_file()
    )
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if need * 1.05 > free:
        raise CometError(
            f"{folder}: the teacher's targets need about {need / 1e9:.1f} GB, but "
            f"{free / 1e9:.1f} GB are free; choose a cache folder on a larger disk"
        )


def open_cache(folder: str | Path, mark: Mapping[str, Any] | None = None) -> Dataset:
    """The rows of a finished cache, memory-mapped; the columns are those of :data:`FEATURES`.

    Every shard is read once to compare its SHA-256.

    Raises:
        CometError: no cache there, an unfinished or damaged one, or one that is not ``mark``'s.
    """
    folder = Path(folder)
    if mark is not None:
        _compare(folder, mark)
    tables = []
    for name in _shards(read_json(folder / "fingerprint.json", "rows", "shard rows")):
        if not (folder / name).with_suffix(".json").is_file():
            raise CometError(f"{folder}: {name} is not finished; run the caching again")
        _check_shard(folder / name)
        tables.append(Dataset.from_file(str(folder / name)))
    return concatenate_datasets(tables)


@dataclass
class CachedCollator:
    """Pads rows of a cache to a batch.

    input_ids and attention_mask (B, L); labels (B, L), 0 at the M masked positions (the pieces that
    stood there are not kept) and -100 elsewhere; teacher_maps uint8 (B, layers, L, L); top_indices
    (M, k), top_logprobs (M, k) and tail (M,) in the order of the masked positions.
    """

    layers: int
    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        count, longest = len(rows), max(row["length"] for row in rows)
        ids = torch.full((count, longest), self.pad_token_id)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        maps = torch.zeros(count, self.layers, longest, longest, dtype=torch.uint8)
        for at, row in enumerate(rows):
            n = row["length"]
            ids[at, :n] = torch.tensor(row["input_ids"])
            mask[at, :n] = 1
            labels[at, torch.tensor(row["positions"], dtype=torch.long)] = 0
            codes = np.frombuffer(row["maps"], dtype=np.uint8).reshape(self.layers, n, n)
            maps[at, :, :n, :n] = torch.from_numpy(codes.copy())
        total = sum(len(row["positions"]) for row in rows)

        def joined(name: str, dtype: Any) -> Tensor:
            return torch.from_numpy(np.frombuffer(b"".join(r[name] for r in rows), dtype).copy())

        indices, logprobs = joined("top_indices", np.int32), joined("top_logprobs", np.float16)
        k = len(indices) // max(total, 1)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "teacher_maps": maps,
            "top_indices": indices.view(total, k),
            "top_logprobs": logprobs.view(total, k),
            "tail": joined("tail", np.float32),
        }
