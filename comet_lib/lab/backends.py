"""A sentiment model in the forms that can be shipped, and what an answer in each costs.

- fp32: as ``transformers`` loads it;
- bf16: the same with weights of two bytes (a CPU without bf16 instructions emulates them);
- ONNX and ONNX int8: the graphs of :mod:`comet_lib.ship.onnx`, in onnxruntime;
- compiled: ``torch.compile``, which needs a C++ compiler and up to a minute a model.

All run with as many threads as torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from comet_lib.lab.timing import side_by_side
from comet_lib.ship.onnx import INPUTS, session, write_int8, write_onnx

#: (input_ids, attention_mask), int64 (B, L) both -> logits (B, 3), on the CPU
Answer = Callable[[Tensor, Tensor], object]


def torch_form(model: Any, ids: Tensor, mask: Tensor) -> object:
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask).logits.float().cpu()


def onnx_form(running: Any, ids: Tensor, mask: Tensor) -> object:
    (logits,) = running.run(["logits"], dict(zip(INPUTS, (ids.numpy(), mask.numpy()), strict=True)))
    return logits


def build_forms(
    model: PreTrainedModel, folder: Path, wanted: Sequence[str]
) -> tuple[dict[str, Answer], dict[str, str]]:
    """The ``wanted`` forms of ``model``, and for each that cannot be built here the reason."""
    built: dict[str, Answer] = {}
    missing: dict[str, str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    graphs = {"ONNX": folder / "fp32.onnx", "ONNX int8": folder / "int8.onnx"}

    def build(form: str) -> Answer:
        if form == "bf16":
            half: Any = copy.deepcopy(model)
            return partial(torch_form, half.to(torch.bfloat16))
        if form == "compiled":
            made = partial(torch_form, torch.compile(model, dynamic=True))
            for batch in (2, 1):  # compiles now, one row apart from many, or says why it cannot
                ids = torch.full((batch, 8), 5, device=model.device)
                made(ids, torch.ones_like(ids))
            return made
        if form in graphs:
            if not graphs["ONNX"].is_file():
                write_onnx(model, graphs["ONNX"])
            if form == "ONNX int8":
                write_int8(graphs["ONNX"], graphs[form])
            return partial(onnx_form, session(graphs[form]))
        return partial(torch_form, model)

    for form in wanted:
        try:
            if form in graphs and model.device.type != "cpu":
                raise NotImplementedError("onnxruntime is timed on the CPU alone")
            built[form] = build(form)
        except Exception as error:  # a compiler, a package, an operator: this form is left out
            lines = str(error).strip().splitlines() or [""]
            missing[form] = f"{type(error).__name__}: {lines[0][:150]}"
    return built, missing


def measure_answers(
    models: Mapping[str, PreTrainedModel],
    wanted: Mapping[str, Sequence[str]],
    shapes: Sequence[tuple[int, int]],
    folder: Path,
    repeats: int,
    patience: float,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of (model, form, batch, length) with the figures of ``side_by_side``; all that was left
    out, a line each.

    The forms of all models take turns on one of ``shapes`` (batch, length) after the other. A form
    other than fp32 is left out where a call is expected to take longer than ``patience`` seconds.
    """
    answers: dict[tuple[str, str], Answer] = {}
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for name, model in models.items():
        built, missing = build_forms(model, folder / name.replace(" ", "-"), wanted[name])
        answers |= {(name, form): answer for form, answer in built.items()}
        left_out += [f"{name}, {form}: {why}" for form, why in missing.items()]
    a_token: dict[tuple[str, str], float] = {}
    for batch, length in shapes:
        runs: dict[tuple[str, str], Callable[[], object]] = {}
        for key, answer in answers.items():
            expected = a_token.get(key, 0.0) * batch * length
            if key[1] != "fp32" and expected > patience:
                left_out.append(
                    f"{key[0]}, {key[1]} at {batch} x {length}: about {expected:.0f} s a call"
                )
                continue
            model = models[key[0]]
            ids = torch.randint(4, model.config.vocab_size, (batch, length), device=model.device)
            runs[key] = partial(answer, ids, torch.ones_like(ids))
        for key, row in side_by_side(runs, repeats, patience, block=5).items():
            a_token[key] = row["seconds"] / (batch * length)
            name, form = key
            rows.append({"model": name, "form": form, "batch": batch, "length": length, **row})
    return rows, left_out
