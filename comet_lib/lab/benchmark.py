"""What a stage-1 step costs in each of its forms, and what an answer costs, as ratios.

Four steps on the same rows, with random weights of the paper's sizes, in one process:

- naive: the teacher in the loop, both models with eager attention that returns every layer and
  head, logits over the whole vocabulary at every position, and only then the losses;
- lean: the library's step with a live teacher, which captures the head means of the matched layers
  and computes logits only at masked positions;
- cached: the same step with the teacher's answers from disk;
- cached + trimmed: as cached, with the student's vocabulary cut to the pieces that the languages
  use.

All have the same losses, optimiser, dtype and threads. Two more rows ask, beside trimming, what the
paper's 64M embedding weights cost a cached step:

- sparse input gradient: adds the gradient of the rows that were looked up to that of the masked-LM
  head in place, where torch first builds a second table of zeros. Same sum, same training;
- embeddings frozen: no gradient for the table. Another training, which needs a thaw later.

Updating only a batch's rows is not measured, because it would not be the same training: with tied
weights and a softmax over the vocabulary (as in the tail of the top-k targets) every row of the
table has a gradient, and a softmax over sampled pieces is another loss.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from comet_lib import plots
from comet_lib.attention import capture, layer_map
from comet_lib.batches import tokenise
from comet_lib.files import write_json, write_text
from comet_lib.lab.backends import measure_answers
from comet_lib.lab.timing import allocated, machine, side_by_side
from comet_lib.losses import attention_loss, soft_target_loss
from comet_lib.models import build_student, count_parameters, only_positions, xlmr_config
from comet_lib.objectives import Objective, questions_for
from comet_lib.processes import processes
from comet_lib.profiles import LAPTOP, PAPER_STUDENT, PAPER_TEACHER, PAPER_VOCABULARY
from comet_lib.report import markdown_table
from comet_lib.teacher import BATCH, StoredCollator, ask_once, shard_columns, stored_answers

TEMPERATURE = 2.0
WEIGHTS = {"soft_targets": 0.5, "attention_kl": 0.5}
KINDS = ("naive", "lean", "cached", "cached + trimmed")
PARTS = ("forward", "backward", "optimiser")


@dataclass(frozen=True)
class Sizes:
    """Model shapes (as in :data:`PAPER_STUDENT`), numbers of pieces, and how much to measure.

    A step takes ``batch`` rows of ``length`` tokens. Answers are measured for each (batch, length)
    of ``answer_shapes``. Every figure is the median of ``repeats`` (answers: ``answer_repeats``,
    fewer where they would take over ``patience`` seconds). ``captured`` is the (batch, length)
    whose attention is captured to see what memory that takes.
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
    repeats: int = 3
    answer_repeats: int = 25
    patience: float = 8.0
    student_forms: tuple[str, ...] = ("fp32", "bf16", "ONNX", "ONNX int8")

    @property
    def growth(self) -> list[tuple[int, int]]:
        """(batch, length) of the steps that show how cost grows; each size doubles to its full."""
        lengths = [(self.batch, self.length // n) for n in (4, 2)]
        batches = [(self.batch // n, self.length) for n in (4, 2)]
        return [*lengths, *batches, (self.batch, self.length)]


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
    student_forms=("fp32", "bf16"),  # a graph takes seconds to build
)


# --------------------------------------------------------------------------- random text and models


def number_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of ``size`` pieces whose words are w4, w5 ...: text of any length on demand."""
    names = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(4, size - 1)), "<mask>"]
    words = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "mask")}
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", **special
    )


def number_texts(rows: int, tokens: int, size: int) -> list[str]:
    """``rows`` texts of ``tokens`` tokens, including two special ones."""
    words = torch.randint(4, size - 1, (rows, tokens - 2)).tolist()
    return [" ".join(f"w{i}" for i in row) for row in words]


def random_model(
    sizes: Mapping[str, Any], vocabulary: int, length: int, head: str
) -> PreTrainedModel:
    """A model of these sizes on this process's device, in eval mode."""
    config = xlmr_config(sizes, vocabulary, max(length, 128))
    return build_student(config, head).eval().to(processes().device)


@contextmanager
def eager(*models: PreTrainedModel) -> Iterator[None]:
    """Inside, attention can be returned: ``output_attentions=True`` gives every head and layer."""
    for model in models:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        for model in models:
            model.set_attn_implementation("sdpa")


# --------------------------------------------------------------------------- the steps

Loss = Callable[[PreTrainedModel, Mapping[str, Any]], Tensor]


def naive_loss(
    student: PreTrainedModel,
    batch: Mapping[str, Any],
    teacher: PreTrainedModel,
    matches: Mapping[int, int],
) -> Tensor:
    """Stage 1's loss as one first writes it: every head of every layer, every logit.

    ``matches`` maps student layers to teacher layers. Equals the lean step's loss.
    """
    text = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    masked = batch["labels"] != -100
    with eager(student, teacher):
        with torch.no_grad():
            theirs: Any = teacher(**text, output_attentions=True)
        ours: Any = student(**text, output_attentions=True)
    soft = soft_target_loss(ours.logits[masked], theirs.logits[masked], TEMPERATURE)
    attention = attention_loss(
        [ours.attentions[i].mean(1) for i in matches],
        [theirs.attentions[j].mean(1) for j in matches.values()],
        text["attention_mask"],
        kind="kl",
    )
    return WEIGHTS["soft_targets"] * soft + WEIGHTS["attention_kl"] * attention


def loss_of(objective: Objective) -> Loss:
    """The library's loss, its captures opened for one step."""

    def loss(student: PreTrainedModel, batch: Mapping[str, Any]) -> Tensor:
        with objective.on(student) as terms_of:
            return terms_of(student, batch)["loss"]

    return loss


@dataclass
class Stepper:
    """Calling it takes one optimiser step, reading the batch included.

    ``parts`` has the seconds of each call's forward pass (with batch and loss), backward pass and
    optimiser. Without ``optimiser``, it creates its own for everything that ``student`` trains.
    """

    student: PreTrainedModel
    loss: Loss
    batch: Callable[[], Mapping[str, Any]]
    optimiser: torch.optim.Optimizer | None = None
    parts: list[tuple[float, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimiser = self.optimiser or adamw(self.student)

    def __call__(self) -> None:
        assert self.optimiser is not None
        clock = [_now()]
        batch = send_to_device(self.batch(), processes().device)
        loss = self.loss(self.student.train(), batch)
        clock.append(_now())
        loss.backward()
        clock.append(_now())
        self.optimiser.step()
        self.optimiser.zero_grad()
        clock.append(_now())
        self.parts.append(tuple(b - a for a, b in itertools.pairwise(clock)))

    def medians(self) -> dict[str, float]:
        """Of each part, without the first call, which warms up."""
        columns = zip(*(self.parts[1:] or self.parts), strict=True)
        return dict(zip(PARTS, map(statistics.median, columns), strict=True))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def adamw(student: PreTrainedModel) -> torch.optim.Optimizer:
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-5, fused=True)


# --------------------------------------------------------------------------- what is measured


def measure_steps(sizes: Sizes, teacher: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """Seconds and peak memory of every step, how they grow, and what caching costs per row."""
    tokenizer = number_tokenizer(sizes.vocabulary)
    depths = sizes.student["num_hidden_layers"], sizes.teacher["num_hidden_layers"]
    matches = dict(enumerate(layer_map(*depths)))
    asked = {"temperature": TEMPERATURE, "max_length": sizes.length}
    questions = questions_for(WEIGHTS, matches, **asked)
    collator = StoredCollator(questions, int(tokenizer.pad_token_id))
    pieces = dict.fromkeys(("full", "sparse", "frozen"), sizes.vocabulary)
    students = {
        name: random_model(sizes.student, count, sizes.length, "masked-lm")
        for name, count in {**pieces, "trimmed": sizes.trimmed}.items()
    }
    embeddings: Any = students["sparse"].get_input_embeddings()
    embeddings.sparse = True
    students["frozen"].get_input_embeddings().weight.requires_grad_(False)
    optimisers = {name: adamw(student) for name, student in students.items()}
    lean = loss_of(Objective.live(teacher, WEIGHTS, matches, TEMPERATURE))
    cached = loss_of(Objective(stored_answers, WEIGHTS, matches, TEMPERATURE))

    def naive(student: PreTrainedModel, batch: Mapping[str, Any]) -> Tensor:
        return naive_loss(student, batch, teacher, matches)

    def steppers(answers: Dataset, rows: int) -> dict[str, Stepper]:
        """Every step on the first ``rows`` of the teacher's ``answers``."""

        def read() -> dict[str, Any]:
            return collator([answers[i] for i in range(rows)])

        text = {name: read()[name] for name in ("input_ids", "attention_mask", "labels")}
        masked, k = read()["top_indices"].shape
        small = {  # only piece numbers change, as if a trimmed teacher had answered
            "input_ids": text["input_ids"] % sizes.trimmed,
            "top_indices": torch.rand(masked, sizes.trimmed).topk(k).indices.int(),
        }
        kinds: dict[str, tuple[str, Loss, Callable[[], Mapping[str, Any]]]] = {
            "naive": ("full", naive, lambda: text),
            "lean": ("full", lean, lambda: text),
            "cached": ("full", cached, read),
            "cached + trimmed": ("trimmed", cached, lambda: {**read(), **small}),
            "cached, sparse input gradient": ("sparse", cached, read),
            "cached, embeddings frozen": ("frozen", cached, read),
        }
        return {
            name: Stepper(students[who], loss, batch, optimisers[who])
            for name, (who, loss, batch) in kinds.items()
        }

    steps: dict[str, dict[str, float]] = {}
    growth: list[dict[str, Any]] = []
    for batch, length in sizes.growth:  # the full shape comes last: what follows uses its table
        full = (batch, length) == (sizes.batch, sizes.length)
        texts = number_texts(BATCH if full else batch, length, sizes.vocabulary)
        table = tokenise(texts, tokenizer, length)
        place = folder / f"{batch}x{length}"
        answers = ask_once(place, table, teacher, tokenizer, questions, bar=False)
        runs = steppers(answers, batch)
        if full:
            steps = side_by_side(runs, sizes.repeats)
            for name, row in steps.items():
                row |= runs[name].medians()
        timed = steps if full else side_by_side({name: runs[name] for name in KINDS}, 1)
        shape = {"batch": batch, "length": length}
        growth += [{"step": name, **shape, **timed[name]} for name in KINDS]

    whole = send_to_device(collator(list(answers)), teacher.device)

    @torch.no_grad()
    def forward() -> None:
        with only_positions(teacher, whole["labels"] != -100):
            teacher(input_ids=whole["input_ids"], attention_mask=whole["attention_mask"])

    def caching() -> None:
        shard_columns(table, 0, teacher, tokenizer, questions)

    both = {"forward": forward, "caching": caching}
    timed = side_by_side(both, sizes.repeats, 2.5 * sizes.patience)
    return {
        "steps": steps,
        "caching": {f"{name}_seconds_a_row": timed[name]["seconds"] / BATCH for name in both},
        "growth": growth,
        "student_parameters": count_parameters(students["full"]),
    }


def measure_capture(teacher: PreTrainedModel, sizes: Sizes) -> dict[str, float]:
    """Megabytes that attention takes in a forward pass of the teacher, above a pass without it:
    head means of the matched layers by ``capture``, and all heads of all layers by eager."""
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
    def returned() -> None:
        with eager(teacher):
            body(**text, output_attentions=True)

    with torch.no_grad():
        plain = allocated(lambda: body(**text))
    return {
        "plain_mb": plain,
        "capture_mb": allocated(captured) - plain,
        "eager_mb": allocated(returned) - plain,
    }


def benchmark(sizes: Sizes = PAPER, epochs: int = 15, compiled: bool = False) -> dict[str, Any]:
    """Everything: ``machine``, ``sizes``, ``ratios`` (dimensionless), ``steps``, ``caching``,
    ``capture``, ``growth``, ``answers`` and what was ``left_out``.

    ``compiled`` adds the students compiled by torch. Deterministic but for the clock.
    """
    set_seed(0)
    began = time.perf_counter()
    longest = max(sizes.length, sizes.captured[1], *(length for _, length in sizes.answer_shapes))
    teacher = random_model(sizes.teacher, sizes.vocabulary, longest, "masked-lm")
    forms = (*sizes.student_forms, *(["compiled"] if compiled else []))
    wanted = {"teacher": ("fp32", "bf16"), "student": forms, "laptop student": forms}
    with tempfile.TemporaryDirectory() as folder:
        measured = measure_steps(sizes, teacher, Path(folder) / "answers")
        measured["capture"] = measure_capture(teacher, sizes)
        del teacher
        shapes = {
            "teacher": (sizes.teacher, sizes.vocabulary),
            "student": (sizes.student, sizes.vocabulary),
            "laptop student": (sizes.laptop, sizes.laptop_vocabulary),
        }
        models = {
            name: random_model(shape, pieces, longest, "sentiment")
            for name, (shape, pieces) in shapes.items()
        }
        measured["answers"], measured["left_out"] = measure_answers(
            models,
            wanted,
            sizes.answer_shapes,
            Path(folder),
            sizes.answer_repeats,
            sizes.patience,
        )
    if not compiled:
        measured["left_out"].append("students, compiled: --compile adds them (a minute each)")
    counts = {
        "teacher": count_parameters(models["teacher"]),
        "student": measured.pop("student_parameters"),
    }
    return {
        "machine": machine(),
        "minutes": (time.perf_counter() - began) / 60,
        "sizes": asdict(sizes),
        "parameters": counts,
        "ratios": ratios(sizes, epochs, measured),
        **measured,
    }


# --------------------------------------------------------------------------- the report


def ratios(sizes: Sizes, epochs: int, measured: Mapping[str, Any]) -> dict[str, float]:
    """The figures that may travel to another machine, in the order in which they are told."""
    steps, caching, capture = (measured[name] for name in ("steps", "caching", "capture"))
    naive = steps["naive"]["seconds"]
    once = caching["caching_seconds_a_row"] * sizes.batch  # caching the rows of a step
    found = {
        f"{name} step, times faster than naive": naive / row["seconds"]
        for name, row in steps.items()
        if name != "naive"
    }
    for name, text in (("cached", "a cache"), ("cached + trimmed", "cache and trimming")):
        whole = epochs * steps[name]["seconds"] + once
        key = f"{epochs} epochs with {text}, its making included, times faster"
        found[key] = epochs * naive / whole
    found["caching a row, in teacher forward passes"] = (
        caching["caching_seconds_a_row"] / caching["forward_seconds_a_row"]
    )
    found["memory for captured attention, percent of eager's"] = (
        100 * capture["capture_mb"] / capture["eager_mb"]
    )
    shape = max(shape for shape in sizes.answer_shapes if shape[0] == 1)
    seconds = {
        (row["model"], row["form"]): row["seconds"]
        for row in measured["answers"]
        if (row["batch"], row["length"]) == shape
    }
    for name in ("student", "laptop student"):
        own = {form: value for (model, form), value in seconds.items() if model == name}
        for form in dict.fromkeys(("fp32", min(own, key=own.__getitem__))):
            key = f"{name}'s answer ({form}), times faster than the teacher's (fp32)"
            found[key] = seconds["teacher", "fp32"] / own[form]
    return found


def benchmark_text(report: Mapping[str, Any]) -> str:
    """The report as Markdown: ratios first, then the seconds and megabytes they come from."""
    sizes, on, caching = report["sizes"], report["machine"], report["caching"]
    count, attention = report["parameters"], report["capture"]
    ratio = [(name, f"{value:.2f}") for name, value in report["ratios"].items()]
    columns = ("seconds", *PARTS, "peak_mb", "extra_mb")
    steps = [(name, *(row[c] for c in columns)) for name, row in report["steps"].items()]
    growth: dict[str, list[float]] = {}
    for row in report["growth"]:
        growth.setdefault(f"{row['batch']} x {row['length']}", []).append(row["seconds"])
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
    left_out = "".join(f"\n- left out: {line}" for line in report["left_out"])
    return f"""{markdown_table(("ratio", "figure"), ratio)}

{on["device"]}, threads: {on["threads"]}, {on["dtype"]} unless a row says otherwise, torch \
{on["torch"]}. Medians, every row on the same texts; random weights: teacher \
{count["teacher"] / 1e6:.1f}M parameters, student {count["student"] / 1e6:.1f}M; \
{report["minutes"]:.1f} minutes in all.

One step of {sizes["batch"]} rows of {sizes["length"]} tokens, median of {sizes["repeats"]}. \
*Peak* is the whole process, which holds all models and optimisers of this table; *extra* is what \
the first step added.

{markdown_table(("step", "seconds", *PARTS, "peak MB", "extra MB"), steps)}

Caching: {caching["caching_seconds_a_row"]:.4f} seconds per row, a plain pass of the teacher \
{caching["forward_seconds_a_row"]:.4f}.

Attention of {sizes["captured"][0]} x {sizes["captured"][1]} tokens takes \
{attention["capture_mb"]:.1f} MB by capture and {attention["eager_mb"]:.1f} MB by eager, above the \
{attention["plain_mb"]:.1f} MB of a teacher's pass without.

Seconds per step as batch and length grow (one call):

{markdown_table(("batch x length", *KINDS), [(shape, *row) for shape, row in growth.items()])}

One answer (three logits per row); *extra* is what the first call added to the memory:

{markdown_table(("model, form", "batch x length", "ms", "extra MB", "calls"), answers)}
{left_out}"""


def write_benchmark(report: Mapping[str, Any], output: str | Path) -> None:
    """``report.json``, ``report.md`` and ``cost.png`` in the folder ``output``."""
    output = Path(output)
    write_json(output / "report.json", report)
    head = "`python -m comet_lib lab benchmark --output DIR` printed:"
    text = f"# What a step and an answer cost\n\n{head}\n\n{benchmark_text(report)}\n\n"
    write_text(output / "report.md", f"{text}![Seconds per step by length and batch](cost.png)\n")
    plots.save(plots.cost_growth(report["growth"]), output / "cost.png")
