"""The one door for models: load a model and its tokenizer, or say why not.

A model folder is untrusted input: cut off, mixed up, or meant to mislead. Each check raises one
sentence that names the file and the fix. A pair from :func:`load_pair` is sound, so the code
behind this door checks nothing again.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from comet_lib.errors import CometError, pick
from comet_lib.files import read_json
from comet_lib.models import HEADS, first_position, quiet
from comet_lib.profiles import LABELS, user_path

#: Where each kind of tokenizer keeps its pieces.
TOKENIZER_FILES = ["tokenizer.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model"]
TOKENIZER_FILES += ["vocab.txt", "vocab.json"]
#: Short names of labels that hub models use.
SHORT = {"neg": "negative", "neu": "neutral", "pos": "positive"}
#: What an error of transformers means, by words in it: the cause, and the fix.
CAUSES = {
    "gated repo": "its owner grants access to each user; ask for it on its page on the hub, "
    "then sign in with hf auth login",
    "not a valid git identifier": "it has no such revision; give a commit or branch after the @",
    "not a valid model identifier": "the hub has no such model, or it is private; check the name, "
    "or sign in with hf auth login",
    "couldn't connect|connection error": "the hub cannot be reached, and its cache here lacks the "
    "files; connect to the network (HF_HUB_OFFLINE unset), or give a folder",
    "custom code": "it needs code from the hub, which is not run; give a model of a kind that "
    "transformers has",
    "not recognize this architecture": "this version of transformers has no such kind of model; "
    "give another model, or install a newer version",
    r"named (pytorch_model\.bin|model\.safetensors)": "it has no model.safetensors, and weights in "
    "other files, such as pytorch_model.bin, may hold code and are not read; give one that "
    "save_pretrained wrote",
}
#: A long text in several scripts, decomposed and with symbols: it reaches what short ones do not.
PROBE = "Habari ẹ̀kọ́ \u1e62\u0323e\u0301 ሰላም سلام ﬁ ① 𝒳 100 % 👍🏾 " * 8


def _find(name: str | Path) -> tuple[Path | None, str, str]:
    """Where a model lies: its folder or None, and a source and revision for ``from_pretrained``.

    ``name`` is a folder or a hub id, ``owner/name`` or ``owner/name@revision``. A revision is a
    commit, a tag, or a branch (``main``, the newest, by default); only a commit never changes.
    """
    folder = user_path(name)
    if folder.is_dir():  # whatever characters its name contains
        return folder, str(folder), "main"
    source, _, revision = str(name).partition("@")
    if folder.is_absolute() or source.count("/") != 1:
        raise CometError(f"{name}: no such folder, and not a hub id of the form owner/name")
    return None, source, revision or "main"


def model_origin(name: str | Path) -> str:
    """What a report calls a loaded model: the folder's own name, or ``owner/name@commit``.

    The commit is the one in the hub's cache, so the same words read the same files again.
    """
    folder, source, revision = _find(name)
    if folder:
        return folder.resolve().name
    config = try_to_load_from_cache(source, "config.json", revision=revision)
    return f"{source}@{Path(config).parent.name if isinstance(config, str) else revision}"


def load_pair(
    name: str | Path, head: str = "sentiment", labels: Sequence[str] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer, checked together: what comes out answers with numbers.

    ``labels`` as in :func:`name_labels`. Errors as in :func:`load_model`, :func:`load_tokenizer`,
    and :func:`check_pair`.
    """
    model, tokenizer = load_model(name, head, labels), load_tokenizer(name)
    check_pair(model, tokenizer)
    return model, tokenizer


def load_model(
    name: str | Path, head: str = "sentiment", labels: Sequence[str] | None = None
) -> PreTrainedModel:
    """A model by folder or hub id (``owner/name``, or ``owner/name@commit`` to pin it).

    In eval mode, as fp32; safetensors only, no remote code. Raises :class:`CometError` if nothing
    can be loaded, the head has no weights (an untrained head teaches noise), or a sentiment head
    lacks our labels, which ``labels`` can name (:func:`name_labels`).
    """
    auto = pick("head", head, HEADS)
    if folder := _find(name)[0]:
        check_folder(folder)
    more = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    model, report = _read("model", auto, name, config=checked_config(name), **more)
    missing = [key for key in report["missing_keys"] if "pooler" not in key]
    if missing:
        raise CometError(
            f"{str(name)!r} has no weights for the {head} head ({len(missing)} missing, such as "
            f"{missing[0]}): an untrained head teaches noise; give a checkpoint trained with it"
        )
    if head == "sentiment":
        name_labels(model, labels)
    return model.eval()


def checked_config(name: str | Path) -> Any:
    """The config without weights.

    Raises :class:`CometError` if there is none to read, or if it asks for attention code from the
    hub, which transformers would run.
    """
    config = _read("model", AutoConfig, name)
    kind = getattr(config, "_attn_implementation", None)
    if kind not in (None, "eager", "sdpa"):
        raise CometError(
            f"{name}: its config asks for the attention {str(kind)[:60]!r}, which may be code "
            "from the hub and is not run; remove _attn_implementation from its config.json"
        )
    return config


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer by folder or hub id, as in :func:`load_model`.

    A folder must hold the pieces themselves: without them transformers builds an empty tokenizer,
    and every word is unknown. Raises :class:`CometError` otherwise.
    """
    folder = _find(name)[0]
    if folder and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise CometError(
            f"{folder}: has no {TOKENIZER_FILES[0]} or other pieces; save its tokenizer there"
        )
    try:
        return _read("tokenizer", AutoTokenizer, name)
    except CometError as error:
        there = [file for file in TOKENIZER_FILES if _holds(name, file)]
        if not there or not there[0].endswith(".model"):
            raise
        backends = {"sentencepiece": is_sentencepiece_available, "protobuf": is_protobuf_available}
        missing = " ".join(package for package, here in backends.items() if not here())
        fix = f"to read it, pip install {missing}" if missing else "copy it again"
        raise CometError(
            f"{name}: its pieces are only in {there[0]}, a sentencepiece file; {fix}, or give a "
            "tokenizer saved with tokenizer.json"
        ) from error.__cause__


def _holds(name: str | Path, file: str) -> bool:
    """Whether a model's folder, or the hub's cache of it, has ``file``."""
    folder, source, revision = _find(name)
    if folder:
        return (folder / file).is_file()
    return isinstance(try_to_load_from_cache(source, file, revision=revision), str)


def _read(what: str, auto: Any, name: str | Path, **more: Any) -> Any:
    """``auto.from_pretrained``, without remote code; any error becomes one sentence."""
    _, source, revision = _find(name)
    files = "tokenizer.json" if what == "tokenizer" else "config.json and model.safetensors"
    begin = f"no {what} could be loaded from {str(name)!r}"
    fix = f"give a folder with {files}, or a hub id and a network"
    with quiet(), _blame(begin, fix):
        return auto.from_pretrained(source, revision=revision, trust_remote_code=False, **more)


def label_name(name: Any) -> str:
    """A label as LABELS spell it: ``NEG`` is ``negative``. Other names only lose their case."""
    folded = str(name).strip().casefold()
    return SHORT.get(folded, folded)


def _order(model: Any) -> list[int] | None:
    names = {label_name(v): int(k) for k, v in (model.config.id2label or {}).items()}
    if set(names) != set(LABELS) or sorted(names.values()) != list(range(len(LABELS))):
        return None
    return [names[label] for label in LABELS]


def label_order(model: Any) -> list[int]:
    """Columns of the model's logits in LABELS order, by its own ``id2label`` names.

    Raises :class:`CometError` if these are not negative, neutral, and positive, from 0 to 2, or
    the short forms of these words.
    """
    if (order := _order(model)) is None:
        names, ours = model.config.id2label or {}, ",".join(LABELS)
        fix = f"give a sentiment model with the labels {ours}"
        if len(names) == len(LABELS):
            fix = (
                f"say what its columns mean, in their order, as in --labels {ours} (in Python "
                "labels=), or set id2label in its config.json to the names it was trained with"
            )
        raise CometError(
            f"the model's labels are {str(names)[:200]}, not {', '.join(LABELS)} from 0 to 2: {fix}"
        )
    return order


def name_labels(model: Any, labels: Sequence[str] | None) -> None:
    """Name the columns of a sentiment head: ``labels`` are LABELS in the order of its columns.

    None keeps the model's own names. Raises :class:`CometError` as :func:`label_order` does, or if
    the model's own names say another order.
    """
    if labels is not None and len(model.config.id2label or {}) == len(labels):
        own = _order(model)
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: column for column, label in enumerate(labels)}
        if own not in (None, _order(model)):
            raise CometError(
                f"{_called(model)} names its own labels, in another order than "
                f"{','.join(labels)}; leave out --labels"
            )
    label_order(model)


def longest_text(model: Any) -> int | None:
    """How many tokens a model takes by its config; None if that sets no limit."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return positions - first_position(model.config) if isinstance(positions, int) else None


def save_tokenizer(
    tokenizer: PreTrainedTokenizerBase, model: Any, folder: Path, longest: int | None = None
) -> None:
    """Save a tokenizer beside its model, without the padding and length of the calls before.

    It cuts at ``longest`` tokens, if that is given, and never takes more than the model does.
    """
    own = copy.deepcopy(tokenizer)
    if (backend := getattr(own, "backend_tokenizer", None)) is not None:
        backend.no_truncation()
        backend.no_padding()
    limits = (own.model_max_length, longest_text(model), longest)
    limit = min(limit for limit in limits if limit is not None)
    own.model_max_length = own.init_kwargs["model_max_length"] = limit
    own.save_pretrained(folder)


def answer(
    model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> Tensor:
    """The model's output for ``texts``: logits, (B, 3) or (B, L, V), or the encoder's (B, L, D).

    A text is cut at ``max_length`` tokens, or at as many as the model takes.
    """
    batch = tokenizer(
        list(texts),
        padding=True,
        truncation=True,
        max_length=min(max_length, longest_text(model) or max_length),
        return_tensors="pt",
    ).to(model.device)
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def check_pair(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise unless tokenizer and model belong together, and answer one text with numbers."""
    rows = getattr(model.config, "vocab_size", None)
    pieces = max(tokenizer.get_vocab().values(), default=-1) + 1
    fault = "" if tokenizer.pad_token_id is not None else "the tokenizer has no padding piece"
    if rows is not None and pieces > rows:
        fault = f"the tokenizer has {pieces:,} pieces and the model {rows:,} rows of embeddings"
    if fault:
        raise CometError(f"{fault}; give the tokenizer that was saved with the model")
    with torch.inference_mode(), answering(model):
        # A copy, because a tokenizer keeps, and later saves, the padding and length of a call.
        check_numbers(model, answer(model, copy.deepcopy(tokenizer), [PROBE, "a"], max_length=32))


def check_numbers(model: Any, answers: Tensor | np.ndarray) -> None:
    """Raise if answers hold NaN: a damaged weight, and the first label would always win."""
    if torch.as_tensor(answers).isnan().any():
        raise CometError(
            f"{_called(model)} answers with NaN: it is damaged; copy or train it again"
        )


def check_folder(folder: Path) -> None:
    """Raise if a folder's config promises what its weights cannot hold, before anything is built.

    A config of a few bytes can ask for a billion layers or labels.
    """
    config, weights = folder / "config.json", folder / "model.safetensors"
    if not config.is_file():
        raise CometError(f"{folder}: has no config.json; give a folder that save_pretrained wrote")
    files = [weights] if weights.is_file() else [*folder.glob("*.safetensors")]  # or shards
    files = [path for path in files if path.is_file()]
    index = folder / "model.safetensors.index.json"
    if not files and not index.is_file():
        return  # a pickle, or nothing: refused where it is read
    parts = {} if weights.is_file() or not index.is_file() else read_json(index, "weight_map")
    named = parts.get("weight_map")
    wanted = {str(part) for part in named.values()} if isinstance(named, dict) else set()
    if lost := sorted(wanted - {path.name for path in files}):
        raise CometError(f"{folder}: lacks {lost[0][:80]}, which {index.name} names; copy it there")
    shapes: list[list[int]] = []
    for path in sorted(files):
        whole = _blame(f"{path}: not a whole safetensors file", "copy it again")
        with whole, safe_open(path, "pt") as file:
            shapes += [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    longest = max((size for shape in shapes for size in shape), default=1)
    for field, size in _sizes(read_json(config, "model_type")):
        most = len(shapes) if "layer" in field else longest
        if not isinstance(size, int) or not 0 < size <= most:
            raise CometError(
                f"{config}: {field} is {str(size)[:40]}, which the weights beside it cannot hold; "
                "give config and weights that were saved together"
            )


def _sizes(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Fields, at any depth, that set the number of layers, pieces, or labels.

    Each kind of model has its own name for its layers: ``n_layers``, ``num_decoder_layers``.
    """
    for field, value in config.items():
        if isinstance(value, Mapping):
            yield from _sizes(value)
        elif field in ("num_hidden_layers", "vocab_size") or (
            ("layer" in field or field == "num_labels") and type(value) is int and value > 0
        ):
            yield field, value


def answering(model: Any) -> contextlib.AbstractContextManager[None]:
    """Inside, a model that fails to answer is named; running out of memory is not its fault."""
    return _blame(
        f"{_called(model)}: the model does not answer",
        "give config, weights, and tokenizer that were saved together",
        memory=False,
    )


@contextlib.contextmanager
def _blame(begin: str, fix: str, memory: bool = True) -> Iterator[None]:
    """Inside, any error becomes one sentence: ``begin`` (the error); ``fix``. An error of
    :data:`CAUSES` becomes its cause and fix.

    ``memory`` says whether running out of it counts. A panic in Rust code is no ``Exception``,
    but an error all the same.
    """
    try:
        yield
    except BaseException as error:
        kind = type(error).__name__
        fault = isinstance(error, Exception) or kind == "PanicException"
        no_memory = isinstance(error, MemoryError) or "memory" in str(error)
        if isinstance(error, CometError) or not fault or (no_memory and not memory):
            raise
        for words, cause in CAUSES.items():
            if re.search(words, str(error)):
                raise CometError(f"{begin}: {cause}") from error
        line = (str(error).strip().split("\n")[0] or kind)[:200]
        raise CometError(f"{begin} ({kind}: {line}); {fix}") from error


def _called(model: Any) -> str:
    return getattr(model.config, "name_or_path", "") or type(model).__name__
