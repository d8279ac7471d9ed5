"""An exported form answers like its model: in fp32 up to rounding, in int8 nearly always."""

import builtins
import copy
import io
import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, pipeline, set_seed
from typer.testing import CliRunner

from comet_lib import __main__ as cli
from comet_lib.data import load_sentiment, read_texts
from comet_lib.errors import CometError
from comet_lib.evaluation import predict_probabilities
from comet_lib.loading import load_model, load_tokenizer, save_tokenizer
from comet_lib.models import build_student, count_parameters
from comet_lib.models import xlmr_config as config_of
from comet_lib.profiles import ASSETS, TINY
from comet_lib.ship import onnx as ship

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ASSETS / "teacher")


@pytest.fixture(scope="module")
def model(tokenizer):
    set_seed(0)
    config = config_of(SMALL, len(tokenizer), 64)
    config.id2label = {0: "positive", 1: "negative", 2: "neutral"}  # not our order
    return build_student(config).eval()


@pytest.fixture(scope="module")
def rows():
    data = load_sentiment(TINY)["train"]
    return data["text"][:60], data["label"][:60], data["language"][:60]


@pytest.fixture(scope="module")
def fp32(model, tokenizer, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "fp32"
    return folder, ship.export(model, tokenizer, folder, *rows, card="# The card\n")


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    """The bundled teacher in int8, by the command line."""
    folder = tmp_path_factory.mktemp("export") / "int8"
    arguments = ["export", str(ASSETS / "teacher"), "--output", str(folder), "--int8"]
    done = CliRunner().invoke(cli.app, [*arguments, "--profile", "tiny"])
    assert done.exit_code == 0, done.output
    assert f"wrote {folder}" in done.stderr
    return folder, json.loads(done.stdout), load_model(ASSETS / "teacher")


def test_logits_agree_at_every_shape(fp32, model, tokenizer, rows):
    exported = ship.load_exported(fp32[0])
    for texts in (rows[0][:1], rows[0][:7], ["a"], ["", "habari za asubuhi sana leo"]):
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        inputs = {k: batch[k] for k in ship.INPUTS}
        with torch.no_grad():
            torch.testing.assert_close(
                exported(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-4
            )


def test_the_report_says_what_was_measured(fp32, model, tokenizer, rows):
    folder, report = fp32
    assert report["argmax_equal"] == 100 and report["max_difference"] < ship.TOLERANCE
    assert report["parameters"] == count_parameters(model)
    assert report["bytes"] == (folder / "onnx" / "model.onnx").stat().st_size
    assert report == json.loads((folder / "export.json").read_text())
    card = (folder / "README.md").read_text()
    assert card.startswith("# The card") and "60 dev texts" in card
    assert model.training is False


def test_the_layout_is_that_of_the_hub(fp32, int8, tokenizer):
    """Transformers.js looks for these names; the int8 graph is the one that is read."""
    for folder, graphs in ((fp32[0], ["model.onnx"]), (int8[0], ["model.onnx", ship.INT8[5:]])):
        assert sorted(path.name for path in (folder / "onnx").iterdir()) == graphs
        there = {"config.json", "tokenizer.json", "tokenizer_config.json", "export.json"}
        assert {path.name for path in folder.iterdir()} == there | {"onnx", "README.md"}
        assert ship.graph_of(folder).name == graphs[-1]
    # the bundled teacher takes 128 tokens and was trained at 64
    assert tokenizer.model_max_length == 128
    assert AutoTokenizer.from_pretrained(int8[0]).model_max_length == 64


def test_a_folder_of_the_old_layout_is_still_read(fp32, model, tokenizer, rows, tmp_path):
    old = shutil.copytree(fp32[0], tmp_path / "old")
    (old / ship.GRAPH).rename(old / "model.onnx")
    pair = ship.load_classifier(old)
    np.testing.assert_allclose(
        predict_probabilities(*pair, rows[0]),
        predict_probabilities(model, tokenizer, rows[0]),
        atol=1e-5,
    )


def test_a_model_from_the_hub_with_a_graph_beside_its_weights_is_no_export(tmp_path):
    hub = shutil.copytree(ASSETS / "teacher", tmp_path / "hub")
    (hub / "onnx").mkdir()
    (hub / ship.GRAPH).write_text("another program's")
    assert not ship.is_exported(hub)


@pytest.mark.parametrize("int8", [False, True])
def test_attentions_are_further_outputs(int8, model, tokenizer, rows, tmp_path):
    folder = tmp_path / "x"
    ship.export(model, tokenizer, folder, *rows, int8=int8, attentions=True, force=True)
    session = onnxruntime.InferenceSession(str(ship.graph_of(folder)))
    names = ["logits", "attentions.0", "attentions.1"]
    assert [output.name for output in session.get_outputs()] == names
    batch = tokenizer(rows[0][:3], padding=True, return_tensors="pt")
    found = session.run(names[1:], {name: batch[name].numpy() for name in ship.INPUTS})
    own = copy.deepcopy(model)
    own.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = own(**{name: batch[name] for name in ship.INPUTS}, output_attentions=True)
    for ours, theirs in zip(found, wanted.attentions, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.1 if int8 else 1e-5)
    assert not model.config.output_attentions


def test_it_runs_without_this_library(fp32, model, rows):
    session = onnxruntime.InferenceSession(str(fp32[0] / ship.GRAPH))
    batch = AutoTokenizer.from_pretrained(fp32[0])(rows[0][:3], padding=True, return_tensors="np")
    (logits,) = session.run(None, {k: batch[k] for k in ("input_ids", "attention_mask")})
    with torch.no_grad():
        ours = model(*(torch.from_numpy(batch[k]) for k in ship.INPUTS)).logits
    np.testing.assert_allclose(logits, ours, atol=1e-4)


def test_no_traces_and_no_paths_in_the_graph(fp32):
    raw = (fp32[0] / ship.GRAPH).read_bytes()
    assert b".py" not in raw
    assert len(raw) < 4 * fp32[1]["parameters"] + 60_000


def test_the_graph_has_no_guard_against_nan_and_the_model_keeps_its_attention(fp32, model):
    graph = onnx.load(fp32[0] / ship.GRAPH).graph
    assert not [node for node in graph.node if node.op_type == "IsNaN"]
    assert model.config._attn_implementation == "sdpa" != "eager"


def test_the_tokenizer_is_the_same_in_half_the_bytes(int8):
    ours, theirs = (path / "tokenizer.json" for path in (int8[0], ASSETS / "teacher"))
    assert json.loads(ours.read_text("utf-8")) == json.loads(theirs.read_text("utf-8"))
    assert ours.stat().st_size < 0.55 * theirs.stat().st_size


def test_a_saved_tokenizer_says_what_its_model_takes(fp32, model, tmp_path):
    """Whatever it was told before, and whatever the last call padded and cut."""
    tokenizer = load_tokenizer(ASSETS / "teacher")
    tokenizer.model_max_length = 512
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=3)
    model.save_pretrained(tmp_path)
    save_tokenizer(tokenizer, model, tmp_path)
    for folder in (tmp_path, fp32[0], ASSETS / "teacher"):
        state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        assert state["truncation"] is None and state["padding"] is None, folder
    for folder in (tmp_path, fp32[0]):
        assert AutoTokenizer.from_pretrained(folder).model_max_length == 64
    answer = pipeline("text-classification", model=str(tmp_path))("habari " * 300, truncation=True)
    assert answer[0]["label"] in ("negative", "neutral", "positive")
    assert tokenizer.model_max_length == 512  # the caller's own stays as it is


def test_int8_is_small_embeddings_too_and_says_nearly_the_same(int8, tokenizer):
    folder, report, teacher = int8
    assert report["form"] == "int8" and report["bytes"] < 1.1 * report["parameters"]
    for tensor in onnx.load(str(folder / ship.INT8)).graph.initializer:
        if np.prod(tensor.dims) > 2000:
            assert tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8), tensor.name
    dev = load_sentiment(TINY)["dev"]["text"][:]
    ours = predict_probabilities(ship.load_exported(folder), tokenizer, dev)
    theirs = predict_probabilities(teacher, tokenizer, dev)
    assert 0 < np.abs(ours - theirs).max() < 0.1
    assert report["argmax_equal"] >= 95
    assert report["argmax_equal"] == pytest.approx(
        100 * np.mean([a.argmax() == b.argmax() for a, b in zip(ours, theirs, strict=True)])
    )


def test_labels_are_taken_by_name(fp32, model, tokenizer, rows, tmp_path):
    ours = predict_probabilities(ship.load_exported(fp32[0]), tokenizer, rows[0])
    np.testing.assert_allclose(ours, predict_probabilities(model, tokenizer, rows[0]), atol=1e-5)
    other = build_student(config_of(SMALL, 50))
    other.config.id2label = {0: "x", 1: "y", 2: "z"}
    with pytest.raises(CometError, match="id2label"):
        ship.export(other, tokenizer, tmp_path / "other", *rows)


def test_a_graph_that_strays_is_not_written(fp32, model, tokenizer, rows, monkeypatch, tmp_path):
    def wrong(_, path, attentions):
        graph = onnx.load(str(fp32[0] / ship.GRAPH))
        for tensor in graph.graph.initializer:
            if list(tensor.dims) == [len(tokenizer), 32]:
                weights = onnx.numpy_helper.to_array(tensor) * 1.05
                tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
        onnx.save(graph, str(path))

    monkeypatch.setattr(ship, "write_onnx", wrong)
    with pytest.raises(CometError, match="strays"):
        ship.export(model, tokenizer, tmp_path / "out", *rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_a_graph_too_large_for_one_file_has_its_weights_beside_it(
    form, fp32, model, tokenizer, rows, monkeypatch, tmp_path
):
    """Protobuf takes 2 GiB; a lower limit stands in for it."""
    monkeypatch.setattr(ship, "LARGEST", 100_000)
    report = ship.export(model, tokenizer, tmp_path / "x", *rows, int8=form == "int8", force=True)
    shutil.move(tmp_path / "x", tmp_path / "moved")  # the graph names its weights, not their folder
    folder = tmp_path / "moved"
    name = "model.onnx" if form == "fp32" else "model_quantized.onnx"
    files = {path.name: path.stat().st_size for path in folder.glob(f"onnx/{name}*")}
    assert sorted(files) == [name, f"{name}_data"] and files[name] < 100_000
    exported = ship.load_exported(folder)
    assert report["bytes"] == sum(files.values()) == round(exported.size[1] * 1e6)
    answers = predict_probabilities(exported, tokenizer, rows[0])
    whole = predict_probabilities(ship.load_exported(fp32[0]), tokenizer, rows[0])
    np.testing.assert_allclose(answers, whole, atol=1e-6 if form == "fp32" else 0.2)
    (folder / "onnx" / f"{name}_data").unlink()
    with pytest.raises(CometError, match=rf"{name}: onnxruntime cannot read it"):
        ship.load_exported(folder)


@pytest.fixture
def outlier(model, tokenizer, tmp_path):
    """A model with one outlier, in a row that no text reads: it sets the scale of all rows."""
    own = copy.deepcopy(model)
    with torch.no_grad():
        own.get_input_embeddings().weight[-1, 0] = 1000.0
    own.save_pretrained(tmp_path / "outlier")
    save_tokenizer(tokenizer, own, tmp_path / "outlier")
    return tmp_path / "outlier"


def test_int8_that_changes_many_labels_is_refused_unless_forced(
    outlier, monkeypatch, capsys, tmp_path
):
    command = ("export", outlier, "--output", tmp_path / "out", "--int8", "--profile", "tiny")
    assert run(monkeypatch, *command) == 1
    shown = capsys.readouterr()
    assert re.search(r"not written, in int8 only \d\d\.\d % of the texts", shown.err)
    assert "--force" in shown.err and not shown.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outlier"]
    assert run(monkeypatch, *command, "--force") in (0, None)
    shown = capsys.readouterr()
    assert json.loads(shown.out)["argmax_equal"] < ship.LEAST_EQUAL
    assert "warning: only" in shown.err and ship.is_exported(tmp_path / "out")


def test_what_cannot_be_loaded_is_named(fp32, monkeypatch, tmp_path):
    with pytest.raises(CometError, match=r"no onnx/model\.onnx"):
        ship.load_exported(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(CometError, match="cannot read it"):
        ship.load_exported(tmp_path)
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("onnxruntime"):
            raise ImportError("no", name=name)
        return real(name, *rest, **more)

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CometError, match=r"onnxruntime is not installed: pip install"):
        ship.load_exported(fp32[0])


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["comet_lib", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def test_predict_reads_arguments_standard_input_and_tsv(fp32, monkeypatch, capsys, tmp_path):
    texts = ["habari njema", "ọjọ́ dára", "\x1b[31mred"]
    assert run(monkeypatch, "predict", fp32[0], *texts) in (0, None)
    wanted = capsys.readouterr().out
    assert len(wanted.splitlines()) == 3 and "\x1b" not in wanted

    piped = "\ufeff" + "\n\n".join(texts) + "\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(piped.encode())))
    assert run(monkeypatch, "predict", fp32[0], "-") in (0, None)
    assert capsys.readouterr().out == wanted

    table = tmp_path / "x.tsv"
    table.write_text("id\ttext\n" + "".join(f"{i}\t{t}\n" for i, t in enumerate(texts)), "utf-8")
    assert run(monkeypatch, "predict", fp32[0], table) in (0, None)
    assert capsys.readouterr().out == wanted


def test_evaluate_takes_an_exported_form(int8, monkeypatch, capsys):
    rows = []
    for model in (int8[0], ASSETS / "teacher"):
        code = run(monkeypatch, "evaluate", model, "--json", "--profile", "tiny", "--split", "dev")
        assert code in (0, None)
        rows.append(json.loads(capsys.readouterr().out))
    whole = json.loads((int8[0] / "export.json").read_text())["weighted_f1"]  # with all digits
    assert rows[0]["weighted_f1"]["mean"] == pytest.approx(whole["exported"])
    assert rows[1]["weighted_f1"]["mean"] == pytest.approx(whole["original"])
    assert int8[1]["weighted_f1"] == {k: float(f"{value:.4g}") for k, value in whole.items()}
    assert rows[0]["parameters"] == rows[1]["parameters"]
    assert rows[0]["size_mb"] < 0.3 * rows[1]["size_mb"]


def test_export_overwrites_nothing_of_yours(fp32, monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, "export", fp32[0], "--output", tmp_path / "b") == 2
    assert "already an export" in capsys.readouterr().err
    (tmp_path / "thesis.txt").write_text("precious")
    assert run(monkeypatch, "export", ASSETS / "teacher", "--output", tmp_path) == 2
    assert "holds no export" in capsys.readouterr().err
    (tmp_path / ship.OLD).write_text("another program's")  # such a folder comes from the hub too
    assert run(monkeypatch, "export", ASSETS / "teacher", "--output", tmp_path) == 2
    assert "holds no export" in capsys.readouterr().err and (tmp_path / "thesis.txt").exists()


def test_a_card_that_is_no_utf8_is_kept_as_far_as_it_goes(fp32, monkeypatch, tmp_path):
    shutil.copytree(ASSETS / "teacher", tmp_path / "model")
    (tmp_path / "model" / "README.md").write_bytes("Modèle de Zoé\n".encode("latin-1"))
    seen = {}
    monkeypatch.setattr(
        ship, "export", lambda *a, **more: seen.update(more) or {"argmax_equal": 100}
    )
    assert run(monkeypatch, "export", tmp_path / "model", "--output", tmp_path / "new") == 0
    assert seen["card"].startswith("Mod") and "de Zo" in seen["card"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("label\nx\n", "row 1: needs one column tweet or text"),
        ("text\tid\n\t3\n", "row 2: the text is empty"),
        ("id\ttweet\n1\n", "row 2: the text is empty"),
        ("text\n", "no rows"),
    ],
)
def test_a_table_that_cannot_be_read_names_the_row(content, words, tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text(content, "utf-8")
    with pytest.raises(CometError, match=words):
        read_texts(path)
