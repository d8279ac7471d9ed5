"""A small tokenizer that is the same on every call, unlike ``train_tokenizer``'s."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from comet_lib.lab.small_teacher import SPECIALS, train_tokenizer
from comet_lib.loading import load_tokenizer


def fixed_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """The trained one's pieces in the order of the alphabet, all with one score.

    What training learns depends on the numbers of the pieces: a test that says how well would
    fail now and then.
    """
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(texts, vocab_size).save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        state = json.loads(path.read_text(encoding="utf-8"))
        pieces = [piece for piece, _ in state["model"]["vocab"]]
        rest = sorted(set(pieces) - set(SPECIALS))
        state["model"]["vocab"] = [[p, 0.0] for p in SPECIALS] + [[p, -1.0] for p in rest]
        path.write_text(json.dumps(state), encoding="utf-8")
        return load_tokenizer(folder)
