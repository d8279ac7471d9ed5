"""The whole run at full size, a few steps of it: what it costs a step, and what the paper's needs.

The parts are those of the real run (``cache_targets``, ``distil_task_agnostic``, ``fine_tune``),
with random weights and made-up text, so nothing is downloaded. What is measured here times the
numbers of steps of a profile is the prediction; texts of other lengths take other times. For a T4,
which may not be at hand, the arithmetic of a step is counted and divided by what the card can do.
"""

from __future__ import annotations

import math
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
from comet_lib.lab.benchmark import (
    PAPER,
    Sizes,
    number_texts,
    number_tokenizer,
    random_model,
)
from comet_lib.lab.timing import Memory, machine
from comet_lib.models import count_parameters, quiet, same_body
from comet_lib.profiles import Profile, Stage
from comet_lib.teacher import predicted_bytes
from comet_lib.training import distil_task_agnostic, fine_tune, steps_per_epoch

STEPS = 3  # measured, after one to warm up
#: Tweets of AfriSenti's train split in the paper's five languages (lines of the files, less heads).
TWEETS = 37_998
#: Operations a second of NVIDIA's T4 in fp16 (its data sheet), and the share that training reaches.
T4, T4_SHARE = 65e12, 0.3


class StepTimes(TrainerCallback):
    """Seconds of each optimiser step, the moment when the first began, and the first's operations.

    Those are the additions and multiplications of its matrix products, forward and back.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.began: float | None = None
        self._start = 0.0
        self._counter = FlopCounterMode(display=False)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()
        if self.began is None:
            self.began = self._start
            self._counter.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.seconds:
            self._counter.__exit__(None, None, None)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._start)

    def cost(self) -> tuple[float, int]:
        """Of a step: the median seconds, without the first, which also warms up; operations."""
        after = sorted(self.seconds[1:])
        return after[len(after) // 2], self._counter.get_total_flops()


def _few(profile: Profile) -> Profile:
    stage1, stage2 = (
        replace(stage, max_steps=STEPS + 1, epochs=1) for stage in (profile.stage1, profile.stage2)
    )
    return profile.with_(stage1=stage1, stage2=stage2)


def rehearse(profile: Profile, sizes: Sizes = PAPER) -> dict[str, Any]:
    """Measure every part of ``profile``'s run at ``sizes``.

    Rows have ``sizes.length`` tokens. Returns ``parts`` (name -> seconds of one unit, unit,
    peak_mb, operations), ``hours`` (part -> hours of the whole run), ``t4_hours`` (the same on a
    T4 at least, estimated), ``machine`` and what they come from.
    """
    set_seed(profile.seed)
    few = _few(profile).with_(max_length=sizes.length)
    tokenizer = number_tokenizer(sizes.vocabulary)
    batch = profile.stage1.batch_size * profile.stage1.gradient_accumulation
    rows = max(sizes.rows, batch * (STEPS + 1) + 16)
    texts = number_texts(rows, sizes.length, sizes.vocabulary)
    memory, parts = Memory(), dict[str, dict[str, Any]]()

    def part(name: str, unit: str, run: Callable[[], tuple[float, int]]) -> None:
        memory.start()
        seconds, operations = run()
        peak = memory.peak()
        parts[name] = {"seconds": seconds, "unit": unit, "peak_mb": peak, "operations": operations}

    models: dict[str, PreTrainedModel] = {}

    def build() -> tuple[float, int]:
        start = time.perf_counter()
        models["teacher"] = random_model(sizes.teacher, sizes.vocabulary, sizes.length, "masked-lm")
        models["student"] = random_model(sizes.student, sizes.vocabulary, sizes.length, "masked-lm")
        return time.perf_counter() - start, 0

    def ask(folder: Path, cache: Path) -> tuple[float, int]:
        """A row: the seconds before the first step; the arithmetic follows from the other parts."""
        start = time.perf_counter()
        times = stage_one(folder, cache, steps=1)
        assert times.began is not None
        return (times.began - start) / rows, 0

    def stage_one(folder: Path, cache: Path | None, steps: int = STEPS + 1) -> StepTimes:
        times = StepTimes()
        distil_task_agnostic(
            models["student"],
            models["teacher"],
            tokenizer,
            texts,
            few,
            folder,
            cache=cache,
            callbacks=[times],
            max_steps=steps,
            eval_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        return times

    def stage_two(folder: Path) -> tuple[float, int]:
        count = profile.stage2.batch_size * (STEPS + 1)
        student = random_model(sizes.student, sizes.vocabulary, sizes.length, "sentiment")
        models["student"] = same_body(student, models["student"])
        tweets = Dataset.from_dict(
            {
                "text": number_texts(count, sizes.length, sizes.vocabulary),
                "label": [i % len(LABELS) for i in range(count)],
                "language": ["kin"] * count,
                "teacher_probs": [[0.2, 0.3, 0.5]] * count,
            }
        )
        times = StepTimes()
        with quiet():
            fine_tune(
                models["student"],
                tokenizer,
                tweets,
                tweets.select(range(3)),
                few,
                folder,
                callbacks=[times],
                save_strategy="no",
                load_best_model_at_end=False,
                disable_tqdm=True,
            )
        return times.cost()

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        part("building both models", "once", build)
        part("asking the teacher", "row", lambda: ask(work / "1", work / "cache"))
        part(
            "stage 1, from the cache", "step", lambda: stage_one(work / "2", work / "cache").cost()
        )
        part("stage 1, teacher in the loop", "step", lambda: stage_one(work / "3", None).cost())
        cached = parts["stage 1, from the cache"]["operations"]
        in_loop = parts["stage 1, teacher in the loop"]["operations"]
        parts["asking the teacher"]["operations"] = (in_loop - cached) // batch
        teacher, student = (count_parameters(models[n]) for n in ("teacher", "student"))
        del models["teacher"]
        part("stage 2", "step", lambda: stage_two(work / "4"))
    return {
        "machine": machine(),
        "profile": profile.name,
        "parameters": {"teacher": teacher, "student": student},
        "tokens_a_row": sizes.length,
        "parts": parts,
        **_prediction(profile, sizes, parts),
    }


def _steps(rows: int, stage: Stage) -> int:
    """Optimiser steps of a whole stage; ``max_steps`` takes the place of its epochs."""
    if stage.max_steps > 0:
        return stage.max_steps
    return math.ceil(stage.epochs * steps_per_epoch(rows, stage))


def _prediction(profile: Profile, sizes: Sizes, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of units in the whole run, their hours, and the cache's gigabytes (10^9 bytes)."""
    lines = sum(
        profile.text_limit.get(code, profile.default_text_limit or 0) for code in profile.languages
    )
    tweets = TWEETS
    if profile.train_limit is not None:
        tweets = min(tweets, profile.train_limit * len(profile.languages))
    steps1 = _steps(lines, profile.stage1)
    steps2 = _steps(round(tweets * (1 + profile.splices)), profile.stage2)
    units = {
        "asking the teacher": lines,
        "stage 1, from the cache": steps1,
        "stage 1, teacher in the loop": steps1,
        "stage 2": steps2,
    }

    def whole(seconds: Mapping[str, float]) -> dict[str, float]:
        """Hours of each part and of the run, from the seconds of one unit."""
        hours = {name: count * seconds[name] / 3600 for name, count in units.items()}
        hours["whole run, with a cache"] = (
            hours["asking the teacher"] + hours["stage 1, from the cache"] + hours["stage 2"]
        )
        hours["whole run, teacher in the loop"] = (
            hours["stage 1, teacher in the loop"] + hours["stage 2"]
        )
        return hours

    hours = whole({name: parts[name]["seconds"] for name in units})
    t4_hours = whole({name: parts[name]["operations"] / (T4 * T4_SHARE) for name in units})
    row = predicted_bytes([sizes.length], sizes.student["num_hidden_layers"], 64)
    return {"units": units, "hours": hours, "t4_hours": t4_hours, "cache_gb": lines * row / 1e9}


def rehearsal_text(report: Mapping[str, Any]) -> str:
    """The report as a table, and the prediction under it."""
    count, on = report["parameters"], report["machine"]
    lines = [
        f"{on['device']}, {on['threads']} threads, torch {on['torch']}; random weights: teacher "
        f"{count['teacher'] / 1e6:.1f}M, student {count['student'] / 1e6:.1f}M; "
        f"rows of {report['tokens_a_row']} tokens",
        "",
        f"{'part':32} {'seconds':>9}  {'for one':7} {'peak MB':>8} {'in the run':>11} {'hours':>9}",
    ]
    for name, part in report["parts"].items():
        units, hours = report["units"].get(name), report["hours"].get(name)
        lines.append(
            f"{name:32} {part['seconds']:9.3f}  {part['unit']:7} {part['peak_mb']:8.0f} "
            f"{units or 1:11,d} {part['seconds'] / 3600 if hours is None else hours:9.2f}"
        )
    peak = max(part["peak_mb"] for part in report["parts"].values()) / 1000
    lines += [
        "",
        f"Predicted for the run of profile {report['profile']} on this machine, with rows of this "
        "length:",
        *(
            f"  {name}: {hours:,.1f} hours"
            for name, hours in report["hours"].items()
            if name.startswith("whole")
        ),
        f"  memory: {peak:.1f} GB at most; the cache on disk: {report['cache_gb']:.1f} GB",
        "",
        "On a 16 GB T4 at least, not measured: the operations of a step at "
        f"{T4_SHARE:.0%} of its {T4 / 1e12:.0f} TFLOPS in fp16",
        "(a small student's steps wait for memory too, which is not counted):",
        *(
            f"  {name}: {hours:,.1f} hours"
            for name, hours in report["t4_hours"].items()
            if name.startswith("whole")
        ),
    ]
    return "\n".join(lines)


def write_rehearsal(report: Mapping[str, Any], output: str | Path) -> None:
    """``rehearsal.json`` and ``rehearsal.md`` in the folder ``output``."""
    output = Path(output)
    write_json(output / "rehearsal.json", report)
    command = f"python -m comet_lib lab rehearse --profile {report['profile']} --output DIR"
    head = f"# The whole run, a few steps of it\n\n`{command}` printed:\n\n"
    write_text(output / "rehearsal.md", f"{head}```\n{rehearsal_text(report)}\n```\n")
