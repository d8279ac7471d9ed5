"""Kill ``distill`` with SIGKILL at random moments, run it again, compare the student's weights.

    python tools/kill_test.py [--moments 20] [--seed 0]

The runs use the tiny profile with a cache. The kills rotate through three phases: asking the
teacher, stage 1 and stage 2. Each moment is drawn from the time that the phase took in an
uninterrupted run.
Exits with code 1 if a student differs from that run's by a single bit.
"""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

#: Phase -> the files or folders (under the output folder) that appear as it begins and as it ends.
PHASES = {
    "caching": ("work/cache/fingerprint.json", "work/cache/shard-00000.json"),
    "stage 1": ("work/cache/shard-00000.json", "work/agnostic"),
    "stage 2": ("work/stage2", "student"),
}
WATCH = 0.005  # seconds between two looks


def start(output: Path, log: Path) -> subprocess.Popen[bytes]:
    """The command; its output goes to ``log``."""
    command = [sys.executable, "-m", "comet_lib", "distill", "--profile", "tiny", "--cache"]
    with log.open("ab") as file:
        return subprocess.Popen([*command, "--output", str(output)], stdout=file, stderr=file)


def durations(output: Path, log: Path) -> dict[str, float]:
    """Run to the end; the seconds that each phase took."""
    seen: dict[str, float] = {}
    paths = {path for phase in PHASES.values() for path in phase}
    process = start(output, log)
    while process.poll() is None:
        for path in paths - set(seen):
            if (output / path).exists():
                seen[path] = time.perf_counter()
        time.sleep(WATCH)
    if process.returncode:
        raise SystemExit(log.read_text()[-2000:])
    return {name: seen[end] - seen[begin] for name, (begin, end) in PHASES.items()}


def kill_after(output: Path, log: Path, begin: str, delay: float) -> bool:
    """Start, wait for ``begin``, then ``delay`` seconds, then SIGKILL. False: it ended first."""
    process = start(output, log)
    while not (output / begin).exists() and process.poll() is None:
        time.sleep(WATCH)
    time.sleep(delay)
    process.kill()
    return process.wait() == -signal.SIGKILL


def weights(output: Path) -> list[str]:
    """SHA-256 of the weights after stage 1 and of the final student."""
    return [
        hashlib.sha256((output / name / "model.safetensors").read_bytes()).hexdigest()
        for name in ("work/agnostic", "student")
    ]


def main(
    moments: Annotated[int, typer.Option(min=1, help="How many kills.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Kill distill at random moments, run it again, and compare the student's weights."""
    source, wrong = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "log"
        took = durations(folder / "whole", log)
        expected = weights(folder / "whole")
        for i in range(moments):
            phase = list(PHASES)[i % len(PHASES)]
            delay = source.uniform(0, took[phase])
            output = folder / str(i)
            killed = kill_after(output, log, PHASES[phase][0], delay)
            left = sorted(p.name for p in output.glob("work/stage*/checkpoint-*"))
            done = start(output, log).wait() == 0
            same = done and weights(output) == expected
            wrong += not same
            print(
                f"{phase:8} {delay:6.3f} of {took[phase]:.3f} s "
                f"{'killed' if killed else 'had ended':9} {len(left)} checkpoints there  "
                f"{'same weights' if same else 'OTHER WEIGHTS' if done else 'FAILED'}",
                flush=True,
            )
            if not done:
                print(log.read_text()[-2000:])
    print(f"{moments - wrong} of {moments} students are bit for bit the same")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
