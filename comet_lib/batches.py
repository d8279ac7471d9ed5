"""From texts to batches: one table of token ids, batches of like length, padding and masks.

Nothing here draws from the shared random state, so a run that is stopped and resumed sees the same
batches and the same masks as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)

#: Texts tokenised at a time: a fast tokenizer keeps far more for each text than its ids.
CHUNK = 1000


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


@dataclass
class MaskingCollator(DataCollatorForLanguageModeling):
    """Masks 15 % of the tokens (BERT's 80/10/10) and drops the bookkeeping columns.

    The masks follow from ``run_seed`` and the batch's tokens alone. The loader prepares a batch
    ahead of the step, so masks from the shared random state would change when a run is resumed;
    so drawn, they do not, and the held-out text gets the same masks after every epoch.
    """

    run_seed: int = 0

    def torch_call(self, examples):
        keys = ("input_ids", "attention_mask")
        kept: list[Any] = [{k: e[k] for k in keys} for e in examples]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.run_seed + sum(sum(e["input_ids"]) for e in kept))
            return super().torch_call(kept)
