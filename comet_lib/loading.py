"""Is a model sound? Before it is built: does its config fit its weights; after: does it answer.

A model's folder is somebody else's work: cut off, mixed up, or made to mislead. Each check raises
one sentence that names the file and the mend.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from comet_lib.errors import CometError
from comet_lib.files import read_json


def check_folder(folder: Path) -> None:
    """Raise if a folder's config promises what its weights cannot hold, before anything is built.

    A config of a few bytes can ask for a billion layers, or labels.
    """
    config, weights = folder / "config.json", folder / "model.safetensors"
    if not config.is_file():
        raise CometError(f"{folder}: has no config.json; give a folder that save_pretrained wrote")
    whole = [weights] if weights.is_file() else sorted(folder.glob("*.safetensors"))  # or shards
    files = [path for path in whole if path.is_file()]
    if not files and not (folder / "model.safetensors.index.json").is_file():
        return  # a pickle, or nothing: transformers says what it makes of it
    count, longest = 0, 1
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118, the file itself is no iterable
                    count, longest = count + 1, max(longest, *file.get_slice(name).get_shape(), 1)
        except Exception as error:
            raise CometError(
                f"{path}: no whole safetensors file ({first_line(error)}); copy it again"
            ) from error
    for field, size in _sizes(read_json(config, "model_type")):
        most = count if "layer" in field else longest
        if not isinstance(size, int) or not 0 < size <= most:
            raise CometError(
                f"{config}: {field} is {str(size)[:40]}, which the weights beside it cannot hold; "
                "give config and weights that were saved together"
            )


def _sizes(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Fields, at any depth, that say how many layers, pieces or labels are built.

    Each kind of model has its own name for its layers: ``n_layers``, ``num_decoder_layers``.
    """
    for field, value in config.items():
        if isinstance(value, Mapping):
            yield from _sizes(value)
        elif field in ("num_hidden_layers", "vocab_size") or (
            ("layer" in field or field == "num_labels") and type(value) is int and value > 0
        ):
            yield field, value


def first_line(error: BaseException) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]


def check_pair(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise if the tokenizer has pieces for which the model has no row, or no padding."""
    rows, pieces = getattr(model.config, "vocab_size", None), len(tokenizer)
    if rows is not None and pieces > rows:
        raise CometError(
            f"the tokenizer has {pieces:,} pieces and the model {rows:,} rows of embeddings: they "
            "are no pair; give the tokenizer that was saved with the model"
        )
    if tokenizer.pad_token_id is None:
        raise CometError(
            "the tokenizer has no padding piece; give the tokenizer that was saved with the model"
        )


def check_attention(name: str | Path, config: Any) -> None:
    """Raise if a config asks for attention code from the hub, which transformers would run."""
    kind = getattr(config, "_attn_implementation", None)
    if kind not in (None, "eager", "sdpa"):
        raise CometError(
            f"{name}: its config asks for the attention {str(kind)[:60]!r}, which may be code from "
            "the hub and is not run; remove _attn_implementation from its config.json"
        )


def is_fault(error: BaseException) -> bool:
    """Whether it is an error, rather than a stop: a panic in Rust code is no ``Exception``."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@contextlib.contextmanager
def answering(model: Any) -> Iterator[None]:
    """Inside, a tokenizer and a model are used; one that cannot answer is named.

    Raises:
        CometError: any error, but those of memory and of ours: sizes in the config that loading
            does not look at, or numbers of pieces for which there is no row.
    """
    try:
        yield
    except BaseException as error:
        ours = isinstance(error, (CometError, MemoryError)) or "memory" in str(error)
        if ours or not is_fault(error):
            raise
        raise CometError(
            f"{_called(model)}: the model does not answer ({type(error).__name__}: "
            f"{first_line(error)}); give config, weights and tokenizer that were saved together"
        ) from error


def check_numbers(model: Any, logits: Tensor) -> None:
    """Raise if an answer holds NaN: a damaged weight, and every label would be the first one."""
    if logits.isnan().any():
        raise CometError(
            f"{_called(model)}: the model answers with NaN; its weights are damaged, copy it again "
            "or train it again"
        )


def _called(model: Any) -> str:
    return getattr(model.config, "name_or_path", "") or type(model).__name__


def longest_text(model: Any) -> int | None:
    """How many tokens a model takes by its config; None if that sets no limit.

    XLM-R counts positions from the padding's number on; for others this is a token or so short.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        return None
    return positions - (getattr(model.config, "pad_token_id", None) or 0) - 1
