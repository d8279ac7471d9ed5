"""What is stored is what the teacher says, survives kills, and refuses what is not its own."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixed_tokenizer import fixed_tokenizer
from transformers import set_seed

import comet_lib
from comet_lib import teacher as teacher_module
from comet_lib.attention import capture_maps
from comet_lib.batches import mask_row, tokenize
from comet_lib.errors import CometError
from comet_lib.models import build_student, xlmr_config
from comet_lib.objectives import Objective
from comet_lib.teacher import (
    Glances,
    LiveTeacher,
    Questions,
    StoredCollator,
    ask_once,
    decode_maps,
    encode_maps,
    fingerprint,
    open_answers,
    predicted_bytes,
    stored_answers,
)

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
TEXTS = [
    " ".join([a, b, c] * repeat)
    for repeat in (1, 2, 4)
    for a in "abcd"
    for b in ("ẹ kú", "mai", "ndi")
    for c in ("x y", "ọ̀rọ̀", "z")
]
SETTINGS = Questions((0, 2), temperature=2.0, seed=3, max_length=32, k=8, shard_rows=20)
MATCHES = {0: 0, 1: 2}


@pytest.fixture(scope="module")
def tokenizer():
    return fixed_tokenizer(TEXTS, vocab_size=60)


def a_teacher(tokenizer):
    set_seed(0)
    config = xlmr_config(SIZES, len(tokenizer), 64, initializer_range=0.3)
    return build_student(config, "masked-lm").eval()


@pytest.fixture(scope="module")
def table(tokenizer):
    return tokenize(TEXTS, tokenizer, SETTINGS.max_length)


@pytest.fixture(scope="module")
def made(tokenizer, table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "cache"
    rows = ask_once(folder, table, a_teacher(tokenizer), tokenizer, SETTINGS, bar=False)
    return folder, rows


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_masks_are_those_of_the_row_and_follow_the_recipe(tokenizer):
    ids = [0, *[7] * 4000, 2]
    masked, at = mask_row(ids, tokenizer, seed=1, row=5)
    again, _ = mask_row(ids, tokenizer, seed=1, row=5)
    assert (masked == again).all()
    for seed, row in ((1, 6), (2, 5)):
        assert (masked != mask_row(ids, tokenizer, seed, row)[0]).any()
    assert masked[0] == 0 and masked[-1] == 2 and not {0, len(ids) - 1} & set(at)
    assert len(at) / 4000 == pytest.approx(0.15, abs=0.02)
    assert (masked[at] == tokenizer.mask_token_id).mean() == pytest.approx(0.8, abs=0.05)
    assert (masked[at] == 7).mean() == pytest.approx(0.1, abs=0.04)
    others = np.setdiff1d(np.arange(len(ids)), at)
    assert (masked[others] == np.array(ids)[others]).all()


def test_maps_come_back_within_half_a_step():
    torch.manual_seed(0)
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    maps = (3 * torch.randn(2, 9, 9)).masked_fill(mask[:, None, :] == 0, -1e9).softmax(-1)
    codes = encode_maps(maps, mask)
    assert codes.dtype == torch.uint8 and not codes[1, 5:].any() and not codes[1, :, 5:].any()
    back = decode_maps(codes)
    torch.testing.assert_close(back.sum(-1), mask.float())
    valid = maps * mask[:, :, None]
    # d(x^2) = 2 x dx with dx half a step of 1/255, x at most 1: at most 1/255 of the row's maximum;
    # dividing by the row's sum moves it by as much again.
    bound = 2.1 / 255 * valid.amax(-1, keepdim=True)
    assert ((back - valid).abs() <= bound + 1e-7).all()
    # Equal steps of 1/255 would give an entry of 1 % of its row's maximum an error of up to 20 %.
    share = valid / valid.amax(-1, keepdim=True).clamp_min(1e-30)
    middle = (share > 0.01) & (share < 0.02)
    assert middle.any() and ((back - valid).abs()[middle] < 0.06 * valid[middle]).all()


@pytest.mark.parametrize("kind", ["attention_kl", "attention_mse"])
def test_the_cached_loss_is_the_live_loss(kind, tokenizer, table, tmp_path):
    teacher = a_teacher(tokenizer)
    everything = replace(SETTINGS, k=len(tokenizer))
    rows = ask_once(tmp_path / "c", table, teacher, tokenizer, everything, bar=False)
    assert len(rows) == len(table) and rows["length"][:] == table["length"][:]
    set_seed(1)
    student = build_student(
        xlmr_config({**SIZES, "num_hidden_layers": 2}, len(tokenizer), 64), "masked-lm"
    ).eval()
    weights, T = {"soft_targets": 0.3, kind: 0.7}, SETTINGS.temperature
    stored = Objective(stored_answers, weights, MATCHES, T)
    asked = Objective.live(teacher, weights, MATCHES, T)
    collator = StoredCollator(everything, tokenizer.pad_token_id)
    for start in range(0, len(rows), 16):
        batch = collator([rows[i] for i in range(start, min(start + 16, len(rows)))])
        text = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
        with stored.on(student) as cached, asked.on(student) as live:
            one, other = cached(student, batch), live(student, text)
        torch.testing.assert_close(one["soft_targets"], other["soft_targets"], rtol=2e-3, atol=1e-5)
        torch.testing.assert_close(one[kind], other[kind], rtol=0.02, atol=2e-5)
        assert one["loss"] > 0
        gradients = []
        for terms in (one, other):
            student.zero_grad()
            terms["loss"].backward()
            gradients.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
        assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.999


def test_a_row_holds_the_teachers_answer_to_its_own_masked_text(made, tokenizer):
    teacher = a_teacher(tokenizer)
    row = made[1][50]
    text = {
        "input_ids": torch.tensor([row["input_ids"]]),
        "attention_mask": torch.ones(1, row["length"], dtype=torch.long),
    }
    maps = capture_maps(teacher, text)
    n = row["length"]
    stored = np.frombuffer(row["maps"], np.uint8).reshape(2, n, n)
    for at, layer in enumerate(SETTINGS.maps):
        back = decode_maps(torch.tensor(stored[at]))
        torch.testing.assert_close(back, maps[layer][0], atol=0.01, rtol=0)
    logprobs = (teacher(**text).logits[0, row["positions"]] / 2.0).log_softmax(-1)
    indices = np.frombuffer(row["top_indices"], np.int32).reshape(-1, 8)
    top = torch.tensor(np.frombuffer(row["top_logprobs"], np.float16).reshape(-1, 8)).float()
    torch.testing.assert_close(
        top, logprobs.gather(1, torch.tensor(indices).long()), atol=5e-3, rtol=1e-3
    )
    tail = 1 - logprobs.topk(8).values.exp().sum(-1)
    torch.testing.assert_close(torch.tensor(np.frombuffer(row["tail"], np.float32)).exp(), tail)


def test_the_teacher_is_asked_once_about_each_row(tokenizer, table, tmp_path):
    teacher = a_teacher(tokenizer)
    asked = []
    teacher.register_forward_pre_hook(
        lambda _, args, kwargs: asked.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    ask_once(tmp_path / "c", table, teacher, tokenizer, SETTINGS, bar=False)
    assert sum(asked) == len(table)
    ask_once(tmp_path / "c", table, teacher, tokenizer, SETTINGS, bar=False)
    assert sum(asked) == len(table)


CHILD = """
import sys, time
sys.path.insert(0, sys.argv[3])
import test_teacher as t
from comet_lib.loading import load_tokenizer
tokenizer = load_tokenizer(sys.argv[2])
teacher = t.a_teacher(tokenizer)
teacher.register_forward_pre_hook(lambda *_: time.sleep(0.3))
table = t.tokenize(t.TEXTS, tokenizer, t.SETTINGS.max_length)
t.ask_once(sys.argv[1], table, teacher, tokenizer, t.SETTINGS, bar=False)
"""


def test_killed_and_called_again_it_makes_the_same_files(made, tokenizer, table, tmp_path):
    folder, words = tmp_path / "cut", tmp_path / "tokenizer"
    tokenizer.save_pretrained(words)  # trained anew it may come out otherwise
    environment = {**os.environ, "PYTHONPATH": str(Path(comet_lib.__file__).parents[1])}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(words), str(Path(__file__).parent)],
        env=environment,
    )
    while not (folder / "shard-00001.json").is_file():
        assert child.poll() is None, "the child ended before it could be killed"
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    whole = files(made[0])
    left = files(folder)
    assert 0 < sum(name.endswith(".arrow") for name in left) < 6
    (folder / ".shard-00002.arrow.half").write_bytes(b"half a shard")
    with pytest.raises(CometError, match="not finished"):
        open_answers(folder)
    before = (folder / "shard-00000.arrow").stat().st_mtime_ns
    ask_once(folder, table, a_teacher(tokenizer), tokenizer, SETTINGS, bar=False)
    assert files(folder) == whole
    assert (folder / "shard-00000.arrow").stat().st_mtime_ns == before  # not made again


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"k": 4}, r"k \(8 there, 4 now\)"),
        ({"seed": 4}, "seed"),
        ({"temperature": 1.0}, "temperature"),
        ({"maps": (0, 1)}, r"maps \(\[0, 2\] there"),
        ({"max_length": 31}, "max length"),
        ({"shard_rows": 10}, "shard rows"),
    ],
)
def test_other_settings_are_refused_by_name(change, named, made, table, tokenizer):
    with pytest.raises(CometError, match=named) as error:
        ask_once(
            made[0], table, a_teacher(tokenizer), tokenizer, replace(SETTINGS, **change), bar=False
        )
    said = str(error.value).partition("differs in ")[2].partition(";")[0]
    assert "," not in re.sub(r"\(.*\)", "", said)  # that one difference


def test_other_weights_texts_tokenizer_and_library_are_refused_by_name(
    made, table, tokenizer, monkeypatch
):
    def refused(named, **changes):
        given = {"table": table, "teacher": a_teacher(tokenizer), "tokenizer": tokenizer, **changes}
        with pytest.raises(CometError, match=named):
            ask_once(made[0], questions=SETTINGS, bar=False, **given)

    teacher = a_teacher(tokenizer)
    with torch.no_grad():
        teacher.lm_head.bias[3] += 1e-6
    refused("in teacher weights;", teacher=teacher)
    refused("in texts;", table=table.select([1, 0, *range(2, len(table))]))
    refused(r"in texts, rows \(\d+ there, 9 now\);", table=table.select(range(9)))
    refused("in tokenizer;", tokenizer=fixed_tokenizer(["another", *TEXTS], vocab_size=60))
    monkeypatch.setattr(comet_lib, "__version__", "99")
    refused("in library version ")


def test_calling_the_tokenizer_changes_no_fingerprint(table, tokenizer):
    teacher = a_teacher(tokenizer)
    before = fingerprint(table, teacher, tokenizer, SETTINGS)
    tokenizer(TEXTS[:2], padding=True, truncation=True, max_length=5)
    assert fingerprint(table, teacher, tokenizer, SETTINGS) == before


def damaged(made, tmp_path, harm):
    folder = tmp_path / "copy"
    shutil.copytree(made[0], folder)
    shard = folder / "shard-00001.arrow"
    content = bytearray(shard.read_bytes())
    shard.write_bytes(harm(content))
    return folder


def flip(content):
    content[len(content) // 2] ^= 1
    return content


@pytest.mark.parametrize("harm", [flip, lambda c: c[:-1], lambda c: c[:0], lambda c: c + b"x"])
def test_a_damaged_shard_is_found_and_can_be_mended(harm, made, tmp_path, table, tokenizer):
    folder = damaged(made, tmp_path, harm)
    for call in (
        lambda: open_answers(folder),
        lambda: ask_once(folder, table, a_teacher(tokenizer), tokenizer, SETTINGS, bar=False),
    ):
        with pytest.raises(CometError, match=r"shard-00001\.arrow.*delete shard-00001\.json"):
            call()
    (folder / "shard-00001.json").unlink()
    ask_once(folder, table, a_teacher(tokenizer), tokenizer, SETTINGS, bar=False)
    assert files(folder) == files(made[0])


def test_no_cache_there_is_said(tmp_path):
    with pytest.raises(CometError, match=r"fingerprint\.json"):
        open_answers(tmp_path)


def test_the_size_is_predicted_and_compared_with_the_disk(
    made, table, tokenizer, tmp_path, monkeypatch
):
    real = sum(path.stat().st_size for path in made[0].glob("*.arrow"))
    shards = len(list(made[0].glob("*.arrow")))
    empty = 2500 * shards  # schema and buffers' padding: nothing beside a full shard
    assert predicted_bytes(table["length"][:], SETTINGS) == pytest.approx(real - empty, rel=0.2)
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(teacher_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CometError, match="larger disk"):
        ask_once(tmp_path / "c", table, a_teacher(tokenizer), tokenizer, SETTINGS, bar=False)
    assert not list((tmp_path / "c").glob("*"))


def test_a_full_disk_keeps_finished_shards(made, table, tokenizer, tmp_path, monkeypatch):
    real = teacher_module.pa.OSFile

    def full(path, mode):
        if "shard-00002" in path:
            raise OSError(28, "No space left on device")
        return real(path, mode)

    monkeypatch.setattr(teacher_module.pa, "OSFile", full)
    with pytest.raises(CometError, match="make room"):
        ask_once(tmp_path / "c", table, a_teacher(tokenizer), tokenizer, SETTINGS, bar=False)
    kept = files(tmp_path / "c")
    assert {name for name in kept if name.endswith(".arrow")} == {
        "shard-00000.arrow",
        "shard-00001.arrow",
    }
    assert not [name for name in kept if name.startswith(".")]


def test_a_batch_with_nothing_masked_has_a_loss(tokenizer, tmp_path):
    short = tokenize(["a"] * 4, tokenizer, 8)
    settings = replace(SETTINGS, seed=12)
    rows = ask_once(tmp_path / "c", short, a_teacher(tokenizer), tokenizer, settings, False)
    bare = [row for row in rows if not row["positions"]]
    assert bare
    batch = StoredCollator(settings, tokenizer.pad_token_id)(bare)
    student = a_teacher(tokenizer)
    weights = {"soft_targets": 0.5, "attention_kl": 0.5}
    with Objective(stored_answers, weights, MATCHES, 2.0).on(student) as terms_of:
        terms = terms_of(student, batch)
    assert terms["soft_targets"] == 0 and terms["loss"].isfinite()
    terms["loss"].backward()


def test_a_glance_is_chosen_by_the_batch_and_never_on_dev(tokenizer):
    asked = LiveTeacher(a_teacher(tokenizer), Questions(maps=(0, 2), masked_lm=False))
    glances, shown = Glances(asked, every=3), 0
    for start in range(0, 60, 2):
        ids = torch.tensor([[0, 5 + start % 7, 5 + start % 11, 2]])
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        assert not glances(batch).maps  # without soft targets: dev
        probs = torch.tensor([[0.2, 0.3, 0.5]])
        answers = glances({**batch, "teacher_probs": probs})
        assert answers.probs is probs and bool(answers.maps) == (int(ids.sum()) % 3 == 0)
        shown += bool(answers.maps)
        if answers.maps:
            torch.testing.assert_close(answers.maps[2], capture_maps(asked.model, batch)[2])
    assert 0 < shown < 30
