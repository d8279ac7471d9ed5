"""Build the playground: a static page on which teacher and student answer what a reader types.

    python tools/build_playground.py --run runs/distill     # into build/site/playground
    python tools/build_playground.py --run DIR --store      # only keep its students in the library

The page's own source is in ``playground/``; ``npm ci`` there fetches what it loads. The models are
what ``export --int8 --attentions`` writes from the bundled teacher and from the two students of a
run that ``distill`` wrote, or from those in ``comet_lib/assets/students``. The student before and
after stage 1 is loaded only by a reader who asks for it. Large files are packed with xz, which the
page unpacks itself: a plain server need not compress anything. What took time to make is kept in
``build/playground`` under a hash of all it was made from.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import PreTrainedModel, set_seed

from comet_lib import loading
from comet_lib.data import english, load_sentiment
from comet_lib.errors import CometError
from comet_lib.files import read_json, whole_folder
from comet_lib.lens.export import HERE as LENS
from comet_lib.loading import checked_config, load_model, load_tokenizer
from comet_lib.models import build_student, initialize_embeddings, quiet, same_body
from comet_lib.profiles import ASSETS, LABELS, TINY
from comet_lib.report import markdown_table
from comet_lib.ship import onnx

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "playground"
KEPT = ROOT / "build" / "playground"
STUDENTS = ASSETS / "students"
TITLES = {
    "teacher": "teacher",
    "student": "student",
    "student_no_distillation": "student without a teacher",
}
STAGE_ONE = "student_after_stage_1"
PACKAGES = {  # the page's name for a file of a package
    "ort.mjs": "onnxruntime-web/dist/ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs": "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
    "ort.wasm.xz": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "tokenizers.mjs": "@huggingface/tokenizers/dist/tokenizers.min.mjs",
    "xz.js": "xz-decompress/dist/package/xz-decompress.min.js",
}
LICENSES = "LICENSES.txt"
NOTICES = ("LICENSE", "ThirdPartyNotices.txt")  # in onnxruntime's Python package
EXAMPLES = 2  # of each label and language


def models(run: Path | None) -> dict[str, Path]:
    """The folders of teacher, student, and student without distillation.

    Raises:
        CometError: a student is not there, or has another tokenizer than the teacher.
    """
    students = {name: STUDENTS / name for name in list(TITLES)[1:]}
    if run is not None:
        students = dict(zip(students, (run / "student", run / "work" / "baseline"), strict=True))
    teacher = ASSETS / "teacher"
    pieces = read_json(teacher / "tokenizer.json")
    for folder in students.values():
        if not folder.is_dir():
            raise CometError(
                f"{folder} is not there: name a folder that distill wrote (make site RUN=DIR)"
            )
        own = folder / "tokenizer.json"
        if own.is_file() and read_json(own) != pieces:
            raise CometError(f"{folder} has another tokenizer than the teacher; distill it again")
    return {"teacher": teacher, **students}


def earlier(run: Path | None, folders: Mapping[str, Path]) -> dict[str, Path]:
    """The student's folders before and after stage 1, by what the page calls them.

    Where the student of stage 1 is not kept, there is no earlier one to show. Both have a head for
    sentiment that nothing has trained.
    """
    config, teacher = folders["student"] / "config.json", folders["teacher"]
    body = run / "work" / "agnostic" if run else STUDENTS / STAGE_ONE
    if not body.is_dir():
        return {}

    def untrained(new: Path) -> None:
        student = fresh(folders["student"])
        initialize_embeddings(student, load_model(teacher))
        with quiet():
            student.save_pretrained(new)

    weights = (teacher / "model.safetensors").read_bytes()
    first = kept("untrained", [config.read_bytes(), weights], untrained)
    if run:
        weights = (body / "model.safetensors").read_bytes()
        body = kept(STAGE_ONE, [config.read_bytes(), weights], partial(after_stage_one, run))
    return {"untrained": first, "after stage 1": body}


def fresh(folder: Path) -> PreTrainedModel:
    """A model of the shape in ``folder``, with random weights."""
    set_seed(0)
    return build_student(checked_config(folder))


def after_stage_one(run: Path, new: Path, half: bool = False) -> None:
    """Save the run's student of stage 1 under a head for sentiment."""
    student = fresh(run / "student")
    same_body(student, load_model(run / "work" / "agnostic", "masked-lm"))
    (student.half() if half else student).save_pretrained(new)


def store(run: Path, target: Path = STUDENTS) -> None:
    """Keep a run's students in the library, in fp16, with a card; their tokenizer is the teacher's.

    Raises:
        CometError: see :func:`models`; or the run's report cannot be read.
    """
    text = card(read_json(run / "report.json", "rows", "split", "benchmark", "profile", "seed"))
    with whole_folder(target) as new, quiet():
        for name, folder in list(models(run).items())[1:]:
            load_model(folder).half().save_pretrained(new / name)
        after_stage_one(run, new / STAGE_ONE, half=True)
        (new / "README.md").write_text(text, "utf-8")


def card(report: Mapping[str, Any]) -> str:
    """The students' model card."""
    codes = [*report["languages"], "mean"]
    found = {row["name"]: row for row in report["rows"]}
    rows = [
        (name, *(f"{found[name]['weighted_f1'][code]:.1f}" for code in codes)) for name in TITLES
    ]
    what = "AfriSenti" if report["benchmark"] else "the bundled sample, which is no benchmark"
    return f"""---
license: cc-by-4.0
language: [{", ".join(report["languages"])}]
library_name: transformers
pipeline_tag: text-classification
tags: [afrisenti, sentiment-analysis, distillation]
---
# The playground's students

Two encoders of {found["student"]["parameters"]:,} parameters: `student` learned from the bundled
teacher in two stages, `student_no_distillation` from the labels only; `{STAGE_ONE}` is
the student before it has seen a label, under a head with random weights. Stored as fp16
safetensors; their tokenizer is the teacher's (`../teacher`). Labels: {", ".join(LABELS)}.

Weighted F1 in percent on {what}, split {report["split"]}:

{markdown_table(("", *codes), rows)}

**Data and license.** AfriSenti's training tweets (Muhammad et al., EMNLP 2023), CC BY 4.0, as are
these weights; the teacher's card names what it saw besides.
**Recipe.** `python -m comet_lib distill --data DIR --profile {report["profile"]}
--seed {report["seed"]}`, then `python tools/build_playground.py --run runs/distill --store`.
**Limits.** They know tweets and little else, follow the label frequencies of AfriSenti, and must
not be used to judge people. Scores differ between languages.
"""


# ---- what the page loads


def kept(name: str, made_from: Iterable[bytes], make: Callable[[Path], object]) -> Path:
    """What ``make`` writes: a folder in KEPT, made only once from the same bytes."""
    key = hashlib.sha256()
    for one in made_from:
        key.update(hashlib.sha256(one).digest())
    folder = KEPT / f"{name}-{key.hexdigest()[:16]}"
    if not folder.is_dir():
        with whole_folder(folder) as new:
            make(new)
    return folder


def exported(folder: Path, force: bool = False) -> Path:
    """The model in ``folder`` as ``export --int8 --attentions`` writes it.

    ``force`` takes also a model whose answers are too near to a tie to survive int8.
    """

    def make(new: Path) -> None:
        dev = load_sentiment(TINY)["dev"]
        rows = [dev[name][:] for name in ("text", "label", "language")]
        tokenizer = load_tokenizer(ASSETS / "teacher")
        onnx.export(
            load_model(folder), tokenizer, new, *rows, int8=True, attentions=True, force=force
        )

    files = [*sorted(folder.glob("*.*")), *(Path(str(one.__file__)) for one in (onnx, loading))]
    packages = [version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")]
    made_from = [*(file.read_bytes() for file in files), *(one.encode() for one in packages)]
    return kept(folder.name, made_from, make)


def pack(content: bytes, path: Path) -> None:
    """Write ``content``, packed with xz where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".xz":
        path.write_bytes(content)
        return

    def make(new: Path) -> None:  # the page's reader knows only this check
        (new / "packed").write_bytes(lzma.compress(content, check=lzma.CHECK_CRC32))

    shutil.copy(kept(path.name, [content], make) / "packed", path)


def licenses(packages: Path) -> str:
    """The license texts of what ``vendor`` holds.

    onnxruntime-web comes without any, so those of onnxruntime's Python package stand for it; a
    package that names MIT without its text gets the text, under the notices in its code.
    """
    runtime = distribution("onnxruntime")
    texts = [str(runtime.read_text(f"../onnxruntime/{name}")) for name in NOTICES]
    mit = texts[0][texts[0].index("Permission is hereby granted") :]
    parts = []
    for name in dict.fromkeys(path.split("/dist/")[0] for path in PACKAGES.values()):
        about = read_json(packages / name / "package.json", "version", "license")
        text = "\n".join(texts)
        if name != "onnxruntime-web":
            own = packages / name / "LICENSE"
            code = next(path for path in PACKAGES.values() if path.startswith(name))
            notice = (packages / code).read_text("utf-8").partition("*/")[0]
            notice = notice.removeprefix("/*!").replace("\n * ", "\n").strip()
            text = own.read_text("utf-8") if own.is_file() else f"{notice}\n\n{mit}"
        parts.append(f"{name} {about['version']}: {about['license']}\n\n{text}")
    return f"\n\n{'=' * 80}\n\n".join(parts)


def build(
    folders: Mapping[str, Path],
    before: Mapping[str, Path],
    out: Path,
    packages: Path = SOURCE / "node_modules",
) -> None:
    """Build the playground in ``out`` from the models in ``folders``, by their names in TITLES,
    and from the student's :func:`earlier` ones.

    Raises:
        CometError: a model cannot be exported, or ``npm ci`` has not run.
    """
    if not packages.is_dir():
        raise CometError(f"{packages} is not there: run npm ci in {SOURCE}, or make playground")
    if out.exists():
        shutil.rmtree(out)
    for source in SOURCE.glob("*.*"):
        if source.suffix in (".html", ".css", ".mjs", ".svg"):
            pack(source.read_bytes(), out / source.name)
    for name in ("lens.js", "lens.css"):
        shutil.copy(LENS / name, out)
    for name, package in PACKAGES.items():
        pack((packages / package).read_bytes(), out / "vendor" / name)
    pack(licenses(packages).encode(), out / "vendor" / LICENSES)

    def graph(name: str, made: Path) -> str:
        file = f"models/{name}.onnx.xz"
        pack((made / onnx.INT8).read_bytes(), out / file)
        return file

    listed = []
    for name, folder in folders.items():
        made = exported(folder)
        for file, packed in (("tokenizer.json", ".xz"), ("tokenizer_config.json", "")):
            pack((made / file).read_bytes(), out / f"{file}{packed}")
        report = read_json(made / "export.json", "parameters", "bytes")
        names = load_model(folder).config.id2label
        listed.append(
            {
                "name": name,
                "title": TITLES[name],
                "file": graph(name, made),
                "earlier": [
                    {
                        "title": title,
                        "file": graph(title.replace(" ", "_"), exported(one, force=True)),
                    }
                    for title, one in before.items()
                    if name == "student"
                ],
                "labels": [names[i] for i in range(len(LABELS))],
                "parameters": report["parameters"],
                "bytes": report["bytes"],
            }
        )
    chosen = examples(load_sentiment(TINY)["test"])
    text = json.dumps({"models": listed, "examples": chosen}, ensure_ascii=False)
    pack(text.encode(), out / "models.json")


def examples(table: Any) -> list[dict[str, str]]:
    """A few sentences of each language and label, the first of them Swahili."""
    found: dict[tuple[str, int], list[dict[str, str]]] = {}
    for row in table:
        text = row["text"]
        few = found.setdefault((row["language"], row["label"]), [])
        if len(few) < EXAMPLES:
            few.append({"language": row["language"], "text": text, "english": english(text) or ""})
    rows = [row for few in found.values() for row in few]
    return sorted(rows, key=lambda row: row["language"] != "swa")


def later(out: Path) -> list[str]:
    """The built page's files that a first visit does not load."""
    listed = read_json(out / "models.json", "models")["models"]
    return [f"vendor/{LICENSES}", *(one["file"] for model in listed for one in model["earlier"])]


def main(
    out: Annotated[Path, typer.Option(help="The playground's folder.")] = ROOT
    / "build"
    / "site"
    / "playground",
    run: Annotated[
        Path | None, typer.Option(help="A folder that distill wrote (default: bundled students).")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--store", help="Only keep the run's students in the library.")
    ] = False,
) -> None:
    """Build the playground."""
    try:
        if keep:
            if run is None:
                raise CometError("--store keeps the students of a run: name its folder with --run")
            store(run)
            typer.echo(f"wrote {STUDENTS}")
            return
        folders = models(run)
        build(folders, earlier(run, folders), out.resolve())
    except CometError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
    late = {out / file for file in later(out)}
    size = sum(
        file.stat().st_size for file in out.rglob("*") if file.is_file() and file not in late
    )
    typer.echo(f"a first visit loads {size / 1e6:.2f} MB; python3 -m http.server -d {out}")


if __name__ == "__main__":
    typer.run(main)
