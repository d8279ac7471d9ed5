"""Benchmark and rehearsal at small sizes: all parts run, and the sums are right."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from comet_lib import __main__ as cli
from comet_lib.benchmark import (
    QUICK,
    Memory,
    NaiveTaskAgnostic,
    benchmark,
    benchmark_text,
    number_texts,
    number_tokenizer,
    random_model,
)
from comet_lib.profiles import get_profile
from comet_lib.rehearsal import rehearsal_text, rehearse
from comet_lib.training import TaskAgnostic

TINY = replace(QUICK, repeats=1)


def test_the_text_has_the_length_asked_for():
    tokenizer = number_tokenizer(50)
    assert len(tokenizer) == 50 and tokenizer.mask_token_id == 49
    for ids in tokenizer(number_texts(5, 9, 50))["input_ids"]:
        assert len(ids) == 9 and ids[0] == 0 and ids[-1] == 2
        assert all(4 <= i < 49 for i in ids[1:-1])


def test_the_naive_step_has_the_lean_steps_loss():
    torch.manual_seed(0)
    teacher, student = (
        random_model(sizes, 100, 16, "masked-lm") for sizes in (QUICK.teacher, QUICK.student)
    )
    ids = torch.randint(4, 99, (3, 10))
    labels = torch.full_like(ids, -100)
    labels[:, 2:4] = 7
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    naive, lean = (
        kind(teacher, {0: 1, 1: 3})(student, batch) for kind in (NaiveTaskAgnostic, TaskAgnostic)
    )
    torch.testing.assert_close(naive["loss"], lean["loss"])
    assert student.config._attn_implementation == "sdpa"


def test_memory_sees_an_allocation():
    memory = Memory()
    memory.start()
    before = memory.peak()
    block = torch.ones(30_000_000)  # 120 MB
    assert memory.peak() - before > 60
    del block


def test_benchmark_reports_ratios_of_its_own_seconds():
    report = benchmark(TINY, epochs=3)
    steps, caching = report["steps"], report["caching"]
    assert list(steps) == ["naive", "lean", "cached", "cached + trimmed"]
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
    text = benchmark_text(report)
    assert text.splitlines()[0].endswith("lean step, times faster than naive")
    json.dumps(report)


def test_rehearsal_predicts_the_whole_run():
    profile = get_profile("gpu")
    report = rehearse(profile, TINY)
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
    assert "whole run, with a cache" in rehearsal_text(report)


@pytest.mark.parametrize("command", ["benchmark", "rehearse"])
def test_the_command_line_writes_json(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("comet_lib.benchmark.QUICK", TINY)
    arguments = ["comet_lib", command, "--quick", "--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code and "seconds" in capsys.readouterr().out
    assert json.loads((tmp_path / "figures.json").read_text())["machine"]["threads"] >= 1
