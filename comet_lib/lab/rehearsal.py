"""A few steps of the whole run at full size: what each costs, and what the paper's run needs.

The parts are those of the real run (``distil_task_agnostic``, ``fine_tune``), with random weights
and random text, so nothing is downloaded. A part's cost, times the number of its steps in a
profile, is the prediction; texts of other lengths take other times. For a T4, which may not be at
hand, the arithmetic of a step is counted and divided by what the card can do.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, TrainerCallback, set_seed

from comet_lib.data import LABELS
from comet_lib.files import write_json, write_text
from comet_lib.lab.benchmark import PAPER, Sizes, number_texts, number_tokenizer, random_model
from comet_lib.lab.timing import Memory, machine
from comet_lib.models import count_parameters, quiet, same_body
from comet_lib.profiles import Profile, Stage
from comet_lib.report import markdown_table
from comet_lib.teacher import BATCH, Questions, predicted_bytes
from comet_lib.training import distil_task_agnostic, fine_tune, steps_per_epoch

STEPS = 3  # measured, after one to warm up
#: Tweets in AfriSenti's train split, in the paper's five languages.
TWEETS = 37_998
#: Operations per second of NVIDIA's T4 in fp16 (its data sheet), and the share training reaches.
T4, T4_SHARE = 65e12, 0.3


class StepTimes(TrainerCallback):
    """What a short training costs: the memory, the time before its first step, and each step.

    ``operations`` are the additions and multiplications in the matrix products of the first step,
    forward and back.
    """

    def __init__(self) -> None:
        self.created = time.perf_counter()
        self.waited = self.peak_mb = 0.0
        self.seconds: list[float] = []
        self.operations = 0
        self._counter = FlopCounterMode(display=False)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()
        if not self.waited:
            self.waited = self._start - self.created
            self._counter.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.seconds:
            self._counter.__exit__(None, None, None)
            self.operations = self._counter.get_total_flops()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._start)

    def step(self) -> dict[str, Any]:
        """One step; its seconds are the median without the first, which also warms up."""
        return {
            "seconds": statistics.median_high(self.seconds[1:]),
            "unit": "step",
            "peak_mb": self.peak_mb,
            "operations": self.operations,
        }


def measured(train: Callable[..., object], *args: Any, **more: Any) -> StepTimes:
    """The costs of one of the library's trainings, which saves nothing and stays silent."""
    memory = Memory()
    memory.start()
    times = StepTimes()
    train(*args, callbacks=[times], save_strategy="no", disable_tqdm=True, **more)
    times.peak_mb = memory.peak()
    return times


def rehearse(profile: Profile, sizes: Sizes = PAPER) -> dict[str, Any]:
    """Measure every part of ``profile``'s run at ``sizes``.

    Rows have ``sizes.length`` tokens. Returns ``parts`` (name -> seconds of one unit, unit,
    peak_mb, operations), ``hours`` (part -> hours of the whole run), ``t4_hours`` (a lower bound
    for a T4, estimated), ``machine`` and what they come from.
    """
    set_seed(profile.seed)
    stage1, stage2 = (
        replace(stage, max_steps=STEPS + 1, epochs=1) for stage in (profile.stage1, profile.stage2)
    )
    few = profile.with_(stage1=stage1, stage2=stage2, max_length=sizes.length)
    with tempfile.TemporaryDirectory() as work, quiet():
        student, counts, parts = _stage_one(few, sizes, Path(work))
        parts["stage 2"] = _stage_two(few, sizes, student, Path(work)).step()
    return {
        "machine": machine(),
        "profile": profile.name,
        "parameters": counts,
        "tokens_a_row": sizes.length,
        "parts": parts,
        **prediction(profile, sizes, parts),
    }


def _stage_one(
    few: Profile, sizes: Sizes, work: Path
) -> tuple[PreTrainedModel, dict[str, int], dict[str, Any]]:
    """The student, both models' parameters, and the costs: with a cache, then without."""
    teacher, student = (
        random_model(shape, sizes.vocabulary, sizes.length, "masked-lm")
        for shape in (sizes.teacher, sizes.student)
    )
    batch = few.stage1.batch_size * few.stage1.gradient_accumulation
    rows = max(BATCH, batch * (STEPS + 1) + 16)
    texts = number_texts(rows, sizes.length, sizes.vocabulary)
    run = (student, teacher, number_tokenizer(sizes.vocabulary), texts, few)
    cached, in_loop = (
        measured(distil_task_agnostic, *run, work / name, cache=cache, eval_strategy="no")
        for name, cache in (("cached", work / "cache"), ("in loop", None))
    )
    asking = {
        "seconds": cached.waited / rows,
        "unit": "row",
        "peak_mb": cached.peak_mb,
        "operations": (in_loop.operations - cached.operations) // batch,
    }
    counts = {"teacher": count_parameters(teacher), "student": count_parameters(student)}
    return (
        student,
        counts,
        {
            "asking the teacher": asking,
            "stage 1, from the cache": cached.step(),
            "stage 1, teacher in the loop": in_loop.step(),
        },
    )


def _stage_two(few: Profile, sizes: Sizes, agnostic: PreTrainedModel, work: Path) -> StepTimes:
    student = random_model(sizes.student, sizes.vocabulary, sizes.length, "sentiment")
    same_body(student, agnostic)
    count = few.stage2.batch_size * (STEPS + 1)
    tweets = Dataset.from_dict(
        {
            "text": number_texts(count, sizes.length, sizes.vocabulary),
            "label": [i % len(LABELS) for i in range(count)],
            "language": ["kin"] * count,
            "teacher_probs": [[0.2, 0.3, 0.5]] * count,
        }
    )
    data = (number_tokenizer(sizes.vocabulary), tweets, tweets.select(range(3)), few)
    return measured(fine_tune, student, *data, work / "stage2", load_best_model_at_end=False)


def _steps(rows: int, stage: Stage) -> int:
    """Optimiser steps of a whole stage; ``max_steps`` replaces its epochs."""
    if stage.max_steps > 0:
        return stage.max_steps
    return math.ceil(stage.epochs * steps_per_epoch(rows, stage))


def prediction(
    profile: Profile, sizes: Sizes, parts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Units in the whole run, their hours, and the cache's gigabytes (10^9 bytes)."""
    lines = sum(
        profile.text_limit.get(code, profile.default_text_limit or 0) for code in profile.languages
    )
    tweets = TWEETS
    if profile.train_limit is not None:
        tweets = min(tweets, profile.train_limit * len(profile.languages))
    steps = _steps(lines, profile.stage1)
    asking, cached, in_loop, stage2 = units = {
        "asking the teacher": lines,
        "stage 1, from the cache": steps,
        "stage 1, teacher in the loop": steps,
        "stage 2": _steps(round(tweets * (1 + profile.splices)), profile.stage2),
    }

    def whole(seconds: Callable[[str], float]) -> dict[str, float]:
        """Hours of each part and of the run, from the seconds of one unit."""
        hours = {name: count * seconds(name) / 3600 for name, count in units.items()}
        return {
            **hours,
            "whole run, with a cache": hours[asking] + hours[cached] + hours[stage2],
            "whole run, teacher in the loop": hours[in_loop] + hours[stage2],
        }

    layers = tuple(range(sizes.student["num_hidden_layers"]))
    row = predicted_bytes([sizes.length], Questions(maps=layers))
    return {
        "units": units,
        "hours": whole(lambda name: parts[name]["seconds"]),
        "t4_hours": whole(lambda name: parts[name]["operations"] / (T4 * T4_SHARE)),
        "cache_gb": lines * row / 1e9,
    }


def rehearsal_text(report: Mapping[str, Any]) -> str:
    """The report as Markdown: what was measured, and the prediction."""
    count, on, parts = report["parameters"], report["machine"], report["parts"]
    rows = []
    for name, hours in report["hours"].items():
        cells: list[object] = ["", "", "", ""]
        if name in parts:
            part = parts[name]
            peak = round(part["peak_mb"])
            cells = [f"{part['seconds']:.3f}", part["unit"], peak, report["units"][name]]
        rows.append((name, *cells, f"{hours:,.1f}", f"{report['t4_hours'][name]:,.1f}"))
    columns = ("part", "seconds", "for one", "peak MB", "in the run", "hours", "hours on a T4")
    peak = max(part["peak_mb"] for part in parts.values()) / 1000
    return f"""{markdown_table(columns, rows)}

{on["device"]}, {on["threads"]} threads, torch {on["torch"]}; random weights: teacher \
{count["teacher"] / 1e6:.1f}M parameters, student {count["student"] / 1e6:.1f}M; rows of \
{report["tokens_a_row"]} tokens. *Hours* are those of profile {report["profile"]} on this machine, \
with rows of this length. Memory: {peak:.1f} GB at most; the cache on disk: \
{report["cache_gb"]:.1f} GB.

*Hours on a T4* (16 GB) are a lower bound, not measured: the operations of a step at \
{T4_SHARE:.0%} of the card's {T4 / 1e12:.0f} TFLOPS in fp16. A small student's steps also wait for \
memory, which is not counted."""


def write_rehearsal(report: Mapping[str, Any], output: str | Path) -> None:
    """``rehearsal.json`` and ``rehearsal.md`` in the folder ``output``."""
    output = Path(output)
    write_json(output / "rehearsal.json", report)
    command = f"python -m comet_lib lab rehearse --profile {report['profile']} --output DIR"
    head = f"# A few steps of the whole run\n\n`{command}` printed:"
    write_text(output / "rehearsal.md", f"{head}\n\n{rehearsal_text(report)}\n")
