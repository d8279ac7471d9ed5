"""Build a model, count its parameters and FLOPs, start a student from its teacher.

Students are stock ``XLMRobertaFor...`` models: ``transformers`` loads what we save without us.
Shapes: B texts, L tokens, V pieces, D the teacher's width, d the student's.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, XLMRobertaConfig
from transformers.utils import logging

from comet_lib.errors import CometError, pick
from comet_lib.profiles import LABELS, PAPER_STUDENT, PAPER_TEACHER, PAPER_VOCABULARY, Profile

#: The ``AutoModel`` class for each head.
HEADS: dict[str, Any] = {
    "encoder": transformers.AutoModel,
    "masked-lm": transformers.AutoModelForMaskedLM,
    "sentiment": transformers.AutoModelForSequenceClassification,
}
#: Kinds of model that number a text's positions from ``pad_token_id + 1``, and not from 0.
FROM_PADDING = {"camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet"}
FROM_PADDING |= {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}  # per number


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings while weights are read or written.

    The mini teacher keeps two heads in one file; transformers warns about the unused one.
    """
    with contextlib.ExitStack() as undo:
        undo.callback(logging.set_verbosity, logging.get_verbosity())
        if logging.is_progress_bar_enabled():
            undo.callback(logging.enable_progress_bar)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield


def first_position(config: Any) -> int:
    """The number of a text's first position; a model takes that many tokens less than it has
    positions."""
    return (config.pad_token_id or 0) + 1 if config.model_type in FROM_PADDING else 0


def xlmr_config(
    sizes: Mapping[str, Any], vocab_size: int, max_length: int = 512, **more: Any
) -> XLMRobertaConfig:
    """An XLM-R config with our three labels. ``sizes`` as in ``profiles.PAPER_STUDENT``.

    ``more`` sets other fields, such as ``pad_token_id`` (1 by default): XLM-R numbers positions
    from ``pad_token_id + 1``, hence two more positions than tokens, or more under another number.
    Raises :class:`CometError` if the number of heads does not divide the width.
    """
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if width % heads:
        raise CometError(f"hidden_size {width} is not a multiple of num_attention_heads {heads}")
    return XLMRobertaConfig(
        vocab_size=vocab_size,
        max_position_embeddings=max_length + more.get("pad_token_id", 1) + 1,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
        **{**sizes, **more},
    )


def student_config(
    profile: Profile, teacher: PreTrainedModel, pad_token_id: int | None = None
) -> XLMRobertaConfig:
    """The profile's student over the teacher's vocabulary, with its numbers of special pieces.

    ``pad_token_id`` is the tokenizer's, for a teacher whose config names none, or another.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    own = {name: getattr(teacher.config, name, None) for name in names}
    if pad_token_id is not None:
        own["pad_token_id"] = pad_token_id
    length = max(profile.max_length, 128)
    return xlmr_config(profile.student, teacher.config.vocab_size, length, **own)


def build_student(config: XLMRobertaConfig, head: str = "sentiment") -> PreTrainedModel:
    """A student with random weights. Set the seed first (``transformers.set_seed``)."""
    return pick("head", head, HEADS).from_config(config)


def on_meta(config: XLMRobertaConfig, head: str = "encoder") -> PreTrainedModel:
    """The model without memory for its weights: shapes only, to count at any size."""
    with torch.device("meta"):
        return build_student(config, head)


def paper_model(which: str, head: str = "encoder") -> PreTrainedModel:
    """The paper's ``teacher`` or ``student`` on the meta device."""
    sizes = {"teacher": PAPER_TEACHER, "student": PAPER_STUDENT}[which]
    return on_meta(xlmr_config(sizes, PAPER_VOCABULARY), head)


@contextlib.contextmanager
def only_positions(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Inside, a masked-LM model returns logits (M, V) only at ``positions`` (B, L) bool.

    The hidden states are gathered before the head, so the full (B, L, V) logits (2 GB at batch
    16 x 128 with XLM-R's vocabulary) never exist.
    """
    core = getattr(model, "module", model)
    head = getattr(core, "lm_head", None) or getattr(core, "cls", None)
    if head is None and isinstance(core, PreTrainedModel):  # DistilBERT: its last layer does
        head = core.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise CometError(f"{type(core).__name__} has no masked-LM head; give a masked-LM model")
    with head.register_forward_pre_hook(lambda _, args: (args[0][positions], *args[1:])):
        yield


def count_parameters(model: nn.Module) -> int:
    """Number of weights; tied weights (masked-LM decoder) count once."""
    return sum(p.numel() for p in model.parameters())


def model_size(model: nn.Module) -> tuple[int, float]:
    """Parameters, and megabytes (10^6 bytes) as fp32."""
    count = count_parameters(model)
    return count, count * 4 / 1e6


#: What in a weight's name tells its component: the first that fits.
COMPONENTS = {
    "word_embeddings": "word embeddings",
    "embeddings": "other embeddings",
    ".attention.": "attention",
    "encoder.layer": "feed-forward",
    "pooler": "pooler",
    "lm_head": "masked-LM head",
    "classifier": "classification head",
    "": "other",
}


def parameter_table(model: nn.Module) -> pd.DataFrame:
    """Exact counts by component: columns component, parameters, share (percent), mib (fp32)."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[next(c for part, c in COMPONENTS.items() if part in name)] += parameter.numel()
    counts["total"] = total = counts.total()
    rows = [(c, n, round(100 * n / total, 1), round(mebibytes(n), 1)) for c, n in counts.items()]
    return pd.DataFrame(rows, columns=["component", "parameters", "share", "mib"])


def embedding_parameters(vocab_size: int, hidden: int, max_length: int) -> int:
    """Word, position, and token-type tables and their LayerNorm; two positions are never used."""
    return hidden * (vocab_size + (max_length + 2) + 1 + 2)


def layer_parameters(hidden: int, intermediate: int, heads: int = 1) -> int:
    """One encoder layer: Q, K, V, output, two feed-forward matrices, biases, two LayerNorms.

    ``heads`` changes nothing: the heads share the columns of Q, K, and V.
    """
    attention = 4 * (hidden * hidden + hidden)
    feed_forward = 2 * hidden * intermediate + intermediate + hidden
    return attention + feed_forward + 4 * hidden


def component_counts(
    sizes: Mapping[str, int], vocab_size: int, max_length: int = 512
) -> dict[str, int]:
    """Parameters by component, as :func:`parameter_table` counts them, without a model."""
    d, f, n = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"]
    attention = 4 * (d * d + d) + 2 * d
    return {
        "word embeddings": vocab_size * d,
        "other embeddings": embedding_parameters(0, d, max_length),
        "attention": n * attention,
        "feed-forward": n * (layer_parameters(d, f) - attention),
        "pooler": d * d + d,
    }


def encoder_parameters(
    vocab_size: int, hidden: int, layers: int, heads: int, intermediate: int, max_length: int
) -> int:
    """The whole ``XLMRobertaModel``: embeddings, layers, and pooler, no task head."""
    stack = layers * layer_parameters(hidden, intermediate, heads)
    return embedding_parameters(vocab_size, hidden, max_length) + stack + hidden * hidden + hidden


def flops_per_token(hidden: int, intermediate: int, layers: int, length: int) -> int:
    """Forward FLOPs of the layers' matrix products, for one token of a text of ``length``.

    A multiply and an add count as two. Included: Q, K, V, and output projections, scores Q K^T,
    weights times V, both feed-forward matrices. Not included: embeddings (a lookup), biases,
    softmax, LayerNorm, GELU, pooler, and task head.
    """
    return 2 * layers * (4 * hidden * hidden + 2 * length * hidden + 2 * hidden * intermediate)


def mebibytes(parameters: int, dtype: str = "fp32") -> float:
    """Size of the weights in MiB (2^20 bytes)."""
    return parameters * BYTES[dtype] / 2**20


def same_body(target: PreTrainedModel, source: PreTrainedModel) -> PreTrainedModel:
    """Copy the encoder of ``source`` (any head) into ``target`` of the same config; keep heads."""
    body = {k: v for k, v in source.base_model.state_dict().items() if not k.startswith("pooler.")}
    missing, unexpected = target.base_model.load_state_dict(body, strict=False)
    if unexpected or [key for key in missing if not key.startswith("pooler.")]:
        raise CometError("the two models have different bodies: build both from one config")
    return target


def reduce_width(table: Tensor, width: int) -> Tensor:
    """Rows (V, D) -> (V, d) that best preserve the inner products, in the least-squares sense.

        E = U S V^T,    E' = E V_d = U_d S_d                                             (1)

    E' E'^T is the rank-d matrix nearest to E E^T in the Frobenius norm (Eckart and Young 1936);
    the loss in E itself is the tail, sum over i > d of s_i^2. Columns come in order of falling
    variance, so the first ones are much larger than the last. Signs are fixed: the largest entry
    of each column of V is positive.
    """
    if table.ndim != 2 or not 1 <= width <= table.shape[1]:
        raise CometError(
            f"width is {width}, but the teacher's table is {tuple(table.shape)}: choose a student "
            "that is no wider than its teacher"
        )
    wide = table.detach().double()
    # V from E^T E (D, D): E itself may have a quarter of a million rows.
    _, vectors = torch.linalg.eigh(wide.T @ wide)
    vectors = vectors.flip(-1)[:, :width]
    largest = vectors.abs().argmax(0, keepdim=True)
    return (wide @ (vectors * vectors.gather(0, largest).sign())).to(table.dtype)


def initialize_embeddings(
    student: PreTrainedModel, teacher: PreTrainedModel, scale: float | None = None
) -> float:
    """Set the student's word embeddings to eq. (1) of the teacher's, times a factor; return it.

    The factor gives the whole table the root mean square ``scale``, by default the student's own
    ``initializer_range``, which its other weights were drawn with. One factor for the table
    changes no angle between pieces. The padding row is zero. In place; nothing else changes. Raises
    :class:`CometError` for another vocabulary, or a student wider than its teacher.
    """
    tables: list[Any] = [model.get_input_embeddings() for model in (student, teacher)]
    target, source = (table.weight for table in tables)
    if len(target) != len(source):
        raise CometError(
            f"the student has {len(target)} pieces and the teacher {len(source)}: give both one "
            "vocabulary"
        )
    reduced = reduce_width(source, target.shape[1])
    if (padding := student.config.pad_token_id) is not None:
        reduced[padding] = 0
    scale = student.config.initializer_range if scale is None else scale
    factor = scale / float(reduced.double().square().mean().sqrt())
    with torch.no_grad():
        target.copy_(factor * reduced)
    return factor
