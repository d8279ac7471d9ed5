"""From texts to batches: one table of token ids, batches of like length, padding and masks.

Nothing here draws from the shared random state, so a run that is stopped and resumed sees the same
batches and the same masks as one that was not.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase
from transformers.data.data_collator import DataCollatorMixin

#: Texts tokenised at a time: a fast tokenizer keeps far more for each text than its ids.
CHUNK = 1000
MASKED = 0.15  # share of the tokens that are masked, as in BERT


def tokenise(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, **columns: Any
) -> Dataset:
    """A table with ``input_ids``, ``attention_mask``, ``length`` and the given columns."""
    ids: list[np.ndarray] = []
    for start in range(0, len(texts), CHUNK):
        chunk = list(texts[start : start + CHUNK])
        encoded = tokenizer(chunk, truncation=True, max_length=max_length)
        ids += [np.array(row, dtype=np.int32) for row in encoded["input_ids"]]
    return Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [np.ones(len(row), dtype=np.int8) for row in ids],
            "length": [len(row) for row in ids],
            **columns,
        }
    )


class LengthBatches(Sampler[int]):
    """Row numbers in an order that makes each ``batch_size`` of them alike in length.

    Every epoch is shuffled, cut into blocks of 50 batches, each block sorted by length, and the
    batches shuffled again: little padding, and no slope from long to short texts. The order
    follows from ``seed`` and ``epoch()``.
    """

    BLOCK = 50

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, epoch: Callable[[], int]
    ) -> None:
        self.lengths = torch.as_tensor(list(lengths))
        self.batch_size, self.seed, self.epoch = batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        source = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        blocks = torch.randperm(len(self), generator=source).split(self.BLOCK * self.batch_size)
        batches = [
            batch
            for block in blocks
            for batch in block[self.lengths[block].argsort(stable=True)].split(self.batch_size)
        ]
        whole = [b for b in batches if len(b) == self.batch_size]  # a short batch comes last, or
        short = [b for b in batches if len(b) < self.batch_size]  # it would shift the cuts
        order = torch.randperm(len(whole), generator=source).tolist()
        for batch in [*(whole[i] for i in order), *short]:
            yield from batch.tolist()


class SentimentCollator(DataCollatorWithPadding):
    """Pads a batch; ``labels`` and, if there, ``teacher_probs`` and ``row`` become tensors."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = [
            {"input_ids": f["input_ids"], "attention_mask": f["attention_mask"]} for f in features
        ]
        batch = dict(super().__call__(inputs))
        batch["labels"] = torch.tensor([f["labels"] for f in features])
        for name in ("teacher_probs", "row"):
            if name in features[0]:
                batch[name] = torch.tensor([f[name] for f in features])
        return batch


def mask_row(
    ids: Sequence[int] | np.ndarray, tokenizer: PreTrainedTokenizerBase, seed: int, row: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (n) -> masked ids (n) and the masked positions (m), from ``seed`` and ``row``.

    Each token but the special ones is chosen with probability 0.15; of the chosen, 80 % become the
    mask, 10 % another piece, and 10 % stay. Devlin et al. 2019, arXiv 1810.04805.
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
class MaskingCollator(DataCollatorMixin):
    """Masks rows of ``tokenise`` by :func:`mask_row` and pads them: input_ids, attention_mask and
    labels (B, L), which are -100 but for the pieces that were chosen.

    A row's mask follows from ``run_seed``, its own tokens and the epoch, which is the row's column
    ``epoch`` if it has one (0 for held-out text: the same masks each time), else ``epoch()``. So it
    is other words in each epoch, but neither a resumed run nor a batch's other rows change it.
    """

    tokenizer: PreTrainedTokenizerBase
    run_seed: int = 0
    epoch: Callable[[], int] = lambda: 0
    return_tensors: str = "pt"

    def torch_call(self, examples: Sequence[dict[str, Any] | None]) -> dict[str, torch.Tensor]:
        rows = [row for row in examples if row is not None]
        if not rows:  # trained on before the run was resumed: the Trainer throws this batch away
            return {}
        inputs, labels = [], []
        for row in rows:
            ids = np.array(row["input_ids"], dtype=np.int64)
            epoch = row.get("epoch", self.epoch())
            key = zlib.crc32(np.append(ids, epoch).tobytes())
            masked, at = mask_row(ids, self.tokenizer, self.run_seed, key)
            label = np.full_like(ids, -100)
            label[at] = ids[at]
            inputs.append(torch.from_numpy(masked).long())
            labels.append(torch.from_numpy(label))
        ones = [torch.ones_like(ids) for ids in inputs]
        return {
            "input_ids": pad_sequence(inputs, True, self.tokenizer.pad_token_id),
            "attention_mask": pad_sequence(ones, True),
            "labels": pad_sequence(labels, True, -100),
        }
