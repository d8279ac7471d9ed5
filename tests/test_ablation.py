"""The ablation: what a run contains, resuming, and differences against slow references."""

import json
import multiprocessing
import signal
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
from sklearn.metrics import f1_score
from transformers import PreTrainedModel

from comet_lib import plots, recipe
from comet_lib.errors import CometError
from comet_lib.evaluation import paired_bootstrap
from comet_lib.lab import ablation, comparison
from comet_lib.lab.ablation import Laboratory
from comet_lib.lab.comparison import pack, unpack
from comet_lib.lab.variants import VARIANTS, chosen_variants
from comet_lib.profiles import get_profile

FORK = multiprocessing.get_context("fork")  # a process that need not import torch again
BY_NAME = {v.name: v for v in VARIANTS}
TINY = get_profile("tiny")


# --------------------------------------------------------------------------- the list


def test_each_variant_changes_one_thing_and_can_be_compared():
    assert len(BY_NAME) == len(VARIANTS)
    for variant in VARIANTS:
        assert {variant.against or "none", variant.base or "none"} <= set(BY_NAME), variant.name
        if variant.base:
            mine, other = (
                ablation._identity({"settings": {}, "truth": {}}, {"x": asdict(BY_NAME[n])})
                for n in (variant.name, variant.base)
            )
            changed = {k for k in mine if mine[k] != other[k]} - {"x: name", "x: weight"}
            assert len(changed) == 1, (variant.name, changed)


def test_only_takes_what_is_compared_along():
    assert [v.name for v in chosen_variants("labels-10-both")] == [
        "none", "labels-10", "labels-10-both"
    ]  # fmt: skip
    assert [v.name for v in chosen_variants(" relations,")] == ["none", "both", "relations"]
    assert chosen_variants(None) == list(VARIANTS)
    for wrong in ("nonsense", "both,nonsense", ","):
        with pytest.raises(CometError, match="--only names no variant"):
            chosen_variants(wrong)


# --------------------------------------------------------------------------- what runs share


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    return Laboratory(TINY, tmp_path_factory.mktemp("work"))


def test_known_labels_are_a_share_of_each_language(laboratory):
    known, languages = laboratory.known(0.5), np.array(laboratory.languages)
    assert laboratory.known(1.0).all()
    for code in TINY.languages:
        here = known[languages == code]
        assert here.sum() == round(0.5 * len(here))
        assert laboratory.known(0.01)[languages == code].sum() == 10
    assert np.array_equal(known, laboratory.known(0.5))
    assert (known | ~laboratory.known(0.3)).all()  # fewer labels are some of the more


def test_tfidf_targets_do_not_move_with_labels_that_are_unknown(laboratory, tmp_path):
    other = Laboratory(TINY, tmp_path)
    known = other.known(0.5)
    other.labels = np.where(known, other.labels, (other.labels + 1) % 3)
    first, second = laboratory.targets(0.5), other.targets(0.5)
    assert np.allclose(first["tfidf"], second["tfidf"])
    weight = TINY.teacher_weight
    for made in (first, laboratory.targets(1.0)):
        mixed = (1 - weight) * made["tfidf"] + weight * made["teacher"]
        assert np.allclose(made["both"], mixed)
        assert np.allclose(made["tfidf"].sum(1), 1) and np.allclose(made["teacher"].sum(1), 1)


def test_training_tables(laboratory):
    n = len(laboratory.labels)
    plain = laboratory.train_table(BY_NAME["none"])
    assert plain.column_names == ["text", "label"] and plain["label"][:] == list(laboratory.labels)
    few = laboratory.train_table(BY_NAME["labels-10"])
    known = laboratory.known(0.1)
    assert len(few) == n and -100 not in few["label"][:]
    assert set(few["text"][:]) == {laboratory.texts[i] for i in np.flatnonzero(known)}
    soft = laboratory.train_table(BY_NAME["labels-10-both"])
    assert soft["text"][:] == list(laboratory.texts)
    assert soft["label"][:] == [
        int(y) if k else -100 for y, k in zip(laboratory.labels, known, strict=True)
    ]
    for name, who in (("tfidf", "tfidf"), ("teacher", "teacher"), ("alpha-100", "both")):
        table = laboratory.train_table(BY_NAME[name])
        assert np.allclose(table["teacher_probs"][:], laboratory.targets(1.0)[who], atol=1e-6)
    spliced = laboratory.train_table(BY_NAME["splices"])  # differs from "both" in one thing
    assert len(spliced) > 1.4 * n
    assert np.allclose(spliced["teacher_probs"][:n], laboratory.targets(1.0)["both"], atol=1e-6)


def test_a_run_says_what_it_did_and_repeats(laboratory):
    first = laboratory.run(BY_NAME["hidden-mse"], 1)
    assert any(laboratory.work.glob("answers-hidden-*"))  # every batch, from answers kept once
    again = laboratory.run(BY_NAME["hidden-mse"], 1)
    other = laboratory.run(BY_NAME["hidden-mse"], 2)
    assert first["test"] == again["test"] and first["dev_f1"] == again["dev_f1"]
    assert other["seed"] == 2
    guess = unpack(first["test"])
    assert len(guess) == len(laboratory.splits["test"]) and set(guess) <= {0, 1, 2}
    assert first["settings"]["term"] == "hidden_mse" and first["seconds"] > 0
    assert not [text for text in laboratory.texts if text in json.dumps(first, ensure_ascii=False)]


def test_settings_of_a_variant_reach_the_training(laboratory, monkeypatch):
    seen = {}

    def fine_tune(student, tokenizer, train, dev, profile, folder, matches, **_):
        seen.update(stage=profile.stage2, seed=profile.seed, student=student, matches=matches)
        return []

    monkeypatch.setattr(ablation, "fine_tune", fine_tune)
    laboratory.run(BY_NAME["alpha-100"], 3)
    assert (seen["stage"].alpha, seen["stage"].temperature, seen["seed"]) == (1.0, 1.0, 3)
    assert seen["stage"].terms == {}
    laboratory.run(BY_NAME["temperature-2"], 0)
    assert seen["stage"].temperature == 2.0
    laboratory.run(replace(BY_NAME["hidden-mse"], layers="last", weight=7.0), 0)
    assert seen["matches"] == {0: 2, 1: 3} and seen["stage"].terms == {"hidden_mse": 7.0}
    assert seen["stage"].alpha == TINY.stage2.alpha
    plain = seen["student"].get_input_embeddings().weight
    laboratory.run(BY_NAME["random"], 0)
    assert not np.allclose(
        seen["student"].get_input_embeddings().weight.detach(), plain.detach(), atol=0.01
    )


def test_the_control_looks_at_other_pieces(laboratory, monkeypatch):
    """The swapped teacher's maps differ on a sentence, and not on special pieces; the laboratory's
    own teacher stays as it is."""
    teachers = []
    monkeypatch.setattr(
        ablation, "fine_tune", lambda *_, teacher, **more: teachers.append((teacher, more)) or []
    )
    for name in ("attention-kl", "attention-swapped"):
        laboratory.run(BY_NAME[name], 0)
    (own, first), (other, second) = teachers
    assert own is laboratory.teacher and first["cache"] != second["cache"]
    mine, its = (model.get_input_embeddings().weight for model in (own, other))
    special = laboratory.tokenizer.all_special_ids
    assert mine[special].equal(its[special])
    assert not mine.equal(its) and mine.sum(0).allclose(its.sum(0), atol=1e-3)


def test_stage_one_is_shared_by_the_variants_of_a_seed(laboratory, monkeypatch):
    calls = []
    real = recipe.distil_task_agnostic

    def counted(student, teacher, tokenizer, texts, profile, folder, **more):
        calls.append((profile.seed, profile.stage1.alpha, profile.stage1.terms))
        return real(student, teacher, tokenizer, texts, profile, folder, **more)

    monkeypatch.setattr(recipe, "distil_task_agnostic", counted)
    once = laboratory.agnostic("soft", 0)
    twice = laboratory.agnostic("soft", 0)
    assert calls == [(0, 1.0, {})]
    for name, value in once.state_dict().items():
        assert value.equal(twice.state_dict()[name])
    laboratory.agnostic("mse", 1)
    assert calls[1:] == [(1, TINY.stage1.alpha, {"attention_mse": 1 - TINY.stage1.alpha})]


# --------------------------------------------------------------------------- resuming


def quick_line(self, variant, seed):
    """Stands in for a run: predictions that depend on variant and seed alone."""
    rng = np.random.default_rng([seed, len(variant.name)])
    line = {"variant": variant.name, "seed": seed, "settings": asdict(variant)}
    for split, table in self.splits.items():
        labels = np.asarray(table["label"][:])
        wrong = rng.random(len(labels)) < 0.4
        line[split] = pack(np.where(wrong, (labels + 1) % 3, labels))
        line[f"{split}_f1"] = {"mean": 60.0}
    return {**line, "seconds": 1.0}


def run_names(path):
    return [(r["variant"], r["seed"]) for r in comparison.read_runs(path)[1]]


def test_important_variants_come_first_and_finished_runs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(Laboratory, "run", quick_line)
    wanted = chosen_variants("both,alpha-50")
    path = ablation.ablate(TINY, tmp_path, wanted, seeds=2, say=lambda _: None)
    first = [("none", 0), ("both", 0), ("none", 1), ("both", 1), ("alpha-50", 0), ("alpha-50", 1)]
    assert run_names(path) == first
    before = path.read_text(encoding="utf-8")
    said = []
    monkeypatch.setattr(Laboratory, "run", None)  # nothing is missing, nothing runs
    ablation.ablate(TINY, tmp_path, wanted, seeds=2, say=said.append)
    assert path.read_text(encoding="utf-8") == before and said == []
    monkeypatch.setattr(Laboratory, "run", quick_line)
    ablation.ablate(TINY, tmp_path, chosen_variants("tfidf"), seeds=3, say=said.append)
    assert set(run_names(path)) - set(first) == {
        ("none", 2), ("tfidf", 0), ("tfidf", 1), ("tfidf", 2)
    }  # fmt: skip


def test_changed_settings_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Laboratory, "run", quick_line)
    wanted = chosen_variants("both")
    path = ablation.ablate(TINY, tmp_path, wanted, seeds=1, say=lambda _: None)
    before = path.read_text(encoding="utf-8")
    fewer = TINY.with_(train_limit=30)
    with pytest.raises(CometError, match=r"train_limit \(40 there, 30 now\), texts"):
        ablation.ablate(fewer, tmp_path, wanted, seeds=2)
    stage = replace(TINY.stage2, learning_rate=1.0)
    with pytest.raises(CometError, match=r"differs in stage2;"):
        ablation.ablate(TINY.with_(stage2=stage), tmp_path, wanted, seeds=2)
    with pytest.raises(CometError, match=r"differs in both: alpha \(None there, 0.1 now\);"):
        ablation.ablate(TINY, tmp_path, [replace(BY_NAME["both"], alpha=0.1)], seeds=2)
    header, *runs = before.splitlines(keepends=True)
    other = json.loads(header)  # as many tweets, with other labels
    labels = unpack(other["truth"]["dev"]["labels"])
    other["truth"]["dev"]["labels"] = pack(np.roll(labels, 1))
    path.write_text("".join([json.dumps(other) + "\n", *runs]), encoding="utf-8")
    with pytest.raises(CometError, match=r"differs in dev or test;"):
        ablation.ablate(TINY, tmp_path, wanted, seeds=2)
    path.write_text("half", encoding="utf-8")
    with pytest.raises(CometError, match="no readable runs"):
        ablation.ablate(TINY, tmp_path, wanted)


def test_work_of_other_settings_is_refused(tmp_path, monkeypatch):
    """A student of stage 1 there would be another's."""
    monkeypatch.setattr(Laboratory, "run", quick_line)
    wanted = chosen_variants("none")
    ablation.ablate(TINY, tmp_path, wanted, seeds=1, say=lambda _: None)
    (tmp_path / "runs.jsonl").unlink()
    with pytest.raises(CometError, match=r"folds \(3 there, 2 now\)"):
        ablation.ablate(TINY.with_(folds=2), tmp_path, wanted, seeds=1, say=lambda _: None)
    ablation.ablate(TINY, tmp_path, wanted, seeds=1, say=lambda _: None)


def slow_line(self, variant, seed):
    time.sleep(0.5)
    return quick_line(self, variant, seed)


def test_a_killed_ablation_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(Laboratory, "run", slow_line)
    wanted = chosen_variants("both,tfidf")
    child = FORK.Process(target=ablation.ablate, args=(TINY, tmp_path, wanted, 9))
    child.start()
    path = tmp_path / "runs.jsonl"
    while not (path.is_file() and len(path.read_text(encoding="utf-8").splitlines()) > 2):
        assert child.is_alive(), "the child ended before it could be killed"
        time.sleep(0.05)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    before = run_names(path)
    assert 2 <= len(before) < 9
    monkeypatch.setattr(Laboratory, "run", quick_line)
    ablation.ablate(TINY, tmp_path, chosen_variants("both,tfidf"), seeds=3, say=lambda _: None)
    after = run_names(path)
    assert after[: len(before)] == before and len(after) == len(set(after)) == 9


# --------------------------------------------------------------------------- the summary


def test_pack_is_undone_by_unpack_and_small():
    values = np.random.default_rng(0).integers(0, 3, 5000)
    assert np.array_equal(unpack(pack(values)), values)
    assert len(pack(values)) < 2000 and pack(values).isascii()


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 and never falling
    assert comparison.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert comparison.holm([0.6, 0.9]) == [1.0, 1.0]
    assert comparison.holm([0.02, 0.02]) == [0.04, 0.04]
    assert comparison.holm([]) == []


def made_up(rng, n=400, languages=2, accuracies=(0.6, 0.7)):
    labels, codes = rng.integers(0, 3, n), np.sort(rng.integers(0, languages, n))
    guesses = [
        np.where(rng.random(n) < a, labels, (labels + rng.integers(1, 3, n)) % 3)
        for a in accuracies
    ]
    return labels, codes, np.stack(guesses)


def test_f1_draws_equal_the_reference():
    labels, codes, guesses = made_up(np.random.default_rng(0), n=60)
    drawn = comparison.f1_draws(labels, codes, guesses, 5, np.random.default_rng(1))
    rng, expected = np.random.default_rng(1), np.zeros((5, 2))
    for code in (0, 1):
        here = np.flatnonzero(codes == code)
        times = rng.multinomial(len(here), np.full(len(here), 1 / len(here)), size=5)
        for d in range(5):
            rows = [i for i, t in zip(here, times[d], strict=True) for _ in range(t)]
            for r in (0, 1):
                score = f1_score(
                    labels[rows], guesses[r][rows], average="weighted", zero_division=0
                )
                expected[d, r] += 100 * score / 2
    assert drawn == pytest.approx(expected)


def write_runs(path, labels, codes, runs, **names):
    """``runs``: (variant, seed) -> predictions, the same on dev and test."""
    truth = {"labels": pack(labels), "languages": pack(codes)}
    stage = {"epochs": 2, "batch_size": 4, "alpha": 0.5, "temperature": 1.0}
    settings = {
        "profile": "x", "source": "y", "training tweets": 9, "train_limit": 4, "stage2": stage
    }  # fmt: skip
    header = {
        "settings": settings,
        "versions": {"torch": "0"},
        "truth": {"dev": truth, "test": truth},
    }
    lines = [header]
    for (name, seed), guess in runs.items():
        about = {"about": name, "against": "none", "base": "", **names.get(name, {})}
        packed = pack(guess)
        lines.append(
            {"variant": name, "seed": seed, "settings": about, "dev": packed, "test": packed}
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_one_seed_is_the_paired_bootstrap(tmp_path):
    labels, codes, (worse, better) = made_up(np.random.default_rng(0))
    path = write_runs(tmp_path / "r", labels, codes, {("none", 0): worse, ("both", 0): better})
    none, both = comparison.summarize(path, draws=4000)
    assert "difference" not in none["test"] and both["seeds"] == 1
    made = both["test"]["difference"]
    expected = paired_bootstrap(labels, better, worse, codes, draws=4000)
    assert made["mean"] == pytest.approx(expected["difference"])
    assert made["ci95"] == pytest.approx(expected["ci95"], abs=0.5)
    assert made["p"] <= 0.02 and expected["p"] <= 0.02


def test_equal_predictions_differ_by_nothing_and_are_not_sure(tmp_path):
    labels, codes, (one, two) = made_up(np.random.default_rng(0))
    runs = {("none", 0): one, ("none", 1): two, ("both", 0): one, ("both", 1): two}
    _, both = comparison.summarize(write_runs(tmp_path / "r", labels, codes, runs), draws=200)
    difference = both["test"]["difference"]
    # Paired by tweet and by seed: drawn apart, either would give the interval a width.
    assert difference["ci95"] == [0.0, 0.0] and difference["p"] == difference["holm"] == 1.0


def test_seeds_that_disagree_widen_the_interval(tmp_path):
    labels, codes, guesses = made_up(
        np.random.default_rng(0), n=3000, accuracies=(0.6, 0.6, 0.6, 0.5, 0.6, 0.7)
    )
    runs = {
        (name, s): guesses[3 * i + s] for i, name in enumerate(("none", "both")) for s in range(3)
    }
    _, both = comparison.summarize(write_runs(tmp_path / "r", labels, codes, runs))
    low, high = both["test"]["difference"]["ci95"]
    assert low < -4 and high > 4 and both["test"]["difference"]["p"] > 0.3
    assert both["test"]["difference"]["each"] == pytest.approx([-10, 0, 10], abs=4)


def test_only_seeds_that_both_have_are_compared_and_unknown_names_come_last(tmp_path):
    labels, codes, guesses = made_up(np.random.default_rng(0), accuracies=(0.6, 0.65, 0.7, 0.9))
    runs = {("mine", 0): guesses[3], ("both", 1): guesses[2], ("none", 0): guesses[0],
            ("none", 1): guesses[1], ("relations", 1): guesses[1]}  # fmt: skip
    names = {"mine": {"about": "my own", "base": "both"}}
    rows = comparison.summarize(write_runs(tmp_path / "r", labels, codes, runs, **names))
    assert [row["variant"] for row in rows] == ["none", "both", "relations", "mine"]
    none, both, relations, mine = (row["test"] for row in rows)
    assert both["difference"]["each"] == pytest.approx(
        [both["mean"] - paired_mean(labels, codes, guesses[1])]
    )
    assert relations["added"]["mean"] < 0 and relations["difference"]["each"] == [0.0]
    assert len(mine["difference"]["each"]) == 1 and "added" not in mine  # no seed in common
    assert "difference" not in none


def paired_mean(labels, codes, guess):
    return np.mean(
        [
            100 * f1_score(labels[codes == c], guess[codes == c], average="weighted")
            for c in np.unique(codes)
        ]
    )


def test_table_and_figure(tmp_path):
    labels, codes, guesses = made_up(np.random.default_rng(0), accuracies=(0.5, 0.7, 0.7))
    runs = {("none", 0): guesses[0], ("both", 0): guesses[1], ("relations", 0): guesses[2]}
    write_runs(tmp_path / "runs.jsonl", labels, codes, runs)
    text = comparison.write_summary(tmp_path)
    assert text == (tmp_path / "ablation.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    rows = comparison.summarize(tmp_path / "runs.jsonl")
    assert f"{rows[1]['test']['difference']['mean']:+z.1f} (" in lines[3]
    figure = plots.forest(rows)
    left, right = figure.axes
    assert "2 of 2" in left.get_title(loc="left") and "0 of 1" in right.get_title(loc="left")
    assert [t.get_text() for t in left.get_yticklabels()] == [r["about"] for r in rows[1:]]
    assert len(plots.forest(rows[:2]).axes) == 1  # no second question, no second panel
    assert (tmp_path / "ablation.png").stat().st_size > 5000


def test_a_kill_while_stage_1_is_saved_leaves_no_half_model(tmp_path, monkeypatch):
    laboratory = Laboratory(TINY, tmp_path)
    monkeypatch.setattr(recipe, "distil_task_agnostic", lambda *a, **more: [])
    whole = PreTrainedModel.save_pretrained

    def half(self, folder, **more):
        self.config.save_pretrained(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", half)
    with pytest.raises(KeyboardInterrupt):
        laboratory.agnostic("soft", 0)
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", whole)
    assert laboratory.agnostic("soft", 0).config.num_hidden_layers == 2


BAD_RUNS = {
    "the header alone": lambda header, runs: runs.clear(),
    "a header without keys": lambda header, runs: header.clear(),
    "no truth": lambda header, runs: header["truth"].pop("dev"),
    "no seed": lambda header, runs: runs[0].pop("seed"),
    "a name that is none": lambda header, runs: runs[0].update(variant=["none"]),
    "no prediction": lambda header, runs: runs[0].pop("test"),
    "no base64": lambda header, runs: runs[0].update(test="!"),
    "no deflate": lambda header, runs: runs[0].update(test="AAAA"),
    "fewer tweets": lambda header, runs: runs[0].update(test=comparison.pack(np.zeros(3))),
    "a fourth label": lambda header, runs: runs[0].update(
        test=comparison.pack(np.full_like(comparison.unpack(runs[0]["test"]), 3))
    ),
}


@pytest.mark.parametrize("kind", BAD_RUNS)
def test_damaged_runs_are_named(kind, tmp_path):
    labels, codes, guesses = made_up(np.random.default_rng(0), accuracies=(0.5, 0.7))
    path = tmp_path / "runs.jsonl"
    write_runs(path, labels, codes, {("none", 0): guesses[0], ("both", 0): guesses[1]})
    header, runs = comparison.read_runs(path)
    BAD_RUNS[kind](header, runs)
    path.write_text("\n".join(map(json.dumps, (header, *runs))), encoding="utf-8")
    with pytest.raises(CometError, match=r"runs.jsonl: no readable runs; delete the file"):
        comparison.write_summary(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["runs.jsonl"]


@pytest.mark.parametrize("content", ["", "[" * 10**5, "[1]\n[2]", "1\n2", "null\nnull"])
def test_what_are_no_runs_is_named(content, tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CometError, match="no readable runs"):
        comparison.read_runs(path)
