"""What an answer of a sentiment model costs in each form that can be shipped.

- fp32: as ``transformers`` loads it;
- bf16: the same with weights of two bytes (a CPU without bf16 instructions emulates them);
- ONNX and ONNX int8: the graphs of :mod:`comet_lib.ship.onnx`, in onnxruntime;
- compiled: ``torch.compile``, which needs a C++ compiler and up to a minute per model.

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


def _torch_answer(model: Any, ids: Tensor, mask: Tensor) -> object:
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask).logits.float().cpu()


def _onnx_answer(running: Any, ids: Tensor, mask: Tensor) -> object:
    (logits,) = running.run(["logits"], dict(zip(INPUTS, (ids.numpy(), mask.numpy()), strict=True)))
    return logits


def build_form(model: PreTrainedModel, form: str, folder: Path) -> Answer:
    """``model`` in one of the forms above; graphs are written to ``folder``."""
    if form == "bf16":
        half: Any = copy.deepcopy(model)
        return partial(_torch_answer, half.to(torch.bfloat16))
    if form == "compiled":
        answer = partial(_torch_answer, torch.compile(model, dynamic=True))
        for batch in (2, 1):  # compile now, one row and many apart, or fail here
            ids = torch.full((batch, 8), 5, device=model.device)
            answer(ids, torch.ones_like(ids))
        return answer
    if form == "fp32":
        return partial(_torch_answer, model)
    if model.device.type != "cpu":
        raise NotImplementedError("onnxruntime is timed only on the CPU")
    folder.mkdir(parents=True, exist_ok=True)
    graphs = {"ONNX": folder / "fp32.onnx", "ONNX int8": folder / "int8.onnx"}
    if not graphs["ONNX"].is_file():
        write_onnx(model, graphs["ONNX"])
    if form == "ONNX int8":
        write_int8(graphs["ONNX"], graphs[form])
    return partial(_onnx_answer, session(graphs[form]))


def measure_answers(
    models: Mapping[str, PreTrainedModel],
    wanted: Mapping[str, Sequence[str]],
    shapes: Sequence[tuple[int, int]],
    folder: Path,
    repeats: int,
    patience: float,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of (model, form, batch, length) with the figures of ``side_by_side``, and a line for
    each thing that was left out, with the reason.

    For each of ``shapes`` (batch, length), the ``wanted`` forms of all models take turns. A form
    other than fp32 is left out where a call is expected to take longer than ``patience`` seconds.
    """
    answers: dict[tuple[str, str], Answer] = {}
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for name, model in models.items():
        for form in wanted[name]:
            try:
                answers[name, form] = build_form(model, form, folder / name.replace(" ", "-"))
            except Exception as error:  # no compiler, no package, an unknown operator
                lines = str(error).strip().splitlines() or [""]
                left_out.append(f"{name}, {form}: {type(error).__name__}: {lines[0][:150]}")
    per_token: dict[tuple[str, str], float] = {}
    for batch, length in shapes:
        runs: dict[tuple[str, str], Callable[[], object]] = {}
        for (name, form), answer in answers.items():
            expected = per_token.get((name, form), 0.0) * batch * length
            if form != "fp32" and expected > patience:
                left_out.append(
                    f"{name}, {form} at {batch} x {length}: about {expected:.0f} s a call"
                )
                continue
            model = models[name]
            ids = torch.randint(4, model.config.vocab_size, (batch, length), device=model.device)
            runs[name, form] = partial(answer, ids, torch.ones_like(ids))
        for (name, form), row in side_by_side(runs, repeats, patience, block=5).items():
            per_token[name, form] = row["seconds"] / (batch * length)
            rows.append({"model": name, "form": form, "batch": batch, "length": length, **row})
    return rows, left_out
