"""What a stage-1 step costs in each of its forms, and what an answer costs, as ratios.

Steps on the same rows, with random weights, and the same losses, optimizer, dtype and threads:

- naive: the teacher in the loop; both models return every layer's and head's attention, and logits
  over the whole vocabulary at every position;
- lean: the library's step, with the maps and logits that the losses use;
- cached: the same with the teacher's answers from disk;
- cached + trimmed: the student's vocabulary cut to the pieces that the languages use;
- cached, sparse input gradient: adds the gradient of the rows that were looked up to that of the
  masked-LM head in place, where torch builds a second table of zeros. Same sum, same training;
- cached, embeddings frozen: no gradient for the table. Another training, which needs a thaw later.

Answers come from fp32 weights as ``transformers`` loads them, bf16, the graphs of
:mod:`comet_lib.ship.onnx`, and ``torch.compile``.
"""

from __future__ import annotations

import copy
import itertools
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import Tensor
from torch.utils.benchmark import Timer, timer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from comet_lib import plots
from comet_lib.attention import capture, layer_map
from comet_lib.batches import MaskingCollator, tokenize
from comet_lib.files import write_json, write_text
from comet_lib.loading import load_tokenizer
from comet_lib.losses import attention_loss, soft_target_loss
from comet_lib.models import build_student, xlmr_config
from comet_lib.objectives import Objective, questions_for
from comet_lib.processes import processes
from comet_lib.profiles import LAPTOP, PAPER_STUDENT, PAPER_TEACHER, PAPER_VOCABULARY, shape
from comet_lib.report import markdown_table
from comet_lib.ship.onnx import INPUTS, session, write_int8, write_onnx
from comet_lib.teacher import BATCH, LiveTeacher, Questions, StoredCollator, shard_columns

Batch = dict[str, Any]
EPOCHS = 15  # of the paper's stage 1
TEMPERATURE = 2.0
WEIGHTS = {"soft_targets": 0.5, "attention_kl": 0.5}
KINDS = ("naive", "lean", "cached", "cached + trimmed")
COLUMNS = ("seconds", "forward", "backward", "optimizer")


@dataclass(frozen=True)
class Sizes:
    """Models, vocabularies, and tokens (at most 128) of a step's rows and of the answered row."""

    teacher: Mapping[str, Any]
    student: Mapping[str, Any]
    vocabulary: int
    trimmed: int
    batch: int = 8
    length: int = 64
    answered: int = 128
    turns: int = 3
    forms: tuple[str, ...] = ("fp32", "bf16", "ONNX", "ONNX int8")

    @property
    def matches(self) -> dict[int, int]:
        """Student layer -> teacher layer."""
        depths = self.student["num_hidden_layers"], self.teacher["num_hidden_layers"]
        return dict(enumerate(layer_map(*depths)))


#: 28,779 pieces are those that AfriSenti and the texts of five languages use.
PAPER = Sizes(PAPER_TEACHER, PAPER_STUDENT, PAPER_VOCABULARY, trimmed=28_779)
_SMALL = (shape(192, 8, 4, 768), shape(48, 2, 4, 192), 24_000)
QUICK = Sizes(*_SMALL, trimmed=2_000, length=32, answered=32, forms=("fp32", "bf16"))


def side_by_side(
    runs: Mapping[str, Callable[[], object]], turns: int, at_least: float = 0.0
) -> dict[str, float]:
    """The median seconds of one call of each run, the GPU's work included.

    They take ``turns``, so that a busy machine slows all of them down. A turn is a call to warm up,
    and then as many as fill ``at_least`` seconds (or one).
    """
    threads = torch.get_num_threads()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            clock = Timer("run()", globals={"run": run}, num_threads=threads)
            found[name] += clock.blocked_autorange(min_run_time=at_least).times
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def machine() -> str:
    """What the figures belong to."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"{device}, threads: {torch.get_num_threads()}, torch {torch.__version__}"


def random_texts(tokenizer: PreTrainedTokenizerBase, rows: int, length: int) -> list[str]:
    """``rows`` texts of ``length`` words: at least as many tokens, to be cut to that length."""
    words = sorted(filter(str.isalpha, tokenizer.get_vocab()))
    return [" ".join(random.choices(words, k=length)) for _ in range(rows)]


def random_model(sizes: Mapping[str, Any], vocabulary: int, head: str) -> PreTrainedModel:
    """A model of these sizes for up to 128 tokens, on this process's device, in eval mode."""
    return build_student(xlmr_config(sizes, vocabulary, 128), head).eval().to(processes().device)


def attended(model: Any, **text: Tensor) -> Any:
    """The output with the attention of every layer and head, which only eager attention returns."""
    model.set_attn_implementation("eager")
    try:
        return model(**text, output_attentions=True)
    finally:
        model.set_attn_implementation("sdpa")


def naive_loss(student: Any, batch: Batch, teacher: Any, matches: Mapping[int, int]) -> Tensor:
    """Stage 1's loss as one first writes it: every head of every layer, every logit.

    ``matches`` maps student layers to teacher layers. Equals the lean step's loss.
    """
    text = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    masked = batch["labels"] != -100
    with torch.no_grad():
        theirs = attended(teacher, **text)
    ours = attended(student, **text)
    soft = soft_target_loss(ours.logits[masked], theirs.logits[masked], TEMPERATURE)
    attention = attention_loss(
        [ours.attentions[i].mean(1) for i in matches],
        [theirs.attentions[j].mean(1) for j in matches.values()],
        text["attention_mask"],
        kind="kl",
    )
    return WEIGHTS["soft_targets"] * soft + WEIGHTS["attention_kl"] * attention


def library_loss(student: PreTrainedModel, batch: Batch, objective: Objective) -> Tensor:
    """The library's loss, its captures opened for one step."""
    with objective.on(student) as terms_of:
        return terms_of(student, batch)["loss"]


def read(answers: Dataset, collator: StoredCollator, rows: int, pieces: int = 0) -> Batch:
    """A batch of the first ``rows`` stored answers, as of a teacher with only ``pieces``."""
    batch = collator([answers[i] for i in range(rows)])
    for name in ("input_ids", "top_indices") if pieces else ():
        batch[name] = batch[name] % pieces
    return batch


@dataclass
class Step:
    """Calling it takes one optimizer step, and appends to ``parts`` the seconds of the forward pass
    (reading the batch and the loss included), the backward pass and the optimizer."""

    student: PreTrainedModel
    loss: Callable[[PreTrainedModel, Batch], Tensor]
    batch: Callable[[], Batch]
    parts: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        trained = [weight for weight in self.student.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def __call__(self) -> None:
        clock = [timer()]
        loss = self.loss(self.student.train(), send_to_device(self.batch(), self.student.device))
        clock.append(timer())
        loss.backward()
        clock.append(timer())
        self.optimizer.step()
        self.optimizer.zero_grad()
        clock.append(timer())
        self.parts.append([after - before for before, after in itertools.pairwise(clock)])


def measure_steps(
    sizes: Sizes, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, dict[str, float]]:
    """Seconds of every step and of its parts (:data:`COLUMNS`)."""
    full, sparse, frozen, trimmed = (
        random_model(sizes.student, pieces, "masked-lm")
        for pieces in (*[sizes.vocabulary] * 3, sizes.trimmed)
    )
    embeddings: Any = sparse.get_input_embeddings()
    embeddings.sparse = True
    frozen.get_input_embeddings().requires_grad_(False)
    terms = (WEIGHTS, sizes.matches, TEMPERATURE)
    table = tokenize(random_texts(tokenizer, sizes.batch, sizes.length), tokenizer, sizes.length)
    with tempfile.TemporaryDirectory() as folder:
        stored, answers, collator = Objective.stored(
            folder, table, teacher, tokenizer, *terms, bar=False, max_length=sizes.length
        )
        naive = partial(naive_loss, teacher=teacher, matches=sizes.matches)
        lean = partial(library_loss, objective=Objective.live(teacher, *terms))
        cached = partial(library_loss, objective=stored)
        batch = partial(read, answers, collator, sizes.batch)
        text = {name: batch()[name] for name in ("input_ids", "attention_mask", "labels")}
        steps = {
            "naive": Step(full, naive, partial(dict, text)),
            "lean": Step(full, lean, partial(dict, text)),
            "cached": Step(full, cached, batch),
            "cached + trimmed": Step(trimmed, cached, partial(batch, sizes.trimmed)),
            "cached, sparse input gradient": Step(sparse, cached, batch),
            "cached, embeddings frozen": Step(frozen, cached, batch),
        }
        seconds = side_by_side(steps, sizes.turns)
    return {
        name: dict(zip(COLUMNS, (seconds[name], *np.median(step.parts[1:], axis=0)), strict=True))
        for name, step in steps.items()
    }


@torch.no_grad()
def measure_teacher(
    sizes: Sizes, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, float]:
    """Seconds per row of a plain pass and of caching, and megabytes of the attention that a pass
    over one row keeps: head means of the matched layers, or every head of every layer."""
    table = tokenize(random_texts(tokenizer, BATCH, sizes.length), tokenizer, sizes.length)
    batch = send_to_device(MaskingCollator(tokenizer)(list(table)), teacher.device)
    questions = questions_for(WEIGHTS, sizes.matches, max_length=sizes.length)
    forward = partial(LiveTeacher(teacher, Questions()), batch)
    caching = partial(shard_columns, table, 0, teacher, tokenizer, questions)
    seconds = side_by_side({"forward": forward, "caching": caching}, sizes.turns)
    ids = torch.randint(4, sizes.vocabulary, (1, sizes.answered), device=teacher.device)
    with capture(teacher, list(sizes.matches.values())) as maps:
        teacher.base_model(ids)
        kept = sum(one.nbytes for one in maps.values())
    returned = attended(teacher.base_model, input_ids=ids).attentions
    return {
        **{name: seconds[name] / BATCH for name in seconds},
        "capture_mb": kept / 1e6,
        "eager_mb": sum(one.nbytes for one in returned) / 1e6,
    }


def build_form(model: Any, form: str, folder: Path) -> Callable[[Tensor, Tensor], Any]:
    """What answers (input_ids, attention_mask), int64 (B, L), with logits (B, 3) on the CPU.

    onnxruntime takes inputs only from the CPU; its graphs are written to ``folder``.
    """
    if form.startswith("ONNX"):
        path = folder / "fp32.onnx"
        if not path.is_file():
            write_onnx(model, path)
        if form == "ONNX int8":
            write_int8(path, folder / "int8.onnx")
            path = folder / "int8.onnx"
        graph, (ids_name, mask_name) = session(path), INPUTS
        return lambda ids, mask: graph.run(
            ["logits"], {ids_name: ids.numpy(), mask_name: mask.numpy()}
        )[0]
    if form == "bf16":
        model = copy.deepcopy(model).to(torch.bfloat16)
    if form == "compiled":
        model = torch.compile(model)

    @torch.inference_mode()
    def answer(ids: Tensor, mask: Tensor) -> Tensor:
        return model(input_ids=ids, attention_mask=mask).logits.float().cpu()

    return answer


def measure_answers(sizes: Sizes) -> tuple[dict[str, float], list[str]]:
    """Seconds of an answer by the teacher in fp32, and by the student in each of ``sizes.forms``;
    and a line for each form that cannot be built here, with the reason."""
    teacher, student = (
        random_model(one, sizes.vocabulary, "sentiment") for one in (sizes.teacher, sizes.student)
    )
    ids = torch.randint(4, sizes.vocabulary, (1, sizes.answered), device=student.device)
    runs: dict[str, Callable[[], object]] = {}
    left_out = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("teacher", *sizes.forms):
            model, form = (teacher, "fp32") if name == "teacher" else (student, name)
            try:
                run = partial(build_form(model, form, Path(folder)), ids, torch.ones_like(ids))
                run()
                runs[name] = run
            except Exception as error:  # no compiler, no package, an unknown operator
                reason = str(error).partition("\n")[0]
                left_out.append(f"{name}: {type(error).__name__}: {reason}")
        return side_by_side(runs, sizes.turns, at_least=0.1), left_out


def benchmark(sizes: Sizes = PAPER, compiled: bool = False) -> dict[str, Any]:
    """Everything: ``machine``, ``sizes``, ``ratios`` (dimensionless), ``steps``, ``growth``,
    ``teacher``, ``answers`` (seconds), and what was ``left_out``.

    ``compiled`` adds the student compiled by torch. Deterministic but for the clock.
    """
    set_seed(0)
    if compiled:
        sizes = replace(sizes, forms=(*sizes.forms, "compiled"))
    tokenizer = load_tokenizer(LAPTOP.teacher)
    teacher = random_model(sizes.teacher, sizes.vocabulary, "masked-lm")
    growth: list[dict[str, Any]] = []
    for rows, tokens in ((4, 1), (2, 1), (1, 4), (1, 2), (1, 1)):  # shares; the full step is last
        part = replace(sizes, batch=sizes.batch // rows, length=sizes.length // tokens)
        steps = measure_steps(part, teacher, tokenizer)
        size = {"batch": part.batch, "length": part.length}
        growth += [{"step": name, **size, "seconds": steps[name]["seconds"]} for name in KINDS]
    report: dict[str, Any] = {
        "machine": machine(),
        "sizes": asdict(sizes),
        "steps": steps,
        "growth": growth,
        "teacher": measure_teacher(sizes, teacher, tokenizer),
    }
    del teacher
    report["answers"], report["left_out"] = measure_answers(sizes)
    return {"ratios": ratios(report), **report}


def ratios(report: Mapping[str, Any]) -> dict[str, float]:
    """The figures that may travel to another machine, in the order in which they are told."""
    step = {name: row["seconds"] for name, row in report["steps"].items()}
    naive, teacher = step.pop("naive"), report["teacher"]
    once = teacher["caching"] * report["sizes"]["batch"]  # caching the rows of a step
    found = {f"{name} step, times faster than naive": naive / own for name, own in step.items()}
    for name, text in (("cached", "a cache"), ("cached + trimmed", "cache and trimming")):
        key = f"{EPOCHS} epochs with {text}, its making included, times faster"
        found[key] = EPOCHS * naive / (EPOCHS * step[name] + once)
    share = 100 * teacher["capture_mb"] / teacher["eager_mb"]
    found["caching a row, in teacher forward passes"] = teacher["caching"] / teacher["forward"]
    found["memory for captured attention, percent of eager's"] = share
    of_teacher, *answers = report["answers"].items()
    for form, seconds in answers:
        key = f"student's answer ({form}), times faster than the teacher's (fp32)"
        found[key] = of_teacher[1] / seconds
    return found


def benchmark_text(report: Mapping[str, Any]) -> str:
    """The report as Markdown: ratios first, then the seconds and megabytes they come from."""
    sizes, teacher = report["sizes"], report["teacher"]
    ratio = [(name, f"{value:.2f}") for name, value in report["ratios"].items()]
    steps = [(name, *(row[column] for column in COLUMNS)) for name, row in report["steps"].items()]
    answers = [(name, 1000 * seconds) for name, seconds in report["answers"].items()]
    left_out = "".join(f"\n\nLeft out: {line}" for line in report["left_out"])
    return f"""{markdown_table(("ratio", "figure"), ratio)}

{report["machine"]}, fp32 unless a row says otherwise, random weights. Medians, every row on the \
same texts.

One step of {sizes["batch"]} rows of {sizes["length"]} tokens:

{markdown_table(("step", *COLUMNS), steps)}

Caching: {teacher["caching"]:.4f} seconds per row, a plain pass of the teacher \
{teacher["forward"]:.4f}. Attention of a row of {sizes["answered"]} tokens takes \
{teacher["capture_mb"]:.2f} MB by capture and {teacher["eager_mb"]:.2f} MB by eager.

One answer (three logits) to a row of {sizes["answered"]} tokens by the teacher, and by the student:

{markdown_table(("form", "ms"), answers)}{left_out}"""


def write_report(file: Path, report: Mapping[str, Any], head: str, text: str) -> None:
    """The figures as ``file`` (JSON), and beside it ``text`` under ``head`` as Markdown."""
    write_json(file, report)
    write_text(file.with_suffix(".md"), f"{head}\n\n{text}\n")


def write_benchmark(report: Mapping[str, Any], output: str | Path) -> None:
    """``report.json``, ``report.md`` and ``cost.png`` in the folder ``output``."""
    file = Path(output) / "report.json"
    head = "# What a step and an answer cost\n\n`python -m comet_lib lab benchmark` printed:"
    text = f"{benchmark_text(report)}\n\n![Seconds per step by length and batch](cost.png)"
    write_report(file, report, head, text)
    plots.save(plots.cost_growth(report["growth"]), file.with_name("cost.png"))
