"""Vocabulary trimming: keep only the pieces a corpus uses, with unchanged answers on its texts.

A multilingual vocabulary costs embeddings: they are 93 % of the weights of the paper's student, and
five languages use a ninth of them. Rows can be cut out of the table without any training, because
a piece that never occurs never takes part in a forward pass (Abdaoui et al. 2020, arXiv
2010.05609). After trimming, a text whose pieces are all kept gets the same pieces, under new
numbers, and the same logits; in other texts, dropped pieces fall apart into shorter ones.
"""

from __future__ import annotations

import copy
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pandas as pd
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from comet_lib.errors import CometError
from comet_lib.models import first_position, quiet

SCRIPT_SHARE = 0.001  # of the corpus's letters; below it, a script is a stray quotation
EMOJI = 0x1F300  # the first of the emoji blocks
#: Fields of a config that hold the number of a piece.
ID_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id")


@dataclass(frozen=True)
class Trimmed:
    """A smaller model with its tokenizer; ``kept[new number] = old number`` of a piece."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kept: list[int]


def trim(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> Trimmed:
    """Copies of ``model`` (any head) and ``tokenizer`` with only the pieces ``texts`` need.

    Logits over labels are bit-identical on texts whose pieces are all kept; masked-LM logits are
    the kept columns of the old ones (up to the rounding of a matrix product of another size).

    Raises:
        CometError: not a fast unigram tokenizer, or a model with fewer rows than pieces.
    """
    kept = needed_pieces(tokenizer, list(texts))
    return Trimmed(trim_model(model, kept), trim_tokenizer(tokenizer, kept), kept)


def _parts(tokenizer: PreTrainedTokenizerBase, hook: Any = None) -> dict[str, Any]:
    """The parts of a fast unigram tokenizer, as in tokenizer.json; ``hook`` changes each object."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(backend.to_str(), object_hook=hook) if backend is not None else {"model": {}}
    if (kind := parts["model"].get("type", "not a fast one")) != "Unigram":
        raise CometError(
            f"the tokenizer's model is {kind}: trimming needs a fast unigram tokenizer such as "
            "XLM-R's (a folder with tokenizer.json)"
        )
    return parts


def script(character: str) -> str:
    """A letter's writing system by its Unicode name, such as LATIN; "" for other characters."""
    return unicodedata.name(character, "").split(" ")[0] if character.isalpha() else ""


def scripts_of(texts: Iterable[str]) -> set[str]:
    """Scripts that write at least :data:`SCRIPT_SHARE` of the letters."""
    signs = pd.Series(Counter(chain.from_iterable(texts)), dtype=int)
    letters = signs.groupby(script).sum().drop("", errors="ignore")
    return set(letters.index[letters >= SCRIPT_SHARE * letters.sum()])


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The numbers of each text's pieces, special ones included, however long the text is."""
    with quiet():  # here it does not matter if a text is too long for the model
        return tokenizer(list(texts), truncation=False)["input_ids"] if len(texts) else []


def needed_pieces(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Numbers of the pieces to keep, in rising order.

    These are the pieces that ``texts`` use; all special ones; single letters of their scripts,
    combining marks and emoji, so that no word in these scripts becomes unknown; and the least
    likely piece, because it sets the cost of an unknown character.
    """
    pieces = _parts(tokenizer)["model"]["vocab"]  # [piece, log probability] by number
    kept = {number for ids in token_ids(tokenizer, texts) for number in ids}
    kept.update(tokenizer.all_special_ids, tokenizer.get_added_vocab().values())
    here = scripts_of(texts)
    for number, (piece, _) in enumerate(pieces):
        bare = piece.removeprefix("▁") or piece
        if len(bare) == 1 and (
            script(bare) in here
            or unicodedata.combining(bare)
            or (unicodedata.category(bare) == "So" and ord(bare) >= EMOJI)
        ):
            kept.add(number)
    kept.add(min(range(len(pieces)), key=lambda number: pieces[number][1]))
    return sorted(kept)


def trim_tokenizer(
    tokenizer: PreTrainedTokenizerBase, kept: Sequence[int]
) -> PreTrainedTokenizerBase:
    """A fast tokenizer over the pieces ``kept`` (old numbers, rising), numbered from 0."""
    new = {old: number for number, old in enumerate(kept)}

    def renumber(part: dict[str, Any]) -> dict[str, Any]:
        for field, value in part.items():
            if field in ("id", "unk_id", "pad_id") and isinstance(value, int):
                part[field] = new.get(value, -1)
            elif field == "ids":  # of a piece in TemplateProcessing
                part[field] = [new[old] for old in value]
            elif field in ("sep", "cls") and isinstance(value, list):  # RobertaProcessing
                part[field] = [value[0], new[value[1]]]
        return part

    parts = _parts(tokenizer, renumber)
    pieces = parts["model"]["vocab"]
    if parts["model"]["unk_id"] == -1:
        raise CometError(f"kept leaves out the unknown piece, {tokenizer.unk_token}: keep it")
    parts["model"]["vocab"] = [pieces[old] for old in kept if old < len(pieces)]
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["id"] != -1]
    trimmed = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)),
        model_max_length=tokenizer.model_max_length,
        model_input_names=list(tokenizer.model_input_names),
        **tokenizer.special_tokens_map,
    )
    ends = tokenizer.convert_ids_to_tokens([kept[0], kept[-1]])
    if trimmed.convert_ids_to_tokens([0, len(kept) - 1]) != ends:
        raise CometError("the trimmed tokenizer numbers its pieces in another order than kept")
    return trimmed


def trim_model(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A copy of ``model`` with the rows ``kept`` of its word embeddings and masked-LM head.

    ``kept`` rises. Where positions are counted from the padding piece, they move with it.
    """
    old = model.config.vocab_size
    if max(kept) >= old:
        raise CometError(f"piece {max(kept)} is kept, but the model has {old} rows of embeddings")
    new = {number: i for i, number in enumerate(kept)}
    config = copy.deepcopy(model.config)
    config.vocab_size = len(kept)
    for name in ID_FIELDS:
        if (number := getattr(config, name, None)) is not None:
            if number not in new:
                raise CometError(f"{name} is piece {number}, which is not kept: keep it")
            setattr(config, name, new[number])
    moved = first_position(model.config) - first_position(config)
    if moved:
        config.max_position_embeddings -= moved
    trimmed: Any = type(model)(config)
    if getattr(model.base_model, "pooler", None) is None:  # a config does not say so
        trimmed.base_model.pooler = None
    rows, weights = torch.as_tensor(list(kept)), model.state_dict()
    for name, value in trimmed.state_dict().items():
        if value.shape != weights[name].shape:
            weights[name] = weights[name][moved:] if "position" in name else weights[name][rows]
    trimmed.load_state_dict(weights)
    return trimmed.to(dtype=model.dtype).train(model.training)


def coverage(
    before: PreTrainedTokenizerBase,
    trimmed: Trimmed,
    texts: Sequence[str],
    languages: Sequence[str],
) -> pd.DataFrame:
    """How much of ``texts`` the kept pieces cover, and what becomes of the rest, by language.

    Columns: ``language`` (the last row: all), ``tokens`` (with special ones), ``kept`` (percent of
    them), ``whole_texts`` (percent without a dropped piece), ``pieces_for_one`` (mean number that
    replaces a dropped one), ``unknown_before`` and ``unknown_after`` (percent of tokens).
    """
    kept = set(trimmed.kept)
    old, new = (pd.Series(token_ids(t, texts)) for t in (before, trimmed.tokenizer))
    dropped = old.map(lambda ids: sum(number not in kept for number in ids))
    rows = {
        "texts": 1,
        "tokens": old.map(len),
        "dropped": dropped,
        "whole": dropped == 0,
        "new": new.map(len),
        "unknown": old.map(lambda ids: ids.count(before.unk_token_id)),
        "unknown_after": new.map(lambda ids: ids.count(trimmed.tokenizer.unk_token_id)),
    }
    sums = pd.DataFrame(rows).groupby(pd.Series(languages, name="language"), sort=False).sum()
    sums.loc["all"] = sums.sum()
    tokens, gone = sums["tokens"], sums["dropped"]
    table = {
        "tokens": tokens,
        "kept": 100 * (1 - gone / tokens),
        "whole_texts": 100 * sums["whole"] / sums["texts"],
        "pieces_for_one": (sums["new"] - (tokens - gone)) / gone.where(gone > 0),
        "unknown_before": 100 * sums["unknown"] / tokens,
        "unknown_after": 100 * sums["unknown_after"] / sums["new"],
    }
    return pd.DataFrame(table).reset_index()
