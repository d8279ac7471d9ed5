"""Stage-1 seconds and peak memory in fp32 and in bf16, each in its own process.

    python tools/benchmark_precision.py [--width 64] [--steps 40]

The student is the laptop profile's, or a wider one. The text is the bundled sample, repeated.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from typing import Annotated

import typer
from transformers import set_seed

from comet_lib.loading import load_model, load_tokenizer
from comet_lib.models import build_student
from comet_lib.profiles import get_profile
from comet_lib.recipe import student_config
from comet_lib.text import load_text
from comet_lib.training import distil_task_agnostic


def measure(width: int, steps: int, bf16: bool) -> str:
    """Seconds of training and this process's peak megabytes (10^6 bytes)."""
    sample = get_profile("tiny")
    profile = get_profile("laptop")
    profile = profile.with_(
        student={**profile.student, "hidden_size": width, "intermediate_size": 4 * width},
        stage1=replace(profile.stage1, max_steps=steps),
    )
    texts = load_text(sample)["text"][:] * 20
    teacher = load_model(profile.teacher, "masked-lm")
    set_seed(0)
    student = build_student(student_config(profile, teacher), "masked-lm")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        distil_task_agnostic(
            student,
            teacher,
            load_tokenizer(profile.teacher),
            texts,
            profile,
            folder,
            bf16=bf16,
            disable_tqdm=True,
            eval_strategy="no",
            save_strategy="no",
        )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # kilobytes on Linux
    return f"{'bf16' if bf16 else 'fp32'}  {seconds:6.1f} s  {peak:6.0f} MB"


def main(
    width: Annotated[int, typer.Option(help="Hidden size of the student.")] = 64,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 40,
    only: Annotated[str, typer.Option(help="fp32 or bf16, in this process.")] = "",
) -> None:
    """Stage-1 seconds and peak memory in fp32 and in bf16."""
    if only:
        print(measure(width, steps, only == "bf16"))
        return
    for name in ("fp32", "bf16"):
        command = [sys.executable, __file__, "--width", str(width), "--steps", str(steps)]
        run = subprocess.run([*command, "--only", name], capture_output=True, text=True)
        print(run.stdout.strip() or run.stderr[-500:])


if __name__ == "__main__":
    typer.run(main)
