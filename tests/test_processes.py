"""Two processes of ``accelerate launch`` (gloo, CPU) train like one on twice the batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from fixed_tokenizer import fixed_tokenizer
from safetensors.torch import load_file, save_file
from transformers import set_seed

import comet_lib
from comet_lib.loading import load_tokenizer
from comet_lib.models import build_student, xlmr_config
from comet_lib.processes import processes, shares_of_step, threads_for
from comet_lib.profiles import Stage, get_profile
from comet_lib.text import load_text
from comet_lib.training import distil_task_agnostic, fine_tune

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,  # each process draws its own, so with dropout none would agree
    "attention_probs_dropout_prob": 0.0,
}
WORDS = [f"{a} {b} {c}" for a in "abcd" for b in ("ẹ kú", "mai", "ndi") for c in ("x y", "z")]
#: Of 97 texts one is held out; 96 and 64 are whole batches of 16, for accelerate fills a short one.
TEXTS = [" ".join([WORDS[i % 24]] * (1 + i % 4)) for i in range(97)]
STEPS = 20


def run(folder: Path, tokenizer_folder: Path, batch: int) -> None:
    """Both stages from the same weights; the main process writes into ``folder``.

    Stage 1 with the teacher asked as it goes, and from a cache, on text from a folder. In
    float64: some gradients are zero but for rounding (a key's bias changes no attention), and Adam
    makes full steps of what rounding leaves.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    stage = Stage(50, 5e-3, batch, temperature=2.0, alpha=0.5, patience=99, max_steps=STEPS)
    profile = get_profile("tiny").with_(stage1=stage, stage2=stage, max_length=16)
    config = xlmr_config(SIZES, len(tokenizer), 64, initializer_range=0.2)
    weights = {}

    def finished(name, model):
        weights.update({f"{name}.{k}": v.clone() for k, v in model.state_dict().items()})

    texts = load_text(profile.with_(text=str(tokenizer_folder.parent / "text")))
    for name, cache in (("live", None), ("cached", folder / "cache")):
        set_seed(0)
        teacher, student = (build_student(config, "masked-lm").double() for _ in range(2))
        distil_task_agnostic(
            student,
            teacher,
            tokenizer,
            texts,
            profile,
            folder / name,
            cache=cache,
            disable_tqdm=True,
            eval_strategy="no",
            save_strategy="no",
        )
        finished(name, student)
    set_seed(0)
    student = build_student(config).double()
    tweets = Dataset.from_dict(
        {
            "text": TEXTS[:64],
            "label": [-100 if i % 3 == 1 else i % 3 for i in range(64)],
            "language": ["kin" if i % 5 else "swa" for i in range(64)],
            "teacher_probs": [[0.1 + 0.2 * (i % 4), 0.2, 0.7 - 0.2 * (i % 4)] for i in range(64)],
        }
    )
    dev = tweets.select([i for i in range(64) if i % 3 != 1])  # 43 rows: no multiple of 8
    log = fine_tune(
        student,
        tokenizer,
        tweets,
        dev,
        profile,
        folder / "stage2",
        per_device_eval_batch_size=8,
        disable_tqdm=True,
    )
    finished("stage2", student)
    if processes().is_main_process:
        save_file(weights, folder / "weights.safetensors")
        scores = [row for row in log if "eval_loss" in row]
        (folder / "scores.json").write_text(json.dumps(scores))
    else:
        (folder / f"process-{processes().process_index}").touch()


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    fixed_tokenizer(TEXTS, vocab_size=60).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "text").mkdir()
    for name, lines in (("a", TEXTS[:61]), ("b", TEXTS[61:])):
        (tmp_path / "text" / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    run(one, tmp_path / "tokenizer", batch=16)
    launch = "launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *launch.split()]
    command += ["--dynamo_backend", "no", "--main_process_port", "0", __file__]
    root = str(Path(comet_lib.__file__).parents[1])
    done = subprocess.run(
        [*command, str(two), str(tmp_path / "tokenizer")],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-9000:]
    assert (two / "process-1").is_file()  # there were two
    ours, theirs = (load_file(f / "weights.safetensors") for f in (one, two))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-5, rtol=0, msg=name)
    scores = [json.loads((f / "scores.json").read_text()) for f in (one, two)]
    for alone, both in zip(*scores, strict=True):
        for key, value in alone.items():
            if key.startswith("eval_f1"):  # no row is counted twice or left out
                assert both[key] == pytest.approx(value)
    cached = [{p.name: p.read_bytes() for p in (f / "cache").iterdir()} for f in (one, two)]
    assert cached[0] == cached[1]


def test_alone_the_shares_are_those_of_the_batches():
    assert processes().num_processes == 1 and processes().is_main_process
    for counts, shares in (([7], [1.0]), ([1, 2, 3], [0.5, 1.0, 1.5]), ([0, 0], [0.0, 0.0])):
        assert shares_of_step(torch.tensor(counts)).tolist() == shares


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), batch=8)


def test_a_small_model_computes_in_one_thread_and_leaves_the_number_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        wide = {**SIZES, "hidden_size": 512, "intermediate_size": 1024}
        for sizes, threads in ((SIZES, 1), (wide, 2)):
            model = build_student(xlmr_config(sizes, 50, 16))
            with pytest.raises(KeyError), threads_for(model):
                assert torch.get_num_threads() == (2 if torch.cuda.is_available() else threads)
                raise KeyError
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
