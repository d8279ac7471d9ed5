"""The command line from the outside: the whole game on tiny, and every refusal in one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import pipeline
from typer.testing import CliRunner

from comet_lib import __main__ as cli
from comet_lib.console import chosen_profile
from comet_lib.loading import label_order, load_model
from comet_lib.profiles import ASSETS, PROFILES, get_profile
from comet_lib.recipe import read_teachers


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, from a process of its own; the other calls are in this one."""
    output = tmp_path_factory.mktemp("run") / "out"
    done = subprocess.run(
        [sys.executable, "-m", "comet_lib", "distill", "--profile", "tiny", "--output", output],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return output, done


@pytest.fixture
def call(monkeypatch, capsys):
    """The command line with these arguments: its exit code and what it printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["comet_lib", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0, capsys.readouterr()

    return call


def test_distill_writes_an_honest_report(run):
    output, done = run
    report = json.loads((output / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == [
        "tfidf",
        "tfidf_both_forms",
        "teacher",
        "soft_targets",
        "student_no_distillation",
        "student",
    ]
    for row in report["rows"]:
        assert set(row["weighted_f1"]) == {*report["languages"], "mean"}
        low, high = row["ci95"]["mean"]
        assert 0 <= low <= row["weighted_f1"]["mean"] <= high <= 100
        assert row["parameters"] > 0 and row["size_mb"] > 0
    assert not report["benchmark"] and "NOT a benchmark" in done.stdout
    assert report["teachers"] == {"masked-lm": "teacher", "sentiment": "teacher"}
    assert report["leakage"][-1].keys() >= {"in_train", "percent", "loose", "loose_percent"}
    assert report["conflicting_labels"] == dict.fromkeys(report["languages"], 0)
    whole = (output / "report.md").read_text()
    assert "Training tweets with conflicting labels: kin 0" in whole
    assert report["paper"] == [] and report["split"] == "test"  # no AfriSenti: nothing to compare
    assert "(paper)" not in whole and "not verified" not in whole
    assert set(report["seconds"]) >= {"stage1", "stage2", "evaluation"}
    assert "| " not in done.stdout and "student - tfidf_both_forms" in done.stdout
    assert f"predict {output}/student" in done.stderr
    for figure in ("results", "curves", "attention"):
        assert (output / "figures" / f"{figure}.png").stat().st_size > 5000


def test_student_is_a_stock_checkpoint(run):
    classify = pipeline("text-classification", model=str(run[0] / "student"))
    answer = classify(["Habari njema sana"])[0]
    assert answer["label"] in ("negative", "neutral", "positive")
    card = (run[0] / "student" / "README.md").read_text()
    assert "license" in card and "from `teacher`" in card  # the bundled one's folder
    head = yaml.safe_load(card.split("---")[1])
    report = json.loads((run[0] / "report.json").read_text())
    metric = head["model-index"][0]["results"][0]["metrics"][0]
    f1 = next(row for row in report["rows"] if row["name"] == "student")["weighted_f1"]["mean"]
    assert metric["value"] == round(f1, 1) and "base_model" not in head
    assert "| language | student | without distillation | teacher | TF-IDF |" in card
    assert ("**Not trained: " in card) == bool(report["untrained"])


def test_a_second_call_resumes_and_changes_nothing(run, call):
    before = (run[0] / "student" / "model.safetensors").read_bytes()
    assert call("distill", "--profile", "tiny", "--output", str(run[0]))[0] == 0
    assert (run[0] / "student" / "model.safetensors").read_bytes() == before
    code, shown = call("distill", "--profile", "tiny", "--output", str(run[0]), "--seed", "5")
    assert code == 2 and "differs in seed (0 there, 5 now)" in shown.err


def test_evaluate_and_predict(run, call):
    student = str(run[0] / "student")
    row = json.loads(call("evaluate", student, "--profile", "tiny", "--json")[1].out)
    report = json.loads((run[0] / "report.json").read_text())
    assert row["weighted_f1"] == pytest.approx(report["rows"][-1]["weighted_f1"])
    lines = call("predict", student, "habari njema", "\x1b[31mred")[1].out.splitlines()
    assert len(lines) == 2 and "\x1b" not in lines[1]
    assert lines[0].split("\t")[0] in ("negative", "neutral", "positive")


def test_a_command_reads_only_the_splits_that_it_uses(call, tmp_path):
    """AfriSenti has no train split of Oromo and Tigrinya."""
    rows = "tweet\tlabel\nakkam\tpositive\nhin jaalanne\tnegative\n"
    for code, split in (("orm", "test"), ("orm", "dev"), ("swa", "train"), ("swa", "test")):
        folder = tmp_path / "afrisenti" / code
        folder.mkdir(parents=True, exist_ok=True)
        folder.joinpath(f"{split}.tsv").write_text(rows, encoding="utf-8")
    model, data = str(ASSETS / "teacher"), ["--data", str(tmp_path), "--languages"]
    code, shown = call("evaluate", model, *data, "orm,swa")
    assert code == 0, shown.err
    assert "orm unknown, swa 100.0 (unknown: no train split)" in shown.out
    row = json.loads(call("evaluate", model, *data, "orm,swa", "--json")[1].out)
    assert row["leakage"] == {"orm": "unknown", "swa": 100.0}
    assert row["weighted_f1_unseen"] is None and row["weighted_f1"]["orm"] >= 0
    code, shown = call("evaluate", model, *data, "orm", "--split", "train")
    assert code == 2 and "train.tsv: cannot be read" in shown.err


def test_labels_without_a_name_are_given_on_the_command_line(call, tmp_path, monkeypatch):
    """Every command whose error advises --labels takes it."""
    folder = shutil.copytree(ASSETS / "teacher", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {str(n): f"LABEL_{n}" for n in range(3)}, "label2id": {}}
    (folder / "config.json").write_text(json.dumps(config))
    model, given = str(folder), ["--labels", "NEG,neutral, pos"]
    code, shown = call("predict", model, "habari njema")
    assert code == 2 and "--labels negative,neutral,positive" in shown.err
    own = call("predict", str(ASSETS / "teacher"), "habari njema")[1].out
    assert call("predict", model, "habari njema", *given)[1].out == own
    assert call("evaluate", model, "--profile", "tiny", *given)[0] == 0
    code, shown = call("predict", model, "x", "--labels", "negative,neutral")
    assert code == 2 and "--labels 'negative,neutral': name negative, neutral, pos" in shown.err

    def checked(model, *_, **__):
        return {"order": label_order(model), "argmax_equal": 100.0}

    monkeypatch.setattr("comet_lib.ship.onnx.export", checked)
    output = ["--output", str(tmp_path / "out")]
    assert call("export", model, "--profile", "tiny", *output, *given)[0] == 0
    seen = []
    monkeypatch.setattr("comet_lib.recipe.distil", lambda profile, *_, **__: seen.append(profile))
    assert call("distill", "--profile", "tiny", "--teacher", model, *output, *given)[0] == 0
    teachers = read_teachers(seen[0])
    assert label_order(teachers.sentiment) == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["distill", "--profile", "huge"], "unknown profile"),
        (["distill", "--data", "no/such/folder"], "does not exist"),
        (["distill", "--profile", "tiny", "--languages", "../x"], "language code"),
        (["distill", "--languages", "swahili"], "language code 'swahili': did you mean swa?"),
        (["distill", "--profile", "tiny", "--languages", "kin,kin"], "once"),
        (["distill", "--profile", "tiny", "--languages", "xho"], "no such language"),
        (["distill", "--profile", "tiny", "--teacher", "no-such/teacher"], "could be loaded"),
        (
            ["distill", "--student", "layers=2"],
            "--student 'layers=2': give NAME=VALUE, where",
        ),
        (["distill", "--student", "hidden_size=wide"], "a positive integer and NAME one of"),
        (["distill", "--student", "hidden_size=0"], "a positive integer and NAME one of"),
        (["distill", "--student", "num_hidden_layers=1,"], "--student ''"),
        (["distill", "--student", "initializer_range=1"], "a positive integer and NAME one of"),
        (["distill", "--student", "hidden_size=130"], "130 is not divisible by"),
        (["distill", "--terms", "attention=1"], "--terms 'attention=1': give NAME=VALUE, where"),
        (["distill", "--terms", "hidden_mse=-1"], "a number and NAME one of"),
        (["distill", "--terms", "hidden_mse=nan"], "a number and NAME one of"),
        (["evaluate", "nowhere/model", "--profile", "tiny"], "could be loaded"),
        (["evaluate", "x", "--split", "exam"], "--split"),
        (["predict", "x", "  "], "empty"),
        (["predict", "no/such/folder", "hi"], "no such folder"),
    ],
)
def test_bad_arguments_get_one_sentence_and_exit_code_two(arguments, words, call, tmp_path):
    if arguments[0] == "distill":
        arguments = [*arguments, "--output", str(tmp_path / "out")]
    code, shown = call(*arguments)
    error = shown.err.strip().splitlines()[-1]
    assert code == 2 and error.startswith("comet: ") and words in error


@pytest.mark.parametrize("profile", PROFILES)
def test_student_changes_only_the_sizes_it_names(profile):
    before = get_profile(profile)
    after = chosen_profile(profile, student="hidden_size=96, num_hidden_layers=1")
    assert after.student == {**before.student, "hidden_size": 96, "num_hidden_layers": 1}
    assert after == before.with_(student=after.student)


def test_sizes_and_terms_reach_the_training(monkeypatch):
    asked = []
    monkeypatch.setattr("comet_lib.recipe.distil", lambda profile, *_, **__: asked.append(profile))
    line = ["distill", "--profile", "tiny", "--student", "num_attention_heads=8,hidden_size=128"]
    line += ["--terms", "hidden_mse=1,relations=0.5"]
    assert CliRunner().invoke(cli.app, line).exit_code == 0
    sizes = asked[0].student
    assert (sizes["num_attention_heads"], sizes["hidden_size"]) == (8, 128)
    terms = {"hidden_mse": 1.0, "relations": 0.5}
    assert asked[0].stage1.terms == asked[0].stage2.terms == terms
    assert sizes["num_hidden_layers"] == get_profile("tiny").student["num_hidden_layers"]


def test_help_is_quick_and_lists_the_lab():
    """Torch takes seconds to import: a command imports it, the command line does not."""
    code = "import sys, comet_lib.__main__; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr
    shown = CliRunner().invoke(cli.app, ["lab", "--help"]).output
    assert all(name in shown for name in ("teacher", "ablate", "benchmark", "rehearse"))


def test_student_loads_by_our_loader(run):
    assert load_model(run[0] / "student").config.num_labels == 3
