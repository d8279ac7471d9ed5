"""What stage 1 holds in memory, with few lines of text and with many.

    python tools/measure_corpus.py [--kind txt|jsonl|parquet] [--few 10000] [--many 1000000]

Each size runs in a process of its own: it writes the table of lines, trains a few steps with the
bundled teacher, and then goes through a whole pass as the training would, tokenized and masked,
without the models. The lines are random words in a temporary folder, in three files. Prints the
peak of the anonymous memory (MB, 10^6 bytes; pages of memory-mapped files are the system's to take
back, so they do not count), the seconds, and by how much the larger peak is larger. Linux only.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import typer


def write(folder: Path, kind: str, count: int) -> None:
    """``count`` lines of 3 to 20 of 50,000 made-up words."""
    source = random.Random(0)
    words = ["".join(source.choices("abdeghikmnorstuwyz", k=2 + i % 9)) for i in range(50_000)]
    for part in range(3):
        lines = [
            " ".join(source.choices(words, k=source.randint(3, 20))) for _ in range(part, count, 3)
        ]
        path = folder / f"{part}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.table({"text": lines}), path)
        elif kind == "jsonl":
            path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        else:
            path.write_text("".join(f"{line}\n" for line in lines))


class Peak(threading.Thread):
    """Watches this process's anonymous memory."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.megabytes = 0.0
        self.start()

    def run(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            now = int(status.split("RssAnon:")[1].split()[0]) * 1024 / 1e6
            self.megabytes = max(self.megabytes, now)
            time.sleep(0.02)


def measure(folder: Path) -> None:
    """One size: prints a line for each part."""
    from torch.utils.data import DataLoader
    from transformers import set_seed

    from comet_lib.batches import LengthBatches, MaskingCollator, tokenize
    from comet_lib.loading import load_model, load_tokenizer
    from comet_lib.models import build_student
    from comet_lib.profiles import get_profile
    from comet_lib.recipe import student_config
    from comet_lib.text import load_text
    from comet_lib.training import distil_task_agnostic

    peak = Peak()

    def done(name: str, start: float) -> None:
        seconds = time.perf_counter() - start
        print(f"{name:15} {peak.megabytes:8,.0f} MB {seconds:8.1f} s", flush=True)

    profile = get_profile("tiny")
    stage = replace(profile.stage1, max_steps=20)
    profile = profile.with_(stage1=stage, text=str(folder))
    teacher, tokenizer = load_model(profile.teacher, "masked-lm"), load_tokenizer(profile.teacher)
    start = time.perf_counter()
    texts = load_text(profile)
    done("the table", start)
    start = time.perf_counter()
    set_seed(0)
    student = build_student(student_config(profile, teacher), "masked-lm")
    run = folder.parent / "run"
    distil_task_agnostic(student, teacher, tokenizer, texts, profile, run, disable_tqdm=True)
    done("20 steps", start)
    start = time.perf_counter()
    rows = tokenize(texts, tokenizer, profile.max_length, run / "tokens.arrow", shuffle=0)
    order = LengthBatches(rows["length"][:], 16, seed=0, epoch=lambda: 0)
    batches = DataLoader(rows, 16, sampler=order, collate_fn=MaskingCollator(tokenizer))
    assert sum(len(batch["labels"]) for batch in batches) == len(texts)
    done("a pass", start)


def main(
    kind: Annotated[str, typer.Option(help="txt, jsonl or parquet")] = "txt",
    few: Annotated[int, typer.Option(min=2)] = 10_000,
    many: Annotated[int, typer.Option(min=2)] = 1_000_000,
    folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """What stage 1 holds in memory, with few lines of text and with many."""
    if folder is not None:
        return measure(folder)
    peaks = []
    memory = 0.0
    for count in (few, many):
        with tempfile.TemporaryDirectory() as made:
            text = Path(made) / "text"
            text.mkdir()
            write(text, kind, count)
            size = sum(path.stat().st_size for path in text.iterdir()) / 1e6
            print(f"{count:,} lines, {kind}, {size:,.1f} MB on disk", flush=True)
            command = [sys.executable, __file__, "--folder", str(text)]
            home = {**os.environ, "COMET_HOME": made}
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=home) as child:
                for line in child.stdout or ():
                    print(f"  after {line}", end="", flush=True)
                    memory = float(line.split(" MB")[0].split()[-1].replace(",", ""))
            if child.returncode:
                raise typer.Exit(child.returncode)
        peaks.append(memory)
    print(f"difference: {peaks[1] - peaks[0]:+,.0f} MB")


if __name__ == "__main__":
    typer.run(main)
