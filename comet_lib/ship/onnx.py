"""Ship a sentiment model: an ONNX graph, optionally in int8, checked against the original.

The folder that :func:`export` writes has the layout of the hub's ONNX models, which Transformers.js
loads too: ``onnx/model.onnx``, with int8 also ``onnx/model_quantized.onnx``, ``config.json``, the
tokenizer, and ``export.json`` (what was checked, with figures). One file of this format takes up to
2 GiB, so larger models have their weights in ``model.onnx_data`` beside it. ``onnxruntime`` runs it
without torch; :func:`load_exported` returns an object that can replace the model.

int8 is dynamic quantization: weights, embeddings too, are stored as 8-bit integers with a scale,
and activations are quantized on the fly (no calibration text is needed).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from comet_lib.errors import CometError
from comet_lib.evaluation import mean_weighted_f1, predict_probabilities
from comet_lib.files import read_json, whole_folder, write_json
from comet_lib.loading import (
    check_pair,
    checked_config,
    label_order,
    load_pair,
    load_tokenizer,
    name_labels,
    save_tokenizer,
)
from comet_lib.models import count_parameters, model_size, quiet
from comet_lib.profiles import user_path

GRAPH, INT8 = "onnx/model.onnx", "onnx/model_quantized.onnx"
OLD = "model.onnx"  # where exports had their only graph before; still read
INPUTS = ("input_ids", "attention_mask")
TOLERANCE = 1e-4  # of probabilities: fp32 sums in another order differ by about 1e-7
LARGEST = 2_000_000_000  # bytes of weights in the graph's own file: protobuf takes 2^31 in all
#: Percent of texts to which int8 must give the model's label. The course's models reach 99 to 100;
#: one outlier in a table, whose scale it sets for all rows, leaves about half.
LEAST_EQUAL = 95


class Strays(CometError):
    """The exported graph answers otherwise than its model, which is not the user's mistake."""

    exit_code = 1


def _needs(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        install = 'pip install -c constraints.txt -e ".[export]"'
        raise CometError(f"{error.name} is not installed: {install}") from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporters report much that needs no action."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def write_onnx(model: PreTrainedModel, path: str | Path, attentions: bool = False) -> None:
    """``model`` as an ONNX graph: input_ids and attention_mask (B, L) int64 -> logits (B, C).

    With ``attentions``, the attention of each layer follows, (B, H, L, L) each, as outputs
    ``attentions.0``, ``attentions.1``, and so on. B and L are free. The exporter's traces are
    removed; they outweigh a small student's layers. Attention is written in its eager form: the
    fused one brings a guard against NaN, with which an answer on 128 tokens took 1.4 times as long.
    """
    _needs("onnxscript")
    example = torch.tensor([[0, 5, 5, 2], [0, 5, 2, 1]]), torch.tensor([[1] * 4, [1, 1, 1, 0]])
    was_training, attention = model.training, model.config._attn_implementation
    layers = range(model.config.num_hidden_layers if attentions else 0)
    model.set_attn_implementation("eager")
    model.config.output_attentions = attentions
    try:
        with _silence():
            program: Any = torch.onnx.export(
                model.eval(),
                kwargs=dict(zip(INPUTS, example, strict=True)),
                dynamo=True,
                verbose=False,
                input_names=list(INPUTS),
                output_names=["logits", *(f"attentions.{layer}" for layer in layers)],
                dynamic_shapes={name: {0: "batch", 1: "length"} for name in INPUTS},
            )
    finally:
        model.config.output_attentions = False
        model.set_attn_implementation(attention)
        model.train(was_training)
    written = program.model_proto
    graph = written.graph
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    del written.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    _save(written, Path(path))


def _save(graph: Any, path: Path) -> None:
    """Write a graph; what its own file cannot hold goes to a file beside it."""
    large = sum(len(weights.raw_data) for weights in graph.graph.initializer) > LARGEST
    beside = f"{path.name}_data"  # the name that Transformers.js looks for
    _needs("onnx").save(graph, str(path), save_as_external_data=large, location=beside)


def graph_bytes(path: Path) -> int:
    """Bytes of a graph of :func:`write_onnx` and of the weights beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def write_int8(source: str | Path, path: str | Path) -> None:
    """A graph of :func:`write_onnx` with weights and embeddings in 8 bits.

    Matrices have one scale per output column, embedding tables one per table.
    """
    onnx, quantization = _needs("onnx"), _needs("onnxruntime.quantization")
    kind, operations = quantization.QuantType.QInt8, ["MatMul", "Gemm", "Gather"]
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as folder, _silence():
        whole = Path(folder) / "int8.onnx"
        quantization.quantize_dynamic(
            source,
            whole,
            operations,
            per_channel=True,
            weight_type=kind,
            use_external_data_format=graph_bytes(Path(source)) > LARGEST,
        )
        _save(onnx.load(str(whole)), Path(path))


def session(path: Path) -> Any:
    """A graph of :func:`write_onnx` in onnxruntime, on the CPU, with as many threads as torch.

    Raises:
        CometError: the file is not a graph, or onnxruntime is not installed.
    """
    runtime = _needs("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CometError(
            f"{path}: onnxruntime cannot read it ({type(error).__name__}); export the model again"
        ) from error


class Exported(nn.Module):
    """Used like the original model: ``model(input_ids=..., attention_mask=...).logits``.

    ``config`` names the labels; ``size`` is the number of weights, and the graph's megabytes. Uses
    as many threads as torch does (``torch.set_num_threads``).
    """

    def __init__(self, folder: Path, graph: Path) -> None:
        super().__init__()
        self.session = session(graph)
        self.config = checked_config(folder)
        self.device = torch.device("cpu")
        count = read_json(folder / "export.json", "parameters")["parameters"]
        self.size = count, graph_bytes(graph) / 1e6
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        inputs = dict(zip(INPUTS, (input_ids.numpy(), attention_mask.numpy()), strict=True))
        (logits,) = self.session.run(["logits"], inputs)
        return SimpleNamespace(logits=torch.from_numpy(logits))


def graph_of(folder: str | Path) -> Path | None:
    """The graph of a folder of :func:`export` that is read: int8 where there is one."""
    folder = user_path(folder)
    # Folders from the hub have such graphs too, beside weights; ours have export.json.
    ours = (INT8, GRAPH) if (folder / "export.json").is_file() else ()
    return next((folder / name for name in (*ours, OLD) if (folder / name).is_file()), None)


def is_exported(name: str | Path) -> bool:
    """Whether ``name`` is a folder of :func:`export`."""
    return graph_of(name) is not None


def load_exported(folder: str | Path) -> Any:
    """The exported model in ``folder``, an :class:`Exported` that passes for the original.

    Raises:
        CometError: no exported model there, or onnxruntime is not installed.
    """
    if (graph := graph_of(folder)) is None:
        raise CometError(
            f"{folder}: has no {GRAPH} with its export.json; create them with python -m comet_lib "
            "export"
        )
    return Exported(user_path(folder), graph)


def load_classifier(
    name: str | Path, labels: Sequence[str] | None = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A sentiment model by folder or hub id, or an exported one by folder, with its tokenizer.

    ``labels`` as in :func:`comet_lib.loading.name_labels`.

    Raises:
        CometError: see :func:`comet_lib.loading.load_pair`.
    """
    if not is_exported(name):
        return load_pair(name, labels=labels)
    pair = load_exported(name), load_tokenizer(name)
    name_labels(pair[0], labels)
    check_pair(*pair)
    return pair


def classifier_size(model: Any) -> tuple[int, float]:
    """Number of weights, and megabytes (10^6 bytes): of the graph, or of the weights as fp32."""
    if isinstance(model, Exported):
        return model.size
    return model_size(model)


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    texts: Sequence[str],
    labels: Sequence[int],
    languages: Sequence[str],
    *,
    int8: bool = False,
    attentions: bool = False,
    force: bool = False,
    max_length: int = 64,
    card: str = "",
) -> dict[str, Any]:
    """Write ``folder`` whole or not at all, checked on labeled ``texts``; returns the report.

    ``int8`` adds the int8 graph, which is the one that is read from then on, and ``attentions`` the
    outputs of :func:`write_onnx`. ``force`` writes an int8 copy however many labels differ.
    ``max_length`` is the length that the model was trained at; the tokenizer written cuts there.
    ``card`` is the model's README.md, if it has one.

    The report, also in ``export.json``, has the ``form``, its ``parameters`` and ``bytes``, and how
    far it strays: the ``max_difference`` of a probability, ``argmax_equal`` (percent of texts), and
    mean ``weighted_f1`` of both (percent).

    Raises:
        Strays: the fp32 graph is off by over :data:`TOLERANCE` in a probability, or in a label; the
            int8 graph gives the same label to less than :data:`LEAST_EQUAL` percent of the texts.
    """
    label_order(model)  # refuses a head without our labels
    with whole_folder(folder) as new:
        (new / GRAPH).parent.mkdir()
        write_onnx(model, new / GRAPH, attentions)
        if int8:
            write_int8(new / GRAPH, new / INT8)
        with quiet():
            model.config.save_pretrained(new)
            save_tokenizer(tokenizer, model, new, max_length)
        pieces = new / "tokenizer.json"  # indented, it takes twice the bytes
        compact = json.dumps(read_json(pieces), ensure_ascii=False, separators=(",", ":"))
        pieces.write_text(compact, "utf-8")
        report: dict[str, Any] = {
            "form": "int8" if int8 else "fp32",
            "parameters": count_parameters(model),
            "bytes": graph_bytes(new / (INT8 if int8 else GRAPH)),
        }
        write_json(new / "export.json", report)
        forms = [model, Exported(new, new / GRAPH), *([load_exported(new)] if int8 else [])]
        ours, exact, *rest = (predict_probabilities(m, tokenizer, texts, max_length) for m in forms)
        strays = float(np.abs(ours - exact).max())
        if strays > TOLERANCE or (ours.argmax(1) != exact.argmax(1)).any():
            raise Strays(
                f"{folder}: not written, the graph strays by {strays:.2g} in a probability; try "
                "the versions of torch and onnxruntime in constraints.txt"
            )
        theirs, where = rest[0] if rest else exact, np.asarray(languages)
        f1 = [mean_weighted_f1(np.asarray(labels), p.argmax(1), where) for p in (ours, theirs)]
        report |= {
            "texts": len(texts),
            "max_difference": float(np.abs(ours - theirs).max()),
            "argmax_equal": 100 * float((ours.argmax(1) == theirs.argmax(1)).mean()),
            "weighted_f1": {"original": f1[0]["mean"], "exported": f1[1]["mean"]},
        }
        if int8 and not force and report["argmax_equal"] < LEAST_EQUAL:
            raise Strays(
                f"{folder}: not written, in int8 only {report['argmax_equal']:.1f} % of the texts "
                f"keep their label (mean weighted F1 {f1[1]['mean']:.1f}, was {f1[0]['mean']:.1f})"
                f", and under {LEAST_EQUAL} % it is another model; leave out --int8 for an exact "
                "copy, or take this one with --force"
            )
        write_json(new / "export.json", report)
        (new / "README.md").write_text(f"{card.rstrip()}\n{note(report)}".lstrip(), "utf-8")
    return report


def note(report: dict[str, Any]) -> str:
    """The part of the model card on the exported form."""
    f1, int8 = report["weighted_f1"], report["form"] == "int8"
    graph, dtype = (INT8, "q8") if int8 else (GRAPH, "fp32")
    return f"""
## This copy

An ONNX graph (`{graph}`, {report["form"]}, {report["bytes"] / 1e6:.2f} MB) by
`python -m comet_lib export`.
On {report["texts"]:,} dev texts it gives the same label as the original model for
{report["argmax_equal"]:.2f} %, and mean weighted F1 {f1["exported"]:.2f} (original:
{f1["original"]:.2f}). `onnxruntime.InferenceSession("{graph}")` takes `input_ids` and
`attention_mask` (int64, texts by pieces) from the tokenizer in this folder, and returns `logits`
(columns as in `config.json`). Transformers.js loads this folder as it is:
`pipeline("text-classification", FOLDER, {{ dtype: "{dtype}" }})`.
"""
