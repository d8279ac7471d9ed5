"""Vocabulary trimming: keep the pieces that a corpus uses, and the same function on its texts.

A multilingual vocabulary is paid for in embeddings: in the paper's student they are 93 % of the
weights, and five languages use a ninth of them. Rows of the table can be cut out without any
training, because a piece that never occurs never takes part in a forward pass (Abdaoui et al.
2020, arXiv 2010.05609). After trimming, a text whose pieces are all kept gets the same pieces,
under new numbers, and the same logits; in other texts the dropped pieces fall apart into shorter
ones.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from comet_lib.errors import CometError
from comet_lib.models import quiet

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
    """``model`` (any head) and ``tokenizer`` with the pieces that ``texts`` need, as copies.

    Logits over labels are bit-identical on texts whose pieces are all kept; masked-LM logits are
    the kept columns of the old ones (equal up to the rounding of a matrix product of another size).

    Raises:
        CometError: a tokenizer that is no fast unigram one, or a model with fewer rows.
    """
    texts = list(texts)
    kept = needed_pieces(tokenizer, texts)
    return Trimmed(trim_model(model, kept), trim_tokenizer(tokenizer, kept), kept)


# ------------------------------------------------------------------------------- the pieces


def _pieces(tokenizer: PreTrainedTokenizerBase) -> list[list[Any]]:
    """The unigram vocabulary: [piece, log probability] in the order of the numbers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if backend is not None else {}
    if model.get("type") != "Unigram":
        raise CometError(
            f"the tokenizer's model is {model.get('type', 'not a fast one')}: trimming needs a "
            "fast unigram tokenizer such as XLM-R's (a folder with tokenizer.json)"
        )
    return model["vocab"]


def script(character: str) -> str:
    """The writing system of a letter by its Unicode name, such as LATIN; "" for other signs."""
    return unicodedata.name(character, "").split(" ")[0] if character.isalpha() else ""


def scripts_of(texts: Iterable[str]) -> set[str]:
    """Scripts that write at least :data:`SCRIPT_SHARE` of the letters."""
    letters: Counter[str] = Counter()
    for character, count in Counter(c for text in texts for c in text).items():
        if found := script(character):
            letters[found] += count
    least = SCRIPT_SHARE * letters.total()
    return {name for name, count in letters.items() if count >= least}


def used_pieces(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> set[int]:
    """Numbers of the pieces that ``texts``, not cut, are made of."""
    used: set[int] = set()
    for ids in token_ids(tokenizer, texts):
        used.update(ids)
    return used


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The numbers of each text's pieces, however long, with the special ones."""
    with quiet():  # a text longer than the model is no matter here
        return tokenizer(list(texts), truncation=False)["input_ids"] if len(texts) else []


def needed_pieces(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Numbers of the pieces to keep, in rising order.

    These are the pieces that ``texts`` use; all special ones; single letters of their scripts,
    combining marks and emoji, so that no word in these scripts becomes unknown; and the least
    likely piece, as the price of an unknown sign hangs on it.
    """
    pieces = _pieces(tokenizer)
    kept = used_pieces(tokenizer, texts) | set(tokenizer.all_special_ids)
    kept |= set(tokenizer.get_added_vocab().values())
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


# ------------------------------------------------------------------- tokenizer and model


def _renumber(part: Any, new: dict[int, int], by_name: dict[str, int]) -> Any:
    """A post-processor's description with new numbers, whichever kind it is."""
    if isinstance(part, list) and len(part) == 2 and isinstance(part[1], int):
        return [part[0], new[part[1]]]  # RobertaProcessing's ["</s>", 2]
    if isinstance(part, list):
        return [_renumber(p, new, by_name) for p in part]
    if isinstance(part, dict):
        if "ids" in part and "tokens" in part:  # TemplateProcessing's
            return {**part, "ids": [by_name[t] for t in part["tokens"]]}
        return {key: _renumber(value, new, by_name) for key, value in part.items()}
    return part


def trim_tokenizer(
    tokenizer: PreTrainedTokenizerBase, kept: Sequence[int]
) -> PreTrainedTokenizerBase:
    """A fast tokenizer over the pieces ``kept`` (old numbers, rising), numbered from 0."""
    pieces = _pieces(tokenizer)
    new = {old: number for number, old in enumerate(kept)}
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(backend.to_str())
    unknown = parts["model"]["unk_id"]
    if unknown is not None and unknown not in new:
        raise CometError(f"kept leaves out the unknown piece, number {unknown}: keep it")
    parts["model"]["vocab"] = [pieces[old] for old in kept if old < len(pieces)]
    parts["model"]["unk_id"] = None if unknown is None else new[unknown]
    parts["added_tokens"] = [
        {**token, "id": new[token["id"]]} for token in parts["added_tokens"] if token["id"] in new
    ]
    by_name = {str(tokenizer.convert_ids_to_tokens(old)): number for old, number in new.items()}
    parts["post_processor"] = _renumber(parts["post_processor"], new, by_name)
    if parts.get("padding"):
        parts["padding"]["pad_id"] = new[parts["padding"]["pad_id"]]
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)),
        model_max_length=tokenizer.model_max_length,
        model_input_names=list(tokenizer.model_input_names),
        **tokenizer.special_tokens_map,
    )
    if [made.convert_ids_to_tokens(i) for i in (0, len(kept) - 1)] != [
        tokenizer.convert_ids_to_tokens(kept[i]) for i in (0, -1)
    ]:
        raise CometError("the trimmed tokenizer numbers its pieces in another order than kept")
    return made


def trim_model(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A copy of ``model`` with the rows ``kept`` of its word embeddings and masked-LM head."""
    old = model.config.vocab_size
    if max(kept) >= old:
        raise CometError(f"piece {max(kept)} is kept, but the model has {old} rows of embeddings")
    new = {number: i for i, number in enumerate(kept)}
    config = type(model.config).from_dict(model.config.to_dict())
    config.vocab_size = len(kept)
    for name in ID_FIELDS:
        number = getattr(config, name, None)
        if number is not None:
            if number not in new:
                raise CometError(f"{name} is piece {number}, which is not kept: keep it")
            setattr(config, name, new[number])
    if config.pad_token_id != model.config.pad_token_id:
        raise CometError(
            f"the padding piece would move from {model.config.pad_token_id} to "
            f"{config.pad_token_id}, and XLM-R counts positions from it: keep the pieces before it"
        )
    rows = torch.as_tensor(list(kept))
    weights = {
        name: value[rows] if _by_piece(name) and len(value) == old else value
        for name, value in model.state_dict().items()
    }
    made: Any = type(model)(config)
    made.load_state_dict(weights)
    return made.to(dtype=model.dtype).train(model.training)


def _by_piece(name: str) -> bool:
    """Whether a weight of this name may have a row for each piece."""
    return name.endswith("word_embeddings.weight") or name in (
        "lm_head.bias",
        "lm_head.decoder.weight",
        "lm_head.decoder.bias",
    )


# ------------------------------------------------------------------------------- coverage


def coverage(
    before: PreTrainedTokenizerBase,
    trimmed: Trimmed,
    texts: Sequence[str],
    languages: Sequence[str],
) -> pd.DataFrame:
    """How much of ``texts`` the kept pieces cover, and what the rest turns into, by language.

    Columns: ``language`` (the last row: all), ``tokens`` (special ones counted), ``kept`` (percent
    of them), ``whole_texts`` (percent without a dropped piece), ``pieces_for_one`` (how many
    pieces stand in the place of a dropped one, mean), ``unknown_before`` and ``unknown_after``
    (percent of tokens).
    """
    kept = np.zeros(len(before), dtype=bool)
    kept[trimmed.kept] = True
    rows = []
    for language, old, new in zip(
        languages, token_ids(before, texts), token_ids(trimmed.tokenizer, texts), strict=True
    ):
        dropped = int((~kept[old]).sum())
        rows.append(
            {
                "language": language,
                "texts": 1,
                "whole": dropped == 0,
                "tokens": len(old),
                "dropped": dropped,
                "new_tokens": len(new),
                "unknown": old.count(before.unk_token_id),
                "new_unknown": new.count(trimmed.tokenizer.unk_token_id),
            }
        )
    sums = pd.DataFrame(rows).groupby("language", sort=False).sum()
    sums.loc["all"] = sums.sum()
    fallen = sums["new_tokens"] - (sums["tokens"] - sums["dropped"])
    return pd.DataFrame(
        {
            "tokens": sums["tokens"],
            "kept": 100 * (1 - sums["dropped"] / sums["tokens"]),
            "whole_texts": 100 * sums["whole"] / sums["texts"],
            "pieces_for_one": fallen / sums["dropped"].where(sums["dropped"] > 0),
            "unknown_before": 100 * sums["unknown"] / sums["tokens"],
            "unknown_after": 100 * sums["new_unknown"] / sums["new_tokens"],
        }
    ).reset_index()
