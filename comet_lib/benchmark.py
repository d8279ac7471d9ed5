"""What each way of taking a stage-1 step costs, and what an answer costs, as ratios.

Four steps on the same rows, with random weights of the paper's sizes, in one process:

- naive: the teacher in the loop, both models with eager attention that returns every layer and
  head, logits over the whole vocabulary at every position, then the losses where they count;
- lean: :class:`~comet_lib.training.TaskAgnostic`, which captures the matched layers' head means and
  makes logits at the masked positions alone;
- cached: :class:`~comet_lib.training.CachedTaskAgnostic`, rows read from a cache on disk;
- cached + trimmed: the same with the student's vocabulary cut to the pieces that the languages use.

All take the same losses and the same optimiser in the same dtype with as many threads. With tied
weights and a softmax over the vocabulary every embedding row has a gradient, so sparse or lazy
updates of the rows in a batch would not be the same training; fewer rows are.
"""

from __future__ import annotations

import contextlib
import platform
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from comet_lib.attention import layer_map
from comet_lib.batches import mask_row, tokenise
from comet_lib.cache import (
    BATCH,
    CachedCollator,
    CacheSettings,
    cache_targets,
    shard_columns,
)
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
from comet_lib.processes import give_back_memory, processes
from comet_lib.profiles import LAPTOP
from comet_lib.training import CachedTaskAgnostic, Objective, TaskAgnostic

TEMPERATURE, ALPHA = 2.0, 0.5


@dataclass(frozen=True)
class Sizes:
    """Shapes (as in :data:`PAPER_STUDENT`), numbers of pieces, and how much to measure.

    ``batch`` rows of ``length`` tokens make a step; ``rows`` rows are cached; an answer is to one
    row of ``answer_length`` tokens. Every figure is the median of ``repeats``.
    """

    teacher: Mapping[str, Any]
    student: Mapping[str, Any]
    laptop: Mapping[str, Any]
    vocabulary: int
    trimmed: int
    laptop_vocabulary: int
    batch: int = 8
    length: int = 64
    answer_length: int = 128
    rows: int = 2 * BATCH
    repeats: int = 5


PAPER = Sizes(
    teacher=PAPER_TEACHER,
    student=PAPER_STUDENT,
    laptop=LAPTOP.student,
    vocabulary=PAPER_VOCABULARY,
    trimmed=28_779,  # the pieces that AfriSenti and the texts of five languages use
    laptop_vocabulary=24_000,
)
_SMALL = {"num_attention_heads": 2, "num_hidden_layers": 2}
QUICK = Sizes(
    teacher={**_SMALL, "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128},
    student={**_SMALL, "hidden_size": 32, "intermediate_size": 64},
    laptop={**_SMALL, "hidden_size": 16, "intermediate_size": 32},
    vocabulary=2000,
    trimmed=300,
    laptop_vocabulary=200,
    length=16,
    answer_length=32,
    rows=BATCH,
    repeats=3,
)


# --------------------------------------------------------------------------- instruments


class Memory:
    """The most memory in use since :meth:`start`, in megabytes (10^6 bytes).

    On a GPU what torch allocated there; else this process's resident memory, for which Linux keeps
    a mark that can be reset. Elsewhere the mark is that of the whole process.
    """

    def __init__(self) -> None:
        self.cuda = torch.cuda.is_available()

    def start(self) -> None:
        give_back_memory()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        if self.cuda:
            return torch.cuda.max_memory_allocated() / 1e6
        with contextlib.suppress(OSError, AttributeError):
            status = Path("/proc/self/status").read_text()
            found = re.search(r"VmHWM:\s+(\d+) kB", status)
            if found:
                return int(found[1]) * 1024 / 1e6
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most * (1 if platform.system() == "Darwin" else 1024) / 1e6


def seconds(run: Callable[[], object]) -> float:
    """How long one call takes, the GPU's work included."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def side_by_side(
    runs: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, dict[str, float]]:
    """Median ``seconds`` and ``peak_mb`` of each, one warm-up before, taking turns after."""
    memory, peaks = Memory(), {}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        memory.start()
        run()
        peaks[name] = memory.peak()
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return {
        name: {"seconds": statistics.median(times[name]), "peak_mb": peaks[name]} for name in runs
    }


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "device": gpu or "CPU",
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


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


def stepper(
    student: PreTrainedModel, objective: Objective, batch: Callable[[], dict[str, Tensor]]
) -> Callable[[], None]:
    """A function that takes one optimiser step, the making of its batch included."""
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    device = processes().device

    def step() -> None:
        student.train()
        on_device = {name: value.to(device) for name, value in batch().items()}
        objective(student, on_device)["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


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
    caching |= measure_caching(table, teacher, tokenizer, settings, sizes.repeats)

    collator = CachedCollator(len(settings.layers), int(tokenizer.pad_token_id))
    rows = [cached[i] for i in range(sizes.batch)]
    trimmed = _trimmed_rows(rows, sizes.trimmed)
    live = {
        name: value
        for name, value in collator(rows).items()
        if name in ("input_ids", "attention_mask", "labels")
    }
    student = random_model(sizes.student, sizes.vocabulary, sizes.length, "masked-lm")
    small = random_model(sizes.student, sizes.trimmed, sizes.length, "masked-lm")
    shared = (matches, TEMPERATURE, ALPHA)
    of_cache = CachedTaskAgnostic(*shared)
    steps = side_by_side(
        {
            "naive": stepper(student, NaiveTaskAgnostic(teacher, *shared), lambda: live),
            "lean": stepper(student, TaskAgnostic(teacher, *shared), lambda: live),
            "cached": stepper(
                student, of_cache, lambda: collator([cached[i] for i in range(sizes.batch)])
            ),
            "cached + trimmed": stepper(small, of_cache, lambda: collator(trimmed)),
        },
        sizes.repeats,
    )
    return {"steps": steps, "caching": caching, "student_parameters": count_parameters(student)}


def measure_caching(
    table: Dataset,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    settings: CacheSettings,
    repeats: int,
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

    timed = side_by_side({"forward": forward, "caching": caching}, repeats)
    return {f"{name}_seconds_a_row": timed[name]["seconds"] / len(made) for name in timed}


def measure_answers(sizes: Sizes, teacher: PreTrainedModel) -> dict[str, dict[str, float]]:
    """Seconds and peak memory of one answer (three logits to one row): teacher and students."""
    models = {
        "teacher": teacher,
        "student": random_model(sizes.student, sizes.vocabulary, sizes.answer_length, "sentiment"),
        "laptop student": random_model(
            sizes.laptop, sizes.laptop_vocabulary, sizes.answer_length, "sentiment"
        ),
    }

    def answer(model: PreTrainedModel) -> Callable[[], object]:
        ids = torch.randint(4, model.config.vocab_size, (1, sizes.answer_length)).to(model.device)
        mask = torch.ones_like(ids)

        @torch.inference_mode()
        def run() -> object:
            return model(input_ids=ids, attention_mask=mask).logits.cpu()

        return run

    return side_by_side({name: answer(model) for name, model in models.items()}, sizes.repeats)


# --------------------------------------------------------------------------- the report


def benchmark(sizes: Sizes = PAPER, epochs: int = 15) -> dict[str, Any]:
    """Everything: ``machine``, ``sizes``, ``ratios`` (dimensionless), ``steps``, ``caching``,
    ``answers``. Deterministic but for the clock."""
    set_seed(0)
    longest = max(sizes.length, sizes.answer_length)
    teacher = random_model(sizes.teacher, sizes.vocabulary, longest, "masked-lm")
    with tempfile.TemporaryDirectory() as folder:
        made = measure_steps(sizes, teacher, Path(folder) / "cache")
    del teacher
    sentiment = random_model(sizes.teacher, sizes.vocabulary, longest, "sentiment")
    answers = measure_answers(sizes, sentiment)
    steps, caching = made["steps"], made["caching"]
    naive = steps["naive"]["seconds"]
    once = caching["caching_seconds_a_row"] * sizes.batch  # the caching of a step's rows

    def run_of(name: str) -> float:
        """A step's rows through all epochs, their caching included."""
        return epochs * steps[name]["seconds"] + once

    teacher_seconds = answers["teacher"]["seconds"]
    return {
        "machine": machine(),
        "sizes": asdict(sizes),
        "parameters": {
            "teacher": count_parameters(sentiment),
            "student": made["student_parameters"],
        },
        "ratios": {
            "lean step, times faster than naive": naive / steps["lean"]["seconds"],
            "cached step, times faster than naive": naive / steps["cached"]["seconds"],
            "cached + trimmed step, times faster than naive": naive
            / steps["cached + trimmed"]["seconds"],
            f"{epochs} epochs with a cache, its making included, times faster": epochs
            * naive
            / run_of("cached"),
            f"{epochs} epochs with cache and trimming, times faster": epochs
            * naive
            / run_of("cached + trimmed"),
            "caching a row, in teacher forward passes": caching["caching_seconds_a_row"]
            / caching["forward_seconds_a_row"],
            "student's answer, times faster than the teacher's": teacher_seconds
            / answers["student"]["seconds"],
            "laptop student's answer, times faster": teacher_seconds
            / answers["laptop student"]["seconds"],
        },
        "steps": steps,
        "caching": caching,
        "answers": answers,
    }


def benchmark_text(report: Mapping[str, Any]) -> str:
    """The report as text: ratios first, then the seconds and megabytes they come from."""
    sizes, on = report["sizes"], report["machine"]
    count = report["parameters"]
    lines = [f"{value:8.2f}  {name}" for name, value in report["ratios"].items()]
    lines += [
        "",
        f"{on['device']}, {on['threads']} threads, {on['dtype']}, torch {on['torch']}; median of "
        f"{sizes['repeats']}; random weights, teacher {count['teacher'] / 1e6:.1f}M, student "
        f"{count['student'] / 1e6:.1f}M",
        "",
        f"one step of {sizes['batch']} rows of {sizes['length']} tokens   seconds   peak MB",
    ]
    for part in ("steps", "answers"):
        if part == "answers":
            lines.append(f"one answer to 1 row of {sizes['answer_length']} tokens")
        lines += [
            f"  {name:32} {row['seconds']:10.4f} {row['peak_mb']:9.0f}"
            for name, row in report[part].items()
        ]
    caching = report["caching"]
    lines += [
        "one row",
        f"  {'a plain pass of the teacher':32} {caching['forward_seconds_a_row']:10.4f}",
        f"  {'its targets made':32} {caching['caching_seconds_a_row']:10.4f} "
        f"{caching['peak_mb']:9.0f}",
    ]
    return "\n".join(lines)
