"""Vocabulary trimming: keep only the pieces a corpus uses, with unchanged answers on its texts.

A multilingual vocabulary costs embeddings: they are 93 % of the weights of the paper's student, and
five languages use a ninth of them. Rows can be cut out of the table without any training, because
a piece that never occurs never takes part in a forward pass (Abdaoui et al. 2020, arXiv
2010.05609). After trimming, a text whose pieces are all kept gets the same pieces, under new
numbers, and the same logits; in other texts, dropped pieces fall apart into shorter ones.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

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
#: Ends of the names of weights that have a row for each piece.
BY_PIECE = ("word_embeddings.weight", "lm_head.bias", "head.decoder.weight", "head.decoder.bias")


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


def _parts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The parts of a fast unigram tokenizer, as in tokenizer.json."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    if parts["model"].get("type") != "Unigram":
        raise CometError(
            f"the tokenizer's model is {parts['model'].get('type', 'not a fast one')}: trimming "
            "needs a fast unigram tokenizer such as XLM-R's (a folder with tokenizer.json)"
        )
    return parts


def script(character: str) -> str:
    """A letter's writing system by its Unicode name, such as LATIN; "" for other characters."""
    return unicodedata.name(character, "").split(" ")[0] if character.isalpha() else ""


def scripts_of(texts: Iterable[str]) -> set[str]:
    """Scripts that write at least :data:`SCRIPT_SHARE` of the letters."""
    letters: Counter[str] = Counter()
    for character, count in Counter(c for text in texts for c in text).items():
        letters[script(character)] += count
    del letters[""]
    least = SCRIPT_SHARE * letters.total()
    return {name for name, count in letters.items() if count >= least}


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
    parts = _parts(tokenizer)
    new = {old: number for number, old in enumerate(kept)}
    names = [str(tokenizer.convert_ids_to_tokens(old)) for old in kept]
    pieces, unknown = parts["model"]["vocab"], parts["model"]["unk_id"]
    if unknown is not None and unknown not in new:
        raise CometError(f"kept leaves out the unknown piece, number {unknown}: keep it")
    parts["model"]["vocab"] = [pieces[old] for old in kept if old < len(pieces)]
    parts["model"]["unk_id"] = None if unknown is None else new[unknown]
    parts["added_tokens"] = [
        {**token, "id": new[token["id"]]} for token in parts["added_tokens"] if token["id"] in new
    ]
    by_name = {name: number for number, name in enumerate(names)}
    parts["post_processor"] = _renumber(parts["post_processor"], new, by_name)
    if parts.get("padding"):
        parts["padding"]["pad_id"] = new[parts["padding"]["pad_id"]]
    trimmed = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)),
        model_max_length=tokenizer.model_max_length,
        model_input_names=list(tokenizer.model_input_names),
        **tokenizer.special_tokens_map,
    )
    if trimmed.convert_ids_to_tokens([0, len(kept) - 1]) != [names[0], names[-1]]:
        raise CometError("the trimmed tokenizer numbers its pieces in another order than kept")
    return trimmed


def trim_model(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A copy of ``model`` with the rows ``kept`` of its word embeddings and masked-LM head."""
    old = model.config.vocab_size
    if max(kept) >= old:
        raise CometError(f"piece {max(kept)} is kept, but the model has {old} rows of embeddings")
    new = {number: i for i, number in enumerate(kept)}
    config = type(model.config).from_dict(model.config.to_dict())
    config.vocab_size = len(kept)
    for name in ID_FIELDS:
        if (number := getattr(config, name, None)) is not None:
            if number not in new:
                raise CometError(f"{name} is piece {number}, which is not kept: keep it")
            setattr(config, name, new[number])
    if config.pad_token_id != model.config.pad_token_id:
        raise CometError(
            f"the padding piece would move from {model.config.pad_token_id} to "
            f"{config.pad_token_id}, and XLM-R counts positions from it: keep the pieces before it"
        )
    rows, weights = torch.as_tensor(list(kept)), model.state_dict()
    for name, value in weights.items():
        if name.endswith(BY_PIECE) and len(value) == old:
            weights[name] = value[rows]
    trimmed: Any = type(model)(config)
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
    kept, after = set(trimmed.kept), trimmed.tokenizer
    ids = zip(languages, token_ids(before, texts), token_ids(after, texts), strict=True)
    rows = [
        {
            "language": language,
            "texts": 1,
            "tokens": len(old),
            "dropped": (dropped := sum(number not in kept for number in old)),
            "whole": dropped == 0,
            "new": len(new),
            "unknown": old.count(before.unk_token_id),
            "unknown_after": new.count(after.unk_token_id),
        }
        for language, old, new in ids
    ]
    sums = pd.DataFrame(rows).groupby("language", sort=False).sum()
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
