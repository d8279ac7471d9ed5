"""Load a teacher, build a student, count parameters.

Students are stock ``XLMRobertaFor...`` models: what we save, ``transformers`` loads without us.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    XLMRobertaConfig,
)
from transformers.utils import logging

from comet_lib.errors import CometError
from comet_lib.labels import LABELS
from comet_lib.loading import check_attention, check_folder, first_line, is_fault
from comet_lib.profiles import user_path

HEADS: dict[str, Any] = {
    "encoder": AutoModel,
    "masked-lm": AutoModelForMaskedLM,
    "sentiment": AutoModelForSequenceClassification,
}
#: The paper's shapes (arXiv 2502.18020; the student's from a public re-implementation).
PAPER_TEACHER = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
#: The paper's student: an XLM-R encoder of 6 layers.
PAPER_STUDENT = {
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "intermediate_size": 1024,
}
PAPER_VOCABULARY = 250_002
#: What a tokenizer's pieces are kept in, by kind.
TOKENIZER_FILES = (
    "tokenizer.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
)


def _auto(head: str) -> Any:
    if head not in HEADS:
        raise CometError(f"unknown head {head!r}: choose one of {', '.join(HEADS)}")
    return HEADS[head]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars and no warnings while weights are read or written.

    The mini teacher holds two heads in one file; transformers warns of the one not asked for.
    """
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def source_of(name: str | Path) -> tuple[str, str]:
    """``owner/name@revision`` as (``owner/name``, ``revision``); without one, the newest, ``main``.

    A revision is a commit, a tag or a branch of the hub. A commit alone stays what it is. A folder
    has none: it is its own source, whatever signs are in its name.
    """
    if user_path(name).is_dir():
        return str(user_path(name)), "main"
    source, _, revision = str(name).partition("@")
    return source, revision or "main"


def load_model(name: str | Path, head: str = "sentiment") -> PreTrainedModel:
    """An encoder by directory or hub id (``owner/name``, or ``owner/name@commit`` to pin it).

    In eval mode, as fp32; safetensors only, no remote code.

    Raises:
        CometError: nothing loadable under ``name``, or weights for the asked head are missing (an
            untrained head teaches noise).
    """
    auto = _auto(head)
    folder, (source, revision) = user_path(name), source_of(name)
    if folder.is_dir():
        check_folder(folder)
    elif folder.is_absolute() or source.count("/") != 1:
        raise CometError(f"{name}: no such folder, and not a hub id of the form owner/name")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
            check_attention(name, config)
            model, report = auto.from_pretrained(
                source,
                config=config,
                revision=revision,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except CometError:
        raise
    except Exception as error:
        raise CometError(
            f"no model could be loaded from {str(name)!r} "
            f"({type(error).__name__}: {first_line(error)}); give "
            "a folder with config.json and model.safetensors, or a hub id and a network"
        ) from error
    missing = [key for key in report["missing_keys"] if "pooler" not in key]
    if missing:
        raise CometError(
            f"{str(name)!r} has no weights for the {head} head ({missing[0]} and "
            f"{len(missing) - 1} more): an untrained head teaches noise; give a checkpoint "
            "trained with that head"
        )
    return model.eval()


def model_origin(name: str | Path) -> str:
    """What a report calls a model that was loaded: the folder's own name, or ``owner/name@commit``.

    The commit is the one that the hub's cache holds under the name, so the same words read the
    same files again.
    """
    if user_path(name).is_dir():
        return user_path(name).resolve().name
    source, revision = source_of(name)
    config = try_to_load_from_cache(source, "config.json", revision=revision)
    return f"{source}@{Path(config).parent.name if isinstance(config, str) else revision}"


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer by directory or hub id, with or without ``@commit``.

    Raises:
        CometError: nothing loadable under ``name``. A folder must hold the pieces themselves:
            without them transformers makes an empty tokenizer, and every word would be unknown.
    """
    folder, (source, revision) = user_path(name), source_of(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise CometError(
            f"{folder}: has no {TOKENIZER_FILES[0]} or the like; save its tokenizer beside it"
        )
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except BaseException as error:
        if not is_fault(error):
            raise
        raise CometError(
            f"no tokenizer could be loaded from {str(name)!r} ({type(error).__name__}); give a "
            "folder with tokenizer.json, or a hub id and a network"
        ) from error


def xlmr_config(
    sizes: Mapping[str, Any], vocab_size: int, max_length: int = 512, **more: Any
) -> XLMRobertaConfig:
    """An XLM-R config with our three labels. ``sizes`` as in :data:`PAPER_STUDENT`.

    XLM-R numbers positions from ``pad_token_id + 1``, hence two more positions than tokens.
    """
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise CometError(
            f"hidden_size {sizes['hidden_size']} is not a multiple of num_attention_heads "
            f"{sizes['num_attention_heads']}: choose sizes that divide"
        )
    return XLMRobertaConfig(
        vocab_size=vocab_size,
        max_position_embeddings=max_length + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
        **{**sizes, **more},
    )


def build_student(config: XLMRobertaConfig, head: str = "sentiment") -> PreTrainedModel:
    """A student with random weights. Set the seed before (``transformers.set_seed``)."""
    return _auto(head).from_config(config)


def on_meta(config: XLMRobertaConfig, head: str = "encoder") -> PreTrainedModel:
    """The model without memory for its weights: shapes only, to count at any size."""
    with torch.device("meta"):
        return build_student(config, head)


def paper_model(which: str, head: str = "encoder") -> PreTrainedModel:
    """The paper's ``teacher`` or ``student`` on the meta device."""
    sizes = {"teacher": PAPER_TEACHER, "student": PAPER_STUDENT}[which]
    return on_meta(xlmr_config(sizes, PAPER_VOCABULARY), head)


def same_body(target: PreTrainedModel, source: PreTrainedModel) -> PreTrainedModel:
    """Copy the encoder of ``source`` (any head) into ``target`` of the same config; keeps heads."""
    body = {k: v for k, v in source.base_model.state_dict().items() if not k.startswith("pooler.")}
    missing, unexpected = target.base_model.load_state_dict(body, strict=False)
    if unexpected or [key for key in missing if not key.startswith("pooler.")]:
        raise CometError("the two models have different bodies: build both from one config")
    return target


def _component(name: str) -> str:
    for part, component in (
        ("word_embeddings", "word embeddings"),
        ("embeddings", "other embeddings"),
        (".attention.", "attention"),
        ("encoder.layer", "feed-forward"),
        ("pooler", "pooler"),
        ("lm_head", "masked-LM head"),
        ("classifier", "classification head"),
    ):
        if part in name:
            return component
    return "other"


def count_parameters(model: nn.Module) -> int:
    """Number of weights; tied weights (masked-LM decoder) count once."""
    return sum(p.numel() for p in model.parameters())


def parameter_table(model: nn.Module) -> pd.DataFrame:
    """Exact counts by component: columns component, parameters, share (percent), mib (fp32)."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        component = _component(name)
        counts[component] = counts.get(component, 0) + parameter.numel()
    total = sum(counts.values())
    rows = [*counts.items(), ("total", total)]
    return pd.DataFrame(
        {
            "component": [name for name, _ in rows],
            "parameters": [n for _, n in rows],
            "share": [round(100 * n / total, 1) for _, n in rows],
            "mib": [round(n * 4 / 2**20, 1) for _, n in rows],
        }
    )


def label_order(model: PreTrainedModel) -> list[int]:
    """Columns of the model's logits in LABELS order, by its own ``id2label`` names.

    Raises:
        CometError: the model's labels are not negative, neutral and positive.
    """
    names = {str(v).strip().lower(): int(k) for k, v in (model.config.id2label or {}).items()}
    if set(names) != set(LABELS) or sorted(names.values()) != list(range(len(LABELS))):
        raise CometError(
            f"the model's labels are {str(names)[:200]}, not {', '.join(LABELS)} from 0 to 2: "
            "set id2label in its config.json to the names its head was trained with"
        )
    return [names[label] for label in LABELS]


def checked_config(name: str | Path) -> Any:
    """The config alone, without weights."""
    try:
        source, revision = source_of(name)
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise CometError(f"{str(name)!r}: has no readable config.json") from error


@contextlib.contextmanager
def only_positions(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Inside, a masked-LM model gives logits at ``positions`` (B, L) bool alone: (M, V).

    The hidden states are gathered before the head, so the full (B, L, V) logits, 2 GB at batch 16
    x 128 with XLM-R's vocabulary, are never made.
    """
    core = getattr(model, "module", model)
    head = getattr(core, "lm_head", None)
    if head is None:
        head = getattr(core, "cls", None)
    if not isinstance(head, nn.Module):
        raise CometError(f"{type(core).__name__} has no masked-LM head under lm_head or cls")
    handle = head.register_forward_pre_hook(lambda _, args: (args[0][positions], *args[1:]))
    try:
        yield
    finally:
        handle.remove()
