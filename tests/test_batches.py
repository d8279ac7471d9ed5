"""The masks of stage 1 belong to a row, not to its batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from comet_lib.batches import MaskingCollator, tokenize
from comet_lib.loading import load_tokenizer
from comet_lib.profiles import ASSETS

TEXTS = [f"habari njema sana {word} " * (1 + i % 5) for i, word in enumerate("abcdefghijklmnop")]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ASSETS / "teacher")


@pytest.fixture(scope="module")
def rows(tokenizer):
    return tokenize(TEXTS, tokenizer, 32).to_list()


def row_of(batch, i):
    """One row of a batch without its padding: ids as seen, and labels."""
    n = int(batch["attention_mask"][i].sum())
    return batch["input_ids"][i, :n].tolist(), batch["labels"][i, :n].tolist()


def test_a_rows_mask_does_not_depend_on_its_batch(tokenizer, rows):
    collate = MaskingCollator(tokenizer, run_seed=3)
    whole, reverse = collate(rows), collate(rows[::-1])
    for i, row in enumerate(rows):
        alone = row_of(collate([row]), 0)
        assert alone == row_of(whole, i) == row_of(reverse, len(rows) - 1 - i)
    assert (whole["input_ids"] != MaskingCollator(tokenizer, run_seed=4)(rows)["input_ids"]).any()


def test_padding_and_labels(tokenizer, rows):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batch = MaskingCollator(tokenizer)(rows)
    assert torch.equal(before, torch.get_rng_state())  # dropout's random state is not ours
    padded = batch["attention_mask"] == 0
    assert padded.any() and (batch["input_ids"][padded] == tokenizer.pad_token_id).all()
    assert (batch["labels"][padded] == -100).all()
    for i, row in enumerate(rows):
        seen, labels = row_of(batch, i)
        assert len(seen) == len(row["input_ids"])
        for now, label, original in zip(seen, labels, row["input_ids"], strict=True):
            assert label in (-100, original)
            assert now == original or label == original  # a piece that changed is asked for


def test_each_epoch_hides_other_words_and_held_out_text_keeps_its_masks(tokenizer, rows):
    epoch = 0
    collate = MaskingCollator(tokenizer, epoch=lambda: epoch)
    held = [{**row, "epoch": 0} for row in rows]
    first, first_held = collate(rows), collate(held)
    assert torch.equal(first["labels"], first_held["labels"])
    epoch = 1
    assert not torch.equal(collate(rows)["labels"], first["labels"])
    assert torch.equal(collate(held)["labels"], first_held["labels"])


def test_shares_are_those_of_bert(tokenizer):
    ids = np.random.default_rng(0).integers(5, 1000, (2000, 64))
    batch = MaskingCollator(tokenizer)([{"input_ids": row.tolist()} for row in ids])
    chosen, seen = (batch["labels"] != -100).numpy(), batch["input_ids"].numpy()
    assert chosen.mean() == pytest.approx(0.15, abs=0.005)
    assert (seen[chosen] == tokenizer.mask_token_id).mean() == pytest.approx(0.8, abs=0.02)
    assert (seen[chosen] == ids[chosen]).mean() == pytest.approx(0.1, abs=0.02)
