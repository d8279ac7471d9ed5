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
from comet_lib.batches import tokenize
from comet_lib.lab.benchmark import (
    KINDS,
    QUICK,
    TEMPERATURE,
    WEIGHTS,
    Step,
    benchmark,
    benchmark_text,
    build_form,
    library_loss,
    measure_answers,
    naive_loss,
    random_model,
    random_texts,
    side_by_side,
    write_benchmark,
)
from comet_lib.lab.rehearsal import prediction, rehearsal_text, rehearse
from comet_lib.loading import load_tokenizer
from comet_lib.objectives import Objective
from comet_lib.profiles import LAPTOP, get_profile, shape

DOCS = Path(__file__).parent.parent / "docs" / "benchmark"
MATCHES = {0: 1, 1: 3}
TINY = replace(
    QUICK, teacher=shape(32, 4, 2, 64), student=shape(32, 2, 2, 64), trimmed=300, length=16, turns=1
)


@pytest.fixture(scope="module")
def measured():
    return benchmark(TINY)


@pytest.fixture(scope="module")
def rehearsed():
    return rehearse(get_profile("gpu"), TINY)


def test_the_text_has_the_length_asked_for():
    tokenizer = load_tokenizer(LAPTOP.teacher)
    table = tokenize(random_texts(tokenizer, 5, 9), tokenizer, 9)
    assert len(table) == 5 and table["length"][:] == [9] * 5
    for ids in table["input_ids"]:
        assert not set(ids[1:-1]) & set(tokenizer.all_special_ids)


def a_pair_and_a_batch():
    teacher, student = (
        random_model(sizes, 100, "masked-lm") for sizes in (TINY.teacher, TINY.student)
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
    lean = library_loss(student, batch, Objective.live(teacher, WEIGHTS, MATCHES, TEMPERATURE))
    torch.testing.assert_close(naive, lean)
    assert student.config._attn_implementation == "sdpa"


def test_runs_take_turns_and_a_quick_one_is_called_more_often():
    order, naps = [], {"quick": 0.001, "slow": 0.03}

    def run(name: str) -> None:
        order.append(name)
        time.sleep(naps[name])

    found = side_by_side({name: partial(run, name) for name in naps}, turns=2, at_least=0.02)
    assert naps["quick"] <= found["quick"] < found["slow"]
    turns = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
    assert turns == ["quick", "slow"] * 2
    assert order.count("slow") == 2 * 2 and order.count("quick") > 4  # one call warms up


def test_a_sparse_input_gradient_is_the_same_training():
    students = []
    for sparse in (False, True):
        torch.manual_seed(1)
        teacher, student, batch = a_pair_and_a_batch()
        student.get_input_embeddings().sparse = sparse
        objective = Objective.live(teacher, WEIGHTS, MATCHES, TEMPERATURE)
        step = Step(student, partial(library_loss, objective=objective), partial(dict, batch))
        torch.manual_seed(2)  # dropout
        step()
        step()
        students.append(student)
        assert [len(parts) for parts in step.parts] == [3, 3]
    for one, other in zip(*(s.parameters() for s in students), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


def test_the_forms_of_a_model_answer_alike(tmp_path):
    torch.manual_seed(0)
    model = random_model(TINY.student, 100, "sentiment")
    wanted = ("fp32", "bf16", "ONNX", "ONNX int8")
    built = {form: build_form(model, form, tmp_path) for form in wanted}
    ids = torch.randint(4, 99, (2, 10))
    logits = {n: torch.as_tensor(form(ids, torch.ones_like(ids))) for n, form in built.items()}
    torch.testing.assert_close(logits["ONNX"], logits["fp32"], atol=1e-5, rtol=0)
    for name in ("bf16", "ONNX int8"):
        assert 0 < float((logits[name] - logits["fp32"]).abs().max()) < 0.05


def test_a_form_that_cannot_be_built_is_left_out_with_the_reason(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    answers, left_out = measure_answers(replace(TINY, forms=("fp32", "compiled")))
    assert list(answers) == ["teacher", "fp32"]
    assert left_out == ["compiled: RuntimeError: no compiler"]


def test_benchmark_reports_ratios_of_its_own_seconds(measured, tmp_path):
    steps, teacher, ratios = measured["steps"], measured["teacher"], measured["ratios"]
    assert list(steps)[:4] == list(KINDS) and len(steps) == 6
    for row in steps.values():
        assert list(row) == ["seconds", "forward", "backward", "optimizer"]
        assert all(seconds > 0 for seconds in row.values())
    naive = steps["naive"]["seconds"]
    assert ratios["cached step, times faster than naive"] == pytest.approx(
        naive / steps["cached"]["seconds"]
    )
    whole = 15 * steps["cached"]["seconds"] + TINY.batch * teacher["caching"]
    assert ratios["15 epochs with a cache, its making included, times faster"] == pytest.approx(
        15 * naive / whole
    )
    one_map = TINY.answered**2 * 4 / 1e6  # float32
    assert teacher["eager_mb"] == pytest.approx(4 * 2 * one_map)  # 4 layers of 2 heads
    assert teacher["capture_mb"] == pytest.approx(2 * one_map)  # the student's 2 layers
    answers = measured["answers"]
    assert list(answers) == ["teacher", *TINY.forms]
    ratio = "student's answer (bf16), times faster than the teacher's (fp32)"
    assert ratios[ratio] == pytest.approx(answers["teacher"] / answers["bf16"])
    shapes = {(row["batch"], row["length"]) for row in measured["growth"]}
    assert shapes == {(8, 4), (8, 8), (2, 16), (4, 16), (8, 16)}
    text = benchmark_text(measured)
    assert text.splitlines()[2].startswith("| lean step, times faster than naive |")
    write_benchmark(measured, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["ratios"] == ratios
    assert text in (tmp_path / "report.md").read_text()
    assert (tmp_path / "cost.png").stat().st_size > 10_000


def test_rehearsal_predicts_the_whole_run(rehearsed):
    asking, cached, in_loop, stage2, whole, _ = rehearsed["parts"].values()
    assert all(part["seconds"] > 0 for part in (asking, cached, in_loop, stage2))
    assert asking["count"] == 756_428
    assert cached["count"] == 15 * -(-756_428 // 16)
    for part in (asking, cached, in_loop, stage2):
        assert part["hours"] == pytest.approx(part["count"] * part["seconds"] / 3600)
    assert whole["hours"] == pytest.approx(sum(x["hours"] for x in (asking, cached, stage2)))
    assert 0.1 < rehearsed["peak_gb"] < 20
    assert "| whole run, with a cache |" in rehearsal_text(rehearsed)
    # a T4's hours are arithmetic: a cached step does what the student does, in the loop both
    assert 0 < cached["operations"] < in_loop["operations"]
    assert in_loop["operations"] == pytest.approx(
        cached["operations"] + 16 * asking["operations"], abs=16
    )
    seconds = stage2["operations"] / (0.3 * 65e12)
    assert stage2["t4_hours"] * 3600 == pytest.approx(stage2["count"] * seconds)
    assert "*Hours on a T4* (16 GB) are a lower bound, not measured" in rehearsal_text(rehearsed)


def test_the_limits_of_a_profile_count():
    """Tiny stops after 6 and 12 steps; without that, 200 tweets of its five languages in both forms
    make 25 steps of 16."""
    tiny, costs = get_profile("tiny"), [(1.0, 1)] * 4

    def counts(profile):
        return [part.get("count") for part in prediction(profile, costs).values()]

    assert counts(tiny) == [200, 6, 6, 12, None, None]
    free = tiny.with_(stage2=replace(tiny.stage2, max_steps=-1))
    assert counts(free)[3] == 25


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
    assert "threads: " in json.loads((tmp_path / "figures.json").read_text())["machine"]
    assert len(list((tmp_path / "out").iterdir())) >= 2
