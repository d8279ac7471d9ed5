"""``python -m comet_lib``: distill, evaluate, predict, export, and the commands of the lab."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option, echo

from comet_lib import console
from comet_lib.console import (
    DataOption,
    LabelsOption,
    LanguagesOption,
    ProfileOption,
    chosen_profile,
    label_names,
    say,
)
from comet_lib.errors import CometError
from comet_lib.lab import commands

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(commands.app, name="lab")
TERMS_HELP = """terms of both stages' losses and their weights, such as hidden_mse=1,relations=1
(default: soft targets and attention; in stage 2 labels too)"""
TEXT_HELP = """text for stage 1: a folder or file of .txt (one sentence per line), .jsonl or
.parquet (column text), or fineweb-2 (default: --data's transfer/ or text/)"""
TEXTS_HELP = """texts, each in quotes; or - for one text per line on standard input; or a FILE.tsv
with a column tweet or text"""
ModelArgument = Annotated[str, Argument(help="a sentiment model: folder, hub id or export")]


@app.callback()
def options(
    debug: Annotated[bool, Option("--debug", help="before COMMAND: show errors in full")] = False,
) -> None:
    """Distil a teacher into a small student on African-language text, and measure it honestly."""


@app.command()
def distill(
    profile: ProfileOption = None,
    data: DataOption = None,
    languages: LanguagesOption = None,
    teacher: Annotated[
        str | None,
        Option(help="folder or hub id (owner/name@commit); its sentiment head must be trained"),
    ] = None,
    labels: LabelsOption = None,
    student: Annotated[
        str | None, Option(help="sizes to change, such as hidden_size=128,num_hidden_layers=4")
    ] = None,
    terms: Annotated[str | None, Option(help=TERMS_HELP)] = None,
    text: Annotated[str | None, Option(help=TEXT_HELP)] = None,
    output: Annotated[Path, Option(help="folder to write to")] = Path("runs/distill"),
    seed: Annotated[
        int | None, Option(min=0, max=2**32 - 1, help="for every random choice (or COMET_SEED)")
    ] = None,
    cache: Annotated[bool, Option("--cache", help="ask the teacher once, store answers")] = False,
) -> None:
    """Distil in two stages and print an honest result table. Run it again to resume.

    On several GPUs: accelerate launch -m comet_lib distill ...
    """
    from comet_lib.recipe import distil
    from comet_lib.report import summary_text

    given = {"seed": seed, "teacher": teacher, "sentiment_teacher": teacher, "text": text}
    named = label_names(labels)
    chosen = chosen_profile(
        profile, data, languages, student, terms, **given, labels=named, cached=cache or None
    )
    if report := distil(chosen, output, say=say):  # empty in all processes but the main one
        say(summary_text(report), err=False)
        say(f"wrote {output}/student, {output}/report.md, {output}/figures, {output}/lens.html")
        say(
            f'next: open {output}/lens.html, or python -m comet_lib predict {output}/student "TEXT"'
        )


@app.command()
def evaluate(
    model: ModelArgument,
    profile: ProfileOption = None,
    data: DataOption = None,
    languages: LanguagesOption = None,
    split: Annotated[str, Option(help="train, dev or test")] = "test",
    labels: LabelsOption = None,
    as_json: Annotated[bool, Option("--json", help="print JSON")] = False,
) -> None:
    """Score any sentiment model: weighted F1 by language, with intervals."""
    if split not in (splits := ("train", "dev", "test")):  # before the imports, which take seconds
        raise CometError(f"--split {split!r}: choose one of {', '.join(splits)}")
    from comet_lib import evaluation
    from comet_lib.data import find_source, load_sentiment, seen_percent
    from comet_lib.ship.onnx import classifier_size, load_classifier

    chosen = chosen_profile(profile, data, languages)
    pair, source = load_classifier(model, label_names(labels)), find_source(chosen)
    table = load_sentiment(chosen, source=source, splits=[split])[split]
    answers = evaluation.predict_probabilities(*pair, table["text"][:], chosen.max_length)
    count, megabytes = classifier_size(pair[0])
    row = evaluation.score_row(
        Path(model).name, table, answers, parameters=count, size_mb=round(megabytes, 2)
    )
    leaks = {
        code: "unknown" if percent is None else percent
        for code, percent in seen_percent(table).items()
    }
    if as_json:
        echo(json.dumps({"split": split, "source": str(source), **row, "leakage": leaks}))
        return
    say(f"{row['name']} on {source}, split {split}: weighted F1, percent (95 % interval)", False)
    for code, score in row["weighted_f1"].items():
        low, high = row["ci95"][code]
        echo(f"{code:>5}  {score:5.1f}  ({low:.1f} to {high:.1f})")
    shares = ", ".join(f"{code} {percent}" for code, percent in leaks.items())
    why = " (unknown: no train split)" if "unknown" in leaks.values() else ""
    say(f"percent of tweets that train repeats word for word: {shares}{why}", False)


@app.command()
def predict(
    model: ModelArgument,
    texts: Annotated[list[str], Argument(help=TEXTS_HELP)],
    labels: LabelsOption = None,
) -> None:
    """Label texts. Prints a line for each: label, probability and text, separated by tabs."""
    from tqdm.auto import trange

    from comet_lib import evaluation
    from comet_lib.profiles import LABELS
    from comet_lib.ship.onnx import load_classifier

    clean = _texts(texts)
    pair = load_classifier(model, label_names(labels))
    # A bar for each 1,024 texts, only on a terminal
    for start in trange(0, len(clean), 1024, unit="batch", disable=None):
        part = clean[start : start + 1024]
        for text, row in zip(part, evaluation.predict_probabilities(*pair, part), strict=True):
            echo(f"{LABELS[row.argmax()]}\t{row.max():.3f}\t{console.printable(text)}")


def _texts(arguments: list[str]) -> list[str]:
    """The texts given to ``predict``: as arguments, on standard input or in a TSV file."""
    from comet_lib.data import normalize, read_texts

    if len(arguments) == 1 and arguments[0].lower().endswith(".tsv"):
        return read_texts(arguments[0])
    if (piped := arguments == ["-"]) and sys.stdin is None:  # closed by the caller: <&-
        raise CometError("standard input is closed: give one text per line")
    for text in arguments:
        if not piped and (text == "-" or (Path(text).suffix and os.path.isfile(text))):
            raise CometError(
                f"{text!r} is not a text: give only one FILE.tsv, or only - and one text per line "
                "on standard input"
            )
    what = "standard input" if piped else "a text"
    try:
        lines = sys.stdin.buffer.read().decode("utf-8-sig").split("\n") if piped else arguments
        "".join(lines).encode()
    except UnicodeError as error:
        raise CometError(f"{what} is not UTF-8: give the text in UTF-8") from error
    clean = [text for text in map(normalize, lines) if text or not piped]
    if not (clean and all(clean)):
        raise CometError(f"{what} is empty: give one text per line, or each in quotes")
    return clean


@app.command()
def export(
    model: Annotated[str, Argument(help="folder or hub id of a sentiment model")],
    output: Annotated[Path, Option(help="folder to write to; an export there is replaced")],
    int8: Annotated[bool, Option("--int8", help="also with 8-bit weights and embeddings")] = False,
    attentions: Annotated[
        bool, Option("--attentions", help="graphs that return the attention maps too")
    ] = False,
    force: Annotated[
        bool, Option("--force", help="write the 8-bit copy even if many labels differ")
    ] = False,
    profile: ProfileOption = None,
    data: DataOption = None,
    languages: LanguagesOption = None,
    labels: LabelsOption = None,
) -> None:
    """Export a model to ONNX and check the export against it on the dev split."""
    from comet_lib.data import find_source, load_sentiment
    from comet_lib.loading import load_pair
    from comet_lib.ship import onnx

    chosen = chosen_profile(profile, data, languages)
    if onnx.is_exported(model):
        raise CometError(f"{model} is already an export: give the model it came from")
    ours = onnx.is_exported(output) and (output / "export.json").is_file()
    if output.exists() and not ours and (output.is_file() or any(output.iterdir())):
        raise CometError(f"--output {output} exists and holds no export: name another folder")
    pair, source = load_pair(model, labels=label_names(labels)), find_source(chosen)
    card = Path(model) / "README.md"
    dev = load_sentiment(chosen, source=source, splits=["dev"])["dev"]
    report = onnx.export(
        *pair,
        output,
        *(dev[name][:] for name in ("text", "label", "language")),
        int8=int8,
        attentions=attentions,
        force=force,
        max_length=chosen.max_length,
        card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
    )
    shown = json.loads(json.dumps(report), parse_float=lambda digits: float(f"{float(digits):.4g}"))
    echo(json.dumps({"source": str(source), **shown}, indent=2))
    if report["argmax_equal"] < onnx.LEAST_EQUAL:
        say(f"warning: only {report['argmax_equal']:.1f} % of the texts keep their label")
    say(f"wrote {output}")


def main() -> None:
    """Run a command; an error becomes one line. Exit code 2 if the user can fix it, else 1."""
    # A text that standard output cannot encode (Windows, redirected) is no reason to stop.
    with suppress(AttributeError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app()
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        line, code = _sentence(error)
        echo(f"comet: {console.printable(line)}", err=True)
        sys.exit(code)


def _sentence(error: Exception) -> tuple[str, int]:
    """What to tell the user, and the exit code."""
    text = " ".join(str(error).split())
    if isinstance(error, CometError):
        return text, error.exit_code
    if isinstance(error, MemoryError) or re.search("(not enough|out of) memory", text):
        return "out of memory; use a smaller profile, batch or model", 2
    # safetensors and torch raise errors of their own when the disk is full
    if isinstance(error, OSError) or re.search(r"os error \d|PytorchStreamWriter", text):
        return f"{text[:300]}; check the path, its permissions and free space, then run again", 2
    return f"unexpected {type(error).__name__}: {text[:300]}; comet_lib --debug shows where", 1


if __name__ == "__main__":
    main()
