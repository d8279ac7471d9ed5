"""A few steps of the whole run at full size: what each costs, and what the paper's run needs.

The parts are those of the real run (``distil_task_agnostic``, ``fine_tune``), with random weights
and random text, so nothing is downloaded. A part's cost, times the number of its steps in a
profile, is the prediction; texts of other lengths take other times. For a T4, which may not be at
hand, the arithmetic of a step is counted and divided by what the card can do.
"""

from __future__ import annotations

import itertools
import math
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.benchmark import timer
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback, set_seed

from comet_lib.lab import benchmark as lab
from comet_lib.loading import load_tokenizer
from comet_lib.models import quiet
from comet_lib.profiles import LAPTOP, Profile
from comet_lib.report import markdown_table
from comet_lib.teacher import BATCH, Questions, predicted_bytes
from comet_lib.training import distil_task_agnostic, fine_tune, steps_per_epoch

STEPS = 5  # the first warms up, the last ends the clock
#: Tweets in AfriSenti's train split, in the paper's five languages.
TWEETS = 37_998
#: Operations per second of NVIDIA's T4 in fp16 (its data sheet), and the share training reaches.
T4, T4_SHARE = 65e12, 0.3


class StepTimes(TrainerCallback):
    """``clock``: when it was created, and when each step started (seconds). ``counter`` counts the
    additions and multiplications of the first step's matrix products, forward and back."""

    def __init__(self) -> None:
        self.clock, self.counter = [timer()], FlopCounterMode(display=False)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.append(timer())
        if state.global_step == 0:
            self.counter.__enter__()
        elif state.global_step == 1:
            self.counter.__exit__(None, None, None)


def measured(train: Callable[..., object], **more: Any) -> tuple[float, float, int]:
    """Of a training that saves nothing: the seconds before its first step; the seconds (the median
    without the first) and the operations of a step."""
    times = StepTimes()
    train(callbacks=[times], save_strategy="no", disable_tqdm=True, **more)
    waited, _, *steps = (after - before for before, after in itertools.pairwise(times.clock))
    return waited, statistics.median(steps), times.counter.get_total_flops()


def peak_gb() -> float:
    """The most memory of this process so far, in gigabytes (10^9 bytes): what torch allocated on
    the GPU, or else what was resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes, Linux KiB
    return most * (1 if sys.platform == "darwin" else 1024) / 1e9


def rehearse(profile: Profile, sizes: lab.Sizes = lab.PAPER) -> dict[str, Any]:
    """Measure every part of ``profile``'s run at ``sizes``.

    Rows have ``sizes.length`` tokens. Returns ``parts`` (:func:`prediction`), ``peak_gb``,
    ``cache_gb`` (10^9 bytes) and what they belong to.
    """
    set_seed(profile.seed)
    stage1, stage2 = (replace(stage, max_steps=STEPS) for stage in (profile.stage1, profile.stage2))
    few = profile.with_(stage1=stage1, stage2=stage2, max_length=sizes.length)
    tokenizer = load_tokenizer(LAPTOP.teacher)
    teacher = lab.random_model(sizes.teacher, sizes.vocabulary, "masked-lm")
    student = lab.random_model(sizes.student, sizes.vocabulary, "masked-lm")
    batch = stage1.batch_size * stage1.gradient_accumulation
    texts = lab.random_texts(tokenizer, max(BATCH, STEPS * batch + 16), sizes.length)
    columns = {"label": 0, "language": "kin", "teacher_probs": [0.2, 0.3, 0.5]}
    tweets = Dataset.from_list([{"text": text, **columns} for text in texts])
    with tempfile.TemporaryDirectory() as work, quiet():
        stage = partial(distil_task_agnostic, student, teacher, tokenizer, texts, few, work)
        waited, *cached = measured(stage, cache=f"{work}/cache", eval_strategy="no")
        _, *live = measured(stage, eval_strategy="no")
        classifier = lab.random_model(sizes.student, sizes.vocabulary, "sentiment")
        stage = partial(
            fine_tune, classifier, tokenizer, tweets, tweets.select(range(3)), few, work
        )
        _, *tuned = measured(stage, load_best_model_at_end=False)
    asking = (waited / len(texts), (live[1] - cached[1]) // batch)
    parts = prediction(profile, [asking, cached, live, tuned])
    row = predicted_bytes([sizes.length], Questions(maps=tuple(sizes.matches.values())))
    return {
        "machine": lab.machine(),
        "profile": profile.name,
        "tokens_a_row": sizes.length,
        "parts": parts,
        "peak_gb": peak_gb(),
        "cache_gb": parts["asking the teacher (a row)"]["count"] * row / 1e9,
    }


def prediction(profile: Profile, costs: Sequence[Sequence[float]]) -> dict[str, dict[str, float]]:
    """How often each part happens in the profile's run, and its hours; then those of whole runs.

    ``costs`` are the seconds and the operations of one row or step of each part. ``t4_hours`` is a
    lower bound for a T4, estimated.
    """
    lines = sum(
        profile.text_limit.get(code, profile.default_text_limit or 0) for code in profile.languages
    )
    tweets = min(TWEETS, (profile.train_limit or TWEETS) * len(profile.languages))
    both_forms = round(2 * tweets * (1 + profile.splices))
    stages = (lines, profile.stage1), (both_forms, profile.stage2)
    steps1, steps2 = (
        stage.max_steps  # replaces the epochs
        if stage.max_steps > 0
        else math.ceil(stage.epochs * steps_per_epoch(rows, stage))
        for rows, stage in stages
    )
    counts = {
        "asking the teacher (a row)": lines,
        "stage 1, from the cache (a step)": steps1,
        "stage 1, teacher in the loop (a step)": steps1,
        "stage 2 (a step)": steps2,
    }
    parts = {
        name: {
            "seconds": seconds,
            "operations": operations,
            "count": count,
            "hours": count * seconds / 3600,
            "t4_hours": count * operations / (T4 * T4_SHARE) / 3600,
        }
        for (name, count), (seconds, operations) in zip(counts.items(), costs, strict=True)
    }
    asking, cached, live, stage2 = parts.values()
    runs = {"with a cache": (asking, cached, stage2), "teacher in the loop": (live, stage2)}
    for name, needed in runs.items():
        parts[f"whole run, {name}"] = {
            hours: sum(part[hours] for part in needed) for hours in ("hours", "t4_hours")
        }
    return parts


def rehearsal_text(report: Mapping[str, Any]) -> str:
    """The report as Markdown: what was measured, and the prediction."""
    rows = []
    for name, part in report["parts"].items():
        one = [f"{part['seconds']:.3f}", part["count"]] if "count" in part else ["", ""]
        rows.append((name, *one, f"{part['hours']:,.1f}", f"{part['t4_hours']:,.1f}"))
    columns = ("part", "seconds", "in the run", "hours", "hours on a T4")
    return f"""{markdown_table(columns, rows)}

{report["machine"]}; random weights, rows of {report["tokens_a_row"]} tokens. *Hours* are those of \
profile {report["profile"]} on this machine, with rows of this length. Memory: \
{report["peak_gb"]:.1f} GB at most; the cache on disk: {report["cache_gb"]:.1f} GB.

*Hours on a T4* (16 GB) are a lower bound, not measured: the operations of a step at \
{T4_SHARE:.0%} of the card's {T4 / 1e12:.0f} TFLOPS in fp16. A small student's steps also wait for \
memory, which is not counted."""


def write_rehearsal(report: Mapping[str, Any], output: str | Path) -> None:
    """``rehearsal.json`` and ``rehearsal.md`` in the folder ``output``."""
    command = f"python -m comet_lib lab rehearse --profile {report['profile']}"
    head = f"# A few steps of the whole run\n\n`{command}` printed:"
    lab.write_report(Path(output) / "rehearsal.json", report, head, rehearsal_text(report))
