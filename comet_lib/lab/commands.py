"""``python -m comet_lib lab``: teacher, ablate, benchmark and rehearse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from comet_lib.console import DataOption, LanguagesOption, ProfileOption, chosen_profile, say

app = typer.Typer(
    no_args_is_help=True, help="Measure what the recipe costs and gains; rebuild the small teacher."
)
QuickOption = Annotated[bool, Option("--quick", help="small models: the figures mean nothing")]
JsonOption = Annotated[Path | None, Option("--json", dir_okay=False, help="file for the figures")]
OutputOption = Annotated[
    Path | None, Option("--output", help="folder for the report (JSON, Markdown, figure)")
]


@app.command()
def teacher(
    data: Annotated[Path, Option(help="folder with afrisenti/ and transfer/")],
    output: Annotated[Path, Option(help="folder for the teacher")] = Path("runs/teacher"),
    seed: Annotated[int, Option(min=0, max=2**32 - 1, help="for every random choice")] = 0,
) -> None:
    """Rebuild the bundled small teacher from AfriSenti and transfer text (about an hour)."""
    from comet_lib.lab.small_teacher import build

    build(chosen_profile("laptop", data, seed=seed, max_length=64), output, say=say)


@app.command()
def ablate(
    profile: ProfileOption = None,
    data: DataOption = None,
    languages: LanguagesOption = None,
    output: Annotated[Path, Option(help="folder to write to")] = Path("runs/ablation"),
    seeds: Annotated[int, Option(min=1, max=1000, help="runs of each variant")] = 3,
    only: Annotated[str | None, Option(help="variants, comma-separated (all take hours)")] = None,
    tweets: Annotated[int, Option(min=1, help="most training tweets per language")] = 4000,
    summary: Annotated[bool, Option("--summary", help="only read the runs in --output")] = False,
) -> None:
    """Find out which part of the recipe pays: variants, several seeds each.

    Run it again to continue a stopped ablation.
    """
    from comet_lib.lab.ablation import ablate as run
    from comet_lib.lab.comparison import write_summary
    from comet_lib.lab.variants import chosen_variants

    variants = chosen_variants(only)
    if not summary:
        chosen = chosen_profile(profile, data, languages)
        stage = replace(chosen.stage2, epochs=2 * chosen.stage2.epochs)  # a tweet has one form here
        limit = min(tweets, chosen.train_limit or tweets)
        chosen = chosen.with_(train_limit=limit, stage2=stage)
        run(chosen, output, variants, seeds, say=say)
    say(write_summary(output), err=False)
    say(f"wrote {output}/runs.jsonl, ablation.md and ablation.png")


@app.command()
def benchmark(
    quick: QuickOption = False,
    json_file: JsonOption = None,
    output: OutputOption = None,
    compiled: Annotated[bool, Option("--compile", help="measure compiled students too")] = False,
) -> None:
    """Measure what each kind of step and answer costs at the paper's sizes."""
    from comet_lib.lab import benchmark as lab

    sizes = lab.QUICK if quick else lab.PAPER
    texts = lab.benchmark_text, lab.write_benchmark
    _report(lambda: lab.benchmark(sizes, compiled=compiled), *texts, json_file, output)


@app.command()
def rehearse(
    profile: Annotated[str, Option(help="whose steps to count, at the paper's sizes")] = "gpu",
    quick: QuickOption = False,
    json_file: JsonOption = None,
    output: OutputOption = None,
) -> None:
    """Take a few steps of the whole run at the paper's sizes; predict its memory and hours."""
    from comet_lib.lab import benchmark, rehearsal

    chosen, sizes = chosen_profile(profile), benchmark.QUICK if quick else benchmark.PAPER
    texts = rehearsal.rehearsal_text, rehearsal.write_rehearsal
    _report(lambda: rehearsal.rehearse(chosen, sizes), *texts, json_file, output)


def _report(
    measure: Callable[[], dict[str, Any]],
    text: Callable[[dict[str, Any]], str],
    write: Callable[[dict[str, Any], Path], None],
    json_file: Path | None,
    output: Path | None,
) -> None:
    """Measure, print and write; create the folders first, so that no measuring is lost."""
    from comet_lib.files import write_json

    for folder in (output, json_file and json_file.parent):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    report = measure()
    typer.echo(text(report))
    if json_file is not None:
        write_json(json_file, report)
    if output is not None:
        write(report, output)
