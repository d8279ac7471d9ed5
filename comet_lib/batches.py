"""From texts to batches: one table of token ids, batches of similar length, padding and masks.

Nothing here draws from the shared random state, so a run that is stopped and resumed sees the same
batches and the same masks as one that was not.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from datasets.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

#: Texts tokenized at a time: a fast tokenizer keeps far more for each text than its ids.
CHUNK = 1000
MASKED = 0.15  # share of the tokens that are masked, as in BERT

TOKENS = Features(
    {
        "input_ids": List(Value("int32")),
        "attention_mask": List(Value("int8")),
        "length": Value("int64"),
    }
)


@contextmanager
def no_bars() -> Iterator[None]:
    """No progress bars of ``datasets`` inside; a table takes seconds."""
    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()


def tokenize(
    texts: Sequence[str] | Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    path: Path | None = None,
    shuffle: int | None = None,
    **columns: Any,
) -> Dataset:
    """A table with ``input_ids``, ``attention_mask``, ``length`` and the given columns.

    ``texts`` is a list, or a table with a column ``text``. With ``path``, the table is written
    there and memory-mapped instead of held in memory. ``shuffle`` is a seed: the rows are shuffled
    on their way, because reading a shuffled table column by column takes far more memory.
    """

    def encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        ids = tokenizer(batch["text"], truncation=True, max_length=max_length)["input_ids"]
        return {
            "input_ids": ids,
            "attention_mask": [[1] * len(row) for row in ids],
            "length": [len(row) for row in ids],
        }

    if not isinstance(texts, Dataset):
        texts = Dataset.from_dict({"text": list(texts)})
    if shuffle is not None:
        texts = texts.shuffle(seed=shuffle, keep_in_memory=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    with no_bars():
        table = texts.map(
            encode,
            batched=True,
            batch_size=CHUNK,
            remove_columns=texts.column_names,
            features=TOKENS,
            keep_in_memory=path is None,
            load_from_cache_file=False,
            cache_file_name=path and str(path),
            new_fingerprint="tokens",  # hashing a tokenizer takes longer than using it
        )
    for name, values in columns.items():
        table = table.add_column(name, list(values), new_fingerprint=f"tokens-{name}")
    return table


class LengthBatches(Sampler[int]):
    """Row numbers in an order that makes each ``batch_size`` of them similar in length.

    Every epoch is shuffled and cut into blocks of 50 batches; each block is sorted by length, and
    the batches are shuffled again: little padding, and no slope from long to short texts. The
    order follows from ``seed`` and ``epoch()``.
    """

    BLOCK = 50

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, epoch: Callable[[], int]
    ) -> None:
        self.lengths = torch.as_tensor(np.asarray(lengths))
        self.batch_size, self.seed, self.epoch = batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        source = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        blocks = torch.randperm(len(self), generator=source).split(self.BLOCK * self.batch_size)
        rows = torch.cat([block[self.lengths[block].argsort(stable=True)] for block in blocks])
        count = len(rows) // self.batch_size  # a short batch comes last, or it would shift the cuts
        whole = rows[: count * self.batch_size].view(count, self.batch_size)
        for batch in whole[torch.randperm(count, generator=source)]:
            yield from batch.tolist()
        yield from rows[count * self.batch_size :].tolist()


def pad(rows: Sequence[Sequence[int] | np.ndarray], pad_token_id: int) -> dict[str, Tensor]:
    """Rows of token ids -> ``input_ids`` and ``attention_mask``, both int64 (B, L)."""
    ids = [torch.as_tensor(np.asarray(row), dtype=torch.long) for row in rows]
    ones = [torch.ones_like(row) for row in ids]
    return {
        "input_ids": pad_sequence(ids, True, pad_token_id),
        "attention_mask": pad_sequence(ones, True),
    }


@dataclass
class SentimentCollator:
    """Pads a batch; ``labels`` (B,) and, if there, ``teacher_probs`` (B, 3) become tensors."""

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = pad([row["input_ids"] for row in rows], self.tokenizer.pad_token_id)
        for name in ("labels", "teacher_probs"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch


def mask_row(
    ids: Sequence[int] | np.ndarray, tokenizer: PreTrainedTokenizerBase, seed: int, row: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (n) -> masked ids (n) and the masked positions (m), from ``seed`` and ``row``.

    Each token except the special ones is chosen with probability 0.15. Of the chosen, 80 % become
    the mask, 10 % another piece, and 10 % stay. Devlin et al. 2019, arXiv 1810.04805.
    """
    source = np.random.default_rng([seed, row])
    masked = np.array(ids, dtype=np.int32)
    special = (masked[:, None] == tokenizer.all_special_ids).any(1)
    chosen = (source.random(len(masked)) < MASKED) & ~special
    fate = source.random(len(masked))
    other = source.integers(len(tokenizer), size=len(masked))
    masked = np.where(chosen & (fate < 0.8), tokenizer.mask_token_id, masked)
    masked = np.where(chosen & (fate >= 0.9), other, masked)
    return masked.astype(np.int32), np.flatnonzero(chosen).astype(np.int32)


@dataclass
class MaskingCollator:
    """Masks rows of :func:`tokenize` by :func:`mask_row` and pads them.

    A batch has ``input_ids``, ``attention_mask`` and ``labels`` (B, L); labels are -100 except at
    the chosen pieces. A row's mask follows from ``run_seed``, its own tokens and the epoch, which
    is the row's column ``epoch`` if it has one (0 for held-out text: the same masks each time),
    else ``epoch()``. So masks differ between epochs, but not on resume or with batch composition.
    """

    tokenizer: PreTrainedTokenizerBase
    run_seed: int = 0
    epoch: Callable[[], int] = lambda: 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        inputs, labels = [], []
        for row in rows:
            ids = np.array(row["input_ids"], dtype=np.int64)
            epoch = row.get("epoch", self.epoch())
            key = zlib.crc32(np.append(ids, epoch).tobytes())
            masked, at = mask_row(ids, self.tokenizer, self.run_seed, key)
            label = np.full_like(ids, -100)
            label[at] = ids[at]
            inputs.append(masked)
            labels.append(torch.from_numpy(label))
        batch = pad(inputs, self.tokenizer.pad_token_id)
        return {**batch, "labels": pad_sequence(labels, True, -100)}
