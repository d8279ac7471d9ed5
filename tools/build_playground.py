"""Build the playground: a static page on which teacher and student answer what a reader types.

    python tools/build_playground.py --run runs/distill     # into build/site/playground
    python tools/build_playground.py --run DIR --store      # first keep its students in the library

The page's own source is in ``playground/``; ``npm ci`` there fetches what it loads. The models are
what ``export --int8 --attentions`` writes from the bundled teacher and from the two students of a
run that ``distill`` wrote, or from those in ``comet_lib/assets/students``. Large files are packed
with xz, which the page unpacks itself: a plain server need not compress anything.
"""

from __future__ import annotations

import json
import lzma
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from comet_lib.data import load_sentiment
from comet_lib.errors import CometError
from comet_lib.files import whole_folder
from comet_lib.lens.export import HERE as LENS
from comet_lib.loading import load_model, load_tokenizer
from comet_lib.models import quiet
from comet_lib.profiles import ASSETS, LABELS, TINY
from comet_lib.ship import onnx

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "playground"
STUDENTS = ASSETS / "students"
TITLES = {
    "teacher": "teacher",
    "student": "student",
    "student_no_distillation": "student without a teacher",
}
PACKAGES = {  # the page's name for a file of a package
    "ort.mjs": "onnxruntime-web/dist/ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs": "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
    "ort.wasm.xz": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "tokenizers.mjs": "@huggingface/tokenizers/dist/tokenizers.min.mjs",
    "xz.js": "xz-decompress/dist/package/xz-decompress.min.js",
}
EXAMPLES = 2  # of each label and language


def models(run: Path | None) -> dict[str, Path]:
    """The folders of teacher, student, and student without distillation.

    Raises:
        CometError: a student is not there.
    """
    students = {name: STUDENTS / name for name in list(TITLES)[1:]}
    if run is not None:
        students = dict(zip(students, (run / "student", run / "work" / "baseline"), strict=True))
    for folder in students.values():
        if not folder.is_dir():
            raise CometError(
                f"{folder} is not there: name a folder that distill wrote (make site RUN=DIR)"
            )
    return {"teacher": ASSETS / "teacher", **students}


def store(run: Path) -> None:
    """Keep a run's students in the library, in fp16; their tokenizer is the teacher's."""
    for name, folder in list(models(run).items())[1:]:
        with whole_folder(STUDENTS / name) as new, quiet():
            load_model(folder).half().save_pretrained(new)


def pack(content: bytes, path: Path) -> None:
    """Write ``content``, packed with xz where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".xz":  # the page's reader knows only this check
        content = lzma.compress(content, check=lzma.CHECK_CRC32)
    path.write_bytes(content)


def build(folders: Mapping[str, Path], out: Path, packages: Path = SOURCE / "node_modules") -> None:
    """Build the playground in ``out`` from the models in ``folders``, by their names in TITLES.

    Raises:
        CometError: a model cannot be exported, has another tokenizer than the teacher, or
            ``npm ci`` has not run.
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

    data = load_sentiment(TINY)
    dev, tokenizer = data["dev"], load_tokenizer(folders["teacher"])
    columns = [dev[name][:] for name in ("text", "label", "language")]
    pieces = json.loads((folders["teacher"] / "tokenizer.json").read_text("utf-8"))
    listed = []
    for name, folder in folders.items():
        own = folder / "tokenizer.json"
        if own.is_file() and json.loads(own.read_text("utf-8")) != pieces:
            raise CometError(f"{folder} has another tokenizer than the teacher; distill it again")
        with tempfile.TemporaryDirectory() as temporary:
            exported = Path(temporary) / name
            model = load_model(folder)
            report = onnx.export(model, tokenizer, exported, *columns, int8=True, attentions=True)
            pack((exported / onnx.INT8).read_bytes(), out / "models" / f"{name}.onnx.xz")
            for file, packed in (("tokenizer.json", ".xz"), ("tokenizer_config.json", "")):
                pack((exported / file).read_bytes(), out / f"{file}{packed}")
        listed.append(
            {
                "name": name,
                "title": TITLES[name],
                "file": f"models/{name}.onnx.xz",
                "labels": [model.config.id2label[i] for i in range(len(LABELS))],
                "parameters": report["parameters"],
                "bytes": report["bytes"],
            }
        )
    text = json.dumps({"models": listed, "examples": examples(data["test"])}, ensure_ascii=False)
    pack(text.encode(), out / "models.json")


def examples(table: Any) -> list[dict[str, str]]:
    """A few sentences of each language and label, the first of them Swahili."""
    found: dict[tuple[str, int], list[dict[str, str]]] = {}
    for row in table:
        few = found.setdefault((row["language"], row["label"]), [])
        if len(few) < EXAMPLES:
            few.append({"language": row["language"], "text": row["text"], "english": ""})
    rows = [row for few in found.values() for row in few]
    return sorted(rows, key=lambda row: row["language"] != "swa")


def main(
    out: Annotated[Path, typer.Option(help="The playground's folder.")] = ROOT
    / "build"
    / "site"
    / "playground",
    run: Annotated[
        Path | None, typer.Option(help="A folder that distill wrote (default: bundled students).")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--store", help="First keep the run's students in the library.")
    ] = False,
) -> None:
    """Build the playground."""
    try:
        if keep and run is not None:
            store(run)
        build(models(run), out.resolve())
    except CometError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    typer.echo(f"a first visit loads {size / 1e6:.2f} MB; python3 -m http.server -d {out}")


if __name__ == "__main__":
    typer.run(main)
