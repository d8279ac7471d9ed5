"""Benchmark and rehearsal at small sizes: all parts run, and the sums add up."""

import json
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from comet_lib import __main__ as cli
from comet_lib.lab.backends import build_form, measure_answers
from comet_lib.lab.benchmark import (
    KINDS,
    QUICK,
    TEMPERATURE,
    WEIGHTS,
    Stepper,
    benchmark,
    benchmark_text,
    loss_of,
    naive_loss,
    number_texts,
    number_tokenizer,
    random_model,
    write_benchmark,
)
from comet_lib.lab.rehearsal import prediction, rehearsal_text, rehearse
from comet_lib.lab.timing import Memory, allocated, side_by_side
from comet_lib.objectives import Objective
from comet_lib.profiles import get_profile

DOCS = Path(__file__).parent.parent / "docs" / "benchmark"
MATCHES = {0: 1, 1: 3}
SMALL = {
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
}
TINY = replace(
    QUICK,
    teacher={**SMALL, "num_hidden_layers": 4},
    student=SMALL,
    laptop={**SMALL, "hidden_size": 16},
    vocabulary=2000,
    trimmed=300,
    length=16,
    repeats=1,
    answer_repeats=2,
)


def test_the_text_has_the_length_asked_for():
    tokenizer = number_tokenizer(50)
    assert len(tokenizer) == 50 and tokenizer.mask_token_id == 49
    for ids in tokenizer(number_texts(5, 9, 50))["input_ids"]:
        assert len(ids) == 9 and ids[0] == 0 and ids[-1] == 2
        assert all(4 <= i < 49 for i in ids[1:-1])


def a_pair_and_a_batch():
    teacher, student = (
        random_model(sizes, 100, 16, "masked-lm") for sizes in (TINY.teacher, TINY.student)
    )
    ids = torch.randint(4, 99, (3, 10))
    labels = torch.full_like(ids, -100)
    labels[:, 2:4] = 7
    return teacher, student, {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels
    }  # fmt: skip


def test_the_naive_step_has_the_lean_steps_loss():
    torch.manual_seed(0)
    teacher, student, batch = a_pair_and_a_batch()
    naive = naive_loss(student, batch, teacher, MATCHES)
    lean = loss_of(Objective.live(teacher, WEIGHTS, MATCHES, TEMPERATURE))(student, batch)
    torch.testing.assert_close(naive, lean)
    assert student.config._attn_implementation == "sdpa"


def test_memory_sees_an_allocation():
    memory = Memory()
    memory.start()
    before = memory.peak()
    block = torch.ones(30_000_000)  # 120 MB
    assert memory.peak() - before > 60
    del block


def test_allocated_counts_what_lives_at_once():
    weight = torch.ones(500, 500)  # 1 MB, there before

    def run() -> None:
        one = weight.t() @ weight  # 1 MB, and a view that is none
        two = one + 1  # 2 MB
        del one
        three = two.exp()  # 2 MB
        del two, three
        torch.ones(100)

    assert allocated(run) == 2.0


def test_a_slow_run_gets_fewer_calls_but_the_same_turns():
    order, naps = [], {"quick": 0.0, "slow": 0.03, "slower": 0.2}

    def run(name: str) -> None:
        order.append(name)
        time.sleep(naps[name])

    found = side_by_side({name: partial(run, name) for name in naps}, 4, patience=0.1)
    assert [found[name]["calls"] for name in naps] == [4, order.count("slow") - 1, 1]
    assert 1 <= order.count("slow") - 1 <= 3 and order.count("slower") == 1
    assert order[:5] == ["quick", "slow", "slower", "quick", "slow"]
    assert found["slower"]["seconds"] >= 0.2


def test_a_sparse_input_gradient_is_the_same_training():
    students = []
    for sparse in (False, True):
        torch.manual_seed(1)
        teacher, student, batch = a_pair_and_a_batch()
        student.get_input_embeddings().sparse = sparse
        lean = loss_of(Objective.live(teacher, WEIGHTS, MATCHES, TEMPERATURE))
        step = Stepper(student, lean, lambda batch=batch: batch)
        torch.manual_seed(2)  # dropout
        step()
        step()
        students.append(student)
        assert set(step.medians()) == {"forward", "backward", "optimiser"}
    for one, other in zip(*(s.parameters() for s in students), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


def test_the_forms_of_a_model_answer_alike(tmp_path):
    torch.manual_seed(0)
    model = random_model(TINY.student, 100, 16, "sentiment")
    wanted = ("fp32", "bf16", "ONNX", "ONNX int8")
    built = {form: build_form(model, form, tmp_path) for form in wanted}
    ids = torch.randint(4, 99, (2, 10))
    logits = {n: torch.as_tensor(form(ids, torch.ones_like(ids))) for n, form in built.items()}
    torch.testing.assert_close(logits["ONNX"], logits["fp32"], atol=1e-5, rtol=0)
    for name in ("bf16", "ONNX int8"):
        assert 0 < float((logits[name] - logits["fp32"]).abs().max()) < 0.05


def test_a_form_that_cannot_be_built_is_left_out_with_the_reason(tmp_path, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    model = random_model(TINY.student, 100, 16, "sentiment")
    rows, left_out = measure_answers(
        {"m": model}, {"m": ("fp32", "compiled")}, [(1, 4)], tmp_path, 1, 9.0
    )
    assert [row["form"] for row in rows] == ["fp32"]
    assert left_out == ["m, compiled: RuntimeError: no compiler"]


def test_a_form_that_would_take_too_long_is_left_out(tmp_path):
    model = random_model(TINY.student, 100, 16, "sentiment")
    rows, left_out = measure_answers(
        {"m": model}, {"m": ("fp32", "bf16")}, [(1, 4), (1, 8)], tmp_path, 1, patience=1e-9
    )
    found = [(row["form"], row["length"]) for row in rows]
    assert found == [("fp32", 4), ("bf16", 4), ("fp32", 8)]
    assert len(left_out) == 1 and left_out[0].startswith("m, bf16 at 1 x 8: about")


@pytest.fixture(scope="module")
def measured():
    return benchmark(TINY, epochs=3)


@pytest.fixture(scope="module")
def rehearsed():
    return rehearse(get_profile("gpu"), TINY)


def test_benchmark_reports_ratios_of_its_own_seconds(measured, tmp_path):
    report = measured
    steps, caching = report["steps"], report["caching"]
    assert list(steps)[:4] == list(KINDS) and len(steps) == 6
    assert all(row["seconds"] > 0 and row["peak_mb"] > 0 for row in steps.values())
    ratios = report["ratios"]
    naive = steps["naive"]["seconds"]
    assert ratios["cached step, times faster than naive"] == pytest.approx(
        naive / steps["cached"]["seconds"]
    )
    whole = 3 * steps["cached"]["seconds"] + TINY.batch * caching["caching_seconds_a_row"]
    assert ratios["3 epochs with a cache, its making included, times faster"] == pytest.approx(
        3 * naive / whole
    )
    attention = report["capture"]
    maps = 4 * 32 * 32 * 4 / 1e6  # a float32 map of each row of the batch
    assert attention["eager_mb"] >= 0.9 * 4 * 2 * maps  # 4 layers, 2 heads
    answers = {(r["model"], r["form"], r["length"]): r for r in report["answers"] if r["batch"] < 2}
    ratio = "student's answer (fp32), times faster than the teacher's (fp32)"
    assert ratios[ratio] == pytest.approx(
        answers["teacher", "fp32", 32]["seconds"] / answers["student", "fp32", 32]["seconds"]
    )
    shapes = {(row["batch"], row["length"]) for row in report["growth"]}
    assert shapes == {(8, 4), (8, 8), (2, 16), (4, 16), (8, 16)}
    text = benchmark_text(report)
    assert text.splitlines()[2].startswith("| lean step, times faster than naive |")
    write_benchmark(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["ratios"] == ratios
    assert text in (tmp_path / "report.md").read_text()
    assert (tmp_path / "cost.png").stat().st_size > 10_000


def test_rehearsal_predicts_the_whole_run(rehearsed):
    report = rehearsed
    parts, hours = report["parts"], report["hours"]
    assert all(part["seconds"] > 0 and part["peak_mb"] > 0 for part in parts.values())
    assert report["units"]["asking the teacher"] == 756_428
    assert report["units"]["stage 1, from the cache"] == 15 * -(-756_428 // 16)
    assert hours["whole run, with a cache"] == pytest.approx(
        sum(
            report["units"][name] * parts[name]["seconds"] / 3600
            for name in ("asking the teacher", "stage 1, from the cache", "stage 2")
        )
    )
    assert "| whole run, with a cache |" in rehearsal_text(report)
    # a T4's hours are arithmetic: a cached step does what the student does, in the loop both
    cached, in_loop, teacher = (
        parts[name]["operations"]
        for name in (
            "stage 1, from the cache",
            "stage 1, teacher in the loop",
            "asking the teacher",
        )
    )
    assert 0 < cached < in_loop == pytest.approx(cached + 16 * teacher, abs=16)
    seconds = parts["stage 2"]["operations"] / (0.3 * 65e12)
    assert report["t4_hours"]["stage 2"] * 3600 == pytest.approx(
        report["units"]["stage 2"] * seconds
    )
    assert "*Hours on a T4* (16 GB) are a lower bound, not measured" in rehearsal_text(report)
    # limits of a profile count: tiny stops after 6 and 12 steps; without that, 200 tweets of its
    # five languages and half as many spliced ones make 19 steps of 16, twice
    tiny = get_profile("tiny")
    assert list(prediction(tiny, TINY, parts)["units"].values()) == [200, 6, 6, 12]
    free = tiny.with_(stage2=replace(tiny.stage2, max_steps=-1))
    assert prediction(free, TINY, parts)["units"]["stage 2"] == 2 * 19


@pytest.mark.parametrize(
    ("name", "text"), [("report", benchmark_text), ("rehearsal", rehearsal_text)]
)
def test_the_reports_in_docs_are_what_their_figures_print(name, text):
    figures = json.loads((DOCS / f"{name}.json").read_text(encoding="utf-8"))
    assert text(figures) in (DOCS / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "function", "asked"),
    [
        ("benchmark", "benchmark.benchmark", [TINY]),
        ("rehearse", "rehearsal.rehearse", [get_profile("gpu"), TINY]),
    ],
)
def test_the_command_line_writes_json(
    command, function, asked, request, tmp_path, monkeypatch, capsys
):
    """The measuring itself is tested above; here its report is at hand."""
    report = request.getfixturevalue({"benchmark": "measured", "rehearse": "rehearsed"}[command])
    calls = []
    monkeypatch.setattr(
        f"comet_lib.lab.{function}", lambda *given, **_: calls.append(list(given)) or report
    )
    monkeypatch.setattr("comet_lib.lab.benchmark.QUICK", TINY)
    arguments = ["comet_lib", "lab", command, "--quick", "--json", str(tmp_path / "figures.json")]
    arguments += ["--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code and "seconds" in capsys.readouterr().out
    assert calls == [asked]
    assert json.loads((tmp_path / "figures.json").read_text())["machine"]["threads"] >= 1
    assert len(list((tmp_path / "out").iterdir())) >= 2
