"""What each way of taking a stage-1 step costs, and what an answer costs, as ratios.

Four steps on the same rows, with random weights of the paper's sizes, in one process:

- naive: the teacher in the loop, both models with eager attention that returns every layer and
  head, logits over the whole vocabulary at every position, then the losses where they count;
- lean: :class:`~comet_lib.training.TaskAgnostic`, which captures the matched layers' head means and
  makes logits at the masked positions alone;
- cached: :class:`~comet_lib.training.CachedTaskAgnostic`, rows read from a cache on disk;
- cached + trimmed: the same with the student's vocabulary cut to the pieces that the languages use.

All take the same losses and the same optimiser in the same dtype with as many threads. Three more
rows ask what the paper's 64M embedding weights cost a cached step:

- sparse input gradient: the gradient of the rows that were looked up is added to that of the
  masked-LM head in place, where torch first makes a second table of zeros for it. The sum is the
  same, so the training is;
- embeddings frozen: no gradient for the table. Another training: a thaw later is needed;
- trimmed, above.

Updates of a batch's rows alone are no row here, as they would not be the same training: with tied
weights and a softmax over the vocabulary (the tail of the top-k targets is one) every row of the
table has a gradient, and a softmax over sampled pieces is another loss.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from comet_lib import plots
from comet_lib.attention import capture, layer_map
from comet_lib.batches import mask_row, tokenise
from comet_lib.files import write_json, write_text
from comet_lib.lab.backends import measure_answers
from comet_lib.lab.timing import Memory, allocated, machine, side_by_side
from comet_lib.losses import attention_loss, hybrid_loss, soft_target_loss
from comet_lib.models import (
    PAPER_STUDENT,
    PAPER_TEACHER,
    PAPER_VOCABULARY,
    build_student,
    count_parameters,
    only_positions,
    xlmr_config,
)
from comet_lib.processes import processes
from comet_lib.profiles import LAPTOP
from comet_lib.teacher import (
    BATCH,
    CachedCollator,
    CacheSettings,
    cache_targets,
    shard_columns,
)
from comet_lib.training import CachedTaskAgnostic, Objective, TaskAgnostic

TEMPERATURE, ALPHA = 2.0, 0.5


@dataclass(frozen=True)
class Sizes:
    """Shapes (as in :data:`PAPER_STUDENT`), numbers of pieces, and how much to measure.

    ``batch`` rows of ``length`` tokens make a step; ``rows`` rows are cached. An answer is to a
    batch of the ``answer_shapes`` (batch, length). Every figure is the median of ``repeats``
    (answers: ``answer_repeats``, fewer where they would take over ``patience`` seconds).
    ``captured`` (batch, length) is the batch whose attention is captured to see what that takes.
    """

    teacher: Mapping[str, Any]
    student: Mapping[str, Any]
    laptop: Mapping[str, Any]
    vocabulary: int
    trimmed: int
    laptop_vocabulary: int
    batch: int = 8
    length: int = 64
    answer_shapes: tuple[tuple[int, int], ...] = ((1, 32), (1, 128), (32, 32), (32, 128))
    captured: tuple[int, int] = (16, 128)
    rows: int = BATCH
    repeats: int = 3
    answer_repeats: int = 25
    patience: float = 8.0
    student_forms: tuple[str, ...] = ("fp32", "bf16", "ONNX", "ONNX int8")


PAPER = Sizes(
    teacher=PAPER_TEACHER,
    student=PAPER_STUDENT,
    laptop=LAPTOP.student,
    vocabulary=PAPER_VOCABULARY,
    trimmed=28_779,  # the pieces that AfriSenti and the texts of five languages use
    laptop_vocabulary=24_000,
)
_SMALL = {"num_attention_heads": 4, "num_hidden_layers": 2}
QUICK = Sizes(
    teacher={**_SMALL, "num_hidden_layers": 8, "hidden_size": 192, "intermediate_size": 768},
    student={**_SMALL, "hidden_size": 48, "intermediate_size": 192},
    laptop={**_SMALL, "hidden_size": 16, "intermediate_size": 64},
    vocabulary=20_000,
    trimmed=2_000,
    laptop_vocabulary=1_000,
    length=32,
    answer_shapes=((1, 8), (1, 32), (4, 32)),
    captured=(4, 32),
    answer_repeats=5,
    student_forms=("fp32", "bf16"),  # a graph takes seconds to make
)


# --------------------------------------------------------------------------- made-up text


def number_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of ``size`` pieces whose words are w4, w5 ...: text of any length, at will."""
    names = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(4, size - 1)), "<mask>"]
    words = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def number_texts(rows: int, tokens: int, size: int) -> list[str]:
    """``rows`` texts of ``tokens`` tokens, the two special ones among them."""
    words = torch.randint(4, size - 1, (rows, tokens - 2)).tolist()
    return [" ".join(f"w{i}" for i in row) for row in words]


def random_model(
    sizes: Mapping[str, Any], vocabulary: int, length: int, head: str
) -> PreTrainedModel:
    """A model of these sizes on this process's device, in eval mode."""
    config = xlmr_config(sizes, vocabulary, max(length, 128))
    return build_student(config, head).eval().to(processes().device)


# --------------------------------------------------------------------------- the steps


class NaiveTaskAgnostic(TaskAgnostic):
    """Stage 1 as one writes it first: every head of every layer, every logit, then the losses."""

    def __call__(self, student: Any, batch: dict[str, Tensor]) -> dict[str, Any]:
        text = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        masked = batch["labels"] != -100
        for model in (student, self.teacher):
            model.set_attn_implementation("eager")
        with torch.no_grad():
            taught = self.teacher(**text, output_attentions=True)
        learnt = student(**text, output_attentions=True)
        for model in (student, self.teacher):
            model.set_attn_implementation("sdpa")
        soft = soft_target_loss(learnt.logits[masked], taught.logits[masked], self.temperature)
        attention = attention_loss(
            [learnt.attentions[i].mean(1) for i in self.matches],
            [taught.attentions[j].mean(1) for j in self.matches.values()],
            text["attention_mask"],
            kind=self.kind,
        )
        return {"loss": hybrid_loss(soft, attention, self.alpha)}


PARTS = ("forward", "backward", "optimiser")


class Stepper:
    """Calling it takes one optimiser step, the making of its batch included.

    ``parts`` has the seconds of each call's forward pass (batch and loss too), backward pass and
    optimiser. Without ``optimiser``, it makes its own for all that ``student`` trains.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        objective: Objective,
        batch: Callable[[], dict[str, Tensor]],
        optimiser: torch.optim.Optimizer | None = None,
    ) -> None:
        self.student, self.objective, self.batch = student, objective, batch
        self.optimiser = optimiser or adamw(student)
        self.parts: list[tuple[float, ...]] = []

    def __call__(self) -> None:
        device = processes().device
        clock = [self._now()]
        self.student.train()
        loss = self.objective(self.student, {k: v.to(device) for k, v in self.batch().items()})
        clock.append(self._now())
        loss["loss"].backward()
        clock.append(self._now())
        self.optimiser.step()
        self.optimiser.zero_grad()
        clock.append(self._now())
        self.parts.append(tuple(b - a for a, b in itertools.pairwise(clock)))

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def medians(self) -> dict[str, float]:
        """Of each part, without the first call, which warms up."""
        columns = zip(*(self.parts[1:] or self.parts), strict=True)
        return dict(zip(PARTS, map(statistics.median, columns), strict=True))


def adamw(student: PreTrainedModel) -> torch.optim.Optimizer:
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-5, fused=True)


def _cut(row: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """A cached row's first ``tokens`` tokens: shapes as if the text had been so short."""
    n, count = row["length"], len(row["positions"])
    kept = sum(position < tokens for position in row["positions"])
    maps = np.frombuffer(row["maps"], np.uint8).reshape(-1, n, n)[:, :tokens, :tokens]
    each = {
        name: len(row[name]) // max(count, 1) for name in ("top_indices", "top_logprobs", "tail")
    }
    return {
        "input_ids": row["input_ids"][:tokens],
        "length": tokens,
        "positions": row["positions"][:kept],
        "maps": maps.tobytes(),
        **{name: row[name][: kept * size] for name, size in each.items()},
    }


def _trimmed_rows(rows: Sequence[Mapping[str, Any]], pieces: int) -> list[dict[str, Any]]:
    """Cached rows as a trimmed teacher would have given them: only piece numbers change."""
    made = []
    for row in rows:
        masked, k = len(row["positions"]), min(64, pieces)
        top = torch.rand(masked, pieces).topk(k).indices.int()  # k different pieces each
        ids = [i % pieces for i in row["input_ids"]]
        made.append({**row, "input_ids": ids, "top_indices": top.numpy().tobytes()})
    return made


def measure_steps(sizes: Sizes, teacher: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """Seconds and peak memory of the four steps, and of caching against plain forward passes."""
    tokenizer = number_tokenizer(sizes.vocabulary)
    table = tokenise(
        number_texts(sizes.rows, sizes.length, sizes.vocabulary), tokenizer, sizes.length
    )
    depth = sizes.student["num_hidden_layers"]
    matches = dict(
        zip(range(depth), layer_map(depth, sizes.teacher["num_hidden_layers"]), strict=True)
    )
    settings = CacheSettings(tuple(matches.values()), TEMPERATURE, 0, sizes.length)

    memory = Memory()
    memory.start()
    start = time.perf_counter()
    cached: Dataset = cache_targets(folder, table, teacher, tokenizer, settings, bar=False)
    first = time.perf_counter() - start
    caching = {"peak_mb": memory.peak(), "first_seconds": first}
    caching |= measure_caching(table, teacher, tokenizer, settings, sizes)

    collator = CachedCollator(len(settings.layers), int(tokenizer.pad_token_id))
    rows = [cached[i] for i in range(sizes.batch)]
    students = {
        name: random_model(sizes.student, pieces, sizes.length, "masked-lm")
        for name, pieces in (
            ("full", sizes.vocabulary),
            ("sparse", sizes.vocabulary),
            ("frozen", sizes.vocabulary),
            ("trimmed", sizes.trimmed),
        )
    }
    embeddings: Any = students["sparse"].get_input_embeddings()
    embeddings.sparse = True
    students["frozen"].get_input_embeddings().weight.requires_grad_(False)
    optimisers = {name: adamw(student) for name, student in students.items()}
    shared = (matches, TEMPERATURE, ALPHA)
    of_cache = CachedTaskAgnostic(*shared)
    of_teacher = {
        "naive": NaiveTaskAgnostic(teacher, *shared),
        "lean": TaskAgnostic(teacher, *shared),
    }

    def steppers(rows: list[dict[str, Any]], disk: bool = False) -> dict[str, Stepper]:
        """The four steps on these rows; with ``disk``, the cached one reads them there."""
        batch = collator(rows)
        live = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        small = _trimmed_rows(rows, sizes.trimmed)
        made = {
            name: Stepper(students["full"], objective, lambda: live, optimisers["full"])
            for name, objective in of_teacher.items()
        }

        def read() -> dict[str, Tensor]:
            return collator([cached[i] for i in range(sizes.batch)] if disk else rows)

        made["cached"] = Stepper(students["full"], of_cache, read, optimisers["full"])
        made["cached + trimmed"] = Stepper(
            students["trimmed"], of_cache, lambda: collator(small), optimisers["trimmed"]
        )
        return made

    runs = steppers(rows, disk=True)
    for title, name in (
        ("cached, sparse input gradient", "sparse"),
        ("cached, embeddings frozen", "frozen"),
    ):
        runs[title] = Stepper(students[name], of_cache, runs["cached"].batch, optimisers[name])
    steps = side_by_side(runs, sizes.repeats)
    for name, row in steps.items():
        row |= runs[name].medians()
    growth = []
    for batch, length in growth_shapes(sizes):
        if (batch, length) == (sizes.batch, sizes.length):
            timed = {name: steps[name] for name in KINDS}
        else:
            timed = side_by_side(steppers([_cut(row, length) for row in rows[:batch]]), 1)
        growth += [
            {"step": name, "batch": batch, "length": length, **row} for name, row in timed.items()
        ]
    return {
        "steps": steps,
        "caching": caching,
        "growth": growth,
        "student_parameters": count_parameters(students["full"]),
    }


KINDS = ("naive", "lean", "cached", "cached + trimmed")


def growth_shapes(sizes: Sizes) -> list[tuple[int, int]]:
    """(batch, length) of the steps that show how cost grows: to the full ones by doubling."""
    lengths = [(sizes.batch, sizes.length // n) for n in (4, 2)]
    batches = [(sizes.batch // n, sizes.length) for n in (4, 2)]
    return [*lengths, *batches, (sizes.batch, sizes.length)]


def measure_capture(teacher: PreTrainedModel, sizes: Sizes) -> dict[str, float]:
    """Megabytes that attention takes in a forward pass of the teacher, above a pass without it:
    the matched layers' head means by ``capture``, and all heads of all layers by eager."""
    ids = torch.randint(4, sizes.vocabulary, sizes.captured, device=teacher.device)
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    layers = layer_map(sizes.student["num_hidden_layers"], sizes.teacher["num_hidden_layers"])
    body = teacher.base_model

    @torch.no_grad()
    def captured() -> None:
        with capture(teacher, layers) as maps:
            body(**text)
            assert len(maps) == len(layers)

    @torch.no_grad()
    def eager() -> None:
        teacher.set_attn_implementation("eager")
        body(**text, output_attentions=True)
        teacher.set_attn_implementation("sdpa")

    with torch.no_grad():
        plain = allocated(lambda: body(**text))
    return {
        "plain_mb": plain,
        "capture_mb": allocated(captured) - plain,
        "eager_mb": allocated(eager) - plain,
    }


def measure_caching(
    table: Dataset,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    settings: CacheSettings,
    sizes: Sizes,
) -> dict[str, float]:
    """Seconds a row: of caching (without the checks before and after), and of the same batches
    through the teacher's body and masked-LM head at the masked positions alone."""
    device = processes().device
    made = [mask_row(ids, tokenizer, settings.seed, i) for i, ids in enumerate(table["input_ids"])]

    @torch.no_grad()
    def forward() -> None:
        for at in range(0, len(made), BATCH):  # rows of one length: no padding
            ids = torch.stack([torch.from_numpy(m[0]).long() for m in made[at : at + BATCH]])
            masked = torch.zeros_like(ids, dtype=torch.bool)
            for row, (_, positions) in enumerate(made[at : at + BATCH]):
                masked[row, positions] = True
            with only_positions(teacher, masked.to(device)):
                mask = torch.ones_like(ids).to(device)
                teacher(input_ids=ids.to(device), attention_mask=mask)

    def caching() -> None:
        shard_columns(table, 0, teacher, tokenizer, settings, device)

    timed = side_by_side(
        {"forward": forward, "caching": caching}, sizes.repeats, 2.5 * sizes.patience
    )
    return {f"{name}_seconds_a_row": timed[name]["seconds"] / len(made) for name in timed}


# --------------------------------------------------------------------------- the report


def benchmark(sizes: Sizes = PAPER, epochs: int = 15, compiled: bool = False) -> dict[str, Any]:
    """Everything: ``machine``, ``sizes``, ``ratios`` (dimensionless), ``steps``, ``caching``,
    ``capture``, ``growth``, ``answers`` and what was ``left_out``.

    ``compiled`` adds the students compiled by torch. Deterministic but for the clock.
    """
    set_seed(0)
    began = time.perf_counter()
    longest = max(sizes.length, sizes.captured[1], *(length for _, length in sizes.answer_shapes))
    teacher = random_model(sizes.teacher, sizes.vocabulary, longest, "masked-lm")
    with tempfile.TemporaryDirectory() as folder:
        made = measure_steps(sizes, teacher, Path(folder) / "cache")
        attention = measure_capture(teacher, sizes)
        del teacher
        models = {
            "teacher": random_model(sizes.teacher, sizes.vocabulary, longest, "sentiment"),
            "student": random_model(sizes.student, sizes.vocabulary, longest, "sentiment"),
            "laptop student": random_model(
                sizes.laptop, sizes.laptop_vocabulary, longest, "sentiment"
            ),
        }
        forms = (*sizes.student_forms, *(["compiled"] if compiled else []))
        answers, left_out = measure_answers(
            models,
            {"teacher": ("fp32", "bf16"), "student": forms, "laptop student": forms},
            sizes.answer_shapes,
            Path(folder),
            sizes.answer_repeats,
            sizes.patience,
        )
    if not compiled:
        left_out.append("students, compiled: --compile adds them (about a minute each)")
    return {
        "machine": machine(),
        "minutes": (time.perf_counter() - began) / 60,
        "sizes": asdict(sizes),
        "parameters": {
            "teacher": count_parameters(models["teacher"]),
            "student": made["student_parameters"],
        },
        "ratios": ratios(sizes, epochs, made, attention, answers),
        **{name: made[name] for name in ("steps", "caching", "growth")},
        "capture": attention,
        "answers": answers,
        "left_out": left_out,
    }


def ratios(
    sizes: Sizes,
    epochs: int,
    made: Mapping[str, Any],
    attention: Mapping[str, float],
    answers: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    """The figures that may travel to another machine, in the order in which they are told."""
    steps, caching = made["steps"], made["caching"]
    naive = steps["naive"]["seconds"]
    once = caching["caching_seconds_a_row"] * sizes.batch  # the caching of a step's rows
    found = {
        f"{name} step, times faster than naive": naive / row["seconds"]
        for name, row in steps.items()
        if name != "naive"
    }
    for name, text in (("cached", "a cache"), ("cached + trimmed", "cache and trimming")):
        whole = epochs * steps[name]["seconds"] + once
        found[f"{epochs} epochs with {text}, its making included, times faster"] = (
            epochs * naive / whole
        )
    found["caching a row, in teacher forward passes"] = (
        caching["caching_seconds_a_row"] / caching["forward_seconds_a_row"]
    )
    found["memory for captured attention, percent of eager's"] = (
        100 * attention["capture_mb"] / attention["eager_mb"]
    )
    batch, length = max(shape for shape in sizes.answer_shapes if shape[0] == 1)
    here = [row for row in answers if (row["batch"], row["length"]) == (batch, length)]
    seconds = {(row["model"], row["form"]): row["seconds"] for row in here}
    for name in ("student", "laptop student"):
        best = min(
            (form for model, form in seconds if model == name), key=lambda f: seconds[name, f]
        )
        for form in dict.fromkeys(("fp32", best)):
            found[f"{name}'s answer ({form}), times faster than the teacher's (fp32)"] = (
                seconds["teacher", "fp32"] / seconds[name, form]
            )
    return found


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table; the first column is text, the others are numbers."""

    def cell(value: object) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    head = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return [*head, *("| " + " | ".join(map(cell, row)) + " |" for row in rows)]


def benchmark_text(report: Mapping[str, Any]) -> str:
    """The report as Markdown: ratios first, then the seconds and megabytes they come from."""
    sizes, on, caching = report["sizes"], report["machine"], report["caching"]
    count, attention = report["parameters"], report["capture"]
    batch, length = sizes["captured"]
    steps = [
        (name, row["seconds"], *(row[part] for part in PARTS), row["peak_mb"], row["extra_mb"])
        for name, row in report["steps"].items()
    ]
    answers = [
        (
            f"{row['model']}, {row['form']}",
            f"{row['batch']} x {row['length']}",
            1000 * row["seconds"],
            row["extra_mb"],
            row["calls"],
        )
        for row in report["answers"]
    ]
    growth: dict[tuple[int, int], list[float]] = {}
    for row in report["growth"]:
        growth.setdefault((row["batch"], row["length"]), []).append(row["seconds"])
    lines = [
        *_table(("ratio", "figure"), [(k, f"{v:.2f}") for k, v in report["ratios"].items()]),
        "",
        f"{on['device']}, threads: {on['threads']}, {on['dtype']} but where a row says otherwise, "
        f"torch {on['torch']}; medians, every row on the same texts; random weights, teacher "
        f"{count['teacher'] / 1e6:.1f}M, student {count['student'] / 1e6:.1f}M; "
        f"{report['minutes']:.1f} minutes in all.",
        "",
        f"One step of {sizes['batch']} rows of {sizes['length']} tokens, median of "
        f"{sizes['repeats']}. *Peak* is the whole process, with all models and optimisers of this "
        "table in it; *extra* what the first step added.",
        "",
        *_table(("step", "seconds", *PARTS, "peak MB", "extra MB"), steps),
        "",
        f"Caching: {caching['caching_seconds_a_row']:.4f} seconds a row, a plain pass of the "
        f"teacher {caching['forward_seconds_a_row']:.4f}.",
        "",
        f"Attention of {batch} x {length} tokens takes {attention['capture_mb']:.1f} MB by "
        f"capture, {attention['eager_mb']:.1f} MB by eager, above the {attention['plain_mb']:.1f} "
        "MB of a teacher's pass without.",
        "",
        "Seconds of a step as batch and length grow (one call):",
        "",
        *_table(
            ("batch x length", *KINDS), [(f"{b} x {n}", *row) for (b, n), row in growth.items()]
        ),
        "",
        "One answer (three logits a row), *extra* what the first call added to the memory:",
        "",
        *_table(("model, form", "batch x length", "ms", "extra MB", "calls"), answers),
        *([""] if report["left_out"] else []),
        *(f"- left out: {line}" for line in report["left_out"]),
    ]
    return "\n".join(lines)


def write_benchmark(report: Mapping[str, Any], output: str | Path) -> None:
    """``report.json``, ``report.md`` and ``cost.png`` in the folder ``output``."""
    output = Path(output)
    write_json(output / "report.json", report)
    head = "# What a step and an answer cost\n\n"
    head += "`python -m comet_lib lab benchmark --output DIR` printed:\n\n"
    picture = "\n\n![Seconds of a step by length and by batch](cost.png)\n"
    write_text(output / "report.md", head + benchmark_text(report) + picture)
    plots.save(plots.cost_growth(report["growth"]), output / "cost.png")
